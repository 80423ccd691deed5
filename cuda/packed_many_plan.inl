// How the work of packed_many.inl is split, and where things lie in its stages.

constexpr int many_warps = 8, many_stages_most = 4;
constexpr int many_x_stride = int(block_depth) + 16;
// The ways a warp may work: tiles of eight rows, and products of 16 outputs (a panel has two).
static constexpr int many_tiles(int way) { return 2 << way; }
static constexpr int many_parts(int way) { return way == 0 ? 1 : 2; }
static constexpr int many_ways(Packing p) { return of_k(p) ? 2 : 3; }
// Warps that have registers.
static constexpr int many_at_once(Packing p, int way) {
    return way == 0 || (way == 1 && p == Packing::int4_two_level) ? 2 * many_warps : many_warps;
}
// Where 16 bytes of a panel's codes lie in a stage, counted in such.
HOST_DEVICE constexpr int many_chunk(int chunk) { return chunk ^ (chunk / 8 % 2 * 2); }

struct ManyPlan {
    int way, panels, sharers, rows;  // of a block of threads: panels, warps of each (a power of two), rows of x
    int sharers_shift;
    int resident;                    // blocks of threads that a multiprocessor has at once
    int stages, stage, slot, codes_at, sums_at, scales_at, bytes;  // shared memory; slot is a panel's block in a stage
    int blocks, last_tiles, header, group_steps, groups;           // along k; steps are of 32
    int codes_stride, sums_stride;
    int64_t panel_bytes, block_bytes;
};

// Instructions of a warp for a block of 256: what it does for each product of 16 outputs, and for each tile of eight rows of it.
static constexpr int64_t many_operands(const WeightFormat& f) {
    return f.packing == Packing::int4_two_level ? 125 : eight_bits(f.packing) ? 40 : 110;
}
static constexpr int64_t many_products(const WeightFormat& f) {
    if (of_k(f.packing)) return f.group == 16 ? 170 : 100;
    return f.packing == Packing::int4_two_level ? 34 : 12 + 14 * block_depth / f.group;
}

// Of all ways to cut the work, the one of least time by reckoning, for a multiprocessor and each 256 along k: instructions, three a
// clock; those of one warp, of which half are waited for; or bytes copied, 22 a clock and as many as are on their way.
// shared: bytes that a block of threads may have.
static constexpr ManyPlan many_plan(const PackedLinearArgs& a, int64_t panels, int64_t processors, int64_t shared) {
    ManyPlan best{};
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth, slot = block_bytes(a.format);
    int64_t least = INT64_MAX;
    for (int way = 0; way < many_ways(a.format.packing); way++) {
        for (int groups = 1; groups <= 8; groups *= 2) {
            const int sharers = groups * (2 / many_parts(way));
            const int64_t rows = groups * many_tiles(way) * 8, sums = block_depth / sum_depth(a.format) * 2;
            if (groups > 1 && rows / 2 >= a.rows) break;
            for (int each = 1; each * sharers <= many_warps; each++) {
                const int64_t stage = each * slot + rows * (many_x_stride + sums + 4), warps = each * sharers;
                const int64_t units = (panels + each - 1) / each * ((a.rows + rows - 1) / rows), turns = (units + processors - 1) / processors;
                const int64_t work = 60 + many_parts(way) * (many_operands(a.format) + many_tiles(way) * many_products(a.format));
                for (int64_t resident = 1; resident * warps <= many_at_once(a.format.packing, way) && resident <= turns; resident++) {
                    const int64_t room = ((shared + 1024) / resident - 1024) / stage, stages = room < many_stages_most ? room : many_stages_most;
                    if (stages < 2) break;
                    const int64_t issue = turns * warps * work / 3, chain = (turns + resident - 1) / resident * (2 * work + 200);
                    const int64_t on_way = resident * (stages - 1) * stage / 1600;
                    const int64_t bytes = turns * stage / (on_way < 1 ? 1 : on_way < 22 ? on_way : 22);
                    const int64_t most = issue > chain ? issue : chain, time = (most > bytes ? most : bytes) * 8 + issue + chain + bytes;
                    if (time >= least) continue;
                    least = time;
                    best.way = way, best.panels = each, best.sharers = sharers, best.rows = int(rows), best.resident = int(resident);
                    best.stages = int(stages), best.stage = int(stage), best.slot = int(slot), best.codes_at = int(each * slot);
                    best.sums_at = int(best.codes_at + rows * many_x_stride), best.scales_at = int(best.sums_at + rows * sums);
                    best.bytes = int(stages * stage);
                }
            }
        }
    }
    while (1 << best.sharers_shift < best.sharers) best.sharers_shift++;
    best.blocks = int(blocks), best.last_tiles = int((depth - (blocks - 1) * block_depth) / tile_depth);
    best.header = int(header_bytes(a.format)), best.group_steps = int(a.format.group / 32), best.groups = int(block_depth / a.format.group);
    best.codes_stride = int(a.codes_stride), best.sums_stride = int(depth / sum_depth(a.format));
    best.panel_bytes = panel_bytes(a.format, a.k), best.block_bytes = slot;
    return best;
}
