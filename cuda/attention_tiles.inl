// Attention of many rows (prompts) over 16-bit pages by tensor cores.
//
// A tile is 16 places: the heads of a KV head, of one row or of several rows that follow one another in a sequence (those of
// more than 16 heads are several tiles). A chunk is 256 keys; each of a block's four warps has a page of it, with a softmax of
// its own; the pages of a chunk are put together in order, then the chunks.
//
// mma.m16n8k16, lane (g, t) = (lane / 4, lane % 4). Which keys its columns are is ours to say: of 32 keys of a page column c of
// product i is key 4 c + i, so that what a lane takes of K are 16 bytes, keys 4 g .. 4 g + 3 of a pair of channels:
//
//   K of 16 keys   pair 0   key 0  1  2  3 | 4  5  6  7 | ...   (two channels of 2 bytes each)
//                  pair 1   ...                                 lane (g, t): pairs 8 s + t and 8 s + t + 4 of step s
//
// Its scores are then those of keys 8 t + i (first column) and 8 t + 4 + i of place g, which pair up, key by key, to the first
// operand of the product with V: keys 8 t + 4 j .. 8 t + 4 j + 3 in step j. Of V it takes 16 bytes again, channels 4 g .. 4 g + 3
// of a pair of keys; column c of product i is channel 4 c + i of 32.

constexpr int tile_places = 16, tile_warps = 4, tile_threads = 32 * tile_warps;
constexpr int64_t chunk_keys = tile_warps * page_keys;

static bool has_tiles(const AttentionArgs& a) {
    const int64_t dim = a.pages.head_dim;
    return (a.pages.dtype == DType::f16 || a.pages.dtype == DType::bf16) && dim % 32 == 0 && dim / 32 <= 8 && dim / 32 != 5 && dim / 32 != 7;
}

// Key of a page and channel of a head that element `i` of product `product` is in lane (g, t), by the half page or 32 channels.
static constexpr int score_key(int t, int product, int second) { return 8 * t + 4 * second + product; }
static constexpr int out_channel(int t, int product, int second) { return 8 * t + 4 * second + product; }
// Where a lane's 16 bytes begin, in elements of a page: K of keys 4 g .. of 32, V of channels 4 g .. of a pair of keys.
static constexpr int64_t key_words(int g, int half, int64_t pair, int64_t dim) {
    return ((2 * half + g / 4) * dim / 2 + pair) * 2 * tile_keys + g % 4 * 8;
}
static constexpr int64_t value_words(int g, int64_t key_pair, int64_t channels, int64_t dim) { return key_pair * 2 * dim + (channels + 4 * g) * 2; }

// What a tile is of.
struct TileUnits {
    int64_t first_row, rows, first_kv, kvs;  // of the whole launch
    int64_t tile_rows, tile_heads;           // rows x heads <= 16 places
    int64_t head_tiles;
};

template <int blocks32>
struct alignas(16) TilePlace {
    static constexpr int dim = 32 * blocks32;
    uint32_t q[dim / 16][32][4];                 // the first operand, step by step
    float page[tile_warps][tile_places][dim + 2];  // sums of p v, the largest score, the sum of p
    float merged[tile_places][dim + 2];
    float factor[tile_warps][tile_places];       // of a page in its chunk
    float chunk[tile_places][2], shrink[tile_places], share[tile_places];
    float unscale[tile_places];
    int64_t position[tile_places], low[tile_places];  // keys low .. position; position -1: nobody
    int64_t lowest, highest, next_row;
};

// The sums of places [0, 16) over a page's keys. Keys below lowest and above highest are no numbers yet, or others'.
template <bool half, int blocks32>
DEVICE void attend_page(const AttentionArgs& a, TilePlace<blocks32>& place, int64_t head0, int64_t tile_heads, const uint16_t* keys,
                        const uint16_t* values, int64_t first_key) {
    constexpr int dim = 32 * blocks32;
    const int g = gk::lane() / 4, t = gk::lane() % 4;
    float s[2][4][4] = {};
    GK_ROLLED
    for (int step0 = 0; step0 < dim / 16; step0 += 2) {  // eight loads of 16 bytes on their way
        gk::Words4 w[2][2][2];
        GK_UNROLL
        for (int e = 0; e < 8; e++)
            memcpy(&w[e / 4][e / 2 % 2][e % 2], __builtin_assume_aligned(keys + key_words(g, e / 4, 8 * (step0 + e / 2 % 2) + t + 4 * (e % 2), dim), 16), 16);
        GK_UNROLL
        for (int step = 0; step < 2; step++) {
            uint32_t q[4];
            memcpy(q, place.q[step0 + step][gk::lane()], 16);
            GK_UNROLL
            for (int h = 0; h < 2; h++)
                GK_UNROLL
                for (int i = 0; i < 4; i++) {
                    if constexpr (half) gk::mma_f16(s[h][i], q, {w[h][step][0].x[i], w[h][step][1].x[i]});
                    else gk::mma_bf16(s[h][i], q, {w[h][step][0].x[i], w[h][step][1].x[i]});
                }
        }
    }
    float largest[2], total[2];
    GK_UNROLL
    for (int r = 0; r < 2; r++) {  // places g and g + 8
        const int at = g + 8 * r;
        const int64_t position = place.position[at] - first_key, low = place.low[at] - first_key;
        const float unscale = place.unscale[at], slope = a.alibi_slopes && position + first_key >= 0 ? a.alibi_slopes[head0 + at % tile_heads] : 0.0f;
        float most = -infinity;
        GK_UNROLL
        for (int h = 0; h < 2; h++)
            GK_UNROLL
            for (int i = 0; i < 4; i++)
                GK_UNROLL
                for (int j = 0; j < 2; j++) {
                    const int64_t key = 32 * h + score_key(t, i, j);
                    float x = s[h][i][2 * r + j] * unscale;
                    if (a.softcap > 0) x = a.softcap * tanh(x / a.softcap);
                    x += slope * float(key - position);
                    s[h][i][2 * r + j] = x;
                    if (key >= low && key <= position) most = max(x, most);
                }
        most = max(gk::shuffle_xor(most, 1), most);
        most = max(gk::shuffle_xor(most, 2), most);
        float sum = 0.0f;
        GK_UNROLL
        for (int h = 0; h < 2; h++)
            GK_UNROLL
            for (int i = 0; i < 4; i++)
                GK_UNROLL
                for (int j = 0; j < 2; j++) {
                    const int64_t key = 32 * h + score_key(t, i, j);
                    const float p = key >= low && key <= position ? exp(s[h][i][2 * r + j] - most) : 0.0f;
                    s[h][i][2 * r + j] = p;
                    sum += p;
                }
        sum += gk::shuffle_xor(sum, 1);
        sum += gk::shuffle_xor(sum, 2);
        largest[r] = most, total[r] = sum;
    }
    uint32_t p[2][2][4];  // of half h and step j: keys 8 t + 4 j and the three after it
    GK_UNROLL
    for (int h = 0; h < 2; h++)
        GK_UNROLL
        for (int j = 0; j < 2; j++)
            GK_UNROLL
            for (int w = 0; w < 4; w++) {
                const int i = w / 2 * 2, at = 2 * (w % 2) + j;
                p[h][j][w] = half ? gk::pack_f16(s[h][i][at], s[h][i + 1][at]) : gk::pack_bf16(s[h][i][at], s[h][i + 1][at]);
            }
    const int64_t lowest = place.lowest - first_key, highest = place.highest - first_key;
    float(&sums)[tile_places][dim + 2] = place.page[gk::thread() / 32];
    GK_ROLLED
    for (int c = 0; c < blocks32; c++) {
        float o[4][4] = {};
        GK_UNROLL
        for (int h = 0; h < 2; h++)
            GK_UNROLL
            for (int j = 0; j < 2; j++) {
                gk::Words4 w[2];
                GK_UNROLL
                for (int pair = 0; pair < 2; pair++) {
                    const int64_t key = 32 * h + 8 * t + 4 * j + 2 * pair;
                    memcpy(&w[pair], __builtin_assume_aligned(values + value_words(g, key / 2, 32 * c, dim), 16), 16);
                    const uint32_t seen = (key >= lowest && key <= highest ? 0xffffu : 0u) | (key + 1 >= lowest && key + 1 <= highest ? 0xffff0000u : 0u);
                    GK_UNROLL
                    for (int i = 0; i < 4; i++) w[pair].x[i] &= seen;
                }
                GK_UNROLL
                for (int i = 0; i < 4; i++) {
                    if constexpr (half) gk::mma_f16(o[i], p[h][j], {w[0].x[i], w[1].x[i]});
                    else gk::mma_bf16(o[i], p[h][j], {w[0].x[i], w[1].x[i]});
                }
            }
        GK_UNROLL
        for (int i = 0; i < 4; i++)
            GK_UNROLL
            for (int e = 0; e < 4; e++) sums[g + 8 * (e / 2)][32 * c + out_channel(t, i, e % 2)] = o[i][e];
    }
    GK_UNROLL
    for (int r = 0; r < 2; r++)
        if (t == 0) sums[g + 8 * r][dim] = largest[r], sums[g + 8 * r][dim + 1] = total[r];
}

// A chunk of the tile's places: its four pages, put together in place.page[0]. Nobody's place has a total of 0.
template <bool half, int blocks32>
DEVICE void attend_chunk(const AttentionArgs& a, TilePlace<blocks32>& place, int64_t sequence, int64_t kv, int64_t head0, int64_t tile_heads, int64_t chunk) {
    constexpr int dim = 32 * blocks32;
    const int warp = gk::thread() / 32;
    const int64_t page = chunk * tile_warps + warp, first = page * page_keys;
    if (first <= place.highest && first + page_keys > place.lowest) {
        const int64_t number = a.pages.page_table[sequence * a.pages.max_pages + page], at = (kv * a.pages.pages + number) * page_keys * dim;
        attend_page<half, blocks32>(a, place, head0, tile_heads, static_cast<const uint16_t*>(a.pages.k) + at, static_cast<const uint16_t*>(a.pages.v) + at, first);
    } else if (gk::lane() < tile_places) {
        place.page[warp][gk::lane()][dim] = -infinity, place.page[warp][gk::lane()][dim + 1] = 0.0f;
    }
    gk::sync();
    if (gk::thread() < tile_places) {
        const int p = gk::thread();
        float largest = -infinity, total = 0.0f;
        GK_UNROLL
        for (int w = 0; w < tile_warps; w++)
            if (place.page[w][p][dim + 1] != 0.0f) largest = max(place.page[w][p][dim], largest);
        GK_UNROLL
        for (int w = 0; w < tile_warps; w++) {
            const bool any = place.page[w][p][dim + 1] != 0.0f;
            const float factor = any ? exp(place.page[w][p][dim] - largest) : 0.0f;
            place.factor[w][p] = factor;
            if (any) total += place.page[w][p][dim + 1] * factor;
        }
        place.chunk[p][0] = largest, place.chunk[p][1] = total;
    }
    gk::sync();
    for (int e = gk::thread(); e < tile_places * dim; e += tile_threads) {
        const int p = e / dim, i = e % dim;
        float sum = 0.0f;
        GK_UNROLL
        for (int w = 0; w < tile_warps; w++)
            if (place.page[w][p][dim + 1] != 0.0f) sum = gk::fma(place.page[w][p][i], place.factor[w][p], sum);
        place.page[0][p][i] = sum;
    }
    gk::sync();
}

// What is merged so far goes times `shrink`, the next partial times `share`.
DEVICE void merge_factors(float& largest, float& total, float next_largest, float next_total, float& shrink, float& share) {
    if (next_total == 0.0f) {
        shrink = 1.0f, share = 0.0f;
        return;
    }
    if (total == 0.0f) {
        shrink = 0.0f, share = 1.0f;
        largest = next_largest, total = next_total;
        return;
    }
    const float all = max(next_largest, largest);
    shrink = exp(largest - all), share = exp(next_largest - all);
    total = total * shrink + next_total * share;
    largest = all;
}
DEVICE float merged_sum(float sum, float shrink, float next, float share) {
    if (share == 0.0f) return sum * shrink;  // 0 times what is no number would be none
    return shrink == 0.0f ? next * share : sum * shrink + next * share;
}

template <int blocks32>
DEVICE void write_tile(const AttentionArgs& a, TilePlace<blocks32>& place, int64_t row0, int64_t head0, int64_t tile_heads) {
    constexpr int dim = 32 * blocks32;
    for (int e = gk::thread(); e < tile_places * dim; e += tile_threads) {
        const int p = e / dim, i = e % dim;
        if (place.position[p] < 0) continue;
        const int64_t head = head0 + p % tile_heads, row = row0 + p / tile_heads;
        float total = place.merged[p][dim + 1], shrink = 1.0f;
        if (a.sinks) {
            const float largest = max(a.sinks[head], place.merged[p][dim]);
            shrink = exp(place.merged[p][dim] - largest);
            total = total * shrink + exp(a.sinks[head] - largest);
        }
        a.out[row * a.out_stride + head * dim + i] = place.merged[p][i] * shrink / total;
    }
}

// Places of the rows of one sequence from row0 on, and their queries.
template <bool half, int blocks32>
DEVICE void begin_tile(const AttentionArgs& a, TilePlace<blocks32>& place, int64_t row0, int64_t rows, int64_t head0, int64_t heads, int64_t tile_heads) {
    constexpr int dim = 32 * blocks32;
    if (gk::thread() == 0) {
        int64_t end = 1;
        while (end < rows && a.pages.sequences[row0 + end] == a.pages.sequences[row0]) end++;
        place.next_row = row0 + end;
    }
    gk::sync();
    if (gk::thread() < tile_places) {
        const int64_t row = row0 + gk::thread() / tile_heads;
        const bool anybody = row < place.next_row && gk::thread() % tile_heads < heads;
        place.position[gk::thread()] = anybody ? a.pages.positions[row] : -1;
        place.low[gk::thread()] = anybody ? first_key(a, row) : 0;
    }
    gk::sync();
    if (gk::thread() == 0) {
        int64_t lowest = INT64_MAX, highest = -1;
        for (int p = 0; p < tile_places; p++) {
            if (place.position[p] < 0) continue;
            lowest = place.low[p] < lowest ? place.low[p] : lowest;
            highest = place.position[p] > highest ? place.position[p] : highest;
        }
        place.lowest = lowest, place.highest = highest;
    }
    // f16 ends at 65,504: queries are taken at the power of two that brings their largest below 2.
    for (int p = gk::thread() / 32; p < tile_places; p += tile_warps) {
        float largest = 0.0f;
        if (half && place.position[p] >= 0) {
            const float* q = a.q + (row0 + p / tile_heads) * a.q_stride + (head0 + p % tile_heads) * dim;
            for (int i = gk::lane(); i < dim; i += 32) largest = max(abs(q[i] * a.scale), largest);
        }
        GK_UNROLL
        for (int d = 16; d > 0; d /= 2) largest = max(gk::shuffle_xor(largest, d), largest);
        const int exponent = int(to_bits(largest) >> 23) - 127;
        if (gk::lane() == 0) place.unscale[p] = half && exponent > -100 && exponent < 100 ? power_of_two(exponent) : 1.0f;
    }
    gk::sync();
    for (int e = gk::thread(); e < dim / 16 * 32 * 4; e += tile_threads) {
        const int step = e / 128, lane = e / 4 % 32, w = e % 4, p = lane / 4 + 8 * (w % 2), channel = 16 * step + 2 * (lane % 4) + 8 * (w / 2);
        float x[2] = {};
        if (place.position[p] >= 0) {
            const float* q = a.q + (row0 + p / tile_heads) * a.q_stride + (head0 + p % tile_heads) * dim + channel;
            for (int i = 0; i < 2; i++) x[i] = q[i] * a.scale / place.unscale[p];
        }
        place.q[step][lane][w] = half ? gk::pack_f16(x[0], x[1]) : gk::pack_bf16(x[0], x[1]);
    }
    gk::sync();
}

template <bool half, int blocks32>
GK_KERNEL void GK_BOUNDS(tile_threads, 3) attention_tile_kernel(AttentionArgs a, TileUnits u) {
    gk::wait_for_previous(), gk::let_next_start();
    constexpr int dim = 32 * blocks32;
    auto& place = *reinterpret_cast<TilePlace<blocks32>*>(gk::shared());
    const int64_t tile = gk::blocks() - 1 - gk::block();  // the longest ones first
    const int64_t kv = u.first_kv + tile / u.head_tiles % u.kvs, group = a.heads / a.pages.kv_heads, within = tile % u.head_tiles * u.tile_heads;
    const int64_t head0 = kv * group + within, heads = group - within < u.tile_heads ? group - within : u.tile_heads;
    int64_t row = u.first_row + tile / u.head_tiles / u.kvs * u.tile_rows;
    const int64_t end = row + u.tile_rows < u.first_row + u.rows ? row + u.tile_rows : u.first_row + u.rows;
    while (row < end) {
        begin_tile<half>(a, place, row, end - row, head0, heads, u.tile_heads);
        for (int e = gk::thread(); e < tile_places * (dim + 2); e += tile_threads) place.merged[e / (dim + 2)][e % (dim + 2)] = 0.0f;
        for (int64_t chunk = place.lowest / chunk_keys; chunk <= place.highest / chunk_keys; chunk++) {
            attend_chunk<half>(a, place, a.pages.sequences[row], kv, head0, u.tile_heads, chunk);
            if (gk::thread() < tile_places) {
                const int p = gk::thread();
                merge_factors(place.merged[p][dim], place.merged[p][dim + 1], place.chunk[p][0], place.chunk[p][1], place.shrink[p], place.share[p]);
            }
            gk::sync();
            for (int e = gk::thread(); e < tile_places * dim; e += tile_threads) {
                const int p = e / dim, i = e % dim;
                place.merged[p][i] = merged_sum(place.merged[p][i], place.shrink[p], place.page[0][p][i], place.share[p]);
            }
            gk::sync();
        }
        write_tile(a, place, row, head0, u.tile_heads);
        row = place.next_row;
        gk::sync();  // before the next rows' places are written
    }
}
