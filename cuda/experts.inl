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

// One block does all. Assignments are cut in chunks, a warp each: rows of each expert are counted by chunk, a thread an expert finds the
// expert's places and in them those of each chunk, and the warps go through their chunks once more, 32 assignments at a time.
constexpr int group_threads = 1024;
static_assert(group_threads >= experts_most);
// As many as there is room for.
static constexpr int group_chunks(int64_t experts) { return experts <= 256 ? 32 : 8; }
struct GroupPlace {
    uint64_t warps[group_threads / 32];
    uint32_t next[32 * 256];  // [chunks][experts] rows, then the next place
};
static_assert(group_chunks(experts_most) * experts_most <= 32 * 256);

GK_KERNEL void GK_BOUNDS(group_threads, 1) group_rows_kernel(GroupRowsArgs a) {
    gk::let_next_start(), gk::wait_for_previous();
    auto& shared = *reinterpret_cast<GroupPlace*>(gk::shared());
    const int warp = gk::thread() / 32, experts = int(a.experts), assignments = int(a.rows * a.k), k = int(a.k);
    const int size = int(round_up((assignments + group_chunks(experts) - 1) / group_chunks(experts), 32)), chunks = (assignments + size - 1) / size;
    const int begin = min_of(warp * size, assignments), end = min_of(begin + size, assignments);
    uint32_t* own = shared.next + warp * experts;  // of chunk `warp`, where there is one
    for (int i = gk::thread(); i < chunks * experts; i += group_threads) shared.next[i] = 0;
    for (int i = gk::thread(); i < int(a.places); i += group_threads) a.sources[i] = -1;
    gk::sync();
    for (int i = begin + gk::lane(); i < end; i += 32) gk::add_shared(own + a.ids[i], 1u);
    gk::sync();

    const bool is_expert = gk::thread() < experts;
    uint32_t rows = 0;
    for (int c = 0; is_expert && c < chunks; c++) rows += shared.next[c * experts + gk::thread()];
    const int places = int(round_up(rows, region_rows));
    uint64_t sum = uint64_t(rows > 0) << 32 | uint32_t(places);  // regions and places of the experts up to this one
    GK_UNROLL
    for (int d = 1; d < 32; d *= 2) {
        const uint64_t other = gk::shuffle_up(sum, d);
        if (gk::lane() >= d) sum += other;
    }
    if (gk::lane() == 31) shared.warps[warp] = sum;
    gk::sync();
    uint64_t before = sum - (uint64_t(rows > 0) << 32 | uint32_t(places)), all = 0;
    for (int w = 0; w < group_threads / 32; w++) {
        if (w < warp) before += shared.warps[w];
        all += shared.warps[w];
    }
    const int region = int(before >> 32), place = int(uint32_t(before));
    if (rows > 0) a.regions[region] = {gk::thread(), place, int32_t(rows)};
    for (int t = place / int(region_rows); t < (place + places) / int(region_rows); t++) a.tiles[t] = region;
    uint32_t next = uint32_t(place);
    for (int c = 0; is_expert && c < chunks; c++) {
        uint32_t& of_chunk = shared.next[c * experts + gk::thread()];
        const uint32_t count = of_chunk;
        of_chunk = next, next += count;
    }
    const int regions_used = int(all >> 32), tiles_used = int(uint32_t(all)) / int(region_rows);
    for (int i = regions_used + gk::thread(); i < int(a.region_count); i += group_threads) a.regions[i] = {-1, 0, 0};
    for (int i = tiles_used + gk::thread(); i < int(a.places / region_rows); i += group_threads) a.tiles[i] = -1;
    gk::sync();

    for (int first = begin; first < end; first += 32) {
        const int i = first + gk::lane();
        const bool is_there = i < end;
        const uint32_t expert = is_there ? uint32_t(a.ids[i]) : ~0u, alike = gk::match(expert);
        const int ahead = gk::count_bits(alike & ((1u << gk::lane()) - 1));
        const uint32_t at = is_there ? own[expert] + uint32_t(ahead) : 0;
        gk::sync_warp();
        if (is_there && ahead == 0) own[expert] += uint32_t(gk::count_bits(alike));
        gk::sync_warp();
        if (!is_there) continue;
        a.place_of[i] = int32_t(at);
        a.sources[at] = int32_t(uint32_t(i) / uint32_t(k));
    }
}
