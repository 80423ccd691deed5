// Attention's products by vdpbf16ps for pages of bf16 and int8: queries and weights are rounded to bf16, int8 codes are
// bf16 numbers as they are. Sums stay f32.

template <class T>
struct Bf16Products {
    using Factor = bf16;
    using Operand = __m512i;
    static constexpr int64_t step = 2;
    static constexpr float unit = sizeof(T) == 1 ? 0x1p-16f : 1.0f;

    static INLINE Operand as_bf16(__m512i pairs) {
        if (sizeof(T) == 2) return pairs;
        const __m512i first = _mm512_castps_si512(_mm512_cvtepi32_ps(first_high(pairs)));
        const __m512i second = _mm512_castps_si512(_mm512_cvtepi32_ps(second_high(pairs)));  // low halves are zero
        return _mm512_or_si512(second, _mm512_srli_epi32(first, 16));
    }
    static INLINE Operand get(const bf16* p, Whole) { return load_pairs(&p->bits); }
    static INLINE Operand get(const bf16* p, int64_t count) { return load_pairs(&p->bits, count); }
    static INLINE Operand get(const i8* p, Whole) { return as_bf16(load_pairs(&p->code)); }
    static INLINE Operand get(const i8* p, int64_t count) { return as_bf16(load_pairs(&p->code, count)); }
    static INLINE Operand get_single(const T* p, int64_t count) {
        T pairs[2 * lanes] = {};
        for (int64_t i = 0; i < count; i++) pairs[2 * i] = p[i];
        return get(pairs, Whole());
    }
    static INLINE Operand only_first(Operand x) { return _mm512_and_si512(x, _mm512_set1_epi32(0xffff)); }
    static INLINE Operand only_second(Operand x) { return second_high(x); }
    static INLINE vec add(vec sum, const bf16* factor, Operand x) {
        int pair;
        __builtin_memcpy(&pair, factor, sizeof pair);
        return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32(pair));
    }
    static INLINE vec power(vec x) {  // x = n + r, 0 <= r < 1; relative error 2.9e-6, far below bf16's
        const vec r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        vec p = set1(0.0134266848f);
        p = fma(p, r, set1(0.0522424728f));
        p = fma(p, r, set1(0.241280198f));
        p = fma(p, r, set1(0.693044841f));
        return _mm512_scalef_ps(fma(p, r, set1(1.0f)), x);
    }
    static INLINE vec put(bf16* factor, const vec* p, vec total) {  // a dot product with ones sums what was rounded
        for (int64_t t = 0; t < page_keys / lanes; t += 2) {
            const __m512bh pairs = _mm512_cvtne2ps_pbh(p[t + 1], p[t]);
            _mm512_storeu_si512(factor + t * lanes, (__m512i)pairs);
            total = _mm512_dpbf16_ps(total, pairs, (__m512bh)_mm512_set1_epi32(0x3f803f80));
        }
        return total;
    }
};

template <>
struct Products<bf16> : Bf16Products<bf16> {};
template <>
struct Products<i8> : Bf16Products<i8> {};
