// A part of kernels.h: loops that measure.
#pragma once
#include <cstdint>

namespace genkit {

// The machine's limits: what loops reach that do nothing else. Unit: a block read, again and again; some 10^5 to 10^7
// operations on registers, whose exact number is written down.
struct MeasureReadArgs {
    const uint8_t* memory;  // [units, bytes]
    uint64_t* words;        // [units], the exclusive or of a block's 64-bit words, what the last one lacks being 0; null: not asked
    int64_t bytes, repeats; // read so often
    int64_t ahead;          // so many bytes ahead of what is read is fetched too; 0: that is left to the processor
};
struct MeasureArithmeticArgs {
    const float* data;   // [256] numbers in [0.5, 1), and so are their halves as bf16: nothing is zero or infinite
    float* results;      // [units]
    double* operations;  // [units] multiplications and additions
};

}  // namespace genkit
