// Mixture of experts (experts.h) in plain loops.

#include "choose.inl"

void route(const RouteArgs& a, int64_t begin, int64_t end) {
    float scores[experts_most], choice[experts_most];
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.logits + r * a.experts;
        float largest = -INFINITY, total = 0.0f;
        for (int64_t i = 0; i < a.experts; i++) {
            if (x[i] > largest) largest = x[i];
        }
        for (int64_t i = 0; i < a.experts; i++) {
            scores[i] = a.scoring == Scoring::sigmoid ? 1.0f / (1.0f + expf(-x[i])) : expf(x[i] - largest);
            choice[i] = a.scoring != Scoring::sigmoid ? x[i] : a.correction ? scores[i] + a.correction[i] : scores[i];
            total += scores[i];
        }
        for (int64_t i = 0; i < a.experts && a.scoring == Scoring::softmax; i++) scores[i] /= total;
        choose_experts(a, choice, a.ids + r * a.k);
        weigh_experts(a, scores, a.ids + r * a.k, a.weights + r * a.k);
    }
}

void group_rows(const GroupRowsArgs& a, int64_t, int64_t) {
    const int64_t assignments = a.rows * a.k;
    int32_t next[experts_most] = {};  // rows of an expert, then its next place
    for (int64_t i = 0; i < assignments; i++) next[a.ids[i]]++;
    for (int64_t i = 0; i < a.places; i++) a.sources[i] = -1;
    int64_t used = 0, place = 0;
    for (int64_t expert = 0; expert < a.experts; expert++) {
        if (next[expert] == 0) continue;
        a.regions[used] = {int32_t(expert), int32_t(place), next[expert]};
        const int64_t stop = round_up(place + next[expert], region_rows);
        next[expert] = int32_t(place);
        for (; place < stop; place += region_rows) a.tiles[place / region_rows] = int32_t(used);
        used++;
    }
    for (; place < a.places; place += region_rows) a.tiles[place / region_rows] = -1;
    for (; used < a.region_count; used++) a.regions[used] = {-1, 0, 0};
    for (int64_t i = 0; i < assignments; i++) {
        a.place_of[i] = next[a.ids[i]]++;
        a.sources[a.place_of[i]] = int32_t(i / a.k);
    }
}

void gather_rows(const GatherRowsArgs& a, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
        if (a.sources[p] >= 0) memcpy(a.out + p * a.dim, a.x + a.sources[p] * a.x_stride, size_t(a.dim) * sizeof(float));
    }
}

void combine(const CombineArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        for (int64_t i = 0; i < a.dim; i++) {
            float sum = a.residual ? a.residual[r * a.dim + i] : 0.0f;
            for (int64_t j = 0; j < a.k; j++) {
                const int64_t place = a.place_of ? a.place_of[r * a.k + j] : r;
                sum += a.weights[r * a.k + j] * a.y[place * a.dim + i];
            }
            a.out[r * a.dim + i] = sum;
        }
    }
}
