// Every slot in plain loops: the oracle the fast tiers are tested against, and the tier any processor can run.
// Compiled at the ABI's floor. Sums of linear and the norms run in eight fixed lanes, which compilers vectorize.
#include <math.h>
#include <string.h>

#include "../kernels.h"

namespace genkit {
namespace {

#include "storage.inl"

void convert(const ConvertArgs& a, int64_t begin, int64_t end) {
    with_type(a.in_dtype, [&](auto in_type) {
        with_type(a.out_dtype, [&](auto out_type) {
            auto* in = static_cast<const typename decltype(in_type)::type*>(a.in);
            auto* out = static_cast<typename decltype(out_type)::type*>(a.out);
            for (int64_t i = begin; i < end; i++) narrow(widen(in[i]), out[i]);
        });
    });
}

void embedding(const EmbeddingArgs& a, int64_t begin, int64_t end) {
    with_type(a.dtype, [&](auto type) {
        auto* table = static_cast<const typename decltype(type)::type*>(a.table);
        for (int64_t r = begin; r < end; r++) {
            auto* row = table + a.ids[r] * a.dim;
            float* out = a.out + r * a.dim;
            for (int64_t i = 0; i < a.dim; i++) out[i] = widen(row[i]);
        }
    });
}

// ---- norms, linear --------------------------------------------------------------------------------------------

constexpr int64_t lanes = 8;

// sum_i term(i) in eight lanes, then a fixed tree.
template <class Term>
float sum(int64_t count, Term term) {
    float lane[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        for (int64_t j = 0; j < lanes; j++) lane[j] += term(i + j);
    }
    for (int64_t j = 0; i < count; i++, j++) lane[j] += term(i);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

void rms_norm(const RmsNormArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r / a.inner * a.x_stride + r % a.inner * a.dim;
        float* out = a.out + r / a.inner * a.out_stride + r % a.inner * a.dim;
        const float mean_square = sum(a.dim, [&](int64_t i) { return x[i] * x[i]; }) / float(a.dim);
        const float scale = 1.0f / sqrtf(mean_square + a.eps);
        for (int64_t i = 0; i < a.dim; i++) out[i] = x[i] * scale * a.weight[i];
    }
}

void layer_norm(const LayerNormArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r / a.inner * a.x_stride + r % a.inner * a.dim;
        float* out = a.out + r / a.inner * a.out_stride + r % a.inner * a.dim;
        const int64_t at = r % a.inner * a.weight_stride;
        const float mean = sum(a.dim, [&](int64_t i) { return x[i]; }) / float(a.dim);
        const float variance = sum(a.dim, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / float(a.dim);
        const float scale = 1.0f / sqrtf(variance + a.eps);
        for (int64_t i = 0; i < a.dim; i++) {
            out[i] = (x[i] - mean) * scale * a.weight[at + i] + (a.bias ? a.bias[at + i] : 0.0f);
        }
    }
}

void round_rows(const RoundRowsArgs& a, int64_t begin, int64_t end) {
    const int64_t depth = round_up(a.k, 32);
    for (int64_t r = begin; r < end; r++) {
        for (int64_t k = 0; k < depth; k++) {
            bf16 x{0};
            if (k < a.k) narrow(a.x[r * a.x_stride + k], x);
            a.out[r * depth + k] = x.bits;
        }
    }
}

void tile_rows(const TileRowsArgs& a, int64_t begin, int64_t end) {
    const int64_t columns = tile_columns(a.rows), depth = round_up(a.k, 32);
    for (int64_t tile = begin; tile < end; tile++) {
        for (int64_t k = 0; k < depth; k++) {
            for (int64_t i = 0; i < columns; i++) {
                const int64_t m = tile * 16 + i;
                bf16 x{0};
                if (m < a.rows && k < a.k) narrow(a.x[m * a.x_stride + k], x);
                a.tiles[((tile * depth + k - k % 2) * columns + i * 2) + k % 2] = x.bits;
            }
        }
    }
}

void linear(const LinearArgs& a, int64_t begin, int64_t end) {
    with_type(a.dtype, [&](auto type) {
        auto* weight = static_cast<const typename decltype(type)::type*>(a.weight);
        for (int64_t n = begin; n < end; n++) {
            auto* w = weight + n * a.k;
            for (int64_t m = 0; m < a.rows; m++) {
                const float* x = a.x + m * a.x_stride;
                float value = sum(a.k, [&](int64_t k) { return x[k] * widen(w[k]); });
                const int64_t at = m * a.out_stride + n;
                if (a.bias) value += a.bias[n];
                if (a.residual) value += a.residual[at];
                a.out[at] = value;
            }
        }
    });
}

// ---- rope ------------------------------------------------------------------------------------------

void rope_table(const RopeTableArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        float* row = a.table + r * 2 * a.half;
        for (int64_t i = 0; i < a.half; i++) {
            const float angle = float(a.positions[r]) * a.inv_freq[i];
            row[i] = float(cos(double(angle))) * a.scale;
            row[a.half + i] = float(sin(double(angle))) * a.scale;
        }
    }
}

void rope(const RopeArgs& a, int64_t begin, int64_t end) {
    const int64_t step = a.interleaved ? 2 : 1;
    const int64_t apart = a.interleaved ? 1 : a.half;
    for (int64_t r = begin; r < end; r++) {
        const float* cosine = a.table + r * 2 * a.half;
        const float* sine = cosine + a.half;
        for (int64_t h = 0; h < a.heads; h++) {
            float* x = a.x + r * a.x_stride + h * a.head_dim;
            for (int64_t i = 0; i < a.half; i++) {
                float& first = x[i * step];
                float& second = x[i * step + apart];
                const float rotated = first * cosine[i] - second * sine[i];
                second = second * cosine[i] + first * sine[i];
                first = rotated;
            }
        }
    }
}

#include "reference_attention.inl"

// ---- elementwise, softmax -------------------------------------------------------------------------------------

float activate(Activation kind, float x) {
    switch (kind) {
        case Activation::gelu: return 0.5f * x * erfcf(x * -0.70710678118654752f);
        case Activation::gelu_tanh:  // 0.5 * (1 + tanh(y)) = 1 / (1 + exp(-2 y)), which keeps small results exact
            return x / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
        case Activation::relu: return x < 0.0f ? 0.0f : x;  // a NaN stays one
        default: return x / (1.0f + expf(-x));
    }
}

float gate(Activation kind, float x, float up) {
    if (kind != Activation::swiglu_oai) return activate(kind, x) * up;
    const float g = x > 7.0f ? 7.0f : x, u = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
    return g / (1.0f + expf(-1.702f * g)) * (u + 1.0f);
}

#include "reference_packed.inl"
#include "reference_rounding.inl"
#include "reference_experts.inl"

void activation(const ActivationArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        for (int64_t i = 0; i < a.dim; i++) a.out[r * a.dim + i] = activate(a.kind, a.x[r * a.x_stride + i]);
    }
}

void gated(const GatedArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r * a.x_stride;
        for (int64_t i = 0; i < a.dim; i++) a.out[r * a.dim + i] = gate(a.kind, x[i], x[a.dim + i]);
    }
}

void add(const AddArgs& a, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) a.out[i] = a.a[i] + a.scale * a.b[i];
}

void scale(const ScaleArgs& a, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const float y = a.x[i] * a.factor;
        a.out[i] = a.softcap > 0 ? a.softcap * tanhf(y / a.softcap) : y;
    }
}

void gather_columns(const GatherColumnsArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        for (int64_t i = 0; i < a.columns; i++) {
            const int64_t from = a.index[i];
            a.out[r * a.columns + i] = from < 0 ? 0.0f : from < a.x_columns ? a.x[r * a.x_stride + from]
                                                                             : a.y[r * a.y_stride + from - a.x_columns];
        }
    }
}

void softmax(const SoftmaxArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r * a.dim;
        float* out = a.out + r * a.dim;
        float largest = -INFINITY;
        for (int64_t i = 0; i < a.dim; i++) largest = x[i] > largest ? x[i] : largest;
        const float total = sum(a.dim, [&](int64_t i) { return expf(x[i] - largest); });
        if (a.log) {
            const float log_total = logf(total);
            for (int64_t i = 0; i < a.dim; i++) out[i] = (x[i] - largest) - log_total;
        } else {
            for (int64_t i = 0; i < a.dim; i++) out[i] = expf(x[i] - largest) / total;
        }
    }
}

// ---- logits ---------------------------------------------------------------------------------------------------

// The largest of x, the lowest index among equals. -1 if an element is NaN or +infinity, -infinity too where finite_only
// says so; -2 if all are -infinity.
int32_t argmax_row(const float* x, int64_t dim, bool finite_only) {
    float largest = -INFINITY;
    int64_t best = -2;
    for (int64_t i = 0; i < dim; i++) {
        if (!((finite_only ? fabsf(x[i]) : x[i]) < INFINITY)) return -1;
        if (x[i] > largest) {
            largest = x[i];
            best = i;
        }
    }
    return int32_t(best);
}

void argmax(const ArgmaxArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) a.out[r] = argmax_row(a.x + r * a.dim, a.dim, false);
}

void nonfinite(const NonfiniteArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        int32_t count = 0;
        for (int64_t i = 0; i < a.dim; i++) count += is_nan_or_inf(a.x[r * a.dim + i]);
        a.out[r] = count;
    }
}

#include "reference_sample.inl"

// ---- the machine's limits ---------------------------------------------------------------------------------------

void measure_read(const MeasureReadArgs& a, int64_t begin, int64_t end) {
    [[maybe_unused]] volatile uint64_t unused = 0;
    for (int64_t unit = begin; unit < end; unit++) {
        const uint8_t* memory = a.memory + unit * a.bytes;
        for (int64_t repeat = 0; repeat < a.repeats; repeat++) {
            uint64_t read[lanes] = {}, next[lanes];
            asm volatile("" ::: "memory");  // it may have changed: read it again
            int64_t i = 0;
            for (; i + int64_t(sizeof next) <= a.bytes; i += int64_t(sizeof next)) {
                memcpy(next, memory + i, sizeof next);
                for (int64_t j = 0; j < lanes; j++) read[j] ^= next[j];
            }
            for (int64_t j = 0; i + j < a.bytes; j++) read[0] ^= uint64_t{memory[i + j]} << j % 8 * 8;
            for (int64_t j = 1; j < lanes; j++) read[0] ^= read[j];
            if (a.words) a.words[unit] = read[0];
            else unused = read[0];
        }
    }
}

// one: 1 as a T, which the compiler does not know.
template <class T>
void multiply_and_add(const MeasureArithmeticArgs& a, int64_t unit, T one) {
    constexpr int64_t chains = 4 * lanes, rounds = 4096;
    T acc[chains], sum = 0;
    for (int64_t i = 0; i < chains; i++) acc[i] = T(i);
    for (int64_t r = 0; r < rounds; r++) {
        for (int64_t i = 0; i < chains; i++) acc[i] = acc[i] * one + one;
    }
    for (int64_t i = 0; i < chains; i++) sum += acc[i];
    a.results[unit] = float(sum);
    a.operations[unit] = double(rounds) * chains * 2;
}

void measure_f32(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) multiply_and_add<float>(a, unit, ceilf(a.data[0]));
}

void measure_int8(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) multiply_and_add<int32_t>(a, unit, int32_t(ceilf(a.data[0])));
}

}  // namespace

void install_reference(Kernels& k) {
    k.convert = convert;
    k.embedding = embedding;
    k.rms_norm = rms_norm;
    k.layer_norm = layer_norm;
    k.round_rows = round_rows;
    k.tile_rows = tile_rows;
    k.linear = linear;
    k.quantize = quantize;
    k.packed_linear = packed_linear;
    k.quantize_weight = quantize_weight;
    k.pack = pack;
    k.unpack = unpack;
    k.route = route;
    k.group_rows = group_rows;
    k.gather_rows = gather_rows;
    k.combine = combine;
    k.rope_table = rope_table;
    k.rope = rope;
    k.kv_write = kv_write;
    k.rope_kv_write = rope_kv_write;
    k.attention = attention;
    k.attention_merge = attention_merge;
    k.activation = activation;
    k.gated = gated;
    k.add = add;
    k.scale = scale;
    k.gather_columns = gather_columns;
    k.softmax = softmax;
    k.argmax = argmax;
    k.nonfinite = nonfinite;
    k.top_k = top_k;
    k.bias = bias;
    k.penalty = penalty;
    k.remember = remember;
    k.sample = sample;
    k.copy_pages = copy_pages;
    k.measure_read = measure_read;
    k.measure_f32 = k.measure_bf16 = measure_f32;
    k.measure_int8 = measure_int8;
}

}  // namespace genkit
