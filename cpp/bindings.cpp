// pybind11: about a line per op. No logic; _core.pyi is the documentation.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <map>

#include "cpu/detect.h"
#include "cpu/table.h"
#include "device.h"
#include "ops.h"
#include "pieces.h"
#include "plan.h"
#include "tensor.h"
#include "threads.h"

namespace py = pybind11;
using namespace genkit;

namespace {

py::dtype numpy_dtype(DType dtype) {
    switch (dtype) {
        case DType::f32: return py::dtype("float32");
        case DType::f16: return py::dtype("float16");
        case DType::bf16: return py::dtype("uint16");  // numpy has no bf16: the bits
        case DType::i8: return py::dtype("int8");
        case DType::u8: return py::dtype("uint8");
        case DType::i16: return py::dtype("int16");
        case DType::u16: return py::dtype("uint16");
        case DType::i32: return py::dtype("int32");
        case DType::i64: return py::dtype("int64");
    }
    throw std::logic_error("dtype without a numpy twin");
}

Tensor from_numpy(const py::array& array, const std::optional<std::string>& name) {
    py::array dense = py::array::ensure(array, py::array::c_style);
    std::string kind = py::str(dense.dtype());
    static const std::map<std::string, DType> twins = {
        {"float32", DType::f32}, {"float16", DType::f16}, {"int8", DType::i8},   {"uint8", DType::u8},
        {"int16", DType::i16},   {"uint16", DType::u16},  {"int32", DType::i32}, {"int64", DType::i64}};
    auto twin = twins.find(kind);
    if (twin == twins.end()) throw std::invalid_argument("no tensor type for a numpy array of " + kind);
    DType dtype = twin->second;
    if (name) {
        DType wanted = dtype_from_name(*name);
        bool bits = kind == "uint16" && (wanted == DType::bf16 || wanted == DType::f16);
        if (wanted != dtype && !bits) throw std::invalid_argument("a numpy array of " + kind + " is not " + *name);
        dtype = wanted;
    }
    std::vector<int64_t> shape(dense.shape(), dense.shape() + dense.ndim());
    Arena::Scope constant(nullptr);  // made while a plan is recorded, its contents are the plan's for good
    const Device device = device_in_use();
    const DeviceScope here(Device::cpu);
    Tensor out(shape, dtype);
    if (out.nbytes() > 0) std::memcpy(out.bytes(), dense.data(), static_cast<size_t>(out.nbytes()));
    return out.to(device);
}

py::array to_numpy(const Tensor& t) {
    if (t.host_bytes() == nullptr) {  // a copy of what only the device has
        py::array copy(numpy_dtype(t.dtype()), t.shape());
        t.fetch(copy.mutable_data());
        return copy;
    }
    // The array's base keeps a Tensor, and so the storage, alive.
    std::vector<int64_t> strides(t.shape().size());
    int64_t step = dtype_size(t.dtype());
    for (size_t i = strides.size(); i-- > 0;) {
        strides[i] = i == 0 ? t.row_stride() * dtype_size(t.dtype()) : step;
        step *= t.shape()[i];
    }
    return py::array(numpy_dtype(t.dtype()), t.shape(), strides, t.lend(), py::cast(t));
}

py::object to_bytes(const Tensor& t) {
    if (t.device() != Device::cpu) throw std::invalid_argument("bytes of " + t.shape_text() + " on " + device_name(t.device()));
    if (!t.contiguous()) throw std::invalid_argument("bytes of a strided view " + t.shape_text());
    py::array flat(py::dtype("uint8"), std::vector<int64_t>{t.nbytes()}, std::vector<int64_t>{1}, t.host_bytes(), py::cast(t));
    return py::reinterpret_steal<py::object>(PyMemoryView_FromObject(flat.ptr()));
}

void write_numpy(const Tensor& t, const py::array& array) {
    const py::array dense = py::array::ensure(array, py::array::c_style);
    const std::vector<int64_t> shape(dense.shape(), dense.shape() + dense.ndim());
    if (!dense.dtype().equal(numpy_dtype(t.dtype())) || shape != t.shape())
        throw std::invalid_argument("write: the array has another shape or type than " + t.shape_text());
    t.store(dense.data());
}

Device device_from_name(const std::string& name) {
    if (name == "cpu") return Device::cpu;
    if (name == "cuda") return Device::cuda;
    throw std::invalid_argument("device '" + name + "'; known: cpu, cuda");
}

std::map<std::string, std::string> slots() {
    auto pairs = slot_tiers();
    return {pairs.begin(), pairs.end()};
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.attr("__version__") = GENKIT_VERSION;
    m.attr("PAGE_KEYS") = page_keys;

    py::class_<Tensor>(m, "Tensor")
        .def(py::init([](std::vector<int64_t> shape, const std::string& dtype) {
                 Arena::Scope constant(nullptr);
                 return Tensor(std::move(shape), dtype_from_name(dtype));
             }), py::arg("shape"), py::arg("dtype") = "f32")
        .def_static("zeros", [](std::vector<int64_t> shape, const std::string& dtype) {
            return Tensor(std::move(shape), dtype_from_name(dtype), true);
        }, py::arg("shape"), py::arg("dtype") = "f32")
        .def_static("from_numpy", &from_numpy, py::arg("array"), py::arg("dtype") = std::nullopt)
        .def_property_readonly("dtype", [](const Tensor& t) { return dtype_name(t.dtype()); })
        .def_property_readonly("shape", [](const Tensor& t) { return py::tuple(py::cast(t.shape())); })
        .def_property_readonly("nbytes", &Tensor::nbytes)
        .def_property_readonly("device", [](const Tensor& t) { return device_name(t.device()); })
        .def("to", [](const Tensor& t, const std::string& device) { return t.to(device_from_name(device)); }, py::arg("device"))
        .def("numpy", &to_numpy)
        .def("bytes", &to_bytes)
        .def("write", &write_numpy, py::arg("array"))
        .def("rows", &Tensor::rows, py::arg("begin"), py::arg("end"))
        .def("columns", &Tensor::columns, py::arg("begin"), py::arg("end"))
        .def("reshape", &Tensor::reshape, py::arg("shape"))
        .def("__repr__", [](const Tensor& t) { return "Tensor(" + t.shape_text() + ")"; });

    using nogil = py::call_guard<py::gil_scoped_release>;
    using namespace pybind11::literals;
    m.def("convert", [](const Tensor& x, const std::string& dtype) { return convert(x, dtype_from_name(dtype)); },
          "x"_a, "dtype"_a, nogil());
    m.def("embedding", &embedding, "ids"_a, "table"_a, nogil());
    m.def("rms_norm", &rms_norm, "x"_a, "weight"_a, "eps"_a, nogil());
    m.def("rms_norm_heads_", &rms_norm_heads_, "x"_a, "weight"_a, "eps"_a, nogil());
    m.def("layer_norm", &layer_norm, "x"_a, "weight"_a, "bias"_a.none(true), "eps"_a, nogil());
    m.def("layer_norm_heads_", &layer_norm_heads_, "x"_a, "weight"_a, "bias"_a.none(true), "eps"_a, nogil());
    m.def("linear", &linear, "x"_a, "weight"_a, "bias"_a = std::nullopt, "residual"_a = std::nullopt, nogil());
    py::class_<WeightFormat>(m, "WeightFormat")
        .def(py::init(&weight_format), "packing"_a, "group"_a, "zero"_a = "none", "scale_dtype"_a = "f16");
    py::class_<PackedWeight>(m, "PackedWeight")
        .def_property_readonly("shape", [](const PackedWeight& w) { return py::make_tuple(w.n, w.k); })
        .def_property_readonly("packing", [](const PackedWeight& w) { return packing_name(w.format); })
        .def_property_readonly("group", [](const PackedWeight& w) { return w.format.group; })
        .def_property_readonly("nbytes", [](const PackedWeight& w) { return w.panels.nbytes(); })
        .def("to", [](const PackedWeight& w, const std::string& device) {
            PackedWeight copy = w;
            copy.panels = w.panels.to(device_from_name(device));
            return copy;
        }, "device"_a)
        .def_readonly("gated", &PackedWeight::gated)
        .def_readonly("panels", &PackedWeight::panels);
    m.def("quantize", [](const Tensor& x) { Quantized q = quantize(x); return std::make_tuple(q.codes, q.scales, q.sums); },
          "x"_a, nogil());
    m.def("packed_linear", &packed_linear, "x"_a, "weight"_a, "bias"_a = std::nullopt, "residual"_a = std::nullopt,
          "kind"_a = "", nogil());
    m.def("linears", &linears, "x"_a, "weights"_a, "bias"_a = std::nullopt, "residual"_a = std::nullopt, nogil());
    m.def("quantize_weight", &quantize_weight, "weight"_a, "format"_a, "gated"_a = false, nogil());
    m.def("round_weight", [](const Tensor& weight, const WeightFormat& format, bool search, const OptionalTensor& h) {
        RoundedWeight w = round_weight(weight, format, search, h);
        return std::make_tuple(w.codes, w.scales, w.subscales, w.minima, w.zeros);
    }, "weight"_a, "format"_a, "search"_a = false, "importance"_a = std::nullopt, nogil());
    m.def("pack_weight", &pack_weight, "codes"_a, "scales"_a, "subscales"_a, "minima"_a, "zeros"_a, "k"_a, "format"_a,
          "gated"_a = false, nogil());
    m.def("unpack_blocks", [](const Tensor& blocks, const std::string& type) {
        RoundedWeight w = unpack_blocks(blocks, type);
        return std::make_tuple(w.codes, w.scales, w.subscales, w.minima, w.zeros);
    }, "blocks"_a, "type"_a, nogil());
    m.def("pack_blocks", &pack_blocks, "blocks"_a, "type"_a, "gated"_a = false, nogil());
    m.def("unpack", &unpack, "ids"_a, "weight"_a, nogil());
    m.def("turn_words", &turn_words, "words"_a, "bits"_a, "k"_a, "down"_a, "order"_a = std::nullopt, nogil());
    py::class_<Groups>(m, "Groups")
        .def_readonly("regions", &Groups::regions)
        .def_readonly("tiles", &Groups::tiles)
        .def_readonly("sources", &Groups::sources)
        .def_readonly("place_of", &Groups::place_of);
    py::class_<ExpertWeights>(m, "ExpertWeights")
        .def(py::init<int64_t>(), "experts"_a)
        .def("set", py::overload_cast<int64_t, const Tensor&>(&ExpertWeights::set), "expert"_a, "weight"_a, nogil())
        .def("set", py::overload_cast<int64_t, const PackedWeight&>(&ExpertWeights::set), "expert"_a, "weight"_a, nogil())
        .def_property_readonly("shape", [](const ExpertWeights& w) { return py::make_tuple(w.experts, w.n, w.k); })
        .def_property_readonly("packed", [](const ExpertWeights& w) { return w.format.has_value(); })
        .def_property_readonly("nbytes", [](const ExpertWeights& w) { return w.weights ? w.weights->nbytes() : 0; })
        .def("to", [](const ExpertWeights& w, const std::string& device) {
            ExpertWeights copy = w;
            if (w.weights) copy.weights = w.weights->to(device_from_name(device));
            return copy;
        }, "device"_a);
    m.def("route", &route, "logits"_a, "k"_a, "scoring"_a = "softmax", "correction"_a = std::nullopt, "groups"_a = 1,
          "groups_kept"_a = 1, "normalize"_a = false, "scale"_a = 1.0f, nogil());
    m.def("group_rows", &group_rows, "ids"_a, "experts"_a, nogil());
    m.def("gather_rows", &gather_rows, "x"_a, "groups"_a, nogil());
    m.def("expert_linear", &expert_linear, "x"_a, "groups"_a, "weights"_a, "bias"_a = std::nullopt, "kind"_a = "", nogil());
    m.def("combine", &combine, "y"_a, "weights"_a, "groups"_a = std::nullopt, "residual"_a = std::nullopt, nogil());
    m.def("rope_table", &rope_table, "positions"_a, "inv_freq"_a, "scale"_a = 1.0f, nogil());
    m.def("rope_", &rope_, "x"_a, "table"_a, "head_dim"_a, "interleaved"_a = false, nogil());
    m.def("kv_write", &kv_write, "k"_a, "v"_a, "k_pages"_a, "v_pages"_a, "page_table"_a, "sequences"_a, "positions"_a,
          "k_scales"_a = std::nullopt, "v_scales"_a = std::nullopt, nogil());
    m.def("rope_kv_write", &rope_kv_write, "x"_a, "table"_a, "k"_a, "v"_a, "k_pages"_a, "v_pages"_a, "page_table"_a,
          "sequences"_a, "positions"_a, "interleaved"_a = false, "k_scales"_a = std::nullopt, "v_scales"_a = std::nullopt,
          nogil());
    m.def("attention", &attention, "q"_a, "k_pages"_a, "v_pages"_a, "page_table"_a, "sequences"_a, "positions"_a,
          "scale"_a, "window"_a = 0, "alibi_slopes"_a = std::nullopt, "k_scales"_a = std::nullopt,
          "v_scales"_a = std::nullopt, "softcap"_a = 0.0f, "sinks"_a = std::nullopt, nogil());
    m.def("activation", &activation, "x"_a, "kind"_a, nogil());
    m.def("gated", &gated, "x"_a, "kind"_a, nogil());
    m.def("add", &add, "a"_a, "b"_a, "scale"_a = 1.0f, nogil());
    m.def("scale", &scale, "x"_a, "factor"_a, "softcap"_a = 0.0f, nogil());
    m.def("gather_columns", &gather_columns, "x"_a, "index"_a, "y"_a = std::nullopt, nogil());
    m.def("softmax", [](const Tensor& x) { return softmax(x, false); }, "x"_a, nogil());
    m.def("log_softmax", [](const Tensor& x) { return softmax(x, true); }, "x"_a, nogil());
    m.def("argmax", &argmax, "x"_a, nogil());
    m.def("nonfinite", &nonfinite, "x"_a, nogil());
    m.def("top_k", &top_k, "x"_a, "k"_a, nogil());
    m.def("bias_", &bias_, "logits"_a, "ids"_a, "values"_a, nogil());
    m.def("penalize_", &penalize_, "logits"_a, "entries"_a, "lengths"_a, "repetition"_a, "presence"_a, "frequency"_a, nogil());
    m.def("remember_", &remember_, "tokens"_a, "entries"_a, "lengths"_a, "recent"_a, "next"_a, nogil());
    m.def("sample", &sample, "logits"_a, "sequences"_a, "positions"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
          "seed"_a, "finite_only"_a = false, nogil());
    m.def("sample_counted", &sample_counted, "logits"_a, "sequences"_a, "positions"_a, "temperature"_a, "top_k"_a, "top_p"_a,
          "min_p"_a, "seed"_a, "finite_only"_a = false, nogil());
    m.def("copy_pages", &copy_pages, "pages"_a, "source"_a, "target"_a, nogil());

    py::class_<Arena, std::shared_ptr<Arena>>(m, "Arena")
        .def(py::init<>())
        .def("run", [](Arena& arena, const py::function& body, const py::args& args) {
            Arena::Scope scope(&arena);
            return body(*args);
        }, "body"_a);

    py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan")
        .def_static("record", [](const py::function& body, const Plan* beside) {
            py::object result;
            std::shared_ptr<Plan> plan = Plan::record([&] { result = body(); }, beside);
            return py::make_tuple(plan, result);
        }, "body"_a, "beside"_a = nullptr)
        .def("replay", &Plan::replay, nogil())
        .def("decode", [](Plan& plan, const Tensor& token_ids, const Tensor& positions, const Tensor& draw_positions,
                          const Tensor& tokens, const Tensor& nonfinite, int64_t live,
                          const std::vector<int32_t>& stop_ids, int64_t count, double seconds) {
            return plan.decode({token_ids, positions, draw_positions, tokens, nonfinite}, live, stop_ids, count, seconds);
        }, "token_ids"_a, "positions"_a, "draw_positions"_a, "tokens"_a, "nonfinite"_a, "live"_a, "stop_ids"_a, "count"_a,
           "seconds"_a, nogil())
        .def_property_readonly("steps", &Plan::steps)
        .def_property_readonly("phases", &Plan::phases)
        .def_property_readonly("arena", &Plan::arena);

    py::class_<Pieces>(m, "Pieces")
        .def(py::init([](std::vector<std::string> texts, std::vector<float> scores, std::vector<uint8_t> types,
                         std::string charsmap, bool unigram, bool byte_fallback, bool remove_extra_whitespaces,
                         bool escape_whitespaces, bool whitespace_as_suffix, bool fuse_unknown) {
                 return Pieces(std::move(texts), std::move(scores), std::move(types), std::move(charsmap),
                               {unigram, byte_fallback, remove_extra_whitespaces, escape_whitespaces, whitespace_as_suffix,
                                fuse_unknown});
             }), "texts"_a, "scores"_a, "types"_a, "charsmap"_a = "", py::kw_only(), "unigram"_a = false,
             "byte_fallback"_a = false, "remove_extra_whitespaces"_a = false, "escape_whitespaces"_a = true,
             "whitespace_as_suffix"_a = false, "fuse_unknown"_a = true)
        .def("normalize", [](const Pieces& p, const std::string& text, bool space) { return py::bytes(p.normalize(text, space)); },
             "text"_a, "dummy_space"_a)
        .def("encode", [](const Pieces& p, const std::string& text, bool space) { return p.encode(text, space); },
             "text"_a, "dummy_space"_a, nogil());

    m.def("make_readable", &make_readable, "memory"_a, "threads"_a, nogil());
    m.def("read_bandwidth", &read_bandwidth, "bytes"_a, "threads"_a, "memory"_a = py::none(), nogil());
    m.def("has_arithmetic", &has_arithmetic, "kind"_a);
    m.def("arithmetic_peak", &arithmetic_peak, "kind"_a, "threads"_a, nogil());
    m.def("barrier_cost", &barrier_cost, "threads"_a, nogil());
    m.def("device_read_bandwidth", &device_read_bandwidth, "memory"_a, nogil());
    m.def("device_copy_bandwidth", &device_copy_bandwidth, "source"_a, "target"_a, nogil());
    m.def("device_arithmetic_peak", &device_arithmetic_peak, "kind"_a, nogil());

    m.def("set_threads", &set_threads, "count"_a, nogil());
    m.def("get_threads", &get_threads, nogil());
    m.def("tiers", &available_tiers);
    m.def("current_tier", &current_tier);
    m.def("slots", &slots);
    m.def("use_tier", &use_tier, "name"_a);
    m.def("isa_error", &isa_error);
    m.def("cpu_name", &cpu_name);
    m.def("cpu_features", &cpu_features);
    m.def("amx_state", [] {
        const AmxState state = amx_state();
        return std::make_pair(state.usable, state.reason);
    });
    m.def("open_device", &open_device, "path"_a);
    m.def("driver_state", [] {
        const DriverState state = driver_state();
        return std::make_pair(state.version, state.trouble);
    });
    m.def("use_device", [](const std::string& name) { use_device(device_from_name(name)); }, "name"_a);
    m.def("device_missing", &device_missing);
    m.def("device_facts", [] {
        DeviceFacts f;
        check_device("asking for its facts", device_plugin().facts(&f));
        py::dict facts;
        facts["name"] = f.name;
        facts["capability"] = std::to_string(f.major) + "." + std::to_string(f.minor);
        facts["processors"] = f.processors;
        facts["memory"] = f.memory;
        facts["available"] = f.available;
        facts["driver"] = device_driver();
        facts["targets"] = device_plugin().targets;
        return facts;
    });
    m.def("device_in_use", [] { return device_name(device_in_use()); });
}
