// Every slot in plain loops: the oracle the fast tiers are tested against, and the tier any processor can run.
// Compiled at the ABI's floor. Sums of linear and the norms run in eight fixed lanes, which compilers vectorize.
#include <math.h>
#include <string.h>

#include "../kernels.h"

namespace genkit {
namespace {

// ---- storage types -------------------------------------------------------------------------------------------

float from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

uint32_t to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

float widen(float x) { return x; }

float widen(bf16 x) { return from_bits(uint32_t(x.bits) << 16); }

// Integer arithmetic and one exact subtraction, so it holds for denormals even where the processor flushes them.
float widen(f16 x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
    const uint32_t exponent = x.bits & 0x7c00u;
    const uint32_t shifted = uint32_t(x.bits & 0x7fffu) << 13;
    const float denormal = from_bits(shifted + (113u << 23)) - from_bits(113u << 23);
    const uint32_t normal = shifted + ((exponent == 0x7c00u ? 224u : 112u) << 23);
    return from_bits(sign | (exponent == 0 ? to_bits(denormal) : normal));
}

void narrow(float x, float& out) { out = x; }

void narrow(float x, bf16& out) {
    const uint32_t bits = to_bits(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out.bits = uint16_t((nan ? bits | 0x00400000u : bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

void narrow(float x, f16& out) {
    const uint32_t bits = to_bits(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // quiet NaN
    } else if (magnitude >= 0x477ff000u) {
        half = 0x7c00u;  // 65520 and above round to infinity
    } else if (magnitude < 0x38800000u) {
        // Below 2^-14: adding 0.5 leaves the rounded count of 2^-24 in the low bits.
        half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    }
    out.bits = uint16_t(sign | half);
}

template <class T>
struct Type {
    using type = T;
};

// Calls f with the storage type that dtype names.
template <class F>
void with_type(DType dtype, F f) {
    switch (dtype) {
        case DType::f16: return f(Type<f16>());
        case DType::bf16: return f(Type<bf16>());
        default: return f(Type<float>());
    }
}

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
        const float* x = a.x + r * a.x_stride;
        float* out = a.out + r * a.dim;
        const float mean = sum(a.dim, [&](int64_t i) { return x[i]; }) / float(a.dim);
        const float variance = sum(a.dim, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / float(a.dim);
        const float scale = 1.0f / sqrtf(variance + a.eps);
        for (int64_t i = 0; i < a.dim; i++) out[i] = (x[i] - mean) * scale * a.weight[i] + (a.bias ? a.bias[i] : 0.0f);
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

// ---- rope, attention ------------------------------------------------------------------------------------------

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

void kv_write(const KvWriteArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const int64_t page = a.page_table[a.sequences[r] * a.max_pages + a.positions[r] / page_keys];
        const int64_t slot = a.positions[r] % page_keys;
        for (int64_t h = 0; h < a.kv_heads; h++) {
            const int64_t base = (page * a.kv_heads + h) * page_keys * a.head_dim;
            const float* k = a.k + r * a.kv_stride + h * a.head_dim;
            const float* v = a.v + r * a.kv_stride + h * a.head_dim;
            float* k_out = a.k_pages + base + slot / tile_keys * a.head_dim * tile_keys + slot % tile_keys;
            float* v_out = a.v_pages + base + slot * a.head_dim;
            for (int64_t i = 0; i < a.head_dim; i++) {
                k_out[i * tile_keys] = k[i];
                v_out[i] = v[i];
            }
        }
    }
}

// One token row and head. The output row itself is the accumulator of the online softmax.
void attention_row(const AttentionArgs& a, int64_t row, int64_t head) {
    const int64_t dim = a.head_dim;
    const int64_t kv_head = head / (a.heads / a.kv_heads);
    const int64_t position = a.positions[row];
    const int64_t first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
    const float slope = a.alibi_slopes ? a.alibi_slopes[head] : 0.0f;
    const float* q = a.q + row * a.q_stride + head * dim;
    float* out = a.out + row * a.out_stride + head * dim;
    float largest = -INFINITY, total = 0.0f;
    for (int64_t i = 0; i < dim; i++) out[i] = 0.0f;

    for (int64_t page = first / page_keys; page <= position / page_keys; page++) {
        const int64_t number = a.page_table[a.sequences[row] * a.max_pages + page];
        const float* keys = a.k_pages + (number * a.kv_heads + kv_head) * page_keys * dim;
        const float* values = a.v_pages + (number * a.kv_heads + kv_head) * page_keys * dim;
        const int64_t low = page * page_keys < first ? first - page * page_keys : 0;
        const int64_t high = position - page * page_keys < page_keys ? position - page * page_keys + 1 : page_keys;

        float score[page_keys];
        float page_largest = largest;
        for (int64_t j = low; j < high; j++) {
            const float* key = keys + j / tile_keys * dim * tile_keys + j % tile_keys;
            const float dot = sum(dim, [&](int64_t i) { return q[i] * key[i * tile_keys]; });
            score[j] = dot * a.scale + slope * float(page * page_keys + j - position);
            if (score[j] > page_largest) page_largest = score[j];
        }
        const float shrink = expf(largest - page_largest);
        largest = page_largest;
        total *= shrink;
        for (int64_t i = 0; i < dim; i++) out[i] *= shrink;
        for (int64_t j = low; j < high; j++) {
            const float p = expf(score[j] - largest);
            total += p;
            for (int64_t i = 0; i < dim; i++) out[i] += p * values[j * dim + i];
        }
    }
    for (int64_t i = 0; i < dim; i++) out[i] /= total;
}

void attention(const AttentionArgs& a, int64_t begin, int64_t end) {
    const int64_t group = a.heads / a.kv_heads;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t row = unit / a.kv_heads * attention_rows;
        const int64_t head = unit % a.kv_heads * group;
        for (int64_t r = row; r < row + attention_rows && r < a.rows; r++) {
            for (int64_t h = head; h < head + group; h++) attention_row(a, r, h);
        }
    }
}

// ---- elementwise, softmax -------------------------------------------------------------------------------------

float activate(Activation kind, float x) {
    switch (kind) {
        case Activation::gelu: return 0.5f * x * erfcf(x * -0.70710678118654752f);
        case Activation::gelu_tanh:  // 0.5 * (1 + tanh(y)) = 1 / (1 + exp(-2 y)), which keeps small results exact
            return x / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
        default: return x / (1.0f + expf(-x));
    }
}

void activation(const ActivationArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        for (int64_t i = 0; i < a.dim; i++) a.out[r * a.dim + i] = activate(a.kind, a.x[r * a.x_stride + i]);
    }
}

void gated(const GatedArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* gate = a.x + r * a.x_stride;
        const float* up = gate + a.dim;
        for (int64_t i = 0; i < a.dim; i++) a.out[r * a.dim + i] = activate(a.kind, gate[i]) * up[i];
    }
}

void add(const AddArgs& a, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) a.out[i] = a.a[i] + a.b[i];
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

bool is_nan_or_inf(float x) { return (to_bits(x) & 0x7f800000u) == 0x7f800000u; }

// The largest of x, the lowest index among equals. -1 if an element is NaN or +infinity, or if none is finite.
int32_t argmax_row(const float* x, int64_t dim) {
    float largest = -INFINITY;
    int64_t best = -1;
    for (int64_t i = 0; i < dim; i++) {
        if (!(x[i] < INFINITY)) return -1;
        if (x[i] > largest) {
            largest = x[i];
            best = i;
        }
    }
    return int32_t(best);
}

void argmax(const ArgmaxArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) a.out[r] = argmax_row(a.x + r * a.dim, a.dim);
}

void nonfinite(const NonfiniteArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        int32_t count = 0;
        for (int64_t i = 0; i < a.dim; i++) count += is_nan_or_inf(a.x[r * a.dim + i]);
        a.out[r] = count;
    }
}

// The k best so far are a heap with the worst at its root; a NaN counts as -infinity.
void top_k_row(const float* x, int64_t dim, int64_t k, float* values, int32_t* ids) {
    auto before = [](float value_a, int32_t id_a, float value_b, int32_t id_b) {
        return value_a > value_b || (value_a == value_b && id_a < id_b);
    };
    auto place = [&](int64_t i, int64_t count, float value, int32_t id) {
        for (int64_t child; (child = 2 * i + 1) < count; i = child) {
            if (child + 1 < count && before(values[child], ids[child], values[child + 1], ids[child + 1])) child++;
            if (!before(value, id, values[child], ids[child])) break;
            values[i] = values[child];
            ids[i] = ids[child];
        }
        values[i] = value;
        ids[i] = id;
    };
    auto at = [&](int64_t i) { return x[i] == x[i] ? x[i] : -INFINITY; };
    for (int64_t i = 0; i < k; i++) {
        values[i] = at(i);
        ids[i] = int32_t(i);
    }
    for (int64_t i = k / 2; i-- > 0;) place(i, k, values[i], ids[i]);
    for (int64_t i = k; i < dim; i++) {
        if (before(at(i), int32_t(i), values[0], ids[0])) place(0, k, at(i), int32_t(i));
    }
    for (int64_t last = k - 1; last > 0; last--) {
        const float value = values[last];
        const int32_t id = ids[last];
        values[last] = values[0];
        ids[last] = ids[0];
        place(0, last, value, id);
    }
}

void top_k(const TopKArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        top_k_row(a.x + r * a.dim, a.dim, a.k, a.values + r * a.k, a.ids + r * a.k);
    }
}

void penalty(const PenaltyArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        for (int64_t e = a.offsets[r]; e < a.offsets[r + 1]; e++) {
            float& logit = a.logits[r * a.dim + a.ids[e]];
            if (a.seen[e] > 0) logit = logit > 0.0f ? logit / a.repetition : logit * a.repetition;
            if (a.generated[e] > 0) logit -= a.presence + a.frequency * float(a.generated[e]);
        }
    }
}

// ---- sampling -------------------------------------------------------------------------------------------------

// Philox4x32-10 (Salmon et al. 2011): a block of four random words from a counter and a key.
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = uint64_t(0xd2511f53u) * c0;
        const uint64_t product1 = uint64_t(0xcd9e8d57u) * c2;
        const uint32_t next0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
        const uint32_t next2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
        c1 = uint32_t(product1);
        c3 = uint32_t(product0);
        c0 = next0;
        c2 = next2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// In [0, 1), a multiple of 2^-53.
double uniform(uint64_t seed, int64_t sequence, int64_t position) {
    const uint32_t counter[4] = {uint32_t(sequence), uint32_t(uint64_t(sequence) >> 32), uint32_t(position),
                                 uint32_t(uint64_t(position) >> 32)};
    const uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    uint32_t word[4];
    philox(counter, key, word);
    return double((uint64_t(word[0]) << 32 | word[1]) >> 11) * 0x1p-53;
}

struct Candidate {
    float logit;
    int32_t id;
};

// Candidates in descending order, drawn lazily from a heap with the best at its root: the i-th one asked for lies at
// the i-th place from the end. Filters keep few, so few are ever ordered.
struct Ordered {
    Candidate* heap;
    int64_t size, left;
    double largest, temperature;

    static bool before(const Candidate& a, const Candidate& b) {
        return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    }
    void place(int64_t i, int64_t count, Candidate value) {
        for (int64_t child; (child = 2 * i + 1) < count; i = child) {
            if (child + 1 < count && before(heap[child + 1], heap[child])) child++;
            if (!before(heap[child], value)) break;
            heap[i] = heap[child];
        }
        heap[i] = value;
    }
    void build() {
        for (int64_t i = size / 2; i-- > 0;) place(i, size, heap[i]);
        left = size;
    }
    const Candidate& at(int64_t i) {
        while (size - left <= i) {
            const Candidate last = heap[left - 1];
            heap[left - 1] = heap[0];
            left--;
            if (left > 0) place(0, left, last);
        }
        return heap[size - 1 - i];
    }
    // exp(logit / temperature), relative to the largest.
    double mass(const Candidate& c) const { return exp((double(c.logit) - largest) / temperature); }
};

int32_t sample_row(const SampleArgs& a, int64_t row) {
    const float* logits = a.logits + row * a.dim;
    const int32_t best = argmax_row(logits, a.dim);
    if (best < 0 || a.temperature == 0.0f) return best;

    auto* heap = reinterpret_cast<Candidate*>(static_cast<char*>(a.scratch) + row * sample_scratch_bytes(a.dim));
    Ordered ordered = {heap, 0, 0, double(logits[best]), double(a.temperature)};
    double total = 0.0;
    for (int64_t i = 0; i < a.dim; i++) {
        if (logits[i] == -INFINITY) continue;
        heap[ordered.size] = {logits[i], int32_t(i)};
        total += ordered.mass(heap[ordered.size]);
        ordered.size++;
    }
    ordered.build();

    int64_t kept = ordered.size;
    if (a.top_k > 0 && a.top_k < kept) {
        kept = a.top_k;
        total = 0.0;
        for (int64_t i = 0; i < kept; i++) total += ordered.mass(ordered.at(i));
    }
    if (a.top_p < 1.0f) {  // the smallest set that reaches top_p: the candidate that crosses it stays
        const int64_t limit = kept;
        const double enough = double(a.top_p) * total;
        total = 0.0;
        kept = 0;
        do {
            total += ordered.mass(ordered.at(kept++));
        } while (kept < limit && total < enough);
    }
    if (a.min_p > 0.0f) {  // the largest mass is 1
        const int64_t limit = kept;
        total = 0.0;
        for (kept = 0; kept < limit; kept++) {
            const double mass = ordered.mass(ordered.at(kept));
            if (kept > 0 && mass < double(a.min_p)) break;
            total += mass;
        }
    }

    const double target = uniform(a.seed, a.sequences[row], a.positions[row]) * total;
    double sum = 0.0;
    int32_t token = best;
    for (int64_t i = 0; i < kept; i++) {
        const double mass = ordered.mass(ordered.at(i));
        if (mass == 0.0) break;  // u * total was rounded up to the whole sum: the last one that can be drawn
        token = ordered.at(i).id;
        sum += mass;
        if (sum > target) break;
    }
    return token;
}

void sample(const SampleArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) a.tokens[r] = sample_row(a, r);
}

void copy_pages(const CopyPagesArgs& a, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        memcpy(a.pages + a.to[i] * a.page_size, a.pages + a.from[i] * a.page_size, size_t(a.page_size) * sizeof(float));
    }
}

}  // namespace

void install_reference(Kernels& k) {
    k.convert = convert;
    k.embedding = embedding;
    k.rms_norm = rms_norm;
    k.layer_norm = layer_norm;
    k.linear = linear;
    k.rope_table = rope_table;
    k.rope = rope;
    k.kv_write = kv_write;
    k.attention = attention;
    k.activation = activation;
    k.gated = gated;
    k.add = add;
    k.softmax = softmax;
    k.argmax = argmax;
    k.nonfinite = nonfinite;
    k.top_k = top_k;
    k.penalty = penalty;
    k.sample = sample;
    k.copy_pages = copy_pages;
}

}  // namespace genkit
