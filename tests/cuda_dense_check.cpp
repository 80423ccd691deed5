// Products with weights of 16 bits as the device makes them (cuda/dense_few.inl, dense_many.inl, dense_tiles.inl), on a processor: how work is split, sums
// beside float64 on fresh numbers and awkward sizes, and that a row has the same bits whatever is beside it, among few rows and among many:
// cuda_dense_check SEED [part]. Prints what is wrong; exit 1.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "../cpp/kernels.h"
#include "../cuda/gk.h"

std::set<std::string> started;  // the kernels
#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) \
    (started.insert(#kernel), gk::launch_kernel(grid_x, grid_y, threads, shared_bytes, [&] { kernel(__VA_ARGS__); }))

namespace genkit {
namespace {

#include "../cuda/kernels.inl"
#include "cuda_workspace.inl"

int64_t processors = 1, shared = 99 << 10;
Workspace workspace() {
    Workspace w = filled_workspace(processors, 0xff);  // NaN
    w.shared = shared;
    return w;
}

std::mt19937_64 rng;
int wrong = 0;
Kernels fast;

void expect(bool right, const std::string& what) {
    if (!right && wrong++ < 20) printf("%s\n", what.c_str());
}
int64_t below(int64_t n) { return int64_t(rng() % uint64_t(n)); }
float normal() { return std::normal_distribution<float>(0, 1)(rng); }

// ---- how work is split -----------------------------------------------------------------------------------------------

// What lanes of dense_few_kernel read at once lies in all banks: of a stage's outputs g and g + 1, and of rows.
void check_few_places() {
    for (int at : {0, 64})
        for (int g = 0; g < 8; g += 2) {
            std::set<int> banks;
            for (int lane = 0; lane < 8; lane++) banks.insert(((g + lane / 4) * 128 + ((lane % 4 ^ lane / 4 * 4) * 16 ^ at)) / 16 % 8);
            expect(banks.size() == 8, "banks of weights");
        }
    for (bool half : {false, true})
        for (int64_t k = 8; k < 20000; k += 8 * (1 + below(40))) {
            const int64_t stride = dense_x_stride(k, half);
            expect(stride % 16 == 0 && stride >= round_up(k, dense_unit) * dense_x_bytes(half), "a row in shared memory");
            std::set<int64_t> banks;
            for (int lane = 0; lane < 8; lane++) banks.insert((lane / 4 * stride + lane % 4 * 8 * dense_x_bytes(half)) / 16 % 8);
            expect(banks.size() == 8, "banks of rows");
        }
    expect(dense_few_bytes(dense_few_most, 4096, false, true) <= 227 << 10, "sixteen rows in shared memory");
    expect(dense_few_bytes(1, 14336, false, true) <= 113 << 10, "a row in half the shared memory");
    const int64_t longer = dense_few_bytes(1, 4096, false, true, dense_few_longer);
    expect(longer > 114 << 10 && longer <= dense_longer_most && longer + dense_few_bytes(1, 4096, false, true) <= 225 << 10, "a longer ring beside a shorter one");
    expect(dense_few_bytes(dense_few_most, 1 << 20, true, false) <= 99 << 10, "shared memory without rows");
}

// Tiles of bf16: each 16 bytes of a stage has a place of its own, and the eight rows of a matrix lie in all banks.
template <class Tile>
void check_tile() {
    expect(Tile::bytes <= 99 << 10 && Tile::clocks > 0, "shared memory of tiles");
    std::set<int> places;
    for (int line = 0; line < Tile::lines; line++)
        for (int piece = 0; piece < Tile::pieces; piece++) {
            const int at = Tile::at(line, piece);
            expect(at % 16 == 0 && at >= line * Tile::line_bytes && at < (line + 1) * Tile::line_bytes && places.insert(at).second, "a line's place in a stage");
        }
    for (int line = 0; line < Tile::lines; line += 8)
        for (int piece = 0; piece < Tile::pieces; piece++) {
            std::set<int> banks;
            for (int i = 0; i < 8; i++) banks.insert(Tile::at(line + i, piece) / 16 % 8);
            expect(banks.size() == 8, "banks of a matrix");
        }
}

void check_plans() {
    for (int64_t k = 8; k < 70000; k += k < 4200 ? 8 : 520)
        for (bool half : {false, true})
            for (int64_t all : {17, 300, 2048, 9000}) {
                const int64_t most = dense_rows_most(k, half);
                if (most < 1) continue;
                const int64_t rows = dense_rows_at_once(all, k, half);
                expect(most * round_up(k, dense_unit) * dense_x_bytes(half) <= workspace_bytes && rows <= most && rows >= 128 && rows % 128 == 0 &&
                           (all + rows - 1) / rows == (all + most - 1) / most, "rows rounded at once, k " + std::to_string(k));
            }
    for (int64_t rows = 17; rows <= 300; rows++)
        for (int64_t outputs : {1, 16, 100, 2048, 4096, 28672, 128256})
            for (int64_t count : {1, 80, 132}) {
                if (dense_many_large(rows, outputs, count)) expect(rows > 64 && (outputs + 127) / 128 * ((rows + 63) / 64) >= count, "large tiles");
                expect(dense_tile(rows, outputs, count) >= 0 && dense_tile(rows, outputs, count) < 4, "a tile");
            }
    expect(dense_tile(2048, 28672, 132) == 0 && dense_tile(2048, 4096, 132) == 0 && dense_tile(64, 4096, 132) == 3, "tiles of a model of eight billion");
    check_few_places();
    check_tile<DenseLarge>(), check_tile<DenseMiddle>(), check_tile<DenseFlat>(), check_tile<DenseSmall>();
    for (auto [m, n] : {std::pair(4, 2), std::pair(1, 2)}) {
        expect(dense_many_bytes(m, n) <= 100 << 10 && dense_stages(m, n) >= 3, "shared memory of tiles of f16");
        const int rows = 32 * n, outputs = 32 * m;
        std::set<int> seen;
        for (int row = 0; row < rows; row++)
            for (int piece = 0; piece < 16; piece++) {
                const int at = dense_row_at(rows, row, piece);
                expect(at >= 0 && at % 16 == 0 && at + 16 <= rows * 256 && seen.insert(at).second, "a row's place in a stage");
            }
        seen.clear();
        for (int output = 0; output < outputs; output++)
            for (int piece = 0; piece < 8; piece++) {
                const int at = dense_output_at(outputs, output, piece);
                expect(at >= 0 && at % 16 == 0 && at + 16 <= outputs * 128 && seen.insert(at).second, "an output's place in a stage");
            }
        expect(dense_stage_bytes(m, n) == outputs * 128 + rows * 256, "a stage");
        for (int step = 0; step < 2; step++)  // what eight lanes read at once, rows g and g + 1: all 32 banks
            for (int g = 0; g < 8; g += 2) {
                std::set<int> banks[3];
                for (int lane = 0; lane < 8; lane++) {
                    for (int four = 0; four < 2; four++) banks[four].insert(dense_row_at(rows, g + lane / 4, (step * 4 + lane % 4) * 2 + four) / 16 % 8);
                    banks[2].insert(dense_output_at(outputs, g + lane / 4, step * 4 + lane % 4) / 16 % 8);
                }
                for (const auto& of : banks) expect(of.size() == 8, "banks of a stage");
            }
    }
}

// ---- products --------------------------------------------------------------------------------------------------------

float taken(float x, DType dtype, bool dense) {  // what a product takes of x
    if (!dense || x != x) return x;
    if (dtype == DType::f16) return from_bits((to_bits(x) + 0x1000u) & 0xffffe000u);
    bf16 b;
    narrow(x, b);
    return widen(b);
}
float number(uint16_t bits, DType dtype) { return dtype == DType::f16 ? widen(f16{bits}) : widen(bf16{bits}); }

std::set<int> tiles;  // that were taken

struct Problem {
    int64_t rows, n, k;
    DType dtype;
    int64_t experts;
    float size = 1;  // of x
};

void check_product(const Problem& p) {
    processors = below(2) ? 1 + below(3) : 4 + below(20);
    shared = below(2) ? 227 << 10 : dense_few_bytes(dense_few_most, 0, false, false) + below(2000);
    const int64_t rows = p.rows, n = p.n, k = p.k, experts = p.experts ? p.experts : 1;
    const bool bias = below(2), residual = !p.experts && below(2), shifted = below(8) == 0;  // weights that are not aligned
    const int64_t x_stride = k + (below(2) ? 4 * below(3) : below(6)), out_stride = n + below(4);
    const int64_t expert = below(experts), first = p.experts ? 16 * below(3) : 0, places = first + rows + (p.experts ? 1 + below(5) : 0);
    const std::string what = "type " + std::to_string(int(p.dtype)) + " rows " + std::to_string(rows) + " n " + std::to_string(n) + " k " + std::to_string(k) +
                             (p.experts ? " experts" : "") + (bias ? " bias" : "") + (residual ? " residual" : "") + (shifted ? " shifted" : "");
    std::vector<uint16_t> memory(size_t(experts * n * k + 16));
    uint16_t* weight = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16 / 2 + (shifted ? 1 : 0);
    for (int64_t i = 0; i < experts * n * k; i++) {
        if (p.dtype == DType::f16) { f16 h{0}; narrow(below(20) ? normal() : normal() * 1e-6f, h); weight[i] = h.bits; }  // denormals as well
        else { bf16 b{0}; narrow(normal(), b); weight[i] = b.bits; }
    }
    // An infinity where an output's weights begin: whoever reads on beyond those of the one before finds it.
    if (below(2)) weight[below(experts * n) * k] = uint16_t(p.dtype == DType::f16 ? 0x7c00 : 0x7f80);
    std::vector<float> x(size_t(places * x_stride + 4), NAN), biases(size_t(experts * n)), out(size_t(places * out_stride));
    float* x0 = x.data() + (16 - reinterpret_cast<uintptr_t>(x.data()) % 16) % 16 / 4;
    for (int64_t r = 0; r < places; r++)
        for (int64_t i = 0; i < k; i++) x0[r * x_stride + i] = normal() * p.size;
    for (float& v : biases) v = normal() * p.size;
    for (float& v : out) v = normal() * p.size;
    const bool dense = k % 8 == 0 && !shifted;
    const std::vector<float> before = out;
    LinearArgs a{x0, weight, bias ? biases.data() : nullptr, residual ? out.data() : nullptr, out.data(), rows, n, k, x_stride, out_stride, p.dtype};
    const Region region{int32_t(expert), int32_t(first), int32_t(rows)};
    if (p.experts) a.region = &region, a.rows = places + below(40);
    started.clear();
    after_attention = below(2);
    const int64_t split = below(3) ? 0 : below(n + 1);
    fast.linear(a, 0, split);
    fast.linear(a, split, n);
    const bool many = a.rows > 16;
    if (many && p.dtype == DType::bf16) tiles.insert(dense_tile(a.rows, n - split, processors));
    for (const std::string& kernel : started) {
        const bool product = kernel.find(!many ? "dense_few_kernel" : p.dtype == DType::f16 ? "dense_many_kernel" : "dense_tile_kernel") != std::string::npos;
        expect(dense ? product || (kernel == "round_x_kernel" && (many || !dense_resident(a))) : kernel == "linear_kernel", what + ": by " + kernel);
    }

    for (int64_t r = 0; r < places; r++)
        for (int64_t j = 0; j < out_stride; j++) {
            const float got = out[size_t(r * out_stride + j)], old = before[size_t(r * out_stride + j)];
            if (r < first || r >= first + rows || j >= n) {
                expect(got == old, what + ": wrote where it has nothing to write");
                continue;
            }
            double want = (bias ? biases[size_t(expert * n + j)] : 0) + (residual ? old : 0), size = std::fabs(want);
            for (int64_t i = 0; i < k; i++) {
                const double term = double(taken(x0[r * x_stride + i], p.dtype, dense)) * number(weight[(expert * n + j) * k + i], p.dtype);
                want += term, size += std::fabs(term);
            }
            const double allowed = 0x1p-24 * (2 * std::sqrt(double(k)) + 12) * size;
            if (std::isfinite(want) ? !(std::fabs(got - want) <= allowed) : std::isfinite(got)) {
                expect(false, what + ": row " + std::to_string(r) + " output " + std::to_string(j) + " is " + std::to_string(got) + ", not " + std::to_string(want));
                return;
            }
        }
    // The same bits of some rows by themselves, by the same kernel.
    for (int i = 0; i < 3; i++) {
        const int64_t from = first + below(rows), least = !dense || !many ? 1 : 17, most = !dense || many ? rows : 16;
        const int64_t count = std::min<int64_t>(first + rows - from, i == 0 ? least : least + below(20));
        if (count < least || count > most) continue;
        std::vector<float> alone(before.begin() + from * out_stride, before.begin() + (from + count) * out_stride);
        LinearArgs b{x0 + from * x_stride, weight + expert * n * k, bias ? biases.data() + expert * n : nullptr, residual ? alone.data() : nullptr,
                     alone.data(), count, n, k, x_stride, out_stride, p.dtype};
        processors = 1 + below(20);
        shared = below(2) ? 227 << 10 : 99 << 10;
        fast.linear(b, 0, n);
        for (size_t e = 0; e < alone.size(); e++)
            if (memcmp(&alone[e], &out[size_t(from * out_stride) + e], 4) != 0) return expect(false, what + ": rows by themselves have other bits");
    }
}

int64_t some_k() {
    const int64_t ks[] = {8 * (1 + below(8)), 8 * (1 + below(150)), 64 * (1 + below(30)), 1 + below(300)};
    return ks[below(4)];
}

void check_few() {
    for (DType dtype : {DType::bf16, DType::f16})
        for (int i = 0; i < 40; i++)
            check_product({1 + below(i % 2 ? 16 : 5), 1 + below(i % 4 ? 60 : 400), some_k(), dtype, below(4) ? 0 : 2 + below(2), 1});
    for (int i = 0; i < 6; i++) check_product({1 + below(9), 1 + below(40), some_k(), i % 2 ? DType::f16 : DType::bf16, 0, i < 3 ? 1e30f : 1e-30f});
}

void check_many() {
    for (int i = 0; i < 32; i++)
        check_product({17 + below(i % 3 ? 60 : 180), 1 + below(i % 4 ? 60 : 400), some_k() * (i % 5 ? 1 : 2), i % 2 ? DType::bf16 : DType::f16, below(4) ? 0 : 2 + below(2), 1});
    for (int i = 0; i < 60 && tiles.size() < 4; i++) check_product({65 + below(i % 2 ? 200 : 60), 65 + below(i % 2 ? 400 : 60), some_k(), DType::bf16, 0, 1});
    expect(tiles.size() == 4, "not every tile was taken");
}

// More rows than are rounded at once.
void check_pieces() {
    const int64_t k = 129000, rows = dense_rows_most(k, false) + 5;
    std::vector<uint16_t> weight(size_t(k + 8), 0);
    uint16_t* w = weight.data() + (16 - reinterpret_cast<uintptr_t>(weight.data()) % 16) % 16 / 2;
    w[k - 1] = 0x3f80, w[3] = 0x4000;
    std::vector<float> out(size_t(rows), NAN);
    std::vector<float> all(size_t(rows * 8 + k), 0);  // rows overlap: row r begins 8 r further
    for (size_t i = 0; i < all.size(); i++) all[i] = float(below(100));
    fast.linear({all.data(), w, nullptr, nullptr, out.data(), rows, 1, k, 8, 1, DType::bf16}, 0, 1);
    for (int64_t r = 0; r < rows; r++) expect(out[size_t(r)] == all[size_t(8 * r + k - 1)] + 2 * all[size_t(8 * r + 3)], "rows in pieces: row " + std::to_string(r));
}

}  // namespace
}  // namespace genkit

int main(int count, char** words) {
    using namespace genkit;
    rng.seed(count > 1 ? strtoull(words[1], nullptr, 10) : 1);
    const std::string part = count > 2 ? words[2] : "";
    install(fast);
    if (part.empty() || part == "plans") check_plans();
    if (part.empty() || part == "few") check_few();
    if (part.empty() || part == "many") check_many();
    if (part.empty() || part == "pieces") check_pieces();
    if (wrong) printf("%d wrong\n", wrong);
    return wrong ? 1 : 0;
}
