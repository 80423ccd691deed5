// The queue of cuda/queue.inl, by chance: slots are called in a random order on a few buffers that may overlap, once each by
// itself and once through the queue. What is left in memory has to be the same. argv: seed, rounds.
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "../cpp/kernels.h"
#include "../cuda/gk.h"

namespace genkit {
namespace {

void flush();
int64_t started = 0;
template <class Body>
void start(int64_t grid_x, int64_t grid_y, int threads, int shared_bytes, Body body) {
    flush();
    started += grid_x > 0 && grid_y > 0;
    gk::launch_kernel(grid_x, grid_y, threads, shared_bytes, body);
}
#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) start(grid_x, grid_y, threads, shared_bytes, [&] { kernel(__VA_ARGS__); })

#include "../cuda/kernels.inl"

std::vector<uint32_t> counters(workspace_counters, 0);
alignas(256) char scratch[workspace_bytes];
Workspace workspace() { return {counters.data(), scratch, 3}; }

std::mt19937 rng;
int64_t below(int64_t n) { return int64_t(rng() % uint32_t(n)); }
bool one_in(int64_t n) { return below(n) == 0; }

// ---- memory: activations as one block of floats, whose buffers are at multiples of 64 bytes; weights beside it -----------

constexpr int64_t buffers = 9, buffer_floats = 3 * 16 * 40, memory_floats = buffers * buffer_floats;
alignas(256) float memory[memory_floats];
alignas(256) uint8_t weights[1 << 17];
float norm_weight[512];

// One of the buffers: mostly as a whole, now and then in the middle of two.
template <class T = float>
T* some() { return reinterpret_cast<T*>(memory + below(buffers - 1) * buffer_floats + (one_in(8) ? buffer_floats / 2 : 0)); }

// Keys and values of 3 sequences of up to 18 pages, more than one chunk, 32 channels a head, of up to 2 KV heads; none of the buffers above.
constexpr int64_t cache_pages = 54, cache_dim = 32;
struct Cache {
    uint16_t k[2 * cache_pages * page_keys * cache_dim], v[2 * cache_pages * page_keys * cache_dim];
    float k_scales[2 * cache_pages * page_keys], v_scales[2 * cache_pages * page_keys];
};
alignas(256) Cache cache, cache_before, cache_after;
int32_t page_table[cache_pages], sequences[2][3] = {{0, 1, 2}, {0, 1, 1}}, positions[8][3];

// What the calls before gave: chains come from using it.
struct Last {
    float* normed;
    float* out;
    int64_t rows, dim, stride;
    QuantizeArgs codes;
    int kind;  // of call
    int64_t n, out_stride;  // of a product with 16-bit weights
    RopeKvWriteArgs rope;
} last;

namespace one_of {
enum { norm, quantize, packed, linear, gated, rope, attention, add, look, kinds };
}
using Step = std::function<void(const Kernels&)>;

Step norm_step() {
    const int64_t inner = one_in(6) ? 2 : 1, rows = one_in(4) ? last.rows : 1 + below(3), dim = one_in(2) ? 1 + below(260) : 8 * (1 + below(32)), stride = inner * dim + below(3);
    float* x = one_in(2) ? last.out : some();
    const RmsNormArgs a{x, norm_weight, one_in(6) ? x : some(), dim, inner, stride, one_in(6) ? stride + 1 : stride, 1e-5f};
    last.normed = a.out, last.rows = rows, last.dim = dim, last.stride = a.out_stride;
    const int64_t first = one_in(10) ? 1 : 0;
    return [=](const Kernels& k) { k.rms_norm(a, first * inner, rows * inner); };
}

Step quantize_step() {
    const bool whole = !one_in(8), same = !one_in(4);
    QuantizeArgs a{};
    a.x = same ? last.normed : one_in(2) ? last.out : some();
    a.rows = one_in(8) ? 1 + below(3) : last.rows;
    a.k = one_in(8) ? 1 + below(200) : last.dim;
    a.x_stride = one_in(8) ? a.k : last.stride;
    a.codes_stride = round_up(a.k, tile_depth) + (one_in(3) ? tile_depth : 0);
    a.codes = some<int8_t>(), a.scales = some(), a.sums = some<int16_t>();
    a.sum_depth = sub_depth;
    a.tiled = one_in(6);
    last.codes = a;
    return [=](const Kernels& k) { k.quantize(a, whole ? 0 : a.rows / 2, a.rows); };
}

Step packed_step() {
    const QuantizeArgs& c = last.codes;
    PackedLinearArgs a{};
    a.codes = c.codes, a.scales = c.scales, a.sums = c.sums, a.weight = weights;
    a.rows = c.rows, a.k = c.k, a.codes_stride = c.codes_stride, a.n = 1 + below(90);
    const Packing packing = one_in(2) ? Packing::int4 : Packing::int8;
    a.format = {packing, 128, one_in(2) ? Zero::none : Zero::integer, DType::f16};
    if (one_in(8)) a.rows = 1 + below(c.rows > 0 ? c.rows : 1);
    a.gated = one_in(3);
    if (a.gated) a.n += a.n % 2;
    a.kind = Activation::silu;
    a.out = some();
    a.out_stride = a.n;
    if (!a.gated && one_in(2)) a.residual = one_in(2) ? a.out : some();
    if (one_in(3)) a.bias = norm_weight;
    last.out = a.out;
    return [=](const Kernels& k) {
        if (c.codes && !c.tiled) k.packed_linear(a, 0, a.gated ? up(a.n / 2, 16) : up(a.n, panel_outputs));
    };
}

Step linear_step() {
    LinearArgs a{};
    a.x = one_in(5) ? some() : last.normed, a.weight = weights, a.rows = last.rows, a.k = last.dim, a.x_stride = last.stride;
    a.n = one_in(2) ? 1 + below(40) : 2 * (1 + below(30));
    a.dtype = one_in(2) ? DType::f16 : DType::bf16;
    a.out = some(), a.out_stride = a.n + (one_in(3) ? below(2) : 0);
    if (one_in(3)) a.residual = one_in(2) ? a.out : some();
    if (one_in(4)) a.bias = norm_weight;
    if (one_in(6)) a.k -= one_in(2);
    last.out = a.out, last.n = a.n, last.out_stride = a.out_stride;
    return [=](const Kernels& k) { k.linear(a, 0, a.n); };
}

Step gated_step() {
    const GatedArgs a{last.out, some(), last.n / 2, last.out_stride, one_in(2) ? Activation::silu : Activation::gelu};
    const int64_t rows = one_in(8) ? 1 : last.rows, first = one_in(10) ? rows / 2 : 0;
    last.out = a.out;
    return [=](const Kernels& k) { k.gated(a, first, rows); };
}

Step rope_step() {
    const int64_t kvs = 1 + below(2), group = one_in(4) ? 9 : 1 + below(3), heads = kvs * group, width = (heads + 2 * kvs) * cache_dim, rows = group == 9 ? 1 : 1 + below(3);
    const bool together = one_in(4);
    const DType type = one_in(3) ? DType::i8 : one_in(2) ? DType::f16 : DType::bf16;
    const int64_t stride = width + (one_in(3) ? below(8) : 0);
    float* x = rows * stride <= buffer_floats ? some() : memory;
    const bool scaled = type == DType::i8;
    const KvPages pages{cache.k, cache.v, scaled ? cache.k_scales : nullptr, scaled ? cache.v_scales : nullptr, page_table, sequences[together],
                        positions[below(8)], kvs, cache_pages, cache_dim, cache_pages / 3, type, !together};
    last.rope = {{x, some(), heads + kvs, cache_dim, one_in(3) ? 8 : 16, stride, one_in(3)},
                 {x + heads * cache_dim, one_in(6) ? some() : x + (heads + kvs) * cache_dim, stride, pages}};
    last.rows = rows;
    const RopeKvWriteArgs a = last.rope;
    const int64_t first = one_in(10) ? 1 : 0;
    return [=](const Kernels& k) { k.rope_kv_write(a, first, rows); };
}

Step attention_step() {
    if (!last.rope.rope.x) return rope_step();
    const KvPages& pages = last.rope.write.pages;
    const int64_t heads = last.rope.rope.heads - pages.kv_heads;
    AttentionArgs a{};
    a.q = one_in(8) ? some() : last.rope.rope.x, a.out = some(), a.pages = pages, a.rows = one_in(8) ? 1 : last.rows, a.heads = heads;
    a.q_stride = last.rope.rope.x_stride, a.out_stride = heads * cache_dim, a.window = one_in(3) ? 70 : 0, a.unit_rows = 1, a.splits = 1;
    a.scale = 0.2f, a.softcap = one_in(4) ? 3.0f : 0.0f;
    if (one_in(4)) a.sinks = norm_weight;
    if (one_in(4)) a.alibi_slopes = norm_weight;
    last.out = a.out;
    return [=](const Kernels& k) { k.attention(a, 0, a.rows * a.pages.kv_heads); };
}

Step add_step() {
    const AddArgs a{some(), last.out, some(), 0.5f};
    return [=](const Kernels& k) { k.add(a, 0, buffer_floats); };
}

// Two in three times what may go on a chain.
Step some_step() {
    constexpr int next[] = {one_of::quantize, one_of::packed, one_of::norm, one_of::gated, one_of::norm, one_of::attention, one_of::rope, one_of::norm, one_of::norm};
    last.kind = one_in(3) ? int(below(one_of::kinds)) : last.kind == one_of::norm && one_in(2) ? int(one_of::linear) : next[last.kind];
    switch (last.kind) {
        case one_of::norm: return norm_step();
        case one_of::quantize: return quantize_step();
        case one_of::packed: return packed_step();
        case one_of::linear: return linear_step();
        case one_of::gated: return gated_step();
        case one_of::rope: return rope_step();
        case one_of::attention: return attention_step();
        case one_of::add: return add_step();
        default: return [](const Kernels&) { flush(); };  // a look at memory
    }
}

bool same(const std::vector<float>& a, const float* b) {
    for (int64_t i = 0; i < memory_floats; i++) {
        uint32_t x, y;
        std::memcpy(&x, &a[size_t(i)], 4), std::memcpy(&y, b + i, 4);
        if (x != y && !(std::isnan(a[size_t(i)]) && std::isnan(b[i]))) return false;  // NaNs differ in signs
    }
    const auto *left = cache_after.k, *right = cache.k;
    for (size_t i = 0; i < offsetof(Cache, k_scales) / 2; i++)
        if (left[i] != right[i] && !((left[i] & 0x7c00) == 0x7c00 && (right[i] & 0x7c00) == 0x7c00)) return false;
    const auto *one = cache_after.k_scales, *two = cache.k_scales;
    for (size_t i = 0; i < 2 * std::size(cache.k_scales); i++)
        if (one[i] != two[i] && !(std::isnan(one[i]) && std::isnan(two[i]))) return false;
    return true;
}

// -> kernels saved, or -1 where memory differs.
int64_t round_of(const Kernels& plain, const Kernels& queued) {
    std::vector<float> before(memory_floats), after(memory_floats);
    for (float& x : before) x = float(below(2001) - 1000) / 500.0f;
    last = {some(), some(), 1, 64, 64, {}, one_of::look, 2, 2, {}};
    for (auto& some : positions)
        for (int32_t& x : some) x = int32_t(below(one_in(3) ? cache_pages / 3 * page_keys : 300));
    for (auto* some : {cache_before.k, cache_before.v})
        for (size_t i = 0; i < std::size(cache_before.k); i++) some[i] = uint16_t(below(0x3c00) | below(2) << 15);
    for (auto* some : {cache_before.k_scales, cache_before.v_scales})
        for (size_t i = 0; i < std::size(cache_before.k_scales); i++) some[i] = float(1 + below(100)) / 1000.0f;
    std::vector<Step> steps;
    while (steps.size() < 12) steps.push_back(some_step());
    std::memcpy(memory, before.data(), sizeof memory);
    cache = cache_before;
    started = 0;
    for (auto& step : steps) step(plain);
    cache_after = cache;
    after.assign(memory, memory + memory_floats);
    const int64_t apart = started;
    std::memcpy(memory, before.data(), sizeof memory);
    cache = cache_before;
    started = 0;
    for (auto& step : steps) step(queued);
    flush();
    return same(after, memory) ? apart - started : -1;
}

}  // namespace
}  // namespace genkit

int main(int, char** arguments) {
    using namespace genkit;
    rng.seed(uint32_t(atoll(arguments[1])));
    for (float& x : norm_weight) x = float(below(200)) / 100.0f;
    for (int32_t i = 0; i < cache_pages; i++) page_table[i] = (i * 7 + 3) % int32_t(cache_pages);
    for (uint8_t& x : weights) x = uint8_t(below(64));  // as f16 or bf16: below 2
    Kernels plain{}, queued{};
    install(plain);
    install_queued(queued);
    int64_t saved = 0;
    const int64_t rounds = atoll(arguments[2]);
    for (int64_t i = 0; i < rounds; i++) {
        const int64_t now = round_of(plain, queued);
        if (now < 0) return printf("round %lld: memory is not the same\n", static_cast<long long>(i)), 1;
        saved += now;
    }
    printf("%lld kernels saved\n", static_cast<long long>(saved));
    return 0;
}
