// Products of more than 16 rows with weights of bf16: tiles of rows and outputs. The rows are rounded beforehand, to the workspace.
//
// A stage is `depth` of k of a tile's rows, then of its outputs, a line each: [row][depth], whose 16 bytes p lie at p ^ key of the row,
// so that the eight rows of a matrix (load_matrix) lie in all banks. Rows are the first operand, outputs the second: a lane has two
// outputs beside each other. An output's sum is one chain over k, whatever the tile: 17 rows and more have the same bits.

// A warp has 16 `rows16` rows and 16 `outputs16` outputs of a tile of row_warps x output_warps warps.
template <int rows16, int outputs16, int row_warps, int output_warps, int of_k>
struct DenseTile {
    static constexpr int warp_rows = 16 * rows16, warp_outputs = 16 * outputs16, depth = of_k;
    static constexpr int rows = warp_rows * row_warps, outputs = warp_outputs * output_warps, lines = rows + outputs;
    static constexpr int line_bytes = depth * 2, pieces = depth / 8, stage_bytes = lines * line_bytes;
    static constexpr int stages = (96 << 10) / stage_bytes < 8 ? (96 << 10) / stage_bytes : 8, bytes = stages * stage_bytes;
    static constexpr int steps = depth / 16, m = rows16, n = outputs16;
    static_assert(row_warps * output_warps == dense_warps && pieces * 8 == depth && steps % 2 == 0 && stages >= 3, "a tile of eight warps");
    // Of a block that has a multiprocessor, 16 of k: its products at some 79 rows x outputs a clock, or its operands from the
    // second-level cache at 32 bytes a clock. By reckoning.
    static constexpr int64_t clocks = rows * outputs / 79 > lines ? rows * outputs / 79 : lines;
    // Where 16 bytes of a line lie in a stage.
    static constexpr int at(int line, int piece) { return line * line_bytes + (piece ^ (pieces == 8 ? line % 8 : line / 2 % 4)) * 16; }
};
using DenseLarge = DenseTile<4, 4, 2, 4, 32>;  // 128 rows x 256 outputs
using DenseMiddle = DenseTile<4, 2, 2, 4, 32>; // 128 x 128
using DenseFlat = DenseTile<2, 2, 2, 4, 64>;   // 64 x 128
using DenseSmall = DenseTile<1, 1, 4, 2, 64>;  // 64 x 32

struct alignas(8) FloatPair {
    float x, y;
};

// Rows row0 .. row0 + count, rounded at x, of which those of the same outputs are beside each other in the grid.
template <class Tile>
GK_KERNEL void GK_BOUNDS(dense_warps * 32, Tile::m * Tile::n > 4 ? 1 : 2)
    dense_tile_kernel(LinearArgs a, int64_t row0, int64_t count, const uint16_t* x, int64_t begin, int64_t end) {
    gk::let_next_start();
    const int warp = gk::thread() / 32, lane = gk::lane(), g = lane / 4, t = lane % 4;
    const int k = int(a.k), x_depth = int(round_up(a.k, dense_unit)), total = (k + Tile::depth - 1) / Tile::depth;
    const int row_blocks = int(count + Tile::rows - 1) / Tile::rows, tile = int(gk::block());
    const int n0 = int(begin) + tile / row_blocks * Tile::outputs, first = tile % row_blocks * Tile::rows;  // of those rounded
    char* shared = gk::shared();

    // A thread copies the same 16 bytes of every apart-th line.
    constexpr int apart = dense_warps * 32 / Tile::pieces, row_copies = Tile::rows / apart, output_copies = Tile::outputs / apart;
    static_assert(row_copies * apart == Tile::rows && output_copies * apart == Tile::outputs && apart % 8 == 0, "lines of a thread");
    const int line = gk::thread() / Tile::pieces, piece = gk::thread() % Tile::pieces;
    char* const copy_to = shared + Tile::at(line, piece);
    const uint16_t* copy_x = x + int64_t(first + line) * x_depth + piece * 8;
    const uint16_t* copy_weight = nullptr;
    int copied_weights = 0, copied_rows = 0;  // stages
    auto copy_weights = [&](int place) {
        const int left = copied_weights * Tile::depth + piece * 8 < k ? int(end) - n0 - line : 0;
        GK_UNROLL
        for (int i = 0; i < output_copies; i++)
            gk::copy_async(copy_to + place * Tile::stage_bytes + (Tile::rows + i * apart) * Tile::line_bytes, copy_weight + int64_t(i * apart) * k,
                           i * apart < left);
        copy_weight += Tile::depth, copied_weights++;
    };
    auto copy_rows = [&](int place) {
        const int left = copied_rows * Tile::depth + piece * 8 < x_depth ? int(count) - first - line : 0;
        GK_UNROLL
        for (int i = 0; i < row_copies; i++)
            gk::copy_async(copy_to + place * Tile::stage_bytes + i * apart * Tile::line_bytes, copy_x + int64_t(i * apart) * x_depth,
                           i * apart < left);
        copy_x += Tile::depth, copied_rows++;
    };
    auto weights_first = [&] {
        copy_weight = static_cast<const uint16_t*>(a.weight) + int64_t(n0 + line) * k + piece * 8;
        GK_ROLLED
        for (int s = 0; s + 1 < Tile::stages; s++) copy_weights(s);
    };
    if (!a.region) weights_first();
    gk::wait_for_previous();
    if (a.region) {
        count = least_of(a.region->rows - row0, count);
        if (first >= count) return;
        at_region(a);
        weights_first();
    }
    GK_ROLLED
    for (int s = 0; s + 1 < Tile::stages; s++) {
        copy_rows(s);
        gk::copy_commit();
    }

    // Where a lane's line of a matrix begins, and its 16 bytes of the first 16 of k: of rows 8 l / 8 % 2 and k 8 l / 16; of outputs
    // the other way round, so that a load has the operands of two products.
    constexpr int row_warps = Tile::rows / Tile::warp_rows;
    const int row = warp % row_warps * Tile::warp_rows, output = warp / row_warps * Tile::warp_outputs;
    const int x_at = (row + lane % 16) * Tile::line_bytes, w_at = (Tile::rows + output + lane / 16 * 8 + lane % 8) * Tile::line_bytes;
    const int x_piece = Tile::at(lane % 8, lane / 16) % Tile::line_bytes, w_piece = Tile::at(lane % 8, lane / 8 % 2) % Tile::line_bytes;
    gk::Words4 x_now[2][Tile::m], w_now[2][Tile::n];
    auto read = [&](int place, int step) {
        const char* stage = shared + place * Tile::stage_bytes;
        GK_UNROLL
        for (int i = 0; i < Tile::m; i++) x_now[step % 2][i] = gk::load_matrix(stage + x_at + i * 16 * Tile::line_bytes + (x_piece ^ step * 32));
        GK_UNROLL
        for (int j = 0; j < Tile::n; j++) w_now[step % 2][j] = gk::load_matrix(stage + w_at + j * 16 * Tile::line_bytes + (w_piece ^ step * 32));
    };
    float acc[Tile::m][2 * Tile::n][4] = {};
    gk::copy_wait<Tile::stages - 2>();
    gk::sync();
    read(0, 0);
    int place = 0, copy_place = Tile::stages - 1;
    GK_ROLLED
    for (int s = 0; s < total; s++) {
        const int next = place + 1 == Tile::stages ? 0 : place + 1;
        GK_UNROLL
        for (int step = 0; step < Tile::steps; step++) {
            if (step + 1 < Tile::steps) {
                read(place, step + 1);
            } else {
                gk::copy_wait<Tile::stages - 2>();
                gk::sync();  // all have the next stage, and have read this one, whose place the next copy takes
                if (s + 1 < total) read(next, 0);
            }
            if (step == 0) {
                if (s + Tile::stages - 1 < total) copy_weights(copy_place), copy_rows(copy_place);
                gk::copy_commit();
                copy_place = place;
            }
            GK_UNROLL
            for (int i = 0; i < Tile::m; i++) {
                const uint32_t(&rows)[4] = x_now[step % 2][i].x;
                GK_UNROLL
                for (int j = 0; j < 2 * Tile::n; j++) {
                    const uint32_t* w = w_now[step % 2][j / 2].x + j % 2 * 2;
                    gk::mma_bf16(acc[i][j], rows, {w[0], w[1]});
                }
            }
        }
        place = next;
    }

    // Sums go through shared memory, sixteen rows of a warp at once, so that its lanes have outputs beside each other.
    gk::sync();
    constexpr int stride = Tile::warp_outputs + 8, fours = Tile::warp_outputs / 4, turns = Tile::warp_outputs / 8;
    // Of the first two: with few of k, copies of zeros into others may still be on their way.
    static_assert(dense_warps * 16 * stride * 4 <= 2 * Tile::stage_bytes, "sums in the place of stages");
    auto* sums = reinterpret_cast<float*>(shared) + warp * 16 * stride;
    auto by_fours = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    const bool aligned = a.out_stride % 4 == 0 && begin % 4 == 0 && by_fours(a.out) && by_fours(a.residual) && by_fours(a.bias);
    const bool whole = aligned && n0 + Tile::outputs <= end;
    const int n = n0 + output, column = lane % fours * 4;
    Four bias{};
    if (whole && a.bias) bias = four_at(a.bias + n + column);
    GK_UNROLL
    for (int i = 0; i < Tile::m; i++) {
        const int r0 = first + row + 16 * i, rows = min_of(16, int(count) - r0);
        gk::sync_warp();
        GK_UNROLL
        for (int j = 0; j < 2 * Tile::n; j++) {
            GK_UNROLL
            for (int half = 0; half < 2; half++) {
                auto* two = reinterpret_cast<FloatPair*>(sums + (8 * half + g) * stride + 8 * j + 2 * t);
                *two = {acc[i][j][2 * half], acc[i][j][2 * half + 1]};
            }
        }
        gk::sync_warp();
        if (!whole) {
            GK_ROLLED
            for (int e = lane; e < rows * Tile::warp_outputs; e += 32) {
                const int r = e / Tile::warp_outputs, c = e % Tile::warp_outputs;
                if (n + c < end) write_output(a, row0 + r0 + r, n + c, sums[r * stride + c]);
            }
            continue;
        }
        const int64_t at = (row0 + r0) * a.out_stride + n + column;
        Four sum[turns];  // what is added to all of them is asked for before the first is stored
        GK_UNROLL
        for (int e = 0; e < turns; e++) {
            const int r = e * (32 / fours) + lane / fours;
            sum[e] = four_at(sums + r * stride + column);
            Four residual{};
            if (a.residual && r < rows) residual = four_at(a.residual + at + r * a.out_stride);
            GK_UNROLL
            for (int c = 0; c < 4; c++) sum[e].x[c] = sum[e].x[c] + bias.x[c] + residual.x[c];
        }
        GK_UNROLL
        for (int e = 0; e < turns; e++) {
            const int r = e * (32 / fours) + lane / fours;
            if (r < rows) four_at(a.out + at + r * a.out_stride) = sum[e];
        }
    }
}

// The tile that takes the least time by reckoning: 0 .. 3 of the above.
template <class Tile>
static constexpr int64_t dense_tile_time(int64_t rows, int64_t outputs, int64_t processors) {
    const int64_t tiles = ((rows + Tile::rows - 1) / Tile::rows) * ((outputs + Tile::outputs - 1) / Tile::outputs);
    return (tiles + processors - 1) / processors * Tile::clocks;
}
static constexpr int dense_tile(int64_t rows, int64_t outputs, int64_t processors) {
    const int64_t times[] = {dense_tile_time<DenseLarge>(rows, outputs, processors), dense_tile_time<DenseMiddle>(rows, outputs, processors),
                             dense_tile_time<DenseFlat>(rows, outputs, processors), dense_tile_time<DenseSmall>(rows, outputs, processors)};
    int best = 0;
    for (int i = 1; i < 4; i++)
        if (times[i] < times[best]) best = i;
    return best;
}
