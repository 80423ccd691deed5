#include "plan.h"

#include "loop.h"

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

std::shared_ptr<Plan> Plan::record(const std::function<void()>& body, const Plan* beside) {
    if (plan_being_recorded != nullptr) throw std::invalid_argument("[record] a plan is being recorded already");
    std::shared_ptr<Plan> plan(new Plan);
    if (beside != nullptr && beside->device_ != plan->device_)
        throw std::invalid_argument(std::string("[record] a plan for ") + device_name(plan->device_) + " beside one for " +
                                    device_name(beside->device_));
    if (beside != nullptr) plan->arena_->share(*beside->arena_);
    {
        Recording recording(plan.get());
        Arena::Scope scope(plan->arena_.get());
        body();
    }
    plan->arena_->close();
    if (plan->device_ == Device::cpu) plan->list_ = std::make_unique<WorkList>(std::move(plan->works_));
    else plan->graph_ = plan->make_graph(nullptr);
    return plan;
}

// The step and the kernel that goes on to the next one, as one graph, and what they share with the host.
struct Plan::Loop {
    explicit Loop(const Rows& of) : rows(of) {}
    ~Loop() {
        if (graph != nullptr) device_plugin().graph_release(graph);
        if (ring != nullptr) device_plugin().unshare(ring);
    }
    const Rows rows;
    int64_t stop_room = 0;
    int64_t steps = 0;  // the host has read
    std::shared_ptr<char> state;
    void* graph = nullptr;
    char* ring = nullptr;
};

Plan::~Plan() {
    loop_.reset();
    if (graph_ != nullptr) device_plugin().graph_release(graph_);
}

void* Plan::make_graph(const AdvanceArgs* last) const {
    const DevicePlugin& device = device_plugin();
    check_device("recording a plan", device.graph_begin());
    for (const Work& work : works_) work.fn(work.context, 0, work.units);
    if (last != nullptr) device.advance(*last);
    const char* error = nullptr;
    void* graph = device.graph_end(&error);
    check_device("recording a plan", error);
    check_device("recording a plan", device.check());
    return graph;
}

Plan::Loop& Plan::loop(const Rows& rows, int64_t stops) {
    const AdvanceArgs args{rows.token_ids.data<int32_t>(), rows.positions.data<int32_t>(), rows.draw_positions.data<int64_t>(),
                           rows.tokens.data<int32_t>(), rows.nonfinite.data<int32_t>(), rows.token_ids.count(), nullptr, nullptr, 0};
    if (loop_ != nullptr) {
        const Rows& now = loop_->rows;
        if (now.token_ids.data<int32_t>() == args.token_ids && now.positions.data<int32_t>() == args.positions &&
            now.draw_positions.data<int64_t>() == args.draw_positions && now.tokens.data<int32_t>() == args.tokens &&
            now.nonfinite.data<int32_t>() == args.nonfinite && now.token_ids.count() == args.rows && stops <= loop_->stop_room)
            return *loop_;
    }
    loop_.reset();
    auto made = std::make_shared<Loop>(rows);
    for (made->stop_room = 8; made->stop_room < stops;) made->stop_room *= 2;
    made->state = allocate_on_device(size_t(loop_state_bytes(made->stop_room)), false);
    made->ring = static_cast<char*>(device_plugin().share(size_t(ring_bytes(args.rows))));
    if (made->ring == nullptr) throw std::bad_alloc();
    AdvanceArgs last = args;
    last.state = reinterpret_cast<LoopState*>(made->state.get());
    last.ring = made->ring;
    last.stop_room = made->stop_room;
    made->graph = make_graph(&last);
    loop_ = std::move(made);
    return *loop_;
}

void Plan::run() {
    check_ranges();
    if (device_ == Device::cpu) return list_->run();
    if (device_in_use() != device_) throw std::invalid_argument(std::string("a plan for ") + device_name(device_) + ", replayed on " + device_name(device_in_use()));
    arena_->send_inputs();
    check_device("running a plan", device_plugin().graph_run(graph_));
}

void Plan::add(RangeFunction fn, const void* context, size_t bytes, int64_t units, int64_t grain) {
    if (units <= 0) return;
    auto copy = std::make_unique<std::max_align_t[]>((bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t));
    std::memcpy(copy.get(), context, bytes);
    works_.push_back({fn, copy.get(), units, grain});
    contexts_.push_back(std::move(copy));
}

void Plan::add_range(const char* op, const char* name, const Tensor& values, int64_t limit) {
    if (arena_->owns(values) || values.host<int32_t>() == nullptr) return;
    values.bytes();  // kept alive
    const Range range{op, name, values.host<int32_t>(), values.count(), limit};
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
    run();
}

std::vector<int32_t> Plan::decode(const Rows& rows, int64_t live, const std::vector<int32_t>& stop_ids, int64_t count, double seconds) {
    const int64_t n = rows.token_ids.rank() == 1 ? rows.token_ids.dim(0) : 0;
    if (n < 1) throw std::invalid_argument("[decode] token_ids is " + rows.token_ids.shape_text() + "; expected [rows] i32");
    check_row_tensor("token_ids", rows.token_ids, DType::i32, n);
    check_row_tensor("positions", rows.positions, DType::i32, n);
    check_row_tensor("draw_positions", rows.draw_positions, DType::i64, n);
    check_row_tensor("tokens", rows.tokens, DType::i32, n);
    check_row_tensor("nonfinite", rows.nonfinite, DType::i32, n);
    if (live < 1 || live > n) throw std::invalid_argument("[decode] live is " + std::to_string(live) + "; expected 1 to " + std::to_string(n));
    auto* ids = reinterpret_cast<int32_t*>(rows.token_ids.lend());
    auto* positions = reinterpret_cast<int32_t*>(rows.positions.lend());
    auto* draw_positions = reinterpret_cast<int64_t*>(rows.draw_positions.lend());
    if (!ids || !positions || !draw_positions) throw std::invalid_argument("[decode] ids and positions are to be the host's");
    std::vector<int32_t> tokens(static_cast<size_t>(n)), nonfinite(static_cast<size_t>(n));

    std::lock_guard<std::mutex> lock(turn_);
    if (device_ != Device::cpu && stop_ids.size() <= size_t(loop_stop_ids)) return decode_ahead(rows, live, stop_ids, count, seconds);
    using clock = std::chrono::steady_clock;
    const clock::time_point start = clock::now();
    std::vector<int32_t> taken;
    for (int64_t step = 0; step < count; step++) {
        run();
        rows.tokens.fetch(tokens.data());
        rows.nonfinite.fetch(nonfinite.data());
        bool stop = false;
        for (int64_t r = 0; r < live; r++) {
            const int32_t token = tokens[size_t(r)];
            if (nonfinite[size_t(r)] != 0 || token < 0) return taken;
            stop = stop || std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
        }
        for (int64_t r = 0; r < live; r++) {
            taken.push_back(tokens[size_t(r)]);
            ids[r] = tokens[size_t(r)];
            positions[r]++;
            draw_positions[r]++;
        }
        if (stop || std::chrono::duration<double>(clock::now() - start).count() > seconds) break;
    }
    return taken;
}

std::vector<int32_t> Plan::decode_ahead(const Rows& rows, int64_t live, const std::vector<int32_t>& stop_ids, int64_t count, double seconds) {
    if (device_in_use() != device_) throw std::invalid_argument(std::string("a plan for ") + device_name(device_) + ", replayed on " + device_name(device_in_use()));
    const DevicePlugin& device = device_plugin();
    auto* ids = reinterpret_cast<int32_t*>(rows.token_ids.lend());
    auto* positions = reinterpret_cast<int32_t*>(rows.positions.lend());
    auto* draw_positions = reinterpret_cast<int64_t*>(rows.draw_positions.lend());
    check_ranges();
    Loop& loop = this->loop(rows, int64_t(stop_ids.size()));
    const LoopState begin{loop.steps, 0, live};
    std::vector<char> state(size_t(loop_state_bytes(loop.stop_room)), char(0xff));  // -1
    std::memcpy(state.data(), &begin, sizeof begin);
    if (!stop_ids.empty()) std::memcpy(state.data() + sizeof begin, stop_ids.data(), stop_ids.size() * sizeof(int32_t));
    check_device("copying to the device", device.upload(loop.state.get(), state.data(), state.size()));
    arena_->send_inputs();

    // The host's copy of the positions is that of the step checked last; at the end that of the step that comes next.
    int64_t at = 0;
    auto move_to = [&](int64_t step) {
        for (int64_t r = 0; r < live; r++) positions[r] += int32_t(step - at), draw_positions[r] += step - at;
        at = step;
    };
    auto in_range = [&](int64_t step) {
        move_to(step);
        try {
            check_ranges();
        } catch (const std::invalid_argument&) {
            return false;
        }
        return true;
    };
    std::vector<int32_t> taken;
    std::vector<uint64_t> words(static_cast<size_t>(live));  // of a step
    int64_t sent = 0, read = 0;
    const auto start = std::chrono::steady_clock::now();
    bool within = true, late = false, ended = false;
    try {
        while (!ended) {
            while (!late && sent < count && sent - read < loop_ahead) {
                if (!(within = in_range(sent))) break;
                check_device("running a plan", device.graph_run(loop.graph));
                sent++;
            }
            if (read == sent) break;
            const int64_t step = loop.steps + 1;
            const auto* place = reinterpret_cast<const uint64_t*>(loop.ring + ring_place(step, rows.token_ids.count()));
            int64_t come = 0;  // rows
            auto filled = [&] {
                while (come < live && ring_word_is_of(words[size_t(come)] = __atomic_load_n(place + come, __ATOMIC_ACQUIRE), step)) come++;
                return come == live;
            };
            for (int looks = 1; !filled(); looks++) {
                if (looks % 64 != 0) continue;
                bool idle = false;
                check_device("running a plan", device.progress(&idle));
                if (idle && !filled()) check_device("running a plan", "it has ended without its tokens");
            }
            loop.steps++;
            for (uint64_t word : words) ended = ended || ring_word_nonfinite(word) || int32_t(word) < 0;
            if (ended) break;
            for (int64_t r = 0; r < live; r++) {
                ids[r] = int32_t(words[size_t(r)]);
                ended = ended || std::find(stop_ids.begin(), stop_ids.end(), ids[r]) != stop_ids.end();
            }
            taken.insert(taken.end(), ids, ids + live);
            read++;
            late = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > seconds;
        }
    } catch (...) {
        move_to(read);
        loop_.reset();  // its steps may have come further than the host knows
        throw;
    }
    move_to(read);
    if (!ended && !late && !within) check_ranges();  // throws, as the step would
    return taken;
}

}  // namespace genkit
