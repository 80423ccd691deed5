// Products of more than 16 rows with bf16 weights: the arithmetic of dense_few.inl, in tiles of outputs and rows, so that each
// weight is read for many rows at once. The rows are rounded to bf16 beforehand, to the workspace.
//
// A stage is 64 of k of all outputs, then of all rows of a tile: [2 of 32][row][64 bytes]. Lane (g, t) reads 16 bytes of row g:
// eight lanes read 128 bytes without a gap, so no two want the same bank. Products of a part of k are a chain of their own
// and are added to the sum when it ends.

// Rows that are rounded at once: whole tiles of the larger kind; none where the workspace has no room.
static constexpr int64_t dense_rows_at_once(int64_t k) { return workspace_bytes / 2 / round_up(k, dense_unit) / 128 * 128; }

// Whether tiles of 128 outputs and 128 rows are enough for all multiprocessors, else of 32 and 64.
static constexpr bool dense_many_large(int64_t rows, int64_t outputs, int64_t processors) {
    return rows > 64 && ((outputs + 127) / 128) * ((rows + 127) / 128) >= processors;
}

// m_tiles and n_tiles of a warp; two warps beside each other over outputs, four over rows.
static constexpr int dense_tile_outputs(int m_tiles) { return 32 * m_tiles; }
static constexpr int dense_tile_rows(int n_tiles) { return 32 * n_tiles; }
static constexpr int dense_stage_bytes(int m_tiles, int n_tiles) { return (dense_tile_outputs(m_tiles) + dense_tile_rows(n_tiles)) * dense_unit * 2; }
static constexpr int dense_stages(int m_tiles, int n_tiles) { return (96 << 10) / dense_stage_bytes(m_tiles, n_tiles); }
static constexpr int dense_many_bytes(int m_tiles, int n_tiles) { return dense_stages(m_tiles, n_tiles) * dense_stage_bytes(m_tiles, n_tiles); }

// Set where the device's maker has a library for such products (blas.h), by who includes this. False: it made nothing.
bool (*library_product)(const LibraryProduct&) = nullptr;

// Adds the bias to rows of out. Grid: rows.
GK_KERNEL void product_bias_kernel(LinearArgs a, int64_t row0) {
    gk::wait_for_previous(), gk::let_next_start();
    float* out = a.out + (row0 + gk::block()) * a.out_stride;
    each_column(a.n, [&](int64_t n) { out[n] += a.bias[n]; });
}

// Rows row0 .. of x as bf16, zeros from k to a multiple of 64. Grid: rows.
GK_KERNEL void round_x_kernel(LinearArgs a, int64_t row0, uint32_t* to) {
    gk::wait_for_previous(), gk::let_next_start();
    if (a.region) {
        if (row0 + gk::block() >= a.region->rows) return;
        at_region(a);
    }
    const int64_t pairs = round_up(a.k, dense_unit) / 2;
    const float* x = a.x + (row0 + gk::block()) * a.x_stride;
    to += gk::block() * pairs;
    each_column(pairs, [&](int64_t i) { to[i] = gk::pack_bf16(2 * i < a.k ? x[2 * i] : 0.0f, 2 * i + 1 < a.k ? x[2 * i + 1] : 0.0f); });
}

// Rows row0 .. row0 + count, rounded, of which those of a tile are beside each other in the grid for the same outputs.
template <int m_tiles, int n_tiles>
GK_KERNEL void GK_BOUNDS(dense_warps * 32, 1) dense_many_kernel(LinearArgs a, int64_t row0, int64_t count, const uint16_t* x, int64_t begin, int64_t end) {
    constexpr int outputs = dense_tile_outputs(m_tiles), rows = dense_tile_rows(n_tiles), stages = dense_stages(m_tiles, n_tiles);
    constexpr int stage_bytes = dense_stage_bytes(m_tiles, n_tiles), lines = dense_unit * 2 / 16;  // 16 bytes each, of a row
    const int warp = gk::thread() / 32, g = gk::lane() / 4, t = gk::lane() % 4;
    const int64_t row_blocks = (count + rows - 1) / rows;
    const int64_t n0 = begin + gk::block() / row_blocks * outputs, first = gk::block() % row_blocks * rows;  // of those rounded
    const int k = int(a.k), depth = int(round_up(a.k, dense_unit)), total = depth / dense_unit, part = int(dense_part(a.k)) / dense_unit;
    char* shared = gk::shared();
    // Line l of a row lies in the half l / 4 of a stage.
    auto place = [&](int stage, int from, int size, int row, int l) { return shared + stage * stage_bytes + from + (l / 4 * size + row) * 64 + l % 4 * 16; };
    auto copy_weights = [&](int s) {
        if (s >= total) return;
        GK_UNROLL
        for (int i = gk::thread(); i < outputs * lines; i += dense_warps * 32) {
            const int row = i / lines, l = i % lines, at = s * dense_unit + l * 8;
            gk::copy_async(place(s % stages, 0, outputs, row, l), static_cast<const uint16_t*>(a.weight) + (n0 + row) * a.k + at, at < k && n0 + row < end);
        }
    };
    auto copy_rows = [&](int s) {
        if (s >= total) return;
        GK_UNROLL
        for (int i = gk::thread(); i < rows * lines; i += dense_warps * 32) {
            const int row = i / lines, l = i % lines;
            gk::copy_async(place(s % stages, outputs * dense_unit * 2, rows, row, l), x + (first + row) * depth + s * dense_unit + l * 8, first + row < count);
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
    gk::let_next_start();
    GK_ROLLED
    for (int s = 0; s + 1 < stages; s++) {
        if (a.region) copy_weights(s);
        copy_rows(s);
        gk::copy_commit();
    }

    const int output = warp % 2 * 16 * m_tiles, row = warp / 2 * 8 * n_tiles;  // the warp's, in the tile
    float acc[m_tiles][n_tiles][4] = {}, sum[m_tiles][n_tiles][4] = {};
    GK_ROLLED
    for (int s = 0; s < total; s++) {
        gk::copy_wait<stages - 2>();
        gk::sync();  // all have the stage, and are done with the one before, whose place the next copy takes
        copy_weights(s + stages - 1);
        copy_rows(s + stages - 1);
        gk::copy_commit();
        GK_UNROLL
        for (int half = 0; half < 2; half++) {
            auto read = [&](int from, int size, int at) {
                gk::Words4 w;
                const auto c = *reinterpret_cast<const Floats4*>(place(s % stages, from, size, at + g, half * 4 + t));
                memcpy(&w, &c, 16);
                return w;
            };
            DenseRow<false> b[n_tiles];
            GK_UNROLL
            for (int j = 0; j < n_tiles; j++) {
                const gk::Words4 w = read(outputs * dense_unit * 2, rows, row + 8 * j);
                memcpy(&b[j], &w, 16);
            }
            GK_UNROLL
            for (int i = 0; i < m_tiles; i++) {
                const gk::Words4 w[2] = {read(0, outputs, output + 16 * i), read(0, outputs, output + 16 * i + 8)};
                GK_UNROLL
                for (int j = 0; j < n_tiles; j++) dense_product<false>(acc[i][j], w, b[j]);
            }
        }
        if ((s + 1) % part != 0 && s + 1 < total) continue;
        GK_UNROLL
        for (int i = 0; i < m_tiles; i++) {
            GK_UNROLL
            for (int j = 0; j < n_tiles; j++) {
                GK_UNROLL
                for (int e = 0; e < 4; e++) sum[i][j][e] += acc[i][j][e], acc[i][j][e] = 0.0f;
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
                if (n < end && r < count) write_output(a, row0 + r, n, sum[i][j][e]);
            }
        }
    }
}
