// Attention's products in tiles, for pages of bf16 and int8 and a head_dim of whole tiles: 16 queries by a page at once, for
// one token as for many, so that both have the same bits. A page of K is the tiles B of its scores as it lies, 16 pairs of
// channels by 16 keys, and a page of V those of the sums, 16 pairs of keys by 16 channels. An element is tdpbf16ps over 32
// channels or keys at a time, in ascending order; weights of keys that a query does not see are zeros, which change nothing.

constexpr int64_t tile_queries = 16;
constexpr int64_t product_depth = 32;  // channels or keys
constexpr int64_t key_tiles = page_keys / tile_keys;
static_assert(key_tiles == 4 && page_keys == 2 * product_depth, "a page fills four tiles of scores and two of weights");

INLINE bool all_finite(const bf16* x, int64_t count) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    __mmask32 found = 0;
    for (int64_t i = 0; i < count; i += 32) {
        found |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(load_pairs(&x[i].bits), exponent), exponent);
    }
    return found == 0;
}

// `tiles` tiles of 16 channels: sum[16 queries][channels] += p [16][64 keys] (in tiles 4 and 5) x values.
template <int tiles>
INLINE void add_values(float* sum, const bf16* values, int64_t dim) {
    const bf16* more = values + product_depth * dim;
    const int64_t stride = dim * 4;
    tile_load<0>(sum, stride);
    tile_load<6>(values, stride);
    tile_dot_bf16<0, 4, 6>();
    tile_load<1>(sum + 16, stride);
    tile_load<7>(values + 32, stride);
    tile_dot_bf16<1, 4, 7>();
    if constexpr (tiles == 4) {
        tile_load<2>(sum + 32, stride);
        tile_load<6>(values + 64, stride);
        tile_dot_bf16<2, 4, 6>();
        tile_load<3>(sum + 48, stride);
        tile_load<7>(values + 96, stride);
        tile_dot_bf16<3, 4, 7>();
    }
    tile_load<6>(more, stride);
    tile_dot_bf16<0, 5, 6>();
    tile_load<7>(more + 32, stride);
    tile_dot_bf16<1, 5, 7>();
    tile_store<0>(sum, stride);
    if constexpr (tiles == 4) {
        tile_load<6>(more + 64, stride);
        tile_dot_bf16<2, 5, 6>();
        tile_load<7>(more + 96, stride);
        tile_dot_bf16<3, 5, 7>();
    }
    tile_store<1>(sum + 16, stride);
    if constexpr (tiles == 4) tile_store<2>(sum + 32, stride);
    if constexpr (tiles == 4) tile_store<3>(sum + 48, stride);
}

template <class T>
class TilePass {
public:
    TilePass(int64_t queries, int64_t dim) : vectors_(queries, dim), dim_(dim), tiled_(dim % product_depth == 0) {
        if (!tiled_) return;
        TileShapes shapes;
        for (int tile = 0; tile < 6; tile++) shapes.set(tile, queries < tile_queries ? queries : tile_queries, 64);
        for (int tile = 6; tile < 8; tile++) shapes.set(tile, 16, 64);
        tile_config(shapes);
    }
    void end() {
        if (tiled_) tile_release();
    }

    void attend(const AttentionArgs& a, Query* query, int64_t queries, int64_t page, const Page<T>& at) {
        if (!tiled_) return vectors_.attend(a, query, queries, page, at);
        if constexpr (widens) {
            alignas(64) bf16 keys[page_keys * largest_dim], values[page_keys * largest_dim];
            widen(at.keys, keys, at.values);
            widen(at.values, values, at.next);
            attend_in_tiles(a, query, queries, page, at, keys, values, nullptr);
        } else {
            attend_in_tiles(a, query, queries, page, at, at.keys, at.values, at.next);
        }
    }

private:
    static constexpr bool widens = sizeof(T) == 1;  // a page's codes become bf16 numbers once for all queries

    void widen(const T* codes, bf16* to, const T* next) {
        for (int64_t i = 0; i < page_keys * dim_; i += 32) {
            if (next && i % 64 == 0) __builtin_prefetch(next + i);
            _mm512_storeu_si512(to + i, Products<T>::get(codes + i, Whole()));
        }
    }

    // next: keys of the next page, to be fetched, or null.
    void attend_in_tiles(const AttentionArgs& a, Query* query, int64_t queries, int64_t page, const Page<T>& at,
                         const bf16* keys, const bf16* values, const bf16* next) {
        alignas(64) float score[tile_queries][page_keys];
        alignas(64) bf16 p[tile_queries][page_keys];
        bool whole = true;
        for (int64_t i = 0; i < queries; i++) {
            whole = whole && first_key(query[i], page) == 0 && last_key(query[i], page) == page_keys;
        }
        bool fetch = !widens;
        // A NaN or an infinity times zero is none, and may be what a query does not see, or what was never written.
        const bool careful = !widens && !whole && !all_finite(values, page_keys * dim_);
        for (int64_t i = 0; i < queries; i += tile_queries) {
            const int64_t count = queries - i < tile_queries ? queries - i : tile_queries;
            bool any = false;
            for (int64_t j = 0; j < count; j++) any = any || sees(query[i + j], page);
            if (!any) continue;
            score_page(static_cast<const bf16*>(query[i].q), keys, fetch ? values : nullptr, score);
            const float* k_scales = a.softcap > 0 ? cap_scores(a.softcap, at.k_scales, score, count) : at.k_scales;
            for (int64_t j = 0; j < count; j++) {
                if (sees(query[i + j], page)) soften<T>(a, query[i + j], page, k_scales, at.v_scales, score[j], p[j]);
                else __builtin_memset(p[j], 0, sizeof p[j]);
            }
            if (careful) sum_one_by_one(query + i, count, page, p, values);
            else sum_page(query[i].sum, p, values, fetch ? next : nullptr);
            fetch = false;
        }
    }

    // The values, needed next, are fetched on the way.
    INLINE void score_page(const bf16* q, const bf16* keys, const bf16* values, float (*score)[page_keys]) {
        const int64_t tile = tile_keys * dim_;
        tile_zero<0>();
        tile_zero<1>();
        tile_zero<2>();
        tile_zero<3>();
        for (int64_t d = 0; d < dim_; d += product_depth) {
            const bf16* k = keys + d * tile_keys;
            tile_load<4>(q + d, dim_ * 2);
            tile_load<6>(k, 64);
            tile_dot_bf16<0, 4, 6>();
            tile_load<7>(k + tile, 64);
            tile_dot_bf16<1, 4, 7>();
            tile_load<6>(k + 2 * tile, 64);
            tile_dot_bf16<2, 4, 6>();
            tile_load<7>(k + 3 * tile, 64);
            tile_dot_bf16<3, 4, 7>();
            if (!values) continue;
            for (int64_t i = 0; i < page_keys * product_depth; i += 32) __builtin_prefetch(values + d * page_keys + i);
        }
        constexpr int64_t stride = page_keys * sizeof(float);
        tile_store<0>(score[0], stride);
        tile_store<1>(score[0] + 16, stride);
        tile_store<2>(score[0] + 32, stride);
        tile_store<3>(score[0] + 48, stride);
    }

    INLINE void load_weights(const bf16 (*p)[page_keys]) {
        tile_load<4>(p[0], sizeof p[0]);
        tile_load<5>(p[0] + product_depth, sizeof p[0]);
    }

    INLINE void sum_page(float* sum, const bf16 (*p)[page_keys], const bf16* values, const bf16* next) {
        load_weights(p);
        for (int64_t d = 0; d < dim_; d += 64) {
            if (d + 64 <= dim_) add_values<4>(sum + d, values + d * 2, dim_);
            else add_values<2>(sum + d, values + d * 2, dim_);
            if (!next) continue;
            for (int64_t i = 0; i < page_keys * 64 && d * page_keys + i < page_keys * dim_; i += 32) {
                __builtin_prefetch(next + d * page_keys + i);
            }
        }
    }

    // Each query with the values it sees and zeros; of what comes out for its neighbours, nothing is kept.
    void sum_one_by_one(Query* query, int64_t count, int64_t page, const bf16 (*p)[page_keys], const bf16* values) {
        alignas(64) bf16 seen[page_keys * largest_dim];
        alignas(64) float sum[tile_queries * largest_dim];
        load_weights(p);
        for (int64_t j = 0; j < count; j++) {
            if (!sees(query[j], page)) continue;
            const int64_t low = first_key(query[j], page), high = last_key(query[j], page);
            for (int64_t key = 0; key < page_keys; key++) {
                for (int64_t d = 0; d < dim_; d++) {
                    const int64_t i = (key / 2 * dim_ + d) * 2 + key % 2;
                    seen[i] = key < low || key >= high ? bf16{} : values[i];
                }
            }
            for (int64_t d = 0; d < count * dim_; d++) sum[d] = query[0].sum[d];
            for (int64_t d = 0; d < dim_; d += product_depth) add_values<2>(sum + d, seen + d * 2, dim_);
            for (int64_t d = 0; d < dim_; d++) query[j].sum[d] = sum[j * dim_ + d];
        }
    }

    VectorPass<T> vectors_;
    const int64_t dim_;
    const bool tiled_;
};

template <>
struct PagePass<bf16> : TilePass<bf16> {
    using TilePass::TilePass;
};
template <>
struct PagePass<i8> : TilePass<i8> {
    using TilePass::TilePass;
};
