// More rows by packed weights: bound by arithmetic. A 256-deep block of one or two panels is unpacked once into the
// first-level cache, as unsigned bytes in the order they are multiplied; tiles of eight rows by a panel sum in registers.
// The next block's bytes are fetched meanwhile, half by the unpacking, half spread over the products.

constexpr int64_t tile_rows = 8;
constexpr int64_t single_rows = 64;     // up to here a block's activations stay in the first-level cache, and panels go singly
constexpr int64_t panels_at_once = 2;
constexpr int64_t slab_rows = 256;  // rows for which a block is unpacked, their float sums in the second-level cache
constexpr int64_t most_groups = block_depth / sub_depth;

struct Unpacked {
    alignas(64) uint8_t codes[block_depth / 4][2][64];  // steps of 4 along k, 16 outputs x 4
    alignas(64) float scales[most_groups][2][16];
    alignas(64) float real_zeros[most_groups][2][16];
    alignas(64) int32_t offsets[most_groups][2][16];    // of integer zeros
};

// next: the block to fetch meanwhile.
template <Packing packing>
INLINE void unpack_block(const WeightFormat& f, const uint8_t* block, int64_t tiles, const uint8_t* next, Unpacked& to) {
    const Header header{f, block};
    const int64_t groups = (tiles * tile_depth + f.group - 1) / f.group, size = header_bytes(f);
    for (int64_t i = 0; i < size; i += 64) __builtin_prefetch(next + i);  // and every second line below
    for (int64_t group = 0; group < groups; group++) {
        for (int64_t column = 0; column < 2; column++) {
            store(to.scales[group][column], header.scales(group, column));
            if (f.zero == Zero::real) store(to.real_zeros[group][column], header.real_zeros(group, column));
            if (f.zero == Zero::integer) _mm512_store_si512(to.offsets[group][column], header.offsets(group, column));
        }
    }
    const uint8_t* line = block + size;
    next += size;
    for (int64_t tile = 0; tile < tiles; tile++) {
        for (int64_t column = 0; column < 2; column++) {
            uint8_t* out = to.codes[tile * 16][column];
            ivec u[2], more[2];
            if (packing == Packing::int4_two_level) {  // u c - m + 128, whose bytes never carry into one another
                header.subscales(tile, column, u[0], u[1]);
                const ivec m = _mm512_sub_epi16(_mm512_set1_epi16(128), header.minima(tile, column));
                const ivec low = _mm512_and_si512(m, _mm512_set1_epi32(0xff)), high = _mm512_srli_epi32(m, 16);
                more[0] = _mm512_mullo_epi32(low, _mm512_set1_epi32(0x01010101));
                more[1] = _mm512_mullo_epi32(high, _mm512_set1_epi32(0x01010101));
            }
            for (int64_t l = 0; l < tile_bytes(packing) / 128; l++, line += 64, next += 64) {
                if (l % 2 == 0) __builtin_prefetch(next);
                const ivec bytes = load_line(line);
                if (packing == Packing::int8) {
                    _mm512_store_si512(out + l * 128, _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)));
                    continue;
                }
                ivec low = low_nibbles(bytes), high = high_nibbles(bytes);
                if (packing == Packing::int4_two_level) {
                    low = _mm512_add_epi8(_mm512_mullo_epi16(low, u[0]), more[0]);
                    high = _mm512_add_epi8(_mm512_mullo_epi16(high, u[1]), more[1]);
                }
                _mm512_store_si512(out + l * 128, low);
                _mm512_store_si512(out + l * 128 + 8 * 128, high);
            }
        }
    }
}

// What a tile of rows reads, at its first row and this block.
struct TileRows {
    const int8_t* codes;
    const int16_t* sums;
    const float* scales;
    float* acc;  // [rows][32]
    const uint8_t* fetch;     // every second line from here, so many for each 32 codes
    int64_t fetches;
    int64_t codes_stride, subs, blocks;
};

// The sums of a row's codes over each group, from those of 32.
INLINE __m256i group_sums(const int16_t* sums, int64_t tiles, int64_t group) {
    const __m128i s = _mm_maskz_loadu_epi16(__mmask8((1u << tiles * 2) - 1), sums);
    if (group == 32) return _mm256_cvtepi16_epi32(s);
    __m128i g = _mm_madd_epi16(s, _mm_set1_epi16(1));
    if (group >= 128) g = _mm_hadd_epi32(g, g);
    if (group >= 256) g = _mm_hadd_epi32(g, g);
    return _mm256_castsi128_si256(g);
}

template <Zero zeros, int64_t rows>
void tile_by_panel(const WeightFormat& f, const Unpacked& w, int64_t tiles, int32_t offset, const TileRows& x) {
    alignas(32) int32_t starts[rows][most_groups];
    alignas(32) float x_sums[rows][most_groups];
#pragma GCC unroll 14
    for (int64_t m = 0; m < rows; m++) {
        const __m256i sums = group_sums(x.sums + m * x.subs, tiles, f.group);
        const __m256i start = zeros == Zero::integer ? sums : _mm256_mullo_epi32(sums, _mm256_set1_epi32(offset));
        _mm256_store_si256(reinterpret_cast<__m256i*>(starts[m]), start);
        if (zeros == Zero::real) _mm256_store_ps(x_sums[m], _mm256_cvtepi32_ps(sums));
    }
    const uint8_t* codes = w.codes[0][0];
    const int8_t* x_codes = x.codes;
    const uint8_t* fetch = x.fetch;
    const int64_t steps = tiles * 2, group_steps = f.group / sub_depth;  // of 32 codes
    for (int64_t group = 0; group * group_steps < steps; group++) {
        ivec sums[rows][2];
#pragma GCC unroll 14
        for (int64_t m = 0; m < rows; m++) {
            sums[m][0] = sums[m][1] = _mm512_setzero_si512();
        }
        const int64_t left = steps - group * group_steps;
        for (int64_t step = 0; step < (left < group_steps ? left : group_steps); step++, codes += 1024, x_codes += 32) {
            for (int64_t i = 0; i < x.fetches; i++, fetch += 128) __builtin_prefetch(fetch);
#pragma GCC unroll 8
            for (int64_t i = 0; i < 8; i++) {
                const ivec first = load_line(codes + i * 128), second = load_line(codes + i * 128 + 64);
#pragma GCC unroll 14
                for (int64_t m = 0; m < rows; m++) {
                    const ivec four = broadcast4(x_codes + m * x.codes_stride + i * 4);
                    sums[m][0] = _mm512_dpbusd_epi32(sums[m][0], first, four);
                    sums[m][1] = _mm512_dpbusd_epi32(sums[m][1], second, four);
                }
            }
        }
        const vec scale[2] = {load(w.scales[group][0]), load(w.scales[group][1])};
#pragma GCC unroll 14
        for (int64_t m = 0; m < rows; m++) {
            const vec x_scale = set1(x.scales[m * x.blocks]);
#pragma GCC unroll 2
            for (int64_t c = 0; c < 2; c++) {
                ivec start = broadcast4(&starts[m][group]);
                if (zeros == Zero::integer) start = _mm512_mullo_epi32(start, load_line(w.offsets[group][c]));
                const vec sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[m][c], start));
                float* at = x.acc + m * 32 + c * 16;
                vec acc = fma(sum, scale[c] * x_scale, load(at));
                if (zeros == Zero::real) acc = fma(set1(x_sums[m][group]), load(w.real_zeros[group][c]) * x_scale, acc);
                store(at, acc);
            }
        }
    }
}

// How a block of plain groups is unpacked, and what tiles of rows then do with it.
template <Packing packing, Zero zeros>
struct Plain {
    using Block = Unpacked;
    static constexpr int32_t offset = packing == Packing::int4 ? (zeros == Zero::none ? -8 : 0) : -128;

    INLINE static void unpack(const WeightFormat& f, const uint8_t* block, int64_t tiles, const uint8_t* next, Block& to) {
        unpack_block<packing>(f, block, tiles, next, to);
    }
    template <int64_t rows>
    static void tile(const WeightFormat& f, const Block& w, int64_t tiles, const TileRows& x) {
        tile_by_panel<zeros, rows>(f, w, tiles, offset, x);
    }
};

// Rows [m0, m1) by panels [begin, end), at most panels_at_once.
template <class Way>
void slab_by_panels(const PackedLinearArgs& a, int64_t begin, int64_t end, int64_t m0, int64_t m1) {
    typename Way::Block unpacked[panels_at_once];
    alignas(64) float acc[panels_at_once][slab_rows][32];
    const WeightFormat& f = a.format;
    const int64_t depth = round_up(a.k, tile_depth), subs = depth / sum_depth(f), blocks = (a.k + block_depth - 1) / block_depth;
    const int64_t rows = m1 - m0, panels = end - begin, panel_size = panel_bytes(f, a.k);
    void (*const tile_of[])(const WeightFormat&, const typename Way::Block&, int64_t, const TileRows&) = {
        Way::template tile<3>, Way::template tile<4>, Way::template tile<5>, Way::template tile<6>, Way::template tile<7>,
        Way::template tile<8>};
    for (int64_t p = 0; p < panels; p++) {
        for (int64_t i = 0; i < rows * 32; i += 16) store(&acc[p][i / 32][i % 32], zero());
    }
    const int64_t row_tiles = (rows + tile_rows - 1) / tile_rows, lines = (block_bytes(f) - header_bytes(f)) / 128;
    const int64_t fetches = (lines + row_tiles * 8 - 1) / (row_tiles * 8);
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t left = (depth - block * block_depth) / tile_depth, tiles = left < 4 ? left : 4;
        const uint8_t* next[panels_at_once];
        for (int64_t p = 0; p < panels; p++) {
            const uint8_t* at = a.weight + (begin + p) * panel_size + block * block_bytes(f);
            next[p] = block + 1 < blocks ? at + block_bytes(f) : a.weight + (end + p) * panel_size;
            Way::unpack(f, at, tiles, next[p], unpacked[p]);
        }
        for (int64_t t = 0; t < row_tiles; t++) {  // as even as can be, so of four rows or more where there are nine
            const int64_t first = rows * t / row_tiles, count = rows * (t + 1) / row_tiles - first, m = m0 + first;
            const int64_t fetched = header_bytes(f) + 64 + t * 8 * fetches * 128;
            for (int64_t p = 0; p < panels; p++) {
                tile_of[count - 3](f, unpacked[p], tiles,
                                   {a.codes + m * a.codes_stride + block * block_depth,
                                    a.sums + m * subs + block * (block_depth / sum_depth(f)), a.scales + m * blocks + block,
                                    acc[p][first], next[p] + fetched, fetched < block_bytes(f) ? fetches : 0, a.codes_stride,
                                    subs, blocks});
            }
        }
    }
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t p = 0; p < panels; p++) write_row(a, begin + p, m0 + m, load(acc[p][m]), load(acc[p][m] + 16));
    }
}

template <class Way>
void many_rows(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    const int64_t slabs = (a.rows + slab_rows - 1) / slab_rows, step = a.rows <= single_rows ? 1 : panels_at_once;
    for (int64_t panel = begin; panel < end; panel += step) {
        const int64_t stop = panel + step < end ? panel + step : end;
        for (int64_t s = 0; s < slabs; s++) {
            slab_by_panels<Way>(a, panel, stop, a.rows * s / slabs, a.rows * (s + 1) / slabs);
        }
    }
}

template <Packing packing>
void packed_linear_of(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    if (a.rows <= (a.format.group == sub_depth ? 2 : untiled_rows)) {
        if constexpr (packing != Packing::int4_two_level) {
            if (a.format.group == sub_depth) return few_rows<packing, true>(a, begin, end);
        }
        return few_rows<packing, false>(a, begin, end);
    }
    if constexpr (packing == Packing::int4_two_level) return many_rows<Plain<packing, Zero::none>>(a, begin, end);
    else switch (a.format.zero) {
        case Zero::none: return many_rows<Plain<packing, Zero::none>>(a, begin, end);
        case Zero::integer: return many_rows<Plain<packing, Zero::integer>>(a, begin, end);
        case Zero::real: return many_rows<Plain<packing, Zero::real>>(a, begin, end);
    }
}

template <Packing packing>
void packed_linear_k(const PackedLinearArgs& a, int64_t begin, int64_t end);  // packed_k_vnni_many.inl

void packed_linear(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    switch (a.format.packing) {
        case Packing::int4_two_level: return packed_linear_of<Packing::int4_two_level>(a, begin, end);
        case Packing::int4: return packed_linear_of<Packing::int4>(a, begin, end);
        case Packing::int8: return packed_linear_of<Packing::int8>(a, begin, end);
        case Packing::int4_k: return packed_linear_k<Packing::int4_k>(a, begin, end);
        case Packing::int8_k: return packed_linear_k<Packing::int8_k>(a, begin, end);
    }
}
