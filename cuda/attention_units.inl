// Parts of attention_rows.inl: which units there are, how one begins (queries, rope, the new key and value) and ends (warps put together,
// then chunks).

constexpr int row_warps = 8, row_block = 32 * row_warps, warp_keys = 32, round_keys = row_warps * warp_keys, tile_heads_most = 8;
constexpr int64_t split_rows_most = 64;  // rows of a launch
constexpr int row_units = 128, chunks_most = 64;  // units a row is cut into at most, about

struct RowUnits {
    int first_row, rows, first_tile, tiles;  // of the launch; tile: heads [t % head_tiles * heads, + heads) of KV head t / head_tiles
    int group, head_tiles, heads;            // heads of a KV head; what has them, heads of one
    int wanted, chunks;                      // chunks_wanted; room for partials
    float tiles_share;                       // 1 / tiles
    float *sums, *ends;                      // [rows][tiles][heads][chunks]: [dim] sums of p v; the largest score and the sum of p
    uint32_t* counters;                      // [rows][tiles][heads]
};

// Chunks of a row at most, about, by its model's tiles; keys of each, of so many: putting chunks together takes as long as three rounds.
constexpr int chunk_alone = 4 * round_keys, chunk_least = 2 * round_keys;
HOST_DEVICE int chunks_wanted(int64_t tiles) {
    if (tiles >= row_units) return 1;
    return row_units / tiles < chunks_most - 1 ? int(row_units / tiles) : chunks_most - 1;
}
HOST_DEVICE int chunk_of(int keys, int wanted) {
    if (keys <= chunk_alone) return chunk_alone;
    return keys <= wanted * chunk_least ? chunk_least : (keys + wanted * round_keys - 1) / (wanted * round_keys) * round_keys;
}
HOST_DEVICE int chunk_at(int key, int chunk) {  // divisions take long
    return chunk == chunk_alone ? key / chunk_alone : chunk == chunk_least ? key / chunk_least : key / chunk;
}

// Heads of a tile at most: those of 256 channels take much shared memory.
HOST_DEVICE constexpr int64_t tile_heads(int64_t dim) { return dim > 192 ? tile_heads_most / 2 : tile_heads_most; }
// In how many parts a warp's keys come, and values: one where shared memory has room, two of long heads of 16 bits; else (wide false) one
// for each 32 channels.
HOST_DEVICE constexpr int row_parts(int blocks32, bool wide, bool coded) { return wide ? (blocks32 > 4 && !coded ? 2 : 1) : blocks32; }

template <bool coded>
struct RowScales {};
template <>
struct RowScales<true> {
    alignas(16) float scales[2][row_warps][warp_keys];  // of keys, of values
    float new_scale[2];
};

template <DType stored, int blocks32, bool wide>
struct alignas(16) RowPlace : RowScales<Stored<stored>::coded> {
    static constexpr DType type = stored;
    static constexpr bool coded = Stored<stored>::coded;
    static constexpr int dim = 32 * blocks32, stride = dim + 4;  // so that lanes meet no other's bank
    static constexpr int parts = row_parts(blocks32, wide, coded), part_dim = dim / parts, loads = part_dim / (coded ? 16 : 8);
    // A lane's 16 bytes of each load; of codes see part_key, part_value.
    alignas(16) uint32_t keys[row_warps][loads][32][4], values[row_warps][loads][32][4];
    float turned[tile_heads_most][dim];         // queries after rope
    uint32_t q[dim / 16][32][2];                // words 0 and 2 of the first operand, step by step
    float ends[row_warps][tile_heads_most][2];  // the largest score, the sum of p
    float unscale[tile_heads_most];
    typename Stored<stored>::Two new_key[dim / 2];
    typename Stored<stored>::One new_value[dim];
    int position[split_rows_most], low[split_rows_most], sequence[split_rows_most];  // keys low .. position
    int chunk[split_rows_most], first[split_rows_most], chunks[split_rows_most];     // a chunk's keys, the first chunk, how many
    int begin[split_rows_most + 4];             // units of the rows before

    // After it: [row_warps][heads][stride], sums of p v.
    static constexpr int64_t bytes(int64_t heads) { return int64_t(sizeof(RowPlace)) + row_warps * heads * stride * int64_t(sizeof(float)); }
};
template <class Place>
DEVICE float* warp_sums(Place& place, int warp, int head, int heads) { return reinterpret_cast<float*>(&place + 1) + (warp * heads + head) * Place::stride; }

// Which units there are, by the first warp.
template <class Place>
DEVICE void list_units(const AttentionArgs& a, const RowUnits& u, Place& place) {
    const int lane = gk::lane();
    if (gk::thread() >= 32) return;
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
            if (u.rows == 1) break;
            const int other = gk::shuffle_up(units, d);
            if (lane >= d) units += other;
        }
        if (r < u.rows) place.begin[r + 1] = before + units;
        if (u.rows > 32) before += gk::shuffle(units, 31);
    }
    if (lane == 0) place.begin[0] = 0;
}

struct RowUnit {
    int row, tile, chunk, chunks;  // row -1: none. chunk 0 has the first key that is seen
    int position, low, key, end;   // this warp's first keys, and where the chunk's end
    const int32_t* pages;          // of the sequence
};

template <class Place>
DEVICE RowUnit find_unit(const AttentionArgs& a, const RowUnits& u, const Place& place, int number) {
    RowUnit unit{};
    unit.row = -1;
    if (number >= place.begin[u.rows]) return unit;
    int row = 0;
    for (int r = gk::lane(); r - gk::lane() < u.rows - 1; r += 32)
        row += gk::count(gk::ballot(r + 1 < u.rows && place.begin[r + 1 < u.rows ? r + 1 : 0] <= number));
    const int local = number - place.begin[row];
    unit.row = row, unit.chunk = int(float(local) * u.tiles_share);
    unit.chunk += (unit.chunk + 1) * u.tiles <= local ? 1 : unit.chunk * u.tiles > local ? -1 : 0;
    unit.tile = local - unit.chunk * u.tiles;
    unit.position = place.position[row], unit.low = place.low[row];
    unit.chunks = place.chunks[row];
    const int begin = (place.first[row] + unit.chunk) * place.chunk[row], end = begin + place.chunk[row];
    unit.end = end > unit.position + 1 ? unit.position + 1 : end;
    unit.key = begin + gk::thread() / 32 * warp_keys;
    if (unit.key + warp_keys <= unit.low) unit.key += (unit.low - unit.key - warp_keys + round_keys) / round_keys * round_keys;
    unit.pages = a.pages.page_table + int64_t(place.sequence[row]) * a.pages.max_pages;
    return unit;
}

// The scales of keys 8 t .. of this warp's, or of their values; `fresh`: which of all is the new one.
template <class Place>
DEVICE void take_scales(Place& place, int of_values, int fresh, float (&x)[8]) {
    float(&all)[warp_keys] = place.scales[of_values][gk::thread() / 32];
    if (fresh >= 0) {
        if (gk::lane() == 0) all[fresh] = place.new_scale[of_values];
        gk::sync_warp();
    }
    memcpy(x, __builtin_assume_aligned(all + 8 * (gk::lane() % 4), 16), sizeof x);
}

// How a unit begins is a list of jobs, a warp one at a time: the queries of a head each; with the last chunk, where rope and the cache's
// writing go ahead, the new key and the new value. Loads go first, with what is computed of them later: channels 2 lane + 64 k + i.
template <int dim>
struct Loaded {
    static constexpr int turns = (dim + 63) / 64;
    float one[turns][2], other[turns][2], cosine[turns][2], sine[turns][2];
    int page;
};
struct UnitJobs {
    int kv, head0, heads, count;  // queries: 0 .. heads - 1
    int64_t row;
};
template <int dim>
DEVICE void load_job(const AttentionArgs& a, const RopeKvWriteArgs& chain, const RowUnit& unit, const UnitJobs& jobs, int job, Loaded<dim>& x) {
    const RopeArgs& r = chain.rope;
    const int lane = gk::lane(), half = int(r.half), head = job < jobs.heads ? jobs.head0 + job : int(a.heads) + jobs.kv;
    const float* from = job > jobs.heads ? chain.write.v + jobs.row * chain.write.kv_stride + jobs.kv * dim : a.q + jobs.row * a.q_stride + head * dim;
    const float* table = r.table + jobs.row * 2 * half;
    GK_UNROLL
    for (int e = 0; e < 2 * x.turns; e++) {
        const int all = 2 * lane + e / 2 * 64 + e % 2, c = dim % 64 == 0 || all < dim ? all : 0;
        const bool first = r.interleaved ? e % 2 == 0 : c < half;
        x.one[e / 2][e % 2] = from[c];
        if (!r.x) continue;
        const int i = r.interleaved ? c / 2 : first ? c : c - half, apart = r.interleaved ? 1 : half;
        x.other[e / 2][e % 2] = from[c >= 2 * half ? c : first ? c + apart : c - apart];
        x.cosine[e / 2][e % 2] = table[c < 2 * half ? i : 0];
        x.sine[e / 2][e % 2] = table[c < 2 * half ? half + i : 0];
    }
    x.page = job < jobs.heads ? 0 : unit.pages[unit.position / int(page_keys)];
}

template <class Place>
DEVICE void finish_job(const AttentionArgs& a, const RopeKvWriteArgs& chain, Place& place, const RowUnit& unit, const UnitJobs& jobs, int job,
                       const Loaded<Place::dim>& loaded) {
    using Page = Stored<Place::type>;
    using One = typename Page::One;
    using Two = typename Page::Two;
    constexpr int dim = Place::dim, turns = Loaded<dim>::turns;
    constexpr bool half = Page::half_keys;
    const RopeArgs& r = chain.rope;
    const int lane = gk::lane(), turned = r.x && job <= jobs.heads ? 2 * int(r.half) : 0;
    float x[turns][2];
    GK_UNROLL
    for (int e = 0; e < 2 * turns; e++) {
        const int k = e / 2, i = e % 2, c = 2 * lane + 64 * k + i;
        const float one = loaded.one[k][i] * loaded.cosine[k][i], two = loaded.other[k][i] * loaded.sine[k][i];
        x[k][i] = c >= turned ? loaded.one[k][i] : (r.interleaved ? i == 0 : c < turned / 2) ? one - two : one + two;
    }
    if (job < jobs.heads) {
        // In powers of two, but where a softcap wants scores as they are.
        const float scale = a.softcap > 0 ? a.scale : a.scale * 1.44269504f;
        float largest = 0.0f, shrink = 1.0f;
        GK_UNROLL
        for (int k = 0; k < turns; k++) {
            const int pair = lane + 32 * k;
            if (r.x && pair < dim / 2) place.turned[job][2 * pair] = x[k][0], place.turned[job][2 * pair + 1] = x[k][1];
            x[k][0] *= scale, x[k][1] *= scale;
            if (half && pair < dim / 2) largest = max(abs(x[k][1]), max(abs(x[k][0]), largest));
        }
        if constexpr (half) {  // f16 ends at 65,504: queries are taken at the power of two that brings their largest below 2
            GK_UNROLL
            for (int d = 16; d > 0; d /= 2) largest = max(gk::shuffle_xor(largest, d), largest);
            const int exponent = int(to_bits(largest) >> 23) - 127;
            const bool scaled = exponent > -100 && exponent < 100;
            shrink = scaled ? power_of_two(-exponent) : 1.0f;
            if (lane == 0) place.unscale[job] = scaled ? power_of_two(exponent) : 1.0f;
        }
        GK_UNROLL
        for (int k = 0; k < turns; k++) {
            const int pair = lane + 32 * k;
            const uint32_t word = half ? gk::pack_f16(x[k][0] * shrink, x[k][1] * shrink) : gk::pack_bf16(x[k][0], x[k][1]);
            if (pair < dim / 2) place.q[pair / 8][job * 4 + pair % 4][pair % 8 / 4] = word;
        }
        return;
    }
    const bool key = job == jobs.heads;
    float* k_row = r.x + jobs.row * r.x_stride + (a.heads + jobs.kv) * dim;
    const int64_t page = page_at<dim>(a, jobs.kv, loaded.page);
    const int slot = unit.position % int(page_keys);
    float scale = 1.0f;
    if constexpr (Page::coded) {
        uint32_t most = 0;
        GK_UNROLL
        for (int k = 0; k < turns; k++)
            if (lane + 32 * k < dim / 2) most = larger_size(larger_size(most, x[k][0]), x[k][1]);
        scale = scale_together(most);
    }
    gk::sync_warp();  // others have read what is written now
    if constexpr (Page::coded) {
        if (lane == 0) (key ? a.pages.k_scales : a.pages.v_scales)[scales_at(a, jobs.kv, loaded.page) + slot] = place.new_scale[key ? 0 : 1] = scale;
    }
    GK_UNROLL
    for (int k = 0; k < turns; k++) {
        const int pair = lane + 32 * k;
        if (pair >= dim / 2) continue;
        typename Page::Element two[2];
        put(x[k][0], scale, two[0]), put(x[k][1], scale, two[1]);
        One bits[2];
        memcpy(bits, two, sizeof bits);
        const Two word = Two(bits[0] | uint32_t(bits[1]) << 8 * sizeof(One));
        if (key) {
            k_row[2 * pair] = x[k][0], k_row[2 * pair + 1] = x[k][1];
            place.new_key[pair] = word;
            *reinterpret_cast<Two*>(static_cast<One*>(a.pages.k) + page + key_at(true, slot, 2 * pair, dim)) = word;
        } else {
            One* v = static_cast<One*>(a.pages.v) + page + value_at(true, slot, 2 * pair, dim);
            place.new_value[2 * pair] = bits[0], place.new_value[2 * pair + 1] = bits[1];
            v[0] = bits[0], v[2] = bits[1];
        }
    }
}

// The end of a softmax of one head, a warp its channels lane, lane + 32, ...
template <class Place, int blocks32>
DEVICE void finish_row(const AttentionArgs& a, const RopeArgs& rope, const Place& place, int64_t row, int64_t head, float largest, float total,
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
    float most[2], part[2], next[merge_loads][blocks32];
    auto load = [&](int first) {
        GK_UNROLL
        for (int e = 0; e < merge_loads; e++)
            GK_UNROLL
            for (int c = 0; c < blocks32; c++) next[e][c] = first + e < chunks ? gk::load_fresh(sums + (first + e) * dim + lane + 32 * c) : 0.0f;
    };
    GK_UNROLL
    for (int k = 0; k < 2; k++) {
        const int c = lane + 32 * k;
        most[k] = c < chunks ? gk::load_fresh(ends + 2 * c) : -infinity;
        part[k] = c < chunks ? gk::load_fresh(ends + 2 * c + 1) : 0.0f;
    }
    load(0);
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
        GK_UNROLL
        for (int e = 0; e < merge_loads; e++) {
            const float f = gk::shuffle(first < 32 ? factor[0] : factor[1], (first + e) % 32);
            GK_UNROLL
            for (int c = 0; c < blocks32; c++) sum[c] = gk::fma(next[e][c], f, sum[c]);
        }
        if (first + merge_loads < chunks) load(first + merge_loads);
    }
}

// The warps' softmaxes of a unit put together, a head a warp; then the chunks' where this is the last one to arrive.
template <class Place>
DEVICE void end_unit(const AttentionArgs& a, const RopeArgs& rope, const RowUnits& u, Place& place, const RowUnit& unit, int head0, int heads) {
    constexpr int dim = Place::dim, blocks32 = dim / 32;
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
            const float x = warp_sums(place, w, head, u.heads)[lane + 32 * c];
            sums[c] = gk::fma(any >> w & 1 ? x : 0.0f, f, sums[c]);
        }
    }
    if (unit.chunks > 1) {
        const int64_t index = (int64_t(unit.row) * u.tiles + unit.tile) * u.heads + head, first = index * u.chunks;
        float* mine = u.sums + (first + unit.chunk) * dim;
        GK_UNROLL
        for (int c = 0; c < blocks32; c++) mine[lane + 32 * c] = sums[c];
        if (lane < 2) u.ends[(first + unit.chunk) * 2 + lane] = lane ? total : largest;
        gk::sync_warp();
        uint32_t arrived = 0;
        if (lane == 0) arrived = gk::arrive_global(u.counters + index);
        if (gk::shuffle(arrived, 0) != uint32_t(unit.chunks - 1)) return;
        gk::sync_warp();  // what lane 0 has seen arrive, all lanes see
        if (lane == 0) u.counters[index] = 0;
        merge_chunks<blocks32>(u.sums + first * dim, u.ends + first * 2, unit.chunks, largest, total, sums);
    }
    finish_row(a, rope, place, u.first_row + unit.row, head0 + head, largest, total, sums);
}
