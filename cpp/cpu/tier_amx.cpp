// The tier for AMX: products of integer weights and of bf16 weights, and attention, in tiles. Everything has internal linkage but
// install_amx: nothing compiled with this file's flags may be kept by the linker for other processors
// (tests/test_isolation.py).
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc's own header initializes "undefined" registers so
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))

namespace genkit {
namespace {

Kernels below{};  // the slots as they were: tiles do not pay everywhere

#include "vec_avx512.h"
#include "loads.inl"
#include "functions.inl"
#include "tiles.inl"
#include "attention_pages.inl"
#include "attention_bf16.inl"
#include "attention.inl"
#include "attention_amx.inl"
#include "attention_units.inl"
#include "packed_vnni.inl"
#include "packed_k_vnni.inl"
#include "packed_amx.inl"
#include "linear_amx.inl"
#include "measure_amx.inl"

}  // namespace

void install_amx(Kernels& k) {
    below = k;
    k.linear = linear;
    k.tile_rows = tile_rows;
    k.row_input = RowInput::bf16_tiles;
    k.code_tiles = true;
    k.packed_linear = packed_linear;
    k.attention = attention;
    k.attention_merge = attention_merge;
    k.measure_bf16 = measure_bf16;
    k.measure_int8 = measure_int8;
}

}  // namespace genkit
