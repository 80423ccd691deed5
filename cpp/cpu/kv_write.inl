// Storing keys and values in pages of any type (KvPages in kernels.h has the layout).

// One key or value [dim] in its storage type, in order.
template <class T>
INLINE void narrow_row(const float* x, int64_t dim, float, T* out) {
    each(0, dim, [&](int64_t i, auto count) { store(out + i, load(x + i, count), count); });
}
INLINE void narrow_row(const float* x, int64_t dim, float scale, i8* out) {
    for (int64_t i = 0; i < dim; i += lanes) {
        const int64_t count = dim - i < lanes ? dim - i : lanes;
        float code[lanes] = {};
        // A denormal scale may be rounded far down, so codes are held below 127.
        if (scale > 0) store(code, max(set1(-127.0f), min(set1(127.0f), round(load(x + i, count) / set1(scale)))));
        for (int64_t j = 0; j < count; j++) out[i + j].code = int8_t(code[j]);
    }
}

// max |x| / 127, or NaN.
INLINE float row_scale(const float* x, int64_t dim) {
    vec largest = zero();
    uint32_t finite = ~0u;
    each(0, dim, [&](int64_t i, auto count) {
        const vec size = abs(load(x + i, count));
        finite &= bits(less(size, set1(infinity)));
        largest = max(size, largest);
    });
    return finite == ~0u >> (32 - lanes) || dim == 0 ? reduce_max(largest) / 127.0f : __builtin_nanf("");
}

INLINE void write_row(const float* k, const float* v, int64_t slot, int64_t dim, float, float, float* k_out, float* v_out) {
    k_out += slot / tile_keys * dim * tile_keys + slot % tile_keys;
    for (int64_t i = 0; i < dim; i++) k_out[i * tile_keys] = k[i];
    each(0, dim, [&](int64_t i, auto count) { store(v_out + slot * dim + i, load(v + i, count), count); });
}

template <class T>
INLINE void write_row(const float* k, const float* v, int64_t slot, int64_t dim, float k_scale, float v_scale, T* k_out,
                      T* v_out) {
    struct Two {
        T first, second;
    };
    T row[largest_dim];
    narrow_row(k, dim, k_scale, row);
    k_out += slot / tile_keys * dim * tile_keys;
    for (int64_t i = 0; i + 2 <= dim; i += 2) {
        __builtin_memcpy(k_out + i * tile_keys + slot % tile_keys * 2, row + i, sizeof(Two));
    }
    if (dim % 2) k_out[(dim - 1) * tile_keys + slot % tile_keys] = row[dim - 1];
    narrow_row(v, dim, v_scale, row);
    v_out += slot / 2 * 2 * dim + slot % 2;  // the other of the pair may be another thread's: elements are stored singly
    for (int64_t i = 0; i < dim; i++) v_out[i * 2] = row[i];
}

void kv_write(const KvWriteArgs& a, int64_t begin, int64_t end) {
    const KvPages& p = a.pages;
    const int64_t dim = p.head_dim;
    with_page_type(p.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        for (int64_t r = begin; r < end; r++) {
            const int64_t page = p.page_table[p.sequences[r] * p.max_pages + p.positions[r] / page_keys];
            const int64_t slot = p.positions[r] % page_keys;
            for (int64_t h = 0; h < p.kv_heads; h++) {
                const int64_t at = (h * p.pages + page) * page_keys;
                const float* k = a.k + r * a.kv_stride + h * dim;
                const float* v = a.v + r * a.kv_stride + h * dim;
                float k_scale = 1.0f, v_scale = 1.0f;
                if (p.dtype == DType::i8) {
                    k_scale = p.k_scales[at + slot] = row_scale(k, dim);
                    v_scale = p.v_scales[at + slot] = row_scale(v, dim);
                }
                write_row(k, v, slot, dim, k_scale, v_scale, static_cast<T*>(p.k) + at * dim, static_cast<T*>(p.v) + at * dim);
            }
        }
    });
}

void rope_kv_write(const RopeKvWriteArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {  // a row's keys are still in the cache
        rope(a.rope, r, r + 1);
        kv_write(a.write, r, r + 1);
    }
}
