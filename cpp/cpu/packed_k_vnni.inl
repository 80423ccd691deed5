// Products with int4_k and int8_k by vpdpbusd, for few rows: sums of a group's codes x codes meet the group's sc in integers,
// and a block's sum becomes a float once. Weights are unsigned bytes as in packed_vnni.inl; what they have too much, 8 or 128
// times sum of sc * (sum of x), and with real zeros sum of m * (sum of x), takes one vpdpwssd for two groups.

// A block's header, for 16 outputs of a panel.
struct KHeader {
    const WeightFormat& f;
    const uint8_t* at;

    INLINE vec reals(int64_t offset) const {
        return widen_f16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + offset)));
    }
    INLINE vec scales(int64_t column) const { return reals(column * 32); }
    INLINE vec real_zeros(int64_t column) const { return reals(64 + column * 32); }
    INLINE __m256i bytes(int64_t from, int64_t k, int64_t column) const {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + from + k_index(f, k, column * 16)));
    }
    // Of the groups of k and of k + 32, k within the first 32 of a tile: 16 bits each.
    INLINE ivec k_scales(int64_t k, int64_t column) const { return _mm512_cvtepi8_epi16(bytes(k_scales_at(f), k, column)); }
    INLINE ivec k_minima(int64_t k, int64_t column) const { return _mm512_cvtepu8_epi16(bytes(k_minima_at(f), k, column)); }
};

// Sums of x over the group of k in a tile and over that of k + 32, 16 bits each. sums: the tile's.
template <int64_t group>
INLINE ivec pair_of_sums(const int16_t* sums, int64_t k) {
    if (group == sub_depth) return broadcast4(sums);
    return _mm512_set1_epi32(int32_t(uint16_t(sums[k / 16])) | int32_t(uint32_t(uint16_t(sums[k / 16 + 2])) << 16));
}

// A block's sums of integers go to a row's sums of floats.
INLINE vec add_block(const KHeader& header, int64_t column, ivec sum, ivec minima, vec x_scale, vec acc) {
    acc = fma(_mm512_cvtepi32_ps(sum), header.scales(column) * x_scale, acc);
    if (header.f.zero != Zero::real) return acc;
    return _mm512_fnmadd_ps(_mm512_cvtepi32_ps(minima), header.real_zeros(column) * x_scale, acc);
}

// One panel. Nibbles are multiplied as they lie in their byte, the high ones 16 times as large: sums of 16 codes are at most
// 15 * 127 * 16, which 16 bits hold, so one vpdpwssd multiplies those of a low and a high group with their sc.
template <Packing packing, int64_t group, int64_t rows>
void few_rows_k(const PackedLinearArgs& a, int64_t panel) {
    constexpr bool eight = packing == Packing::int8_k;
    constexpr Packing lines_of = eight ? Packing::int8 : Packing::int4;
    constexpr int64_t column_bytes = tile_bytes(packing) / 2;
    const int64_t depth = round_up(a.k, tile_depth), blocks = (a.k + block_depth - 1) / block_depth, row_sums = depth / group;
    const bool real = a.format.zero == Zero::real;
    const ivec low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(int8_t(0xf0)), top = _mm512_set1_epi8(-128);
    const uint8_t* line = a.weight + panel * panel_bytes(a.format, a.k);
    vec acc[rows][2];
    for (int64_t m = 0; m < rows; m++) acc[m][0] = acc[m][1] = zero();
    for (int64_t block = 0; block < blocks; block++) {
        const KHeader header{a.format, line};
        for (int64_t i = 0; i < header_bytes(a.format); i += 64) fetch_ahead<lines_of, rows>(line + i);
        line += header_bytes(a.format);
        const int64_t left = (depth - block * block_depth) / tile_depth, tiles = left < 4 ? left : 4;
        ivec sums[rows][2], less[rows][2], minima[rows][2];
        for (int64_t m = 0; m < rows; m++) {
            sums[m][0] = sums[m][1] = less[m][0] = less[m][1] = minima[m][0] = minima[m][1] = _mm512_setzero_si512();
        }
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t k = block * block_depth + tile * tile_depth;
#pragma GCC unroll 2
            for (int64_t c = 0; c < 2; c++, line += column_bytes) {
#pragma GCC unroll 2
                for (int64_t first = 0; first < sub_depth; first += 16) {  // codes first .. first + 15 and 32 further on
                    ivec part[rows][2];
                    for (int64_t m = 0; m < rows; m++) part[m][0] = part[m][1] = _mm512_setzero_si512();
#pragma GCC unroll 4
                    for (int64_t l = first / 4; l < first / 4 + 4; l++) {
                        ivec w[2];
                        if (eight) {
                            w[0] = _mm512_xor_si512(load_line(line + l * 64), top);
                            w[1] = _mm512_xor_si512(load_line(line + 512 + l * 64), top);
                        } else {
                            const ivec bytes = load_line(line + l * 64);
                            w[0] = _mm512_and_si512(bytes, low), w[1] = _mm512_and_si512(bytes, high);
                        }
                        fetch_ahead<lines_of, rows>(line + (eight ? 2 : 1) * l * 64);
                        if (eight) fetch_ahead<lines_of, rows>(line + (2 * l + 1) * 64);
#pragma GCC unroll 8
                        for (int64_t m = 0; m < rows; m++) {
                            const int8_t* x = a.codes + m * a.codes_stride + k + l * 4;
                            part[m][0] = _mm512_dpbusd_epi32(part[m][0], w[0], broadcast4(x));
                            part[m][1] = _mm512_dpbusd_epi32(part[m][1], w[1], broadcast4(x + 32));
                        }
                    }
                    const int64_t inner = tile * tile_depth + first;
                    const ivec scales = header.k_scales(inner, c);
                    const ivec even = _mm512_srai_epi32(_mm512_slli_epi32(scales, 16), 16), odd = _mm512_srai_epi32(scales, 16);
                    for (int64_t m = 0; m < rows; m++) {
                        if (eight) {
                            sums[m][c] = _mm512_add_epi32(sums[m][c], _mm512_mullo_epi32(part[m][0], even));
                            sums[m][c] = _mm512_add_epi32(sums[m][c], _mm512_mullo_epi32(part[m][1], odd));
                        } else {
                            const ivec both = _mm512_mask_blend_epi16(0xaaaaaaaa, part[m][0], _mm512_slli_epi32(part[m][1], 12));
                            sums[m][c] = _mm512_dpwssd_epi32(sums[m][c], both, scales);
                        }
                    }
                    if (group == sub_depth && first) continue;
                    for (int64_t m = 0; m < rows; m++) {
                        const ivec x_sums = pair_of_sums<group>(a.sums + m * row_sums + k / group, first);
                        if (eight || !real) less[m][c] = _mm512_dpwssd_epi32(less[m][c], scales, x_sums);
                        if (real) minima[m][c] = _mm512_dpwssd_epi32(minima[m][c], header.k_minima(inner, c), x_sums);
                    }
                }
            }
        }
        for (int64_t m = 0; m < rows; m++) {
            const vec x_scale = set1(a.scales[m * blocks + block]);
            for (int64_t c = 0; c < 2; c++) {
                const ivec sum = _mm512_sub_epi32(sums[m][c], _mm512_slli_epi32(less[m][c], eight ? 7 : 3));
                acc[m][c] = add_block(header, c, sum, minima[m][c], x_scale, acc[m][c]);
            }
        }
    }
    for (int64_t m = 0; m < rows; m++) write_row(a, panel, m, acc[m][0], acc[m][1]);
}

template <Packing packing, int64_t group>
void few_rows_k(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
        switch (a.rows) {
            case 1: few_rows_k<packing, group, 1>(a, panel); break;
            case 2: few_rows_k<packing, group, 2>(a, panel); break;
            case 3: few_rows_k<packing, group, 3>(a, panel); break;
            case 4: few_rows_k<packing, group, 4>(a, panel); break;
            case 5: few_rows_k<packing, group, 5>(a, panel); break;
            case 6: few_rows_k<packing, group, 6>(a, panel); break;
            case 7: few_rows_k<packing, group, 7>(a, panel); break;
            default: few_rows_k<packing, group, 8>(a, panel); break;
        }
    }
}
