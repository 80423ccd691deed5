// Products of rows with weights [n, k] as they lie in the checkpoint. One output is always computed the same way, alone
// or beside others: for each block of k_block along k one vector accumulator, lane l summing k = l, l + lanes, ... in
// ascending order by FMA (the tail padded with zeros); its lanes added by a fixed tree; blocks added in order.

constexpr int64_t k_block = 1024;
constexpr int64_t tile_rows = 4;                             // rows of x a register tile holds
constexpr int64_t tile_outputs = lanes == 8 ? 3 : 6;         // outputs n it holds: 16 or 32 vector registers
constexpr int64_t few_rows_most = 24;                        // rows up to which weights are widened in registers,
constexpr int64_t few_rows_tall = lanes == 8 ? 3 : 4;        // in tiles of this many rows
constexpr int64_t few_rows_outputs = 4;                      // by this many outputs
constexpr int64_t block_rows = 64;                           // rows of x kept in the second-level cache, k_block wide
constexpr int64_t block_outputs = 48;                        // outputs for which they are used
static_assert(block_outputs % tile_outputs == 0 && block_rows % tile_rows == 0, "blocks hold whole tiles");

template <class W>
constexpr int64_t line_vecs = 64 / (lanes * int64_t(sizeof(W)));  // vectors of weights in a cache line

INLINE void write_output(const LinearArgs& a, int64_t m, int64_t n, float sum) {
    const int64_t at = m * a.out_stride + n;
    if (a.bias) sum += a.bias[n];
    if (a.residual) sum += a.residual[at];
    a.out[at] = sum;
}

// `rows` rows from m by four outputs from n, weights widened in registers.
template <int64_t rows, class W>
INLINE void few_rows_tile(const LinearArgs& a, const W* weight, int64_t m, int64_t n, int64_t end) {
    const W* w[few_rows_outputs];  // past the end, the last one again
    for (int64_t j = 0; j < few_rows_outputs; j++) w[j] = weight + (n + j < end ? n + j : end - 1) * a.k;
    const float* x = a.x + m * a.x_stride;
    float sums[rows][few_rows_outputs] = {};
    for (int64_t block = 0; block < a.k; block += k_block) {
        const int64_t stop = block + k_block < a.k ? block + k_block : a.k;
        vec acc[rows][few_rows_outputs];
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t j = 0; j < few_rows_outputs; j++) acc[i][j] = zero();
        }
        each(block, stop, [&](int64_t k, auto count) {
            vec v[rows];
            for (int64_t i = 0; i < rows; i++) v[i] = load(x + i * a.x_stride + k, count);
            for (int64_t j = 0; j < few_rows_outputs; j++) {
                // The next four outputs, in the order they lie in memory: 95 % of the read bandwidth against 75 % when
                // each stream prefetches for itself.
                if (j % line_vecs<W> == 0) __builtin_prefetch(w[0] + few_rows_outputs * (a.k + k) + j * lanes);
                const vec wide = load(w[j] + k, count);
                for (int64_t i = 0; i < rows; i++) acc[i][j] = fma(v[i], wide, acc[i][j]);
            }
        });
        for (int64_t i = 0; i < rows; i++) add_sums(sums[i], acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    }
    for (int64_t j = 0; j < few_rows_outputs && n + j < end; j++) {
        for (int64_t i = 0; i < rows; i++) write_output(a, m + i, n + j, sums[i][j]);
    }
}

// A few rows: bound by reading the weights, or by widening them. Four outputs keep enough sums in flight.
template <class W>
void linear_few_rows(const LinearArgs& a, const W* weight, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n += few_rows_outputs) {
        int64_t m = 0;
        for (; m + few_rows_tall <= a.rows; m += few_rows_tall) few_rows_tile<few_rows_tall>(a, weight, m, n, end);
        if (a.rows - m == 3) few_rows_tile<3>(a, weight, m, n, end);
        if (a.rows - m == 2) few_rows_tile<2>(a, weight, m, n, end);
        if (a.rows - m == 1) few_rows_tile<1>(a, weight, m, n, end);
    }
}

// Widens weights [outputs, first k .. first k + count) into panel[step][tile_outputs][lanes], zeros beyond.
template <class W>
INLINE void widen_panel(const W* weight, int64_t stride, int64_t outputs, int64_t count, float* panel) {
    for (int64_t j = 0; j < tile_outputs; j++) {
        float* out = panel + j * lanes;
        const W* next = weight + (j + tile_outputs) * stride;  // of the panel after this one
        each(0, count, [&](int64_t k, auto n) {
            __builtin_prefetch(next + k);
            store(out + k * tile_outputs, j < outputs ? load(weight + j * stride + k, n) : zero());
        });
    }
}

// Four rows by tile_outputs over one block of k; sums[j][m] gets its share.
INLINE void linear_tile(const float* const x[tile_rows], const float* panel, int64_t count, float* sums,
                        int64_t sums_stride) {
    vec acc[tile_outputs][tile_rows];
    for (int64_t j = 0; j < tile_outputs; j++) {
        for (int64_t m = 0; m < tile_rows; m++) acc[j][m] = zero();
    }
    each(0, count, [&](int64_t k, auto n) {
        vec w[tile_outputs];
        for (int64_t j = 0; j < tile_outputs; j++) w[j] = load(panel + k * tile_outputs + j * lanes);
        for (int64_t m = 0; m < tile_rows; m++) {
            const vec v = load(x[m] + k, n);
            for (int64_t j = 0; j < tile_outputs; j++) acc[j][m] = fma(v, w[j], acc[j][m]);
        }
    });
    for (int64_t j = 0; j < tile_outputs; j++) add_sums(sums + j * sums_stride, acc[j][0], acc[j][1], acc[j][2], acc[j][3]);
}

// Many rows: bound by arithmetic. A panel of widened weights stays in the first-level cache for block_rows rows.
template <class W>
void linear_many_rows(const LinearArgs& a, const W* weight, int64_t begin, int64_t end) {
    alignas(64) float panel[k_block * tile_outputs];
    alignas(64) float sums[block_outputs][block_rows];
    for (int64_t n0 = begin; n0 < end; n0 += block_outputs) {
        const int64_t n1 = n0 + block_outputs < end ? n0 + block_outputs : end;
        for (int64_t m0 = 0; m0 < a.rows; m0 += block_rows) {
            const int64_t m1 = m0 + block_rows < a.rows ? m0 + block_rows : a.rows;
            for (int64_t j = 0; j < block_outputs; j++) {
                for (int64_t m = 0; m < block_rows; m++) sums[j][m] = 0.0f;
            }
            for (int64_t block = 0; block < a.k; block += k_block) {
                const int64_t count = block + k_block < a.k ? k_block : a.k - block;
                for (int64_t n = n0; n < n1; n += tile_outputs) {
                    widen_panel(weight + n * a.k + block, a.k, n1 - n, count, panel);
                    for (int64_t m = m0; m < m1; m += tile_rows) {
                        const float* x[tile_rows];  // past the end, the last one again
                        for (int64_t i = 0; i < tile_rows; i++) {
                            x[i] = a.x + (m + i < m1 ? m + i : m1 - 1) * a.x_stride + block;
                        }
                        linear_tile(x, panel, count, &sums[n - n0][m - m0], block_rows);
                    }
                }
            }
            for (int64_t m = m0; m < m1; m++) {
                for (int64_t n = n0; n < n1; n++) write_output(a, m, n, sums[n - n0][m - m0]);
            }
        }
    }
}

void linear(const LinearArgs& a, int64_t begin, int64_t end) {
    with_type(a.dtype, [&](auto type) {
        auto* weight = static_cast<const typename decltype(type)::type*>(a.weight);
        if (a.rows <= few_rows_most) return linear_few_rows(a, weight, begin, end);
        linear_many_rows(a, weight, begin, end);
    });
}
