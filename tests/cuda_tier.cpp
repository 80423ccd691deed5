// The CUDA kernels as a tier for kernel_check.cpp: their logic, on the processor.
#include <cmath>

#include "../cpp/kernels.h"
#include "../cuda/gk.h"

#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) \
    gk::launch_kernel(grid_x, grid_y, threads, shared_bytes, [&] { kernel(__VA_ARGS__); })

namespace genkit {
namespace {

#include "../cuda/kernels.inl"
#include "cuda_workspace.inl"

Workspace workspace() {
    Workspace w = filled_workspace(1, 0xa5);
    if (const char* shared = getenv("BLOCK_SHARED")) w.shared = atoll(shared);
    return w;
}

}  // namespace

// Each kernel by itself: nobody here would start what waits in the queue.
void install_cuda(Kernels& k) { install(k); }

}  // namespace genkit
