// The few things kernels ask of the device, so that their logic also runs on a processor: with nvcc they are instructions,
// without it (tests/cuda_shim.h) a block's threads run as fibers that wait for one another.
#pragma once
#include <cstdint>
#include <cstring>

#ifndef __CUDACC__
#include "cuda_shim.h"
#else
#define GK_KERNEL __global__
#define GK_UNROLL _Pragma("unroll")
#define DEVICE __device__ __forceinline__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define INLINE __device__ __forceinline__

namespace gk {

DEVICE int thread() { return int(threadIdx.x); }
DEVICE int threads() { return int(blockDim.x); }
DEVICE int lane() { return int(threadIdx.x % 32); }
DEVICE int64_t block() { return int64_t(blockIdx.x); }
DEVICE int64_t block_y() { return int64_t(blockIdx.y); }
DEVICE void sync() { __syncthreads(); }
DEVICE char* shared() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}

template <class T>
DEVICE T shuffle_xor(T x, int distance) { return __shfl_xor_sync(0xffffffffu, x, distance); }
template <class T>
DEVICE T shuffle_up(T x, int distance) { return __shfl_up_sync(0xffffffffu, x, distance); }
DEVICE void add_shared(uint32_t* p, uint32_t x) { atomicAdd(p, x); }
DEVICE void add_shared(uint64_t* p, uint64_t x) { atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x)); }

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

// The same over 16 of k: a[0] and a[1], b[0] of the above.
DEVICE void mma_k16(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}

DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float round_even(float x) { return rintf(x); }
DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }

}  // namespace gk
#endif
