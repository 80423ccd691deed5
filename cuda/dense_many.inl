// Products of more than 16 rows with weights of 16 bits: what is done to the rows beforehand, and the kernel for weights of f16 in
// tiles of outputs and rows, so that each weight is read for many rows at once (bf16: dense_tiles.inl). The rows are rounded to the
// workspace: to bf16, or to floats of tf32.
//
// A stage is 64 of k of all outputs, then of all rows of a tile: [2 of 32][output][64 bytes], of which lane (g, t) reads 16 bytes of
// output g: eight lanes read 128 bytes without a gap, so no two want the same bank. Rows of tf32 are twice as long: [2 of 32][first or
// second four of a lane's eight][row][64 bytes]. An output's sum is one chain over k.

// Rows that are rounded at once: whole tiles of the largest kind, of pieces alike; none where the workspace has no room.
static constexpr int64_t dense_rows_most(int64_t k, bool half) { return workspace_bytes / dense_x_bytes(half) / round_up(k, dense_unit) / 128 * 128; }
static constexpr int64_t dense_rows_at_once(int64_t rows, int64_t k, bool half) {
    const int64_t most = dense_rows_most(k, half), pieces = (rows + most - 1) / most;
    return std::min<int64_t>(round_up((rows + pieces - 1) / pieces, 128), most);
}
// Where 16 bytes of a line of 64 of k lie: of an output, and of a row behind a stage's outputs.
static constexpr int dense_output_at(int outputs, int output, int piece) { return (piece / 4 * outputs + output) * 64 + piece % 4 * 16; }
static constexpr int dense_row_at(int rows, int row, int piece) { return ((piece / 8 * 2 + piece % 2) * rows + row) * 64 + piece % 8 / 2 * 16; }

// m_tiles and n_tiles of a warp; two warps beside each other over outputs, four over rows.
static constexpr int dense_tile_outputs(int m_tiles) { return 32 * m_tiles; }
static constexpr int dense_tile_rows(int n_tiles) { return 32 * n_tiles; }
static constexpr int dense_stage_bytes(int m_tiles, int n_tiles) {
    return (dense_tile_outputs(m_tiles) * 2 + dense_tile_rows(n_tiles) * dense_x_bytes(true)) * dense_unit;
}
static constexpr int dense_stages(int m_tiles, int n_tiles) { return (96 << 10) / dense_stage_bytes(m_tiles, n_tiles); }
static constexpr int dense_many_bytes(int m_tiles, int n_tiles) {
    return dense_stages(m_tiles, n_tiles) * dense_stage_bytes(m_tiles, n_tiles);
}
// Whether tiles of 128 outputs and 64 rows are enough for all multiprocessors; else those of 32 outputs are taken.
static constexpr bool dense_many_large(int64_t rows, int64_t outputs, int64_t processors) {
    return rows > 64 && ((outputs + 127) / 128) * ((rows + 63) / 64) >= processors;
}

// Set where the device's maker has a library for such products (blas.h), by who includes this. False: it made nothing.
bool (*library_product)(const LibraryProduct&) = nullptr;

// Adds the bias to rows of out. Grid: rows.
GK_KERNEL void product_bias_kernel(LinearArgs a, int64_t row0) {
    gk::let_next_start(), gk::wait_for_previous();
    float* out = a.out + (row0 + gk::block()) * a.out_stride;
    each_column(a.n, [&](int64_t n) { out[n] += a.bias[n]; });
}

// Rows row0 .. of x rounded, zeros from k to a multiple of 64. Grid: rows.
GK_KERNEL void round_x_kernel(LinearArgs a, int64_t row0, uint32_t* to) {
    gk::let_next_start(), gk::wait_for_previous();
    if (a.region) {
        if (row0 + gk::block() >= a.region->rows) return;
        at_region(a);
    }
    const bool half = a.dtype == DType::f16;
    const int k = int(a.k), depth = int(round_up(a.k, dense_unit));
    const float* x = a.x + (row0 + gk::block()) * a.x_stride;
    char* row = reinterpret_cast<char*>(to) + gk::block() * depth * dense_x_bytes(half);
    const bool wide = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    GK_ROLLED
    for (int from = 0; from < depth; from += 2 * 8 * row_threads) {
        float eight[2][8];
        GK_UNROLL
        for (int j = 0; j < 2; j++) load_eight(x, from + eight_at(j), k, wide, eight[j]);
        GK_UNROLL
        for (int j = 0; j < 2; j++) {
            const int at = from + eight_at(j);
            if (at >= depth) continue;
            if (half) dense_keep<true>(row, at, eight[j]);
            else dense_keep<false>(row, at, eight[j]);
        }
    }
}

// Rows row0 .. row0 + count, rounded, of which those of a tile are beside each other in the grid for the same outputs.
template <int m_tiles, int n_tiles>
GK_KERNEL void GK_BOUNDS(dense_warps * 32, 1)
    dense_many_kernel(LinearArgs a, int64_t row0, int64_t count, const char* x, int64_t begin, int64_t end) {
    gk::let_next_start();
    constexpr int outputs = dense_tile_outputs(m_tiles), rows = dense_tile_rows(n_tiles), stages = dense_stages(m_tiles, n_tiles);
    constexpr int stage_bytes = dense_stage_bytes(m_tiles, n_tiles), weight_bytes = outputs * dense_unit * 2;
    constexpr int lines = dense_unit * 2 / 16, x_lines = dense_unit * dense_x_bytes(true) / 16;  // 16 bytes each, of an output and of a row
    const int warp = gk::thread() / 32, g = gk::lane() / 4, t = gk::lane() % 4;
    const int64_t row_blocks = (count + rows - 1) / rows;
    const int64_t n0 = begin + gk::block() / row_blocks * outputs, first = gk::block() % row_blocks * rows;  // of those rounded
    const int k = int(a.k), depth = int(round_up(a.k, dense_unit)), total = depth / dense_unit;
    char* shared = gk::shared();
    auto copy_weights = [&](int s) {
        if (s >= total) return;
        GK_UNROLL
        for (int i = gk::thread(); i < outputs * lines; i += dense_warps * 32) {
            const int row = i / lines, l = i % lines, at = s * dense_unit + l * 8;
            gk::copy_async(shared + s % stages * stage_bytes + dense_output_at(outputs, row, l),
                           static_cast<const uint16_t*>(a.weight) + (n0 + row) * a.k + at, at < k && n0 + row < end);
        }
    };
    auto copy_rows = [&](int s) {
        if (s >= total) return;
        GK_UNROLL
        for (int i = gk::thread(); i < rows * x_lines; i += dense_warps * 32) {
            const int row = i / x_lines, l = i % x_lines;
            gk::copy_async(shared + s % stages * stage_bytes + weight_bytes + dense_row_at(rows, row, l),
                           x + ((first + row) * depth + s * dense_unit) * dense_x_bytes(true) + l * 16, first + row < count);
        }
    };
    if (!a.region) {
        GK_ROLLED
        for (int s = 0; s + 1 < stages; s++) copy_weights(s);
    }
    gk::wait_for_previous();
    if (a.region) {
        count = least_of(a.region->rows - row0, count);
        if (first >= count) return;
        at_region(a);
    }
    GK_ROLLED
    for (int s = 0; s + 1 < stages; s++) {
        if (a.region) copy_weights(s);
        copy_rows(s);
        gk::copy_commit();
    }

    const int output = warp % 2 * 16 * m_tiles, row = warp / 2 * 8 * n_tiles;  // the warp's, in the tile
    float acc[m_tiles][n_tiles][4] = {};
    GK_ROLLED
    for (int s = 0; s < total; s++) {
        gk::copy_wait<stages - 2>();
        gk::sync();  // all have the stage, and are done with the one before, whose place the next copy takes
        copy_weights(s + stages - 1);
        copy_rows(s + stages - 1);
        gk::copy_commit();
        GK_UNROLL
        for (int step = 0; step < 2; step++) {
            auto read = [&](int at) {
                gk::Words4 w;
                const auto c = *reinterpret_cast<const Floats4*>(shared + s % stages * stage_bytes + at);
                memcpy(&w, &c, 16);
                return w;
            };
            DenseRow<true> b[n_tiles];
            GK_UNROLL
            for (int j = 0; j < n_tiles; j++) {
                GK_UNROLL
                for (int four = 0; four < 2; four++) {
                    const gk::Words4 w = read(weight_bytes + dense_row_at(rows, row + 8 * j + g, (step * 4 + t) * 2 + four));
                    memcpy(&b[j].x[4 * four], &w, 16);
                }
            }
            GK_UNROLL
            for (int i = 0; i < m_tiles; i++) {
                const int at = output + 16 * i + g;
                const gk::Words4 w[2] = {read(dense_output_at(outputs, at, step * 4 + t)), read(dense_output_at(outputs, at + 8, step * 4 + t))};
                GK_UNROLL
                for (int j = 0; j < n_tiles; j++) dense_product<true>(acc[i][j], w, b[j]);
            }
        }
    }
    GK_UNROLL
    for (int i = 0; i < m_tiles; i++) {
        GK_UNROLL
        for (int j = 0; j < n_tiles; j++) {
            GK_UNROLL
            for (int e = 0; e < 4; e++) {
                const int64_t n = n0 + output + 16 * i + g + e / 2 * 8, r = first + row + 8 * j + 2 * t + e % 2;
                if (n < end && r < count) write_output(a, row0 + r, n, acc[i][j][e]);
            }
        }
    }
}
