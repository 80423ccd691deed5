// libgenkit_cuda.so: the slots of kernels.h for NVIDIA GPUs. One device, one stream: what is started runs in order.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gk.h"
#include "kernels.h"
#include "loop.h"
#include "plugin.h"

namespace genkit {
namespace {

cudaStream_t stream = nullptr;
bool poison = false;                    // GENKIT_CUDA_POISON: new memory is full of NaN, which shows what a kernel forgot to write
cudaError_t first_error = cudaSuccess;  // of starting kernels, until somebody asks

void note(cudaError_t error) {
    if (first_error == cudaSuccess) first_error = error;
}

const char* words(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// Whether a kernel's blocks may start while the kernel before is still at work: each waits for its end where it must
// (gk::wait_for_previous, which is code of 9.0 and above only). What is no kernel, such as a copy, is waited for in full.
bool dependent_launch = false;

void flush();  // queue.inl: starts what waits there

// More shared memory than every kernel may have has to be asked for, once for each kernel.
template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, int threads, int shared_bytes, const Args&... args) {
    flush();
    if (grid_x < 1 || grid_y < 1) return;
    if (shared_bytes > 48 * 1024) note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    cudaLaunchAttribute dependent{};
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(grid_x), unsigned(grid_y));
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = size_t(shared_bytes);
    config.stream = stream;
    config.attrs = &dependent;
    config.numAttrs = dependent_launch ? 1 : 0;
    note(cudaLaunchKernelEx(&config, kernel, Parameters(args)...));
}
#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) launch(kernel, grid_x, grid_y, threads, shared_bytes, __VA_ARGS__)

#include "kernels.inl"
#include "loop.inl"

Workspace space{};
Workspace workspace() { return space; }

// cuBLASLt on the same stream; its kernels are no dependent launches and wait for all before them.
Blas blas;
bool blas_product(const LibraryProduct& p) {
    Blas::Plan* plan = blas.plan(p);
    return plan && blas.run(*plan, p, stream);
}
void open_blas() {
    void* memory = nullptr;
    if (!switched_on("GENKIT_CUDA_BLAS")) return;
    if (cudaMalloc(&memory, Blas::workspace_bytes) == cudaSuccess && blas.open(memory)) library_product = blas_product;
    else cudaFree(memory), cudaGetLastError();
}

// ---- plugin.h ----------------------------------------------------------------------------------------------------

const char* facts(DeviceFacts* facts) {
    flush();
    int device = 0;
    cudaDeviceProp properties;
    size_t available = 0, memory = 0;
    if (cudaError_t error = cudaGetDevice(&device)) return words(error);
    if (cudaError_t error = cudaGetDeviceProperties(&properties, device)) return words(error);
    if (cudaError_t error = cudaMemGetInfo(&available, &memory)) return words(error);
    // What was freed stays the pool's (see open): taken for the system, but ours to take again.
    cudaMemPool_t pool;
    uint64_t reserved = 0, used = 0;
    if (cudaError_t error = cudaDeviceGetDefaultMemPool(&pool, device)) return words(error);
    if (cudaError_t error = cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved)) return words(error);
    if (cudaError_t error = cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used)) return words(error);
    snprintf(facts->name, sizeof facts->name, "%s", properties.name);
    facts->major = properties.major;
    facts->minor = properties.minor;
    facts->processors = properties.multiProcessorCount;
    facts->memory = int64_t(memory);
    facts->available = int64_t(available) + int64_t(reserved - used);
    return nullptr;
}

const char* open(DeviceFacts* found) {
    poison = getenv("GENKIT_CUDA_POISON") != nullptr;
    if (cudaError_t error = cudaSetDevice(0)) return words(error);
    if (const char* error = facts(found)) return error;
    space.processors = found->processors;
    int shared = 0;
    if (cudaError_t error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0)) return words(error);
    space.shared = shared;
    cudaFuncAttributes attributes;  // whether there is code for this device
    if (cudaError_t error = cudaFuncGetAttributes(&attributes, add_kernel)) return words(error);
    dependent_launch = attributes.ptxVersion >= 90 && switched_on("GENKIT_CUDA_PDL");
    if (cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) return words(error);
    if (cudaError_t error = cudaMalloc(&space.counters, workspace_counters * sizeof(uint32_t))) return words(error);
    if (cudaError_t error = cudaMemsetAsync(space.counters, 0, workspace_counters * sizeof(uint32_t), stream)) return words(error);
    if (cudaError_t error = cudaMalloc(&space.scratch, workspace_bytes)) return words(error);
    open_blas();
    // Freed memory stays ours: ops ask for the same sizes again and again.
    cudaMemPool_t pool;
    uint64_t keep = UINT64_MAX;
    if (cudaError_t error = cudaDeviceGetDefaultMemPool(&pool, 0)) return words(error);
    return words(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
}

void* allocate(size_t bytes) {
    void* memory = nullptr;
    if (cudaMallocAsync(&memory, bytes, stream) != cudaSuccess) {
        cudaGetLastError();
        return nullptr;
    }
    if (poison) note(cudaMemsetAsync(memory, 0xff, bytes, stream));
    return memory;
}

void release(void* memory) {
    flush();
    note(cudaFreeAsync(memory, stream));
}

const char* upload(void* to, const void* from, size_t bytes) {
    flush();
    if (cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream)) return words(error);
    return words(cudaStreamSynchronize(stream));
}

const char* download(void* to, const void* from, size_t bytes) {
    flush();
    if (cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream)) return words(error);
    return words(cudaStreamSynchronize(stream));
}

const char* clear(void* memory, size_t bytes) {
    flush();
    return words(cudaMemsetAsync(memory, 0, bytes, stream));
}

const char* check() {
    flush();
    const cudaError_t error = first_error;
    first_error = cudaSuccess;
    return words(error);
}

const char* graph_begin() {
    flush();
    return words(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
}

void* graph_end(const char** error) {
    flush();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    *error = words(cudaStreamEndCapture(stream, &graph));
    if (*error == nullptr) *error = words(cudaGraphInstantiate(&ready, graph, 0));
    if (graph != nullptr) cudaGraphDestroy(graph);
    return ready;
}

const char* graph_run(void* graph) {
    flush();
    return words(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream));
}
void graph_release(void* graph) { note(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph))); }

void* share(size_t bytes) {
    void* memory = nullptr;  // of one address for both, as everywhere with 64 bits
    if (cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError();
        return nullptr;
    }
    return memset(memory, 0, bytes);
}
void unshare(void* memory) {
    flush();
    note(cudaStreamSynchronize(stream));
    note(cudaFreeHost(memory));
}

const char* progress(bool* idle) {
    flush();
    const cudaError_t state = cudaStreamQuery(stream);
    *idle = state == cudaSuccess;
    return state == cudaErrorNotReady ? nullptr : words(state);
}

const DevicePlugin plugin = {GENKIT_PLUGIN_ABI, GENKIT_CUDA_TARGETS, open, facts, install_queued, allocate, release, upload, download, clear, check,
                             graph_begin, graph_end, graph_run, graph_release, share, unshare, advance, progress};

}  // namespace
}  // namespace genkit

// For doctor: what went wrong with cuBLASLt, or "".
extern "C" __attribute__((visibility("default"))) const char* genkit_blas_trouble() { return genkit::blas.words(); }

// For genkit bench: bytes of our memory that were taken at most since this was asked last, beside what is taken at open; -1: unknown.
extern "C" __attribute__((visibility("default"))) int64_t genkit_most_used() {
    cudaMemPool_t pool;
    uint64_t most = 0, now = 0, anew = 0;
    genkit::flush();
    if (cudaDeviceGetDefaultMemPool(&pool, 0) || cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemHigh, &most) ||
        cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &now) || cudaMemPoolSetAttribute(pool, cudaMemPoolAttrUsedMemHigh, &anew)) {
        cudaGetLastError();
        return -1;
    }
    return int64_t(most > now ? most : now);
}

extern "C" __attribute__((visibility("default"))) const genkit::DevicePlugin* genkit_device_plugin() { return &genkit::plugin; }
