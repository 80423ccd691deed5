// What is done with logits: see ops.h.
#include "ops_check.h"

namespace genkit {
namespace {

void check_logits(const char* op, const char* name, const Tensor& t) {
    check_f32(op, name, t, {-1, -1});
    check_contiguous(op, name, t);
    if (t.dim(1) > most_logits)
        fail(op, std::string(name) + " is " + t.shape_text() + "; a row has at most " + std::to_string(most_logits) + " elements");
}

// Kept by each thread that calls: getting fresh memory from the system takes longer than the draw. A plan has its own.
Tensor scratch_for(int64_t rows, int64_t dim) {
    const int64_t bytes = scratch_slots(rows) * scratch_bytes(dim);
    if (Plan::recording() || device_in_use() != Device::cpu) return Tensor({bytes}, DType::u8);
    static thread_local Tensor kept({0}, DType::u8);
    if (bytes <= kept.count()) return kept;
    Tensor fresh({bytes}, DType::u8);
    kept = fresh;
    return fresh;
}

}  // namespace

Tensor argmax(const Tensor& x) {
    check_f32("argmax", "x", x, {-1, -1});
    check_contiguous("argmax", "x", x);
    Tensor out({x.dim(0)}, DType::i32);
    ArgmaxArgs a{x.data<float>(), out.data<int32_t>(), x.dim(1)};
    submit(kernels().argmax, a, x.dim(0), 1);
    return out;
}

Tensor nonfinite(const Tensor& x) {
    check_f32("nonfinite", "x", x, {-1, -1});
    check_contiguous("nonfinite", "x", x);
    Tensor out({x.dim(0)}, DType::i32);
    NonfiniteArgs a{x.data<float>(), out.data<int32_t>(), x.dim(1)};
    submit(kernels().nonfinite, a, x.dim(0), 1);
    return out;
}

std::pair<Tensor, Tensor> top_k(const Tensor& x, int64_t k) {
    const char* op = "top_k";
    check_logits(op, "x", x);
    if (k < 1 || k > x.dim(1)) fail(op, "k is " + std::to_string(k) + " for x " + x.shape_text());
    Tensor values({x.dim(0), k}, DType::f32), ids({x.dim(0), k}, DType::i32);
    Tensor scratch = scratch_for(x.dim(0), x.dim(1));
    TopKArgs a{x.data<float>(), values.data<float>(), ids.data<int32_t>(), scratch.bytes(), x.dim(0), x.dim(1), k};
    submit(kernels().top_k, a, scratch_slots(x.dim(0)), 1);
    return {values, ids};
}

void bias_(const Tensor& logits, const Tensor& ids, const Tensor& values) {
    const char* op = "bias_";
    check_f32(op, "logits", logits, {-1, -1});
    check_contiguous(op, "logits", logits);
    const int64_t count = ids.rank() == 1 ? ids.dim(0) : -1;
    check_vector(op, "ids", ids, DType::i32, count);
    check_vector(op, "values", values, DType::f32, count);
    check_range(op, "ids", ids, logits.dim(1));
    BiasArgs a{logits.data<float>(), ids.data<int32_t>(), values.data<float>(), logits.dim(1), count};
    submit(kernels().bias, a, logits.dim(0), 1);
}

namespace {

// Of `rows`; what the host knows of them is looked at.
HistoryTable history_of(const char* op, const Tensor& entries, const Tensor& lengths, int64_t rows) {
    check_dtype(op, "entries", entries, {DType::i32});
    check_shape(op, "entries", entries, {rows, 3, -1});
    check_contiguous(op, "entries", entries);
    check_vector(op, "lengths", lengths, DType::i32, rows);
    const int64_t capacity = entries.dim(2);
    check_range(op, "lengths", lengths, capacity + 1);
    return {entries.data<int32_t>(), lengths.data<int32_t>(), capacity};
}

}  // namespace

void penalize_(const Tensor& logits, const Tensor& entries, const Tensor& lengths, float repetition, float presence, float frequency) {
    const char* op = "penalize_";
    check_f32(op, "logits", logits, {-1, -1});
    check_contiguous(op, "logits", logits);
    const int64_t rows = logits.dim(0), dim = logits.dim(1);
    const HistoryTable history = history_of(op, entries, lengths, rows);
    const int32_t *table = entries.host<int32_t>(), *in_use = lengths.host<int32_t>();
    for (int64_t r = 0; r < rows && table && in_use && !Plan::recording(); r++)
        check_values(op, "ids", table + r * 3 * history.capacity, in_use[r], dim);
    check_finite(op, "repetition", repetition);
    check_finite(op, "presence", presence);
    check_finite(op, "frequency", frequency);
    if (repetition <= 0) fail(op, "repetition is " + std::to_string(repetition) + "; expected more than 0");
    PenaltyArgs a{logits.data<float>(), history, dim, repetition, presence, frequency};
    submit(kernels().penalty, a, rows, grain_for(elements_a_piece, history.capacity));
}

void remember_(const Tensor& tokens, const Tensor& entries, const Tensor& lengths, const Tensor& recent, const Tensor& next) {
    const char* op = "remember_";
    const int64_t rows = tokens.rank() == 1 ? tokens.dim(0) : -1;
    check_vector(op, "tokens", tokens, DType::i32, rows);
    const HistoryTable history = history_of(op, entries, lengths, rows);
    check_dtype(op, "recent", recent, {DType::i32});
    check_shape(op, "recent", recent, {rows, -1});
    check_contiguous(op, "recent", recent);
    check_vector(op, "next", next, DType::i32, rows);
    const int64_t window = recent.dim(1);
    if (window > 0) check_range(op, "next", next, window);
    RememberArgs a{tokens.data<int32_t>(), history, recent.data<int32_t>(), next.data<int32_t>(), window};
    submit(kernels().remember, a, rows, grain_for(elements_a_piece, history.capacity));
}

namespace {

Tensor sample_into(const Tensor& logits, const Tensor& sequences, const Tensor& positions, float temperature, int64_t top_k,
                   float top_p, float min_p, uint64_t seed, bool finite_only, int32_t* nonfinite) {
    const char* op = "sample";
    check_logits(op, "logits", logits);
    int64_t rows = logits.dim(0), dim = logits.dim(1);
    check_vector(op, "sequences", sequences, DType::i64, rows);
    check_vector(op, "positions", positions, DType::i64, rows);
    if (!(temperature >= 0) || !std::isfinite(temperature) || top_k < 0 || !(top_p > 0 && top_p <= 1) ||
        !(min_p >= 0 && min_p <= 1))
        fail(op, "temperature " + std::to_string(temperature) + ", top_k " + std::to_string(top_k) + ", top_p " +
                     std::to_string(top_p) + ", min_p " + std::to_string(min_p) + " are out of range");
    Tensor tokens({rows}, DType::i32);
    Tensor scratch = scratch_for(temperature > 0 ? rows : 0, dim);
    SampleArgs a{logits.data<float>(), sequences.data<int64_t>(), positions.data<int64_t>(), tokens.data<int32_t>(),
                 scratch.bytes(), rows, dim, top_k, seed, temperature, top_p, min_p, finite_only, nonfinite};
    submit(kernels().sample, a, scratch_slots(rows), 1);
    return tokens;
}

}  // namespace

Tensor sample(const Tensor& logits, const Tensor& sequences, const Tensor& positions, float temperature, int64_t top_k,
              float top_p, float min_p, uint64_t seed, bool finite_only) {
    return sample_into(logits, sequences, positions, temperature, top_k, top_p, min_p, seed, finite_only, nullptr);
}

std::pair<Tensor, Tensor> sample_counted(const Tensor& logits, const Tensor& sequences, const Tensor& positions, float temperature,
                                         int64_t top_k, float top_p, float min_p, uint64_t seed, bool finite_only) {
    check_logits("sample_counted", "logits", logits);
    const bool counts = kernels().sample_counts;
    Tensor counted = counts ? Tensor({logits.dim(0)}, DType::i32) : nonfinite(logits);
    Tensor tokens = sample_into(logits, sequences, positions, temperature, top_k, top_p, min_p, seed, finite_only,
                                counts ? counted.data<int32_t>() : nullptr);
    return {tokens, counted};
}

}  // namespace genkit
