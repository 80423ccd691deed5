// Element-wise kernels, norms, rope and reductions, written once over the vocabulary of vec_*.h. What is not here stays
// with reference.cpp: it moves memory (kv_write, copy_pages), runs once a step (rope_table) or is bound by branches
// (top_k, penalty, sample). A row's tail is one masked vector, so results never depend on a work range.

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

int32_t argmax_row(const float* x, int64_t dim) {
    vec best = set1(-infinity);
    uint32_t good = ~0u;
    each(0, dim, [&](int64_t i, auto count) {
        const vec v = load(x + i, count);
        good &= bits(less(v, set1(infinity)));
        best = max(keep(v, count, set1(-infinity)), best);
    });
    const float largest = reduce_max(best);
    if (good != ~0u >> (32 - lanes) || largest == -infinity) return -1;
    for (int64_t i = 0;; i += lanes) {  // ends: one of them is the largest, and lanes past the end come after it
        const vec v = dim - i >= lanes ? load(x + i) : load(x + i, dim - i);
        const uint32_t found = bits(equal(v, set1(largest)));
        if (found) return int32_t(i) + __builtin_ctz(found);
    }
}

void argmax(const ArgmaxArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) a.out[r] = argmax_row(a.x + r * a.dim, a.dim);
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
