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
    // The next block of 256 to be asked for: of which unit, and where a thread finds its share.
    constexpr int words = sums_stride / 2;
    const int chunk = gk::thread() % 16, chunk_row = gk::thread() / 16, piece = gk::thread() % words, piece_row = gk::thread() / words;
    int copied = 0, copied_unit = 0, copied_stage = 0, copied_rows = 0;
    const uint8_t* from_weight = nullptr;
    const int8_t* from_codes = nullptr;
    uint32_t from_sums = 0, from_scales = 0;
    auto find = [&] {
        const int panel = first_of(copied_unit) + mine, row0 = row_of(copied_unit) + from_row;
        from_weight = copied_unit < units && panel < int(end - begin) ? weight + int64_t(panel) * p.panel_bytes : nullptr;
        copied_rows = copied_unit < units ? min_of(p.rows, all_rows - row_of(copied_unit)) : 0;
        from_codes = a.codes + int64_t(row0 + chunk_row) * p.codes_stride + chunk * 16;
        from_sums = uint32_t(row0 + piece_row) * p.sums_stride + piece * 2, from_scales = uint32_t(row0 + gk::thread()) * p.blocks;
    };
    auto begin_copies = [&] { copied = 0, copied_unit = int(gk::block()), copied_stage = 0, find(); };
    auto move_on = [&] {
        if (++copied_stage == p.stages) copied_stage = 0;
        if (from_weight) from_weight += p.block_bytes;
        from_codes += block_depth, from_sums += sums_stride, from_scales++;
        if (++copied == p.blocks) copied = 0, copied_unit += int(gk::blocks()), find();
    };
    auto copy_weights = [&] {
        if (!from_weight) return;
        const uint8_t* from = from_weight + gk::lane() * 16;
        char* to = shared + copied_stage * p.stage + mine * p.slot;
        GK_ROLLED
        for (int at = sub * 512; at < p.header; at += p.sharers * 512)
            if (at + gk::lane() * 16 < p.header) gk::copy_async(to + at + gk::lane() * 16, from + at);
        const int pieces = tiles_of(copied) * int(tile_bytes(packing) / 512), share = (pieces + p.sharers - 1) >> p.sharers_shift;
        int left = min_of(share, pieces - sub * share);
        from += p.header + sub * share * 512, to += p.header + sub * share * 512 + many_chunk(gk::lane()) * 16;
        GK_ROLLED
        for (; left >= 4; left -= 4, from += 4 * 512, to += 4 * 512)
            GK_UNROLL
            for (int i = 0; i < 4; i++) gk::copy_async(to + i * 512, from + i * 512);
        GK_ROLLED
        for (; left > 0; left--, from += 512, to += 512) gk::copy_async(to, from);
    };
    auto copy_rows = [&] {
        const int tiles = tiles_of(copied);
        char* to = shared + copied_stage * p.stage;
        if (chunk < tiles * 4) {
            const int8_t* from = from_codes;
            char* at = to + p.codes_at + chunk_row * many_x_stride + chunk * 16;
            const int turn = threads / 16;
            const int64_t step = int64_t(turn) * p.codes_stride;
            int r = chunk_row;
            GK_ROLLED
            for (; r + 3 * turn < copied_rows; r += 4 * turn)
                GK_UNROLL
                for (int i = 0; i < 4; i++, from += step, at += turn * many_x_stride) gk::copy_async(at, from);
            GK_ROLLED
            for (; r < copied_rows; r += turn, from += step, at += turn * many_x_stride) gk::copy_async(at, from);
        }
        if (with_sums && piece < tiles * (words / 4)) {
            const int16_t* from = a.sums + from_sums;
            GK_ROLLED
            for (int r = piece_row; r < copied_rows; r += threads / words, from += threads / words * p.sums_stride)
                gk::copy_async_word(to + p.sums_at + (r * words + piece) * 4, from);
        }
        const float* from = a.scales + from_scales;
        GK_ROLLED
        for (int r = gk::thread(); r < copied_rows; r += threads, from += threads * p.blocks) gk::copy_async_word(to + p.scales_at + r * 4, from);
    };
    auto first_weights = [&] {
        lay_out();
        begin_copies();
        GK_ROLLED
        for (int i = 0; i < p.stages - 1; i++, move_on()) copy_weights();
    };
    if (!a.region) first_weights();
    gk::wait_for_previous();
    if (a.region) {  // which weights, only the kernel before knows
        all_rows = a.region->rows, from_row = a.region->first, expert = a.region->expert;
        if (all_rows <= 0) return;
        weight += int64_t(expert) * (a.gated ? (a.n / 2 + 15) / 16 : (a.n + panel_outputs - 1) / panel_outputs) * p.panel_bytes;
        first_weights();
    }
    begin_copies();
    GK_ROLLED
    for (int i = 0; i < p.stages - 1; i++, move_on()) {
        copy_rows();
        gk::copy_commit();
    }

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
            copy_weights(), copy_rows(), move_on();
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
