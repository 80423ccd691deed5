// bf16 weights on AMX, for any number of rows. A tile A is 16 outputs by 32 k of the weight as it lies in the checkpoint, a
// tile B the same k by up to 16 rows of x (tile_rows made them), so C is outputs by rows, and written transposed. Two A by
// two B sum in four tiles over all of k. An element's arithmetic is tdpbf16ps over 32 k at a time in ascending order, from
// zero, whatever else its tile holds: any rows and ranges give the same bits.

constexpr int64_t step_depth = 32;       // k of a product
constexpr int64_t depth_block = 256;     // k for which outputs are copied together, and fetched ahead
constexpr int64_t block_steps = depth_block / step_depth;
constexpr int64_t pair_outputs = 32;     // outputs that two tiles hold
constexpr int64_t pairs_most = 8;        // pairs of outputs whose sums wait in the second-level cache with a slab of x
constexpr int64_t slab_pairs = 16;       // pairs of row tiles in a slab
constexpr int64_t tile_floats = 256;

// ---- transposing ------------------------------------------------------------------------------------------------

INLINE void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // r[i + j]: column j of every fourth, of rows i .. i + 3
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
        t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
        t[j + 8] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
        t[j + 12] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
    }
    for (int j = 0; j < 4; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
        r[j + 4] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0x88);
        r[j + 12] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0xdd);
    }
}

INLINE __m512i narrow_pair(const float* x, int64_t count) {  // 32 floats, zeros beyond count
    const vec low = count >= 16 ? load(x) : load(x, count), high = count > 16 ? load(x + 16, count < 32 ? count - 16 : 16) : zero();
    return __m512i(_mm512_cvtne2ps_pbh(high, low));
}

void tile_rows(const TileRowsArgs& a, int64_t begin, int64_t end) {
    const int64_t columns = tile_columns(a.rows), steps = (a.k + step_depth - 1) / step_depth;
    const mask stored = first_lanes(columns);
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t rows = a.rows - tile * 16 < 16 ? a.rows - tile * 16 : 16;
        uint16_t* out = a.tiles + tile * steps * step_depth * columns;
        for (int64_t step = 0; step < steps; step++, out += step_depth * columns) {
            const float* x = a.x + tile * 16 * a.x_stride + step * step_depth;
            const int64_t count = a.k - step * step_depth;
            if (columns == 1) {
                _mm512_storeu_si512(out, narrow_pair(x, count));
                continue;
            }
            __m512i r[16];
            for (int64_t i = 0; i < 16; i++) r[i] = i < rows ? narrow_pair(x + i * a.x_stride, count) : _mm512_setzero_si512();
            transpose16(r);
            for (int64_t i = 0; i < 16; i++) _mm512_mask_storeu_epi32(out + i * 2 * columns, stored, r[i]);
        }
    }
}

// ---- products ---------------------------------------------------------------------------------------------------

// Two tiles of outputs at a step, those of the next step `step` bytes on.
struct Outputs {
    const char* at;
    int64_t stride, second, step;
};
// Two tiles of rows, or one.
struct Rows {
    const uint16_t* at;
    int64_t stride, second, step;  // stride in bytes, the others in numbers
};

// Lines to fetch, depth_block of one output after another: close to the order in which they lie in memory.
struct Fetch {
    const char* at;
    int64_t outputs, stride, lines, a_step, line;

    INLINE void some() {
        for (int64_t i = 0; i < a_step && outputs > 0; i++) {
            __builtin_prefetch(at + line * 64, 0, 2);
            if (++line == lines) at += stride, outputs--, line = 0;
        }
    }
};

// Tiles 0 .. 3 += outputs x rows; tile 2 i + j is of outputs i and rows j.
template <bool two>
INLINE void multiply(const Outputs& w, const Rows& x, int64_t steps, Fetch& fetch, const uint16_t* next_x = nullptr) {
    for (int64_t s = 0; s < steps; s++) {
        const char* a = w.at + s * w.step;
        const uint16_t* b = x.at + s * x.step;
        tile_load<6>(b, x.stride);
        tile_load<4>(a, w.stride);
        tile_dot_bf16<0, 4, 6>();
        fetch.some();
        if (next_x) {
            for (int64_t i = 0; i < 4; i++) __builtin_prefetch(next_x + s * 128 + i * 32, 0, 2);
        }
        tile_load<5>(a + w.second, w.stride);
        tile_dot_bf16<2, 5, 6>();
        if (two) {
            tile_load<7>(b + x.second, x.stride);
            tile_dot_bf16<1, 4, 7>();
            tile_dot_bf16<3, 5, 7>();
        }
    }
}

template <bool two>
INLINE void load_sums(const float* sums) {
    tile_load<0>(sums, 64);
    tile_load<2>(sums + 2 * tile_floats, 64);
    if (two) tile_load<1>(sums + tile_floats, 64);
    if (two) tile_load<3>(sums + 3 * tile_floats, 64);
}
template <bool two>
INLINE void store_sums(float* sums) {
    tile_store<0>(sums, 64);
    tile_store<2>(sums + 2 * tile_floats, 64);
    if (two) tile_store<1>(sums + tile_floats, 64);
    if (two) tile_store<3>(sums + 3 * tile_floats, 64);
}
template <bool two>
INLINE void clear_sums() {
    tile_zero<0>();
    tile_zero<2>();
    if (two) tile_zero<1>();
    if (two) tile_zero<3>();
}

// Outputs [n, end) at k: zeros beyond either's end. [step][2 tiles][16][32 k]
INLINE void copy_outputs(const LinearArgs& a, int64_t n, int64_t end, int64_t k, uint16_t* copy) {
    const int64_t depth = a.k - k < depth_block ? a.k - k : depth_block, steps = (depth + step_depth - 1) / step_depth;
    for (int64_t i = 0; i < pair_outputs; i++) {
        const uint16_t* w = static_cast<const uint16_t*>(a.weight) + (n + i) * a.k + k;
        uint16_t* out = copy + i * step_depth;
        for (int64_t s = 0; s < steps; s++) {
            const int64_t count = n + i < end ? depth - s * step_depth : 0;
            const __mmask32 within = count >= step_depth ? ~__mmask32(0) : __mmask32((uint32_t(1) << count) - 1);
            _mm512_storeu_si512(out + s * 2 * 512, _mm512_maskz_loadu_epi16(within, w + s * step_depth));
        }
    }
}

// Sums [2 output tiles][2 row tiles][16][16] to rows m .. and outputs n .. end. past: whole cache lines go past the caches.
template <bool past>
INLINE void write_sums(const LinearArgs& a, int64_t m, int64_t n, int64_t end, const float* sums) {
    for (int64_t i = 0; i < 2 && n + i * 16 < end; i++) {
        const int64_t at = n + i * 16, count = end - at < 16 ? end - at : 16;
        const vec bias = a.bias ? load(a.bias + at, count) : zero();
        for (int64_t j = 0; j < 2 && m + j * 16 < a.rows; j++) {
            const int64_t rows = a.rows - m - j * 16 < 16 ? a.rows - m - j * 16 : 16;
            __m512i r[16];
            for (int64_t o = 0; o < 16; o++) r[o] = _mm512_loadu_si512(sums + (i * 2 + j) * tile_floats + o * 16);
            transpose16(r);
            for (int64_t row = 0; row < rows; row++) {
                const int64_t offset = (m + j * 16 + row) * a.out_stride + at;
                vec sum = _mm512_castsi512_ps(r[row]);
                if (a.bias) sum = sum + bias;
                if (a.residual) sum = sum + load(a.residual + offset, count);
                if (past && count == 16) _mm512_stream_ps(a.out + offset, sum);
                else store(a.out + offset, sum, count);
            }
        }
    }
}

INLINE Outputs outputs_as_they_lie(const LinearArgs& a, int64_t n, int64_t k) {
    return {static_cast<const char*>(a.weight) + (n * a.k + k) * 2, a.k * 2, 16 * a.k * 2, 64};
}
INLINE Fetch fetch_outputs(const LinearArgs& a, int64_t n, int64_t end, int64_t k, int64_t a_step) {
    if (k >= a.k) n += pair_outputs, k = 0;  // after the last of k, the next outputs
    const int64_t outputs = n < end ? (end - n < pair_outputs ? end - n : pair_outputs) : 0;
    const int64_t depth = a.k - k < depth_block ? a.k - k : depth_block;
    return {static_cast<const char*>(a.weight) + (n * a.k + k) * 2, outputs, a.k * 2, (depth + 31) / 32, a_step, 0};
}

// One pair of row tiles or one row tile: bound by reading the weights, from their place.
template <bool two>
void linear_few_rows(const LinearArgs& a, int64_t begin, int64_t end) {
    alignas(64) uint16_t copy[pair_outputs * depth_block];
    alignas(64) float sums[4 * tile_floats];
    const int64_t columns = tile_columns(a.rows), steps = (a.k + step_depth - 1) / step_depth;
    const int64_t tile = step_depth * columns;  // numbers in a row tile
    Fetch first = fetch_outputs(a, begin, end, 0, pair_outputs * depth_block / 32);
    first.some();
    for (int64_t n = begin; n < end; n += pair_outputs) {
        clear_sums<two>();
        for (int64_t k = 0; k < a.k; k += depth_block) {
            const int64_t left = steps - k / step_depth, here = left < block_steps ? left : block_steps;
            Fetch fetch = fetch_outputs(a, n, end, k + depth_block, pair_outputs);
            const Rows x{a.x_bf16 + k / step_depth * tile, columns * 4, steps * tile, tile};
            if (n + pair_outputs <= end && (k + depth_block <= a.k || a.k % step_depth == 0)) {
                multiply<two>(outputs_as_they_lie(a, n, k), x, here, fetch);
            } else {
                copy_outputs(a, n, end, k, copy);
                multiply<two>({reinterpret_cast<const char*>(copy), 64, 1024, 2048}, x, here, fetch);
            }
        }
        store_sums<two>(sums);
        write_sums<false>(a, 0, n, end, sums);
    }
}

// More rows: bound by products. Outputs are copied once for all rows of a slab, so that they stay in the first-level cache;
// sums go back and forth once a depth_block.
void linear_many_rows(const LinearArgs& a, int64_t begin, int64_t end) {
    alignas(64) uint16_t copy[pair_outputs * depth_block];
    alignas(64) float sums[pairs_most][slab_pairs][4 * tile_floats];
    const int64_t steps = (a.k + step_depth - 1) / step_depth, tile = step_depth * 16;
    const int64_t row_tiles = (a.rows + 15) / 16, pairs = (row_tiles + 1) / 2;
    const bool aligned = a.out_stride % 16 == 0 && reinterpret_cast<uintptr_t>(a.out + begin) % 64 == 0;
    for (int64_t n0 = begin; n0 < end; n0 += pairs_most * pair_outputs) {
        const int64_t n1 = end - n0 < pairs_most * pair_outputs ? end : n0 + pairs_most * pair_outputs;
        for (int64_t slab = 0; slab < pairs; slab += slab_pairs) {
            const int64_t count = pairs - slab < slab_pairs ? pairs - slab : slab_pairs;
            for (int64_t k = 0; k < a.k; k += depth_block) {
                const int64_t left = steps - k / step_depth, here = left < block_steps ? left : block_steps;
                for (int64_t n = n0; n < n1; n += pair_outputs) {
                    copy_outputs(a, n, n1, k, copy);
                    const Outputs w{reinterpret_cast<const char*>(copy), 64, 1024, 2048};
                    // The same k of the next outputs, and for the last of them the next k of the first.
                    const bool last = n + pair_outputs >= n1;
                    const int64_t lines = pair_outputs * depth_block / 32, a_step = (lines + count * here - 1) / (count * here);
                    Fetch fetch = last ? fetch_outputs(a, n0, n1, k + depth_block, a_step)
                                       : fetch_outputs(a, n + pair_outputs, n1, k, a_step);
                    if (last && k + depth_block >= a.k) fetch.outputs = 0;
                    for (int64_t p = 0; p < count; p++) {
                        const int64_t t = (slab + p) * 2;
                        float* at = sums[(n - n0) / pair_outputs][p];
                        const Rows x{a.x_bf16 + (t * steps + k / step_depth) * tile, 64, steps * tile, tile};
                        // An eighth of the same rows' next k with each pair of outputs.
                        const int64_t part = (n - n0) / pair_outputs;
                        const uint16_t* next_x = k + depth_block < a.k ? x.at + block_steps * tile + part / 4 * x.second + part % 4 * 1024
                                                                       : nullptr;
                        if (t + 1 < row_tiles) {
                            if (k == 0) clear_sums<true>();
                            else load_sums<true>(at);
                            multiply<true>(w, x, here, fetch, next_x);
                            store_sums<true>(at);
                        } else {
                            if (k == 0) clear_sums<false>();
                            else load_sums<false>(at);
                            multiply<false>(w, x, here, fetch);
                            store_sums<false>(at);
                        }
                    }
                }
            }
            for (int64_t n = n0; n < n1; n += pair_outputs) {
                for (int64_t p = 0; p < count; p++) {
                    if (aligned) write_sums<true>(a, (slab + p) * 32, n, n1, sums[(n - n0) / pair_outputs][p]);
                    else write_sums<false>(a, (slab + p) * 32, n, n1, sums[(n - n0) / pair_outputs][p]);
                }
            }
        }
    }
}

void linear(const LinearArgs& a, int64_t begin, int64_t end) {
    if (a.dtype != DType::bf16 || !a.x_bf16) return below.linear(a, begin, end);
    const int64_t columns = tile_columns(a.rows);
    TileShapes shapes;
    for (int tile = 0; tile < 4; tile++) shapes.set(tile, 16, columns * 4);
    for (int tile = 4; tile < 6; tile++) shapes.set(tile, 16, 64);
    for (int tile = 6; tile < 8; tile++) shapes.set(tile, 16, columns * 4);
    tile_config(shapes);
    if (a.rows <= 16) linear_few_rows<false>(a, begin, end);
    else if (a.rows <= 32) linear_few_rows<true>(a, begin, end);
    else linear_many_rows(a, begin, end);
    tile_release();
    _mm_sfence();  // what was written past the caches is seen before what the thread says next
}
