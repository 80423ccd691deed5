// Routing and combining of experts (experts.h), over the vocabulary of vec_*.h.

#include "choose.inl"

// scores = e^(x - largest), not yet divided by their sum.
INLINE float softmax_scores(const float* x, int64_t n, float* scores) {
    vec best = set1(-infinity);
    each(0, n, [&](int64_t i, auto count) { best = max(keep(load(x + i, count), count, set1(-infinity)), best); });
    const vec largest = set1(reduce_max(best));
    vec sums = zero();
    each(0, n, [&](int64_t i, auto count) {
        const vec e = exp(load(x + i, count) - largest);
        sums = sums + keep(e, count, zero());
        store(scores + i, e, count);
    });
    return reduce_add(sums);
}

void route(const RouteArgs& a, int64_t begin, int64_t end) {
    alignas(64) float scores[experts_most], choice[experts_most];
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.logits + r * a.experts;
        int32_t* ids = a.ids + r * a.k;
        if (a.scoring == Scoring::sigmoid) {
            each(0, a.experts, [&](int64_t i, auto count) {
                const vec score = sigmoid_times(set1(1.0f), load(x + i, count));
                store(scores + i, score, count);
                store(choice + i, a.correction ? score + load(a.correction + i, count) : score, count);
            });
        } else {  // logits have the order of what is made of them
            const float total = softmax_scores(x, a.experts, scores);
            const vec divisor = set1(a.scoring == Scoring::softmax ? total : 1.0f);
            each(0, a.experts, [&](int64_t i, auto count) { store(scores + i, load(scores + i, count) / divisor, count); });
        }
        choose_experts(a, a.scoring == Scoring::sigmoid ? choice : x, ids);
        weigh_experts(a, scores, ids, a.weights + r * a.k);
    }
}

void combine(const CombineArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float* residual = a.residual ? a.residual + r * a.dim : nullptr;
        each(0, a.dim, [&](int64_t i, auto count) {
            vec sum = residual ? load(residual + i, count) : zero();
            for (int64_t j = 0; j < a.k; j++) {
                const int64_t place = a.place_of ? a.place_of[r * a.k + j] : r;
                sum = fma(set1(a.weights[r * a.k + j]), load(a.y + place * a.dim + i, count), sum);
            }
            store(a.out + r * a.dim + i, sum, count);
        });
    }
}
