// What products with packed weights of several tiers share, over the vocabulary of vec_*.h.

// A number the compiler knows.
template <int64_t n>
struct Count {
    constexpr int64_t operator()() const { return n; }
};

// The end of a product: bias, activation, residual. sums: a row's 32 of a panel.
inline __attribute__((noinline)) void write_row(const PackedLinearArgs& a, int64_t panel, int64_t m, const float* sums) {
    const int64_t outputs = a.gated ? a.n / 2 : a.n, width = a.gated ? 16 : panel_outputs, i = panel * width;
    float* out = a.out + m * a.out_stride + i;
    each(0, outputs - i < width ? outputs - i : width, [&](int64_t j, auto count) {
        vec value = load(sums + j, count);
        if (a.bias) value = value + load(a.bias + i + j, count);
        if (a.gated) {
            vec up = load(sums + 16 + j, count);
            if (a.bias) up = up + load(a.bias + outputs + i + j, count);
            value = with_kind(a.kind, [&](auto kind) __attribute__((always_inline)) { return gate<kind.value>(value, up); });
        }
        if (a.residual) value = value + load(a.residual + m * a.out_stride + i + j, count);
        store(out + j, value, count);
    });
}
