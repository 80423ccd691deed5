// The plugin of cuda/ on a processor: the same kernels through the shim, on memory that only they and the copies may touch.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../cpp/kernels.h"
#include "../cpp/loop.h"
#include "../cpp/plugin.h"
#include "../cuda/gk.h"

namespace genkit {
namespace {

constexpr size_t piece = 256;
size_t memory_bytes = size_t(1) << 30;  // or what GENKIT_STAND_IN_MEMORY says
char* memory = nullptr;
std::map<size_t, size_t> taken;  // offset -> bytes
std::vector<std::function<void()>>* noted = nullptr;
int opened = 0;
size_t used = 0, most_used = 0;

// The device's memory can be reached while one of these lives.
struct Reach {
    Reach() {
        if (opened++ == 0) mprotect(memory, memory_bytes, PROT_READ | PROT_WRITE);
    }
    ~Reach() {
        if (--opened == 0) mprotect(memory, memory_bytes, PROT_NONE);
    }
};

// Graphs that were started and have not run: a device is behind what it is asked for. They run when somebody waits for the
// device, one whenever somebody asks how far it is.
std::deque<std::vector<std::function<void()>>*> asked_for;
int64_t most_ahead = 0;
void run_one() {
    const Reach reach;
    for (auto& run : *asked_for.front()) run();
    asked_for.pop_front();
}
void finish() {
    while (!asked_for.empty()) run_one();
}

int64_t started = 0;  // kernels, run or noted
void flush();         // queue.inl

template <class Body>
void start(int64_t grid_x, int64_t grid_y, int threads, int shared_bytes, Body body) {
    flush();
    started += grid_x > 0 && grid_y > 0;
    auto run = [=] {
        const Reach reach;
        gk::launch_kernel(grid_x, grid_y, threads, shared_bytes, body);
    };
    if (noted) return noted->push_back(run);
    finish();
    run();
}
#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) \
    start(grid_x, grid_y, threads, shared_bytes, [=] { kernel(__VA_ARGS__); })

#include "../cuda/kernels.inl"
#include "../cuda/loop.inl"
#include "cuda_planted.inl"

void install_stand_in(Kernels& k) {
    install_queued(k);
    if (const char* planted = std::getenv("GENKIT_STAND_IN_PLANTED")) install_planted(k, planted);
}

Workspace space{};
Workspace workspace() { return space; }

Blas blas;
bool blas_product(const LibraryProduct& p) {
    Blas::Plan* plan = blas.plan(p);
    if (!plan) return false;
    auto run = [=] {
        const Reach reach;
        return blas.run(*plan, p, nullptr);
    };
    if (!noted) return finish(), run();
    noted->push_back([=] { run(); });
    return true;
}

const char* facts(DeviceFacts* f) {
    flush();
    snprintf(f->name, sizeof f->name, "a processor that stands in for a GPU");
    f->major = 0, f->minor = 0, f->processors = 1;
    f->memory = int64_t(memory_bytes), f->available = int64_t(memory_bytes - used);
    return nullptr;
}

void* allocate(size_t bytes) {
    size_t at = 0;
    bytes = (bytes + piece - 1) / piece * piece;
    for (auto& [begin, size] : taken) {  // first fit
        if (begin - at >= bytes) break;
        at = begin + size;
    }
    if (at + bytes > memory_bytes) return nullptr;
    taken[at] = bytes;
    most_used = std::max(most_used, used += bytes);
    const Reach reach;
    std::memset(memory + at, 0xff, bytes);  // NaN, never zeros
    return memory + at;
}

const char* open(DeviceFacts* f) {
    if (const char* size = std::getenv("GENKIT_STAND_IN_MEMORY")) memory_bytes = std::strtoull(size, nullptr, 10) / 4096 * 4096;
    memory = static_cast<char*>(mmap(nullptr, memory_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED) return "no memory";
    space = {static_cast<uint32_t*>(allocate(workspace_counters * sizeof(uint32_t))), static_cast<char*>(allocate(workspace_bytes)), 1};
    if (space.counters == nullptr || space.scratch == nullptr) return "no memory";
    if (switched_on("GENKIT_CUDA_BLAS") && blas.open(allocate(Blas::workspace_bytes))) library_product = blas_product;
    const Reach reach;
    std::memset(space.counters, 0, workspace_counters * sizeof(uint32_t));
    return facts(f);
}

void release(void* p) {
    flush();
    finish();
    auto block = taken.find(size_t(static_cast<char*>(p) - memory));
    used -= block->second;
    taken.erase(block);
}

const char* copy(void* to, const void* from, size_t bytes) {
    flush();
    finish();
    const Reach reach;
    std::memcpy(to, from, bytes);
    return nullptr;
}
const char* clear(void* p, size_t bytes) {
    flush();
    finish();
    const Reach reach;
    std::memset(p, 0, bytes);
    return nullptr;
}
const char* check() {
    flush();
    return nullptr;
}

const char* graph_begin() {
    flush();
    noted = new std::vector<std::function<void()>>;
    return nullptr;
}
void* graph_end(const char** error) {
    flush();
    *error = nullptr;
    void* graph = noted;
    noted = nullptr;
    return graph;
}
const char* graph_run(void* graph) {
    flush();
    asked_for.push_back(static_cast<std::vector<std::function<void()>>*>(graph));
    most_ahead = std::max(most_ahead, int64_t(asked_for.size()));
    return nullptr;
}
void graph_release(void* graph) {
    finish();
    delete static_cast<std::vector<std::function<void()>>*>(graph);
}

void* share(size_t bytes) { return std::calloc(bytes, 1); }
void unshare(void* p) {
    finish();
    std::free(p);
}
// GENKIT_STAND_IN_FAULT: a device that fails, or one that ends and has told nothing, after so many questions.
const char* progress(bool* idle) {
    flush();
    static int asked = 0;
    const char* fault = std::getenv("GENKIT_STAND_IN_FAULT");
    if (fault && ++asked > 3) {
        *idle = true;
        return std::string(fault) == "silent" ? nullptr : "an illegal memory access was encountered";
    }
    if (!asked_for.empty()) run_one();
    *idle = asked_for.empty();
    return nullptr;
}

const DevicePlugin plugin = {GENKIT_PLUGIN_ABI, "no GPU", open, facts, install_stand_in, allocate, release, copy, copy, clear, check,
                             graph_begin, graph_end, graph_run, graph_release, share, unshare, advance, progress};

}  // namespace
}  // namespace genkit

// For tests: how many kernels were started, or noted in a graph, so far.
extern "C" __attribute__((visibility("default"))) int64_t genkit_started() { return genkit::started; }

// How many graphs were ever on their way at once.
extern "C" __attribute__((visibility("default"))) int64_t genkit_most_ahead() { return genkit::most_ahead; }

extern "C" __attribute__((visibility("default"))) const char* genkit_blas_trouble() { return genkit::blas.words(); }

// How many bytes were taken at most since this was asked last.
extern "C" __attribute__((visibility("default"))) int64_t genkit_most_used() {
    const size_t most = genkit::most_used;
    genkit::most_used = genkit::used;
    return int64_t(most);
}

extern "C" __attribute__((visibility("default"))) const genkit::DevicePlugin* genkit_device_plugin() { return &genkit::plugin; }
