// Products with weights, dense and packed: see ops.h.
#include "ops_check.h"

namespace genkit {
namespace {

constexpr int64_t linear_tile = 48;  // a multiple of every tier's tile of outputs
// bf16 weights by rows of bf16: a piece's outputs with many rows; where linear takes tiles, for few rows, its bytes of
// weights (about 10 us).
constexpr int64_t few_bf16_rows = 16, bf16_outputs = 256, tiled_outputs_least = 32, tiled_bytes = 1 << 18;
constexpr int64_t packed_products_a_piece = 1 << 21;  // about a megabyte: what is fetched beyond a piece is lost

// Small enough that every thread has several pieces, so that a slow one holds nobody up. Of many rows, two panels share a
// pass over x, or four where x does not stay in a core's cache.
int64_t packed_grain(int64_t panels, int64_t rows, int64_t k) {
    const int64_t grain = std::min(grain_for(packed_products_a_piece, rows * k * panel_outputs), panels / (8 * get_threads()));
    const int64_t shared = rows <= untiled_rows ? 1 : rows * k <= 1 << 20 ? 2 : 4;
    return std::max<int64_t>(1, std::max(grain, std::min(shared, panels / (4 * get_threads()))));
}

// What a product adds and where it goes: columns of the op's arguments.
struct Target {
    const float *bias, *residual;  // or null
    float* out;
    int64_t stride;  // of out and residual

    Target columns(int64_t begin) const {
        return {bias ? bias + begin : nullptr, residual ? residual + begin : nullptr, out + begin, stride};
    }
};

Target make_target(const char* op, const OptionalTensor& bias, const OptionalTensor& residual, const Tensor& out, int64_t n) {
    if (bias) check_vector(op, "bias", *bias, DType::f32, n);
    if (residual) {
        check_f32(op, "residual", *residual, {out.dim(0), out.dim(1)});
        check_contiguous(op, "residual", *residual);
    }
    return {optional_data(bias), optional_data(residual), out.data<float>(), out.dim(1)};
}

void check_dense(const char* op, const Tensor& weight, int64_t k) {
    check_dtype(op, "weight", weight, {DType::f32, DType::f16, DType::bf16});
    check_shape(op, "weight", weight, {-1, k});
    check_contiguous(op, "weight", weight);
}

void dense_product(const Tensor& x, const Tensor& weight, const Target& to) {
    int64_t rows = x.dim(0), k = x.dim(1), n = weight.dim(0);
    LinearArgs a{x.data<float>(), weight.bytes(), to.bias, to.residual, to.out,
                 rows, n, k, x.row_stride(), to.stride, weight.dtype()};
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
}

Quantized quantize(const char* op, const Tensor& x, bool tiled, bool sums, int64_t sum_depth) {
    check_f32(op, "x", x, {-1, -1});
    const int64_t rows = x.dim(0), k = x.dim(1), depth = round_up(k, tile_depth);
    if (k < 1) fail(op, "x " + x.shape_text() + " has no columns");
    // An odd number of cache lines a row: rows do not compete for the same sets of the cache.
    const int64_t stride = tiled || depth / tile_depth % 2 ? depth : depth + tile_depth;
    const int64_t places = tiled ? round_up(rows, code_tile_rows) : rows;
    Quantized q{Tensor({places, stride}, DType::i8), Tensor({places, (k + block_depth - 1) / block_depth}, DType::f32),
                Tensor({sums ? rows : 0, depth / sum_depth}, DType::i16)};
    QuantizeArgs a{x.data<float>(), q.codes.data<int8_t>(), q.scales.data<float>(), sums ? q.sums.data<int16_t>() : nullptr, k,
                   x.row_stride(), stride, rows, tiled, sum_depth};
    submit(kernels().quantize, a, rows, grain_for(elements_a_piece, k));
    return q;
}

// Rows in codes as the kernels of some formats want them.
struct Coded {
    bool tiled = false, sums = false;
    int64_t sum_depth = 0;
    std::optional<Quantized> codes;
};

void packed_product(const char* op, const Tensor& x, const PackedWeight& weight, const Target& to, Activation kind, Coded& coded) {
    const int64_t rows = x.dim(0);
    const bool tiled = kernels().code_tiles && rows > untiled_rows;
    const bool sums = !tiled || weight.format.zero != Zero::none;
    const int64_t depth = sum_depth(weight.format);
    if (!coded.codes || coded.tiled != tiled || (sums && (!coded.sums || coded.sum_depth != depth)))
        coded = {tiled, sums, depth, quantize(op, x, tiled, sums, depth)};
    const Quantized& q = *coded.codes;
    PackedLinearArgs a{q.codes.data<int8_t>(), q.scales.data<float>(), q.sums.data<int16_t>(), weight.panels.data<uint8_t>(),
                       to.bias, to.residual, to.out, rows, weight.n, weight.k, q.codes.row_stride(), to.stride, weight.format,
                       weight.gated, kind, tiled};
    submit(kernels().packed_linear, a, weight.panels.dim(0),
           packed_grain(weight.panels.dim(0), rows, weight.k));
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual) {
    const char* op = "linear";
    check_f32(op, "x", x, {-1, -1});
    check_dense(op, weight, x.dim(1));
    Tensor out({x.dim(0), weight.dim(0)}, DType::f32);
    const Target to = make_target(op, bias, residual, out, weight.dim(0));
    if (x.dim(0) > 0) dense_product(x, weight, to);
    return out;
}

Quantized quantize(const Tensor& x) { return quantize("quantize", x, false, true, sub_depth); }

Tensor packed_linear(const Tensor& x, const PackedWeight& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                     const std::string& kind) {
    const char* op = "packed_linear";
    check_f32(op, "x", x, {-1, weight.k});
    if (weight.gated == kind.empty()) fail(op, "a gated weight needs its activation, and no other has one");
    if (weight.gated && residual) fail(op, "a gated weight takes no residual");
    Tensor out({x.dim(0), weight.gated ? weight.n / 2 : weight.n}, DType::f32);
    const Target to = make_target(op, bias, residual, out, weight.n);
    Coded coded;
    if (x.dim(0) > 0)
        packed_product(op, x, weight, to, weight.gated ? activation_from_name(op, kind, true) : Activation::silu, coded);
    return out;
}

Tensor linears(const Tensor& x, const std::vector<AnyWeight>& weights, const OptionalTensor& bias,
               const OptionalTensor& residual) {
    const char* op = "linears";
    check_f32(op, "x", x, {-1, -1});
    int64_t n = 0;
    for (const AnyWeight& weight : weights) {
        const bool missing = std::visit([](const auto* w) { return w == nullptr; }, weight);
        if (missing) fail(op, "a weight is None");
        if (auto* dense = std::get_if<const Tensor*>(&weight)) {
            check_dense(op, **dense, x.dim(1));
            n += (*dense)->dim(0);
        } else {
            const PackedWeight& packed = *std::get<const PackedWeight*>(weight);
            check_f32(op, "x", x, {-1, packed.k});
            if (packed.gated) fail(op, "a gated weight has no place beside others");
            n += packed.n;
        }
    }
    Tensor out({x.dim(0), n}, DType::f32);
    const Target to = make_target(op, bias, residual, out, n);
    if (x.dim(0) == 0) return out;
    Coded coded;  // once for all that take the same
    int64_t column = 0;
    for (const AnyWeight& weight : weights) {
        if (auto* dense = std::get_if<const Tensor*>(&weight)) {
            dense_product(x, **dense, to.columns(column));
            column += (*dense)->dim(0);
        } else {
            const PackedWeight& packed = *std::get<const PackedWeight*>(weight);
            packed_product(op, x, packed, to.columns(column), Activation::silu, coded);
            column += packed.n;
        }
    }
    return out;
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
