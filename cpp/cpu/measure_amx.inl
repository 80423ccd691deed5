// The rate of tile products: two by two tiles of sums, operands loaded once.

template <bool integers>
void measure_tiles(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) {
    constexpr int64_t rounds = 1024;
    alignas(64) float sums[256];
    TileShapes shapes;
    for (int tile = 0; tile < 8; tile++) shapes.set(tile, 16, 64);
    tile_config(shapes);
    for (int64_t unit = begin; unit < end; unit++) {
        tile_load<0>(a.data, 64);
        tile_load<1>(a.data, 64);
        tile_load<2>(a.data, 64);
        tile_load<3>(a.data, 64);
        tile_load<4>(a.data, 64);
        tile_load<5>(a.data, 64);
        tile_load<6>(a.data, 64);
        tile_load<7>(a.data, 64);
        for (int64_t i = 0; i < rounds; i++) {
            if (integers) {
                tile_dot_i8<0, 4, 6>();
                tile_dot_i8<1, 4, 7>();
                tile_dot_i8<2, 5, 6>();
                tile_dot_i8<3, 5, 7>();
            } else {
                tile_dot_bf16<0, 4, 6>();
                tile_dot_bf16<1, 4, 7>();
                tile_dot_bf16<2, 5, 6>();
                tile_dot_bf16<3, 5, 7>();
            }
        }
        tile_store<0>(sums, 64);
        a.results[unit] = sums[0];
        a.operations[unit] = double(rounds) * 4 * 16 * 16 * (integers ? 64 : 32) * 2;
    }
    tile_release();
}

void measure_bf16(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) { measure_tiles<false>(a, begin, end); }
void measure_int8(const MeasureArithmeticArgs& a, int64_t begin, int64_t end) { measure_tiles<true>(a, begin, end); }
