// What a device can do at this moment, by the slots that measure: see ops.h.
#include <chrono>
#include <cmath>

#include "ops_check.h"

namespace genkit {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t tries = 6;
constexpr double a_try = 0.017;              // seconds
constexpr int64_t bytes_a_unit = 128 << 10;  // enough that beginning a block is nothing beside, few enough that all are at work
constexpr int64_t units_a_processor = 8;     // of arithmetic: all the threads that it holds

// done / the least seconds that launches of a kernel take, one after the other; device memory `any` is waited for.
template <class Launch>
double best_rate(const char* op, const Tensor& any, double done, Launch launch) {
    auto timed = [&](int64_t count) {
        char byte;
        check_device(op, device_plugin().download(&byte, any.bytes(), 1));
        const Clock::time_point start = Clock::now();
        for (int64_t i = 0; i < count; i++) launch();
        check_device(op, device_plugin().check());
        check_device(op, device_plugin().download(&byte, any.bytes(), 1));
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    double took = timed(1);  // code is loaded by the first
    if (took < a_try) took = timed(1);
    double best = done / took;
    if (took >= tries * a_try) return best;
    const int64_t count = std::max<int64_t>(1, std::llround(a_try / took));
    for (int64_t i = 0; i < tries; i++) best = std::max(best, double(count) * done / timed(count));
    return best;
}

void check_memory(const char* op, const char* name, const Tensor& memory) {
    if (device_in_use() == Device::cpu) fail(op, "no device is in use");
    if (memory.device() != device_in_use() || memory.dtype() != DType::u8 || !memory.contiguous() || memory.nbytes() < 4)
        fail(op, std::string(name) + " is " + memory.shape_text() + "; expected u8 on the device in use, 4 or more, contiguous");
}

}  // namespace

double device_read_bandwidth(const Tensor& memory) {
    const char* op = "device_read_bandwidth";
    check_memory(op, "memory", memory);
    const int64_t bytes = std::min(bytes_a_unit, memory.nbytes()), units = memory.nbytes() / bytes;
    const MeasureReadArgs a{memory.data<uint8_t>(), nullptr, bytes, 1, 0};
    return best_rate(op, memory, double(bytes * units), [&] { device_kernels().measure_read(a, 0, units); });
}

double device_copy_bandwidth(const Tensor& from, const Tensor& to) {
    const char* op = "device_copy_bandwidth";
    check_memory(op, "from", from);
    check_memory(op, "to", to);
    if (from.nbytes() != to.nbytes()) fail(op, "to is " + to.shape_text() + "; expected " + from.shape_text());
    const int64_t count = from.nbytes() / 4;
    const ConvertArgs a{from.data<uint8_t>(), to.data<uint8_t>(), DType::f32, DType::f32};
    return best_rate(op, to, double(8 * count), [&] { device_kernels().convert(a, 0, count); });
}

double device_arithmetic_peak(const std::string& kind) {
    const char* op = "device_arithmetic_peak";
    if (device_in_use() == Device::cpu) fail(op, "no device is in use");
    const Kernels& k = device_kernels();
    auto* kernel = kind == "f32" ? k.measure_f32 : kind == "bf16" ? k.measure_bf16 : kind == "int8" ? k.measure_int8 : nullptr;
    if (kernel == nullptr) fail(op, "kind is '" + kind + "'; known: f32, bf16, int8");
    DeviceFacts facts{};
    check_device(op, device_plugin().facts(&facts));
    Arena::Scope none(nullptr);
    const int64_t units = units_a_processor * facts.processors;
    const Tensor results({units}, DType::f32), operations({units}, DType::i64);
    std::vector<uint32_t> numbers(256);
    for (size_t i = 0; i < numbers.size(); i++) numbers[i] = uint32_t(0x3f00 + i % 128) * 0x10001u;
    const Tensor data({256}, DType::f32);
    check_device(op, device_plugin().upload(data.bytes(), numbers.data(), numbers.size() * sizeof numbers[0]));
    const MeasureArithmeticArgs a{data.data<float>(), results.data<float>(), operations.data<double>()};
    kernel(a, 0, 1);
    double each = 0;
    check_device(op, device_plugin().download(&each, operations.bytes(), sizeof each));
    return best_rate(op, results, each * double(units), [&] { kernel(a, 0, units); });
}

}  // namespace genkit
