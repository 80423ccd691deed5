// Products of many rows with integer weights: 9 and more, prompts as well. Bytes of weights are read once for all rows of a block
// of threads, and what bounds grows from those bytes to the products.
//
// A block of threads has some panels and some rows of x, its warps a panel, or half of one, and 16 to 64 rows each; a lane keeps the
// floats of its outputs in registers from the first block of 256 along k to the last, so they are added in the order of k: a
// processor's bits. Weights, codes, scales and sums of a block of 256 come into a stage of shared memory that all warps read, while
// they are at the stages before; the first stages' weights are asked for before the kernel waits for the one ahead. Blocks of threads go
// from unit to unit, and the copies go on across them.
//
// What is exact in integers is left to the tensor cores: of int4_two_level u c is a u8, and minima times sums of codes are a product of
// their own, so an accumulator is looked at once in 256 of k, of int4 and int8 once in a group.
//
// A stage: each panel's block as it lies (packed.h), but quarters of lines 2 and 3, 6 and 7 .. change places by twos, so that lanes read
// from different banks; codes of the rows, a row of 256 in 272 bytes, so that eight rows' 16 bytes lie in different banks; their sums; their scales.

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

// Adds a stage's block of 256 to a warp's outputs: acc [tile of eight rows][part][output 4 g + 2 part + i / 2, row 2 t + i % 2 of element i];
// with one part those of half `half`.
template <Packing packing, bool by16, int count, int parts>
DEVICE void many_block(const WeightFormat& f, const ManyPlan& p, const char* block, int half, int tiles, const ManyRows& x,
                       float (&acc)[count][parts][4]) {
    constexpr bool eight = eight_bits(packing), two_level = packing == Packing::int4_two_level, k_scales = of_k(packing);
    constexpr bool plain = !two_level && !k_scales;
    constexpr int sums_stride = int(block_depth) / (by16 ? 16 : 32);
    using Line = ManyWords<2 * parts>;
    const int lane = gk::lane(), g = lane / 4, t = lane % 4, column = 4 * g + 2 * half;
    const bool real_zeros = f.zero == Zero::real, bf = plain && f.scale_dtype == DType::bf16;
    const char* codes = block + p.header + g / 4 * int(tile_bytes(packing) / 2) + many_chunk(t * 4 + g % 4) * 16 + half * 8;
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
            if (f.zero != Zero::none && (eight || real_zeros)) {
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
                many_fold(s, x, d, acc);
            }
            group++, group_steps = 0;
        }
    }
    if (plain) return;
    many_scales(block, column, bf, false, s);
    many_fold(s, x, d, acc);
    if (!k_scales || !real_zeros) return;
    many_lows<by16, false>(block + k_minima_at(f), column, tiles, 0, x, d);
    many_scales(block + 64, column, bf, true, s);
    many_fold(s, x, d, acc);
}

// A warp writes its outputs: rows [row0, row0 + rows), of which there may be fewer than it has.
template <int count, int parts>
DEVICE void many_store(const PackedLinearArgs& a, int64_t panel, int half, int expert, int row0, int rows, float (&acc)[count][parts][4]) {
    constexpr int outputs = 2 * parts;
    using Outputs = ManyFloats<outputs>;
    const int g = gk::lane() / 4, t = gk::lane() % 4, column = 4 * g + 2 * half;
    const int64_t n = a.gated ? a.n / 2 : a.n, output = a.gated ? panel * 16 + column % 16 : panel * panel_outputs + column;
    const int there = n - output < outputs ? int(n - output) : outputs;
    float bias[outputs] = {};
    const uint64_t places = reinterpret_cast<uintptr_t>(a.out) | reinterpret_cast<uintptr_t>(a.residual) | uint64_t(a.out_stride) * 4;
    const bool whole = there == outputs && places % sizeof(Outputs) == 0;  // all outputs of a row at once
    GK_UNROLL
    for (int i = 0; i < outputs; i++)
        if (a.bias && i < there) bias[i] = a.bias[expert * a.n + output + i + (a.gated && column >= 16 ? n : 0)];
    GK_ROLLED
    for (int r = 0; r < count; r++) {  // acc moves on, so that this is short
        float v[2][outputs];
        GK_UNROLL
        for (int i = 0; i < 2 * outputs; i++) {
            v[i / outputs][i % outputs] = acc[0][i % outputs / 2][i % 2 * 2 + i / outputs];
            if (a.bias) v[i / outputs][i % outputs] += bias[i % outputs];
        }
        GK_UNROLL
        for (int i = 0; i < 4 * parts; i++)
            GK_UNROLL
            for (int to = 0; to + 1 < count; to++) acc[to][i / 4][i % 4] = acc[to + 1][i / 4][i % 4];
        if (a.gated) {  // lanes 16 apart have gates and ups of the same outputs and two rows: each takes a row
            const bool up = g >= 4;
            float gates[outputs], ups[outputs];
            GK_UNROLL
            for (int i = 0; i < outputs; i++) {
                const float mine = up ? v[1][i] : v[0][i], got = gk::shuffle_xor(up ? v[0][i] : v[1][i], 16);
                gates[i] = up ? got : mine, ups[i] = up ? mine : got;
            }
            with_kind(a.kind, [&](auto kind) {
                GK_UNROLL
                for (int i = 0; i < outputs; i++) v[0][i] = v[1][i] = gate<decltype(kind)::value>(gates[i], ups[i]);
            });
        }
        GK_UNROLL
        for (int j = 0; j < 2; j++) {
            const int row = r * 8 + 2 * t + j;
            if (row >= rows || (a.gated && j != g / 4)) continue;
            const int64_t at = int64_t(row0 + row) * a.out_stride + output;
            if (whole) {
                Outputs o;
                GK_UNROLL
                for (int i = 0; i < outputs; i++) o.x[i] = v[j][i];
                if (a.residual) {
                    const Outputs more = *reinterpret_cast<const Outputs*>(a.residual + at);
                    GK_UNROLL
                    for (int i = 0; i < outputs; i++) o.x[i] += more.x[i];
                }
                *reinterpret_cast<Outputs*>(a.out + at) = o;
                continue;
            }
            GK_UNROLL
            for (int i = 0; i < outputs; i++)
                if (i < there) a.out[at + i] = a.residual ? v[j][i] + a.residual[at + i] : v[j][i];
        }
    }
}

// Units: p.panels of the panels [begin, end), with the tiles of p.rows rows of the same panels beside each other. Grid: at most as many
// blocks of threads as there are at once; 32 p.panels p.sharers threads; shared memory p.bytes.
template <Packing packing, bool by16, int way>
GK_KERNEL void GK_BOUNDS(many_warps * 32, many_at_once(packing, way) / many_warps)
    packed_many_kernel(PackedLinearArgs a, ManyPlan p, int64_t begin, int64_t end) {
    gk::let_next_start();
    constexpr int count = many_tiles(way), parts = many_parts(way), sums_stride = int(block_depth) / (by16 ? 16 : 32);
    const WeightFormat& f = a.format;
    const int threads = gk::threads(), warp = gk::thread() / 32, mine = warp / p.sharers, sub = warp % p.sharers;
    const int half = parts == 1 ? sub % 2 : 0, my_row = (parts == 1 ? sub / 2 : sub) * count * 8;
    const bool with_sums = !eight_bits(packing) || f.zero != Zero::none;
    const uint8_t* weight = a.weight + begin * p.panel_bytes;
    char* shared = gk::shared();
    int all_rows = int(a.rows), from_row = 0, expert = 0, row_tiles = 0, units = 0;
    auto lay_out = [&] {
        row_tiles = (all_rows + p.rows - 1) / p.rows;
        units = (int(end - begin) + p.panels - 1) / p.panels * row_tiles;
    };
    auto tiles_of = [&](int b) { return b + 1 < p.blocks ? 4 : p.last_tiles; };
    auto first_of = [&](int unit) { return unit / row_tiles * p.panels; };
    auto row_of = [&](int unit) { return unit % row_tiles * p.rows; };
    auto copy_weights = [&](int panel, int b, char* stage) {
        if (panel + mine >= int(end - begin)) return;
        const uint8_t* from = weight + int64_t(panel + mine) * p.panel_bytes + b * p.block_bytes;
        char* to = stage + mine * p.slot;
        GK_ROLLED
        for (int at = (sub * 32 + gk::lane()) * 16; at < p.header; at += p.sharers * 512) gk::copy_async(to + at, from + at);
        const int bytes = tiles_of(b) * int(tile_bytes(packing));
        from += p.header + gk::lane() * 16, to += p.header + many_chunk(gk::lane()) * 16;
        GK_ROLLED
        for (int at = sub * 512; at < bytes; at += p.sharers * 512) gk::copy_async(to + at, from + at);
    };
    auto copy_rows = [&](int row0, int b, char* stage) {
        const int rows = min_of(p.rows, all_rows - row0), tiles = tiles_of(b), at = gk::thread() % 16;
        row0 += from_row;
        if (at < tiles * 4) {
            const int8_t* from = a.codes + b * int(block_depth) + at * 16;
            char* to = stage + p.codes_at + at * 16;
            GK_ROLLED
            for (int r = gk::thread() / 16; r < rows; r += threads / 16)
                gk::copy_async(to + r * many_x_stride, from + int64_t(row0 + r) * p.codes_stride);
        }
        constexpr int words = sums_stride / 2;
        const int piece = gk::thread() % words;
        if (with_sums && piece < tiles * (words / 4)) {
            const int16_t* from = a.sums + b * sums_stride + piece * 2;
            char* to = stage + p.sums_at + piece * 4;
            GK_ROLLED
            for (int r = gk::thread() / words; r < rows; r += threads / words)
                gk::copy_async_word(to + r * words * 4, from + int64_t(row0 + r) * p.sums_stride);
        }
        GK_ROLLED
        for (int r = gk::thread(); r < rows; r += threads)
            gk::copy_async_word(stage + p.scales_at + r * 4, a.scales + int64_t(row0 + r) * p.blocks + b);
    };
    int copied = 0, copied_unit = int(gk::block()), copied_stage = 0;  // the next block of 256 to be asked for, and of which unit
    auto move_on = [&] {
        if (++copied == p.blocks) copied = 0, copied_unit += int(gk::blocks());
        if (++copied_stage == p.stages) copied_stage = 0;
    };
    auto copy_first = [&](auto copy) {
        copied = 0, copied_unit = int(gk::block()), copied_stage = 0;
        GK_ROLLED
        for (int i = 0; i < p.stages - 1; i++, move_on()) copy(copied_unit < units, shared + copied_stage * p.stage);
    };
    auto first_weights = [&](bool there, char* stage) {
        if (there) copy_weights(first_of(copied_unit), copied, stage);
    };
    if (!a.region) {
        lay_out();
        copy_first(first_weights);
    }
    gk::wait_for_previous();
    if (a.region) {  // which weights, only the kernel before knows
        all_rows = a.region->rows, from_row = a.region->first, expert = a.region->expert;
        if (all_rows <= 0) return;
        weight += int64_t(expert) * (a.gated ? (a.n / 2 + 15) / 16 : (a.n + panel_outputs - 1) / panel_outputs) * p.panel_bytes;
        lay_out();
        copy_first(first_weights);
    }
    copy_first([&](bool there, char* stage) {
        if (there) copy_rows(row_of(copied_unit), copied, stage);
        gk::copy_commit();
    });

    int stage = 0;
    GK_ROLLED
    for (int unit = int(gk::block()); unit < units; unit += int(gk::blocks())) {
        const int panel = first_of(unit) + mine, row0 = row_of(unit) + my_row;
        const bool works = panel < int(end - begin) && row0 < all_rows;
        float acc[count][parts][4] = {};
        GK_ROLLED
        for (int b = 0; b < p.blocks; b++) {
            if (p.stages == 2) gk::copy_wait<0>();
            else if (p.stages == 3) gk::copy_wait<1>();
            else gk::copy_wait<2>();
            gk::sync();  // the stage is everyone's, and that of the round before free
            if (copied_unit < units) {
                copy_weights(first_of(copied_unit), copied, shared + copied_stage * p.stage);
                copy_rows(row_of(copied_unit), copied, shared + copied_stage * p.stage);
                move_on();
            }
            gk::copy_commit();
            const char* at = shared + stage * p.stage;
            if (works) {
                const ManyRows x{at + p.codes_at + my_row * many_x_stride, reinterpret_cast<const int16_t*>(at + p.sums_at) + my_row * sums_stride,
                                 reinterpret_cast<const float*>(at + p.scales_at) + my_row};
                many_block<packing, by16, count, parts>(f, p, at + mine * p.slot, half, tiles_of(b), x, acc);
            }
            if (++stage == p.stages) stage = 0;
        }
        if (works) many_store(a, begin + panel, half, expert, from_row + row0, all_rows - row0, acc);
    }
}
