// The loops that measure, over the vocabulary of vec_*.h.

using words __attribute__((vector_size(sizeof(vec)))) = uint64_t;

#if defined(__aarch64__)
INLINE void keep(words loaded) { asm volatile("" ::"w"(loaded) : "memory"); }
#else
INLINE void keep(words loaded) { asm volatile("" ::"v"(loaded) : "memory"); }
#endif

// Reads a block, eight lines at a time and in the order of memory: the compiler's own was a tenth slower. Told to fetch ahead,
// it asks for a line with every line it reads. With `joins` it returns the exclusive or of all words. Without, the loads have to
// be done and nothing else: joining takes ports that the first cache could outrun, and places to wait in for memory.
template <bool fetch, bool joins>
INLINE uint64_t read_block(const uint8_t* memory, int64_t bytes, int64_t ahead) {
    constexpr int64_t size = sizeof(words), at_once = 512, apart = 8;
    words read[apart] = {};
    auto take = [&](int64_t at, int64_t place) __attribute__((always_inline)) {
        words next;
        __builtin_memcpy(&next, memory + at, sizeof next);
        if (joins) read[place] ^= next;
        else keep(next);
        asm volatile("" ::: "memory");
        if (fetch && at % 64 == 0) __builtin_prefetch(memory + at + ahead);
    };
    int64_t i = 0;
    for (; i + at_once <= bytes; i += at_once) {
#pragma GCC unroll 32
        for (int64_t j = 0; j < at_once; j += size) take(i + j, j / size % apart);
    }
    for (; i + size <= bytes; i += size) take(i, 0);
    uint64_t all = 0;
    for (int64_t j = 0; i + j < bytes; j++) all ^= uint64_t{static_cast<const volatile uint8_t*>(memory)[i + j]} << j % 8 * 8;
    for (int64_t j = 1; j < apart; j++) read[0] ^= read[j];
    for (int64_t j = 0; j < size / 8; j++) all ^= read[0][j];
    return all;
}

void measure_read(const MeasureReadArgs& a, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
        const uint8_t* memory = a.memory + unit * a.bytes;
        for (int64_t i = 0; i < a.repeats; i++) {
            if (a.words) a.words[unit] = read_block<true, true>(memory, a.bytes, a.ahead);
            else if (a.ahead) read_block<true, false>(memory, a.bytes, a.ahead);
            else read_block<false, false>(memory, a.bytes, 0);
        }
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
