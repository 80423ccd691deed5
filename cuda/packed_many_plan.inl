// How the work of packed_many.inl is split, and where things lie in its stages.

constexpr int many_warps = 8, many_stages_most = 4, many_ways = 5;
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
// Warps that have registers.
static constexpr int many_at_once(Packing p, int way) {
    return way == 2 || (way == 1 && p != Packing::int4_two_level) ? many_warps : 2 * many_warps;
}
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

// Of all ways to cut the work, the one of least time by reckoning, for a multiprocessor and each 256 along k: instructions, 1.7 a
// clock; those of one warp, which takes 3.5 clocks each; or bytes copied, 22 a clock and as many as are on their way.
// shared: bytes that a block of threads may have.
static constexpr ManyPlan many_plan(const PackedLinearArgs& a, int64_t panels, int64_t processors, int64_t shared) {
    ManyPlan best{};
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth, slot = block_bytes(a.format);
    int64_t least = INT64_MAX;
    for (int way = 0; way < many_ways; way++) {
        const int tiles = many_tiles(way), parts = many_parts(way), cuts = many_cuts(way);
        if (!many_has(a.format, way) || cuts > blocks) continue;
        for (int groups = 1; groups <= 8; groups *= 2) {
            const int64_t sharers = groups * (parts == 1 ? 2 : cuts), rows = groups * tiles * 8, sums = block_depth / sum_depth(a.format) * 2;
            if (groups > 1 && rows / 2 >= a.rows) break;
            for (int64_t each = 1; each * sharers <= many_warps; each++) {
                const int64_t piece = each * slot + rows * (many_x_stride + sums + 4), stage = cuts * piece, warps = each * sharers;
                const int64_t kept = many_stages_most * 8 + (cuts > 1 ? 2 * warps * tiles * parts * 512 : 0);  // barriers and terms
                const int64_t units = (panels + each - 1) / each * ((a.rows + rows - 1) / rows), turns = (units + processors - 1) / processors;
                const int64_t copies = 100 + 70 * cuts + (cuts > 1 ? 100 + 40 * cuts : 0);  // and what is added
                const int64_t work = copies + parts * (many_operands(a.format) + tiles * many_products(a.format));
                for (int64_t resident = 1; resident * warps <= many_at_once(a.format.packing, way) && resident <= turns; resident++) {
                    const int64_t room = ((shared + 1024) / resident - 1024 - kept) / stage, most_stages = cuts > 1 ? 2 : many_stages_most;
                    const int64_t stages = room < most_stages ? room : most_stages;
                    if (stages < 2) break;
                    const int64_t issue = turns * warps * work * 6 / (10 * cuts);
                    const int64_t chain = (turns + resident - 1) / resident * (work * 7 / 2 + 300) / cuts;
                    const int64_t on_way = resident * (stages - 1) * stage / 1600;
                    const int64_t bytes = turns * piece / (on_way < 1 ? 1 : on_way < 22 ? on_way : 22);
                    const int64_t most = issue > chain ? issue : chain, time = (most > bytes ? most : bytes) * 8 + issue + chain + bytes;
                    if (time >= least) continue;
                    least = time;
                    best.way = way, best.panels = int(each), best.sharers = int(sharers), best.rows = int(rows), best.resident = int(resident);
                    best.stages = int(stages), best.stage = int(stage), best.piece = int(piece), best.slot = int(slot);
                    best.codes_at = int(each * slot), best.sums_at = int(best.codes_at + rows * many_x_stride);
                    best.scales_at = int(best.sums_at + rows * sums), best.barriers_at = int(stages * stage);
                    best.terms_at = best.barriers_at + many_stages_most * 8, best.bytes = int(stages * stage + kept);
                }
            }
        }
    }
    best.blocks = int(blocks), best.last_tiles = int((depth - (blocks - 1) * block_depth) / tile_depth);
    best.header = int(header_bytes(a.format)), best.group_steps = int(a.format.group / 32), best.groups = int(block_depth / a.format.group);
    best.codes_stride = int(a.codes_stride), best.sums_stride = int(depth / sum_depth(a.format));
    best.panel_bytes = panel_bytes(a.format, a.k), best.block_bytes = slot;
    return best;
}
