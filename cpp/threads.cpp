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

// A job is open while its caller waits. A worker announces itself (`active`) before it looks whether the job is open;
// the caller closes the job before it looks whether anyone is active. So a worker that wakes late is never waited for.
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

    void run(int64_t units, int64_t grain, RangeFunction fn, const void* context) {
        fn_ = fn;
        context_ = context;
        units_ = units;
        grain_ = grain;
        next_.store(0);
        open_.store(true);
        epoch_.fetch_add(1);
        if (sleepers_.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex_);  // a worker is either before its last look at epoch_ or asleep
            wake_.notify_all();
        }
        take_pieces();
        open_.store(false);
        for (int spins = 0; active_.load() > 0; spins++) {
            if (spins < spins_before_yield) pause();
            else std::this_thread::yield();
        }
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

    void take_pieces() {
        for (;;) {
            int64_t begin = next_.fetch_add(grain_);
            if (begin >= units_) return;
            fn_(context_, begin, std::min(begin + grain_, units_));
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
            if (open_.load()) take_pieces();
            active_.fetch_sub(1);
        }
    }

    // The job. Written only while no job is open and nobody is active in one.
    RangeFunction fn_ = nullptr;
    const void* context_ = nullptr;
    int64_t units_ = 0, grain_ = 1;

    alignas(64) std::atomic<int64_t> next_{0};
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

void parallel_for(int64_t units, int64_t grain, RangeFunction fn, const void* context) {
    if (units <= 0) return;
    if (units <= grain) return fn(context, 0, units);
    std::lock_guard<std::mutex> lock(turn);
    if (wanted == 1) return fn(context, 0, units);
    if (!team) {
        static const int registered = pthread_atfork(nullptr, nullptr, forget_team_in_child);
        (void)registered;
        team = std::make_unique<Team>(wanted - 1);
    }
    team->run(units, grain, fn, context);
}

}  // namespace genkit
