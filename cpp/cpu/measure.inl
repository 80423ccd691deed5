// The loops that measure, over the vocabulary of vec_*.h.

// The sum of what a block holds, repeats times, eight lines at a time: an addition takes its operand from memory, so loads are
// all there is to wait for. Told to fetch ahead, it asks for a line with every line it reads. The asm keeps them in the order of
// memory: the compiler's order was a tenth slower.
using words __attribute__((vector_size(sizeof(vec)))) = uint64_t;

template <bool fetch>
INLINE uint64_t sum_words(const uint8_t* memory, int64_t bytes, int64_t repeats, int64_t ahead) {
    constexpr int64_t size = sizeof(words), at_once = 512, apart = 8;
    words sums[apart] = {};
    uint64_t total = 0;
    for (int64_t repeat = 0; repeat < repeats; repeat++) {
        asm volatile("" ::: "memory");  // it may have changed: read it again
        int64_t i = 0;
        for (; i + at_once <= bytes; i += at_once) {
#pragma GCC unroll 32
            for (int64_t j = 0; j < at_once / size; j++) {
                words next;
                __builtin_memcpy(&next, memory + i + j * size, sizeof next);
                sums[j % apart] += next;
                if (fetch && (j + 1) * size % 64 == 0) __builtin_prefetch(memory + i + ahead + j * size);
                asm volatile("" ::: "memory");
            }
        }
        for (; i < bytes; i += 8) {
            uint64_t next = 0;
            for (int64_t j = 0; j < 8 && i + j < bytes; j++) next |= uint64_t{memory[i + j]} << 8 * j;
            total += next;
        }
    }
    for (int64_t j = 1; j < apart; j++) sums[0] += sums[j];
    for (int64_t j = 0; j < size / 8; j++) total += sums[0][j];
    return total;
}

void measure_read(const MeasureReadArgs& a, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
        const uint8_t* memory = a.memory + unit * a.bytes;
        a.sums[unit] = a.ahead ? sum_words<true>(memory, a.bytes, a.repeats, a.ahead) : sum_words<false>(memory, a.bytes, a.repeats, 0);
    }
}

// Twelve chains of FMA, more than its latency needs; x -> x * m + c stays near 1.
void measure_f32(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) {
    constexpr int64_t chains = 12, rounds = 1024;
    for (int64_t unit = begin; unit < end; unit++) {
        vec acc[chains];
        for (int64_t i = 0; i < chains; i++) acc[i] = load(a.data + i * lanes);
        const vec factor = load(a.data) * set1(0.5f), more = set1(0.5f);
        for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
            for (int64_t i = 0; i < chains; i++) acc[i] = fma(acc[i], factor, more);
        }
        vec sum = acc[0];
        for (int64_t i = 1; i < chains; i++) sum = sum + acc[i];
        a.results[unit] = reduce_add(sum);
        a.operations[unit] = double(rounds) * chains * lanes * 2;
    }
}
