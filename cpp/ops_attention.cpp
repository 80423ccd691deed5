// The paged KV cache and attention over it: see ops.h.
#include "ops_check.h"

namespace genkit {
namespace {

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
