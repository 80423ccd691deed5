// Products with weights: see ops.h.
#include "ops_check.h"

namespace genkit {
namespace {

constexpr int64_t linear_tile = 48;  // a multiple of every tier's tile of outputs

}  // namespace

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
    submit(kernels().linear, a, n, grain);
    return out;
}

}  // namespace genkit
