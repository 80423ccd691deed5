// Attention of few rows (decode) over pages of f16, bf16 and i8 by tensor cores, with rope and the cache's writing where queue.inl puts
// them in front.
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
// A round's keys are copied to shared memory as soon as those of the round before (of this unit or of the one before) have been used, its
// values likewise. Of 16-bit pages a lane copies what it reads itself; codes of i8 are copied as they lie in a page, and lanes read each
// other's, 8 bytes that become the same operands.

struct alignas(16) Channels {
    float x[4];
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

// Blocks that registers are to be enough for: two, so that one of the next kernel fits beside; those of 12.0 spill with 128.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int rows_bound = 1;
#else
constexpr int rows_bound = 2;
#endif
template <DType type, int blocks32, bool wide>
GK_KERNEL void GK_BOUNDS(row_block, blocks32 <= 4 ? rows_bound : 1) attention_rows_kernel(AttentionArgs a, RopeKvWriteArgs chain, RowUnits u) {
    gk::let_next_start();
    if (gk::thread() < u.rows) {  // on its way to the second-level cache already
        const int row = u.first_row + gk::thread();
        gk::fetch(a.pages.positions + row), gk::fetch(a.pages.sequences + row);
        if (a.pages.apart) gk::fetch(a.pages.page_table + row * a.pages.max_pages);  // row's sequence is not below row
    }
    gk::wait_for_previous();
    using Place = RowPlace<type, blocks32, wide>;
    using Page = Stored<type>;
    using One = typename Page::One;
    using Two = typename Page::Two;
    constexpr int dim = Place::dim, parts = Place::parts, part_dim = Place::part_dim, steps = part_dim / 16, blocks = blocks32 / parts;
    constexpr bool coded = Page::coded, half_keys = Page::half_keys, half_values = Page::half_values;
    auto& place = *reinterpret_cast<Place*>(gk::shared());
    const int lane = gk::lane(), warp = gk::thread() / 32, g = lane / 4, t = lane % 4;
    list_units(a, u, place);
    gk::sync();
    auto kv_of = [&](const RowUnit& unit) { return u.head_tiles == 1 ? u.first_tile + unit.tile : (u.first_tile + unit.tile) / u.head_tiles; };
    // A group of copies each, of one part. Of 16 bits a lane copies to its own 16 bytes of each load and reads them back, so no two meet.
    auto copy_keys = [&](bool wanted, int kv, int page, int key, int part) {
        const int half = key / warp_keys % 2;
        const One* from = static_cast<const One*>(a.pages.k) + page_at<dim>(a, kv, page);
        from += coded ? coded_key(lane, half, dim) : lane_key(g, t, half, dim);
        if constexpr (coded) gk::sync_warp();  // others have read what is copied over
        if (wanted) {
            GK_UNROLL
            for (int e = 0; e < Place::loads; e++)
                gk::copy_async(place.keys[warp][e][lane], from + (coded ? coded_key_load(e, part, part_dim, dim) : (2 * steps * part + e) * 128));
            if constexpr (coded) {
                if (part == 0 && lane < warp_keys / 4)
                    gk::copy_async(place.scales[0][warp] + 4 * lane, a.pages.k_scales + scales_at(a, kv, page) + half * warp_keys + 4 * lane);
            }
        }
        gk::copy_commit();
    };
    auto copy_values = [&](bool wanted, int kv, int page, int key, int part) {
        const int half = key / warp_keys % 2;
        const One* from = static_cast<const One*>(a.pages.v) + page_at<dim>(a, kv, page);
        from += coded ? coded_value(lane, half, dim) : lane_value(g, t, half, dim);
        if constexpr (coded) gk::sync_warp();
        if (wanted) {
            GK_UNROLL
            for (int e = 0; e < Place::loads; e++)
                gk::copy_async(place.values[warp][e][lane],
                               from + (coded ? coded_value_load(e, part, part_dim, dim) : (part * blocks + e / 4) * 64 + e % 4 * 2 * dim));
            if constexpr (coded) {
                if (part == 0 && lane < warp_keys / 4)
                    gk::copy_async(place.scales[1][warp] + 4 * lane, a.pages.v_scales + scales_at(a, kv, page) + half * warp_keys + 4 * lane);
            }
        }
        gk::copy_commit();
    };
    // What a lane takes: keys 4 g .. of pair 4 e + t of a part; channels 4 g .. of 32 of keys 8 t + 2 j and the next one.
    auto key_piece = [&](int e) -> void* {
        if constexpr (coded) return reinterpret_cast<char*>(place.keys[warp]) + part_key(g, t, e, part_dim);
        else return place.keys[warp][e][lane];
    };
    auto value_piece = [&](int block, int j) -> void* {
        if constexpr (coded) return reinterpret_cast<char*>(place.values[warp]) + part_value(g, t, j, block);
        else return place.values[warp][4 * block + j][lane];
    };
    int page = -1;  // of this warp's first keys, whose copies are on their way, if it has any
    for (int number = int(gk::block());; number += int(gk::blocks())) {
        const RowUnit unit = find_unit(a, u, place, number);
        if (unit.row < 0) return;
        const int kv = kv_of(unit), within = (u.first_tile + unit.tile - kv * u.head_tiles) * u.heads, head0 = kv * u.group + within;
        const int heads = u.group - within < u.heads ? u.group - within : u.heads;
        const bool any = unit.key < unit.end, begins = number == int(gk::block());
        if (begins && any) page = unit.pages[unit.key / int(page_keys)];
        const UnitJobs jobs{kv, head0, heads, heads + (chain.rope.x && unit.chunk == unit.chunks - 1 ? 2 : 0), u.first_row + unit.row};
        Loaded<dim> loaded;
        if (warp < jobs.count) load_job<dim>(a, chain, unit, jobs, warp, loaded);
        if (begins && any) copy_keys(true, kv, page, unit.key, 0), copy_values(true, kv, page, unit.key, 0);
        GK_ROLLED
        for (int job = warp; job < jobs.count; job += row_warps) {
            if (job != warp) load_job<dim>(a, chain, unit, jobs, job, loaded);
            finish_job(a, chain, place, unit, jobs, job, loaded);
        }
        const float slope = a.alibi_slopes && g < heads ? a.alibi_slopes[head0 + g] * 1.44269504f : 0.0f;
        int key_next = -1, page_next = 0, kv_next = 0;
        const RowUnit next = find_unit(a, u, place, number + int(gk::blocks()));
        if (next.row >= 0 && next.key < next.end) key_next = next.key, page_next = next.pages[next.key / int(page_keys)], kv_next = kv_of(next);
        gk::sync();
        float sums[blocks32][2][4], largest = -infinity, total = 0.0f;  // of channels 4 g + .. and heads 2 t, 2 t + 1; of head g
        GK_UNROLL
        for (int e = 0; e < blocks32 * 8; e++) sums[e / 8][e / 4 % 2][e % 4] = 0.0f;
        GK_ROLLED
        for (int key = unit.key; key < unit.end; key += round_keys) {
            const bool more = key + round_keys < unit.end;
            const int page_then = more ? unit.pages[(key + round_keys) / int(page_keys)] : page_next;
            const int kv_then = more ? kv : kv_next, key_then = more ? key + round_keys : key_next;
            // Which of these keys is the new one, which the page may not have yet.
            const int fresh = chain.rope.x && unit.position < key + warp_keys ? unit.position - key : -1;
            float s[4][4] = {};
            GK_ROLLED
            for (int part = 0; part < parts; part++) {
                if (part) copy_keys(true, kv, page, key, part), gk::copy_wait<0>();
                else gk::copy_wait<1>();
                if constexpr (coded) gk::sync_warp();
                if (fresh >= 0 && g == fresh / 4)
                    GK_ROLLED
                    for (int e = 0; e < 2 * steps; e++) static_cast<Two*>(key_piece(e))[fresh % 4] = place.new_key[4 * (2 * steps * part + e) + t];
                GK_UNROLL
                for (int step = 0; step < steps; step++) {
                    const gk::Words4 one = stored_words<coded, half_keys>(key_piece(2 * step));
                    const gk::Words4 two = stored_words<coded, half_keys>(key_piece(2 * step + 1));
                    const uint32_t(&q)[2] = place.q[part * steps + step][lane];
                    GK_UNROLL
                    for (int i = 0; i < 4; i++) stored_product<half_keys>(s[i], {q[0], 0, q[1], 0}, {one.x[i], two.x[i]});
                }
            }
            if constexpr (coded) {
                float scale[8];
                take_scales(place, 0, fresh, scale);
                GK_UNROLL
                for (int e = 0; e < 8; e++) s[e / 2][e % 2] *= scale[4 * (e % 2) + e / 2];
            }
            copy_keys(key_then >= 0, kv_then, page_then, key_then, 0);
            const float shrink = weigh<half_keys>(a, half_keys ? place.unscale[g] : 1.0f, slope, key, unit.low, unit.position, s, largest, total);
            if (key != unit.key) {
                const float first = gk::shuffle(shrink, 8 * t), second = gk::shuffle(shrink, 8 * t + 4);  // of heads 2 t and 2 t + 1
                GK_UNROLL
                for (int e = 0; e < blocks32 * 8; e++) sums[e / 8][e / 4 % 2][e % 4] *= e % 2 ? second : first;
            }
            gk::copy_wait<1>();
            float scale[8];
            if constexpr (coded) gk::sync_warp(), take_scales(place, 1, fresh, scale);
            uint32_t p[2][2], seen[4];  // p: keys 8 t + 4 j + 2 i, and the next. What is not seen is no number yet, or another's
            GK_UNROLL
            for (int e = 0; e < 4; e++) {
                float low = s[e % 2 * 2][e / 2], high = s[e % 2 * 2 + 1][e / 2];
                const int k = key + 8 * t + 2 * e;
                const bool first = k >= unit.low && k <= unit.position, second = k + 1 >= unit.low && k + 1 <= unit.position;
                if constexpr (coded) low *= first ? scale[2 * e] : 0.0f, high *= second ? scale[2 * e + 1] : 0.0f;
                p[e / 2][e % 2] = half_values ? gk::pack_f16(low, high) : gk::pack_bf16(low, high);
                seen[e] = (first ? 0xffffu : 0u) | (second ? 0xffff0000u : 0u);
            }
            GK_UNROLL
            for (int part = 0; part < parts; part++) {
                if (part) {
                    copy_values(true, kv, page, key, part), gk::copy_wait<0>();
                    if constexpr (coded) gk::sync_warp();
                }
                if (fresh >= 0 && t == fresh / 8)
                    GK_ROLLED
                    for (int e = 0; e < 4 * blocks; e++)
                        static_cast<One*>(value_piece(e / 4, fresh % 8 / 2))[e % 4 * 2 + fresh % 2] =
                            place.new_value[32 * (part * blocks + e / 4) + 4 * g + e % 4];
                GK_UNROLL
                for (int c = 0; c < blocks; c++)
                    GK_UNROLL
                    for (int j = 0; j < 2; j++) {
                        gk::Words4 one = stored_words<coded, half_values>(value_piece(c, 2 * j));
                        gk::Words4 two = stored_words<coded, half_values>(value_piece(c, 2 * j + 1));
                        GK_UNROLL
                        for (int i = 0; i < 4 && !coded; i++) one.x[i] &= seen[2 * j], two.x[i] &= seen[2 * j + 1];  // all codes are numbers
                        GK_UNROLL
                        for (int i = 0; i < 2; i++) {
                            float(&d)[4] = sums[part * blocks + c][i];
                            stored_product<half_values>(d, {one.x[2 * i], one.x[2 * i + 1], two.x[2 * i], two.x[2 * i + 1]}, p[j]);
                        }
                    }
            }
            copy_values(key_then >= 0, kv_then, page_then, key_then, 0);
            page = page_then;
        }
        if (any) {
            GK_UNROLL
            for (int e = 0; e < 2 * blocks32; e++) {
                const int c = e / 2, i = e % 2;
                auto& to = *reinterpret_cast<Channels*>(warp_sums(place, warp, 2 * t + i, u.heads) + 32 * c + 4 * g);
                if (2 * t + i < heads) to = {{sums[c][0][i], sums[c][0][2 + i], sums[c][1][i], sums[c][1][2 + i]}};
            }
        } else if (key_next >= 0) {
            page = page_next;
            copy_keys(true, kv_next, page, key_next, 0), copy_values(true, kv_next, page, key_next, 0);
        }
        if (t == 0) place.ends[warp][g][0] = largest, place.ends[warp][g][1] = total;
        gk::sync();
        end_unit(a, chain.rope, u, place, unit, head0, heads);
    }
}
