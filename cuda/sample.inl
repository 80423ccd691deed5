// What is done with logits. Choices are made by counting, never by floating sums, and masses are integers (draw.inl): so the
// same token as on a processor, whatever the order of the threads. Here by one block a row, in sample_split.inl by many.

constexpr int sample_threads = 256, sample_warps = sample_threads / 32;

DEVICE float mass_of(float logit, float largest, float scale) {
    float t = (logit - largest) * scale;
    t = t > -64.0f ? t : -64.0f;
    const float n = gk::round_even(t), f = t - n;
    constexpr float c0 = exp2_terms[0], c1 = exp2_terms[1], c2 = exp2_terms[2], c3 = exp2_terms[3], c4 = exp2_terms[4];
    const float p = ((((c4 * f + c3) * f + c2) * f + c1) * f + c0) * f + 1.0f;
    return gk::round_even(p * from_bits(uint32_t(int32_t(n) + mass_bits + 127) << 23));
}

// An integer of the order of floats; both zeros are one, and a NaN is -infinity.
DEVICE uint32_t order_of(float x) {
    const uint32_t bits = to_bits(x == x ? x + 0.0f : -infinity);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The float whose order_of it is.
DEVICE float of_order(uint32_t order) { return from_bits(order & 0x80000000u ? order & 0x7fffffffu : ~order); }

// What comes first in descending order, equals by ascending id, has the larger one.
DEVICE uint64_t rank_of(float x, int64_t id) { return uint64_t(order_of(x)) << 32 | uint32_t(~id); }
DEVICE uint32_t order_in(uint64_t rank) { return uint32_t(rank >> 32); }
DEVICE int64_t id_in(uint64_t rank) { return int64_t(~uint32_t(rank)); }

struct SamplePlace {
    uint64_t weight[256];
    uint64_t warps[sample_warps];
    uint64_t left;
    int64_t found;
    uint32_t bad, key;
};

// The sum of x of the threads before this one, and of all.
DEVICE uint64_t block_before(uint64_t x, uint64_t* warps, uint64_t& total) {
    uint64_t sum = x;
    GK_UNROLL
    for (int d = 1; d < 32; d *= 2) {
        const uint64_t other = gk::shuffle_up(sum, d);
        if (gk::lane() >= d) sum += other;
    }
    if (gk::lane() == 31) warps[gk::thread() / 32] = sum;
    gk::sync();
    uint64_t before = sum - x;
    total = 0;
    GK_UNROLL
    for (int i = 0; i < sample_warps; i++) {
        if (i < gk::thread() / 32) before += warps[i];
        total += warps[i];
    }
    gk::sync();
    return before;
}

// As each_column, in little code: what is run once should not be long.
template <class Body>
DEVICE void each_rolled(int64_t columns, Body body) {
    GK_ROLLED
    for (int64_t i = gk::thread(); i < columns; i += sample_threads) body(i);
}

// Walks down in the order of `before` until the weights of what was passed reach `wanted` (> 0, at most all of them): the
// element that does is the last one. weight(i) is the same for equal elements. -> its order_of and id.
template <class Weight>
DEVICE void last_of(const float* x, int64_t dim, uint64_t wanted, Weight weight, SamplePlace& place, uint32_t& key, int64_t& id) {
    uint32_t prefix = 0;
    GK_ROLLED
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = gk::thread(); i < 256; i += gk::threads()) place.weight[i] = 0;
        gk::sync();
        each_rolled(dim, [&](int64_t i) {
            const uint32_t order = order_of(x[i]);
            if (shift == 24 || order >> (shift + 8) == prefix) gk::add_shared(place.weight + (order >> shift & 255), weight(i));
        });
        gk::sync();
        const int digit = 255 - gk::thread();  // the first that has one looks at the largest
        const uint64_t here = digit >= 0 ? place.weight[digit] : 0;
        uint64_t total;
        const uint64_t above = block_before(here, place.warps, total);
        if (above < wanted && above + here >= wanted) {
            place.key = uint32_t(digit);
            place.left = wanted - above;
        }
        gk::sync();
        prefix = prefix << 8 | place.key;
        wanted = place.left;
    }
    key = prefix;
    // Of equals the one of which it takes so many: counted in pieces, each thread one, in ascending order.
    const int64_t piece = (dim + gk::threads() - 1) / gk::threads(), from = gk::thread() * piece;
    const int64_t to = from + piece < dim ? from + piece : dim;
    uint64_t sum = 0;
    GK_ROLLED
    for (int64_t i = from; i < to; i++) sum += order_of(x[i]) == key ? weight(i) : 0;
    uint64_t total;
    uint64_t passed = block_before(sum, place.warps, total);
    if (passed < wanted && passed + sum >= wanted) {
        int64_t i = from;
        while ((passed += order_of(x[i]) == key ? weight(i) : 0) < wanted) i++;
        place.found = i;
    }
    gk::sync();
    id = place.found;
    gk::sync();
}

// A row's draw by one block: of however many candidates.
DEVICE void draw_alone(const SampleArgs& a, int64_t row, float largest, float mass_scale, SamplePlace& place) {
    const int64_t dim = a.dim;
    const float* x = a.logits + row * dim;
    auto mass = [&](int64_t i) { return uint64_t(mass_of(x[i], largest, mass_scale)); };
    auto total_of = [&](auto kept) {
        uint64_t sum = 0, total;
        each_rolled(dim, [&](int64_t i) { sum += kept(i) ? mass(i) : 0; });
        block_before(sum, place.warps, total);
        return total;
    };

    uint32_t last_key = 0;  // in descending order, of those kept by top_k and top_p
    int64_t last_id = dim;
    auto in_order = [&](int64_t i) {
        const uint32_t order = order_of(x[i]);
        return order > last_key || (order == last_key && i <= last_id);
    };
    if (a.top_k > 0 && a.top_k < dim) last_of(x, dim, uint64_t(a.top_k), [](int64_t) { return uint64_t(1); }, place, last_key, last_id);
    if (a.top_p < 1.0f) {  // the smallest set that reaches top_p: the candidate that crosses it stays
        const uint64_t wanted = uint64_t(top_p_sum(a.top_p, int64_t(total_of(in_order))));
        last_of(x, dim, wanted, mass, place, last_key, last_id);
    }
    const float least = a.min_p * mass_one;  // exact
    auto kept = [&](int64_t i) { return mass_of(x[i], largest, mass_scale) >= least && in_order(i); };
    const int64_t target = draw_target(random_bits(a.seed, a.sequences[row], a.positions[row]), int64_t(total_of(kept)));

    const int64_t piece = (dim + gk::threads() - 1) / gk::threads(), from = gk::thread() * piece;
    const int64_t to = from + piece < dim ? from + piece : dim;
    uint64_t sum = 0;
    GK_ROLLED
    for (int64_t i = from; i < to; i++) sum += kept(i) ? mass(i) : 0;
    uint64_t total;
    uint64_t passed = block_before(sum, place.warps, total);
    if (passed > uint64_t(target) || passed + sum <= uint64_t(target)) return;
    GK_ROLLED
    for (int64_t i = from; i < to; i++) {
        passed += kept(i) ? mass(i) : 0;
        if (passed <= uint64_t(target)) continue;
        a.tokens[row] = int32_t(i);
        return;
    }
}

