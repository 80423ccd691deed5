// What a warp of packed_few.inl does with a block of 256 of a panel.

struct alignas(8) Words2 {
    uint32_t x[2];
};
struct alignas(16) Chunk {
    uint32_t x[4];
};

// The rows of x in shared memory: codes and sums from the block of 256 in question on.
struct FewRows {
    const char* codes;
    const int16_t* sums;
    const float* scales;
    int codes_stride, sums_stride;
};

// A warp's product of a block of 256 in a stage -> terms. Lane (g, t) has outputs 4 g .. of the panel, in columns 2 t and 2 t + 1. Tiles
// beyond the last are multiplied as well, whatever they are: x has zeros there.
template <Packing packing, bool by16, int rows>
DEVICE void few_block(const WeightFormat& f, const FewPlan& p, const char* stage, const FewRows& x, float* terms) {
    constexpr bool eight = eight_bits(packing), two_level = packing == Packing::int4_two_level, k_scales = of_k(packing);
    constexpr int set = few_columns / rows, of_tile = by16 ? 4 : 2;  // groups in the columns, in a tile
    constexpr int run = set > of_tile ? set / of_tile : 1;           // tiles
    constexpr int half = int(tile_bytes(packing) / 2);
    const int g = gk::lane() / 4, t = gk::lane() % 4;
    const int column_row = g % rows, column_group = g / rows;  // of the second operand
    const int row = 2 * t % rows, group_at = 2 * t / rows;     // of the sums; one row: groups 2 t and 2 t + 1
    const bool real_zeros = f.zero == Zero::real, bf = f.scale_dtype == DType::bf16;
    const char* codes = stage + p.header + g / 4 * half + t * 64 + g % 4 * 16;
    const char* x_codes = x.codes + column_row * x.codes_stride + column_group * (by16 ? 16 : 32) + 4 * t;
    const int16_t* x_sums = x.sums + row * x.sums_stride + group_at;
    int32_t sum[4][2] = {}, less[k_scales ? 4 : 1][2] = {};  // less: of k_scales sums of minima, else of x

    // The groups a lane's sums are of, first one apart or all, from groups of the columns: log2 of how many there are.
    auto together = [&](int32_t (&v)[2], int groups) {
        int distance = rows == 1 ? 1 : rows / 2;
        GK_UNROLL
        for (int have = rows == 1 ? 1 : 0; (1 << have) < set; have++, distance *= 2) {
            if (have == 1 && rows == 1 && groups > 0) v[0] += v[1];
            if (groups > have) v[0] += gk::shuffle_xor(v[0], distance), v[1] += rows == 1 ? 0 : gk::shuffle_xor(v[1], distance);
        }
    };
    auto emit = [&](int term, int j, const int32_t (&v)[4][2], const char* scales, bool negative) {
        float* to = terms + term * few_term_floats(rows);
        Four value, scale;
        GK_UNROLL
        for (int i = 0; i < 4; i++) value.x[i] = float(v[i][j]);
        if (rows > 1) four_at(to + (row + j) * few_term_row(rows) + 4 * g) = value;
        if (rows > 1 && (row != 0 || j != 0)) return;
        const Words2 w = reinterpret_cast<const Words2*>(scales)[g];
        GK_UNROLL
        for (int i = 0; i < 4; i++) {
            const float one = scale_bits(uint16_t(w.x[i / 2] >> 16 * (i % 2)), bf);
            scale.x[i] = negative ? -one : one;
        }
        if (rows > 1) {
            four_at(to + rows * few_term_row(rows) + 4 * g) = scale;
            return;
        }
        const float x_scale = x.scales[0];
        four_at(to + 8 * g) = {{value.x[0], scale.x[0] * x_scale, value.x[1], scale.x[1] * x_scale}};
        four_at(to + 8 * g + 4) = {{value.x[2], scale.x[2] * x_scale, value.x[3], scale.x[3] * x_scale}};
    };
    // The columns are full: `from` is the first of their groups.
    auto finish = [&](int from, const int32_t (&d)[2][4]) {
        int32_t x_sum[2];
        GK_UNROLL
        for (int j = 0; j < 2; j++) x_sum[j] = rows == 1 ? x_sums[from + j] : x_sums[from + j * x.sums_stride];
        Words2 factors{}, lows{};
        uint32_t zeros = 0;
        GK_UNROLL
        for (int j = 0; j < 2; j++) {
            const int group = from + group_at + (rows == 1 ? j : 0), tile = group / of_tile, step = group / (of_tile / 2) % 2;
            if (j == 0 || rows == 1) {
                if (two_level) {
                    factors.x[0] = word(stage + 64 + tile * 32 + 4 * g) >> 4 * step;
                    lows = reinterpret_cast<const Words2*>(stage + 192 + tile * 64)[g];
                } else if (k_scales) {
                    const int at = by16 ? tile * 128 + group % 2 * 64 : tile * 64;
                    factors = reinterpret_cast<const Words2*>(stage + k_scales_at(f) + at)[g];
                    if (real_zeros) lows = reinterpret_cast<const Words2*>(stage + k_minima_at(f) + at)[g];
                } else if (f.zero == Zero::integer) {
                    zeros = word(stage + (64 << (3 - p.group_shift)) + (group >> p.group_shift) * 32 + 4 * g);
                }
            }
            GK_UNROLL
            for (int i = 0; i < 4; i++) {
                const int32_t products = d[i / 2][i % 2 * 2 + j];
                const int shift = 16 * (i % 2) + 8 * step;
                if (two_level) {
                    sum[i][j] += int32_t(factors.x[0] >> 8 * i & 15) * products - int32_t(lows.x[i / 2] >> shift & 255) * x_sum[j];
                } else if (k_scales) {
                    const int32_t factor = int8_t(factors.x[i / 2] >> shift);
                    sum[i][j] += factor * products;
                    if (real_zeros) less[k_scales ? i : 0][j] += int32_t(lows.x[i / 2] >> shift & 255) * x_sum[j];
                    else if (!eight) sum[i][j] -= 8 * factor * x_sum[j];
                } else {
                    int32_t zero = eight || real_zeros ? 0 : 8;
                    if (f.zero == Zero::integer) zero = eight ? int32_t(int8_t(zeros >> 8 * i)) : int32_t(zeros >> 8 * i & 255);
                    sum[i][j] += products - zero * x_sum[j];
                }
            }
            if (!two_level && !k_scales) less[0][j] += x_sum[j];
        }
        if (two_level || k_scales) return;
        const int groups = p.group_shift, last = ((from + set) & ((1 << groups) - 1)) == 0 || (1 << groups) <= set;
        if (!last) return;
        GK_UNROLL
        for (int i = 0; i < 4; i++) together(sum[i], groups);
        if (real_zeros) together(less[0], groups);
        const int least = (1 << groups) < set ? (1 << groups) : set;
        if (group_at % least == 0) {
            GK_UNROLL
            for (int j = 0; j < 2; j++) {
                if (rows == 1 && j == 1 && groups > 0) continue;
                const int group = (from + group_at + (rows == 1 ? j : 0)) >> groups, term = real_zeros ? 2 * group : group;
                emit(term, j, sum, stage + group * 64, false);
                const int32_t all[4][2] = {{less[0][0], less[0][1]}, {less[0][0], less[0][1]}, {less[0][0], less[0][1]}, {less[0][0], less[0][1]}};
                if (real_zeros) emit(term + 1, j, all, stage + (64 << (3 - groups)) + group * 64, false);
            }
        }
        GK_UNROLL
        for (int i = 0; i < 4; i++) sum[i][0] = sum[i][1] = 0;
        less[0][0] = less[0][1] = 0;
    };

    GK_ROLLED
    for (int tile0 = 0; tile0 < 4; tile0 += run, codes += run * tile_bytes(packing)) {
        int32_t d[2][4] = {};
        uint32_t b[2] = {0, 0};
        Chunk low{}, high{};
        GK_UNROLL
        for (int at = 0; at < run * 2; at++) {  // steps of 32
            if (eight || at % 2 == 0) {  // lines t and t + 4
                const char* from = codes + at / 2 * 2 * half + at % 2 * 512;
                low = *reinterpret_cast<const Chunk*>(from), high = *reinterpret_cast<const Chunk*>(from + 256);
            }
            uint32_t q[2][4];
            GK_UNROLL
            for (int i = 0; i < 8; i++) {
                const uint32_t both = (i % 4 < 2 ? low : high).x[i / 4 * 2 + i % 2];
                q[i / 4][i % 4] = eight ? both : (at % 2 ? both >> 4 : both) & 0x0f0f0f0fu;
            }
            constexpr int parts = by16 && set == 1 ? 2 : 1;
            GK_UNROLL
            for (int part = 0; part < parts; part++) {
                const int group = (at * of_tile / 2 + part) % set, first = tile0 * of_tile + at * of_tile / 2 + part - group;
                const char* x_word = x_codes + first * (by16 ? 16 : 32);
                if (group == 0) b[0] = word(x_word), b[1] = by16 ? b[0] : word(x_word + 16);
                uint32_t mine[2];
                if (parts == 2) mine[0] = part == 0 ? b[0] : 0, mine[1] = part == 1 ? b[1] : 0;
                else if (by16) mine[0] = column_group == group ? b[0] : 0, mine[1] = column_group == group + 1 ? b[1] : 0;
                else mine[0] = column_group == group ? b[0] : 0, mine[1] = column_group == group ? b[1] : 0;
                gk::mma_k32(d[0], q[0], mine);
                gk::mma_k32(d[1], q[1], mine);
                if (group + (by16 && parts == 1 ? 2 : 1) != set) continue;
                finish(first, d);
                GK_UNROLL
                for (int i = 0; i < 4; i++) d[0][i] = d[1][i] = 0;
            }
        }
    }
    if constexpr (two_level || k_scales) {
        GK_UNROLL
        for (int i = 0; i < 4; i++) {
            together(sum[i], 4);
            if (k_scales && real_zeros) together(less[k_scales ? i : 0], 4);
        }
        if (group_at != 0) return;
        GK_UNROLL
        for (int j = 0; j < (rows == 1 ? 1 : 2); j++) {
            emit(0, j, sum, stage, false);
            if constexpr (k_scales) {
                if (real_zeros) emit(1, j, less, stage + 64, true);
            }
        }
    }
}
