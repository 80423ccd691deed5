// The rate of vdpbf16ps: twelve chains, more than its latency needs.
void measure_bf16(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) {
    constexpr int64_t chains = 12, rounds = 1024;
    for (int64_t unit = begin; unit < end; unit++) {
        vec acc[chains];
        for (int64_t i = 0; i < chains; i++) acc[i] = load(a.data + i * lanes);
        const __m512bh x = __m512bh(_mm512_loadu_si512(a.data)), y = __m512bh(_mm512_loadu_si512(a.data + 16));
        for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
            for (int64_t i = 0; i < chains; i++) acc[i] = _mm512_dpbf16_ps(acc[i], x, y);
        }
        vec sum = acc[0];
        for (int64_t i = 1; i < chains; i++) sum = sum + acc[i];
        a.results[unit] = reduce_add(sum);
        a.operations[unit] = double(rounds) * chains * 64;
    }
}
