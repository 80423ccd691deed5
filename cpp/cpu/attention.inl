// Attention over the paged cache, one unit: up to attention_rows token rows by one kv head, so all its queries (rows by
// heads of the group) read the same pages. Lanes are keys for the scores, so no sum runs across lanes, and channels for
// the values; each score is one chain of FMAs over channels, each output channel one chain over keys in ascending
// order, page by page (online softmax). What a query computes depends on its own position only.

constexpr int64_t query_block = 4;       // queries that share loads of keys and values
constexpr int64_t heads_at_once = 16;    // heads of a group served in one pass over the pages
constexpr int64_t tile_vecs = tile_keys / lanes;
constexpr int64_t score_tiles = lanes == 16 ? 4 : 1;   // tiles of keys scored at once
constexpr int64_t value_vecs = lanes == 8 ? 2 : 4;     // vectors of channels summed at once

struct Query {
    const float* q;
    float* out;      // sum of p v so far, in its final place
    float largest;   // of the scores so far
    float total;     // of p so far
    float slope;
    int64_t position, first;  // keys [first, position] are seen
};

// score[i][j] = q_i . k_j for `tiles` tiles of keys. Their values, needed next, are fetched on the way.
template <int64_t queries, int64_t tiles>
INLINE void score_keys(const Query* const query[], const float* keys, const float* values, int64_t dim,
                       float (*score)[page_keys]) {
    vec acc[queries][tiles * tile_vecs];
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t t = 0; t < tiles * tile_vecs; t++) acc[i][t] = zero();
    }
    const float* q[queries];
    for (int64_t i = 0; i < queries; i++) q[i] = query[i]->q;
    for (int64_t d = 0; d < dim; d++) {
        for (int64_t t = 0; t < tiles; t++) __builtin_prefetch(values + (d * tiles + t) * tile_keys);
        vec k[tiles * tile_vecs];
        for (int64_t t = 0; t < tiles * tile_vecs; t++) {
            k[t] = load(keys + (t / tile_vecs * dim + d) * tile_keys + t % tile_vecs * lanes);
        }
        for (int64_t i = 0; i < queries; i++) {
            const vec broadcast = set1(q[i][d]);
            for (int64_t t = 0; t < tiles * tile_vecs; t++) acc[i][t] = fma(broadcast, k[t], acc[i][t]);
        }
    }
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t t = 0; t < tiles * tile_vecs; t++) store(score[i] + t * lanes, acc[i][t]);
    }
}

// out_i[d] += sum_j p[i][j] v[j][d] over keys [low, high) for `vecs` vectors of channels, `count` channels at the tail.
template <int64_t queries, int64_t vecs, class Count>
INLINE void sum_channels(const Query* const query[], const float (*p)[page_keys], const float* values, int64_t dim,
                         int64_t low, int64_t high, int64_t channel, Count count) {
    vec acc[queries][vecs];
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t t = 0; t < vecs; t++) acc[i][t] = load(query[i]->out + channel + t * lanes, count);
    }
    for (int64_t j = low; j < high; j++) {
        vec v[vecs];
        for (int64_t t = 0; t < vecs; t++) v[t] = load(values + j * dim + channel + t * lanes, count);
        for (int64_t i = 0; i < queries; i++) {
            const vec broadcast = set1(p[i][j]);
            for (int64_t t = 0; t < vecs; t++) acc[i][t] = fma(broadcast, v[t], acc[i][t]);
        }
    }
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t t = 0; t < vecs; t++) store(query[i]->out + channel + t * lanes, acc[i][t], count);
    }
}

template <int64_t queries>
INLINE void sum_values(const Query* const query[], const float (*p)[page_keys], const float* values, int64_t dim,
                       int64_t low, int64_t high) {
    if (low >= high) return;
    int64_t channel = 0;
    for (; channel + value_vecs * lanes <= dim; channel += value_vecs * lanes) {
        sum_channels<queries, value_vecs>(query, p, values, dim, low, high, channel, Whole());
    }
    for (; channel + lanes <= dim; channel += lanes) {
        sum_channels<queries, 1>(query, p, values, dim, low, high, channel, Whole());
    }
    if (channel < dim) sum_channels<queries, 1>(query, p, values, dim, low, high, channel, dim - channel);
}

// Keys of a page, as numbers within it, that a query sees.
INLINE int64_t first_key(const Query& query, int64_t page) {
    return query.first > page * page_keys ? query.first - page * page_keys : 0;
}
INLINE int64_t last_key(const Query& query, int64_t page) {
    return query.position < (page + 1) * page_keys ? query.position - page * page_keys + 1 : page_keys;
}

// Scores -> p = exp(score - largest), with largest, total and out brought to the new largest. Unseen keys may hold
// anything: their scores are replaced, and p is 0.
INLINE void soften(const AttentionArgs& a, Query& query, int64_t page, float* score) {
    const vec low = set1(float(first_key(query, page))), high = set1(float(last_key(query, page)));
    const vec slope = set1(query.slope), distance = set1(float(page * page_keys - query.position));
    vec best = set1(query.largest);
    for (int64_t j = 0; j < page_keys; j += lanes) {
        const vec key = iota() + set1(float(j));
        vec s = fma(slope, key + distance, load(score + j) * set1(a.scale));
        s = select(less(key, low), set1(-infinity), select(less(key, high), s, set1(-infinity)));
        best = max(s, best);
        store(score + j, s);
    }
    const float largest = reduce_max(best);
    vec sums = zero();
    for (int64_t j = 0; j < page_keys; j += lanes) {
        const vec p = exp(load(score + j) - set1(largest));
        sums = sums + p;
        store(score + j, p);
    }
    if (largest != query.largest) {
        const vec shrink = exp(set1(query.largest - largest));
        float factor[lanes];
        store(factor, shrink);
        query.total *= factor[0];
        each(0, a.head_dim, [&](int64_t d, auto count) {
            store(query.out + d, load(query.out + d, count) * shrink, count);
        });
        query.largest = largest;
    }
    query.total += reduce_add(sums);
}

template <int64_t queries>
void attend_page(const AttentionArgs& a, Query* const query[], int64_t page, const float* keys, const float* values) {
    float score[queries][page_keys];
    int64_t low = page_keys, high = 0;            // keys some query sees
    int64_t shared_low = 0, shared_high = page_keys;  // keys all of them see
    for (int64_t i = 0; i < queries; i++) {
        const int64_t first = first_key(*query[i], page), last = last_key(*query[i], page);
        low = first < low ? first : low;
        high = last > high ? last : high;
        shared_low = first > shared_low ? first : shared_low;
        shared_high = last < shared_high ? last : shared_high;
    }
    if (shared_low >= shared_high) shared_low = shared_high = page_keys;
    int64_t tile = low / tile_keys;
    const int64_t tiles = (high + tile_keys - 1) / tile_keys;
    auto score_at = [&](int64_t t) { return reinterpret_cast<float(*)[page_keys]>(&score[0][t * tile_keys]); };
    if (score_tiles > 1 && tile == 0 && tiles == score_tiles) {
        score_keys<queries, score_tiles>(query, keys, values, a.head_dim, score);
        tile = tiles;
    }
    for (; tile < tiles; tile++) {
        const int64_t at = tile * a.head_dim * tile_keys;
        score_keys<queries, 1>(query, keys + at, values + at, a.head_dim, score_at(tile));
    }
    for (int64_t i = 0; i < queries; i++) soften(a, *query[i], page, score[i]);

    auto sum_alone = [&](int64_t i, int64_t from, int64_t to) {
        sum_values<1>(query + i, score + i, values, a.head_dim, from, to);
    };
    for (int64_t i = 0; i < queries; i++) {
        const int64_t last = last_key(*query[i], page);
        sum_alone(i, first_key(*query[i], page), shared_low < last ? shared_low : last);
    }
    sum_values<queries>(query, score, values, a.head_dim, shared_low, shared_high);
    for (int64_t i = 0; i < queries; i++) sum_alone(i, shared_high, last_key(*query[i], page));
}

// Rows [row, row_end), all of one sequence, by heads [head, head_end) of one kv head.
void attend(const AttentionArgs& a, int64_t row, int64_t row_end, int64_t kv_head, int64_t head, int64_t head_end) {
    Query query[attention_rows * heads_at_once];
    int64_t queries = 0, page = INT64_MAX, last_page = 0;
    for (int64_t r = row; r < row_end; r++) {
        for (int64_t h = head; h < head_end; h++) {
            Query& q = query[queries++];
            q.q = a.q + r * a.q_stride + h * a.head_dim;
            q.out = a.out + r * a.out_stride + h * a.head_dim;
            q.largest = -infinity;
            q.total = 0.0f;
            q.slope = a.alibi_slopes ? a.alibi_slopes[h] : 0.0f;
            q.position = a.positions[r];
            q.first = a.window > 0 && q.position >= a.window ? q.position - a.window + 1 : 0;
            page = q.first / page_keys < page ? q.first / page_keys : page;
            last_page = q.position / page_keys > last_page ? q.position / page_keys : last_page;
            each(0, a.head_dim, [&](int64_t d, auto count) { store(q.out + d, zero(), count); });
        }
    }
    for (; page <= last_page; page++) {
        const int64_t number = a.page_table[a.sequences[row] * a.max_pages + page];
        const float* keys = a.k_pages + (number * a.kv_heads + kv_head) * page_keys * a.head_dim;
        const float* values = a.v_pages + (number * a.kv_heads + kv_head) * page_keys * a.head_dim;
        Query* block[query_block];
        int64_t filled = 0;
        for (int64_t i = 0; i < queries; i++) {
            if (query[i].first / page_keys <= page && page <= query[i].position / page_keys) block[filled++] = &query[i];
            if (filled == query_block) {
                attend_page<query_block>(a, block, page, keys, values);
                filled = 0;
            }
        }
        if (filled == 3) attend_page<3>(a, block, page, keys, values);
        if (filled == 2) attend_page<2>(a, block, page, keys, values);
        if (filled == 1) attend_page<1>(a, block, page, keys, values);
    }
    for (int64_t i = 0; i < queries; i++) {
        const vec scale = set1(1.0f / query[i].total);
        each(0, a.head_dim, [&](int64_t d, auto count) {
            store(query[i].out + d, load(query[i].out + d, count) * scale, count);
        });
    }
}

void attention(const AttentionArgs& a, int64_t begin, int64_t end) {
    const int64_t group = a.heads / a.kv_heads;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t kv_head = unit % a.kv_heads;
        const int64_t last = (unit / a.kv_heads + 1) * attention_rows;
        const int64_t unit_end = last < a.rows ? last : a.rows;
        for (int64_t row = unit / a.kv_heads * attention_rows, row_end; row < unit_end; row = row_end) {
            for (row_end = row + 1; row_end < unit_end && a.sequences[row_end] == a.sequences[row];) row_end++;
            for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head += heads_at_once) {
                const int64_t rest = (kv_head + 1) * group - head;
                attend(a, row, row_end, kv_head, head, head + (rest < heads_at_once ? rest : heads_at_once));
            }
        }
    }
}
