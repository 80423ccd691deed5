// Many rows by packed integer weights on AMX. A tile A is 16 rows by 64 codes of x as quantize laid them, a tile B 64 codes by 16
// outputs: a panel's int8 lines as they lie, or int4 ones unpacked to what multiplies the scale, which is an int8. Two A by
// two B sum in four tiles over a group; then the sums are stored just before the tiles are cleared for the next group, and
// converted, scaled and added while that group's products run.

constexpr int64_t pair_rows = 32;       // rows of x that two tiles hold
constexpr int64_t slab_rows = 512;      // rows for which a block is unpacked, their float sums in the second-level cache
constexpr int64_t panels_most = 4;      // panels that share a pass over x
constexpr int64_t close_codes = 1 << 20;  // codes of x that stay in the second-level cache: then two panels are enough
constexpr int64_t most_groups = block_depth / sub_depth;
constexpr int64_t code_tile_bytes = code_tile_rows * tile_depth;

// Corrections a drain makes: none, x's sum times an integer (int8 codes less their zeros do not fit an int8) or a float.
using Correction = Zero;

// A panel's block, unpacked. Two sets of factors: a block's last sums are drained during the next block.
struct PanelFactors {
    alignas(64) float scales[most_groups][32];
    alignas(64) int32_t zeros[most_groups][32];       // of integer zeros
    alignas(64) float real_zeros[most_groups][32];
};
struct PanelBlock {
    alignas(64) int8_t codes[block_depth / tile_depth][2][1024];
    PanelFactors factors[2];
    const void* tiles;  // codes, or the panel's own
};

// Sums of up to 32 rows of x in a block, for corrections; two sets for the same reason.
struct RowSums {
    alignas(64) int32_t sums[pair_rows][most_groups];  // of a row's codes over each group,
    alignas(64) float real_sums[pair_rows][most_groups];  // and as floats
};

// Sums in tiles or staged, and all it takes to add them to acc.
struct Pending {
    float* acc;  // [32 rows][32 outputs]
    const float* scales;  // of the first 16 rows, of the others second_scales on
    int64_t second_scales;
    const PanelFactors* panel;
    const RowSums* rows;
    int64_t group;
};

// Lines to fetch, two with each product, or null: codes of x where the second-level cache does not hold them all.
struct FetchCodes {
    const int8_t* at;

    INLINE void lines(int64_t product) const {
        if (!at) return;
        __builtin_prefetch(at + product * 128, 0, 2);
        __builtin_prefetch(at + product * 128 + 64, 0, 2);
    }
};

// ---- unpacking --------------------------------------------------------------------------------------------------

// A byte of each lane in all four.
INLINE ivec spread_byte(ivec lanes32) { return _mm512_mullo_epi32(lanes32, _mm512_set1_epi32(0x01010101)); }

// What is taken from int4 codes of a group, in every byte.
INLINE ivec byte_zeros(const Header& header, int64_t group, int64_t column) {
    if (header.f.zero == Zero::real) return _mm512_setzero_si512();
    if (header.f.zero == Zero::none) return _mm512_set1_epi8(8);
    return spread_byte(widen_u8(header.at + header.zeros_at() + (group * 2 + column) * 16));
}

// ahead: bytes from a line to the one that is fetched meanwhile, or 0.
template <Packing packing, int64_t ahead>
INLINE void unpack_panel(const WeightFormat& f, const uint8_t* block, int64_t tiles, PanelFactors& factors, PanelBlock& to) {
    const Header header{f, block};
    const int64_t groups = (tiles * tile_depth + f.group - 1) / f.group;
    for (int64_t group = 0; group < groups; group++) {
        for (int64_t c = 0; c < 2; c++) {
            store(factors.scales[group] + c * 16, header.scales(group, c));
            if (f.zero == Zero::real) store(factors.real_zeros[group] + c * 16, header.real_zeros(group, c));
            if (packing == Packing::int8 && f.zero == Zero::integer) {
                const uint8_t* zeros = block + header.zeros_at() + (group * 2 + c) * 16;
                _mm512_store_si512(factors.zeros[group] + c * 16, widen_i8(zeros));
            }
        }
    }
    const uint8_t* line = block + header_bytes(f);
    for (int64_t i = 0; ahead && i < header_bytes(f); i += 64) __builtin_prefetch(block + ahead + i, 0, 2);
    to.tiles = line;
    if (packing == Packing::int8) return;
    to.tiles = to.codes;
    for (int64_t tile = 0; tile < tiles; tile++) {
        for (int64_t c = 0; c < 2; c++) {
            int8_t* out = to.codes[tile][c];
            ivec u[2], less[2];
            if (packing == Packing::int4_two_level) {  // u c <= 225: bytes never carry into one another
                header.subscales(tile, c, u[0], u[1]);
                const ivec m = header.minima(tile, c);
                less[0] = spread_byte(_mm512_and_si512(m, _mm512_set1_epi32(0xff)));
                less[1] = spread_byte(_mm512_srli_epi32(m, 16));
            } else {
                less[0] = byte_zeros(header, tile * tile_depth / f.group, c);
                less[1] = byte_zeros(header, (tile * tile_depth + sub_depth) / f.group, c);
            }
            for (int64_t l = 0; l < 8; l++, line += 64) {
                if (ahead) __builtin_prefetch(line + ahead, 0, 2);
                const ivec bytes = load_line(line);
                ivec low = low_nibbles(bytes), high = high_nibbles(bytes);
                if (packing == Packing::int4_two_level) low = _mm512_mullo_epi16(low, u[0]), high = _mm512_mullo_epi16(high, u[1]);
                _mm512_store_si512(out + l * 64, _mm512_sub_epi8(low, less[0]));
                _mm512_store_si512(out + (l + 8) * 64, _mm512_sub_epi8(high, less[1]));
            }
        }
    }
}

// Sums of rows [m, m + count) in a block, zeros beyond.
template <Correction correction>
INLINE void gather_sums(const PackedLinearArgs& a, int64_t m, int64_t count, int64_t block, int64_t tiles, RowSums& to) {
    if (correction == Correction::none) return;
    const int64_t subs = round_up(a.k, tile_depth) / sub_depth;
    for (int64_t i = 0; i < pair_rows; i++) {
        const int16_t* sums = a.sums + (m + i) * subs + block * (block_depth / sub_depth);
        __m256i s = _mm256_setzero_si256();
        if (i < count) s = _mm256_cvtepi16_epi32(_mm_maskz_loadu_epi16(__mmask8((1u << tiles * 2) - 1), sums));
        // Neighbours added until a lane is a group; sums of the groups past the last one are zeros.
        for (int64_t width = sub_depth; width < a.format.group; width *= 2) {
            s = _mm256_hadd_epi32(s, _mm256_setzero_si256());
            s = _mm256_permute4x64_epi64(s, 0xd8);
        }
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.sums[i]), s);
        if (correction == Correction::real) _mm256_store_ps(to.real_sums[i], _mm256_cvtepi32_ps(s));
    }
}

// ---- products ---------------------------------------------------------------------------------------------------

// Adds staged rows [first, end) of `tiles` times 16; tile i holds rows i / 2 * 16 + and outputs i % 2 * 16 +.
template <Correction correction, int first, int end>
INLINE void drain(const Pending& p, const int32_t* staged) {
#pragma GCC unroll 64
    for (int i = first; i < end; i++) {
        const int tile = i / 16, row = tile / 2 * 16 + i % 16, column = tile % 2 * 16;
        float* at = p.acc + row * 32 + column;
        const vec x_scale = set1(p.scales[tile / 2 * p.second_scales + i % 16]);
        ivec sum = load_line(staged + i * 16);
        if (correction == Correction::integer) {
            const ivec zeros = load_line(p.panel->zeros[p.group] + column);
            sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(p.rows->sums[row][p.group])));
        }
        vec acc = fma(_mm512_cvtepi32_ps(sum), load(p.panel->scales[p.group] + column) * x_scale, load(at));
        if (correction == Correction::real) {
            acc = fma(set1(p.rows->real_sums[row][p.group]), load(p.panel->real_zeros[p.group] + column) * x_scale, acc);
        }
        store(at, acc);
    }
}

// The first of the staged rows to drain in a slot: a slot follows each product of the first `spread` steps. Later ones where
// there is time, since a row just stored is not at hand yet.
template <int tiles, int spread>
constexpr int drain_begin(int slot) {
    constexpr int slots = tiles * spread, lag = spread == 1 ? 0 : spread == 2 ? 1 : 2;
    return slot <= lag ? 0 : tiles * 4 * (slot - lag) / (slots - lag) * 4;
}
template <int tiles, int spread>
constexpr bool drains_what_is_stored() {
    for (int slot = 0; slot < tiles * spread; slot++) {
        if (drain_begin<tiles, spread>(slot + 1) > (slot + 1 < tiles ? slot + 1 : tiles) * 16) return false;
    }
    return drain_begin<tiles, spread>(tiles * spread) == tiles * 16;
}

// What a slot does before its product (the first step clears a tile) and after.
template <Correction correction, int tiles, int spread, int slot>
INLINE void clear_tile(int32_t* staged) {
    if constexpr (slot < tiles) {
        tile_store<slot>(staged + slot * 256, 64);
        tile_zero<slot>();
    }
}
template <Correction correction, int tiles, int spread, int slot>
INLINE void drain_slot(const Pending& p, const int32_t* staged) {
    static_assert(drains_what_is_stored<tiles, spread>(), "a row is stored before it is drained");
    if constexpr (slot < tiles * spread) {
        drain<correction, drain_begin<tiles, spread>(slot), drain_begin<tiles, spread>(slot + 1)>(p, staged);
    }
}

// A step of the products. index: of the step; beyond spread it only multiplies.
template <Correction correction, int tiles, int spread, int index>
INLINE void product_step(const int8_t* x, int64_t second, const int8_t* w, const Pending& p, int32_t* staged, FetchCodes fetch) {
    tile_load<4>(x, 64);
    tile_load<6>(w, 64);
    clear_tile<correction, tiles, spread, index * tiles>(staged);
    tile_dot_i8<0, 4, 6>();
    fetch.lines(0);
    drain_slot<correction, tiles, spread, index * tiles>(p, staged);
    tile_load<7>(w + 1024, 64);
    clear_tile<correction, tiles, spread, index * tiles + 1>(staged);
    tile_dot_i8<1, 4, 7>();
    fetch.lines(1);
    drain_slot<correction, tiles, spread, index * tiles + 1>(p, staged);
    if constexpr (tiles == 4) {
        tile_load<5>(x + second, 64);
        clear_tile<correction, tiles, spread, index * tiles + 2>(staged);
        tile_dot_i8<2, 5, 6>();
        fetch.lines(2);
        drain_slot<correction, tiles, spread, index * tiles + 2>(p, staged);
        clear_tile<correction, tiles, spread, index * tiles + 3>(staged);
        tile_dot_i8<3, 5, 7>();
        fetch.lines(3);
        drain_slot<correction, tiles, spread, index * tiles + 3>(p, staged);
    }
}

// A group of steps of 64 codes, or one of 32.
struct Group {
    const int8_t *x, *w;
    int64_t second;  // bytes from a tile of x to that of the next 16 rows
    int64_t steps;
    FetchCodes fetch;
};

// Its products, over the drain of the sums p left in the tiles.
template <Correction correction, int tiles, int spread>
void sum_group(const Group& group, const Pending& pending, int32_t* staged) {
    const Pending p = pending;  // in registers: what lies in memory is read again after every tile instruction
    const Group g = group;
    auto fetch = [&](int64_t step) __attribute__((always_inline)) { return FetchCodes{g.fetch.at ? g.fetch.at + step * 512 : nullptr}; };
    product_step<correction, tiles, spread, 0>(g.x, g.second, g.w, p, staged, g.fetch);
    if constexpr (spread >= 2) {
        product_step<correction, tiles, spread, 1>(g.x + code_tile_bytes, g.second, g.w + 2048, p, staged, fetch(1));
    }
    if constexpr (spread >= 4) {
        product_step<correction, tiles, spread, 2>(g.x + 2 * code_tile_bytes, g.second, g.w + 4096, p, staged, fetch(2));
        product_step<correction, tiles, spread, 3>(g.x + 3 * code_tile_bytes, g.second, g.w + 6144, p, staged, fetch(3));
    }
    for (int64_t step = spread; step < g.steps; step++) {
        product_step<correction, tiles, spread, spread>(g.x + step * code_tile_bytes, g.second, g.w + step * 2048, p, staged,
                                                        fetch(step));
    }
}

template <Correction correction, int tiles>
INLINE void sum_group_of(const Group& g, const Pending& p, int32_t* staged) {
    if (g.steps == 4) return sum_group<correction, tiles, 4>(g, p, staged);
    if (g.steps >= 2) return sum_group<correction, tiles, 2>(g, p, staged);
    sum_group<correction, tiles, 1>(g, p, staged);
}

// ---- panels -----------------------------------------------------------------------------------------------------

// All a call needs beside its arguments.
struct Workspace {
    alignas(64) float acc[panels_most][slab_rows][32];
    PanelBlock panels[panels_most];
    RowSums rows[2];
    alignas(64) int32_t staged[4 * 256];
    alignas(64) float nowhere[pair_rows][32];          // what a drain adds to where nothing is pending
};

// Row by row, a row's panels together: panel by panel costs three times as much. Whole cache lines go past the caches: to
// fetch them first, from the memory or from the core that wrote them last, takes as long as the products of a block.
INLINE void write_rows(const PackedLinearArgs& a, int64_t begin, int64_t panels, int64_t m0, int64_t rows,
                       const float (*acc)[slab_rows][32]) {
    const bool whole = (begin + panels) * 32 <= a.n && a.out_stride % 16 == 0 && reinterpret_cast<uintptr_t>(a.out) % 64 == 0;
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t p = 0; p < panels; p++) {
            vec first = load(acc[p][m]), second = load(acc[p][m] + 16);
            if (!whole) {
                write_row(a, begin + p, m0 + m, first, second);
                continue;
            }
            if (a.gated) {
                _mm512_stream_ps(a.out + (m0 + m) * a.out_stride + (begin + p) * 16, gate_row(a, begin + p, first, second, 16));
                continue;
            }
            const int64_t i = (begin + p) * 32, at = (m0 + m) * a.out_stride + i;
            if (a.bias) first = first + load(a.bias + i), second = second + load(a.bias + i + 16);
            if (a.residual) first = first + load(a.residual + at), second = second + load(a.residual + at + 16);
            _mm512_stream_ps(a.out + at, first);
            _mm512_stream_ps(a.out + at + 16, second);
        }
    }
}

// Rows [m0, m0 + rows) by panels [begin, begin + panels).
template <Packing packing, Correction correction>
void slab_by_panels(const PackedLinearArgs& a, int64_t begin, int64_t panels, int64_t m0, int64_t rows, Workspace& s) {
    const WeightFormat& f = a.format;
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth;
    const int64_t pairs = (rows + pair_rows - 1) / pair_rows;
    const int64_t second = code_tile_rows * a.codes_stride;
    const int8_t* x_slab = a.codes + m0 * a.codes_stride;
    const bool far = a.rows * a.k > close_codes;
    for (int64_t p = 0; p < panels; p++) {
        const uint8_t* first = a.weight + (begin + p) * panel_bytes(f, a.k);
        for (int64_t i = 0; i < panel_bytes(f, a.k) && i < block_bytes(f); i += 64) __builtin_prefetch(first + i, 0, 2);
    }
    Pending pending{};
    int pending_tiles = 0;
    int64_t parity = 0;
    // The rest of the sums, when the next product is of other tiles or there is none.
    auto finish = [&] {
        if (pending_tiles >= 2) {
            tile_store<0>(s.staged, 64);
            tile_store<1>(s.staged + 256, 64);
            drain<correction, 0, 32>(pending, s.staged);
        }
        if (pending_tiles == 4) {
            tile_store<2>(s.staged + 512, 64);
            tile_store<3>(s.staged + 768, 64);
            drain<correction, 32, 64>(pending, s.staged);
        }
        pending = {s.nowhere[0], s.nowhere[0], 0, &s.panels[0].factors[0], &s.rows[0], 0};
    };
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t left = (depth - block * block_depth) / tile_depth, tiles = left < 4 ? left : 4;
        const int64_t groups = (tiles * tile_depth + f.group - 1) / f.group;
        for (int64_t p = 0; p < panels; p++) {
            const uint8_t* at = a.weight + (begin + p) * panel_bytes(f, a.k) + block * block_bytes(f);
            unpack_panel<packing, 0>(f, at, tiles, s.panels[p].factors[block % 2], s.panels[p]);
        }
        // The next block is fetched meanwhile, some lines with every group; so are the residuals of a share of the rows.
        const uint8_t* next = a.weight + begin * panel_bytes(f, a.k) + (block + 1) * block_bytes(f);
        const int64_t lines = block + 1 < blocks ? block_bytes(f) / 64 : 0;
        const int64_t lines_a_pair = (lines + pairs - 1) / pairs;
        for (int64_t pair = 0; pair < pairs; pair++, parity ^= 1) {
            const int64_t m = m0 + pair * pair_rows, here = rows - pair * pair_rows;
            const int64_t count = here < pair_rows ? here : pair_rows;
            const int now_tiles = count <= 16 ? 2 : 4;
            const int8_t* x = x_slab + pair * 2 * second + block * block_depth * code_tile_rows;
            const float* x_scales = a.scales + m * blocks + block * code_tile_rows;
            gather_sums<correction>(a, m, count, block, tiles, s.rows[parity]);
            for (int64_t i = block; i < count && a.residual; i += blocks) {
                const float* residual = a.residual + (m + i) * a.out_stride + begin * panel_outputs;
                for (int64_t j = 0; j < panels * panel_outputs; j += 16) __builtin_prefetch(residual + j, 0, 2);
            }
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
                const int8_t* w = static_cast<const int8_t*>(s.panels[p].tiles);
                // A quarter of the tiles that come after these: of the next rows, or the next block's of the first ones.
                const int8_t* next_x = (pair + 1 < pairs ? x + 2 * second : x_slab + (block + 1) * block_depth * code_tile_rows) +
                                       p / 2 * second + p % 2 * 2048;
                for (int64_t group = 0; group < groups; group++) {
                    const int64_t k = group * f.group, steps = f.group == sub_depth ? 1 : (f.group < tiles * tile_depth - k
                                                                ? f.group : tiles * tile_depth - k) / tile_depth;
                    const Group g{x + k / tile_depth * code_tile_bytes + k % tile_depth,
                                  w + k / tile_depth * 2048 + k % tile_depth / sub_depth * 512, second, steps,
                                  {far ? next_x + k / tile_depth * 512 : nullptr}};
                    if (now_tiles == 4) sum_group_of<correction, 4>(g, pending, s.staged);
                    else sum_group_of<correction, 2>(g, pending, s.staged);
                    pending = {s.acc[p][pair * pair_rows], x_scales, code_tile_rows * blocks, &s.panels[p].factors[block % 2], &s.rows[parity], group};
                }
            }
        }
    }
    finish();
    write_rows(a, begin, panels, m0, rows, s.acc);
}

template <Packing packing, Correction correction>
void many_rows(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    Workspace s;
    for (int64_t i = 0; i < pair_rows; i++) {
        store(s.nowhere[i], zero());
        store(s.nowhere[i] + 16, zero());
    }
    const int64_t depth = a.format.group == sub_depth ? sub_depth : tile_depth;  // of a product
    TileShapes shapes;
    for (int tile = 0; tile < 4; tile++) shapes.set(tile, 16, 64);
    for (int tile = 4; tile < 6; tile++) shapes.set(tile, 16, depth);
    for (int tile = 6; tile < 8; tile++) shapes.set(tile, depth / 4, 64);
    tile_config(shapes);
    const int64_t at_once = a.rows * a.k <= close_codes ? 2 : panels_most;
    const int64_t slabs = (a.rows + slab_rows - 1) / slab_rows, slab = round_up((a.rows + slabs - 1) / slabs, pair_rows);
    for (int64_t panel = begin; panel < end; panel += at_once) {
        const int64_t panels = end - panel < at_once ? end - panel : at_once;
        for (int64_t m = 0; m < a.rows; m += slab) {
            slab_by_panels<packing, correction>(a, panel, panels, m, a.rows - m < slab ? a.rows - m : slab, s);
        }
    }
    tile_release();
    _mm_sfence();  // what was written past the caches is seen before what the thread says next
}

// ---- few rows ---------------------------------------------------------------------------------------------------

// Rows below which the tier below is faster: it never unpacks to memory.
constexpr int64_t tile_rows_least(Packing packing) { return packing == Packing::int8 ? 3 : 5; }
constexpr int64_t few_ahead = 2048;     // bytes

// A block's groups by all rows, into staged[group][2][rows][16].
INLINE void sum_few(const PackedLinearArgs& a, const int8_t* x, const int8_t* w, int64_t depth, int32_t (*staged)[2][untiled_rows * 16]) {
    for (int64_t k = 0, group = 0; k < depth; group++) {
        tile_zero<0>();
        tile_zero<1>();
        for (const int64_t end = k + a.format.group < depth ? k + a.format.group : depth; k < end; k += tile_depth) {
            tile_load<4>(x + k, a.codes_stride);
            tile_load<6>(w + k / tile_depth * 2048, 64);
            tile_dot_i8<0, 4, 6>();
            tile_load<7>(w + k / tile_depth * 2048 + 1024, 64);
            tile_dot_i8<1, 4, 7>();
        }
        tile_store<0>(staged[group][0], 64);
        tile_store<1>(staged[group][1], 64);
    }
}

// Codes row by row. A panel at a time; a block is unpacked while the products of the one before run.
template <Packing packing>
void few_rows_in_tiles(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    alignas(64) int32_t staged[block_depth / tile_depth][2][untiled_rows * 16];
    alignas(64) float acc[untiled_rows][32];
    PanelBlock unpacked[2];
    const WeightFormat& f = a.format;
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth;
    TileShapes shapes;
    for (int tile = 0; tile < 6; tile++) shapes.set(tile, a.rows, 64);
    for (int tile = 6; tile < 8; tile++) shapes.set(tile, 16, 64);
    tile_config(shapes);
    auto tiles_of = [&](int64_t block) {
        const int64_t left = (depth - block * block_depth) / tile_depth;
        return left < 4 ? left : 4;
    };
    auto unpack = [&](int64_t panel, int64_t block, PanelBlock& to) __attribute__((always_inline)) {
        const uint8_t* at = a.weight + panel * panel_bytes(f, a.k) + block * block_bytes(f);
        for (int64_t i = header_bytes(f); packing == Packing::int8 && i < block_bytes(f); i += 64) {
            __builtin_prefetch(at + few_ahead + i, 0, 2);
        }
        unpack_panel<packing, few_ahead>(f, at, tiles_of(block), to.factors[0], to);
    };
    unpack(begin, 0, unpacked[0]);
    for (int64_t panel = begin, parity = 0; panel < end; panel++) {
        for (int64_t m = 0; m < a.rows; m++) {
            store(acc[m], zero());
            store(acc[m] + 16, zero());
        }
        for (int64_t block = 0; block < blocks; block++, parity ^= 1) {
            const PanelBlock& now = unpacked[parity];
            const int64_t block_codes = tiles_of(block) * tile_depth;
            sum_few(a, a.codes + block * block_depth, static_cast<const int8_t*>(now.tiles), block_codes, staged);
            if (block + 1 < blocks) unpack(panel, block + 1, unpacked[parity ^ 1]);
            else if (panel + 1 < end) unpack(panel + 1, 0, unpacked[parity ^ 1]);
            for (int64_t group = 0; group * f.group < block_codes; group++) {
                const vec scales[2] = {load(now.factors[0].scales[group]), load(now.factors[0].scales[group] + 16)};
                for (int64_t m = 0; m < a.rows; m++) {
                    const vec x_scale = set1(a.scales[m * blocks + block]);
                    for (int64_t c = 0; c < 2; c++) {
                        const ivec sum = load_line(staged[group][c] + m * 16);
                        float* at = acc[m] + c * 16;
                        store(at, fma(_mm512_cvtepi32_ps(sum), scales[c] * x_scale, load(at)));
                    }
                }
            }
        }
        for (int64_t m = 0; m < a.rows; m++) write_row(a, panel, m, load(acc[m]), load(acc[m] + 16));
    }
    tile_release();
}

template <Packing packing>
void many_rows_of(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    if constexpr (packing != Packing::int4_two_level) {
        if (a.format.zero == Zero::real) return many_rows<packing, Correction::real>(a, begin, end);
    }
    if constexpr (packing == Packing::int8) {
        if (a.format.zero == Zero::integer) return many_rows<packing, Correction::integer>(a, begin, end);
    }
    many_rows<packing, Correction::none>(a, begin, end);
}

#include "packed_k_amx.inl"

void packed_linear(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    if (a.format.packing == Packing::int4_k) return packed_linear_k<Packing::int4_k>(a, begin, end);
    if (a.format.packing == Packing::int8_k) return packed_linear_k<Packing::int8_k>(a, begin, end);
    if (!a.tiled) {
        const bool corrected = a.format.zero == Zero::real || (a.format.packing == Packing::int8 && a.format.zero != Zero::none);
        if (a.rows < tile_rows_least(a.format.packing) || corrected || a.format.group == sub_depth || begin == end) return below.packed_linear(a, begin, end);
        switch (a.format.packing) {
            case Packing::int4_two_level: return few_rows_in_tiles<Packing::int4_two_level>(a, begin, end);
            case Packing::int4: return few_rows_in_tiles<Packing::int4>(a, begin, end);
            case Packing::int8: return few_rows_in_tiles<Packing::int8>(a, begin, end);
            default: break;
        }
    }
    switch (a.format.packing) {
        case Packing::int4_two_level: return many_rows_of<Packing::int4_two_level>(a, begin, end);
        case Packing::int4: return many_rows_of<Packing::int4>(a, begin, end);
        case Packing::int8: return many_rows_of<Packing::int8>(a, begin, end);
        default: break;
    }
}
