// Integer weights in memory: what the codes mean, where they lie, and the kernels that bring them there. A part of
// kernels.h, with its rules.
//
// A packed weight [n, k] is a row of panels of 32 outputs, each a row of blocks of 256 along k (the last may be shorter,
// whole tiles of 64). A block is a header and its tiles. One layout serves one row and many, on every tier:
//   tile      [2 columns of 16 outputs][lines of 64 bytes]; a line is 16 outputs x 4 bytes.
//             int8: 16 lines, byte i of output j in line l is code k = 4 l + i (i8).
//             int4: 8 lines, its low nibble is code k = 4 l + i, its high nibble code k = 32 + 4 l + i (0 .. 15).
//             int8_k and int4_k likewise.
//   header    int4_two_level: f16 scale s [32]; then per tile [32] bytes u(k 0..31) | u(k 32..63) << 4; then per tile
//             [32][2] bytes m(k 0..31), m(k 32..63). 64 + 128 + 256 bytes.
//             int4_k, int8_k: f16 d [32]; with real zeros f16 dmin [32]; then per tile i8 sc, with real zeros followed by as
//             many bytes u8 m in the same order: groups of 32 [32][2] sc(k 0..31), sc(k 32..63); groups of 16 first [32][2]
//             sc(k 0..15), sc(k 32..47), then [32][2] sc(k 16..31), sc(k 48..63). All sc lie before all m. 320 or 576 bytes,
//             with real zeros 640 or 1152.
//             int4, int8: per group [32] scales s (f16 or bf16), then per group [32] zeros: none, u8 or i8 z (u8 for int4,
//             i8 for int8), or b of the scales' type. Filled up to a multiple of 64 bytes.
// What a code c stands for:
//   int4_two_level   s (u c - m), u 1..15 and m 0..128 per 32 along k, 15 u - m <= 127, s per 256: u c - m is an int8
//   int4             s (c - 8), s (c - z), or s c + b
//   int8             s c, s (c - z), or s c + b
//   int4_k           d sc (c - 8), or d sc c - dmin m: sc -128..127 and m 0..255 for a group, d and dmin for 256
//   int8_k           d sc c, or d sc c - dmin m
// Outputs beyond n and codes beyond k are padding: anything finite; the activations there are zeros.
#pragma once
#include <cstdint>

namespace genkit {

struct Region;  // experts.h

enum class DType : int32_t { f32, f16, bf16, i8, u8, i16, u16, i32, i64 };

// swiglu_oai is of a pair, gate and up: the other kinds are of one number, and times up where they gate.
enum class Activation : int32_t { silu, gelu, gelu_tanh, relu, swiglu_oai };

enum class Packing : int32_t { int4_two_level, int4, int8, int4_k, int8_k };
enum class Zero : int32_t { none, integer, real };

struct WeightFormat {
    Packing packing;
    int64_t group;  // codes along k that share a scale (of_k: sc): 256 for int4_two_level, 16 or 32 of_k, else 32 .. 256
    Zero zero;
    DType scale_dtype;  // f16 or bf16
};

constexpr int64_t panel_outputs = 32;
constexpr int64_t tile_depth = 64;      // codes along k
constexpr int64_t block_depth = 256;
constexpr int64_t sub_depth = 32;       // codes that share u and m, and activations that share a sum

static constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static constexpr bool of_k(Packing p) { return p == Packing::int4_k || p == Packing::int8_k; }
static constexpr bool eight_bits(Packing p) { return p == Packing::int8 || p == Packing::int8_k; }
static constexpr int64_t tile_bytes(Packing p) { return eight_bits(p) ? 2048 : 1024; }
// Codes along k that share a scale of floating point, and activations that share a sum.
static constexpr int64_t scale_depth(const WeightFormat& f) { return of_k(f.packing) ? block_depth : f.group; }
static constexpr int64_t sum_depth(const WeightFormat& f) { return f.group < sub_depth ? f.group : sub_depth; }
// Of int4_k and int8_k: where a header has sc and m, and in there the byte of the group of code k in the block.
static constexpr int64_t k_scales_at(const WeightFormat& f) { return f.zero == Zero::real ? 128 : 64; }
static constexpr int64_t k_minima_at(const WeightFormat& f) { return k_scales_at(f) + block_depth / f.group * 32; }
static constexpr int64_t k_index(const WeightFormat& f, int64_t k, int64_t column) {
    const int64_t tile = tile_depth / f.group * panel_outputs, pair = k % tile_depth % sub_depth / f.group * 64;
    return k / tile_depth * tile + pair + column * 2 + k % tile_depth / sub_depth;
}
static constexpr int64_t header_bytes(const WeightFormat& f) {
    if (of_k(f.packing)) return f.zero == Zero::real ? 2 * k_minima_at(f) - k_scales_at(f) : k_minima_at(f);
    const int64_t groups = block_depth / f.group, zero = f.zero == Zero::none ? 0 : f.zero == Zero::integer ? 1 : 2;
    return f.packing == Packing::int4_two_level ? 448 : round_up(groups * panel_outputs * (2 + zero), 64);
}
static constexpr int64_t block_bytes(const WeightFormat& f) {
    return header_bytes(f) + block_depth / tile_depth * tile_bytes(f.packing);
}
static constexpr int64_t panel_bytes(const WeightFormat& f, int64_t k) {
    const int64_t tail = round_up(k % block_depth, tile_depth);
    return k / block_depth * block_bytes(f) + (tail ? header_bytes(f) + tail / tile_depth * tile_bytes(f.packing) : 0);
}

// Codes of a row-major quantized weight, before packing: [n, depth] with depth = round_up(k, 64), one byte each.
struct WeightCodes {
    uint8_t* codes;      // [n, depth] 0..15, or i8 bits
    uint16_t* scales;    // [n, ceil(depth / group)] bits of scale_dtype; of_k: d [n, ceil(depth / 256)]
    uint8_t* subscales;  // [n, depth / 32] u; int4_two_level. [n, depth / group] i8 sc; of_k
    uint8_t* minima;     // [n, depth / 32] m; int4_two_level. [n, depth / group] m; of_k with real zeros
    void* zeros;         // as scales: u8, i8 or scale_dtype, of_k dmin; null without
};

// Activations for integer weights: for each 256 along k, scale = max |x| / 127 and code = round(x * (127 / max |x|)) to
// nearest even, in f32; sums are of sum_depth codes each, 32 or 16. Codes past k are 0. A block whose largest is below
// 2^-100 is zeros; one with a NaN or an infinity has codes 0 and scale NaN, so that its row's outputs are NaN. Unit: one row.
// tiled: for products of tiles, 16 rows by 64 codes together, zeros beyond the last row. Each tile of 16 rows takes
// 16 * codes_stride bytes whichever way.
struct QuantizeArgs {
    const float* x;   // [rows, k], row stride x_stride
    int8_t* codes;    // [rows, round_up(k, 64)], row stride codes_stride; tiled: [rows / 16][codes_stride / 64][16][64]
    float* scales;    // [rows, ceil(k / 256)]; tiled: [rows / 16][ceil(k / 256)][16]
    int16_t* sums;    // [rows, round_up(k, 64) / sum_depth], or null
    int64_t k, x_stride, codes_stride;  // codes_stride is a multiple of 64
    int64_t rows;
    bool tiled;
    int64_t sum_depth = sub_depth;
    const Region* region = nullptr;  // on a device: of all places these rows, found there (experts.h)
};
constexpr int64_t code_tile_rows = 16;
// Where the code of row r at i along k lies, and a row's scale of a block.
static constexpr int64_t code_index(const QuantizeArgs& a, int64_t r, int64_t i) {
    const int64_t row = r % code_tile_rows, tile = i / tile_depth;
    if (!a.tiled) return r * a.codes_stride + i;
    return (r - row) * a.codes_stride + (tile * code_tile_rows + row) * tile_depth + i % tile_depth;
}
static constexpr int64_t scale_index(const QuantizeArgs& a, int64_t r, int64_t block) {
    const int64_t row = r % code_tile_rows, blocks = (a.k + block_depth - 1) / block_depth;
    return a.tiled ? (r - row) * blocks + block * code_tile_rows + row : r * blocks + block;
}
constexpr int64_t untiled_rows = 8;  // up to here products are bound by reading the weights, and codes never tiled

// out[m, n] = sum_k x[m, k] * weight[n, k] + bias[n] + residual[m, n] over packed integer weights. Unit: one panel for
// every m. An output is acc = fma(float(sum of codes x codes), scale of the weight * scale of x, acc) over groups (256 at
// most) in ascending order, after each fma(float(sum of x), b * scale of x, acc) with real zeros; the sums of integers are
// exact and below 2^24. int4_k and int8_k: acc = fma(float(sum over the block's groups of sc * (sum of codes x codes)),
// d * scale of x, acc) once in 256, after it with real zeros fma(float(sum of m * (sum of x)), -(dmin * scale of x), acc);
// these sums are exact in 32 bits (at most 128 * 128 * 127 * 256 < 2^29) and rounded once, to nearest even, by the conversion
// to float. So every tier gives the same bits. gated: columns 0..15 of a panel are gates, 16..31 ups, and
// out[m, i] = f(gate + bias) * (up + bias), [rows, n / 2]; biases lie as in an ungated weight, gates then ups.
struct PackedLinearArgs {
    const int8_t* codes;    // x, see QuantizeArgs
    const float* scales;
    const int16_t* sums;    // of sum_depth(format) each; may be null where tiled, without zeros
    const uint8_t* weight;  // panels, see packed.h
    const float* bias;      // [n] or null
    const float* residual;  // [rows, n], row stride out_stride, or null; may be out itself; not with gated
    float* out;             // row stride out_stride
    int64_t rows, n, k, codes_stride, out_stride;
    WeightFormat format;
    bool gated;
    Activation kind;
    bool tiled = false;  // codes and scales, see QuantizeArgs
    const Region* region = nullptr;  // on a device: of all places these rows, by its expert's weight
};

// Rounds rows of w to codes. To nearest: scales of the range (reference_rounding.inl; with zeros search.inl). search: scales,
// minima and zeros for which sum_j a_j (w_j - what its code stands for)^2 is small, a_j = 1 or, with importance h of the
// inputs, h_j sqrt(w_j^2 + mean of w^2). Always after scales are rounded to their type. Unit: one row.
struct QuantizeWeightArgs {
    const void* weight;  // [n, k] f32 | f16 | bf16
    WeightCodes out;     // where a weight is NaN or infinite, or a scale would be, the scale is NaN; int8 has no zeros
    int64_t k;
    WeightFormat format;
    DType dtype;
    bool search = false;
    const float* importance = nullptr;  // [k] or null; only with search
};

// Row-major codes into panels. Unit: one panel, of 32 rows, or of 16 gates and their 16 ups. Rows past n are padding.
struct PackArgs {
    WeightCodes in;
    uint8_t* panels;
    int64_t n, k;
    WeightFormat format;
    bool gated;
};

// out[r, :] = row ids[r] of a packed weight as floats: an embedding, or the whole weight for a look. Unit: one row.
struct UnpackArgs {
    const int32_t* ids;
    const uint8_t* panels;
    float* out;  // [rows, k]
    int64_t n, k;
    WeightFormat format;
    bool gated;
};

}  // namespace genkit
