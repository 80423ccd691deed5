// Products with integer weights: packed_linear of kernels.h, to the bit what the processors give.
//
// A panel lies as the tensor cores take it (packed.h). Lane (g, t) reads 16 bytes of a line, outputs 4 g .. 4 g + 3 of the
// panel at k 4 line ..: of lines t and t + 4 these are the rows g and g + 8 of two products of 16 outputs, 4 g + 2 p and
// 4 g + 2 p + 1 for p 0 and 1. Two such loads of a warp are 1,024 bytes without a gap.
//
// A block of threads has a panel and up to 8 rows of x; its warps take the panel's blocks of 256 in turn. Sums of integers
// go to shared memory, where one thread an output and row adds the floats in the order of k: that keeps the bits.
//
// Codes and scales are read here as the reference's PanelBlock finds them: shared with it, these kernels take 8 to 28
// registers more.

constexpr int panel_warps = 8;
constexpr int row_tile = 8;  // columns of b

// Sums a block of 256 gives for an output and a row: one a scale, and of_k with real zeros the minima's.
static constexpr int sums_a_block(const WeightFormat& f) {
    return of_k(f.packing) ? (f.zero == Zero::real ? 2 : 1) : int(block_depth / f.group);
}
static constexpr int packed_shared_bytes(const WeightFormat& f) {
    return panel_warps * sums_a_block(f) * int(panel_outputs) * row_tile * 4 + int(panel_outputs) * row_tile * 4;
}

DEVICE float scale_bits(uint16_t bits, bool is_bf16) { return is_bf16 ? widen(bf16{bits}) : widen(f16{bits}); }

DEVICE uint32_t word(const void* p) { return *static_cast<const uint32_t*>(p); }
DEVICE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
DEVICE int min_of(int a, int b) { return a < b ? a : b; }

// The arguments of the rows of a region, and its expert's weight.
DEVICE void at_region(PackedLinearArgs& a) {
    const int64_t panels = a.gated ? (a.n / 2 + 15) / 16 : (a.n + panel_outputs - 1) / panel_outputs, at = a.region->first;
    a.rows = a.region->rows;
    a.codes += at * a.codes_stride;
    a.scales += at * ((a.k + block_depth - 1) / block_depth);
    a.sums += at * (round_up(a.k, tile_depth) / sum_depth(a.format));
    a.weight += a.region->expert * panels * panel_bytes(a.format, a.k);
    if (a.bias) a.bias += a.region->expert * a.n;
    a.out += at * a.out_stride;
}

// One lane's part of a block of 256: into sums [emit][32 outputs][8 rows].
template <Packing packing, bool by16>
DEVICE void packed_block(const PackedLinearArgs& a, const uint8_t* block, int64_t from, int tiles, int64_t row0, int32_t* sums) {
    constexpr bool eight = eight_bits(packing), two_level = packing == Packing::int4_two_level, k_scales = of_k(packing);
    const WeightFormat& f = a.format;
    const int lane = gk::lane(), g = lane / 4, t = lane % 4;
    const uint8_t* header = block;
    const uint8_t* codes = block + header_bytes(f) + g / 4 * (tile_bytes(packing) / 2) + t * 64 + g % 4 * 16;
    // Rows beyond the last read the last one's codes: their sums are not used.
    const int64_t last = a.rows - 1;
    const int8_t* x = a.codes + least_of(row0 + g, last) * a.codes_stride + from + 4 * t;
    const int64_t sum_stride = round_up(a.k, tile_depth) / (by16 ? 16 : 32);
    const int16_t* x_sums[2] = {a.sums + least_of(row0 + 2 * t, last) * sum_stride + from / (by16 ? 16 : 32),
                                a.sums + least_of(row0 + 2 * t + 1, last) * sum_stride + from / (by16 ? 16 : 32)};
    const bool minima = two_level || (k_scales && f.zero == Zero::real);
    int32_t acc[4][2] = {}, less[4][2] = {};  // [output 4 g + i][row 2 t + j]
    int emit = 0;
    auto store = [&](int32_t (&v)[4][2]) {
        GK_UNROLL
        for (int i = 0; i < 4; i++)
            GK_UNROLL
            for (int j = 0; j < 2; j++) {
                sums[(emit * panel_outputs + 4 * g + i) * row_tile + 2 * t + j] = v[i][j];
                v[i][j] = 0;
            }
        emit++;
    };
    for (int tile = 0; tile < tiles; tile++, codes += tile_bytes(packing), x += tile_depth) {
        gk::Words4 w[2][2];  // [step][line t, line t + 4]
        w[0][0] = gk::load_stream(codes);
        w[0][1] = gk::load_stream(codes + 256);
        if (eight) {
            w[1][0] = gk::load_stream(codes + 512);
            w[1][1] = gk::load_stream(codes + 768);
        }
        GK_UNROLL
        for (int step = 0; step < 2; step++) {
            const uint32_t b[2] = {word(x + step * 32), word(x + step * 32 + 16)};
            GK_UNROLL
            for (int p = 0; p < 2; p++) {
                uint32_t q[4];  // rows g and g + 8 at lines t, then at lines t + 4
                GK_UNROLL
                for (int i = 0; i < 4; i++) {
                    const uint32_t both = w[eight ? step : 0][i / 2].x[2 * p + i % 2];
                    q[i] = eight ? both : (step ? both >> 4 : both) & 0x0f0f0f0fu;
                }
                GK_UNROLL
                for (int part = 0; part < (by16 ? 2 : 1); part++) {  // groups of 16: half of a step each
                    int32_t d[4] = {0, 0, 0, 0};
                    if (by16) gk::mma_k16(d, q[2 * part], q[2 * part + 1], b[part]);
                    else gk::mma_k32(d, q, b);
                    const int k = tile * 64 + step * 32 + part * 16;
                    GK_UNROLL
                    for (int h = 0; h < 2; h++) {
                        const int column = 4 * g + 2 * p + h;
                        int32_t factor = 1, minimum = 0;
                        if (two_level) {
                            const uint32_t u = header[64 + tile * 32 + column];
                            factor = int32_t(step ? u >> 4 : u & 15);
                            minimum = header[192 + tile * 64 + column * 2 + step];
                        } else if (k_scales) {
                            factor = int8_t(header[k_scales_at(f) + k_index(f, k, column)]);
                            if (minima) minimum = header[k_minima_at(f) + k_index(f, k, column)];
                            if (packing == Packing::int4_k && f.zero != Zero::real) minimum = 8 * factor;
                        } else if (f.zero == Zero::integer) {
                            const uint8_t z = header[block_depth / f.group * 64 + k / f.group * 32 + column];
                            minimum = packing == Packing::int4 ? int32_t(z) : int32_t(int8_t(z));
                        } else if (f.zero == Zero::none && !eight) {
                            minimum = 8;
                        }
                        GK_UNROLL
                        for (int j = 0; j < 2; j++) {
                            const int32_t x_sum = x_sums[j][k / (by16 ? 16 : 32)];
                            acc[2 * p + h][j] += factor * d[2 * h + j];
                            if (k_scales && minima) less[2 * p + h][j] += minimum * x_sum;
                            else acc[2 * p + h][j] -= minimum * x_sum;
                        }
                    }
                }
            }
            if (!k_scales && !two_level) {
                const int done = tile * 2 + step + 1;  // steps
                const bool whole = done * 32 % f.group == 0 || (tile + 1 == tiles && step == 1);
                if (whole) store(acc);
            }
        }
    }
    if (two_level || k_scales) store(acc);
    if (k_scales && minima) store(less);
}

// The floats of one output and row, over the blocks of a round, in the order of k.
template <Packing packing>
DEVICE float packed_add(const PackedLinearArgs& a, const uint8_t* block, int64_t from, int tiles, int64_t row, int column,
                        const int32_t* sums, float acc) {
    const WeightFormat& f = a.format;
    const bool bf = f.scale_dtype == DType::bf16;
    const float x_scale = a.scales[row * ((a.k + block_depth - 1) / block_depth) + from / block_depth];
    auto real = [&](int64_t at) { return scale_bits(uint16_t(block[at] | block[at + 1] << 8), bf); };
    auto sum = [&](int i) { return float(sums[i * panel_outputs * row_tile]); };
    if (of_k(packing) || packing == Packing::int4_two_level) {
        acc = gk::fma(sum(0), real(2 * column) * x_scale, acc);
        if (of_k(packing) && f.zero == Zero::real) acc = gk::fma(sum(1), -(real(64 + 2 * column) * x_scale), acc);
        return acc;
    }
    const int64_t subs = round_up(a.k, tile_depth) / 32, groups = block_depth / f.group;
    for (int group = 0; group * f.group < tiles * 64; group++) {
        acc = gk::fma(sum(group), real((group * 32 + column) * 2) * x_scale, acc);
        if (f.zero != Zero::real) continue;
        int32_t x_sum = 0;
        for (int64_t k = group * f.group; k < (group + 1) * f.group && k < tiles * 64; k += 32) x_sum += a.sums[row * subs + (from + k) / 32];
        acc = gk::fma(float(x_sum), real((groups * 32 + group * 32 + column) * 2) * x_scale, acc);
    }
    return acc;
}

// Grid: panels x tiles of 8 rows; 256 threads; shared memory packed_shared_bytes.
template <Packing packing, bool by16>
GK_KERNEL void packed_rows(PackedLinearArgs a, int64_t first_panel) {
    gk::wait_for_previous(), gk::let_next_start();
    const WeightFormat f = a.format;
    if (a.region) at_region(a);
    if (gk::block_y() * row_tile >= a.rows) return;
    const int warp = gk::thread() / 32, emits = sums_a_block(f);
    auto* sums = reinterpret_cast<int32_t*>(gk::shared());  // [warp][emit][32][8]
    auto* values = reinterpret_cast<float*>(sums + panel_warps * emits * panel_outputs * row_tile);
    const int64_t blocks = (a.k + block_depth - 1) / block_depth, depth = round_up(a.k, tile_depth), panel = first_panel + gk::block();
    const uint8_t* weight = a.weight + panel * panel_bytes(f, a.k);
    const int64_t row0 = gk::block_y() * row_tile;
    const int column = gk::thread() / row_tile;
    const int64_t row = row0 + gk::thread() % row_tile;
    auto tiles_of = [&](int64_t b) { return int(least_of(depth - b * block_depth, block_depth) / tile_depth); };
    float acc = 0.0f;
    for (int64_t first = 0; first < blocks; first += panel_warps) {
        const int64_t mine = first + warp;
        if (mine < blocks)
            packed_block<packing, by16>(a, weight + mine * block_bytes(f), mine * block_depth, tiles_of(mine), row0,
                                        sums + warp * emits * panel_outputs * row_tile);
        gk::sync();
        for (int64_t b = first; b < blocks && b < first + panel_warps && row < a.rows; b++)
            acc = packed_add<packing>(a, weight + b * block_bytes(f), b * block_depth, tiles_of(b), row, column,
                                      sums + ((b - first) * emits * panel_outputs + column) * row_tile + gk::thread() % row_tile, acc);
        gk::sync();
    }
    const int64_t outputs = a.gated ? panel_outputs / 2 : panel_outputs, n = a.gated ? a.n / 2 : a.n;
    const int64_t i = panel * outputs + column % outputs;
    if (a.bias && i < n) acc += a.bias[i + column / outputs * n];
    if (a.gated) {
        values[gk::thread()] = acc;
        gk::sync();
        if (column >= outputs || i >= n || row >= a.rows) return;
        const float up = values[gk::thread() + 16 * row_tile];
        with_kind(a.kind, [&](auto kind) { acc = gate<decltype(kind)::value>(acc, up); });
    } else if (i >= n || row >= a.rows) {
        return;
    }
    const int64_t at = row * a.out_stride + i;
    if (a.residual) acc += a.residual[at];
    a.out[at] = acc;
}

// A block has a row of the weight, its threads the columns.
GK_KERNEL void unpack_kernel(UnpackArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const WeightFormat& f = a.format;
    const bool bf = f.scale_dtype == DType::bf16, eight = eight_bits(f.packing);
    const int64_t r = first + gk::block(), half = a.gated ? a.n / 2 : a.n, i = a.ids[r] < half ? a.ids[r] : a.ids[r] - half;
    const int64_t panel = a.gated ? i / 16 : i / panel_outputs;
    const int64_t column = a.gated ? i % 16 + (a.ids[r] < half ? 0 : 16) : i % panel_outputs;
    each_column(a.k, [&](int64_t k) {
        const uint8_t* header = a.panels + panel * panel_bytes(f, a.k) + k / block_depth * block_bytes(f);
        const int64_t in_block = k % block_depth, tile = in_block / tile_depth, inner = k % tile_depth;
        const uint8_t* codes = header + header_bytes(f) + tile * tile_bytes(f.packing) + column / 16 * (tile_bytes(f.packing) / 2);
        auto real = [&](int64_t at) { return scale_bits(uint16_t(header[at] | header[at + 1] << 8), bf); };
        int32_t code;
        if (eight) {
            code = int8_t(codes[inner / 4 * 64 + column % 16 * 4 + inner % 4]);
        } else {
            const uint8_t byte = codes[inner % 32 / 4 * 64 + column % 16 * 4 + inner % 4];
            code = inner < 32 ? byte & 15 : byte >> 4;
        }
        const int64_t group = in_block / scale_depth(f), groups = block_depth / scale_depth(f);
        if (f.packing == Packing::int4_two_level) {
            const int32_t u = header[64 + tile * 32 + column];
            code = (inner < 32 ? u & 15 : u >> 4) * code - header[192 + tile * 64 + column * 2 + inner / 32];
        } else if (f.zero == Zero::none && !eight) {
            code -= 8;
        } else if (f.zero == Zero::integer) {
            const uint8_t z = header[groups * panel_outputs * 2 + group * panel_outputs + column];
            code -= f.packing == Packing::int4 ? int32_t(z) : int32_t(int8_t(z));
        }
        const bool scaled = of_k(f.packing);  // d sc and dmin m are exact
        float scale = real((group * panel_outputs + column) * 2);
        if (scaled) scale *= float(int8_t(header[k_scales_at(f) + k_index(f, in_block, column)]));
        float value = float(code) * scale;
        if (f.zero == Zero::real) {
            const float b = real((groups + group) * panel_outputs * 2 + column * 2);
            value += scaled ? -(b * float(header[k_minima_at(f) + k_index(f, in_block, column)])) : b;
        }
        a.out[r * a.k + k] = value;
    });
}
