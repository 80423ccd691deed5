// Products with weights of 16 bits by tensor cores: the arithmetic both kernels share, and the kernel for few rows, whose time is
// that of reading the weights.
//
// Of 32 of k lane (g, t) has k 8 t .. 8 t + 7 of outputs g and g + 8 (16 bytes each) and of row g: which of a product's k these
// are called is ours to say, as long as weights and rows agree. x is rounded to bf16 for bf16 weights. Weights of f16 are widened
// to tf32, which holds them exactly, and x is rounded to it: 11 bits as of f16, but with the range of a float.

constexpr int dense_warps = 8;
constexpr int dense_step = 32;            // of k: 16 bytes a lane and output
constexpr int dense_unit = 64;            // of k: 128 bytes of an output, which are copied together
constexpr int dense_few_most = 16;        // rows of dense_few_kernel
constexpr int dense_few_outputs = 16;     // of a unit
constexpr int dense_few_stages = 5;       // of a warp's ring, so that a block has less than half of a multiprocessor's shared memory
constexpr int dense_few_longer = 7;       // and more than half
constexpr int dense_few_stage = dense_few_outputs * dense_unit * 2;
static constexpr int dense_few_ring(int stages) { return dense_warps * stages * dense_few_stage; }
constexpr int dense_parts_stride = dense_few_outputs + 4;  // columns of a product lie in different banks

// Whether the tensor cores can: else linear.inl. Not a matter of rows. Sixteen rows of so many k fit the workspace.
static bool is_dense(const LinearArgs& a) {
    const bool fits = a.k > 0 && a.k % 8 == 0 && a.k <= workspace_bytes / (dense_few_most * 4);
    return a.dtype != DType::f32 && fits && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0;
}
// Bytes of a rounded element of x, and of a row of them in shared memory: what lanes read at once lies in different banks.
static constexpr int dense_x_bytes(bool half) { return half ? 4 : 2; }
static constexpr int64_t dense_x_stride(int64_t k, bool half) {
    return (k + dense_unit - 1) / dense_unit * dense_unit * dense_x_bytes(half) + (half ? 16 : 64);
}
// Shared memory of a block: the ring, the warps' parts of sums, rows.
static constexpr int64_t dense_parts_bytes(int64_t rows) { return dense_warps * rows * dense_parts_stride * 4; }
static constexpr int64_t dense_few_bytes(int64_t rows, int64_t k, bool half, bool resident, int stages = dense_few_stages) {
    return dense_few_ring(stages) + dense_parts_bytes(rows) + (resident ? rows * dense_x_stride(k, half) : 0);
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
    RmsNormArgs norm{};  // x null: none, else what it gives are the rows; all its rows lie by 16 bytes
    GatedArgs gated{};   // x null: none, else it takes what the product gives
};
// Floats of all rows up to which each block of threads may take the norm for itself: it reads the rows once more. By reckoning,
// not measured.
constexpr int64_t dense_normed_most = 16 << 10;

template <bool half>
DEVICE void dense_keep(char* to, int at, const float (&eight)[8]) {
    const DenseRow<half> r = dense_row<half>(eight);
    GK_UNROLL
    for (int i = 0; i < (half ? 2 : 1); i++) {
        Floats4 f;
        memcpy(&f, &r.x[4 * i], 16);
        reinterpret_cast<Floats4*>(to + at * (half ? 4 : 2))[i] = f;
    }
}
// Rows x, `stride` beside each other, rounded to shared memory at `to`, zeros behind their end; many loads on their way.
template <bool half>
DEVICE void dense_keep_rows(const float* x, int64_t stride, int rows, int k, char* to) {
    constexpr int batch = 8;
    const int groups = int(round_up(k, dense_unit)) / 8, total = rows * groups, kept = int(dense_x_stride(k, half));
    auto row_of = [&](int i) { return rows == 1 ? 0 : int(uint32_t(i) / uint32_t(groups)); };
    if (reinterpret_cast<uintptr_t>(x) % 16 == 0 && (rows == 1 || stride % 4 == 0)) {
        GK_ROLLED
        for (int first = gk::thread(); first < total; first += batch * dense_warps * 32) {
            float eight[batch][8];
            GK_UNROLL
            for (int b = 0; b < batch; b++) {
                const int i = first + b * dense_warps * 32, row = row_of(i), at = (i - row * groups) * 8;
                load_eight(x + row * stride, at, i < total ? k : 0, true, eight[b]);
            }
            GK_UNROLL
            for (int b = 0; b < batch; b++) {
                const int i = first + b * dense_warps * 32, row = row_of(i), at = (i - row * groups) * 8;
                if (i < total) dense_keep<half>(to + row * kept, at, eight[b]);
            }
        }
        return;
    }
    GK_ROLLED
    for (int i = gk::thread(); i < total; i += dense_warps * 32) {
        const int row = row_of(i), at = (i - row * groups) * 8;
        float eight[8];
        load_eight(x + row * stride, at, k, false, eight);
        dense_keep<half>(to + row * kept, at, eight);
    }
}

// The same of what a norm gives, whose sums are rms_norm's, in its order. The weights of the last piece of a row are asked for
// before the kernel waits; the last piece of the last row is kept in registers from the sums on.
constexpr int dense_norm_eights = 2;
constexpr int dense_norm_piece = dense_norm_eights * 8 * row_threads;
using DenseEights = float[dense_norm_eights][8];
DEVICE int dense_norm_last(int k) { return (k - 1) / dense_norm_piece * dense_norm_piece; }
DEVICE void dense_norm_weight(const RmsNormArgs& norm, int from, int k, DenseEights& weight) {
    GK_UNROLL
    for (int j = 0; j < dense_norm_eights; j++) {
        gk::Words4 w[2]{};
        const int at = from + eight_at(j);
        if (at < k) w[0] = gk::load_stream(norm.weight + at), w[1] = gk::load_stream(norm.weight + at + 4);
        GK_UNROLL
        for (int i = 0; i < 8; i++) weight[j][i] = gk::as_float(w[i / 4].x[i % 4]);
    }
}
template <bool half>
DEVICE void dense_keep_normed(const RmsNormArgs& norm, int rows, int k, DenseEights& weight, float* place, char* to) {
    static_assert(dense_warps * 32 == row_threads, "sums of a row in the order of rms_norm");
    const int warp = gk::thread() / 32, last = dense_norm_last(k), kept = int(dense_x_stride(k, half));
    float x[dense_norm_eights][8];
    auto load = [&](int row, int from) {
        GK_UNROLL
        for (int j = 0; j < dense_norm_eights; j++) load_eight(norm.x + row * norm.x_stride, from + eight_at(j), k, true, x[j]);
    };
    GK_ROLLED
    for (int row = 0; row < rows; row++) {
        float sum = 0.0f;
        GK_ROLLED
        for (int from = 0; from <= last; from += dense_norm_piece) {
            load(row, from);
            GK_UNROLL
            for (int j = 0; j < dense_norm_eights; j++) sum += squares(x[j]);
        }
        sum = warp_sum(sum);
        if (gk::lane() == 0) place[row * dense_warps + warp] = sum;
    }
    gk::sync();
    GK_ROLLED
    for (int row = rows - 1; row >= 0; row--) {
        float sum = 0.0f;
        GK_UNROLL
        for (int w = 0; w < dense_warps; w++) sum += place[row * dense_warps + w];
        const float scale = rms_of(sum, norm.dim, norm.eps);
        GK_ROLLED
        for (int from = last; from >= 0; from -= dense_norm_piece) {
            if (from < last || row < rows - 1) load(row, from);
            if (last > 0 && (from < last || row < rows - 1)) dense_norm_weight(norm, from, k, weight);
            GK_UNROLL
            for (int j = 0; j < dense_norm_eights; j++) {
                const int at = from + eight_at(j);
                GK_UNROLL
                for (int i = 0; i < 8; i++) x[j][i] = x[j][i] * scale * weight[j][i];
                if (at < round_up(k, dense_unit)) dense_keep<half>(to + row * kept, at, x[j]);
                if (gk::block() == gk::blocks() - 1) store_eight(norm.out + row * norm.out_stride, at, k, true, x[j]);
            }
        }
    }
}

// Units of 16 outputs; where gates and ups meet, of eight gates and their ups. Each block of threads goes through its units, every
// gridDim-th one; its eight warps have every eighth 64 of k, in two chains of products, and their parts are added in order. A
// warp copies its weights to a ring of its own, 128 bytes of an output at once, on and on from unit to unit, the first of them
// before the kernel waits for the one ahead. A stage is [16 outputs][8 of 16 bytes], of odd outputs the second four first, so that
// eight lanes read all banks. Rows lie rounded in shared memory (`resident`), with what the norm of the chain gives, which the last
// block writes down; else they are in the workspace (round_x) and are asked for a step ahead.
// Grid: at most the units; shared memory dense_few_bytes. Rows row0 .. row0 + 8 row_tiles.
template <bool half, int row_tiles, bool resident, int stages>
GK_KERNEL void GK_BOUNDS(dense_warps * 32, half && row_tiles == 2 && !resident ? 1 : 2)  // one: where two would spill on 8.0
    dense_few_kernel(LinearArgs a, DenseChain chain, int64_t row0, const char* rounded, int64_t begin, int64_t end) {
    const int warp = gk::thread() / 32, lane = gk::lane(), g = lane / 4, t = lane % 4, k = int(a.k);
    const bool gated = chain.gated.x, normed = resident && chain.norm.x;
    const int width = gated ? dense_few_outputs / 2 : dense_few_outputs, next_unit = int(gk::blocks()) * width;
    const int first_unit = int(begin) + int(gk::block()) * width, last_output = int(gated ? a.n / 2 : end);
    const int first = warp * dense_unit;
    constexpr int steps_apart = dense_warps * dense_unit;

    char* ring = gk::shared() + warp * (stages * dense_few_stage);
    const int copied_row = lane / 8, copied_k = lane % 8 * 8;
    char* const copy_to = ring + copied_row * 128 + (lane % 8 ^ copied_row % 2 * 4) * 16;
    const int64_t four_rows = 4 * a.k, to_ups = gated ? (a.n / 2 - 8) * a.k : 0;
    const uint16_t* copy_from = nullptr;
    int copied_unit = first < k ? first_unit : last_output, copied = first, copied_stage = 0;
    auto copy_next = [&] {
        if (copied_unit < last_output) {
            const uint16_t* from = copy_from + copied;
            const int left = copied + copied_k < k ? last_output - copied_unit - copied_row : 0;
            GK_UNROLL
            for (int j = 0; j < 4; j++) {
                const int row_of_unit = 4 * j - (gated && j >= 2 ? 8 : 0);
                gk::copy_async(copy_to + copied_stage * dense_few_stage + j * 512, from + j * four_rows + (j < 2 ? 0 : to_ups), row_of_unit < left);
            }
            copied += steps_apart;
            if (copied >= k) copied = first, copied_unit += next_unit, copy_from += next_unit * a.k;
        }
        gk::copy_commit();
        if (++copied_stage == stages) copied_stage = 0;
    };
    auto fill = [&] {
        copy_from = static_cast<const uint16_t*>(a.weight) + (first_unit + copied_row) * a.k + copied_k;
        GK_ROLLED
        for (int i = 0; i < stages; i++) copy_next();
    };
    if (!a.region) fill();
    float norm_weight[dense_norm_eights][8];
    if constexpr (resident) {
        if (normed) dense_norm_weight(chain.norm, dense_norm_last(k), k, norm_weight);
    }
    gk::wait_for_previous();
    gk::let_next_start();  // not sooner: blocks of the kernel after the next one would take room, and this one's then share multiprocessors
    if (a.region) {  // which weights, only the kernel before knows
        if (row0 >= a.region->rows) return;
        at_region(a);
        fill();
    }

    const int rows = int(least_of(a.rows - row0, int64_t(8 * row_tiles)));
    auto* parts = reinterpret_cast<float*>(gk::shared() + dense_few_ring(stages));
    const char* x_at[row_tiles];  // of the lane
    {
        char* kept = gk::shared() + dense_few_ring(stages) + dense_parts_bytes(rows);
        const int64_t stride = resident ? dense_x_stride(k, half) : round_up(k, dense_unit) * dense_x_bytes(half);
        GK_UNROLL
        for (int r = 0; r < row_tiles; r++)
            x_at[r] = (resident ? kept : rounded) + least_of(8 * r + g, rows - 1) * stride + 8 * t * dense_x_bytes(half);
        if constexpr (resident) {
            if (normed) dense_keep_normed<half>(chain.norm, rows, k, norm_weight, parts, kept);
            else dense_keep_rows<half>(a.x + row0 * a.x_stride, a.x_stride, rows, k, kept);
            gk::sync();
        }
    }
    using Rows = DenseRow<half>[2][row_tiles];
    auto read_rows = [&](int at, Rows& to) {
        GK_UNROLL
        for (int r = 0; r < row_tiles; r++) {
            GK_UNROLL
            for (int i = 0; i < 2 * (half ? 2 : 1); i++) {
                const int piece = half ? i % 2 : 0, step = half ? i / 2 : i;
                const auto f = *reinterpret_cast<const Floats4*>(x_at[r] + (at + step * dense_step) * dense_x_bytes(half) + piece * 16);
                memcpy(&to[step][r].x[4 * piece], &f, 16);
            }
        }
    };
    Rows ahead;
    if (!resident && first < k) read_rows(first, ahead);

    const char* const read_from = ring + g * 128 + (t ^ g % 2 * 4) * 16;
    const int read_other = g % 2 ? -64 : 64;
    int stage = 0, turn = 0;
    GK_ROLLED
    for (int n0 = first_unit; n0 < last_output; n0 += next_unit) {
        const int id = (gk::thread() - 32 * turn) & (dense_warps * 32 - 1), output = id % width, row = id / width;
        const bool mine = row < rows && n0 + output < last_output;  // what it adds up, by turns of warps
        const int64_t out_at = (row0 + row) * a.out_stride + n0 + output;
        float bias = 0.0f, residual = 0.0f;
        if (mine && !gated && a.bias) bias = a.bias[n0 + output];
        if (mine && !gated && a.residual) residual = a.residual[out_at];
        turn = (turn + 1) % dense_warps;

        float acc[2][row_tiles][4] = {};
        GK_ROLLED
        for (int at = first; at < k; at += steps_apart) {
            Rows x;
            if constexpr (!resident) {
                memcpy(&x, &ahead, sizeof x);
                read_rows(at + steps_apart < k ? at + steps_apart : first, ahead);
            }
            gk::copy_wait<stages - 1>();
            gk::sync_warp();
            gk::Words4 w[2][2];
            GK_UNROLL
            for (int i = 0; i < 4; i++) {
                const auto f = *reinterpret_cast<const Floats4*>(read_from + stage * dense_few_stage + i % 2 * 1024 + (i < 2 ? 0 : read_other));
                memcpy(&w[i / 2][i % 2], &f, 16);
            }
            if constexpr (resident) read_rows(at, x);
            gk::sync_warp();  // all have read the stage, which the next copy takes
            copy_next();
            if (++stage == stages) stage = 0;
            GK_UNROLL
            for (int step = 0; step < 2; step++) {
                GK_UNROLL
                for (int r = 0; r < row_tiles; r++) dense_product<half>(acc[step][r], w[step], x[step][r]);
            }
        }

        gk::sync();  // the parts of the unit before have been read
        GK_UNROLL
        for (int r = 0; r < row_tiles; r++) {
            GK_UNROLL
            for (int e = 0; e < 4; e++) {
                const int column = 8 * r + 2 * t + e % 2;
                if (column < rows) parts[(warp * rows + column) * dense_parts_stride + g + e / 2 * 8] = acc[0][r][e] + acc[1][r][e];
            }
        }
        gk::sync();
        if (!mine) continue;
        auto sum_of = [&](int column) {
            float sum = 0.0f;
            GK_UNROLL
            for (int w = 0; w < dense_warps; w++) sum += parts[(w * rows + row) * dense_parts_stride + column];
            return sum;
        };
        if (!gated) {
            a.out[out_at] = sum_of(output) + bias + residual;
            continue;
        }
        const float value = write_output(a, row0 + row, n0 + output, sum_of(output));
        const float up = write_output(a, row0 + row, n0 + output + a.n / 2, sum_of(output + width));
        with_kind(chain.gated.kind, [&](auto kind) {
            chain.gated.out[(row0 + row) * chain.gated.dim + n0 + output] = gate<decltype(kind)::value>(value, up);
        });
    }
}
