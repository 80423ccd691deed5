// The draw of a token and top_k over the vocabulary of vec_*.h. The result is what reference_sample.inl defines, to the
// bit: masses are integers, so their sums do not depend on the order, and what is guessed here decides the time only.
#include "draw.inl"
#include "heap.inl"

constexpr float lowest_float = -3.4028235e38f;

INLINE int64_t chunks_of(int64_t n) { return (n + chunk_size - 1) / chunk_size; }

// A list of pairs, with room for a vector past its end.
struct List {
    float *values, *weights;
};

// Parts of the memory given for a row of dim logits.
struct Scratch {
    int64_t *sums, *starts, *equals;  // [chunks], see Tally and settle
    float* maxima;                    // [chunks][groups]: they tell where large logits are
    List kept;                        // what top_k keeps, in ascending id order; weights are ids, which are below 2^24
    List near;                        // those near the value top_p ends at, in ascending id order
    List pool;                        // what reach works on

    Scratch(void* memory, int64_t dim) {
        const int64_t chunks = chunks_of(dim), list = dim + 64;  // 64: the maxima of a short row are more than its logits
        sums = static_cast<int64_t*>(memory);
        starts = sums + chunks;
        equals = starts + chunks;
        maxima = reinterpret_cast<float*>(equals + chunks);
        float* lists = maxima + chunks * groups;
        kept = {lists, lists + list};
        near = {lists + 2 * list, lists + 3 * list};
        pool = {lists + 4 * list, lists + 5 * list};
    }
    // Whether a logit of this chunk is value or more.
    INLINE bool reaches(int64_t begin, vec value) const {
        const float* m = maxima + begin / chunk_size * groups;
        uint32_t found = 0;
        for (int64_t j = 0; j < groups; j += lanes) found |= bits(less_equal(value, load(m + j)));
        return found != 0;
    }
};

// Whether no logit is NaN or +infinity, nor -infinity where finite_only says so. Fills maxima.
template <bool finite_only>
bool find_maxima(const float* x, int64_t n, float* maxima) {
    Good good;
    for (int64_t c = 0; c < n; c += chunk_size) {
        const Maxima m = chunk_maxima<finite_only>(x, c, chunk_end(c, n), good);
        for (int64_t j = 0; j < group_vecs; j++, maxima += lanes) store(maxima, m.v[j]);
    }
    return good.all();
}

// ---- selection ---------------------------------------------------------------------------------------------------

// A number in (low, high]: halfway, first by value, then, so that the steps are bounded, by place among the floats.
float between(float low, float high, int step) {
    const float half = low * 0.5f + high * 0.5f;
    if (step < 24 && low < half && half <= high) return half;
    auto place = [](float x) {
        int32_t i;
        x += 0.0f;  // -0 becomes 0
        __builtin_memcpy(&i, &x, 4);
        return int64_t(i ^ (i >> 31 & 0x7fffffff));
    };
    const int64_t at = place(low) + (place(high) - place(low) + 1) / 2;
    const int32_t i = int32_t(at) ^ (int32_t(at) >> 31 & 0x7fffffff);
    float x;
    __builtin_memcpy(&x, &i, 4);
    return x;
}

struct Reached {
    float value, weight;  // and the weight of one entry of this value
    int64_t above;        // the weight of all that are larger
    // How many entries of this value are needed.
    int64_t equals(int64_t needed) const { return (needed - above + int64_t(weight) - 1) / int64_t(weight); }
};

// The largest value such that the entries not below it weigh `needed` or more, as all n together do. A weight is an
// integer. Halves the range of values and keeps the half where the answer lies. The list is used up.
Reached reach(const List& pool, int64_t n, int64_t needed) {
    auto [values, weights] = pool;
    vec low = set1(infinity), high = set1(-infinity);
    each(0, n, [&](int64_t i, auto count) {
        low = min(keep(load(values + i, count), count, set1(infinity)), low);
        high = max(keep(load(values + i, count), count, set1(-infinity)), high);
    });
    int64_t above = 0;
    for (int step = 0;; step++) {
        const float bottom = -reduce_max(zero() - low), top = reduce_max(high);
        if (!(bottom < top)) return {bottom, weights[0], above};
        const vec middle = set1(between(bottom, top, step));
        int64_t upper = 0;
        for (int64_t c = 0; c < n; c += chunk_size) {
            Wide sum = wide_zero();
            each(c, chunk_end(c, n), [&](int64_t i, auto count) {
                accumulate(sum, select(less(load(values + i, count), middle), zero(), load(weights + i, count)));
            });
            upper += int64_t(total(sum));
        }
        const bool up = above + upper >= needed;
        if (!up) above += upper;
        int64_t left = 0;
        low = set1(infinity);
        high = set1(-infinity);
        const vec outside = set1(up ? -infinity : infinity);
        each(0, n, [&](int64_t i, auto count) {
            const vec v = keep(load(values + i, count), count, outside), w = load(weights + i, count);
            const mask kept = up ? less_equal(middle, v) : less(v, middle);
            low = min(select(kept, v, low), low);
            high = max(select(kept, v, high), high);
            compress(weights + left, w, kept);
            left += compress(values + left, v, kept);
        });
        n = left;
    }
}

// The same of a list, which stays as it is.
Reached reach_of(const List& list, int64_t n, int64_t needed, const Scratch& s) {
    each(0, n, [&](int64_t i, auto count) {
        store(s.pool.values + i, load(list.values + i, count), count);
        store(s.pool.weights + i, load(list.weights + i, count), count);
    });
    return reach(s.pool, n, needed);
}

// The k-th largest of n values.
Reached reach_kth(const float* values, int64_t n, int64_t k, const Scratch& s) {
    each(0, n, [&](int64_t i, auto count) {
        store(s.pool.values + i, load(values + i, count), count);
        store(s.pool.weights + i, set1(1.0f), count);
    });
    return reach(s.pool, n, k);
}

// Leaves the k largest of x, equals by ascending id, in s.kept, in ascending id order. A NaN counts as
// -infinity. Nothing below the k-th largest maximum of a group is among them.
void keep_top_k(const float* x, int64_t n, int64_t k, const Scratch& s) {
    const int64_t maxima = chunks_of(n) * groups;
    const vec lowest = set1(k <= maxima ? reach_kth(s.maxima, maxima, k, s).value : -infinity);
    int64_t count = 0;
    for (int64_t c = 0; c < n; c += chunk_size) {
        if (!s.reaches(c, lowest)) continue;
        each(c, chunk_end(c, n), [&](int64_t i, auto lane_count) {
            const vec v = max(load(x + i, lane_count), set1(-infinity));
            const mask real = less(keep(zero(), lane_count, set1(1.0f)), set1(1.0f));
            const mask large = less_equal(real, lowest, v);
            if (!bits(large)) return;
            compress(s.kept.weights + count, set1(float(i)) + iota(), large);
            count += compress(s.kept.values + count, v, large);
        });
    }
    if (count == k) return;
    const Reached last = reach_kth(s.kept.values, count, k, s);
    int64_t equals = last.equals(k), kept = 0;
    for (int64_t i = 0; i < count; i++) {
        const float v = s.kept.values[i];
        const bool stays = v > last.value || (v == last.value && equals-- > 0);
        s.kept.values[kept] = v;
        s.kept.weights[kept] = s.kept.weights[i];
        kept += stays;
    }
}

void top_k(const TopKArgs& a, int64_t begin, int64_t end) {
    each_row(a, begin, end, [&](int64_t r, char* scratch) {
        const Scratch s(scratch, a.dim);
        find_maxima<false>(a.x + r * a.dim, a.dim, s.maxima);
        keep_top_k(a.x + r * a.dim, a.dim, a.k, s);
        float* values = a.values + r * a.k;
        int32_t* ids = a.ids + r * a.k;
        for (int64_t i = 0; i < a.k; i++) {
            values[i] = s.kept.values[i];
            ids[i] = int32_t(s.kept.weights[i]);
        }
        heap_build(values, ids, a.k);
        heap_sort(values, ids, a.k);
    });
}

// ---- masses --------------------------------------------------------------------------------------------------------

// See draw.inl.
struct Masses {
    vec largest, scale;

    // Of several vectors in step, so that as many chains of operations run at once.
    template <int count>
    INLINE void of(const vec* logits, vec* masses) const {
        vec n[count], f[count];
        for (int j = 0; j < count; j++) f[j] = max((logits[j] - largest) * scale, set1(-64.0f));
        for (int j = 0; j < count; j++) n[j] = round(f[j]);
        for (int j = 0; j < count; j++) f[j] = f[j] - n[j];
        for (int j = 0; j < count; j++) masses[j] = set1(exp2_terms[4] * mass_one);
        for (int i = 3; i >= 0; i--) {
            for (int j = 0; j < count; j++) masses[j] = masses[j] * f[j] + set1(exp2_terms[i] * mass_one);
        }
        for (int j = 0; j < count; j++) masses[j] = round(times_power(masses[j] * f[j] + set1(mass_one), n[j]));
    }
    INLINE vec of(vec logits) const {
        vec mass;
        of<1>(&logits, &mass);
        return mass;
    }
    // Of one logit; 0 if it is less than lightest.
    float at_least(vec lightest, float logit) const {
        float all[lanes];
        const vec mass = of(set1(logit));
        store(all, select(less(mass, lightest), zero(), mass));
        return all[0];
    }

    // body(i, logits, masses) for each vector of x[begin, end); past the end logits are -infinity and masses 0.
    template <class Body>
    INLINE void each(const float* x, int64_t begin, int64_t end, Body body) const {
        constexpr int step = 4;
        int64_t i = begin;
        for (; i + step * lanes <= end; i += step * lanes) {
            vec logits[step], masses[step];
            for (int j = 0; j < step; j++) logits[j] = load(x + i + j * lanes);
            of<step>(logits, masses);
            for (int j = 0; j < step; j++) body(i + j * lanes, logits[j], masses[j]);
        }
        for (; i < end; i += lanes) {
            const int64_t count = end - i < lanes ? end - i : lanes;
            const vec logits = keep(load(x + i, count), count, set1(-infinity));
            body(i, logits, of(logits));
        }
    }
};

// ---- the draw ------------------------------------------------------------------------------------------------------

// What the filters leave: masses of `lightest` or more whose logit is above a value or among the first that equal it.
struct Filter {
    vec lightest;
    float last;
    int64_t equals;

    INLINE vec masses(vec logits, vec masses) const {
        return select(less_equal(less(set1(last), logits), lightest, masses), masses, zero());
    }
};

// Bounds of the value top_p ends at, from the largest of each group, which stands for itself, and the first, which
// stands for the others. Nearly always right; find_last sees when not.
void guess_last(const float* x, int64_t n, const Masses& mass, float top_p, const Scratch& s, float& low, float& high) {
    const int64_t whole = n / chunk_size * groups, entries = 2 * whole;
    vec squares = zero();
    int64_t sum = 0;
    for (int64_t g = 0; g < whole; g += lanes) {
        const vec largest = load(s.maxima + g), first = load(x + g / groups * chunk_size + g % groups);
        const vec own = mass.of(largest);
        const vec others = select(less(first, largest), mass.of(first) * set1(float(chunk_size / groups - 1)), zero());
        store(s.near.values + g, largest);
        store(s.near.weights + g, own);
        store(s.near.values + whole + g, first);
        store(s.near.weights + whole + g, others);
        Wide weight = wide_zero();
        accumulate(weight, own);
        accumulate(weight, others);
        sum += int64_t(total(weight));
        const vec scaled = others * set1(1 / mass_one);
        squares = fma(scaled, scaled, squares);
    }
    // Three standard deviations of the share that lies above a value.
    const float spread = reduce_add(squares) * top_p * (1.0f - top_p);
    const float margin = 3.0f * __builtin_sqrtf(spread) / (float(sum) / mass_one) + 0.001f;
    const float most = 0.75f * (1.0f - top_p);
    const float share_low = top_p + (margin < most ? margin : most), share_high = top_p - margin;
    if (share_high > 0.0f) high = reach_of(s.near, entries, top_p_sum(share_high, sum), s).value;
    low = reach_of(s.near, entries, top_p_sum(share_low, sum), s).value;
}

// Sums of masses: of all, of those above high, of the `count` from low to high. The last become s.near, s.starts says
// where a chunk's begin, and s.sums holds for each chunk what the filter leaves of those above high.
struct Tally {
    int64_t all, above, near, count;
};

Tally tally(const float* x, int64_t n, const Masses& mass, float low, float high, const Filter& filter, const Scratch& s) {
    const vec bottom = set1(low), top = set1(high);
    Tally t = {0, 0, 0, 0};
    for (int64_t c = 0; c < n; c += chunk_size) {
        Wide all = wide_zero(), above = wide_zero(), near = wide_zero(), lost = wide_zero();
        s.starts[c / chunk_size] = t.count;
        mass.each(x, c, chunk_end(c, n), [&](int64_t, vec v, vec m) {
            accumulate(all, m);
            const mask found = less_equal(bottom, v);
            if (!bits(found)) return;
            const mask over = less(top, v), inside = less_equal(found, v, top), light = less(over, m, filter.lightest);
            accumulate(above, select(over, m, zero()));
            if (bits(light)) accumulate(lost, select(light, m, zero()));
            if (!bits(inside)) return;
            accumulate(near, select(inside, m, zero()));
            compress(s.near.weights + t.count, m, inside);
            t.count += compress(s.near.values + t.count, v, inside);
        });
        t.all += int64_t(total(all));
        t.above += int64_t(total(above));
        t.near += int64_t(total(near));
        s.sums[c / chunk_size] = int64_t(total(above) - total(lost));
    }
    return t;
}

// Completes the filter with what top_p keeps, and s.sums and s.equals, how many equals are left when a chunk begins.
void find_last(const float* x, int64_t n, const Masses& mass, float top_p, Filter& filter, const Scratch& s) {
    float low = lowest_float, high = infinity;
    if (n >= 4 * chunk_size) guess_last(x, n, mass, top_p, s, low, high);
    Tally t;
    int64_t needed;
    for (;;) {
        t = tally(x, n, mass, low, high, filter, s);
        needed = top_p_sum(top_p, t.all) - t.above;
        if (needed <= 0) {
            low = high;
            high = infinity;
        } else if (needed > t.near) {
            high = low;
            low = lowest_float;
        } else {
            break;
        }
    }
    const Reached last = reach_of(s.near, t.count, needed, s);
    filter.last = last.value;
    filter.equals = last.equals(needed);
    int64_t equals = filter.equals;
    for (int64_t c = 0, chunks = chunks_of(n); c < chunks; c++) {
        Wide sum = wide_zero();
        int64_t found = 0;
        each(s.starts[c], c + 1 < chunks ? s.starts[c + 1] : t.count, [&](int64_t i, auto count) {
            const vec v = keep(load(s.near.values + i, count), count, set1(-infinity));
            accumulate(sum, filter.masses(v, load(s.near.weights + i, count)));
            found += __builtin_popcount(bits(equal(v, set1(last.value))));
        });
        s.equals[c] = equals;
        found = found < equals ? found : equals;
        equals -= found;
        s.sums[c] += int64_t(total(sum)) + found * int64_t(mass.at_least(filter.lightest, last.value));
    }
}

// The same where top_p is off. Below `floor` a mass is surely too light.
void sum_chunks(const float* x, int64_t n, const Masses& mass, float floor, const Filter& filter, const Scratch& s) {
    for (int64_t c = 0; c < n; c += chunk_size) {
        Wide sum = wide_zero();
        if (s.reaches(c, set1(floor))) {
            mass.each(x, c, chunk_end(c, n), [&](int64_t, vec v, vec m) { accumulate(sum, filter.masses(v, m)); });
        }
        s.sums[c / chunk_size] = int64_t(total(sum));
        s.equals[c / chunk_size] = 0;
    }
}

// The index of the token drawn.
int64_t draw_index(const float* x, int64_t n, const Masses& mass, const Filter& filter, uint64_t random, const Scratch& s) {
    int64_t sum = 0, c = 0;
    for (int64_t i = 0; i < chunks_of(n); i++) sum += s.sums[i];
    int64_t target = draw_target(random, sum);
    for (; target >= s.sums[c]; c++) target -= s.sums[c];
    int64_t equals = s.equals[c];
    const int64_t of_last = int64_t(mass.at_least(filter.lightest, filter.last)), begin = c * chunk_size;
    float masses[chunk_size];
    mass.each(x, begin, chunk_end(begin, n), [&](int64_t i, vec v, vec m) {
        store(masses + (i - begin), filter.masses(v, m));
    });
    for (int64_t i = begin;; i++) {  // ends: the target is below the chunk's sum
        const bool is_last = x[i] == filter.last && equals-- > 0;
        target -= is_last ? of_last : int64_t(masses[i - begin]);
        if (target < 0) return i;
    }
}

int32_t sample_row(const SampleArgs& a, int64_t row, char* scratch) {
    const float* x = a.logits + row * a.dim;
    if (a.temperature == 0.0f) return argmax_row(x, a.dim, a.finite_only);
    const Scratch s(scratch, a.dim);
    int64_t n = a.dim;
    const bool good = a.finite_only ? find_maxima<true>(x, n, s.maxima) : find_maxima<false>(x, n, s.maxima);
    if (!good) return -1;
    vec maxima = set1(-infinity);
    for (int64_t i = 0; i < chunks_of(n) * groups; i += lanes) maxima = max(load(s.maxima + i), maxima);
    const float largest = reduce_max(maxima);
    if (largest == -infinity) return -2;

    const bool listed = a.top_k > 0 && a.top_k < n;
    if (listed) {
        keep_top_k(x, n, a.top_k, s);
        x = s.kept.values;
        n = a.top_k;
        find_maxima<false>(x, n, s.maxima);
    }
    const Masses mass = {set1(largest), set1(mass_scale(a.temperature))};
    Filter filter = {set1(a.min_p * mass_one), -infinity, 0};
    if (a.top_p < 1.0f) {
        find_last(x, n, mass, a.top_p, filter, s);
    } else {
        // The logit of min_p's mass, or of the least that is not zero: its logarithm less 0.001, which is far more than
        // t is off by, and a few roundings of the largest.
        const double share = a.min_p > 0x1p-42f ? double(a.min_p) : 0x1p-42;
        const double distance = (__builtin_log(share) - 1e-3) * double(a.temperature);
        const double floor = double(largest) + distance - 1e-6 * (largest < 0 ? -double(largest) : double(largest));
        sum_chunks(x, n, mass, floor > -3e38 ? float(floor) : -infinity, filter, s);
    }
    const int64_t at = draw_index(x, n, mass, filter, random_bits(a.seed, a.sequences[row], a.positions[row]), s);
    return listed ? int32_t(s.kept.weights[at]) : int32_t(at);
}

void sample(const SampleArgs& a, int64_t begin, int64_t end) {
    each_row(a, begin, end, [&](int64_t r, char* scratch) { a.tokens[r] = sample_row(a, r, scratch); });
}
