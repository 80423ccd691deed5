// The vocabulary of simd.inl on AVX2 + FMA + F16C: 8 floats. See vec_avx512.h.
using vec = __m256;
using mask = __m256;  // all ones or all zeros in each lane
constexpr int64_t lanes = 8;

INLINE __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vec zero() { return _mm256_setzero_ps(); }
INLINE vec set1(float x) { return _mm256_set1_ps(x); }
INLINE vec iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
INLINE vec load(const float* p) { return _mm256_loadu_ps(p); }
INLINE vec load(const float* p, int64_t count) { return _mm256_maskload_ps(p, first_lanes(count)); }
INLINE void store(float* p, vec x) { _mm256_storeu_ps(p, x); }
INLINE void store(float* p, vec x, int64_t count) { _mm256_maskstore_ps(p, first_lanes(count), x); }

INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec min(vec a, vec b) { return _mm256_min_ps(a, b); }
INLINE vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE vec abs(vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
INLINE vec sqrt(vec x) { return _mm256_sqrt_ps(x); }
INLINE vec round(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vec max_size(vec a, vec b) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
INLINE vec scale_by_power(vec x, vec n) {  // in two steps, so that results may be denormal or infinite
    const __m256i all = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(all, 1);
    auto power = [](__m256i e) __attribute__((always_inline)) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
    };
    return x * power(half) * power(_mm256_sub_epi32(all, half));
}

INLINE mask less(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
INLINE mask equal(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
INLINE vec select(mask m, vec yes, vec no) { return _mm256_blendv_ps(no, yes, m); }
INLINE uint32_t bits(mask m) { return uint32_t(_mm256_movemask_ps(m)); }

// The sums of four vectors, each by halving: lanes (i, i + 4), then 2, 1 apart.
INLINE __m128 reduce4(vec a, vec b, vec c, vec d) {
    auto fold = [](vec x) __attribute__((always_inline)) {
        return _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
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
INLINE float reduce_max(vec x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

// Storage types.
INLINE __m128i load_u16(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
INLINE __m128i load_u16(const uint16_t* p, int64_t count) {
    alignas(16) uint16_t whole[8] = {};
    for (int64_t i = 0; i < count; i++) whole[i] = p[i];
    return load_u16(whole);
}
INLINE void store_u16(uint16_t* p, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x); }
INLINE void store_u16(uint16_t* p, __m128i x, int64_t count) {
    alignas(16) uint16_t whole[8];
    store_u16(whole, x);
    for (int64_t i = 0; i < count; i++) p[i] = whole[i];
}
INLINE vec widen_f16(__m128i x) { return _mm256_cvtph_ps(x); }
INLINE vec widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
INLINE __m128i narrow_f16(vec x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE __m128i narrow_bf16(vec x) {
    const __m256i b = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x00400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    return _mm256_castsi256_si128(packed);
}

// Bytes.
INLINE vec load(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
INLINE vec load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

using bytes = __m256i;

INLINE bytes round_bytes(const vec* x) {
    const __m256i low = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
    const __m256i high = _mm256_packs_epi32(_mm256_cvtps_epi32(x[2]), _mm256_cvtps_epi32(x[3]));
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
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

// Pairs side by side in memory: the first and the second of each of 8 pairs.
struct Pair {
    vec first, second;
};
INLINE __m256i load_pairs(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
INLINE __m256i load_pairs(const uint16_t* p, int64_t count) {
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(p), first_lanes(count));
}
INLINE __m256i load_pairs(const int8_t* p) {  // widened to 16 bits
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
INLINE __m256i load_pairs(const int8_t* p, int64_t count) {
    alignas(16) int8_t whole[16] = {};
    for (int64_t i = 0; i < 2 * count; i++) whole[i] = p[i];
    return load_pairs(whole);
}
INLINE __m256i first_high(__m256i pairs) { return _mm256_slli_epi32(pairs, 16); }
INLINE __m256i second_high(__m256i pairs) { return _mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000u))); }
INLINE Pair split_bf16(__m256i pairs) {
    return {_mm256_castsi256_ps(first_high(pairs)), _mm256_castsi256_ps(second_high(pairs))};
}
INLINE Pair split_f16(__m256i pairs) {
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13,
                                           2, 3, 6, 7, 10, 11, 14, 15);
    const __m256i apart = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(pairs, order), 0xd8);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(apart)), _mm256_cvtph_ps(_mm256_extracti128_si256(apart, 1))};
}
INLINE Pair split_i8(__m256i pairs) {  // times 2^16
    return {_mm256_cvtepi32_ps(first_high(pairs)), _mm256_cvtepi32_ps(second_high(pairs))};
}

// What sample.inl needs besides.
INLINE mask all_lanes() { return _mm256_castsi256_ps(_mm256_set1_epi32(-1)); }
INLINE mask both(mask a, mask b) { return _mm256_and_ps(a, b); }
INLINE mask less(mask within, vec a, vec b) { return both(within, less(a, b)); }
INLINE mask less_equal(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
INLINE mask less_equal(mask within, vec a, vec b) { return both(within, less_equal(a, b)); }
INLINE vec times_power(vec x, vec n) {
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
struct LaneOrders {  // for every set of lanes, their numbers one after another
    uint8_t lane[256][8];
    constexpr LaneOrders() : lane() {
        for (int m = 0; m < 256; m++) {
            for (int i = 0, n = 0; i < 8; i++) {
                if (m >> i & 1) lane[m][n++] = uint8_t(i);
            }
        }
    }
};
constexpr LaneOrders lane_orders;
INLINE int64_t compress(float* p, vec x, mask m) {
    const uint32_t set = bits(m);
    const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(lane_orders.lane[set]));
    store(p, _mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(order)));
    return __builtin_popcount(set);
}
struct Wide {
    __m256d low, high;
};
INLINE Wide wide_zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
INLINE void accumulate(Wide& sum, vec x) {
    sum.low = sum.low + _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    sum.high = sum.high + _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
}
INLINE double total(const Wide& sum) {
    const __m256d s = sum.low + sum.high;
    const __m128d t = _mm256_castpd256_pd128(s) + _mm256_extractf128_pd(s, 1);
    return _mm_cvtsd_f64(t) + _mm_cvtsd_f64(_mm_unpackhi_pd(t, t));
}
