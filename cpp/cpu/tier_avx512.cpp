// The tier for AVX-512 F, BW, DQ and VL. Everything has internal linkage but install_avx512: nothing compiled with this
// file's flags may be kept by the linker for other processors (tests/test_isolation.py).
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc's own header initializes "undefined" registers so
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))

namespace genkit {
namespace {

#include "vec_avx512.h"
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
#include "measure.inl"
#include "install.inl"
#include "measure_avx512.inl"

}  // namespace

void install_avx512(Kernels& k) {
    install(k);
    k.measure_int8 = measure_int8;
}

}  // namespace genkit
