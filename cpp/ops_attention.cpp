// The paged KV cache and attention over it: see ops.h.
#include "ops_check.h"

namespace genkit {
namespace {

constexpr int64_t device_split_rows = 64;  // beyond, rows and heads alone are places enough for a device

void check_scales(const char* op, const char* name, const OptionalTensor& scales, const Tensor& pages) {
    if (pages.dtype() != DType::i8) {
        if (scales) fail(op, std::string(name) + " are for i8 pages; these are " + pages.shape_text());
        return;
    }
    if (!scales) fail(op, std::string(name) + " are missing; i8 pages need them");
    check_f32(op, name, *scales, {pages.dim(0), pages.dim(1), page_keys});
    check_contiguous(op, name, *scales);
}

// The pages, and where each row's keys are. Every page named must exist.
KvPages kv_pages(const char* op, int64_t rows, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
                 const Tensor& sequences, const Tensor& positions, const OptionalTensor& k_scales,
                 const OptionalTensor& v_scales) {
    check_dtype(op, "k_pages", k_pages, {DType::f32, DType::f16, DType::bf16, DType::i8});
    check_shape(op, "k_pages", k_pages, {-1, -1, page_keys, -1});
    check_dtype(op, "v_pages", v_pages, {k_pages.dtype()});
    check_shape(op, "v_pages", v_pages, {k_pages.dim(0), k_pages.dim(1), page_keys, k_pages.dim(3)});
    if (k_pages.dim(3) > 512) fail(op, "k_pages " + k_pages.shape_text() + ": head_dim is at most 512");
    check_contiguous(op, "k_pages", k_pages);
    check_contiguous(op, "v_pages", v_pages);
    check_scales(op, "k_scales", k_scales, k_pages);
    check_scales(op, "v_scales", v_scales, v_pages);
    check_dtype(op, "page_table", page_table, {DType::i32});
    check_shape(op, "page_table", page_table, {-1, -1});
    check_contiguous(op, "page_table", page_table);
    check_vector(op, "sequences", sequences, DType::i32, rows);
    check_vector(op, "positions", positions, DType::i32, rows);
    check_range(op, "sequences", sequences, page_table.dim(0));
    int64_t max_pages = page_table.dim(1), pages = k_pages.dim(1);
    check_range(op, "positions", positions, max_pages * page_keys);
    const int32_t *table = page_table.host<int32_t>(), *sequence_of = sequences.host<int32_t>(), *position = positions.host<int32_t>();
    int32_t last_sequence = -1;
    int64_t checked = 0;  // pages of last_sequence known to be good
    for (int64_t r = 0; r < rows && table && sequence_of && position; r++) {
        int32_t sequence = sequence_of[r];
        if (sequence != last_sequence) checked = 0;
        last_sequence = sequence;
        for (; checked <= position[r] / page_keys; checked++) {
            int32_t page = table[sequence * max_pages + checked];
            if (page < 0 || page >= pages)
                fail(op, "page_table[" + std::to_string(sequence) + ", " + std::to_string(checked) + "] is " +
                             std::to_string(page) + "; expected 0 to " + std::to_string(pages - 1));
        }
    }
    bool apart = rows <= 1 || sequence_of;
    for (int64_t r = 1; r < rows && apart; r++) apart = sequence_of[r] > sequence_of[r - 1];
    return {k_pages.bytes(), v_pages.bytes(), optional_data(k_scales), optional_data(v_scales),
            page_table.data<int32_t>(),
            sequences.data<int32_t>(), positions.data<int32_t>(), k_pages.dim(0), pages, k_pages.dim(3), max_pages,
            k_pages.dtype(), apart};
}

KvWriteArgs kv_write_args(const char* op, const Tensor& k, const Tensor& v, const KvPages& pages) {
    const int64_t width = pages.kv_heads * pages.head_dim;
    check_f32(op, "k", k, {-1, width});
    check_f32(op, "v", v, {k.dim(0), width});
    if (k.row_stride() != v.row_stride() && k.dim(0) > 1)
        fail(op, "k and v have row strides " + std::to_string(k.row_stride()) + " and " + std::to_string(v.row_stride()));
    return {k.data<float>(), v.data<float>(), k.row_stride(), pages};
}

}  // namespace

void kv_write(const Tensor& k, const Tensor& v, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
              const Tensor& sequences, const Tensor& positions, const OptionalTensor& k_scales,
              const OptionalTensor& v_scales) {
    const char* op = "kv_write";
    check_f32(op, "k", k, {-1, -1});
    KvWriteArgs a = kv_write_args(op, k, v, kv_pages(op, k.dim(0), k_pages, v_pages, page_table, sequences, positions,
                                                     k_scales, v_scales));
    submit(kernels().kv_write, a, k.dim(0), grain_for(elements_a_piece, 2 * k.dim(1)));
}

void rope_kv_write(const Tensor& x, const Tensor& table, const Tensor& k, const Tensor& v, const Tensor& k_pages,
                   const Tensor& v_pages, const Tensor& page_table, const Tensor& sequences, const Tensor& positions,
                   bool interleaved, const OptionalTensor& k_scales, const OptionalTensor& v_scales) {
    const char* op = "rope_kv_write";
    check_f32(op, "k", k, {-1, -1});
    KvWriteArgs write = kv_write_args(op, k, v, kv_pages(op, k.dim(0), k_pages, v_pages, page_table, sequences, positions,
                                                         k_scales, v_scales));
    const int64_t head_dim = write.pages.head_dim;
    check_f32(op, "x", x, {k.dim(0), -1});
    check_f32(op, "table", table, {k.dim(0), -1});
    check_contiguous(op, "table", table);
    if (head_dim < 1 || x.dim(1) % head_dim != 0 || table.dim(1) % 2 != 0 || table.dim(1) > head_dim)
        fail(op, "x " + x.shape_text() + " and table " + table.shape_text() + " do not fit head_dim " + std::to_string(head_dim));
    RopeKvWriteArgs a{{x.data<float>(), table.data<float>(), x.dim(1) / head_dim, head_dim, table.dim(1) / 2, x.row_stride(),
                       interleaved}, write};
    submit(kernels().rope_kv_write, a, k.dim(0), grain_for(elements_a_piece, x.dim(1) + k.dim(1)));
}

Tensor attention(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
                 const Tensor& sequences, const Tensor& positions, float scale, int64_t window,
                 const OptionalTensor& alibi_slopes, const OptionalTensor& k_scales, const OptionalTensor& v_scales,
                 float softcap, const OptionalTensor& sinks) {
    const char* op = "attention";
    check_f32(op, "q", q, {-1, -1});
    const int64_t rows = q.dim(0);
    const KvPages pages = kv_pages(op, rows, k_pages, v_pages, page_table, sequences, positions, k_scales, v_scales);
    const int64_t heads = pages.head_dim > 0 ? q.dim(1) / pages.head_dim : 0;
    if (heads < 1 || pages.kv_heads < 1 || heads * pages.head_dim != q.dim(1) || heads % pages.kv_heads != 0)
        fail(op, "q " + q.shape_text() + " does not fit pages " + k_pages.shape_text() +
                     ": expected a multiple of kv_heads * head_dim columns");
    check_finite(op, "scale", scale);
    if (window < 0) fail(op, "window is " + std::to_string(window) + "; expected 0 (unlimited) or more");
    if (alibi_slopes) check_vector(op, "alibi_slopes", *alibi_slopes, DType::f32, heads);
    check_softcap(op, softcap);
    if (sinks) check_vector(op, "sinks", *sinks, DType::f32, heads);

    // Units of up to 128 queries read a page once for all of them. Fewer where threads would be idle, and then keys split
    // too: the bits do not depend on it.
    const int64_t threads = get_threads(), group = heads / pages.kv_heads;
    int64_t unit_rows = std::max<int64_t>(1, 128 / group);
    auto units = [&] { return (rows + unit_rows - 1) / unit_rows * pages.kv_heads; };
    while (unit_rows > 1 && units() < (unit_rows * group > 32 ? 4 : 1) * threads) unit_rows /= 2;
    const bool on_device = device_in_use() != Device::cpu;  // where there are always more places to run than units
    if (on_device) unit_rows = 1;
    const int64_t splits = (pages.max_pages * page_keys + attention_split - 1) / attention_split;
    const bool split = splits > 1 && (on_device ? rows <= device_split_rows : units() < 2 * threads && threads > 1);

    Tensor out({rows, heads * pages.head_dim}, DType::f32);
    AttentionArgs a{q.data<float>(), optional_data(alibi_slopes), optional_data(sinks), out.data<float>(), nullptr, pages, rows,
                    heads, q.row_stride(), heads * pages.head_dim, window, unit_rows, splits, scale, softcap};
    if (!split) {
        submit(kernels().attention, a, units(), 1);
        return out;
    }
    Tensor partials({rows, heads, splits, pages.head_dim + 2}, DType::f32);
    a.partials = partials.data<float>();
    submit(kernels().attention, a, units() * splits, 1);
    submit(kernels().attention_merge, a, rows * heads, grain_for(elements_a_piece, splits * pages.head_dim));
    return out;
}

void copy_pages(const Tensor& pages, const Tensor& source, const Tensor& target) {
    const char* op = "copy_pages";
    check_contiguous(op, "pages", pages);
    if (pages.rank() < 2) fail(op, "pages " + pages.shape_text() + " has no page axis");
    int64_t pairs = source.rank() == 1 ? source.dim(0) : -1;
    check_vector(op, "source", source, DType::i32, pairs);
    check_vector(op, "target", target, DType::i32, pairs);
    check_range(op, "source", source, pages.dim(1));
    check_range(op, "target", target, pages.dim(1));
    CopyPagesArgs a{pages.bytes(), source.data<int32_t>(), target.data<int32_t>(),
                    pages.dim(0), pages.dim(1), pages.row_stride() * dtype_size(pages.dtype()) / std::max<int64_t>(1, pages.dim(1))};
    submit(kernels().copy_pages, a, pairs, 1);
}

}  // namespace genkit
