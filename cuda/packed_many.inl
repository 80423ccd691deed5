// Products of many rows with integer weights: 9 and more, prompts as well. Bytes of weights are read once for all rows of a block
// of threads, and what bounds grows from those bytes to the products.
//
// A block of threads has some panels and some rows of x, its warps a panel, or half of one, and 16 to 64 rows each; a lane keeps the
// floats of its outputs in registers from the first block of 256 along k to the last, so they are added in the order of k: a
// processor's bits. Weights, codes, scales and sums of a block of 256 come into a stage of shared memory that all these warps read, while
// they are at the stages before: by bulk copies, so that asking for them is little work; the first stages' weights are asked for before
// the kernel waits for the one ahead. Blocks of threads go from unit to unit, and the copies go on across them. Where panels are few, k is
// cut among two or four warps: each takes a block of 256 of a stage, shows its exact sums, and adds those of all for some of the rows, in
// the order of k.
//
// What is exact in integers is left to the tensor cores: of int4_two_level u c is a u8, and minima times sums of codes are a product of
// their own, so an accumulator is looked at once in 256 of k, of int4 and int8 once in a group.
//
// A piece of a stage: each panel's block as it lies (packed.h); codes of the rows, a row of 256 in 272 bytes, so that eight rows' 16 bytes lie
// in different banks; their sums; their scales.

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

// What a launch is of: rows, or those of a region of all places, which only the kernel before knows.
struct ManyWork {
    int rows, from_row, expert, panels, row_tiles, units;
    int64_t first_panel;
};
DEVICE ManyWork many_work(const PackedLinearArgs& a, const ManyPlan& p, int64_t begin, int panels, const Region* region) {
    const int rows = region ? region->rows : int(a.rows), row_tiles = (rows + p.rows - 1) / p.rows, expert = region ? region->expert : 0;
    const int64_t all = a.gated ? (a.n / 2 + 15) / 16 : (a.n + panel_outputs - 1) / panel_outputs;  // panels of an expert
    return {rows, region ? region->first : 0, expert, panels, row_tiles, (panels + p.panels - 1) / p.panels * row_tiles, begin + expert * all};
}

// Units: p.panels of the panels [begin, end), with the tiles of p.rows rows of the same panels beside each other. Grid: at most as many
// blocks of threads as there are at once; 32 p.panels p.sharers threads; shared memory p.bytes.
template <Packing packing, bool by16, int way>
GK_KERNEL void GK_BOUNDS(many_warps(packing, way) * 32, 1)
    packed_many_kernel(PackedLinearArgs a, ManyPlan p, int64_t begin, int64_t end) {
    constexpr int count = many_tiles(way), parts = many_parts(way), cuts = many_cuts(way), own = count / cuts;  // own: tiles of rows to add up
    constexpr int sums_stride = int(block_depth) / (by16 ? 16 : 32);
    const WeightFormat& f = a.format;
    const int warp = gk::thread() / 32, panels = int(end - begin);
    auto tiles_of = [&](int b) { return b + 1 < p.blocks ? 4 : p.last_tiles; };
    // Loose: warps are up to a block of 256 apart, so that some multiply while others prepare. A warp's arrival at a stage's barrier says that its
    // copies of that stage are there, and that it is done with all up to two before, which are free then.
    const bool loose = cuts == 1 && p.stages == many_stages_most;
    const int ahead = loose ? many_stages_most - 2 : p.stages - 1;  // stages that are asked for
    char* shared = gk::shared();
    auto* barriers = reinterpret_cast<uint64_t*>(shared + p.barriers_at);
    if (gk::thread() == 0)
        for (int i = 0; i < p.stages; i++) gk::barrier_make(barriers + i, loose ? gk::threads() / 32 : 0);
    gk::sync();
    const int mine = warp / p.sharers, sub = warp % p.sharers;
    ManyWork work{};
    // What a block of threads copies: stage after stage, `cuts` blocks of 256 each, of unit after unit. A panel is asked for by the first lane
    // of its first warp, rows by a thread each.
    int copied_unit = 0, copied = 0, copied_stage = 0, copied_panels = 0, copied_rows = 0, copied_row0 = 0;
    const uint8_t* from = nullptr;
    auto find = [&] {
        const int first = copied_unit / work.row_tiles * p.panels, tile0 = copied_unit % work.row_tiles * p.rows;
        const bool there = copied_unit < work.units;
        copied_panels = there ? min_of(p.panels, panels - first) : 0, copied_rows = there ? min_of(p.rows, work.rows - tile0) : 0;
        copied_row0 = work.from_row + tile0;
        from = a.weight + (work.first_panel + first + mine) * p.panel_bytes;
    };
    auto copy_rows = [&](int tiles, char* to, uint64_t* barrier) {
        constexpr int words = sums_stride / 2;  // of two sums each
        const bool with_sums = !eight_bits(packing) || f.zero != Zero::none;
        GK_ROLLED
        for (int r = gk::thread(); r < copied_rows; r += gk::threads()) {
            const int64_t row = copied_row0 + r;
            const int8_t* codes = a.codes + row * p.codes_stride + copied * int(block_depth);
            gk::copy_piece(to + p.codes_at + r * many_x_stride, codes, tiles * int(tile_depth), barrier);
            gk::copy_async_word(to + p.scales_at + r * 4, a.scales + row * p.blocks + copied);
            if (!with_sums) continue;
            const int16_t* sums = a.sums + row * p.sums_stride + copied * sums_stride;
            char* sums_to = to + p.sums_at + r * words * 4;
            if (tiles == 4 && reinterpret_cast<uintptr_t>(sums) % 16 == 0) {
                GK_UNROLL
                for (int i = 0; i < words; i += 4) gk::copy_async(sums_to + i * 4, sums + i * 2);
            } else {
                GK_ROLLED
                for (int i = 0; i < tiles * (words / 4); i++) gk::copy_async_word(sums_to + i * 4, sums + i * 2);
            }
        }
    };
    // Asks for the next stage, of weights and rows or one of them; a stage is whole once its rows have been asked for.
    auto fill = [&](bool weights, bool rows) {
        char* to = shared + copied_stage * p.stage;
        uint64_t* barrier = barriers + copied_stage;
        int bytes = 0;
        GK_ROLLED
        for (int left = cuts; left > 0; left--, to += p.piece) {
            const int tiles = tiles_of(copied), size = p.header + tiles * int(tile_bytes(packing));
            if (weights && sub == 0 && gk::lane() == 0 && mine < copied_panels) gk::copy_piece(to + mine * p.slot, from, size, barrier);
            if (rows) copy_rows(tiles, to, barrier);
            bytes += copied_panels * size + copied_rows * tiles * int(tile_depth);
            from += p.block_bytes;
            if (++copied < p.blocks) continue;
            copied = 0, copied_unit += int(gk::blocks()), find();
            break;
        }
        if (rows && gk::thread() == 0) gk::copy_expect(barrier, bytes);
        if (rows) gk::copy_commit();
        if (++copied_stage == p.stages) copied_stage = 0;
    };
    auto first_fills = [&](bool weights, bool rows) {
        copied_unit = int(gk::block()), copied = 0, copied_stage = 0, find();
        GK_ROLLED
        for (int i = 0; i < ahead; i++) fill(weights, rows);
    };
    if (!a.region) {
        work = many_work(a, p, begin, panels, nullptr);
        first_fills(true, false);
    }
    gk::wait_for_previous();
    gk::let_next_start();  // not earlier, or the blocks of three kernels wait in one multiprocessor
    if (a.region) {  // which weights, only the kernel before knows
        work = many_work(a, p, begin, panels, a.region);
        if (work.rows <= 0) return;
    }
    first_fills(a.region != nullptr, true);

    const int half = parts == 1 ? sub % 2 : 0, slice = sub % cuts, my_row = sub / (parts == 1 ? 2 : cuts) * count * 8;
    int stage = 0, parity = 0;
    if (loose) {
        gk::copy_wait<1>();
        gk::sync_warp();
        if (gk::lane() == 0) gk::barrier_arrive(barriers);
    }
    GK_ROLLED
    for (int unit = int(gk::block()); unit < work.units; unit += int(gk::blocks())) {
        const int panel = unit / work.row_tiles * p.panels + mine, row0 = unit % work.row_tiles * p.rows + my_row;
        const bool works = panel < panels && row0 < work.rows;
        float acc[own][parts][4] = {};
        GK_ROLLED
        for (int b = 0; b < p.blocks; b += cuts) {
            if (loose) {
                gk::copy_wait<0>();
                gk::sync_warp();
                if (gk::lane() == 0) gk::barrier_arrive(barriers + (stage + 1) % many_stages_most);
                gk::barrier_wait(barriers + stage, parity);
            } else {
                if (p.stages == 2) gk::copy_wait<0>();
                else if (p.stages == 3) gk::copy_wait<1>();
                else gk::copy_wait<2>();
                gk::barrier_wait(barriers + stage, parity);
                gk::sync();  // the stage is everyone's, and that of the round before free
            }
            fill(true, true);
            const char *at = shared + stage * p.stage, *mine_at = at + slice * p.piece;
            const ManyRows x{mine_at + p.codes_at + my_row * many_x_stride,
                             reinterpret_cast<const int16_t*>(mine_at + p.sums_at) + my_row * sums_stride,
                             reinterpret_cast<const float*>(mine_at + p.scales_at) + my_row};
            if constexpr (cuts == 1) {
                if (works) many_block<packing, by16, count, parts>(f, p, at + mine * p.slot, half, tiles_of(b), x, acc);
            } else if (works) {  // what a warp finds goes to those that add up its rows
                float none[count][parts][4];
                constexpr int share = count * parts * 32;  // of a warp
                auto* terms = reinterpret_cast<ManyFloats<4>*>(shared + p.terms_at) + gk::lane();
                terms += (warp - slice) * share;
                auto show = [&](const float(&)[parts][2], const int32_t(&d)[count][parts][4]) {
                    GK_UNROLL
                    for (int i = 0; i < count * parts; i++) {
                        const int32_t(&v)[4] = d[i / parts][i % parts];
                        terms[(slice * count * parts + i) * 32] = {float(v[0]), float(v[1]), float(v[2]), float(v[3])};
                    }
                };
                if (b + slice < p.blocks)
                    many_block<packing, by16, count, parts, true>(f, p, mine_at + mine * p.slot, 0, tiles_of(b + slice), x, none, show);
                gk::sync_some(1 + warp / cuts, 32 * cuts);
                GK_UNROLL
                for (int c = 0; c < cuts; c++) {
                    if (b + c >= p.blocks) continue;
                    float s[parts][2];
                    const bool bf = packing == Packing::int8 && f.scale_dtype == DType::bf16;
                    many_scales(at + c * p.piece + mine * p.slot, gk::lane() / 4 * 4, bf, false, s);
                    many_add<own, parts>(s, reinterpret_cast<const float*>(at + c * p.piece + p.scales_at) + my_row + slice * own * 8,
                                         terms + (c * count + slice * own) * parts * 32, acc);
                }
            }
            if (++stage == p.stages) stage = 0, parity ^= 1;
        }
        if (works) many_store(a, begin + panel, half, work.expert, work.from_row + row0 + slice * own * 8, work.rows - row0 - slice * own * 8, acc);
    }
}
