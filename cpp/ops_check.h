// What the ops share: starting a kernel, and the checks of arguments, each throwing std::invalid_argument with the op,
// the argument and the failing value. Included by ops*.cpp only.
#pragma once
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cpu/table.h"
#include "ops.h"
#include "plan.h"
#include "threads.h"

namespace genkit {

// The one place where kernels are started: run at once, or noted when a plan is being recorded. An op's outputs and
// scratch are written by kernels only; units may depend on shapes, never on values.
template <class Args>
void submit(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t units, int64_t grain) {
    struct Job {
        void (*kernel)(const Args&, int64_t, int64_t);
        Args args;
    } job{kernel, args};
    static_assert(std::is_trivially_copyable_v<Job>, "a plan copies the bytes");
    RangeFunction run = [](const void* context, int64_t begin, int64_t end) {
        const Job& j = *static_cast<const Job*>(context);
        j.kernel(j.args, begin, end);
    };
    if (Plan* plan = Plan::recording()) {
        plan->add(run, &job, sizeof job, units, grain);
    } else if (device_in_use() == Device::cpu) {
        parallel_for(units, grain, run, &job);
    } else if (units > 0) {
        run(&job, 0, units);
        check_device("starting a kernel", device_plugin().check());
    }
}

// Units per piece such that a piece does about `work` of something a unit costs `unit_cost` of.
inline int64_t grain_for(int64_t work, int64_t unit_cost) { return std::max<int64_t>(1, work / std::max<int64_t>(1, unit_cost)); }
constexpr int64_t elements_a_piece = 16384;      // elementwise ops and norms: a few microseconds
constexpr int64_t products_a_piece = 1 << 15;    // linear: one row takes a few us, and a phase has pieces for every thread

[[noreturn]] inline void fail(const char* op, const std::string& what) {
    throw std::invalid_argument(std::string("[") + op + "] " + what);
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, std::initializer_list<DType> allowed) {
    for (DType d : allowed)
        if (t.dtype() == d) return;
    std::string names;
    for (DType d : allowed) names += std::string(names.empty() ? "" : " or ") + dtype_name(d);
    fail(op, std::string(name) + " is " + t.shape_text() + "; expected " + names);
}

// Negative sizes in `shape` mean any.
inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
    bool good = t.rank() == static_cast<int64_t>(shape.size());
    std::string wanted;
    int64_t axis = 0;
    for (int64_t d : shape) {
        good = good && (d < 0 || t.dim(axis) == d);
        wanted += (axis++ ? ", " : "") + (d < 0 ? std::string("any") : std::to_string(d));
    }
    if (!good) fail(op, std::string(name) + " is " + t.shape_text() + "; expected [" + wanted + "]");
}

inline void check_contiguous(const char* op, const char* name, const Tensor& t) {
    if (!t.contiguous()) fail(op, std::string(name) + " " + t.shape_text() + " must be contiguous");
}

inline void check_f32(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
    check_dtype(op, name, t, {DType::f32});
    check_shape(op, name, t, shape);
}

inline void check_vector(const char* op, const char* name, const Tensor& t, DType dtype, int64_t n) {
    check_dtype(op, name, t, {dtype});
    check_shape(op, name, t, {n});
    check_contiguous(op, name, t);
}

inline void check_finite(const char* op, const char* name, float value) {
    if (!std::isfinite(value)) fail(op, std::string(name) + " is " + std::to_string(value) + "; expected a finite number");
}

inline void check_softcap(const char* op, float softcap) {
    check_finite(op, "softcap", softcap);
    if (softcap < 0) fail(op, "softcap is " + std::to_string(softcap) + "; expected 0 (none) or more");
}

// Of an i32 tensor that a kernel uses as indices; a plan checks it again at every replay. What kernels of a device made
// themselves is not looked at.
inline void check_range(const char* op, const char* name, const Tensor& ids, int64_t limit) {
    if (Plan* plan = Plan::recording()) plan->add_range(op, name, ids, limit);
    else if (const int32_t* values = ids.host<int32_t>()) check_values(op, name, values, ids.count(), limit);
}

inline Activation activation_from_name(const char* op, const std::string& name, bool gated) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    if (name == "relu") return Activation::relu;
    if (name == "swiglu_oai" && gated) return Activation::swiglu_oai;
    fail(op, "unknown activation '" + name + "'; known: silu, gelu, gelu_tanh, relu" + (gated ? ", swiglu_oai" : ""));
}

// Checks the format and makes room.
PackedWeight empty_packed(const char* op, int64_t n, int64_t k, const WeightFormat& format, bool gated);

inline float* optional_data(const OptionalTensor& t) { return t ? t->data<float>() : nullptr; }

}  // namespace genkit
