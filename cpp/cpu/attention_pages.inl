// Pages by their type: how keys and values are stored, and how they enter a product (KvPages has the layout).

struct i8 {
    int8_t code;
};

template <class F>
INLINE void with_page_type(DType dtype, F f) {
    if (dtype == DType::i8) return f(Type<i8>());
    with_type(dtype, f);
}

constexpr int64_t largest_dim = 512;  // of a head

// One key or value [dim] in its storage type, in order.
template <class T>
INLINE void narrow_row(const float* x, int64_t dim, float, T* out) {
    each(0, dim, [&](int64_t i, auto count) { store(out + i, load(x + i, count), count); });
}
INLINE void narrow_row(const float* x, int64_t dim, float scale, i8* out) {
    for (int64_t i = 0; i < dim; i += lanes) {
        const int64_t count = dim - i < lanes ? dim - i : lanes;
        float code[lanes] = {};
        // A denormal scale may be rounded far down, so codes are held below 127.
        if (scale > 0) store(code, max(set1(-127.0f), min(set1(127.0f), round(load(x + i, count) / set1(scale)))));
        for (int64_t j = 0; j < count; j++) out[i + j].code = int8_t(code[j]);
    }
}

// max |x| / 127, or NaN.
INLINE float row_scale(const float* x, int64_t dim) {
    vec largest = zero();
    uint32_t finite = ~0u;
    each(0, dim, [&](int64_t i, auto count) {
        const vec size = abs(load(x + i, count));
        finite &= bits(less(size, set1(infinity)));
        largest = max(size, largest);
    });
    return finite == ~0u >> (32 - lanes) || dim == 0 ? reduce_max(largest) / 127.0f : __builtin_nanf("");
}

INLINE void write_row(const float* k, const float* v, int64_t slot, int64_t dim, float, float, float* k_out, float* v_out) {
    k_out += slot / tile_keys * dim * tile_keys + slot % tile_keys;
    for (int64_t i = 0; i < dim; i++) k_out[i * tile_keys] = k[i];
    each(0, dim, [&](int64_t i, auto count) { store(v_out + slot * dim + i, load(v + i, count), count); });
}

template <class T>
INLINE void write_row(const float* k, const float* v, int64_t slot, int64_t dim, float k_scale, float v_scale, T* k_out,
                      T* v_out) {
    struct Two {
        T first, second;
    };
    T row[largest_dim];
    narrow_row(k, dim, k_scale, row);
    k_out += slot / tile_keys * dim * tile_keys;
    for (int64_t i = 0; i + 2 <= dim; i += 2) {
        __builtin_memcpy(k_out + i * tile_keys + slot % tile_keys * 2, row + i, sizeof(Two));
    }
    if (dim % 2) k_out[(dim - 1) * tile_keys + slot % tile_keys] = row[dim - 1];
    narrow_row(v, dim, v_scale, row);
    v_out += slot / 2 * 2 * dim + slot % 2;  // the other of the pair may be another thread's: elements are stored singly
    for (int64_t i = 0; i < dim; i++) v_out[i * 2] = row[i];
}

void kv_write(const KvWriteArgs& a, int64_t begin, int64_t end) {
    const KvPages& p = a.pages;
    const int64_t dim = p.head_dim;
    with_page_type(p.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        for (int64_t r = begin; r < end; r++) {
            const int64_t page = p.page_table[p.sequences[r] * p.max_pages + p.positions[r] / page_keys];
            const int64_t slot = p.positions[r] % page_keys;
            for (int64_t h = 0; h < p.kv_heads; h++) {
                const int64_t at = (h * p.pages + page) * page_keys;
                const float* k = a.k + r * a.kv_stride + h * dim;
                const float* v = a.v + r * a.kv_stride + h * dim;
                float k_scale = 1.0f, v_scale = 1.0f;
                if (p.dtype == DType::i8) {
                    k_scale = p.k_scales[at + slot] = row_scale(k, dim);
                    v_scale = p.v_scales[at + slot] = row_scale(v, dim);
                }
                write_row(k, v, slot, dim, k_scale, v_scale, static_cast<T*>(p.k) + at * dim, static_cast<T*>(p.v) + at * dim);
            }
        }
    });
}

void rope_kv_write(const RopeKvWriteArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {  // a row's keys are still in the cache
        rope(a.rope, r, r + 1);
        kv_write(a.write, r, r + 1);
    }
}

// ---- products ------------------------------------------------------------------------------------------------

INLINE Pair split(const f16* p) { return split_f16(load_pairs(&p->bits)); }
INLINE Pair split(const bf16* p) { return split_bf16(load_pairs(&p->bits)); }
INLINE Pair split(const i8* p) { return split_i8(load_pairs(&p->code)); }
INLINE Pair split(const f16* p, int64_t count) { return split_f16(load_pairs(&p->bits, count)); }
INLINE Pair split(const bf16* p, int64_t count) { return split_bf16(load_pairs(&p->bits, count)); }
INLINE Pair split(const i8* p, int64_t count) { return split_i8(load_pairs(&p->code, count)); }
template <class T>
INLINE Pair split(const T* p, Whole) {
    return split(p);
}

// 2^x for x <= 8 within an ulp. x = n + r, |r| <= 1/2, and 2^r = 1 + r p(r) with p a minimax fit (relative error 2e-9).
INLINE vec power_of_two(vec x) {
    x = max(set1(-150.0f), x);  // a NaN stays one
    const vec n = round(x), r = x - n;
    vec p = set1(0.00015353362f);
    p = fma(p, r, set1(0.0013398875f));
    p = fma(p, r, set1(0.00961843692f));
    p = fma(p, r, set1(0.0555033237f));
    p = fma(p, r, set1(0.240226477f));
    p = fma(p, r, set1(0.693147182f));
    return scale_by_power(fma(p, r, set1(1.0f)), n);
}

// A page's weights become factors of its values; returns total + their sum, by lane.
INLINE vec put_f32(float* factor, const vec* p, vec total) {
    for (int64_t t = 0; t < page_keys / lanes; t++) {
        store(factor + t * lanes, p[t]);
        total = total + p[t];
    }
    return total;
}

// A product of one f32 number with a vector of stored ones, or of a pair with a vector of pairs, in f32.
template <class T>
struct F32Products {
    using Factor = float;             // what the other side, queries and weights, is held as
    using Operand = Pair;
    static constexpr int64_t step = 2;   // stored elements, of channels or keys, that lie side by side
    static constexpr float unit = sizeof(T) == 1 ? 0x1p-16f : 1.0f;  // operands are this much too large

    template <class Count>
    static INLINE Operand get(const T* p, Count count) {
        return split(p, count);
    }
    static INLINE Operand get_single(const T* p, int64_t count) {  // not paired: seconds are zero
        T pairs[2 * lanes] = {};
        for (int64_t i = 0; i < count; i++) pairs[2 * i] = p[i];
        return split(pairs);
    }
    static INLINE Operand only_first(Operand x) { return {x.first, zero()}; }
    static INLINE Operand only_second(Operand x) { return {zero(), x.second}; }
    static INLINE vec add(vec sum, const float* factor, Operand x) {
        return fma(set1(factor[1]), x.second, fma(set1(factor[0]), x.first, sum));
    }
    static INLINE vec power(vec x) { return power_of_two(x); }
    static INLINE vec put(float* factor, const vec* p, vec total) { return put_f32(factor, p, total); }
};

template <>
struct F32Products<float> {
    using Factor = float;
    using Operand = vec;
    static constexpr int64_t step = 1;
    static constexpr float unit = 1.0f;

    template <class Count>
    static INLINE Operand get(const float* p, Count count) {
        return load(p, count);
    }
    static INLINE Operand get_single(const float* p, int64_t count) { return load(p, count); }
    static INLINE Operand only_first(Operand x) { return x; }
    static INLINE Operand only_second(Operand x) { return x; }
    static INLINE vec add(vec sum, const float* factor, Operand x) { return fma(set1(factor[0]), x, sum); }
    static INLINE vec power(vec x) { return power_of_two(x); }
    static INLINE vec put(float* factor, const vec* p, vec total) { return put_f32(factor, p, total); }
};

// The arithmetic of attention over pages of T; a tier with dot products of pairs specializes it.
template <class T>
struct Products : F32Products<T> {};
