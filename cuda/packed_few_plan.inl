// Products of a few rows with integer weights: 1 to 8. The time is that of reading the weights, so as many bytes as the memory
// needs are on their way to shared memory at any moment, the first of them before the kernel waits for the one ahead of it.
//
// A block of threads goes through panels, with up to 8 rows of x whose codes, scales and sums it keeps in shared memory. Its 8 or 16
// warps cut a panel along k: warp w has the blocks of 256 w, w + 16, .., each one copy (gk::copy_bulk) into a ring of stages that it fills and
// empties by itself, from one panel on into the next. What a warp finds are exact: integers, handed over as floats, each with the scale
// of its output (a term). A warp a row then adds the terms in the order of k, so the bits are those of a processor.
//
// A column of the tensor cores' second operand is a row of x in one group of 16 or 32 along k, zeros elsewhere, so that eight columns
// have the sums of several groups apart, and nobody looks at them before the last one: `few_columns`.

constexpr int few_rows_most = 8;
constexpr int few_columns = 8;
// Warps of a block of threads at most: a warp's way from its loads to its terms is long, so the more warps the better where registers allow.
static constexpr int few_warps(int rows, bool by16) { return rows >= 4 || (rows == 1 && !by16) ? 16 : 8; }
// Blocks of threads a multiprocessor is to have, or one where shared memory is not enough. Four rows and more have no registers for 32 warps.
static constexpr int few_resident(int rows, int warps) { return rows >= 4 && warps > 8 ? 1 : 2; }
// As many as registers are to be enough for: one where shared memory has no room for two.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
static constexpr int few_bound(int, bool) { return 1; }
#else
static constexpr int few_bound(int rows, bool by16) { return few_resident(rows, few_warps(rows, by16)); }
#endif
constexpr int few_reserved = 1 << 10;    // bytes of shared memory of each block, by CUDA
constexpr int few_stages_most = 3;      // of a warp's ring; two where there are two such blocks
constexpr int few_terms_most = 24 << 10;  // bytes of terms, where a round of fewer blocks of 256 is possible

// Floats that `tiles` of a block add to an output and row.
static constexpr int few_terms(const WeightFormat& f, int tiles) {
    const int real = f.zero == Zero::real ? 2 : 1;
    if (f.packing == Packing::int4_two_level) return 1;
    return of_k(f.packing) ? real : real * int((tiles * tile_depth + f.group - 1) / f.group);
}
// A term of one row has a pair of floats for each output, the second its scale times that of x; one of more has the outputs of each row,
// then their scales. Eight rows' lie apart for the banks.
static constexpr int few_term_row(int rows) { return rows == few_rows_most ? int(panel_outputs) + 4 : int(panel_outputs); }
static constexpr int few_term_floats(int rows) { return rows * few_term_row(rows) + int(panel_outputs); }

struct FewPlan {
    int rows, row_tiles;  // rows of x in a block of threads: 1, 2, 4 or 8
    int slots;            // panels at work at once
    int warps, cut;       // of a block of threads, and those of them that share a panel's depth
    int stages;           // of a warp's ring
    int depth, rounds;    // blocks of 256 of a warp in a round, rounds of a panel
    int buffers;          // of terms: with two, warps go on while terms are added
    int x_stride, scales_at, sums_at, barriers_at, more_at, ring_at, terms_at, buffer, bytes;  // shared memory: first the codes
    // Of the format and the depth, found once:
    int blocks, last_tiles;  // along k; tiles of the last one
    int sums;                // of a block and row
    int header, slot, last;  // bytes of a block's header, of all of it, of the last one
    int terms, last_terms, term_shift;  // that a block, and the last one, gives; log2 of the first
    int group_shift;         // log2 of 32s in a group, not of_k
    int64_t panel_bytes;
};

// How the work is split and where things lie, with so much shared memory for a block alone; rows is 0 where it is not for these kernels.
static constexpr FewPlan few_plan(const PackedLinearArgs& a, int64_t panels, int64_t processors, int64_t shared) {
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth;
    const WeightFormat& f = a.format;
    FewPlan p{};
    p.blocks = int(blocks), p.last_tiles = int((depth - (blocks - 1) * block_depth) / tile_depth);
    p.sums = int(block_depth / sum_depth(f));
    p.header = int(header_bytes(f)), p.slot = int(block_bytes(f)), p.last = int(p.header + p.last_tiles * tile_bytes(f.packing));
    p.terms = few_terms(f, 4), p.last_terms = few_terms(f, p.last_tiles);
    for (int i = p.terms; i > 1; i /= 2) p.term_shift++;
    for (int64_t i = f.group / 32; i > 1; i /= 2) p.group_shift++;
    p.panel_bytes = panel_bytes(f, a.k);
    p.x_stride = int(blocks * block_depth + 16);  // rows of a column lie in different banks
    p.rows = 1;
    while (p.rows < few_rows_most && p.rows < a.rows) p.rows *= 2;
    for (; p.rows > 0; p.rows /= 2) {
        const int64_t rows = p.rows;
        const int64_t scales = rows * p.x_stride, sums = scales + round_up(rows * blocks * 4, 16);
        const int64_t barriers = sums + round_up(rows * blocks * p.sums * 2, 16);
        p.warps = blocks <= 8 ? 8 : few_warps(p.rows, f.group == 16);
        p.row_tiles = int((a.rows + rows - 1) / rows);
        const int64_t more = barriers + p.warps * few_stages_most * 8, ring = round_up(more + p.warps * 64 * 4, 128);
        for (int way = 0; way < 3 * few_resident(p.rows, p.warps); way++) {
            const int resident = few_resident(p.rows, p.warps) - way / 3, cut = p.warps >> way % 3;
            const int64_t at_once = resident * processors / p.row_tiles, slots = at_once < 1 ? 1 : at_once < panels ? at_once : panels;
            const int64_t turn = cut * p.terms * few_term_floats(p.rows) * 4, each = (blocks + cut - 1) / cut;
            const int64_t copies = (panels + slots - 1) / slots * each, stages_most = resident == 1 ? few_stages_most : 2;
            for (int stages = int(copies < stages_most ? copies : stages_most); stages > 0; stages--) {
                for (int buffers = 2; buffers > 0; buffers--) {
                    const int64_t most = few_terms_most / (buffers * turn), turns = most < 1 ? 1 : most < each ? most : each;
                    p.rounds = int((each + turns - 1) / turns), p.depth = int((each + p.rounds - 1) / p.rounds);
                    const int64_t terms = ring + cut * stages * p.slot, bytes = terms + buffers * p.depth * turn;
                    if (bytes > (shared + few_reserved) / resident - few_reserved) continue;
                    p.slots = int(slots), p.cut = cut, p.stages = stages, p.buffers = buffers;
                    p.scales_at = int(scales), p.sums_at = int(sums), p.barriers_at = int(barriers), p.more_at = int(more);
                    p.ring_at = int(ring), p.terms_at = int(terms);
                    p.buffer = int(p.depth * turn), p.bytes = int(bytes);
                    return p;
                }
            }
        }
    }
    return p;
}
