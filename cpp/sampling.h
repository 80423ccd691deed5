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

// What each row's text says: distinct tokens with counts. Row r has entries[r, 0, i], the id, entries[r, 1, i], how often it is
// seen in the window that penalties look at (0: not any more), and entries[r, 2, i], how many of those were generated, for
// i < lengths[r].
struct HistoryTable {
    int32_t* entries;  // [rows, 3, capacity]
    int32_t* lengths;  // [rows] at most capacity
    int64_t capacity;
};

// Adjusts logits in place by what was already said. Unit: one row. An id that no logit has changes nothing: the tables of a
// plan change with every step, and checking them each time would take longer than this.
struct PenaltyArgs {
    float* logits;  // [rows, dim]
    HistoryTable history;
    int64_t dim;
    float repetition, presence, frequency;
};
// A token seen: l > 0 ? l / repetition : l * repetition (Keskar et al. 2019); then, generated c > 0 times: l - (presence + frequency * c).
static constexpr float penalized(const PenaltyArgs& a, float logit, int32_t seen, int32_t generated) {
    if (seen > 0) logit = logit > 0.0f ? logit / a.repetition : logit * a.repetition;
    if (generated > 0) logit -= a.presence + a.frequency * float(generated);
    return logit;
}

// Adds a generated token to each row's table, as a new entry where it has none and there is room. With a window > 0 the token
// that leaves it is taken away first: recent[r, next[r]], whose place the new one takes. A token below 0 changes nothing. Unit: one row.
struct RememberArgs {
    const int32_t* tokens;  // [rows]
    HistoryTable history;
    int32_t* recent;        // [rows, window] 2 * token + whether it was generated, -1 where there was none yet; or null
    int32_t* next;          // [rows] in [0, window), or null
    int64_t window;         // 0: nothing leaves
};
static constexpr int32_t recent_word(int32_t token) { return int32_t(2 * uint32_t(token) + 1); }

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
