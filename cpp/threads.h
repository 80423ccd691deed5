// The only thread team. Work is a range of independent units taken in small pieces from one counter, so a core that is
// slowed by its neighbours holds nobody up; results never depend on who took what.
#pragma once
#include <cstdint>

namespace genkit {

using RangeFunction = void (*)(const void* context, int64_t begin, int64_t end);

// Runs fn over [0, units) in pieces of `grain` units on the caller and the team. Callers on different threads take
// turns. Nothing spins for more than about 50 us after the last piece of work.
void parallel_for(int64_t units, int64_t grain, RangeFunction fn, const void* context);

// Team size, the caller included. Throws std::invalid_argument below 1 or above 1024, std::system_error when the
// system refuses the threads.
void set_threads(int64_t count);
int64_t get_threads();

}  // namespace genkit
