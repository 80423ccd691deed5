// A plan: the kernels of one step with their arguments, recorded once from the ops, replayed for every token.
//
// Ops that run inside Plan::record check their arguments and allocate as always, but their kernels are noted instead of
// run. Arguments are addresses, so a replay patches nothing: whatever varies (token ids, positions, page tables) lies
// in small tensors whose contents the caller changes between replays; shapes are fixed. A plan keeps alive every storage
// an op took an address of. What host code writes during the recording is a constant of the plan.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "tensor.h"
#include "threads.h"

namespace genkit {

class Plan {
public:
    // Runs body with recording on for this thread. What body throws goes on, and there is no plan. Intermediates and results lie in
    // memory of `beside`, a plan for the same device, as far as there is enough: neither may run while the other one's results
    // are in use, and body reads none of them.
    static std::shared_ptr<Plan> record(const std::function<void()>& body, const Plan* beside = nullptr);

    // Runs the kernels. Throws std::invalid_argument as the recorded ops would when ids, sequences or positions have
    // come to lie outside what they index. Callers on different threads take turns.
    void replay();
    ~Plan();

    // Tensors of a step that feeds one token to each of `rows` sequences and draws the next ones. Only the first ones, the live
    // rows, need be sequences: whatever the others, padding, draw is dropped, and they are fed the same again.
    struct Rows {
        Tensor token_ids;       // i32 [rows], read by the step
        Tensor positions;       // i32 [rows], read by the step
        Tensor draw_positions;  // i64 [rows], where the drawn tokens will stand: positions + 1
        Tensor tokens;          // i32 [rows], written by the step: what was drawn, -1 where nothing could be
        Tensor nonfinite;       // i32 [rows], written by the step: logits that are NaN or infinite
    };

    // The token loop of the first `live` rows: replays, then makes the drawn tokens the next ones to feed, at most `count` times. Ends early
    // after a step that drew one of stop_ids, after the first one past `seconds`, and before the drawn tokens of a step
    // with logits that are not finite or with nothing to draw are taken: such a step leaves all as it was before.
    // On a device some steps are on their way before the host has read the one ahead of them (loop.h): those past `seconds`
    // are taken too; what follows one that ended the loop changes nothing.
    // Returns the tokens taken, [steps, live].
    std::vector<int32_t> decode(const Rows& rows, int64_t live, const std::vector<int32_t>& stop_ids, int64_t count, double seconds);

    int64_t steps() const { return static_cast<int64_t>(contexts_.size()); }
    int64_t phases() const { return list_ ? static_cast<int64_t>(list_->phases()) : steps(); }
    std::vector<Tensor> arena() const { return arena_->blocks(); }

    // For ops. The plan being recorded on this thread, or null.
    static Plan* recording();
    void add(RangeFunction fn, const void* context, size_t bytes, int64_t units, int64_t grain);
    // Values of an i32 tensor that must be in [0, limit) now and at every replay. Those the plan itself makes, which
    // nobody knows yet, are not checked.
    void add_range(const char* op, const char* name, const Tensor& values, int64_t limit);

private:
    Plan() : arena_(std::make_shared<Arena>(true)), device_(device_in_use()) {}
    void check_ranges() const;
    void* make_graph(const AdvanceArgs* last) const;
    void run();
    struct Loop;
    Loop& loop(const Rows& rows, int64_t stops);
    std::vector<int32_t> decode_ahead(const Rows& rows, int64_t live, const std::vector<int32_t>& stop_ids, int64_t count, double seconds);

    struct Range {
        const char *op, *name;
        const int32_t* values;
        int64_t count, limit;
    };
    std::shared_ptr<Arena> arena_;
    std::vector<std::unique_ptr<std::max_align_t[]>> contexts_;
    std::vector<Range> ranges_;
    std::vector<Work> works_;  // while recording
    std::unique_ptr<WorkList> list_;  // on the processor
    Device device_;
    void* graph_ = nullptr;           // on a device
    std::shared_ptr<Loop> loop_;      // of the rows that were decoded last
    std::mutex turn_;
};

// Throws std::invalid_argument for the first value outside [0, limit).
void check_values(const char* op, const char* name, const int32_t* values, int64_t count, int64_t limit);

}  // namespace genkit
