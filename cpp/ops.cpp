// Element-wise ops, norms, rope: see ops.h.
#include "ops_check.h"

namespace genkit {

Tensor convert(const Tensor& x, DType dtype) {
    const char* op = "convert";
    check_dtype(op, "x", x, {DType::f32, DType::f16, DType::bf16});
    if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16)
        fail(op, std::string("cannot convert to ") + dtype_name(dtype));
    check_contiguous(op, "x", x);
    Tensor out(x.shape(), dtype);
    ConvertArgs a{x.bytes(), out.bytes(), x.dtype(), dtype};
    submit(kernels().convert, a, x.count(), elements_a_piece);
    return out;
}

Tensor embedding(const Tensor& ids, const Tensor& table) {
    const char* op = "embedding";
    check_vector(op, "ids", ids, DType::i32, ids.rank() == 1 ? ids.dim(0) : -1);
    check_dtype(op, "table", table, {DType::f32, DType::f16, DType::bf16});
    check_shape(op, "table", table, {-1, -1});
    check_contiguous(op, "table", table);
    check_range(op, "ids", ids, table.dim(0));
    Tensor out({ids.dim(0), table.dim(1)}, DType::f32);
    EmbeddingArgs a{ids.data<int32_t>(), table.bytes(), out.data<float>(), table.dim(1), table.dtype()};
    submit(kernels().embedding, a, ids.dim(0), grain_for(elements_a_piece, table.dim(1)));
    return out;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps) {
    const char* op = "rms_norm";
    check_f32(op, "x", x, {-1, -1});
    check_vector(op, "weight", weight, DType::f32, x.dim(1));
    check_finite(op, "eps", eps);
    Tensor out(x.shape(), DType::f32);
    RmsNormArgs a{x.data<float>(), weight.data<float>(), out.data<float>(), x.dim(1), 1, x.row_stride(), x.dim(1), eps};
    submit(kernels().rms_norm, a, x.dim(0), grain_for(elements_a_piece, x.dim(1)));
    return out;
}

void rms_norm_heads_(const Tensor& x, const Tensor& weight, float eps) {
    const char* op = "rms_norm_heads_";
    check_f32(op, "x", x, {-1, -1});
    check_vector(op, "weight", weight, DType::f32, weight.rank() == 1 ? weight.dim(0) : -1);
    check_finite(op, "eps", eps);
    int64_t dim = weight.dim(0);
    if (dim == 0 || x.dim(1) % dim != 0)
        fail(op, "x " + x.shape_text() + " is not whole heads of weight " + weight.shape_text());
    int64_t heads = x.dim(1) / dim;
    RmsNormArgs a{x.data<float>(), weight.data<float>(), x.data<float>(), dim, heads, x.row_stride(), x.row_stride(), eps};
    submit(kernels().rms_norm, a, x.dim(0) * heads, grain_for(elements_a_piece, dim));
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, float eps) {
    const char* op = "layer_norm";
    check_f32(op, "x", x, {-1, -1});
    check_vector(op, "weight", weight, DType::f32, x.dim(1));
    if (bias) check_vector(op, "bias", *bias, DType::f32, x.dim(1));
    check_finite(op, "eps", eps);
    Tensor out(x.shape(), DType::f32);
    LayerNormArgs a{x.data<float>(), weight.data<float>(), optional_data(bias), out.data<float>(), x.dim(1), 1,
                    x.row_stride(), x.dim(1), 0, eps};
    submit(kernels().layer_norm, a, x.dim(0), grain_for(elements_a_piece, x.dim(1)));
    return out;
}

void layer_norm_heads_(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, float eps) {
    const char* op = "layer_norm_heads_";
    check_f32(op, "x", x, {-1, -1});
    check_dtype(op, "weight", weight, {DType::f32});
    check_contiguous(op, "weight", weight);
    if (weight.rank() != 1) check_shape(op, "weight", weight, {-1, -1});
    const bool own = weight.rank() == 2;  // a weight for each head
    const int64_t dim = weight.dim(own ? 1 : 0), heads = dim > 0 ? x.dim(1) / dim : 0;
    if (dim == 0 || x.dim(1) != heads * dim || (own && heads != weight.dim(0)))
        fail(op, "x " + x.shape_text() + " is not whole heads of weight " + weight.shape_text());
    if (bias) {
        check_dtype(op, "bias", *bias, {DType::f32});
        check_contiguous(op, "bias", *bias);
        if (bias->shape() != weight.shape()) fail(op, "weight is " + weight.shape_text() + " and bias is " + bias->shape_text());
    }
    check_finite(op, "eps", eps);
    LayerNormArgs a{x.data<float>(), weight.data<float>(), optional_data(bias), x.data<float>(), dim, heads,
                    x.row_stride(), x.row_stride(), own ? dim : 0, eps};
    submit(kernels().layer_norm, a, x.dim(0) * heads, grain_for(elements_a_piece, dim));
}

Tensor rope_table(const Tensor& positions, const Tensor& inv_freq, float scale) {
    const char* op = "rope_table";
    check_vector(op, "positions", positions, DType::i32, positions.rank() == 1 ? positions.dim(0) : -1);
    check_vector(op, "inv_freq", inv_freq, DType::f32, inv_freq.rank() == 1 ? inv_freq.dim(0) : -1);
    check_finite(op, "scale", scale);
    int64_t half = inv_freq.dim(0);
    Tensor table({positions.dim(0), 2 * half}, DType::f32);
    RopeTableArgs a{positions.data<int32_t>(), inv_freq.data<float>(), table.data<float>(), half, scale};
    submit(kernels().rope_table, a, positions.dim(0), grain_for(1024, half));
    return table;
}

void rope_(const Tensor& x, const Tensor& table, int64_t head_dim, bool interleaved) {
    const char* op = "rope_";
    check_f32(op, "x", x, {-1, -1});
    check_f32(op, "table", table, {x.dim(0), -1});
    check_contiguous(op, "table", table);
    if (head_dim < 1 || x.dim(1) % head_dim != 0 || table.dim(1) > head_dim || table.dim(1) % 2 != 0)
        fail(op, "x " + x.shape_text() + " and table " + table.shape_text() + " do not fit head_dim " +
                     std::to_string(head_dim));
    RopeArgs a{x.data<float>(), table.data<float>(), x.dim(1) / head_dim, head_dim, table.dim(1) / 2, x.row_stride(),
               interleaved};
    submit(kernels().rope, a, x.dim(0), grain_for(elements_a_piece, x.dim(1)));
}

Tensor activation(const Tensor& x, const std::string& kind) {
    const char* op = "activation";
    check_f32(op, "x", x, {-1, -1});
    Tensor out(x.shape(), DType::f32);
    ActivationArgs a{x.data<float>(), out.data<float>(), x.dim(1), x.row_stride(), activation_from_name(op, kind, false)};
    submit(kernels().activation, a, x.dim(0), grain_for(elements_a_piece, x.dim(1)));
    return out;
}

Tensor gated(const Tensor& x, const std::string& kind) {
    const char* op = "gated";
    check_f32(op, "x", x, {-1, -1});
    if (x.dim(1) % 2 != 0) fail(op, "x " + x.shape_text() + " must hold gate and up: an even number of columns");
    Tensor out({x.dim(0), x.dim(1) / 2}, DType::f32);
    GatedArgs a{x.data<float>(), out.data<float>(), x.dim(1) / 2, x.row_stride(), activation_from_name(op, kind, true)};
    submit(kernels().gated, a, x.dim(0), grain_for(elements_a_piece, x.dim(1)));
    return out;
}

Tensor add(const Tensor& a, const Tensor& b, float scale) {
    const char* op = "add";
    check_dtype(op, "a", a, {DType::f32});
    check_dtype(op, "b", b, {DType::f32});
    check_contiguous(op, "a", a);
    check_contiguous(op, "b", b);
    if (a.shape() != b.shape()) fail(op, "a is " + a.shape_text() + " and b is " + b.shape_text());
    check_finite(op, "scale", scale);
    Tensor out(a.shape(), DType::f32);
    AddArgs args{a.data<float>(), b.data<float>(), out.data<float>(), scale};
    submit(kernels().add, args, a.count(), elements_a_piece);
    return out;
}

Tensor scale(const Tensor& x, float factor, float softcap) {
    const char* op = "scale";
    check_dtype(op, "x", x, {DType::f32});
    check_contiguous(op, "x", x);
    check_finite(op, "factor", factor);
    check_softcap(op, softcap);
    Tensor out(x.shape(), DType::f32);
    ScaleArgs a{x.data<float>(), out.data<float>(), factor, softcap};
    submit(kernels().scale, a, x.count(), elements_a_piece);
    return out;
}

Tensor gather_columns(const Tensor& x, const Tensor& index, const OptionalTensor& y) {
    const char* op = "gather_columns";
    check_f32(op, "x", x, {-1, -1});
    if (y) check_f32(op, "y", *y, {x.dim(0), -1});
    check_vector(op, "index", index, DType::i32, index.rank() == 1 ? index.dim(0) : -1);
    const int64_t columns = index.dim(0), limit = x.dim(1) + (y ? y->dim(1) : 0);
    const int32_t* known = index.host<int32_t>();
    for (int64_t i = 0; i < columns && known; i++) {
        const int32_t from = known[i];
        if (from < -1 || from >= limit)
            fail(op, "index[" + std::to_string(i) + "] is " + std::to_string(from) + "; expected -1 to " + std::to_string(limit - 1));
    }
    Tensor out({x.dim(0), columns}, DType::f32);
    GatherColumnsArgs a{x.data<float>(), optional_data(y), index.data<int32_t>(), out.data<float>(), columns, x.dim(1),
                        x.row_stride(), y ? y->row_stride() : 0};
    submit(kernels().gather_columns, a, x.dim(0), grain_for(elements_a_piece, columns));
    return out;
}

Tensor softmax(const Tensor& x, bool log) {
    const char* op = log ? "log_softmax" : "softmax";
    check_f32(op, "x", x, {-1, -1});
    check_contiguous(op, "x", x);
    Tensor out(x.shape(), DType::f32);
    if (x.dim(1) == 0) return out;
    SoftmaxArgs a{x.data<float>(), out.data<float>(), x.dim(1), log};
    submit(kernels().softmax, a, x.dim(0), grain_for(elements_a_piece, x.dim(1)));
    return out;
}

}  // namespace genkit
