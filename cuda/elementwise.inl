// Ops whose elements do not look at one another. A thread has four of them, which lie beside each other: of a row, whose pieces of
// four a thread are the grid's other side, or of all elements.

constexpr int row_threads = 256;
constexpr int64_t elements_a_block = 4 * row_threads;

// Four elements, read or written at once where they lie so.
template <class T>
struct alignas(4 * sizeof(T)) FourOf {
    T x[4];
};
using Four = FourOf<float>;
DEVICE const Four& four_at(const float* p) { return *reinterpret_cast<const Four*>(p); }
DEVICE Four& four_at(float* p) { return *reinterpret_cast<Four*>(p); }
template <class T>
DEVICE bool is_four(const T* p, int count) { return count == 4 && reinterpret_cast<uintptr_t>(p) % sizeof(FourOf<T>) == 0; }

// The first `count` of four; zeros for the others.
template <class T>
DEVICE Four load_four(const T* p, int count) {
    Four four{};
    if (is_four(p, count)) {
        const FourOf<T> stored = *reinterpret_cast<const FourOf<T>*>(p);
        GK_UNROLL
        for (int i = 0; i < 4; i++) four.x[i] = widen(stored.x[i]);
        return four;
    }
    GK_UNROLL
    for (int i = 0; i < 4; i++) four.x[i] = i < count ? widen(p[i]) : 0.0f;
    return four;
}
DEVICE void store_words(const FourOf<float>& x, float* p) { gk::store_16(p, to_bits(x.x[0]), to_bits(x.x[1]), to_bits(x.x[2]), to_bits(x.x[3])); }
template <class T>
DEVICE void store_words(const FourOf<T>& x, T* p) {
    gk::store_8(p, x.x[0].bits | uint32_t(x.x[1].bits) << 16, x.x[2].bits | uint32_t(x.x[3].bits) << 16);
}
template <class T>
DEVICE void store_four(T* p, int count, const Four& four) {
    FourOf<T> stored;
    GK_UNROLL
    for (int i = 0; i < 4; i++) narrow(four.x[i], stored.x[i]);
    if (is_four(p, count)) return store_words(stored, p);
    GK_UNROLL
    for (int i = 0; i < 4; i++)
        if (i < count) p[i] = stored.x[i];
}

// body(i, how many of four) for this thread's elements of [first, last).
template <class Body>
DEVICE void each_element(int64_t first, int64_t last, Body body) {
    const int64_t i = first + (gk::block() * row_threads + gk::thread()) * 4;
    if (i < last) body(i, last - i < 4 ? int(last - i) : 4);
}
// The same for its columns of a row. Grid: rows x pieces of elements_a_block columns.
template <class Body>
DEVICE void each_four(int64_t columns, Body body) {
    const int64_t i = (gk::block_y() * row_threads + gk::thread()) * 4;
    if (i < columns) body(i, columns - i < 4 ? int(columns - i) : 4);
}
// body(of four) -> what each of four numbers becomes.
template <class Body>
DEVICE Four of_four(Body body) {
    Four four;
    GK_UNROLL
    for (int j = 0; j < 4; j++) four.x[j] = body(j);
    return four;
}

// body(i) for the columns of a row that one block has.
template <class Body>
DEVICE void each_column(int64_t columns, Body body) {
    for (int64_t i = gk::thread(); i < columns; i += gk::threads()) body(i);
}

GK_KERNEL void convert_kernel(ConvertArgs a, int64_t first, int64_t last) {
    gk::let_next_start(), gk::wait_for_previous();
    with_type(a.in_dtype, [&](auto in_type) {
        with_type(a.out_dtype, [&](auto out_type) {
            auto* in = static_cast<const typename decltype(in_type)::type*>(a.in);
            auto* out = static_cast<typename decltype(out_type)::type*>(a.out);
            each_element(first, last, [&](int64_t i, int count) { store_four(out + i, count, load_four(in + i, count)); });
        });
    });
}

GK_KERNEL void embedding_kernel(EmbeddingArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block();
    with_type(a.dtype, [&](auto type) {
        auto* row = static_cast<const typename decltype(type)::type*>(a.table) + a.ids[r] * a.dim;
        each_four(a.dim, [&](int64_t i, int count) { store_four(a.out + r * a.dim + i, count, load_four(row + i, count)); });
    });
}

GK_KERNEL void round_rows_kernel(RoundRowsArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block(), depth = round_up(a.k, 32);
    each_column(depth, [&](int64_t k) {
        bf16 x{0};
        if (k < a.k) narrow(a.x[r * a.x_stride + k], x);
        a.out[r * depth + k] = x.bits;
    });
}

GK_KERNEL void tile_rows_kernel(TileRowsArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t tile = first + gk::block(), columns = tile_columns(a.rows), depth = round_up(a.k, 32);
    each_column(depth * columns, [&](int64_t at) {
        const int64_t k = at / columns, i = at % columns, m = tile * 16 + i;
        bf16 x{0};
        if (m < a.rows && k < a.k) narrow(a.x[m * a.x_stride + k], x);
        a.tiles[((tile * depth + k - k % 2) * columns + i * 2) + k % 2] = x.bits;
    });
}

GK_KERNEL void activation_kernel(ActivationArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block();
    with_kind(a.kind, [&](auto kind) {
        each_four(a.dim, [&](int64_t i, int count) {
            const Four x = load_four(a.x + r * a.x_stride + i, count);
            store_four(a.out + r * a.dim + i, count, of_four([&](int j) { return activate<decltype(kind)::value>(x.x[j]); }));
        });
    });
}

GK_KERNEL void gated_kernel(GatedArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    if (a.region && gk::block() >= a.region->rows) return;
    const int64_t r = first + gk::block() + (a.region ? a.region->first : 0);
    const float* x = a.x + r * a.x_stride;
    with_kind(a.kind, [&](auto kind) {
        each_four(a.dim, [&](int64_t i, int count) {
            const Four gates = load_four(x + i, count), ups = load_four(x + a.dim + i, count);
            store_four(a.out + r * a.dim + i, count, of_four([&](int j) { return gate<decltype(kind)::value>(gates.x[j], ups.x[j]); }));
        });
    });
}

GK_KERNEL void add_kernel(AddArgs a, int64_t first, int64_t last) {
    gk::let_next_start(), gk::wait_for_previous();
    each_element(first, last, [&](int64_t i, int count) {
        const Four x = load_four(a.a + i, count), y = load_four(a.b + i, count);
        store_four(a.out + i, count, of_four([&](int j) { return x.x[j] + a.scale * y.x[j]; }));
    });
}

GK_KERNEL void scale_kernel(ScaleArgs a, int64_t first, int64_t last) {
    gk::let_next_start(), gk::wait_for_previous();
    each_element(first, last, [&](int64_t i, int count) {
        const Four x = load_four(a.x + i, count);
        store_four(a.out + i, count, of_four([&](int j) {
            const float y = x.x[j] * a.factor;
            return a.softcap > 0 ? a.softcap * tanh(y / a.softcap) : y;
        }));
    });
}

GK_KERNEL void gather_columns_kernel(GatherColumnsArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block();
    each_four(a.columns, [&](int64_t i, int count) {
        store_four(a.out + r * a.columns + i, count, of_four([&](int j) {
            const int64_t from = j < count ? a.index[i + j] : -1;
            return from < 0 ? 0.0f : from < a.x_columns ? a.x[r * a.x_stride + from] : a.y[r * a.y_stride + from - a.x_columns];
        }));
    });
}

GK_KERNEL void gather_rows_kernel(GatherRowsArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t p = first + gk::block();
    if (a.sources[p] < 0) return;
    const float* x = a.x + a.sources[p] * a.x_stride;
    each_four(a.dim, [&](int64_t i, int count) { store_four(a.out + p * a.dim + i, count, load_four(x + i, count)); });
}

GK_KERNEL void combine_kernel(CombineArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block();
    each_four(a.dim, [&](int64_t i, int count) {
        Four sum{};
        if (a.residual) sum = load_four(a.residual + r * a.dim + i, count);
        for (int64_t j = 0; j < a.k; j++) {
            const int64_t place = a.place_of ? a.place_of[r * a.k + j] : r;
            const float weight = a.weights[r * a.k + j];
            const Four y = load_four(a.y + place * a.dim + i, count);
            sum = of_four([&](int c) { return sum.x[c] + weight * y.x[c]; });
        }
        store_four(a.out + r * a.dim + i, count, sum);
    });
}

GK_KERNEL void bias_kernel(BiasArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    float* logits = a.logits + (first + gk::block()) * a.dim;
    each_column(a.count, [&](int64_t i) { logits[a.ids[i]] += a.values[i]; });
}

// Grid: pairs x heads.
GK_KERNEL void copy_pages_kernel(CopyPagesArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t pair = first + gk::block();
    char* head = a.pages + gk::block_y() * a.pages_each * a.page_bytes;
    const char* from = head + a.from[pair] * a.page_bytes;
    char* to = head + a.to[pair] * a.page_bytes;
    const bool wide = (a.page_bytes | int64_t(reinterpret_cast<uintptr_t>(a.pages))) % int64_t(sizeof(Four)) == 0;
    each_column(wide ? a.page_bytes / int64_t(sizeof(Four)) : 0, [&](int64_t i) {
        reinterpret_cast<Four*>(to)[i] = reinterpret_cast<const Four*>(from)[i];
    });
    each_column(wide ? 0 : a.page_bytes, [&](int64_t i) { to[i] = from[i]; });
}
