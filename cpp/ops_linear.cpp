// Products with weights, dense and packed: see ops.h.
#include "ops_check.h"

namespace genkit {
namespace {

constexpr int64_t linear_tile = 48;  // a multiple of every tier's tile of outputs
// bf16 weights by rows of bf16: a piece's outputs with many rows; where linear takes tiles, for few rows, its bytes of
// weights (about 10 us).
constexpr int64_t few_bf16_rows = 16, bf16_outputs = 256, tiled_outputs_least = 32, tiled_bytes = 1 << 18;
constexpr int64_t packed_products_a_piece = 1 << 21;  // about a megabyte: what is fetched beyond a piece is lost
constexpr int64_t rounding_pieces = 8;  // a thread, of a weight

constexpr const char* packing_names[] = {"int4_two_level", "int4", "int8"};
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
    if (two_level ? f.group != block_depth : f.group != 32 && f.group != 64 && f.group != 128 && f.group != block_depth)
        fail(op, "group is " + std::to_string(f.group) + "; expected " + (two_level ? "256" : "32, 64, 128 or 256"));
    if (two_level && (f.zero != Zero::none || f.scale_dtype != DType::f16))
        fail(op, "int4_two_level has f16 scales and minima instead of zeros");
    if (f.scale_dtype != DType::f16 && f.scale_dtype != DType::bf16)
        fail(op, std::string("scales of ") + dtype_name(f.scale_dtype) + "; expected f16 or bf16");
}

PackedWeight empty_packed(const char* op, int64_t n, int64_t k, const WeightFormat& format, bool gated) {
    check_format(op, format);
    if (n < 1 || k < 1) fail(op, "a packed weight of [" + std::to_string(n) + ", " + std::to_string(k) + "]");
    if (gated && n % 2 != 0) fail(op, "a gated weight has gates and ups: n " + std::to_string(n) + " is odd");
    const int64_t panels = gated ? (n / 2 + 15) / 16 : (n + panel_outputs - 1) / panel_outputs;
    return {Tensor({panels, panel_bytes(format, k)}, DType::u8), format, n, k, gated};
}

int64_t scale_count(int64_t k, const WeightFormat& f) { return (round_up(k, tile_depth) + f.group - 1) / f.group; }

// Small enough that every thread has several pieces, so that a slow one holds nobody up. Of many rows, two panels share a
// pass over x, or four where x does not stay in a core's cache.
int64_t packed_grain(int64_t panels, int64_t rows, int64_t k) {
    const int64_t grain = std::min(grain_for(packed_products_a_piece, rows * k * panel_outputs), panels / (8 * get_threads()));
    const int64_t shared = rows <= untiled_rows ? 1 : rows * k <= 1 << 20 ? 2 : 4;
    return std::max<int64_t>(1, std::max(grain, std::min(shared, panels / (4 * get_threads()))));
}

}  // namespace

WeightFormat weight_format(const std::string& packing, int64_t group, const std::string& zero, const std::string& scales) {
    const WeightFormat format{Packing(number_of("weight_format", "packing", packing, packing_names)), group,
                              Zero(number_of("weight_format", "zero", zero, zero_names)), dtype_from_name(scales)};
    check_format("weight_format", format);
    return format;
}

std::string packing_name(const WeightFormat& f) { return packing_names[int(f.packing)]; }

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual) {
    const char* op = "linear";
    check_f32(op, "x", x, {-1, -1});
    check_dtype(op, "weight", weight, {DType::f32, DType::f16, DType::bf16});
    check_shape(op, "weight", weight, {-1, x.dim(1)});
    check_contiguous(op, "weight", weight);
    int64_t rows = x.dim(0), k = x.dim(1), n = weight.dim(0);
    if (bias) check_vector(op, "bias", *bias, DType::f32, n);
    if (residual) {
        check_f32(op, "residual", *residual, {rows, n});
        check_contiguous(op, "residual", *residual);
    }
    Tensor out({rows, n}, DType::f32);
    if (rows == 0) return out;
    LinearArgs a{x.data<float>(), weight.bytes(), optional_data(bias), optional_data(residual), out.data<float>(),
                 rows, n, k, x.row_stride(), n, weight.dtype()};
    int64_t grain = (grain_for(products_a_piece, rows * k) + linear_tile - 1) / linear_tile * linear_tile;
    OptionalTensor rounded;
    if (weight.dtype() == DType::bf16 && kernels().row_input != RowInput::f32) {
        const bool tiles = kernels().row_input == RowInput::bf16_tiles;
        const int64_t row_tiles = (rows + 15) / 16, depth = round_up(k, 32);
        rounded = Tensor({tiles ? row_tiles * tile_columns(rows) : rows, depth}, DType::u16);
        a.x_bf16 = rounded->data<uint16_t>();
        TileRowsArgs t{a.x, rounded->data<uint16_t>(), rows, k, a.x_stride};
        RoundRowsArgs r{a.x, rounded->data<uint16_t>(), k, a.x_stride};
        if (tiles) submit(kernels().tile_rows, t, row_tiles, grain_for(elements_a_piece, 16 * k));
        else submit(kernels().round_rows, r, rows, grain_for(elements_a_piece, k));
        if (rows > few_bf16_rows) grain = std::min(bf16_outputs, round_up((n + 2 * get_threads() - 1) / (2 * get_threads()), 6));
        else if (tiles) grain = std::max(tiled_outputs_least, tiled_bytes / (k * 2) / tiled_outputs_least * tiled_outputs_least);
        else grain = round_up(grain_for(products_a_piece, k), 4);
    }
    submit(kernels().linear, a, n, grain);
    return out;
}

namespace {

Quantized quantize(const char* op, const Tensor& x, bool tiled, bool sums) {
    check_f32(op, "x", x, {-1, -1});
    const int64_t rows = x.dim(0), k = x.dim(1), depth = round_up(k, tile_depth);
    if (k < 1) fail(op, "x " + x.shape_text() + " has no columns");
    // An odd number of cache lines a row: rows do not compete for the same sets of the cache.
    const int64_t stride = tiled || depth / tile_depth % 2 ? depth : depth + tile_depth;
    const int64_t places = tiled ? round_up(rows, code_tile_rows) : rows;
    Quantized q{Tensor({places, stride}, DType::i8), Tensor({places, (k + block_depth - 1) / block_depth}, DType::f32),
                Tensor({sums ? rows : 0, depth / sub_depth}, DType::i16)};
    QuantizeArgs a{x.data<float>(), q.codes.data<int8_t>(), q.scales.data<float>(), sums ? q.sums.data<int16_t>() : nullptr, k,
                   x.row_stride(), stride, rows, tiled};
    submit(kernels().quantize, a, rows, grain_for(elements_a_piece, k));
    return q;
}

}  // namespace

Quantized quantize(const Tensor& x) { return quantize("quantize", x, false, true); }

Tensor packed_linear(const Tensor& x, const PackedWeight& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                     const std::string& kind) {
    const char* op = "packed_linear";
    check_f32(op, "x", x, {-1, weight.k});
    if (bias) check_vector(op, "bias", *bias, DType::f32, weight.n);
    if (weight.gated == kind.empty()) fail(op, "a gated weight needs its activation, and no other has one");
    if (weight.gated && residual) fail(op, "a gated weight takes no residual");
    const int64_t rows = x.dim(0), n = weight.gated ? weight.n / 2 : weight.n;
    if (residual) {
        check_f32(op, "residual", *residual, {rows, n});
        check_contiguous(op, "residual", *residual);
    }
    Tensor out({rows, n}, DType::f32);
    if (rows == 0) return out;
    const bool tiled = kernels().code_tiles && rows > untiled_rows;
    const Quantized q = quantize(op, x, tiled, !tiled || weight.format.zero != Zero::none);
    PackedLinearArgs a{q.codes.data<int8_t>(), q.scales.data<float>(), q.sums.data<int16_t>(), weight.panels.data<uint8_t>(),
                       optional_data(bias), optional_data(residual), out.data<float>(), rows, weight.n, weight.k,
                       q.codes.row_stride(), n, weight.format, weight.gated,
                       weight.gated ? activation_from_name(op, kind) : Activation::silu, tiled};
    submit(kernels().packed_linear, a, weight.panels.dim(0),
           packed_grain(weight.panels.dim(0), rows, weight.k));
    return out;
}

PackedWeight quantize_weight(const Tensor& weight, const WeightFormat& format, bool gated) {
    const char* op = "quantize_weight";
    check_dtype(op, "weight", weight, {DType::f32, DType::f16, DType::bf16});
    check_shape(op, "weight", weight, {-1, -1});
    check_contiguous(op, "weight", weight);
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

PackedWeight pack_weight(const Tensor& codes, const Tensor& scales, const OptionalTensor& subscales,
                         const OptionalTensor& minima, const OptionalTensor& zeros, int64_t k, const WeightFormat& format,
                         bool gated) {
    const char* op = "pack_weight";
    const bool two_level = format.packing == Packing::int4_two_level;
    check_shape(op, "codes", codes, {-1, round_up(k, tile_depth)});
    check_dtype(op, "codes", codes, {format.packing == Packing::int8 ? DType::i8 : DType::u8});
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
    check_part("subscales", subscales, two_level, round_up(k, tile_depth) / sub_depth, DType::u8);
    check_part("minima", minima, two_level, round_up(k, tile_depth) / sub_depth, DType::u8);
    check_part("zeros", zeros, format.zero != Zero::none, scale_count(k, format),
               format.zero == Zero::real ? format.scale_dtype : format.packing == Packing::int8 ? DType::i8 : DType::u8);
    // Kernels count on these ranges: their sums of integers would not be exact beyond.
    auto check_most = [&](const char* name, const Tensor& t, int most) {
        for (int64_t i = 0; i < t.count(); i++)
            if (t.data<uint8_t>()[i] > most)
                fail(op, std::string(name) + " holds " + std::to_string(t.data<uint8_t>()[i]) + "; expected 0 to " +
                             std::to_string(most));
    };
    if (format.packing != Packing::int8) check_most("codes", codes, 15);
    if (two_level) {
        check_most("subscales", *subscales, 15);
        check_most("minima", *minima, 128);
        for (int64_t i = 0; i < subscales->count(); i++)
            if (15 * subscales->data<uint8_t>()[i] - minima->data<uint8_t>()[i] > 127)
                fail(op, "15 u - m is above 127 at element " + std::to_string(i));
    }
    if (zeros && format.packing == Packing::int4 && format.zero == Zero::integer) check_most("zeros", *zeros, 16);
    PackArgs a{{codes.data<uint8_t>(), scales.data<uint16_t>(), subscales ? subscales->data<uint8_t>() : nullptr,
                minima ? minima->data<uint8_t>() : nullptr, zeros ? zeros->bytes() : nullptr},
               packed.panels.data<uint8_t>(), n, k, format, gated};
    submit(kernels().pack, a, packed.panels.dim(0), 1);
    return packed;
}

Tensor unpack(const Tensor& ids, const PackedWeight& weight) {
    const char* op = "unpack";
    check_vector(op, "ids", ids, DType::i32, ids.rank() == 1 ? ids.dim(0) : -1);
    check_range(op, "ids", ids, weight.n);
    Tensor out({ids.dim(0), weight.k}, DType::f32);
    UnpackArgs a{ids.data<int32_t>(), weight.panels.data<uint8_t>(), out.data<float>(), weight.n, weight.k, weight.format,
                 weight.gated};
    submit(kernels().unpack, a, ids.dim(0), grain_for(elements_a_piece, weight.k));
    return out;
}

}  // namespace genkit
