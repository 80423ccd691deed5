// Blocks of GGUF files to codes, rows or panels of them: see ops.h. What a block's bytes mean, by type (d, m: f16 scale and
// minimum of a block; of two nibbles in a byte the low one belongs to the earlier weight):
//   Q4_0    18 bytes of 32 weights  d, q[16]: weight j is in the low nibble of q[j], for j >= 16 in the high one of q[j - 16]
//   Q4_1    20   d, m, q[16] as Q4_0's
//   Q5_0    22   d, h u32, q[16]: fifth bit of weight j is bit j of h;   Q5_1  24  d, m, h, q
//   Q8_0    34   d, i8[32]
//   IQ4_NL  18   as Q4_0, nibbles stand for the numbers in `nonlinear`
//   MXFP4   17   e, q[16]: scale 2^(e - 128), nibbles stand for the numbers in `fp4` (twice E2M1's)
//   Q2_K    84 bytes of 256  s[16], q[64], d, m: per 16 weights scale (low nibble of s) and minimum (high)
//   Q3_K   110   h[32], q[64], s[12], d: third bits in h; per 16 a scale of 6 bits, less 32
//   Q4_K   144   d, m, s[12], q[128]: per 32 a scale and a minimum of 6 bits each
//   Q5_K   176   d, m, s[12], h[32], q[128]: Q4_K with a fifth bit
//   Q6_K   210   q[128], h[64], i8 s[16], d
//   IQ4_XS 136   d, h u16, s[4], q[128]: per 32 a scale of 6 bits, less 32; nibbles as IQ4_NL's
#include <cstring>

#include "ops_check.h"

namespace genkit {
namespace {

constexpr int64_t rows_a_piece = 1 << 18;  // codes
constexpr int64_t pieces_a_thread = 8;

constexpr int8_t nonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Where the codes of a block go, as in WeightCodes.
struct Target {
    uint8_t* codes;
    uint16_t* scale;
    uint16_t* zero;
    int8_t* subscales;
    uint8_t* minima;
};

uint16_t word(const uint8_t* p) { return uint16_t(p[0] | p[1] << 8); }

void split_nibbles(const uint8_t* q, int64_t bytes, uint8_t* out) {
    for (int64_t j = 0; j < bytes; j++) out[j] = q[j] & 15;
    for (int64_t j = 0; j < bytes; j++) out[bytes + j] = q[j] >> 4;
}

// Eight bytes side by side: of each, bits from `shift` on that `mask` has.
uint64_t bits(const uint8_t* p, int shift, uint64_t mask) {
    uint64_t x;
    std::memcpy(&x, p, 8);
    return x >> shift & mask * 0x0101010101010101;
}

void put(uint8_t* p, uint64_t x) { std::memcpy(p, &x, 8); }

void look_up(const int8_t* values, const uint8_t* q, uint8_t* out) {
    for (int j = 0; j < 16; j++) out[j] = uint8_t(values[q[j] & 15]);
    for (int j = 0; j < 16; j++) out[16 + j] = uint8_t(values[q[j] >> 4]);
}

void q4_0(const uint8_t* b, const Target& t) {
    *t.scale = word(b);
    split_nibbles(b + 2, 16, t.codes);
}

void q4_1(const uint8_t* b, const Target& t) {
    *t.scale = word(b);
    *t.zero = word(b + 2);
    split_nibbles(b + 4, 16, t.codes);
}

void five_bits(const uint8_t* high, const uint8_t* q, int offset, uint8_t* out) {
    constexpr uint8_t bit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    split_nibbles(q, 16, out);
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 8; j++) out[8 * i + j] = uint8_t(out[8 * i + j] + (high[i] & bit[j] ? 16 : 0) - offset);
    }
}

void q5_0(const uint8_t* b, const Target& t) {
    *t.scale = word(b);
    five_bits(b + 2, b + 6, 16, t.codes);
}

void q5_1(const uint8_t* b, const Target& t) {
    *t.scale = word(b);
    *t.zero = word(b + 2);
    five_bits(b + 4, b + 8, 0, t.codes);
}

void q8_0(const uint8_t* b, const Target& t) {
    *t.scale = word(b);
    std::memcpy(t.codes, b + 2, 32);
}

void iq4_nl(const uint8_t* b, const Target& t) {
    *t.scale = word(b);
    look_up(nonlinear, b + 2, t.codes);
}

void mxfp4(const uint8_t* b, const Target& t) {
    *t.scale = uint16_t(b[0] < 2 ? 0x20 << b[0] : (b[0] - 1) << 7);  // bf16; the two smallest are subnormal
    look_up(fp4, b + 1, t.codes);
}

void q2_k(const uint8_t* b, const Target& t) {
    for (int i = 0; i < 16; i++) t.subscales[i] = int8_t(b[i] & 15);
    for (int i = 0; i < 16; i++) t.minima[i] = b[i] >> 4;
    for (int run = 0; run < 8; run++) {  // of 32 weights
        const uint8_t* q = b + 16 + run / 4 * 32;
        for (int j = 0; j < 32; j += 8) put(t.codes + 32 * run + j, bits(q + j, 2 * (run % 4), 3));
    }
    *t.scale = word(b + 80);
    *t.zero = word(b + 82);
}

void q3_k(const uint8_t* b, const Target& t) {
    const uint8_t* s = b + 96;
    for (int i = 0; i < 16; i++) {
        const int low = s[i % 8] >> i / 8 * 4 & 15, high = s[8 + i % 4] >> 2 * (i / 4) & 3;
        t.subscales[i] = int8_t((low | high << 4) - 32);
    }
    for (int run = 0; run < 8; run++) {
        const uint8_t* q = b + 32 + run / 4 * 32;
        for (int j = 0; j < 32; j += 8) {  // 4 .. 11, which stand for -4 .. 3
            put(t.codes + 32 * run + j, bits(q + j, 2 * (run % 4), 3) + (bits(b + j, run, 1) << 2) + 0x0404040404040404);
        }
    }
    *t.scale = word(b + 108);
}

void six_bits(const uint8_t* s, int8_t* scales, uint8_t* minima) {
    for (int i = 0; i < 4; i++) {
        scales[i] = int8_t(s[i] & 63);
        minima[i] = s[4 + i] & 63;
        scales[4 + i] = int8_t((s[8 + i] & 15) | s[i] >> 6 << 4);
        minima[4 + i] = uint8_t(s[8 + i] >> 4 | s[4 + i] >> 6 << 4);
    }
}

void q4_k(const uint8_t* b, const Target& t) {
    *t.scale = word(b);
    *t.zero = word(b + 2);
    six_bits(b + 4, t.subscales, t.minima);
    for (int i = 0; i < 4; i++) split_nibbles(b + 16 + 32 * i, 32, t.codes + 64 * i);
}

void q5_k(const uint8_t* b, const Target& t) {
    *t.scale = word(b);
    *t.zero = word(b + 2);
    six_bits(b + 4, t.subscales, t.minima);
    for (int run = 0; run < 8; run++) {
        const uint8_t* q = b + 48 + run / 2 * 32;
        for (int j = 0; j < 32; j += 8) {
            put(t.codes + 32 * run + j, bits(q + j, run % 2 * 4, 15) | bits(b + 16 + j, run, 1) << 4);
        }
    }
}

void q6_k(const uint8_t* b, const Target& t) {
    for (int half = 0; half < 2; half++) {
        const uint8_t *low = b + 64 * half, *high = b + 128 + 32 * half;
        for (int run = 0; run < 4; run++) {
            uint8_t* out = t.codes + 128 * half + 32 * run;
            const uint8_t* q = low + 32 * (run % 2);
            for (int j = 0; j < 32; j += 8) {  // less 32: the sixth bit turned, and up to the sign
                const uint64_t x = bits(q + j, run / 2 * 4, 15) | (bits(high + j, 2 * run, 3) << 4 ^ 0x2020202020202020);
                const uint64_t sign = x & 0x2020202020202020;
                put(out + j, x | sign << 1 | sign << 2);
            }
        }
    }
    std::memcpy(t.subscales, b + 192, 16);
    *t.scale = word(b + 208);
}

void iq4_xs(const uint8_t* b, const Target& t) {
    *t.scale = word(b);
    for (int i = 0; i < 8; i++) {
        t.subscales[i] = int8_t(((b[4 + i / 2] >> i % 2 * 4 & 15) | (word(b + 2) >> 2 * i & 3) << 4) - 32);
        look_up(nonlinear, b + 8 + 16 * i, t.codes + 32 * i);
    }
}

struct BlockType {
    const char* name;
    void (*unpack)(const uint8_t* block, const Target& target);
    int64_t weights, nbytes;
    WeightFormat format;

    bool real_zero() const { return format.zero == Zero::real; }
};

constexpr WeightFormat plain(Packing packing, Zero zero = Zero::none, DType scales = DType::f16) {
    return {packing, 32, zero, scales};
}
constexpr WeightFormat nested(Packing packing, int64_t group, Zero zero = Zero::none) {
    return {packing, group, zero, DType::f16};
}

constexpr BlockType block_types[] = {
    {"Q4_0", q4_0, 32, 18, plain(Packing::int4)},
    {"Q4_1", q4_1, 32, 20, plain(Packing::int4, Zero::real)},
    {"Q5_0", q5_0, 32, 22, plain(Packing::int8)},
    {"Q5_1", q5_1, 32, 24, plain(Packing::int8, Zero::real)},
    {"Q8_0", q8_0, 32, 34, plain(Packing::int8)},
    {"IQ4_NL", iq4_nl, 32, 18, plain(Packing::int8)},
    {"MXFP4", mxfp4, 32, 17, plain(Packing::int8, Zero::none, DType::bf16)},
    {"Q2_K", q2_k, 256, 84, nested(Packing::int4_k, 16, Zero::real)},
    {"Q3_K", q3_k, 256, 110, nested(Packing::int4_k, 16)},
    {"Q4_K", q4_k, 256, 144, nested(Packing::int4_k, 32, Zero::real)},
    {"Q5_K", q5_k, 256, 176, nested(Packing::int8_k, 32, Zero::real)},
    {"Q6_K", q6_k, 256, 210, nested(Packing::int8_k, 16)},
    {"IQ4_XS", iq4_xs, 256, 136, nested(Packing::int8_k, 32)},
};

const BlockType& block_type(const char* op, const std::string& name) {
    for (const BlockType& type : block_types) {
        if (name == type.name) return type;
    }
    fail(op, "type '" + name + "' is not known");
}

// Weights of a row; checks that blocks are rows of whole blocks.
int64_t check_blocks(const char* op, const Tensor& blocks, const BlockType& type) {
    check_dtype(op, "blocks", blocks, {DType::u8});
    check_shape(op, "blocks", blocks, {-1, -1});
    check_contiguous(op, "blocks", blocks);
    if (blocks.dim(0) < 1 || blocks.dim(1) < 1 || blocks.dim(1) % type.nbytes != 0)
        fail(op, "blocks " + blocks.shape_text() + " are no rows of blocks of " + std::to_string(type.nbytes) + " bytes");
    return blocks.dim(1) / type.nbytes * type.weights;
}

// Rows of k weights in codes that follow one another, as WeightCodes.
struct Rows {
    Rows(const BlockType& type, int64_t k, int64_t n)
        : depth(round_up(k, tile_depth)), groups((depth + type.weights - 1) / type.weights),
          subs(of_k(type.format.packing) ? depth / type.format.group : 0),
          codes({n, depth}, eight_bits(type.format.packing) ? DType::i8 : DType::u8),
          scales({n, groups}, type.format.scale_dtype) {
        if (subs > 0) subscales = Tensor({n, subs}, DType::i8);
        if (type.real_zero()) zeros = Tensor({n, groups}, type.format.scale_dtype);
        if (type.real_zero() && subs > 0) minima = Tensor({n, subs}, DType::u8);
    }
    WeightCodes at(int64_t row) const {
        auto part = [row](const OptionalTensor& t) {
            return t ? t->data<uint8_t>() + row * t->dim(1) * dtype_size(t->dtype()) : nullptr;
        };
        return {codes.data<uint8_t>() + row * depth, scales.data<uint16_t>() + row * groups, part(subscales), part(minima),
                part(zeros)};
    }
    int64_t depth, groups, subs;
    Tensor codes, scales;
    OptionalTensor subscales, minima, zeros;
};

// Rows of blocks that follow one another, into rows from `out` on.
void unpack_rows(const BlockType& type, const uint8_t* blocks, int64_t count, int64_t k, const Rows& sizes,
                 const WeightCodes& out) {
    const int64_t whole = k / type.weights;
    uint16_t* const zeros = static_cast<uint16_t*>(out.zeros);
    uint16_t unused = 0;
    for (int64_t row = 0; row < count; row++) {
        uint8_t* codes = out.codes + row * sizes.depth;
        for (int64_t i = 0; i < whole; i++) {
            const int64_t sub = row * sizes.subs + i * (type.weights / type.format.group), scale = row * sizes.groups + i;
            type.unpack(blocks + (row * whole + i) * type.nbytes,
                        {codes + i * type.weights, out.scales + scale, zeros ? zeros + scale : &unused,
                         out.subscales ? reinterpret_cast<int8_t*>(out.subscales) + sub : nullptr,
                         out.minima ? out.minima + sub : nullptr});
        }
        std::memset(codes + k, 0, size_t(sizes.depth - k));
        for (int64_t i = whole; i < sizes.groups; i++) {
            out.scales[row * sizes.groups + i] = 0;
            if (zeros) zeros[row * sizes.groups + i] = 0;
        }
    }
}

template <class Job>
void in_parallel(int64_t units, int64_t grain, const Job& job) {
    parallel_for(units, grain, [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const Job*>(context))(begin, end);
    }, &job);
}

}  // namespace

RoundedWeight unpack_blocks(const Tensor& blocks, const std::string& name) {
    const char* op = "unpack_blocks";
    const BlockType& type = block_type(op, name);
    const int64_t k = check_blocks(op, blocks, type), n = blocks.dim(0);
    Rows out(type, k, n);
    in_parallel(n, grain_for(rows_a_piece, k), [&](int64_t begin, int64_t end) {
        unpack_rows(type, blocks.data<uint8_t>() + begin * blocks.dim(1), end - begin, k, out, out.at(begin));
    });
    return {out.codes, out.scales, out.subscales, out.minima, out.zeros};
}

// A panel at a time, so that its codes go from one kernel to the next through the cache of one core. The rows of a gated panel
// are two runs.
PackedWeight pack_blocks(const Tensor& blocks, const std::string& name, bool gated) {
    const char* op = "pack_blocks";
    const BlockType& type = block_type(op, name);
    const int64_t k = check_blocks(op, blocks, type), n = blocks.dim(0);
    PackedWeight packed = empty_packed(op, n, k, type.format, gated);
    const int64_t panels = packed.panels.dim(0), run = gated ? panel_outputs / 2 : panel_outputs, half = gated ? n / 2 : n;
    const int64_t grain = (panels + pieces_a_thread * get_threads() - 1) / (pieces_a_thread * get_threads());
    const Rows codes(type, k, (panels + grain - 1) / grain * panel_outputs);
    in_parallel(panels, grain, [&](int64_t begin, int64_t end) {
        const int64_t first = begin / grain * panel_outputs;
        for (int64_t panel = begin; panel < end; panel++) {
            const int64_t rows = std::min(run, half - panel * run);
            for (int64_t part = 0; part < (gated ? 2 : 1); part++) {
                unpack_rows(type, blocks.data<uint8_t>() + (part * half + panel * run) * blocks.dim(1), rows, k, codes,
                            codes.at(first + part * rows));
            }
            const PackArgs args{codes.at(first), packed.panels.data<uint8_t>() + panel * packed.panels.dim(1),
                                gated ? 2 * rows : rows, k, type.format, gated};
            kernels().pack(args, 0, 1);
        }
    });
    return packed;
}

}  // namespace genkit
