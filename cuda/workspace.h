// Memory that blocks of one kernel hand work on in, made once when the device is opened. Kernels run one after the other, so
// each has all of it: from wait_for_previous to its end. Defined by who includes kernels.inl.
#pragma once
#include <cstdint>

struct Workspace {
    uint32_t* counters;  // [workspace_counters], all 0 between kernels: who counts sets back
    char* scratch;       // [workspace_bytes], aligned to 256 bytes; anything may be in it
    int64_t processors;  // of the device: multiprocessors
    int64_t shared = 99 << 10;  // of the device: bytes a block may have
};
constexpr int64_t workspace_counters = 1 << 16;
constexpr int64_t workspace_bytes = 32 << 20;
Workspace workspace();
