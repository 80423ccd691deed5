// What every tier's draw of a token is made of, written once so that all of them draw the same token: the random number,
// the constants of a mass, the two integers that masses are compared with. Included inside a tier's anonymous namespace.
#ifndef HOST_DEVICE
#define HOST_DEVICE  // nvcc's word for functions that run there
#endif

// Philox4x32-10 (Salmon et al. 2011): a block of four random words from a counter and a key.
HOST_DEVICE void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = uint64_t(0xd2511f53u) * c0;
        const uint64_t product1 = uint64_t(0xcd9e8d57u) * c2;
        const uint32_t next0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
        const uint32_t next2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
        c1 = uint32_t(product1);
        c3 = uint32_t(product0);
        c0 = next0;
        c2 = next2;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// 53 random bits.
HOST_DEVICE uint64_t random_bits(uint64_t seed, int64_t sequence, int64_t position) {
    const uint32_t counter[4] = {uint32_t(sequence), uint32_t(uint64_t(sequence) >> 32), uint32_t(position),
                                 uint32_t(uint64_t(position) >> 32)};
    const uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    uint32_t word[4];
    philox(counter, key, word);
    return (uint64_t(word[0]) << 32 | word[1]) >> 11;
}

// A mass is 2^t in units of 2^-mass_bits, rounded to an integer, where t = (logit - largest) * mass_scale(temperature)
// is held at -64 or above. 2^t = 2^n 2^f with n = t rounded to an integer and 2^f = 1 + f c0 + f^2 c1 + ...: a minimax
// fit (relative error 1.1e-7) in Horner's order, every product and sum rounded to f32, without FMA: so any processor
// finds the same mass. It is an integer and a float; sums of up to 2^22 of them are exact in 64 bits in any order.
constexpr int mass_bits = 40;
constexpr float mass_one = 0x1p40f;
constexpr float exp2_terms[5] = {0.693147004f, 0.240222424f, 0.0555073358f, 9.67151299e-3f, 1.32647273e-3f};

HOST_DEVICE float mass_scale(float temperature) {
    const double scale = 1.4426950408889634 / double(temperature);
    return scale < 3.4e38 ? float(scale) : 3.4e38f;  // 0 times it must be 0
}

// The sum that top_p of `total` is reached with, at least 1 and at most `total`.
HOST_DEVICE int64_t top_p_sum(float top_p, int64_t total) {
    const double exact = double(top_p) * double(total);
    int64_t sum = int64_t(exact);
    if (double(sum) < exact || sum == 0) sum++;
    return sum < total ? sum : total;
}

// A number in [0, total): the token drawn is the first at which the running sum of masses exceeds it.
HOST_DEVICE int64_t draw_target(uint64_t random, int64_t total) {
    return int64_t((static_cast<unsigned __int128>(random) * uint64_t(total)) >> 53);
}

// body(row, its slot's scratch) for each row of the slots [begin, end).
template <class Args, class Body>
void each_row(const Args& a, int64_t begin, int64_t end, Body body) {
    for (int64_t slot = begin; slot < end; slot++) {
        char* scratch = static_cast<char*>(a.scratch) + slot * scratch_bytes(a.dim);
        for (int64_t r = slot; r < a.rows; r += scratch_slots(a.rows)) body(r, scratch);
    }
}

// Whether a stands before b in descending order, equals by ascending id.
HOST_DEVICE bool before(float value_a, int32_t id_a, float value_b, int32_t id_b) {
    return value_a > value_b || (value_a == value_b && id_a < id_b);
}
