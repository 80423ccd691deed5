// top_k, penalties and the draw of a token, plainly: included by reference.cpp.

// The k best so far are a heap with the worst at its root; a NaN counts as -infinity.
void top_k_row(const float* x, int64_t dim, int64_t k, float* values, int32_t* ids) {
    auto before = [](float value_a, int32_t id_a, float value_b, int32_t id_b) {
        return value_a > value_b || (value_a == value_b && id_a < id_b);
    };
    auto place = [&](int64_t i, int64_t count, float value, int32_t id) {
        for (int64_t child; (child = 2 * i + 1) < count; i = child) {
            if (child + 1 < count && before(values[child], ids[child], values[child + 1], ids[child + 1])) child++;
            if (!before(value, id, values[child], ids[child])) break;
            values[i] = values[child];
            ids[i] = ids[child];
        }
        values[i] = value;
        ids[i] = id;
    };
    auto at = [&](int64_t i) { return x[i] == x[i] ? x[i] : -INFINITY; };
    for (int64_t i = 0; i < k; i++) {
        values[i] = at(i);
        ids[i] = int32_t(i);
    }
    for (int64_t i = k / 2; i-- > 0;) place(i, k, values[i], ids[i]);
    for (int64_t i = k; i < dim; i++) {
        if (before(at(i), int32_t(i), values[0], ids[0])) place(0, k, at(i), int32_t(i));
    }
    for (int64_t last = k - 1; last > 0; last--) {
        const float value = values[last];
        const int32_t id = ids[last];
        values[last] = values[0];
        ids[last] = ids[0];
        place(0, last, value, id);
    }
}

void top_k(const TopKArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        top_k_row(a.x + r * a.dim, a.dim, a.k, a.values + r * a.k, a.ids + r * a.k);
    }
}

void penalty(const PenaltyArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        for (int64_t e = a.offsets[r]; e < a.offsets[r + 1]; e++) {
            float& logit = a.logits[r * a.dim + a.ids[e]];
            if (a.seen[e] > 0) logit = logit > 0.0f ? logit / a.repetition : logit * a.repetition;
            if (a.generated[e] > 0) logit -= a.presence + a.frequency * float(a.generated[e]);
        }
    }
}

// ---- sampling -------------------------------------------------------------------------------------------------

// Philox4x32-10 (Salmon et al. 2011): a block of four random words from a counter and a key.
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = uint64_t(0xd2511f53u) * c0;
        const uint64_t product1 = uint64_t(0xcd9e8d57u) * c2;
        const uint32_t next0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
        const uint32_t next2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
        c1 = uint32_t(product1);
        c3 = uint32_t(product0);
        c0 = next0;
        c2 = next2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// In [0, 1), a multiple of 2^-53.
double uniform(uint64_t seed, int64_t sequence, int64_t position) {
    const uint32_t counter[4] = {uint32_t(sequence), uint32_t(uint64_t(sequence) >> 32), uint32_t(position),
                                 uint32_t(uint64_t(position) >> 32)};
    const uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    uint32_t word[4];
    philox(counter, key, word);
    return double((uint64_t(word[0]) << 32 | word[1]) >> 11) * 0x1p-53;
}

struct Candidate {
    float logit;
    int32_t id;
};

// Candidates in descending order, drawn lazily from a heap with the best at its root: the i-th one asked for lies at
// the i-th place from the end. Filters keep few, so few are ever ordered.
struct Ordered {
    Candidate* heap;
    int64_t size, left;
    double largest, temperature;

    static bool before(const Candidate& a, const Candidate& b) {
        return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    }
    void place(int64_t i, int64_t count, Candidate value) {
        for (int64_t child; (child = 2 * i + 1) < count; i = child) {
            if (child + 1 < count && before(heap[child + 1], heap[child])) child++;
            if (!before(heap[child], value)) break;
            heap[i] = heap[child];
        }
        heap[i] = value;
    }
    void build() {
        for (int64_t i = size / 2; i-- > 0;) place(i, size, heap[i]);
        left = size;
    }
    const Candidate& at(int64_t i) {
        while (size - left <= i) {
            const Candidate last = heap[left - 1];
            heap[left - 1] = heap[0];
            left--;
            if (left > 0) place(0, left, last);
        }
        return heap[size - 1 - i];
    }
    // exp(logit / temperature), relative to the largest.
    double mass(const Candidate& c) const { return exp((double(c.logit) - largest) / temperature); }
};

int32_t sample_row(const SampleArgs& a, int64_t row) {
    const float* logits = a.logits + row * a.dim;
    const int32_t best = argmax_row(logits, a.dim);
    if (best < 0 || a.temperature == 0.0f) return best;

    auto* heap = reinterpret_cast<Candidate*>(static_cast<char*>(a.scratch) + row * sample_scratch_bytes(a.dim));
    Ordered ordered = {heap, 0, 0, double(logits[best]), double(a.temperature)};
    double total = 0.0;
    for (int64_t i = 0; i < a.dim; i++) {
        if (logits[i] == -INFINITY) continue;
        heap[ordered.size] = {logits[i], int32_t(i)};
        total += ordered.mass(heap[ordered.size]);
        ordered.size++;
    }
    ordered.build();

    int64_t kept = ordered.size;
    if (a.top_k > 0 && a.top_k < kept) {
        kept = a.top_k;
        total = 0.0;
        for (int64_t i = 0; i < kept; i++) total += ordered.mass(ordered.at(i));
    }
    if (a.top_p < 1.0f) {  // the smallest set that reaches top_p: the candidate that crosses it stays
        const int64_t limit = kept;
        const double enough = double(a.top_p) * total;
        total = 0.0;
        kept = 0;
        do {
            total += ordered.mass(ordered.at(kept++));
        } while (kept < limit && total < enough);
    }
    if (a.min_p > 0.0f) {  // the largest mass is 1
        const int64_t limit = kept;
        total = 0.0;
        for (kept = 0; kept < limit; kept++) {
            const double mass = ordered.mass(ordered.at(kept));
            if (kept > 0 && mass < double(a.min_p)) break;
            total += mass;
        }
    }

    const double target = uniform(a.seed, a.sequences[row], a.positions[row]) * total;
    double sum = 0.0;
    int32_t token = best;
    for (int64_t i = 0; i < kept; i++) {
        const double mass = ordered.mass(ordered.at(i));
        if (mass == 0.0) break;  // u * total was rounded up to the whole sum: the last one that can be drawn
        token = ordered.at(i).id;
        sum += mass;
        if (sum > target) break;
    }
    return token;
}

void sample(const SampleArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) a.tokens[r] = sample_row(a, r);
}
