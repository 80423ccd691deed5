/* What this machine can do, by loops that share nothing with genkit's: see check_limits.py, which compiles and asks it.
 * A line on stdin is a question, "NAME THREADS BYTES"; the answer is a number a second: bytes of "read", operations of the
 * others, 0 for what the processor cannot. Each is the fastest of six turns of about 20 ms, the threads starting together;
 * readers end together too, of arithmetic the slowest counts. x86-64, Linux. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TARGET(features) __attribute__((target(features), noinline))
#define TURNS 6
#define SECONDS 0.02
#define PIECE ((size_t)4 << 20) /* read between two looks at the clock */

static unsigned char *memory;
static size_t memory_bytes;
static volatile uint64_t sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- reading: loads into registers that the compiler must fill, with or without a prefetch of every line ---- */

typedef void reader(const unsigned char *, size_t, long);

#define READER(name, features, vector, load, width, ahead)                                           \
    TARGET(features) static void name(const unsigned char *p, size_t bytes, long loops) {            \
        for (; loops > 0; loops--)                                                                   \
            for (const unsigned char *end = p + bytes, *q = p; q < end; q += 8 * width)              \
                _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) {                                \
                    const vector v = load((const vector *)(q + width * j));                          \
                    __asm__ volatile("" ::"v"(v) : "memory");                                        \
                    if (ahead && j * width % 64 == 0) _mm_prefetch((const char *)q + ahead + width * j, _MM_HINT_T0); \
                }                                                                                    \
    }
READER(read512, "avx512f", __m512i, _mm512_load_si512, 64, 0)
READER(read512_ahead, "avx512f", __m512i, _mm512_load_si512, 64, 1536)
READER(read256, "avx2", __m256i, _mm256_load_si256, 32, 0)
READER(read256_ahead, "avx2", __m256i, _mm256_load_si256, 32, 1536)

/* ---- arithmetic: `loops` of 8 or 12 instructions on registers that are loaded from memory; operations of one loop ---- */

#define CHAINS 12

TARGET("avx512f") static double fma512(long loops) {
    __m512 a[CHAINS], x = _mm512_loadu_ps(memory), y = _mm512_loadu_ps(memory + 64);
    float out[16];
    for (int j = 0; j < CHAINS; j++) a[j] = _mm512_loadu_ps(memory + 64 * j);
    for (long i = 0; i < loops; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) a[j] = _mm512_fmadd_ps(a[j], x, y);
    }
    for (int j = 1; j < CHAINS; j++) a[0] = _mm512_add_ps(a[0], a[j]);
    _mm512_storeu_ps(out, a[0]);
    sink += (uint64_t)out[3];
    return CHAINS * 16 * 2;
}

TARGET("avx2,fma") static double fma256(long loops) {
    __m256 a[CHAINS], x = _mm256_loadu_ps((float *)memory), y = _mm256_loadu_ps((float *)memory + 8);
    float out[8];
    for (int j = 0; j < CHAINS; j++) a[j] = _mm256_loadu_ps((float *)memory + 8 * j);
    for (long i = 0; i < loops; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) a[j] = _mm256_fmadd_ps(a[j], x, y);
    }
    for (int j = 1; j < CHAINS; j++) a[0] = _mm256_add_ps(a[0], a[j]);
    _mm256_storeu_ps(out, a[0]);
    sink += (uint64_t)out[3];
    return CHAINS * 8 * 2;
}

TARGET("avx512f,avx512vnni") static double vnni512(long loops) {
    __m512i a[CHAINS], x = _mm512_loadu_si512(memory), y = _mm512_loadu_si512(memory + 64);
    for (int j = 0; j < CHAINS; j++) a[j] = _mm512_loadu_si512(memory + 64 * j);
    for (long i = 0; i < loops; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) a[j] = _mm512_dpbusd_epi32(a[j], x, y);
    }
    for (int j = 1; j < CHAINS; j++) a[0] = _mm512_xor_si512(a[0], a[j]);
    sink += (uint64_t)_mm512_reduce_add_epi32(a[0]);
    return CHAINS * 64 * 2;
}

TARGET("avx512f,avx512bf16") static double bf16_512(long loops) {
    __m512 a[CHAINS];
    __m512bh x = (__m512bh)_mm512_loadu_si512(memory), y = (__m512bh)_mm512_loadu_si512(memory + 64);
    float out[16];
    for (int j = 0; j < CHAINS; j++) a[j] = _mm512_loadu_ps(memory + 64 * j);
    for (long i = 0; i < loops; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) a[j] = _mm512_dpbf16_ps(a[j], x, y);
    }
    for (int j = 1; j < CHAINS; j++) a[0] = _mm512_add_ps(a[0], a[j]);
    _mm512_storeu_ps(out, a[0]);
    sink += (uint64_t)out[3];
    return CHAINS * 32 * 2;
}

/* Bytes without VNNI. x changes from loop to loop, lest its product is made once. */
TARGET("avx2") static double bytes256(long loops) {
    __m256i a[8], x = _mm256_loadu_si256((__m256i *)memory), y = _mm256_loadu_si256((__m256i *)memory + 1);
    const __m256i ones = _mm256_set1_epi16(1);
    uint32_t out[8];
    for (int j = 0; j < 8; j++) a[j] = _mm256_loadu_si256((__m256i *)memory + j);
    for (long i = 0; i < loops; i++) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            __asm__ volatile("" : "+x"(x));
            a[j] = _mm256_add_epi32(a[j], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
        }
    }
    for (int j = 1; j < 8; j++) a[0] = _mm256_xor_si256(a[0], a[j]);
    _mm256_storeu_si256((__m256i *)out, a[0]);
    sink += out[5];
    return 8 * 32 * 2;
}

/* The configuration is written and then named as a whole: gcc 12's _tile_loadconfig tells the compiler of 8 of its 64 bytes,
 * which lets it drop the others. */
struct tiles {
    uint8_t palette, start, zero[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

#define TILES(name, features, dot, depth)                                                        \
    TARGET("amx-tile," features) static double name(long loops) {                                \
        struct tiles c;                                                                          \
        memset(&c, 0, sizeof c);                                                                 \
        c.palette = 1;                                                                           \
        for (int t = 0; t < 8; t++) c.row_bytes[t] = 64, c.rows[t] = 16;                         \
        __asm__ volatile("ldtilecfg %0" ::"m"(c) : "memory");                                    \
        _tile_loadd(0, memory, 64);                                                              \
        _tile_loadd(1, memory, 64);                                                              \
        _tile_loadd(2, memory, 64);                                                              \
        _tile_loadd(3, memory, 64);                                                              \
        _tile_loadd(4, memory, 64);                                                              \
        _tile_loadd(5, memory + 1024, 64);                                                       \
        _tile_loadd(6, memory + 2048, 64);                                                       \
        _tile_loadd(7, memory + 3072, 64);                                                       \
        for (long i = 0; i < loops; i++) {                                                       \
            dot(0, 4, 6);                                                                        \
            dot(1, 4, 7);                                                                        \
            dot(2, 5, 6);                                                                        \
            dot(3, 5, 7);                                                                        \
        }                                                                                        \
        float out[256];                                                                          \
        _tile_stored(0, out, 64);                                                                \
        _tile_release();                                                                         \
        sink += (uint64_t)(out[7] > 0);                                                          \
        return 4.0 * 16 * 16 * (depth) * 2;                                                      \
    }
TILES(amx_int8, "amx-int8", _tile_dpbssd, 64)
TILES(amx_bf16, "amx-bf16", _tile_dpbf16ps, 32)

/* ---- threads ---- */

struct job {
    pthread_barrier_t *gate;
    double (*arithmetic)(long);
    reader *plain, *fetching, *read; /* the last of them now */
    const unsigned char *from;
    size_t bytes;
    long loops;
    atomic_int *over;
    double start, end, each, done;
};

/* The share again and again, until somebody has read for SECONDS. */
static void read_on(struct job *j) {
    const long passes = j->bytes < PIECE ? (long)(PIECE / j->bytes) : 1;
    size_t at = 0;
    do {
        const size_t bytes = j->bytes - at < PIECE ? j->bytes - at : PIECE;
        j->read(j->from + at, bytes, passes);
        j->done += (double)bytes * (double)passes;
        at = at + bytes < j->bytes ? at + bytes : 0;
        j->end = now();
    } while (!*j->over && j->end - j->start < SECONDS);
    *j->over = 1;
}

static void *work(void *argument) {
    struct job *j = argument;
    pthread_barrier_wait(j->gate);
    j->start = now();
    if (!j->arithmetic) {
        read_on(j);
        return NULL;
    }
    j->each = j->arithmetic(j->loops);
    j->end = now();
    return NULL;
}

/* Seconds from the first thread's start to the last one's end; what one loop did is left in jobs->each. */
static double turn(struct job *jobs, int threads) {
    pthread_t ids[256];
    pthread_barrier_t gate;
    atomic_int over = 0;
    pthread_barrier_init(&gate, NULL, (unsigned)threads);
    for (int t = 0; t < threads; t++) jobs[t].gate = &gate, jobs[t].over = &over, jobs[t].done = 0;
    for (int t = 1; t < threads; t++)
        if (pthread_create(&ids[t], NULL, work, &jobs[t])) exit(2);
    work(&jobs[0]);
    double start = jobs[0].start, end = jobs[0].end;
    for (int t = 1; t < threads; t++) {
        pthread_join(ids[t], NULL);
        if (jobs[t].start < start) start = jobs[t].start;
        if (jobs[t].end > end) end = jobs[t].end;
    }
    pthread_barrier_destroy(&gate);
    return end - start;
}

/* Of arithmetic: loops for a turn of SECONDS, by doubling until a turn is long enough to tell. */
static double fastest(struct job *jobs, int threads, int arithmetic) {
    long loops = 1000;
    double best = 0;
    for (int counted = 0; counted < TURNS;) {
        for (int t = 0; t < threads; t++) jobs[t].loops = loops, jobs[t].read = counted % 2 ? jobs[t].fetching : jobs[t].plain;
        double seconds = turn(jobs, threads), done = 0;
        if (arithmetic && seconds < SECONDS / 2 && !counted) {
            const double factor = SECONDS / (seconds > 1e-6 ? seconds : 1e-6);
            loops = (long)((double)loops * (factor < 2 ? 2 : factor > 50 ? 50 : factor));
            continue;
        }
        for (int t = 0; t < threads; t++) done += arithmetic ? (double)loops * jobs[t].each : jobs[t].done;
        if (done / seconds > best) best = done / seconds;
        counted++;
    }
    return best;
}

static void get_memory(size_t bytes) {
    const size_t page = 2 << 20;
    if (memory_bytes >= bytes) return;
    memory_bytes = (bytes + page) / page * page;
    memory = aligned_alloc(page, memory_bytes);
    if (!memory) exit(3);
    madvise(memory, memory_bytes, MADV_HUGEPAGE);
    uint32_t x = 12345;
    /* Floats in [0.5, 1), and so are their halves as bf16. */
    for (size_t i = 0; i < memory_bytes; i += 4) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        const uint32_t word = 0x3f003f00u | (x & 0x007f007fu);
        memcpy(memory + i, &word, 4);
    }
}

int main(void) {
    static struct job jobs[256];
    char name[32];
    int threads;
    size_t bytes;
    __builtin_cpu_init();
    const int avx512 = __builtin_cpu_supports("avx512f");
    /* Linux gives a process its tile registers when it asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). */
    const int amx = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    get_memory(1 << 20);
    while (scanf("%31s %d %zu", name, &threads, &bytes) == 3) {
        if (threads < 1 || threads > 256) return 1;
        double (*arithmetic)(long) = NULL;
        reader *plain = avx512 ? read512 : __builtin_cpu_supports("avx2") ? read256 : NULL;
        int can = 0;
        if (!strcmp(name, "read")) can = plain != NULL;
        else if (!strcmp(name, "fma512")) arithmetic = fma512, can = avx512;
        else if (!strcmp(name, "fma256")) arithmetic = fma256, can = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        else if (!strcmp(name, "bytes256")) arithmetic = bytes256, can = __builtin_cpu_supports("avx2");
        else if (!strcmp(name, "vnni512")) arithmetic = vnni512, can = __builtin_cpu_supports("avx512vnni");
        else if (!strcmp(name, "bf16_512")) arithmetic = bf16_512, can = __builtin_cpu_supports("avx512bf16");
        else if (!strcmp(name, "amx_int8")) arithmetic = amx_int8, can = amx;
        else if (!strcmp(name, "amx_bf16")) arithmetic = amx_bf16, can = amx;
        else return 1;
        if (!arithmetic) get_memory(bytes);
        for (int t = 0; t < threads; t++) {
            const size_t share = bytes / (size_t)threads / 512 * 512;
            jobs[t] = (struct job){.arithmetic = arithmetic, .plain = plain, .from = memory + share * (size_t)t, .bytes = share};
            jobs[t].fetching = share <= 1 << 20 ? plain : avx512 ? read512_ahead : read256_ahead;
        }
        printf("%.6g\n", can ? fastest(jobs, threads, arithmetic != NULL) : 0.0);
        fflush(stdout);
    }
    return 0;
}
