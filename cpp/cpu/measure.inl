// The loops that measure, over the vocabulary of vec_*.h.

// The sum of what a block holds, four vectors at a time: an addition takes its operand from memory, so loads are all there
// is to wait for. Told to fetch ahead, it asks for every line once.
using words __attribute__((vector_size(sizeof(vec)))) = uint64_t;

template <bool fetch>
INLINE uint64_t sum_words(const uint8_t* memory, int64_t bytes, int64_t ahead) {
    constexpr int64_t size = sizeof(words), at_once = size < 64 ? 256 : 4 * size;
    words sums[4] = {};
    int64_t i = 0;
    for (; i + at_once <= bytes; i += at_once) {
        if (fetch) {
#pragma GCC unroll 4
            for (int64_t j = 0; j < at_once; j += 64) __builtin_prefetch(memory + i + ahead + j);
        }
#pragma GCC unroll 16
        for (int64_t j = 0; j < at_once / size; j++) {
            words next;
            __builtin_memcpy(&next, memory + i + j * size, sizeof next);
            sums[j % 4] += next;
        }
    }
    const words sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    uint64_t total = 0;
    for (int64_t j = 0; j < size / 8; j++) total += sum[j];
    for (; i + 8 <= bytes; i += 8) {
        uint64_t next;
        __builtin_memcpy(&next, memory + i, sizeof next);
        total += next;
    }
    for (int64_t j = 0; i + j < bytes; j++) total += uint64_t{memory[i + j]} << 8 * j;
    return total;
}

void measure_read(const MeasureReadArgs& a, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
        const uint8_t* memory = a.memory + unit * a.bytes;
        uint64_t total = 0;
        for (int64_t i = 0; i < a.repeats; i++) {
            asm volatile("" ::: "memory");  // it may have changed: read it again
            total += a.ahead ? sum_words<true>(memory, a.bytes, a.ahead) : sum_words<false>(memory, a.bytes, 0);
        }
        a.sums[unit] = total;
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
