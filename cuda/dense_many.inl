// Products of more than 16 rows with weights of 16 bits: the operands of dense_few.inl, in tiles of outputs and rows, so that each
// weight is read for many rows at once. The rows are rounded beforehand, to the workspace: to bf16, or to floats of tf32.
//
// A stage is 64 of k of all outputs, then of all rows of a tile: [2 of 32][row][64 bytes], of which lane (g, t) reads 16 bytes of
// row g: eight lanes read 128 bytes without a gap, so no two want the same bank. Rows of tf32 are twice as long: [2 of 32][first or
// second four of a lane's eight][row][64 bytes]. Products of a part of k are a chain of their own and are added to the sum when
// it ends.

constexpr int dense_parts = 8;  // of k, one beside the other
static constexpr int64_t dense_part(int64_t k) { return ((k + dense_unit - 1) / dense_unit + dense_parts - 1) / dense_parts * dense_unit; }

// Rows that are rounded at once: whole tiles of the largest kind; none where the workspace has no room.
static constexpr int64_t dense_rows_at_once(int64_t k, bool half) { return workspace_bytes / dense_x_bytes(half) / round_up(k, dense_unit) / 128 * 128; }
// Where 16 bytes of a row lie behind a stage's weights: line of 64 of k.
static constexpr int dense_row_at(bool half, int rows, int row, int line) {
    return half ? ((line / 8 * 2 + line % 2) * rows + row) * 64 + line % 8 / 2 * 16 : (line / 4 * rows + row) * 64 + line % 4 * 16;
}

// m_tiles and n_tiles of a warp; two warps beside each other over outputs, four over rows.
static constexpr int dense_tile_outputs(int m_tiles) { return 32 * m_tiles; }
static constexpr int dense_tile_rows(int n_tiles) { return 32 * n_tiles; }
static constexpr int dense_stage_bytes(bool half, int m_tiles, int n_tiles) {
    return (dense_tile_outputs(m_tiles) * 2 + dense_tile_rows(n_tiles) * dense_x_bytes(half)) * dense_unit;
}
static constexpr int dense_stages(bool half, int m_tiles, int n_tiles) { return (96 << 10) / dense_stage_bytes(half, m_tiles, n_tiles); }
static constexpr int dense_many_bytes(bool half, int m_tiles, int n_tiles) {
    return dense_stages(half, m_tiles, n_tiles) * dense_stage_bytes(half, m_tiles, n_tiles);
}
// The larger tiles; fewer rows where those take twice the registers.
static constexpr int dense_large_n(bool half) { return half ? 2 : 4; }
// Whether they are enough for all multiprocessors; else those of 32 outputs and 64 rows are taken.
static constexpr bool dense_many_large(bool half, int64_t rows, int64_t outputs, int64_t processors) {
    const int64_t tile = dense_tile_rows(dense_large_n(half));
    return rows > 64 && ((outputs + 127) / 128) * ((rows + tile - 1) / tile) >= processors;
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
    const int64_t depth = round_up(a.k, dense_unit);
    const float* x = a.x + (row0 + gk::block()) * a.x_stride;
    auto at = [&](int64_t k) { return k < a.k ? x[k] : 0.0f; };
    if (a.dtype == DType::f16) each_column(depth, [&](int64_t i) { to[gk::block() * depth + i] = gk::round_tf32(at(i)); });
    else each_column(depth / 2, [&](int64_t i) { to[gk::block() * depth / 2 + i] = gk::pack_bf16(at(2 * i), at(2 * i + 1)); });
}

// Rows row0 .. row0 + count, rounded, of which those of a tile are beside each other in the grid for the same outputs.
template <bool half, int m_tiles, int n_tiles>
GK_KERNEL void GK_BOUNDS(dense_warps * 32, 1) dense_many_kernel(LinearArgs a, int64_t row0, int64_t count, const char* x, int64_t begin, int64_t end) {
    gk::let_next_start();
    constexpr int outputs = dense_tile_outputs(m_tiles), rows = dense_tile_rows(n_tiles), stages = dense_stages(half, m_tiles, n_tiles);
    constexpr int stage_bytes = dense_stage_bytes(half, m_tiles, n_tiles), weight_bytes = outputs * dense_unit * 2;
    constexpr int lines = dense_unit * 2 / 16, x_lines = dense_unit * dense_x_bytes(half) / 16;  // 16 bytes each, of an output and of a row
    const int warp = gk::thread() / 32, g = gk::lane() / 4, t = gk::lane() % 4;
    const int64_t row_blocks = (count + rows - 1) / rows;
    const int64_t n0 = begin + gk::block() / row_blocks * outputs, first = gk::block() % row_blocks * rows;  // of those rounded
    const int k = int(a.k), depth = int(round_up(a.k, dense_unit)), total = depth / dense_unit, part = int(dense_part(a.k)) / dense_unit;
    char* shared = gk::shared();
    auto copy_weights = [&](int s) {
        if (s >= total) return;
        GK_UNROLL
        for (int i = gk::thread(); i < outputs * lines; i += dense_warps * 32) {
            const int row = i / lines, l = i % lines, at = s * dense_unit + l * 8;
            gk::copy_async(shared + s % stages * stage_bytes + dense_row_at(false, outputs, row, l),
                           static_cast<const uint16_t*>(a.weight) + (n0 + row) * a.k + at, at < k && n0 + row < end);
        }
    };
    auto copy_rows = [&](int s) {
        if (s >= total) return;
        GK_UNROLL
        for (int i = gk::thread(); i < rows * x_lines; i += dense_warps * 32) {
            const int row = i / x_lines, l = i % x_lines;
            gk::copy_async(shared + s % stages * stage_bytes + weight_bytes + dense_row_at(half, rows, row, l),
                           x + ((first + row) * depth + s * dense_unit) * dense_x_bytes(half) + l * 16, first + row < count);
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
    float acc[m_tiles][n_tiles][4] = {}, sum[m_tiles][n_tiles][4] = {};
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
            DenseRow<half> b[n_tiles];
            GK_UNROLL
            for (int j = 0; j < n_tiles; j++) {
                GK_UNROLL
                for (int part_of = 0; part_of < (half ? 2 : 1); part_of++) {
                    const int line = half ? (step * 4 + t) * 2 + part_of : step * 4 + t;
                    const gk::Words4 w = read(weight_bytes + dense_row_at(half, rows, row + 8 * j + g, line));
                    memcpy(&b[j].x[4 * part_of], &w, 16);
                }
            }
            GK_UNROLL
            for (int i = 0; i < m_tiles; i++) {
                const int at = output + 16 * i + g;
                const gk::Words4 w[2] = {read(dense_row_at(false, outputs, at, step * 4 + t)), read(dense_row_at(false, outputs, at + 8, step * 4 + t))};
                GK_UNROLL
                for (int j = 0; j < n_tiles; j++) dense_product<half>(acc[i][j], w, b[j]);
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
