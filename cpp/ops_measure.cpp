// What the machine can do at this moment: see ops.h.
#include <chrono>
#include <cstring>

#include "ops_check.h"

namespace genkit {
namespace {

constexpr int64_t megabyte = 1 << 20;
constexpr int64_t passes = 5;
constexpr int64_t arithmetic_units = 2000;  // about 50 ms on one core

// The team at another size, for as long as this lives.
struct Threads {
    explicit Threads(int64_t count) : before(get_threads()) { set_threads(count); }
    ~Threads() { set_threads(before); }
    int64_t before;
};

// Seconds of the fastest of some passes.
template <class Args>
double fastest(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t units, int64_t grain) {
    double best = 0;
    for (int64_t i = 0; i < passes; i++) {
        const auto start = std::chrono::steady_clock::now();
        submit(kernel, args, units, grain);
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (i == 0 || seconds < best) best = seconds;
    }
    return best;
}

}  // namespace

double read_bandwidth(int64_t bytes, int64_t threads) {
    const char* op = "read_bandwidth";
    const int64_t units = bytes / megabyte;
    if (units < 1) fail(op, "bytes is " + std::to_string(bytes) + "; expected a megabyte or more");
    const Threads team(threads);
    Tensor memory({units * megabyte}, DType::u8), sums({units}, DType::i64);
    std::memset(memory.bytes(), 0x3f, size_t(memory.nbytes()));
    const MeasureReadArgs a{memory.data<uint8_t>(), sums.data<uint64_t>()};
    return double(units * megabyte) / fastest(kernels().measure_read, a, units, 1);
}

double arithmetic_peak(const std::string& kind, int64_t threads) {
    const char* op = "arithmetic_peak";
    const Kernels& k = kernels();
    auto* kernel = kind == "f32" ? k.measure_f32 : kind == "bf16" ? k.measure_bf16 : kind == "int8" ? k.measure_int8 : nullptr;
    if (kernel == nullptr) fail(op, "kind is '" + kind + "'; known: f32, bf16, int8");
    const Threads team(threads);
    const int64_t units = arithmetic_units * threads;
    Tensor data({256}, DType::f32), results({units}, DType::f32), operations({units}, DType::i64);
    for (int64_t i = 0; i < 256; i++) data.data<uint32_t>()[i] = uint32_t(0x3f00 + i % 128) * 0x10001u;
    const MeasureArithmeticArgs a{data.data<float>(), results.data<float>(), operations.data<double>()};
    const double seconds = fastest(kernel, a, units, 10);
    double total = 0;
    for (int64_t i = 0; i < units; i++) total += operations.data<double>()[i];
    return total / seconds;
}

}  // namespace genkit
