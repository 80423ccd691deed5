// Element-wise kernels, norms, rope and reductions, written once over the vocabulary of vec_*.h. What is not here stays
// with reference.cpp: it moves memory (kv_write, copy_pages), runs once a step (rope_table) or touches little (penalty, remember).
// A row's tail is one masked vector, so results never depend on a work range.

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
        const float* x = a.x + r / a.inner * a.x_stride + r % a.inner * a.dim;
        float* out = a.out + r / a.inner * a.out_stride + r % a.inner * a.dim;
        const float* weight = a.weight + r % a.inner * a.weight_stride;
        const float* biases = a.bias ? a.bias + r % a.inner * a.weight_stride : nullptr;
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
            const vec bias = biases ? load(biases + i, count) : zero();
            store(out + i, fma((load(x + i, count) - mean) * scale, load(weight + i, count), bias), count);
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

void activation(const ActivationArgs& a, int64_t begin, int64_t end) {
    with_kind(a.kind, [&](auto kind) {
        for (int64_t r = begin; r < end; r++) {
            const float* x = a.x + r * a.x_stride;
            float* out = a.out + r * a.dim;
            each(0, a.dim, [&](int64_t i, auto count) { store(out + i, activate<kind.value>(load(x + i, count)), count); });
        }
    });
}

void gated(const GatedArgs& a, int64_t begin, int64_t end) {
    with_kind(a.kind, [&](auto kind) {
        for (int64_t r = begin; r < end; r++) {
            const float* x = a.x + r * a.x_stride;
            float* out = a.out + r * a.dim;
            each(0, a.dim, [&](int64_t i, auto count) {
                store(out + i, gate<kind.value>(load(x + i, count), load(x + a.dim + i, count)), count);
            });
        }
    });
}

void add(const AddArgs& a, int64_t begin, int64_t end) {
    const vec scale = set1(a.scale);
    each(begin, end, [&](int64_t i, auto count) { store(a.out + i, fma(scale, load(a.b + i, count), load(a.a + i, count)), count); });
}

void scale(const ScaleArgs& a, int64_t begin, int64_t end) {
    const vec factor = set1(a.factor), cap = set1(a.softcap);
    if (a.softcap > 0) {
        each(begin, end, [&](int64_t i, auto count) { store(a.out + i, cap * tanh(load(a.x + i, count) * factor / cap), count); });
    } else {
        each(begin, end, [&](int64_t i, auto count) { store(a.out + i, load(a.x + i, count) * factor, count); });
    }
}

// A vector's columns are loaded at once where they lie side by side in the source, as those of a head mostly do.
void gather_columns(const GatherColumnsArgs& a, int64_t begin, int64_t end) {
    for (int64_t i = 0; i < a.columns; i += lanes) {
        const int64_t count = a.columns - i < lanes ? a.columns - i : lanes, first = a.index[i];
        bool together = count == lanes && first >= 0;
        for (int64_t j = 0; j < count; j++) together = together && a.index[i + j] == first + j;
        together = together && (first >= a.x_columns || first + lanes <= a.x_columns);
        for (int64_t r = begin; r < end; r++) {
            const float* x = a.x + r * a.x_stride;
            const float* y = a.y ? a.y + r * a.y_stride : nullptr;
            float* out = a.out + r * a.columns + i;
            if (together) {
                store(out, load(first < a.x_columns ? x + first : y + (first - a.x_columns)));
                continue;
            }
            for (int64_t j = 0; j < count; j++) {
                const int64_t from = a.index[i + j];
                out[j] = from < 0 ? 0.0f : from < a.x_columns ? x[from] : y[from - a.x_columns];
            }
        }
    }
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
