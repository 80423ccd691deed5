// Products of a few rows with integer weights: 1 to 8. The time is that of reading the weights, so as many bytes as the memory
// needs are on their way to shared memory at any moment, the first of them before the kernel waits for the one ahead of it.
//
// A block of threads has half panels, 16 outputs each (of a gated weight whole panels: a gate and its up meet in the block),
// and up to 8 rows of x, whose codes, scales and sums it keeps in shared memory. A half panel is cut along k among eight
// warps: in a round each takes one block of 256, from a ring of stages that it fills and empties by itself. What a warp
// finds are exact: integers, handed over as floats, each with the scale of its output (a term). One thread an output and row adds the
// terms of a round in the order of k while the warps are at the next one, so the bits are those of a processor.
//
// A stage is half a panel's block: the header with 16 of each run's 32 outputs, then the lines of the tiles (packed.h), where
// the quarters of lines 2 and 3, 6 and 7 .. change places by twos so that the 8 bytes lanes read lie in different banks.

constexpr int few_warps = 8;
constexpr int few_rows_most = 8;  // columns of b
constexpr int few_shared_most = 96 << 10;
constexpr int half_outputs = 16;

// Where in a panel's block the 16 bytes at `at` of a half's header lie. Runs of 32 outputs are 64 bytes, or 32 of one byte each.
static constexpr int half_header_at(const WeightFormat& f, int half, int at) {
    const int groups = int(block_depth / f.group), from = f.packing == Packing::int4_two_level ? 64 : groups * 64;
    const bool bytes = !of_k(f.packing) && f.zero == Zero::integer;
    const int to = f.packing == Packing::int4_two_level ? 192 : bytes ? groups * 96 : from;
    if (2 * at >= from && 2 * at < to) return 2 * at + half * 16;
    return at / 32 * 64 + half * 32 + at % 32;
}
// Where in a half tile, of lines of 64 bytes, the four bytes of an output lie in a stage.
static constexpr int few_code_at(int line, int output) { return line * 64 + ((output / 4) ^ (line / 2 % 2 * 2)) * 16 + output % 4 * 4; }

// Floats that `tiles` of a block add to an output and row.
static constexpr int few_terms(const WeightFormat& f, int tiles) {
    const int real = f.zero == Zero::real ? 2 : 1;
    if (f.packing == Packing::int4_two_level) return 1;
    return of_k(f.packing) ? real : real * int((tiles * tile_depth + f.group - 1) / f.group);
}

struct FewPlan {
    int rows;     // of x in a block of threads
    int stages;   // of a warp's ring
    int units;    // half panels, or gated panels, of a block of threads
    int rounds;   // of a unit
    int x_stride, scales_at, sums_at, ring_at, terms_at, pairs_at, bytes;  // shared memory: first the codes
    // Of the format and the depth, found once:
    int blocks, last_tiles;       // along k; tiles of the last one
    int sums, block_sums;         // of a row, of a block
    int header, slot;             // bytes of half a block's header, and of all of it
    int terms, last_terms, term_floats;  // that a block, and the last one, gives
    int group_steps, groups;      // of 32 along k
    int factors_at, lows_at;      // of_k: in half a header
    int64_t panel_bytes, block_bytes;
};

// How the work is split and where things lie; bytes is over few_shared_most where it is not for these kernels.
static constexpr FewPlan few_plan(const PackedLinearArgs& a, int64_t panels, int64_t processors) {
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth, share = few_warps / (a.gated ? 2 : 1);
    const int64_t units = panels * (a.gated ? 1 : 2), slot = block_bytes(a.format) / 2, terms = few_terms(a.format, 4);
    FewPlan p{};
    p.blocks = int(blocks), p.last_tiles = int((depth - (blocks - 1) * block_depth) / tile_depth);
    p.sums = int(depth / sum_depth(a.format)), p.block_sums = int(block_depth / sum_depth(a.format));
    p.header = int(header_bytes(a.format) / 2), p.slot = int(slot);
    p.terms = int(terms), p.last_terms = few_terms(a.format, p.last_tiles);
    p.group_steps = int(a.format.group / 32), p.groups = int(block_depth / a.format.group);
    p.factors_at = int(k_scales_at(a.format) / 2), p.lows_at = int(k_minima_at(a.format) / 2);
    p.panel_bytes = panel_bytes(a.format, a.k), p.block_bytes = block_bytes(a.format);
    p.rounds = int((blocks + share - 1) / share);
    for (int64_t rows = a.rows < few_rows_most ? a.rows : few_rows_most;; rows = (rows + 1) / 2) {
        const int64_t row_tiles = (a.rows + rows - 1) / rows, each = units * row_tiles / (processors * 8);
        p.units = int(each < 1 ? 1 : each > 4 ? 4 : each);
        const int64_t total = p.units * p.rounds, most = eight_bits(a.format.packing) ? 2 : 3;
        p.rows = int(rows);
        for (p.stages = int(total < most ? total : most); p.stages > 0; p.stages--) {
            const int64_t x_stride = depth + 16;  // rows of a column of b lie in different banks
            const int64_t scales = rows * x_stride, sums = scales + round_up(rows * blocks * 4, 16);
            const int64_t ring = sums + round_up(rows * depth / sum_depth(a.format) * 2, 16);
            const int64_t term = ring + few_warps * p.stages * slot;
            const int64_t pairs = term + 2 * few_warps * terms * half_outputs * (rows + 1) * 4;
            const int64_t bytes = pairs + (a.gated ? panel_outputs * rows * 4 : 0);
            p.x_stride = int(x_stride), p.scales_at = int(scales), p.sums_at = int(sums), p.ring_at = int(ring);
            p.term_floats = int(half_outputs * (rows + 1));
            p.terms_at = int(term), p.pairs_at = int(pairs), p.bytes = int(bytes < 1 << 30 ? bytes : 1 << 30);
            if (p.bytes <= few_shared_most) return p;
        }
        if (rows == 1) return p;
    }
}

struct alignas(8) Words2 {
    uint32_t x[2];
};
struct alignas(16) Chunk {
    uint32_t x[4];
};

// A warp copies half of a block of `tiles` into a stage.
template <Packing packing>
DEVICE void few_copy(const WeightFormat& f, int header, const uint8_t* block, int half, int tiles, char* stage) {
    constexpr int tile = int(tile_bytes(packing) / 2);
    const int lane = gk::lane();
    GK_ROLLED
    for (int at = lane * 16; at < header; at += 32 * 16) gk::copy_async(stage + at, block + half_header_at(f, half, at));
    const uint8_t* from = block + 2 * header + half * tile + lane * 16;
    char* to = stage + header + few_code_at(lane / 4, lane % 4 * 4);
    GK_ROLLED
    for (int i = 0; i < tiles; i++, from += 2 * tile, to += tile) {
        gk::copy_async(to, from);
        if (eight_bits(packing)) gk::copy_async(to + 512, from + 512);  // the same 8 lines further
    }
}

// The rows of x in shared memory: codes and sums from the block of 256 in question on.
struct FewRows {
    const int8_t* codes;
    const int16_t* sums;
    int count, codes_stride, sums_stride;
};

// A warp's product of a stage: terms, each float [16 outputs][rows] and the outputs' scales [16]. Outputs 2 g and 2 g + 1 are
// rows g and g + 8 of the tensor cores' first operand, so a lane reads both at once.
template <Packing packing, bool by16>
DEVICE void few_block(const WeightFormat& f, const FewPlan& p, const char* stage, int tiles, const FewRows& x, float* terms) {
    constexpr bool eight = eight_bits(packing), two_level = packing == Packing::int4_two_level, k_scales = of_k(packing);
    const int g = gk::lane() / 4, t = gk::lane() % 4;
    const bool real_zeros = f.zero == Zero::real, minima = two_level || (k_scales && real_zeros), bf = f.scale_dtype == DType::bf16;
    const char* codes = stage + p.header + few_code_at(t, 2 * g);
    const int8_t* x_codes = x.codes + g * x.codes_stride + 4 * t;
    const int16_t* x_sums[2] = {x.sums + (2 * t < x.count ? 2 * t : 0) * x.sums_stride,  // sums of rows that are none are not used
                                x.sums + (2 * t + 1 < x.count ? 2 * t + 1 : 0) * x.sums_stride};
    auto emit = [&](const int32_t (&v)[2][2], uint32_t scales, bool negative) {  // v [output][row]
        GK_UNROLL
        for (int i = 0; i < 2; i++) {
            const int output = 2 * g + i;
            GK_UNROLL
            for (int j = 0; j < 2; j++)
                if (2 * t + j < x.count) terms[output * x.count + 2 * t + j] = float(v[i][j]);
            const float scale = scale_bits(uint16_t(scales >> 16 * i), bf);
            if (t == 0) terms[half_outputs * x.count + output] = negative ? -scale : scale;
        }
        terms += half_outputs * (x.count + 1);
    };
    int32_t d[4] = {0, 0, 0, 0}, sum[2][2] = {}, less[2][2] = {};
    int group = 0, group_steps = 0;
    GK_ROLLED
    for (int tile = 0; tile < tiles; tile++, codes += tile_bytes(packing) / 2, x_codes += tile_depth) {
        uint32_t factors = 0, lows = 0, more_factors = 0, more_lows = 0;  // two outputs x two steps; by16 of the second 16 of each
        if (two_level) {
            factors = *reinterpret_cast<const uint16_t*>(stage + 32 + tile * 16 + 2 * g);
            lows = word(stage + 96 + tile * 32 + 4 * g);
        } else if (k_scales) {
            const int at = tile * (by16 ? 64 : 32) + 4 * g;
            factors = word(stage + p.factors_at + at);
            if (by16) more_factors = word(stage + p.factors_at + at + 32);
            if (real_zeros) lows = word(stage + p.lows_at + at);
            if (real_zeros && by16) more_lows = word(stage + p.lows_at + at + 32);
        }
        Words2 w[2];  // lines t and t + 4
        GK_UNROLL
        for (int step = 0; step < 2; step++) {
            if (eight || step == 0) {
                w[0] = *reinterpret_cast<const Words2*>(codes + step * 512);
                w[1] = *reinterpret_cast<const Words2*>(codes + step * 512 + 256);
            }
            uint32_t q[4], b[2] = {0, 0};
            GK_UNROLL
            for (int i = 0; i < 4; i++) q[i] = eight ? w[i / 2].x[i % 2] : (w[i / 2].x[i % 2] >> (step * 4)) & 0x0f0f0f0fu;
            if (g < x.count) {
                b[0] = word(x_codes + step * 32);
                b[1] = word(x_codes + step * 32 + 16);
            }
            if (!two_level && !k_scales) {
                gk::mma_k32(d, q, b);
                group_steps++;
                const int done = tile * 2 + step + 1;
                if (group_steps == p.group_steps || done == 2 * tiles) {
                    int32_t x_sum[2] = {0, 0};
                    if (!eight || f.zero != Zero::none)
                        for (int i = done - group_steps; i < done; i++) x_sum[0] += x_sums[0][i], x_sum[1] += x_sums[1][i];
                    GK_UNROLL
                    for (int i = 0; i < 2; i++) {
                        int32_t zero = eight || real_zeros ? 0 : 8;
                        if (f.zero == Zero::integer) {
                            const uint8_t z = uint8_t(stage[p.groups * 32 + group * 16 + 2 * g + i]);
                            zero = eight ? int32_t(int8_t(z)) : int32_t(z);
                        }
                        GK_UNROLL
                        for (int j = 0; j < 2; j++) sum[i][j] = d[2 * i + j] - zero * x_sum[j], d[2 * i + j] = 0, less[i][j] = x_sum[j];
                    }
                    emit(sum, word(stage + group * 32 + 4 * g), false);
                    if (real_zeros) emit(less, word(stage + (p.groups + group) * 32 + 4 * g), false);
                    group++, group_steps = 0;
                }
            } else {
                GK_UNROLL
                for (int part = 0; part < (by16 ? 2 : 1); part++) {  // groups of 16: half of a step each
                    int32_t e[4] = {0, 0, 0, 0};
                    if (by16) gk::mma_k16(e, q[2 * part], q[2 * part + 1], b[part]);
                    else gk::mma_k32(e, q, b);
                    const int at = by16 ? (tile * 2 + step) * 2 + part : tile * 2 + step;
                    const bool with_sums = minima || !eight;
                    const int32_t x_sum[2] = {with_sums ? x_sums[0][at] : 0, with_sums ? x_sums[1][at] : 0};
                    GK_UNROLL
                    for (int i = 0; i < 2; i++) {
                        int32_t factor, low;
                        if (two_level) {
                            factor = int32_t(factors >> (8 * i + 4 * step)) & 15;
                            low = int32_t(lows >> (16 * i + 8 * step)) & 255;
                        } else {
                            factor = int8_t((part ? more_factors : factors) >> (16 * i + 8 * step));
                            low = real_zeros ? int32_t((part ? more_lows : lows) >> (16 * i + 8 * step) & 255) : eight ? 0 : 8 * factor;
                        }
                        GK_UNROLL
                        for (int j = 0; j < 2; j++) {
                            sum[i][j] += factor * e[2 * i + j];
                            if (k_scales && real_zeros) less[i][j] += low * x_sum[j];
                            else sum[i][j] -= low * x_sum[j];
                        }
                    }
                }
            }
        }
    }
    if (!two_level && !k_scales) return;
    emit(sum, word(stage + 4 * g), false);
    if (k_scales && real_zeros) emit(less, word(stage + 32 + 4 * g), true);
}

// Rows row0 .. of x into shared memory; rows beyond the last are the last one's and not used.
DEVICE void few_load(const PackedLinearArgs& a, const FewPlan& p, int64_t row0, int64_t last, char* shared) {
    const int chunks = (p.x_stride - 16) / 16, blocks = p.blocks, sums = p.sums;
    GK_ROLLED
    for (int r = 0; r < p.rows; r++) {
        const int64_t row = least_of(row0 + r, last);
        const auto* codes = reinterpret_cast<const Chunk*>(a.codes + row * a.codes_stride);
        auto* to = reinterpret_cast<Chunk*>(shared + r * p.x_stride);
        each_column(chunks, [&](int64_t i) { to[i] = codes[i]; });
        each_column(blocks, [&](int64_t i) { reinterpret_cast<float*>(shared + p.scales_at)[r * blocks + i] = a.scales[row * blocks + i]; });
        each_column(sums, [&](int64_t i) { reinterpret_cast<int16_t*>(shared + p.sums_at)[r * sums + i] = a.sums[row * sums + i]; });
    }
}

// Where the kernel makes the codes itself: of rows of floats, or of what a norm makes of them.
struct FewSource {
    RmsNormArgs norm{};       // x null: none
    QuantizeArgs rounding{};  // x null: the codes are there
};
// Blocks of 256 of all rows that a block of threads may round for itself: four in turn a warp. More, and many blocks of threads
// doing the same would take longer than a kernel more; by reckoning, not measured.
constexpr int64_t few_made_most = 32;

// As few_load, of codes made here: the bits are those of rms_norm and quantize. With `keep` they are written for later readers
// as well, as is what the norm gave.
DEVICE void few_make(const FewSource& source, const FewPlan& p, int64_t row0, int64_t last, char* shared, bool keep) {
    static_assert(few_warps * 32 == row_threads, "sums of a row in the order of rms_norm");
    const RmsNormArgs& n = source.norm;
    const QuantizeArgs& q = source.rounding;
    const int depth = p.x_stride - 16;
    GK_ROLLED
    for (int r = 0; r < p.rows; r++) {
        const int64_t row = least_of(row0 + r, last);
        const bool stored = keep && row0 + r <= last;
        const float* x = n.x ? n.x + row * n.x_stride : q.x + row * q.x_stride;
        const float scale = n.x ? rms_scale(x, n.dim, n.eps, reinterpret_cast<float*>(shared + p.terms_at)) : 1.0f;
        GK_ROLLED
        for (int b = gk::thread() / 32; b < p.blocks; b += few_warps) {
            const int k = b * int(block_depth) + gk::lane() * 8;
            float eight[8];
            int32_t codes[8], sum;
            GK_UNROLL
            for (int i = 0; i < 8; i++) {
                eight[i] = k + i < q.k ? x[k + i] : 0.0f;
                if (n.x && k + i < q.k) {
                    eight[i] = eight[i] * scale * n.weight[k + i];
                    if (stored) n.out[row * n.out_stride + k + i] = eight[i];
                }
            }
            const float block_scale = quantize_eight(eight, codes, sum);
            sum = sum_together(sum, q.sum_depth);
            if (gk::lane() == 0) {
                reinterpret_cast<float*>(shared + p.scales_at)[r * p.blocks + b] = block_scale;
                if (stored) q.scales[row * p.blocks + b] = block_scale;
            }
            if (k >= depth) continue;
            GK_UNROLL
            for (int i = 0; i < 8; i++) {
                shared[r * p.x_stride + k + i] = char(codes[i]);
                if (stored) q.codes[row * q.codes_stride + k + i] = int8_t(codes[i]);
            }
            if (k % q.sum_depth != 0) continue;
            const int at = k / int(q.sum_depth);
            reinterpret_cast<int16_t*>(shared + p.sums_at)[r * p.sums + at] = int16_t(sum);
            if (stored) q.sums[row * p.sums + at] = int16_t(sum);
        }
    }
}

// Grid: units of the panels [begin, end), p.units a block, the tiles of rows of one unit beside each other; 256 threads; shared
// memory p.bytes.
template <Packing packing, bool by16>
GK_KERNEL void GK_BOUNDS(few_warps * 32, 3) packed_few_kernel(PackedLinearArgs a, FewPlan p, FewSource source, int64_t begin, int64_t end) {
    const WeightFormat& f = a.format;
    const int warp = gk::thread() / 32, halves = a.gated ? 2 : 1, share = few_warps / halves;
    const int row_tiles = (int(a.rows) + p.rows - 1) / p.rows, first = int(gk::block()) / row_tiles * p.units;
    int row0 = int(gk::block()) % row_tiles * p.rows, rows = int(a.rows);  // of all rows, or of all places
    const int total = min_of(p.units, int(end - begin) * (2 / halves) - first) * p.rounds;
    const uint8_t* weight = a.weight + begin * p.panel_bytes;
    const float* bias = a.bias;
    char* shared = gk::shared();
    char* ring = shared + p.ring_at + warp * p.stages * p.slot;
    auto tiles_of = [&](int b) { return b + 1 < p.blocks ? 4 : p.last_tiles; };
    int copied = 0, copied_round = 0, copied_unit = first, copied_stage = 0;
    auto copy_next = [&] {
        const int b = copied_round * share + warp / halves;
        if (copied < total && b < p.blocks) {
            const int panel = halves == 2 ? copied_unit : copied_unit / 2, half = halves == 2 ? warp % 2 : copied_unit % 2;
            few_copy<packing>(f, p.header, weight + panel * p.panel_bytes + b * p.block_bytes, half, tiles_of(b), ring + copied_stage * p.slot);
        }
        gk::copy_commit();
        copied++;
        if (++copied_round == p.rounds) copied_round = 0, copied_unit++;
        if (++copied_stage == p.stages) copied_stage = 0;
    };
    auto fill = [&] {
        GK_ROLLED
        for (int i = 0; i < p.stages; i++) copy_next();
    };
    if (!a.region) fill();
    gk::wait_for_previous();
    if (a.region) {  // which weights, only the kernel before knows
        if (row0 >= a.region->rows) return;
        const int64_t panels = a.gated ? (a.n / 2 + 15) / 16 : (a.n + panel_outputs - 1) / panel_outputs;
        row0 += a.region->first, rows = a.region->first + a.region->rows;
        weight += a.region->expert * panels * p.panel_bytes;
        if (bias) bias += a.region->expert * a.n;
        fill();
    }
    if (source.rounding.x) few_make(source, p, row0, rows - 1, shared, gk::block() < row_tiles);
    else few_load(a, p, row0, rows - 1, shared);
    gk::let_next_start();
    gk::sync();

    const int column = gk::thread() / p.rows % half_outputs, half = gk::thread() / p.rows / half_outputs, at_row = gk::thread() % p.rows;
    const bool adds = half < halves && row0 + at_row < rows;
    float acc = 0.0f;
    int stage = 0, round = 0, unit = first;
    GK_ROLLED
    for (int done = 0; done < total; done++) {
        const int b = round * share + warp / halves;
        auto* terms = reinterpret_cast<float*>(shared + p.terms_at) + done % 2 * few_warps * p.terms * p.term_floats;
        if (p.stages == 1) gk::copy_wait<0>();
        else if (p.stages == 2) gk::copy_wait<1>();
        else gk::copy_wait<2>();
        gk::sync_warp();
        if (b < p.blocks) {
            const FewRows x{reinterpret_cast<const int8_t*>(shared) + b * int(block_depth),
                            reinterpret_cast<const int16_t*>(shared + p.sums_at) + b * p.block_sums, p.rows, p.x_stride, p.sums};
            few_block<packing, by16>(f, p, ring + stage * p.slot, tiles_of(b), x, terms + warp * p.terms * p.term_floats);
        }
        gk::sync_warp();
        copy_next();
        gk::sync();
        if (adds) {
            const auto* x_scales = reinterpret_cast<const float*>(shared + p.scales_at) + at_row * p.blocks + round * share;
            GK_ROLLED
            for (int w = 0; w < share && round * share + w < p.blocks; w++) {
                const float* term = terms + (w * halves + half) * p.terms * p.term_floats;
                const int count = round * share + w + 1 < p.blocks ? p.terms : p.last_terms;
                const float x_scale = x_scales[w];
                for (int i = 0; i < count; i++, term += p.term_floats)
                    acc = gk::fma(term[column * p.rows + at_row], term[half_outputs * p.rows + column] * x_scale, acc);
            }
        }
        if (++stage == p.stages) stage = 0;
        if (++round < p.rounds) continue;
        round = 0;
        const int64_t n = a.gated ? a.n / 2 : a.n, i = (begin * (2 / halves) + unit++) * half_outputs + column;
        const int64_t at = (row0 + at_row) * a.out_stride + i;
        const bool writes = adds && i < n;
        if (bias && writes) acc += bias[i + half * n];
        if (a.gated) {
            auto* pairs = reinterpret_cast<float*>(shared + p.pairs_at);
            if (adds) pairs[gk::thread()] = acc;
            gk::sync();
            if (writes && half == 0) {
                const float up = pairs[gk::thread() + half_outputs * p.rows];
                with_kind(a.kind, [&](auto kind) { a.out[at] = gate<decltype(kind)::value>(acc, up); });
            }
        } else if (writes) {
            a.out[at] = a.residual ? acc + a.residual[at] : acc;
        }
        acc = 0.0f;
    }
}
