// What is done with logits: a block has a row. Choices are made by counting, never by floating sums, and masses are integers
// (draw.inl): so the same token as on a processor, whatever the order of the threads.

constexpr int sample_threads = 512;

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

struct SamplePlace {
    uint64_t weight[256];
    float value[32];
    int32_t id[32];
    uint32_t bad, key;
    int64_t left, found;
    uint64_t sums[sample_threads];
};

// See argmax_row of the reference; to all threads.
DEVICE int32_t argmax_row(const float* x, int64_t dim, bool finite_only, SamplePlace& place) {
    float largest = -infinity;
    int32_t best = -2;
    if (gk::thread() == 0) place.bad = 0;
    gk::sync();
    bool bad = false;
    each_column(dim, [&](int64_t i) {
        if (!((finite_only ? abs(x[i]) : x[i]) < infinity)) bad = true;
        if (x[i] > largest) largest = x[i], best = int32_t(i);
    });
    if (bad) gk::add_shared(&place.bad, 1u);
    auto take = [&](float value, int32_t id) {
        if (id >= 0 && (value > largest || (value == largest && id < best))) largest = value, best = id;
    };
    GK_UNROLL
    for (int d = 16; d > 0; d /= 2) {
        const float value = gk::shuffle_xor(largest, d);
        const int32_t id = gk::shuffle_xor(best, d);
        take(value, id);
    }
    if (gk::lane() == 0) place.value[gk::thread() / 32] = largest, place.id[gk::thread() / 32] = best;
    gk::sync();
    for (int i = 0; i < gk::threads() / 32; i++) take(place.value[i], place.id[i]);
    const bool any_bad = place.bad != 0;
    gk::sync();
    return any_bad ? -1 : best;
}

// Walks down in the order of `before` until the weights of what was passed reach `wanted` (> 0, at most all of them): the
// element that does is the last one. weight(i) is the same for equal elements. -> its order_of and id.
template <class Weight>
DEVICE void last_of(const float* x, int64_t dim, uint64_t wanted, Weight weight, SamplePlace& place, uint32_t& key, int64_t& id) {
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = gk::thread(); i < 256; i += gk::threads()) place.weight[i] = 0;
        gk::sync();
        each_column(dim, [&](int64_t i) {
            const uint32_t order = order_of(x[i]);
            if (shift == 24 || order >> (shift + 8) == prefix) gk::add_shared(place.weight + (order >> shift & 255), weight(i));
        });
        gk::sync();
        if (gk::thread() == 0) {
            int digit = 255;
            uint64_t left = wanted;
            while (digit > 0 && place.weight[digit] < left) left -= place.weight[digit--];
            place.key = uint32_t(digit);
            place.left = int64_t(left);
        }
        gk::sync();
        prefix = prefix << 8 | place.key;
        wanted = uint64_t(place.left);
        gk::sync();
    }
    key = prefix;
    // Of equals the one of which it takes so many: counted in pieces, each thread one, in ascending order.
    const int64_t piece = (dim + gk::threads() - 1) / gk::threads(), from = gk::thread() * piece;
    const int64_t to = from + piece < dim ? from + piece : dim;
    uint64_t sum = 0;
    for (int64_t i = from; i < to; i++) sum += order_of(x[i]) == key ? weight(i) : 0;
    place.sums[gk::thread()] = sum;
    if (gk::thread() == 0) place.found = -1;
    gk::sync();
    uint64_t before_mine = 0;
    for (int i = 0; i < gk::thread(); i++) before_mine += place.sums[i];
    if (before_mine < wanted && before_mine + sum >= wanted) {
        for (int64_t i = from; i < to && place.found < 0; i++) {
            before_mine += order_of(x[i]) == key ? weight(i) : 0;
            if (before_mine >= wanted) place.found = i;
        }
    }
    gk::sync();
    id = place.found;
    gk::sync();
}

GK_KERNEL void argmax_kernel(ArgmaxArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const int64_t r = first + gk::block();
    const int32_t best = argmax_row(a.x + r * a.dim, a.dim, false, *reinterpret_cast<SamplePlace*>(gk::shared()));
    if (gk::thread() == 0) a.out[r] = best;
}

// Grid: slots x rows of a slot.
GK_KERNEL void sample_kernel(SampleArgs a, int64_t first, float mass_scale) {
    gk::wait_for_previous(), gk::let_next_start();
    auto& place = *reinterpret_cast<SamplePlace*>(gk::shared());
    const int64_t row = first + gk::block() + gk::block_y() * scratch_slots(a.rows), dim = a.dim;
    if (row >= a.rows) return;
    const float* x = a.logits + row * dim;
    const int32_t best = argmax_row(x, dim, a.finite_only, place);
    if (best < 0 || a.temperature == 0.0f) {
        if (gk::thread() == 0) a.tokens[row] = best;
        return;
    }
    const float largest = x[best];
    auto mass = [&](int64_t i) { return uint64_t(mass_of(x[i], largest, mass_scale)); };
    auto total_of = [&](auto kept) {
        uint64_t sum = 0;
        each_column(dim, [&](int64_t i) { sum += kept(i) ? mass(i) : 0; });
        if (gk::thread() == 0) place.weight[0] = 0;
        gk::sync();
        gk::add_shared(place.weight, sum);
        gk::sync();
        const uint64_t total = place.weight[0];
        gk::sync();
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
    for (int64_t i = from; i < to; i++) sum += kept(i) ? mass(i) : 0;
    place.sums[gk::thread()] = sum;
    gk::sync();
    uint64_t passed = 0;
    for (int i = 0; i < gk::thread(); i++) passed += place.sums[i];
    if (passed > uint64_t(target) || passed + sum <= uint64_t(target)) return;
    for (int64_t i = from; i < to; i++) {
        passed += kept(i) ? mass(i) : 0;
        if (passed <= uint64_t(target)) continue;
        a.tokens[row] = int32_t(i);
        return;
    }
}

// Takes what belongs to the k largest, then sorts by merging: an element's place is its own in its run plus those of the
// other run that come before it. Scratch: two lists of (value, id).
GK_KERNEL void top_k_kernel(TopKArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    auto& place = *reinterpret_cast<SamplePlace*>(gk::shared());
    const int64_t slot = first + gk::block();
    struct Pair {
        float value;
        int32_t id;
    };
    auto* list = reinterpret_cast<Pair*>(static_cast<char*>(a.scratch) + slot * scratch_bytes(a.dim));
    Pair* other = list + a.k;
    for (int64_t r = slot; r < a.rows; r += scratch_slots(a.rows)) {
        const float* x = a.x + r * a.dim;
        uint32_t key = 0;
        int64_t id = a.dim;
        last_of(x, a.dim, uint64_t(a.k), [](int64_t) { return uint64_t(1); }, place, key, id);
        auto kept = [&](int64_t i) { return order_of(x[i]) > key || (order_of(x[i]) == key && i <= id); };
        const int64_t piece = (a.dim + gk::threads() - 1) / gk::threads(), from = gk::thread() * piece;
        const int64_t to = from + piece < a.dim ? from + piece : a.dim;
        uint64_t count = 0;
        for (int64_t i = from; i < to; i++) count += kept(i);
        place.sums[gk::thread()] = count;
        gk::sync();
        int64_t at = 0;
        for (int i = 0; i < gk::thread(); i++) at += int64_t(place.sums[i]);
        for (int64_t i = from; i < to; i++)
            if (kept(i)) list[at++] = {x[i] == x[i] ? x[i] : -infinity, int32_t(i)};
        gk::sync();
        Pair *in = list, *out = other;
        for (int64_t width = 1; width < a.k; width *= 2) {
            for (int64_t i = gk::thread(); i < a.k; i += gk::threads()) {
                const int64_t start = i / width % 2 ? i / width * width - width : i / width * width + width;  // of the other run
                int64_t low = start < a.k ? start : a.k, high = start + width < a.k ? start + width : a.k;
                const int64_t begin = low;
                while (low < high) {
                    const int64_t middle = (low + high) / 2;
                    if (before(in[middle].value, in[middle].id, in[i].value, in[i].id)) low = middle + 1;
                    else high = middle;
                }
                out[i / (2 * width) * (2 * width) + i % width + (low - begin)] = in[i];
            }
            gk::sync();
            Pair* swap = in;
            in = out;
            out = swap;
        }
        for (int64_t i = gk::thread(); i < a.k; i += gk::threads()) a.values[r * a.k + i] = in[i].value, a.ids[r * a.k + i] = in[i].id;
        gk::sync();
    }
}
