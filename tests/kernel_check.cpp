// Every slot a tier fills against the reference slot, on random inputs of awkward sizes. One program per tier, so that
// a tier for another architecture can run under an emulator: built and run by test_kernels_native.py with
// -DINSTALL_TIER=install_neon and the like. Exits 1 and names what differs.
#include "../cpp/cpu/reference.cpp"
#include "../cpp/cpu/table.h"

namespace genkit {
void INSTALL_TIER(Kernels& k);  // cuda_tier.cpp's is in no table
}
#ifdef EMULATED_TILES
#include "tile_emulator.h"
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

using namespace genkit;

#define QUOTED(x) #x
#define TEXT(x) QUOTED(x)

namespace {

const double eps = 0x1p-23;  // a float's relative spacing: twice the rounding error
Kernels plain, fast;
int failures = 0;

struct Random {
    int64_t drawn = 0;
    double uniform() { return double(random_bits(20, 11, drawn++)) * 0x1p-53; }
    float in(float low, float high) { return low + (high - low) * float(uniform()); }
    float normal() { return in(-1, 1) + in(-1, 1) + in(-1, 1); }
    int64_t below(int64_t n) { return int64_t(uniform() * double(n)); }
    std::vector<float> normals(int64_t n, float scale = 1) {
        std::vector<float> v(static_cast<size_t>(n));
        for (float& x : v) x = normal() * scale;
        return v;
    }
} rng;

void check(const std::string& what, const std::vector<float>& got, const std::vector<float>& want,
           const std::vector<double>& allowed) {
    for (size_t i = 0; i < want.size(); i++) {
        const bool same = got[i] == want[i] || (got[i] != got[i] && want[i] != want[i]);
        if (!same && !(fabs(double(got[i]) - double(want[i])) <= allowed[i])) {
            printf("%s: element %zu is %.9g, the reference %.9g, allowed %.3g\n", what.c_str(), i, double(got[i]),
                   double(want[i]), allowed[i]);
            failures++;
            return;
        }
    }
}

std::vector<double> relative(const std::vector<float>& want, double factor, double floor = 0) {
    std::vector<double> allowed;
    for (float w : want) allowed.push_back(factor * eps * fabs(double(w)) + floor);
    return allowed;
}

template <class T>
std::vector<T> narrowed(const std::vector<float>& x) {
    std::vector<T> out(x.size());
    for (size_t i = 0; i < x.size(); i++) narrow(x[i], out[i]);
    return out;
}

void check_convert() {
    const std::vector<float> special = {0.0f, -0.0f, 1.0f, -2.5f, 65504.0f, 65519.9f, 65520.0f, 6.1e-5f, 6.0e-8f, 2.9e-8f,
                                        3.0e-8f, 1e-40f, 3.4e38f, INFINITY, -INFINITY, NAN, 1.00390625f, 1.01171875f};
    std::vector<float> x = rng.normals(1000);
    for (size_t i = 0; i < 300; i++) x[i] = from_bits(uint32_t(rng.below(int64_t(1) << 32)));
    x.insert(x.end(), special.begin(), special.end());
    const int64_t n = int64_t(x.size());
    const DType types[] = {DType::f32, DType::f16, DType::bf16};
    for (DType in : types) {
        std::vector<float> source = x;
        if (in != DType::f32) plain.convert({x.data(), source.data(), DType::f32, in}, 0, n);
        for (DType out : types) {
            std::vector<float> got(x.size()), want(x.size());
            const int64_t middle = rng.below(n);
            plain.convert({source.data(), want.data(), in, out}, 0, n);
            fast.convert({source.data(), got.data(), in, out}, 0, middle);
            fast.convert({source.data(), got.data(), in, out}, middle, n);
            std::vector<float> wide_got(x.size()), wide_want(x.size());
            plain.convert({got.data(), wide_got.data(), out, DType::f32}, 0, n);
            plain.convert({want.data(), wide_want.data(), out, DType::f32}, 0, n);
            check("convert " + std::to_string(int(in)) + " to " + std::to_string(int(out)), wide_got, wide_want,
                  relative(wide_want, 0));
        }
    }
}

// A row of x by one of a bf16 weight as tdpbf16ps is defined, 32 k at a time. Normal numbers only: it knows no denormals.
float tile_product(const float* x, const float* weight, int64_t k) {
    float sum = 0;
    for (int64_t from = 0; from < k; from += 32) {
        float parts[2] = {0, 0};
        for (int64_t i = from; i < from + 32 && i < k; i++) parts[i % 2] = fmaf(x[i], weight[i], parts[i % 2]);
        sum += parts[0] + parts[1];
    }
    return sum;
}

// What a device's tensor cores take of x for weights of 16 bits, where the tier's linear takes that: bf16 or tf32.
float rounded_x(float x, DType dtype) {
    if (dtype == DType::f16) return from_bits((to_bits(x) + 0x1000u) & 0xffffe000u);
    bf16 b;
    narrow(x, b);
    return widen(b);
}
bool rounds_x(int64_t k, DType dtype) {
    if (dtype == DType::f32 || k % 8 != 0) return false;
    alignas(16) const uint16_t weight[8] = {uint16_t(dtype == DType::f16 ? 0x3c00 : 0x3f80)};
    const float x[8] = {1.00001f};
    float out = 0;
    fast.linear({x, weight, nullptr, nullptr, &out, 1, 1, 8, 8, 1, dtype}, 0, 1);
    return out != x[0];
}

void check_linear(int64_t rows, int64_t n, int64_t k, DType dtype, bool extras) {
    const int64_t stride = k + 3;
    std::vector<float> x = rng.normals(rows * stride), wide = rng.normals(n * k), bias = rng.normals(n);
    std::vector<float> want = rng.normals(rows * n), got = want;
    const std::vector<f16> half = narrowed<f16>(wide);
    const std::vector<bf16> brain = narrowed<bf16>(wide);
    const void* weight = dtype == DType::f16 ? static_cast<const void*>(half.data())
                         : dtype == DType::bf16 ? static_cast<const void*>(brain.data()) : wide.data();
    std::vector<double> allowed;
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t j = 0; j < n; j++) {
            double size = extras ? fabs(bias[j]) + fabs(want[m * n + j]) : 0;
            for (int64_t i = 0; i < k; i++) size += fabs(double(x[m * stride + i]) * wide[j * k + i]);
            allowed.push_back(eps * (double(k) / 8 + 16) * size);  // chains of k / 8 or fewer sums on either side
        }
    }
    LinearArgs a{x.data(), weight, extras ? bias.data() : nullptr, extras ? want.data() : nullptr, want.data(),
                 rows, n, k, stride, n, dtype};
    std::vector<float> taken = x;
    if (rounds_x(k, dtype))
        for (float& v : taken) v = rounded_x(v, dtype);
    a.x = taken.data();
    plain.linear(a, 0, n);
    a.x = x.data();
    a.out = got.data();
    if (extras) a.residual = got.data();
    const int64_t middle = rng.below(n + 1);
    fast.linear(a, 0, middle);
    fast.linear(a, middle, n);
    check("linear rows " + std::to_string(rows) + " n " + std::to_string(n) + " k " + std::to_string(k), got, want, allowed);
    if (extras || rows < 2) return;
    for (int64_t m = 0; m < rows; m++) {  // a row alone has the same bits
        std::vector<float> alone(static_cast<size_t>(n));
        LinearArgs b{x.data() + m * stride, weight, nullptr, nullptr, alone.data(), 1, n, k, stride, n, dtype};
        fast.linear(b, 0, n);
        check("linear row alone", alone, std::vector<float>(got.begin() + m * n, got.begin() + (m + 1) * n),
              std::vector<double>(static_cast<size_t>(n), 0));
    }
}

// bf16 weights by rows in tiles, where the tier's linear takes them.
void check_tiled_linear(int64_t rows, int64_t n, int64_t k, bool extras) {
    const int64_t stride = k + 3, row_tiles = (rows + 15) / 16, steps = (k + 31) / 32;
    const std::string what = "tiled linear rows " + std::to_string(rows) + " n " + std::to_string(n) + " k " + std::to_string(k);
    std::vector<float> x = rng.normals(rows * stride), bias = rng.normals(n), rounded(x.size()), wide(size_t(n * k));
    const std::vector<bf16> weight = narrowed<bf16>(rng.normals(n * k)), x_bits = narrowed<bf16>(x);
    for (size_t i = 0; i < x.size(); i++) rounded[i] = widen(x_bits[i]);
    for (size_t i = 0; i < wide.size(); i++) wide[i] = widen(weight[i]);
    std::vector<uint16_t> want_tiles(size_t(row_tiles * steps * 32 * tile_columns(rows)), 0xaaaa), tiles(want_tiles.size(), 0x5555);
    plain.tile_rows({x.data(), want_tiles.data(), rows, k, stride}, 0, row_tiles);
    const int64_t half = rng.below(row_tiles + 1);
    fast.tile_rows({x.data(), tiles.data(), rows, k, stride}, 0, half);
    fast.tile_rows({x.data(), tiles.data(), rows, k, stride}, half, row_tiles);
    if (tiles != want_tiles) {
        printf("%s: tile_rows differs\n", what.c_str());
        failures++;
    }
    if (fast.row_input == RowInput::f32) return;
    std::vector<float> want = rng.normals(rows * n), got = want;
    std::vector<double> allowed;
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t j = 0; j < n; j++) {
            double size = extras ? fabs(bias[size_t(j)]) + fabs(want[size_t(m * n + j)]) : 0;
            for (int64_t i = 0; i < k; i++) size += fabs(double(rounded[size_t(m * stride + i)]) * wide[size_t(j * k + i)]);
            allowed.push_back(eps * (double(k) / 8 + 32) * size);
        }
    }
    LinearArgs a{rounded.data(), weight.data(), extras ? bias.data() : nullptr, extras ? want.data() : nullptr, want.data(),
                 rows, n, k, stride, n, DType::bf16};
    plain.linear(a, 0, n);
    a.x = nullptr;
    std::vector<uint16_t> rows_bf16(size_t(rows * steps * 32));
    fast.round_rows({x.data(), rows_bf16.data(), k, stride}, 0, rows);
    a.x_bf16 = fast.row_input == RowInput::bf16_tiles ? tiles.data() : rows_bf16.data();
    a.out = got.data();
    if (extras) a.residual = got.data();
    const int64_t middle = rng.below(n + 1);
    fast.linear(a, 0, middle);
    fast.linear(a, middle, n);
    check(what, got, want, allowed);
    if (fast.row_input == RowInput::bf16_rows) {  // a row alone has the same bits
        const int64_t m = rng.below(rows);
        std::vector<float> alone(got.begin() + m * n, got.begin() + (m + 1) * n);
        if (extras) return;
        const std::vector<float> row = alone;
        LinearArgs b = a;
        b.x_bf16 = rows_bf16.data() + m * steps * 32;
        b.rows = 1;
        b.out = alone.data();
        fast.linear(b, 0, n);
        check(what + " alone", alone, row, std::vector<double>(row.size(), 0));
        return;
    }
    if (extras) return;
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t j = 0; j < n; j++) want[size_t(m * n + j)] = tile_product(rounded.data() + m * stride, wide.data() + j * k, k);
    }
    check(what + " by definition", got, want, std::vector<double>(want.size(), 0));
}

void check_tiles() {
    for (int64_t k : {1, 31, 32, 33, 96, 511, 512, 513, 1100, 1600}) {
        for (int64_t rows : {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 49, 64, 70}) {
            check_tiled_linear(rows, 1 + rng.below(70), k, false);
            check_tiled_linear(rows, 1 + rng.below(70), k, true);
        }
    }
    check_tiled_linear(5, 300, 64, true);
    check_tiled_linear(40, 300, 600, true);   // more outputs than wait at once
    check_tiled_linear(530, 50, 544, false);  // more rows than a slab
}

void check_rows(int64_t rows, int64_t dim) {
    const int64_t stride = 2 * dim + 5;
    const std::vector<float> x = rng.normals(rows * stride, 3), weight = rng.normals(dim), bias = rng.normals(dim);
    const std::string size = " " + std::to_string(rows) + " x " + std::to_string(dim);
    std::vector<float> got(size_t(rows * dim)), want = got;
    const double sum_error = double(dim) / 4 + 16;

    RmsNormArgs rms{x.data(), weight.data(), want.data(), dim, 1, stride, dim, 1e-5f};
    plain.rms_norm(rms, 0, rows);
    rms.out = got.data();
    fast.rms_norm(rms, 0, rows);
    check("rms_norm" + size, got, want, relative(want, sum_error));

    LayerNormArgs layer{x.data(), weight.data(), bias.data(), want.data(), dim, 1, stride, dim, 0, 1e-5f};
    plain.layer_norm(layer, 0, rows);
    layer.out = got.data();
    fast.layer_norm(layer, 0, rows);
    if (dim > 1) check("layer_norm" + size, got, want, std::vector<double>(want.size(), 40 * sum_error * eps));
    for (bool own : {false, true}) {  // heads in place
        std::vector<float> heads_want = x, heads_got = x;
        const std::vector<float> weights = rng.normals(2 * dim), biases = rng.normals(2 * dim);
        LayerNormArgs a{heads_want.data(), weights.data(), own ? biases.data() : nullptr, heads_want.data(), dim, 2, stride, stride,
                        own ? dim : 0, 1e-5f};
        plain.layer_norm(a, 0, 2 * rows);
        a.x = a.out = heads_got.data();
        fast.layer_norm(a, 0, rows);
        fast.layer_norm(a, rows, 2 * rows);
        const std::string what = "layer_norm of heads" + size;
        if (dim > 1) check(what, heads_got, heads_want, std::vector<double>(x.size(), 40 * sum_error * eps));
    }

    std::vector<double> factor;  // each is x times e to some power at its tail, whose rounding the result repeats
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < dim; i++) {
            const double v = fabs(double(x[size_t(r * stride + i)]));
            factor.push_back(eps * (16 + 4 * (v + v * v / 2 + 0.072 * v * v * v)));
        }
    }
    auto tail_error = [&] {
        std::vector<double> allowed;
        for (size_t i = 0; i < want.size(); i++) allowed.push_back(factor[i] * fabs(double(want[i])) + 1e-37);
        return allowed;
    };
    for (Activation kind : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
        ActivationArgs act{x.data(), want.data(), dim, stride, kind};
        plain.activation(act, 0, rows);
        act.out = got.data();
        fast.activation(act, 0, rows);
        check("activation" + size, got, want, tail_error());
        GatedArgs gate{x.data(), want.data(), dim, stride, kind};
        plain.gated(gate, 0, rows);
        gate.out = got.data();
        fast.gated(gate, 0, rows);
        check("gated" + size, got, want, tail_error());
    }
    GatedArgs oai{x.data(), want.data(), dim, stride, Activation::swiglu_oai};
    plain.gated(oai, 0, rows);
    oai.out = got.data();
    fast.gated(oai, 0, rows);
    check("swiglu_oai" + size, got, want, relative(want, 100, 16 * eps));
    const std::vector<float> packed = rng.normals(rows * dim, 3), other = rng.normals(rows * dim);
    for (bool log : {false, true}) {
        SoftmaxArgs soft{packed.data(), want.data(), dim, log};
        plain.softmax(soft, 0, rows);
        soft.out = got.data();
        fast.softmax(soft, 0, rows);
        check("softmax" + size, got, want, relative(want, log ? 8 : sum_error, log ? eps * (sum_error + 32) : 0));
    }
    for (float factor : {1.0f, 0.3f}) {
        plain.add({packed.data(), other.data(), want.data(), factor}, 0, rows * dim);
        fast.add({packed.data(), other.data(), got.data(), factor}, 0, rows * dim);
        check("add" + size, got, want, factor == 1 ? relative(want, 0) : relative(want, 1, 2 * eps));
        const float softcap = factor == 1 ? 0 : 2;
        plain.scale({packed.data(), want.data(), factor, softcap}, 0, rows * dim);
        fast.scale({packed.data(), got.data(), factor, softcap}, 0, rows * dim);
        check("scale" + size, got, want, relative(want, softcap > 0 ? 6 : 0));
    }
    std::vector<int32_t> columns;
    for (int64_t i = 0; i < dim; i++) columns.push_back(int32_t(rng.below(2) ? rng.below(2 * dim + 1) - 1 : (dim / 2 + i) % (2 * dim)));
    GatherColumnsArgs gather{x.data(), packed.data(), columns.data(), want.data(), dim, dim, stride, dim};
    for (bool shifted : {false, true}) {
        for (int64_t i = 0; shifted && i < dim; i++) columns[size_t(i)] = int32_t(dim / 2 + i);
        gather.out = want.data();
        plain.gather_columns(gather, 0, rows);
        gather.out = got.data();
        fast.gather_columns(gather, 0, rows);
        check("gather_columns" + size, got, want, relative(want, 0));
    }

    for (float poison : {0.0f, NAN, INFINITY, -INFINITY}) {
        std::vector<float> y = packed;
        y[size_t(rng.below(rows * dim))] = y[size_t(rng.below(rows * dim))] = poison;
        if (poison == -INFINITY) {
            for (int64_t i = 0; i < dim; i++) y[i] = poison;
        }
        std::vector<int32_t> a(static_cast<size_t>(rows)), b = a, c = a, d = a;
        plain.argmax({y.data(), a.data(), dim}, 0, rows);
        fast.argmax({y.data(), b.data(), dim}, 0, rows);
        plain.nonfinite({y.data(), c.data(), dim}, 0, rows);
        fast.nonfinite({y.data(), d.data(), dim}, 0, rows);
        if (a != b || c != d) {
            printf("argmax or nonfinite%s differs\n", size.c_str());
            failures++;
        }
    }

    std::vector<int32_t> biased;
    for (int64_t i = 0; i < dim; i++)
        if (rng.below(3) == 0) biased.push_back(int32_t(i));
    std::vector<float> added = rng.normals(int64_t(biased.size()), 5);
    if (!added.empty()) added[0] = -INFINITY;
    want = packed, got = packed;
    plain.bias({want.data(), biased.data(), added.data(), dim, int64_t(biased.size())}, 0, rows);
    fast.bias({got.data(), biased.data(), added.data(), dim, int64_t(biased.size())}, 0, rows);
    if (got != want) {
        printf("bias%s differs\n", size.c_str());
        failures++;
    }

    const std::vector<bf16> table = narrowed<bf16>(packed);
    std::vector<int32_t> ids;
    for (int64_t r = 0; r < rows; r++) ids.push_back(int32_t(rng.below(rows)));
    plain.embedding({ids.data(), table.data(), want.data(), dim, DType::bf16}, 0, rows);
    fast.embedding({ids.data(), table.data(), got.data(), dim, DType::bf16}, 0, rows);
    check("embedding" + size, got, want, relative(want, 0));

    for (bool interleaved : {false, true}) {
        const int64_t half = dim / 2, heads = 2;
        std::vector<float> angles = rng.normals(rows * 2 * half), p = rng.normals(rows * stride), q = p;
        std::vector<double> allowed;
        for (int64_t i = 0; i < rows * stride; i++) allowed.push_back(eps * 40);
        plain.rope({p.data(), angles.data(), heads, dim, half, stride, interleaved}, 0, rows);
        fast.rope({q.data(), angles.data(), heads, dim, half, stride, interleaved}, 0, rows);
        check("rope" + size, q, p, allowed);
    }
}

// K and V pages of a type, full of NaN (0xff, which is -1 as int8; its scales are NaN): what was not written must not be seen.
struct Pages {
    std::vector<char> k, v;
    std::vector<float> k_scales, v_scales;
    Pages(int64_t keys, int64_t dim, DType dtype)
        : k(size_t(keys * dim * (dtype == DType::f32 ? 4 : dtype == DType::i8 ? 1 : 2)), char(0xff)), v(k),
          k_scales(dtype == DType::i8 ? size_t(keys) : 0, NAN), v_scales(k_scales) {}
};

void check_attention(int64_t rows, int64_t kv_heads, int64_t group, int64_t dim, int64_t longest, int64_t window, bool alibi,
                     DType dtype, float softcap = 0, bool sunk = false) {
    const int64_t sequences = 3, max_pages = longest / page_keys + 1, pages = sequences * max_pages;
    const int64_t heads = kv_heads * group, stride = heads * dim + 7, width = kv_heads * dim;
    Pages cache(pages * kv_heads * page_keys, dim, dtype), other = cache;
    std::vector<int32_t> table, owner, key, sequence, position;
    for (int64_t p = 0; p < pages; p++) table.push_back(int32_t((p * 5 + 1) % pages));
    auto where = [&](Pages& p, const std::vector<int32_t>& s, const std::vector<int32_t>& at) {
        return KvPages{p.k.data(), p.v.data(), p.k_scales.data(), p.v_scales.data(), table.data(), s.data(), at.data(), kv_heads,
                       pages, dim, max_pages, dtype};
    };
    for (int64_t s = 0; s < sequences; s++) {
        for (int64_t p = 0; p < longest; p++) {
            owner.push_back(int32_t(s));
            key.push_back(int32_t(p));
        }
    }
    const int64_t tokens = sequences * longest, middle = rng.below(tokens);
    const std::vector<float> k = rng.normals(tokens * width), v = rng.normals(tokens * width);
    plain.kv_write({k.data(), v.data(), width, where(cache, owner, key)}, 0, tokens);
    const KvWriteArgs write{k.data(), v.data(), width, where(other, owner, key)};
    fast.kv_write(write, middle, tokens);
    fast.kv_write(write, 0, middle);
    const std::string what = " rows " + std::to_string(rows) + " group " + std::to_string(group) + " dim " +
                             std::to_string(dim) + " type " + std::to_string(int(dtype));
    auto same_floats = [](const std::vector<float>& a, const std::vector<float>& b) {
        return a.empty() || memcmp(a.data(), b.data(), a.size() * 4) == 0;
    };
    if (cache.k != other.k || cache.v != other.v || !same_floats(cache.k_scales, other.k_scales) ||
        !same_floats(cache.v_scales, other.v_scales)) {
        printf("kv_write%s differs\n", what.c_str());
        failures++;
    }

    for (int64_t r = 0; r < rows; r++) {
        sequence.push_back(int32_t(r * sequences / rows));
        position.push_back(int32_t(rng.below(longest)));
    }
    const std::vector<float> q = rng.normals(rows * stride), slopes = rng.normals(heads, 0.1f), sinks = rng.normals(heads, 3);
    const int64_t splits = (max_pages * page_keys + attention_split - 1) / attention_split;
    std::vector<float> want(size_t(rows * heads * dim)), got = want, partials(size_t(rows * heads * splits * (dim + 2)));
    AttentionArgs a{q.data(), alibi ? slopes.data() : nullptr, sunk ? sinks.data() : nullptr, want.data(), nullptr,
                    where(cache, sequence, position), rows, heads, stride, heads * dim, window, 1 + rng.below(rows), splits,
                    float(1 / sqrt(double(dim))), softcap};
    const int64_t units = (rows + a.unit_rows - 1) / a.unit_rows * kv_heads;
    plain.attention(a, 0, units);
    a.out = got.data();
    fast.attention(a, 0, units);
    // A score is off by at most dim * eps * scale * |q| |k| <= dim * eps * sqrt(dim) * 9, ALiBi by an ulp of 0.3 * longest;
    // a weight by e times that, and |v| <= 3. Random errors are far below this bound: a twentieth of it is allowed.
    // Queries and weights in bf16 add a few times 2^-9.
    const double score_error = eps * (double(dim) * sqrt(double(dim)) * 9 + (alibi ? 0.3 * double(longest) : 0));
    const double bound = 3 * (2 * score_error + eps * double(longest));
    const bool rounded = fast.row_input != RowInput::f32 && (dtype == DType::bf16 || dtype == DType::i8);
    check("attention" + what, got, want, std::vector<double>(want.size(), bound / 20 + 8 * eps + (rounded ? 0.06 : 0)));

    auto split = [&](Kernels& tier, const std::vector<float>& whole) {  // partials, merged, have the same bits
        std::vector<float> merged(whole.size());
        AttentionArgs b = a;
        b.partials = partials.data();
        b.out = merged.data();
        tier.attention(b, 0, units * splits);
        tier.attention_merge(b, 0, rows * heads);
        check("attention in splits" + what, merged, whole, std::vector<double>(whole.size(), 0));
    };
    split(plain, want);
    split(fast, got);
    for (int64_t r = 0; r < rows; r++) {  // a row alone has the same bits
        std::vector<float> alone(size_t(heads * dim));
        AttentionArgs b = a;
        b.q += r * stride;
        b.pages.sequences += r;
        b.pages.positions += r;
        b.out = alone.data();
        b.rows = 1;
        fast.attention(b, 0, kv_heads);
        check("attention row alone", alone, std::vector<float>(got.begin() + r * heads * dim, got.begin() + (r + 1) * heads * dim),
              std::vector<double>(alone.size(), 0));
    }
}

void check_draws(int64_t dim, float spread) {  // the same token, the same list, to the bit
    const int64_t rows = 4;
    std::vector<float> x = rng.normals(rows * dim, spread);
    for (int64_t i = 0; i < dim; i++) {
        x[size_t(dim + i)] = roundf(x[size_t(dim + i)]);  // equals
        if (i % 3 == 0 && dim > 1) x[size_t(2 * dim + i)] = -INFINITY;
        x[size_t(3 * dim + i)] = i % 1024 < 16 ? -spread : spread * 0.1f * rng.normal();  // not what a sample shows
    }
    std::vector<char> scratch(size_t(scratch_slots(rows) * scratch_bytes(dim)));
    std::vector<int64_t> sequences = {0, 1, 2, 3}, positions = {9, 8, 7, 6};
    std::vector<int32_t> want(static_cast<size_t>(rows)), got = want;
    for (float temperature : {0.0f, 0.7f, 90.0f}) {
        for (int64_t k : {int64_t(0), int64_t(1), int64_t(40), dim / 2}) {
            for (float top_p : {1.0f, 0.95f, 0.5f}) {
                for (float min_p : {0.0f, 0.05f}) {
                    SampleArgs a{x.data(), sequences.data(), positions.data(), want.data(), scratch.data(), rows, dim, k,
                                 uint64_t(rng.below(1 << 30)), temperature, top_p, min_p, false};
                    plain.sample(a, 0, rows);
                    a.tokens = got.data();
                    fast.sample(a, 0, rows);
                    if (got != want) {
                        printf("sample %lld temperature %g top_k %lld top_p %g min_p %g differs\n", (long long)dim,
                               double(temperature), (long long)k, double(top_p), double(min_p));
                        failures++;
                    }
                }
            }
        }
    }
    for (int64_t k : {int64_t(1), (dim + 2) / 3, dim}) {
        std::vector<float> values(size_t(rows * k)), fast_values = values;
        std::vector<int32_t> ids(size_t(rows * k)), fast_ids = ids;
        plain.top_k({x.data(), values.data(), ids.data(), scratch.data(), rows, dim, k}, 0, rows);
        fast.top_k({x.data(), fast_values.data(), fast_ids.data(), scratch.data(), rows, dim, k}, 0, rows);
        if (values != fast_values || ids != fast_ids) {
            printf("top_k %lld of %lld differs\n", (long long)k, (long long)dim);
            failures++;
        }
    }
}

// More rows than slots, and what is not finite counted by the way.
void check_many_draws(int64_t rows, int64_t dim) {
    std::vector<float> x = rng.normals(rows * dim, 3);
    for (float poison : {NAN, INFINITY, -INFINITY})
        for (int i = 0; i < 3; i++) x[size_t(rng.below(rows * dim))] = poison;
    for (int64_t i = 0; i < dim; i++) x[size_t(i)] = -INFINITY;
    std::vector<char> scratch(size_t(scratch_slots(rows) * scratch_bytes(dim)));
    std::vector<int64_t> sequences(static_cast<size_t>(rows), 0), positions(static_cast<size_t>(rows), 5);
    std::vector<int32_t> want(static_cast<size_t>(rows)), got = want, want_counts = want, counts = want;
    plain.nonfinite({x.data(), want_counts.data(), dim}, 0, rows);
    for (bool finite_only : {false, true}) {
        for (float top_p : {1.0f, 0.7f}) {
            SampleArgs a{x.data(), sequences.data(), positions.data(), want.data(), scratch.data(), rows, dim, 0,
                         uint64_t(rng.below(1 << 30)), 0.8f, top_p, 0, finite_only};
            plain.sample(a, 0, scratch_slots(rows));
            a.tokens = got.data();
            a.nonfinite = fast.sample_counts ? counts.data() : nullptr;
            fast.sample(a, 0, scratch_slots(rows));
            if (got != want || (fast.sample_counts && counts != want_counts)) {
                printf("sample of %lld x %lld top_p %g differs\n", (long long)rows, (long long)dim, double(top_p));
                failures++;
            }
        }
    }
}

void check_philox() {  // known answers of Random123
    const uint32_t ones[4] = {~0u, ~0u, ~0u, ~0u}, zeros[4] = {};
    const uint32_t want[2][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                 {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}};
    uint32_t got[2][4];
    philox(zeros, zeros, got[0]);
    philox(ones, ones, got[1]);
    if (memcmp(got, want, sizeof got) != 0) {
        printf("philox differs from its known answers\n");
        failures++;
    }
}

// ---- integer weights: the same bits as the reference -------------------------------------------------------------

template <class T>
void same(const std::string& what, const std::vector<T>& got, const std::vector<T>& want) {
    for (size_t i = 0; i < want.size(); i++) {
        if (memcmp(&got[i], &want[i], sizeof(T)) != 0) {
            printf("%s: element %zu is %.9g, the reference %.9g\n", what.c_str(), i, double(got[i]), double(want[i]));
            failures++;
            return;
        }
    }
}

std::string name_of(const WeightFormat& f) {
    const char* packings[] = {"int4_two_level", "int4", "int8", "int4_k", "int8_k"};
    const char* zeros[] = {"", " integer zeros", " real zeros"};
    return packings[int(f.packing)] + (" group " + std::to_string(f.group)) + zeros[int(f.zero)] +
           (f.scale_dtype == DType::bf16 ? " bf16" : "");
}

// Row-major codes of a random weight, within the ranges ops.cpp checks.
struct RandomCodes {
    int64_t n, k;
    WeightFormat f;
    std::vector<uint8_t> codes, u, m, zeros;
    std::vector<uint16_t> scales, real_zeros;

    RandomCodes(int64_t n_, int64_t k_, const WeightFormat& f_) : n(n_), k(k_), f(f_) {
        const int64_t depth = round_up(k, tile_depth), groups = n * ((depth + scale_depth(f) - 1) / scale_depth(f));
        for (int64_t i = 0; i < n * depth; i++) codes.push_back(uint8_t(rng.below(eight_bits(f.packing) ? 256 : 16)));
        for (int64_t i = 0; of_k(f.packing) && i < n * depth / f.group; i++) {
            u.push_back(uint8_t(rng.below(256)));
            m.push_back(uint8_t(rng.below(256)));
        }
        for (int64_t i = 0; !of_k(f.packing) && i < n * depth / sub_depth; i++) {
            const int64_t sub = 1 + rng.below(15), least = 15 * sub > 127 ? 15 * sub - 127 : 0;
            u.push_back(uint8_t(sub));
            m.push_back(uint8_t(least + rng.below(129 - least)));
        }
        for (int64_t i = 0; i < groups; i++) {
            scales.push_back(real(rng.normal() * 0.01f));
            real_zeros.push_back(real(rng.normal()));
            zeros.push_back(uint8_t(rng.below(f.packing == Packing::int8 ? 256 : 17)));
        }
    }
    uint16_t real(float x) const {
        return f.scale_dtype == DType::bf16 ? narrowed<bf16>({x})[0].bits : narrowed<f16>({x})[0].bits;
    }
    WeightCodes args() {
        return {codes.data(), scales.data(), u.data(), m.data(),
                f.zero == Zero::integer ? static_cast<void*>(zeros.data()) : real_zeros.data()};
    }
};

void check_quantize(int64_t rows, int64_t k, bool tiled, int64_t run = sub_depth) {
    const int64_t stride = k + 3, depth = round_up(k, tile_depth), places = tiled ? round_up(rows, code_tile_rows) : rows;
    std::vector<float> x = rng.normals(rows * stride, 2);
    if (rows > 3) {
        for (int64_t i = 0; i < k; i++) {
            x[size_t(stride + i)] *= 1e-38f;
            x[size_t(2 * stride + i)] = floorf(x[size_t(2 * stride + i)] * 20) / 2;
        }
        x[size_t(3 * stride + rng.below(k))] = rng.below(2) ? NAN : -INFINITY;
    }
    std::vector<int8_t> want(size_t(places * depth)), got(want.size(), tiled ? 77 : 0);
    std::vector<int16_t> want_sums(size_t(rows * depth / run)), got_sums = want_sums;
    std::vector<float> want_scales(size_t(places * ((k + block_depth - 1) / block_depth))), got_scales(want_scales.size(), 9);
    plain.quantize({x.data(), want.data(), want_scales.data(), want_sums.data(), k, stride, depth, rows, tiled, run}, 0, rows);
    const int64_t middle = rng.below(rows + 1);
    fast.quantize({x.data(), got.data(), got_scales.data(), got_sums.data(), k, stride, depth, rows, tiled, run}, 0, middle);
    fast.quantize({x.data(), got.data(), got_scales.data(), got_sums.data(), k, stride, depth, rows, tiled, run}, middle, rows);
    const std::string what = std::string(tiled ? "tiled " : "") + "quantize " + std::to_string(rows) + " x " + std::to_string(k);
    same(what, got, want);
    same(what + " sums", got_sums, want_sums);
    check(what + " scales", got_scales, want_scales, relative(want_scales, 0));
}

void check_quantize_weight(int64_t n, int64_t k, const WeightFormat& f, DType dtype) {
    std::vector<float> wide = rng.normals(n * k, 0.02f);
    for (int64_t i = 0; n > 2 && i < k; i++) wide[size_t(i)] *= 1e-5f, wide[size_t(k + i)] = 0;  // denormal scales, and none
    if (n > 3) wide[size_t(3 * k - 1)] = NAN;
    if (n > 4) wide[size_t(4 * k - 1)] = 1e30f;  // its scale is not an f16
    const std::vector<f16> half = narrowed<f16>(wide);
    const std::vector<bf16> brain = narrowed<bf16>(wide);
    const void* weight = dtype == DType::f16 ? static_cast<const void*>(half.data())
                         : dtype == DType::bf16 ? static_cast<const void*>(brain.data()) : wide.data();
    std::vector<float> importance = rng.normals(k);
    for (float& h : importance) h = h * h;
    const std::string shape = std::to_string(n) + " x " + std::to_string(k) + " " + name_of(f);
    for (int64_t mode = 0; mode < 3; mode++) {
        RandomCodes want(n, k, f), got = want;
        const bool search = mode > 0;
        const float* h = mode > 1 ? importance.data() : nullptr;
        plain.quantize_weight({weight, want.args(), k, f, dtype, search, h}, 0, n);
        const int64_t middle = rng.below(n + 1);
        fast.quantize_weight({weight, got.args(), k, f, dtype, search, h}, 0, middle);
        fast.quantize_weight({weight, got.args(), k, f, dtype, search, h}, middle, n);
        const std::string what = (mode == 0 ? "quantize_weight " : mode == 1 ? "search " : "weighed search ") + shape;
        same(what, got.codes, want.codes);
        same(what + " scales", got.scales, want.scales);
        same(what + " u", got.u, want.u);
        same(what + " m", got.m, want.m);
        same(what + " zeros", got.zeros, want.zeros);
        same(what + " real zeros", got.real_zeros, want.real_zeros);
    }
}

void check_packed(int64_t n, int64_t k, const WeightFormat& f, bool gated, std::initializer_list<int64_t> row_counts) {
    const std::string what = " n " + std::to_string(n) + " k " + std::to_string(k) + (gated ? " gated " : " ") + name_of(f);
    RandomCodes c(n, k, f);
    const int64_t panels = gated ? (n / 2 + 15) / 16 : (n + panel_outputs - 1) / panel_outputs;
    std::vector<uint8_t> want_panels(size_t(panels * panel_bytes(f, k)), 0xaa), got_panels(want_panels.size(), 0x55);
    plain.pack({c.args(), want_panels.data(), n, k, f, gated}, 0, panels);
    const int64_t middle = rng.below(panels + 1);
    fast.pack({c.args(), got_panels.data(), n, k, f, gated}, 0, middle);
    fast.pack({c.args(), got_panels.data(), n, k, f, gated}, middle, panels);
    same("pack" + what, got_panels, want_panels);

    std::vector<int32_t> ids;
    for (int64_t i = 0; i < n; i++) ids.push_back(int32_t(n - 1 - i));
    std::vector<float> got_rows(size_t(n * k)), want_rows = got_rows;
    plain.unpack({ids.data(), want_panels.data(), want_rows.data(), n, k, f, gated}, 0, n);
    fast.unpack({ids.data(), want_panels.data(), got_rows.data(), n, k, f, gated}, 0, n);
    same("unpack" + what, got_rows, want_rows);

    for (int64_t rows : row_counts) {
        const int64_t depth = round_up(k, tile_depth), stride = depth + 64, out_n = gated ? n / 2 : n, out_stride = out_n + 3;
        const std::vector<float> x = rng.normals(rows * k), bias = rng.normals(n);
        std::vector<int8_t> codes(size_t(rows * stride), 77);
        std::vector<int16_t> sums(size_t(rows * depth / sum_depth(f)));
        std::vector<float> scales(size_t(rows * ((k + block_depth - 1) / block_depth)));
        plain.quantize({x.data(), codes.data(), scales.data(), sums.data(), k, k, stride, rows, false, sum_depth(f)}, 0, rows);
        std::vector<float> want = rng.normals(rows * out_stride), got = want;
        PackedLinearArgs a{codes.data(), scales.data(), sums.data(), want_panels.data(), bias.data(),
                           gated ? nullptr : want.data(), want.data(), rows, n, k, stride, out_stride, f, gated, Activation::silu};
        plain.packed_linear(a, 0, panels);
        a.out = got.data();
        if (!gated) a.residual = got.data();
        if (fast.code_tiles && rows > untiled_rows) {
            codes.assign(size_t(round_up(rows, code_tile_rows) * stride), 77);
            scales.assign(size_t(round_up(rows, code_tile_rows) * ((k + block_depth - 1) / block_depth)), 9);
            plain.quantize({x.data(), codes.data(), scales.data(), sums.data(), k, k, stride, rows, true, sum_depth(f)}, 0, rows);
            a.codes = codes.data(), a.scales = scales.data(), a.tiled = true;
        }
        const int64_t split = rng.below(panels + 1);
        fast.packed_linear(a, 0, split);
        fast.packed_linear(a, split, panels);
        const std::string product = "packed_linear rows " + std::to_string(rows) + what;
        if (gated) check(product, got, want, relative(want, 64, 1e-30));  // gates are of size 20 at most
        else same(product, got, want);
    }
}

void check_experts(int64_t rows, int64_t experts, int64_t k, int64_t groups, int64_t dim) {
    const std::string what = " of " + std::to_string(experts) + " experts, rows " + std::to_string(rows);
    const std::vector<float> logits = rng.normals(rows * experts), correction = rng.normals(experts);
    std::vector<int32_t> ids(size_t(rows * k)), got_ids(ids.size());
    std::vector<float> want(ids.size()), got(ids.size());
    for (Scoring scoring : {Scoring::softmax, Scoring::softmax_chosen, Scoring::sigmoid}) {
        const bool sigmoid = scoring == Scoring::sigmoid;
        RouteArgs a{logits.data(), sigmoid ? correction.data() : nullptr, ids.data(), want.data(), experts, k,
                    sigmoid ? groups : 1, sigmoid ? (groups + 1) / 2 : 1, scoring, true, 2.5f};
        plain.route(a, 0, rows);
        a.ids = got_ids.data(), a.weights = got.data();
        fast.route(a, 0, rows);
        same("route ids" + what, got_ids, ids);
        check("route" + what, got, want, relative(want, 64));
    }
    const int64_t places = most_places(rows * k, experts), regions = most_regions(rows * k, experts);
    std::vector<Region> region(static_cast<size_t>(regions));
    std::vector<int32_t> tiles(size_t(places / region_rows)), sources(static_cast<size_t>(places)), place_of(ids.size());
    fast.group_rows({ids.data(), region.data(), tiles.data(), sources.data(), place_of.data(), rows, k, experts, regions, places}, 0, 1);
    const std::vector<float> x = rng.normals(rows * dim), residual = rng.normals(rows * dim);
    std::vector<float> y = rng.normals(places * dim), out(x.size()), sum(x.size());
    fast.gather_rows({x.data(), sources.data(), y.data(), dim, dim}, 0, places);
    CombineArgs c{y.data(), want.data(), place_of.data(), residual.data(), sum.data(), dim, k};
    plain.combine(c, 0, rows);
    c.out = out.data();
    fast.combine(c, 0, rows);
    check("combine" + what, out, sum, relative(sum, 64, 1e-5));
}

void check_integer_weights() {
    for (int64_t k : {1, 31, 64, 100, 256, 257, 600, 2048}) check_quantize(1 + rng.below(7), k, false), check_quantize(5, k, false);
    for (int64_t k : {1, 100, 256, 600}) check_quantize(5, k, false, 16), check_quantize(19, k, true, 16);
    for (int64_t k : {1, 100, 256, 600}) check_quantize(9, k, true), check_quantize(16, k, true), check_quantize(37, k, true);
    for (Packing packing : {Packing::int4_two_level, Packing::int4, Packing::int8, Packing::int4_k, Packing::int8_k}) {
        for (int64_t group : {16, 32, 64, 128, 256}) {
            if (packing == Packing::int4_two_level ? group != 256 : of_k(packing) ? group > 32 : group == 16) continue;
            for (Zero zero : {Zero::none, Zero::integer, Zero::real}) {
                if (of_k(packing)) continue;  // nothing rounds to them
                if (packing != Packing::int4 && zero != Zero::none) continue;
                for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
                    const bool brain = packing != Packing::int4_two_level && dtype == DType::bf16;
                    const WeightFormat f{packing, group, zero, brain ? DType::bf16 : DType::f16};
                    check_quantize_weight(1, 1, f, dtype);
                    check_quantize_weight(6, 300, f, dtype);
                    check_quantize_weight(21, 544, f, dtype);
                }
            }
            for (Zero zero : {Zero::none, Zero::integer, Zero::real}) {
                if (packing == Packing::int4_two_level && zero != Zero::none) continue;
                if (of_k(packing) && zero == Zero::integer) continue;
                const WeightFormat f{packing, group, zero, zero == Zero::integer ? DType::bf16 : DType::f16};
                check_packed(1, 1, f, false, {1, 3});
                check_packed(70, 330, f, false, {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33});
                check_packed(33, 600, f, false, {1, 4, 6, 20});
                check_packed(66, 290, f, true, {1, 5, 18});
                if (fast.row_input == RowInput::bf16_tiles) check_packed(200, 600, f, false, {31, 32, 48, 49, 64, 70});  // tiles of rows
                if (fast.row_input == RowInput::bf16_tiles) check_packed(40, 100, f, false, {530});  // more rows than a slab
            }
        }
    }
}

void check_measures() {
    std::vector<uint8_t> memory(4 * 4099 + 64);
    for (uint8_t& byte : memory) byte = uint8_t(rng.below(256));
    for (int64_t bytes : {1, 7, 8, 9, 63, 64, 100, 255, 256, 257, 511, 512, 1000, 1023, 1024, 4099}) {
        for (int64_t ahead : {0, 64, 1024}) {
            uint64_t want[3], got[3];
            for (int64_t unit = 0; unit < 3; unit++) {
                want[unit] = 0;
                for (int64_t i = 0; i < bytes; i++) want[unit] ^= uint64_t{memory[size_t(1 + unit * bytes + i)]} << i % 8 * 8;
            }
            for (const Kernels* k : {&plain, &fast}) {
                k->measure_read({memory.data() + 1, got, bytes, 5, ahead}, 0, 1);
                k->measure_read({memory.data() + 1, got, bytes, 5, ahead}, 1, 3);
                k->measure_read({memory.data() + 1, nullptr, bytes, 2, ahead}, 0, 3);  // under sanitizers: nothing beyond
                if (memcmp(got, want, sizeof want) == 0) continue;
                printf("measure_read of %lld bytes is not what they hold\n", static_cast<long long>(bytes)), failures++;
            }
        }
    }
    std::vector<float> data(256), results(3), again(3);
    std::vector<double> operations(3);
    for (int64_t i = 0; i < 256; i++) data[size_t(i)] = from_bits(uint32_t(0x3f00 + i % 128) * 0x10001u);
    for (auto* kernel : {fast.measure_f32, fast.measure_bf16, fast.measure_int8}) {
        kernel({data.data(), results.data(), operations.data()}, 0, 3);
        kernel({data.data(), again.data(), operations.data()}, 1, 3);
        for (size_t i = 0; i < 3; i++) {
            if (operations[i] > 1e4 && results[i] == results[0] && results[i] - results[i] == 0 && (i == 0 || again[i] == results[i])) continue;
            printf("an arithmetic loop's unit %zu: %g of %g operations\n", i, double(results[i]), operations[i]), failures++;
        }
    }
}

}  // namespace

// Of all parts, or of those named.
int main(int count, char** names) {
    install_reference(plain);
    install_reference(fast);
    INSTALL_TIER(fast);
    auto part = [&](const char* name) {
        return count == 1 || std::any_of(names + 1, names + count, [&](const char* asked) { return strcmp(asked, name) == 0; });
    };
    if (part("measure")) check_philox(), check_measures();
    if (part("rows")) {
        check_convert();
        for (int64_t dim : {1, 2, 7, 15, 16, 17, 33, 64, 80, 257, 1000}) {
            for (int64_t rows : {1, 3}) check_rows(rows, dim);
        }
    }
    if (part("draws")) {
        check_many_draws(21, 5000);
        check_many_draws(600, 33);
        check_many_draws(1, 300001);
        for (int64_t dim : {1, 7, 16, 100, 1024, 1500, 4097, 9001}) {
            for (float spread : {0.1f, 1.0f, 4.0f}) check_draws(dim, spread);
        }
    }
    if (part("linear")) {
        for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
            for (int64_t rows : {1, 2, 3, 4, 5, 8, 33, 67}) {
                for (int64_t k : {1, 7, 33, 257, 1024, 1100}) {
                    check_linear(rows, 1 + rng.below(60), k, dtype, true);
                    check_linear(rows, 1 + rng.below(20), k, dtype, false);
                }
            }
        }
        check_tiles();
    }
    if (part("attention")) {
        for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8}) {
            for (int64_t dim : {2, 16, 20, 33, 64, 80, 96, 128}) {
                check_attention(1, 2, 7, dim, 130, 0, false, dtype);
                check_attention(19, 1, 3, dim, 200, 0, true, dtype);
                check_attention(11, 2, 1, dim, 200, 70, false, dtype);
                check_attention(9, 1, 18, dim, 65, 1, false, dtype);
                check_attention(9, 2, 5, dim, 150, 0, true, dtype, 2, dim % 32 == 0);
            }
            check_attention(3, 1, 3, 16, 2100, 0, false, dtype);
            check_attention(3, 1, 1, 16, 2100, 1100, false, dtype);
            check_attention(3, 1, 3, 32, 2100, 0, false, dtype, 0, true);
        }
    }
    if (part("packed")) check_integer_weights();
    if (part("experts")) {
        for (int64_t rows : {1, 3, 40}) check_experts(rows, 8, 2, 4, 37), check_experts(rows, 60, 7, 1, 130), check_experts(rows, 1, 1, 1, 16);
        check_experts(2, 1024, 33, 16, 5);
    }
    if (failures) printf("%d comparisons failed\n", failures);
    return failures ? 1 : 0;
}
