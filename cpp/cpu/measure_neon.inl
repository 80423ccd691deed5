// The rate of dot<lane> (packed_neon.inl), which is how this tier multiplies bytes: eight chains.
void measure_int8(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) {
    constexpr int64_t chains = 8, rounds = 1024;
    for (int64_t unit = begin; unit < end; unit++) {
        const auto* data = reinterpret_cast<const int8_t*>(a.data);
        int32x4_t acc[chains];
        for (int64_t i = 0; i < chains; i++) acc[i] = vreinterpretq_s32_s8(vld1q_s8(data + 16 * i));
        int8x16_t w = vld1q_s8(data + 128);
        const int8x16_t x = vld1q_s8(data + 144);
        for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 8
            for (int64_t i = 0; i < chains; i++) {
                asm volatile("" : "+w"(w));  // so that no product is made once for all
                acc[i] = dot<0>(acc[i], w, x);
            }
        }
        int32x4_t sum = acc[0];
        for (int64_t i = 1; i < chains; i++) sum = veorq_s32(sum, acc[i]);
        a.results[unit] = float(vaddvq_s32(sum));
        a.operations[unit] = double(rounds) * chains * 32;
    }
}
