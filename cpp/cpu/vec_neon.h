// The vocabulary of simd.inl on aarch64's base NEON: 4 floats. See vec_avx512.h.
using vec = float32x4_t;
using mask = uint32x4_t;  // all ones or all zeros in each lane
constexpr int64_t lanes = 4;

INLINE vec zero() { return vdupq_n_f32(0.0f); }
INLINE vec set1(float x) { return vdupq_n_f32(x); }
INLINE vec iota() { return vec{0, 1, 2, 3}; }
INLINE vec load(const float* p) { return vld1q_f32(p); }
INLINE vec load(const float* p, int64_t count) {
    float whole[4] = {};
    for (int64_t i = 0; i < count; i++) whole[i] = p[i];
    return vld1q_f32(whole);
}
INLINE void store(float* p, vec x) { vst1q_f32(p, x); }
INLINE void store(float* p, vec x, int64_t count) {
    float whole[4];
    vst1q_f32(whole, x);
    for (int64_t i = 0; i < count; i++) p[i] = whole[i];
}

INLINE vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
INLINE vec abs(vec x) { return vabsq_f32(x); }
INLINE vec sqrt(vec x) { return vsqrtq_f32(x); }
INLINE vec round(vec x) { return vrndnq_f32(x); }
INLINE vec max_size(vec a, vec b) {
    return vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b)));
}
INLINE vec scale_by_power(vec x, vec n) {  // in two steps, so that results may be denormal or infinite
    const int32x4_t all = vcvtnq_s32_f32(n);
    const int32x4_t half = vshrq_n_s32(all, 1);
    const vec low = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, vdupq_n_s32(127)), 23));
    const vec high = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vsubq_s32(all, half), vdupq_n_s32(127)), 23));
    return x * low * high;
}

INLINE mask less(vec a, vec b) { return vcltq_f32(a, b); }
INLINE mask equal(vec a, vec b) { return vceqq_f32(a, b); }
INLINE vec select(mask m, vec yes, vec no) { return vbslq_f32(m, yes, no); }
INLINE uint32_t bits(mask m) { return vaddvq_u32(vandq_u32(m, uint32x4_t{1, 2, 4, 8})); }
// Return b when either is NaN, as on x86.
INLINE vec min(vec a, vec b) { return select(less(a, b), a, b); }
INLINE vec max(vec a, vec b) { return select(less(b, a), a, b); }

// The sums of four vectors, each as (0 + 2) + (1 + 3).
INLINE vec reduce4(vec a, vec b, vec c, vec d) {
    const vec ab = vzip1q_f32(a, b) + vzip2q_f32(a, b);
    const vec cd = vzip1q_f32(c, d) + vzip2q_f32(c, d);
    return vcombine_f32(vget_low_f32(ab), vget_low_f32(cd)) + vcombine_f32(vget_high_f32(ab), vget_high_f32(cd));
}
INLINE void add_sums(float* out, vec a, vec b, vec c, vec d) { store(out, load(out) + reduce4(a, b, c, d)); }
INLINE float reduce_add(vec x) { return vgetq_lane_f32(reduce4(x, x, x, x), 0); }
INLINE float reduce_max(vec x) { return vmaxnmvq_f32(x); }

// Storage types.
INLINE uint16x4_t load_u16(const uint16_t* p) { return vld1_u16(p); }
INLINE uint16x4_t load_u16(const uint16_t* p, int64_t count) {
    uint16_t whole[4] = {};
    for (int64_t i = 0; i < count; i++) whole[i] = p[i];
    return vld1_u16(whole);
}
INLINE void store_u16(uint16_t* p, uint16x4_t x) { vst1_u16(p, x); }
INLINE void store_u16(uint16_t* p, uint16x4_t x, int64_t count) {
    uint16_t whole[4];
    vst1_u16(whole, x);
    for (int64_t i = 0; i < count; i++) p[i] = whole[i];
}
INLINE vec widen_f16(uint16x4_t x) { return vcvt_f32_f16(vreinterpret_f16_u16(x)); }
INLINE vec widen_bf16(uint16x4_t x) { return vreinterpretq_f32_u32(vshll_n_u16(x, 16)); }
INLINE uint16x4_t narrow_f16(vec x) { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }
INLINE uint16x4_t narrow_bf16(vec x) {
    const uint32x4_t b = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(b, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(b, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(b, vdupq_n_u32(0x00400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}

// Bytes.
INLINE vec load(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
INLINE vec load(const int8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
}

struct bytes {
    int8x16_t low, high;
};

INLINE bytes round_bytes(const vec* x) {
    auto eight = [](vec a, vec b) __attribute__((always_inline)) {
        return vqmovn_s16(vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a)), vqmovn_s32(vcvtnq_s32_f32(b))));
    };
    return {vcombine_s8(eight(x[0], x[1]), eight(x[2], x[3])), vcombine_s8(eight(x[4], x[5]), eight(x[6], x[7]))};
}
INLINE bytes clamp(bytes x, int low, int high) {
    const int8x16_t least = vdupq_n_s8(int8_t(low)), most = vdupq_n_s8(int8_t(high));
    return {vminq_s8(vmaxq_s8(x.low, least), most), vminq_s8(vmaxq_s8(x.high, least), most)};
}
INLINE bytes add(bytes x, int y) { return {vaddq_s8(x.low, vdupq_n_s8(int8_t(y))), vaddq_s8(x.high, vdupq_n_s8(int8_t(y)))}; }
INLINE void store(void* p, bytes x) {
    vst1q_s8(static_cast<int8_t*>(p), x.low);
    vst1q_s8(static_cast<int8_t*>(p) + 16, x.high);
}
INLINE int sum(bytes x) { return vaddlvq_s8(x.low) + vaddlvq_s8(x.high); }

// Pairs side by side in memory: the first and the second of each of 4 pairs.
struct Pair {
    vec first, second;
};
INLINE uint16x8_t load_pairs(const uint16_t* p) { return vld1q_u16(p); }
INLINE uint16x8_t load_pairs(const uint16_t* p, int64_t count) {
    uint16_t whole[8] = {};
    for (int64_t i = 0; i < 2 * count; i++) whole[i] = p[i];
    return vld1q_u16(whole);
}
INLINE uint16x8_t load_pairs(const int8_t* p) { return vreinterpretq_u16_s16(vmovl_s8(vld1_s8(p))); }  // widened to 16 bits
INLINE uint16x8_t load_pairs(const int8_t* p, int64_t count) {
    int8_t whole[8] = {};
    for (int64_t i = 0; i < 2 * count; i++) whole[i] = p[i];
    return load_pairs(whole);
}
INLINE uint32x4_t first_high(uint16x8_t pairs) { return vshlq_n_u32(vreinterpretq_u32_u16(pairs), 16); }
INLINE uint32x4_t second_high(uint16x8_t pairs) {
    return vandq_u32(vreinterpretq_u32_u16(pairs), vdupq_n_u32(0xffff0000u));
}
INLINE Pair split_bf16(uint16x8_t pairs) {
    return {vreinterpretq_f32_u32(first_high(pairs)), vreinterpretq_f32_u32(second_high(pairs))};
}
INLINE Pair split_f16(uint16x8_t pairs) {
    const uint16x8_t first = vuzp1q_u16(pairs, pairs), second = vuzp2q_u16(pairs, pairs);
    return {widen_f16(vget_low_u16(first)), widen_f16(vget_low_u16(second))};
}
INLINE Pair split_i8(uint16x8_t pairs) {  // times 2^16
    return {vcvtq_f32_s32(vreinterpretq_s32_u32(first_high(pairs))), vcvtq_f32_s32(vreinterpretq_s32_u32(second_high(pairs)))};
}

// What sample.inl needs besides.
INLINE mask all_lanes() { return vdupq_n_u32(~0u); }
INLINE mask both(mask a, mask b) { return vandq_u32(a, b); }
INLINE mask less(mask within, vec a, vec b) { return both(within, less(a, b)); }
INLINE mask less_equal(vec a, vec b) { return vcleq_f32(a, b); }
INLINE mask less_equal(mask within, vec a, vec b) { return both(within, less_equal(a, b)); }
INLINE vec times_power(vec x, vec n) {
    return x * vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}
INLINE int64_t compress(float* p, vec x, mask m) {
    const uint32_t set = bits(m);
    float whole[4];
    vst1q_f32(whole, x);
    int64_t count = 0;
    for (int i = 0; i < 4; i++) {
        p[count] = whole[i];
        count += set >> i & 1;
    }
    return count;
}
struct Wide {
    float64x2_t low, high;
};
INLINE Wide wide_zero() { return {vdupq_n_f64(0), vdupq_n_f64(0)}; }
INLINE void accumulate(Wide& sum, vec x) {
    sum.low = sum.low + vcvt_f64_f32(vget_low_f32(x));
    sum.high = sum.high + vcvt_high_f64_f32(x);
}
INLINE double total(const Wide& sum) { return vaddvq_f64(sum.low + sum.high); }
