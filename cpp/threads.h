// The only thread team. Work is a range of independent units taken in small pieces from one counter, so a core that is
// slowed by its neighbours holds nobody up; results never depend on who took what.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace genkit {

using RangeFunction = void (*)(const void* context, int64_t begin, int64_t end);

// fn over [0, units) in pieces of `grain` units. fn must not throw.
struct Work {
    RangeFunction fn;
    const void* context;
    int64_t units, grain;

    int64_t pieces() const { return (units + grain - 1) / grain; }
    void run_piece(int64_t i) const { fn(context, i * grain, std::min((i + 1) * grain, units)); }
};

// Runs one piece of work on the caller and the team. Callers on different threads take turns. Nothing spins for more
// than about 50 us after the last piece of work.
void parallel_for(int64_t units, int64_t grain, RangeFunction fn, const void* context);

struct Phase;

// A list of works, each begun when the one before is done, walked by the team as one job. A phase is a work that is
// split, and with it all works of a single piece that follow: whoever finishes the split one's last piece runs them and
// then opens the next phase. So a phase costs one handing over, and nobody waits for a thread that holds no piece.
class WorkList {
public:
    explicit WorkList(std::vector<Work> works);  // contexts must outlive the list
    ~WorkList();
    void run();
    size_t phases() const { return phase_count_; }

private:
    std::vector<Work> works_;
    size_t lead_ = 0;  // works before the first phase: all of a single piece
    size_t phase_count_ = 0;
    std::unique_ptr<Phase[]> phases_;
};

// Team size, the caller included. Throws std::invalid_argument below 1 or above 1024, std::system_error when the
// system refuses the threads.
void set_threads(int64_t count);
int64_t get_threads();

}  // namespace genkit
