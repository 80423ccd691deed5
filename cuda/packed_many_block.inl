// What a warp of packed_many.inl does with a stage's block of 256 along k.

template <int count>
struct alignas(4 * count) ManyWords {
    uint32_t x[count];
};
template <int count>
struct alignas(4 * count) ManyFloats {
    float x[count];
};

// A warp's rows in a stage.
struct ManyRows {
    const char* codes;
    const int16_t* sums;
    const float* scales;
};

// d = the sums of low * (sum of x) over the groups of a block: a product as well, of lows (u8, or i8 where they have a sign) with sums cut
// in 64 high + low. Of its 32 of k, or 16, lane t's are the groups of tile t: byte 0 and 1 the parts of the first sum, 2 and 3 the second's.
template <bool by16, bool with_sign, int count, int parts>
DEVICE void many_lows(const char* lows, int column, int tiles, uint32_t flip, const ManyRows& x, int32_t (&d)[count][parts][4]) {
    constexpr int sums_stride = int(block_depth) / (by16 ? 16 : 32);
    const int g = gk::lane() / 4, t = gk::lane() % 4;
    uint32_t low[parts][4];
    GK_UNROLL
    for (int part = 0; part < parts; part++) {
        const char* at = lows + t * (by16 ? 128 : 64) + (column + 2 * part) * 2;
        uint32_t w = t < tiles ? word(at) : 0, more = by16 && t < tiles ? word(at + 64) : 0;  // two outputs x two steps; more: their second 16
        if (flip) w = (flip - w) ^ flip;  // -m of m 0 .. 128
        if (by16) {
            GK_UNROLL
            for (int i = 0; i < 4; i++) low[part][i] = (w >> (16 * (i % 2) + 8 * (i / 2)) & 255) | (more >> (16 * (i % 2) + 8 * (i / 2)) & 255) << 16;
        } else {
            low[part][0] = (w & 0xff) | (w & 0xff00) << 8, low[part][1] = (w >> 16 & 0xff) | (w >> 8 & 0xff0000);
            low[part][2] = low[part][3] = 0;
        }
    }
    GK_UNROLL
    for (int n = 0; n < count; n++) {
        const int16_t* sums = x.sums + (n * 8 + g) * sums_stride + t * (by16 ? 4 : 2);
        auto cut = [](uint32_t two) { return (two & 0x003f003fu) | (two << 2 & 0xff00ff00u); };
        const uint32_t b[2] = {cut(word(sums)), by16 ? cut(word(sums + 2)) : 0};
        GK_UNROLL
        for (int part = 0; part < parts; part++) {
            auto add = [&](int shift) {
                const uint32_t q[4] = {low[part][0] << shift, low[part][1] << shift, low[part][2] << shift, low[part][3] << shift};
                if (!with_sign) gk::mma_k32_u8(d[n][part], q, b);
                else if (by16) gk::mma_k32(d[n][part], q, b);
                else gk::mma_k16(d[n][part], q[0], q[1], b[0]);
            };
            GK_UNROLL
            for (int i = 0; i < 4; i++) d[n][part][i] = 0;
            add(8);
            GK_UNROLL
            for (int i = 0; i < 4; i++) d[n][part][i] *= 64;
            add(0);
        }
    }
}

// Scales of a lane's outputs, of sign `sign`.
template <int parts>
DEVICE void many_scales(const char* scales, int column, bool bf, bool negative, float (&s)[parts][2]) {
    const auto bits = *reinterpret_cast<const ManyWords<parts>*>(scales + 2 * column);
    GK_UNROLL
    for (int i = 0; i < 2 * parts; i++) {
        const float scale = scale_bits(uint16_t(bits.x[i / 2] >> i % 2 * 16), bf);
        s[i / 2][i % 2] = negative ? -scale : scale;
    }
}
// acc += d * (scale * scale of x), d = 0.
template <int count, int parts>
DEVICE void many_fold(const float (&s)[parts][2], const ManyRows& x, int32_t (&d)[count][parts][4], float (&acc)[count][parts][4]) {
    const int t = gk::lane() % 4;
    GK_UNROLL
    for (int n = 0; n < count; n++) {
        const auto x_scales = *reinterpret_cast<const ManyFloats<2>*>(x.scales + n * 8 + 2 * t);
        GK_UNROLL
        for (int part = 0; part < parts; part++)
            GK_UNROLL
            for (int i = 0; i < 4; i++) {
                acc[n][part][i] = gk::fma(float(d[n][part][i]), s[part][i / 2] * x_scales.x[i % 2], acc[n][part][i]);
                d[n][part][i] = 0;
            }
    }
}

// The same of terms that a warp has shown, its fragments one after the other.
template <int count, int parts>
DEVICE void many_add(const float (&s)[parts][2], const float* x_scales, const ManyFloats<4>* terms, float (&acc)[count][parts][4]) {
    GK_UNROLL
    for (int n = 0; n < count; n++) {
        const auto two = *reinterpret_cast<const ManyFloats<2>*>(x_scales + n * 8 + 2 * (gk::lane() % 4));
        GK_UNROLL
        for (int part = 0; part < parts; part++) {
            const ManyFloats<4> term = terms[(n * parts + part) * 32];
            GK_UNROLL
            for (int i = 0; i < 4; i++) acc[n][part][i] = gk::fma(term.x[i], s[part][i / 2] * two.x[i % 2], acc[n][part][i]);
        }
    }
}

// A stage's block of 256: fold(scales, d) gets a warp's sums of integers once for each scale, and leaves zeros; what has other zeros than
// int4's adds them to acc itself, and is not cut.
template <Packing packing, bool by16, int count, int parts, bool cut, class Fold>
DEVICE void many_block(const WeightFormat& f, const ManyPlan& p, const char* block, int half, int tiles, const ManyRows& x,
                       float (&acc)[count][parts][4], Fold fold) {
    constexpr bool eight = eight_bits(packing), two_level = packing == Packing::int4_two_level, k_scales = of_k(packing);
    constexpr bool plain = !two_level && !k_scales;
    constexpr int sums_stride = int(block_depth) / (by16 ? 16 : 32);
    using Line = ManyWords<2 * parts>;
    const int lane = gk::lane(), g = lane / 4, t = lane % 4, column = 4 * g + 2 * half;
    const bool real_zeros = f.zero == Zero::real, bf = plain && f.scale_dtype == DType::bf16;
    const char* codes = block + p.header + g / 4 * int(tile_bytes(packing) / 2) + t * 64 + g % 4 * 16 + half * 8;
    const char* x_codes = x.codes + (lane % 8 + lane / 16 * 8) * many_x_stride + lane / 8 % 2 * 16;
    int32_t d[count][parts][4] = {};
    float s[parts][2];
    if (two_level) many_lows<by16, true>(block + 192, column, tiles, 0x80808080u, x, d);
    if (k_scales && !eight && !real_zeros) {
        many_lows<by16, true>(block + k_scales_at(f), column, tiles, 0, x, d);
        GK_UNROLL
        for (int n = 0; n < count; n++)
            GK_UNROLL
            for (int i = 0; i < 4 * parts; i++) d[n][i / 4][i % 4] *= -8;
    }
    uint32_t zeros[parts][2];  // int4: four bytes of what is taken from codes
    GK_UNROLL
    for (int i = 0; i < 2 * parts; i++) zeros[i / 2][i % 2] = real_zeros ? 0 : 0x08080808u;
    int group = 0, group_steps = 0;
    Line w[2] = {*reinterpret_cast<const Line*>(codes), *reinterpret_cast<const Line*>(codes + 256)};  // lines t and t + 4
    GK_ROLLED
    for (int tile = 0; tile < tiles; tile++, codes += tile_bytes(packing), x_codes += tile_depth) {
        const uint32_t factors = two_level ? word(block + 64 + tile * 32 + 4 * g) >> 16 * half : 0;
        ManyWords<parts> k_factors[by16 ? 2 : 1];
        GK_UNROLL
        for (int i = 0; k_scales && i < (by16 ? 2 : 1); i++)
            k_factors[i] = *reinterpret_cast<const ManyWords<parts>*>(block + k_scales_at(f) + tile * (by16 ? 128 : 64) + i * 64 + 2 * column);
        GK_UNROLL
        for (int step = 0; step < 2; step++) {
            gk::Words4 b[count / 2];  // two tiles of rows each
            GK_UNROLL
            for (int n = 0; n < count / 2; n++) b[n] = gk::load_matrix(x_codes + n * 16 * many_x_stride + step * 32);
            if (plain && !eight && f.zero == Zero::integer && group_steps == 0) {
                const uint32_t z = word(block + p.groups * 64 + group * 32 + 4 * g) >> 16 * half;
                GK_UNROLL
                for (int i = 0; i < 2 * parts; i++) zeros[i / 2][i % 2] = (z >> 8 * i & 255) * 0x01010101u;
            }
            uint32_t q[parts][4];
            GK_UNROLL
            for (int part = 0; part < parts; part++)
                GK_UNROLL
                for (int i = 0; i < 4; i++) {
                    const uint32_t both = w[i / 2].x[2 * part + i % 2], four = (both >> 4 * step) & 0x0f0f0f0fu;
                    if (eight) q[part][i] = both;
                    else if (two_level) q[part][i] = four * (factors >> (8 * (2 * part + i % 2) + 4 * step) & 15);
                    else if (plain) q[part][i] = ((four | 0x80808080u) - zeros[part][i % 2]) ^ 0x80808080u;
                    else q[part][i] = four;
                }
            if (eight || step == 1) {  // what comes next is on its way while the tensor cores work; behind the last tile lies something as well
                const char* next = step == 0 ? codes + 512 : codes + tile_bytes(packing);
                w[0] = *reinterpret_cast<const Line*>(next), w[1] = *reinterpret_cast<const Line*>(next + 256);
            }
            GK_UNROLL
            for (int n = 0; n < count; n++) {
                const uint32_t b2[2] = {b[n / 2].x[n % 2 * 2], b[n / 2].x[n % 2 * 2 + 1]};
                GK_UNROLL
                for (int part = 0; part < parts; part++) {
                    if (two_level) gk::mma_k32_u8(d[n][part], q[part], b2);
                    else if (plain) gk::mma_k32(d[n][part], q[part], b2);
                    else {
                        GK_UNROLL
                        for (int i = 0; i < (by16 ? 2 : 1); i++) {  // groups of 16: half of a step each
                            int32_t e[4] = {0, 0, 0, 0};
                            if (by16) gk::mma_k16(e, q[part][2 * i], q[part][2 * i + 1], b2[i]);
                            else gk::mma_k32(e, q[part], b2);
                            GK_UNROLL
                            for (int j = 0; j < 4; j++) d[n][part][j] += int8_t(k_factors[i].x[part] >> (16 * (j / 2) + 8 * step)) * e[j];
                        }
                    }
                }
            }
            const int done = tile * 2 + step + 1;
            if (!plain || (++group_steps < p.group_steps && done < 2 * tiles)) continue;
            const char* scales = block + group * 64;
            many_scales(scales, column, bf, false, s);
            if (!cut && f.zero != Zero::none && (eight || real_zeros)) {
                float low[parts][2];  // real zeros
                if (real_zeros) many_scales(scales + p.groups * 64, column, bf, false, low);
                const uint32_t z = real_zeros ? 0 : word(block + p.groups * 64 + group * 32 + 4 * g) >> 16 * half;
                GK_UNROLL
                for (int n = 0; n < count; n++)
                    GK_UNROLL
                    for (int j = 0; j < 2; j++) {
                        const float x_scale = x.scales[n * 8 + 2 * t + j];
                        int32_t x_sum = 0;
                        GK_ROLLED
                        for (int i = done - group_steps; i < done; i++) x_sum += x.sums[(n * 8 + 2 * t + j) * sums_stride + i];
                        GK_UNROLL
                        for (int i = 0; i < 2 * parts; i++) {
                            int32_t& sum = d[n][i / 2][i % 2 * 2 + j];
                            float& to = acc[n][i / 2][i % 2 * 2 + j];
                            to = gk::fma(float(sum - int8_t(z >> 8 * i) * x_sum), s[i / 2][i % 2] * x_scale, to);
                            if (real_zeros) to = gk::fma(float(x_sum), low[i / 2][i % 2] * x_scale, to);
                            sum = 0;
                        }
                    }
            } else {
                fold(s, d);
            }
            group++, group_steps = 0;
        }
    }
    if (plain) return;
    many_scales(block, column, bf, false, s);
    fold(s, d);
    if (!k_scales || !real_zeros) return;
    many_lows<by16, false>(block + k_minima_at(f), column, tiles, 0, x, d);
    many_scales(block + 64, column, bf, true, s);
    fold(s, d);
}

// Adds a stage's block of 256 to a warp's outputs: acc [tile of eight rows][part][output 4 g + 2 part + i / 2, row 2 t + i % 2 of element i];
// with one part those of half `half`.
template <Packing packing, bool by16, int count, int parts>
DEVICE void many_block(const WeightFormat& f, const ManyPlan& p, const char* block, int half, int tiles, const ManyRows& x,
                       float (&acc)[count][parts][4]) {
    many_block<packing, by16, count, parts, false>(f, p, block, half, tiles, x, acc, [&](const float(&s)[parts][2], int32_t(&d)[count][parts][4]) {
        many_fold(s, x, d, acc);
    });
}
