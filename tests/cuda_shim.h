// gk.h's face on a processor: the threads of one block as fibers, one running at a time, which change at sync() and inside
// what a warp does together. Finds wrong indexing and missing barriers that matter in this order; races only with GK_RACES.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <vector>

#include "../cpp/kernels.h"

#define GK_KERNEL static
#define GK_UNROLL
#define GK_ROLLED
#define GK_BOUNDS(threads, blocks)
#define DEVICE static inline
#define HOST_DEVICE static inline
#define INLINE static inline

namespace genkit::stored {
#include "../cpp/cpu/storage.inl"
}

// void gk_switch(void** from, void* to): keeps what a call must keep on the stack it leaves, and takes up the other one.
asm(R"(
.text
.type gk_switch, @function
gk_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
extern "C" void gk_switch(void** from, void* to);

#ifdef GK_RACES  // see cuda_races.h
#include "cuda_races.h"
#define RACES(...) __VA_ARGS__
#else
#define RACES(...)
#endif

namespace gk {

constexpr size_t stack_bytes = size_t(1) << (16 RACES(+ 2));

// Threads that wait for one another: how many have not ended, how many of them have come to the next meeting, meetings passed.
struct Meeting {
    int alive = 0, here = 0;
    int64_t passed = 0;

    void look() {
        if (here == 0 || here < alive) return;
        here = 0;
        passed++;
    }
};

struct Fiber {
    void* stack_pointer = nullptr;
    bool done = false, waited = false;
    const Meeting* at = nullptr;  // waits until it has passed so often
    int64_t until = 0;
    // What a lane shows the others of its warp: two places used in turn, so that nobody shows the next thing where somebody has yet
    // to look at the last one.
    uint32_t mail[2][12];
    int turn = 0;
    struct Copy {
        void* to;
        const void* from;
        size_t bytes;
        RACES(uint32_t number = 0;)
    };
    std::vector<std::vector<Copy>> groups;  // copies on their way: the last one is still open
};

// What a barrier in shared memory counts: copies of many bytes asked for, and done.
struct CopyBarrier {
    void* to;
    const void* from;
    int bytes, asked, done;
};

// A barrier for the copies of many threads.
struct Phases {
    bool told = false;
    int arrivals = 0, here = 0;
    int64_t expected = 0, asked = 0, passed = 0;
    std::vector<Fiber::Copy> copies;
};

struct Block {
    std::vector<Fiber> fibers;
    std::map<uint64_t*, Phases> phases;
    std::map<int, Meeting> some;
    std::map<uint64_t*, CopyBarrier> barriers;
    Meeting all;
    std::vector<Meeting> warps;
    std::vector<char> memory;
    void* home = nullptr;
    int current = 0;
    bool moved = false;  // whether some thread went on, this time round
    int64_t x = 0, y = 0, count_x = 0;
    const std::function<void()>* body = nullptr;
};
inline Block* running = nullptr;
DEVICE char* shared() { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(running->memory.data()) + 15) / 16 * 16); }

inline void switch_away() { gk_switch(&running->fibers[size_t(running->current)].stack_pointer, running->home); }

inline void enter() {
    (*running->body)();
    running->fibers[size_t(running->current)].done = true;
    for (Meeting* meeting : {&running->all, &running->warps[size_t(running->current / 32)]}) {
        meeting->alive--;
        meeting->look();
    }
    switch_away();
}

inline int64_t threads_that_never_waited = 0;

// Runs the threads of a warp in turn until none can go on by what another one of them does. -> whether one has not ended.
inline bool run_warp(Block& b, int first, int last) {
    bool left = false;
    for (bool again = true; again;) {
        again = false;
        for (int t = first; t < last; t++) {
            Fiber& fiber = b.fibers[size_t(t)];
            if (fiber.done) continue;
            left = true;
            if (fiber.at != nullptr && fiber.at->passed < fiber.until) continue;
            fiber.at = nullptr;
            b.current = t, b.moved = true;
            RACES(races::running = t;)
            gk_switch(&b.home, fiber.stack_pointer);
            RACES(races::running = -1;)
            again = again || fiber.done || fiber.at == &b.warps[size_t(t / 32)];
        }
    }
    return left;
}

// Runs body in every thread of every block, one block after the other; warps first to last, and last to first in every other block.
inline void launch(int64_t grid_x, int64_t grid_y, int threads, int shared_bytes, const std::function<void()>& body) {
    static char* const stacks = new char[stack_bytes * 1024];
    for (int64_t i = 0; i < grid_x * grid_y; i++) {
        static Block b;  // with the memory of the one before
        b.phases.clear(), b.some.clear(), b.barriers.clear();
        b.all = {};
        b.body = &body;
        b.x = i % grid_x;
        b.y = i / grid_x;
        b.count_x = grid_x;
        b.memory.assign(size_t(shared_bytes) + 16, char(0xa5));  // never zeros
        b.fibers.assign(size_t(threads), {});
        b.all.alive = threads;
        b.warps.assign(size_t(threads + 31) / 32, {});
        for (int t = 0; t < threads; t++) b.warps[size_t(t / 32)].alive++;
        running = &b;
        RACES(races::begin_block(i, threads, shared(), shared_bytes);)
        for (size_t t = 0; t < b.fibers.size(); t++) {
            const size_t apart = t % 128 * 192;  // or the tops of all stacks would want the same few lines of a cache
            auto top = reinterpret_cast<uintptr_t>(stacks + (t + 1) * stack_bytes - apart) / 16 * 16;
            auto* stack = reinterpret_cast<void**>(top) - 2;  // enter's return address would lie at 8 below a multiple of 16
            stack[0] = reinterpret_cast<void*>(enter);
            b.fibers[t].stack_pointer = stack - 6;
        }
        const int warps = int(b.warps.size());
        for (bool left = true; left;) {
            left = b.moved = false;
            for (int w = 0; w < warps; w++) {
                const int first = (i % 2 ? warps - 1 - w : w) * 32;
                left |= run_warp(b, first, std::min(first + 32, threads));
            }
            if (left && !b.moved) throw std::runtime_error("threads that wait for one another for ever");
        }
        running = nullptr;
        for (const Fiber& fiber : b.fibers) threads_that_never_waited += !fiber.waited;
    }
}

// The same of a kernel, which every thread of may only leave once the kernel before has ended.
inline void launch_kernel(int64_t grid_x, int64_t grid_y, int threads, int shared_bytes, const std::function<void()>& body) {
    threads_that_never_waited = 0;
    launch(grid_x, grid_y, threads, shared_bytes, body);
    if (threads_that_never_waited) throw std::runtime_error("a thread that did not wait for the kernel before");
}

DEVICE int thread() { return running->current; }
DEVICE int lane() { return running->current % 32; }
DEVICE int threads() { return int(running->fibers.size()); }
DEVICE int64_t block() { return running->x; }
DEVICE int64_t block_y() { return running->y; }
DEVICE int64_t blocks() { return running->count_x; }

// Waits until every thread that has not ended has come as far.
inline void meet(Meeting& meeting) {
    const int64_t mine = meeting.passed + 1;
    meeting.here++;
    meeting.look();
    if (meeting.passed >= mine) return;
    Fiber& fiber = running->fibers[size_t(running->current)];
    fiber.at = &meeting, fiber.until = mine;
    switch_away();
}
// The same, and what was done ahead of it is seen by all.
inline void meet_and_see(Meeting& meeting) {
    RACES(const int64_t phase = meeting.passed; races::arrive(&meeting, phase);)
    meet(meeting);
    RACES(races::leave(&meeting, phase);)
}
inline void sync() { meet_and_see(running->all); }
inline void meet_warp() { meet(running->warps[size_t(running->current / 32)]); }

inline void sync_warp() { meet_and_see(running->warps[size_t(running->current / 32)]); }

inline uint32_t* to_show() {
    Fiber& mine = running->fibers[size_t(running->current)];
    return mine.mail[mine.turn ^= 1];
}
// After a meeting.
inline const uint32_t* shown_by(int lane) {
    return running->fibers[size_t(running->current / 32 * 32 + lane)].mail[running->fibers[size_t(running->current)].turn];
}

struct Words4 {
    uint32_t x[4];
};
DEVICE Words4 load_stream(const void* p) {
    if (reinterpret_cast<uintptr_t>(p) % 16) throw std::runtime_error("a load of 16 bytes that is not aligned");
    Words4 w;
    RACES(races::touch(p, 16, false, races::plain);)
    std::memcpy(&w, p, 16);
    return w;
}


template <class A>
int32_t dot4(uint32_t a, uint32_t b) {
    int32_t sum = 0;
    for (int i = 0; i < 4; i++) sum += A(a >> (8 * i)) * int8_t(b >> (8 * i));
    return sum;
}

// Everyone shows its fragments, then each adds up its own four elements of d.
template <int halves, class A = int8_t>
inline void mma(int32_t (&d)[4], const uint32_t* a, const uint32_t* b) {
    const int lane = running->current % 32, g = lane / 4, t = lane % 4;
    uint32_t* mail = to_show();
    for (int i = 0; i < 2 * halves; i++) mail[i] = a[i];
    for (int i = 0; i < halves; i++) mail[4 + i] = b[i];
    meet_warp();
    for (int i = 0; i < 4; i++)
        for (int half = 0; half < halves; half++)
            for (int q = 0; q < 4; q++)  // row g, or g + 8
                d[i] += dot4<A>(shown_by(g * 4 + q)[half * 2 + i / 2], shown_by((2 * t + i % 2) * 4 + q)[4 + half]);
}
DEVICE void mma_k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma<2>(d, a, b); }
DEVICE void mma_k32_u8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma<2, uint8_t>(d, a, b); }
DEVICE void mma_k16(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    const uint32_t a[2] = {a0, a1};
    mma<1>(d, a, &b0);
}

// The same of 16-bit elements; the device's own order of such a sum is not known.
template <class T>
void mma_16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const int lane = running->current % 32, g = lane / 4, t = lane % 4;
    auto* mail = reinterpret_cast<float*>(to_show());
    for (int i = 0; i < 8; i++) mail[i] = widen(T{uint16_t(a[i / 2] >> i % 2 * 16)});
    for (int i = 0; i < 4; i++) mail[8 + i] = widen(T{uint16_t(b[i / 2] >> i % 2 * 16)});
    meet_warp();
    const float *rows[4], *columns[2][4];
    for (int q = 0; q < 4; q++) {
        rows[q] = reinterpret_cast<const float*>(shown_by(g * 4 + q));
        for (int i = 0; i < 2; i++) columns[i][q] = reinterpret_cast<const float*>(shown_by((2 * t + i) * 4 + q)) + 8;
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++)
            d[i] += rows[k % 8 / 2][k / 8 * 4 + i / 2 * 2 + k % 2] * columns[i % 2][k % 8 / 2][k / 8 * 2 + k % 2];
}
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_16<genkit::stored::bf16>(d, a, b); }
DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_16<genkit::stored::f16>(d, a, b); }

DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const int lane = running->current % 32, g = lane / 4, t = lane % 4;
    uint32_t* mail = to_show();
    for (int i = 0; i < 4; i++) mail[i] = a[i];
    for (int i = 0; i < 2; i++) mail[4 + i] = b[i];
    meet_warp();
    auto tf32 = [](uint32_t bits) {
        if (bits & 0x1fffu && (bits & 0x7f800000u) != 0x7f800000u) throw std::runtime_error("more bits than tf32 has");
        return genkit::stored::from_bits(bits);
    };
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 8; k++)
            d[i] += tf32(shown_by(g * 4 + k % 4)[k / 4 * 2 + i / 2]) * tf32(shown_by((2 * t + i % 2) * 4 + k % 4)[4 + k / 4]);
}
DEVICE uint32_t round_tf32(float x) { return x == x ? (genkit::stored::to_bits(x) + 0x1000u) & 0xffffe000u : 0x7fffffffu; }
DEVICE void widen_f16(uint32_t pair, uint32_t& low, uint32_t& high) {
    low = genkit::stored::to_bits(widen(genkit::stored::f16{uint16_t(pair)}));
    high = genkit::stored::to_bits(widen(genkit::stored::f16{uint16_t(pair >> 16)}));
}

template <class T>
uint32_t rounded(float x) {
    T out;
    narrow(x, out);
    return x == x ? out.bits : 0x7fff;  // the instructions have one NaN
}
template <class T>
uint32_t pack(float low, float high) { return rounded<T>(low) | rounded<T>(high) << 16; }
DEVICE uint32_t pack_bf16(float low, float high) { return pack<genkit::stored::bf16>(low, high); }
DEVICE uint32_t pack_f16(float low, float high) { return pack<genkit::stored::f16>(low, high); }
template <class T>
void widen_i8(uint32_t codes, uint32_t& low, uint32_t& high) {
    float x[4];
    for (int i = 0; i < 4; i++) x[i] = float(int8_t(codes >> (8 * i)));
    low = pack<T>(x[0], x[1]), high = pack<T>(x[2], x[3]);
}
DEVICE void widen_i8_f16(uint32_t codes, uint32_t& low, uint32_t& high) { widen_i8<genkit::stored::f16>(codes, low, high); }
DEVICE void widen_i8_bf16(uint32_t codes, uint32_t& low, uint32_t& high) { widen_i8<genkit::stored::bf16>(codes, low, high); }

template <bool transposed>
Words4 matrices(const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16) throw std::runtime_error("a row of a matrix that is not aligned");
    const int lane = running->current % 32, g = lane / 4, t = lane % 4;
    RACES(races::touch(row, 16, false, races::plain);)
    std::memcpy(to_show(), &row, sizeof row);
    meet_warp();
    Words4 w;
    for (int m = 0; m < 4; m++) {
        RACES(const races::Quiet quiet;)
        uint16_t pair[2];
        for (int i = 0; i < 2; i++) {
            const char* from;
            std::memcpy(&from, shown_by(8 * m + (transposed ? 2 * t + i : g)), sizeof from);
            std::memcpy(&pair[i], from + 2 * (transposed ? g : 2 * t + i), 2);
        }
        w.x[m] = pair[0] | uint32_t(pair[1]) << 16;
    }
    meet_warp();  // all read at once: what comes next may write there
    return w;
}
DEVICE Words4 load_matrix(const void* row) { return matrices<false>(row); }
DEVICE Words4 load_matrix_transposed(const void* row) { return matrices<true>(row); }

// As late as it may happen, so that a forgotten wait shows.
DEVICE void copy_async(void* to, const void* from, bool wanted = true) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || (wanted && reinterpret_cast<uintptr_t>(from) % 16))
        throw std::runtime_error("a copy of 16 bytes that is not aligned");
    auto& groups = running->fibers[size_t(running->current)].groups;
    if (groups.empty()) groups.emplace_back();
    if (!wanted) from = nullptr;
    groups.back().push_back({to, from, 16 RACES(, races::copy(to, from, 16))});
}
DEVICE void copy_async_word(void* to, const void* from) {
    if (reinterpret_cast<uintptr_t>(to) % 4 || reinterpret_cast<uintptr_t>(from) % 4) throw std::runtime_error("a copy of 4 bytes that is not aligned");
    auto& groups = running->fibers[size_t(running->current)].groups;
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({to, from, 4 RACES(, races::copy(to, from, 4))});
}
DEVICE void copy_commit() {
    auto& groups = running->fibers[size_t(running->current)].groups;
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
}
template <int newest>
void copy_wait() {
    RACES(const races::Quiet quiet;)
    auto& groups = running->fibers[size_t(running->current)].groups;
    while (groups.size() > size_t(newest) + 1) {
        RACES(for (auto& copy : groups.front()) races::copied(copy.number);)
        for (auto& copy : groups.front())
            if (copy.from) std::memcpy(copy.to, copy.from, copy.bytes);
            else std::memset(copy.to, 0, copy.bytes);
        groups.erase(groups.begin());
    }
}

// As late as it may happen: when somebody waits for it.
inline CopyBarrier& copy_barrier_of(uint64_t* barrier) {
    if (reinterpret_cast<uintptr_t>(barrier) % 8) throw std::runtime_error("a barrier that is not aligned");
    if (!running->barriers.count(barrier)) throw std::runtime_error("a barrier that nobody made");
    return running->barriers[barrier];
}
DEVICE void copy_barrier(uint64_t* barrier) {
    if (lane() != 0) return;
    RACES(races::touch(barrier, 8, true, races::plain);)
    running->barriers[barrier] = {};
}
DEVICE void copy_bulk(void* to, const void* from, int bytes, uint64_t* barrier) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16 || bytes < 16)
        throw std::runtime_error("a copy of many bytes that is not aligned");
    CopyBarrier& b = copy_barrier_of(barrier);
    if (lane() != 0) return;
    if (b.asked != b.done) throw std::runtime_error("two copies of a barrier at once");
    RACES(races::touch(barrier, 8, true, races::atomic); races::arrive(barrier, b.asked);)
    RACES(races::copy_by(barrier, b.asked, to, from, size_t(bytes));)
    b = {to, from, bytes, b.asked + 1, b.done};
}
DEVICE void copy_bulk_wait(uint64_t* barrier, int parity) {
    CopyBarrier& b = copy_barrier_of(barrier);
    RACES(races::touch(barrier, 8, false, races::atomic);)
    for (int i = 0;; i++) {  // the lane that asks may come later
        if (b.asked != b.done) {
            RACES(const races::Quiet quiet;)
            std::memcpy(b.to, b.from, size_t(b.bytes)), b.done++;
        }
        if (b.done > 0 && (b.done - 1) % 2 == parity) {
            RACES(races::leave(barrier, b.done - 1);)
            return;
        }
        if (i == 1000) throw std::runtime_error("a wait for a copy that nobody asked for");
        switch_away();
    }
}

inline Phases& phases_of(uint64_t* barrier) {
    if (!running->phases.count(barrier)) throw std::runtime_error("a barrier that nobody made");
    return running->phases[barrier];
}
inline void look(Phases& b) {
    if (!b.told || b.here < b.arrivals || b.asked < b.expected) return;
    if (b.asked > b.expected) throw std::runtime_error("more bytes than expected");
    RACES(const races::Quiet quiet;)
    for (auto& copy : b.copies) std::memcpy(copy.to, copy.from, copy.bytes);
    b.copies.clear(), b.told = false, b.here = 0, b.expected = b.asked = 0, b.passed++;
}
DEVICE void barrier_make(uint64_t* barrier, int arrivals) {
    if (reinterpret_cast<uintptr_t>(barrier) % 8) throw std::runtime_error("a barrier that is not aligned");
    RACES(races::touch(barrier, 8, true, races::plain);)
    running->phases[barrier] = {};
    running->phases[barrier].arrivals = arrivals;
}
DEVICE void barrier_arrive(uint64_t* barrier) {
    Phases& b = phases_of(barrier);
    RACES(races::touch(barrier, 8, true, races::atomic); races::arrive(barrier, b.passed);)
    if (++b.here > b.arrivals) throw std::runtime_error("more arrivals than a barrier has");
    look(b);
}
DEVICE void copy_expect(uint64_t* barrier, int bytes) {
    Phases& b = phases_of(barrier);
    if (b.told) throw std::runtime_error("two phases of a barrier at once");
    RACES(races::touch(barrier, 8, true, races::atomic); races::arrive(barrier, b.passed);)
    b.told = true, b.expected = bytes;
    look(b);
}
DEVICE void copy_piece(void* to, const void* from, int bytes, uint64_t* barrier) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16 || bytes < 16)
        throw std::runtime_error("a copy of many bytes that is not aligned");
    Phases& b = phases_of(barrier);
    RACES(races::touch(barrier, 8, true, races::atomic); races::copy_by(barrier, b.passed, to, from, size_t(bytes));)
    b.asked += bytes, b.copies.push_back({to, from, size_t(bytes)});
    look(b);
}
DEVICE void barrier_wait(uint64_t* barrier, int parity) {
    Phases& b = phases_of(barrier);
    RACES(races::touch(barrier, 8, false, races::atomic);)
    for (int i = 0; b.passed % 2 == parity; i++) {
        if (i == 1000000) throw std::runtime_error("a wait for copies that nobody asked for");
        switch_away();
    }
    RACES(races::leave(barrier, b.passed - 1);)
}
inline void sync_some(int id, int threads) {
    running->some[id].alive = threads;
    meet_and_see(running->some[id]);
}

// Blocks run one after the other here.
template <class T>
T add_and_tell(T* p, T x) {
    RACES(races::touch(p, sizeof(T), true, races::atomic); const races::Quiet quiet;)
    const T before = *p;
    *p += x;
    return before;
}
DEVICE uint32_t add_global(uint32_t* p, uint32_t x) { return add_and_tell(p, x); }
DEVICE uint64_t add_global(uint64_t* p, uint64_t x) { return add_and_tell(p, x); }
DEVICE uint32_t arrive_global(uint32_t* p) { return add_and_tell(p, 1u); }
DEVICE void fetch(const void*) {}
DEVICE void fence() {}
template <class T>
T load_fresh(const T* p) {
    RACES(races::touch(p, sizeof(T), false, races::fresh); const races::Quiet quiet;)
    return *p;
}
DEVICE void wait_for_previous() {
    running->fibers[size_t(running->current)].waited = true;
    RACES(races::waited();)
}
DEVICE void let_next_start() {}

// Each shows what it has; who has left shows nothing new.
template <class T>
T exchange(T x, int partner) {
    std::memcpy(to_show(), &x, sizeof x);
    meet_warp();
    T got = x;
    if (partner >= 0 && partner < 32) std::memcpy(&got, shown_by(partner), sizeof got);
    return got;
}
template <class T>
T shuffle_xor(T x, int distance) { return exchange(x, lane() ^ distance); }
template <class T>
T shuffle_up(T x, int distance) { return exchange(x, lane() - distance); }
template <class T>
T shuffle(T x, int from) { return exchange(x, from); }
DEVICE uint32_t ballot(bool yes) {
    *to_show() = yes;
    meet_warp();
    uint32_t all = 0;
    for (int i = 0; i < 32; i++) all |= (*shown_by(i) & 1) << i;
    return all;
}
DEVICE int count(uint32_t bits) { return __builtin_popcount(bits); }
template <class T>
void add_shared(T* p, T x) {
    RACES(races::touch(p, sizeof(T), true, races::atomic); const races::Quiet quiet;)
    *p += x;
}

DEVICE double fma(double a, double b, double c) { return ::fma(a, b, c); }
DEVICE float fma(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float round_even(float x) { return nearbyintf(x); }
DEVICE float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
DEVICE uint32_t max_together(uint32_t x) {
    *to_show() = x;
    meet_warp();
    for (int i = 0; i < 32; i++) x = std::max(x, *shown_by(i));
    return x;
}
DEVICE uint32_t match(uint32_t x) {
    *to_show() = x;
    meet_warp();
    uint32_t all = 0;
    for (int i = 0; i < 32; i++) all |= uint32_t(*shown_by(i) == x) << i;
    return all;
}
DEVICE int count_bits(uint32_t x) { return __builtin_popcount(x); }
DEVICE uint32_t add_together(uint32_t x) {
    *to_show() = x;
    meet_warp();
    uint32_t sum = 0;
    for (int i = 0; i < 32; i++) sum += *shown_by(i);
    return sum;
}
DEVICE void store_16(void* p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const uint32_t x[4] = {a, b, c, d};
    if (reinterpret_cast<uintptr_t>(p) % 16) throw std::runtime_error("a store of 16 bytes that is not aligned");
    RACES(races::touch(p, 16, true, races::plain);)
    std::memcpy(p, x, 16);
}
DEVICE void store_8(void* p, uint32_t a, uint32_t b) {
    const uint32_t x[2] = {a, b};
    if (reinterpret_cast<uintptr_t>(p) % 8) throw std::runtime_error("a store of 8 bytes that is not aligned");
    RACES(races::touch(p, 8, true, races::plain);)
    std::memcpy(p, x, 8);
}
DEVICE uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | d << 24; }
DEVICE float exp2(float x) { return exp2f(x); }
DEVICE float reciprocal(float x) { return 1.0f / x; }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE int first_bit(uint32_t x) { return __builtin_ctz(x); }
}  // namespace gk
