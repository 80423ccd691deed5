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

// Which column each byte of a panel's header belongs to, -1 for padding: as packed.h tells it.
std::vector<int> columns_of_header(const WeightFormat& f) {
    std::vector<int> columns;
    auto run = [&](int64_t count, int bytes) {
        for (int64_t i = 0; i < count; i++)
            for (int c = 0; c < 32; c++) columns.insert(columns.end(), size_t(bytes), c);
    };
    const int64_t groups = block_depth / f.group;
    if (f.packing == Packing::int4_two_level) {
        run(1, 2), run(4, 1), run(4, 2);
    } else if (of_k(f.packing)) {
        run(f.zero == Zero::real ? 2 : 1, 2);
        run((f.zero == Zero::real ? 2 : 1) * groups / 2, 2);
    } else {
        run(groups, 2);
        if (f.zero != Zero::none) run(groups, f.zero == Zero::integer ? 1 : 2);
    }
    columns.resize(size_t(header_bytes(f)), -1);
    return columns;
}

void check_headers() {
    for (const WeightFormat& f : formats()) {
        const std::vector<int> columns = columns_of_header(f);
        std::set<int> seen;
        int64_t used = 0;
        for (int column : columns) used += column >= 0;
        for (int half = 0; half < 2; half++) {
            for (int at = 0; at < header_bytes(f) / 2; at += 16) {
                const int from = half_header_at(f, half, at);
                expect(from >= 0 && from % 16 == 0 && from + 16 <= header_bytes(f), "a piece of a header beyond it: " + name_of(f));
                for (int i = 0; i < 16; i++) {
                    const int column = columns[size_t(from + i)];
                    if (column < 0 || at + i >= used / 2) continue;  // padding, or what lies where padding does
                    expect(column / 16 == half && seen.insert(from + i).second, "a header's byte of the other half, or twice: " + name_of(f));
                }
            }
        }
        for (size_t i = 0; i < columns.size(); i++) expect(columns[i] < 0 || seen.count(int(i)), "a header's byte in no half: " + name_of(f));
    }
}

void check_stage() {
    std::set<int> seen;
    for (int line = 0; line < 16; line++)
        for (int output = 0; output < 16; output++) {
            const int at = few_code_at(line, output);
            expect(at >= line * 64 && at < line * 64 + 64 && at % 4 == 0 && seen.insert(at).second, "a code's place in a stage");
        }
    for (int line = 0; line < 16; line += 4)  // what half a warp reads at once: 8 bytes a lane, all 32 banks
        for (int g0 = 0; g0 < 8; g0 += 4) {
            std::set<int> banks;
            for (int g = g0; g < g0 + 4; g++)
                for (int t = 0; t < 4; t++) banks.insert(few_code_at(line + t, 2 * g) / 4 % 32), banks.insert(few_code_at(line + t, 2 * g + 1) / 4 % 32);
            expect(banks.size() == 32, "banks of a stage");
        }
}

void check_plans() {
    for (const WeightFormat& f : formats())
        for (int64_t rows = 1; rows <= few_rows_most; rows++)
            for (int64_t k : {1, 64, 100, 256, 600, 2048, 2304, 4096, 8192, 11008, 14336, 28672, 65536})
                for (int64_t panels : {1, 3, 64, 4008})
                    for (bool gated : {false, true}) {
                        PackedLinearArgs a{};
                        a.rows = rows, a.k = k, a.format = f, a.gated = gated;
                        const int64_t count = 1 + below(200), depth = round_up(k, 64), blocks = (k + 255) / 256;
                        const FewPlan p = few_plan(a, panels, count);
                        const std::string what = name_of(f) + " rows " + std::to_string(rows) + " k " + std::to_string(k);
                        if (p.bytes > few_shared_most) {
                            expect(p.rows == 1 && rows * k > 14336, "too large for any plan: " + what);
                            continue;
                        }
                        const int64_t ends[] = {p.rows * p.x_stride, p.scales_at + p.rows * blocks * 4, p.sums_at + p.rows * depth / sum_depth(f) * 2,
                                                p.ring_at + few_warps * p.stages * block_bytes(f) / 2,
                                                p.terms_at + 2 * few_warps * few_terms(f, 4) * half_outputs * (p.rows + 1) * 4,
                                                p.pairs_at + (gated ? 32 * p.rows * 4 : 0)};
                        const int64_t begins[] = {p.scales_at, p.sums_at, p.ring_at, p.terms_at, p.pairs_at, p.bytes};
                        for (int i = 0; i < 6; i++) expect(ends[i] <= begins[i] && begins[i] % 4 == 0, "shared memory: " + what);
                        expect(p.ring_at % 16 == 0 && p.x_stride % 16 == 0 && p.x_stride % 128 % 32 == 16 && p.x_stride >= depth, "alignment: " + what);
                        expect(p.stages >= 1 && p.stages <= 3 && p.units >= 1 && p.rows >= 1 && p.rows <= rows, "plan: " + what);
                        expect(p.rounds * (gated ? 4 : 8) >= blocks && (p.rounds - 1) * (gated ? 4 : 8) < blocks, "rounds: " + what);
                        expect(p.rows * 16 * (gated ? 2 : 1) <= few_warps * 32, "threads that add: " + what);
                    }
}

// Of packed_many.inl: where codes lie in a stage, and how the work is split.
void check_many() {
    for (int half = 0; half < 2; half++)
        for (int line = 0; line < 16; line++)
            for (int quarter = 0; quarter < 4; quarter++)
                expect(many_chunk(half * 64 + line * 4 + quarter) * 16 == half * 1024 + few_code_at(line, quarter * 4), "a chunk's place in a stage");
    for (int g = 0; g < 8; g += 2) {  // what eight lanes read at once, 16 bytes each: all 32 banks
        std::set<int> banks;
        for (int lane = 0; lane < 8; lane++) banks.insert((g / 4 * 512 + few_code_at(lane % 4, (g + lane / 4) % 4 * 4)) / 16 % 8);
        expect(banks.size() == 8, "lanes that read codes from the same banks");
    }
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
                    const int halves = 2 / many_parts(p.way), warps = p.panels * p.sharers, sums = int(block_depth / sum_depth(f)) * 2;
                    ways.insert(p.way);
                    expect(p.way < many_ways(f.packing), "way: " + what);
                    expect(p.panels >= 1 && p.sharers % halves == 0 && warps <= many_warps && p.rows == p.sharers / halves * many_tiles(p.way) * 8, "warps: " + what);
                    expect(p.resident >= 1 && p.resident * warps <= many_at_once(f.packing, p.way) && p.resident * (p.bytes + 1024) <= shared + 1024, "at once: " + what);
                    expect(p.stages >= 2 && p.stages <= many_stages_most && p.bytes == p.stages * p.stage, "stages: " + what);
                    expect(p.codes_at == p.panels * p.slot && p.slot == block_bytes(f) && p.sums_at == p.codes_at + p.rows * many_x_stride &&
                               p.scales_at == p.sums_at + p.rows * sums && p.stage == p.scales_at + p.rows * 4, "shared memory: " + what);
                    expect(p.slot % 16 == 0 && p.codes_at % 16 == 0 && p.sums_at % 16 == 0 && p.stage % 16 == 0, "alignment: " + what);
                    expect(int64_t(p.blocks) * 256 >= k && int64_t(p.blocks - 1) * 256 + p.last_tiles * 64 == round_up(k, 64), "depth: " + what);
                }
    expect(ways.size() == 3, "a way that no plan takes");
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
    for (size_t i = 0; i < want.size(); i++) {
        const bool nan = want[i] != want[i];
        const bool right = nan ? got[i] != got[i] : gated ? std::fabs(got[i] - want[i]) <= 1e-5f * (1 + std::fabs(want[i])) : same_bits(got[i], want[i]);
        expect(right, what + ": element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", the reference's " + std::to_string(want[i]));
        if (!right) return;
    }
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
    if (part.empty() || part == "places") check_headers(), check_stage(), check_plans(), check_many();
    const std::string few = "(packed_few_kernel<packing, by16>)";
    if (part.empty() || part == "few") {
        check_products(1, 8, 10);
        expect(started == std::set<std::string>{few}, "few rows by other kernels");
        check_products(9, 16, 2);
    }
    started.clear();
    if (part.empty() || part == "many") {
        check_products(9, 130, 6);
        check_products(17, 64, 3);
        for (int way = 0; way < 3; way++)
            expect(started.count("(packed_many_kernel<packing, by16, " + std::to_string(way) + ">)"), "many rows not by all kernels");
    }
    if (wrong) printf("%d wrong\n", wrong);
    return wrong ? 1 : 0;
}
