// More rows by int4_k and int8_k: as packed_vnni_many.inl, with a group's sums in registers and a block's in the first-level
// cache.

struct UnpackedK {
    alignas(64) uint8_t codes[block_depth / 4][2][64];  // steps of 4 along k, 16 outputs x 4
    alignas(64) int32_t scales[block_depth / 16][2][16];     // sc by group
    alignas(64) int16_t pairs[block_depth / 32][2][32];      // sc of two groups 32 codes apart: 4 or 8 of them
    alignas(64) int16_t minima[block_depth / 32][2][32];     // m likewise
    const uint8_t* header;
};

template <Packing packing, int64_t group>
struct OfK {
    static constexpr bool eight = packing == Packing::int8_k;
    static constexpr int64_t steps = group / 4, tile_pairs = sub_depth / group;
    using Block = UnpackedK;

    INLINE static void unpack(const WeightFormat& f, const uint8_t* block, int64_t tiles, const uint8_t* next, Block& to) {
        const KHeader header{f, block};
        to.header = block;
        for (int64_t i = 0; i < header_bytes(f); i += 64) __builtin_prefetch(next + i);
        const uint8_t* line = block + header_bytes(f);
        next += header_bytes(f);
        for (int64_t tile = 0; tile < tiles; tile++) {
            for (int64_t c = 0; c < 2; c++) {
                for (int64_t i = 0; i < tile_pairs; i++) {
                    const int64_t k = tile * tile_depth + i * group, pair = tile * tile_pairs + i;
                    const ivec both = header.k_scales(k, c);
                    _mm512_store_si512(to.pairs[pair][c], both);
                    _mm512_store_si512(to.scales[k / group][c], _mm512_srai_epi32(_mm512_slli_epi32(both, 16), 16));
                    _mm512_store_si512(to.scales[(k + sub_depth) / group][c], _mm512_srai_epi32(both, 16));
                    if (f.zero == Zero::real) _mm512_store_si512(to.minima[pair][c], header.k_minima(k, c));
                }
                uint8_t* out = to.codes[tile * 16][c];
                for (int64_t l = 0; l < tile_bytes(packing) / 128; l++, line += 64, next += 64) {
                    if (l % 2 == 0) __builtin_prefetch(next);
                    const ivec bytes = load_line(line);
                    if (eight) {
                        _mm512_store_si512(out + l * 128, _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)));
                        continue;
                    }
                    _mm512_store_si512(out + l * 128, low_nibbles(bytes));
                    _mm512_store_si512(out + l * 128 + 8 * 128, high_nibbles(bytes));
                }
            }
        }
    }

    template <int64_t rows>
    static void tile(const WeightFormat& f, const Block& w, int64_t tiles, const TileRows& x) {
        alignas(64) int32_t block_sums[rows][2][16];
        const uint8_t* codes = w.codes[0][0];
        const int8_t* x_codes = x.codes;
        const uint8_t* fetch = x.fetch;
        for (int64_t g = 0; g < tiles * tile_depth / group; g++, x_codes += group, codes += group / 4 * 128) {
            ivec sums[rows][2];
#pragma GCC unroll 14
            for (int64_t m = 0; m < rows; m++) sums[m][0] = sums[m][1] = _mm512_setzero_si512();
            for (int64_t i = 0; (group == sub_depth || g % 2) && i < x.fetches; i++, fetch += 128) __builtin_prefetch(fetch);
#pragma GCC unroll 8
            for (int64_t i = 0; i < steps; i++) {
                const ivec first = load_line(codes + i * 128), second = load_line(codes + i * 128 + 64);
#pragma GCC unroll 14
                for (int64_t m = 0; m < rows; m++) {
                    const ivec four = broadcast4(x_codes + m * x.codes_stride + i * 4);
                    sums[m][0] = _mm512_dpbusd_epi32(sums[m][0], first, four);
                    sums[m][1] = _mm512_dpbusd_epi32(sums[m][1], second, four);
                }
            }
            const ivec scale[2] = {load_line(w.scales[g][0]), load_line(w.scales[g][1])};
#pragma GCC unroll 14
            for (int64_t m = 0; m < rows; m++) {
#pragma GCC unroll 2
                for (int64_t c = 0; c < 2; c++) {
                    ivec sum = _mm512_mullo_epi32(sums[m][c], scale[c]);
                    if (g > 0) sum = _mm512_add_epi32(sum, load_line(block_sums[m][c]));
                    _mm512_store_si512(block_sums[m][c], sum);
                }
            }
        }
        const bool real = f.zero == Zero::real;
        const KHeader header{f, w.header};
        for (int64_t m = 0; m < rows; m++) {
            ivec less[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, minima[2] = {less[0], less[0]};
            for (int64_t pair = 0; pair < tiles * tile_pairs; pair++) {
                const int64_t tile = pair / tile_pairs, k = pair % tile_pairs * group;
                const ivec x_sums = pair_of_sums<group>(x.sums + m * x.subs + tile * (tile_depth / group), k);
                for (int64_t c = 0; c < 2; c++) {
                    if (eight || !real) less[c] = _mm512_dpwssd_epi32(less[c], load_line(w.pairs[pair][c]), x_sums);
                    if (real) minima[c] = _mm512_dpwssd_epi32(minima[c], load_line(w.minima[pair][c]), x_sums);
                }
            }
            const vec x_scale = set1(x.scales[m * x.blocks]);
            for (int64_t c = 0; c < 2; c++) {
                const ivec sum = _mm512_sub_epi32(load_line(block_sums[m][c]), _mm512_slli_epi32(less[c], eight ? 7 : 3));
                float* at = x.acc + m * 32 + c * 16;
                store(at, add_block(header, c, sum, minima[c], x_scale, load(at)));
            }
        }
    }
};

template <Packing packing>
void packed_linear_k(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    const bool few = a.rows <= untiled_rows;
    if (a.format.group == 16) return few ? few_rows_k<packing, 16>(a, begin, end) : many_rows<OfK<packing, 16>>(a, begin, end);
    return few ? few_rows_k<packing, 32>(a, begin, end) : many_rows<OfK<packing, 32>>(a, begin, end);
}
