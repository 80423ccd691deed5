#include "cpu/detect.h"

#include <cstdint>
#include <cstring>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef __linux__
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace genkit {
namespace {

#if defined(__x86_64__)
struct Registers {
    uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t sub = 0) {
    Registers r;
    __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);  // leaves zeros for a leaf the processor lacks
    return r;
}

bool bit(uint32_t word, int position) { return (word >> position) & 1; }

// XCR0: which register state the operating system saves. Bits 1-2 are XMM and YMM, 5-7 ZMM and masks, 17-18 AMX tiles.
uint64_t enabled_state() {
    if (!bit(cpuid(1).c, 27)) return 0;  // OSXSAVE
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

bool state_has(uint64_t state, uint64_t mask) { return (state & mask) == mask; }
constexpr uint64_t ymm_state = 0x6, zmm_state = 0xe6, tile_state = 0x60000;

AmxState ask_for_amx() {
    const Registers extended = cpuid(7);
    if (!bit(extended.d, 24) || !bit(extended.d, 25) || !bit(extended.d, 22))  // tile, int8, bf16
        return {false, "this processor has no tiles for int8 and bf16"};
    if (!state_has(enabled_state(), tile_state)) return {false, "the system does not save tiles (Linux does from 5.16 on)"};
#ifdef __linux__
    constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, the state's number
    if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) {
        const std::string error = std::strerror(errno);
        return {false, "the system refuses permission to use tiles: " + error};
    }
    return {true, "tiles for int8 and bf16"};
#else
    return {false, "permission to use tiles can be asked for on Linux only"};
#endif
}
#endif

}  // namespace

AmxState amx_state() {
#if defined(__x86_64__)
    static const AmxState state = ask_for_amx();
    return state;
#else
    return {false, "this processor has no tiles for int8 and bf16"};
#endif
}

CpuFeatures detect_cpu() {
    CpuFeatures f;
#if defined(__x86_64__)
    uint64_t state = enabled_state();
    Registers basic = cpuid(1), extended = cpuid(7), extended1 = cpuid(7, 1);
    bool fma = bit(basic.c, 12), f16c = bit(basic.c, 29), avx = bit(basic.c, 28);
    f.avx2 = state_has(state, ymm_state) && avx && fma && f16c && bit(extended.b, 5);
    f.avx512 = f.avx2 && state_has(state, zmm_state) && bit(extended.b, 16) && bit(extended.b, 17) &&
               bit(extended.b, 30) && bit(extended.b, 31);  // F, DQ, BW, VL
    f.avx512vnni = f.avx512 && bit(extended.c, 11);
    f.avx512bf16 = f.avx512vnni && bit(extended1.a, 5);
    f.amx = f.avx512bf16 && amx_state().usable;
#elif defined(__aarch64__)
    f.neon = true;
#if defined(__linux__)
    f.neon_dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
#endif
    return f;
}

std::string cpu_name() {
#if defined(__x86_64__)
    char brand[49] = {};
    if (cpuid(0x80000000u).a >= 0x80000004u) {
        for (uint32_t i = 0; i < 3; i++) {
            Registers r = cpuid(0x80000002u + i);
            std::memcpy(brand + 16 * i, &r, 16);
        }
        std::string name(brand);
        size_t first = name.find_first_not_of(' '), last = name.find_last_not_of(' ');
        if (first != std::string::npos) return name.substr(first, last - first + 1);
    }
    return "x86-64 processor";
#else
    std::ifstream info("/proc/cpuinfo");
    for (std::string text; std::getline(info, text);) {
        if (text.rfind("model name", 0) == 0 || text.rfind("Hardware", 0) == 0)
            return text.substr(text.find(':') + 2);
    }
    return "aarch64 processor";
#endif
}

std::vector<std::string> cpu_features() {
    std::vector<std::string> names;
    auto add = [&](bool present, const char* name) {
        if (present) names.emplace_back(name);
    };
#if defined(__x86_64__)
    CpuFeatures f = detect_cpu();
    uint64_t state = enabled_state();
    Registers extended = cpuid(7), extended1 = cpuid(7, 1);
    bool tiles = state_has(state, tile_state);
    add(f.avx2, "avx2");
    add(f.avx2 && bit(extended1.a, 4), "avx_vnni");
    add(f.avx512, "avx512");
    add(f.avx512vnni, "avx512_vnni");
    add(f.avx512bf16, "avx512_bf16");
    add(f.avx512 && bit(extended.d, 23), "avx512_fp16");
    add(tiles && bit(extended.d, 24), "amx_tile");
    add(tiles && bit(extended.d, 25), "amx_int8");
    add(tiles && bit(extended.d, 22), "amx_bf16");
#elif defined(__aarch64__) && defined(__linux__)
    unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
    add(true, "neon");
    add(caps & HWCAP_ASIMDDP, "dotprod");
    add(caps2 & HWCAP2_I8MM, "i8mm");
    add(caps2 & HWCAP2_BF16, "bf16");
#endif
    return names;
}

}  // namespace genkit
