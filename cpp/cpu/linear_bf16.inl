// bf16 weights by vdpbf16ps, rows of x rounded to bf16 once for all outputs (round_rows). One output is always computed the
// same way, alone or beside others: for each block of block_k along k one vector accumulator, lane l adding the products
// of pairs 2 l, 2 l + 1 of 32 k after 32 k (the tail padded with zeros); its lanes added by a fixed tree; blocks added in
// order. vdpbf16ps rounds to nearest even whatever the mode and takes denormals for zeros.

constexpr int64_t step_k = 32;          // k of a vector
constexpr int64_t block_k = 2048;
constexpr int64_t few_rows_most = 16;   // rows up to which weights are read once for each four of them
constexpr int64_t few_rows_outputs = 4;
constexpr int64_t tile_height = 4;      // rows a register tile holds
constexpr int64_t tile_outputs = 6;     // outputs it holds
constexpr int64_t slab_rows = 64;       // rows of x that stay in the second-level cache, block_k wide
constexpr int64_t slab_outputs = 96;    // outputs for which they are used

INLINE __m512bh load_step(const uint16_t* p) { return __m512bh(_mm512_loadu_si512(p)); }
INLINE __m512bh load_step(const uint16_t* p, int64_t count) {  // zeros beyond
    return __m512bh(_mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << count) - 1), p));
}

void round_rows(const RoundRowsArgs& a, int64_t begin, int64_t end) {
    const int64_t depth = round_up(a.k, step_k);
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r * a.x_stride;
        for (int64_t k = 0; k < depth; k += step_k) {
            const int64_t left = a.k - k;
            const vec low = left >= 16 ? load(x + k) : load(x + k, left);
            const vec high = left >= 32 ? load(x + k + 16) : left > 16 ? load(x + k + 16, left - 16) : zero();
            _mm512_storeu_si512(a.out + r * depth + k, __m512i(_mm512_cvtne2ps_pbh(high, low)));
        }
    }
}

INLINE void write_output(const LinearArgs& a, int64_t m, int64_t n, float sum) {
    const int64_t at = m * a.out_stride + n;
    if (a.bias) sum += a.bias[n];
    if (a.residual) sum += a.residual[at];
    a.out[at] = sum;
}

// body(k, count or Whole) for each step of [begin, end).
template <class Body>
INLINE void each_step(int64_t begin, int64_t end, Body body) {
    int64_t k = begin;
    for (; k + step_k <= end; k += step_k) body(k, Whole());
    if (k < end) body(k, end - k);
}
INLINE __m512bh load_step(const uint16_t* p, Whole) { return load_step(p); }

// `rows` rows from m by four outputs from n. Bound by reading the weights: the next four outputs are fetched in the order
// they lie in memory.
template <int64_t rows>
INLINE void few_rows_tile(const LinearArgs& a, const uint16_t* weight, int64_t depth, int64_t m, int64_t n, int64_t end) {
    const uint16_t* w[few_rows_outputs];  // past the end, the last one again
    for (int64_t j = 0; j < few_rows_outputs; j++) w[j] = weight + (n + j < end ? n + j : end - 1) * a.k;
    const uint16_t* x = a.x_bf16 + m * depth;
    float sums[rows][few_rows_outputs] = {};
    for (int64_t block = 0; block < a.k; block += block_k) {
        const int64_t stop = block + block_k < a.k ? block + block_k : a.k;
        vec acc[rows][few_rows_outputs];
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t j = 0; j < few_rows_outputs; j++) acc[i][j] = zero();
        }
        each_step(block, stop, [&](int64_t k, auto count) __attribute__((always_inline)) {
            __m512bh v[rows];
            for (int64_t i = 0; i < rows; i++) v[i] = load_step(x + i * depth + k);
            for (int64_t j = 0; j < few_rows_outputs; j++) {
                __builtin_prefetch(w[0] + few_rows_outputs * (a.k + k) + j * step_k);
                const __m512bh line = load_step(w[j] + k, count);
                for (int64_t i = 0; i < rows; i++) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], v[i], line);
            }
        });
        for (int64_t i = 0; i < rows; i++) add_sums(sums[i], acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    }
    for (int64_t j = 0; j < few_rows_outputs && n + j < end; j++) {
        for (int64_t i = 0; i < rows; i++) write_output(a, m + i, n + j, sums[i][j]);
    }
}

void linear_few_rows(const LinearArgs& a, const uint16_t* weight, int64_t depth, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n += few_rows_outputs) {
        int64_t m = 0;
        for (; m + 4 <= a.rows; m += 4) few_rows_tile<4>(a, weight, depth, m, n, end);
        if (a.rows - m == 3) few_rows_tile<3>(a, weight, depth, m, n, end);
        if (a.rows - m == 2) few_rows_tile<2>(a, weight, depth, m, n, end);
        if (a.rows - m == 1) few_rows_tile<1>(a, weight, depth, m, n, end);
    }
}

// Four rows by six outputs over one block; sums[j][i] gets its share. One line of `next`, the weights that come after, is
// fetched at each step from line `fetch` of its `lines` on.
INLINE void linear_tile(const uint16_t* const x[tile_height], const uint16_t* const w[tile_outputs], int64_t count,
                        const uint16_t* next, int64_t stride, int64_t fetch, int64_t lines, float* sums) {
    vec acc[tile_outputs][tile_height];
    for (int64_t j = 0; j < tile_outputs; j++) {
        for (int64_t i = 0; i < tile_height; i++) acc[j][i] = zero();
    }
    const int64_t row_lines = (count + step_k - 1) / step_k;
    const uint16_t* line = next + fetch / row_lines * stride + fetch % row_lines * step_k;
    each_step(0, count, [&](int64_t k, auto n) __attribute__((always_inline)) {
        if (fetch < lines) __builtin_prefetch(line + k);
        __m512bh v[tile_outputs];
        for (int64_t j = 0; j < tile_outputs; j++) v[j] = load_step(w[j] + k, n);
        for (int64_t i = 0; i < tile_height; i++) {
            const __m512bh row = load_step(x[i] + k);
            for (int64_t j = 0; j < tile_outputs; j++) acc[j][i] = _mm512_dpbf16_ps(acc[j][i], row, v[j]);
        }
    });
    for (int64_t j = 0; j < tile_outputs; j++) add_sums(sums + j * slab_rows, acc[j][0], acc[j][1], acc[j][2], acc[j][3]);
}

void linear_many_rows(const LinearArgs& a, const uint16_t* weight, int64_t depth, int64_t begin, int64_t end) {
    alignas(64) float sums[slab_outputs][slab_rows];
    for (int64_t n0 = begin; n0 < end; n0 += slab_outputs) {
        const int64_t n1 = n0 + slab_outputs < end ? n0 + slab_outputs : end;
        for (int64_t m0 = 0; m0 < a.rows; m0 += slab_rows) {
            const int64_t m1 = m0 + slab_rows < a.rows ? m0 + slab_rows : a.rows;
            for (int64_t j = 0; j < slab_outputs; j++) {
                for (int64_t i = 0; i < slab_rows; i += lanes) store(&sums[j][i], zero());
            }
            for (int64_t block = 0; block < a.k; block += block_k) {
                const int64_t count = block + block_k < a.k ? block_k : a.k - block;
                for (int64_t n = n0; n < n1; n += tile_outputs) {
                    const uint16_t* w[tile_outputs];  // past the end, the last one again
                    for (int64_t j = 0; j < tile_outputs; j++) w[j] = weight + (n + j < n1 ? n + j : n1 - 1) * a.k + block;
                    // After the last outputs of the first slab nothing has to come from memory.
                    const uint16_t* next = weight + (n + tile_outputs) * a.k + block;
                    const int64_t row_lines = (count + step_k - 1) / step_k, lines = m0 == 0 ? tile_outputs * row_lines : 0;
                    for (int64_t m = m0; m < m1; m += tile_height) {
                        const uint16_t* x[tile_height];
                        for (int64_t i = 0; i < tile_height; i++) x[i] = a.x_bf16 + (m + i < m1 ? m + i : m1 - 1) * depth + block;
                        linear_tile(x, w, count, next, a.k, (m - m0) / tile_height * row_lines, lines, &sums[n - n0][m - m0]);
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
    if (a.dtype != DType::bf16 || !a.x_bf16) return below.linear(a, begin, end);
    const auto* weight = static_cast<const uint16_t*>(a.weight);
    const int64_t depth = round_up(a.k, step_k);
    if (a.rows <= few_rows_most) return linear_few_rows(a, weight, depth, begin, end);
    linear_many_rows(a, weight, depth, begin, end);
}
