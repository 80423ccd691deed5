// Ops whose elements do not look at one another. A block has a unit of kernels.h (a row), or 1,024 of single elements; its
// threads go over the columns.

constexpr int64_t elements_a_block = 1024;

// body(i) for the elements of this block's piece of [first, last).
template <class Body>
DEVICE void each_element(int64_t first, int64_t last, Body body) {
    const int64_t from = first + gk::block() * elements_a_block;
    const int64_t to = from + elements_a_block < last ? from + elements_a_block : last;
    for (int64_t i = from + gk::thread(); i < to; i += gk::threads()) body(i);
}

// Four elements, read or written at once where they lie so.
template <class T>
struct alignas(4 * sizeof(T)) FourOf {
    T x[4];
};
using Four = FourOf<float>;
DEVICE const Four& four_at(const float* p) { return *reinterpret_cast<const Four*>(p); }
DEVICE Four& four_at(float* p) { return *reinterpret_cast<Four*>(p); }

// body(i) for the columns of a row.
template <class Body>
DEVICE void each_column(int64_t columns, Body body) {
    for (int64_t i = gk::thread(); i < columns; i += gk::threads()) body(i);
}

GK_KERNEL void convert_kernel(ConvertArgs a, int64_t first, int64_t last) {
    gk::wait_for_previous(), gk::let_next_start();
    with_type(a.in_dtype, [&](auto in_type) {
        with_type(a.out_dtype, [&](auto out_type) {
            auto* in = static_cast<const typename decltype(in_type)::type*>(a.in);
            auto* out = static_cast<typename decltype(out_type)::type*>(a.out);
            each_element(first, last, [&](int64_t i) { narrow(widen(in[i]), out[i]); });
        });
    });
}

GK_KERNEL void embedding_kernel(EmbeddingArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t r = first + gk::block();
    with_type(a.dtype, [&](auto type) {
        auto* row = static_cast<const typename decltype(type)::type*>(a.table) + a.ids[r] * a.dim;
        each_column(a.dim, [&](int64_t i) { a.out[r * a.dim + i] = widen(row[i]); });
    });
}

GK_KERNEL void round_rows_kernel(RoundRowsArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t r = first + gk::block(), depth = round_up(a.k, 32);
    each_column(depth, [&](int64_t k) {
        bf16 x{0};
        if (k < a.k) narrow(a.x[r * a.x_stride + k], x);
        a.out[r * depth + k] = x.bits;
    });
}

GK_KERNEL void tile_rows_kernel(TileRowsArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t tile = first + gk::block(), columns = tile_columns(a.rows), depth = round_up(a.k, 32);
    each_column(depth * columns, [&](int64_t at) {
        const int64_t k = at / columns, i = at % columns, m = tile * 16 + i;
        bf16 x{0};
        if (m < a.rows && k < a.k) narrow(a.x[m * a.x_stride + k], x);
        a.tiles[((tile * depth + k - k % 2) * columns + i * 2) + k % 2] = x.bits;
    });
}

// Sine and cosine of x, within a few units of the last place of double below 2^31: x - n pi / 2 in two parts, then Taylor's
// series. The library's own reduction needs local memory.
DEVICE void sine_cosine(double x, double& sine, double& cosine) {
    const double n = rint(x * 0.63661977236758134);
    const double r = gk::fma(n, -6.123233995736766e-17, gk::fma(n, -1.5707963267948966, x)), s = r * r;
    double a = -1.0 / 1307674368000.0;  // 15!
    a = gk::fma(a, s, 1.0 / 6227020800.0);
    a = gk::fma(a, s, -1.0 / 39916800.0);
    a = gk::fma(a, s, 1.0 / 362880.0);
    a = gk::fma(a, s, -1.0 / 5040.0);
    a = gk::fma(a, s, 1.0 / 120.0);
    a = gk::fma(a, s, -1.0 / 6.0);
    a = gk::fma(a * s, r, r);
    double b = 1.0 / 20922789888000.0;  // 16!
    b = gk::fma(b, s, -1.0 / 87178291200.0);
    b = gk::fma(b, s, 1.0 / 479001600.0);
    b = gk::fma(b, s, -1.0 / 3628800.0);
    b = gk::fma(b, s, 1.0 / 40320.0);
    b = gk::fma(b, s, -1.0 / 720.0);
    b = gk::fma(b, s, 1.0 / 24.0);
    b = gk::fma(b, s, -0.5);
    b = gk::fma(b, s, 1.0);
    const int64_t quarter = int64_t(n) & 3;
    sine = quarter & 1 ? b : a;
    cosine = quarter & 1 ? a : b;
    if (quarter & 2) sine = -sine;
    if (quarter == 1 || quarter == 2) cosine = -cosine;
}

GK_KERNEL void rope_table_kernel(RopeTableArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t r = first + gk::block();
    each_column(a.half, [&](int64_t i) {
        const float angle = float(a.positions[r]) * a.inv_freq[i];
        double sine, cosine;
        sine_cosine(double(angle), sine, cosine);
        a.table[r * 2 * a.half + i] = float(cosine) * a.scale;
        a.table[(r * 2 + 1) * a.half + i] = float(sine) * a.scale;
    });
}

DEVICE void rope_row(const RopeArgs& a, int64_t r) {
    const int64_t step = a.interleaved ? 2 : 1, apart = a.interleaved ? 1 : a.half;
    const float* cosine = a.table + r * 2 * a.half;
    const float* sine = cosine + a.half;
    each_column(a.heads * a.half, [&](int64_t at) {
        const int64_t h = at / a.half, i = at % a.half;
        float* x = a.x + r * a.x_stride + h * a.head_dim + i * step;
        const float one = x[0], other = x[apart];
        x[0] = one * cosine[i] - other * sine[i];
        x[apart] = other * cosine[i] + one * sine[i];
    });
}
GK_KERNEL void rope_kernel(RopeArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    rope_row(a, first + gk::block());
}

GK_KERNEL void activation_kernel(ActivationArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t r = first + gk::block();
    with_kind(a.kind, [&](auto kind) {
        each_column(a.dim, [&](int64_t i) { a.out[r * a.dim + i] = activate<decltype(kind)::value>(a.x[r * a.x_stride + i]); });
    });
}

GK_KERNEL void gated_kernel(GatedArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    if (a.region && gk::block() >= a.region->rows) return;
    const int64_t r = first + gk::block() + (a.region ? a.region->first : 0);
    const float* x = a.x + r * a.x_stride;
    with_kind(a.kind, [&](auto kind) {
        each_column(a.dim, [&](int64_t i) { a.out[r * a.dim + i] = gate<decltype(kind)::value>(x[i], x[a.dim + i]); });
    });
}

GK_KERNEL void add_kernel(AddArgs a, int64_t first, int64_t last) {
    gk::wait_for_previous(), gk::let_next_start();
    each_element(first, last, [&](int64_t i) { a.out[i] = a.a[i] + a.scale * a.b[i]; });
}

GK_KERNEL void scale_kernel(ScaleArgs a, int64_t first, int64_t last) {
    gk::wait_for_previous(), gk::let_next_start();
    each_element(first, last, [&](int64_t i) {
        const float y = a.x[i] * a.factor;
        a.out[i] = a.softcap > 0 ? a.softcap * tanh(y / a.softcap) : y;
    });
}

GK_KERNEL void gather_columns_kernel(GatherColumnsArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t r = first + gk::block();
    each_column(a.columns, [&](int64_t i) {
        const int64_t from = a.index[i];
        a.out[r * a.columns + i] = from < 0 ? 0.0f : from < a.x_columns ? a.x[r * a.x_stride + from]
                                                                         : a.y[r * a.y_stride + from - a.x_columns];
    });
}

GK_KERNEL void gather_rows_kernel(GatherRowsArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t p = first + gk::block();
    if (a.sources[p] < 0) return;
    const float* x = a.x + a.sources[p] * a.x_stride;
    each_column(a.dim, [&](int64_t i) { a.out[p * a.dim + i] = x[i]; });
}

GK_KERNEL void combine_kernel(CombineArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t r = first + gk::block();
    each_column(a.dim, [&](int64_t i) {
        float sum = a.residual ? a.residual[r * a.dim + i] : 0.0f;
        for (int64_t j = 0; j < a.k; j++) {
            const int64_t place = a.place_of ? a.place_of[r * a.k + j] : r;
            sum += a.weights[r * a.k + j] * a.y[place * a.dim + i];
        }
        a.out[r * a.dim + i] = sum;
    });
}

GK_KERNEL void bias_kernel(BiasArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    float* logits = a.logits + (first + gk::block()) * a.dim;
    each_column(a.count, [&](int64_t i) { logits[a.ids[i]] += a.values[i]; });
}

GK_KERNEL void penalty_kernel(PenaltyArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t r = first + gk::block();
    each_column(a.offsets[r + 1] - a.offsets[r], [&](int64_t i) {
        const int64_t e = a.offsets[r] + i;
        float& logit = a.logits[r * a.dim + a.ids[e]];
        if (a.seen[e] > 0) logit = logit > 0.0f ? logit / a.repetition : logit * a.repetition;
        if (a.generated[e] > 0) logit -= a.presence + a.frequency * float(a.generated[e]);
    });
}

// A block for each pair and head.
GK_KERNEL void copy_pages_kernel(CopyPagesArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t pair = first + gk::block();
    char* head = a.pages + gk::block_y() * a.pages_each * a.page_bytes;
    const char* from = head + a.from[pair] * a.page_bytes;
    char* to = head + a.to[pair] * a.page_bytes;
    each_column(a.page_bytes, [&](int64_t i) { to[i] = from[i]; });
}
