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

inline void run_whole(const Work& work) { work.fn(work.context, 0, work.units); }

}  // namespace

// Counters lie on a line of their own: they change hands while everybody reads the rest.
struct alignas(64) Phase {
    Work work;
    const Work* tail = nullptr;  // [tail, tail_end): works of a single piece that follow
    const Work* tail_end = nullptr;
    alignas(64) std::atomic<int64_t> next{0};  // first unit nobody has taken
    std::atomic<int64_t> done{0};              // units finished
};

namespace {

// A job, a list of phases, is open while its caller waits. A worker announces itself (`active`) before it looks whether
// the job is open; the caller closes the job before it looks whether anyone is active. So a worker that wakes late is
// never waited for.
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

    void run(Phase* phases, int64_t count) {
        phases_ = phases;
        count_ = count;
        for (int64_t i = 0; i < count; i++) {
            phases[i].next.store(0, std::memory_order_relaxed);
            phases[i].done.store(0, std::memory_order_relaxed);
        }
        current_.store(0, std::memory_order_relaxed);
        open_.store(true);
        epoch_.fetch_add(1);
        if (sleepers_.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex_);  // a worker is either before its last look at epoch_ or asleep
            wake_.notify_all();
        }
        take_part();
        open_.store(false);
        for (int spins = 0; active_.load() > 0;) wait_a_moment(spins);
    }

private:
    void end() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            epoch_.fetch_add(1);
        }
        wake_.notify_all();
        for (auto& t : threads_) t.join();
    }

    // Returns when every phase is done. What a unit wrote is seen by the next phase: it is released by its thread's
    // addition to `done`, acquired by the addition that completes the phase, and released again with current_.
    void take_part() {
        int64_t at = current_.load(std::memory_order_acquire);
        while (at < count_) {
            Phase& phase = phases_[at];
            const Work& work = phase.work;
            int64_t finished = 0;
            for (;;) {
                int64_t begin = phase.next.fetch_add(work.grain, std::memory_order_relaxed);
                if (begin >= work.units) break;
                int64_t end = std::min(begin + work.grain, work.units);
                work.fn(work.context, begin, end);
                finished += end - begin;
            }
            if (finished > 0 && phase.done.fetch_add(finished, std::memory_order_acq_rel) + finished == work.units) {
                for (const Work* w = phase.tail; w < phase.tail_end; w++) run_whole(*w);
                current_.store(++at, std::memory_order_release);
            } else {
                int64_t before = at;
                for (int spins = 0; (at = current_.load(std::memory_order_acquire)) == before;) wait_a_moment(spins);
            }
        }
    }

    void work() {
        uint64_t seen = 0;
        for (;;) {
            for (int spins = 0; epoch_.load() == seen && spins < spins_before_sleep; spins++) pause();
            if (epoch_.load() == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, [&] { return epoch_.load() != seen; });
                sleepers_.fetch_sub(1);
            }
            seen = epoch_.load();
            if (stop_.load()) return;
            active_.fetch_add(1);
            if (open_.load()) take_part();
            active_.fetch_sub(1);
        }
    }

    // The job. Written only while no job is open and nobody is active in one.
    Phase* phases_ = nullptr;
    int64_t count_ = 0;

    alignas(64) std::atomic<int64_t> current_{0};  // the phase that is open: its counter may be taken from
    alignas(64) std::atomic<uint64_t> epoch_{0};
    alignas(64) std::atomic<bool> open_{false};
    alignas(64) std::atomic<int64_t> active_{0};
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
void run_on_team(Phase* phases, int64_t count) {
    if (!team) {
        static const int registered = pthread_atfork(nullptr, nullptr, forget_team_in_child);
        (void)registered;
        team = std::make_unique<Team>(wanted - 1);
    }
    team->run(phases, count);
}

}  // namespace

void parallel_for(int64_t units, int64_t grain, RangeFunction fn, const void* context) {
    if (units <= 0) return;
    if (units <= grain) return fn(context, 0, units);
    std::lock_guard<std::mutex> lock(turn);
    if (wanted == 1) return fn(context, 0, units);
    Phase phase;
    phase.work = {fn, context, units, grain};
    run_on_team(&phase, 1);
}

WorkList::WorkList(std::vector<Work> works) : works_(std::move(works)) {
    auto split = [](const Work& w) { return w.units > w.grain; };
    phases_.reset(new Phase[static_cast<size_t>(std::count_if(works_.begin(), works_.end(), split))]);
    for (const Work& w : works_) {
        if (split(w)) {
            phases_[phase_count_].work = w;
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
    if (wanted > 1 && phase_count_ > 0) run_on_team(phases_.get(), static_cast<int64_t>(phase_count_));
}

}  // namespace genkit
