// How numbers lie in memory, in plain arithmetic: storage types, and pages of keys and values. For the reference and CUDA;
// HOST_DEVICE is nvcc's word for functions that run there as well.
#ifndef HOST_DEVICE
#define HOST_DEVICE
#endif

HOST_DEVICE float from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

HOST_DEVICE uint32_t to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

HOST_DEVICE bool is_nan_or_inf(float x) { return (to_bits(x) & 0x7f800000u) == 0x7f800000u; }

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

HOST_DEVICE float widen(float x) { return x; }

HOST_DEVICE float widen(bf16 x) { return from_bits(uint32_t(x.bits) << 16); }

// Integer arithmetic and one exact subtraction, so it holds for denormals even where the processor flushes them.
HOST_DEVICE float widen(f16 x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
    const uint32_t exponent = x.bits & 0x7c00u;
    const uint32_t shifted = uint32_t(x.bits & 0x7fffu) << 13;
    const float denormal = from_bits(shifted + (113u << 23)) - from_bits(113u << 23);
    const uint32_t normal = shifted + ((exponent == 0x7c00u ? 224u : 112u) << 23);
    return from_bits(sign | (exponent == 0 ? to_bits(denormal) : normal));
}

HOST_DEVICE void narrow(float x, float& out) { out = x; }

HOST_DEVICE void narrow(float x, bf16& out) {
    const uint32_t bits = to_bits(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out.bits = uint16_t((nan ? bits | 0x00400000u : bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

HOST_DEVICE void narrow(float x, f16& out) {
    const uint32_t bits = to_bits(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // quiet NaN
    } else if (magnitude >= 0x477ff000u) {
        half = 0x7c00u;  // 65520 and above round to infinity
    } else if (magnitude < 0x38800000u) {
        // Below 2^-14: adding 0.5 leaves the rounded count of 2^-24 in the low bits.
        half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    } else {
        half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    }
    out.bits = uint16_t(sign | half);
}

template <class T>
struct Type {
    using type = T;
};

// Calls f with the storage type that dtype names.
template <class F>
HOST_DEVICE void with_type(DType dtype, F f) {
    switch (dtype) {
        case DType::f16: return f(Type<f16>());
        case DType::bf16: return f(Type<bf16>());
        default: return f(Type<float>());
    }
}

// ---- pages (KvPages) ------------------------------------------------------------------------------------------

struct i8 {
    int8_t code;
};

HOST_DEVICE float widen(i8 x) { return float(x.code); }

template <class F>
HOST_DEVICE void with_page_type(DType dtype, F f) {
    if (dtype == DType::i8) return f(Type<i8>());
    with_type(dtype, f);
}

// Where channel i of the key, or value, in `slot` lies in its head's part of a page (KvPages).
HOST_DEVICE int64_t key_at(bool pairs, int64_t slot, int64_t i, int64_t dim) {
    const int64_t tile = slot / tile_keys * dim * tile_keys;
    if (!pairs || i == dim - dim % 2) return tile + i * tile_keys + slot % tile_keys;
    return tile + i / 2 * 2 * tile_keys + slot % tile_keys * 2 + i % 2;
}
HOST_DEVICE int64_t value_at(bool pairs, int64_t slot, int64_t i, int64_t dim) {
    return pairs ? slot / 2 * 2 * dim + i * 2 + slot % 2 : slot * dim + i;
}
