// The tier for AVX-512 VNNI: products of integer weights. Everything has internal linkage but install_avx512vnni:
// nothing compiled with this file's flags may be kept by the linker for other processors (tests/test_isolation.py).
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
#include "packed_vnni.inl"
#include "packed_k_vnni.inl"
#include "packed_vnni_many.inl"
#include "packed_k_vnni_many.inl"
#include "measure_vnni.inl"

}  // namespace

void install_avx512vnni(Kernels& k) {
    k.packed_linear = packed_linear;
    k.measure_int8 = measure_int8;
}

}  // namespace genkit
