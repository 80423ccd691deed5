// The vocabulary of simd.inl on AVX-512 F/BW/DQ/VL: 16 floats. Included inside a tier's anonymous namespace; `vec` also
// has the compiler's own + - * /. Every function that takes a count touches only that many elements (zeros beyond).
using vec = __m512;
using mask = __mmask16;
constexpr int64_t lanes = 16;

INLINE mask first_lanes(int64_t count) { return mask((1u << count) - 1u); }

INLINE vec zero() { return _mm512_setzero_ps(); }
INLINE vec set1(float x) { return _mm512_set1_ps(x); }
INLINE vec iota() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
INLINE vec load(const float* p) { return _mm512_loadu_ps(p); }
INLINE vec load(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), p); }
INLINE void store(float* p, vec x) { _mm512_storeu_ps(p, x); }
INLINE void store(float* p, vec x, int64_t count) { _mm512_mask_storeu_ps(p, first_lanes(count), x); }

INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
// Return b when either is NaN.
INLINE vec min(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec max(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec abs(vec x) { return _mm512_abs_ps(x); }
INLINE vec sqrt(vec x) { return _mm512_sqrt_ps(x); }
INLINE vec round(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// The larger of two without signs, by their bits: NaN above infinity above all else.
INLINE vec max_size(vec a, vec b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
// x * 2^n, n integral.
INLINE vec scale_by_power(vec x, vec n) { return _mm512_scalef_ps(x, n); }

// False when either is NaN.
INLINE mask less(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE mask equal(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE vec select(mask m, vec yes, vec no) { return _mm512_mask_blend_ps(m, no, yes); }
INLINE uint32_t bits(mask m) { return m; }  // bit i is lane i

// The sums of four vectors, each by halving: lanes (i, i + 8), then 4, 2, 1 apart.
INLINE __m128 reduce4(vec a, vec b, vec c, vec d) {
    auto fold = [](vec x) __attribute__((always_inline)) {
        const __m256 y = _mm512_castps512_ps256(x) + _mm512_extractf32x8_ps(x, 1);
        return _mm256_castps256_ps128(y) + _mm256_extractf128_ps(y, 1);
    };
    const __m128 a4 = fold(a), b4 = fold(b), c4 = fold(c), d4 = fold(d);
    const __m128 ab = _mm_unpacklo_ps(a4, b4) + _mm_unpackhi_ps(a4, b4);
    const __m128 cd = _mm_unpacklo_ps(c4, d4) + _mm_unpackhi_ps(c4, d4);
    return _mm_movelh_ps(ab, cd) + _mm_movehl_ps(cd, ab);
}
INLINE void add_sums(float* out, vec a, vec b, vec c, vec d) {
    _mm_storeu_ps(out, _mm_loadu_ps(out) + reduce4(a, b, c, d));
}
INLINE float reduce_add(vec x) { return _mm_cvtss_f32(reduce4(x, x, x, x)); }
INLINE float reduce_max(vec x) { return _mm512_reduce_max_ps(x); }

// Storage types.
INLINE __m256i load_u16(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
INLINE __m256i load_u16(const uint16_t* p, int64_t count) { return _mm256_maskz_loadu_epi16(first_lanes(count), p); }
INLINE void store_u16(uint16_t* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
INLINE void store_u16(uint16_t* p, __m256i x, int64_t count) { _mm256_mask_storeu_epi16(p, first_lanes(count), x); }
INLINE vec widen_f16(__m256i x) { return _mm512_cvtph_ps(x); }
INLINE vec widen_bf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
INLINE __m256i narrow_f16(vec x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE __m256i narrow_bf16(vec x) {  // to nearest even; a NaN stays one
    const __m512i b = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(b, _mm512_set1_epi32(0x00400000));
    const mask nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
}

// Bytes as floats.
INLINE vec load(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
INLINE vec load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// 32 signed bytes.
using bytes = __m256i;

// From 32 floats, rounded to nearest even; those beyond a byte saturate, up to 2^31.
INLINE bytes round_bytes(const vec* x) {
    auto narrow = [](vec v) __attribute__((always_inline)) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)); };
    return _mm256_set_m128i(narrow(x[1]), narrow(x[0]));
}
INLINE bytes clamp(bytes x, int low, int high) {
    return _mm256_min_epi8(_mm256_max_epi8(x, _mm256_set1_epi8(char(low))), _mm256_set1_epi8(char(high)));
}
INLINE bytes add(bytes x, int y) { return _mm256_add_epi8(x, _mm256_set1_epi8(char(y))); }
INLINE void store(void* p, bytes x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
INLINE int sum(bytes x) {
    const bytes by_eight = _mm256_sad_epu8(_mm256_xor_si256(x, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    const __m128i y = _mm_add_epi32(_mm256_castsi256_si128(by_eight), _mm256_extracti128_si256(by_eight, 1));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_unpackhi_epi64(y, y))) - 128 * 32;
}

// Pairs side by side in memory: the first and the second of each of 16 pairs.
struct Pair {
    vec first, second;
};
INLINE __m512i load_pairs(const uint16_t* p) { return _mm512_loadu_si512(p); }
INLINE __m512i load_pairs(const uint16_t* p, int64_t count) { return _mm512_maskz_loadu_epi32(first_lanes(count), p); }
INLINE __m512i load_pairs(const int8_t* p) {  // widened to 16 bits
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
INLINE __m512i load_pairs(const int8_t* p, int64_t count) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
INLINE __m512i first_high(__m512i pairs) { return _mm512_slli_epi32(pairs, 16); }
INLINE __m512i second_high(__m512i pairs) { return _mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000u))); }
INLINE Pair split_bf16(__m512i pairs) {
    return {_mm512_castsi512_ps(first_high(pairs)), _mm512_castsi512_ps(second_high(pairs))};
}
INLINE Pair split_f16(__m512i pairs) {
    return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs)), _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)))};
}
INLINE Pair split_i8(__m512i pairs) {  // times 2^16
    return {_mm512_cvtepi32_ps(first_high(pairs)), _mm512_cvtepi32_ps(second_high(pairs))};
}

// What sample.inl needs besides.
INLINE mask all_lanes() { return mask(~0u); }
INLINE mask both(mask a, mask b) { return a & b; }
INLINE mask less(mask within, vec a, vec b) { return _mm512_mask_cmp_ps_mask(within, a, b, _CMP_LT_OQ); }
INLINE mask less_equal(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
INLINE mask less_equal(mask within, vec a, vec b) { return _mm512_mask_cmp_ps_mask(within, a, b, _CMP_LE_OQ); }
INLINE vec times_power(vec x, vec n) { return _mm512_scalef_ps(x, n); }  // x * 2^n, both normal, n integral
// Stores the lanes of m one after another, then anything up to `lanes` floats; returns how many lanes m has.
INLINE int64_t compress(float* p, vec x, mask m) {
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m, x));
    return __builtin_popcount(m);
}
// A sum in doubles: of integers it is exact up to 2^53.
struct Wide {
    __m512d low, high;
};
INLINE Wide wide_zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
INLINE void accumulate(Wide& sum, vec x) {
    sum.low = sum.low + _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    sum.high = sum.high + _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
}
INLINE double total(const Wide& sum) { return _mm512_reduce_add_pd(sum.low + sum.high); }
