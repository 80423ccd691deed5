// What this processor, as the operating system lets us use it, can run.
#pragma once
#include <string>
#include <vector>

namespace genkit {

struct CpuFeatures {
    bool avx2 = false;        // AVX2, FMA and F16C, with YMM state enabled by the system
    bool avx512 = false;      // AVX-512 F, BW, DQ and VL, with ZMM state enabled by the system
    bool avx512vnni = false;  // and VNNI
    bool avx512bf16 = false;  // and BF16
    bool amx = false;         // and AMX tiles for int8 and bf16, with their state enabled and permitted by the system
    bool neon = false;        // aarch64: always
    bool neon_dotprod = false;
};

CpuFeatures detect_cpu();
// Whether AMX can be used, and in words what with or why not. The system is asked for permission once.
struct AmxState {
    bool usable;
    std::string reason;
};
AmxState amx_state();
std::string cpu_name();                    // as the processor names itself
std::vector<std::string> cpu_features();   // for `genkit doctor`: includes what later tiers will want

}  // namespace genkit
