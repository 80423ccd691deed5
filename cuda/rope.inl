// Rotation of heads, and the writing of keys and values to their pages. A warp has a head.

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

// Grid: rows; a thread an angle.
GK_KERNEL void rope_table_kernel(RopeTableArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block();
    each_column(a.half, [&](int64_t i) {
        const float angle = float(a.positions[r]) * a.inv_freq[i];
        double sine, cosine;
        sine_cosine(double(angle), sine, cosine);
        a.table[r * 2 * a.half + i] = float(cosine) * a.scale;
        a.table[(r * 2 + 1) * a.half + i] = float(sine) * a.scale;
    });
}

struct alignas(8) Two {
    float x[2];
};
constexpr int most_pairs = 4;  // of a lane: heads of up to 256

// A head of a multiple of 4 channels in a warp's registers: lane l has pairs of neighbouring channels, pair j at pair_at(j, half).
// 2 half is the head; pairs 2 i and 2 i + 1 lie `half` apart, as rope turns them.
DEVICE int pair_at(int j, int half) { return (j & 1 ? half : 0) + 2 * gk::lane() + 64 * (j >> 1); }
DEVICE bool has_pair(int j, int half) { return 2 * gk::lane() + 64 * (j >> 1) < half; }
static constexpr bool fits_pairs(int64_t dim) { return dim % 4 == 0 && dim <= 64 * most_pairs; }
static bool by_twos(const void* p, int64_t stride) { return reinterpret_cast<uintptr_t>(p) % sizeof(Two) == 0 && stride % 2 == 0; }

DEVICE void load_pairs(const float* x, int half, Two (&to)[most_pairs]) {
    GK_UNROLL
    for (int j = 0; j < most_pairs; j++) {
        to[j] = {};
        if (has_pair(j, half)) to[j] = *reinterpret_cast<const Two*>(x + pair_at(j, half));
    }
}
// The table of a row has the order of a head: cosines, then sines.
DEVICE void turn_pairs(const Two (&turns)[most_pairs], Two (&x)[most_pairs]) {
    GK_UNROLL
    for (int j = 0; j < most_pairs; j += 2) {
        GK_UNROLL
        for (int i = 0; i < 2; i++) {
            const float one = x[j].x[i], other = x[j + 1].x[i], cosine = turns[j].x[i], sine = turns[j + 1].x[i];
            x[j].x[i] = one * cosine - other * sine;
            x[j + 1].x[i] = other * cosine + one * sine;
        }
    }
}
DEVICE void store_pairs(float* x, int half, const Two (&pairs)[most_pairs]) {
    GK_UNROLL
    for (int j = 0; j < most_pairs; j++)
        if (has_pair(j, half)) *reinterpret_cast<Two*>(x + pair_at(j, half)) = pairs[j];
}

// Grid: rows x heads, one a warp. `fits`: in registers; else any head, element by element.
GK_KERNEL void rope_kernel(RopeArgs a, int64_t first, bool fits) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block(), h = gk::block_y() * (gk::threads() / 32) + gk::thread() / 32;
    if (h >= a.heads) return;
    float* x = a.x + r * a.x_stride + h * a.head_dim;
    const float* cosine = a.table + r * 2 * a.half;
    const float* sine = cosine + a.half;
    if (fits) {
        Two pairs[most_pairs], turns[most_pairs];
        load_pairs(x, int(a.half), pairs);
        load_pairs(cosine, int(a.half), turns);
        turn_pairs(turns, pairs);
        return store_pairs(x, int(a.half), pairs);
    }
    const int step = a.interleaved ? 2 : 1, apart = a.interleaved ? 1 : int(a.half);
    for (int i = gk::lane(); i < int(a.half); i += 32) {
        const float one = x[i * step], other = x[i * step + apart];
        x[i * step] = one * cosine[i] - other * sine[i];
        x[i * step + apart] = other * cosine[i] + one * sine[i];
    }
}

// ---- pages -------------------------------------------------------------------------------------------------------------

template <class T>
DEVICE void put(float x, float, T& out) { narrow(x, out); }
DEVICE void put(float x, float scale, i8& out) {
    const float code = scale > 0 ? gk::round_even(x / scale) : 0.0f;
    out.code = int8_t(code > 127 ? 127 : code < -127 ? -127 : code);  // a denormal scale may be rounded far down
}

// max |x| / 127 of all lanes, whose own is `most` as an integer; NaN where an element is not finite.
DEVICE float scale_together(uint32_t most) {
    const float largest = from_bits(gk::max_together(most));
    return largest < infinity ? largest / 127.0f : from_bits(0x7fc00000u);
}
DEVICE uint32_t larger_size(uint32_t most, float x) {
    const uint32_t size = to_bits(x) & 0x7fffffffu;
    return size > most ? size : most;
}

// Where row r goes.
struct PageSlot {
    int64_t page;
    int slot;
};
DEVICE PageSlot slot_of(const KvPages& p, int64_t r) {
    const uint32_t position = uint32_t(p.positions[r]);
    return {p.page_table[p.sequences[r] * p.max_pages + position / uint32_t(page_keys)], int(position % uint32_t(page_keys))};
}

// Neighbouring channels of a key or a value to their place in a page.
template <class T>
DEVICE void put_pair(T* page, bool key, int slot, int i, int dim, const Two& x, float scale) {
    if constexpr (sizeof(T) < 4) {
        struct alignas(2 * sizeof(T)) Pair {
            T x[2];
        } pair;
        put(x.x[0], scale, pair.x[0]), put(x.x[1], scale, pair.x[1]);
        if (key) *reinterpret_cast<Pair*>(page + key_at(true, slot, i, dim)) = pair;
        else page[value_at(true, slot, i, dim)] = pair.x[0], page[value_at(true, slot, i + 1, dim)] = pair.x[1];
    } else {
        GK_UNROLL
        for (int c = 0; c < 2; c++) put(x.x[c], scale, page[key ? key_at(false, slot, i + c, dim) : value_at(false, slot, i + c, dim)]);
    }
}
// A head that is in registers to its place; `key`: or it is a value.
DEVICE void write_pairs(const KvPages& p, const PageSlot& at, int64_t h, bool key, const Two (&x)[most_pairs]) {
    const int dim = int(p.head_dim), half = dim / 2;
    const int64_t head = h * p.pages + at.page;
    with_page_type(p.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        float scale = 1.0f;
        if constexpr (sizeof(T) == 1) {
            uint32_t most = 0;
            GK_UNROLL
            for (int j = 0; j < most_pairs; j++) most = larger_size(larger_size(most, x[j].x[0]), x[j].x[1]);
            scale = scale_together(most);
            if (gk::lane() == 0) (key ? p.k_scales : p.v_scales)[head * page_keys + at.slot] = scale;
        }
        T* page = static_cast<T*>(key ? p.k : p.v) + head * page_keys * dim;
        GK_UNROLL
        for (int j = 0; j < most_pairs; j++)
            if (has_pair(j, half)) put_pair(page, key, at.slot, pair_at(j, half), dim, x[j], scale);
    });
}

// Grid: rows x heads of keys, then of values, one a warp. `fits`: in registers.
GK_KERNEL void kv_write_kernel(KvWriteArgs a, int64_t first, bool fits) {
    gk::let_next_start(), gk::wait_for_previous();
    const KvPages& p = a.pages;
    const int64_t r = first + gk::block(), unit = gk::block_y() * (gk::threads() / 32) + gk::thread() / 32;
    if (unit >= 2 * p.kv_heads) return;
    const bool key = unit < p.kv_heads;
    const int64_t h = key ? unit : unit - p.kv_heads;
    const PageSlot at = slot_of(p, r);
    const int dim = int(p.head_dim);
    const float* x = (key ? a.k : a.v) + r * a.kv_stride + h * dim;
    if (fits) {
        Two pairs[most_pairs];
        load_pairs(x, dim / 2, pairs);
        return write_pairs(p, at, h, key, pairs);
    }
    const int64_t head = h * p.pages + at.page;
    with_page_type(p.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        constexpr bool pairs = sizeof(T) < 4;
        float scale = 1.0f;
        if constexpr (sizeof(T) == 1) {
            uint32_t most = 0;
            for (int i = gk::lane(); i < dim; i += 32) most = larger_size(most, x[i]);
            scale = scale_together(most);
            if (gk::lane() == 0) (key ? p.k_scales : p.v_scales)[head * page_keys + at.slot] = scale;
        }
        T* page = static_cast<T*>(key ? p.k : p.v) + head * page_keys * dim;
        for (int i = gk::lane(); i < dim; i += 32) put(x[i], scale, page[key ? key_at(pairs, at.slot, i, dim) : value_at(pairs, at.slot, i, dim)]);
    });
}

// Grid: rows x heads, one a warp: those that turn, of which first_key.. are the keys, then the values. All fit registers.
GK_KERNEL void rope_kv_write_kernel(RopeKvWriteArgs a, int64_t first, int first_key) {
    gk::let_next_start(), gk::wait_for_previous();
    const RopeArgs& rope = a.rope;
    const int64_t r = first + gk::block();
    const int dim = int(rope.head_dim), half = dim / 2, heads = int(rope.heads), kv_heads = int(a.write.pages.kv_heads);
    const int h = int(gk::block_y()) * (gk::threads() / 32) + gk::thread() / 32;
    if (h >= heads + kv_heads) return;
    const bool turns = h < heads, key = turns && h >= first_key && h < first_key + kv_heads;
    float* x = rope.x + r * rope.x_stride + h * dim;
    const float* value = a.write.v + r * a.write.kv_stride + (h - heads) * dim;
    PageSlot at{};
    if (key || !turns) at = slot_of(a.write.pages, r);
    Two pairs[most_pairs], turn[most_pairs];
    load_pairs(turns ? x : value, half, pairs);
    if (turns) {
        load_pairs(rope.table + r * dim, half, turn);
        turn_pairs(turn, pairs);
        store_pairs(x, half, pairs);
    }
    if (key || !turns) write_pairs(a.write.pages, at, key ? h - first_key : h - heads, key, pairs);
}
