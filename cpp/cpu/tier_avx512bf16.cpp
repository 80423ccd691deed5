// The tier for AVX-512 with BF16 dot products. Everything has internal linkage but install_avx512bf16: nothing compiled
// with this file's flags may be kept by the linker for other processors (tests/test_isolation.py).
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc's own header initializes "undefined" registers so
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))

namespace genkit {
namespace {

Kernels below{};  // the slots as they were, for weights of other types

#include "vec_avx512.h"
#include "loads.inl"
#include "functions.inl"
#include "attention_pages.inl"
#include "attention_bf16.inl"
#include "attention.inl"
#include "attention_units.inl"
#include "linear_bf16.inl"
#include "measure_bf16.inl"

}  // namespace

void install_avx512bf16(Kernels& k) {
    below = k;
    k.round_rows = round_rows;
    k.linear = linear;
    k.row_input = RowInput::bf16_rows;
    k.measure_bf16 = measure_bf16;
    k.attention = attention;
    k.attention_merge = attention_merge;
}

}  // namespace genkit
