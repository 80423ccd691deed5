// Attention of prompts over pages of f16, bf16 and i8: blocks of up to 128 places that go through the pages together (FlashAttention-2, Dao 2023).
//
// A place is a query head of a row; those of a KV head are numbered row by row, so a tile is some rows with all heads that share
// their keys. Each of a block's four warps has 32 places (16 where a head is wide), their sums of p v in registers from
// beginning to end. A page of K and one of V are copied to shared memory while the page before is at work.
//
// mma.m16n8k16, lane (g, t) = (lane / 4, lane % 4). Which keys its columns are is ours to say: of 32 keys of a page column c of
// product i is key 4 c + i, so what a lane takes of K are 16 bytes, keys 4 g .. 4 g + 3 of a pair of channels:
//
//   K of 16 keys   pair 0   key 0  1  2  3 | 4  5  6  7 | ...   (two channels of 2 bytes each)
//                  pair 1   ...                                 lane (g, t): pairs 8 s + 2 t and 8 s + 2 t + 1 of step s
//
// Its scores are then those of keys 8 t + i (first column) and 8 t + 4 + i of place g, which pair up, key by key, to the first
// operand of the product with V: keys 8 t + 4 j .. 8 t + 4 j + 3 in step j. Of V it takes 16 bytes again, channels 4 g .. 4 g + 3
// of a pair of keys; column c of product i is channel 4 c + i of 32.
//
// Shared memory has the units of 16 bytes in other places among the eight of 128 bytes: a row of them has the other four pairs of t
// or keys of t, whose lanes would meet in the same banks.
//
// Codes of i8 are copied beside them, and become a page of 16-bit operands when the one before has been used: each thread widens what it
// has copied itself.
//
// The softmax is in powers of two. A place's reference is a score it has seen, and follows the largest one only where that is more
// than 2^8 above it; so sums are rarely rescaled. It depends on the place's own scores, and a page of which a place sees no key
// leaves its sums as they are: its bits do not depend on what else is in the launch.

constexpr int prompt_warps = 4, prompt_threads = 32 * prompt_warps;
constexpr float prompt_unseen = -3.4e38f, prompt_lag = 8.0f;

// By the head's width: tiles of 16 places a warp, as far as registers go; one stage where two pages and the queries would leave room for
// one block only.
constexpr int prompt_m_tiles(int blocks32, bool extras) { return blocks32 <= (extras ? 3 : 4) ? 2 : 1; }
constexpr int prompt_stages(int blocks32, bool coded) { return blocks32 <= 4 && !coded ? 2 : 1; }
constexpr int prompt_places(int m_tiles) { return 16 * m_tiles * prompt_warps; }

// Where units of a page lie in shared memory.
HOST_DEVICE constexpr int prompt_key_swizzle(int unit) { return unit ^ (unit / 8 % 4 * 2); }
HOST_DEVICE constexpr int prompt_value_swizzle(int unit, int dim) { return unit ^ (unit / (dim / 4) / 4 % 4 * 2); }
// The same of what lane (g, t) takes: K of keys 4 g .. of half a page, pair 8 step + 2 t + second; V of channels 4 g .. of 32, keys
// 32 half + 8 t + 4 j + 2 second and the next one.
HOST_DEVICE constexpr int prompt_key_unit(int g, int t, int half, int step, int second, int dim) {
    return (2 * half + g / 4) * 2 * dim + 32 * step + 8 * t + ((4 * second + g % 4) ^ (2 * t));
}
HOST_DEVICE constexpr int prompt_value_unit(int g, int t, int half, int j, int second, int channels32, int dim) {
    return (16 * half + 4 * t + 2 * j + second) * (dim / 4) + 8 * channels32 + (g ^ (2 * t));
}
// Of 16 codes a thread takes 8 first, half of the lanes the lower ones and half the upper ones, so that none meet in a bank; this becomes this
// unit of a page of operands.
HOST_DEVICE constexpr int prompt_widened_unit(int thread, int turn) {
    return 2 * (turn / 2 * prompt_threads + thread) + (turn ^ thread / 4 ^ thread / 8) % 2;
}

struct PromptUnits {
    int32_t first_row, rows, first_kv, kvs, group;  // of the launch; query heads of a KV head
    int32_t sharing;                                // blocks of a tile, which take its sequences in turn
    bool aligned;                                   // queries may be read by 16 bytes
};

// What a warp knows of its places: keys that any of them sees, and those that all see.
struct alignas(16) PromptRange {
    int32_t lowest, highest, full_from, full_to;
};

template <bool coded, int dim>
struct PromptCodes {};
template <int dim>
struct PromptCodes<true, dim> {  // of K and of V; scales on their way, and those of the page that is at work
    alignas(16) uint8_t codes[2][page_keys * dim];
    alignas(16) float scales_ahead[2][page_keys], scales[2][page_keys];
};

template <DType type, int blocks32, int m_tiles>
struct alignas(16) PromptPlace : PromptCodes<Stored<type>::coded, 32 * blocks32> {
    static constexpr int dim = 32 * blocks32, places = prompt_places(m_tiles), stages = prompt_stages(blocks32, Stored<type>::coded);
    static constexpr bool together = Stored<type>::coded && blocks32 > 4;  // K and V one after the other in the same memory
    alignas(16) uint16_t pages[together ? 1 : 2 * stages][page_keys * dim];
    uint32_t q[prompt_warps][m_tiles][dim / 16][32][4];  // the first operand, step by step
    float unscale[places], slope[places];
    int32_t position[places], low[places];  // keys low .. position; position -1: nobody now
    int32_t row[places];                    // -1: nobody any more
    int32_t next[prompt_warps];  // the first place of somebody
    PromptRange range[prompt_warps];
};
template <class Place>
DEVICE uint16_t* prompt_keys(Place& place, int stage) { return place.pages[stage]; }
template <class Place>
DEVICE uint16_t* prompt_values(Place& place, int stage) { return place.pages[Place::together ? 0 : Place::stages + stage]; }

DEVICE void prompt_store(void* to, const void* from) { memcpy(__builtin_assume_aligned(to, 16), from, 16); }
DEVICE void prompt_load(void* to, const void* from) { memcpy(to, __builtin_assume_aligned(from, 16), 16); }

// Scores of a page's keys: of place g + 8 r of m_tile m, keys 32 h + 8 t + 4 j + i, in s[m][h][i][2 r + j].
template <DType type, int blocks32, int m_tiles>
DEVICE void prompt_scores(const PromptPlace<type, blocks32, m_tiles>& place, const uint16_t* keys, float (&s)[m_tiles][2][4][4]) {
    constexpr int dim = 32 * blocks32;
    const int g = gk::lane() / 4, t = gk::lane() % 4;
    GK_UNROLL
    for (int step = 0; step < dim / 16; step++) {
        gk::Words4 w[2][2];
        uint32_t q[m_tiles][4];
        for (int m = 0; m < m_tiles; m++) prompt_load(q[m], place.q[gk::thread() / 32][m][step][gk::lane()]);
        for (int e = 0; e < 4; e++) prompt_load(&w[e / 2][e % 2], keys + 8 * prompt_key_unit(g, t, e / 2, step, e % 2, dim));
        GK_UNROLL
        for (int h = 0; h < 2; h++)
            GK_UNROLL
            for (int i = 0; i < 4; i++)
                GK_UNROLL
                for (int m = 0; m < m_tiles; m++) stored_product<Stored<type>::half_keys>(s[m][h][i], q[m], {w[h][0].x[i], w[h][1].x[i]});
    }
    if constexpr (Stored<type>::coded) {
        GK_UNROLL
        for (int hj = 0; hj < 4; hj++) {
            float scale[4];
            prompt_load(scale, place.scales[0] + 32 * (hj / 2) + 8 * t + 4 * (hj % 2));
            GK_UNROLL
            for (int e = 0; e < 8 * m_tiles; e++) s[e / 8][hj / 2][e / 2 % 4][2 * (e % 2) + hj % 2] *= scale[e / 2 % 4];
        }
    }
}

// A page: softmax(scores) in the type of V's operands, of codes times their scales, into p, the first operand of the product with V; sums
// are rescaled to the reference.
template <DType type, int blocks32, int m_tiles, bool extras>
DEVICE void prompt_softmax(const AttentionArgs& a, const PromptPlace<type, blocks32, m_tiles>& place, bool masked, int first_key,
                           float (&s)[m_tiles][2][4][4], float (&reference)[m_tiles][2], float (&total)[m_tiles][2],
                           float (&o)[m_tiles][blocks32][4][4], uint32_t (&p)[m_tiles][2][2][4]) {
    const int g = gk::lane() / 4, t = gk::lane() % 4, warp_first = gk::thread() / 32 * 16 * m_tiles;
    constexpr bool half = Stored<type>::half_keys;
    const volatile float* unscales = place.unscale + warp_first + g;  // read where needed: registers are few
    float next[m_tiles][2];
    bool rescaled = false;
    GK_UNROLL
    for (int mr = 0; mr < 2 * m_tiles; mr++) {
        const int m = mr / 2, r = mr % 2, at = warp_first + 16 * m + 8 * r + g;
        if constexpr (extras) {
            const float unscale = half ? unscales[16 * m + 8 * r] : 1.0f, slope = place.slope[at];
            const float distance = float(first_key + 8 * t - place.position[at]);
            GK_UNROLL
            for (int e = 0; e < 16; e++) {
                float& x = s[m][e / 8][e / 2 % 4][2 * r + e % 2];
                if (half) x *= unscale;
                if (a.softcap > 0)  // tanh y = 1 - 2 / (1 + e^2y)
                    x = a.softcap - 2.0f * a.softcap * gk::reciprocal(1.0f + gk::exp2(x * (2.88539008f / a.softcap)));
                x = gk::fma(slope, distance + float(32 * (e / 8) + 4 * (e % 2) + e / 2 % 4), x) * 1.44269504f;
            }
        }
        if (masked) {
            const uint32_t low = uint32_t(place.low[at] - first_key - 8 * t), span = uint32_t(place.position[at] - place.low[at]);
            GK_UNROLL
            for (int e = 0; e < 16; e++) {
                float& x = s[m][e / 8][e / 2 % 4][2 * r + e % 2];
                x = uint32_t(32 * (e / 8) + 4 * (e % 2) + e / 2 % 4) - low <= span ? x : -infinity;
            }
        }
        float most = -infinity;
        GK_UNROLL
        for (int e = 0; e < 16; e++) most = gk::larger(s[m][e / 8][e / 2 % 4][2 * r + e % 2], most);
        most = gk::larger(gk::shuffle_xor(most, 1), most);
        most = gk::larger(gk::shuffle_xor(most, 2), most);
        if constexpr (half && !extras) most *= unscales[16 * m + 8 * r];
        const bool moves = most > reference[m][r] + prompt_lag;
        next[m][r] = moves ? most : reference[m][r];
        rescaled = rescaled || moves;
    }
    if (gk::ballot(rescaled)) {
        GK_UNROLL
        for (int mr = 0; mr < 2 * m_tiles; mr++) {
            const int m = mr / 2, r = mr % 2;
            const float factor = gk::exp2(reference[m][r] - next[m][r]);  // 1 where it is the same
            reference[m][r] = next[m][r];
            total[m][r] *= factor;
            GK_UNROLL
            for (int e = 0; e < 8 * blocks32; e++) o[m][e / 8][e / 2 % 4][2 * r + e % 2] *= factor;
        }
    }
    GK_UNROLL
    for (int mr = 0; mr < 2 * m_tiles; mr++) {
        const int m = mr / 2, r = mr % 2;
        const float unscale = half && !extras ? unscales[16 * m + 8 * r] : 1.0f;
        GK_UNROLL
        for (int pair = 0; pair < 8; pair++) {  // keys 32 h + 8 t + 4 j + i and the next one
            const int h = pair / 4, j = pair / 2 % 2, i = pair % 2 * 2;
            float x[2];
            GK_UNROLL
            for (int e = 0; e < 2; e++) {
                const float score = s[m][h][i + e][2 * r + j];
                x[e] = gk::exp2(half && !extras ? gk::fma(score, unscale, -reference[m][r]) : score - reference[m][r]);
                total[m][r] += x[e];
                if constexpr (Stored<type>::coded) x[e] *= static_cast<const volatile float&>(place.scales[1][32 * h + 8 * t + 4 * j + i + e]);
            }
            p[m][h][j][i + r] = Stored<type>::half_values ? gk::pack_f16(x[0], x[1]) : gk::pack_bf16(x[0], x[1]);
        }
    }
}

// o += p v.
template <bool half, int blocks32, int m_tiles>
DEVICE void prompt_sums(const uint16_t* values, const uint32_t (&p)[m_tiles][2][2][4], float (&o)[m_tiles][blocks32][4][4]) {
    constexpr int dim = 32 * blocks32;
    const int g = gk::lane() / 4, t = gk::lane() % 4;
    GK_UNROLL
    for (int hj = 0; hj < 4; hj++)
        GK_UNROLL
        for (int c = 0; c < blocks32; c++) {
            gk::Words4 w[2];
            for (int e = 0; e < 2; e++) prompt_load(&w[e], values + 8 * prompt_value_unit(g, t, hj / 2, hj % 2, e, c, dim));
            GK_UNROLL
            for (int i = 0; i < 4; i++)
                GK_UNROLL
                for (int m = 0; m < m_tiles; m++) stored_product<half>(o[m][c][i], p[m][hj / 2][hj % 2], {w[0].x[i], w[1].x[i]});
        }
}
