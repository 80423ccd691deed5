// The tier for aarch64's base NEON. Everything has internal linkage but install_neon: nothing compiled with this
// file's flags may be kept by the linker for other processors (tests/test_isolation.py).
#include <arm_neon.h>

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))

namespace genkit {
namespace {

#include "vec_neon.h"
#include "loads.inl"
#include "functions.inl"
#include "simd.inl"
#include "linear.inl"
#include "experts.inl"
#include "rounding.inl"
#include "attention_pages.inl"
#include "kv_write.inl"
#include "attention.inl"
#include "attention_units.inl"
#include "sample.inl"
#include "packed.inl"

template <int lane>
INLINE int32x4_t dot(int32x4_t sums, int8x16_t w, int8x16_t x) {
    const int8x8_t four = vreinterpret_s8_s32(vdup_laneq_s32(vreinterpretq_s32_s8(x), lane));
    const int16x8_t low = vmull_s8(vget_low_s8(w), four), high = vmull_s8(vget_high_s8(w), four);
    return vpadalq_s16(sums, vpaddq_s16(low, high));  // a pair is at most 2 * 128 * 127
}

#include "packed_neon.inl"
#include "measure.inl"
#include "install.inl"
#include "measure_neon.inl"

}  // namespace

void install_neon(Kernels& k) {
    install(k);
    k.packed_linear = packed_linear;
    k.measure_int8 = measure_int8;
}

}  // namespace genkit
