// Many rows by int4_k and int8_k on AMX. What multiplies d, sc times the code, takes 16 bits: its low byte, unsigned, and its
// high byte, signed, are two tiles B that meet the same codes of x over a whole block, for any group. So products cost twice
// those of an int8 that is one scale's, and nothing is scaled within a block. Otherwise as packed_amx.inl; a column of 16
// outputs has the four tiles of sums that two columns have there.

constexpr int64_t panels_of_k = 2;  // that share a pass over x: their two planes stay in the first-level cache

struct KFactors {
    alignas(64) float scales[32];
    alignas(64) float real_zeros[32];
    alignas(64) int16_t minima[8][2][32];  // of pairs of groups, 32 codes apart: 4 or 8
};
struct KPanel {
    alignas(64) uint8_t planes[2][block_depth / tile_depth][2][1024];  // of a column's tiles: low bytes, high bytes
    KFactors factors[2];
};
// Sums of x over the groups of a block, in pairs like minima; of up to 32 rows.
struct KRowSums {
    alignas(64) int32_t pairs[pair_rows][8];
};
struct KPending {
    float* acc;  // [32 rows][32 outputs], at the column
    const float* scales;
    int64_t second_scales;
    const KFactors* factors;
    const KRowSums* rows;
    int64_t column;
};

// c += a b, signed bytes by unsigned ones into i32.
template <int c, int a, int b>
INLINE void tile_dot_i8_u8() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(c), "n"(a), "n"(b));
}

// ---- unpacking --------------------------------------------------------------------------------------------------

// Products of 16 bits for the even and the odd bytes of a line, as lines of low and of high bytes.
INLINE void store_planes(uint8_t* out, ivec even, ivec odd) {
    constexpr __mmask64 odds = 0xaaaaaaaaaaaaaaaa;
    _mm512_store_si512(out, _mm512_mask_blend_epi8(odds, even, _mm512_slli_epi16(odd, 8)));
    _mm512_store_si512(out + 1024, _mm512_mask_blend_epi8(odds, _mm512_srli_epi16(even, 8), odd));
}

template <Packing packing, int64_t group>
INLINE void unpack_k(const WeightFormat& f, const uint8_t* block, int64_t tiles, KFactors& factors, KPanel& to) {
    const KHeader header{f, block};
    const bool real = f.zero == Zero::real;
    const ivec nibble = _mm512_set1_epi16(15);
    const uint8_t* line = block + header_bytes(f);
    for (int64_t c = 0; c < 2; c++) {
        store(factors.scales + c * 16, header.scales(c));
        if (real) store(factors.real_zeros + c * 16, header.real_zeros(c));
        for (int64_t pair = 0; real && pair < block_depth / (2 * group); pair++) {
            const int64_t k = pair * group / sub_depth * tile_depth + pair * group % sub_depth;
            _mm512_store_si512(factors.minima[pair][c], header.k_minima(k, c));
        }
    }
    for (int64_t tile = 0; tile < tiles; tile++) {
        for (int64_t c = 0; c < 2; c++) {
            uint8_t* out = to.planes[c][tile][0];
            for (int64_t first = 0; first < sub_depth; first += group) {
                const ivec both = header.k_scales(tile * tile_depth + first, c);
                const ivec low = _mm512_mask_blend_epi16(0xaaaaaaaa, both, _mm512_slli_epi32(both, 16));
                const ivec high = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(both, 16), both);
                const ivec less_low = real ? _mm512_setzero_si512() : _mm512_slli_epi16(low, 3);  // the 8 nibbles have too much
                const ivec less_high = real ? _mm512_setzero_si512() : _mm512_slli_epi16(high, 3);
                for (int64_t l = first / 4; l < (first + group) / 4; l++) {
                    if (packing == Packing::int8_k) {
                        const ivec a = load_line(line + l * 64), b = load_line(line + 512 + l * 64);
                        auto even = [](ivec x) { return _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8); };
                        auto odd = [](ivec x) { return _mm512_srai_epi16(x, 8); };
                        store_planes(out + l * 64, _mm512_mullo_epi16(even(a), low), _mm512_mullo_epi16(odd(a), low));
                        store_planes(out + (l + 8) * 64, _mm512_mullo_epi16(even(b), high), _mm512_mullo_epi16(odd(b), high));
                        continue;
                    }
                    const ivec bytes = load_line(line + l * 64);
                    auto product = [&](ivec code, ivec scale, ivec less) __attribute__((always_inline)) {
                        return _mm512_sub_epi16(_mm512_mullo_epi16(_mm512_and_si512(code, nibble), scale), less);
                    };
                    store_planes(out + l * 64, product(bytes, low, less_low),
                                 product(_mm512_srli_epi16(bytes, 8), low, less_low));
                    store_planes(out + (l + 8) * 64, product(_mm512_srli_epi16(bytes, 4), high, less_high),
                                 product(_mm512_srli_epi16(bytes, 12), high, less_high));
                }
            }
            line += tile_bytes(packing) / 2;
        }
    }
}

// Sums of rows [m, m + count) in a block, zeros beyond.
template <int64_t group>
INLINE void gather_k_sums(const PackedLinearArgs& a, int64_t m, int64_t count, int64_t block, int64_t tiles, KRowSums& to) {
    constexpr int64_t tile_sums = tile_depth / group;
    const int64_t row_sums = round_up(a.k, tile_depth) / group;
    for (int64_t i = 0; i < pair_rows; i++) {
        const int16_t* sums = a.sums + (m + i) * row_sums + block * (block_depth / group);
        __m256i s = _mm256_setzero_si256();
        if (i < count) s = _mm256_maskz_loadu_epi16(__mmask16((1u << tiles * tile_sums) - 1), sums);
        if (group == 16) s = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(s, 0xd8), 0xd8);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.pairs[i]), s);
    }
}

// ---- products ---------------------------------------------------------------------------------------------------

// Adds staged rows [first, end): tile 0 has the low bytes' sums of rows 0 .. 15 and 1 the high bytes', 2 and 3 those of
// 16 .. 31.
template <bool real, int64_t group, int first, int end>
INLINE void drain_k(const KPending& p, const int32_t* staged) {
#pragma GCC unroll 32
    for (int row = first; row < end; row++) {
        const int32_t* low = staged + row / 16 * 512 + row % 16 * 16;
        float* at = p.acc + row * 32;
        const vec x_scale = set1(p.scales[row / 16 * p.second_scales + row % 16]);
        const ivec sum = _mm512_add_epi32(load_line(low), _mm512_slli_epi32(load_line(low + 256), 8));
        vec acc = fma(_mm512_cvtepi32_ps(sum), load(p.factors->scales + p.column * 16) * x_scale, load(at));
        if (real) {
            ivec minima = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int64_t pair = 0; pair < block_depth / (2 * group); pair++) {
                const ivec x_sums = _mm512_set1_epi32(p.rows->pairs[row][pair]);
                minima = _mm512_dpwssd_epi32(minima, load_line(p.factors->minima[pair][p.column]), x_sums);
            }
            acc = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(minima), load(p.factors->real_zeros + p.column * 16) * x_scale, acc);
        }
        store(at, acc);
    }
}

// The first of the staged rows to drain in a slot, see drain_begin: a row is two tiles', so it can be drained from the slot
// after that in which the second was stored.
template <int tiles, int spread>
constexpr int drain_k_begin(int slot) {
    constexpr int slots = tiles * spread, lag = spread == 1 ? tiles - 1 : tiles == 2 ? 1 : 2, rows = tiles * 8;
    return slot <= lag ? 0 : rows * (slot - lag) / (slots - lag);
}
template <int tiles, int spread>
constexpr bool drains_k_what_is_stored() {
    for (int slot = 0; slot < tiles * spread; slot++) {
        const int stored = slot + 1 < tiles ? slot + 1 : tiles;
        if (drain_k_begin<tiles, spread>(slot + 1) > stored / 2 * 16) return false;
    }
    return drain_k_begin<tiles, spread>(tiles * spread) == tiles * 8;
}
template <bool real, int64_t group, int tiles, int spread, int slot>
INLINE void drain_k_slot(const KPending& p, const int32_t* staged) {
    static_assert(drains_k_what_is_stored<tiles, spread>(), "a row is stored before it is drained");
    if constexpr (slot < tiles * spread) {
        drain_k<real, group, drain_k_begin<tiles, spread>(slot), drain_k_begin<tiles, spread>(slot + 1)>(p, staged);
    }
}

// A step of the products, see product_step: tile 6 has low bytes and 7 high ones.
template <bool real, int64_t group, int tiles, int spread, int index>
INLINE void k_step(const int8_t* x, int64_t second, const uint8_t* w, const KPending& p, int32_t* staged, FetchCodes fetch) {
    constexpr int slot = index * tiles;
    tile_load<4>(x, 64);
    tile_load<6>(w, 64);
    clear_tile<Correction::none, tiles, spread, slot>(staged);
    tile_dot_i8_u8<0, 4, 6>();
    fetch.lines(0);
    drain_k_slot<real, group, tiles, spread, slot>(p, staged);
    tile_load<7>(w + 1024, 64);
    clear_tile<Correction::none, tiles, spread, slot + 1>(staged);
    tile_dot_i8<1, 4, 7>();
    fetch.lines(1);
    drain_k_slot<real, group, tiles, spread, slot + 1>(p, staged);
    if constexpr (tiles == 4) {
        tile_load<5>(x + second, 64);
        clear_tile<Correction::none, tiles, spread, slot + 2>(staged);
        tile_dot_i8_u8<2, 5, 6>();
        fetch.lines(2);
        drain_k_slot<real, group, tiles, spread, slot + 2>(p, staged);
        clear_tile<Correction::none, tiles, spread, slot + 3>(staged);
        tile_dot_i8<3, 5, 7>();
        fetch.lines(3);
        drain_k_slot<real, group, tiles, spread, slot + 3>(p, staged);
    }
}

// A block of a column, over the drain of the sums pending in the tiles. Three tiles are spread as two.
template <bool real, int64_t group, int tiles, int spread>
void sum_block(const int8_t* x, int64_t second, const uint8_t* w, int64_t steps, const KPending& pending, int32_t* staged,
               FetchCodes fetch) {
    const KPending p = pending;  // in registers: what lies in memory is read again after every tile instruction
    auto ahead = [&](int64_t step) __attribute__((always_inline)) {
        return FetchCodes{fetch.at ? fetch.at + step * 512 : nullptr};
    };
    k_step<real, group, tiles, spread, 0>(x, second, w, p, staged, fetch);
    if constexpr (spread >= 2) k_step<real, group, tiles, spread, 1>(x + code_tile_bytes, second, w + 2048, p, staged, ahead(1));
    if constexpr (spread >= 4) {
        k_step<real, group, tiles, spread, 2>(x + 2 * code_tile_bytes, second, w + 4096, p, staged, ahead(2));
        k_step<real, group, tiles, spread, 3>(x + 3 * code_tile_bytes, second, w + 6144, p, staged, ahead(3));
    }
    for (int64_t step = spread; step < steps; step++) {
        k_step<real, group, tiles, spread, spread>(x + step * code_tile_bytes, second, w + step * 2048, p, staged, ahead(step));
    }
}
template <bool real, int64_t group, int tiles>
INLINE void sum_block_of(const int8_t* x, int64_t second, const uint8_t* w, int64_t steps, const KPending& p, int32_t* staged,
                         FetchCodes fetch) {
    if (steps == 4) return sum_block<real, group, tiles, 4>(x, second, w, steps, p, staged, fetch);
    if (steps >= 2) return sum_block<real, group, tiles, 2>(x, second, w, steps, p, staged, fetch);
    sum_block<real, group, tiles, 1>(x, second, w, steps, p, staged, fetch);
}

// ---- panels -----------------------------------------------------------------------------------------------------

struct KWorkspace {
    alignas(64) float acc[panels_of_k][slab_rows][32];
    KPanel panels[panels_of_k];
    KRowSums rows[2];
    alignas(64) int32_t staged[4 * 256];
    alignas(64) float nowhere[pair_rows][32];
};

// Rows [m0, m0 + rows) by panels [begin, begin + panels).
template <Packing packing, int64_t group, bool real>
void k_slab(const PackedLinearArgs& a, int64_t begin, int64_t panels, int64_t m0, int64_t rows, KWorkspace& s) {
    const WeightFormat& f = a.format;
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth;
    const int64_t pairs = (rows + pair_rows - 1) / pair_rows, second = code_tile_rows * a.codes_stride;
    const int8_t* x_slab = a.codes + m0 * a.codes_stride;
    const bool far = a.rows * a.k > close_codes;
    KPending pending{};
    int pending_tiles = 0;
    int64_t parity = 0;
    auto finish = [&] {
        if (pending_tiles >= 2) {
            tile_store<0>(s.staged, 64);
            tile_store<1>(s.staged + 256, 64);
            drain_k<real, group, 0, 16>(pending, s.staged);
        }
        if (pending_tiles == 4) {
            tile_store<2>(s.staged + 512, 64);
            tile_store<3>(s.staged + 768, 64);
            drain_k<real, group, 16, 32>(pending, s.staged);
        }
        pending = {s.nowhere[0], s.nowhere[0], 0, &s.panels[0].factors[0], &s.rows[0], 0};
    };
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t left = (depth - block * block_depth) / tile_depth, tiles = left < 4 ? left : 4;
        for (int64_t p = 0; p < panels; p++) {
            const uint8_t* at = a.weight + (begin + p) * panel_bytes(f, a.k) + block * block_bytes(f);
            unpack_k<packing, group>(f, at, tiles, s.panels[p].factors[block % 2], s.panels[p]);
        }
        // The next block is fetched meanwhile, some lines with every pair of rows.
        const uint8_t* next = a.weight + begin * panel_bytes(f, a.k) + (block + 1) * block_bytes(f);
        const int64_t lines = block + 1 < blocks ? block_bytes(f) / 64 : 0, lines_a_pair = (lines + pairs - 1) / pairs;
        for (int64_t pair = 0; pair < pairs; pair++, parity ^= 1) {
            const int64_t m = m0 + pair * pair_rows, here = rows - pair * pair_rows, count = here < pair_rows ? here : pair_rows;
            const int now_tiles = count <= 16 ? 2 : 4;
            const int8_t* x = x_slab + pair * 2 * second + block * block_depth * code_tile_rows;
            const float* x_scales = a.scales + m * blocks + block * code_tile_rows;
            if (real) gather_k_sums<group>(a, m, count, block, tiles, s.rows[parity]);
            for (int64_t p = 0; p < panels; p++) {
                for (int64_t i = 0; i < lines_a_pair; i++) {
                    __builtin_prefetch(next + p * panel_bytes(f, a.k) + (pair * lines_a_pair + i) * 64, 0, 2);
                }
                if (block == 0) {
                    for (int64_t i = 0; i < pair_rows * 32; i += 16) store(s.acc[p][pair * pair_rows] + i, zero());
                }
                if (pending_tiles != now_tiles) {
                    finish();
                    pending_tiles = now_tiles;
                }
                for (int64_t c = 0; c < 2; c++) {
                    // A quarter of the tiles that come after these: of the next rows, or the next block's of the first ones.
                    const int8_t* next_block = x_slab + (block + 1) * block_depth * code_tile_rows;
                    const int8_t* next_x = pair + 1 < pairs ? x + 2 * second : next_block;
                    const FetchCodes fetch{far ? next_x + p * second + c * 2048 : nullptr};
                    const uint8_t* w = s.panels[p].planes[c][0][0];
                    if (now_tiles == 4) sum_block_of<real, group, 4>(x, second, w, tiles, pending, s.staged, fetch);
                    else sum_block_of<real, group, 2>(x, second, w, tiles, pending, s.staged, fetch);
                    pending = {s.acc[p][pair * pair_rows] + c * 16, x_scales, code_tile_rows * blocks,
                               &s.panels[p].factors[block % 2], &s.rows[parity], c};
                }
            }
        }
    }
    finish();
    write_rows(a, begin, panels, m0, rows, s.acc);
}

template <Packing packing, int64_t group, bool real>
void many_rows_by_k(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    KWorkspace s;
    for (int64_t i = 0; i < pair_rows; i++) {
        store(s.nowhere[i], zero());
        store(s.nowhere[i] + 16, zero());
    }
    // What is drained to nowhere counts for nothing, but is read.
    __builtin_memset(static_cast<void*>(&s.panels[0].factors[0]), 0, sizeof s.panels[0].factors[0]);
    __builtin_memset(static_cast<void*>(&s.rows[0]), 0, sizeof s.rows[0]);
    TileShapes shapes;
    for (int tile = 0; tile < 8; tile++) shapes.set(tile, 16, 64);
    tile_config(shapes);
    const int64_t slabs = (a.rows + slab_rows - 1) / slab_rows, slab = round_up((a.rows + slabs - 1) / slabs, pair_rows);
    for (int64_t panel = begin; panel < end; panel += panels_of_k) {
        const int64_t panels = end - panel < panels_of_k ? end - panel : panels_of_k;
        for (int64_t m = 0; m < a.rows; m += slab) {
            k_slab<packing, group, real>(a, panel, panels, m, a.rows - m < slab ? a.rows - m : slab, s);
        }
    }
    tile_release();
    _mm_sfence();  // what was written past the caches is seen before what the thread says next
}

template <Packing packing>
void packed_linear_k(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    if (!a.tiled) return below.packed_linear(a, begin, end);
    const bool real = a.format.zero == Zero::real;
    if (a.format.group == 16) {
        return real ? many_rows_by_k<packing, 16, true>(a, begin, end) : many_rows_by_k<packing, 16, false>(a, begin, end);
    }
    return real ? many_rows_by_k<packing, 32, true>(a, begin, end) : many_rows_by_k<packing, 32, false>(a, begin, end);
}
