// Thread team, work lists, arena, plans and the token loop without Python, small enough to run under the thread and
// address sanitizers: built and run by test_plan_native.py. Exits 1 and names what is wrong.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../cpp/ops_check.h"

using namespace genkit;

namespace {

std::atomic<int> failures{0};

void expect(bool good, const std::string& what) {
    if (good) return;
    std::printf("wrong: %s\n", what.c_str());
    failures++;
}

template <class F>
std::string message_of(F body) {
    try {
        body();
    } catch (const std::exception& e) {
        return e.what();
    }
    return "nothing was thrown";
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// out[u] = seed + the sum of `in`: every unit reads all of the work before, so an early start shows in the sums, and a
// missing happens-before in the thread sanitizer.
struct SumArgs {
    const int64_t* in;
    int64_t* out;
    int64_t count, seed;
};

void sum_kernel(const SumArgs& a, int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) {
        int64_t sum = a.seed + u;
        for (int64_t i = 0; i < a.count; i++) sum += a.in[i] * (i + 1) % 1009;
        a.out[u] = sum;
    }
}

// A chain of works, some of one piece, some of many.
struct Chain {
    std::vector<std::vector<int64_t>> values;
    std::vector<SumArgs> args;
    std::vector<Work> works;

    explicit Chain(uint32_t seed) {
        std::mt19937 random(seed);
        const size_t length = 1 + random() % 30;
        values.emplace_back(3, int64_t(seed));
        for (size_t i = 0; i < length; i++) values.emplace_back(1 + random() % (random() % 2 ? 3 : 40), -1);
        for (size_t i = 1; i < values.size(); i++)
            args.push_back({values[i - 1].data(), values[i].data(), int64_t(values[i - 1].size()), int64_t(i)});
        for (size_t i = 1; i < values.size(); i++)
            works.push_back({[](const void* context, int64_t begin, int64_t end) {
                sum_kernel(*static_cast<const SumArgs*>(context), begin, end);
            }, &args[i - 1], int64_t(values[i].size()), int64_t(1 + random() % 4)});
    }

    std::vector<int64_t> last_by_hand() const {
        std::vector<int64_t> before = values[0];
        for (size_t i = 1; i < values.size(); i++) {
            std::vector<int64_t> out(values[i].size());
            sum_kernel({before.data(), out.data(), int64_t(before.size()), int64_t(i)}, 0, int64_t(out.size()));
            before = out;
        }
        return before;
    }

    void clear() {
        for (size_t i = 1; i < values.size(); i++) std::fill(values[i].begin(), values[i].end(), -1);
    }
};

void check_lists(uint32_t seed, int repeats) {
    Chain chain(seed);
    const std::vector<int64_t> expected = chain.last_by_hand();
    WorkList list(chain.works);
    for (int i = 0; i < repeats; i++) {
        chain.clear();
        list.run();
        expect(chain.values.back() == expected, "work list " + std::to_string(seed));
    }
}

// More pieces than the team counts, and a grain that a kernel relies on.
void check_many_pieces() {
    constexpr int64_t units = 500002;
    struct Context {
        std::vector<int> times;
        std::atomic<int64_t> wrong{0};
    } context;
    context.times.assign(units, 0);
    auto fn = [](const void* c, int64_t begin, int64_t end) {
        Context& seen = *static_cast<Context*>(const_cast<void*>(c));
        if (begin % 3 != 0 || (end % 3 != 0 && end != units)) seen.wrong++;
        for (int64_t u = begin; u < end; u++) seen.times[size_t(u)]++;
    };
    parallel_for(units, 3, fn, &context);
    WorkList({{fn, &context, units, 3}, {fn, &context, units, units}}).run();
    expect(context.wrong == 0, "pieces are multiples of the grain");
    expect(context.times == std::vector<int>(units, 3), "every unit once");
}

void check_team() {
    WorkList({}).run();
    for (int64_t threads : {1, 2, 3, 5}) {
        set_threads(threads);
        for (uint32_t seed = 0; seed < 12; seed++) check_lists(seed, 60);
        check_many_pieces();
        for (uint32_t seed = 0; seed < 12; seed++) {  // the team asleep, or about to be
            std::this_thread::sleep_for(std::chrono::microseconds(seed * 40));
            check_lists(seed, 1);
        }
    }
    // Callers in turns, eager jobs between, the team resized meanwhile.
    std::vector<std::thread> callers;
    for (uint32_t seed = 50; seed < 53; seed++) callers.emplace_back([seed] { check_lists(seed, 300); });
    callers.emplace_back([] {
        std::vector<int64_t> in(5, 7), out(50);
        for (int i = 0; i < 100; i++) {
            std::fill(out.begin(), out.end(), 0);
            submit(sum_kernel, SumArgs{in.data(), out.data(), 5, 1}, 50, 1);
            expect(out[49] - out[0] == 49, "an eager job among lists");
        }
    });
    for (int64_t threads : {2, 4, 1, 3}) set_threads(threads);
    for (std::thread& caller : callers) caller.join();
}

// ---- plans: a random program over tensors, eagerly and recorded ------------------------------------------------

struct MixArgs {
    const float *a, *b;
    float* out;
    int64_t count;
};

// Every unit reads all of both inputs.
void mix_kernel(const MixArgs& args, int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; u++) {
        float sum = float(u);
        for (int64_t i = 0; i < args.count; i++) sum = sum * 0.5f + args.a[i] * 0.75f - args.b[args.count - 1 - i] * 0.25f;
        args.out[u] = sum;
    }
}

Tensor mix(const Tensor& a, const Tensor& b, int64_t units) {
    Tensor out({units}, DType::f32);
    submit(mix_kernel, MixArgs{a.data<float>(), b.data<float>(), out.data<float>(), std::min(a.count(), b.count())}, units, 3);
    return out;
}

// Makes tensors of a few sizes out of those that live, lets some go, returns the last.
Tensor program(const Tensor& input, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<Tensor> live = {input};
    for (int i = 0; i < 60; i++) {
        const Tensor a = live[random() % live.size()], b = live[random() % live.size()];
        live.push_back(mix(a, b, std::vector<int64_t>{1, 2, 9, 40, 41}[random() % 5]));
        if (live.size() > 3 && random() % 4 != 0) live.erase(live.begin() + 1 + random() % (live.size() - 2));
    }
    return mix(live.back(), live[live.size() / 2], 33);
}

void fill_input(const Tensor& input, uint32_t seed) {
    std::mt19937 random(seed);
    for (int64_t i = 0; i < input.count(); i++) input.data<float>()[i] = float(random() % 1000) / 500 - 1;
}

void poison(const Plan& plan) {
    for (const Tensor& block : plan.arena()) std::memset(block.bytes(), 0xff, size_t(block.nbytes()));
}

// Programs in turns, each in an arena of its own or all beside one another.
void check_arena(bool beside) {
    struct Recorded {
        Tensor input;
        std::unique_ptr<Tensor> output;
        std::shared_ptr<Plan> plan;
    };
    std::vector<Recorded> programs;
    size_t most = 0;
    for (uint32_t seed = 0; seed < 20; seed++) {
        Recorded made{Tensor({24}, DType::f32), nullptr, nullptr};
        made.plan = Plan::record([&] { made.output = std::make_unique<Tensor>(program(made.input, seed)); },
                                 beside && seed > 0 ? programs.back().plan.get() : nullptr);
        expect(made.plan->steps() == 61, "steps of a program");
        most = std::max(most, made.plan->arena().size());
        programs.push_back(std::move(made));
    }
    for (uint32_t turn = 0; turn < 6 * 20; turn++) {
        const uint32_t seed = turn % 20, round = turn / 20;
        const Recorded& now = programs[seed];
        set_threads(std::vector<int64_t>{1, 2, 3, 5}[round % 4]);
        fill_input(now.input, seed * 100 + round);
        poison(*now.plan);
        now.plan->replay();
        const Tensor expected = program(now.input, seed);
        expect(std::memcmp(now.output->bytes(), expected.bytes(), size_t(expected.nbytes())) == 0,
               "replay of program " + std::to_string(seed));
    }
    expect(most < (beside ? 40 : 30), "blocks are used again: " + std::to_string(most));
}

void check_lifetimes() {
    set_threads(3);
    // The plan keeps what it reads, though nobody else does.
    std::unique_ptr<Tensor> output;
    std::shared_ptr<Plan> plan;
    std::vector<float> expected;
    {
        Tensor input({24}, DType::f32);
        fill_input(input, 1);
        plan = Plan::record([&] { output = std::make_unique<Tensor>(program(input, 7)); });
        const Tensor eager = program(input, 7);
        expected.assign(eager.data<float>(), eager.data<float>() + eager.count());
    }
    std::vector<Tensor> others;
    for (int i = 0; i < 50; i++) fill_input(others.emplace_back(Tensor({24}, DType::f32)), 99);
    plan->replay();
    expect(std::memcmp(output->bytes(), expected.data(), expected.size() * 4) == 0, "a plan that outlives its input");
    // An output outlives the plan.
    plan.reset();
    expect(std::memcmp(output->bytes(), expected.data(), expected.size() * 4) == 0, "an output that outlives its plan");
    output.reset();
    // Intermediates that die on other threads while the recording goes on.
    Tensor input({24}, DType::f32);
    fill_input(input, 3);
    plan = Plan::record([&] {
        std::vector<std::thread> threads;
        Tensor last = input;
        for (int i = 0; i < 40; i++) {
            auto held = std::make_shared<Tensor>(mix(last, input, 24));
            last = mix(*held, input, 24);
            threads.emplace_back([held] {});
        }
        for (std::thread& thread : threads) thread.join();
        output = std::make_unique<Tensor>(last);
    });
    poison(*plan);
    plan->replay();
    Tensor last = input;
    for (int i = 0; i < 80; i++) last = mix(last, input, 24);
    expect(std::memcmp(output->bytes(), last.bytes(), size_t(last.nbytes())) == 0, "deaths on other threads");
    // Constants made during a recording are not the arena's.
    plan = Plan::record([&] {
        Tensor constant = input;
        {
            Arena::Scope outside(nullptr);
            constant = Tensor({24}, DType::f32);
        }
        fill_input(constant, 5);
        output = std::make_unique<Tensor>(mix(constant, input, 24));
        for (int i = 0; i < 5; i++) mix(*output, input, 24);
    });
    poison(*plan);
    plan->replay();
    Tensor constant({24}, DType::f32);
    fill_input(constant, 5);
    const Tensor mixed = mix(constant, input, 24);
    expect(std::memcmp(output->bytes(), mixed.bytes(), size_t(mixed.nbytes())) == 0, "a constant of a plan");
}

void check_failures() {
    Tensor input({24}, DType::f32);
    fill_input(input, 1);
    expect(message_of([&] {
        Plan::record([&] {
            mix(input, input, 40);
            throw std::invalid_argument("the op said no");
        });
    }) == "the op said no", "an error goes through");
    expect(Plan::recording() == nullptr, "nothing records after an error");
    const float* x = input.data<float>();
    float by_hand[5];
    mix_kernel({x, x, by_hand, 24}, 0, 5);
    expect(std::memcmp(mix(input, input, 5).bytes(), by_hand, sizeof by_hand) == 0, "eager again after an error");
    expect(has(message_of([&] { Plan::record([] { Plan::record([] {}); }); }), "being recorded already"), "nested recording");
    expect(Plan::recording() == nullptr, "nothing records after a nested recording");

    Tensor ids({3}, DType::i32);
    for (int32_t i = 0; i < 3; i++) ids.data<int32_t>()[i] = i;
    auto body = [&] {
        check_range("op", "ids", ids, 3);
        check_range("op", "made", Tensor({4}, DType::i32), 3);  // the plan's own, unknown yet
        mix(input, input, 4);
    };
    std::shared_ptr<Plan> plan = Plan::record(body);
    plan->replay();
    ids.data<int32_t>()[1] = 3;
    const char* wanted = "[op] ids[1] is 3; expected 0 to 2";
    expect(message_of([&] { plan->replay(); }) == wanted, "a replay checks what varies");
    expect(message_of([&] { Plan::record(body); }) == wanted, "a recording checks too");
}

// ---- the token loop --------------------------------------------------------------------------------------------

struct NextArgs {
    const int32_t *ids, *positions;
    int32_t *tokens, *nonfinite;
    int64_t fail_at, rows;
};

// The next token is the sum of token and position, in [0, 100); at position fail_at nothing can be drawn.
void next_kernel(const NextArgs& a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        a.tokens[r] = (a.ids[r] + a.positions[r]) % 100;
        a.nonfinite[r] = a.positions[r] == a.fail_at;
    }
}

struct Loop {
    int64_t rows;
    Tensor ids, positions, draw_positions, tokens, nonfinite;
    std::shared_ptr<Plan> plan;

    explicit Loop(int64_t n, int64_t fail_at = -1)
        : rows(n), ids({n}, DType::i32, true), positions({n}, DType::i32, true), draw_positions({n}, DType::i64, true),
          tokens({n}, DType::i32, true), nonfinite({n}, DType::i32, true) {
        for (int64_t r = 0; r < n; r++) {
            ids.data<int32_t>()[r] = int32_t(r);
            positions.data<int32_t>()[r] = int32_t(10 * r);
            draw_positions.data<int64_t>()[r] = 10 * r + 1;
        }
        plan = Plan::record([&] {
            check_range("next", "positions", positions, 60);
            submit(next_kernel, NextArgs{ids.data<int32_t>(), positions.data<int32_t>(), tokens.data<int32_t>(),
                                         nonfinite.data<int32_t>(), fail_at, n}, n, 1);
        });
    }

    std::vector<int32_t> decode(int64_t count, std::vector<int32_t> stops = {}, double seconds = 60, int64_t live = 0) {
        return plan->decode({ids, positions, draw_positions, tokens, nonfinite}, live ? live : rows, stops, count, seconds);
    }

    bool row_stands_at(int64_t r, int64_t steps) const {
        return positions.data<int32_t>()[r] == 10 * r + steps && draw_positions.data<int64_t>()[r] == 10 * r + steps + 1;
    }
    bool stands_at(int64_t steps) const {
        bool good = true;
        for (int64_t r = 0; r < rows; r++) good = good && row_stands_at(r, steps);
        return good;
    }
};

void check_loop() {
    set_threads(2);
    std::vector<int32_t> expected;  // two rows, 20 steps
    for (int32_t step = 0, a = 0, b = 1; step < 20; step++) {
        a = (a + step) % 100, b = (b + 10 + step) % 100;
        expected.insert(expected.end(), {a, b});
    }
    auto first = [&](int64_t steps) { return std::vector<int32_t>(expected.begin(), expected.begin() + 2 * steps); };
    {
        Loop loop(2);
        expect(loop.decode(20) == expected && loop.stands_at(20), "the loop");
    }
    {
        Loop loop(2);
        expect(loop.decode(0).empty() && loop.stands_at(0), "no step at all");
        std::vector<int32_t> taken;
        for (int i = 0; i < 20; i++) {
            std::vector<int32_t> one = loop.decode(7, {}, 0);  // the clock ends it after each step
            expect(one.size() == 2, "a loop without time takes one step");
            taken.insert(taken.end(), one.begin(), one.end());
        }
        expect(taken == expected, "the loop in bursts");
    }
    for (int64_t at = 0; at < 20; at++) {
        const int32_t stop = expected[size_t(2 * at + at % 2)];  // of either row
        int64_t ends = 0;
        while (expected[size_t(2 * ends)] != stop && expected[size_t(2 * ends + 1)] != stop) ends++;
        Loop loop(2);
        expect(loop.decode(20, {-7, stop}) == first(ends + 1) && loop.stands_at(ends + 1), "stop id " + std::to_string(stop));
    }
    {
        Loop loop(2, 15);  // of the second row, which begins at 10
        expect(loop.decode(20) == first(5) && loop.stands_at(5), "the loop up to what is not finite");
        expect(loop.decode(20).empty() && loop.stands_at(5), "a step that failed changes nothing");
    }
    {
        Loop loop(4, 30);  // padding: a row that draws a stop id, and one whose logits are not finite
        loop.ids.data<int32_t>()[2] = 5;
        expect(loop.decode(20, {25}, 60, 2) == expected && loop.row_stands_at(0, 20) && loop.row_stands_at(1, 20), "the loop beside padding");
        expect(loop.row_stands_at(2, 0) && loop.row_stands_at(3, 0) && loop.ids.data<int32_t>()[2] == 5, "padding is fed the same");
        expect(has(message_of([&] { loop.decode(1, {}, 60, 5); }), "live is 5; expected 1 to 4"), "live rows");
    }
    {
        Loop loop(2);
        loop.positions.data<int32_t>()[1] = 58;
        expect(has(message_of([&] { loop.decode(20); }), "positions[1] is 60; expected 0 to 59"), "the loop checks positions");
        expect(loop.positions.data<int32_t>()[1] == 60, "steps before the one that was refused are taken");
    }
    {
        Loop loop(2);
        expect(has(message_of([&] {
            loop.plan->decode({loop.ids, loop.positions, loop.positions, loop.tokens, loop.nonfinite}, 2, {}, 1, 1);
        }), "draw_positions is [2] i32; expected [2] i64"), "the loop checks its tensors");
    }
    Loop loop(2);  // one plan, two callers: in turns
    std::vector<std::thread> callers;
    for (int i = 0; i < 2; i++) callers.emplace_back([&] { loop.decode(10); });
    for (std::thread& caller : callers) caller.join();
    expect(loop.stands_at(20), "two callers of one loop");
}

}  // namespace

int main() {
    check_team();
    check_arena(false);
    check_arena(true);
    check_lifetimes();
    check_failures();
    check_loop();
    std::printf("%d failures\n", failures.load());
    return failures.load() ? 1 : 0;
}
