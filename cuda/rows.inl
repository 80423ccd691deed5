// Ops that add up, or compare, the elements of a row: a block has a row. Sums are a thread's own, over every threads-th
// element, then a tree over the warp and over the warps: always the same order.

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

// ---- norms -------------------------------------------------------------------------------------------------------

// A thread of row_threads has eights of a row: elements 8 (thread + row_threads j) .., zeros from the row's end on.
DEVICE int eight_at(int j) { return (gk::thread() + j * row_threads) * 8; }
DEVICE bool by_eights(const float* x, int dim) { return dim % 8 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0; }
DEVICE void load_eight(const float* x, int at, int dim, bool wide, float (&to)[8]) {
    Four low{}, high{};
    if (wide) {
        if (at < dim) low = four_at(x + at), high = four_at(x + at + 4);
        GK_UNROLL
        for (int i = 0; i < 4; i++) to[i] = low.x[i], to[4 + i] = high.x[i];
        return;
    }
    GK_UNROLL
    for (int i = 0; i < 8; i++) to[i] = at + i < dim ? x[at + i] : 0.0f;
}
DEVICE void store_eight(float* out, int at, int dim, bool wide, const float (&x)[8]) {
    if (wide) {
        if (at < dim) four_at(out + at) = {{x[0], x[1], x[2], x[3]}}, four_at(out + at + 4) = {{x[4], x[5], x[6], x[7]}};
        return;
    }
    GK_UNROLL
    for (int i = 0; i < 8; i++)
        if (at + i < dim) out[at + i] = x[i];
}
// A row that lies as by_eights asks.
template <int eights>
DEVICE void load_row(const float* x, int dim, float (&to)[eights][8]) {
    GK_UNROLL
    for (int j = 0; j < eights; j++) load_eight(x, eight_at(j), dim, true, to[j]);
}
template <int eights>
DEVICE void store_row(float* out, int dim, const float (&x)[eights][8]) {
    GK_UNROLL
    for (int j = 0; j < eights; j++) store_eight(out, eight_at(j), dim, true, x[j]);
}

// The order of sums of a row everywhere: eights as a tree, a thread's eights one after the other, block_sum.
DEVICE float sum_eight(const float (&x)[8]) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }
DEVICE float squares(const float (&x)[8]) {
    float y[8];
    GK_UNROLL
    for (int i = 0; i < 8; i++) y[i] = x[i] * x[i];
    return sum_eight(y);
}
DEVICE float rms_of(float sum, int64_t dim, float eps) { return 1.0f / sqrtf(sum / float(dim) + eps); }

// The sum of of_eight(eight, its place) over a thread's own part of any row, for block_sum, of row_threads threads.
template <class OfEight>
DEVICE float row_eights(const float* x, int dim, OfEight of_eight) {
    const bool wide = by_eights(x, dim);
    float sum = 0.0f;
    for (int at = eight_at(0); at < dim; at += 8 * row_threads) {
        float eight[8];
        load_eight(x, at, dim, wide, eight);
        sum += of_eight(eight, at);
    }
    return sum;
}
// What a row is multiplied with, for any kernel of row_threads threads. `place`: see block_sum.
DEVICE float rms_scale(const float* x, int64_t dim, float eps, float* place) {
    return rms_of(block_sum(row_eights(x, int(dim), [](auto& eight, int) { return squares(eight); }), place), dim, eps);
}

// Where row r lies: r = token * inner + head.
template <class Args>
DEVICE int64_t norm_at(const Args& a, int64_t r, int64_t stride) {
    if (a.inner == 1) return r * stride;
    const uint32_t token = uint32_t(r) / uint32_t(a.inner);
    return token * stride + (uint32_t(r) - token * uint32_t(a.inner)) * a.dim;
}

// Rows whose elements are all in registers, `eights` a thread, and which lie so (norm_fits); the weights are asked for before the
// kernel waits for the one ahead.
template <int eights>
DEVICE void load_norm_weight(const RmsNormArgs& a, float (&weight)[eights][8]) {
    GK_UNROLL
    for (int j = 0; j < eights; j++) {
        gk::Words4 low{}, high{};
        if (eight_at(j) < a.dim) low = gk::load_stream(a.weight + eight_at(j)), high = gk::load_stream(a.weight + eight_at(j) + 4);
        GK_UNROLL
        for (int i = 0; i < 4; i++) weight[j][i] = from_bits(low.x[i]), weight[j][4 + i] = from_bits(high.x[i]);
    }
}
// -> what the norm gives.
template <int eights>
DEVICE void rms_norm_row(const RmsNormArgs& a, int64_t r, const float (&weight)[eights][8], float (&x)[eights][8], float* place) {
    const int dim = int(a.dim);
    load_row(a.x + norm_at(a, r, a.x_stride), dim, x);
    float sum = 0.0f;
    GK_UNROLL
    for (int j = 0; j < eights; j++) sum += squares(x[j]);
    const float scale = rms_of(block_sum(sum, place), a.dim, a.eps);
    GK_UNROLL
    for (int j = 0; j < eights; j++) {
        GK_UNROLL
        for (int i = 0; i < 8; i++) x[j][i] = x[j][i] * scale * weight[j][i];
    }
    store_row(a.out + norm_at(a, r, a.out_stride), dim, x);
}
constexpr int few_eights = 2, most_eights = 8;  // a thread of a row has in registers
template <class Args>
bool norm_fits(const Args& a, int eights) {
    auto aligned = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    return a.dim <= int64_t(eights) * 8 * row_threads && a.dim % 8 == 0 && a.x_stride % 4 == 0 && a.out_stride % 4 == 0 && aligned(a.x) &&
           aligned(a.out) && aligned(a.weight);
}

template <int eights>
GK_KERNEL void rms_norm_kernel(RmsNormArgs a, int64_t first) {
    gk::let_next_start();
    float weight[eights][8], x[eights][8];
    load_norm_weight(a, weight);
    gk::wait_for_previous();
    rms_norm_row(a, first + gk::block(), weight, x, reinterpret_cast<float*>(gk::shared()));
}
// Rows of up to 256, as heads are: a warp a row. The bits are the same, for all other warps' sums would be zeros.
constexpr int64_t norm_warp_most = 256;
GK_KERNEL void rms_norm_heads_kernel(RmsNormArgs a, int64_t first, int64_t last) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block() * (row_threads / 32) + gk::thread() / 32;
    if (r >= last) return;
    const float* x = a.x + norm_at(a, r, a.x_stride);
    float* out = a.out + norm_at(a, r, a.out_stride);
    const int dim = int(a.dim), at = gk::lane() * 8;
    float eight[8], weight[8];
    load_eight(x, at, dim, by_eights(x, dim), eight);
    load_eight(a.weight, at, dim, by_eights(a.weight, dim), weight);
    const float scale = rms_of(warp_sum(squares(eight)), a.dim, a.eps);
    GK_UNROLL
    for (int i = 0; i < 8; i++) eight[i] = eight[i] * scale * weight[i];
    store_eight(out, at, dim, by_eights(out, dim), eight);
}
// Any row, read twice.
GK_KERNEL void rms_norm_long_kernel(RmsNormArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block();
    const float* x = a.x + norm_at(a, r, a.x_stride);
    float* out = a.out + norm_at(a, r, a.out_stride);
    const float scale = rms_scale(x, a.dim, a.eps, reinterpret_cast<float*>(gk::shared()));
    each_column(a.dim, [&](int64_t i) { out[i] = x[i] * scale * a.weight[i]; });
}

// As rms_norm_kernel. weight_stride and bias are as the weight is: norm_fits.
template <int eights>
GK_KERNEL void layer_norm_kernel(LayerNormArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    auto* place = reinterpret_cast<float*>(gk::shared());
    const int64_t r = first + gk::block(), at = a.weight_stride == 0 ? 0 : int64_t(uint32_t(r) % uint32_t(a.inner)) * a.weight_stride;
    const float* in = a.x + norm_at(a, r, a.x_stride);
    const int dim = int(a.dim);
    float x[eights][8], y[eights][8], sum = 0.0f;
    load_row(in, dim, x);
    GK_UNROLL
    for (int j = 0; j < eights; j++) sum += sum_eight(x[j]);
    const float mean = block_sum(sum, place) / float(dim);
    load_row(a.weight + at, dim, y);
    sum = 0.0f;
    GK_UNROLL
    for (int j = 0; j < eights; j++) {
        GK_UNROLL
        for (int i = 0; i < 8; i++) x[j][i] = eight_at(j) + i < dim ? x[j][i] - mean : 0.0f;
        sum += squares(x[j]);
    }
    const float scale = 1.0f / sqrtf(block_sum(sum, place) / float(dim) + a.eps);
    GK_UNROLL
    for (int j = 0; j < eights; j++) {
        GK_UNROLL
        for (int i = 0; i < 8; i++) x[j][i] = x[j][i] * scale * y[j][i];
    }
    if (a.bias) {
        load_row(a.bias + at, dim, y);
        GK_UNROLL
        for (int j = 0; j < eights; j++) {
            GK_UNROLL
            for (int i = 0; i < 8; i++) x[j][i] += y[j][i];
        }
    }
    store_row(a.out + norm_at(a, r, a.out_stride), dim, x);
}
GK_KERNEL void layer_norm_long_kernel(LayerNormArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    auto* place = reinterpret_cast<float*>(gk::shared());
    const int64_t r = first + gk::block(), at = int64_t(uint32_t(r) % uint32_t(a.inner)) * a.weight_stride;
    const float* x = a.x + norm_at(a, r, a.x_stride);
    float* out = a.out + norm_at(a, r, a.out_stride);
    const float mean = block_sum(row_eights(x, int(a.dim), [](auto& eight, int) { return sum_eight(eight); }), place) / float(a.dim);
    const float variance = block_sum(row_eights(x, int(a.dim), [&](auto& eight, int at) {
        GK_UNROLL
        for (int i = 0; i < 8; i++) eight[i] = at + i < a.dim ? eight[i] - mean : 0.0f;
        return squares(eight);
    }), place) / float(a.dim);
    const float scale = 1.0f / sqrtf(variance + a.eps);
    each_column(a.dim, [&](int64_t i) { out[i] = (x[i] - mean) * scale * a.weight[at + i] + (a.bias ? a.bias[at + i] : 0.0f); });
}

GK_KERNEL void softmax_kernel(SoftmaxArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
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

// ---- rounding of activations -------------------------------------------------------------------------------------

// A warp rounds 256 of a row, eight a lane, to the bit what the processors give -> their scale, and the sum of a lane's codes.
// Sizes are compared as integers, where NaN is above infinity; what is added to round leaves a code in a float's low bits.
DEVICE float quantize_eight(const float (&x)[8], int32_t (&codes)[8], int32_t& sum) {
    constexpr float rounder = 12582912.0f;  // 1.5 2^23
    uint32_t most = 0;
    GK_UNROLL
    for (int i = 0; i < 8; i++) {
        const uint32_t size = to_bits(x[i]) & 0x7fffffffu;
        most = size > most ? size : most;
    }
    const float largest = from_bits(gk::max_together(most));
    const bool finite = largest < infinity, counts = finite && largest >= 0x1p-100f;
    const float inverse = counts ? 127.0f / largest : 0.0f;
    sum = 0;
    GK_UNROLL
    for (int i = 0; i < 8; i++) {
        codes[i] = counts ? int32_t(to_bits(x[i] * inverse + rounder)) - int32_t(to_bits(rounder)) : 0;
        sum += codes[i];
    }
    return finite ? (counts ? largest / 127.0f : 0.0f) : from_bits(0x7fc00000u);
}
// The sum of sum_depth codes, to all lanes that have one of them.
DEVICE int32_t sum_together(int32_t sum, int64_t sum_depth) {
    for (int d = 1; d < int(sum_depth) / 8; d *= 2) sum += gk::shuffle_xor(sum, d);
    return sum;
}
// Eight codes as they lie in memory.
struct alignas(8) Codes8 {
    uint32_t low, high;
};
DEVICE Codes8 pack_codes(const int32_t (&c)[8]) { return {gk::pack_bytes(c[0], c[1], c[2], c[3]), gk::pack_bytes(c[4], c[5], c[6], c[7])}; }

// Block b of 256 of row r, whose eights x are, by a warp: zeros in rows beyond the last, of a tile that is not full.
DEVICE void quantize_block(const QuantizeArgs& a, int64_t r, int b, const float (&x)[8]) {
    const int depth = int(round_up(a.k, tile_depth)), k = b * int(block_depth) + gk::lane() * 8;
    int32_t codes[8], sum;
    const float scale = quantize_eight(x, codes, sum);
    sum = sum_together(sum, a.sum_depth);
    if (gk::lane() == 0) a.scales[scale_index(a, r, b)] = scale;
    if (k >= depth) return;
    *reinterpret_cast<Codes8*>(a.codes + code_index(a, r, k)) = pack_codes(codes);
    const int shift = a.sum_depth == 16 ? 4 : 5;
    if (a.sums && r < a.rows && k == k >> shift << shift) a.sums[r * (depth >> shift) + (k >> shift)] = int16_t(sum);
}
DEVICE int quantized_blocks(const QuantizeArgs& a) { return int((a.k + block_depth - 1) / block_depth); }

// Grid: rows x blocks of 256, one a warp.
GK_KERNEL void quantize_kernel(QuantizeArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    if (a.region) {
        if (gk::block() >= a.region->rows) return;
        const int64_t at = a.region->first;
        a.x += at * a.x_stride;
        a.codes += at * a.codes_stride;
        a.scales += at * quantized_blocks(a);
        a.sums += at * (round_up(a.k, tile_depth) >> (a.sum_depth == 16 ? 4 : 5));
    }
    const int64_t r = first + gk::block();
    const int b = int(gk::block_y()) * (row_threads / 32) + gk::thread() / 32;
    if (b >= quantized_blocks(a)) return;
    const float* row = a.x + r * a.x_stride;
    float x[8];
    load_eight(row, b * int(block_depth) + gk::lane() * 8, r < a.rows ? int(a.k) : 0, by_eights(row, int(a.k)), x);
    quantize_block(a, r, b, x);
}

// Both, one after the other: a warp's eights of the norm are its blocks of 256.
template <int eights>
GK_KERNEL void norm_quantize_kernel(RmsNormArgs norm, QuantizeArgs rounding, int64_t first) {
    gk::let_next_start();
    const int64_t r = first + gk::block();
    float weight[eights][8], x[eights][8];
    load_norm_weight(norm, weight);
    gk::wait_for_previous();
    if (r < rounding.rows) {
        rms_norm_row(norm, r, weight, x, reinterpret_cast<float*>(gk::shared()));
    } else {
        GK_UNROLL
        for (int j = 0; j < eights; j++)
            for (int i = 0; i < 8; i++) x[j][i] = 0.0f;
    }
    const int blocks = quantized_blocks(rounding);
    GK_UNROLL
    for (int j = 0; j < eights; j++) {
        const int b = gk::thread() / 32 + j * (row_threads / 32);
        if (b < blocks) quantize_block(rounding, r, b, x[j]);
    }
}
