// The CUDA kernels as a tier for kernel_check.cpp: their logic, on the processor.
#include <cmath>

#include "../cpp/kernels.h"
#include "../cuda/gk.h"

#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) \
    gk::launch(grid_x, grid_y, threads, shared_bytes, [&] { kernel(__VA_ARGS__); })

namespace genkit {
namespace {

#include "../cuda/kernels.inl"

}  // namespace

void install_cuda(Kernels& k) { install(k); }

}  // namespace genkit
