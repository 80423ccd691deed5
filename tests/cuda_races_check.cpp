// Some kernels of cuda/ under cuda_races.h: cuda_races_check SEED [part]. Prints the races found, a line each: the kernel, what, and the two
// places in the program; exit 1 where there are any.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string_view>

#include "../cpp/kernels.h"
#include "../cpp/loop.h"
#include "../cuda/gk.h"

// Which kernels of launch.inl are compiled: by name, and by what the template that starts them has for parameters.
constexpr bool has_kernel(std::string_view kernel, std::string_view within) {
    auto has = [&](std::string_view x) { return within.find(x) != within.npos; };
    auto is = [&](std::string_view x) { return kernel.find(x) != kernel.npos; };
    if (is("packed_few_kernel")) return has("int4_two_level") && has("rows = 4");
    if (is("packed_many_kernel")) return has("int4_two_level");
    if (is("attention_rows_kernel")) return has("blocks32 = 2") && (has("::i8") || has("::bf16")) && is(", true>");
    return is("sample_") || is("penalty") || is("remember") || is("advance");
}
template <bool has, class Body>
void start(const char* kernel, int64_t grid_x, int64_t grid_y, int threads, int shared_bytes, Body body) {
    if constexpr (has) {
        races::begin_kernel(kernel);
        gk::launch_kernel(grid_x, grid_y, threads, shared_bytes, [&] { body(0); });
    } else {
        throw std::runtime_error(std::string("a kernel that is not here: ") + kernel);
    }
}
// auto: or the kernel would be compiled all the same.
#define GK_LAUNCH(kernel, grid_x, grid_y, threads, shared_bytes, ...) \
    start<has_kernel(#kernel, __PRETTY_FUNCTION__)>(#kernel, grid_x, grid_y, threads, shared_bytes, [&](auto) { kernel(__VA_ARGS__); })

namespace genkit {
namespace {

#include "../cuda/kernels.inl"
#include "../cuda/loop.inl"

// The device's memory: of a problem, given out anew for the next one.
constexpr size_t memory_bytes = size_t(96) << 20;
char* const memory = static_cast<char*>(std::aligned_alloc(256, memory_bytes));
size_t used = 0;
template <class T>
T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(memory + used);
    if ((used += (size_t(count) * sizeof(T) + 255) / 256 * 256) > memory_bytes) throw std::runtime_error("no memory");
    return p;
}

Workspace space{};
Workspace workspace() { return space; }
std::mt19937_64 rng;
int64_t below(int64_t n) { return int64_t(rng() % uint64_t(n)); }
float normal() { return std::normal_distribution<float>(0, 1)(rng); }
template <class T>
T* drawn(int64_t count, int64_t most) {
    T* p = take<T>(count);
    for (int64_t i = 0; i < count; i++) p[i] = T(below(most));
    return p;
}
float* normals(int64_t count) {
    float* p = take<float>(count);
    for (int64_t i = 0; i < count; i++) p[i] = normal();
    return p;
}

void begin_problem() {
    used = 0;
    space = {take<uint32_t>(workspace_counters), take<char>(workspace_bytes), 2 + below(3)};
    memset(space.counters, 0, workspace_counters * sizeof(uint32_t));
    races::memory(memory, memory_bytes);
}

bool loose = false, cut = false;  // whether some product of many rows was: its warps are apart, or cut k

void packed(int64_t rows, int64_t panels, int64_t k, int64_t processors) {
    begin_problem();
    space.processors = processors;
    const WeightFormat format{Packing::int4_two_level, 256, Zero::none, DType::f16};
    const int64_t n = 32 * panels, depth = round_up(k, 64), blocks = (k + 255) / 256;
    const PackedLinearArgs a{drawn<int8_t>(rows * depth, 256), normals(rows * blocks), drawn<int16_t>(rows * depth / sum_depth(format), 999),
                             drawn<uint8_t>(panels * panel_bytes(format, k), 256), normals(n), nullptr, take<float>(rows * n), rows, n, k,
                             depth, n, format, false, Activation::silu};
    if (rows > 2 * few_rows_most) {
        const ManyPlan p = many_plan(a, panels, processors, space.shared);
        loose |= many_cuts(p.way) == 1 && p.stages == many_stages_most, cut |= many_cuts(p.way) > 1;
    }
    packed_linear(a, 0, panels);
}

void keys(DType dtype, int64_t rows, int64_t longest) {
    begin_problem();
    const int64_t kv_heads = 1 + below(2), group = 1 + below(9), heads = kv_heads * group, dim = 64, max_pages = longest / page_keys + 1;
    const int64_t pages = rows * max_pages, scalars = pages * kv_heads * page_keys, bytes = scalars * dim * (dtype == DType::i8 ? 1 : 2);
    auto* table = take<int32_t>(pages);
    auto *sequences = take<int32_t>(rows), *positions = drawn<int32_t>(rows, longest);
    for (int64_t i = 0; i < pages; i++) table[i] = int32_t(pages - 1 - i);
    for (int64_t r = 0; r < rows; r++) sequences[r] = int32_t(r);
    KvPages place{take<char>(bytes), take<char>(bytes), normals(scalars), normals(scalars), table, sequences, positions, kv_heads, pages, dim,
                  max_pages, dtype, true};
    memset(place.k, 1, size_t(bytes)), memset(place.v, 1, size_t(bytes));
    const AttentionArgs a{normals(rows * heads * dim), nullptr, nullptr, take<float>(rows * heads * dim), nullptr, place, rows, heads,
                          heads * dim, heads * dim, 0, 1, 1, 0.125f, 0.0f};
    attention(a, 0, rows * kv_heads);
}

void draws(int64_t rows, int64_t dim, float temperature, int64_t k, float top_p) {
    begin_problem();
    float* x = normals(rows * dim);
    for (int64_t i = 0; i < dim; i++) x[i] = roundf(x[i] * 4);  // equals
    const SampleArgs a{x, drawn<int64_t>(rows, 99), drawn<int64_t>(rows, 99), take<int32_t>(rows), nullptr, rows, dim, k,
                       uint64_t(below(1 << 30)), temperature, top_p, 0.0f, false, take<int32_t>(rows)};
    sample(a, 0, scratch_slots(rows));
}

// Steps of the token loop beside its model: penalties, what was drawn into the table, what is fed next.
void steps(int64_t rows, int64_t capacity, int64_t window, int64_t stop_room) {
    begin_problem();
    const int64_t dim = capacity + 5;
    const HistoryTable history{drawn<int32_t>(rows * 3 * capacity, dim), drawn<int32_t>(rows, capacity), capacity};
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < capacity; i++) history.entries[r * 3 * capacity + i] = int32_t(i);  // distinct ids
    auto* tokens = drawn<int32_t>(rows, dim);
    auto* state = reinterpret_cast<LoopState*>(take<char>(loop_state_bytes(stop_room)));
    *state = {0, 0, rows - rows / 3};
    for (int64_t i = 0; i < stop_room; i++) reinterpret_cast<int32_t*>(state + 1)[i] = -1;
    const RememberArgs told{tokens, history, drawn<int32_t>(rows * window, 2 * dim), drawn<int32_t>(rows, std::max<int64_t>(window, 1)), window};
    const PenaltyArgs adjusted{normals(rows * dim), history, dim, 1.3f, 0.5f, 0.25f};
    const AdvanceArgs next{take<int32_t>(rows), drawn<int32_t>(rows, 99), drawn<int64_t>(rows, 99), tokens, drawn<int32_t>(rows, 1), rows,
                           state, take<char>(ring_bytes(rows)), stop_room};
    for (int step = 0; step < 3; step++) penalty(adjusted, 0, rows), remember(told, 0, rows), advance(next);
}

}  // namespace
}  // namespace genkit

int main(int count, char** words) {
    using namespace genkit;
    rng.seed(count > 1 ? strtoull(words[1], nullptr, 10) : 1);
    const std::string part = count > 2 ? words[2] : "";
    if (part.empty() || part == "packed") {
        packed(3, 3 + below(5), 500 + below(2000), 2), packed(4, 2, 2048, 3);
        packed(17 + below(9), 2, 1024 + below(900), 1), packed(100, 16, 1600, 3), packed(33, 3, 2048, 4);
        if (!loose || !cut) throw std::runtime_error("a way of many rows was not taken");
    }
    if (part.empty() || part == "keys")
        for (DType dtype : {DType::bf16, DType::i8}) keys(dtype, 1 + below(4), 60 + below(300)), keys(dtype, 2, 1500);
    if (part.empty() || part == "draws") {
        draws(2, 5000 + below(3000), 0.8f, 40, 1.0f), draws(2, 3000, 0.9f, 0, 0.7f), draws(1, 4100, 0.7f, 400, 0.9f);
        draws(3, 2500, 0.8f, 0, 1.0f), draws(2, 9000, 0.0f, 0, 1.0f);
    }
    if (part.empty() || part == "steps") steps(5, 300 + below(1000), 40, 3), steps(40, 12, 1, 0), steps(3, 2100, 0, 300);
    for (const races::Found& f : races::found) printf("%s | %s | %#lx %#lx\n", f.kernel.c_str(), f.what.c_str(), long(f.now), long(f.before));
    return races::found.empty() ? 0 : 1;
}
