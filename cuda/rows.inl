// Ops that add up, or compare, the elements of a row: a block has a row. Sums are a thread's own, over every threads-th
// element, then a tree over the warp and over the warps: always the same order.

constexpr int row_threads = 256;

DEVICE float warp_sum(float x) {
    GK_UNROLL
    for (int d = 16; d > 0; d /= 2) x += gk::shuffle_xor(x, d);
    return x;
}

// Of all threads' x, to all. `place` [32] is used; it may be used again after a sync.
DEVICE float block_sum(float x, float* place) {
    x = warp_sum(x);
    gk::sync();
    if (gk::lane() == 0) place[gk::thread() / 32] = x;
    gk::sync();
    float sum = 0.0f;
    for (int i = 0; i < gk::threads() / 32; i++) sum += place[i];
    return sum;
}

DEVICE float block_max(float x, float* place) {  // NaN is passed over
    GK_UNROLL
    for (int d = 16; d > 0; d /= 2) x = max(gk::shuffle_xor(x, d), x);
    gk::sync();
    if (gk::lane() == 0) place[gk::thread() / 32] = x;
    gk::sync();
    float most = -infinity;
    for (int i = 0; i < gk::threads() / 32; i++) most = max(place[i], most);
    return most;
}

// sum_i term(i) over a row.
template <class Term>
DEVICE float row_sum(int64_t count, float* place, Term term) {
    float sum = 0.0f;
    each_column(count, [&](int64_t i) { sum += term(i); });
    return block_sum(sum, place);
}

// What a row is multiplied with. `place`: see block_sum.
DEVICE float rms_scale(const float* x, int64_t dim, float eps, float* place) {
    return 1.0f / sqrtf(row_sum(dim, place, [&](int64_t i) { return x[i] * x[i]; }) / float(dim) + eps);
}
DEVICE void rms_norm_row(const RmsNormArgs& a, int64_t r, float* place) {
    const float* x = a.x + r / a.inner * a.x_stride + r % a.inner * a.dim;
    float* out = a.out + r / a.inner * a.out_stride + r % a.inner * a.dim;
    const float scale = rms_scale(x, a.dim, a.eps, place);
    each_column(a.dim, [&](int64_t i) { out[i] = x[i] * scale * a.weight[i]; });
}
GK_KERNEL void rms_norm_kernel(RmsNormArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    rms_norm_row(a, first + gk::block(), reinterpret_cast<float*>(gk::shared()));
}

GK_KERNEL void layer_norm_kernel(LayerNormArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    auto* place = reinterpret_cast<float*>(gk::shared());
    const int64_t r = first + gk::block(), at = r % a.inner * a.weight_stride;
    const float* x = a.x + r / a.inner * a.x_stride + r % a.inner * a.dim;
    float* out = a.out + r / a.inner * a.out_stride + r % a.inner * a.dim;
    const float mean = row_sum(a.dim, place, [&](int64_t i) { return x[i]; }) / float(a.dim);
    const float variance = row_sum(a.dim, place, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / float(a.dim);
    const float scale = 1.0f / sqrtf(variance + a.eps);
    each_column(a.dim, [&](int64_t i) { out[i] = (x[i] - mean) * scale * a.weight[at + i] + (a.bias ? a.bias[at + i] : 0.0f); });
}

GK_KERNEL void softmax_kernel(SoftmaxArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    auto* place = reinterpret_cast<float*>(gk::shared());
    const int64_t r = first + gk::block();
    const float* x = a.x + r * a.dim;
    float* out = a.out + r * a.dim;
    float largest = -infinity;
    each_column(a.dim, [&](int64_t i) { largest = max(x[i], largest); });
    largest = block_max(largest, place);
    const float total = row_sum(a.dim, place, [&](int64_t i) { return exp(x[i] - largest); });
    const float log_total = logf(total);
    each_column(a.dim, [&](int64_t i) { out[i] = a.log ? (x[i] - largest) - log_total : exp(x[i] - largest) / total; });
}

// A warp rounds 256 of a row, eight a lane, to the bit what the processors give -> their scale, and the sum of a lane's codes.
DEVICE float quantize_eight(const float (&x)[8], int32_t (&codes)[8], int32_t& sum) {
    float largest = 0.0f;
    GK_UNROLL
    for (int i = 0; i < 8; i++) {
        const float size = abs(x[i]);
        largest = size > largest || size != size ? size : largest;
    }
    GK_UNROLL
    for (int d = 16; d > 0; d /= 2) {
        const float other = gk::shuffle_xor(largest, d);
        largest = other > largest || other != other ? other : largest;
    }
    const bool finite = largest < infinity, counts = finite && largest >= 0x1p-100f;
    const float inverse = counts ? 127.0f / largest : 0.0f;
    sum = 0;
    GK_UNROLL
    for (int i = 0; i < 8; i++) sum += codes[i] = counts ? int32_t(gk::round_even(x[i] * inverse)) : 0;
    return finite ? (counts ? largest / 127.0f : 0.0f) : from_bits(0x7fc00000u);
}
// The sum of sum_depth codes, to all lanes that have one of them.
DEVICE int32_t sum_together(int32_t sum, int64_t sum_depth) {
    for (int64_t d = 1; d < sum_depth / 8; d *= 2) sum += gk::shuffle_xor(sum, int(d));
    return sum;
}

DEVICE void quantize_row(const QuantizeArgs& a, int64_t r) {
    const int64_t depth = round_up(a.k, tile_depth), sums = depth / a.sum_depth;
    const int64_t blocks = (a.k + block_depth - 1) / block_depth, lane = gk::lane();
    if (r >= a.rows) {  // of a last tile that is not full
        each_column(depth, [&](int64_t k) { a.codes[code_index(a, r, k)] = 0; });
        each_column(blocks, [&](int64_t b) { a.scales[scale_index(a, r, b)] = 0.0f; });
        return;
    }
    for (int64_t b = gk::thread() / 32; b < blocks; b += gk::threads() / 32) {
        const int64_t k = b * block_depth + lane * 8;  // eight codes a lane
        float x[8];
        int32_t codes[8], sum;
        GK_UNROLL
        for (int i = 0; i < 8; i++) x[i] = k + i < a.k ? a.x[r * a.x_stride + k + i] : 0.0f;
        const float scale = quantize_eight(x, codes, sum);
        if (lane == 0) a.scales[scale_index(a, r, b)] = scale;
        GK_UNROLL
        for (int i = 0; i < 8; i++)
            if (k + i < depth) a.codes[code_index(a, r, k + i)] = int8_t(codes[i]);
        sum = sum_together(sum, a.sum_depth);
        if (a.sums && k < depth && k % a.sum_depth == 0) a.sums[r * sums + k / a.sum_depth] = int16_t(sum);
    }
}
GK_KERNEL void quantize_kernel(QuantizeArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    if (a.region) {
        if (gk::block() >= a.region->rows) return;
        const int64_t at = a.region->first;
        a.x += at * a.x_stride;
        a.codes += at * a.codes_stride;
        a.scales += at * ((a.k + block_depth - 1) / block_depth);
        a.sums += at * (round_up(a.k, tile_depth) / a.sum_depth);
    }
    quantize_row(a, first + gk::block());
}

// Both, one after the other; the rounding reads what the norm has written.
GK_KERNEL void norm_quantize_kernel(RmsNormArgs norm, QuantizeArgs rounding, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t r = first + gk::block();
    if (r < rounding.rows) rms_norm_row(norm, r, reinterpret_cast<float*>(gk::shared()));
    gk::sync();
    quantize_row(rounding, r);
}
