// One function per op: check the arguments once, allocate the output, submit the kernel. Shapes stand in _core.pyi and
// kernels.h. Every check throws std::invalid_argument with the failing values; kernels trust what gets past.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tensor.h"

namespace genkit {

using OptionalTensor = std::optional<Tensor>;

// An integer weight [n, k] in kernel order: panels u8 [count, bytes] (packed.h).
struct PackedWeight {
    Tensor panels;
    WeightFormat format;
    int64_t n, k;
    bool gated;  // rows are gates then ups, panels hold both: packed_linear gives f(gate) * up
};

using AnyWeight = std::variant<const Tensor*, const PackedWeight*>;

// A weight in row-major codes (WeightCodes): subscales and minima for int4_two_level, zeros where the format has them.
struct RoundedWeight {
    Tensor codes, scales;
    OptionalTensor subscales, minima, zeros;
};

// Where the rows of each expert lie (GroupRowsArgs): regions i32 [count, 3], the others as there.
struct Groups {
    Tensor regions, tiles, sources, place_of;
    int64_t experts;
    int64_t assignments() const;
};

// The weights [n, k] of all experts, of one kind: dense [experts, n, k], or panels u8 [experts, panels, bytes]. Each is set.
struct ExpertWeights {
    explicit ExpertWeights(int64_t count);
    void set(int64_t expert, const Tensor& one);
    void set(int64_t expert, const PackedWeight& one);

    OptionalTensor weights;
    std::optional<WeightFormat> format;
    int64_t experts, n = 0, k = 0;
    bool gated = false;
    std::vector<bool> there;

private:
    void take(const char* op, int64_t expert, const Tensor& one);
};

// Rows of int8 activations (QuantizeArgs).
struct Quantized {
    Tensor codes, scales, sums;
};

Tensor convert(const Tensor& x, DType dtype);
Tensor embedding(const Tensor& ids, const Tensor& table);
Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps);
void rms_norm_heads_(const Tensor& x, const Tensor& weight, float eps);
Tensor layer_norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, float eps);
void layer_norm_heads_(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, float eps);
Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual);
WeightFormat weight_format(const std::string& packing, int64_t group, const std::string& zero, const std::string& scales);
std::string packing_name(const WeightFormat& format);
Quantized quantize(const Tensor& x);
Tensor packed_linear(const Tensor& x, const PackedWeight& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                     const std::string& kind);
// Linears of one input: their outputs side by side, [rows, sum of n]; bias and residual are as wide.
Tensor linears(const Tensor& x, const std::vector<AnyWeight>& weights, const OptionalTensor& bias,
               const OptionalTensor& residual);
PackedWeight quantize_weight(const Tensor& weight, const WeightFormat& format, bool gated);
RoundedWeight round_weight(const Tensor& weight, const WeightFormat& format, bool search, const OptionalTensor& importance);
PackedWeight pack_weight(const Tensor& codes, const Tensor& scales, const OptionalTensor& subscales,
                         const OptionalTensor& minima, const OptionalTensor& zeros, int64_t k, const WeightFormat& format,
                         bool gated);
RoundedWeight unpack_blocks(const Tensor& blocks, const std::string& type);
PackedWeight pack_blocks(const Tensor& blocks, const std::string& type, bool gated);
Tensor unpack(const Tensor& ids, const PackedWeight& weight);
Tensor turn_words(const Tensor& words, int64_t bits, int64_t k, bool down, const OptionalTensor& order);
std::pair<Tensor, Tensor> route(const Tensor& logits, int64_t k, const std::string& scoring, const OptionalTensor& correction,
                                int64_t groups, int64_t groups_kept, bool normalize, float scale);
Groups group_rows(const Tensor& ids, int64_t experts);
Tensor gather_rows(const Tensor& x, const Groups& groups);
Tensor expert_linear(const Tensor& x, const Groups& groups, const ExpertWeights& weights, const OptionalTensor& bias,
                     const std::string& kind);
Tensor combine(const Tensor& y, const Tensor& weights, const std::optional<Groups>& groups, const OptionalTensor& residual);
Tensor rope_table(const Tensor& positions, const Tensor& inv_freq, float scale);
void rope_(const Tensor& x, const Tensor& table, int64_t head_dim, bool interleaved);
void kv_write(const Tensor& k, const Tensor& v, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
              const Tensor& sequences, const Tensor& positions, const OptionalTensor& k_scales,
              const OptionalTensor& v_scales);
void rope_kv_write(const Tensor& x, const Tensor& table, const Tensor& k, const Tensor& v, const Tensor& k_pages,
                   const Tensor& v_pages, const Tensor& page_table, const Tensor& sequences, const Tensor& positions,
                   bool interleaved, const OptionalTensor& k_scales, const OptionalTensor& v_scales);
Tensor attention(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
                 const Tensor& sequences, const Tensor& positions, float scale, int64_t window,
                 const OptionalTensor& alibi_slopes, const OptionalTensor& k_scales, const OptionalTensor& v_scales,
                 float softcap, const OptionalTensor& sinks);
Tensor activation(const Tensor& x, const std::string& kind);
Tensor gated(const Tensor& x, const std::string& kind);
Tensor add(const Tensor& a, const Tensor& b, float scale);
Tensor scale(const Tensor& x, float factor, float softcap);
Tensor gather_columns(const Tensor& x, const Tensor& index, const OptionalTensor& y);
Tensor softmax(const Tensor& x, bool log);
Tensor argmax(const Tensor& x);
Tensor nonfinite(const Tensor& x);
std::pair<Tensor, Tensor> top_k(const Tensor& x, int64_t k);
void bias_(const Tensor& logits, const Tensor& ids, const Tensor& values);
void penalize_(const Tensor& logits, const Tensor& entries, const Tensor& lengths, float repetition, float presence, float frequency);
void remember_(const Tensor& tokens, const Tensor& entries, const Tensor& lengths, const Tensor& recent, const Tensor& next);
Tensor sample(const Tensor& logits, const Tensor& sequences, const Tensor& positions, float temperature, int64_t top_k,
              float top_p, float min_p, uint64_t seed, bool finite_only);
// The same, and nonfinite(logits).
std::pair<Tensor, Tensor> sample_counted(const Tensor& logits, const Tensor& sequences, const Tensor& positions, float temperature,
                                         int64_t top_k, float top_p, float min_p, uint64_t seed, bool finite_only);
void copy_pages(const Tensor& pages, const Tensor& source, const Tensor& target);

// What the machine can do, each the best of a few tries of 17 ms. Bytes a second that so many threads read of a block of
// memory, each a share of its own over and over; multiplications and additions a second of "f32", "bf16" or "int8" on
// registers, as the current tier does them (bf16 in f32 where has_arithmetic says that it cannot); seconds that a
// parallel_for and a phase of a WorkList take in which all threads meet and do nothing.
void make_readable(const Tensor& memory, int64_t threads);  // writes numbers, none of them zero
double read_bandwidth(int64_t bytes, int64_t threads, const OptionalTensor& memory);
bool has_arithmetic(const std::string& kind);
double arithmetic_peak(const std::string& kind, int64_t threads);
std::pair<double, double> barrier_cost(int64_t threads);
// The same of the device in use, a tenth of a second each: bytes read a second, bytes read and written, operations.
double device_read_bandwidth(const Tensor& memory);
double device_copy_bandwidth(const Tensor& from, const Tensor& to);
double device_arithmetic_peak(const std::string& kind);

}  // namespace genkit
