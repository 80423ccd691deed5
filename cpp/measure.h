// A part of kernels.h: loops that measure.
#pragma once
#include <cstdint>

namespace genkit {

// The machine's limits: what loops reach that do nothing else. Unit: a megabyte read; about 10^6 operations on registers,
// whose exact number is written down.
struct MeasureReadArgs {
    const uint8_t* memory;
    uint64_t* sums;  // [units], so that reading has a result
};
struct MeasureArithmeticArgs {
    const float* data;   // [256] numbers in [0.5, 1), and so are their halves as bf16: nothing is zero or infinite
    float* results;      // [units]
    double* operations;  // [units] multiplications and additions
};

}  // namespace genkit
