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
DEVICE float weigh(const AttentionArgs& a, float unscale, float slope, int key, int low, int position, float (&s)[4][4], float& largest,
                   float& total) {
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
    gk::let_next_start();
    if (gk::thread() < u.rows) {  // on its way to the second-level cache already
        const int row = u.first_row + gk::thread();
        gk::fetch(a.pages.positions + row), gk::fetch(a.pages.sequences + row);
        if (a.pages.apart) gk::fetch(a.pages.page_table + row * a.pages.max_pages);  // row's sequence is not below row
    }
    gk::wait_for_previous();
    constexpr int dim = 32 * blocks32, parts = blocks32 > 6 ? 8 : blocks32 > 4 ? 2 : 1, steps = dim / 16 / parts, blocks = blocks32 / parts;
    auto& place = *reinterpret_cast<RowPlace<blocks32>*>(gk::shared());
    const int lane = gk::lane(), warp = gk::thread() / 32, g = lane / 4, t = lane % 4;
    if (warp == 0) {
        int before = 0;
        GK_ROLLED
        for (int r = lane; r - lane < u.rows; r += 32) {
            int units = 0;
            if (r < u.rows) {
                const int position = a.pages.positions[u.first_row + r], sequence = a.pages.sequences[u.first_row + r];
                const int low = a.window > 0 && a.window <= position ? position - int(a.window) + 1 : 0;
                const int chunk = chunk_of(position - low + 1, u.wanted), first = chunk_at(low, chunk), chunks = chunk_at(position, chunk) - first + 1;
                place.position[r] = position, place.low[r] = low, place.sequence[r] = sequence;
                place.chunk[r] = chunk, place.first[r] = first, place.chunks[r] = chunks;
                units = chunks * u.tiles;
            }
            GK_UNROLL
            for (int d = 1; d < 32; d *= 2) {
                const int other = gk::shuffle_up(units, d);
                if (lane >= d) units += other;
            }
            if (r < u.rows) place.begin[r + 1] = before + units;
            before += gk::shuffle(units, 31);
        }
        if (lane == 0) place.begin[0] = 0;
    }
    gk::sync();
    int number = int(gk::block());
    RowUnit unit = find_unit(a, u, place, number);
    if (unit.row < 0) return;
    auto kv_of = [&](const RowUnit& unit) { return u.head_tiles == 1 ? u.first_tile + unit.tile : (u.first_tile + unit.tile) / u.head_tiles; };
    auto keys_at = [&](int kv, int page, int key) {
        return static_cast<const uint16_t*>(a.pages.k) + page_at<dim>(a, kv, page) + lane_key(g, t, key / warp_keys % 2, dim);
    };
    auto values_at = [&](int kv, int page, int key) {
        return static_cast<const uint16_t*>(a.pages.v) + page_at<dim>(a, kv, page) + lane_value(g, t, key / warp_keys % 2, dim);
    };
    int kv = kv_of(unit), page = 0;
    gk::Words4 w[2 * steps], v[blocks][4];  // keys by pair of channels; values of 32 channels by pair of keys
    if (unit.key < unit.end) {
        page = unit.pages[unit.key / int(page_keys)];
        load_keys(w, keys_at(kv, page, unit.key));
        load_values<dim>(v, values_at(kv, page, unit.key));
    }
    while (true) {
        const int within = (u.first_tile + unit.tile - kv * u.head_tiles) * u.heads, head0 = kv * u.group + within;
        const int heads = u.group - within < u.heads ? u.group - within : u.heads;
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
            // Which of these keys is the new one, which the page may not have yet.
            const int fresh = chain.rope.x && unit.position < key + warp_keys ? unit.position - key : -1;
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
                if (!whole) {  // what is not seen is no number yet, or another's; the new value may not be there yet
                    uint32_t seen[4], put[4];
                    const int end = unit.position + (fresh < 0);
                    GK_UNROLL
                    for (int pair = 0; pair < 4; pair++) {
                        const int k = key + 8 * t + 2 * pair;
                        seen[pair] = (k >= unit.low && k < end ? 0xffffu : 0u) | (k + 1 >= unit.low && k + 1 < end ? 0xffff0000u : 0u);
                        put[pair] = fresh >= 0 && 4 * t + pair == fresh / 2 ? fresh % 2 ? 0xffff0000u : 0xffffu : 0u;
                    }
                    GK_UNROLL
                    for (int c = 0; c < blocks; c++)
                        GK_UNROLL
                        for (int i = 0; i < 4; i++) {
                            const uint32_t word = place.new_value[32 * (part * blocks + c) + 4 * g + i];  // twice
                            GK_UNROLL
                            for (int pair = 0; pair < 4; pair++) v[c][pair].x[i] = (v[c][pair].x[i] & seen[pair]) | (word & put[pair]);
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
                    auto& sums = *reinterpret_cast<Channels*>(&place.sums[warp][2 * t + i][32 * c + 4 * g]);
                    if (2 * t + i < heads) sums = {{x[0][i], x[0][2 + i], x[1][i], x[1][2 + i]}};
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
