// Attention over the paged cache, page by page (attention.inl): units, splits of the keys, and their merging.

// Adds a split's sum, largest score and total to what was merged before it.
INLINE void merge(float* out, float& merged_largest, float& merged_total, const float* sum, float largest, float total,
                  int64_t dim, bool first) {
    if (first) {
        merged_largest = largest;
        merged_total = total;
        each(0, dim, [&](int64_t d, auto count) { store(out + d, load(sum + d, count), count); });
        return;
    }
    const float both = largest > merged_largest ? largest : merged_largest;
    const vec shrink = power_of_two(set1(merged_largest - both)), share = power_of_two(set1(largest - both));
    float factor[2][lanes];
    store(factor[0], shrink);
    store(factor[1], share);
    merged_largest = both;
    merged_total = merged_total * factor[0][0] + total * factor[1][0];
    each(0, dim, [&](int64_t d, auto count) {
        store(out + d, fma(load(sum + d, count), share, load(out + d, count) * shrink), count);
    });
}

// The end of a softmax: the sink's share, and the division.
INLINE void finish(const AttentionArgs& a, int64_t head, float* out, float largest, float total) {
    const int64_t dim = a.pages.head_dim;
    float shrink = 1.0f;
    if (a.sinks) {
        const float sink = a.sinks[head] * log2e, both = sink > largest ? sink : largest;
        float factor[2][lanes];
        store(factor[0], power_of_two(set1(largest - both)));
        store(factor[1], power_of_two(set1(sink - both)));
        shrink = factor[0][0];
        total = total * shrink + factor[1][0];
    }
    const vec scale = set1(shrink / total);
    each(0, dim, [&](int64_t d, auto count) { store(out + d, load(out + d, count) * scale, count); });
}

INLINE int64_t first_seen(const AttentionArgs& a, int64_t row) {
    const int64_t position = a.pages.positions[row];
    return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

constexpr int64_t split_pages = attention_split / page_keys;

// All queries over the pages of one split.
template <class T>
void attend_split(const AttentionArgs& a, PagePass<T>& pass, Query* query, int64_t queries, int64_t row, int64_t kv_head,
                  int64_t split) {
    const KvPages& pages = a.pages;
    int64_t page = (split + 1) * split_pages, end = 0;
    for (int64_t i = 0; i < queries; i++) {
        Query& q = query[i];
        page = q.first / page_keys < page ? q.first / page_keys : page;
        end = q.position / page_keys >= end ? q.position / page_keys + 1 : end;
        q.largest = -infinity;
        q.total = zero();
        each(0, pages.head_dim, [&](int64_t d, auto count) { store(q.sum + d, zero(), count); });
    }
    page = page > split * split_pages ? page : split * split_pages;
    end = end < (split + 1) * split_pages ? end : (split + 1) * split_pages;
    const int32_t* numbers = pages.page_table + pages.sequences[row] * pages.max_pages;
    for (; page < end; page++) {
        const int64_t keys_at = (kv_head * pages.pages + numbers[page]) * page_keys;
        Page<T> at{static_cast<const T*>(pages.k) + keys_at * pages.head_dim,
                   static_cast<const T*>(pages.v) + keys_at * pages.head_dim, nullptr, nullptr, nullptr};
        if (page + 1 < end) {
            at.next = static_cast<const T*>(pages.k) + (kv_head * pages.pages + numbers[page + 1]) * page_keys * pages.head_dim;
        }
        if (sizeof(T) == 1) {
            at.k_scales = pages.k_scales + keys_at;
            at.v_scales = pages.v_scales + keys_at;
        }
        pass.attend(a, query, queries, page, at);
    }
}

// Rows [row, row_end), all of one sequence, by heads [head, head_end) of one kv head, over splits [split, split_end).
template <class T>
void attend(const AttentionArgs& a, int64_t row, int64_t row_end, int64_t kv_head, int64_t head, int64_t head_end,
            int64_t split, int64_t split_end) {
    using P = Products<T>;
    const int64_t dim = a.pages.head_dim, padded = (dim + 1) / 2 * 2;
    alignas(64) typename P::Factor q_scratch[scratch_elements + scratch_beyond];
    alignas(64) float sum_scratch[scratch_elements + scratch_beyond];
    Query query[queries_at_once];
    int64_t queries = 0, first_split = INT64_MAX, last_split = 0;
    for (int64_t r = row; r < row_end; r++) {
        for (int64_t h = head; h < head_end; h++) {
            Query& q = query[queries];
            typename P::Factor* factors = q_scratch + queries * padded;
            if (padded > dim) factors[dim] = {};
            each(0, dim, [&](int64_t d, auto count) {
                store(factors + d, load(a.q + r * a.q_stride + h * dim + d, count) * set1(a.scale * log2e * P::unit), count);
            });
            q.q = factors;
            q.sum = sum_scratch + queries * padded;
            q.slope = a.alibi_slopes ? a.alibi_slopes[h] * log2e : 0.0f;
            q.position = a.pages.positions[r];
            q.first = first_seen(a, r);
            q.out = a.out + r * a.out_stride + h * dim;
            q.partials = a.partials ? a.partials + (r * a.heads + h) * a.splits * (dim + 2) : nullptr;
            first_split = q.first / attention_split < first_split ? q.first / attention_split : first_split;
            last_split = q.position / attention_split > last_split ? q.position / attention_split : last_split;
            queries++;
        }
    }
    PagePass<T> pass(queries, dim);
    split = split > first_split ? split : first_split;
    for (; split < split_end && split <= last_split; split++) {
        attend_split<T>(a, pass, query, queries, row, kv_head, split);
        for (int64_t i = 0; i < queries; i++) {
            Query& q = query[i];
            if (split < q.first / attention_split || split > q.position / attention_split) continue;
            const float total = reduce_add(q.total);
            if (q.partials) {
                float* partial = q.partials + split * (dim + 2);
                each(0, dim, [&](int64_t d, auto count) { store(partial + d, load(q.sum + d, count), count); });
                partial[dim] = q.largest;
                partial[dim + 1] = total;
            } else {
                merge(q.out, q.merged_largest, q.merged_total, q.sum, q.largest, total, dim, split == q.first / attention_split);
            }
        }
    }
    pass.end();
    if (a.partials) return;
    for (int64_t i = 0; i < queries; i++) {
        finish(a, head + i % (head_end - head), query[i].out, query[i].merged_largest, query[i].merged_total);
    }
}

// Rows [row, row_end) by one kv head over splits [split, split_end): as many queries at once as the scratch holds.
template <class T>
void attend_rows(const AttentionArgs& a, int64_t row, int64_t row_end, int64_t kv_head, int64_t split, int64_t split_end) {
    const int64_t group = a.heads / a.pages.kv_heads, padded = (a.pages.head_dim + 1) / 2 * 2;
    const int64_t heads = group < heads_at_once ? group : heads_at_once;
    const int64_t room = scratch_elements / padded < queries_at_once ? scratch_elements / padded : queries_at_once;
    const int64_t rows_at_once = room / heads;  // at least 1: 8192 / 512 is heads_at_once
    while (row < row_end) {
        int64_t same = row + 1;  // end of the rows of this sequence
        while (same < row_end && same < row + rows_at_once && a.pages.sequences[same] == a.pages.sequences[row]) same++;
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head += heads) {
            const int64_t head_end = head + heads < (kv_head + 1) * group ? head + heads : (kv_head + 1) * group;
            attend<T>(a, row, same, kv_head, head, head_end, split, split_end);
        }
        row = same;
    }
}

void attention(const AttentionArgs& a, int64_t begin, int64_t end) {
    const int64_t kv_heads = a.pages.kv_heads, splits = a.partials ? a.splits : 1;
    with_page_type(a.pages.dtype, [&](auto type) {
        for (int64_t unit = begin; unit < end; unit++) {
            const int64_t row = unit / kv_heads / splits * a.unit_rows, split = unit / kv_heads % splits;
            const int64_t row_end = row + a.unit_rows < a.rows ? row + a.unit_rows : a.rows;
            attend_rows<typename decltype(type)::type>(a, row, row_end, unit % kv_heads, a.partials ? split : 0,
                                                       a.partials ? split + 1 : INT64_MAX);
        }
    });
}

void attention_merge(const AttentionArgs& a, int64_t begin, int64_t end) {
    const int64_t dim = a.pages.head_dim;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t row = unit / a.heads;
        const int64_t first = first_seen(a, row) / attention_split, last = a.pages.positions[row] / attention_split;
        float* out = a.out + row * a.out_stride + unit % a.heads * dim;
        float largest, total;
        for (int64_t s = first; s <= last; s++) {
            const float* sum = a.partials + (unit * a.splits + s) * (dim + 2);
            merge(out, largest, total, sum, sum[dim], sum[dim + 1], dim, s == first);
        }
        finish(a, unit % a.heads, out, largest, total);
    }
}
