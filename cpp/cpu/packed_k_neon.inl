// Rows by a block of int4_k or int8_k: a group's sums are multiplied by its sc, and a block's become floats once.

struct KHeader {
    const WeightFormat& f;
    const uint8_t* at;

    INLINE vec reals(int64_t offset) const {
        uint64_t four;
        __builtin_memcpy(&four, at + offset, 8);
        return widen_f16(vcreate_u16(four));
    }
    // sc or m of the group of code k.
    template <class T>
    INLINE int32x4_t integers(int64_t from, int64_t k, int64_t column) const {
        const uint8_t* p = at + from + k_index(f, k, column * column_outputs);
        int32_t four[4];
        for (int64_t i = 0; i < 4; i++) four[i] = T(p[i * 2]);
        return vld1q_s32(four);
    }
};

template <Packing packing, int64_t rows>
__attribute__((noinline)) void rows_by_k(const WeightFormat& f, const Block& b, const Rows& x, bool prefetch) {
    constexpr int64_t parts = rows == 1 ? 4 : rows <= 3 ? 2 : 1;  // sums that do not wait for one another
    constexpr int64_t half = tile_bytes(packing) / 2;             // of a tile: 16 outputs
    constexpr Packing codes_of = packing == Packing::int8_k ? Packing::int8 : Packing::int4;
    const KHeader header{f, b.at};
    const bool real = f.zero == Zero::real;
    const uint8x16_t less = vdupq_n_u8(real ? 0 : uint8_t(-8)), one = vdupq_n_u8(1);
    const uint8_t* ahead = b.at + prefetch_ahead;                 // fetched evenly, in the order of memory
    for (int64_t column = 0; column < columns; column++) {
        const uint8_t* tiles = b.at + header_bytes(f) + column / 4 * half + column % 4 * 16;
        int32x4_t sums[rows], minima[rows];
        for (int64_t m = 0; m < rows; m++) sums[m] = minima[m] = vdupq_n_s32(0);
        for (int64_t k = 0; k < b.subs * sub_depth; k += f.group) {
            const int64_t sub = k / sub_depth;
            if (prefetch && k % sub_depth == 0) {
                for (int64_t i = 0; i < tile_bytes(packing) / 1024; i++, ahead += 64) __builtin_prefetch(ahead);
            }
            const uint8_t* lines = tiles + sub / 2 * tile_bytes(packing) + (codes_of == Packing::int8 ? sub % 2 * 512 : 0);
            int32x4_t part[rows][parts];
            for (int64_t m = 0; m < rows; m++) {
                for (int64_t i = 0; i < parts; i++) part[m][i] = vdupq_n_s32(0);
            }
            for (int64_t i = 0; i < f.group; i += 16) {
                multiply<codes_of, rows, parts>(part, lines + (k % sub_depth + i) * 16, sub % 2, one, less, x.codes + k + i,
                                                x.codes_stride);
            }
            const int32x4_t scales = header.integers<int8_t>(k_scales_at(f), k, column);
            for (int64_t m = 0; m < rows; m++) {
                for (int64_t i = 1; i < parts; i++) part[m][0] = vaddq_s32(part[m][0], part[m][i]);
                sums[m] = vmlaq_s32(sums[m], part[m][0], scales);
            }
            if (!real) continue;
            const int32x4_t factors = header.integers<uint8_t>(k_minima_at(f), k, column);
            for (int64_t m = 0; m < rows; m++) {
                minima[m] = vmlaq_s32(minima[m], factors, vdupq_n_s32(x.sums[m * x.subs + k / f.group]));
            }
        }
        for (int64_t m = 0; m < rows; m++) {
            const vec x_scale = set1(x.scales[m * x.blocks]);
            float* at = x.acc + m * panel_outputs + column * column_outputs;
            vec acc = fma(vcvtq_f32_s32(sums[m]), header.reals(column * 8) * x_scale, load(at));
            if (real) acc = vfmsq_f32(acc, vcvtq_f32_s32(minima[m]), header.reals(64 + column * 8) * x_scale);
            store(at, acc);
        }
    }
}
