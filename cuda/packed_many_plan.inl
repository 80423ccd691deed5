// How the work of packed_many.inl is split, and where things lie in its stages.

constexpr int many_stages_most = 4, many_ways = 5;
constexpr int many_x_stride = int(block_depth) + 16;
// The ways a warp may work: tiles of eight rows, products of 16 outputs (a panel has two), and among how many warps k is cut, block of 256
// by block of 256.
static constexpr int many_tiles(int way) { return way < 3 ? 2 << way : 4; }
static constexpr int many_parts(int way) { return way == 0 ? 1 : 2; }
static constexpr int many_cuts(int way) { return way < 3 ? 1 : way == 3 ? 2 : 4; }
// Cut are those whose sums get one scale in 256.
static constexpr bool many_has(Packing p, int way) {
    return way < 2 || (way == 2 && !of_k(p)) || (way > 2 && (p == Packing::int4_two_level || p == Packing::int8));
}
static constexpr bool many_has(const WeightFormat& f, int way) {
    return many_has(f.packing, way) && (way < 3 || (f.group == block_depth && f.zero == Zero::none));
}
// Warps of a multiprocessor that have registers, in one block of threads or several.
static constexpr int many_warps(Packing p, int way) { return way == 2 || (way == 1 && p != Packing::int4_two_level) ? 8 : 16; }
struct ManyPlan {
    int way, panels, sharers, rows;  // of a block of threads: panels, warps of each (a power of two), rows of x
    int resident;                    // blocks of threads that a multiprocessor has at once
    // Shared memory: slot is a panel's block of 256, piece one of all panels and rows, stage as many of these as k is cut among warps.
    int stages, stage, piece, slot, codes_at, sums_at, scales_at, terms_at, barriers_at, bytes;
    int blocks, last_tiles, header, group_steps, groups;           // along k; steps are of 32
    int codes_stride, sums_stride;
    int64_t panel_bytes, block_bytes;
};

// Instructions of a warp for a block of 256: what it does for each product of 16 outputs, and for each tile of eight rows of it.
static constexpr int64_t many_operands(const WeightFormat& f) {
    return f.packing == Packing::int4_two_level ? 150 : eight_bits(f.packing) ? 40 : 110;
}
static constexpr int64_t many_products(const WeightFormat& f) {
    if (of_k(f.packing)) return f.group == 16 ? 170 : 100;
    return f.packing == Packing::int4_two_level ? 34 : 12 + 14 * block_depth / f.group;
}

// A way to cut the work: `each` panels and `groups` warps along the rows in a block of threads; no stages where it does not fit.
// shared: bytes that a block of threads may have.
static constexpr ManyPlan many_place(const PackedLinearArgs& a, int way, int64_t groups, int64_t each, int64_t resident, int64_t shared) {
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth, slot = block_bytes(a.format);
    const int64_t tiles = many_tiles(way), parts = many_parts(way), cuts = many_cuts(way), rows = groups * tiles * 8;
    ManyPlan p{};
    p.way = way, p.panels = int(each), p.sharers = int(groups * (parts == 1 ? 2 : cuts)), p.rows = int(rows), p.resident = int(resident);
    const int64_t warps = each * p.sharers, terms = cuts > 1 ? warps * tiles * parts * 512 : 0;
    p.slot = int(slot), p.codes_at = int(each * slot), p.sums_at = int(p.codes_at + rows * many_x_stride);
    p.scales_at = int(p.sums_at + rows * (block_depth / sum_depth(a.format) * 2)), p.piece = int(p.scales_at + rows * 4);
    p.stage = int(cuts * p.piece);
    const int64_t room = ((shared + 1024) / resident - 1024 - many_stages_most * 8 - terms) / p.stage;
    const int64_t most = cuts == 1 ? many_stages_most : (blocks + cuts - 1) / cuts < 3 ? 2 : 3, stages = room < most ? room : most;
    p.stages = stages >= 2 && cuts <= blocks && warps * resident <= many_warps(a.format.packing, way) ? int(stages) : 0;
    p.barriers_at = p.stages * p.stage, p.terms_at = p.barriers_at + many_stages_most * 8, p.bytes = int(p.terms_at + terms);
    p.blocks = int(blocks), p.last_tiles = int((depth - (blocks - 1) * block_depth) / tile_depth);
    p.header = int(header_bytes(a.format)), p.group_steps = int(a.format.group / 32), p.groups = int(block_depth / a.format.group);
    p.codes_stride = int(a.codes_stride), p.sums_stride = int(depth / sum_depth(a.format));
    p.panel_bytes = panel_bytes(a.format, a.k), p.block_bytes = slot;
    return p;
}

// By reckoning, of a multiprocessor and each 256 along k: instructions, 1.7 a clock; those of one warp, which takes 3.5 clocks each; or
// bytes copied, 22 a clock and as many as are on their way.
static constexpr int64_t many_time(const PackedLinearArgs& a, const ManyPlan& p, int64_t panels, int64_t processors) {
    const int64_t cuts = many_cuts(p.way), warps = p.panels * p.sharers;
    const int64_t units = (panels + p.panels - 1) / p.panels * ((a.rows + p.rows - 1) / p.rows), turns = (units + processors - 1) / processors;
    const int64_t beside = 100 + 70 * cuts + (cuts > 1 ? 100 + 40 * cuts : 0);  // copies, and what is added
    const int64_t work = beside + many_parts(p.way) * (many_operands(a.format) + many_tiles(p.way) * many_products(a.format));
    const int64_t issue = turns * warps * work * 6 / (10 * cuts), chain = (turns + p.resident - 1) / p.resident * (work * 7 / 2 + 300) / cuts;
    const int64_t on_way = int64_t(p.resident) * (p.stages - 1) * p.stage / 1600;
    const int64_t bytes = turns * p.piece / (on_way < 1 ? 1 : on_way < 22 ? on_way : 22);
    const int64_t most = issue > chain ? issue : chain;
    return (most > bytes ? most : bytes) * 8 + issue + chain + bytes;
}

// Of all ways to cut the work, the one of least time.
static constexpr ManyPlan many_plan(const PackedLinearArgs& a, int64_t panels, int64_t processors, int64_t shared) {
    ManyPlan best{};
    int64_t least = INT64_MAX;
    for (int way = 0; way < many_ways; way++) {
        if (!many_has(a.format, way)) continue;
        for (int groups = 1; groups <= 8 && (groups == 1 || groups * many_tiles(way) * 4 < a.rows); groups *= 2) {
            for (int each = 1; each <= 8; each++) {
                for (int resident = 1; resident <= 8; resident++) {
                    const ManyPlan p = many_place(a, way, groups, each, resident, shared);
                    if (p.stages == 0) break;
                    const int64_t time = many_time(a, p, panels, processors);
                    if (time < least) least = time, best = p;
                }
            }
        }
    }
    return best;
}
