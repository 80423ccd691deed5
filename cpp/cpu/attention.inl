// Attention over the paged cache. A unit's queries (token rows by heads of one kv head's group) read each page together.
// Lanes are keys for the scores, so no sum runs across lanes, and channels for the values; each score is one chain of
// products over channels, each output channel one chain over keys in ascending order, page by page (online softmax, in
// powers of two). What a query computes depends on its own position only.

constexpr int64_t query_block = 4;         // queries that share loads of keys and values
constexpr int64_t heads_at_once = 16;      // heads of a group served in one pass over the pages
constexpr int64_t queries_at_once = 128;   // queries served in one pass; fewer for a large head_dim
constexpr int64_t scratch_elements = 16384;// of queries, and of their sums
constexpr int64_t tile_vecs = tile_keys / lanes;
constexpr int64_t accumulators = lanes == 8 ? 8 : 16;  // vectors summed at once

struct Query {
    const void* q;   // times scale and log2 e, as Products<T>::Factor
    float* sum;      // of p v over this split's keys so far
    vec total;       // of p, by lane
    float largest;   // of the scores so far, or up to 8 less
    float slope;     // times log2 e
    int64_t position, first;  // keys [first, position] are seen
    float* out;      // splits merged so far
    float merged_largest, merged_total;
    float* partials; // where each split's result goes instead, or null
};

// score[i][j] = q_i . k_j for `tiles` tiles of keys. Their values, needed next, are fetched on the way.
template <class T, int64_t queries, int64_t tiles>
INLINE void score_keys(const Query* const query[], const T* keys, const T* values, int64_t dim, float (*score)[page_keys]) {
    using P = Products<T>;
    constexpr int64_t vecs = tiles * tile_vecs;
    vec acc[queries][vecs];
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t t = 0; t < vecs; t++) acc[i][t] = zero();
    }
    const typename P::Factor* q[queries];
    for (int64_t i = 0; i < queries; i++) q[i] = static_cast<const typename P::Factor*>(query[i]->q);
    auto add_channels = [&](int64_t d, const typename P::Operand* k) __attribute__((always_inline)) {
        for (int64_t i = 0; i < queries; i++) {
            for (int64_t t = 0; t < vecs; t++) acc[i][t] = P::add(acc[i][t], q[i] + d, k[t]);
        }
    };
    auto at = [&](int64_t t, int64_t d) __attribute__((always_inline)) { return (t / tile_vecs * dim + d) * tile_keys; };
    typename P::Operand k[vecs];
    for (int64_t d = 0; d + P::step <= dim; d += P::step) {
        for (int64_t t = 0; t < tiles; t++) __builtin_prefetch(values + (d * tiles + t * P::step) * tile_keys);
        for (int64_t t = 0; t < vecs; t++) k[t] = P::get(keys + at(t, d) + t % tile_vecs * lanes * P::step, Whole());
        add_channels(d, k);
    }
    if (dim % P::step) {
        for (int64_t t = 0; t < vecs; t++) k[t] = P::get_single(keys + at(t, dim - 1) + t % tile_vecs * lanes, lanes);
        add_channels(dim - 1, k);
    }
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t t = 0; t < vecs; t++) store(score[i] + t * lanes, acc[i][t]);
    }
}

// Scores of tiles [tile, tiles) of a page, as many at a time as there are accumulators for.
template <class T, int64_t queries, int64_t at_once>
INLINE void score_tiles(const Query* const query[], const T* keys, const T* values, int64_t dim, int64_t tile, int64_t tiles,
                        float (*score)[page_keys]) {
    for (; tile + at_once <= tiles; tile += at_once) {
        const int64_t at = tile * dim * tile_keys;
        score_keys<T, queries, at_once>(query, keys + at, values + at, dim,
                                        reinterpret_cast<float(*)[page_keys]>(&score[0][tile * tile_keys]));
    }
    if constexpr (at_once > 1) score_tiles<T, queries, at_once / 2>(query, keys, values, dim, tile, tiles, score);
}

// sum_i[d] += sum_j p[i][j] v[j][d] over keys [low, high) for `vecs` vectors of channels, `count` channels at the tail.
// The next page's keys are fetched on the way.
template <class T, int64_t queries, int64_t vecs, class Count>
INLINE void sum_channels(const Query* const query[], const typename Products<T>::Factor (*p)[page_keys], const T* values,
                         const T* next, int64_t dim, int64_t low, int64_t high, int64_t channel, Count count) {
    using P = Products<T>;
    vec acc[queries][vecs];
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t t = 0; t < vecs; t++) acc[i][t] = load(query[i]->sum + channel + t * lanes, count);
    }
    auto add_keys = [&](int64_t j, auto part) __attribute__((always_inline)) {
        typename P::Operand v[vecs];
        for (int64_t t = 0; t < vecs; t++) {
            v[t] = part(P::get(values + j * dim + (channel + t * lanes) * P::step, count));
        }
        for (int64_t i = 0; i < queries; i++) {
            for (int64_t t = 0; t < vecs; t++) acc[i][t] = P::add(acc[i][t], p[i] + j, v[t]);
        }
    };
    int64_t j = low / P::step * P::step;
    if (j < low) {
        add_keys(j, [](typename P::Operand x) __attribute__((always_inline)) { return P::only_second(x); });
        j += P::step;
    }
    for (; j + P::step <= high; j += P::step) {
        if (next) {
            for (int64_t t = 0; t < vecs; t++) __builtin_prefetch(next + channel * page_keys + (j * vecs + t * P::step) * lanes);
        }
        add_keys(j, [](typename P::Operand x) __attribute__((always_inline)) { return x; });
    }
    if (j < high) add_keys(j, [](typename P::Operand x) __attribute__((always_inline)) { return P::only_first(x); });
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t t = 0; t < vecs; t++) store(query[i]->sum + channel + t * lanes, acc[i][t], count);
    }
}

template <class T, int64_t queries, int64_t vecs>
INLINE void sum_values(const Query* const query[], const typename Products<T>::Factor (*p)[page_keys], const T* values,
                       const T* next, int64_t dim, int64_t low, int64_t high, int64_t channel = 0) {
    if (low >= high) return;
    for (; channel + vecs * lanes <= dim; channel += vecs * lanes) {
        sum_channels<T, queries, vecs>(query, p, values, next, dim, low, high, channel, Whole());
    }
    if constexpr (vecs > 1) {
        sum_values<T, queries, vecs / 2>(query, p, values, next, dim, low, high, channel);
    } else if (channel < dim) {
        sum_channels<T, queries, 1>(query, p, values, next, dim, low, high, channel, dim - channel);
    }
}

// One query's part of sum_values, where its neighbours see other keys.
template <class T>
void sum_alone(const Query* const query[], const typename Products<T>::Factor (*p)[page_keys], const T* values, int64_t dim,
               int64_t low, int64_t high) {
    sum_values<T, 1, 8>(query, p, values, nullptr, dim, low, high);
}

// Keys of a page, as numbers within it, that a query sees.
INLINE int64_t first_key(const Query& query, int64_t page) {
    return query.first > page * page_keys ? query.first - page * page_keys : 0;
}
INLINE int64_t last_key(const Query& query, int64_t page) {
    return query.position < (page + 1) * page_keys ? query.position - page * page_keys + 1 : page_keys;
}

// Scores -> p = 2^(score - largest) as factors of the values, with total and sum brought to a new largest.
// Unseen keys may hold anything: their scores are replaced, and p is 0.
template <class T>
INLINE void soften(const AttentionArgs& a, Query& query, int64_t page, const float* k_scales, const float* v_scales,
                   const float* score, typename Products<T>::Factor* p) {
    using P = Products<T>;
    constexpr bool scaled = sizeof(T) == 1;
    const int64_t low = first_key(query, page), high = last_key(query, page);
    const bool whole = low == 0 && high == page_keys;
    const vec slope = set1(query.slope), distance = set1(float(page * page_keys - query.position));
    vec s[page_keys / lanes], best = set1(-infinity);
    for (int64_t t = 0; t < page_keys / lanes; t++) {
        s[t] = load(score + t * lanes);
        if (scaled) s[t] = s[t] * load(k_scales + t * lanes);
    }
    const vec lane = iota();
    auto seen = [&](int64_t t, vec x, float unseen) __attribute__((always_inline)) {
        const vec key = lane + set1(float(t * lanes));
        return select(less(key, set1(float(low))), set1(unseen), select(less(key, set1(float(high))), x, set1(unseen)));
    };
    if (a.alibi_slopes) {
        for (int64_t t = 0; t < page_keys / lanes; t++) s[t] = fma(slope, lane + set1(float(t * lanes)) + distance, s[t]);
    }
    if (!whole) {
        for (int64_t t = 0; t < page_keys / lanes; t++) s[t] = seen(t, s[t], -infinity);
    }
    for (int64_t t = 0; t < page_keys / lanes; t++) best = max(s[t], best);  // passes a NaN over; the sums keep it
    const float largest = reduce_max(best);
    if (largest > query.largest + 8) {  // p may grow to 2^8: rescaling at every new maximum cost a tenth
        if (query.largest != -infinity) {
            const vec shrink = power_of_two(set1(query.largest - largest));
            query.total = query.total * shrink;
            each(0, a.pages.head_dim, [&](int64_t d, auto count) {
                store(query.sum + d, load(query.sum + d, count) * shrink, count);
            });
        }
        query.largest = largest;
    }
    vec w[page_keys / lanes];
    for (int64_t t = 0; t < page_keys / lanes; t++) w[t] = P::power(s[t] - set1(query.largest));
    if (!scaled) {
        query.total = P::put(p, w, query.total);
        return;
    }
    for (int64_t t = 0; t < page_keys / lanes; t++) {
        query.total = query.total + w[t];
        w[t] = w[t] * (load(v_scales + t * lanes) * set1(P::unit));
        if (!whole) w[t] = seen(t, w[t], 0.0f);
    }
    P::put(p, w, zero());
}

// One page's part of what an attention unit reads.
template <class T>
struct Page {
    const T* keys;
    const T* values;
    const T* next;  // keys of the page after it, to be fetched, or null
    const float* k_scales;
    const float* v_scales;
};

template <class T, int64_t queries>
void attend_page(const AttentionArgs& a, Query* const query[], int64_t page, const Page<T>& at) {
    using P = Products<T>;
    const int64_t dim = a.pages.head_dim;
    alignas(64) float score[queries][page_keys];
    alignas(64) typename P::Factor p[queries][page_keys];
    int64_t low = page_keys, high = 0;                // keys some query sees
    int64_t shared_low = 0, shared_high = page_keys;  // keys all of them see
    for (int64_t i = 0; i < queries; i++) {
        const int64_t first = first_key(*query[i], page), last = last_key(*query[i], page);
        low = first < low ? first : low;
        high = last > high ? last : high;
        shared_low = first > shared_low ? first : shared_low;
        shared_high = last < shared_high ? last : shared_high;
    }
    shared_low = (shared_low + P::step - 1) / P::step * P::step;
    shared_high = shared_high / P::step * P::step;
    if (shared_low >= shared_high) shared_low = shared_high = page_keys;

    constexpr int64_t room = accumulators / (queries * tile_vecs);
    constexpr int64_t tiles_at_once = room >= 4 ? 4 : room >= 2 ? 2 : 1;
    score_tiles<T, queries, tiles_at_once>(query, at.keys, at.values, dim, low / tile_keys,
                                           (high + tile_keys - 1) / tile_keys, score);
    for (int64_t i = 0; i < queries; i++) soften<T>(a, *query[i], page, at.k_scales, at.v_scales, score[i], p[i]);

    constexpr int64_t vecs = queries == 1 ? 8 : queries == 2 ? accumulators / 2 : accumulators / 4;
    for (int64_t i = 0; i < queries; i++) {
        const int64_t last = last_key(*query[i], page);
        sum_alone(query + i, p + i, at.values, dim, first_key(*query[i], page), shared_low < last ? shared_low : last);
    }
    sum_values<T, queries, vecs>(query, p, at.values, at.next, dim, shared_low, shared_high);
    for (int64_t i = 0; i < queries; i++) {
        sum_alone(query + i, p + i, at.values, dim, shared_high, last_key(*query[i], page));
    }
}

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

INLINE void normalize(float* out, float total, int64_t dim) {
    const vec scale = set1(1.0f / total);
    each(0, dim, [&](int64_t d, auto count) { store(out + d, load(out + d, count) * scale, count); });
}

INLINE int64_t first_seen(const AttentionArgs& a, int64_t row) {
    const int64_t position = a.pages.positions[row];
    return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

constexpr int64_t split_pages = attention_split / page_keys;

// All queries over the pages of one split.
template <class T>
void attend_split(const AttentionArgs& a, Query* query, int64_t queries, int64_t row, int64_t kv_head, int64_t split) {
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
        Query* block[query_block];
        int64_t filled = 0;
        for (int64_t i = 0; i < queries; i++) {
            if (query[i].first / page_keys <= page && page <= query[i].position / page_keys) block[filled++] = &query[i];
            if (filled == query_block) {
                attend_page<T, query_block>(a, block, page, at);
                at.next = nullptr;  // fetched by the first
                filled = 0;
            }
        }
        if (filled == 3) attend_page<T, 3>(a, block, page, at);
        if (filled == 2) attend_page<T, 2>(a, block, page, at);
        if (filled == 1) attend_page<T, 1>(a, block, page, at);
    }
}

// Rows [row, row_end), all of one sequence, by heads [head, head_end) of one kv head, over splits [split, split_end).
template <class T>
void attend(const AttentionArgs& a, int64_t row, int64_t row_end, int64_t kv_head, int64_t head, int64_t head_end,
            int64_t split, int64_t split_end) {
    using P = Products<T>;
    constexpr float log2e = 1.44269504f;
    const int64_t dim = a.pages.head_dim, padded = (dim + 1) / 2 * 2;
    alignas(64) typename P::Factor q_scratch[scratch_elements];
    alignas(64) float sum_scratch[scratch_elements];
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
    split = split > first_split ? split : first_split;
    for (; split < split_end && split <= last_split; split++) {
        attend_split<T>(a, query, queries, row, kv_head, split);
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
    if (a.partials) return;
    for (int64_t i = 0; i < queries; i++) normalize(query[i].out, query[i].merged_total, dim);
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
        normalize(out, total, dim);
    }
}
