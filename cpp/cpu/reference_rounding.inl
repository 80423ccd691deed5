// Weights to codes, plainly: to nearest, and by search, where what every tier runs sees vectors of one float. Included by
// reference.cpp.

uint16_t narrow_f16(float x) {
    f16 out;
    narrow(x, out);
    return out.bits;
}
uint16_t narrow_bf16(float x) {
    bf16 out;
    narrow(x, out);
    return out.bits;
}
float widen_f16(uint16_t bits) { return widen(f16{bits}); }
float widen_bf16(uint16_t bits) { return widen(bf16{bits}); }

float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// w: one block, zeros beyond its end. s = the largest over its groups of 32 of range / 225, low / 128, high / 127, where
// the range holds zero; u = range / (15 s) rounded; m such that the 16 levels lie in the middle of the range.
void round_two_level(const float* w, int64_t subs, uint8_t* codes, uint16_t* scale, uint8_t* u_out, uint8_t* m_out) {
    float high[8], low[8], s = 0.0f;
    bool finite = true;
    for (int64_t g = 0; g < subs; g++) {
        high[g] = low[g] = 0.0f;
        for (int64_t i = 0; i < sub_depth; i++) {
            const float v = w[g * sub_depth + i];
            finite = finite && fabsf(v) < INFINITY;
            if (v > high[g]) high[g] = v;
            if (-v > low[g]) low[g] = -v;
        }
        const float least[3] = {(high[g] + low[g]) / 225.0f, low[g] / 128.0f, high[g] / 127.0f};
        for (float candidate : least) s = candidate > s ? candidate : s;
    }
    const uint16_t bits = narrow_f16(s);
    const float rounded = widen_f16(bits), inverse = rounded > 0.0f ? 1.0f / rounded : 0.0f;
    finite = finite && rounded < INFINITY;
    *scale = finite ? bits : uint16_t(0x7e00);
    for (int64_t g = 0; g < subs; g++) {
        const float u = finite ? clamp(round_even((high[g] + low[g]) * inverse * (1.0f / 15.0f)), 1.0f, 15.0f) : 1.0f;
        const float middle = finite ? round_even(7.5f * u - (high[g] - low[g]) * 0.5f * inverse) : 0.0f;
        const float least = 15.0f * u - 127.0f;
        const float m = clamp(middle, least > 0.0f ? least : 0.0f, 128.0f), inverse_u = 1.0f / u;
        u_out[g] = uint8_t(u);
        m_out[g] = uint8_t(m);
        for (int64_t i = g * sub_depth; i < (g + 1) * sub_depth; i++) {
            codes[i] = finite ? uint8_t(clamp(round_even((w[i] * inverse + m) * inverse_u), 0.0f, 15.0f)) : 0;
        }
    }
}

// int4: s = -1/8 of the value that is largest in size, so that it is code 0 exactly or near it. int8: s = largest / 127.
// Scales below 2^-100 are 0.
void round_group(const float* w, int64_t count, bool four_bits, DType dtype, uint8_t* codes, uint16_t* scale) {
    const bool brain = dtype == DType::bf16;
    float high = 0.0f, low = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < count; i++) {
        finite = finite && fabsf(w[i]) < INFINITY;
        if (w[i] > high) high = w[i];
        if (-w[i] > low) low = -w[i];
    }
    float s = four_bits ? (low >= high ? low : -high) / 8.0f : (low >= high ? low : high) / 127.0f;
    if (fabsf(s) < 0x1p-100f) s = 0.0f;
    const uint16_t bits = brain ? narrow_bf16(s) : narrow_f16(s);
    const float rounded = brain ? widen_bf16(bits) : widen_f16(bits), inverse = rounded != 0.0f ? 1.0f / rounded : 0.0f;
    finite = finite && fabsf(rounded) < INFINITY;
    *scale = finite ? bits : uint16_t(brain ? 0x7fc0 : 0x7e00);
    for (int64_t i = 0; i < count; i++) {
        const float q = finite ? w[i] * inverse : 0.0f;
        if (four_bits) codes[i] = uint8_t(clamp(round_even(q) + 8.0f, 0.0f, 15.0f));
        else codes[i] = uint8_t(int8_t(clamp(round_even(q), -127.0f, 127.0f)));
    }
}

// ---- by search ------------------------------------------------------------------------------------------------

namespace one_lane {

#define INLINE inline
using vec = float;
using mask = bool;
constexpr int64_t lanes = 1;
constexpr float infinity = INFINITY;
struct bytes {
    int8_t byte[sub_depth];
};

vec zero() { return 0.0f; }
vec set1(float x) { return x; }
vec load(const float* p) { return *p; }
void store(float* p, vec x) { *p = x; }
void store_u16(uint16_t* p, uint16_t x) { *p = x; }
vec fma(vec a, vec b, vec c) { return fmaf(a, b, c); }
vec min(vec a, vec b) { return a < b ? a : b; }
vec max(vec a, vec b) { return a > b ? a : b; }
vec abs(vec x) { return fabsf(x); }
vec sqrt(vec x) { return sqrtf(x); }
vec round(vec x) { return fabsf(x) < 0x1p22f ? copysignf(round_even(fabsf(x)), x) : x; }
vec max_size(vec a, vec b) { return from_bits(to_bits(a) > to_bits(b) ? to_bits(a) : to_bits(b)); }
mask less(vec a, vec b) { return a < b; }
mask equal(vec a, vec b) { return a == b; }
mask both(mask a, mask b) { return a && b; }
vec select(mask m, vec yes, vec no) { return m ? yes : no; }
bytes round_bytes(const vec* x) {
    bytes b;
    for (int64_t i = 0; i < sub_depth; i++) b.byte[i] = int8_t(x[i]);
    return b;
}
void store(void* p, const bytes& b) { memcpy(p, b.byte, sizeof b.byte); }

template <class T>
void padded_block(const T* in, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i++) out[i] = widen(in[i]);
}

#include "search.inl"

}  // namespace one_lane

void quantize_weight(const QuantizeWeightArgs& a, int64_t begin, int64_t end) {
    if (a.search || a.format.zero != Zero::none) return one_lane::search_weight(a, begin, end);
    const int64_t depth = round_up(a.k, tile_depth), group = a.format.group;
    with_type(a.dtype, [&](auto type) {
        auto* weight = static_cast<const typename decltype(type)::type*>(a.weight);
        for (int64_t r = begin; r < end; r++) {
            uint8_t* codes = a.out.codes + r * depth;
            uint16_t* scales = a.out.scales + r * ((depth + group - 1) / group);
            for (int64_t from = 0; from < depth; from += block_depth) {
                const int64_t count = depth - from < block_depth ? depth - from : block_depth;
                float w[block_depth];
                for (int64_t i = 0; i < count; i++) w[i] = from + i < a.k ? widen(weight[r * a.k + from + i]) : 0.0f;
                if (a.format.packing == Packing::int4_two_level) {
                    const int64_t sub = (r * depth + from) / sub_depth;
                    round_two_level(w, count / sub_depth, codes + from, scales + from / group, a.out.subscales + sub,
                                    a.out.minima + sub);
                    continue;
                }
                for (int64_t g = 0; g < count; g += group) {
                    round_group(w + g, count - g < group ? count - g : group, a.format.packing == Packing::int4,
                                a.format.scale_dtype, codes + from + g, scales + (from + g) / group);
                }
            }
        }
    });
}
