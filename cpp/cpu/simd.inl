// Element-wise kernels, norms, rope and reductions, written once over the vocabulary of vec_*.h. What is not here stays
// with reference.cpp: it moves memory (kv_write, copy_pages), runs once a step (rope_table) or touches little (penalty).
// A row's tail is one masked vector, so results never depend on a work range.

// ---- loads by storage type -----------------------------------------------------------------------------------

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

INLINE vec load(const f16* p) { return widen_f16(load_u16(&p->bits)); }
INLINE vec load(const bf16* p) { return widen_bf16(load_u16(&p->bits)); }
INLINE vec load(const f16* p, int64_t count) { return widen_f16(load_u16(&p->bits, count)); }
INLINE vec load(const bf16* p, int64_t count) { return widen_bf16(load_u16(&p->bits, count)); }
INLINE void store(f16* p, vec x) { store_u16(&p->bits, narrow_f16(x)); }
INLINE void store(bf16* p, vec x) { store_u16(&p->bits, narrow_bf16(x)); }
INLINE void store(f16* p, vec x, int64_t count) { store_u16(&p->bits, narrow_f16(x), count); }
INLINE void store(bf16* p, vec x, int64_t count) { store_u16(&p->bits, narrow_bf16(x), count); }

// Stands for a count of `lanes`, so that one loop body serves whole vectors and the tail.
struct Whole {};
template <class T>
INLINE vec load(const T* p, Whole) {
    return load(p);
}
template <class T>
INLINE void store(T* p, vec x, Whole) {
    store(p, x);
}
INLINE vec keep(vec x, Whole, vec) { return x; }
INLINE vec keep(vec x, int64_t count, vec other) { return select(less(iota(), set1(float(count))), x, other); }

// body(i, count) for each vector of [begin, end).
template <class Body>
INLINE void each(int64_t begin, int64_t end, Body body) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) body(i, Whole());
    if (i < end) body(i, end - i);
}

template <class T>
struct Type {
    using type = T;
};

// Calls f with the storage type that dtype names.
template <class F>
INLINE void with_type(DType dtype, F f) {
    switch (dtype) {
        case DType::f16: return f(Type<f16>());
        case DType::bf16: return f(Type<bf16>());
        default: return f(Type<float>());
    }
}

// ---- functions -------------------------------------------------------------------------------------------------

constexpr float infinity = __builtin_inff();

// e^x within 1 ulp (0.991 measured); denormal, zero, infinite and NaN results as they should be. x = n ln 2 + r, |r| <= ln 2 / 2, and
// e^r = 1 + r + r^2 p(r) with p a minimax fit (relative error 3.3e-9).
INLINE vec exp(vec x) {
    x = min(set1(89.0f), max(set1(-105.0f), x));
    const vec n = round(x * set1(1.44269504f));
    vec r = fma(n, set1(-0.693145752f), x);  // ln 2 in two parts, the first with zeros at its end
    r = fma(n, set1(-1.42860677e-6f), r);
    vec p = set1(1.3813145e-3f);
    p = fma(p, r, set1(8.3694188e-3f));
    p = fma(p, r, set1(4.1668456e-2f));
    p = fma(p, r, set1(1.6666515e-1f));
    p = fma(p, r, set1(4.9999994e-1f));
    return scale_by_power(fma(r * r, p, r) + set1(1.0f), n);
}

INLINE vec sigmoid_times(vec x, vec y) { return x / (set1(1.0f) + exp(set1(0.0f) - y)); }

// x times the normal distribution's integral. With a = |x| / sqrt 2, erfc(a) = exp(-a^2) p(s) / (1 + 2 a) where
// s = (a - 2) / (a + 2) and p is a minimax fit of (1 + 2 a) exp(a^2) erfc(a) (relative error 1.3e-8).
INLINE vec gelu(vec x) {
    const vec a = min(set1(15.0f), abs(x) * set1(0.707106781f));
    const vec s = (a - set1(2.0f)) / (a + set1(2.0f));
    vec p = set1(-4.01715137e-4f);
    p = fma(p, s, set1(-1.23187713e-3f));
    p = fma(p, s, set1(1.31372246e-3f));
    p = fma(p, s, set1(8.63327086e-3f));
    p = fma(p, s, set1(-8.05959944e-3f));
    p = fma(p, s, set1(-5.42047098e-2f));
    p = fma(p, s, set1(1.64055273e-1f));
    p = fma(p, s, set1(-1.66031390e-1f));
    p = fma(p, s, set1(-9.27639753e-2f));
    p = fma(p, s, set1(1.27697837f));
    const vec square = a * a;
    const vec lost = fma(a, a, set1(0.0f) - square);  // of a^2 by rounding; counts where a is large
    const vec e = exp(set1(0.0f) - square);
    const vec erfc = fma(set1(0.0f) - lost, e, e) * p / fma(set1(2.0f), a, set1(1.0f));
    const vec tail = set1(0.5f) * min(set1(22.0f), x) * erfc;  // erfc is 0 by then, and 0 times infinity is not
    return select(less(x, zero()), tail, x - tail);
}

template <Activation kind>
INLINE vec activate(vec x) {
    if (kind == Activation::gelu) return gelu(x);
    if (kind == Activation::gelu_tanh) {  // 0.5 (1 + tanh y) = 1 / (1 + exp(-2 y))
        const vec cube = x * x * x;
        return sigmoid_times(x, set1(1.59576912f) * fma(set1(0.044715f), cube, x));
    }
    return sigmoid_times(x, x);
}

// ---- kernels ---------------------------------------------------------------------------------------------------

void convert(const ConvertArgs& a, int64_t begin, int64_t end) {
    with_type(a.in_dtype, [&](auto in_type) {
        with_type(a.out_dtype, [&](auto out_type) {
            auto* in = static_cast<const typename decltype(in_type)::type*>(a.in);
            auto* out = static_cast<typename decltype(out_type)::type*>(a.out);
            each(begin, end, [&](int64_t i, auto count) { store(out + i, load(in + i, count), count); });
        });
    });
}

void embedding(const EmbeddingArgs& a, int64_t begin, int64_t end) {
    with_type(a.dtype, [&](auto type) {
        auto* table = static_cast<const typename decltype(type)::type*>(a.table);
        for (int64_t r = begin; r < end; r++) {
            auto* row = table + a.ids[r] * a.dim;
            float* out = a.out + r * a.dim;
            each(0, a.dim, [&](int64_t i, auto count) { store(out + i, load(row + i, count), count); });
        }
    });
}

void rms_norm(const RmsNormArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r / a.inner * a.x_stride + r % a.inner * a.dim;
        float* out = a.out + r / a.inner * a.out_stride + r % a.inner * a.dim;
        vec squares = zero();
        each(0, a.dim, [&](int64_t i, auto count) {
            const vec v = load(x + i, count);
            squares = fma(v, v, squares);
        });
        const vec scale = set1(1.0f / __builtin_sqrtf(reduce_add(squares) / float(a.dim) + a.eps));
        each(0, a.dim, [&](int64_t i, auto count) {
            store(out + i, load(x + i, count) * scale * load(a.weight + i, count), count);
        });
    }
}

void layer_norm(const LayerNormArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r * a.x_stride;
        float* out = a.out + r * a.dim;
        vec total = zero();
        each(0, a.dim, [&](int64_t i, auto count) { total = total + load(x + i, count); });
        const vec mean = set1(reduce_add(total) / float(a.dim));
        vec squares = zero();
        each(0, a.dim, [&](int64_t i, auto count) {
            const vec v = keep(load(x + i, count) - mean, count, zero());
            squares = fma(v, v, squares);
        });
        const vec scale = set1(1.0f / __builtin_sqrtf(reduce_add(squares) / float(a.dim) + a.eps));
        each(0, a.dim, [&](int64_t i, auto count) {
            const vec bias = a.bias ? load(a.bias + i, count) : zero();
            store(out + i, fma((load(x + i, count) - mean) * scale, load(a.weight + i, count), bias), count);
        });
    }
}

void rope(const RopeArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* cosine = a.table + r * 2 * a.half;
        const float* sine = cosine + a.half;
        for (int64_t h = 0; h < a.heads; h++) {
            float* x = a.x + r * a.x_stride + h * a.head_dim;
            if (a.interleaved) {
                for (int64_t i = 0; i < a.half; i++) {
                    const float first = x[2 * i], second = x[2 * i + 1];
                    x[2 * i] = first * cosine[i] - second * sine[i];
                    x[2 * i + 1] = second * cosine[i] + first * sine[i];
                }
                continue;
            }
            each(0, a.half, [&](int64_t i, auto count) {
                const vec c = load(cosine + i, count), s = load(sine + i, count);
                const vec first = load(x + i, count), second = load(x + a.half + i, count);
                store(x + i, first * c - second * s, count);
                store(x + a.half + i, second * c + first * s, count);
            });
        }
    }
}

template <Activation kind>
void activation_rows(const ActivationArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r * a.x_stride;
        float* out = a.out + r * a.dim;
        each(0, a.dim, [&](int64_t i, auto count) { store(out + i, activate<kind>(load(x + i, count)), count); });
    }
}

void activation(const ActivationArgs& a, int64_t begin, int64_t end) {
    switch (a.kind) {
        case Activation::gelu: return activation_rows<Activation::gelu>(a, begin, end);
        case Activation::gelu_tanh: return activation_rows<Activation::gelu_tanh>(a, begin, end);
        case Activation::silu: return activation_rows<Activation::silu>(a, begin, end);
    }
}

template <Activation kind>
void gated_rows(const GatedArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* gate = a.x + r * a.x_stride;
        const float* up = gate + a.dim;
        float* out = a.out + r * a.dim;
        each(0, a.dim, [&](int64_t i, auto count) {
            store(out + i, activate<kind>(load(gate + i, count)) * load(up + i, count), count);
        });
    }
}

void gated(const GatedArgs& a, int64_t begin, int64_t end) {
    switch (a.kind) {
        case Activation::gelu: return gated_rows<Activation::gelu>(a, begin, end);
        case Activation::gelu_tanh: return gated_rows<Activation::gelu_tanh>(a, begin, end);
        case Activation::silu: return gated_rows<Activation::silu>(a, begin, end);
    }
}

void add(const AddArgs& a, int64_t begin, int64_t end) {
    each(begin, end, [&](int64_t i, auto count) { store(a.out + i, load(a.a + i, count) + load(a.b + i, count), count); });
}

void softmax(const SoftmaxArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r * a.dim;
        float* out = a.out + r * a.dim;
        vec best = set1(-infinity);
        each(0, a.dim, [&](int64_t i, auto count) {
            best = max(keep(load(x + i, count), count, set1(-infinity)), best);  // passes a NaN over; the sum keeps it
        });
        const vec largest = set1(reduce_max(best));
        vec sums = zero();
        each(0, a.dim, [&](int64_t i, auto count) {
            const vec e = exp(load(x + i, count) - largest);
            sums = sums + keep(e, count, zero());
            if (!a.log) store(out + i, e, count);
        });
        const float total = reduce_add(sums);
        const vec log_total = set1(a.log ? __builtin_logf(total) : 0.0f);
        const vec scale = set1(1.0f / total);
        each(0, a.dim, [&](int64_t i, auto count) {
            store(out + i, a.log ? load(x + i, count) - largest - log_total : load(out + i, count) * scale, count);
        });
    }
}

// A row of logits is looked at in chunks of 4 KiB, and a chunk in groups: logits a multiple of `groups` apart.
constexpr int64_t chunk_size = 1024, groups = 16, group_vecs = groups / lanes;

INLINE int64_t chunk_end(int64_t begin, int64_t n) { return begin + chunk_size < n ? begin + chunk_size : n; }

// Whether all that was looked at is less than infinity, in independent masks.
struct Good {
    mask m[4] = {all_lanes(), all_lanes(), all_lanes(), all_lanes()};
    bool all() const { return bits(both(both(m[0], m[1]), both(m[2], m[3]))) == bits(all_lanes()); }
};

struct Maxima {
    vec v[group_vecs];
    INLINE float largest() const {
        vec all = v[0];
        for (int64_t j = 1; j < group_vecs; j++) all = max(v[j], all);
        return reduce_max(all);
    }
};

// The largest of each group of the chunk x[begin, end), a NaN passed over. finite_only: -infinity is not good either.
template <bool finite_only>
INLINE Maxima chunk_maxima(const float* x, int64_t begin, int64_t end, Good& good) {
    const vec limit = set1(infinity);
    vec best[4] = {set1(-infinity), set1(-infinity), set1(-infinity), set1(-infinity)};
    int64_t i = begin;
    for (; i + 4 * lanes <= end; i += 4 * lanes) {
        for (int j = 0; j < 4; j++) {
            const vec v = load(x + i + j * lanes);
            good.m[j] = less(good.m[j], finite_only ? abs(v) : v, limit);
            best[j] = max(v, best[j]);
        }
    }
    for (int j = 0; i < end; i += lanes, j++) {
        const int64_t count = end - i < lanes ? end - i : lanes;
        const vec v = load(x + i, count);
        good.m[j] = less(good.m[j], finite_only ? abs(v) : v, limit);
        best[j] = max(keep(v, count, set1(-infinity)), best[j]);
    }
    Maxima maxima;
    for (int64_t j = 0; j < group_vecs; j++) {
        maxima.v[j] = best[j];
        for (int64_t k = j + group_vecs; k < 4; k += group_vecs) maxima.v[j] = max(best[k], maxima.v[j]);
    }
    return maxima;
}

template <bool finite_only>
int32_t argmax_of(const float* x, int64_t dim) {
    Good good;
    float largest = -infinity;
    int64_t from = 0;
    for (int64_t c = 0; c < dim; c += chunk_size) {
        const float m = chunk_maxima<finite_only>(x, c, chunk_end(c, dim), good).largest();
        if (m > largest) {
            largest = m;
            from = c;
        }
    }
    if (!good.all()) return -1;
    if (largest == -infinity) return -2;
    for (int64_t i = from;; i += lanes) {  // ends: one of them is the largest, and lanes past the end come after it
        const vec v = dim - i >= lanes ? load(x + i) : load(x + i, dim - i);
        const uint32_t found = bits(equal(v, set1(largest)));
        if (found) return int32_t(i) + __builtin_ctz(found);
    }
}

int32_t argmax_row(const float* x, int64_t dim, bool finite_only) {
    return finite_only ? argmax_of<true>(x, dim) : argmax_of<false>(x, dim);
}

void argmax(const ArgmaxArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) a.out[r] = argmax_row(a.x + r * a.dim, a.dim, false);
}

void nonfinite(const NonfiniteArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        int64_t finite = 0;
        each(0, a.dim, [&](int64_t i, auto count) {
            finite += __builtin_popcount(bits(less(abs(load(a.x + r * a.dim + i, count)), set1(infinity))));
        });
        a.out[r] = int32_t((a.dim + lanes - 1) / lanes * lanes - finite);
    }
}
