// What kernels of every vector tier share, over the vocabulary of vec_*.h: loads by storage type, loops with a masked tail.

// ---- loads by storage type -----------------------------------------------------------------------------------

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

INLINE vec load(const f16* p) { return widen_f16(load_u16(&p->bits)); }
INLINE vec load(const bf16* p) { return widen_bf16(load_u16(&p->bits)); }
INLINE vec load(const f16* p, int64_t count) { return widen_f16(load_u16(&p->bits, count)); }
INLINE vec load(const bf16* p, int64_t count) { return widen_bf16(load_u16(&p->bits, count)); }
INLINE void store(f16* p, vec x) { store_u16(&p->bits, narrow_f16(x)); }
INLINE void store(bf16* p, vec x) { store_u16(&p->bits, narrow_bf16(x)); }
INLINE void store(f16* p, vec x, int64_t count) { store_u16(&p->bits, narrow_f16(x), count); }
INLINE void store(bf16* p, vec x, int64_t count) { store_u16(&p->bits, narrow_bf16(x), count); }

// Stands for a count of `lanes`, so that one loop body serves whole vectors and the tail.
struct Whole {};
template <class T>
INLINE vec load(const T* p, Whole) {
    return load(p);
}
template <class T>
INLINE void store(T* p, vec x, Whole) {
    store(p, x);
}
INLINE vec keep(vec x, Whole, vec) { return x; }
INLINE vec keep(vec x, int64_t count, vec other) { return select(less(iota(), set1(float(count))), x, other); }

// body(i, count) for each vector of [begin, end).
template <class Body>
INLINE void each(int64_t begin, int64_t end, Body body) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) body(i, Whole());
    if (i < end) body(i, end - i);
}

template <class T>
struct Type {
    using type = T;
};

// Calls f with the storage type that dtype names.
template <class F>
INLINE void with_type(DType dtype, F f) {
    switch (dtype) {
        case DType::f16: return f(Type<f16>());
        case DType::bf16: return f(Type<bf16>());
        default: return f(Type<float>());
    }
}
