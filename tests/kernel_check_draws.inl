// A part of kernel_check.cpp: what is done with logits.

void check_draws(int64_t dim, float spread) {  // the same token, the same list, to the bit
    const int64_t rows = 4;
    std::vector<float> x = rng.normals(rows * dim, spread);
    for (int64_t i = 0; i < dim; i++) {
        x[size_t(dim + i)] = roundf(x[size_t(dim + i)]);  // equals
        if (i % 3 == 0 && dim > 1) x[size_t(2 * dim + i)] = -INFINITY;
        x[size_t(3 * dim + i)] = i % 1024 < 16 ? -spread : spread * 0.1f * rng.normal();  // not what a sample shows
    }
    std::vector<char> scratch(size_t(scratch_slots(rows) * scratch_bytes(dim)));
    std::vector<int64_t> sequences = {0, 1, 2, 3}, positions = {9, 8, 7, 6};
    std::vector<int32_t> want(static_cast<size_t>(rows)), got = want;
    for (float temperature : {0.0f, 0.7f, 90.0f}) {
        for (int64_t k : {int64_t(0), int64_t(1), int64_t(40), dim / 2}) {
            for (float top_p : {1.0f, 0.95f, 0.5f}) {
                for (float min_p : {0.0f, 0.05f}) {
                    SampleArgs a{x.data(), sequences.data(), positions.data(), want.data(), scratch.data(), rows, dim, k,
                                 uint64_t(rng.below(1 << 30)), temperature, top_p, min_p, false};
                    plain.sample(a, 0, rows);
                    a.tokens = got.data();
                    fast.sample(a, 0, rows);
                    if (got != want) {
                        printf("sample %lld temperature %g top_k %lld top_p %g min_p %g differs\n", (long long)dim,
                               double(temperature), (long long)k, double(top_p), double(min_p));
                        failures++;
                    }
                }
            }
        }
    }
    for (int64_t k : {int64_t(1), (dim + 2) / 3, dim}) {
        std::vector<float> values(size_t(rows * k)), fast_values = values;
        std::vector<int32_t> ids(size_t(rows * k)), fast_ids = ids;
        plain.top_k({x.data(), values.data(), ids.data(), scratch.data(), rows, dim, k}, 0, rows);
        fast.top_k({x.data(), fast_values.data(), fast_ids.data(), scratch.data(), rows, dim, k}, 0, rows);
        if (values != fast_values || ids != fast_ids) {
            printf("top_k %lld of %lld differs\n", (long long)k, (long long)dim);
            failures++;
        }
    }
}

// More rows than slots, and what is not finite counted by the way.
void check_many_draws(int64_t rows, int64_t dim) {
    std::vector<float> x = rng.normals(rows * dim, 3);
    for (float poison : {NAN, INFINITY, -INFINITY})
        for (int i = 0; i < 3; i++) x[size_t(rng.below(rows * dim))] = poison;
    for (int64_t i = 0; i < dim; i++) x[size_t(i)] = -INFINITY;
    std::vector<char> scratch(size_t(scratch_slots(rows) * scratch_bytes(dim)));
    std::vector<int64_t> sequences(static_cast<size_t>(rows), 0), positions(static_cast<size_t>(rows), 5);
    std::vector<int32_t> want(static_cast<size_t>(rows)), got = want, want_counts = want, counts = want;
    plain.nonfinite({x.data(), want_counts.data(), dim}, 0, rows);
    for (bool finite_only : {false, true}) {
        for (float top_p : {1.0f, 0.7f}) {
            SampleArgs a{x.data(), sequences.data(), positions.data(), want.data(), scratch.data(), rows, dim, 0,
                         uint64_t(rng.below(1 << 30)), 0.8f, top_p, 0, finite_only};
            plain.sample(a, 0, scratch_slots(rows));
            a.tokens = got.data();
            a.nonfinite = fast.sample_counts ? counts.data() : nullptr;
            fast.sample(a, 0, scratch_slots(rows));
            if (got != want || (fast.sample_counts && counts != want_counts)) {
                printf("sample of %lld x %lld top_p %g differs\n", (long long)rows, (long long)dim, double(top_p));
                failures++;
            }
        }
    }
}

// Tokens come, some leave a window, and logits are adjusted after each: all to the bit, what was never written included.
void check_penalties(int64_t rows, int64_t capacity, int64_t in_use, int64_t window) {
    const int64_t dim = capacity + 7;
    struct Tables {
        std::vector<int32_t> entries, lengths, recent, next;
        bool operator==(const Tables& o) const { return entries == o.entries && lengths == o.lengths && recent == o.recent && next == o.next; }
    } want;
    want.entries.resize(size_t(rows * 3 * capacity), -77);
    want.recent.resize(size_t(rows * window), -1);
    for (int64_t r = 0; r < rows; r++) {
        int32_t* entries = want.entries.data() + r * 3 * capacity;
        const int64_t length = r % 3 == 1 ? 0 : in_use;
        std::vector<int32_t> ids(static_cast<size_t>(dim));
        for (int64_t i = 0; i < dim; i++) ids[size_t(i)] = int32_t(i), std::swap(ids[size_t(i)], ids[size_t(rng.below(i + 1))]);
        ids[1] = int32_t(dim + 3);  // no logit has it
        for (int64_t i = 0; i < length; i++) {
            entries[i] = ids[size_t(i)];
            entries[capacity + i] = int32_t(rng.below(3)), entries[2 * capacity + i] = int32_t(rng.below(entries[capacity + i] + 1));
        }
        want.lengths.push_back(int32_t(length));
        for (int64_t i = 0; i < window; i++)
            if (length > 0 && i % 4) want.recent[size_t(r * window + i)] = 2 * entries[rng.below(length)] + int32_t(rng.below(2));
        want.next.push_back(int32_t(window ? rng.below(window) : 0));
    }
    Tables got = want;
    std::vector<int32_t> tokens(static_cast<size_t>(rows));
    for (int step = 0; step < 12; step++) {
        for (int64_t r = 0; r < rows; r++) {
            const int64_t kind = rng.below(6);
            tokens[size_t(r)] = kind == 0 ? -1 - int32_t(rng.below(2)) : kind == 1 ? int32_t(dim - 1) : int32_t(rng.below(kind < 4 ? dim : 5));
        }
        std::vector<float> logits = rng.normals(rows * dim, 5), fast_logits;
        logits[0] = -INFINITY;
        fast_logits = logits;
        auto run = [&](const Kernels& k, Tables& t, float* x) {
            const HistoryTable history{t.entries.data(), t.lengths.data(), capacity};
            k.remember({tokens.data(), history, t.recent.data(), t.next.data(), window}, 0, rows);
            k.penalty({x, history, dim, 1.3f, 0.5f, 0.25f}, 0, rows);
        };
        run(plain, want, logits.data());
        run(fast, got, fast_logits.data());
        if (!(got == want) || fast_logits != logits) {
            printf("penalties of %lld x %lld, %lld in use, window %lld, differ after %d tokens\n", (long long)rows, (long long)capacity,
                   (long long)in_use, (long long)window, step + 1);
            failures++;
            return;
        }
    }
}

void check_philox() {  // known answers of Random123
    const uint32_t ones[4] = {~0u, ~0u, ~0u, ~0u}, zeros[4] = {};
    const uint32_t want[2][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                 {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}};
    uint32_t got[2][4];
    philox(zeros, zeros, got[0]);
    philox(ones, ones, got[1]);
    if (memcmp(got, want, sizeof got) != 0) {
        printf("philox differs from its known answers\n");
        failures++;
    }
}
