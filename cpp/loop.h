// The token loop on a device: what its last kernel reads and writes, and what it tells the host through a ring of memory
// that both reach.
#pragma once
#include <cstdint>

namespace genkit {

constexpr int64_t loop_ahead = 4;        // steps on their way at most that the host has not read
constexpr int64_t loop_stop_ids = 8192;  // with more of them the host looks at each step itself

// Behind it the ids that stop: stop_room of them, -1 where there are fewer.
struct LoopState {
    int64_t steps;    // taken so far, of all loops of a plan
    int64_t stopped;  // whether a step ended the loop: those after it recompute the same place
    int64_t live;     // rows that are sequences, the first ones; of the others, padding, nothing is looked at and nothing changes
};
constexpr int64_t loop_state_bytes(int64_t stop_room) { return int64_t(sizeof(LoopState)) + 4 * stop_room; }

struct AdvanceArgs {
    int32_t* token_ids;
    int32_t* positions;
    int64_t* draw_positions;
    const int32_t* tokens;
    const int32_t* nonfinite;
    int64_t rows;  // live ones and padding
    LoopState* state;
    char* ring;
    int64_t stop_room;
};

// A place in the ring: a word a live row, each written at once and good as soon as it has the step's number, counted from 1. Two steps
// that may be on their way at once have different places.
constexpr int64_t ring_place_bytes(int64_t rows) { return (8 * rows + 63) / 64 * 64; }
constexpr int64_t ring_bytes(int64_t rows) { return loop_ahead * ring_place_bytes(rows); }
constexpr int64_t ring_place(int64_t step, int64_t rows) { return step % loop_ahead * ring_place_bytes(rows); }
// The token is the low half.
constexpr uint64_t ring_word(int64_t step, int32_t token, bool nonfinite) {
    return uint64_t(step) << 33 | uint64_t(nonfinite) << 32 | uint32_t(token);
}
constexpr bool ring_word_is_of(uint64_t word, int64_t step) { return word >> 33 == uint64_t(step) << 33 >> 33; }
constexpr bool ring_word_nonfinite(uint64_t word) { return (word >> 32 & 1) != 0; }

}  // namespace genkit
