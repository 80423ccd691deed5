// The slots of kernels.h: each starts a kernel for units [begin, end). GK_LAUNCH is the compiler's way to do so, or the
// shim's; it calls flush() first. queue.inl puts several of these calls into one kernel.

constexpr int place_bytes = 256;  // of block_sum and its like

static constexpr int64_t up(int64_t x, int64_t by) { return (x + by - 1) / by; }

#define SLOT(name, Args) void name(const Args& a, int64_t begin, int64_t end)
#define BY_ROWS(name, Args) \
    SLOT(name, Args) { GK_LAUNCH(name##_kernel, end - begin, 1, row_threads, place_bytes, a, begin); }
// Rows, and pieces of their `columns` for who has four a thread.
#define BY_PIECES(name, Args, columns) \
    SLOT(name, Args) { GK_LAUNCH(name##_kernel, end - begin, up(columns, elements_a_block), row_threads, 0, a, begin); }
#define BY_ELEMENTS(name, Args) \
    SLOT(name, Args) { GK_LAUNCH(name##_kernel, up(end - begin, elements_a_block), 1, row_threads, 0, a, begin, end); }

BY_ELEMENTS(convert, ConvertArgs)
BY_ELEMENTS(add, AddArgs)
BY_ELEMENTS(scale, ScaleArgs)
BY_PIECES(embedding, EmbeddingArgs, a.dim)
BY_ROWS(round_rows, RoundRowsArgs)
BY_ROWS(tile_rows, TileRowsArgs)
BY_PIECES(gather_rows, GatherRowsArgs, a.dim)
BY_PIECES(combine, CombineArgs, a.dim)
BY_PIECES(activation, ActivationArgs, a.dim)
BY_PIECES(gated, GatedArgs, a.dim)
BY_PIECES(gather_columns, GatherColumnsArgs, a.columns)
SLOT(unpack, UnpackArgs) { GK_LAUNCH(unpack_kernel, end - begin, up(a.k, elements_a_block), row_threads, 0, a, unpack_plan(a), begin); }
BY_ROWS(softmax, SoftmaxArgs)
BY_ROWS(bias, BiasArgs)
SLOT(penalty, PenaltyArgs) { GK_LAUNCH(penalty_kernel, end - begin, up(a.history.capacity, row_threads), row_threads, 0, a, begin); }
BY_ROWS(remember, RememberArgs)

SLOT(rope_table, RopeTableArgs) {
    GK_LAUNCH(rope_table_kernel, end - begin, 1, int(std::min<int64_t>(round_up(a.half, 32), row_threads)), 0, a, begin);
}
constexpr int heads_a_block = row_threads / 32;
bool fits_pairs(const RopeArgs& a) {
    return !a.interleaved && 2 * a.half == a.head_dim && fits_pairs(a.head_dim) && by_twos(a.x, a.x_stride) && by_twos(a.table, 2 * a.half);
}
bool fits_pairs(const KvWriteArgs& a) { return fits_pairs(a.pages.head_dim) && by_twos(a.k, a.kv_stride) && by_twos(a.v, a.kv_stride); }
SLOT(rope, RopeArgs) { GK_LAUNCH(rope_kernel, end - begin, up(a.heads, heads_a_block), row_threads, 0, a, begin, fits_pairs(a)); }
SLOT(kv_write, KvWriteArgs) {
    GK_LAUNCH(kv_write_kernel, end - begin, up(2 * a.pages.kv_heads, heads_a_block), row_threads, 0, a, begin, fits_pairs(a));
}
SLOT(rope_kv_write, RopeKvWriteArgs) {
    const int64_t dim = a.rope.head_dim, heads = a.rope.heads, kv_heads = a.write.pages.kv_heads, at = a.write.k - a.rope.x;
    const bool turned = at >= 0 && at % dim == 0 && at / dim + kv_heads <= heads && a.write.kv_stride == a.rope.x_stride;  // all the keys
    if (!turned || !fits_pairs(a.rope) || !fits_pairs(a.write)) return rope(a.rope, begin, end), kv_write(a.write, begin, end);
    GK_LAUNCH(rope_kv_write_kernel, end - begin, up(heads + kv_heads, heads_a_block), row_threads, 0, a, begin, int(at / dim));
}

int64_t last_coded(const QuantizeArgs& a, int64_t end) { return a.tiled && end == a.rows ? round_up(end, code_tile_rows) : end; }
SLOT(quantize, QuantizeArgs) {
    GK_LAUNCH(quantize_kernel, last_coded(a, end) - begin, up(a.k, block_depth * (row_threads / 32)), row_threads, 0, a, begin);
}

SLOT(rms_norm, RmsNormArgs) {
    const int64_t rows = end - begin;
    if (a.dim <= norm_warp_most) GK_LAUNCH(rms_norm_heads_kernel, up(rows, row_threads / 32), 1, row_threads, 0, a, begin, end);
    else if (norm_fits(a, few_eights)) GK_LAUNCH(rms_norm_kernel<few_eights>, rows, 1, row_threads, place_bytes, a, begin);
    else if (norm_fits(a, most_eights)) GK_LAUNCH(rms_norm_kernel<most_eights>, rows, 1, row_threads, place_bytes, a, begin);
    else GK_LAUNCH(rms_norm_long_kernel, rows, 1, row_threads, place_bytes, a, begin);
}
SLOT(layer_norm, LayerNormArgs) {
    const int64_t rows = end - begin;
    const bool fits = a.weight_stride % 4 == 0 && reinterpret_cast<uintptr_t>(a.bias) % 16 == 0;
    if (fits && norm_fits(a, few_eights)) GK_LAUNCH(layer_norm_kernel<few_eights>, rows, 1, row_threads, place_bytes, a, begin);
    else if (fits && norm_fits(a, most_eights)) GK_LAUNCH(layer_norm_kernel<most_eights>, rows, 1, row_threads, place_bytes, a, begin);
    else GK_LAUNCH(layer_norm_long_kernel, rows, 1, row_threads, place_bytes, a, begin);
}

// Whether rows of dense_few_kernel fit shared memory.
bool dense_resident(const LinearArgs& a) {
    return dense_few_bytes(std::min<int64_t>(a.rows, dense_few_most), a.k, a.dtype == DType::f16, true) <= workspace().shared;
}
void round_x(const LinearArgs& a, int64_t row0, int64_t rows) {
    GK_LAUNCH(round_x_kernel, rows, 1, row_threads, 0, a, row0, reinterpret_cast<uint32_t*>(workspace().scratch));
}
// Whether attention was started since the last such product; its blocks are few and leave memory idle. A product after it has the longer ring:
// more is asked for ahead, and no two of its blocks take one multiprocessor, as they might while others are full. After another
// product, whose blocks take all multiprocessors alike, it has the shorter one, for which there is room beside that.
thread_local bool after_attention = false;
constexpr int64_t dense_longer_most = 124 << 10;  // bytes: as much is left beside a shorter one

template <bool half, bool resident>
void dense_few(const DenseChain& chain, const LinearArgs& a, int64_t begin, int64_t end) {
    const int64_t units = chain.gated.x ? up(a.n / 2, dense_few_outputs / 2) : up(end - begin, dense_few_outputs);
    const int64_t grid = std::min(units, workspace().processors);
    const char* rounded = workspace().scratch;
    for (int64_t row0 = 0; row0 < a.rows; row0 += dense_few_most) {
        const int64_t rows = std::min<int64_t>(a.rows - row0, dense_few_most);
        const int bytes = int(dense_few_bytes(rows, a.k, half, resident));
        const int longer = int(dense_few_bytes(rows, a.k, half, resident, dense_few_longer));
        if (!resident && grid > 0) round_x(a, row0, rows);
        const int threads = dense_warps * 32;
        if constexpr (resident) {
            if (after_attention && rows <= 8 && longer <= std::min(dense_longer_most, workspace().shared)) {
                GK_LAUNCH((dense_few_kernel<half, 1, true, dense_few_longer>), grid, 1, threads, longer, a, chain, row0, rounded, begin, end);
                continue;
            }
        }
        if (rows <= 8) GK_LAUNCH((dense_few_kernel<half, 1, resident, dense_few_stages>), grid, 1, threads, bytes, a, chain, row0, rounded, begin, end);
        else GK_LAUNCH((dense_few_kernel<half, 2, resident, dense_few_stages>), grid, 1, threads, bytes, a, chain, row0, rounded, begin, end);
    }
    after_attention = false;
}
void dense_few(const DenseChain& chain, const LinearArgs& a, int64_t begin, int64_t end) {
    const bool resident = dense_resident(a);
    if (a.dtype == DType::f16) resident ? dense_few<true, true>(chain, a, begin, end) : dense_few<true, false>(chain, a, begin, end);
    else resident ? dense_few<false, true>(chain, a, begin, end) : dense_few<false, false>(chain, a, begin, end);
}
template <int m_tiles, int n_tiles>
void dense_many(const LinearArgs& a, int64_t row0, int64_t rows, int64_t begin, int64_t end) {
    const int64_t tiles = up(end - begin, dense_tile_outputs(m_tiles)) * up(rows, dense_tile_rows(n_tiles));
    GK_LAUNCH((dense_many_kernel<m_tiles, n_tiles>), tiles, 1, dense_warps * 32, dense_many_bytes(m_tiles, n_tiles), a, row0, rows,
              workspace().scratch, begin, end);
}
template <class Tile>
void dense_tiles(const LinearArgs& a, int64_t row0, int64_t rows, int64_t begin, int64_t end) {
    GK_LAUNCH(dense_tile_kernel<Tile>, up(end - begin, Tile::outputs) * up(rows, Tile::rows), 1, dense_warps * 32, Tile::bytes, a, row0, rows,
              reinterpret_cast<const uint16_t*>(workspace().scratch), begin, end);
}
void dense_tiles(const LinearArgs& a, int64_t row0, int64_t rows, int64_t begin, int64_t end) {
    switch (dense_tile(rows, end - begin, workspace().processors)) {
        case 0: return dense_tiles<DenseLarge>(a, row0, rows, begin, end);
        case 1: return dense_tiles<DenseMiddle>(a, row0, rows, begin, end);
        case 2: return dense_tiles<DenseFlat>(a, row0, rows, begin, end);
        default: return dense_tiles<DenseSmall>(a, row0, rows, begin, end);
    }
}
// Whether it did. The rows are rounded already.
bool by_library(const LinearArgs& a, int64_t row0, int64_t rows) {
    const int64_t at = row0 * a.out_stride;
    if (!library_product || !library_product({a.weight, reinterpret_cast<const uint16_t*>(workspace().scratch), a.residual ? a.residual + at : nullptr,
                                              a.out + at, rows, a.n, a.k, round_up(a.k, dense_unit), a.out_stride}))
        return false;
    if (a.bias) GK_LAUNCH(product_bias_kernel, rows, 1, row_threads, 0, a, row0);
    return true;
}
void dense_many(const LinearArgs& a, int64_t begin, int64_t end) {
    const bool half = a.dtype == DType::f16;
    const int64_t at_once = dense_rows_at_once(a.rows, a.k, half);
    for (int64_t row0 = 0; row0 < a.rows; row0 += at_once) {
        const int64_t rows = std::min(at_once, a.rows - row0);
        round_x(a, row0, rows);
        if (!half && !a.region && begin == 0 && end == a.n && by_library(a, row0, rows)) continue;
        if (!half) dense_tiles(a, row0, rows, begin, end);
        else if (dense_many_large(rows, end - begin, workspace().processors)) dense_many<4, 2>(a, row0, rows, begin, end);
        else dense_many<1, 2>(a, row0, rows, begin, end);
    }
}

SLOT(linear, LinearArgs) {
    if (!is_dense(a)) GK_LAUNCH(linear_kernel, up(end - begin, 8), up(a.rows, linear_rows), row_threads, 0, a, begin, end);
    else if (a.rows <= dense_few_most || dense_rows_most(a.k, a.dtype == DType::f16) < 1) dense_few({}, a, begin, end);
    else if (begin < end) dense_many(a, begin, end);
}

template <Packing packing, bool by16, int rows>
void packed_few(const FewPlan& p, const FewSource& source, const PackedLinearArgs& a, int64_t begin, int64_t end) {
    GK_LAUNCH((packed_few_kernel<packing, by16, rows>), p.slots * p.row_tiles, 1, p.warps * 32, p.bytes, a, p, source, begin, end);
}
template <Packing packing, bool by16>
void packed_few(const FewPlan& p, const FewSource& source, const PackedLinearArgs& a, int64_t begin, int64_t end) {
    switch (p.rows) {
        case 1: return packed_few<packing, by16, 1>(p, source, a, begin, end);
        case 2: return packed_few<packing, by16, 2>(p, source, a, begin, end);
        case 4: return packed_few<packing, by16, 4>(p, source, a, begin, end);
        case 8: return packed_few<packing, by16, 8>(p, source, a, begin, end);
    }
}
template <Packing packing, bool by16, int way>
void packed_many(const ManyPlan& p, const PackedLinearArgs& a, int64_t begin, int64_t end) {
    const int64_t grid = std::min(up(end - begin, p.panels) * up(a.rows, p.rows), p.resident * workspace().processors);
    if constexpr (many_has(packing, way))
        GK_LAUNCH((packed_many_kernel<packing, by16, way>), grid, 1, 32 * p.panels * p.sharers, p.bytes, a, p, begin, end);
}
// Whether it was started: not where the kernel was to make the codes and is none that does. 9 to 16 rows of few panels: packed_few_kernel
// cuts k among its warps, so its tiles of 8 rows read the weights twice, of which once from the second-level cache.
template <Packing packing, bool by16>
bool packed_product(const FewSource& source, const PackedLinearArgs& a, int64_t begin, int64_t end) {
    if (a.rows <= 0 || begin >= end) return !source.rounding.x;
    const int64_t processors = workspace().processors;
    const FewPlan p = few_plan(a, end - begin, processors, workspace().shared);
    const bool few = a.rows <= few_rows_most || (a.rows <= 2 * few_rows_most && end - begin < 2 * processors);
    if (few && p.rows > 0 && (!source.rounding.x || few_makes(source, a.rows, p))) {
        packed_few<packing, by16>(p, source, a, begin, end);
        return true;
    }
    if (source.rounding.x) return false;
    const ManyPlan m = many_plan(a, end - begin, processors, workspace().shared);
    switch (m.way) {
        case 0: packed_many<packing, by16, 0>(m, a, begin, end); break;
        case 1: packed_many<packing, by16, 1>(m, a, begin, end); break;
        case 2: packed_many<packing, by16, 2>(m, a, begin, end); break;
        case 3: packed_many<packing, by16, 3>(m, a, begin, end); break;
        case 4: packed_many<packing, by16, 4>(m, a, begin, end); break;
    }
    return true;
}
bool packed_product(const FewSource& source, const PackedLinearArgs& a, int64_t begin, int64_t end) {
    const bool by16 = a.format.group == 16;  // of_k only
    switch (a.format.packing) {
        case Packing::int4_two_level: return packed_product<Packing::int4_two_level, false>(source, a, begin, end);
        case Packing::int4: return packed_product<Packing::int4, false>(source, a, begin, end);
        case Packing::int8: return packed_product<Packing::int8, false>(source, a, begin, end);
        case Packing::int4_k:
            return by16 ? packed_product<Packing::int4_k, true>(source, a, begin, end) : packed_product<Packing::int4_k, false>(source, a, begin, end);
        case Packing::int8_k:
            return by16 ? packed_product<Packing::int8_k, true>(source, a, begin, end) : packed_product<Packing::int8_k, false>(source, a, begin, end);
    }
    return false;
}
SLOT(packed_linear, PackedLinearArgs) { packed_product({}, a, begin, end); }

SLOT(route, RouteArgs) { GK_LAUNCH(route_kernel, end - begin, 1, 32, int(sizeof(RoutePlace)), a, begin); }
SLOT(group_rows, GroupRowsArgs) {
    if (begin < end) GK_LAUNCH(group_rows_kernel, 1, 1, group_threads, int(sizeof(GroupPlace)), a);
}

// Rows [row, row + rows) of KV heads [kv, kv + kvs). chain: rope and the cache's writing ahead of it.
template <DType type, int blocks32>
void attend_rows(const RopeKvWriteArgs& chain, const AttentionArgs& a, int64_t row, int64_t rows, int64_t kv, int64_t kvs) {
    constexpr int dim = 32 * blocks32;
    const int64_t group = a.heads / a.pages.kv_heads, head_tiles = up(group, tile_heads(dim)), heads = up(group, head_tiles), tiles = kvs * head_tiles;
    const int64_t keys = a.pages.max_pages * page_keys, wanted = chunks_wanted(a.pages.kv_heads * head_tiles);
    const int64_t chunks = keys <= chunk_alone ? 1 : std::min(up(keys, chunk_least), wanted + 1), floats = tiles * heads * chunks * (dim + 2);
    const int64_t most = std::min({split_rows_most, workspace_bytes / int64_t(sizeof(float)) / floats, workspace_counters / (tiles * heads)});
    const int64_t at_once = up(rows, up(rows, most));
    float* sums = reinterpret_cast<float*>(workspace().scratch);
    for (int64_t done = 0; done < rows; done += at_once) {
        const int64_t now = std::min(at_once, rows - done), grid = std::min(now * tiles * chunks, workspace().processors);
        const RowUnits units{int(row + done), int(now), int(kv * head_tiles), int(tiles), int(group), int(head_tiles), int(heads), int(wanted),
                             int(chunks), 1.0f / float(tiles), sums, sums + now * tiles * heads * chunks * dim, workspace().counters};
        const int bytes = int(RowPlace<type, blocks32, true>::bytes(heads));
        if (bytes <= workspace().shared) GK_LAUNCH((attention_rows_kernel<type, blocks32, true>), grid, 1, row_block, bytes, a, chain, units);
        else GK_LAUNCH((attention_rows_kernel<type, blocks32, false>), grid, 1, row_block, int(RowPlace<type, blocks32, false>::bytes(heads)), a, chain, units);
    }
    after_attention = true;
}
// Rows [row, row + rows) of KV heads [kv, kv + kvs), of a launch of more rows than are split.
template <DType type, int blocks32>
void attend_prompt(const AttentionArgs& a, int64_t row, int64_t rows, int64_t kv, int64_t kvs) {
    const int64_t group = a.heads / a.pages.kv_heads;
    auto go = [&](auto extras) {
        // Of a launch that has fewer blocks than there are places to run, more of them share a tile: its rows may be of as many sequences.
        constexpr int m_tiles = prompt_m_tiles(blocks32, extras()), places = prompt_places(m_tiles);
        const int64_t tiles = up(rows * group, places) * kvs, sharing = std::clamp<int64_t>(2 * workspace().processors / tiles, 1, up(places, group));
        const PromptUnits units{int32_t(row), int32_t(rows), int32_t(kv), int32_t(kvs), int32_t(group), int32_t(sharing),
                                reinterpret_cast<uintptr_t>(a.q) % 16 == 0 && a.q_stride % 4 == 0};
        GK_LAUNCH((attention_prompt_kernel<type, blocks32, extras()>), tiles, sharing, prompt_threads,
                  int(sizeof(PromptPlace<type, blocks32, m_tiles>)), a, units);
    };
    if (a.alibi_slopes || a.softcap > 0) go(std::true_type());
    else go(std::false_type());
}
template <DType type, int blocks32>
void attend_tiles(const RopeKvWriteArgs& chain, const AttentionArgs& a, int64_t row, int64_t rows, int64_t kv, int64_t kvs) {
    if (a.rows <= split_rows_most) attend_rows<type, blocks32>(chain, a, row, rows, kv, kvs);
    else attend_prompt<type, blocks32>(a, row, rows, kv, kvs);
}
template <DType type>
void attend_tiles(const RopeKvWriteArgs& chain, const AttentionArgs& a, int64_t row, int64_t rows, int64_t kv, int64_t kvs) {
    switch (a.pages.head_dim / 32) {
        case 1: return attend_tiles<type, 1>(chain, a, row, rows, kv, kvs);
        case 2: return attend_tiles<type, 2>(chain, a, row, rows, kv, kvs);
        case 3: return attend_tiles<type, 3>(chain, a, row, rows, kv, kvs);
        case 4: return attend_tiles<type, 4>(chain, a, row, rows, kv, kvs);
        case 6: return attend_tiles<type, 6>(chain, a, row, rows, kv, kvs);
        case 8: return attend_tiles<type, 8>(chain, a, row, rows, kv, kvs);
    }
}
void attend_tiles(const RopeKvWriteArgs& chain, const AttentionArgs& a, int64_t row, int64_t rows, int64_t kv, int64_t kvs) {
    if (rows = std::min(rows, a.rows - row); rows < 1 || kvs < 1) return;
    if (a.pages.dtype == DType::f16) attend_tiles<DType::f16>(chain, a, row, rows, kv, kvs);
    else if (a.pages.dtype == DType::bf16) attend_tiles<DType::bf16>(chain, a, row, rows, kv, kvs);
    else attend_tiles<DType::i8>(chain, a, row, rows, kv, kvs);
}

int64_t splits_of(const AttentionArgs& a) { return a.partials ? a.splits : 1; }
bool is_whole(const AttentionArgs& a, int64_t begin, int64_t end) { return begin == 0 && end == up(a.rows, a.unit_rows) * splits_of(a) * a.pages.kv_heads; }

// By tiles all is done here, with partials or without; then those of the arguments are not used.
SLOT(attention, AttentionArgs) {
    const int64_t kvs = a.pages.kv_heads, splits = splits_of(a);
    if (!has_tiles(a)) {
        GK_LAUNCH(attention_kernel, end - begin, a.unit_rows * (a.heads / kvs), attention_threads, int(sizeof(AttentionPlace)), a, begin);
    } else if (is_whole(a, begin, end)) {
        attend_tiles({}, a, 0, a.rows, 0, kvs);
    } else {
        for (int64_t unit = begin; unit < end; unit++)
            if (unit / kvs % splits == 0) attend_tiles({}, a, unit / kvs / splits * a.unit_rows, a.unit_rows, unit % kvs, 1);
    }
}
SLOT(attention_merge, AttentionArgs) {
    if (!has_tiles(a)) GK_LAUNCH(attention_merge_kernel, end - begin, 1, attention_threads, int(sizeof(AttentionPlace)), a, begin);
}

// body(split, how many rows) for rows first, first + stride, ..., as many at once as the workspace has room for.
template <class Body>
void split_rows(int64_t first, int64_t stride, int64_t count, int64_t dim, Body body) {
    const int64_t piece = split_piece(count, dim);
    for (int64_t done = 0; done < count; done += rows_at_once)
        body(Split{reinterpret_cast<SplitRow*>(workspace().scratch), workspace().counters, first + done * stride, stride, piece},
             up(dim, piece), count - done < rows_at_once ? count - done : rows_at_once);
}

void largest(const float* x, int64_t dim, int32_t* tokens, int32_t* nonfinite, int64_t begin, int64_t end) {
    split_rows(begin, 1, end - begin, dim, [&](Split split, int64_t pieces, int64_t rows) {
        GK_LAUNCH(sample_largest_kernel, pieces, rows, split_threads, int(sizeof(LargestPlace)), split, x, dim, tokens, nonfinite, false, true);
    });
}
SLOT(argmax, ArgmaxArgs) { largest(a.x, a.dim, a.out, nullptr, begin, end); }
SLOT(nonfinite, NonfiniteArgs) { largest(a.x, a.dim, nullptr, a.out, begin, end); }

void sample_rows(const SampleArgs& a, int64_t first, int64_t stride, int64_t count) {
    const float scale = a.temperature > 0 ? mass_scale(a.temperature) : 0.0f;
    const bool limited = a.top_k > 0 && a.top_k < a.dim, filters = limited || a.top_p < 1.0f, alone = a.temperature == 0;
    const int place = int(sizeof(LargestPlace)), bin_place = int(sizeof(BinPlace)), choose_place = int(sizeof(ChoosePlace));
    split_rows(first, stride, count, a.dim, [&](Split split, int64_t pieces, int64_t rows) {
        GK_LAUNCH(sample_largest_kernel, pieces, rows, split_threads, place, split, a.logits, a.dim, a.tokens, a.nonfinite, a.finite_only, alone);
        if (alone) return;
        if (!filters) return GK_LAUNCH(sample_draw_kernel, pieces, rows, split_threads, int(sizeof(DrawPlace)), split, a, scale);
        GK_LAUNCH(sample_bins_kernel, pieces, rows, split_threads, bin_place, split, a.logits, a.dim, a.tokens, a.nonfinite, limited, scale);
        GK_LAUNCH(sample_choose_kernel, pieces, rows, split_threads, choose_place, split, a, scale);
    });
}
SLOT(sample, SampleArgs) {
    const int64_t slots = scratch_slots(a.rows);
    if (begin == 0 && end >= slots) return sample_rows(a, 0, 1, a.rows);
    for (int64_t slot = begin; slot < end; slot++) sample_rows(a, slot, slots, up(a.rows - slot, slots));
}

SLOT(top_k, TopKArgs) {
    const SplitRow* begun = nullptr;
    if (a.k <= listed_most && a.rows <= rows_at_once && begin == 0 && end >= scratch_slots(a.rows)) {
        split_rows(0, 1, a.rows, a.dim, [&](Split split, int64_t pieces, int64_t rows) {
            GK_LAUNCH(sample_largest_kernel, pieces, rows, split_threads, int(sizeof(LargestPlace)), split, a.x, a.dim, nullptr, nullptr, false, false);
            GK_LAUNCH(sample_bins_kernel, pieces, rows, split_threads, int(sizeof(BinPlace)), split, a.x, a.dim, nullptr, nullptr, true, 0.0f);
            GK_LAUNCH(top_k_choose_kernel, pieces, rows, split_threads, int(sizeof(ChoosePlace)), split, a);
            begun = split.rows;
        });
    }
    GK_LAUNCH(top_k_kernel, end - begin, 1, sample_threads, int(sizeof(SamplePlace)), a, begin, begun);
}
SLOT(measure_read, MeasureReadArgs) { GK_LAUNCH(measure_read_kernel, end - begin, 1, row_threads, measure_place, a, begin); }
BY_ROWS(measure_f32, MeasureArithmeticArgs)
BY_ROWS(measure_bf16, MeasureArithmeticArgs)
BY_ROWS(measure_int8, MeasureArithmeticArgs)
SLOT(copy_pages, CopyPagesArgs) { GK_LAUNCH(copy_pages_kernel, end - begin, a.heads, row_threads, 0, a, begin); }

void start_nothing() { GK_LAUNCH(nothing_kernel, 1, 1, 32, 0, int64_t(0)); }

#undef BY_ELEMENTS
#undef BY_ROWS
#undef BY_PIECES
#undef SLOT

void install(Kernels& k) {
    k.convert = convert;
    k.embedding = embedding;
    k.rms_norm = rms_norm;
    k.layer_norm = layer_norm;
    k.round_rows = round_rows;
    k.tile_rows = tile_rows;
    k.linear = linear;
    k.quantize = quantize;
    k.packed_linear = packed_linear;
    k.unpack = unpack;
    k.route = route;
    k.group_rows = group_rows;
    k.gather_rows = gather_rows;
    k.combine = combine;
    k.rope_table = rope_table;
    k.rope = rope;
    k.kv_write = kv_write;
    k.rope_kv_write = rope_kv_write;
    k.attention = attention;
    k.attention_merge = attention_merge;
    k.activation = activation;
    k.gated = gated;
    k.add = add;
    k.scale = scale;
    k.gather_columns = gather_columns;
    k.softmax = softmax;
    k.argmax = argmax;
    k.nonfinite = nonfinite;
    k.top_k = top_k;
    k.bias = bias;
    k.penalty = penalty;
    k.sample = sample;
    k.sample_counts = true;
    k.remember = remember;
    k.copy_pages = copy_pages;
    k.measure_read = measure_read;
    k.measure_f32 = measure_f32;
    k.measure_bf16 = measure_bf16;
    k.measure_int8 = measure_int8;
}
