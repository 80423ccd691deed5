// From logits to a token: what looks at logits, changes them and draws. A part of kernels.h, with its rules.
#pragma once
#include <cstdint>

namespace genkit {

// out[r] = index of the largest x[r, :], the lowest index among equals; -1 if an element is NaN or +infinity, -2 if
// all are -infinity (a banned token). Unit: one row.
struct ArgmaxArgs {
    const float* x;  // [rows, dim]
    int32_t* out;    // [rows]
    int64_t dim;
};

// out[r] = how many of x[r, :] are NaN or infinite. Unit: one row.
struct NonfiniteArgs {
    const float* x;  // [rows, dim]
    int32_t* out;    // [rows]
    int64_t dim;
};

// What top_k and sample need to work in. Their unit is a slot, which serves rows slot, slot + scratch_slots(rows), ...
// one after another in scratch_bytes(dim) of its own: many rows need no more memory than a few.
constexpr int64_t most_logits = int64_t(1) << 22;  // dim
static constexpr int64_t scratch_slots(int64_t rows) { return rows < 16 ? rows : 16; }
static constexpr int64_t scratch_bytes(int64_t dim) { return (dim + 511) / 256 * 256 * 25; }

// The k largest of each row, in descending order, equals in ascending index order. Unit: one slot.
struct TopKArgs {
    const float* x;   // [rows, dim]
    float* values;    // [rows, k]
    int32_t* ids;     // [rows, k]
    void* scratch;    // [scratch_slots(rows)] x scratch_bytes(dim)
    int64_t rows, dim, k;  // 1 <= k <= dim
};

// logits[r, ids[i]] += values[i], for every row the same. Unit: one row.
struct BiasArgs {
    float* logits;        // [rows, dim]
    const int32_t* ids;   // [count], distinct
    const float* values;  // [count]; -infinity bans
    int64_t dim, count;
};

// Adjusts logits in place by what was already said. Unit: one row. A token seen in the window:
// l = l > 0 ? l / repetition : l * repetition (Keskar et al. 2019); then, generated c > 0 times:
// l -= presence + frequency * c. Histories are given as distinct ids with counts.
struct PenaltyArgs {
    float* logits;                  // [rows, dim]
    const int32_t* ids;             // [entries] distinct within a row
    const int32_t* seen;            // [entries] times it occurs in the window the repetition penalty looks at
    const int32_t* generated;       // [entries] times it occurs among generated tokens
    const int64_t* offsets;         // [rows + 1] entries of row r: offsets[r] .. offsets[r + 1]
    int64_t dim;
    float repetition, presence, frequency;
};

// Draws one token a row. Unit: one slot. temperature 0 is argmax. Otherwise, in this order: logits / temperature,
// top_k (0 = off), top_p (1 = off), min_p (0 = off), softmax of what is left, inverse transform sampling over
// ascending ids with a number keyed by (seed, sequence, position): no state. Filters take logits in descending order,
// equals in ascending id. Masses are integers (cpu/draw.inl), so every tier draws the same token from the same logits.
// token is -1 when a logit is NaN or +infinity, -2 when all are -infinity (banned); finite_only: -infinity is -1 too.
struct SampleArgs {
    const float* logits;       // [rows, dim]
    const int64_t* sequences;  // [rows]
    const int64_t* positions;  // [rows] position of the token drawn
    int32_t* tokens;           // [rows]
    void* scratch;             // [scratch_slots(rows)] x scratch_bytes(dim), unless temperature is 0
    int64_t rows, dim, top_k;
    uint64_t seed;
    float temperature, top_p, min_p;
    bool finite_only;
    int32_t* nonfinite = nullptr;  // [rows], as NonfiniteArgs' out, or null; of tables with sample_counts
};

}  // namespace genkit
