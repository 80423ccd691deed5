// What the machine can do at this moment: see ops.h.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "ops_check.h"

namespace genkit {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t tries = 6;
constexpr auto a_try = std::chrono::milliseconds(17);
constexpr int64_t bytes_a_step = 4 << 20;    // read between two looks at the clock, and of what caches hold:
constexpr int64_t bytes_in_cache = 8 << 20;
constexpr int64_t units_a_step = 8;          // of arithmetic
constexpr int64_t bytes_near = 1 << 20;      // a thread's share, not fetched ahead; of more, in every second try,
constexpr int64_t ahead = 1536;              // bytes: where memory is far, better than what the processor fetches by itself
constexpr int64_t phases_a_list = 64;
constexpr double piece_seconds = 1e-6;
constexpr auto patience = std::chrono::seconds(1);  // until nobody more is waited for

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

// The team at another size, for as long as this lives.
struct Threads {
    explicit Threads(int64_t count) : before(get_threads()) { set_threads(count); }
    ~Threads() { set_threads(before); }
    int64_t before;
};

// Where threads wait for each other. As often as you like: `all` grows by the number of threads every time.
class Meeting {
public:
    void wait(int64_t all) {
        arrived_.fetch_add(1);
        const Clock::time_point start = Clock::now();
        for (int64_t spins = 0; arrived_.load(std::memory_order_acquire) < all; spins++) {
            if (spins < 10000) continue;
            std::this_thread::sleep_for(std::chrono::microseconds(100));  // there are more threads than processors
            if (Clock::now() - start > patience) return;                  // the team was made smaller meanwhile
        }
    }

private:
    alignas(64) std::atomic<int64_t> arrived_{0};
};

// What step(thread) returned a second, called over and over by all threads at once: the best of some tries.
// start(thread, attempt) comes before.
template <class Start, class Step>
double best_rate(int64_t threads, Start start, Step step) {
    struct Took {
        Clock::time_point from, to;
        double done;
    };
    struct Job {
        Start& start;
        Step& step;
        int64_t threads;
        Meeting meeting;
        std::atomic<bool> over[tries] = {};
        std::vector<Took> took;
    } job{start, step, threads, {}, {}, std::vector<Took>(size_t(threads * tries))};
    auto run = [](const void* context, int64_t begin, int64_t end) {
        Job& j = *static_cast<Job*>(const_cast<void*>(context));
        for (int64_t thread = begin; thread < end; thread++) {
            for (int64_t i = 0; i < tries; i++) {
                Took& t = j.took[size_t(i * j.threads + thread)];
                j.start(thread, i);
                j.meeting.wait((i + 1) * j.threads);
                t = {Clock::now(), {}, 0};
                do {
                    t.done += j.step(thread);
                    t.to = Clock::now();
                } while (!j.over[i].load(std::memory_order_relaxed) && t.to - t.from < a_try);
                j.over[i].store(true, std::memory_order_relaxed);  // for all: nobody goes on alone
            }
        }
    };
    parallel_for(threads, 1, run, &job);
    double best = 0;
    for (int64_t i = 0; i < tries; i++) {
        const Took* took = &job.took[size_t(i * threads)];
        Took all = took[0];
        for (int64_t thread = 1; thread < threads; thread++) {
            all = {std::min(all.from, took[thread].from), std::max(all.to, took[thread].to), all.done + took[thread].done};
        }
        best = std::max(best, all.done / seconds(all.to - all.from));
    }
    return best;
}

// As std::bad_alloc, in words.
struct NoMemory : std::bad_alloc {
    explicit NoMemory(std::string words) : text(std::move(words)) {}
    const char* what() const noexcept override { return text.c_str(); }
    std::string text;
};

Tensor allocate(const char* op, int64_t bytes) {
    // The system promises more than it has; what is written must be there.
    const int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    if (pages > 0 && page > 0 && bytes / page >= pages)
        throw NoMemory(std::string("[") + op + "] " + std::to_string(bytes) + " bytes are more than the machine's memory, " +
                       std::to_string(pages * page) + " bytes");
    try {
        return Tensor({bytes}, DType::u8);
    } catch (const std::bad_alloc&) {
        throw NoMemory(std::string("[") + op + "] no memory for " + std::to_string(bytes) + " bytes");
    }
}

// The part of a block that a thread reads: whole lines, the last thread what is left over.
struct Share {
    Share(int64_t bytes, int64_t threads, int64_t thread) : at(bytes / threads / 64 * 64 * thread) {
        length = thread + 1 == threads ? bytes - at : bytes / threads / 64 * 64;
    }
    int64_t at, length;
};

}  // namespace

void make_readable(const Tensor& memory, int64_t threads) {
    const char* op = "make_readable";
    if (memory.dtype() != DType::u8 || !memory.contiguous()) fail(op, "memory is " + memory.shape_text() + "; expected contiguous u8");
    const Threads team(threads);
    struct Job {
        uint8_t* memory;
        int64_t bytes, threads;
    } job{memory.data<uint8_t>(), memory.nbytes(), threads};
    auto run = [](const void* context, int64_t begin, int64_t end) {
        const Job& j = *static_cast<const Job*>(context);
        for (int64_t thread = begin; thread < end; thread++) {
            const Share share(j.bytes, j.threads, thread);
            uint8_t* at = j.memory + share.at;
            for (int64_t i = 0; i + 8 <= share.length; i += 8) {  // by the address: no two words alike, and none zero
                const uint64_t word = (reinterpret_cast<uintptr_t>(at + i) + 1) * 0x9e3779b97f4a7c15u;
                std::memcpy(at + i, &word, sizeof word);
            }
            std::fill(at + share.length / 8 * 8, at + share.length, uint8_t(0x3f));
        }
    };
    parallel_for(threads, 1, run, &job);
}

double read_bandwidth(int64_t bytes, int64_t threads, const OptionalTensor& memory) {
    const char* op = "read_bandwidth";
    const Threads team(threads);
    if (bytes < 64 * threads)
        fail(op, "bytes is " + std::to_string(bytes) + "; expected 64 or more for each of " + std::to_string(threads) + " threads");
    if (memory && (memory->dtype() != DType::u8 || !memory->contiguous() || memory->nbytes() < bytes))
        fail(op, "memory is " + memory->shape_text() + "; expected u8 and at least [" + std::to_string(bytes) + "]");
    Arena::Scope none(nullptr);
    const Tensor block = memory ? *memory : allocate(op, bytes);
    if (!memory) make_readable(block, threads);
    struct alignas(64) Reader {
        MeasureReadArgs args;
        const uint8_t* memory;
        int64_t length, done;
    };
    std::vector<Reader> readers;
    for (int64_t thread = 0; thread < threads; thread++) {
        const Share share(bytes, threads, thread);
        readers.push_back({{}, block.data<uint8_t>() + share.at, share.length, 0});
    }
    auto* kernel = kernels().measure_read;
    // A thread whose share is small reads all of it at every step, again and again.
    return best_rate(threads, [&](int64_t thread, int64_t attempt) {
        Reader& r = readers[size_t(thread)];
        r.args.ahead = r.length > bytes_near && attempt % 2 == 0 ? ahead : 0;
    }, [&](int64_t thread) {
        Reader& r = readers[size_t(thread)];
        r.args.memory = r.memory + r.done;
        r.args.bytes = std::min(r.length - r.done, bytes_a_step);
        r.args.repeats = std::max<int64_t>(1, bytes_in_cache / r.length);
        kernel(r.args, 0, 1);
        r.done = r.done + r.args.bytes == r.length ? 0 : r.done + r.args.bytes;
        return double(r.args.bytes * r.args.repeats);
    });
}

bool has_arithmetic(const std::string& kind) {
    const Kernels& k = kernels();
    return kind == "f32" || kind == "int8" || (kind == "bf16" && k.measure_bf16 != k.measure_f32);
}

double arithmetic_peak(const std::string& kind, int64_t threads) {
    const char* op = "arithmetic_peak";
    const Kernels& k = kernels();
    auto* kernel = kind == "f32" ? k.measure_f32 : kind == "bf16" ? k.measure_bf16 : kind == "int8" ? k.measure_int8 : nullptr;
    if (kernel == nullptr) fail(op, "kind is '" + kind + "'; known: f32, bf16, int8");
    const Threads team(threads);
    Arena::Scope none(nullptr);
    const int64_t units = units_a_step * threads;
    Tensor data({256}, DType::f32), results({units}, DType::f32), operations({units}, DType::i64);
    for (int64_t i = 0; i < 256; i++) data.data<uint32_t>()[i] = uint32_t(0x3f00 + i % 128) * 0x10001u;
    const MeasureArithmeticArgs a{data.data<float>(), results.data<float>(), operations.data<double>()};
    return best_rate(threads, [](int64_t, int64_t) {}, [&](int64_t thread) {
        const int64_t from = thread * units_a_step;
        kernel(a, from, from + units_a_step);
        double done = 0;
        for (int64_t i = from; i < from + units_a_step; i++) done += a.operations[i];
        return done;
    });
}

std::pair<double, double> barrier_cost(int64_t threads) {
    const Threads team(threads);
    struct Piece {
        double worked;  // seconds
    };
    // Pieces of a microsecond by the clock, one a thread. What they leave of the time is the cost: a team that has nothing
    // at all to do would not come together, as its first thread takes every piece.
    auto work = [](const void* context, int64_t begin, int64_t end) {
        auto* pieces = static_cast<Piece*>(const_cast<void*>(context));
        for (int64_t i = begin; i < end; i++) {
            const Clock::time_point start = Clock::now();
            do pieces[i].worked = seconds(Clock::now() - start);
            while (pieces[i].worked < piece_seconds);
        }
    };
    std::vector<Piece> pieces(size_t(phases_a_list * threads));
    std::vector<Work> works;
    for (int64_t i = 0; i < phases_a_list; i++) works.push_back({work, &pieces[size_t(i * threads)], threads, 1});
    WorkList list(works);
    // Of the quickest list: one of a tenth of a millisecond is soon found that nothing interrupted.
    auto cost = [&](auto run) {
        double least = -1;
        for (const Clock::time_point first = Clock::now(); Clock::now() - first < tries * a_try;) {
            const Clock::time_point start = Clock::now();
            run();
            double spent = seconds(Clock::now() - start);
            for (const Piece& piece : pieces) spent -= piece.worked / double(threads);
            const double each = spent / double(phases_a_list);
            if (least < 0 || each < least) least = each;
        }
        return std::max(least, 0.0);
    };
    const double fork_join = cost([&] {
        for (const Work& w : works) parallel_for(w.units, w.grain, w.fn, w.context);
    });
    return {fork_join, cost([&] { list.run(); })};
}

}  // namespace genkit
