// The CUDA kernels as a tier for kernel_check.cpp: their logic, on the processor.
#include <cmath>

#include "../cpp/kernels.h"
#include "../cuda/gk.h"

#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) \
    gk::launch_kernel(grid_x, grid_y, threads, shared_bytes, [&] { kernel(__VA_ARGS__); })

namespace genkit {
namespace {

#include "../cuda/kernels.inl"

Workspace workspace() {
    static std::vector<uint32_t> counters(workspace_counters, 0);
    static std::vector<char> scratch(workspace_bytes + 256, char(0xa5));  // never zeros
    return {counters.data(), reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch.data()) + 255) / 256 * 256), 1};
}

}  // namespace

// Each kernel by itself: nobody here would start what waits in the queue.
void install_cuda(Kernels& k) { install(k); }

}  // namespace genkit
