#include "ops.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <stdexcept>

#include "cpu/table.h"
#include "threads.h"

namespace genkit {
namespace {

// The one place where kernels are started: a plan will record here what eager mode runs at once.
template <class Args>
void submit(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t units, int64_t grain) {
    struct Job {
        void (*kernel)(const Args&, int64_t, int64_t);
        const Args& args;
    } job{kernel, args};
    parallel_for(units, grain, [](const void* context, int64_t begin, int64_t end) {
        const Job& j = *static_cast<const Job*>(context);
        j.kernel(j.args, begin, end);
    }, &job);
}

// Units per piece such that a piece does about `work` of something a unit costs `unit_cost` of.
int64_t grain_for(int64_t work, int64_t unit_cost) { return std::max<int64_t>(1, work / std::max<int64_t>(1, unit_cost)); }
constexpr int64_t elements_a_piece = 16384;      // elementwise ops and norms: a few microseconds
constexpr int64_t products_a_piece = 1 << 17;    // linear: about 20 us of one row from memory, or of many rows
constexpr int64_t linear_tile = 48;              // a multiple of every tier's tile of outputs

[[noreturn]] void fail(const char* op, const std::string& what) {
    throw std::invalid_argument(std::string("[") + op + "] " + what);
}

void check_dtype(const char* op, const char* name, const Tensor& t, std::initializer_list<DType> allowed) {
    for (DType d : allowed)
        if (t.dtype() == d) return;
    std::string names;
    for (DType d : allowed) names += std::string(names.empty() ? "" : " or ") + dtype_name(d);
    fail(op, std::string(name) + " is " + t.shape_text() + "; expected " + names);
}

// Negative sizes in `shape` mean any.
void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
    bool good = t.rank() == static_cast<int64_t>(shape.size());
    std::string wanted;
    int64_t axis = 0;
    for (int64_t d : shape) {
        good = good && (d < 0 || t.dim(axis) == d);
        wanted += (axis++ ? ", " : "") + (d < 0 ? std::string("any") : std::to_string(d));
    }
    if (!good) fail(op, std::string(name) + " is " + t.shape_text() + "; expected [" + wanted + "]");
}

void check_contiguous(const char* op, const char* name, const Tensor& t) {
    if (!t.contiguous()) fail(op, std::string(name) + " " + t.shape_text() + " must be contiguous");
}

void check_f32(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
    check_dtype(op, name, t, {DType::f32});
    check_shape(op, name, t, shape);
}

void check_vector(const char* op, const char* name, const Tensor& t, DType dtype, int64_t n) {
    check_dtype(op, name, t, {dtype});
    check_shape(op, name, t, {n});
    check_contiguous(op, name, t);
}

void check_finite(const char* op, const char* name, float value) {
    if (!std::isfinite(value)) fail(op, std::string(name) + " is " + std::to_string(value) + "; expected a finite number");
}

void check_range(const char* op, const char* name, const Tensor& ids, int64_t limit) {
    const int32_t* p = ids.data<int32_t>();
    for (int64_t i = 0; i < ids.count(); i++)
        if (p[i] < 0 || p[i] >= limit)
            fail(op, std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(p[i]) + "; expected 0 to " +
                         std::to_string(limit - 1));
}

Activation activation_from_name(const char* op, const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    fail(op, "unknown activation '" + name + "'; known: silu, gelu, gelu_tanh");
}

float* optional_data(const OptionalTensor& t) { return t ? t->data<float>() : nullptr; }

// What kv_write and attention share: the pages, and where each row's keys are. Every page named must exist.
void check_pages(const char* op, int64_t rows, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
                 const Tensor& sequences, const Tensor& positions) {
    check_f32(op, "k_pages", k_pages, {-1, -1, page_keys, -1});
    check_f32(op, "v_pages", v_pages, {k_pages.dim(0), k_pages.dim(1), page_keys, k_pages.dim(3)});
    check_contiguous(op, "k_pages", k_pages);
    check_contiguous(op, "v_pages", v_pages);
    check_dtype(op, "page_table", page_table, {DType::i32});
    check_shape(op, "page_table", page_table, {-1, -1});
    check_contiguous(op, "page_table", page_table);
    check_vector(op, "sequences", sequences, DType::i32, rows);
    check_vector(op, "positions", positions, DType::i32, rows);
    check_range(op, "sequences", sequences, page_table.dim(0));
    int64_t max_pages = page_table.dim(1), pages = k_pages.dim(0);
    check_range(op, "positions", positions, max_pages * page_keys);
    const int32_t* table = page_table.data<int32_t>();
    int32_t last_sequence = -1;
    int64_t checked = 0;  // pages of last_sequence known to be good
    for (int64_t r = 0; r < rows; r++) {
        int32_t sequence = sequences.data<int32_t>()[r];
        if (sequence != last_sequence) checked = 0;
        last_sequence = sequence;
        for (; checked <= positions.data<int32_t>()[r] / page_keys; checked++) {
            int32_t page = table[sequence * max_pages + checked];
            if (page < 0 || page >= pages)
                fail(op, "page_table[" + std::to_string(sequence) + ", " + std::to_string(checked) + "] is " +
                             std::to_string(page) + "; expected 0 to " + std::to_string(pages - 1));
        }
    }
}

}  // namespace

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
    LayerNormArgs a{x.data<float>(), weight.data<float>(), optional_data(bias), out.data<float>(), x.dim(1),
                    x.row_stride(), eps};
    submit(kernels().layer_norm, a, x.dim(0), grain_for(elements_a_piece, x.dim(1)));
    return out;
}

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

void kv_write(const Tensor& k, const Tensor& v, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
              const Tensor& sequences, const Tensor& positions) {
    const char* op = "kv_write";
    check_f32(op, "k", k, {-1, -1});
    check_pages(op, k.dim(0), k_pages, v_pages, page_table, sequences, positions);
    int64_t kv_heads = k_pages.dim(1), head_dim = k_pages.dim(3);
    check_shape(op, "k", k, {-1, kv_heads * head_dim});
    check_f32(op, "v", v, {k.dim(0), kv_heads * head_dim});
    if (k.row_stride() != v.row_stride() && k.dim(0) > 1)
        fail(op, "k and v have row strides " + std::to_string(k.row_stride()) + " and " + std::to_string(v.row_stride()));
    KvWriteArgs a{k.data<float>(), v.data<float>(), k_pages.data<float>(), v_pages.data<float>(),
                  page_table.data<int32_t>(), sequences.data<int32_t>(), positions.data<int32_t>(), kv_heads, head_dim,
                  k.row_stride(), page_table.dim(1)};
    submit(kernels().kv_write, a, k.dim(0), grain_for(elements_a_piece, k.dim(1)));
}

Tensor attention(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
                 const Tensor& sequences, const Tensor& positions, float scale, int64_t window,
                 const OptionalTensor& alibi_slopes) {
    const char* op = "attention";
    check_f32(op, "q", q, {-1, -1});
    int64_t rows = q.dim(0);
    check_pages(op, rows, k_pages, v_pages, page_table, sequences, positions);
    int64_t kv_heads = k_pages.dim(1), head_dim = k_pages.dim(3);
    int64_t heads = head_dim > 0 ? q.dim(1) / head_dim : 0;
    if (heads < 1 || kv_heads < 1 || heads * head_dim != q.dim(1) || heads % kv_heads != 0 || head_dim > 512)
        fail(op, "q " + q.shape_text() + " does not fit pages " + k_pages.shape_text() +
                     ": expected a multiple of kv_heads * head_dim columns, head_dim at most 512");
    check_finite(op, "scale", scale);
    if (window < 0) fail(op, "window is " + std::to_string(window) + "; expected 0 (unlimited) or more");
    if (alibi_slopes) check_vector(op, "alibi_slopes", *alibi_slopes, DType::f32, heads);
    Tensor out({rows, heads * head_dim}, DType::f32);
    AttentionArgs a{q.data<float>(), k_pages.data<float>(), v_pages.data<float>(), page_table.data<int32_t>(),
                    sequences.data<int32_t>(), positions.data<int32_t>(), optional_data(alibi_slopes), out.data<float>(),
                    rows, heads, kv_heads, head_dim, q.row_stride(), heads * head_dim, page_table.dim(1), window, scale};
    submit(kernels().attention, a, (rows + attention_rows - 1) / attention_rows * kv_heads, 1);
    return out;
}

Tensor activation(const Tensor& x, const std::string& kind) {
    const char* op = "activation";
    check_f32(op, "x", x, {-1, -1});
    Tensor out(x.shape(), DType::f32);
    ActivationArgs a{x.data<float>(), out.data<float>(), x.dim(1), x.row_stride(), activation_from_name(op, kind)};
    submit(kernels().activation, a, x.dim(0), grain_for(elements_a_piece, x.dim(1)));
    return out;
}

Tensor gated(const Tensor& x, const std::string& kind) {
    const char* op = "gated";
    check_f32(op, "x", x, {-1, -1});
    if (x.dim(1) % 2 != 0) fail(op, "x " + x.shape_text() + " must hold gate and up: an even number of columns");
    Tensor out({x.dim(0), x.dim(1) / 2}, DType::f32);
    GatedArgs a{x.data<float>(), out.data<float>(), x.dim(1) / 2, x.row_stride(), activation_from_name(op, kind)};
    submit(kernels().gated, a, x.dim(0), grain_for(elements_a_piece, x.dim(1)));
    return out;
}

Tensor add(const Tensor& a, const Tensor& b) {
    const char* op = "add";
    check_dtype(op, "a", a, {DType::f32});
    check_dtype(op, "b", b, {DType::f32});
    check_contiguous(op, "a", a);
    check_contiguous(op, "b", b);
    if (a.shape() != b.shape()) fail(op, "a is " + a.shape_text() + " and b is " + b.shape_text());
    Tensor out(a.shape(), DType::f32);
    AddArgs args{a.data<float>(), b.data<float>(), out.data<float>()};
    submit(kernels().add, args, a.count(), elements_a_piece);
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

Tensor argmax(const Tensor& x) {
    check_f32("argmax", "x", x, {-1, -1});
    check_contiguous("argmax", "x", x);
    Tensor out({x.dim(0)}, DType::i32);
    ArgmaxArgs a{x.data<float>(), out.data<int32_t>(), x.dim(1)};
    submit(kernels().argmax, a, x.dim(0), 1);
    return out;
}

Tensor nonfinite(const Tensor& x) {
    check_f32("nonfinite", "x", x, {-1, -1});
    check_contiguous("nonfinite", "x", x);
    Tensor out({x.dim(0)}, DType::i32);
    NonfiniteArgs a{x.data<float>(), out.data<int32_t>(), x.dim(1)};
    submit(kernels().nonfinite, a, x.dim(0), 1);
    return out;
}

std::pair<Tensor, Tensor> top_k(const Tensor& x, int64_t k) {
    const char* op = "top_k";
    check_f32(op, "x", x, {-1, -1});
    check_contiguous(op, "x", x);
    if (k < 1 || k > x.dim(1)) fail(op, "k is " + std::to_string(k) + " for x " + x.shape_text());
    Tensor values({x.dim(0), k}, DType::f32), ids({x.dim(0), k}, DType::i32);
    TopKArgs a{x.data<float>(), values.data<float>(), ids.data<int32_t>(), x.dim(1), k};
    submit(kernels().top_k, a, x.dim(0), 1);
    return {values, ids};
}

void penalize_(const Tensor& logits, const Tensor& ids, const Tensor& seen, const Tensor& generated,
               const Tensor& offsets, float repetition, float presence, float frequency) {
    const char* op = "penalize_";
    check_f32(op, "logits", logits, {-1, -1});
    check_contiguous(op, "logits", logits);
    int64_t rows = logits.dim(0), entries = ids.rank() == 1 ? ids.dim(0) : -1;
    check_vector(op, "ids", ids, DType::i32, entries);
    check_vector(op, "seen", seen, DType::i32, entries);
    check_vector(op, "generated", generated, DType::i32, entries);
    check_vector(op, "offsets", offsets, DType::i64, rows + 1);
    check_range(op, "ids", ids, logits.dim(1));
    const int64_t* o = offsets.data<int64_t>();
    for (int64_t r = 0; r < rows; r++)
        if (o[r] > o[r + 1] || o[r] < 0 || o[r + 1] > entries)
            fail(op, "offsets[" + std::to_string(r) + "] to the next are " + std::to_string(o[r]) + " and " +
                         std::to_string(o[r + 1]) + " of " + std::to_string(entries) + " entries");
    check_finite(op, "repetition", repetition);
    check_finite(op, "presence", presence);
    check_finite(op, "frequency", frequency);
    if (repetition <= 0) fail(op, "repetition is " + std::to_string(repetition) + "; expected more than 0");
    PenaltyArgs a{logits.data<float>(), ids.data<int32_t>(), seen.data<int32_t>(), generated.data<int32_t>(), o,
                  logits.dim(1), repetition, presence, frequency};
    submit(kernels().penalty, a, rows, 1);
}

Tensor sample(const Tensor& logits, const Tensor& sequences, const Tensor& positions, float temperature, int64_t top_k,
              float top_p, float min_p, uint64_t seed) {
    const char* op = "sample";
    check_f32(op, "logits", logits, {-1, -1});
    check_contiguous(op, "logits", logits);
    int64_t rows = logits.dim(0), dim = logits.dim(1);
    check_vector(op, "sequences", sequences, DType::i64, rows);
    check_vector(op, "positions", positions, DType::i64, rows);
    if (!(temperature >= 0) || !std::isfinite(temperature) || top_k < 0 || !(top_p > 0 && top_p <= 1) ||
        !(min_p >= 0 && min_p <= 1))
        fail(op, "temperature " + std::to_string(temperature) + ", top_k " + std::to_string(top_k) + ", top_p " +
                     std::to_string(top_p) + ", min_p " + std::to_string(min_p) + " are out of range");
    Tensor tokens({rows}, DType::i32);
    Tensor scratch({rows, sample_scratch_bytes(dim)}, DType::u8);
    SampleArgs a{logits.data<float>(), sequences.data<int64_t>(), positions.data<int64_t>(), tokens.data<int32_t>(),
                 scratch.bytes(), dim, top_k, seed, temperature, top_p, min_p};
    submit(kernels().sample, a, rows, 1);
    return tokens;
}

void copy_pages(const Tensor& pages, const Tensor& source, const Tensor& target) {
    const char* op = "copy_pages";
    check_dtype(op, "pages", pages, {DType::f32});
    check_contiguous(op, "pages", pages);
    if (pages.rank() < 1) fail(op, "pages " + pages.shape_text() + " has no page axis");
    int64_t pairs = source.rank() == 1 ? source.dim(0) : -1;
    check_vector(op, "source", source, DType::i32, pairs);
    check_vector(op, "target", target, DType::i32, pairs);
    check_range(op, "source", source, pages.dim(0));
    check_range(op, "target", target, pages.dim(0));
    CopyPagesArgs a{pages.data<float>(), source.data<int32_t>(), target.data<int32_t>(), pages.row_stride()};
    submit(kernels().copy_pages, a, pairs, 1);
}

}  // namespace genkit
