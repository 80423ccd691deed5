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
