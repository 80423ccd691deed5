// Rows by a block of int4_k or int8_k: vpmaddwd, which brings sums of 16 bits to 32, multiplies by a group's sc instead of 1,
// and a block's sums become floats once.

struct KHeader {
    const WeightFormat& f;
    const uint8_t* at;

    INLINE vec reals(int64_t offset) const { return widen_f16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + offset))); }
    INLINE __m128i bytes(int64_t from, int64_t k, int64_t column) const {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + from + k_index(f, k, column * column_outputs)));
    }
    // Of the groups of k and of k + 32, k within the first 32 of a tile: 16 bits each.
    INLINE ivec k_scales(int64_t k, int64_t column) const { return _mm256_cvtepi8_epi16(bytes(k_scales_at(f), k, column)); }
    INLINE ivec k_minima(int64_t k, int64_t column) const { return _mm256_cvtepu8_epi16(bytes(k_minima_at(f), k, column)); }
};

// The first or the second of each pair, twice.
INLINE ivec both_first(ivec pairs) { return _mm256_blend_epi16(pairs, _mm256_slli_epi32(pairs, 16), 0xaa); }
INLINE ivec both_second(ivec pairs) { return _mm256_blend_epi16(_mm256_srli_epi32(pairs, 16), pairs, 0xaa); }

// Sums of x over the group of k in a tile and over that of k + 32, 16 bits each. sums: the tile's.
template <int64_t group>
INLINE ivec pair_of_sums(const int16_t* sums, int64_t k) {
    if (group == sub_depth) return broadcast4(sums);
    return _mm256_set1_epi32(int32_t(uint16_t(sums[k / 16])) | int32_t(uint32_t(uint16_t(sums[k / 16 + 2])) << 16));
}

template <Packing packing, int64_t group, int64_t rows>
__attribute__((noinline)) void rows_by_k(const WeightFormat& f, const Block& b, const Rows& x, bool prefetch) {
    constexpr bool eight = packing == Packing::int8_k;
    constexpr int64_t lines = group / 4, half = tile_bytes(packing) / 2;
    const KHeader header{f, b.at};
    const bool real = f.zero == Zero::real;
    for (int64_t column = 0; column < columns; column++) {
        const uint8_t* tiles = b.at + header_bytes(f) + column / 2 * half + column % 2 * 32;
        const uint8_t* quarter = b.at + header_bytes(f) + column * b.tiles * (half / 2);
        ivec sums[rows], less[rows];  // less: of minima, or of the 8 that nibbles have too much
        for (int64_t m = 0; m < rows; m++) sums[m] = less[m] = no_sum();
        for (int64_t tile = 0; tile < b.tiles; tile++, tiles += 2 * half, quarter += half / 2) {
            if (prefetch) prefetch_lines(quarter, half / 128);
            for (int64_t first = 0; first < sub_depth; first += group) {
                const int64_t k = tile * tile_depth + first;
                const int8_t* codes = x.codes + k;
                const ivec pairs = header.k_scales(k, column), scale[2] = {both_first(pairs), both_second(pairs)};
                ivec part[rows][2];  // 16 bits
#pragma GCC unroll 8
                for (int64_t l = 0; l < lines; l++) {
                    const uint8_t* line = tiles + (first / 4 + l) * 64;
                    ivec w[2];
                    if (eight) {
                        w[0] = load_half_line(line), w[1] = load_half_line(line + 512);
                    } else {
                        const ivec bytes = load_half_line(line);
                        w[0] = low_nibbles(bytes), w[1] = high_nibbles(bytes);
                    }
#pragma GCC unroll 4
                    for (int64_t m = 0; m < rows; m++) {
#pragma GCC unroll 2
                        for (int64_t i = 0; i < 2; i++) {
                            const ivec four = broadcast4(codes + m * x.codes_stride + i * sub_depth + l * 4);
                            if (eight) {
                                const ivec pair = _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(four, w[i]));
                                sums[m] = add32(sums[m], _mm256_madd_epi16(pair, scale[i]));
                            } else {
                                const ivec pair = _mm256_maddubs_epi16(w[i], four);
                                part[m][i] = l == 0 ? pair : add16(part[m][i], pair);
                            }
                        }
                    }
                }
                const ivec factors = real ? header.k_minima(k, column) : pairs;
#pragma GCC unroll 4
                for (int64_t m = 0; m < rows; m++) {
                    if (!eight) {
                        sums[m] = add32(sums[m], _mm256_madd_epi16(part[m][0], scale[0]));
                        sums[m] = add32(sums[m], _mm256_madd_epi16(part[m][1], scale[1]));
                    }
                    if (eight && !real) continue;
                    const ivec x_sums = pair_of_sums<group>(x.sums + m * x.subs + tile * (tile_depth / group), first);
                    less[m] = add32(less[m], _mm256_madd_epi16(factors, x_sums));
                }
            }
        }
        vec acc[rows];
        load_sums<rows>(x, column, acc);
        const vec d = header.reals(column * 16), dmin = real ? header.reals(64 + column * 16) : zero();
#pragma GCC unroll 4
        for (int64_t m = 0; m < rows; m++) {
            const vec x_scale = set1(x.scales[m * x.blocks]);
            if (!eight && !real) sums[m] = _mm256_sub_epi32(sums[m], _mm256_slli_epi32(less[m], 3));
            acc[m] = fma(_mm256_cvtepi32_ps(sums[m]), d * x_scale, acc[m]);
            if (real) acc[m] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(less[m]), dmin * x_scale, acc[m]);
        }
        store_sums<rows>(x, column, acc);
    }
}
