// Products with integer weights as the device makes them (cuda/packed_few.inl and its like), on a processor: where things lie, how work is
// split, and the bits beside the reference's, on fresh numbers and awkward sizes: cuda_packed_check SEED [part]. Prints what is
// wrong; exit 1.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <string>

#include "../cpp/kernels.h"
#include "../cuda/gk.h"

std::set<std::string> started;  // the kernels
#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) \
    (started.insert(#kernel), gk::launch_kernel(grid_x, grid_y, threads, shared_bytes, [&] { kernel(__VA_ARGS__); }))

namespace genkit {
void install_reference(Kernels& k);
namespace {

#include "../cuda/kernels.inl"
#include "cuda_workspace.inl"

constexpr int64_t shared_of_devices[] = {99 << 10, 163 << 10, 227 << 10};  // that a block of threads may have
int64_t processors = 1, block_shared = shared_of_devices[0];
Workspace workspace() {
    Workspace w = filled_workspace(processors, 0xa5);
    w.shared = block_shared;
    return w;
}

std::set<int> ways_taken;  // by products of many rows
std::mt19937_64 rng;
int wrong = 0;
Kernels plain, fast;

void expect(bool right, const std::string& what) {
    if (!right && wrong++ < 20) printf("%s\n", what.c_str());
}
int64_t below(int64_t n) { return int64_t(rng() % uint64_t(n)); }
float normal() { return std::normal_distribution<float>(0, 1)(rng); }

std::vector<WeightFormat> formats() {
    std::vector<WeightFormat> all = {{Packing::int4_two_level, 256, Zero::none, DType::f16}};
    for (Packing packing : {Packing::int4, Packing::int8})
        for (int64_t group : {32, 64, 128, 256})
            for (Zero zero : {Zero::none, Zero::integer, Zero::real}) all.push_back({packing, group, zero, group % 3 == 1 ? DType::bf16 : DType::f16});
    for (Packing packing : {Packing::int4_k, Packing::int8_k})
        for (int64_t group : {16, 32})
            for (Zero zero : {Zero::none, Zero::real}) all.push_back({packing, group, zero, DType::f16});
    return all;
}
std::string name_of(const WeightFormat& f) {
    return "format " + std::to_string(int(f.packing)) + " group " + std::to_string(f.group) + " zero " + std::to_string(int(f.zero));
}

// ---- where things lie ------------------------------------------------------------------------------------------------

void check_plans() {
    for (const WeightFormat& f : formats())
        for (int64_t rows = 1; rows <= few_rows_most; rows++)
            for (int64_t k : {1, 64, 100, 256, 600, 2048, 2304, 4096, 8192, 11008, 14336, 28672, 65536})
                for (int64_t panels : {1, 3, 64, 4008})
                    for (bool gated : {false, true}) {
                        PackedLinearArgs a{};
                        a.rows = rows, a.k = k, a.format = f, a.gated = gated;
                        const int64_t count = 1 + below(200), blocks = (k + 255) / 256;
                        const int64_t shared = shared_of_devices[below(3)];
                        const FewPlan p = few_plan(a, panels, count, shared);
                        const std::string what = name_of(f) + " rows " + std::to_string(rows) + " k " + std::to_string(k);
                        if (p.rows == 0) {
                            expect(k > 14336, "too large for any plan: " + what);
                            continue;
                        }
                        expect(p.bytes <= shared && (p.slots <= count || 2 * p.bytes + 1024 <= shared), "too many at once: " + what);
                        const int64_t ends[] = {p.rows * p.x_stride, p.scales_at + p.rows * blocks * 4, p.sums_at + p.rows * blocks * 256 / sum_depth(f) * 2,
                                                p.barriers_at + p.warps * few_stages_most * 8, p.more_at + p.warps * 256, p.ring_at + p.cut * p.stages * block_bytes(f),
                                                p.terms_at + p.buffers * p.depth * p.cut * few_terms(f, 4) * few_term_floats(p.rows) * 4};
                        const int64_t begins[] = {p.scales_at, p.sums_at, p.barriers_at, p.more_at, p.ring_at, p.terms_at, p.bytes};
                        for (int i = 0; i < 7; i++) expect(ends[i] <= begins[i] && begins[i] % 4 == 0, "shared memory: " + what);
                        expect(p.barriers_at % 8 == 0 && p.ring_at % 16 == 0 && p.terms_at % 16 == 0 && p.buffer % 16 == 0 && p.slot % 16 == 0 && p.last % 16 == 0 &&
                                   p.x_stride % 128 == 16 && p.x_stride >= blocks * 256 && (p.stages >= 1 && p.stages <= few_stages_most), "alignment: " + what);
                        expect(p.slot == block_bytes(f) && (blocks - 1) * p.slot + p.last == panel_bytes(f, k), "bytes of a panel: " + what);
                        expect((p.rows == 1 || p.rows == 2 || p.rows == 4 || p.rows == 8) && p.rows < 2 * rows && p.rows * p.row_tiles >= rows &&
                                   p.rows * (p.row_tiles - 1) < rows && p.slots >= 1 && p.slots <= panels, "plan: " + what);
                        expect(p.cut <= p.warps && p.warps <= few_warps(p.rows, f.group == 16) && p.rounds * p.depth * p.cut >= blocks && (p.rounds - 1) * p.depth * p.cut < blocks, "rounds: " + what);
                        expect(1 << p.term_shift == p.terms && (of_k(f.packing) || 32 << p.group_shift == f.group), "logarithms: " + what);
                    }
}

// Of packed_many.inl: where things lie in a stage, and how the work is split.
void check_many() {
    std::set<int> banks;
    for (int row = 0; row < 8; row++) banks.insert(row * many_x_stride / 16 % 8);
    expect(banks.size() == 8, "rows of a matrix in the same banks");
    std::set<int> ways;
    for (const WeightFormat& f : formats())
        for (int64_t rows : {1, 8, 9, 16, 17, 31, 32, 33, 48, 64, 65, 100, 128, 500, 2048})
            for (int64_t k : {1, 64, 100, 256, 600, 4096, 14336})
                for (int64_t panels : {1, 3, 64, 128, 896, 4008}) {
                    PackedLinearArgs a{};
                    a.rows = rows, a.k = k, a.format = f, a.codes_stride = round_up(k, 64);
                    const int64_t shared = shared_of_devices[below(3)];
                    const ManyPlan p = many_plan(a, panels, 1 + below(200), shared);
                    const std::string what = name_of(f) + " rows " + std::to_string(rows) + " panels " + std::to_string(panels);
                    const int cuts = many_cuts(p.way), share = cuts * 2 / many_parts(p.way), warps = p.panels * p.sharers, sums = int(block_depth / sum_depth(f)) * 2;
                    ways.insert(p.way);
                    expect(many_has(f, p.way) && cuts <= p.blocks, "way: " + what);
                    expect(p.panels >= 1 && p.sharers % share == 0 && warps <= many_warps(f.packing, p.way) &&
                               p.rows == p.sharers / share * many_tiles(p.way) * 8, "warps: " + what);
                    expect(p.resident >= 1 && p.resident * warps <= many_warps(f.packing, p.way) && p.resident * (p.bytes + 1024) <= shared + 1024, "at once: " + what);
                    expect(p.stages >= 2 && p.stages <= many_stages_most && p.barriers_at == p.stages * p.stage && p.stage == cuts * p.piece &&
                               p.terms_at == p.barriers_at + 8 * many_stages_most &&
                               p.bytes == p.terms_at + (cuts > 1 ? warps * many_tiles(p.way) * many_parts(p.way) * 512 : 0), "stages: " + what);
                    expect(p.codes_at == p.panels * p.slot && p.slot == block_bytes(f) && p.sums_at == p.codes_at + p.rows * many_x_stride &&
                               p.scales_at == p.sums_at + p.rows * sums && p.piece == p.scales_at + p.rows * 4, "shared memory: " + what);
                    expect(p.slot % 16 == 0 && p.codes_at % 16 == 0 && p.sums_at % 16 == 0 && p.piece % 16 == 0, "alignment: " + what);
                    expect(int64_t(p.blocks) * 256 >= k && int64_t(p.blocks - 1) * 256 + p.last_tiles * 64 == round_up(k, 64), "depth: " + what);
                }
    expect(ways.size() == many_ways, "a way that no plan takes");
}

// ---- products --------------------------------------------------------------------------------------------------------

struct Weight {
    std::vector<uint8_t> memory;
    uint8_t* panels;
    int64_t count;
};

// Random panels within the ranges the core lets through; scales of a size that floats of the sums are not all alike.
Weight random_weight(int64_t n, int64_t k, const WeightFormat& f, bool gated, int64_t experts) {
    const int64_t count = gated ? (n / 2 + 15) / 16 : (n + 31) / 32, bytes = panel_bytes(f, k);
    Weight w{std::vector<uint8_t>(size_t(experts * count * bytes + 64)), nullptr, count};
    w.panels = w.memory.data() + (64 - reinterpret_cast<uintptr_t>(w.memory.data()) % 64) % 64;
    const int64_t groups = block_depth / scale_depth(f), blocks = (k + 255) / 256;
    auto put = [&](uint8_t* at, float x) {
        uint16_t bits;
        if (f.scale_dtype == DType::bf16) { bf16 b{0}; narrow(x, b); bits = b.bits; }
        else { f16 h{0}; narrow(x, h); bits = h.bits; }
        memcpy(at, &bits, 2);
    };
    for (int64_t p = 0; p < experts * count; p++)
        for (int64_t b = 0; b < blocks; b++) {
            uint8_t* block = w.panels + p * bytes + b * block_bytes(f);
            const int64_t size = b + 1 < blocks ? block_bytes(f) : bytes - b * block_bytes(f);
            for (int64_t i = 0; i < size; i++) block[i] = uint8_t(rng());
            for (int64_t i = 0; i < groups * 32; i++) put(block + 2 * i, normal() * 0.01f);
            if (f.packing == Packing::int4_two_level) {
                for (int tile = 0; tile < 4; tile++)
                    for (int c = 0; c < 32; c++) {
                        const int64_t u[2] = {1 + below(15), 1 + below(15)};
                        block[64 + tile * 32 + c] = uint8_t(u[0] | u[1] << 4);
                        for (int i = 0; i < 2; i++) {
                            const int64_t least = 15 * u[i] > 127 ? 15 * u[i] - 127 : 0;
                            block[192 + tile * 64 + c * 2 + i] = uint8_t(least + below(129 - least));
                        }
                    }
            } else if (f.zero == Zero::real) {
                for (int64_t i = 0; i < groups * 32; i++) put(block + groups * 64 + 2 * i, normal());
            } else if (f.zero == Zero::integer && f.packing == Packing::int4) {
                for (int64_t i = 0; i < groups * 32; i++) block[groups * 64 + i] = uint8_t(below(17));
            }
        }
    return w;
}

bool same_bits(float a, float b) { return memcmp(&a, &b, 4) == 0; }

void check_product(int64_t rows, int64_t n, int64_t k, const WeightFormat& f, bool gated, int64_t experts) {
    if (gated) n = 2 * n;
    processors = 1 + below(below(4) ? 3 : 30), block_shared = shared_of_devices[below(3)];
    const bool bias = below(2), residual = !gated && below(2);
    const std::string what = name_of(f) + " rows " + std::to_string(rows) + " n " + std::to_string(n) + " k " + std::to_string(k) +
                             (gated ? " gated" : "") + (experts ? " experts" : "") + (bias ? " bias" : "") + (residual ? " residual" : "");
    Weight w = random_weight(n, k, f, gated, experts ? experts : 1);
    // Of all places some rows are the region's: those before it are another's.
    const int64_t first = experts ? 16 * below(3) : 0, places = first + rows, depth = round_up(k, 64), stride = depth + 64 * below(2), blocks = (k + 255) / 256;
    const int64_t out_n = gated ? n / 2 : n, out_stride = out_n + below(4), expert = experts ? below(experts) : 0;
    std::vector<float> x(size_t(places * k)), biases(size_t(std::max<int64_t>(1, experts) * n)), scales(size_t(places * blocks));
    for (float& v : x) v = normal();
    for (float& v : biases) v = normal();
    if (rows > 2) x[size_t((first + 1) * k + below(k))] = INFINITY;
    std::vector<int8_t> code_memory(size_t(places * stride + 64), 77);
    int8_t* codes = code_memory.data() + (64 - reinterpret_cast<uintptr_t>(code_memory.data()) % 64) % 64;
    std::vector<int16_t> sums(size_t(places * depth / sum_depth(f)));
    plain.quantize({x.data(), codes, scales.data(), sums.data(), k, k, stride, places, false, sum_depth(f)}, 0, places);
    std::vector<float> want(size_t(places * out_stride)), got;
    for (float& v : want) v = normal();
    got = want;
    PackedLinearArgs a{codes + first * stride, scales.data() + first * blocks, sums.data() + first * (depth / sum_depth(f)),
                       w.panels + expert * w.count * panel_bytes(f, k), bias ? biases.data() + expert * n : nullptr,
                       residual ? want.data() + first * out_stride : nullptr, want.data() + first * out_stride, rows, n, k, stride, out_stride, f,
                       gated, Activation(below(4))};
    plain.packed_linear(a, 0, w.count);
    const Region region{int32_t(expert), int32_t(first), int32_t(rows)};
    if (experts) {
        a.region = &region, a.rows = rows + (rows + 2 <= few_rows_most || rows > few_rows_most ? below(3) : 0), a.codes = codes, a.scales = scales.data(), a.sums = sums.data(), a.weight = w.panels;
        a.bias = bias ? biases.data() : nullptr;
        a.out = got.data();
        a.residual = nullptr;
        if (residual) a.region = nullptr, a.rows = 0;  // residuals have no regions
    } else {
        a.out = got.data();
        if (residual) a.residual = got.data();
    }
    if (experts && residual) return;
    const int64_t split = below(3) ? 0 : below(w.count + 1);
    fast.packed_linear(a, 0, split);
    fast.packed_linear(a, split, w.count);
    if (a.rows > 2 * few_rows_most && split < w.count) ways_taken.insert(many_plan(a, w.count - split, processors, block_shared).way);
    for (size_t i = 0; i < want.size(); i++) {
        const bool nan = want[i] != want[i];
        const bool right = nan ? got[i] != got[i] : gated ? std::fabs(got[i] - want[i]) <= 1e-5f * (1 + std::fabs(want[i])) : same_bits(got[i], want[i]);
        expect(right, what + ": element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", the reference's " + std::to_string(want[i]));
        if (!right) return;
    }
}

// Codes that the product makes, of rows or of what a norm makes of them: all that is left in memory is what three kernels leave.
void check_made(int64_t rows, int64_t n, int64_t k, const WeightFormat& f, bool normed) {
    processors = 1 + below(3), block_shared = shared_of_devices[2];
    const std::string what = name_of(f) + " rows " + std::to_string(rows) + " k " + std::to_string(k) + (normed ? " with the norm" : "") + ", codes made";
    Weight w = random_weight(n, k, f, false, 1);
    const int64_t blocks = (k + 255) / 256, depth = round_up(k, 64), x_stride = k + 8;
    struct Made {
        std::vector<float> normed, scales, out;
        std::vector<int8_t> codes;
        std::vector<int16_t> sums;
    } made[2];
    std::vector<float> x(size_t(rows * x_stride + 4)), weight(size_t(k + 4));
    for (float& v : x) v = normal();
    for (float& v : weight) v = normal();
    auto aligned = [](auto& v) { return reinterpret_cast<decltype(v.data())>((reinterpret_cast<uintptr_t>(v.data()) + 15) / 16 * 16); };
    const FewPlan p = few_plan({nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, rows, n, k, depth, n, f, false, Activation::silu}, w.count, processors, block_shared);
    for (int i = 0; i < 2; i++) {
        Made& m = made[i];
        m.normed.assign(size_t(rows * x_stride + 4), 7.0f), m.scales.assign(size_t(rows * blocks), 7.0f), m.out.assign(size_t(rows * n), 7.0f);
        m.codes.assign(size_t(rows * depth + 16), 7), m.sums.assign(size_t(rows * depth / sum_depth(f)), 7);
        RmsNormArgs norm{aligned(x), aligned(weight), aligned(m.normed), k, 1, x_stride, x_stride, 1e-5f};
        QuantizeArgs rounding{normed ? norm.out : norm.x, aligned(m.codes), m.scales.data(), m.sums.data(), k, x_stride, depth, rows, false, sum_depth(f)};
        PackedLinearArgs product{rounding.codes, m.scales.data(), m.sums.data(), w.panels, nullptr, nullptr, m.out.data(), rows, n, k, depth, n, f, false, Activation::silu};
        if (!normed) norm.x = nullptr;
        if (i == 0) {
            if (normed) fast.rms_norm(norm, 0, rows);
            fast.quantize(rounding, 0, rows);
            fast.packed_linear(product, 0, w.count);
        } else {
            const bool makes = packed_product({norm, rounding}, product, 0, w.count);
            expect(makes == (p.rows > 0 && few_makes({norm, rounding}, rows, p)), "whether codes are made: " + what);
            expect(makes || rows > 1 || (normed ? k > 2048 : blocks > few_made_most), "codes of one row that are not made: " + what);
            if (!makes) return;
        }
    }
    expect(!normed || !memcmp(aligned(made[0].normed), aligned(made[1].normed), size_t(rows * x_stride) * 4), "the norm: " + what);
    expect(!memcmp(aligned(made[0].codes), aligned(made[1].codes), size_t(rows * depth)), "codes: " + what);
    expect(!memcmp(made[0].scales.data(), made[1].scales.data(), size_t(rows * blocks) * 4), "scales: " + what);
    expect(!memcmp(made[0].sums.data(), made[1].sums.data(), made[0].sums.size() * 2), "sums: " + what);
    expect(!memcmp(made[0].out.data(), made[1].out.data(), made[0].out.size() * 4), "outputs: " + what);
}

void check_products(int64_t least, int64_t most, int tries) {
    for (const WeightFormat& f : formats())
        for (int i = 0; i < tries; i++) {
            const int64_t ks[] = {1 + below(64), 1 + below(600), 64 * (1 + below(16)), 2048 + below(300), 4096 + below(700)};
            check_product(least + below(most - least + 1), 1 + below(i % 5 < 3 ? 200 : 40), ks[i % 5], f, below(3) == 0, below(4) == 0 ? 2 : 0);
        }
}

}  // namespace
}  // namespace genkit

int main(int count, char** words) {
    using namespace genkit;
    rng.seed(count > 1 ? strtoull(words[1], nullptr, 10) : 1);
    const std::string part = count > 2 ? words[2] : "";
    install_reference(plain);
    install(fast);
    if (part.empty() || part == "places") check_plans(), check_many();
    const std::string few = "(packed_few_kernel<packing, by16, rows>)";
    if (part.empty() || part == "few") {
        check_products(1, 8, 10);
        expect(started == std::set<std::string>{few}, "few rows by other kernels");
        const std::vector<WeightFormat> all = formats();
        for (int i = 0; i < 30; i++) {
            const bool normed = below(2);
            const int64_t k = 8 * (1 + below(i % 3 ? 80 : normed ? 1024 : 1900));
            check_made(1 + below(k < 1000 ? 8 : 3), 32 + below(60), k, all[size_t(below(int64_t(all.size())))], normed);
        }
        check_products(9, 16, 2);
    }
    ways_taken.clear();
    if (part.empty() || part == "many") {
        check_products(9, 130, 6);
        check_products(17, 64, 3);
        for (int i = 0; i < 30; i++)  // k cut among warps
            check_product(17 + below(50), 1 + below(i % 3 ? 200 : 40), 512 + below(i % 2 ? 600 : 3000),
                          {i % 3 == 2 ? Packing::int8 : Packing::int4_two_level, 256, Zero::none, i % 6 == 2 ? DType::bf16 : DType::f16}, below(3) == 0,
                          below(4) == 0 ? 2 : 0);
        for (int way = 0; way < many_ways; way++) expect(ways_taken.count(way), "many rows never in way " + std::to_string(way));
    }
    if (wrong) printf("%d wrong\n", wrong);
    return wrong ? 1 : 0;
}
