// Activations and weights to integer codes, codes into panels and back, over the vocabulary of vec_*.h: the arithmetic of
// reference_packed.inl and reference_rounding.inl, operation by operation, so every tier makes the same bits.

constexpr int64_t sub_vecs = sub_depth / lanes;

INLINE bool all_finite(vec size) { return bits(less(size, set1(infinity))) == ~0u >> (32 - lanes); }

// ---- activations ----------------------------------------------------------------------------------------------

constexpr int64_t fetched_ahead = 512;  // floats

// The sum of 16 codes.
INLINE int16_t sum16(const int8_t* codes) {
    int sum = 0;
    for (int64_t i = 0; i < 16; i++) sum += codes[i];
    return int16_t(sum);
}

// tile_step: from the first of 64 codes to the first of the next 64. sums may be null; halves: they are of 16 codes.
INLINE void quantize_block(const float* x, int64_t subs, int8_t* codes, int64_t tile_step, float* scale, int16_t* sums, bool halves) {
    vec size = zero(), size1 = zero();
    for (int64_t i = 0; i < subs * sub_depth; i += 2 * lanes) {
        size = max_size(abs(load(x + i)), size);
        size1 = max_size(abs(load(x + i + lanes)), size1);
        for (int64_t j = 0; j < 2 * lanes; j += 16) __builtin_prefetch(x + i + j + fetched_ahead);
    }
    size = max_size(size, size1);
    const bool finite = all_finite(size);
    const float largest = finite ? reduce_max(size) : 0.0f;
    if (!(largest >= 0x1p-100f)) {
        *scale = finite ? 0.0f : __builtin_nanf("");
        for (int64_t sub = 0; sub < subs; sub += 2) __builtin_memset(codes + sub / 2 * tile_step, 0, tile_depth);
        if (sums) __builtin_memset(sums, 0, size_t(subs) * (halves ? 2 : 1) * sizeof(int16_t));
        return;
    }
    *scale = largest / 127.0f;
    const vec inverse = set1(127.0f / largest);
    for (int64_t sub = 0; sub < subs; sub++) {
        vec v[sub_vecs];
        for (int64_t i = 0; i < sub_vecs; i++) v[i] = load(x + sub * sub_depth + i * lanes) * inverse;
        const bytes b = round_bytes(v);
        int8_t* to = codes + sub / 2 * tile_step + sub % 2 * sub_depth;
        store(to, b);
        if (!sums) continue;
        if (halves) sums[2 * sub] = sum16(to), sums[2 * sub + 1] = sum16(to + 16);
        else sums[sub] = int16_t(sum(b));
    }
}

// The next block of a row as floats, zeros from its end to a multiple of tile_depth; the number of its sub-blocks.
template <class T>
INLINE int64_t padded_block(const T* in, int64_t count, float* out) {
    each(0, count, [&](int64_t i, auto n) { store(out + i, load(in + i, n), n); });
    const int64_t depth = round_up(count, tile_depth);
    for (int64_t i = count; i < depth; i++) out[i] = 0.0f;
    return depth / sub_depth;
}

void quantize(const QuantizeArgs& a, int64_t begin, int64_t end) {
    const int64_t blocks = (a.k + block_depth - 1) / block_depth, row_sums = round_up(a.k, tile_depth) / a.sum_depth;
    const bool halves = a.sum_depth != sub_depth;
    const int64_t tile_step = a.tiled ? code_tile_rows * tile_depth : tile_depth;
    for (int64_t r = begin; r < end; r++) {
        for (int64_t b = 0; b < blocks; b++) {
            const float* x = a.x + r * a.x_stride + b * block_depth;
            int8_t* codes = a.codes + code_index(a, r, b * block_depth);
            float* scale = a.scales + scale_index(a, r, b);
            int16_t* sums = a.sums ? a.sums + r * row_sums + b * (block_depth / a.sum_depth) : nullptr;
            if ((b + 1) * block_depth <= a.k) {
                quantize_block(x, block_depth / sub_depth, codes, tile_step, scale, sums, halves);
            } else {
                alignas(64) float padded[block_depth];
                const int64_t rest = padded_block(x, a.k - b * block_depth, padded);
                quantize_block(padded, rest, codes, tile_step, scale, sums, halves);
            }
        }
    }
    if (!a.tiled || end != a.rows) return;
    for (int64_t r = a.rows; r % code_tile_rows != 0; r++) {
        for (int64_t i = 0; i < a.k; i += tile_depth) __builtin_memset(a.codes + code_index(a, r, i), 0, tile_depth);
        for (int64_t b = 0; b < blocks; b++) a.scales[scale_index(a, r, b)] = 0.0f;
    }
}

// ---- weights ---------------------------------------------------------------------------------------------------

struct Range {
    float high, low;  // the largest w and -w, at least 0
    bool finite;
};

INLINE Range range_of(const float* w, int64_t count) {
    vec high = zero(), low = zero(), size = zero();
    for (int64_t i = 0; i < count; i += lanes) {
        const vec v = load(w + i);
        high = max(v, high);
        low = max(zero() - v, low);
        size = max_size(abs(v), size);
    }
    return {reduce_max(high), reduce_max(low), all_finite(size)};
}

// s as stored, and widened again; what is below 2^-100 is 0.
INLINE float round_scale(float s, DType dtype, uint16_t* bits) {
    const vec small = set1(__builtin_fabsf(s) < 0x1p-100f ? 0.0f : s);
    uint16_t rounded[lanes];
    float wide[lanes];
    if (dtype == DType::bf16) store_u16(rounded, narrow_bf16(small));
    else store_u16(rounded, narrow_f16(small));
    store(wide, dtype == DType::bf16 ? widen_bf16(load_u16(rounded)) : widen_f16(load_u16(rounded)));
    *bits = rounded[0];
    return wide[0];
}

constexpr uint16_t nan_bits(DType dtype) { return dtype == DType::bf16 ? 0x7fc0 : 0x7e00; }

INLINE void round_two_level(const float* w, int64_t subs, uint8_t* codes, uint16_t* scale, uint8_t* u_out, uint8_t* m_out) {
    float high[8], low[8], u[8], m[8], inverse_u[8];
    bool finite = true;
    for (int64_t g = 0; g < subs; g++) {
        const Range range = range_of(w + g * sub_depth, sub_depth);
        high[g] = range.high;
        low[g] = range.low;
        finite = finite && range.finite;
    }
    vec s = zero();
    each(0, subs, [&](int64_t g, auto n) {
        const vec h = load(high + g, n), l = load(low + g, n);
        s = max(s, max((h + l) / set1(225.0f), max(l / set1(128.0f), h / set1(127.0f))));
    });
    const float rounded = round_scale(reduce_max(s), DType::f16, scale);
    if (!(finite && rounded < infinity)) {
        *scale = nan_bits(DType::f16);
        __builtin_memset(codes, 0, size_t(subs * sub_depth));
        __builtin_memset(u_out, 1, size_t(subs));
        __builtin_memset(m_out, 0, size_t(subs));
        return;
    }
    const vec inverse = set1(rounded > 0.0f ? 1.0f / rounded : 0.0f);
    each(0, subs, [&](int64_t g, auto n) {
        const vec h = load(high + g, n), l = load(low + g, n);
        const vec steps = min(set1(15.0f), max(set1(1.0f), round((h + l) * inverse * set1(1.0f / 15.0f))));
        const vec middle = round(set1(7.5f) * steps - (h - l) * set1(0.5f) * inverse);
        const vec least = max(set1(15.0f) * steps - set1(127.0f), zero());
        store(u + g, steps, n);
        store(inverse_u + g, set1(1.0f) / steps, n);
        store(m + g, min(set1(128.0f), max(least, middle)), n);
    });
    for (int64_t g = 0; g < subs; g++) {
        u_out[g] = uint8_t(u[g]);
        m_out[g] = uint8_t(m[g]);
        vec q[sub_vecs];
        for (int64_t i = 0; i < sub_vecs; i++) {
            q[i] = (load(w + g * sub_depth + i * lanes) * inverse + set1(m[g])) * set1(inverse_u[g]);
        }
        store(codes + g * sub_depth, clamp(round_bytes(q), 0, 15));
    }
}

INLINE void round_group(const float* w, int64_t count, bool four_bits, DType dtype, uint8_t* codes, uint16_t* scale) {
    const Range r = range_of(w, count);
    const float s = four_bits ? (r.low >= r.high ? r.low : -r.high) / 8.0f : (r.low >= r.high ? r.low : r.high) / 127.0f;
    const float rounded = round_scale(s, dtype, scale);
    if (!(r.finite && __builtin_fabsf(rounded) < infinity)) {
        *scale = nan_bits(dtype);
        __builtin_memset(codes, four_bits ? 8 : 0, size_t(count));
        return;
    }
    const vec inverse = set1(rounded != 0.0f ? 1.0f / rounded : 0.0f);
    for (int64_t g = 0; g < count; g += sub_depth) {
        vec q[sub_vecs];
        for (int64_t i = 0; i < sub_vecs; i++) q[i] = load(w + g + i * lanes) * inverse;
        const bytes b = round_bytes(q);
        store(codes + g, four_bits ? add(clamp(b, -8, 7), 8) : clamp(b, -127, 127));
    }
}

#include "search.inl"

void quantize_weight(const QuantizeWeightArgs& a, int64_t begin, int64_t end) {
    if (a.search || a.format.zero != Zero::none) return search_weight(a, begin, end);
    const int64_t depth = round_up(a.k, tile_depth), group = a.format.group;
    with_type(a.dtype, [&](auto type) {
        auto* weight = static_cast<const typename decltype(type)::type*>(a.weight);
        for (int64_t r = begin; r < end; r++) {
            uint8_t* codes = a.out.codes + r * depth;
            uint16_t* scales = a.out.scales + r * ((depth + group - 1) / group);
            for (int64_t from = 0; from < depth; from += block_depth) {
                alignas(64) float w[block_depth];
                const int64_t subs = padded_block(weight + r * a.k + from, a.k - from < block_depth ? a.k - from : block_depth, w);
                if (a.format.packing == Packing::int4_two_level) {
                    const int64_t sub = (r * depth + from) / sub_depth;
                    round_two_level(w, subs, codes + from, scales + from / group, a.out.subscales + sub, a.out.minima + sub);
                    continue;
                }
                for (int64_t g = 0; g < subs * sub_depth; g += group) {
                    const int64_t count = subs * sub_depth - g < group ? subs * sub_depth - g : group;
                    round_group(w + g, count, a.format.packing == Packing::int4, a.format.scale_dtype, codes + from + g,
                                scales + (from + g) / group);
                }
            }
        }
    });
}

// ---- packing ---------------------------------------------------------------------------------------------------

INLINE uint32_t load_word(const uint8_t* p) {
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return word;
}

// The row that column j of a panel holds, or -1 past the end.
INLINE int64_t panel_row(int64_t panel, int64_t column, int64_t n, bool gated) {
    if (!gated) return panel * panel_outputs + column < n ? panel * panel_outputs + column : -1;
    const int64_t i = panel * 16 + column % 16;
    return i < n / 2 ? i + column / 16 * (n / 2) : -1;
}

// Column `column` of a block's header, from the row at `row`; `from` is the block's first code, `subs` its sub-blocks.
INLINE void pack_header(const PackArgs& a, uint8_t* header, int64_t column, int64_t row, int64_t from, int64_t subs) {
    const WeightFormat& f = a.format;
    const int64_t depth = round_up(a.k, tile_depth), shared = scale_depth(f), row_groups = (depth + shared - 1) / shared;
    uint8_t* zeros = header + block_depth / shared * panel_outputs * 2;
    for (int64_t g = 0; g * shared < subs * sub_depth; g++) {
        const int64_t at = g * panel_outputs + column, source = row * row_groups + from / shared + g;
        __builtin_memcpy(header + at * 2, a.in.scales + source, 2);
        if (f.zero == Zero::integer) zeros[at] = static_cast<const uint8_t*>(a.in.zeros)[source];
        if (f.zero == Zero::real) __builtin_memcpy(zeros + at * 2, static_cast<const uint16_t*>(a.in.zeros) + source, 2);
    }
    for (int64_t k = 0; of_k(f.packing) && k < subs * sub_depth; k += f.group) {
        const int64_t source = (row * depth + from + k) / f.group, at = k_index(f, k, column);
        header[k_scales_at(f) + at] = a.in.subscales[source];
        if (f.zero == Zero::real) header[k_minima_at(f) + at] = a.in.minima[source];
    }
    if (f.packing != Packing::int4_two_level) return;
    const uint8_t* u = a.in.subscales + (row * depth + from) / sub_depth;
    const uint8_t* m = a.in.minima + (row * depth + from) / sub_depth;
    for (int64_t t = 0; t < subs / 2; t++) {
        header[64 + t * 32 + column] = uint8_t(u[2 * t] | u[2 * t + 1] << 4);
        __builtin_memcpy(header + 192 + t * 64 + column * 2, m + 2 * t, 2);
    }
}

void pack(const PackArgs& a, int64_t begin, int64_t end) {
    const WeightFormat& f = a.format;
    const int64_t depth = round_up(a.k, tile_depth);
    alignas(64) const uint8_t none[block_depth] = {};  // the codes of padding
    for (int64_t panel = begin; panel < end; panel++) {
        uint8_t* header = a.panels + panel * panel_bytes(f, a.k);
        for (int64_t from = 0; from < depth; from += block_depth, header += block_bytes(f)) {
            const int64_t tiles = (depth - from < block_depth ? depth - from : block_depth) / tile_depth;
            __builtin_memset(header, 0, size_t(header_bytes(f)));
            for (int64_t half = 0; half < 2; half++) {
                const uint8_t* codes[16];
                for (int64_t j = 0; j < 16; j++) {
                    const int64_t row = panel_row(panel, half * 16 + j, a.n, a.gated);
                    codes[j] = row < 0 ? none : a.in.codes + row * depth + from;
                    if (row >= 0) pack_header(a, header, half * 16 + j, row, from, tiles * 2);
                }
                for (int64_t t = 0; t < tiles; t++) {
                    uint8_t* lines = header + header_bytes(f) + t * tile_bytes(f.packing) + half * (tile_bytes(f.packing) / 2);
                    for (int64_t l = 0; l < (eight_bits(f.packing) ? 16 : 8); l++) {
                        for (int64_t j = 0; j < 16; j++) {
                            const uint8_t* c = codes[j] + t * tile_depth + l * 4;
                            const uint32_t word = eight_bits(f.packing) ? load_word(c) : load_word(c) | load_word(c + 32) << 4;
                            __builtin_memcpy(lines + l * 64 + j * 4, &word, sizeof word);
                        }
                    }
                }
            }
        }
    }
}

void unpack(const UnpackArgs& a, int64_t begin, int64_t end) {
    const WeightFormat& f = a.format;
    const bool bytes = eight_bits(f.packing), two_level = f.packing == Packing::int4_two_level;
    const int64_t shared = scale_depth(f), run = sum_depth(f);  // what one scale, and one zero, are good for
    for (int64_t r = begin; r < end; r++) {
        const int64_t half = a.gated ? a.n / 2 : a.n, i = a.ids[r] < half ? a.ids[r] : a.ids[r] - half;
        const int64_t panel = a.gated ? i / 16 : i / panel_outputs;
        const int64_t column = a.gated ? i % 16 + (a.ids[r] < half ? 0 : 16) : i % panel_outputs;
        for (int64_t from = 0; from < a.k; from += tile_depth) {
            const uint8_t* header = a.panels + panel * panel_bytes(f, a.k) + from / block_depth * block_bytes(f);
            const int64_t t = from % block_depth / tile_depth;
            const uint8_t* lines = header + header_bytes(f) + t * tile_bytes(f.packing) +
                                   column / 16 * (tile_bytes(f.packing) / 2) + column % 16 * 4;
            alignas(64) uint8_t codes[tile_depth];
            for (int64_t l = 0; l < (bytes ? 16 : 8); l++) {
                const uint32_t word = load_word(lines + l * 64), low = bytes ? word : word & 0x0f0f0f0fu;
                const uint32_t high = word >> 4 & 0x0f0f0f0fu;
                __builtin_memcpy(codes + l * 4, &low, 4);
                if (!bytes) __builtin_memcpy(codes + 32 + l * 4, &high, 4);
            }
            for (int64_t inner = 0; inner < tile_depth && from + inner < a.k; inner += run) {
                const int64_t k = t * tile_depth + inner, sub = inner / sub_depth, at = k / shared * panel_outputs + column;
                const uint8_t* zeros = header + block_depth / shared * panel_outputs * 2;
                auto real = [&](const uint8_t* p) {
                    uint16_t bits;
                    __builtin_memcpy(&bits, p, 2);
                    float wide[lanes];
                    const f16 half_bits{bits};
                    const bf16 brain_bits{bits};
                    store(wide, f.scale_dtype == DType::bf16 ? load(&brain_bits, 1) : load(&half_bits, 1));
                    return wide[0];
                };
                const uint8_t u = header[64 + t * 32 + column];
                float s = real(header + at * 2), added = f.zero == Zero::real ? real(zeros + at * 2) : 0.0f;
                if (of_k(f.packing)) {
                    s = s * float(int8_t(header[k_scales_at(f) + k_index(f, k, column)]));
                    if (f.zero == Zero::real) added = -(added * float(header[k_minima_at(f) + k_index(f, k, column)]));
                }
                const vec scale = set1(s), b = set1(added);
                const vec step = set1(!two_level ? 1.0f : float(sub ? u >> 4 : u & 15));
                const vec zero_code = set1(two_level               ? float(header[192 + t * 64 + column * 2 + sub])
                                           : f.zero == Zero::none    ? (bytes ? 0.0f : 8.0f)
                                           : f.zero == Zero::real    ? 0.0f
                                           : bytes                   ? float(int8_t(zeros[at]))
                                                                     : float(zeros[at]));
                float* out = a.out + r * a.k + from + inner;
                const int64_t count = a.k - from - inner < run ? a.k - from - inner : run;
                each(0, count, [&](int64_t j, auto n) {
                    const uint8_t* c = codes + inner + j;
                    const vec code = bytes ? load(reinterpret_cast<const int8_t*>(c)) : load(c);
                    const vec value = (code * step - zero_code) * scale;
                    store(out + j, f.zero == Zero::real ? value + b : value, n);
                });
            }
        }
    }
}
