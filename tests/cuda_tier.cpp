// The CUDA kernels as a tier for kernel_check.cpp: their logic, on the processor.
#include <cmath>

#include "../cpp/kernels.h"
#include "../cuda/gk.h"

namespace genkit {
namespace {

#include "../cuda/kernels.inl"

}  // namespace

void install_cuda(Kernels& k) { install(k); }

}  // namespace genkit
