// Products with integer weights: what packed_few.inl and packed_many.inl share. The bits are those of the processors.
//
// A panel lies as the tensor cores take it (packed.h). Lane (g, t) reads 16 bytes of a line, outputs 4 g .. 4 g + 3 of the
// panel at k 4 line ..: of lines t and t + 4 these are the rows g and g + 8 of two products of 16 outputs, 4 g + 2 p and
// 4 g + 2 p + 1 for p 0 and 1. Two such loads of a warp are 1,024 bytes without a gap.

DEVICE float scale_bits(uint16_t bits, bool is_bf16) { return is_bf16 ? widen(bf16{bits}) : widen(f16{bits}); }

DEVICE uint32_t word(const void* p) { return *static_cast<const uint32_t*>(p); }
DEVICE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
DEVICE int min_of(int a, int b) { return a < b ? a : b; }

// A block has a row of the weight, its threads the columns.
GK_KERNEL void unpack_kernel(UnpackArgs a, int64_t first) {
    gk::wait_for_previous(), gk::let_next_start();
    const WeightFormat& f = a.format;
    const bool bf = f.scale_dtype == DType::bf16, eight = eight_bits(f.packing);
    const int64_t r = first + gk::block(), half = a.gated ? a.n / 2 : a.n, i = a.ids[r] < half ? a.ids[r] : a.ids[r] - half;
    const int64_t panel = a.gated ? i / 16 : i / panel_outputs;
    const int64_t column = a.gated ? i % 16 + (a.ids[r] < half ? 0 : 16) : i % panel_outputs;
    each_column(a.k, [&](int64_t k) {
        const uint8_t* header = a.panels + panel * panel_bytes(f, a.k) + k / block_depth * block_bytes(f);
        const int64_t in_block = k % block_depth, tile = in_block / tile_depth, inner = k % tile_depth;
        const uint8_t* codes = header + header_bytes(f) + tile * tile_bytes(f.packing) + column / 16 * (tile_bytes(f.packing) / 2);
        auto real = [&](int64_t at) { return scale_bits(uint16_t(header[at] | header[at + 1] << 8), bf); };
        int32_t code;
        if (eight) {
            code = int8_t(codes[inner / 4 * 64 + column % 16 * 4 + inner % 4]);
        } else {
            const uint8_t byte = codes[inner % 32 / 4 * 64 + column % 16 * 4 + inner % 4];
            code = inner < 32 ? byte & 15 : byte >> 4;
        }
        const int64_t group = in_block / scale_depth(f), groups = block_depth / scale_depth(f);
        if (f.packing == Packing::int4_two_level) {
            const int32_t u = header[64 + tile * 32 + column];
            code = (inner < 32 ? u & 15 : u >> 4) * code - header[192 + tile * 64 + column * 2 + inner / 32];
        } else if (f.zero == Zero::none && !eight) {
            code -= 8;
        } else if (f.zero == Zero::integer) {
            const uint8_t z = header[groups * panel_outputs * 2 + group * panel_outputs + column];
            code -= f.packing == Packing::int4 ? int32_t(z) : int32_t(int8_t(z));
        }
        const bool scaled = of_k(f.packing);  // d sc and dmin m are exact
        float scale = real((group * panel_outputs + column) * 2);
        if (scaled) scale *= float(int8_t(header[k_scales_at(f) + k_index(f, in_block, column)]));
        float value = float(code) * scale;
        if (f.zero == Zero::real) {
            const float b = real((groups + group) * panel_outputs * 2 + column * 2);
            value += scaled ? -(b * float(header[k_minima_at(f) + k_index(f, in_block, column)])) : b;
        }
        a.out[r * a.k + k] = value;
    });
}
