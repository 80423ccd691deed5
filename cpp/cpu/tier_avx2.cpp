// The tier for AVX2, FMA and F16C. Everything has internal linkage but install_avx2: nothing compiled with this
// file's flags may be kept by the linker for other processors (tests/test_isolation.py).
#include <immintrin.h>

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))

namespace genkit {
namespace {

#include "vec_avx2.h"
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
#include "packed_avx2.inl"
#include "measure.inl"
#include "install.inl"
#include "measure_avx2.inl"

}  // namespace

void install_avx2(Kernels& k) {
    install(k);
    k.packed_linear = packed_linear;
    k.measure_int8 = measure_int8;
}

}  // namespace genkit
