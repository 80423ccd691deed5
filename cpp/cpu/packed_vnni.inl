// Products with packed integer weights (packed.h) by vpdpbusd, which multiplies unsigned bytes, here weights, with signed
// ones, here activations. Weights get there by adding an offset (a code's zero, or 128), which is taken back by sums of
// activations. Sums of integers are exact in any order, so few rows and many, in this file's two ways, agree to the bit.

using ivec = __m512i;

// Up to untiled_rows weights go from their panels to registers.
// Bytes; a panel is one stream, and the next panel of the piece follows it. What hides the memory's delay for one row is
// soon too far for lines of 8 bits, of which twice as many are on their way.
constexpr int64_t prefetch_ahead(Packing packing, int64_t rows) {
    return (packing == Packing::int8 ? 1024 : 2048) * (rows == 1 ? 1 : 2);
}

// To the second-level cache: the first level's few buffers would be full of what is on its way. One row of int8 does so
// little with a line that it fares better without the detour.
template <Packing packing, int64_t rows>
INLINE void fetch_ahead(const uint8_t* line) {
    constexpr int64_t ahead = prefetch_ahead(packing, rows);
    if (packing == Packing::int8 && rows == 1) __builtin_prefetch(line + ahead);
    else __builtin_prefetch(line + ahead, 0, 2);
}

INLINE ivec load_line(const void* p) { return _mm512_loadu_si512(p); }
INLINE ivec broadcast4(const void* p) {  // four bytes, or two 16-bit sums
    int32_t bits;
    __builtin_memcpy(&bits, p, 4);
    return _mm512_set1_epi32(bits);
}
INLINE ivec widen_u8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
INLINE ivec widen_i8(const uint8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
INLINE ivec low_nibbles(ivec line) { return _mm512_and_si512(line, _mm512_set1_epi8(15)); }
INLINE ivec high_nibbles(ivec line) { return low_nibbles(_mm512_srli_epi16(line, 4)); }
// The low and the high 16 bits of each lane.
INLINE ivec pairs(ivec low, ivec high) {
    return _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(high, 16));
}

// ---- a block's header, for 16 outputs of a panel ----------------------------------------------------------------

struct Header {
    const WeightFormat& f;
    const uint8_t* at;

    INLINE vec reals(int64_t offset) const {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + offset));
        return f.scale_dtype == DType::bf16 ? widen_bf16(bits) : widen_f16(bits);
    }
    INLINE int64_t zeros_at() const { return block_depth / f.group * panel_outputs * 2; }
    INLINE vec scales(int64_t group, int64_t column) const { return reals((group * 2 + column) * 32); }
    INLINE vec real_zeros(int64_t group, int64_t column) const { return reals(zeros_at() + (group * 2 + column) * 32); }
    // What the weight as an unsigned byte has too much, negative, i32; not of two levels.
    INLINE ivec offsets(int64_t group, int64_t column) const {
        const uint8_t* zeros = at + zeros_at() + (group * 2 + column) * 16;
        if (f.packing == Packing::int8) {
            const ivec high = _mm512_set1_epi32(-128);
            return f.zero == Zero::integer ? _mm512_sub_epi32(high, widen_i8(zeros)) : high;
        }
        if (f.zero == Zero::integer) return _mm512_sub_epi32(_mm512_setzero_si512(), widen_u8(zeros));
        return _mm512_set1_epi32(f.zero == Zero::none ? -8 : 0);
    }
    // u of the 32 codes in a tile's low or high nibbles, in both 16-bit halves of each lane.
    INLINE ivec both_subscales(int64_t tile, int64_t column) const { return widen_u8(at + 64 + (tile * 2 + column) * 16); }
    INLINE void subscales(int64_t tile, int64_t column, ivec& low, ivec& high) const {
        const ivec both = both_subscales(tile, column);
        const ivec l = low_nibbles(both), h = _mm512_srli_epi32(both, 4);
        low = _mm512_or_si512(l, _mm512_slli_epi32(l, 16));
        high = _mm512_or_si512(h, _mm512_slli_epi32(h, 16));
    }
    INLINE ivec minima(int64_t tile, int64_t column) const {  // m of both, 16 bits each
        const uint8_t* p = at + 192 + (tile * 2 + column) * 32;
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
};

// ---- writing ----------------------------------------------------------------------------------------------------

// Gates and ups of a row in a panel, with their biases; the first `count` count.
INLINE vec gate_row(const PackedLinearArgs& a, int64_t panel, vec x, vec up, int64_t count) {
    const float* bias = a.bias ? a.bias + panel * 16 : nullptr;
    if (bias) x = x + load(bias, count), up = up + load(bias + a.n / 2, count);
    return with_kind(a.kind, [&](auto kind) __attribute__((always_inline)) { return gate<kind.value>(x, up); });
}

// A row's 32 sums of a panel. Not inlined: it is called once a row.
__attribute__((noinline)) void write_row(const PackedLinearArgs& a, int64_t panel, int64_t m, vec first, vec second) {
    const int64_t outputs = a.gated ? a.n / 2 : a.n, i = panel * (a.gated ? 16 : 32);
    float* out = a.out + m * a.out_stride + i;
    const int64_t left = outputs - i, count = left < 16 ? left : 16;
    if (a.gated) return store(out, gate_row(a, panel, first, second, count), count);
    const float* residual = a.residual ? a.residual + m * a.out_stride + i : nullptr;
    if (a.bias) first = first + load(a.bias + i, count);
    if (residual) first = first + load(residual, count);
    store(out, first, count);
    if (left <= 16) return;
    const int64_t rest = left < 32 ? left - 16 : 16;
    if (a.bias) second = second + load(a.bias + i + 16, rest);
    if (residual) second = second + load(residual + 16, rest);
    store(out + 16, second, rest);
}

// ---- few rows: bound by reading the weights ------------------------------------------------------------------------

// A panel of two levels. Codes are multiplied as they lie in their byte, the high ones 16 times as large, and u multiplies
// the sums of 32: less work a line than weights of two levels are, and all of it exact, since no sum that is converted to
// f32 passes 2^24.
template <int64_t rows>
void few_rows_two_level(const PackedLinearArgs& a, int64_t panel) {
    constexpr Packing packing = Packing::int4_two_level;
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth, subs = depth / sub_depth;
    const ivec low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(int8_t(0xf0));
    const uint8_t* line = a.weight + panel * panel_bytes(a.format, a.k);
    vec acc[rows][2];
    for (int64_t m = 0; m < rows; m++) acc[m][0] = acc[m][1] = zero();
    for (int64_t block = 0; block < blocks; block++) {
        const Header header{a.format, line};
        for (int64_t i = 0; i < header_bytes(a.format); i += 64) fetch_ahead<packing, rows>(line + i);
        line += header_bytes(a.format);
        const int64_t left = (depth - block * block_depth) / tile_depth, tiles = left < 4 ? left : 4;
        vec sums[rows][2];
        ivec less[rows][2];
        for (int64_t m = 0; m < rows; m++) {
            sums[m][0] = sums[m][1] = zero();
            less[m][0] = less[m][1] = _mm512_setzero_si512();
        }
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t k = block * block_depth + tile * tile_depth;
#pragma GCC unroll 2
            for (int64_t c = 0; c < 2; c++) {
                ivec part[rows][2];
                for (int64_t m = 0; m < rows; m++) part[m][0] = part[m][1] = _mm512_setzero_si512();
#pragma GCC unroll 8
                for (int64_t l = 0; l < 8; l++, line += 64) {
                    fetch_ahead<packing, rows>(line);
                    const ivec bytes = load_line(line), w_low = _mm512_and_si512(bytes, low), w_high = _mm512_and_si512(bytes, high);
#pragma GCC unroll 4
                    for (int64_t m = 0; m < rows; m++) {
                        const int8_t* x = a.codes + m * a.codes_stride + k + l * 4;
                        part[m][0] = _mm512_dpbusd_epi32(part[m][0], w_low, broadcast4(x));
                        part[m][1] = _mm512_dpbusd_epi32(part[m][1], w_high, broadcast4(x + 32));
                    }
                }
                const ivec u = header.both_subscales(tile, c), minima = header.minima(tile, c);
                const vec u_low = _mm512_cvtepi32_ps(_mm512_and_si512(u, low));
                const vec u_high = _mm512_cvtepi32_ps(_mm512_and_si512(u, high)) * set1(0x1p-8f);
                for (int64_t m = 0; m < rows; m++) {
                    less[m][c] = _mm512_dpwssd_epi32(less[m][c], minima, broadcast4(a.sums + m * subs + k / sub_depth));
                    sums[m][c] = fma(_mm512_cvtepi32_ps(part[m][0]), u_low, sums[m][c]);
                    sums[m][c] = fma(_mm512_cvtepi32_ps(part[m][1]), u_high, sums[m][c]);
                }
            }
        }
        for (int64_t m = 0; m < rows; m++) {
            const vec x_scale = set1(a.scales[m * blocks + block]);
            for (int64_t c = 0; c < 2; c++) {
                acc[m][c] = fma(sums[m][c] - _mm512_cvtepi32_ps(less[m][c]), header.scales(0, c) * x_scale, acc[m][c]);
            }
        }
    }
    for (int64_t m = 0; m < rows; m++) write_row(a, panel, m, acc[m][0], acc[m][1]);
}

// One panel, each line of both columns of a tile multiplied as it comes. The two 32 codes of a tile have sums of their
// own: narrow groups (of 32) need them so, and one row would wait for its own sums otherwise.
template <Packing packing, bool narrow, int64_t rows>
void few_rows_panel(const PackedLinearArgs& a, int64_t panel) {
    constexpr bool two_level = packing == Packing::int4_two_level;
    constexpr int64_t parts = narrow || rows <= 4 ? 2 : 1;
    constexpr int64_t column_bytes = tile_bytes(packing) / 2;
    const int64_t depth = round_up(a.k, tile_depth), subs = depth / sub_depth, blocks = (a.k + block_depth - 1) / block_depth;
    const int64_t header_size = header_bytes(a.format), group_tiles = narrow ? 1 : a.format.group / tile_depth;
    const bool real = !two_level && a.format.zero == Zero::real;
    const uint8_t* line = a.weight + panel * panel_bytes(a.format, a.k);
    vec acc[rows][2];
    for (int64_t m = 0; m < rows; m++) acc[m][0] = acc[m][1] = zero();
    for (int64_t block = 0; block < blocks; block++) {
        const Header header{a.format, line};
        for (int64_t i = 0; i < header_size; i += 64) fetch_ahead<packing, rows>(line + i);
        line += header_size;
        const int64_t left = (depth - block * block_depth) / tile_depth, tiles = left < 4 ? left : 4;
        ivec sums[rows][2][parts];  // column, 32 codes
        int32_t x_sums[rows][2] = {};
        for (int64_t tile = 0; tile < tiles; tile++, line += 2 * column_bytes) {
            const int64_t k = block * block_depth + tile * tile_depth;
            if (narrow || tile % group_tiles == 0) {
                for (int64_t m = 0; m < rows; m++) {
                    for (int64_t i = 0; i < 2 * parts; i++) sums[m][i / parts][i % parts] = _mm512_setzero_si512();
                    x_sums[m][0] = x_sums[m][1] = 0;
                }
            }
            ivec u[2][2];
            for (int64_t c = 0; c < 2; c++) {
                ivec offsets[2];
                if (two_level) {
                    header.subscales(tile, c, u[c][0], u[c][1]);
                    offsets[0] = _mm512_sub_epi16(_mm512_setzero_si512(), header.minima(tile, c));
                } else if (narrow) {
                    const ivec low = header.offsets(2 * tile, c), high = header.offsets(2 * tile + 1, c), none = _mm512_setzero_si512();
                    offsets[0] = pairs(low, none), offsets[1] = pairs(none, high);
                } else {
                    const ivec both = header.offsets(tile / group_tiles, c);
                    offsets[0] = pairs(both, both);
                }
                for (int64_t m = 0; m < rows; m++) {
                    const ivec x = broadcast4(a.sums + m * subs + k / sub_depth);
                    sums[m][c][0] = _mm512_dpwssd_epi32(sums[m][c][0], offsets[0], x);
                    if (narrow) sums[m][c][parts - 1] = _mm512_dpwssd_epi32(sums[m][c][parts - 1], offsets[1], x);
                }
            }
            if (rows == 1) {  // line by line, as they lie
#pragma GCC unroll 2
                for (int64_t c = 0; c < 2; c++) {
#pragma GCC unroll 16
                    for (int64_t l = 0; l < column_bytes / 64; l++) {
                        const uint8_t* at = line + c * column_bytes + l * 64;
                        const int8_t* x = a.codes + k + l * 4;
                        fetch_ahead<packing, rows>(at);
                        if (packing == Packing::int8) {
                            const ivec w = _mm512_xor_si512(load_line(at), _mm512_set1_epi8(-128));
                            sums[0][c][l / 8] = _mm512_dpbusd_epi32(sums[0][c][l / 8], w, broadcast4(x));
                            continue;
                        }
                        const ivec low = low_nibbles(load_line(at)), high = high_nibbles(load_line(at));
                        sums[0][c][0] = _mm512_dpbusd_epi32(sums[0][c][0], low, broadcast4(x));
                        sums[0][c][1] = _mm512_dpbusd_epi32(sums[0][c][1], high, broadcast4(x + 32));
                    }
                }
            } else
#pragma GCC unroll 8
            for (int64_t l = 0; l < 8; l++) {
                ivec w[2][2];
                for (int64_t i = 0; i < column_bytes / 256; i++) {  // in the order of memory: 92 % of the bandwidth against 78
                    fetch_ahead<packing, rows>(line + (column_bytes / 256 * l + i) * 64);
                }
#pragma GCC unroll 2
                for (int64_t c = 0; c < 2; c++) {
                    const uint8_t* at = line + c * column_bytes + l * 64;
                    if (packing == Packing::int8) {
                        w[c][0] = _mm512_xor_si512(load_line(at), _mm512_set1_epi8(-128));
                        w[c][1] = _mm512_xor_si512(load_line(at + 512), _mm512_set1_epi8(-128));
                    } else {
                        w[c][0] = low_nibbles(load_line(at));
                        w[c][1] = high_nibbles(load_line(at));
                    }
                    if (!two_level) continue;
                    w[c][0] = _mm512_mullo_epi16(w[c][0], u[c][0]);
                    w[c][1] = _mm512_mullo_epi16(w[c][1], u[c][1]);
                }
#pragma GCC unroll 8
                for (int64_t m = 0; m < rows; m++) {
                    const int8_t* x = a.codes + m * a.codes_stride + k + 4 * l;
                    const ivec low = broadcast4(x), high = broadcast4(x + 32);
#pragma GCC unroll 2
                    for (int64_t c = 0; c < 2; c++) {
                        sums[m][c][0] = _mm512_dpbusd_epi32(sums[m][c][0], w[c][0], low);
                        sums[m][c][parts - 1] = _mm512_dpbusd_epi32(sums[m][c][parts - 1], w[c][1], high);
                    }
                }
            }
            if (real) {
                for (int64_t m = 0; m < rows; m++) {
                    for (int64_t i = 0; i < 2; i++) x_sums[m][narrow ? i : 0] += a.sums[m * subs + k / sub_depth + i];
                }
            }
            if (!narrow && tile % group_tiles != group_tiles - 1 && tile != tiles - 1) continue;
            for (int64_t i = 0; i < (narrow ? 2 : 1); i++) {
                const int64_t group = narrow ? 2 * tile + i : tile / group_tiles;
                for (int64_t c = 0; c < 2; c++) {
                    const vec scale = header.scales(group, c);
                    for (int64_t m = 0; m < rows; m++) {
                        const vec x_scale = set1(a.scales[m * blocks + block]);
                        const ivec sum = narrow || parts == 1 ? sums[m][c][i] : _mm512_add_epi32(sums[m][c][0], sums[m][c][1]);
                        acc[m][c] = fma(_mm512_cvtepi32_ps(sum), scale * x_scale, acc[m][c]);
                        if (!real) continue;
                        acc[m][c] = fma(set1(float(x_sums[m][i])), header.real_zeros(group, c) * x_scale, acc[m][c]);
                    }
                }
            }
        }
    }
    for (int64_t m = 0; m < rows; m++) write_row(a, panel, m, acc[m][0], acc[m][1]);
}

template <Packing packing, bool narrow, int64_t rows>
INLINE void few_rows_of(const PackedLinearArgs& a, int64_t panel) {
    if constexpr (packing == Packing::int4_two_level && rows <= 4) few_rows_two_level<rows>(a, panel);
    else few_rows_panel<packing, narrow, rows>(a, panel);
}

template <Packing packing, bool narrow>
void few_rows(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
        switch (a.rows) {
            case 1: few_rows_of<packing, narrow, 1>(a, panel); break;
            case 2: few_rows_of<packing, narrow, 2>(a, panel); break;
            case 3: few_rows_of<packing, narrow, 3>(a, panel); break;
            case 5: few_rows_of<packing, narrow, 5>(a, panel); break;
            case 6: few_rows_of<packing, narrow, 6>(a, panel); break;
            case 7: few_rows_of<packing, narrow, 7>(a, panel); break;
            case 8: few_rows_of<packing, narrow, 8>(a, panel); break;
            default: few_rows_of<packing, narrow, 4>(a, panel); break;
        }
    }
}
