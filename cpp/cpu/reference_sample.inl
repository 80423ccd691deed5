// top_k, penalties and the draw of a token, plainly: included by reference.cpp.
#include "draw.inl"
#include "heap.inl"

// The k best so far are a heap with the worst at its root; a NaN counts as -infinity.
void top_k_row(const float* x, int64_t dim, int64_t k, float* values, int32_t* ids) {
    auto at = [&](int64_t i) { return x[i] == x[i] ? x[i] : -INFINITY; };
    for (int64_t i = 0; i < k; i++) {
        values[i] = at(i);
        ids[i] = int32_t(i);
    }
    heap_build(values, ids, k);
    for (int64_t i = k; i < dim; i++) {
        if (x[i] > values[0]) heap_place(values, ids, 0, k, x[i], int32_t(i));  // of equals the earlier one stays
    }
    heap_sort(values, ids, k);
}

void top_k(const TopKArgs& a, int64_t begin, int64_t end) {
    each_row(a, begin, end, [&](int64_t r, char*) {
        top_k_row(a.x + r * a.dim, a.dim, a.k, a.values + r * a.k, a.ids + r * a.k);
    });
}

void bias(const BiasArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
        for (int64_t i = 0; i < a.count; i++) a.logits[r * a.dim + a.ids[i]] += a.values[i];
}

void penalty(const PenaltyArgs& a, int64_t begin, int64_t end) {
    const int64_t capacity = a.history.capacity;
    for (int64_t r = begin; r < end; r++) {
        const int32_t *ids = a.history.entries + r * 3 * capacity, *seen = ids + capacity, *generated = seen + capacity;
        float* logits = a.logits + r * a.dim;
        for (int64_t i = 0; i < a.history.lengths[r]; i++)
            if (ids[i] >= 0 && ids[i] < a.dim) logits[ids[i]] = penalized(a, logits[ids[i]], seen[i], generated[i]);
    }
}

void remember(const RememberArgs& a, int64_t begin, int64_t end) {
    const int64_t capacity = a.history.capacity;
    for (int64_t r = begin; r < end; r++) {
        const int32_t token = a.tokens[r];
        if (token < 0) continue;
        int32_t *ids = a.history.entries + r * 3 * capacity, *seen = ids + capacity, *generated = seen + capacity;
        int32_t& length = a.history.lengths[r];
        auto entry_of = [&](int32_t id) {
            int64_t i = 0;
            while (i < length && ids[i] != id) i++;
            return i;
        };
        if (a.window > 0) {
            int32_t& next = a.next[r];
            int32_t& place = a.recent[r * a.window + next];
            const int64_t i = place < 0 ? length : entry_of(place >> 1);
            if (i < length) seen[i]--, generated[i] -= place & 1;
            place = recent_word(token);
            next = next + 1 < a.window ? next + 1 : 0;
        }
        const int64_t i = entry_of(token);
        if (i == capacity) continue;
        if (i == length) ids[i] = token, seen[i] = generated[i] = 0, length++;
        seen[i]++, generated[i]++;
    }
}

// ---- sampling -------------------------------------------------------------------------------------------------

// See draw.inl. Adding and taking away 1.5 * 2^23, or 2^23 where nothing is negative, rounds to an integer.
float mass_of(float logit, float largest, float scale) {
    float t = (logit - largest) * scale;
    t = t > -64.0f ? t : -64.0f;
    const float n = (t + 0x1.8p23f) - 0x1.8p23f, f = t - n;
    float p = exp2_terms[4];
    for (int i = 3; i >= 0; i--) p = p * f + exp2_terms[i];
    p = p * f + 1.0f;
    const float mass = p * from_bits(uint32_t(int32_t(n) + mass_bits + 127) << 23);
    return mass < 0x1p23f ? (mass + 0x1p23f) - 0x1p23f : mass;
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

    static bool first(const Candidate& a, const Candidate& b) { return before(a.logit, a.id, b.logit, b.id); }
    void place(int64_t i, int64_t count, Candidate value) {
        for (int64_t child; (child = 2 * i + 1) < count; i = child) {
            if (child + 1 < count && first(heap[child + 1], heap[child])) child++;
            if (!first(heap[child], value)) break;
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
};

int32_t sample_row(const SampleArgs& a, int64_t row, char* scratch) {
    const float* logits = a.logits + row * a.dim;
    const int32_t best = argmax_row(logits, a.dim, a.finite_only);
    if (best < 0 || a.temperature == 0.0f) return best;

    auto* masses = reinterpret_cast<float*>(scratch);
    auto* heap = reinterpret_cast<Candidate*>(scratch + (a.dim + 1) / 2 * 8);
    const float scale = mass_scale(a.temperature);
    int64_t total = 0;
    for (int64_t i = 0; i < a.dim; i++) {
        masses[i] = mass_of(logits[i], logits[best], scale);
        total += int64_t(masses[i]);
    }

    Candidate last = {-INFINITY, int32_t(a.dim)};  // in descending order, of those kept by top_k and top_p
    const bool limited = a.top_k > 0 && a.top_k < a.dim;
    if (limited || a.top_p < 1.0f) {
        Ordered ordered = {heap, 0, 0};
        for (int64_t i = 0; i < a.dim; i++) heap[ordered.size++] = {logits[i], int32_t(i)};
        ordered.build();
        if (limited) {
            total = 0;
            for (int64_t i = 0; i < a.top_k; i++) total += int64_t(masses[ordered.at(i).id]);
            last = ordered.at(a.top_k - 1);
        }
        if (a.top_p < 1.0f) {  // the smallest set that reaches top_p: the candidate that crosses it stays
            int64_t wanted = top_p_sum(a.top_p, total);
            for (int64_t i = 0; wanted > 0; i++) {
                last = ordered.at(i);
                wanted -= int64_t(masses[last.id]);
            }
        }
    }

    const float least = a.min_p * mass_one;  // exact
    auto kept = [&](int64_t i) { return masses[i] >= least && !before(last.logit, last.id, logits[i], int32_t(i)); };
    total = 0;
    for (int64_t i = 0; i < a.dim; i++) total += kept(i) ? int64_t(masses[i]) : 0;
    int64_t target = draw_target(random_bits(a.seed, a.sequences[row], a.positions[row]), total);
    for (int64_t i = 0;; i++) {  // ends: the target is below the sum
        if (!kept(i)) continue;
        target -= int64_t(masses[i]);
        if (target < 0) return int32_t(i);
    }
}

void sample(const SampleArgs& a, int64_t begin, int64_t end) {
    each_row(a, begin, end, [&](int64_t r, char* scratch) { a.tokens[r] = sample_row(a, r, scratch); });
}
