// Attention of few rows (decode) over 16-bit pages by tensor cores, with rope and the cache's writing where queue.inl puts them in front.
//
// A unit is a row, up to eight heads of a KV head, and a chunk of its keys: 256, or so many times 256 that a row has few chunks. How keys
// are cut depends on the position only. A block goes from unit to unit; of each 256 keys a warp has 32, with a softmax of its own over
// the rounds; the eight warps are put together through shared memory, the chunks by the last block of a head to arrive.
//
// mma.m16n8k16, lane (g, t) = (lane / 4, lane % 4). Scores are Q K^T, heads as rows (8 of 16), keys as columns; sums are V^T P^T, channels
// as rows, heads as columns: so a lane's scores (head g, keys 8 t .. 8 t + 7 of 32) are its part of P^T as they are. Which keys the
// columns are is ours to say: column c of product i is key 4 c + i, and row r of product i channel 4 (r % 8) + 2 i + r / 8, so that
// a lane takes 16 bytes of a page at once:
//
//   K of 16 keys   pair 0   key 0  1  2  3 | 4  5  6  7 | ...   (two channels of 2 bytes each)
//                  pair 1   ...                                 lane (g, t): keys 4 g .. 4 g + 3, pairs 8 s + t and 8 s + t + 4 of step s
//   V              keys 0 1  channel 0  1  2  3 | 4 ...         lane (g, t): channels 4 g .. 4 g + 3 of 32, key pairs 4 t .. 4 t + 3
//
// Loads: a round's keys and values are asked for while the round before (of this unit or of the one before) is at work.

constexpr int row_warps = 8, row_block = 32 * row_warps, warp_keys = 32, round_keys = row_warps * warp_keys, tile_heads_most = 8;
constexpr int64_t split_rows_most = 64;  // rows of a launch
constexpr int row_units = 128, chunks_most = 64;  // units a row is cut into at most, about

struct RowUnits {
    int first_row, rows, first_tile, tiles;  // of the launch; tile: heads [t % head_tiles * heads, + heads) of KV head t / head_tiles
    int head_tiles, heads, wanted, chunks;   // chunks_wanted; room for partials
    float *sums, *ends;                      // [rows][tiles][heads][chunks]: [dim] sums of p v; the largest score and the sum of p
    uint32_t* counters;                      // [rows][tiles][heads]
};

// Chunks of a row at most, about, by its model's tiles; keys of each, of so many.
HOST_DEVICE int chunks_wanted(int64_t tiles) { return int(tiles >= row_units ? 1 : row_units / tiles < chunks_most - 1 ? row_units / tiles : chunks_most - 1); }
HOST_DEVICE int chunk_of(int keys, int wanted) { return (keys + wanted * round_keys - 1) / (wanted * round_keys) * round_keys; }

template <int blocks32>
struct alignas(16) RowPlace {
    static constexpr int dim = 32 * blocks32, stride = dim + 4;  // so that lanes meet no other's bank
    float sums[row_warps][tile_heads_most][stride];
    float turned[tile_heads_most][dim];        // queries after rope
    uint32_t q[dim / 16][32][2];               // words 0 and 2 of the first operand, step by step
    float ends[row_warps][tile_heads_most][2];  // the largest score, the sum of p
    float unscale[tile_heads_most];
    uint32_t new_key[dim / 2];
    uint16_t new_value[dim];
    int position[split_rows_most], low[split_rows_most], sequence[split_rows_most];  // keys low .. position
    int chunk[split_rows_most], first[split_rows_most], begin[split_rows_most + 1];  // a chunk's keys, the first chunk, units of the rows before
};

struct RowUnit {
    int row, tile, chunk, chunks;  // row -1: none. chunk 0 has the first key that is seen
    int position, low, key, end;   // this warp's first keys, and where the chunk's end
    const int32_t* pages;          // of the sequence
};

template <int blocks32>
DEVICE RowUnit find_unit(const AttentionArgs& a, const RowUnits& u, const RowPlace<blocks32>& place, int number) {
    RowUnit unit{};
    unit.row = -1;
    if (number >= place.begin[u.rows]) return unit;
    const int lane = gk::lane(), row = gk::count(gk::ballot(lane < u.rows && place.begin[lane + 1 < u.rows ? lane + 1 : u.rows] <= number)) +
                                       gk::count(gk::ballot(lane + 32 < u.rows && place.begin[lane + 33 < u.rows ? lane + 33 : u.rows] <= number));
    const uint32_t local = uint32_t(number - place.begin[row]), tiles = uint32_t(u.tiles);
    unit.row = row, unit.tile = int(local % tiles), unit.chunk = int(local / tiles);
    unit.position = place.position[row], unit.low = place.low[row];
    unit.chunks = int(uint32_t(place.begin[row + 1] - place.begin[row]) / tiles);
    const int begin = (place.first[row] + unit.chunk) * place.chunk[row], end = begin + place.chunk[row];
    unit.end = end > unit.position + 1 ? unit.position + 1 : end;
    unit.key = begin + gk::thread() / 32 * warp_keys;
    if (unit.key + warp_keys <= unit.low) unit.key += (unit.low - unit.key - warp_keys + round_keys) / round_keys * round_keys;
    unit.pages = a.pages.page_table + int64_t(place.sequence[row]) * a.pages.max_pages;
    return unit;
}

// Where a lane's words of keys `key` .. begin, in elements.
DEVICE int64_t warp_page(const AttentionArgs& a, int kv, int number) { return (kv * a.pages.pages + number) * page_keys * a.pages.head_dim; }
static constexpr int lane_key(int g, int t, int half, int dim) { return ((2 * half + g / 4) * dim / 2 + t) * 32 + g % 4 * 8; }  // then 128 a load
static constexpr int lane_value(int g, int t, int half, int dim) { return (16 * half + 4 * t) * 2 * dim + 8 * g; }  // then 2 dim a key pair, 64 a block of 32

// One element of a head after rope; c among its channels.
DEVICE float turned(const RopeArgs& r, const float* x, const float* table, int c) {
    const int half = int(r.half);
    if (c >= 2 * half) return x[c];
    const int i = r.interleaved ? c / 2 : c < half ? c : c - half, from = r.interleaved ? 2 * i : i, apart = r.interleaved ? 1 : half;
    const float one = x[from], other = x[from + apart], cosine = table[i], sine = table[half + i];
    return c == from ? one * cosine - other * sine : other * cosine + one * sine;
}
template <bool half>
DEVICE uint32_t narrowed(float x) {
    if constexpr (half) {
        f16 out;
        narrow(x, out);
        return out.bits;
    } else {
        bf16 out;
        narrow(x, out);
        return out.bits;
    }
}

// The queries of a unit to operands, a head a warp; with the last chunk the new key and value to the page, and to shared memory.
template <bool half, int blocks32>
DEVICE void begin_unit(const AttentionArgs& a, const RopeKvWriteArgs& chain, const RowUnits& u, RowPlace<blocks32>& place, const RowUnit& unit, int kv,
                       int head0, int heads) {
    constexpr int dim = 32 * blocks32, turns = (dim + 63) / 64;
    const int head = gk::thread() / 32, lane = gk::lane();
    const int64_t row = u.first_row + unit.row;
    const float* table = chain.rope.table + row * 2 * chain.rope.half;
    float x[turns][2] = {};
    if (head < heads) {
        const float* q = a.q + row * a.q_stride + (head0 + head) * dim;
        GK_UNROLL
        for (int k = 0; k < turns; k++)
            GK_UNROLL
            for (int i = 0; i < 2; i++) {
                const int c = 2 * (lane + 32 * k) + i;
                if (c < dim) x[k][i] = chain.rope.x ? turned(chain.rope, q, table, c) : q[c];
            }
    }
    // In powers of two, but where a softcap wants scores as they are.
    const float scale = a.softcap > 0 ? a.scale : a.scale * 1.44269504f;
    float largest = 0.0f, shrink = 1.0f;
    GK_UNROLL
    for (int k = 0; k < turns; k++)
        GK_UNROLL
        for (int i = 0; i < 2; i++) {
            const int c = 2 * (lane + 32 * k) + i;
            if (chain.rope.x && c < dim) place.turned[head][c] = x[k][i];
            x[k][i] *= scale;
            if (half) largest = max(abs(x[k][i]), largest);
        }
    if constexpr (half) {  // f16 ends at 65,504: queries are taken at the power of two that brings their largest below 2
        GK_UNROLL
        for (int d = 16; d > 0; d /= 2) largest = max(gk::shuffle_xor(largest, d), largest);
        const int exponent = int(to_bits(largest) >> 23) - 127;
        const bool scaled = exponent > -100 && exponent < 100;
        shrink = scaled ? power_of_two(-exponent) : 1.0f;
        if (lane == 0) place.unscale[head] = scaled ? power_of_two(exponent) : 1.0f;
    }
    GK_UNROLL
    for (int k = 0; k < turns; k++) {
        const int pair = lane + 32 * k;
        if (pair < dim / 2) place.q[pair / 8][head * 4 + pair % 4][pair % 8 / 4] = half ? gk::pack_f16(x[k][0] * shrink, x[k][1] * shrink) : gk::pack_bf16(x[k][0], x[k][1]);
    }
    if (!chain.rope.x || unit.chunk != unit.chunks - 1 || head < row_warps - 2) return;
    const int64_t page = warp_page(a, kv, unit.pages[unit.position / int(page_keys)]);
    const int slot = unit.position % int(page_keys);
    if (head == row_warps - 1) {
        float* k = chain.rope.x + row * chain.rope.x_stride + (a.heads + kv) * dim;
        float y[turns][2] = {};
        GK_UNROLL
        for (int i = 0; i < 2 * turns; i++) {
            const int c = 2 * (lane + 32 * (i / 2)) + i % 2;
            if (c < dim) y[i / 2][i % 2] = turned(chain.rope, k, table, c);
        }
        gk::sync_warp();  // others have read what is written now
        GK_UNROLL
        for (int i = 0; i < turns; i++) {
            const int pair = lane + 32 * i;
            if (pair >= dim / 2) continue;
            k[2 * pair] = y[i][0], k[2 * pair + 1] = y[i][1];
            const uint32_t word = narrowed<half>(y[i][0]) | narrowed<half>(y[i][1]) << 16;
            place.new_key[pair] = word;
            *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(a.pages.k) + page + key_at(true, slot, 2 * pair, dim)) = word;
        }
    } else {
        const float* v = chain.write.v + row * chain.write.kv_stride + kv * dim;
        GK_UNROLL
        for (int i = 0; i < blocks32; i++) {
            const uint16_t x = uint16_t(narrowed<half>(v[lane + 32 * i]));
            place.new_value[lane + 32 * i] = x;
            static_cast<uint16_t*>(a.pages.v)[page + value_at(true, slot, lane + 32 * i, dim)] = x;
        }
    }
}

// The end of a softmax of one head, a warp its channels lane, lane + 32, ...
template <int blocks32>
DEVICE void finish_row(const AttentionArgs& a, const RopeArgs& rope, const RowPlace<blocks32>& place, int64_t row, int64_t head, float largest, float total,
                       const float (&sums)[blocks32]) {
    constexpr int dim = 32 * blocks32;
    float share = 1.0f;
    if (a.sinks) {
        const float sink = a.sinks[head] * 1.44269504f, all = max(sink, largest);
        share = gk::exp2(largest - all);
        total = total * share + gk::exp2(sink - all);
    }
    share = share / total;
    float* out = a.out + row * a.out_stride + head * dim;
    GK_UNROLL
    for (int c = 0; c < blocks32; c++) out[gk::lane() + 32 * c] = sums[c] * share;
    if (!rope.x) return;
    float* q = rope.x + row * rope.x_stride + head * dim;  // nobody has yet to read it: all blocks of this head have arrived
    GK_UNROLL
    for (int c = 0; c < blocks32; c++) q[gk::lane() + 32 * c] = place.turned[gk::thread() / 32][gk::lane() + 32 * c];
    gk::sync_warp();  // the next unit's come there
}

// Partials of a head's chunks, in order.
template <int blocks32>
DEVICE void merge_chunks(const float* sums, const float* ends, int chunks, float& largest, float& total, float (&sum)[blocks32]) {
    constexpr int dim = 32 * blocks32, merge_loads = blocks32 > 4 ? 4 : 8;  // partials on their way at once
    const int lane = gk::lane();
    float most[2], part[2];
    GK_UNROLL
    for (int k = 0; k < 2; k++) {
        const int c = lane + 32 * k;
        most[k] = c < chunks ? gk::load_fresh(ends + 2 * c) : -infinity;
        part[k] = c < chunks ? gk::load_fresh(ends + 2 * c + 1) : 0.0f;
    }
    largest = max(most[0], most[1]);
    GK_UNROLL
    for (int d = 16; d > 0; d /= 2) largest = max(gk::shuffle_xor(largest, d), largest);
    float factor[2];
    GK_UNROLL
    for (int k = 0; k < 2; k++) factor[k] = lane + 32 * k < chunks ? gk::exp2(most[k] - largest) : 0.0f;
    total = part[0] * factor[0] + part[1] * factor[1];
    GK_UNROLL
    for (int d = 16; d > 0; d /= 2) total += gk::shuffle_xor(total, d);
    GK_UNROLL
    for (int c = 0; c < blocks32; c++) sum[c] = 0.0f;
    GK_ROLLED
    for (int first = 0; first < chunks; first += merge_loads) {
        float next[merge_loads][blocks32];
        GK_UNROLL
        for (int e = 0; e < merge_loads; e++)
            GK_UNROLL
            for (int c = 0; c < blocks32; c++) next[e][c] = first + e < chunks ? gk::load_fresh(sums + (first + e) * dim + lane + 32 * c) : 0.0f;
        GK_UNROLL
        for (int e = 0; e < merge_loads; e++) {
            const float f = gk::shuffle(first < 32 ? factor[0] : factor[1], (first + e) % 32);
            GK_UNROLL
            for (int c = 0; c < blocks32; c++) sum[c] = gk::fma(next[e][c], f, sum[c]);
        }
    }
}

// The warps' softmaxes of a unit put together, a head a warp; then the chunks' where this is the last one to arrive.
template <int blocks32>
DEVICE void end_unit(const AttentionArgs& a, const RopeArgs& rope, const RowUnits& u, const RowPlace<blocks32>& place, const RowUnit& unit, int head0, int heads) {
    constexpr int dim = 32 * blocks32;
    const int head = gk::thread() / 32, lane = gk::lane();
    if (head >= heads) return;
    const float most = place.ends[lane % row_warps][head][0], part = place.ends[lane % row_warps][head][1];
    float largest = most;
    GK_UNROLL
    for (int d = row_warps / 2; d > 0; d /= 2) largest = max(gk::shuffle_xor(largest, d), largest);
    const float factor = part != 0.0f ? gk::exp2(most - largest) : 0.0f;
    float total = part * factor, sums[blocks32] = {};
    GK_UNROLL
    for (int d = row_warps / 2; d > 0; d /= 2) total += gk::shuffle_xor(total, d);
    const uint32_t any = gk::ballot(part != 0.0f);  // of warps without keys nothing was written
    GK_UNROLL
    for (int w = 0; w < row_warps; w++) {
        const float f = gk::shuffle(factor, w);
        GK_UNROLL
        for (int c = 0; c < blocks32; c++) {
            const float x = place.sums[w][head][lane + 32 * c];
            sums[c] = gk::fma(any >> w & 1 ? x : 0.0f, f, sums[c]);
        }
    }
    if (unit.chunks > 1) {
        const int64_t index = (int64_t(unit.row) * u.tiles + unit.tile) * u.heads + head, first = index * u.chunks;
        float* mine = u.sums + (first + unit.chunk) * dim;
        GK_UNROLL
        for (int c = 0; c < blocks32; c++) mine[lane + 32 * c] = sums[c];
        if (lane < 2) u.ends[(first + unit.chunk) * 2 + lane] = lane ? total : largest;
        gk::fence();
        gk::sync_warp();
        uint32_t arrived = 0;
        if (lane == 0) arrived = gk::add_global(u.counters + index, 1u);
        if (gk::shuffle(arrived, 0) != uint32_t(unit.chunks - 1)) return;
        gk::fence();
        if (lane == 0) u.counters[index] = 0;
        merge_chunks<blocks32>(u.sums + first * dim, u.ends + first * 2, unit.chunks, largest, total, sums);
    }
    finish_row<blocks32>(a, rope, place, u.first_row + unit.row, head0 + head, largest, total, sums);
}

template <int loads>
DEVICE void load_keys(gk::Words4 (&w)[loads], const uint16_t* from) {
    GK_UNROLL
    for (int e = 0; e < loads; e++) w[e] = gk::load_once(from + e * 128);
}
template <int dim, int blocks>
DEVICE void load_values(gk::Words4 (&v)[blocks][4], const uint16_t* from) {
    GK_UNROLL
    for (int e = 0; e < blocks * 4; e++) v[e / 4][e % 4] = gk::load_once(from + e / 4 * 64 + e % 4 * 2 * dim);
}

// Softmax and sums of the keys a warp has had: head g's largest score and its sum of p; sums of channels 4 g + .. and heads 2 t, 2 t + 1.
struct alignas(16) Channels {
    float x[4];
};
template <int blocks32>
struct RowState {
    float sums[blocks32][2][4], largest, total;
};

// Scores of 32 keys to weights, in place: of head g, keys 8 t + 4 j + i in s[i][j].
template <bool half>
DEVICE float weigh(const AttentionArgs& a, float unscale, float slope, int key, int low, int position, float (&s)[4][4], float& largest, float& total) {
    const int t = gk::lane() % 4;
    if (half) {
        GK_UNROLL
        for (int e = 0; e < 8; e++) s[e / 2][e % 2] *= unscale;
    }
    if (a.softcap > 0) {
        GK_UNROLL
        for (int e = 0; e < 8; e++) s[e / 2][e % 2] = a.softcap * tanh(s[e / 2][e % 2] / a.softcap) * 1.44269504f;
    }
    if (slope != 0.0f) {
        GK_UNROLL
        for (int e = 0; e < 8; e++) s[e / 2][e % 2] += slope * float(key + 8 * t + 4 * (e % 2) + e / 2 - position);
    }
    uint32_t seen = 0;
    float most = largest, sum = 0.0f;
    GK_UNROLL
    for (int e = 0; e < 8; e++) {
        const int k = key + 8 * t + 4 * (e % 2) + e / 2;
        if (k < low || k > position) continue;
        seen |= 1u << e;
        most = max(s[e / 2][e % 2], most);
    }
    most = max(gk::shuffle_xor(most, 1), most);
    most = max(gk::shuffle_xor(most, 2), most);
    GK_UNROLL
    for (int e = 0; e < 8; e++) {
        const float p = seen >> e & 1 ? gk::exp2(s[e / 2][e % 2] - most) : 0.0f;
        s[e / 2][e % 2] = p;
        sum += p;
    }
    sum += gk::shuffle_xor(sum, 1);
    sum += gk::shuffle_xor(sum, 2);
    const float shrink = gk::exp2(largest - most);
    total = total * shrink + sum;
    largest = most;
    return shrink;
}

template <bool half, int blocks32>
GK_KERNEL void GK_BOUNDS(row_block, 1) attention_rows_kernel(AttentionArgs a, RopeKvWriteArgs chain, RowUnits u) {
    gk::let_next_start(), gk::wait_for_previous();
    constexpr int dim = 32 * blocks32, parts = blocks32 > 6 ? 8 : blocks32 > 4 ? 2 : 1, steps = dim / 16 / parts, blocks = blocks32 / parts;
    auto& place = *reinterpret_cast<RowPlace<blocks32>*>(gk::shared());
    const int lane = gk::lane(), warp = gk::thread() / 32, g = lane / 4, t = lane % 4, group = int(a.heads / a.pages.kv_heads);
    if (warp == 0) {
        int units[2], before = 0;
        GK_UNROLL
        for (int k = 0; k < 2; k++) {
            const int r = lane + 32 * k;
            units[k] = 0;
            if (r >= u.rows) continue;
            const int position = a.pages.positions[u.first_row + r], window = int(a.window > position ? 0 : a.window), low = window ? position - window + 1 : 0;
            const int chunk = chunk_of(position - low + 1, u.wanted), first = low / chunk;
            place.position[r] = position, place.low[r] = low, place.sequence[r] = a.pages.sequences[u.first_row + r];
            place.chunk[r] = chunk, place.first[r] = first;
            units[k] = (position / chunk - first + 1) * u.tiles;
        }
        GK_UNROLL
        for (int k = 0; k < 2; k++) {
            int sum = units[k];
            GK_UNROLL
            for (int d = 1; d < 32; d *= 2) {
                const int other = gk::shuffle_up(sum, d);
                if (lane >= d) sum += other;
            }
            if (lane + 32 * k < u.rows) place.begin[lane + 32 * k + 1] = before + sum;
            before += gk::shuffle(sum, 31);
        }
        if (lane == 0) place.begin[0] = 0;
    }
    gk::sync();
    int number = int(gk::block());
    RowUnit unit = find_unit(a, u, place, number);
    if (unit.row < 0) return;
    auto kv_of = [&](const RowUnit& unit) { return (u.first_tile + unit.tile) / u.head_tiles; };
    auto head_of = [&](const RowUnit& unit, int kv) { return kv * group + (u.first_tile + unit.tile - kv * u.head_tiles) * u.heads; };
    auto keys_at = [&](int kv, int page, int key) {
        return static_cast<const uint16_t*>(a.pages.k) + warp_page(a, kv, page) + lane_key(g, t, key / warp_keys % 2, dim);
    };
    auto values_at = [&](int kv, int page, int key) {
        return static_cast<const uint16_t*>(a.pages.v) + warp_page(a, kv, page) + lane_value(g, t, key / warp_keys % 2, dim);
    };
    int kv = kv_of(unit), page = 0;
    gk::Words4 w[2 * steps], v[blocks][4];  // keys by pair of channels; values of 32 channels by pair of keys
    if (unit.key < unit.end) {
        page = unit.pages[unit.key / int(page_keys)];
        load_keys(w, keys_at(kv, page, unit.key));
        load_values<dim>(v, values_at(kv, page, unit.key));
    }
    while (true) {
        const int head0 = head_of(unit, kv), heads = kv * group + group - head0 < u.heads ? kv * group + group - head0 : u.heads;
        begin_unit<half, blocks32>(a, chain, u, place, unit, kv, head0, heads);
        const float slope = a.alibi_slopes && g < heads ? a.alibi_slopes[head0 + g] * 1.44269504f : 0.0f;
        number += int(gk::blocks());
        const RowUnit next = find_unit(a, u, place, number);
        const bool next_any = next.row >= 0 && next.key < next.end, any = unit.key < unit.end;
        const int next_page = next_any ? next.pages[next.key / int(page_keys)] : 0, next_kv = kv_of(next);
        gk::sync();
        RowState<blocks32> state;
        state.largest = -infinity, state.total = 0.0f;
        GK_UNROLL
        for (int e = 0; e < blocks32 * 8; e++) state.sums[e / 8][e / 4 % 2][e % 4] = 0.0f;
        GK_ROLLED
        for (int key = unit.key; key < unit.end; key += round_keys) {
            const bool more = key + round_keys < unit.end;
            const int page_then = more ? unit.pages[(key + round_keys) / int(page_keys)] : 0;
            const int fresh = chain.rope.x && unit.position < key + warp_keys ? unit.position - key : -1;  // the new key, which the page may not have yet
            float s[4][4] = {};
            GK_ROLLED
            for (int part = 0; part < parts; part++) {
                if (part) load_keys(w, keys_at(kv, page, key) + part * steps * 256);
                if (fresh >= 0) {
                    GK_UNROLL
                    for (int e = 0; e < 2 * steps; e++) {
                        const uint32_t word = place.new_key[4 * (2 * steps * part + e) + t];
                        GK_UNROLL
                        for (int i = 0; i < 4; i++)
                            if (4 * g + i == fresh) w[e].x[i] = word;
                    }
                }
                GK_UNROLL
                for (int step = 0; step < steps; step++) {
                    const uint32_t(&q)[2] = place.q[part * steps + step][lane];
                    GK_UNROLL
                    for (int i = 0; i < 4; i++) {
                        if constexpr (half) gk::mma_f16(s[i], {q[0], 0, q[1], 0}, {w[2 * step].x[i], w[2 * step + 1].x[i]});
                        else gk::mma_bf16(s[i], {q[0], 0, q[1], 0}, {w[2 * step].x[i], w[2 * step + 1].x[i]});
                    }
                }
            }
            if (more && parts == 1) load_keys(w, keys_at(kv, page_then, key + round_keys));
            const float shrink = weigh<half>(a, half ? place.unscale[g] : 1.0f, slope, key, unit.low, unit.position, s, state.largest, state.total);
            if (key != unit.key) {
                const float first = gk::shuffle(shrink, 8 * t), second = gk::shuffle(shrink, 8 * t + 4);  // of heads 2 t and 2 t + 1
                GK_UNROLL
                for (int e = 0; e < blocks32 * 8; e++) state.sums[e / 8][e / 4 % 2][e % 4] *= e % 2 ? second : first;
            }
            uint32_t p[2][2];  // keys 8 t + 4 j + 2 i, and the next
            GK_UNROLL
            for (int e = 0; e < 4; e++) {
                const float low = s[e % 2 * 2][e / 2], high = s[e % 2 * 2 + 1][e / 2];
                p[e / 2][e % 2] = half ? gk::pack_f16(low, high) : gk::pack_bf16(low, high);
            }
            const bool whole = key >= unit.low && key + warp_keys <= unit.position + (fresh < 0);
            GK_UNROLL
            for (int part = 0; part < parts; part++) {
                if (part) load_values<dim>(v, values_at(kv, page, key) + part * blocks * 64);
                if (!whole) {  // what is not seen is no number yet, or another's
                    GK_UNROLL
                    for (int pair = 0; pair < 4; pair++) {
                        const int k = key + 8 * t + 2 * pair, end = unit.position + (fresh < 0);
                        const uint32_t seen = (k >= unit.low && k < end ? 0xffffu : 0u) | (k + 1 >= unit.low && k + 1 < end ? 0xffff0000u : 0u);
                        GK_UNROLL
                        for (int c = 0; c < blocks; c++)
                            GK_UNROLL
                            for (int i = 0; i < 4; i++) {
                                v[c][pair].x[i] &= seen;
                                if (fresh >= 0 && (8 * t + 2 * pair) / 2 == fresh / 2)
                                    v[c][pair].x[i] |= uint32_t(place.new_value[32 * (part * blocks + c) + 4 * g + i]) << (fresh % 2 * 16);
                            }
                    }
                }
                GK_UNROLL
                for (int c = 0; c < blocks; c++)
                    GK_UNROLL
                    for (int e = 0; e < 4; e++) {
                        const int j = e / 2, i = e % 2;
                        const gk::Words4 &one = v[c][2 * j], &two = v[c][2 * j + 1];
                        float(&sums)[4] = state.sums[part * blocks + c][i];
                        if constexpr (half) gk::mma_f16(sums, {one.x[2 * i], one.x[2 * i + 1], two.x[2 * i], two.x[2 * i + 1]}, p[j]);
                        else gk::mma_bf16(sums, {one.x[2 * i], one.x[2 * i + 1], two.x[2 * i], two.x[2 * i + 1]}, p[j]);
                    }
            }
            page = page_then;
            if (more && parts > 1) load_keys(w, keys_at(kv, page, key + round_keys));  // registers are too few for more at once
            if (more) load_values<dim>(v, values_at(kv, page, key + round_keys));
        }
        if (any) {
            GK_UNROLL
            for (int c = 0; c < blocks32; c++)
                GK_UNROLL
                for (int i = 0; i < 2; i++) {
                    const float(&x)[2][4] = state.sums[c];
                    if (2 * t + i < heads) *reinterpret_cast<Channels*>(&place.sums[warp][2 * t + i][32 * c + 4 * g]) = {{x[0][i], x[0][2 + i], x[1][i], x[1][2 + i]}};
                }
        }
        if (t == 0) place.ends[warp][g][0] = state.largest, place.ends[warp][g][1] = state.total;
        if (next_any) {
            load_keys(w, keys_at(next_kv, next_page, next.key));
            load_values<dim>(v, values_at(next_kv, next_page, next.key));
        }
        gk::sync();
        end_unit<blocks32>(a, chain.rope, u, place, unit, head0, heads);
        if (next.row < 0) return;
        unit = next, kv = next_kv, page = next_page;
    }
}
