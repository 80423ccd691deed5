// The tier for aarch64 with dot products (ARMv8.2): products of integer weights. Everything has internal linkage but
// install_neon_dotprod: nothing compiled with this file's flags may be kept by the linker for other processors
// (tests/test_isolation.py).
#include <arm_neon.h>

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))

namespace genkit {
namespace {

#include "vec_neon.h"
#include "loads.inl"
#include "functions.inl"
#include "packed.inl"

template <int lane>
INLINE int32x4_t dot(int32x4_t sums, int8x16_t w, int8x16_t x) {
    return vdotq_laneq_s32(sums, w, x, lane);
}

#include "packed_neon.inl"
#include "measure_neon.inl"

}  // namespace

void install_neon_dotprod(Kernels& k) {
    k.packed_linear = packed_linear;
    k.measure_int8 = measure_int8;
}

}  // namespace genkit
