// The few things kernels ask of the device, so that their logic also runs on a processor: with nvcc they are instructions,
// without it (tests/cuda_shim.h) a block's threads run as fibers that wait for one another.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>

#include "blas.h"

#ifndef __CUDACC__
#include "cuda_shim.h"
#else
#define GK_KERNEL __global__
#define GK_UNROLL _Pragma("unroll")
#define GK_ROLLED _Pragma("unroll 1")
#define GK_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)  // registers for that many blocks at once
#define DEVICE __device__ __forceinline__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define INLINE __device__ __forceinline__

namespace gk {

DEVICE int thread() { return int(threadIdx.x); }
DEVICE int threads() { return int(blockDim.x); }
DEVICE int lane() { return int(threadIdx.x % 32); }
DEVICE int64_t block() { return int64_t(blockIdx.x); }
DEVICE int64_t block_y() { return int64_t(blockIdx.y); }
DEVICE int64_t blocks() { return int64_t(gridDim.x); }
DEVICE void sync() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE char* shared() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}

template <class T>
DEVICE T shuffle_xor(T x, int distance) { return __shfl_xor_sync(0xffffffffu, x, distance); }
template <class T>
DEVICE T shuffle_up(T x, int distance) { return __shfl_up_sync(0xffffffffu, x, distance); }
template <class T>
DEVICE T shuffle(T x, int from) { return __shfl_sync(0xffffffffu, x, from); }
DEVICE uint32_t ballot(bool yes) { return __ballot_sync(0xffffffffu, yes); }
DEVICE int count(uint32_t bits) { return __popc(bits); }  // ones
DEVICE void add_shared(uint32_t* p, uint32_t x) { atomicAdd(p, x); }
// By halves, with a carry: of 64 bits there is only a loop of comparing and swapping.
DEVICE void add_shared(uint64_t* p, uint64_t x) {
    auto* words = reinterpret_cast<uint32_t*>(p);
    const uint32_t low = uint32_t(x), before = atomicAdd(words, low), high = uint32_t(x >> 32) + (before + low < before);
    if (high) atomicAdd(words + 1, high);
}

struct Words4 {
    uint32_t x[4];
};

// 16 bytes read once: not kept in the first-level cache. For weights only, which no kernel writes.
DEVICE Words4 load_stream(const void* p) {
    Words4 w;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x[0]), "=r"(w.x[1]), "=r"(w.x[2]), "=r"(w.x[3]) : "l"(p));
    return w;
}

// d += a b over 32 of k: a [16, 32] and b [32, 8] of i8. Lane (g = lane / 4, t = lane % 4) holds of a rows g (a[0], a[2])
// and g + 8 (a[1], a[3]), k 4t.. (a[0], a[1]) and 16 + 4t.. (a[2], a[3]); of b column g, the same k; of d rows g (d[0],
// d[1]) and g + 8, columns 2t and 2t + 1 (PTX ISA, mma.m16n8k32).
DEVICE void mma_k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with a of u8.
DEVICE void mma_k32_u8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// mma_k32 over 16 of k: a[0] and a[1], b[0] of it.
DEVICE void mma_k16(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}

// d += a b over 16 of k, elements of 16 bits, sums in f32: a [16, 16] and b [16, 8]. Lane (g, t) holds of a rows g (a[0], a[2])
// and g + 8 (a[1], a[3]), k 2t and 2t + 1 (a[0], a[1]), 8 + 2t .. (a[2], a[3]); of b column g, the same k; of d as mma_k32.
#define GK_MMA_16(name, type)                                                                                                  \
    DEVICE void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {                                         \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
                     "{%0, %1, %2, %3};"                                                                                      \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                         \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                     \
    }
GK_MMA_16(mma_bf16, "bf16")
GK_MMA_16(mma_f16, "f16")
#undef GK_MMA_16

// The same over 8 of k of tf32 (floats of 11 bits): lane (g, t) holds of a rows g (a[0], a[2]) and g + 8 (a[1], a[3]), k t (a[0],
// a[1]) and t + 4; of b column g, the same k.
DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// To the nearest of 11 bits, ties away from zero.
DEVICE uint32_t round_tf32(float x) {
    uint32_t d;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(x));
    return d;
}
// Two of f16 as the bits of floats, the low half first.
DEVICE void widen_f16(uint32_t pair, uint32_t& low, uint32_t& high) {
    float l, h;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(l), "=f"(h) : "r"(pair));
    low = __float_as_uint(l), high = __float_as_uint(h);
}

// Four of i8 as two words of f16, or of bf16, the low ones first; exactly. f16: 1024 + (x + 128), of which the low byte are eight bits of its
// fraction, less 1152. bf16: 128 + the low seven bits, less 128 or, where x is below zero, 256.
DEVICE void widen_i8_f16(uint32_t codes, uint32_t& low, uint32_t& high) {
    codes ^= 0x80808080u;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(low) : "r"(__byte_perm(codes, 0x64646464u, 0x4140)), "r"(0x64806480u));
    asm("sub.f16x2 %0, %1, %2;" : "=r"(high) : "r"(__byte_perm(codes, 0x64646464u, 0x4342)), "r"(0x64806480u));
}
DEVICE uint32_t widen_i8_bf16_pair(uint32_t pair) {  // of 0x4300 | x each; before 9.0 there is no sub
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(pair & 0xff7fff7fu), "r"(0x3f803f80u), "r"((pair & 0xff80ff80u) ^ 0x80008000u));
    return d;
}
DEVICE void widen_i8_bf16(uint32_t codes, uint32_t& low, uint32_t& high) {
    low = widen_i8_bf16_pair(__byte_perm(codes, 0x43434343u, 0x4140)), high = widen_i8_bf16_pair(__byte_perm(codes, 0x43434343u, 0x4342));
}

// Two floats rounded to nearest even, the first in the low half.
DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
DEVICE uint32_t pack_f16(float low, float high) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// Four matrices of 8 rows x 16 bytes of shared memory; lane l gives the address of row l % 8 of matrix l / 8, of 16 bytes'
// alignment. Of matrix m lane (g, t) gets row g, bytes 4t .. 4t + 3; transposed (of 16-bit elements) rows 2t and 2t + 1 of column g.
DEVICE Words4 load_matrix(const void* row) {
    Words4 w;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x[0]), "=r"(w.x[1]), "=r"(w.x[2]), "=r"(w.x[3]) : "r"(uint32_t(__cvta_generic_to_shared(row))) : "memory");
    return w;
}
DEVICE Words4 load_matrix_transposed(const void* row) {
    Words4 w;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x[0]), "=r"(w.x[1]), "=r"(w.x[2]), "=r"(w.x[3]) : "r"(uint32_t(__cvta_generic_to_shared(row))) : "memory");
    return w;
}

// 16 bytes from the device's memory to shared memory while the thread goes on; zeros where not wanted. Those since the last
// commit are a group; copy_wait<n> waits for all but the newest n groups of this thread (a barrier makes them the block's).
DEVICE void copy_async(void* to, const void* from, bool wanted = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}
DEVICE void copy_async_word(void* to, const void* from) {  // the same of 4 bytes
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int newest>
DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(newest) : "memory"); }

// Many bytes from the device's memory to shared memory by one copy: a whole number of 16 bytes, as are both addresses. A warp asks for it
// together, one copy of a barrier at a time; copy_bulk_wait(barrier, parity) waits for the first copy with parity 0, the next with 1, ..
// What is copied over must have been read by the warp before it asks (sync_warp). The first argument is an 8-byte barrier in shared memory
// that the same warp has made, and met at sync_warp since.
DEVICE void copy_barrier(uint64_t* barrier) {
    if (lane() != 0) return;
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(uint32_t(__cvta_generic_to_shared(barrier))) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    asm volatile("mbarrier.init.shared.b64 [%0], 32;" :: "r"(uint32_t(__cvta_generic_to_shared(barrier))) : "memory");
#endif
}
DEVICE void copy_bulk(void* to, const void* from, int bytes, uint64_t* barrier) {
    const uint32_t b = uint32_t(__cvta_generic_to_shared(barrier));
#if __CUDA_ARCH__ >= 900
    if (lane() != 0) return;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(b), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from), "r"(bytes), "r"(b) : "memory");
#else
    for (int at = lane() * 16; at < bytes; at += 32 * 16) copy_async(static_cast<char*>(to) + at, static_cast<const char*>(from) + at);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(b) : "memory");
#endif
}
DEVICE void copy_bulk_wait(uint64_t* barrier, int parity) {
    const uint32_t b = uint32_t(__cvta_generic_to_shared(barrier));
    uint32_t done = 0;
    while (!done) {
#if __CUDA_ARCH__ >= 900
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(b), "r"(parity) : "memory");
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(b), "r"(parity) : "memory");
#endif
    }
}

// One barrier for the copies of many threads: barrier_make, of one thread, before sync(); for each phase one thread says by copy_expect how
// many bytes copy_piece copies, all threads' together, each a whole number of 16; barrier_wait(b, 0) waits for those of the first
// phase, (b, 1) of the second, .. and for `arrivals` of other threads. Before 9.0 a piece is copy_async's, so copy_wait is wanted as well.
DEVICE void barrier_make(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(uint32_t(__cvta_generic_to_shared(barrier))), "r"(arrivals + 1) : "memory");
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
DEVICE void barrier_arrive(uint64_t* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" :: "r"(uint32_t(__cvta_generic_to_shared(barrier))) : "memory");
}
DEVICE void copy_expect(uint64_t* barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
    const uint32_t b = uint32_t(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(b), "r"(bytes) : "memory");
#else
    barrier_arrive(barrier);
#endif
}
DEVICE void copy_piece(void* to, const void* from, int bytes, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from), "r"(bytes), "r"(uint32_t(__cvta_generic_to_shared(barrier))) : "memory");
#else
    for (int at = 0; at < bytes; at += 16) copy_async(static_cast<char*>(to) + at, static_cast<const char*>(from) + at);
#endif
}
DEVICE void barrier_wait(uint64_t* barrier, int parity) { copy_bulk_wait(barrier, parity); }
// Of some of a block's threads, whole warps; id 1 .. 15 is theirs.
DEVICE void sync_some(int id, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }

// Blocks that hand work to one another: what was there before the addition; what was written before fence() is seen by who
// sees what is written after it; load_fresh reads what other blocks wrote during this kernel.
DEVICE uint32_t add_global(uint32_t* p, uint32_t x) { return atomicAdd(p, x); }
DEVICE uint64_t add_global(uint64_t* p, uint64_t x) {
    return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
}
DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
// One more, by a thread, of what others of its warp have written before sync_warp: seen by who sees the last one's, from load_fresh on.
DEVICE uint32_t arrive_global(uint32_t* p) {
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(p) : "memory");
    return before;
}
DEVICE void fetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }  // to the second-level cache, where all writes go: at any time
template <class T>
DEVICE T load_fresh(const T* p) { return __ldcg(p); }

// Programmatic dependent launch: nothing the kernel before has written may be read, and nothing it reads written, ahead of
// wait_for_previous. let_next_start allows the next kernel's blocks to start once all blocks have said so or ended.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float round_even(float x) { return rintf(x); }
DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t max_together(uint32_t x) { return __reduce_max_sync(0xffffffffu, x); }  // of a warp
DEVICE uint32_t match(uint32_t x) { return __match_any_sync(0xffffffffu, x); }  // the lanes that have the same
DEVICE int count_bits(uint32_t x) { return __popc(x); }
DEVICE uint32_t add_together(uint32_t x) { return __reduce_add_sync(0xffffffffu, x); }
// 16, or 8, bytes to where they lie so.
DEVICE void store_16(void* p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" :: "l"(p), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
DEVICE void store_8(void* p, uint32_t a, uint32_t b) { asm volatile("st.global.v2.u32 [%0], {%1, %2};" :: "l"(p), "r"(a), "r"(b) : "memory"); }
// The low bytes, the first one lowest.
DEVICE uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
DEVICE float exp2(float x) {  // within 2 ulp; 0 where that is denormal
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float larger(float a, float b) { return fmaxf(a, b); }  // the number where the other is none
DEVICE int first_bit(uint32_t x) { return __ffs(int(x)) - 1; }

}  // namespace gk
#endif
