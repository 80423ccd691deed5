// Products with packed integer weights (packed.h) by vpmaddubsw, which multiplies unsigned bytes with signed ones and
// adds pairs in 16 bits. Nibbles are unsigned as they are: 8 lines, of 32 codes along k, sum to 8 * 2 * 15 * 127 = 30480
// at most, then vpmaddwd brings them to 32 bits times u or 1. An int8 weight gives its sign to x: a pair is at most
// 2 * 128 * 127 = 32512. Sums of integers are exact in any order, so all ways here agree to the bit.

using ivec = __m256i;

constexpr int64_t column_outputs = 8;     // of a panel: what a vector of sums holds
constexpr int64_t columns = panel_outputs / column_outputs;
constexpr int64_t many_rows_least = 9;    // from here it pays to take a block of nibbles apart first
constexpr int64_t slab_rows = 128;        // rows whose float sums wait in the cache while a panel is walked
constexpr int64_t prefetch_ahead = 4096;  // bytes; a panel is one stream, and the next panel of the piece follows it

INLINE ivec load_half_line(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
INLINE ivec broadcast4(const void* p) {  // four bytes, or two 16-bit sums
    int32_t bits;
    __builtin_memcpy(&bits, p, 4);
    return _mm256_set1_epi32(bits);
}
INLINE ivec low_nibbles(ivec x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE ivec high_nibbles(ivec x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
INLINE ivec widen_pairs(ivec x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }
// a + b, summed in the order written: gcc makes trees of chains of sums, for which there are too few registers.
INLINE ivec add16(ivec a, ivec b) {
    ivec sum = _mm256_add_epi16(a, b);
    asm("" : "+x"(sum));
    return sum;
}
INLINE ivec add32(ivec a, ivec b) {
    ivec sum = _mm256_add_epi32(a, b);
    asm("" : "+x"(sum));
    return sum;
}
INLINE ivec no_sum() { return _mm256_setzero_si256(); }

// ---- a block's header, for 8 outputs of a panel -----------------------------------------------------------------

struct Header {
    const WeightFormat& f;
    const uint8_t* at;

    INLINE vec reals(int64_t offset) const {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + offset));
        return f.scale_dtype == DType::bf16 ? widen_bf16(bits) : widen_f16(bits);
    }
    INLINE int64_t zeros_at() const { return block_depth / f.group * panel_outputs * 2; }
    INLINE vec scales(int64_t group, int64_t column) const { return reals((group * columns + column) * 16); }
    INLINE vec real_zeros(int64_t group, int64_t column) const { return reals(zeros_at() + (group * columns + column) * 16); }
    INLINE ivec integer_zeros(int64_t group, int64_t column) const {
        const __m128i z = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at + zeros_at() + (group * columns + column) * 8));
        return f.packing == Packing::int8 ? _mm256_cvtepi8_epi32(z) : _mm256_cvtepu8_epi32(z);
    }
    // u of the 32 codes in a tile's low and high nibbles, in both 16-bit halves of each lane.
    INLINE void subscales(int64_t tile, int64_t column, ivec& low, ivec& high) const {
        int64_t eight;
        __builtin_memcpy(&eight, at + 64 + (tile * columns + column) * 8, 8);
        const ivec order = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,
                                            4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
        const ivec both = _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), order);
        low = low_nibbles(both);
        high = _mm256_srli_epi16(both, 4);
    }
    INLINE ivec minima(int64_t tile, int64_t column) const {  // m of both, 16 bits each
        const uint8_t* p = at + 192 + (tile * columns + column) * 16;
        return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
};

// A block of a panel, and the rows it meets.
struct Block {
    const uint8_t* at;
    int64_t index, tiles;
};

struct Rows {
    const int8_t* codes;   // at the block
    const int16_t* sums;
    const float* scales;
    int64_t codes_stride, subs, blocks;
    float* acc;            // [rows][32]
};

// Of each row's codes over each group of a block.
template <int64_t rows>
struct GroupSums {
    int32_t at[rows][block_depth / sub_depth];

    GroupSums(const WeightFormat& f, int64_t tiles, const Rows& x) {
        const int64_t subs = f.group / sub_depth;
        for (int64_t m = 0; m < rows; m++) {
            for (int64_t first = 0, group = 0; first < tiles * 2; first += subs, group++) {
                int32_t sum = 0;
                for (int64_t i = first; i < first + subs && i < tiles * 2; i++) sum += x.sums[m * x.subs + i];
                at[m][group] = sum;
            }
        }
    }
};

template <int64_t rows>
INLINE void load_sums(const Rows& x, int64_t column, vec* acc) {
#pragma GCC unroll 4
    for (int64_t m = 0; m < rows; m++) acc[m] = load(x.acc + m * panel_outputs + column * column_outputs);
}
template <int64_t rows>
INLINE void store_sums(const Rows& x, int64_t column, const vec* acc) {
#pragma GCC unroll 4
    for (int64_t m = 0; m < rows; m++) store(x.acc + m * panel_outputs + column * column_outputs, acc[m]);
}

// A group's sums of codes x codes, 8 outputs of each row, go to the rows' sums of floats.
template <Packing packing, int64_t rows>
INLINE void add_group(const Header& header, int64_t group, int64_t column, const Rows& x, const GroupSums<rows>& x_sums,
                      const ivec* sums, vec* acc) {
    const vec scale = header.scales(group, column);
    auto each_row = [&](auto body) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int64_t m = 0; m < rows; m++) {
            const vec x_scale = set1(x.scales[m * x.blocks]);
            acc[m] = body(m, scale * x_scale, x_scale);
        }
    };
    auto x_sum = [&](int64_t m) __attribute__((always_inline)) { return _mm256_set1_epi32(x_sums.at[m][group]); };
    const Zero zero = packing == Packing::int4_two_level ? Zero::none : header.f.zero;
    if (zero == Zero::none) {
        each_row([&](int64_t m, vec s, vec) {
            ivec sum = sums[m];
            if (packing == Packing::int4) sum = _mm256_sub_epi32(sum, _mm256_slli_epi32(x_sum(m), 3));
            return fma(_mm256_cvtepi32_ps(sum), s, acc[m]);
        });
    } else if (zero == Zero::integer) {
        const ivec zeros = header.integer_zeros(group, column);
        each_row([&](int64_t m, vec s, vec) {
            return fma(_mm256_cvtepi32_ps(_mm256_sub_epi32(sums[m], _mm256_mullo_epi32(zeros, x_sum(m)))), s, acc[m]);
        });
    } else {
        const vec zeros = header.real_zeros(group, column);
        each_row([&](int64_t m, vec s, vec x_scale) {
            return fma(_mm256_cvtepi32_ps(x_sum(m)), zeros * x_scale, fma(_mm256_cvtepi32_ps(sums[m]), s, acc[m]));
        });
    }
}

// ---- from the panels as they lie --------------------------------------------------------------------------------

// A column visits every second half line of a tile's half. What lies ahead is fetched evenly meanwhile, in the order of
// memory: a quarter of it in each column.
INLINE void prefetch_lines(const uint8_t* quarter, int64_t count) {
    for (int64_t i = 0; i < count; i++) __builtin_prefetch(quarter + i * 64 + prefetch_ahead, 0, 2);
}

// Up to four rows by a block of nibbles. A tile's low and high nibbles are codes 32 apart and have sums of their own.
template <Packing packing, int64_t rows>
__attribute__((noinline)) void rows_by_nibbles(const WeightFormat& f, const Block& b, const Rows& x, bool prefetch) {
    constexpr bool two_level = packing == Packing::int4_two_level;
    const Header header{f, b.at};
    const bool narrow = f.group == sub_depth;
    const int64_t group_tiles = narrow ? 1 : f.group / tile_depth;
    const GroupSums<rows> x_sums(f, b.tiles, x);
    for (int64_t column = 0; column < columns; column++) {
        const uint8_t* lines = b.at + header_bytes(f) + column / 2 * 512 + column % 2 * 32;
        const uint8_t* quarter = b.at + header_bytes(f) + column * b.tiles * 256;
        ivec sums[rows];
        vec acc[rows];
        load_sums<rows>(x, column, acc);
        for (int64_t tile = 0; tile < b.tiles; tile++, lines += 1024, quarter += 256) {
            if (prefetch) prefetch_lines(quarter, 4);
            ivec low[rows], high[rows];  // 16 bits
            const int8_t* codes = x.codes + tile * tile_depth;
#pragma GCC unroll 8
            for (int64_t l = 0; l < 8; l++) {
                const ivec w = load_half_line(lines + l * 64), w_low = low_nibbles(w), w_high = high_nibbles(w);
#pragma GCC unroll 4
                for (int64_t m = 0; m < rows; m++) {
                    const ivec p = _mm256_maddubs_epi16(w_low, broadcast4(codes + m * x.codes_stride + l * 4));
                    const ivec q = _mm256_maddubs_epi16(w_high, broadcast4(codes + m * x.codes_stride + 32 + l * 4));
                    low[m] = l == 0 ? p : add16(low[m], p);
                    high[m] = l == 0 ? q : add16(high[m], q);
                }
            }
            if (two_level) {
                ivec u_low, u_high;
                header.subscales(tile, column, u_low, u_high);
                const ivec minima = header.minima(tile, column);
#pragma GCC unroll 4
                for (int64_t m = 0; m < rows; m++) {
                    const ivec less = _mm256_madd_epi16(minima, broadcast4(x.sums + m * x.subs + tile * 2));
                    const ivec sum = _mm256_add_epi32(_mm256_madd_epi16(low[m], u_low), _mm256_madd_epi16(high[m], u_high));
                    sums[m] = _mm256_add_epi32(tile == 0 ? no_sum() : sums[m], _mm256_sub_epi32(sum, less));
                }
                if (tile == b.tiles - 1) add_group<packing, rows>(header, 0, column, x, x_sums, sums, acc);
            } else if (narrow) {
#pragma GCC unroll 4
                for (int64_t m = 0; m < rows; m++) sums[m] = widen_pairs(low[m]);
                add_group<packing, rows>(header, tile * 2, column, x, x_sums, sums, acc);
#pragma GCC unroll 4
                for (int64_t m = 0; m < rows; m++) sums[m] = widen_pairs(high[m]);
                add_group<packing, rows>(header, tile * 2 + 1, column, x, x_sums, sums, acc);
            } else {
                const int64_t group = tile / group_tiles, first = group * group_tiles;
#pragma GCC unroll 4
                for (int64_t m = 0; m < rows; m++) {
                    const ivec sum = _mm256_add_epi32(widen_pairs(low[m]), widen_pairs(high[m]));
                    sums[m] = tile == first ? sum : _mm256_add_epi32(sums[m], sum);
                }
                if (tile + 1 == first + group_tiles || tile + 1 == b.tiles) {
                    add_group<packing, rows>(header, group, column, x, x_sums, sums, acc);
                }
            }
        }
        store_sums<rows>(x, column, acc);
    }
}

// Up to four rows by a block of int8.
template <int64_t rows>
__attribute__((noinline)) void rows_by_bytes(const WeightFormat& f, const Block& b, const Rows& x, bool prefetch) {
    const Header header{f, b.at};
    const int64_t group_subs = f.group / sub_depth;
    const GroupSums<rows> x_sums(f, b.tiles, x);
    for (int64_t column = 0; column < columns; column++) {
        const uint8_t* tiles = b.at + header_bytes(f) + column / 2 * 1024 + column % 2 * 32;
        const uint8_t* quarter = b.at + header_bytes(f) + column * b.tiles * 512;
        vec acc[rows];
        load_sums<rows>(x, column, acc);
        for (int64_t first = 0; first < b.tiles * 2; first += group_subs) {
            const int64_t last = first + group_subs < b.tiles * 2 ? first + group_subs : b.tiles * 2;
            ivec sums[rows];
            for (int64_t m = 0; m < rows; m++) sums[m] = no_sum();
            for (int64_t sub = first; sub < last; sub++, quarter += 256) {
                const uint8_t* lines = tiles + sub / 2 * 2048 + sub % 2 * 512;
                if (prefetch) prefetch_lines(quarter, 4);
                const int8_t* codes = x.codes + sub * sub_depth;
#pragma GCC unroll 8
                for (int64_t l = 0; l < 8; l++) {
                    const ivec w = load_half_line(lines + l * 64), size = _mm256_abs_epi8(w);
#pragma GCC unroll 4
                    for (int64_t m = 0; m < rows; m++) {
                        const ivec signed_x = _mm256_sign_epi8(broadcast4(codes + m * x.codes_stride + l * 4), w);
                        sums[m] = add32(sums[m], widen_pairs(_mm256_maddubs_epi16(size, signed_x)));
                    }
                }
            }
            add_group<Packing::int8, rows>(header, first / group_subs, column, x, x_sums, sums, acc);
        }
        store_sums<rows>(x, column, acc);
    }
}

// ---- many rows by nibbles: a block is taken apart once ----------------------------------------------------------

struct Unpacked {
    alignas(64) uint8_t codes[block_depth / sub_depth][8][columns][32];  // [32 codes along k][lines of them]
    alignas(64) int16_t u[block_depth / sub_depth][columns][16];         // twice each; of two levels
    alignas(64) int16_t m[block_depth / tile_depth][columns][16];        // pairs; of two levels
    alignas(64) float scales[block_depth / sub_depth][columns][8];
    alignas(64) float real_zeros[block_depth / sub_depth][columns][8];
    alignas(64) int32_t zeros[block_depth / sub_depth][columns][8];
};

INLINE void store_half_line(void* p, ivec x) { _mm256_store_si256(static_cast<__m256i*>(p), x); }

template <Packing packing>
void unpack_block(const WeightFormat& f, const Block& b, Unpacked& to) {
    const Header header{f, b.at};
    const uint8_t* line = b.at + header_bytes(f);
    for (int64_t column = 0; column < columns; column++) {
        for (int64_t group = 0; group * f.group < b.tiles * tile_depth; group++) {
            store(to.scales[group][column], header.scales(group, column));
            if (f.zero == Zero::real) store(to.real_zeros[group][column], header.real_zeros(group, column));
            if (f.zero == Zero::integer) store_half_line(to.zeros[group][column], header.integer_zeros(group, column));
            if (f.zero == Zero::none) store_half_line(to.zeros[group][column], _mm256_set1_epi32(8));
        }
    }
    for (int64_t tile = 0; tile < b.tiles; tile++) {
        for (int64_t column = 0; packing == Packing::int4_two_level && column < columns; column++) {
            ivec low, high;
            header.subscales(tile, column, low, high);
            store_half_line(to.u[tile * 2][column], low);
            store_half_line(to.u[tile * 2 + 1][column], high);
            store_half_line(to.m[tile][column], header.minima(tile, column));
        }
        for (int64_t half = 0; half < 2; half++) {
            for (int64_t l = 0; l < 8; l++, line += 64) {
                __builtin_prefetch(line + prefetch_ahead);
#pragma GCC unroll 2
                for (int64_t i = 0; i < 2; i++) {
                    const ivec w = load_half_line(line + i * 32);
                    store_half_line(to.codes[tile * 2][l][half * 2 + i], low_nibbles(w));
                    store_half_line(to.codes[tile * 2 + 1][l][half * 2 + i], high_nibbles(w));
                }
            }
        }
    }
}

// Up to three rows by 16 outputs at a time: their sums, two levels of them, take 12 of 16 registers.
template <Packing packing, int64_t rows>
__attribute__((noinline)) void rows_by_unpacked(const WeightFormat& f, const Unpacked& w, int64_t tiles, const Rows& x) {
    constexpr bool two_level = packing == Packing::int4_two_level;
    const int64_t group_subs = f.group / sub_depth;
    const Zero zero = two_level ? Zero::none : f.zero;
    const GroupSums<rows> x_sums(f, tiles, x);
    for (int64_t column = 0; column < columns; column += 2) {
        for (int64_t first = 0, group = 0; first < tiles * 2; first += group_subs, group++) {
            const int64_t last = first + group_subs < tiles * 2 ? first + group_subs : tiles * 2;
            ivec sums[rows][2];
            auto each_sum = [&](auto body) __attribute__((always_inline)) {
#pragma GCC unroll 4
                for (int64_t m = 0; m < rows; m++) {
                    sums[m][0] = body(m, 0, sums[m][0]);
                    sums[m][1] = body(m, 1, sums[m][1]);
                }
            };
            each_sum([](int64_t, int64_t, ivec) { return no_sum(); });
            for (int64_t tile = 0; two_level && tile < tiles; tile++) {
                each_sum([&](int64_t m, int64_t c, ivec sum) {
                    const ivec x_pair = broadcast4(x.sums + m * x.subs + tile * 2);
                    return _mm256_sub_epi32(sum, _mm256_madd_epi16(x_pair, load_half_line(w.m[tile][column + c])));
                });
            }
            if (zero != Zero::real && !two_level) {
                each_sum([&](int64_t m, int64_t c, ivec) {
                    const ivec x_sum = _mm256_set1_epi32(-x_sums.at[m][group]);
                    return _mm256_mullo_epi32(load_half_line(w.zeros[group][column + c]), x_sum);
                });
            }
            for (int64_t sub = first; sub < last; sub++) {
                ivec part[rows][2];  // 16 bits
#pragma GCC unroll 8
                for (int64_t l = 0; l < 8; l++) {
                    const ivec w0 = load_half_line(w.codes[sub][l][column]), w1 = load_half_line(w.codes[sub][l][column + 1]);
#pragma GCC unroll 4
                    for (int64_t m = 0; m < rows; m++) {
                        const ivec four = broadcast4(x.codes + m * x.codes_stride + sub * sub_depth + l * 4);
                        const ivec p = _mm256_maddubs_epi16(w0, four), q = _mm256_maddubs_epi16(w1, four);
                        part[m][0] = l == 0 ? p : add16(part[m][0], p);
                        part[m][1] = l == 0 ? q : add16(part[m][1], q);
                    }
                }
                each_sum([&](int64_t m, int64_t c, ivec sum) {
                    const ivec u = two_level ? load_half_line(w.u[sub][column + c]) : _mm256_set1_epi16(1);
                    return add32(sum, _mm256_madd_epi16(part[m][c], u));
                });
            }
#pragma GCC unroll 2
            for (int64_t c = 0; c < 2; c++) {
                const vec scale = load(w.scales[group][column + c]);
#pragma GCC unroll 4
                for (int64_t m = 0; m < rows; m++) {
                    const vec x_scale = set1(x.scales[m * x.blocks]);
                    float* at = x.acc + m * panel_outputs + (column + c) * column_outputs;
                    vec acc = fma(_mm256_cvtepi32_ps(sums[m][c]), scale * x_scale, load(at));
                    if (zero == Zero::real) {
                        acc = fma(set1(float(x_sums.at[m][group])), load(w.real_zeros[group][column + c]) * x_scale, acc);
                    }
                    store(at, acc);
                }
            }
        }
    }
}

#include "packed_k_avx2.inl"

// Rows [m0, m1), at most slab_rows, by one panel.
template <Packing packing>
void slab_by_panel(const PackedLinearArgs& a, int64_t panel, int64_t m0, int64_t m1) {
    alignas(64) float acc[slab_rows][panel_outputs];
    Unpacked unpacked;
    __builtin_memset(acc, 0, size_t(m1 - m0) * sizeof acc[0]);
    const int64_t depth = round_up(a.k, tile_depth), run = sum_depth(a.format), subs = depth / run;
    const int64_t blocks = (a.k + block_depth - 1) / block_depth;
    const bool many = !eight_bits(packing) && !of_k(packing) && a.rows >= many_rows_least;
    const int64_t tall = many ? 3 : 4;
    Block b{a.weight + panel * panel_bytes(a.format, a.k), 0, 4};
    for (; b.index < blocks; b.index++, b.at += block_bytes(a.format)) {
        const int64_t left = depth - b.index * block_depth;
        if (left < block_depth) b.tiles = left / tile_depth;
        for (int64_t i = 0; i < header_bytes(a.format); i += 64) __builtin_prefetch(b.at + i + prefetch_ahead);
        if constexpr (!of_k(packing)) {
            if (many) unpack_block<packing>(a.format, b, unpacked);
        }
        for (int64_t m = m0; m < m1; m += tall) {
            const Rows x{a.codes + m * a.codes_stride + b.index * block_depth, a.sums + m * subs + b.index * (block_depth / run),
                         a.scales + m * blocks + b.index, a.codes_stride, subs, blocks, acc[m - m0]};
            auto meet = [&](auto rows) {
                if constexpr (of_k(packing)) {
                    if (a.format.group == 16) rows_by_k<packing, 16, rows()>(a.format, b, x, m == m0);
                    else rows_by_k<packing, 32, rows()>(a.format, b, x, m == m0);
                } else if constexpr (packing != Packing::int8) {
                    if constexpr (rows() < 4) {
                        if (many) return rows_by_unpacked<packing, rows()>(a.format, unpacked, b.tiles, x);
                    }
                    rows_by_nibbles<packing, rows()>(a.format, b, x, m == m0);
                } else {
                    rows_by_bytes<rows()>(a.format, b, x, m == m0);
                }
            };
            switch (m1 - m < tall ? m1 - m : tall) {
                case 1: meet(Count<1>()); break;
                case 2: meet(Count<2>()); break;
                case 3: meet(Count<3>()); break;
                case 4: meet(Count<4>()); break;
            }
        }
    }
    for (int64_t m = m0; m < m1; m++) write_row(a, panel, m, acc[m - m0]);
}

template <Packing packing>
void packed_linear_of(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
        for (int64_t m = 0; m < a.rows; m += slab_rows) {
            slab_by_panel<packing>(a, panel, m, a.rows - m < slab_rows ? a.rows : m + slab_rows);
        }
    }
}

void packed_linear(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    switch (a.format.packing) {
        case Packing::int4_two_level: return packed_linear_of<Packing::int4_two_level>(a, begin, end);
        case Packing::int4: return packed_linear_of<Packing::int4>(a, begin, end);
        case Packing::int8: return packed_linear_of<Packing::int8>(a, begin, end);
        case Packing::int4_k: return packed_linear_of<Packing::int4_k>(a, begin, end);
        case Packing::int8_k: return packed_linear_of<Packing::int8_k>(a, begin, end);
    }
}
