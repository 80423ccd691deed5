// The rate of vpdpbusd: twelve chains, more than its latency needs. The asm keeps the compiler from adding it up first.
void measure_int8(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) {
    constexpr int64_t chains = 12, rounds = 1024;
    for (int64_t unit = begin; unit < end; unit++) {
        ivec acc[chains];
        for (int64_t i = 0; i < chains; i++) acc[i] = load_line(a.data + i * lanes);
        const ivec x = load_line(a.data), y = load_line(a.data + 16);
        for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
            for (int64_t i = 0; i < chains; i++) asm volatile("vpdpbusd %2, %1, %0" : "+v"(acc[i]) : "v"(x), "v"(y));
        }
        ivec sum = acc[0];
        for (int64_t i = 1; i < chains; i++) sum = _mm512_xor_si512(sum, acc[i]);
        a.results[unit] = reduce_add(_mm512_cvtepi32_ps(sum));
        a.operations[unit] = double(rounds) * chains * 128;
    }
}
