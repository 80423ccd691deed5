#include "plan.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

namespace genkit {
namespace {

thread_local Plan* plan_being_recorded = nullptr;

struct Recording {
    explicit Recording(Plan* plan) { plan_being_recorded = plan; }
    ~Recording() { plan_being_recorded = nullptr; }
};

void check_row_tensor(const char* name, const Tensor& t, DType dtype, int64_t rows) {
    if (t.dtype() != dtype || t.rank() != 1 || t.dim(0) != rows)
        throw std::invalid_argument(std::string("[decode] ") + name + " is " + t.shape_text() + "; expected [" +
                                    std::to_string(rows) + "] " + dtype_name(dtype));
}

}  // namespace

void check_values(const char* op, const char* name, const int32_t* values, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; i++)
        if (values[i] < 0 || values[i] >= limit)
            throw std::invalid_argument(std::string("[") + op + "] " + name + "[" + std::to_string(i) + "] is " +
                                        std::to_string(values[i]) + "; expected 0 to " + std::to_string(limit - 1));
}

Plan* Plan::recording() { return plan_being_recorded; }

std::shared_ptr<Plan> Plan::record(const std::function<void()>& body) {
    if (plan_being_recorded != nullptr) throw std::invalid_argument("[record] a plan is being recorded already");
    std::shared_ptr<Plan> plan(new Plan);
    {
        Recording recording(plan.get());
        Arena::Scope scope(plan->arena_.get());
        body();
    }
    plan->arena_->close();
    plan->list_ = std::make_unique<WorkList>(std::move(plan->works_));
    return plan;
}

void Plan::add(RangeFunction fn, const void* context, size_t bytes, int64_t units, int64_t grain) {
    if (units <= 0) return;
    auto copy = std::make_unique<std::max_align_t[]>((bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t));
    std::memcpy(copy.get(), context, bytes);
    works_.push_back({fn, copy.get(), units, grain});
    contexts_.push_back(std::move(copy));
}

void Plan::add_range(const char* op, const char* name, const Tensor& values, int64_t limit) {
    if (arena_->owns(values)) return;
    const Range range{op, name, values.data<int32_t>(), values.count(), limit};
    check_values(op, name, range.values, range.count, limit);
    auto same = [&](const Range& r) {
        return r.values == range.values && r.count == range.count && r.limit == range.limit;
    };
    if (std::none_of(ranges_.begin(), ranges_.end(), same)) ranges_.push_back(range);
}

void Plan::check_ranges() const {
    for (const Range& r : ranges_) check_values(r.op, r.name, r.values, r.count, r.limit);
}

void Plan::replay() {
    std::lock_guard<std::mutex> lock(turn_);
    check_ranges();
    list_->run();
}

std::vector<int32_t> Plan::decode(const Rows& rows, const std::vector<int32_t>& stop_ids, int64_t count, double seconds) {
    const int64_t n = rows.token_ids.rank() == 1 ? rows.token_ids.dim(0) : 0;
    if (n < 1) throw std::invalid_argument("[decode] token_ids is " + rows.token_ids.shape_text() + "; expected [rows] i32");
    check_row_tensor("token_ids", rows.token_ids, DType::i32, n);
    check_row_tensor("positions", rows.positions, DType::i32, n);
    check_row_tensor("draw_positions", rows.draw_positions, DType::i64, n);
    check_row_tensor("tokens", rows.tokens, DType::i32, n);
    check_row_tensor("nonfinite", rows.nonfinite, DType::i32, n);
    int32_t* ids = rows.token_ids.data<int32_t>();
    int32_t* positions = rows.positions.data<int32_t>();
    int64_t* draw_positions = rows.draw_positions.data<int64_t>();
    const int32_t* tokens = rows.tokens.data<int32_t>();
    const int32_t* nonfinite = rows.nonfinite.data<int32_t>();

    std::lock_guard<std::mutex> lock(turn_);
    using clock = std::chrono::steady_clock;
    const clock::time_point start = clock::now();
    std::vector<int32_t> taken;
    for (int64_t step = 0; step < count; step++) {
        check_ranges();
        list_->run();
        bool stop = false;
        for (int64_t r = 0; r < n; r++) {
            if (nonfinite[r] != 0 || tokens[r] < 0) return taken;
            stop = stop || std::find(stop_ids.begin(), stop_ids.end(), tokens[r]) != stop_ids.end();
        }
        for (int64_t r = 0; r < n; r++) {
            taken.push_back(tokens[r]);
            ids[r] = tokens[r];
            positions[r]++;
            draw_positions[r]++;
        }
        if (stop || std::chrono::duration<double>(clock::now() - start).count() > seconds) break;
    }
    return taken;
}

}  // namespace genkit
