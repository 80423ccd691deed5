// Attention over the paged KV cache, plainly: the order of sums of kernels.h. A block has a token row and a head, or one split of
// its keys.

constexpr int attention_threads = 128;

// A softmax on its way: the largest score and the sum of exp(score - largest).
struct Partial {
    float largest, total;
};

struct AttentionPlace {
    float score[page_keys];
    float reduce[32];
    float out[512];  // the largest head_dim; sums of p v
    float merged[512];
};

// Keys [low, high) of a row and head: sums of p v into place.out.
template <class T>
DEVICE Partial attend(const AttentionArgs& a, int64_t row, int64_t head, int64_t low, int64_t high, AttentionPlace& place) {
    const KvPages& p = a.pages;
    const int64_t dim = p.head_dim;
    const bool pairs = p.dtype != DType::f32;
    const float slope = a.alibi_slopes ? a.alibi_slopes[head] : 0.0f;
    const float* q = a.q + row * a.q_stride + head * dim;
    float largest = -infinity, total = 0.0f;
    each_column(dim, [&](int64_t i) { place.out[i] = 0.0f; });
    for (int64_t page = low / page_keys; page * page_keys < high; page++) {
        const int64_t number = p.page_table[p.sequences[row] * p.max_pages + page];
        const int64_t at = (head / (a.heads / p.kv_heads) * p.pages + number) * page_keys;
        const T* keys = static_cast<const T*>(p.k) + at * dim;
        const T* values = static_cast<const T*>(p.v) + at * dim;
        const int64_t first = page * page_keys < low ? low - page * page_keys : 0;
        const int64_t last = high - page * page_keys < page_keys ? high - page * page_keys : page_keys;
        float most = -infinity;
        gk::sync();  // the scores of the page before have been used
        for (int64_t j = first + gk::thread(); j < last; j += gk::threads()) {
            float dot = 0.0f;
            for (int64_t i = 0; i < dim; i++) dot = gk::fma(q[i], widen(keys[key_at(pairs, j, i, dim)]), dot);
            if (p.k_scales) dot *= p.k_scales[at + j];
            float s = dot * a.scale;
            if (a.softcap > 0) s = a.softcap * tanh(s / a.softcap);
            s += slope * float(page * page_keys + j - p.positions[row]);
            place.score[j] = s;
            most = max(s, most);
        }
        const float page_largest = max(block_max(most, place.reduce), largest);
        const float shrink = exp(largest - page_largest);
        largest = page_largest;
        float mine = 0.0f;
        for (int64_t j = first + gk::thread(); j < last; j += gk::threads()) {
            const float weight = exp(place.score[j] - largest);
            mine += weight;
            place.score[j] = p.v_scales ? weight * p.v_scales[at + j] : weight;
        }
        total = total * shrink + block_sum(mine, place.reduce);
        each_column(dim, [&](int64_t i) {
            float sum = place.out[i] * shrink;
            for (int64_t j = first; j < last; j++) sum = gk::fma(place.score[j], widen(values[value_at(pairs, j, i, dim)]), sum);
            place.out[i] = sum;
        });
    }
    gk::sync();
    return {largest, total};
}

// Adds a partial, whose sums of p v are `sums`, to what was merged before it; a thread its own channels.
DEVICE void merge(Partial& merged, float* out, const Partial& next, const float* sums, int64_t dim, bool first) {
    const float largest = first ? next.largest : max(next.largest, merged.largest);
    const float shrink = first ? 0.0f : exp(merged.largest - largest), share = first ? 1.0f : exp(next.largest - largest);
    merged = {largest, first ? next.total : merged.total * shrink + next.total * share};
    each_column(dim, [&](int64_t i) { out[i] = first ? sums[i] : out[i] * shrink + sums[i] * share; });
}

// The end of a softmax: the sink's share, and the division.
DEVICE void finish(const AttentionArgs& a, int64_t head, const Partial& merged, const float* sums, float* out) {
    float total = merged.total, shrink = 1.0f;
    if (a.sinks) {
        const float largest = max(a.sinks[head], merged.largest);
        shrink = exp(merged.largest - largest);
        total = total * shrink + exp(a.sinks[head] - largest);
    }
    each_column(a.pages.head_dim, [&](int64_t i) { out[i] = sums[i] * shrink / total; });
}

DEVICE int64_t first_key(const AttentionArgs& a, int64_t row) {
    const int64_t position = a.pages.positions[row];
    return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

// Grid: units x (unit_rows x heads of a kv head).
GK_KERNEL void attention_kernel(AttentionArgs a, int64_t first_unit) {
    gk::let_next_start(), gk::wait_for_previous();
    auto& place = *reinterpret_cast<AttentionPlace*>(gk::shared());
    const int64_t group = a.heads / a.pages.kv_heads, splits = a.partials ? a.splits : 1, unit = first_unit + gk::block();
    const int64_t row = unit / a.pages.kv_heads / splits * a.unit_rows + gk::block_y() / group;
    const int64_t head = unit % a.pages.kv_heads * group + gk::block_y() % group, dim = a.pages.head_dim;
    if (row >= a.rows) return;
    const int64_t first = first_key(a, row), last = a.pages.positions[row] + 1, first_split = first / attention_split;
    const int64_t begin = a.partials ? unit / a.pages.kv_heads % splits : first_split;
    const int64_t end = a.partials ? begin + 1 : (last + attention_split - 1) / attention_split;
    Partial merged{};
    for (int64_t s = begin; s < end; s++) {
        if (s < first_split || s * attention_split >= last) return;
        const int64_t low = s == first_split ? first : s * attention_split;
        const int64_t high = last < (s + 1) * attention_split ? last : (s + 1) * attention_split;
        Partial partial{};
        with_page_type(a.pages.dtype, [&](auto type) {
            partial = attend<typename decltype(type)::type>(a, row, head, low, high, place);
        });
        if (a.partials) {
            float* stored = a.partials + ((row * a.heads + head) * a.splits + s) * (dim + 2);
            each_column(dim, [&](int64_t i) { stored[i] = place.out[i]; });
            if (gk::thread() == 0) stored[dim] = partial.largest, stored[dim + 1] = partial.total;
            return;
        }
        merge(merged, place.merged, partial, place.out, dim, s == first_split);
    }
    finish(a, head, merged, place.merged, a.out + row * a.out_stride + head * dim);
}

// A block has a row's head.
GK_KERNEL void attention_merge_kernel(AttentionArgs a, int64_t first_unit) {
    gk::let_next_start(), gk::wait_for_previous();
    auto& place = *reinterpret_cast<AttentionPlace*>(gk::shared());
    const int64_t dim = a.pages.head_dim, unit = first_unit + gk::block(), row = unit / a.heads, head = unit % a.heads;
    const int64_t first = first_key(a, row) / attention_split, last = a.pages.positions[row] / attention_split;
    Partial merged{};
    for (int64_t s = first; s <= last; s++) {
        const float* sums = a.partials + (unit * a.splits + s) * (dim + 2);
        merge(merged, place.merged, {sums[dim], sums[dim + 1]}, sums, dim, s == first);
    }
    finish(a, head, merged, place.merged, a.out + row * a.out_stride + head * dim);
}

// Whether tensor cores do it (attention_rows.inl, attention_prompt.inl).
static bool has_tiles(const AttentionArgs& a) {
    const int64_t dim = a.pages.head_dim;
    const bool stored = a.pages.dtype == DType::f16 || a.pages.dtype == DType::bf16 || a.pages.dtype == DType::i8;
    return stored && dim % 32 == 0 && dim / 32 <= 8 && dim / 32 != 5 && dim / 32 != 7;
}
