// Which experts a row goes to, by its scores; written once so that all tiers choose alike. Included inside a tier's
// anonymous namespace.
#ifndef HOST_DEVICE
#define HOST_DEVICE  // nvcc's word for functions that run there
#endif

// The best of what is not taken yet, the lowest index among equals, the first one where all that is left is NaN; it is taken.
int64_t take_best(const float* scores, bool* taken, int64_t count) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; i++) {
        if (taken[i]) continue;
        if (best < 0 || scores[i] > scores[best] || (scores[best] != scores[best] && scores[i] == scores[i])) best = i;
    }
    taken[best] = true;
    return best;
}

// ids [k] of a row from `choice`, by which experts are chosen, in the groups that are kept.
void choose_experts(const RouteArgs& a, const float* choice, int32_t* ids) {
    bool taken[experts_most];
    for (int64_t i = 0; i < a.experts; i++) taken[i] = false;
    if (a.groups > 1) {
        const int64_t size = a.experts / a.groups;
        float sums[experts_most];
        bool kept[experts_most];
        for (int64_t group = 0; group < a.groups; group++) {
            const float* scores = choice + group * size;
            bool* seen = taken + group * size;
            const int64_t first = take_best(scores, seen, size);
            sums[group] = scores[first] + (size > 1 ? scores[take_best(scores, seen, size)] : 0.0f);
            kept[group] = false;
        }
        for (int64_t i = 0; i < a.groups_kept; i++) take_best(sums, kept, a.groups);
        for (int64_t i = 0; i < a.experts; i++) taken[i] = !kept[i / size];
    }
    for (int64_t j = 0; j < a.k; j++) ids[j] = int32_t(take_best(choice, taken, a.experts));
}

// A row's weights from the scores of all experts.
HOST_DEVICE void weigh_experts(const RouteArgs& a, const float* scores, const int32_t* ids, float* weights) {
    float sum = a.scoring == Scoring::sigmoid ? 1e-20f : 0.0f;
    for (int64_t j = 0; j < a.k; j++) sum += weights[j] = scores[ids[j]];
    const float factor = a.normalize || a.scoring == Scoring::softmax_chosen ? a.scale / sum : a.scale;
    for (int64_t j = 0; j < a.k; j++) weights[j] *= factor;
}
