// Mixture of experts: experts.h.

// A block of one warp has a row; scores are made together, the choice is one thread's.
GK_KERNEL void route_kernel(RouteArgs a, int64_t first) {
    auto* scores = reinterpret_cast<float*>(gk::shared());
    float* choice = scores + experts_most;
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
    if (gk::thread() != 0) return;
    choose_experts(a, choice, a.ids + r * a.k);
    weigh_experts(a, scores, a.ids + r * a.k, a.weights + r * a.k);
}

// One block does all: counts, a scan over experts, places in ascending order of rows.
GK_KERNEL void group_rows_kernel(GroupRowsArgs a) {
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
