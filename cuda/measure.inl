// Loops that measure what the device can do: reading, and arithmetic whose operands stay in registers. A block a unit.

// The loads of a thread that are on their way together: 256 threads ask for 32 KB, of which a multiprocessor needs about as much
// in flight as memory takes to answer (bandwidth x latency), and several blocks are on it.
constexpr int measure_loads = 8;
constexpr int measure_place = 32 * int(sizeof(uint64_t));
// Products or sums a chain. So few that a block takes microseconds, so many that starting and ending it are nothing beside.
constexpr int measure_rounds = 1024, measure_chains = 8;
constexpr int measure_products = 256;
constexpr double mma_16_operations = 2.0 * 16 * 8 * 16, mma_32_operations = 2.0 * 16 * 8 * 32;

// The exclusive or of all threads' words, to thread 0.
DEVICE uint64_t block_xor(uint64_t x, uint64_t* place) {
    GK_UNROLL
    for (int d = 16; d > 0; d /= 2) x ^= gk::shuffle_xor(x, d);
    if (gk::lane() == 0) place[gk::thread() / 32] = x;
    gk::sync();
    uint64_t all = 0;
    for (int i = 0; i < gk::threads() / 32; i++) all ^= place[i];
    return all;
}

// Bytes before the first and after the last multiple of 16 are read one by one; between, byte i of a word is byte
// (head + i) % 8 of the unit's. load_stream is volatile and passes the first cache by: every repeat reads again.
GK_KERNEL void measure_read_kernel(MeasureReadArgs a, int64_t first) {
    gk::wait_for_previous();
    gk::let_next_start();
    auto* place = reinterpret_cast<uint64_t*>(gk::shared());
    const int64_t unit = first + gk::block(), thread = gk::thread(), threads = gk::threads();
    const uint8_t* memory = a.memory + unit * a.bytes;
    const int64_t to_line = int64_t(-reinterpret_cast<uintptr_t>(memory) % 16);
    const int64_t head = to_line < a.bytes ? to_line : a.bytes, lines = (a.bytes - head) / 16, end = head + lines * 16;
    uint64_t low = 0, high = 0;
    for (int64_t repeat = 0; repeat < a.repeats; repeat++) {
        low = high = 0;
        auto join = [&](const gk::Words4& w) {
            low ^= w.x[0] | uint64_t(w.x[1]) << 32;
            high ^= w.x[2] | uint64_t(w.x[3]) << 32;
        };
        int64_t line = thread;
        for (; line + (measure_loads - 1) * threads < lines; line += measure_loads * threads) {
            gk::Words4 read[measure_loads];
            GK_UNROLL
            for (int i = 0; i < measure_loads; i++) read[i] = gk::load_stream(memory + head + (line + i * threads) * 16);
            GK_UNROLL
            for (int i = 0; i < measure_loads; i++) join(read[i]);
        }
        for (; line < lines; line += threads) join(gk::load_stream(memory + head + line * 16));
    }
    const int turn = int(head % 8 * 8);
    uint64_t word = low ^ high;
    if (turn) word = word << turn | word >> (64 - turn);
    if (thread < head) word ^= uint64_t{memory[thread]} << thread % 8 * 8;
    if (end + thread < a.bytes) word ^= uint64_t{memory[end + thread]} << (end + thread) % 8 * 8;
    word = block_xor(word, place);
    if (thread == 0 && a.words) a.words[unit] = word;
}

// What a block found, and how much it computed.
DEVICE void measured(const MeasureArithmeticArgs& a, int64_t unit, float found, double operations_a_warp) {
    const float sum = block_sum(found, reinterpret_cast<float*>(gk::shared()));
    if (gk::thread() != 0) return;
    a.results[unit] = sum;
    a.operations[unit] = operations_a_warp * (gk::threads() / 32);
}

// x -> x * m + c stays near 1.
GK_KERNEL void measure_f32_kernel(MeasureArithmeticArgs a, int64_t first) {
    gk::wait_for_previous();
    gk::let_next_start();
    float acc[measure_chains];
    GK_UNROLL
    for (int i = 0; i < measure_chains; i++) acc[i] = a.data[(gk::lane() + 32 * i) % 256];
    const float factor = a.data[gk::lane()] * 0.5f, more = 0.5f;
    for (int r = 0; r < measure_rounds; r++) {
        GK_UNROLL
        for (int i = 0; i < measure_chains; i++) acc[i] = gk::fma(acc[i], factor, more);
    }
    float sum = 0.0f;
    GK_UNROLL
    for (int i = 0; i < measure_chains; i++) sum += acc[i];
    measured(a, first + gk::block(), sum, 2.0 * 32 * measure_rounds * measure_chains);
}

// Sums of products of tensor cores, `chains` of them apart, so that one need not wait for the one before. T: of the sums.
template <class T, class Product>
DEVICE float multiply(const float* data, Product product) {
    uint32_t a[4], b[2];
    GK_UNROLL
    for (int i = 0; i < 4; i++) a[i] = to_bits(data[gk::lane() + 32 * i]);
    GK_UNROLL
    for (int i = 0; i < 2; i++) b[i] = to_bits(data[gk::lane() + 32 * (4 + i)]);
    T acc[measure_chains][4] = {};
    for (int r = 0; r < measure_products; r++) {
        GK_UNROLL
        for (int i = 0; i < measure_chains; i++) product(acc[i], a, b);
    }
    float sum = 0.0f;
    GK_UNROLL
    for (int i = 0; i < measure_chains; i++)
        for (int j = 0; j < 4; j++) sum += float(acc[i][j]);
    return sum;
}

GK_KERNEL void measure_bf16_kernel(MeasureArithmeticArgs a, int64_t first) {
    gk::wait_for_previous();
    gk::let_next_start();
    const float sum = multiply<float>(a.data, [](float (&d)[4], const uint32_t (&x)[4], const uint32_t (&y)[2]) { gk::mma_bf16(d, x, y); });
    measured(a, first + gk::block(), sum, mma_16_operations * measure_products * measure_chains);
}

GK_KERNEL void measure_int8_kernel(MeasureArithmeticArgs a, int64_t first) {
    gk::wait_for_previous();
    gk::let_next_start();
    const float sum = multiply<int32_t>(a.data, [](int32_t (&d)[4], const uint32_t (&x)[4], const uint32_t (&y)[2]) { gk::mma_k32(d, x, y); });
    measured(a, first + gk::block(), sum, mma_32_operations * measure_products * measure_chains);
}

// For what starting costs.
GK_KERNEL void nothing_kernel(int64_t) {
    gk::wait_for_previous();
    gk::let_next_start();
}
