// THE boundary: what a kernel is, declared once. An argument struct and a slot in `Kernels` for each.
//
// Rules. Kernels get raw pointers and sizes that ops.cpp has checked: they allocate nothing, start no threads and
// trust their arguments. A kernel computes the work units [begin, end) of its output; what a unit is stands beside
// each struct. Work is split over outputs only, never over a reduced dimension, and the arithmetic of one output
// never depends on which other outputs are computed beside it: so any split over threads, any batch and any prefill
// chunk gives the same bits. Floats are IEEE f32 inside; f16 and bf16 are storage types widened on load.
//
// Adding an op: a struct and a slot here, reference.cpp, ops.cpp, bindings.cpp, its test; fast tiers follow.
#pragma once
#include <cstddef>
#include <cstdint>

#include "experts.h"
#include "measure.h"
#include "packed.h"
#include "sampling.h"

namespace genkit {

// Keys a page holds, and keys a tile of the K page holds (see KvPages).
constexpr int64_t page_keys = 64;
constexpr int64_t tile_keys = 16;
// Keys after which attention starts a new partial result.
constexpr int64_t attention_split = 1024;

// out[i] = (out_dtype) in[i], round to nearest even. Unit: one element. f32, f16, bf16 on either side.
struct ConvertArgs {
    const void* in;
    void* out;
    DType in_dtype, out_dtype;
};

// out[r, :] = table[ids[r], :]. Unit: one row. ids are in [0, table rows).
struct EmbeddingArgs {
    const int32_t* ids;   // [rows]
    const void* table;    // [vocab, dim], f32 | f16 | bf16
    float* out;           // [rows, dim]
    int64_t dim;
    DType dtype;
};

// out[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * weight (Zhang and Sennrich 2019). Unit: one row.
// Row r of x lies at x + (r / inner) * stride + (r % inner) * dim: inner = heads normalizes each head of a token.
// x and out may be the same.
struct RmsNormArgs {
    const float* x;
    const float* weight;  // [dim]
    float* out;
    int64_t dim, inner, x_stride, out_stride;
    float eps;
};

// out[r, :] = (x[r, :] - mean) / sqrt(var + eps) * weight + bias (Ba et al. 2016). Unit: one row. Rows lie as RmsNormArgs
// says; row r has the weight and bias at (r % inner) * weight_stride: one for all heads, or each head its own.
struct LayerNormArgs {
    const float* x;
    const float* weight;  // [dim], or [inner, dim]
    const float* bias;    // as weight, or null
    float* out;           // may be x
    int64_t dim, inner, x_stride, out_stride, weight_stride;
    float eps;
};

// What `linear` takes of x for bf16 weights: f32, or bf16 (to nearest even; denormals may be zeros) by round_rows or
// tile_rows.
enum class RowInput : int32_t { f32, bf16_rows, bf16_tiles };

// out[r, :] = x[r, :] as bf16, zeros from k to round_up(k, 32), which is out's row stride. Unit: one row.
struct RoundRowsArgs {
    const float* x;  // row stride x_stride
    uint16_t* out;
    int64_t k, x_stride;
};

// Rows of x as bf16 in tiles: [ceil(rows / 16)][ceil(k / 32)][16 pairs of k]
// [tile_columns(rows)][2], zeros beyond rows and k. Unit: one tile of rows.
struct TileRowsArgs {
    const float* x;   // [rows, k], row stride x_stride
    uint16_t* tiles;
    int64_t rows, k, x_stride;
};
static constexpr int64_t tile_columns(int64_t rows) { return rows < 16 ? rows : 16; }

// out[m, n] = sum_k x[m, k] * weight[n, k] + bias[n] + residual[m, n]. Unit: one n, for every m.
// The k order of one output is the same for any m and any unit range (one row and many rows agree to the bit).
struct LinearArgs {
    const float* x;         // [rows, k], row stride x_stride
    const void* weight;     // [n, k], f32 | f16 | bf16, rows contiguous
    const float* bias;      // [n] or null
    const float* residual;  // [rows, n], row stride out_stride, or null; may be out itself
    float* out;             // [rows, n], row stride out_stride
    int64_t rows, n, k, x_stride, out_stride;
    DType dtype;
    const uint16_t* x_bf16 = nullptr;  // x as `row_input` says, read instead of x; null for f32
    const Region* region = nullptr;    // on a device: of all places these rows, by its expert's weight
};

// table[r, i] = cos(positions[r] * inv_freq[i]) * scale, table[r, half + i] = sin(...) * scale. Unit: one row.
// The angle is a product in f32, as in the models' own training code.
struct RopeTableArgs {
    const int32_t* positions;  // [rows]
    const float* inv_freq;     // [half]
    float* table;              // [rows, 2 * half]
    int64_t half;
    float scale;               // yarn's attention factor, 1 otherwise
};

// Rotates, in place, the first 2 * half elements of every head (Su et al. 2021). Unit: one row (token).
// Pairs are (i, half + i), or (2i, 2i + 1) when interleaved.
struct RopeArgs {
    float* x;            // [rows, heads, head_dim], row stride x_stride
    const float* table;  // [rows, 2 * half], from RopeTableArgs
    int64_t heads, head_dim, half, x_stride;
    bool interleaved;
};

// Where the keys and values of rows lie. Key p of row r is in page page_table[sequences[r], p / page_keys], slot
// p % page_keys. Page n of a kv head starts at (kv_head * pages + n) * page_keys * head_dim, so that one head's keys lie
// one after the other in pages that do: reading 8 KB here and 8 KB there is a quarter slower. It holds
//   f32:            K [page_keys / tile_keys][head_dim][tile_keys]        V [page_keys][head_dim]
//   f16, bf16, i8:  K [page_keys / tile_keys][head_dim / 2][tile_keys][2] V [page_keys / 2][head_dim][2]
// so a vector holds one channel, or a pair, of neighbouring keys of K, and neighbouring channels of V. The last channel of
// an odd head_dim is not paired: [tile_keys] at the end of its tile.
// i8: key = code * k_scales[kv_head, n, slot], scale = max |key| / 127, code = round_to_even(key / scale); values alike. The
// scale is NaN where an element is not finite, and so is what attends to it. f16 and bf16 round to nearest even.
struct KvPages {
    void* k;
    void* v;
    float* k_scales;            // [kv_heads, pages, page_keys] for i8, or null
    float* v_scales;
    const int32_t* page_table;  // [sequences, max_pages]
    const int32_t* sequences;   // [rows]
    const int32_t* positions;   // [rows]
    int64_t kv_heads, pages, head_dim, max_pages;
    DType dtype;                // f32 | f16 | bf16 | i8
    bool apart = false;         // each row is of another sequence, so none attends to what another one stores; in replays of a plan as well
};

// Stores keys and values of new tokens into their pages, token r at position positions[r]. Unit: one row (token).
struct KvWriteArgs {
    const float* k;  // [rows, kv_heads, head_dim], row stride kv_stride
    const float* v;  // the same
    int64_t kv_stride;
    KvPages pages;
};

// RopeArgs' rotation of the query and key heads of a row, then KvWriteArgs' storing of it. Unit: one row (token).
struct RopeKvWriteArgs {
    RopeArgs rope;
    KvWriteArgs write;
};

// out[r, h, :] = sum_j softmax_j(cap(scale * q[r, h, :] . k[j, h / group, :]) + slope[h] * (j - pos)) * v[j, h / group, :]
// over keys j <= pos = positions[r] of the row's own sequence, j > pos - window when window > 0. group = heads / kv_heads.
// cap(s) = softcap * tanh(s / softcap) when softcap > 0 (Gemma 2), else s. sinks[h] is one more score in the softmax, whose
// weight no value gets (gpt-oss); it is merged after the last key.
// Online softmax (Milakov and Gimelshein 2018; Dao et al. 2022) page by page in ascending order; every attention_split
// keys a new partial (sum of p v, maximum, sum of p) begins, and partials are merged in ascending order. So the order of
// sums depends on key positions only. Tiers with bf16 dot products round scale * q and p to bf16 for pages of bf16 and i8.
// Unit of `attention`: unit_rows token rows, of any sequences, one kv head: units = ceil(rows / unit_rows) * kv_heads, kv
// head fastest. With `partials`, one split of keys as well: units = ceil(rows / unit_rows) * splits * kv_heads; then
// `attention_merge` makes out of them. Its unit: one row's one head. Both ways give the same bits.
struct AttentionArgs {
    const float* q;             // [rows, heads, head_dim], row stride q_stride
    const float* alibi_slopes;  // [heads] or null
    const float* sinks;         // [heads] or null
    float* out;                 // [rows, heads, head_dim], row stride out_stride
    float* partials;            // [rows, heads, splits, head_dim + 2] or null
    KvPages pages;
    int64_t rows, heads, q_stride, out_stride, window, unit_rows;
    int64_t splits;             // of partials: ceil(max_pages * page_keys / attention_split)
    float scale, softcap;
};

// out[r, i] = f(x[r, i]). Unit: one row. Of one number: not swiglu_oai.
struct ActivationArgs {
    const float* x;  // [rows, dim], row stride x_stride
    float* out;      // [rows, dim]
    int64_t dim, x_stride;
    Activation kind;
};

// out[r, i] = f(x[r, i]) * x[r, dim + i]: swiglu with silu, geglu with either gelu (Shazeer 2020). Unit: one row.
// swiglu_oai, gpt-oss's: g = min(gate, 7), u = up within -7..7, out = g / (1 + exp(-1.702 g)) * (u + 1).
struct GatedArgs {
    const float* x;  // [rows, 2 * dim], gate then up, row stride x_stride
    float* out;      // [rows, dim]
    int64_t dim, x_stride;
    Activation kind;
    const Region* region = nullptr;  // on a device: of all places these rows
};

// out[i] = a[i] + scale * b[i]. Unit: one element.
struct AddArgs {
    const float* a;
    const float* b;
    float* out;
    float scale;
};

// y = x[i] * factor, out[i] = softcap > 0 ? softcap * tanh(y / softcap) : y. Unit: one element.
struct ScaleArgs {
    const float* x;
    float* out;
    float factor, softcap;
};

// out[r, i] = x[r, index[i]], or y[r, index[i] - x_columns] from x_columns on, or 0 where index[i] is -1. Unit: one row.
struct GatherColumnsArgs {
    const float* x;        // [rows, x_columns], row stride x_stride
    const float* y;        // [rows, y_columns], row stride y_stride, or null
    const int32_t* index;  // [columns]
    float* out;            // [rows, columns]
    int64_t columns, x_columns, x_stride, y_stride;
};

// out[r, :] = softmax(x[r, :]), or its logarithm. Unit: one row. Subtracts the row's maximum first.
struct SoftmaxArgs {
    const float* x;  // [rows, dim]
    float* out;      // [rows, dim], may be x
    int64_t dim;
    bool log;
};

// Copies whole pages (copy on write of a shared page). Unit: one pair.
struct CopyPagesArgs {
    char* pages;          // [heads, pages, page_bytes]
    const int32_t* from;  // [pairs]
    const int32_t* to;    // [pairs]
    int64_t heads, pages_each, page_bytes;
};

// One slot per kernel. reference.cpp fills every slot; each better tier overwrites the slots it improves.
struct Kernels {
    void (*convert)(const ConvertArgs&, int64_t begin, int64_t end);
    void (*embedding)(const EmbeddingArgs&, int64_t begin, int64_t end);
    void (*rms_norm)(const RmsNormArgs&, int64_t begin, int64_t end);
    void (*layer_norm)(const LayerNormArgs&, int64_t begin, int64_t end);
    void (*round_rows)(const RoundRowsArgs&, int64_t begin, int64_t end);
    void (*tile_rows)(const TileRowsArgs&, int64_t begin, int64_t end);
    void (*linear)(const LinearArgs&, int64_t begin, int64_t end);
    void (*quantize)(const QuantizeArgs&, int64_t begin, int64_t end);
    void (*packed_linear)(const PackedLinearArgs&, int64_t begin, int64_t end);
    void (*quantize_weight)(const QuantizeWeightArgs&, int64_t begin, int64_t end);
    void (*pack)(const PackArgs&, int64_t begin, int64_t end);
    void (*unpack)(const UnpackArgs&, int64_t begin, int64_t end);
    void (*route)(const RouteArgs&, int64_t begin, int64_t end);
    void (*group_rows)(const GroupRowsArgs&, int64_t begin, int64_t end);
    void (*gather_rows)(const GatherRowsArgs&, int64_t begin, int64_t end);
    void (*combine)(const CombineArgs&, int64_t begin, int64_t end);
    void (*rope_table)(const RopeTableArgs&, int64_t begin, int64_t end);
    void (*rope)(const RopeArgs&, int64_t begin, int64_t end);
    void (*kv_write)(const KvWriteArgs&, int64_t begin, int64_t end);
    void (*rope_kv_write)(const RopeKvWriteArgs&, int64_t begin, int64_t end);
    void (*attention)(const AttentionArgs&, int64_t begin, int64_t end);
    void (*attention_merge)(const AttentionArgs&, int64_t begin, int64_t end);
    void (*activation)(const ActivationArgs&, int64_t begin, int64_t end);
    void (*gated)(const GatedArgs&, int64_t begin, int64_t end);
    void (*add)(const AddArgs&, int64_t begin, int64_t end);
    void (*scale)(const ScaleArgs&, int64_t begin, int64_t end);
    void (*gather_columns)(const GatherColumnsArgs&, int64_t begin, int64_t end);
    void (*softmax)(const SoftmaxArgs&, int64_t begin, int64_t end);
    void (*argmax)(const ArgmaxArgs&, int64_t begin, int64_t end);
    void (*nonfinite)(const NonfiniteArgs&, int64_t begin, int64_t end);
    void (*top_k)(const TopKArgs&, int64_t begin, int64_t end);
    void (*bias)(const BiasArgs&, int64_t begin, int64_t end);
    void (*penalty)(const PenaltyArgs&, int64_t begin, int64_t end);
    void (*sample)(const SampleArgs&, int64_t begin, int64_t end);
    void (*remember)(const RememberArgs&, int64_t begin, int64_t end);
    void (*copy_pages)(const CopyPagesArgs&, int64_t begin, int64_t end);
    void (*measure_read)(const MeasureReadArgs&, int64_t begin, int64_t end);
    void (*measure_f32)(const MeasureArithmeticArgs&, int64_t begin, int64_t end);
    void (*measure_bf16)(const MeasureArithmeticArgs&, int64_t begin, int64_t end);
    void (*measure_int8)(const MeasureArithmeticArgs&, int64_t begin, int64_t end);
    RowInput row_input = RowInput::f32;  // not a slot
    bool sample_counts = false;          // not a slot: sample also counts what is not finite
    bool code_tiles = false;             // not a slot: packed_linear wants the codes of more than untiled_rows rows tiled
};

}  // namespace genkit
