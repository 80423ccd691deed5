#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace genkit {
namespace {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int spins_before_sleep = 4000;  // about 50 us: longer than the gap between two ops of a token
constexpr int spins_before_yield = 2000;

inline void wait_a_moment(int& spins) {
    if (spins++ < spins_before_yield) pause();
    else std::this_thread::yield();
}

constexpr uint64_t most_pieces = (1 << 16) - 1;

inline void run_whole(const Work& work) { work.fn(work.context, 0, work.units); }

}  // namespace

struct Phase {
    Work work;
    const Work* tail = nullptr;  // [tail, tail_end): works of a single piece that follow
    const Work* tail_end = nullptr;
};

namespace {

// Everybody, the caller too, takes pieces of the open phase by adding 1 to one word, which holds the phase's number, its
// pieces and the next piece; no pieces at all means that there is no job. The thread that finishes the last piece opens
// the next phase. A thread looks at a job only while it holds a piece of it, and a job cannot end meanwhile: so nobody
// waits for a thread that was held up before it took something, however old what it saw is by then.
class Team {
public:
    explicit Team(int64_t workers) {
        try {
            for (int64_t i = 0; i < workers; i++) threads_.emplace_back([this] { work(); });
        } catch (...) {  // the system refused a thread: those that started must end before the error goes on
            end();
            throw;
        }
    }

    ~Team() { end(); }

    void run(const Phase* phases, size_t count) {
        phase_ = phases;
        end_ = phases + count;
        open();
        if (sleepers_.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex_);  // a worker is either before its last look at state_ or asleep
            wake_.notify_all();
        }
        for (int spins = 0;;) {
            const uint64_t state = state_.load(std::memory_order_acquire);
            if (pieces(state) == 0) return;
            if (next(state) < pieces(state)) take_pieces(), spins = 0;
            else wait_a_moment(spins);
        }
    }

private:
    // Number of the phase, 28 bits; pieces, 16; next piece, 20: each thread may go beyond the last one once.
    static constexpr uint64_t pieces_at = 20, number_at = 36;
    static uint64_t pieces(uint64_t state) { return state >> pieces_at & most_pieces; }
    static uint64_t next(uint64_t state) { return state & ((uint64_t{1} << pieces_at) - 1); }

    void end() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_.store(true);
        }
        wake_.notify_all();
        for (auto& t : threads_) t.join();
    }

    // Opens the phase at phase_, or ends the job behind the last one.
    void open() {
        const uint64_t count = phase_ == end_ ? 0 : static_cast<uint64_t>(phase_->work.pieces());
        done_.store(0, std::memory_order_relaxed);
        state_.store(++opened_ << number_at | count << pieces_at);
    }

    // What a piece wrote is seen by the next phase: it is released by its thread's addition to done_, acquired by the
    // addition that completes the phase, and released again with state_.
    void take_pieces() {
        for (uint64_t finished = 0;; finished++) {
            const uint64_t state = state_.fetch_add(1, std::memory_order_acquire);
            if (next(state) >= pieces(state)) {
                if (finished == 0 || done_.fetch_add(finished, std::memory_order_acq_rel) + finished != pieces(state)) return;
                for (const Work* w = phase_->tail; w < phase_->tail_end; w++) run_whole(*w);
                phase_++;
                return open();
            }
            phase_->work.run_piece(place(static_cast<int64_t>(next(state)), static_cast<int64_t>(pieces(state))));
        }
    }

    // Which piece the i-th taken is: one from each thread's share in turn. Threads that keep step so go through memory that
    // lies together, and what they fetch beyond a piece is of use.
    int64_t place(int64_t i, int64_t pieces) const {
        const int64_t threads = static_cast<int64_t>(threads_.size()) + 1, share = pieces / threads;
        return i < share * threads ? i % threads * share + i / threads : i;
    }

    void work() {
        uint64_t seen = 0;
        for (int spins = 0; !stop_.load(std::memory_order_relaxed);) {
            const uint64_t state = state_.load(std::memory_order_acquire);
            if (state != seen) spins = 0;
            seen = state;
            if (next(state) < pieces(state)) {
                take_pieces();
            } else if (pieces(state) > 0) {
                wait_a_moment(spins);
            } else if (spins++ < spins_before_sleep) {
                pause();
            } else {
                std::unique_lock<std::mutex> lock(mutex_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, [&] { return state_.load() != state || stop_.load(); });  // for the next job, if not this one
                sleepers_.fetch_sub(1);
            }
        }
    }

    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<uint64_t> done_{0};  // pieces finished of the open phase
    // The job: touched only by who holds a piece, or finished the last one.
    alignas(64) const Phase* phase_ = nullptr;
    const Phase* end_ = nullptr;
    uint64_t opened_ = 0;
    alignas(64) std::atomic<int64_t> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

std::mutex turn;                      // one job at a time
int64_t wanted = 1;                   // team size
std::unique_ptr<Team> team;           // made on first use, so that importing starts no thread

// A forked child has none of its parent's threads: the team is forgotten (not joined) and made again on use.
void forget_team_in_child() {
    (void)team.release();
    new (&turn) std::mutex();
}

}  // namespace

void set_threads(int64_t count) {
    if (count < 1 || count > 1024)
        throw std::invalid_argument("threads must be from 1 to 1024, not " + std::to_string(count));
    std::lock_guard<std::mutex> lock(turn);
    if (count != wanted) team.reset();
    wanted = count;
}

int64_t get_threads() {
    std::lock_guard<std::mutex> lock(turn);
    return wanted;
}

namespace {

// Call with `turn` held.
void run_on_team(const Phase* phases, size_t count) {
    if (!team) {
        static const int registered = pthread_atfork(nullptr, nullptr, forget_team_in_child);
        (void)registered;
        team = std::make_unique<Team>(wanted - 1);
    }
    team->run(phases, count);
}

// In larger pieces if there would be too many; a multiple of the grain, which the kernel may rely on.
Work countable(Work work) {
    const int64_t most = static_cast<int64_t>(most_pieces), pieces = work.pieces();
    if (pieces > most) work.grain *= (pieces + most - 1) / most;
    return work;
}

}  // namespace

void parallel_for(int64_t units, int64_t grain, RangeFunction fn, const void* context) {
    if (units <= 0) return;
    if (units <= grain) return fn(context, 0, units);
    std::lock_guard<std::mutex> lock(turn);
    if (wanted == 1) return fn(context, 0, units);
    const Phase phase{countable({fn, context, units, grain})};
    run_on_team(&phase, 1);
}

WorkList::WorkList(std::vector<Work> works) : works_(std::move(works)) {
    auto split = [](const Work& w) { return w.units > w.grain; };
    phases_.reset(new Phase[static_cast<size_t>(std::count_if(works_.begin(), works_.end(), split))]);
    for (const Work& w : works_) {
        if (split(w)) {
            phases_[phase_count_].work = countable(w);
            phases_[phase_count_++].tail = &w + 1;
        }
        if (phase_count_ == 0) lead_++;
        else phases_[phase_count_ - 1].tail_end = &w + 1;
    }
}

WorkList::~WorkList() = default;

void WorkList::run() {
    std::lock_guard<std::mutex> lock(turn);
    const size_t alone = wanted == 1 ? works_.size() : lead_;
    for (size_t i = 0; i < alone; i++) run_whole(works_[i]);
    if (wanted > 1 && phase_count_ > 0) run_on_team(phases_.get(), phase_count_);
}

}  // namespace genkit
