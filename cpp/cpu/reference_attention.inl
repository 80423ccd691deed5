// The paged KV cache and attention over it, plainly: included by reference.cpp.

// What one element of a key or value becomes; `scale` is of the whole row, see row_scale.
template <class T>
void put(float x, float, T& out) { narrow(x, out); }
void put(float x, float scale, i8& out) {
    const float code = scale > 0 ? x / scale + 12582912.0f - 12582912.0f : 0.0f;  // 1.5 * 2^23: rounds to nearest even
    out.code = int8_t(code > 127 ? 127 : code < -127 ? -127 : code);  // a denormal scale may be rounded far down
}

float row_scale(const float* x, int64_t dim) {
    float largest = 0.0f;
    for (int64_t i = 0; i < dim; i++) {
        if (is_nan_or_inf(x[i])) return NAN;
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    }
    return largest / 127.0f;
}

void kv_write(const KvWriteArgs& a, int64_t begin, int64_t end) {
    const KvPages& p = a.pages;
    const int64_t dim = p.head_dim;
    with_page_type(p.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const bool pairs = p.dtype != DType::f32;
        for (int64_t r = begin; r < end; r++) {
            const int64_t page = p.page_table[p.sequences[r] * p.max_pages + p.positions[r] / page_keys];
            const int64_t slot = p.positions[r] % page_keys;
            for (int64_t h = 0; h < p.kv_heads; h++) {
                const int64_t head = h * p.pages + page;
                const float* k = a.k + r * a.kv_stride + h * dim;
                const float* v = a.v + r * a.kv_stride + h * dim;
                float k_scale = 1.0f, v_scale = 1.0f;
                if (p.dtype == DType::i8) {
                    k_scale = p.k_scales[head * page_keys + slot] = row_scale(k, dim);
                    v_scale = p.v_scales[head * page_keys + slot] = row_scale(v, dim);
                }
                T* k_out = static_cast<T*>(p.k) + head * page_keys * dim;
                T* v_out = static_cast<T*>(p.v) + head * page_keys * dim;
                for (int64_t i = 0; i < dim; i++) {
                    put(k[i], k_scale, k_out[key_at(pairs, slot, i, dim)]);
                    put(v[i], v_scale, v_out[value_at(pairs, slot, i, dim)]);
                }
            }
        }
    });
}

void rope_kv_write(const RopeKvWriteArgs& a, int64_t begin, int64_t end) {
    rope(a.rope, begin, end);
    kv_write(a.write, begin, end);
}

// A softmax on its way: sum_j p_j v_j (out, elsewhere), the largest score and sum_j p_j.
struct Partial {
    float largest, total;
};

// One token row and head over keys [low, high). out is the accumulator of the online softmax.
template <class T>
Partial attend(const AttentionArgs& a, int64_t row, int64_t head, int64_t low, int64_t high, float* out) {
    const KvPages& p = a.pages;
    const int64_t dim = p.head_dim;
    const bool pairs = p.dtype != DType::f32;
    const float slope = a.alibi_slopes ? a.alibi_slopes[head] : 0.0f;
    const float* q = a.q + row * a.q_stride + head * dim;
    float largest = -INFINITY, total = 0.0f;
    for (int64_t i = 0; i < dim; i++) out[i] = 0.0f;

    for (int64_t page = low / page_keys; page * page_keys < high; page++) {
        const int64_t number = p.page_table[p.sequences[row] * p.max_pages + page];
        const int64_t at = (head / (a.heads / p.kv_heads) * p.pages + number) * page_keys;
        const T* keys = static_cast<const T*>(p.k) + at * dim;
        const T* values = static_cast<const T*>(p.v) + at * dim;
        const int64_t first = page * page_keys < low ? low - page * page_keys : 0;
        const int64_t last = high - page * page_keys < page_keys ? high - page * page_keys : page_keys;

        float score[page_keys];
        float page_largest = largest;
        for (int64_t j = first; j < last; j++) {
            float dot = sum(dim, [&](int64_t i) { return q[i] * widen(keys[key_at(pairs, j, i, dim)]); });
            if (p.k_scales) dot *= p.k_scales[at + j];
            float s = dot * a.scale;
            if (a.softcap > 0) s = a.softcap * tanhf(s / a.softcap);
            score[j] = s + slope * float(page * page_keys + j - p.positions[row]);
            if (score[j] > page_largest) page_largest = score[j];
        }
        const float shrink = expf(largest - page_largest);
        largest = page_largest;
        total *= shrink;
        for (int64_t i = 0; i < dim; i++) out[i] *= shrink;
        for (int64_t j = first; j < last; j++) {
            const float weight = expf(score[j] - largest);
            total += weight;
            const float factor = p.v_scales ? weight * p.v_scales[at + j] : weight;
            for (int64_t i = 0; i < dim; i++) out[i] += factor * widen(values[value_at(pairs, j, i, dim)]);
        }
    }
    return {largest, total};
}

// Adds a partial, whose sum of p v is `sum`, to what was merged before it.
void merge(Partial& merged, float* out, const Partial& next, const float* sum, int64_t dim, bool first) {
    if (first) {
        merged = next;
        for (int64_t i = 0; i < dim; i++) out[i] = sum[i];
        return;
    }
    const float largest = next.largest > merged.largest ? next.largest : merged.largest;
    const float shrink = expf(merged.largest - largest), share = expf(next.largest - largest);
    merged = {largest, merged.total * shrink + next.total * share};
    for (int64_t i = 0; i < dim; i++) out[i] = out[i] * shrink + sum[i] * share;
}

// The end of a softmax: the sink's share, and the division.
void finish(const AttentionArgs& a, int64_t head, const Partial& merged, float* out) {
    float total = merged.total, shrink = 1.0f;
    if (a.sinks) {
        const float largest = a.sinks[head] > merged.largest ? a.sinks[head] : merged.largest;
        shrink = expf(merged.largest - largest);
        total = total * shrink + expf(a.sinks[head] - largest);
    }
    for (int64_t i = 0; i < a.pages.head_dim; i++) out[i] = out[i] * shrink / total;
}

// Keys [first_key, positions[row]] are seen.
int64_t first_key(const AttentionArgs& a, int64_t row) {
    const int64_t position = a.pages.positions[row];
    return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

// Splits [begin, end) of the keys of one token row and head, merged into out, or stored as partials.
void attention_row(const AttentionArgs& a, int64_t row, int64_t head, int64_t begin, int64_t end) {
    const int64_t dim = a.pages.head_dim, first = first_key(a, row), last = a.pages.positions[row] + 1;
    float* out = a.out + row * a.out_stride + head * dim;
    float sums[512];  // the largest head_dim
    Partial merged{};
    const int64_t first_split = first / attention_split;
    for (int64_t s = begin > first_split ? begin : first_split; s < end && s * attention_split < last; s++) {
        const int64_t low = s == first_split ? first : s * attention_split;
        const int64_t high = last < (s + 1) * attention_split ? last : (s + 1) * attention_split;
        float* stored = a.partials ? a.partials + ((row * a.heads + head) * a.splits + s) * (dim + 2) : nullptr;
        float* sum = stored ? stored : sums;
        Partial partial{};
        with_page_type(a.pages.dtype, [&](auto type) {
            partial = attend<typename decltype(type)::type>(a, row, head, low, high, sum);
        });
        if (stored) {
            stored[dim] = partial.largest;
            stored[dim + 1] = partial.total;
        } else {
            merge(merged, out, partial, sum, dim, s == first_split);
        }
    }
    if (!a.partials) finish(a, head, merged, out);
}

void attention(const AttentionArgs& a, int64_t begin, int64_t end) {
    const int64_t group = a.heads / a.pages.kv_heads, splits = a.partials ? a.splits : 1;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t head = unit % a.pages.kv_heads * group;
        const int64_t split = unit / a.pages.kv_heads % splits;
        const int64_t row = unit / a.pages.kv_heads / splits * a.unit_rows;
        for (int64_t r = row; r < row + a.unit_rows && r < a.rows; r++) {
            for (int64_t h = head; h < head + group; h++) {
                attention_row(a, r, h, a.partials ? split : 0, a.partials ? split + 1 : INT64_MAX);
            }
        }
    }
}

void attention_merge(const AttentionArgs& a, int64_t begin, int64_t end) {
    const int64_t dim = a.pages.head_dim;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t row = unit / a.heads, head = unit % a.heads;
        const int64_t first = first_key(a, row) / attention_split, last = a.pages.positions[row] / attention_split;
        float* out = a.out + row * a.out_stride + head * dim;
        Partial merged{};
        for (int64_t s = first; s <= last; s++) {
            const float* sum = a.partials + (unit * a.splits + s) * (dim + 2);
            merge(merged, out, {sum[dim], sum[dim + 1]}, sum, dim, s == first);
        }
        finish(a, head, merged, out);
    }
}

void copy_pages(const CopyPagesArgs& a, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        for (int64_t h = 0; h < a.heads; h++) {
            char* head = a.pages + h * a.pages_each * a.page_bytes;
            memcpy(head + a.to[i] * a.page_bytes, head + a.from[i] * a.page_bytes, size_t(a.page_bytes));
        }
    }
}
