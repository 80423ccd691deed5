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
    bool neon = false;        // aarch64: always
    bool neon_dotprod = false;
};

CpuFeatures detect_cpu();
std::string cpu_name();                    // as the processor names itself
std::vector<std::string> cpu_features();   // for `genkit doctor`: includes what later tiers will want

}  // namespace genkit
