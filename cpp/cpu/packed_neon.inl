// Products with packed integer weights (packed.h) on aarch64, over dot<lane>(sums, w, x) of the tier: 4 sums of 32 bits,
// each over 4 signed bytes of w and the lane-th 4 of x. A code becomes a signed byte first, u c - m or c - z, which is exact;
// int8's zeros are taken back by sums of activations. Sums of integers are exact in any order.

constexpr int64_t column_outputs = 4;     // of a panel: what a vector of sums holds
constexpr int64_t columns = panel_outputs / column_outputs;
constexpr int64_t rows_at_once = 8;       // rows that read a vector of weights together
constexpr int64_t slab_rows = 128;        // rows whose float sums wait in the cache while a panel is walked
constexpr int64_t prefetch_ahead = 8192;  // bytes; a panel is one stream, and the next panel of the piece follows it

// Bytes first, first + step, ... of p, each four times.
INLINE uint8x16_t four_times(const uint8_t* p, int64_t first, int64_t step) {
    alignas(16) uint8_t four[16];
    for (int64_t i = 0; i < 16; i++) four[i] = p[first + i / 4 * step];
    return vld1q_u8(four);
}

// ---- a block's header, for 4 outputs of a panel -----------------------------------------------------------------

struct Header {
    const WeightFormat& f;
    const uint8_t* at;

    INLINE vec reals(int64_t offset) const {
        uint64_t four;
        __builtin_memcpy(&four, at + offset, 8);
        return f.scale_dtype == DType::bf16 ? widen_bf16(vcreate_u16(four)) : widen_f16(vcreate_u16(four));
    }
    INLINE int64_t zeros_at() const { return block_depth / f.group * panel_outputs * 2; }
    INLINE vec scales(int64_t group, int64_t column) const { return reals((group * columns + column) * 8); }
    INLINE vec real_zeros(int64_t group, int64_t column) const { return reals(zeros_at() + (group * columns + column) * 8); }
    INLINE const uint8_t* zeros(int64_t group, int64_t column) const { return at + zeros_at() + (group * columns + column) * 4; }
    INLINE int32x4_t int8_zeros(int64_t group, int64_t column) const {
        uint32_t four;
        __builtin_memcpy(&four, zeros(group, column), 4);
        return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
    }
    // u of 32 codes along k, and -m; four times each.
    INLINE uint8x16_t subscales(int64_t sub, int64_t column) const {
        const uint8x16_t both = four_times(at + 64 + (sub / 2 * columns + column) * 4, 0, 1);
        return sub % 2 ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
    }
    INLINE uint8x16_t less_minima(int64_t sub, int64_t column) const {
        return vsubq_u8(vdupq_n_u8(0), four_times(at + 192 + (sub / 2 * columns + column) * 8, sub % 2, 2));
    }
    INLINE uint8x16_t less_zeros(int64_t sub, int64_t column) const {  // of int4
        if (f.zero == Zero::none) return vdupq_n_u8(uint8_t(-8));
        if (f.zero == Zero::real) return vdupq_n_u8(0);
        return vsubq_u8(vdupq_n_u8(0), four_times(zeros(sub * sub_depth / f.group, column), 0, 1));
    }
};

// ---- rows by a block of a panel ----------------------------------------------------------------------------------

struct Block {
    const uint8_t* at;
    int64_t index, subs;  // subs: of 32 codes along k
};

struct Rows {
    const int8_t* codes;  // at the block
    const int16_t* sums;
    const float* scales;
    int64_t codes_stride, subs, blocks;
    float* acc;           // [rows][32]
};

// 16 codes along k, lines l .. l + 3, of 4 outputs.
template <Packing packing, int64_t rows, int64_t parts>
INLINE void multiply(int32x4_t (*sums)[parts], const uint8_t* lines, bool high, uint8x16_t u, uint8x16_t less,
                     const int8_t* codes, int64_t codes_stride) {
    int8x16_t x[rows];
#pragma GCC unroll 8
    for (int64_t m = 0; m < rows; m++) x[m] = vld1q_s8(codes + m * codes_stride);
    auto line = [&](auto lane) __attribute__((always_inline)) {
        uint8x16_t w = vld1q_u8(lines + lane() * 64);
        if (packing != Packing::int8) {
            w = high ? vshrq_n_u8(w, 4) : vandq_u8(w, vdupq_n_u8(15));
            w = packing == Packing::int4 ? vaddq_u8(w, less) : vmlaq_u8(less, w, u);
        }
#pragma GCC unroll 8
        for (int64_t m = 0; m < rows; m++) {
            int32x4_t& sum = sums[m][lane() % parts];
            sum = dot<lane()>(sum, vreinterpretq_s8_u8(w), x[m]);
        }
    };
    line(Count<0>());
    line(Count<1>());
    line(Count<2>());
    line(Count<3>());
}

template <Packing packing, int64_t rows>
__attribute__((noinline)) void rows_by_block(const WeightFormat& f, const Block& b, const Rows& x, bool prefetch) {
    constexpr int64_t parts = rows == 1 ? 4 : rows <= 3 ? 2 : 1;  // sums that do not wait for one another
    constexpr int64_t half = tile_bytes(packing) / 2;             // of a tile: 16 outputs
    const Header header{f, b.at};
    const int64_t group_subs = f.group / sub_depth;
    const uint8_t* ahead = b.at + prefetch_ahead;                 // fetched evenly, in the order of memory
    for (int64_t column = 0; column < columns; column++) {
        const uint8_t* tiles = b.at + header_bytes(f) + column / 4 * half + column % 4 * 16;
        for (int64_t first = 0, group = 0; first < b.subs; first += group_subs, group++) {
            int32x4_t sums[rows][parts];
            for (int64_t m = 0; m < rows; m++) {
                for (int64_t i = 0; i < parts; i++) sums[m][i] = vdupq_n_s32(0);
            }
            const int64_t last = first + group_subs < b.subs ? first + group_subs : b.subs;
            for (int64_t sub = first; sub < last; sub++) {
                if (prefetch) {
                    for (int64_t i = 0; i < tile_bytes(packing) / 1024; i++, ahead += 64) __builtin_prefetch(ahead);
                }
                const uint8_t* lines = tiles + sub / 2 * tile_bytes(packing) + (packing == Packing::int8 ? sub % 2 * 512 : 0);
                uint8x16_t u = vdupq_n_u8(1), less = u;
                if (packing == Packing::int4_two_level) u = header.subscales(sub, column), less = header.less_minima(sub, column);
                if (packing == Packing::int4) less = header.less_zeros(sub, column);
                const int8_t* codes = x.codes + sub * sub_depth;
                multiply<packing, rows, parts>(sums, lines, sub % 2, u, less, codes, x.codes_stride);
                multiply<packing, rows, parts>(sums, lines + 4 * 64, sub % 2, u, less, codes + 16, x.codes_stride);
            }
            const vec scale = header.scales(group, column);
            for (int64_t m = 0; m < rows; m++) {
                int32x4_t sum = sums[m][0];
                for (int64_t i = 1; i < parts; i++) sum = vaddq_s32(sum, sums[m][i]);
                const float x_scale = x.scales[m * x.blocks];
                int32_t x_sum = 0;
                if (packing != Packing::int4_two_level && f.zero != Zero::none) {
                    for (int64_t sub = first; sub < last; sub++) x_sum += x.sums[m * x.subs + sub];
                }
                if (packing == Packing::int8 && f.zero == Zero::integer) {
                    sum = vmlsq_s32(sum, header.int8_zeros(group, column), vdupq_n_s32(x_sum));
                }
                float* at = x.acc + m * panel_outputs + column * column_outputs;
                vec acc = fma(vcvtq_f32_s32(sum), scale * set1(x_scale), load(at));
                if (packing != Packing::int4_two_level && f.zero == Zero::real) {
                    acc = fma(set1(float(x_sum)), header.real_zeros(group, column) * set1(x_scale), acc);
                }
                store(at, acc);
            }
        }
    }
}

#include "packed_k_neon.inl"

template <Packing packing, int64_t rows>
void rows_by_any(const WeightFormat& f, const Block& b, const Rows& x, bool prefetch) {
    if constexpr (of_k(packing)) rows_by_k<packing, rows>(f, b, x, prefetch);
    else rows_by_block<packing, rows>(f, b, x, prefetch);
}

// Rows [m0, m1), at most slab_rows, by one panel.
template <Packing packing>
void slab_by_panel(const PackedLinearArgs& a, int64_t panel, int64_t m0, int64_t m1) {
    alignas(64) float acc[slab_rows][panel_outputs];
    __builtin_memset(acc, 0, size_t(m1 - m0) * sizeof acc[0]);
    const int64_t subs = round_up(a.k, tile_depth) / sub_depth, blocks = (a.k + block_depth - 1) / block_depth;
    const int64_t run = sum_depth(a.format), row_sums = subs * sub_depth / run;
    constexpr int64_t block_subs = block_depth / sub_depth;
    void (*const tall[])(const WeightFormat&, const Block&, const Rows&, bool) = {
        rows_by_any<packing, 1>, rows_by_any<packing, 2>, rows_by_any<packing, 3>, rows_by_any<packing, 4>,
        rows_by_any<packing, 5>, rows_by_any<packing, 6>, rows_by_any<packing, 7>, rows_by_any<packing, 8>};
    Block b{a.weight + panel * panel_bytes(a.format, a.k), 0, block_subs};
    for (; b.index < blocks; b.index++, b.at += block_bytes(a.format)) {
        const int64_t left = subs - b.index * block_subs;
        if (left < block_subs) b.subs = left;
        for (int64_t m = m0; m < m1; m += rows_at_once) {
            const Rows x{a.codes + m * a.codes_stride + b.index * block_depth, a.sums + m * row_sums + b.index * (block_depth / run),
                         a.scales + m * blocks + b.index, a.codes_stride, row_sums, blocks, acc[m - m0]};
            tall[(m1 - m < rows_at_once ? m1 - m : rows_at_once) - 1](a.format, b, x, m == m0);
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
