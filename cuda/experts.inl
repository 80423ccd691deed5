// Mixture of experts: experts.h.

// As take_best of choose.inl, by a warp; to all lanes.
DEVICE int64_t take_best_together(const float* scores, uint8_t* taken, int64_t count) {
    int32_t best = -1;
    float most = 0.0f;
    auto take = [&](float score, int32_t i) {
        const bool nan = score != score, worse = most != most;
        if (i < 0) return;
        if (best < 0 || (worse && !nan) || (worse == nan && (score > most || ((score == most || nan) && i < best)))) best = i, most = score;
    };
    each_column(count, [&](int64_t i) {
        if (!taken[i]) take(scores[i], int32_t(i));
    });
    GK_UNROLL
    for (int d = 16; d > 0; d /= 2) {
        const float score = gk::shuffle_xor(most, d);
        const int32_t i = gk::shuffle_xor(best, d);
        take(score, i);
    }
    gk::sync();
    if (gk::thread() == 0) taken[best] = 1;
    gk::sync();
    return best;
}

// As choose_experts of choose.inl. `sums` [groups] and the two of flags are the warp's.
DEVICE void choose_together(const RouteArgs& a, const float* choice, int32_t* ids, float* sums, uint8_t* taken, uint8_t* kept) {
    each_column(a.experts, [&](int64_t i) { taken[i] = 0; });
    gk::sync();
    if (a.groups > 1) {
        const int64_t size = a.experts / a.groups;
        for (int64_t group = 0; group < a.groups; group++) {
            const float* scores = choice + group * size;
            const int64_t first = take_best_together(scores, taken + group * size, size);
            const float second = size > 1 ? scores[take_best_together(scores, taken + group * size, size)] : 0.0f;
            if (gk::thread() == 0) sums[group] = scores[first] + second, kept[group] = 0;
        }
        gk::sync();
        for (int64_t i = 0; i < a.groups_kept; i++) take_best_together(sums, kept, a.groups);
        each_column(a.experts, [&](int64_t i) { taken[i] = !kept[i / size]; });
        gk::sync();
    }
    for (int64_t j = 0; j < a.k; j++) {
        const int64_t best = take_best_together(choice, taken, a.experts);
        if (gk::thread() == 0) ids[j] = int32_t(best);
    }
}

struct RoutePlace {
    float scores[experts_most], choice[experts_most], sums[experts_most];
    uint8_t taken[experts_most], kept[experts_most];
};

// A block of one warp has a row.
GK_KERNEL void route_kernel(RouteArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    auto& place = *reinterpret_cast<RoutePlace*>(gk::shared());
    float *scores = place.scores, *choice = place.choice;
    const int64_t r = first + gk::block();
    const float* x = a.logits + r * a.experts;
    float largest = -infinity;
    each_column(a.experts, [&](int64_t i) { largest = max(x[i], largest); });
    GK_UNROLL
    for (int d = 16; d > 0; d /= 2) largest = max(gk::shuffle_xor(largest, d), largest);
    float total = 0.0f;
    each_column(a.experts, [&](int64_t i) {
        scores[i] = a.scoring == Scoring::sigmoid ? 1.0f / (1.0f + exp(0.0f - x[i])) : exp(x[i] - largest);
        choice[i] = a.scoring != Scoring::sigmoid ? x[i] : a.correction ? scores[i] + a.correction[i] : scores[i];
        total += scores[i];
    });
    total = warp_sum(total);
    each_column(a.scoring == Scoring::softmax ? a.experts : 0, [&](int64_t i) { scores[i] /= total; });
    gk::sync();
    choose_together(a, choice, a.ids + r * a.k, place.sums, place.taken, place.kept);
    if (gk::thread() == 0) weigh_experts(a, scores, a.ids + r * a.k, a.weights + r * a.k);
}

// One block does all: counts, a scan over experts, places in ascending order of rows.
GK_KERNEL void group_rows_kernel(GroupRowsArgs a) {
    gk::let_next_start(), gk::wait_for_previous();
    auto* next = reinterpret_cast<uint32_t*>(gk::shared());  // [experts_most] rows of an expert, then its first place
    const int64_t assignments = a.rows * a.k;
    each_column(a.experts, [&](int64_t i) { next[i] = 0; });
    each_column(a.places, [&](int64_t i) { a.sources[i] = -1; });
    gk::sync();
    each_column(assignments, [&](int64_t i) { gk::add_shared(next + a.ids[i], 1u); });
    gk::sync();
    if (gk::thread() == 0) {
        int64_t used = 0, place = 0;
        for (int64_t expert = 0; expert < a.experts; expert++) {
            if (next[expert] == 0) continue;
            a.regions[used] = {int32_t(expert), int32_t(place), int32_t(next[expert])};
            const int64_t stop = round_up(place + next[expert], region_rows);
            next[expert] = uint32_t(place);
            for (; place < stop; place += region_rows) a.tiles[place / region_rows] = int32_t(used);
            used++;
        }
        for (; place < a.places; place += region_rows) a.tiles[place / region_rows] = -1;
        for (; used < a.region_count; used++) a.regions[used] = {-1, 0, 0};
    }
    gk::sync();
    each_column(a.experts, [&](int64_t expert) {  // each thread its own experts, their rows in order
        for (int64_t i = 0; i < assignments; i++) {
            if (a.ids[i] != expert) continue;
            a.place_of[i] = int32_t(next[expert]++);
            a.sources[a.place_of[i]] = int32_t(i / a.k);
        }
    });
}
