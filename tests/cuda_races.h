// Races that cuda_shim.h's order of threads does not show: hooks of the shim where GK_RACES is defined, for cuda_races.cpp. Every access
// that g++ -fsanitize=thread tells of (its library is not linked) is compared with those before it by vector clocks. What orders threads: sync,
// sync_warp, sync_some, barriers of copies; what a warp does together (shuffles, votes, products) does not. A copy is a write from
// when it is asked for, seen by who has waited for it and by who that thread has met since.
// Looked at: shared memory, and the memory told of by races::memory, where beside threads of a block also blocks are compared.
#pragma once
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <tuple>

namespace races {

struct Found {
    std::string kernel, what;
    uintptr_t now, before;  // places in the program
    bool operator<(const Found& o) const { return std::tie(kernel, what, now, before) < std::tie(o.kernel, o.what, o.now, o.before); }
};
extern std::set<Found> found;

// From here on kernels may touch what they write there only after wait_for_previous.
void memory(const void* p, size_t bytes);
void begin_kernel(const char* name);
void begin_block(int64_t number, int threads, const char* shared, int bytes);
extern int running;  // the thread, or -1
void waited();       // for the kernel before

enum Kind : uint8_t { plain, atomic, fresh };  // fresh: of what other blocks may have written
void touch(const void* p, size_t bytes, bool writes, Kind kind);
// Who leaves a phase of a barrier has seen what was done ahead of all arrivals up to then, and its copies.
void arrive(const void* barrier, int64_t phase);
void leave(const void* barrier, int64_t phase);
uint32_t copy(void* to, const void* from, size_t bytes);  // -> its number of this thread's
void copied(uint32_t number);                             // is there, and those before it
void copy_by(const void* barrier, int64_t phase, void* to, const void* from, size_t bytes);

// The shim touches memory for somebody, and has told of it; nobody switches meanwhile.
struct Quiet {
    Quiet();
    ~Quiet();
};

}  // namespace races
