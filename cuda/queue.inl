// Several calls of slots as one kernel: a call that may be the first ones of a chain waits for the next; when a chain is
// complete it is started as one kernel, else what waits is started in order as it is. All results are still written, and
// have the same bits. Nobody outside knows: whatever looks at memory or time calls flush() first, as does every launch.
//
// A recorded plan is where chains come from: its calls follow one another without a look at what they gave.

template <class Args>
struct Call {
    Args args;
    int64_t begin, end;
};

// What waits, in this order. Of a thread: each records or starts its own work.
struct Waiting {
    std::optional<Call<RmsNormArgs>> norm;
    std::optional<Call<QuantizeArgs>> rounding;  // with a norm: of what it gives
    std::optional<Call<LinearArgs>> product;     // with a norm: by the rows it gives; never with a rounding
    std::optional<Call<RopeKvWriteArgs>> rope;   // alone
};
thread_local Waiting waiting;
bool fuses = true;

bool switched_on(const char* variable) {
    const char* value = getenv(variable);
    return value == nullptr || strcmp(value, "0") != 0;
}

// Memory a call reads or writes; none where it starts at null.
struct Span {
    const char *from, *to;
    template <class T>
    Span(const T* p, int64_t count) : from(reinterpret_cast<const char*>(p)), to(p ? from + count * int64_t(sizeof(T)) : from) {}
};
template <class T>
Span rows_span(const T* p, int64_t rows, int64_t stride, int64_t width) {
    return {p, (rows - 1) * stride + width};
}
bool apart(const Span& a, const Span& b) { return a.from == a.to || b.from == b.to || a.to <= b.from || b.to <= a.from; }
bool apart(const Span& a, std::initializer_list<Span> others) {
    return std::all_of(others.begin(), others.end(), [&](const Span& b) { return apart(a, b); });
}

Span read_by(const RmsNormArgs& a, int64_t rows) { return rows_span(a.x, rows, a.x_stride, a.dim); }
Span written_by(const RmsNormArgs& a, int64_t rows) { return rows_span(a.out, rows, a.out_stride, a.dim); }
Span codes_of(const QuantizeArgs& a) { return {a.codes, last_coded(a, a.rows) * a.codes_stride}; }
Span scales_of(const QuantizeArgs& a) { return {a.scales, last_coded(a, a.rows) * ((a.k + block_depth - 1) / block_depth)}; }
Span sums_of(const QuantizeArgs& a) { return {a.sums, a.rows * (round_up(a.k, tile_depth) / a.sum_depth)}; }

// Whether the rows that are rounded are those the norm gives, each by the block that gave it: nothing the rounding writes may
// be what another row's norm has yet to read.
bool follows(const Call<RmsNormArgs>& norm, const QuantizeArgs& a) {
    const RmsNormArgs& n = norm.args;
    const int64_t rows = norm.end;
    if (a.x != n.out || a.x_stride != n.out_stride || a.k != n.dim || a.rows != rows) return false;
    const bool in_place = n.x == n.out && n.x_stride == n.out_stride;
    const Span weight(n.weight, n.dim), x = read_by(n, rows), out = written_by(n, rows);
    return (in_place || apart(out, x)) && apart(out, weight) && apart(codes_of(a), {x, out, weight}) && apart(scales_of(a), {x, out, weight}) &&
           apart(sums_of(a), {x, out, weight});
}

void norm_quantize(const RmsNormArgs& norm, const QuantizeArgs& rounding) {
    const int64_t rows = last_coded(rounding, rounding.rows);
    if (norm_fits(norm, few_eights)) {
        GK_LAUNCH(norm_quantize_kernel<few_eights>, rows, 1, row_threads, place_bytes, norm, rounding, 0);
    } else if (norm_fits(norm, most_eights)) {
        GK_LAUNCH(norm_quantize_kernel<most_eights>, rows, 1, row_threads, place_bytes, norm, rounding, 0);
    } else {
        rms_norm(norm, 0, rounding.rows);
        quantize(rounding, 0, rounding.rows);
    }
}

// Whether the codes of the product are those the rounding gives.
bool takes(const PackedLinearArgs& a, const QuantizeArgs& q) {
    return a.codes == q.codes && a.scales == q.scales && a.sums == q.sums && a.sums && a.codes_stride == q.codes_stride && a.rows == q.rows &&
           a.k == q.k && !a.tiled && !q.tiled && !a.region && q.sum_depth == sum_depth(a.format);
}
// Whether each block of the product may make the codes for itself while the first ones write them down: nothing that a block
// writes may be what another one reads.
bool shareable(const std::optional<Call<RmsNormArgs>>& norm, const QuantizeArgs& q, const PackedLinearArgs& a) {
    const int64_t outputs = a.gated ? a.n / 2 : a.n;
    const Span none(static_cast<char*>(nullptr), 0), out = rows_span(a.out, a.rows, a.out_stride, outputs);
    const Span x = norm ? read_by(norm->args, a.rows) : rows_span(q.x, q.rows, q.x_stride, q.k);
    const Span weight = norm ? Span(norm->args.weight, norm->args.dim) : none, normed = norm ? written_by(norm->args, a.rows) : none;
    const Span residual = a.residual ? rows_span(a.residual, a.rows, a.out_stride, outputs) : none, bias(a.bias, a.n);
    const Span codes = codes_of(q), scales = scales_of(q), sums = sums_of(q);
    return apart(out, {x, weight, normed, codes, scales, sums}) && apart(normed, {x, weight, residual, bias, codes, scales, sums}) &&
           apart(codes, {x, weight, residual, bias, scales, sums}) && apart(scales, {x, weight, residual, bias, sums}) &&
           apart(sums, {x, weight, residual, bias});
}

// Whether the rows of a product with 16-bit weights are those the norm gives, and each block of it may take the norm for itself.
bool takes(const LinearArgs& a, const Call<RmsNormArgs>& norm) {
    const RmsNormArgs& n = norm.args;
    if (a.x != n.out || a.x_stride != n.out_stride || a.k != n.dim || a.rows != norm.end) return false;
    if (a.rows * a.k > dense_normed_most || !dense_resident(a)) return false;
    const auto by_sixteen = [&](const float* p, int64_t stride) {
        return reinterpret_cast<uintptr_t>(p) % 16 == 0 && (a.rows == 1 || stride % 4 == 0);
    };
    if (!by_sixteen(n.x, n.x_stride) || !by_sixteen(n.out, n.out_stride) || !by_sixteen(n.weight, 0)) return false;
    const Span out = rows_span(a.out, a.rows, a.out_stride, a.n), residual = rows_span(a.residual, a.residual ? a.rows : 1, a.out_stride, a.residual ? a.n : 0);
    const Span x = read_by(n, a.rows), normed = written_by(n, a.rows), weight(n.weight, n.dim), bias(a.bias, a.n);
    return apart(out, {x, weight, normed}) && apart(normed, {x, weight, residual, bias});
}
// Whether gates and ups are what the product gives, so that who has both may go on with them.
bool takes(const GatedArgs& a, const Waiting& now, int64_t rows) {
    const LinearArgs& p = now.product->args;
    if (a.x != p.out || a.x_stride != p.out_stride || 2 * a.dim != p.n || rows != p.rows || a.region) return false;
    const Span out(a.out, rows * a.dim), product = rows_span(p.out, p.rows, p.out_stride, p.n), none(static_cast<char*>(nullptr), 0);
    const Span x = rows_span(p.x, p.rows, p.x_stride, p.k), bias(p.bias, p.n);
    return apart(out, {x, product, bias, now.norm ? read_by(now.norm->args, rows) : none, now.norm ? Span(now.norm->args.weight, p.k) : none}) &&
           apart(product, {x, bias});
}
void dense_chain(const Waiting& now, const GatedArgs& gated) {
    dense_few({now.norm ? now.norm->args : RmsNormArgs{}, gated}, now.product->args, now.product->begin, now.product->end);
}

// Whether attention is that of the rows whose queries and keys are turned, and stored, with values beside them; each block may turn what
// it needs, and store where nobody else reads.
bool takes(const AttentionArgs& a, const RopeKvWriteArgs& w) {
    const KvPages &p = a.pages, &q = w.write.pages;
    const int64_t width = a.heads * p.head_dim, kv_width = p.kv_heads * p.head_dim;
    const bool same_pages = p.k == q.k && p.v == q.v && p.k_scales == q.k_scales && p.v_scales == q.v_scales && p.page_table == q.page_table &&
                            p.sequences == q.sequences && p.positions == q.positions && p.kv_heads == q.kv_heads && p.pages == q.pages && p.head_dim == q.head_dim && p.max_pages == q.max_pages && p.dtype == q.dtype;
    const bool same_rows = w.rope.x == a.q && w.rope.x_stride == a.q_stride && w.rope.head_dim == p.head_dim && w.rope.heads == a.heads + p.kv_heads &&
                           w.write.k == a.q + width && w.write.kv_stride == a.q_stride;
    if (!same_pages || !same_rows || a.heads / p.kv_heads > tile_heads(p.head_dim) || !(p.apart || a.rows == 1)) return false;
    const Span x = rows_span(a.q, a.rows, a.q_stride, width + kv_width), v = rows_span(w.write.v, a.rows, w.write.kv_stride, kv_width);
    const int64_t all_keys = p.kv_heads * p.pages * page_keys, page_bytes = all_keys * p.head_dim * (p.dtype == DType::i8 ? 1 : 2);
    const Span keys(static_cast<const char*>(p.k), page_bytes), values(static_cast<const char*>(p.v), page_bytes), out = rows_span(a.out, a.rows, a.out_stride, width);
    const Span key_scales(p.k_scales, all_keys), value_scales(p.v_scales, all_keys);
    const Span table(w.rope.table, a.rows * 2 * w.rope.half), slopes(a.alibi_slopes, a.heads), sinks(a.sinks, a.heads);
    const Span positions(p.positions, a.rows), sequences(p.sequences, a.rows);
    const int64_t beside = w.write.v - a.q;
    const bool v_apart = apart(x, v) || (beside >= width + kv_width && beside + kv_width <= a.q_stride);
    const auto stored_apart = [&](const Span& s) { return apart(s, {v, table, slopes, sinks, positions, sequences}); };
    return v_apart && apart(out, {x, v, keys, values, key_scales, value_scales, table, slopes, sinks, positions, sequences}) &&
           apart(x, {keys, values, key_scales, value_scales, table, slopes, sinks, positions, sequences}) &&
           apart(keys, {values, key_scales, value_scales}) && apart(values, {key_scales, value_scales}) && apart(key_scales, value_scales) &&
           stored_apart(keys) && stored_apart(values) && stored_apart(key_scales) && stored_apart(value_scales);
}

void flush() {
    const Waiting now = waiting;
    waiting = {};
    if (now.rope) return rope_kv_write(now.rope->args, now.rope->begin, now.rope->end);
    if (now.product) return dense_chain(now, {});
    if (now.norm && now.rounding) return norm_quantize(now.norm->args, now.rounding->args);
    if (now.norm) rms_norm(now.norm->args, now.norm->begin, now.norm->end);
    if (now.rounding) quantize(now.rounding->args, now.rounding->begin, now.rounding->end);
}

// ---- the slots that wait ---------------------------------------------------------------------------------------------

void queue_rms_norm(const RmsNormArgs& a, int64_t begin, int64_t end) {
    flush();
    if (begin != 0 || a.inner != 1 || end < 1) return rms_norm(a, begin, end);
    waiting.norm = {a, begin, end};
}

void queue_quantize(const QuantizeArgs& a, int64_t begin, int64_t end) {
    const bool whole = begin == 0 && end == a.rows && a.region == nullptr;
    if (!whole || waiting.rounding || waiting.product || !waiting.norm || !follows(*waiting.norm, a)) flush();
    if (!whole) return quantize(a, begin, end);
    waiting.rounding = {a, begin, end};
}

void queue_packed_linear(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    if (begin == 0 && waiting.rounding && takes(a, waiting.rounding->args)) {
        const Waiting now = waiting;
        const QuantizeArgs& rounding = now.rounding->args;
        const bool fits = shareable(now.norm, rounding, a);
        waiting = {};
        if (fits && packed_product({now.norm ? now.norm->args : RmsNormArgs{}, rounding}, a, begin, end)) return;
        waiting = now;
    }
    flush();
    packed_linear(a, begin, end);
}

void queue_linear(const LinearArgs& a, int64_t begin, int64_t end) {
    const bool few = begin == 0 && end == a.n && is_dense(a) && a.rows > 0 && a.rows <= dense_few_most && !a.region;
    if (!few || waiting.rounding || waiting.product || !waiting.norm || !takes(a, *waiting.norm)) flush();
    if (!few) return linear(a, begin, end);
    waiting.product = {a, begin, end};
    if (a.residual || a.n % 2 != 0) flush();  // gates and ups have none
}

void queue_gated(const GatedArgs& a, int64_t begin, int64_t end) {
    if (begin == 0 && waiting.product && takes(a, waiting, end)) {
        const Waiting now = waiting;
        waiting = {};
        return dense_chain(now, a);
    }
    flush();
    gated(a, begin, end);
}

void queue_rope_kv_write(const RopeKvWriteArgs& a, int64_t begin, int64_t end) {
    flush();
    if (begin != 0 || end < 1 || end > split_rows_most) return rope_kv_write(a, begin, end);
    waiting.rope = {a, begin, end};
}

void queue_attention(const AttentionArgs& a, int64_t begin, int64_t end) {
    if (is_whole(a, begin, end) && has_tiles(a) && waiting.rope && waiting.rope->end == a.rows && takes(a, waiting.rope->args)) {
        const RopeKvWriteArgs rope = waiting.rope->args;
        waiting = {};
        return attend_tiles(rope, a, 0, a.rows, 0, a.pages.kv_heads);
    }
    flush();
    attention(a, begin, end);
}

void install_queued(Kernels& k) {
    install(k);
    fuses = switched_on("GENKIT_CUDA_FUSE");
    if (!fuses) return;
    k.rms_norm = queue_rms_norm;
    k.quantize = queue_quantize;
    k.packed_linear = queue_packed_linear;
    k.linear = queue_linear;
    k.gated = queue_gated;
    k.rope_kv_write = queue_rope_kv_write;
    k.attention = queue_attention;
}
