// Attention over a page of the cache; attention_units.inl has what is around. A unit's queries (token rows by heads of one kv head's group) read each page together.
// Lanes are keys for the scores, so no sum runs across lanes, and channels for the values; each score is one chain of
// products over channels, each output channel one chain over keys in ascending order, page by page (online softmax, in
// powers of two). What a query computes depends on its own position only.

constexpr float log2e = 1.44269504f;
constexpr int64_t query_block = 4;         // queries that share loads of keys and values
constexpr int64_t heads_at_once = 16;      // heads of a group served in one pass over the pages
constexpr int64_t queries_at_once = 128;   // queries served in one pass; fewer for a large head_dim
constexpr int64_t scratch_elements = 16384;// of queries, and of their sums
constexpr int64_t scratch_beyond = 16 * 512;  // what tiles of 16 queries may touch after the last
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

struct Ones {
    float x[page_keys] = {};
    constexpr Ones() {
        for (float& one : x) one = 1;
    }
};
constexpr Ones ones;

// Scores s of a page, times k_scales where there are some, become softcap * tanh(s / softcap). Returns the scales they have
// then. Before soften and not inlined: a call among its vectors would slow models without a softcap too.
__attribute__((noinline)) const float* cap_scores(float softcap, const float* k_scales, float (*score)[page_keys], int64_t queries) {
    const vec cap = set1(softcap * log2e), inverse = set1(1.0f / (softcap * log2e));
    for (int64_t i = 0; i < queries; i++) {
        for (int64_t t = 0; t < page_keys; t += lanes) {
            const vec s = load(score[i] + t);
            store(score[i] + t, cap * tanh((k_scales ? s * load(k_scales + t) : s) * inverse));
        }
    }
    return ones.x;
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
    const float* k_scales = a.softcap > 0 ? cap_scores(a.softcap, at.k_scales, score, queries) : at.k_scales;
    for (int64_t i = 0; i < queries; i++) soften<T>(a, *query[i], page, k_scales, at.v_scales, score[i], p[i]);

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

INLINE bool sees(const Query& query, int64_t page) {
    return query.first / page_keys <= page && page <= query.position / page_keys;
}

// How a unit's queries take a page.
template <class T>
struct VectorPass {
    VectorPass(int64_t, int64_t) {}
    void end() {}  // not a destructor: whoever has one calls C++'s runtime, from code of this tier

    void attend(const AttentionArgs& a, Query* query, int64_t queries, int64_t page, const Page<T>& page_at) {
        Page<T> at = page_at;
        Query* block[query_block];
        int64_t filled = 0;
        for (int64_t i = 0; i < queries; i++) {
            if (sees(query[i], page)) block[filled++] = &query[i];
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
};

// A tier with tile products has its own way for some types (attention_amx.inl).
template <class T>
struct PagePass : VectorPass<T> {
    using VectorPass<T>::VectorPass;
};
