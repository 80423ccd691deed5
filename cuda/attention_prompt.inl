// Attention of prompts: the blocks' way through the pages (attention_prompt_page.inl says how the work is laid out).

// Asks for a page of K or V.
template <int blocks32, bool of_values>
DEVICE void prompt_copy(uint16_t* to, const void* pages, const AttentionArgs& a, int64_t kv, int32_t number) {
    constexpr int dim = 32 * blocks32;
    const uint16_t* from = static_cast<const uint16_t*>(pages) + (kv * a.pages.pages + number) * (page_keys * dim);
    from += 8 * gk::thread(), to += 8 * (of_values ? 0 : prompt_key_swizzle(gk::thread()));
    GK_UNROLL
    for (int i = 0; i < dim / 16; i++) {  // the 128 units of K of all threads are so many whole rounds of the swizzle
        const int unit = i * prompt_threads;
        gk::copy_async(to + 8 * (of_values ? prompt_value_swizzle(unit + gk::thread(), dim) : unit), from + 8 * unit);
    }
}

// Asks for the codes of a page of K or V; with those of K for the scales of both.
template <int blocks32, bool of_values, class Place>
DEVICE void prompt_copy_codes(Place& place, const AttentionArgs& a, int64_t kv, int32_t number) {
    constexpr int dim = 32 * blocks32;
    const int64_t first_key = (kv * a.pages.pages + number) * page_keys;
    const uint8_t* from = static_cast<const uint8_t*>(of_values ? a.pages.v : a.pages.k) + first_key * dim + 16 * gk::thread();
    GK_UNROLL
    for (int i = 0; i < dim / 32; i++)
        gk::copy_async(place.codes[of_values] + 16 * (i * prompt_threads + gk::thread()), from + 16 * i * prompt_threads);
    if (!of_values && gk::thread() < 32) {
        const int at = gk::thread() % 16 * 4;
        gk::copy_async(place.scales_ahead[gk::thread() / 16] + at, (gk::thread() < 16 ? a.pages.k_scales : a.pages.v_scales) + first_key + at);
    }
}
// What this thread has asked for becomes part of a page of operands.
template <bool half, int blocks32, bool of_values>
DEVICE void prompt_widen(uint16_t* to, const uint8_t* codes) {
    constexpr int dim = 32 * blocks32;
    GK_ROLLED
    for (int i = 0; i < dim / 16; i++) {
        const int unit = prompt_widened_unit(gk::thread(), i);
        const gk::Words4 w = stored_words<true, half>(codes + 8 * unit);
        prompt_store(to + 8 * (of_values ? prompt_value_swizzle(unit, dim) : prompt_key_swizzle(unit)), w.x);
    }
}
// Its scales: those of values below `low` and above `high` are no numbers yet, or others'.
template <class Place>
DEVICE void prompt_take_scales(Place& place, int low, int high) {
    if (gk::thread() >= 32) return;
    const int of_values = gk::thread() / 16, at = gk::thread() % 16 * 4;
    float x[4];
    prompt_load(x, place.scales_ahead[of_values] + at);
    GK_UNROLL
    for (int i = 0; i < 4; i++)
        if (of_values && (at + i < low || at + i > high)) x[i] = 0.0f;
    prompt_store(place.scales[of_values] + at, x);
}

// Keys of a page of V below `low` and above `high` become zeros: they are no numbers yet, or others'.
template <int blocks32>
DEVICE void prompt_clear(uint16_t* values, int low, int high) {
    constexpr int dim = 32 * blocks32;
    GK_ROLLED
    for (int unit = gk::thread(); unit < 8 * dim; unit += prompt_threads) {
        const int key = unit / (dim / 4) * 2;
        const uint32_t seen = (key >= low && key <= high ? 0xffffu : 0u) | (key + 1 >= low && key + 1 <= high ? 0xffff0000u : 0u);
        if (seen == 0xffffffffu) continue;
        uint32_t w[4];
        prompt_load(w, values + 8 * unit);
        GK_UNROLL
        for (int i = 0; i < 4; i++) w[i] &= seen;
        prompt_store(values + 8 * unit, w);
    }
}

DEVICE void prompt_query(const PromptUnits& u, const float* q, float (&x)[4]) {
    if (u.aligned) return prompt_load(x, q);
    GK_UNROLL
    for (int i = 0; i < 4; i++) x[i] = q[i];
}

// The queries of a warp's places, times `scale`, as operands. f16 ends at 65,504: queries are taken at the power of two that brings
// their largest below 2.
template <DType type, int blocks32, int m_tiles>
DEVICE void prompt_queries(const AttentionArgs& a, const PromptUnits& u, PromptPlace<type, blocks32, m_tiles>& place, int first, int64_t head0,
                           float scale) {
    constexpr int dim = 32 * blocks32;
    constexpr bool half = Stored<type>::half_keys;
    const int warp = gk::thread() / 32, g = gk::lane() / 4, t = gk::lane() % 4;
    GK_ROLLED
    for (int m = 0; m < m_tiles; m++) {
        const float* q[2];
        float factor[2];
        bool used[2];
        GK_UNROLL
        for (int r = 0; r < 2; r++) {
            const int at = (warp * m_tiles + m) * 16 + 8 * r + g, linear = first + at;
            used[r] = place.position[at] >= 0, factor[r] = scale;
            q[r] = a.q + (u.first_row + linear / u.group) * a.q_stride + (head0 + linear % u.group) * dim + 4 * t;
            if constexpr (half) {
                float largest = 0.0f;
                GK_ROLLED
                for (int step = 0; step < dim / 16; step++) {
                    float x[4] = {};
                    if (used[r]) prompt_query(u, q[r] + 16 * step, x);
                    GK_UNROLL
                    for (int i = 0; i < 4; i++) largest = max(abs(x[i] * scale), largest);
                }
                largest = max(gk::shuffle_xor(largest, 1), largest);
                largest = max(gk::shuffle_xor(largest, 2), largest);
                const int exponent = int(to_bits(largest) >> 23) - 127;
                const bool fits = exponent > -100 && exponent < 100;
                factor[r] *= fits ? power_of_two(-exponent) : 1.0f;
                if (t == 0) place.unscale[at] = fits ? power_of_two(exponent) : 1.0f;
            }
        }
        GK_UNROLL
        for (int step = 0; step < dim / 16; step++) {
            uint32_t w[4];
            GK_UNROLL
            for (int r = 0; r < 2; r++) {
                float x[4] = {};
                if (used[r]) prompt_query(u, q[r] + 16 * step, x);
                GK_UNROLL
                for (int i = 0; i < 4; i++) x[i] *= factor[r];
                GK_UNROLL
                for (int e = 0; e < 2; e++) w[2 * e + r] = half ? gk::pack_f16(x[2 * e], x[2 * e + 1]) : gk::pack_bf16(x[2 * e], x[2 * e + 1]);
            }
            prompt_store(place.q[warp][m][step][gk::lane()], w);
        }
    }
    gk::sync_warp();
}

// The end of the softmax, and 32 bytes a lane, place and 32 channels: channels 8 t .. 8 t + 7.
template <DType type, int blocks32, int m_tiles>
DEVICE void prompt_write(const AttentionArgs& a, const PromptUnits& u, const PromptPlace<type, blocks32, m_tiles>& place, int first, int64_t head0,
                         const float (&reference)[m_tiles][2], const float (&total)[m_tiles][2], const float (&o)[m_tiles][blocks32][4][4]) {
    constexpr int dim = 32 * blocks32;
    const int warp = gk::thread() / 32, g = gk::lane() / 4, t = gk::lane() % 4;
    GK_UNROLL
    for (int mr = 0; mr < 2 * m_tiles; mr++) {
        const int m = mr / 2, r = mr % 2;
        float all = total[m][r], shrink = 1.0f;
        all += gk::shuffle_xor(all, 1);
        all += gk::shuffle_xor(all, 2);
        const int at = (warp * m_tiles + m) * 16 + 8 * r + g, linear = first + at;
        if (place.position[at] < 0) continue;
        const int64_t head = head0 + linear % u.group;
        if (a.sinks) {
            const float sink = a.sinks[head] * 1.44269504f, largest = gk::larger(sink, reference[m][r]);
            shrink = gk::exp2(reference[m][r] - largest);
            all = all * shrink + gk::exp2(sink - largest);
        }
        const float factor = shrink / all;
        float* out = a.out + (u.first_row + linear / u.group) * a.out_stride + head * dim + 8 * t;
        GK_UNROLL
        for (int c = 0; c < blocks32; c++)
            GK_UNROLL
            for (int j = 0; j < 2; j++) {
                float x[4];
                GK_UNROLL
                for (int i = 0; i < 4; i++) x[i] = o[m][c][i][2 * r + j] * factor;
                prompt_store(out + 32 * c + 4 * j, x);
            }
    }
}

// Pages lowest / 64 .. highest / 64 of a sequence for the places that are set.
template <DType type, int blocks32, int m_tiles, bool extras>
DEVICE void prompt_attend(const AttentionArgs& a, const PromptUnits& u, PromptPlace<type, blocks32, m_tiles>& place, int first, int64_t kv,
                          int64_t sequence) {
    constexpr bool coded = Stored<type>::coded, together = PromptPlace<type, blocks32, m_tiles>::together;
    constexpr int stages = prompt_stages(blocks32, coded), ahead = coded ? 1 : stages - 1;
    int lowest = INT32_MAX, highest = -1;
    GK_UNROLL
    for (int w = 0; w < prompt_warps; w++) {
        lowest = std::min(lowest, place.range[w].lowest), highest = std::max(highest, place.range[w].highest);
    }
    const int32_t* table = a.pages.page_table + sequence * a.pages.max_pages;
    int page = lowest / int(page_keys), stage = 0;
    const int last = highest / int(page_keys);
    int32_t number = table[page];
    if constexpr (coded) prompt_copy_codes<blocks32, false>(place, a, kv, number);
    else prompt_copy<blocks32, false>(prompt_keys(place, 0), a.pages.k, a, kv, number);
    gk::copy_commit();
    if constexpr (coded) prompt_copy_codes<blocks32, true>(place, a, kv, number), gk::copy_commit();
    else if (stages > 1) prompt_copy<blocks32, true>(prompt_values(place, 0), a.pages.v, a, kv, number), gk::copy_commit();
    int32_t next = table[page < last ? page + 1 : page];
    const int64_t head0 = kv * u.group;
    prompt_queries(a, u, place, first, head0, extras ? a.scale : a.scale * 1.44269504f);
    float o[m_tiles][blocks32][4][4] = {}, reference[m_tiles][2], total[m_tiles][2] = {};
    GK_UNROLL
    for (int e = 0; e < 2 * m_tiles; e++) reference[e / 2][e % 2] = prompt_unseen;
    for (;; page++) {
        const int first_key = page * int(page_keys), last_key = first_key + int(page_keys) - 1;
        const PromptRange& range = place.range[gk::thread() / 32];
        const bool more = page < last, seen = first_key <= range.highest && last_key >= range.lowest;
        const int after = stages > 1 ? 1 - stage : 0;
        gk::copy_wait<ahead>();
        if (!coded || together) gk::sync();  // K is there, and nobody is at the V before
        if constexpr (coded) {
            prompt_widen<true, blocks32, false>(prompt_keys(place, 0), place.codes[0]);
            prompt_take_scales(place, lowest - first_key, highest - first_key);
            if (more) prompt_copy_codes<blocks32, false>(place, a, kv, next);
        } else if (stages == 1) {
            prompt_copy<blocks32, true>(prompt_values(place, 0), a.pages.v, a, kv, number);
        } else if (more) {
            prompt_copy<blocks32, false>(prompt_keys(place, after), a.pages.k, a, kv, next);
        }
        gk::copy_commit();
        if (coded) gk::sync();
        uint32_t p[m_tiles][2][2][4] = {};
        if (seen) {
            float s[m_tiles][2][4][4] = {};
            prompt_scores(place, prompt_keys(place, stage), s);
            const bool masked = first_key < range.full_from || last_key > range.full_to;
            prompt_softmax<type, blocks32, m_tiles, extras>(a, place, masked, first_key, s, reference, total, o, p);
        }
        gk::copy_wait<ahead>();
        if (!coded || together) gk::sync();  // V is there, and nobody is at this K
        if constexpr (coded) {
            prompt_widen<false, blocks32, true>(prompt_values(place, 0), place.codes[1]);
            if (more) prompt_copy_codes<blocks32, true>(place, a, kv, next);
        } else if (stages == 1 && more) {
            prompt_copy<blocks32, false>(prompt_keys(place, 0), a.pages.k, a, kv, next);
        } else if (more) {
            prompt_copy<blocks32, true>(prompt_values(place, after), a.pages.v, a, kv, next);
        }
        gk::copy_commit();
        if (coded) gk::sync();
        number = next;
        next = table[page + 2 <= last ? page + 2 : last];
        if (!coded && (first_key < lowest || last_key > highest)) {
            prompt_clear<blocks32>(prompt_values(place, stage), lowest - first_key, highest - first_key);
            gk::sync();
        }
        if (seen) prompt_sums<Stored<type>::half_values, blocks32, m_tiles>(prompt_values(place, stage), p, o);
        if (!more) break;
        stage = after;
    }
    prompt_write(a, u, place, first, head0, reference, total, o);
}

// Grid: (tiles x KV heads, the last rows first, which see the most keys) x blocks that share a tile of several sequences. extras: softcap
// or alibi.
template <DType type, int blocks32, bool extras>
GK_KERNEL void GK_BOUNDS(prompt_threads, blocks32 == 1 && type != DType::i8 ? 3 : 2) attention_prompt_kernel(AttentionArgs a, PromptUnits u) {
    gk::let_next_start(), gk::wait_for_previous();
    constexpr int m_tiles = prompt_m_tiles(blocks32, extras), warp_places = 16 * m_tiles, places = prompt_places(m_tiles);
    auto& place = *reinterpret_cast<PromptPlace<type, blocks32, m_tiles>*>(gk::shared());
    const int unit = int(gk::blocks() - 1 - gk::block()), first = unit / u.kvs * places, kv = u.first_kv + unit % u.kvs;
    const int warp = gk::thread() / 32, at = warp * warp_places + gk::lane(), linear = first + at;
    if (gk::lane() < warp_places) place.row[at] = linear < u.rows * u.group ? u.first_row + linear / u.group : -1;
    for (;;) {  // the places of one sequence after the other
        const int32_t row = gk::lane() < warp_places ? place.row[at] : -1;
        const uint32_t waiting = gk::ballot(row >= 0);
        if (gk::lane() == 0) place.next[warp] = waiting ? warp * warp_places + gk::first_bit(waiting) : places;
        gk::sync();
        int next = places;
        GK_UNROLL
        for (int w = 0; w < prompt_warps; w++) next = std::min(next, place.next[w]);
        if (next == places) return;
        const int32_t sequence = a.pages.sequences[u.first_row + (first + next) / u.group];
        const bool used = row >= 0 && a.pages.sequences[row] == sequence;
        if (used) place.row[at] = -1;
        if (next / u.group % u.sharing != int(gk::block_y())) {
            gk::sync();
            continue;
        }
        const int32_t own_position = used ? a.pages.positions[row] : -1;
        const int32_t low = used && a.window > 0 && own_position >= a.window ? own_position - int32_t(a.window) + 1 : 0;
        if (gk::lane() < warp_places) {
            place.position[at] = used ? own_position : -1, place.low[at] = low;
            if (extras) place.slope[at] = used && a.alibi_slopes ? a.alibi_slopes[int64_t(kv) * u.group + linear % u.group] : 0.0f;
        }
        PromptRange range{used ? low : INT32_MAX, used ? own_position : -1, used ? low : -1, used ? own_position : INT32_MAX};
        GK_UNROLL
        for (int d = 16; d > 0; d /= 2)
            range = {std::min(range.lowest, gk::shuffle_xor(range.lowest, d)), std::max(range.highest, gk::shuffle_xor(range.highest, d)),
                     std::max(range.full_from, gk::shuffle_xor(range.full_from, d)), std::min(range.full_to, gk::shuffle_xor(range.full_to, d))};
        if (gk::lane() == 0) place.range[warp] = range;
        gk::sync();
        prompt_attend<type, blocks32, m_tiles, extras>(a, u, place, first, kv, sequence);
        gk::sync();  // before the next places are set
    }
}
