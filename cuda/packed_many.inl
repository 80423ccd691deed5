// Products of many rows with integer weights: 9 and more, prompts as well. Bytes of weights are read once for all rows of a block
// of threads, and what bounds grows from those bytes to the products.
//
// A block of threads has some panels and some rows of x, its warps a panel and 8 or more rows each; a lane keeps the floats of its
// outputs in registers from the first block of 256 along k to the last, so they are added in the order of k: a processor's bits.
// Weights, codes, scales and sums of a block of 256 come into a stage of shared memory that all warps read, while they are at the
// stages before; the first stages' weights are asked for before the kernel waits for the one ahead.
//
// A stage: each panel's block as it lies (packed.h), but quarters of lines change places as in few_code_at; codes of the rows, a row
// of 256 in 272 bytes, so that eight rows' 16 bytes lie in different banks; their sums; their scales.

constexpr int many_warps = 8;
constexpr int many_stages_most = 4;
constexpr int many_x_stride = int(block_depth) + 16;
// Tiles of eight rows that a warp of a wide kernel has: where groups of 32 or 16 have whole factors there are no registers for more.
static constexpr int many_wide(Packing p) { return of_k(p) || p == Packing::int4_two_level ? 2 : 4; }
// Where 16 bytes of a panel's codes lie in a stage, counted in such.
HOST_DEVICE constexpr int many_chunk(int chunk) { return chunk ^ (chunk / 8 % 2 * 2); }

struct ManyPlan {
    bool wide;
    int panels, groups, rows;  // of a block of threads: panels, warps of each, rows of x
    int stages, stage, slot, codes_at, sums_at, scales_at, bytes;  // shared memory; slot is a panel's block in a stage
    int blocks, last_tiles, header;
    int64_t panel_bytes, block_bytes;
};

// Of all ways to cut the work, the one of least time by reckoning, for the multiprocessor with most of it and each 256 along k: products,
// 32 clocks for a panel and eight rows, with two such for the weights' operands whatever rows a warp has; or bytes copied, 40 a clock.
static constexpr ManyPlan many_plan(const PackedLinearArgs& a, int64_t panels, int64_t processors) {
    ManyPlan best{};
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth, slot = block_bytes(a.format);
    int64_t least = INT64_MAX;
    for (int wide = 0; wide < 2; wide++) {
        const int tiles = wide ? many_wide(a.format.packing) : 1;
        for (int each = 1; each <= many_warps; each *= 2) {
            for (int groups = 1; groups * each <= many_warps; groups *= 2) {
                const int64_t rows = groups * tiles * 8, sums = block_depth / sum_depth(a.format) * 2;
                if (groups > 1 && rows / 2 >= a.rows) continue;
                const int64_t stage = each * slot + rows * (many_x_stride + sums + 4);
                const int64_t stages = few_shared_most / stage < many_stages_most ? few_shared_most / stage : many_stages_most;
                if (stages < 2) continue;
                const int64_t count = (panels + each - 1) / each * ((a.rows + rows - 1) / rows), turns = (count + processors - 1) / processors;
                const int64_t warps = turns * each * groups, products = (warps < many_warps ? many_warps : warps) * 32 * (tiles + 2);
                const int64_t bytes = turns * stage / 40, time = products > bytes ? products : bytes;
                if (time >= least) continue;
                least = time;
                best.wide = wide == 1, best.panels = each, best.groups = groups, best.rows = int(rows), best.stages = int(stages);
                best.stage = int(stage), best.slot = int(slot), best.codes_at = int(each * slot);
                best.sums_at = int(best.codes_at + rows * many_x_stride), best.scales_at = int(best.sums_at + rows * sums);
                best.bytes = int(stages * stage);
            }
        }
    }
    best.blocks = int(blocks), best.last_tiles = int((depth - (blocks - 1) * block_depth) / tile_depth);
    best.header = int(header_bytes(a.format));
    best.panel_bytes = panel_bytes(a.format, a.k), best.block_bytes = slot;
    return best;
}

// A warp's rows in a stage.
struct ManyRows {
    const char* codes;
    const int16_t* sums;
    const float* scales;
};

// Adds a stage's block of 256 to a warp's outputs: acc [tile of eight rows][output 4 g + i][row 2 t + j].
template <Packing packing, bool by16, int count>
DEVICE void many_block(const WeightFormat& f, int header_size, const char* block, int tiles, const ManyRows& x, float (&acc)[count][4][2]) {
    constexpr bool eight = eight_bits(packing), two_level = packing == Packing::int4_two_level, k_scales = of_k(packing);
    constexpr int sums_stride = int(block_depth) / (by16 ? 16 : 32), parts = !two_level && !k_scales ? 0 : by16 ? 2 : 1;
    const int lane = gk::lane(), g = lane / 4, t = lane % 4;
    const bool real_zeros = f.zero == Zero::real, bf = f.scale_dtype == DType::bf16;
    const char* codes = block + header_size + g / 4 * int(tile_bytes(packing) / 2) + few_code_at(t, g % 4 * 4);
    const char* x_codes = x.codes + lane % 8 * many_x_stride + lane / 8 * 16;
    const int16_t* x_sums = x.sums + 2 * t * sums_stride;
    // Two sums side by side, of row j of a lane's in tile n.
    auto two_sums = [&](int n, int j, int at) { return word(x_sums + (n * 8 + j) * sums_stride + at); };
    auto scale_of = [&](const char* at, int i) { return scale_bits(reinterpret_cast<const uint16_t*>(at)[4 * g + i], bf); };
    int32_t d[count][2][4] = {}, less[k_scales ? count : 1][4][2] = {};  // d: of k_scales and two levels sums over the groups
    int group = 0, group_steps = 0;
    GK_ROLLED
    for (int tile = 0; tile < tiles; tile++, codes += tile_bytes(packing), x_codes += tile_depth) {
        gk::Words4 w[2];  // lines t and t + 4
        gk::Words4 b[count];
        GK_UNROLL
        for (int n = 0; n < count; n++) b[n] = gk::load_matrix(x_codes + n * 8 * many_x_stride);
        GK_UNROLL
        for (int step = 0; step < 2; step++) {
            if (eight || step == 0) {
                w[0] = *reinterpret_cast<const gk::Words4*>(codes + step * 512);
                w[1] = *reinterpret_cast<const gk::Words4*>(codes + step * 512 + 256);
            }
            GK_UNROLL
            for (int p = 0; p < 2; p++) {
                uint32_t q[4];
                GK_UNROLL
                for (int i = 0; i < 4; i++) {
                    const uint32_t both = w[i / 2].x[2 * p + i % 2];
                    q[i] = eight ? both : (both >> 4 * step) & 0x0f0f0f0fu;
                }
                if (!two_level && !k_scales) {
                    GK_UNROLL
                    for (int n = 0; n < count; n++) gk::mma_k32(d[n][p], q, {b[n].x[2 * step], b[n].x[2 * step + 1]});
                }
                GK_UNROLL
                for (int part = 0; part < parts; part++) {  // groups of 16: half of a step each
                    int32_t factors[2], lows[2];
                    GK_UNROLL
                    for (int h = 0; h < 2; h++) {
                        const int column = 4 * g + 2 * p + h;
                        if (two_level) {
                            factors[h] = int32_t(uint8_t(block[64 + tile * 32 + column])) >> 4 * step & 15;
                            lows[h] = uint8_t(block[192 + tile * 64 + column * 2 + step]);
                        } else {
                            const int at = (by16 ? tile * 128 + part * 64 : tile * 64) + column * 2 + step;
                            factors[h] = int8_t(block[k_scales_at(f) + at]);
                            lows[h] = real_zeros ? int32_t(uint8_t(block[k_minima_at(f) + at])) : eight ? 0 : 8 * factors[h];
                        }
                    }
                    GK_UNROLL
                    for (int n = 0; n < count; n++) {
                        int32_t e[4] = {0, 0, 0, 0};
                        if (by16) gk::mma_k16(e, q[2 * part], q[2 * part + 1], b[n].x[2 * step + part]);
                        else gk::mma_k32(e, q, {b[n].x[2 * step], b[n].x[2 * step + 1]});
                        GK_UNROLL
                        for (int j = 0; j < 2; j++) {
                            int32_t x_sum = 0;
                            if (two_level || real_zeros || !eight)
                                x_sum = int16_t(by16 ? two_sums(n, j, tile * 4 + step * 2) >> 16 * part : two_sums(n, j, tile * 2) >> 16 * step);
                            GK_UNROLL
                            for (int h = 0; h < 2; h++) {
                                d[n][p][2 * h + j] += factors[h] * e[2 * h + j];
                                if (k_scales && real_zeros) less[k_scales ? n : 0][2 * p + h][j] += lows[h] * x_sum;
                                else d[n][p][2 * h + j] -= lows[h] * x_sum;
                            }
                        }
                    }
                }
            }
            group_steps++;
            const int done = tile * 2 + step + 1;
            if (!two_level && !k_scales && (group_steps * 32 == f.group || done == 2 * tiles)) {
                const int groups = int(block_depth / f.group);
                const char* scales = block + group * 64;
                GK_UNROLL
                for (int n = 0; n < count; n++) {
                    GK_UNROLL
                    for (int j = 0; j < 2; j++) {
                        const float x_scale = x.scales[n * 8 + 2 * t + j];
                        int32_t x_sum = 0;
                        if (!eight || f.zero != Zero::none)
                            for (int i = done - group_steps; i < done; i++) x_sum += x_sums[(n * 8 + j) * sums_stride + i];
                        GK_UNROLL
                        for (int i = 0; i < 4; i++) {
                            int32_t zero = eight || real_zeros ? 0 : 8;
                            if (f.zero == Zero::integer) {
                                const char z = block[groups * 64 + group * 32 + 4 * g + i];
                                zero = eight ? int32_t(int8_t(z)) : int32_t(uint8_t(z));
                            }
                            int32_t& sum = d[n][i / 2][i % 2 * 2 + j];
                            acc[n][i][j] = gk::fma(float(sum - zero * x_sum), scale_of(scales, i) * x_scale, acc[n][i][j]);
                            if (real_zeros) acc[n][i][j] = gk::fma(float(x_sum), scale_of(scales + groups * 64, i) * x_scale, acc[n][i][j]);
                            sum = 0;
                        }
                    }
                }
                group++, group_steps = 0;
            }
        }
    }
    if (two_level || k_scales) {
        GK_UNROLL
        for (int n = 0; n < count; n++) {
            GK_UNROLL
            for (int j = 0; j < 2; j++) {
                const float x_scale = x.scales[n * 8 + 2 * t + j];
                GK_UNROLL
                for (int i = 0; i < 4; i++) {
                    acc[n][i][j] = gk::fma(float(d[n][i / 2][i % 2 * 2 + j]), scale_of(block, i) * x_scale, acc[n][i][j]);
                    if (k_scales && real_zeros)
                        acc[n][i][j] = gk::fma(float(less[k_scales ? n : 0][i][j]), -(scale_of(block + 64, i) * x_scale), acc[n][i][j]);
                }
            }
        }
    }
}

// Grid: p.panels of the panels [begin, end) a block, the tiles of p.rows rows of the same panels beside each other; 32 p.panels
// p.groups threads; shared memory p.bytes.
template <Packing packing, bool by16, bool wide>
GK_KERNEL void GK_BOUNDS(many_warps * 32, wide ? 2 : 3) packed_many_kernel(PackedLinearArgs a, ManyPlan p, int64_t begin, int64_t end) {
    constexpr int count = wide ? many_wide(packing) : 1, sums_stride = int(block_depth) / (by16 ? 16 : 32);
    const WeightFormat& f = a.format;
    const int row_tiles = (int(a.rows) + p.rows - 1) / p.rows, threads = gk::threads(), warp = gk::thread() / 32;
    int row0 = int(gk::block()) % row_tiles * p.rows, rows = int(a.rows) - row0;  // of all rows, or of all places
    const int first = int(begin) + int(gk::block()) / row_tiles * p.panels, panels = min_of(p.panels, int(end) - first);
    int weight_panel = first, expert = 0;
    char* shared = gk::shared();
    auto tiles_of = [&](int b) { return b + 1 < p.blocks ? 4 : p.last_tiles; };
    auto copy_weights = [&](int b, char* stage) {
        const int header = p.header / 16, chunks = header + tiles_of(b) * int(tile_bytes(packing) / 16);
        GK_ROLLED
        for (int panel = 0; panel < panels; panel++) {
            const uint8_t* from = a.weight + int64_t(weight_panel + panel) * p.panel_bytes + b * p.block_bytes;
            GK_ROLLED
            for (int i = gk::thread(); i < chunks; i += threads)
                gk::copy_async(stage + panel * p.slot + (i < header ? i : header + many_chunk(i - header)) * 16, from + i * 16);
        }
    };
    auto copy_rows = [&](int b, char* stage) {
        const int tiles = tiles_of(b);
        GK_ROLLED
        for (int i = gk::thread(); i < rows * 16; i += threads) {
            const int r = i / 16, at = i % 16;
            const int8_t* from = a.codes + int64_t(row0 + r) * a.codes_stride + b * block_depth + at * 16;
            if (at < tiles * 4) gk::copy_async(stage + p.codes_at + r * many_x_stride + at * 16, from);
        }
        if (!eight_bits(packing) || f.zero != Zero::none) {
            constexpr int words = sums_stride / 2;
            const int64_t stride = int64_t(p.blocks - 1) * sums_stride + p.last_tiles * (words / 2);
            GK_ROLLED
            for (int i = gk::thread(); i < rows * words; i += threads) {
                const int r = i / words, at = i % words;
                if (at < tiles * (words / 4))
                    gk::copy_async_word(stage + p.sums_at + i * 4, a.sums + int64_t(row0 + r) * stride + b * sums_stride + at * 2);
            }
        }
        GK_ROLLED
        for (int r = gk::thread(); r < rows; r += threads)
            gk::copy_async_word(stage + p.scales_at + r * 4, a.scales + int64_t(row0 + r) * p.blocks + b);
    };
    if (!a.region)
        for (int b = 0; b < p.stages - 1 && b < p.blocks; b++) copy_weights(b, shared + b * p.stage);
    gk::wait_for_previous();
    if (a.region) {  // which weights, only the kernel before knows
        rows = a.region->rows - row0;
        if (rows <= 0) return;
        expert = a.region->expert;
        row0 += a.region->first;
        weight_panel += expert * int(a.gated ? (a.n / 2 + 15) / 16 : (a.n + panel_outputs - 1) / panel_outputs);
        for (int b = 0; b < p.stages - 1 && b < p.blocks; b++) copy_weights(b, shared + b * p.stage);
    }
    rows = min_of(p.rows, rows);
    for (int b = 0; b < p.stages - 1; b++) {
        if (b < p.blocks) copy_rows(b, shared + b * p.stage);
        gk::copy_commit();
    }
    gk::let_next_start();

    const int mine = warp / p.groups, my_row = warp % p.groups * count * 8;
    const bool works = mine < panels && my_row < rows;
    float acc[count][4][2] = {};
    int stage = 0;
    GK_ROLLED
    for (int b = 0; b < p.blocks; b++) {
        if (p.stages == 2) gk::copy_wait<0>();
        else if (p.stages == 3) gk::copy_wait<1>();
        else gk::copy_wait<2>();
        gk::sync();  // the stage is everyone's, and that of the round before free
        const int next = b + p.stages - 1;
        if (next < p.blocks) {
            char* to = shared + (stage == 0 ? p.stages - 1 : stage - 1) * p.stage;
            copy_weights(next, to);
            copy_rows(next, to);
        }
        gk::copy_commit();
        const char* at = shared + stage * p.stage;
        if (works) {
            const ManyRows x{at + p.codes_at + my_row * many_x_stride, reinterpret_cast<const int16_t*>(at + p.sums_at) + my_row * sums_stride,
                             reinterpret_cast<const float*>(at + p.scales_at) + my_row};
            many_block<packing, by16, count>(f, p.header, at + mine * p.slot, tiles_of(b), x, acc);
        }
        if (++stage == p.stages) stage = 0;
    }
    if (!works) return;

    const int lane = gk::lane(), g = lane / 4, t = lane % 4;
    const int64_t n = a.gated ? a.n / 2 : a.n, panel = first + mine;
    const float* bias = a.bias ? a.bias + expert * a.n : nullptr;
    GK_UNROLL
    for (int r = 0; r < count; r++) {
        GK_UNROLL
        for (int j = 0; j < 2; j++) {
            const int row = my_row + r * 8 + 2 * t + j;
            const int64_t to = int64_t(row0 + row) * a.out_stride;
            GK_UNROLL
            for (int i = 0; i < 4; i++) {
                const int column = 4 * g + i;
                const int64_t output = a.gated ? panel * 16 + column % 16 : panel * panel_outputs + column;
                float v = acc[r][i][j];
                if (bias && output < n) v += bias[output + (a.gated && column >= 16 ? n : 0)];
                const float up = a.gated ? gk::shuffle_xor(v, 16) : 0.0f;  // of output 16 + i of the panel, four g further
                if (row >= rows || output >= n || (a.gated && column >= 16)) continue;
                if (a.gated) with_kind(a.kind, [&](auto kind) { v = gate<decltype(kind)::value>(v, up); });
                else if (a.residual) v += a.residual[to + output];
                a.out[to + output] = v;
            }
        }
    }
}
