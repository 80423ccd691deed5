// Pages by their type: how stored keys and values enter a product (KvPages in kernels.h has the layout).

struct i8 {
    int8_t code;
};

template <class F>
INLINE void with_page_type(DType dtype, F f) {
    if (dtype == DType::i8) return f(Type<i8>());
    with_type(dtype, f);
}

constexpr int64_t largest_dim = 512;  // of a head

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
