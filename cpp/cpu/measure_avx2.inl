// The rate of vpmaddubsw, vpmaddwd and vpaddd in turn, which is how 256-bit vectors without VNNI multiply bytes. The asm
// keeps the compiler from making the product once for all.
void measure_int8(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) {
    constexpr int64_t chains = 8, rounds = 1024;
    for (int64_t unit = begin; unit < end; unit++) {
        const auto* data = reinterpret_cast<const __m256i*>(a.data);
        __m256i acc[chains];
        for (int64_t i = 0; i < chains; i++) acc[i] = _mm256_loadu_si256(data + i);
        const __m256i x = _mm256_loadu_si256(data + 8), y = _mm256_loadu_si256(data + 9), ones = _mm256_set1_epi16(1);
        for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 8
            for (int64_t i = 0; i < chains; i++) {
                __m256i product;
                asm volatile("vpmaddubsw %2, %1, %0" : "=x"(product) : "x"(x), "x"(y));
                acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(product, ones));
            }
        }
        __m256i sum = acc[0];
        for (int64_t i = 1; i < chains; i++) sum = _mm256_xor_si256(sum, acc[i]);
        a.results[unit] = reduce_add(_mm256_cvtepi32_ps(sum));
        a.operations[unit] = double(rounds) * chains * 64;
    }
}
