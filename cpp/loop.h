// The token loop on a device: what its last kernel reads and writes, and what it tells the host through a ring of memory
// that both reach.
#pragma once
#include <cstdint>

namespace genkit {

constexpr int64_t loop_ahead = 4;       // steps on their way at most that the host has not read
constexpr int32_t loop_stop_ids = 64;   // with more of them the host looks at each step itself

struct LoopState {
    int64_t steps;    // taken so far, of all loops of a plan
    int32_t stopped;  // whether a step ended the loop: those after it recompute the same place
    int32_t stops;    // how many stop_ids there are
    int32_t stop_ids[loop_stop_ids];
};

struct AdvanceArgs {
    int32_t* token_ids;
    int32_t* positions;
    int64_t* draw_positions;
    const int32_t* tokens;
    const int32_t* nonfinite;
    int64_t rows;
    LoopState* state;
    char* ring;
};

// A place in the ring: the number of the step it holds, counted from 1, written last; tokens; their nonfinite counts. Two
// steps that may be on their way at once have different places.
constexpr int64_t ring_place_bytes(int64_t rows) { return (8 + 8 * rows + 63) / 64 * 64; }
constexpr int64_t ring_bytes(int64_t rows) { return loop_ahead * ring_place_bytes(rows); }
constexpr int64_t ring_place(int64_t step, int64_t rows) { return step % loop_ahead * ring_place_bytes(rows); }

}  // namespace genkit
