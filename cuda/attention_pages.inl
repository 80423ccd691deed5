// Pages of f16, bf16 and i8 as attention by tensor cores takes them: operands of products, and where a lane finds its own.

// Pages by their type. Of i8 the codes of K become operands of f16 and those of V of bf16, exactly; keys' scales multiply scores, values'
// scales the weights, which are bf16 then: a scale may be as large or small as a float.
template <DType type>
struct Stored {
    static constexpr bool coded = type == DType::i8, half_keys = type != DType::bf16, half_values = type == DType::f16;
    using Element = std::conditional_t<coded, i8, std::conditional_t<half_values, f16, bf16>>;
    using One = std::conditional_t<coded, uint8_t, uint16_t>;  // the bits of an element, and of two
    using Two = std::conditional_t<coded, uint16_t, uint32_t>;
};
// What is in memory, 16 bytes of 16-bit elements or 8 of codes, as operands.
template <bool coded, bool half>
DEVICE gk::Words4 stored_words(const void* p) {
    gk::Words4 w;
    if constexpr (coded) {
        uint32_t x[2];
        memcpy(x, __builtin_assume_aligned(p, 8), 8);
        GK_UNROLL
        for (int i = 0; i < 2; i++) {
            if constexpr (half) gk::widen_i8_f16(x[i], w.x[2 * i], w.x[2 * i + 1]);
            else gk::widen_i8_bf16(x[i], w.x[2 * i], w.x[2 * i + 1]);
        }
    } else {
        memcpy(&w, __builtin_assume_aligned(p, 16), 16);
    }
    return w;
}
template <bool half>
DEVICE void stored_product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (half) gk::mma_f16(d, a, b);
    else gk::mma_bf16(d, a, b);
}

// Where a lane's words of keys `key` .. begin, in elements.
template <int dim>
DEVICE int64_t page_at(const AttentionArgs& a, int kv, int number) { return int64_t(kv * int(a.pages.pages) + number) * (page_keys * dim); }
// From load to load of K it is 128, of V 2 dim a pair of keys, 64 a block of 32 channels.
static constexpr int lane_key(int g, int t, int half, int dim) { return ((2 * half + g / 4) * dim / 2 + t) * 32 + g % 4 * 8; }
static constexpr int lane_value(int g, int t, int half, int dim) { return (16 * half + 4 * t) * 2 * dim + 8 * g; }

// Codes: what a lane copies begins here, of K as it lies in the page, of V the four key pairs that the lanes t of one product want beside one
// another. Then as above, but from load to load.
static constexpr int coded_key(int lane, int half, int dim) { return 2 * half * 16 * dim + 16 * lane; }
static constexpr int coded_value(int lane, int half, int dim) {
    return (16 * half + lane / 2 % 4 * 4 + lane / 16) * 2 * dim + (lane / 8 % 2 * 2 + lane % 2) * 16;
}
static constexpr int coded_key_load(int e, int part, int part_dim, int dim) {
    return e * 32 / part_dim * 16 * dim + (part * part_dim + e * 32 % part_dim) * 16;
}
static constexpr int coded_value_load(int e, int part, int part_dim, int dim) { return part * 2 * part_dim + e / 2 * 64 + e % 2 * 4 * dim; }
// Where in shared memory the eight bytes are that lane (g, t) takes: keys 4 g .. of pair 4 e + t of a part; channels 4 g .. of 32 of keys
// 8 t + 2 j and the next one. Lanes 0 .. 15 meet no other's bank, and the others none.
static constexpr int part_key(int g, int t, int e, int part_dim) { return g / 4 * 16 * part_dim + 128 * e + 32 * t + g % 4 * 8; }
static constexpr int part_value(int g, int t, int j, int block) { return 1024 * block + 256 * j + g / 4 * 128 + 32 * t + g % 4 * 8; }
DEVICE int64_t scales_at(const AttentionArgs& a, int kv, int number) { return int64_t(kv * int(a.pages.pages) + number) * page_keys; }
