// cuda_shim.h's tensor cores in 16 bits, matrices, copies and warps, against what they stand for, on fresh numbers:
// cuda_shim_check SEED. Prints what is wrong; exit 1.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "../cuda/gk.h"

namespace {

std::mt19937 rng;
int wrong = 0;

void expect(bool right, const char* what) {
    if (!right) printf("%s\n", what), wrong++;
}

float draw() { return std::normal_distribution<float>(0, 1)(rng); }

uint16_t element(uint32_t packed, int i) { return uint16_t(packed >> 16 * i); }

// a [16, 16] times b [16, 8] + c, element by element; operands come in by load_matrix.
template <class T, class Pack, class Product>
void product(const char* what, Pack pack, Product mma) {
    static uint16_t a[16 * 16], b_by_rows[16 * 8];
    static float c[16 * 8], d[16 * 8];
    for (auto& x : a) x = element(pack(draw(), 0.0f), 0);
    for (auto& x : b_by_rows) x = element(pack(0.0f, draw()), 1);
    for (auto& x : c) x = draw();
    gk::launch(1, 1, 32, sizeof a + sizeof b_by_rows, [&] {
        char* memory = gk::shared();
        if (const int i = gk::thread(); i < 16) {
            memcpy(memory + 32 * i, a + 16 * i, 32);
            memcpy(memory + 512 + 16 * i, b_by_rows + 8 * i, 16);
        }
        gk::sync();
        const int lane = gk::lane(), g = lane / 4, t = lane % 4;
        // Of a: rows 0..7 and 8..15 of its left half, then of its right. Of b, k by columns: k 0..7 and 8..15, twice.
        const gk::Words4 left = gk::load_matrix(memory + 32 * (lane % 16) + 16 * (lane / 16));
        const gk::Words4 right = gk::load_matrix_transposed(memory + 512 + 16 * (lane % 16));
        const uint32_t of_b[2] = {right.x[0], right.x[1]};
        float sums[4];
        for (int i = 0; i < 4; i++) sums[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
        mma(sums, left.x, of_b);
        for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
    });
    double error = 0, size = 0;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            double want = c[i * 8 + j];
            for (int k = 0; k < 16; k++) want += double(widen(T{a[i * 16 + k]})) * double(widen(T{b_by_rows[k * 8 + j]}));
            error += (d[i * 8 + j] - want) * (d[i * 8 + j] - want);
            size += want * want;
        }
    expect(error <= 1e-12 * size, what);
}

// The nearest of both neighbours, an even one in the middle.
template <class T, class Pack>
void rounding(const char* what, Pack pack, float largest) {
    for (int i = 0; i < 200000; i++) {
        float x;
        do {
            const uint32_t bits = uint32_t(rng());
            memcpy(&x, &bits, 4);
        } while (!(fabsf(x) < largest));
        const uint16_t code = element(pack(0.0f, x), 1);
        const double here = widen(T{code}), off = fabs(here - double(x));
        for (int step = -1; step <= 1; step += 2) {
            if ((code & 0x7fff) == 0 && step < 0) continue;  // zero has neighbours of either sign
            const double other = fabs(double(widen(T{uint16_t(code + step)})) - double(x));
            expect(off < other || (off == other && code % 2 == 0), what);
        }
    }
    const float nan = std::nanf("");
    expect(pack(nan, -nan) == 0x7fff7fff, what);
}

void copies() {
    static uint32_t from[64], seen[3][4], last[4];
    for (auto& x : from) x = uint32_t(rng()) | 1;
    gk::launch(1, 1, 1, 64, [&] {
        char* memory = gk::shared();
        gk::copy_async(memory, from);
        gk::copy_commit();
        gk::copy_async(memory + 16, from + 4, false);
        gk::copy_commit();
        gk::copy_async(memory + 32, from + 8);  // of no group yet
        gk::copy_wait<1>();
        memcpy(seen[0], memory, 16), memcpy(seen[1], memory + 16, 16);
        gk::copy_wait<0>();
        memcpy(seen[2], memory + 16, 16), memcpy(last, memory + 32, 16);
    });
    const uint32_t none[4] = {}, poison[4] = {0xa5a5a5a5, 0xa5a5a5a5, 0xa5a5a5a5, 0xa5a5a5a5};
    expect(memcmp(seen[0], from, 16) == 0, "the older of two groups has arrived");
    expect(memcmp(seen[1], poison, 16) == 0, "the newest one has not");
    expect(memcmp(seen[2], none, 16) == 0, "what was not wanted is zeros");
    expect(memcmp(last, poison, 16) == 0, "what was not committed has not arrived");
}

void warps() {
    static int from[64];
    static uint32_t votes[64], counter;
    const uint32_t mask = uint32_t(rng());
    uint32_t order = 0;
    counter = 0;
    gk::launch(2, 1, 32, 0, [&] {
        const int lane = gk::lane(), at = int(gk::block()) * 32 + lane;
        from[at] = gk::shuffle(lane * 10, (lane + 5) % 32);
        votes[at] = gk::ballot(mask >> lane & 1);
        gk::sync_warp();
        if (lane == 0) order |= gk::add_global(&counter, 1) << gk::block();
        if (gk::blocks() != 2) wrong++;
    });
    for (int i = 0; i < 64; i++) expect(from[i] == (i % 32 + 5) % 32 * 10 && votes[i] == mask, "shuffle and ballot");
    expect(order == 2 && counter == 2, "add_global gives what was there before");
}

// Whether a kernel of 40 threads is refused when the last of block 1 leaves without having waited.
bool refused(bool waits) {
    try {
        gk::launch_kernel(3, 1, 40, 0, [&] {
            if (!waits && gk::block() == 1 && gk::thread() == 39) return;
            gk::wait_for_previous();
            gk::sync();
        });
    } catch (const std::runtime_error&) {
        return true;
    }
    return false;
}

}  // namespace

int main(int, char** arguments) {
    using genkit::stored::bf16, genkit::stored::f16;
    rng.seed(uint32_t(atoll(arguments[1])));
    product<bf16>("a product in bf16", gk::pack_bf16, gk::mma_bf16);
    product<f16>("a product in f16", gk::pack_f16, gk::mma_f16);
    rounding<bf16>("rounding to bf16", gk::pack_bf16, 3e38f);
    rounding<f16>("rounding to f16", gk::pack_f16, 65504.0f);
    copies();
    warps();
    expect(refused(false) && !refused(true), "a thread that leaves without waiting is found, in any block");
    return wrong != 0;
}
