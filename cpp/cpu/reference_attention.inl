// The paged KV cache and attention over it, plainly: included by reference.cpp.

void kv_write(const KvWriteArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const int64_t page = a.page_table[a.sequences[r] * a.max_pages + a.positions[r] / page_keys];
        const int64_t slot = a.positions[r] % page_keys;
        for (int64_t h = 0; h < a.kv_heads; h++) {
            const int64_t base = (page * a.kv_heads + h) * page_keys * a.head_dim;
            const float* k = a.k + r * a.kv_stride + h * a.head_dim;
            const float* v = a.v + r * a.kv_stride + h * a.head_dim;
            float* k_out = a.k_pages + base + slot / tile_keys * a.head_dim * tile_keys + slot % tile_keys;
            float* v_out = a.v_pages + base + slot * a.head_dim;
            for (int64_t i = 0; i < a.head_dim; i++) {
                k_out[i * tile_keys] = k[i];
                v_out[i] = v[i];
            }
        }
    }
}

// One token row and head. The output row itself is the accumulator of the online softmax.
void attention_row(const AttentionArgs& a, int64_t row, int64_t head) {
    const int64_t dim = a.head_dim;
    const int64_t kv_head = head / (a.heads / a.kv_heads);
    const int64_t position = a.positions[row];
    const int64_t first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
    const float slope = a.alibi_slopes ? a.alibi_slopes[head] : 0.0f;
    const float* q = a.q + row * a.q_stride + head * dim;
    float* out = a.out + row * a.out_stride + head * dim;
    float largest = -INFINITY, total = 0.0f;
    for (int64_t i = 0; i < dim; i++) out[i] = 0.0f;

    for (int64_t page = first / page_keys; page <= position / page_keys; page++) {
        const int64_t number = a.page_table[a.sequences[row] * a.max_pages + page];
        const float* keys = a.k_pages + (number * a.kv_heads + kv_head) * page_keys * dim;
        const float* values = a.v_pages + (number * a.kv_heads + kv_head) * page_keys * dim;
        const int64_t low = page * page_keys < first ? first - page * page_keys : 0;
        const int64_t high = position - page * page_keys < page_keys ? position - page * page_keys + 1 : page_keys;

        float score[page_keys];
        float page_largest = largest;
        for (int64_t j = low; j < high; j++) {
            const float* key = keys + j / tile_keys * dim * tile_keys + j % tile_keys;
            const float dot = sum(dim, [&](int64_t i) { return q[i] * key[i * tile_keys]; });
            score[j] = dot * a.scale + slope * float(page * page_keys + j - position);
            if (score[j] > page_largest) page_largest = score[j];
        }
        const float shrink = expf(largest - page_largest);
        largest = page_largest;
        total *= shrink;
        for (int64_t i = 0; i < dim; i++) out[i] *= shrink;
        for (int64_t j = low; j < high; j++) {
            const float p = expf(score[j] - largest);
            total += p;
            for (int64_t i = 0; i < dim; i++) out[i] += p * values[j * dim + i];
        }
    }
    for (int64_t i = 0; i < dim; i++) out[i] /= total;
}

void attention(const AttentionArgs& a, int64_t begin, int64_t end) {
    const int64_t group = a.heads / a.kv_heads;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t row = unit / a.kv_heads * attention_rows;
        const int64_t head = unit % a.kv_heads * group;
        for (int64_t r = row; r < row + attention_rows && r < a.rows; r++) {
            for (int64_t h = head; h < head + group; h++) attention_row(a, r, h);
        }
    }
}

void copy_pages(const CopyPagesArgs& a, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        memcpy(a.pages + a.to[i] * a.page_size, a.pages + a.from[i] * a.page_size, size_t(a.page_size) * sizeof(float));
    }
}
