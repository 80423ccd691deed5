// The tier for aarch64's base NEON. Everything has internal linkage but install_neon: nothing compiled with this
// file's flags may be kept by the linker for other processors (tests/test_isolation.py).
#include <arm_neon.h>

#include "../kernels.h"

#define INLINE inline __attribute__((always_inline))

namespace genkit {
namespace {

#include "vec_neon.h"
#include "functions.inl"
#include "simd.inl"
#include "linear.inl"
#include "rounding.inl"
#include "attention_pages.inl"
#include "kv_write.inl"
#include "attention.inl"
#include "install.inl"

}  // namespace

void install_neon(Kernels& k) { install(k); }

}  // namespace genkit
