// Products with weights of 16 bits by tensor cores: the arithmetic of one output, and the kernel for few rows, whose time is
// that of reading the weights.
//
// One arithmetic for any number of rows. k is cut into eight parts of whole 64s, one beside the other; each is a chain of
// products, 32 of k after 32 of k, and the parts are added in their order. Of 32 of k lane (g, t) has k 8 t .. 8 t + 7 of
// outputs g and g + 8 (16 bytes each) and of row g: which of a product's k these are called is ours to say, as long as weights
// and rows agree. x is rounded to bf16 for bf16 weights. Weights of f16 are widened to tf32, which holds them exactly, and x is
// rounded to it: 11 bits as of f16, but with the range of a float.

constexpr int dense_warps = 8, dense_parts = 8;
constexpr int dense_step = 32;            // of k: 16 bytes a lane and output
constexpr int dense_unit = 64;            // of k: parts are multiples of it
constexpr int dense_ring = 8 << 10;       // bytes of a warp's ring
constexpr int dense_few_most = 16;        // rows of a block
constexpr int dense_chained_most = 8;     // where it does more than the product
constexpr int dense_place = dense_warps * dense_ring;  // where sums of rows lie, of the norm
constexpr int dense_few_bytes = dense_place + dense_chained_most * dense_warps * 4;

static constexpr int64_t dense_part(int64_t k) { return ((k + dense_unit - 1) / dense_unit + dense_parts - 1) / dense_parts * dense_unit; }

// Whether the tensor cores can: else linear.inl. Not a matter of rows, or one row would have other bits than many.
static bool is_dense(const LinearArgs& a) {
    return a.dtype != DType::f32 && a.k % 8 == 0 && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0;
}

struct alignas(16) Floats4 {
    float x[4];
};

// Eight of k of a row as the second operand takes them, rounded.
template <bool half>
struct DenseRow {
    uint32_t x[half ? 8 : 4];
};
template <bool half>
DEVICE DenseRow<half> dense_row(const float (&x)[8]) {
    DenseRow<half> r;
    if constexpr (half) {
        GK_UNROLL
        for (int i = 0; i < 8; i++) r.x[i] = gk::round_tf32(x[i]);
    } else {
        GK_UNROLL
        for (int i = 0; i < 4; i++) r.x[i] = gk::pack_bf16(x[2 * i], x[2 * i + 1]);
    }
    return r;
}

// d += 16 outputs x 8 rows over 32 of k; w: of outputs g and g + 8.
template <bool half>
DEVICE void dense_product(float (&d)[4], const gk::Words4 (&w)[2], const DenseRow<half>& x) {
    if constexpr (half) {
        GK_UNROLL
        for (int i = 0; i < 4; i++) {
            uint32_t a[4];
            gk::widen_f16(w[0].x[i], a[0], a[2]);
            gk::widen_f16(w[1].x[i], a[1], a[3]);
            gk::mma_tf32(d, a, {x.x[2 * i], x.x[2 * i + 1]});
        }
    } else {
        GK_UNROLL
        for (int i = 0; i < 4; i += 2) gk::mma_bf16(d, {w[0].x[i], w[1].x[i], w[0].x[i + 1], w[1].x[i + 1]}, {x.x[i], x.x[i + 1]});
    }
}

// Eight of a row from k on, zeros beyond its end.
DEVICE void dense_load(const float* x, int64_t count, bool aligned, float (&to)[8]) {
    if (aligned && count >= 8) {
        GK_UNROLL
        for (int i = 0; i < 2; i++) {
            const Floats4 f = reinterpret_cast<const Floats4*>(x)[i];
            GK_UNROLL
            for (int j = 0; j < 4; j++) to[4 * i + j] = f.x[j];
        }
        return;
    }
    GK_UNROLL
    for (int i = 0; i < 8; i++) to[i] = i < count ? x[i] : 0.0f;
}

// The arguments of the rows of a region, and its expert's weight.
DEVICE void at_region(LinearArgs& a) {
    const int64_t bytes = a.n * a.k * (a.dtype == DType::f32 ? 4 : 2);
    a.rows = a.region->rows;
    a.x += a.region->first * a.x_stride;
    a.weight = static_cast<const char*>(a.weight) + a.region->expert * bytes;
    if (a.bias) a.bias += a.region->expert * a.n;
    a.out += a.region->first * a.out_stride;
}

DEVICE float write_output(const LinearArgs& a, int64_t row, int64_t n, float value) {
    const int64_t at = row * a.out_stride + n;
    if (a.bias) value += a.bias[n];
    if (a.residual) value += a.residual[at];
    a.out[at] = value;
    return value;
}

// What the kernel does beside the product (queue.inl).
struct DenseChain {
    RmsNormArgs norm{};  // x null: none, else what it gives are the rows
    GatedArgs gated{};   // x null: none, else it takes what the product gives
};
// Floats of all rows up to which each block of threads may take the norm for itself: it reads the rows once more. By reckoning,
// not measured.
constexpr int64_t dense_normed_most = 16 << 10;

// What the row of a lane is multiplied with: sums in the order of rms_norm.
DEVICE float dense_scale(const RmsNormArgs& n, int64_t rows) {
    static_assert(dense_warps * 32 == row_threads, "sums of a row in the order of rms_norm");
    auto* place = reinterpret_cast<float*>(gk::shared() + dense_place);
    GK_ROLLED
    for (int r = 0; r < rows; r++) {
        const float* x = n.x + r * n.x_stride;
        const float sum = warp_sum(row_squares(x, n.dim));
        if (gk::lane() == 0) place[r * dense_warps + gk::thread() / 32] = sum;
    }
    gk::sync();
    float sum = 0.0f;
    for (int w = 0; w < dense_warps; w++) sum += place[gk::lane() / 4 * dense_warps + w];
    return gk::lane() / 4 < rows ? 1.0f / sqrtf(sum / float(n.dim) + n.eps) : 0.0f;
}

// A block of threads has 16 `tiles` outputs and 8 `row_tiles` rows; each of its warps has a part of k, of which it copies the
// weights to a ring of its own, each lane what it reads itself, the first of them before the kernel waits for the one ahead.
// Where gates and ups meet, the second half of a block's outputs are the ups of the first. With a norm, the blocks of the first
// outputs write down what it gives.
// Grid: outputs [begin, end) / (16 tiles) x tiles of rows, those of the same outputs beside each other; shared memory
// dense_few_bytes.
template <bool half, int tiles, int row_tiles, bool chained>
GK_KERNEL void GK_BOUNDS(dense_warps * 32, tiles == 1 ? 3 : 2) dense_few_kernel(LinearArgs a, DenseChain chain, int64_t begin, int64_t end) {
    constexpr int outputs = 16 * tiles, rows = 8 * row_tiles, step_bytes = outputs * dense_step * 2, stages = dense_ring / step_bytes;
    const int warp = gk::thread() / 32, lane = gk::lane(), g = lane / 4, t = lane % 4;
    const int64_t row_blocks = (a.rows + rows - 1) / rows;
    const bool gated = chained && chain.gated.x, normed = chained && chain.norm.x;
    const int width = gated ? outputs / 2 : outputs;  // outputs beside each other
    const int64_t n0 = begin + gk::block() / row_blocks * width, row0 = gk::block() % row_blocks * rows;
    const int64_t skipped = gated ? a.n / 2 - width : 0, half_end = gated ? a.n / 2 : end;
    const int part = int(dense_part(a.k)), k = int(a.k), first = min_of(warp * part, k), last = min_of(first + part, k);
    char* ring = gk::shared() + warp * dense_ring + lane * 16;
    const uint16_t* weight = nullptr;
    int copied = first, copied_stage = 0;
    auto copy_next = [&] {
        if (copied < last) {
            GK_UNROLL
            for (int j = 0; j < 2 * tiles; j++) {
                const int64_t from = 8 * j + (j < tiles ? 0 : skipped);
                gk::copy_async(ring + copied_stage * step_bytes + j * 512, weight + from * a.k + copied,
                               copied + 8 * t < k && n0 + from + g < (j < tiles ? half_end : end));
            }
        }
        gk::copy_commit();
        copied += dense_step;
        if (++copied_stage == stages) copied_stage = 0;
    };
    auto fill = [&] {
        weight = static_cast<const uint16_t*>(a.weight) + (n0 + g) * a.k + 8 * t;
        GK_ROLLED
        for (int i = 0; i < stages; i++) copy_next();
    };
    if (!a.region) fill();
    gk::wait_for_previous();
    if (a.region) {  // which weights, only the kernel before knows
        if (row0 >= a.region->rows) return;
        at_region(a);
        fill();
    }
    gk::let_next_start();

    const RmsNormArgs& norm = chain.norm;
    const float* from = normed ? norm.x : a.x;
    const int64_t x_stride = normed ? norm.x_stride : a.x_stride;
    const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0 && x_stride % 4 == 0, first_outputs = gk::block() < row_blocks;
    static_assert(!chained || rows == dense_chained_most, "one tile of rows");
    const float scale = normed ? dense_scale(norm, a.rows) : 1.0f;
    float acc[tiles][row_tiles][4] = {};
    int stage = 0;
    GK_ROLLED
    for (int at = first; at < last; at += dense_step) {
        DenseRow<half> x[row_tiles];
        GK_UNROLL
        for (int r = 0; r < row_tiles; r++) {
            const int64_t row = row0 + 8 * r + g;
            const int count = row < a.rows ? k - at - 8 * t : 0;
            float eight[8];
            dense_load(from + row * x_stride + at + 8 * t, count, aligned, eight);
            if (normed) {
                GK_UNROLL
                for (int i = 0; i < 8; i++) {
                    if (i < count) eight[i] = eight[i] * scale * norm.weight[at + 8 * t + i];
                    if (i < count && first_outputs) norm.out[row * norm.out_stride + at + 8 * t + i] = eight[i];
                }
            }
            x[r] = dense_row<half>(eight);
        }
        gk::copy_wait<stages - 1>();
        GK_UNROLL
        for (int i = 0; i < tiles; i++) {
            gk::Words4 w[2];
            GK_UNROLL
            for (int j = 0; j < 2; j++) {
                const auto c = *reinterpret_cast<const Floats4*>(ring + stage * step_bytes + (2 * i + j) * 512);
                memcpy(&w[j], &c, 16);
            }
            GK_UNROLL
            for (int r = 0; r < row_tiles; r++) dense_product<half>(acc[i][r], w, x[r]);
        }
        copy_next();
        if (++stage == stages) stage = 0;
    }

    gk::sync();  // the parts take the place of the ring
    constexpr int stride = outputs + 4;  // columns of a product lie in different banks
    auto* parts = reinterpret_cast<float*>(gk::shared());
    static_assert(dense_warps * rows * stride * 4 <= dense_few_bytes, "parts in the place of the ring");
    GK_UNROLL
    for (int i = 0; i < tiles; i++) {
        GK_UNROLL
        for (int r = 0; r < row_tiles; r++) {
            GK_UNROLL
            for (int e = 0; e < 4; e++) parts[(warp * rows + 8 * r + 2 * t + e % 2) * stride + 16 * i + g + e / 2 * 8] = acc[i][r][e];
        }
    }
    gk::sync();
    auto sum_of = [&](int row, int output) {
        float sum = 0.0f;
        for (int p = 0; p * part < k; p++) sum += parts[(p * rows + row) * stride + output];
        return sum;
    };
    GK_ROLLED
    for (int i = gk::thread(); i < width * rows; i += dense_warps * 32) {
        const int output = i % width, row = i / width;
        const int64_t n = n0 + output, m = row0 + row;
        if (n >= half_end || m >= a.rows) continue;
        const float value = write_output(a, m, n, sum_of(row, output));
        if (!gated) continue;
        const float up = write_output(a, m, n + a.n / 2, sum_of(row, output + width));
        with_kind(chain.gated.kind, [&](auto kind) { chain.gated.out[m * chain.gated.dim + n] = gate<decltype(kind)::value>(value, up); });
    }
}

// Sixteens of outputs a block of threads has. Each reads all rows from the second-level cache: more outputs where that would be
// much beside the weights, but two blocks a multiprocessor. By reckoning, not measured.
static constexpr int dense_few_tiles(int64_t rows, int64_t outputs, int64_t processors) {
    int tiles = rows <= 2 ? 1 : rows <= 4 ? 2 : 4;
    while (tiles > 1 && (outputs + 16 * tiles - 1) / (16 * tiles) < 2 * processors) tiles /= 2;
    return tiles;
}
