// What cuda_races.h tells of; compiled without -fsanitize=thread, whose calls come here.
#include "cuda_races.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <unordered_map>
#include <vector>

namespace races {

std::set<Found> found;
int running = -1;

namespace {

using Clocks = std::vector<uint32_t>;  // of threads; of each thread's copies, the last number there; of barriers, phases passed
struct Access {
    int64_t block;
    uintptr_t code;
    int who;
    uint32_t when;
    uint8_t bytes;  // of a word
    bool writes;
    Kind kind;
};

constexpr int barriers_most = 256;
constexpr size_t kept_most = 40;  // accesses of a word of memory, which many blocks may read
std::string kernel;
bool quiet = false;
int threads = 0;
int64_t block = 0;
uintptr_t shared_begin = 0, shared_end = 0, memory_begin = 0, memory_end = 0;
std::vector<Clocks> clocks;
std::vector<uint32_t> asked;  // copies, of each thread
std::vector<bool> has_waited, by_kernels;  // threads; words of memory
std::map<const void*, int> barriers;
std::map<std::pair<const void*, int64_t>, Clocks> met;  // of a barrier, by phase
std::vector<std::vector<Access>> in_shared;
std::unordered_map<uintptr_t, std::vector<Access>> in_memory;

Clocks& mine() { return clocks[size_t(running)]; }
void join(Clocks& a, const Clocks& b) {
    for (size_t i = 0; i < a.size(); i++) a[i] = std::max(a[i], b[i]);
}

void look(std::vector<Access>& before, const Access& now, bool shared) {
    const Clocks& seen = mine();
    size_t kept = 0;
    for (size_t i = 0; i < before.size(); i++) {
        const Access& o = before[i];
        const bool same = o.block == now.block;
        const bool ordered = same && ((o.who == now.who && o.who < threads) || seen[size_t(o.who)] >= o.when);
        // The block that was last to arrive sets back what all have counted in.
        const bool between = !same && (now.kind == fresh || (o.kind == atomic && now.writes));
        if ((o.bytes & now.bytes) && (o.writes || now.writes) && !ordered && !between && !(o.kind == atomic && now.kind == atomic))
            found.insert({kernel,
                          std::string(shared ? "shared memory" : same ? "memory" : "memory of two blocks") + ", a " +
                              (now.writes ? "write" : "read") + " after a " + (o.writes ? "write" : "read"),
                          now.code, o.code});
        const bool over = ordered && !(o.bytes & ~now.bytes) && (now.writes || !o.writes);  // who races with it races with this one
        if (!over) before[kept++] = before[i];
    }
    before.resize(kept);
    if (!shared && kept > kept_most) before.erase(before.begin());
    before.push_back(now);
}

void access(const void* p, size_t bytes, bool writes, Kind kind, void* code, int who, uint32_t when) {
    const auto begin = reinterpret_cast<uintptr_t>(p), end = begin + bytes;
    const bool shared = begin >= shared_begin && begin < shared_end;
    if (!shared && !(begin >= memory_begin && begin < memory_end)) return;
    Access now{block, reinterpret_cast<uintptr_t>(code), who, when, 0, writes, kind};
    for (uintptr_t a = begin, next; a < end; a = next) {
        const uintptr_t word = a / 4 * 4;
        next = std::min(word + 4, end);
        now.bytes = uint8_t((1u << (next - word)) - (1u << (a - word)));
        look(shared ? in_shared[(word - shared_begin) / 4] : in_memory[word], now, shared);
        if (shared) continue;
        auto written = by_kernels[(word - memory_begin) / 4];
        if (!has_waited[size_t(running)] && (writes || written)) found.insert({kernel, "memory, ahead of wait_for_previous", now.code, now.code});
        if (writes) written = true;
    }
}
void access(const void* p, size_t bytes, bool writes, Kind kind, void* code) {
    if (running >= 0) access(p, bytes, writes, kind, code, running, mine()[size_t(running)]);
}
void access_copied(void* to, const void* from, size_t bytes, void* code, int who, uint32_t when) {
    access(to, bytes, true, plain, code, who, when);
    if (from) access(from, bytes, false, plain, code, who, when);
}

}  // namespace

void memory(const void* p, size_t bytes) {
    memory_begin = reinterpret_cast<uintptr_t>(p), memory_end = memory_begin + bytes;
    by_kernels.assign(bytes / 4 + 1, false);
}
void begin_kernel(const char* name) { kernel = name, in_memory.clear(); }
void begin_block(int64_t number, int count, const char* shared, int bytes) {
    threads = count, block = number;
    clocks.assign(size_t(count), Clocks(size_t(2 * count + barriers_most), 0));
    for (int t = 0; t < count; t++) clocks[size_t(t)][size_t(t)] = 1;
    asked.assign(size_t(count), 0), has_waited.assign(size_t(count), false), barriers.clear(), met.clear();
    shared_begin = reinterpret_cast<uintptr_t>(shared), shared_end = shared_begin + size_t(bytes);
    in_shared.assign(size_t(bytes) / 4 + 1, {});
}
Quiet::Quiet() { quiet = true; }
Quiet::~Quiet() { quiet = false; }

void waited() { has_waited[size_t(running)] = true; }

void touch(const void* p, size_t bytes, bool writes, Kind kind) { access(p, bytes, writes, kind, __builtin_return_address(0)); }
void arrive(const void* barrier, int64_t phase) {
    auto at = met.find({barrier, phase});
    if (at == met.end()) {
        auto last = met.find({barrier, phase - 1});
        at = met.insert({{barrier, phase}, last == met.end() ? Clocks(mine().size(), 0) : last->second}).first;
        met.erase({barrier, phase - 3});
    }
    join(at->second, mine());
    mine()[size_t(running)]++;
}
void leave(const void* barrier, int64_t phase) {
    if (auto at = met.find({barrier, phase}); at != met.end()) join(mine(), at->second);
    if (auto at = barriers.find(barrier); at != barriers.end()) {
        uint32_t& passed = mine()[size_t(2 * threads + at->second)];
        passed = std::max(passed, uint32_t(phase + 1));
    }
}
uint32_t copy(void* to, const void* from, size_t bytes) {
    const uint32_t number = ++asked[size_t(running)];
    access_copied(to, from, bytes, __builtin_return_address(0), threads + running, number);
    return number;
}
void copied(uint32_t number) {
    uint32_t& there = mine()[size_t(threads + running)];
    there = std::max(there, number);
}
void copy_by(const void* barrier, int64_t phase, void* to, const void* from, size_t bytes) {
    const int index = barriers.insert({barrier, int(barriers.size())}).first->second;
    if (index >= barriers_most) throw std::runtime_error("more barriers than clocks");
    access_copied(to, from, bytes, __builtin_return_address(0), 2 * threads + index, uint32_t(phase + 1));
}

#define TOLD(name, bytes, writes) \
    extern "C" void __tsan_##name(void* p) { if (!quiet) access(p, bytes, writes, plain, __builtin_return_address(0)); }
#define TOLD_BOTH(bytes)                                                  \
    TOLD(read##bytes, bytes, false) TOLD(write##bytes, bytes, true)       \
    TOLD(volatile_read##bytes, bytes, false) TOLD(volatile_write##bytes, bytes, true)
#define TOLD_UNALIGNED(bytes) TOLD(unaligned_read##bytes, bytes, false) TOLD(unaligned_write##bytes, bytes, true)
TOLD_BOTH(1) TOLD_BOTH(2) TOLD_BOTH(4) TOLD_BOTH(8) TOLD_BOTH(16)
TOLD_UNALIGNED(2) TOLD_UNALIGNED(4) TOLD_UNALIGNED(8) TOLD_UNALIGNED(16)
extern "C" void __tsan_read_range(void* p, size_t bytes) { if (!quiet) access(p, bytes, false, plain, __builtin_return_address(0)); }
extern "C" void __tsan_write_range(void* p, size_t bytes) { if (!quiet) access(p, bytes, true, plain, __builtin_return_address(0)); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
extern "C" unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) { return *p; }  // guards of statics

}  // namespace races
