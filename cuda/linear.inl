// Products with weights of f32, and with those the tensor cores do not take (dense_few.inl): a warp has an output, for eight
// rows at a time. A lane adds the products of every 32nd piece of eight of k, then a tree: the order of one output's sum is
// the same for any rows.

constexpr int linear_rows = 8;

template <class T>
DEVICE void load_eight(const T* p, int64_t count, float* out) {
    if (count >= 8 && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
        T x[8];
        GK_UNROLL
        for (int half = 0; half < int(sizeof x / 16); half++) {
            const gk::Words4 w = gk::load_stream(reinterpret_cast<const char*>(p) + 16 * half);
            memcpy(reinterpret_cast<char*>(x) + 16 * half, &w, 16);
        }
        GK_UNROLL
        for (int i = 0; i < 8; i++) out[i] = widen(x[i]);
        return;
    }
    for (int i = 0; i < 8; i++) out[i] = i < count ? widen(p[i]) : 0.0f;
}

template <class T>
DEVICE void linear_output(const LinearArgs& a, int64_t n, int64_t row0) {
    const T* w = static_cast<const T*>(a.weight) + n * a.k;
    const int64_t rows = a.rows - row0 < linear_rows ? a.rows - row0 : linear_rows;
    const bool aligned = reinterpret_cast<uintptr_t>(a.x) % 16 == 0 && a.x_stride % 4 == 0;
    float acc[linear_rows] = {};
    for (int64_t k = gk::lane() * 8; k < a.k; k += 256) {
        float weight[8];
        const int64_t count = a.k - k < 8 ? a.k - k : 8;
        load_eight(w + k, count, weight);
        GK_UNROLL
        for (int m = 0; m < linear_rows; m++) {
            if (m >= rows) continue;
            float x[8];
            dense_load(a.x + (row0 + m) * a.x_stride + k, count, aligned, x);
            GK_UNROLL
            for (int i = 0; i < 8; i++) acc[m] = gk::fma(x[i], weight[i], acc[m]);
        }
    }
    GK_UNROLL
    for (int m = 0; m < linear_rows; m++) {
        const float sum = warp_sum(acc[m]);
        if (m >= rows || gk::lane() != 0) continue;
        write_output(a, row0 + m, n, sum);
    }
}

// Grid: outputs / 8 x tiles of 8 rows; 256 threads.
GK_KERNEL void linear_kernel(LinearArgs a, int64_t first, int64_t last) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t n = first + gk::block() * 8 + gk::thread() / 32;
    if (n >= last) return;  // whole warps
    if (a.region) at_region(a);
    if (gk::block_y() * linear_rows >= a.rows) return;
    with_type(a.dtype, [&](auto type) { linear_output<typename decltype(type)::type>(a, n, gk::block_y() * linear_rows); });
}
