// Weights to codes, and codes into the order of the kernels: see ops.h.
#include "ops_check.h"

namespace genkit {
namespace {

constexpr int64_t rounding_pieces = 8;  // a thread, of a weight
constexpr int64_t searched_rows = 16;   // a multiple of the rows every tier searches for side by side

constexpr const char* packing_names[] = {"int4_two_level", "int4", "int8", "int4_k", "int8_k"};
constexpr const char* zero_names[] = {"none", "integer", "real"};

template <size_t count>
int32_t number_of(const char* op, const char* what, const std::string& name, const char* const (&names)[count]) {
    std::string known;
    for (size_t i = 0; i < count; i++) {
        if (name == names[i]) return int32_t(i);
        known += std::string(i ? ", " : "") + names[i];
    }
    fail(op, std::string(what) + " is '" + name + "'; known: " + known);
}

void check_format(const char* op, const WeightFormat& f) {
    const bool two_level = f.packing == Packing::int4_two_level;
    if (of_k(f.packing)) {
        if (f.group != 16 && f.group != 32) fail(op, "group is " + std::to_string(f.group) + "; expected 16 or 32");
        if (f.zero == Zero::integer || f.scale_dtype != DType::f16)
            fail(op, packing_name(f) + " has f16 scales and no zeros or real ones");
        return;
    }
    if (two_level ? f.group != block_depth : f.group != 32 && f.group != 64 && f.group != 128 && f.group != block_depth)
        fail(op, "group is " + std::to_string(f.group) + "; expected " + (two_level ? "256" : "32, 64, 128 or 256"));
    if (two_level && (f.zero != Zero::none || f.scale_dtype != DType::f16))
        fail(op, "int4_two_level has f16 scales and minima instead of zeros");
    if (f.scale_dtype != DType::f16 && f.scale_dtype != DType::bf16)
        fail(op, std::string("scales of ") + dtype_name(f.scale_dtype) + "; expected f16 or bf16");
}

int64_t scale_count(int64_t k, const WeightFormat& f) { return (round_up(k, tile_depth) + scale_depth(f) - 1) / scale_depth(f); }

}  // namespace

PackedWeight empty_packed(const char* op, int64_t n, int64_t k, const WeightFormat& format, bool gated) {
    check_format(op, format);
    if (n < 1 || k < 1) fail(op, "a packed weight of [" + std::to_string(n) + ", " + std::to_string(k) + "]");
    if (gated && n % 2 != 0) fail(op, "a gated weight has gates and ups: n " + std::to_string(n) + " is odd");
    const int64_t panels = gated ? (n / 2 + 15) / 16 : (n + panel_outputs - 1) / panel_outputs;
    return {Tensor({panels, panel_bytes(format, k)}, DType::u8), format, n, k, gated};
}

WeightFormat weight_format(const std::string& packing, int64_t group, const std::string& zero, const std::string& scales) {
    const WeightFormat format{Packing(number_of("weight_format", "packing", packing, packing_names)), group,
                              Zero(number_of("weight_format", "zero", zero, zero_names)), dtype_from_name(scales)};
    check_format("weight_format", format);
    return format;
}

std::string packing_name(const WeightFormat& f) { return packing_names[int(f.packing)]; }

static void check_rounded(const char* op, const WeightFormat& f) {
    if (of_k(f.packing)) fail(op, "nothing rounds to " + packing_name(f) + "; take int4_two_level, int4 or int8");
}

PackedWeight quantize_weight(const Tensor& weight, const WeightFormat& format, bool gated) {
    const char* op = "quantize_weight";
    check_dtype(op, "weight", weight, {DType::f32, DType::f16, DType::bf16});
    check_shape(op, "weight", weight, {-1, -1});
    check_contiguous(op, "weight", weight);
    check_rounded(op, format);
    if (format.zero != Zero::none) fail(op, "rounding makes no zeros");
    if (format.scale_dtype != DType::f16) fail(op, "rounding makes f16 scales");
    const int64_t n = weight.dim(0), k = weight.dim(1), depth = round_up(k, tile_depth);
    PackedWeight packed = empty_packed(op, n, k, format, gated);
    // A panel at a time, so that its codes go from one kernel to the next through the cache of one core; each piece of the
    // work has a buffer for one. A gated panel's rows are two runs: gates and ups.
    const int64_t panels = packed.panels.dim(0), run = gated ? panel_outputs / 2 : panel_outputs, half = gated ? n / 2 : n;
    const int64_t grain = (panels + rounding_pieces * get_threads() - 1) / (rounding_pieces * get_threads());
    const int64_t pieces = (panels + grain - 1) / grain, row_scales = scale_count(k, format), row_subs = depth / sub_depth;
    Tensor codes({pieces, panel_outputs * depth}, DType::u8), scales({pieces, panel_outputs * row_scales}, DType::u16);
    Tensor subscales({pieces, panel_outputs * row_subs}, DType::u8), minima({pieces, panel_outputs * row_subs}, DType::u8);
    auto round_panels = [&](int64_t begin, int64_t end) {
        const int64_t piece = begin / grain;
        const WeightCodes out{codes.data<uint8_t>() + piece * codes.dim(1), scales.data<uint16_t>() + piece * scales.dim(1),
                              subscales.data<uint8_t>() + piece * subscales.dim(1),
                              minima.data<uint8_t>() + piece * minima.dim(1), nullptr};
        for (int64_t panel = begin; panel < end; panel++) {
            const int64_t rows = std::min(run, half - panel * run);
            for (int64_t part = 0; part < (gated ? 2 : 1); part++) {
                const int64_t at = part * rows;  // in the buffers: gates, then ups, as pack expects of a weight of 2 * rows
                const char* first = weight.bytes() + (part * half + panel * run) * k * dtype_size(weight.dtype());
                QuantizeWeightArgs a{first, {out.codes + at * depth, out.scales + at * row_scales, out.subscales + at * row_subs,
                                             out.minima + at * row_subs, nullptr}, k, format, weight.dtype()};
                kernels().quantize_weight(a, 0, rows);
            }
            PackArgs p{out, packed.panels.data<uint8_t>() + panel * packed.panels.dim(1), gated ? 2 * rows : rows, k, format, gated};
            kernels().pack(p, 0, 1);
        }
    };
    parallel_for(panels, grain, [](const void* job, int64_t begin, int64_t end) {
        (*static_cast<const decltype(round_panels)*>(job))(begin, end);
    }, &round_panels);
    return packed;
}

RoundedWeight round_weight(const Tensor& weight, const WeightFormat& format, bool search, const OptionalTensor& importance) {
    const char* op = "round_weight";
    check_dtype(op, "weight", weight, {DType::f32, DType::f16, DType::bf16});
    check_shape(op, "weight", weight, {-1, -1});
    check_contiguous(op, "weight", weight);
    const int64_t n = weight.dim(0), k = weight.dim(1), depth = round_up(k, tile_depth), groups = scale_count(k, format);
    check_rounded(op, format);
    if (n < 1 || k < 1) fail(op, "weight is " + weight.shape_text() + ": nothing to round");
    const bool two_level = format.packing == Packing::int4_two_level, eight_bits = format.packing == Packing::int8;
    if (eight_bits && format.zero != Zero::none) fail(op, "int8 is rounded without zeros");
    if (importance && !search) fail(op, "importance counts in a search only");
    OptionalTensor shares;  // of the largest importance, lest sums overflow
    if (importance) {
        check_vector(op, "importance", *importance, DType::f32, k);
        float largest = 0.0f;
        for (int64_t i = 0; i < k; i++) {
            const float h = importance->data<float>()[i];
            if (!(h >= 0.0f && std::isfinite(h)))
                fail(op, "importance[" + std::to_string(i) + "] is " + std::to_string(h) + "; expected a number >= 0");
            largest = std::max(largest, h);
        }
        shares = Tensor({k}, DType::f32);
        for (int64_t i = 0; i < k; i++) {
            shares->data<float>()[i] = largest > 0.0f ? importance->data<float>()[i] / largest : 1.0f;
        }
    }
    RoundedWeight out{Tensor({n, depth}, eight_bits ? DType::i8 : DType::u8), Tensor({n, groups}, format.scale_dtype),
                      std::nullopt, std::nullopt, std::nullopt};
    if (two_level) {
        out.subscales = Tensor({n, depth / sub_depth}, DType::u8);
        out.minima = Tensor({n, depth / sub_depth}, DType::u8);
    }
    if (format.zero == Zero::integer) out.zeros = Tensor({n, groups}, DType::u8);
    if (format.zero == Zero::real) out.zeros = Tensor({n, groups}, format.scale_dtype);
    const WeightCodes codes{out.codes.data<uint8_t>(), out.scales.data<uint16_t>(),
                            two_level ? out.subscales->data<uint8_t>() : nullptr,
                            two_level ? out.minima->data<uint8_t>() : nullptr, out.zeros ? out.zeros->bytes() : nullptr};
    QuantizeWeightArgs a{weight.bytes(), codes, k, format, weight.dtype(), search, optional_data(shares)};
    const int64_t pieces = rounding_pieces * get_threads();
    submit(kernels().quantize_weight, a, n, round_up((n + pieces - 1) / pieces, searched_rows));
    return out;
}

namespace {

// Of two neighbours the first is the low nibble.
void widen_nibbles(const uint8_t* packed, int64_t count, uint8_t* out) {
    for (int64_t i = 0; i < count; i++) {
        out[2 * i] = packed[i] & 15;
        out[2 * i + 1] = packed[i] >> 4;
    }
}

// Packs codes and subscales that are nibbles: of a panel at a time they are widened, and what else belongs to its rows is put
// beside them. The rows of a gated panel are two runs.
void pack_nibbles(const PackArgs& a, int64_t panels, int64_t zero_bytes) {
    const int64_t run = a.gated ? panel_outputs / 2 : panel_outputs, half = a.gated ? a.n / 2 : a.n;
    const int64_t depth = round_up(a.k, tile_depth), row_scales = scale_count(a.k, a.format), row_subs = depth / sub_depth;
    const int64_t grain = (panels + rounding_pieces * get_threads() - 1) / (rounding_pieces * get_threads());
    const int64_t pieces = (panels + grain - 1) / grain;
    Tensor codes({pieces, panel_outputs * depth}, DType::u8), scales({pieces, panel_outputs * row_scales}, DType::u16);
    Tensor subscales({pieces, panel_outputs * row_subs}, DType::u8), minima({pieces, panel_outputs * row_subs}, DType::u8);
    Tensor zeros({pieces, panel_outputs * row_scales}, DType::u16);
    auto pack_panels = [&](int64_t begin, int64_t end) {
        const int64_t piece = begin / grain;
        uint8_t* const zero = zeros.data<uint8_t>() + piece * zeros.dim(1) * 2;
        const WeightCodes out{codes.data<uint8_t>() + piece * codes.dim(1), scales.data<uint16_t>() + piece * scales.dim(1),
                              subscales.data<uint8_t>() + piece * subscales.dim(1),
                              minima.data<uint8_t>() + piece * minima.dim(1), a.in.zeros ? zero : nullptr};
        for (int64_t panel = begin; panel < end; panel++) {
            const int64_t rows = std::min(run, half - panel * run);
            for (int64_t part = 0; part < (a.gated ? 2 : 1); part++) {
                const int64_t at = part * rows, from = part * half + panel * run;
                widen_nibbles(a.in.codes + from * depth / 2, rows * depth / 2, out.codes + at * depth);
                std::copy_n(a.in.scales + from * row_scales, rows * row_scales, out.scales + at * row_scales);
                if (a.in.subscales) {
                    widen_nibbles(a.in.subscales + from * row_subs / 2, rows * row_subs / 2, out.subscales + at * row_subs);
                    std::copy_n(a.in.minima + from * row_subs, rows * row_subs, out.minima + at * row_subs);
                }
                if (a.in.zeros) {
                    const int64_t bytes = row_scales * zero_bytes;
                    std::copy_n(static_cast<const uint8_t*>(a.in.zeros) + from * bytes, rows * bytes, zero + at * bytes);
                }
            }
            PackArgs p = a;
            p.in = out;
            p.n = a.gated ? 2 * rows : rows;
            p.panels = a.panels + panel * panel_bytes(a.format, a.k);
            kernels().pack(p, 0, 1);
        }
    };
    parallel_for(panels, grain, [](const void* job, int64_t begin, int64_t end) {
        (*static_cast<const decltype(pack_panels)*>(job))(begin, end);
    }, &pack_panels);
}

}  // namespace

PackedWeight pack_weight(const Tensor& codes, const Tensor& scales, const OptionalTensor& subscales,
                         const OptionalTensor& minima, const OptionalTensor& zeros, int64_t k, const WeightFormat& format,
                         bool gated) {
    const char* op = "pack_weight";
    const bool two_level = format.packing == Packing::int4_two_level;
    const bool eight = eight_bits(format.packing), scaled = of_k(format.packing);
    const int64_t depth = round_up(k, tile_depth), subs = depth / sum_depth(format);
    const bool nibbles = !eight && !scaled && codes.rank() == 2 && codes.dim(1) == depth / 2;
    check_shape(op, "codes", codes, {-1, nibbles ? depth / 2 : depth});
    check_dtype(op, "codes", codes, {eight ? DType::i8 : DType::u8});
    check_contiguous(op, "codes", codes);
    const int64_t n = codes.dim(0);
    PackedWeight packed = empty_packed(op, n, k, format, gated);
    auto check_part = [&](const char* name, const OptionalTensor& t, bool wanted, int64_t columns, DType dtype) {
        if (wanted != t.has_value()) fail(op, std::string(name) + (wanted ? " is missing" : " has no place in this format"));
        if (!t) return;
        check_shape(op, name, *t, {n, columns});
        check_dtype(op, name, *t, {dtype});
        check_contiguous(op, name, *t);
    };
    check_part("scales", scales, true, scale_count(k, format), format.scale_dtype);
    check_part("subscales", subscales, two_level || scaled, nibbles ? subs / 2 : subs, scaled ? DType::i8 : DType::u8);
    check_part("minima", minima, two_level || (scaled && format.zero == Zero::real), subs, DType::u8);
    check_part("zeros", zeros, format.zero != Zero::none, scale_count(k, format),
               format.zero == Zero::real ? format.scale_dtype : eight ? DType::i8 : DType::u8);
    // Kernels count on these ranges: their sums of integers would not be exact beyond. Loops without a way out, which the
    // compiler turns into vectors: a model has a billion codes.
    auto check_most = [&](const char* name, const Tensor& t, int most) {
        const uint8_t* values = t.data<uint8_t>();
        uint8_t largest = 0;
        for (int64_t i = 0; i < t.count(); i++) largest = std::max(largest, values[i]);
        if (largest > most) fail(op, std::string(name) + " holds " + std::to_string(largest) + "; expected 0 to " + std::to_string(most));
    };
    if (!eight && !nibbles) check_most("codes", codes, 15);
    if (two_level) {
        if (!nibbles) check_most("subscales", *subscales, 15);
        check_most("minima", *minima, 128);
        const uint8_t *u = subscales->data<uint8_t>(), *m = minima->data<uint8_t>();
        int largest = 0;
        if (nibbles) {
            for (int64_t i = 0; i < subscales->count(); i++)
                largest = std::max(largest, std::max(15 * (u[i] & 15) - m[2 * i], 15 * (u[i] >> 4) - m[2 * i + 1]));
        } else {
            for (int64_t i = 0; i < subscales->count(); i++) largest = std::max(largest, 15 * u[i] - m[i]);
        }
        if (largest > 127) fail(op, "15 u - m is " + std::to_string(largest) + " somewhere; expected at most 127");
    }
    if (zeros && format.packing == Packing::int4 && format.zero == Zero::integer) check_most("zeros", *zeros, 16);
    PackArgs a{{codes.data<uint8_t>(), scales.data<uint16_t>(), subscales ? subscales->data<uint8_t>() : nullptr,
                minima ? minima->data<uint8_t>() : nullptr, zeros ? zeros->bytes() : nullptr},
               packed.panels.data<uint8_t>(), n, k, format, gated};
    if (nibbles) pack_nibbles(a, packed.panels.dim(0), format.zero == Zero::real ? 2 : 1);
    else submit(kernels().pack, a, packed.panels.dim(0), 1);
    return packed;
}

}  // namespace genkit
