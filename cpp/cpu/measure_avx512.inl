// As measure_avx2.inl, on 512 bits.
void measure_int8(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) {
    constexpr int64_t chains = 12, rounds = 1024;
    for (int64_t unit = begin; unit < end; unit++) {
        __m512i acc[chains];
        for (int64_t i = 0; i < chains; i++) acc[i] = _mm512_loadu_si512(a.data + i * lanes);
        const __m512i x = _mm512_loadu_si512(a.data + 12 * lanes), y = _mm512_loadu_si512(a.data + 13 * lanes);
        const __m512i ones = _mm512_set1_epi16(1);
        for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
            for (int64_t i = 0; i < chains; i++) {
                __m512i product;
                asm volatile("vpmaddubsw %2, %1, %0" : "=v"(product) : "v"(x), "v"(y));
                acc[i] = _mm512_add_epi32(acc[i], _mm512_madd_epi16(product, ones));
            }
        }
        __m512i sum = acc[0];
        for (int64_t i = 1; i < chains; i++) sum = _mm512_xor_si512(sum, acc[i]);
        a.results[unit] = reduce_add(_mm512_cvtepi32_ps(sum));
        a.operations[unit] = double(rounds) * chains * 128;
    }
}
