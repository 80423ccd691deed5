// Products with integer weights: what packed_few.inl and packed_many.inl share. The bits are those of the processors.
//
// A panel lies as the tensor cores take it (packed.h). Lane (g, t) reads 16 bytes of a line, outputs 4 g .. 4 g + 3 of the
// panel at k 4 line ..: of lines t and t + 4 these are the rows g and g + 8 of two products of 16 outputs, 4 g + 2 p and
// 4 g + 2 p + 1 for p 0 and 1. Two such loads of a warp are 1,024 bytes without a gap.

DEVICE float scale_bits(uint16_t bits, bool is_bf16) {
    uint32_t low, high;
    gk::widen_f16(bits, low, high);
    return from_bits(is_bf16 ? uint32_t(bits) << 16 : low);
}

DEVICE uint32_t word(const void* p) { return *static_cast<const uint32_t*>(p); }
DEVICE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
DEVICE int min_of(int a, int b) { return a < b ? a : b; }

// Sizes of a panel, a block and its header.
struct UnpackPlan {
    int64_t panel;
    int block, header, group, groups;
};
static constexpr UnpackPlan unpack_plan(const UnpackArgs& a) {
    const int group = int(scale_depth(a.format));
    return {panel_bytes(a.format, a.k), int(block_bytes(a.format)), int(header_bytes(a.format)), group, int(block_depth) / group};
}

// A thread has four neighbours along k of a row: a word of codes, whose scales are the same. Grid: rows x pieces of k.
GK_KERNEL void unpack_kernel(UnpackArgs a, UnpackPlan p, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const WeightFormat& f = a.format;
    const bool bf = f.scale_dtype == DType::bf16, eight = eight_bits(f.packing), two_level = f.packing == Packing::int4_two_level;
    const int64_t r = first + gk::block(), half = a.gated ? a.n / 2 : a.n, i = a.ids[r] < half ? a.ids[r] : a.ids[r] - half;
    const int64_t panel = a.gated ? i / 16 : i / panel_outputs;
    const int column = a.gated ? int(i % 16) + (a.ids[r] < half ? 0 : 16) : int(i % panel_outputs);
    each_four(a.k, [&](int64_t at, int count) {
        const int k = int(at), in_block = k % int(block_depth), tile = in_block / int(tile_depth), inner = k % int(tile_depth);
        const uint8_t* header = a.panels + panel * p.panel + int64_t(k / int(block_depth)) * p.block;
        const int line = eight ? inner / 4 : inner % 32 / 4, tile_size = eight ? 2048 : 1024;
        const uint32_t codes = word(header + p.header + tile * tile_size + column / 16 * (tile_size / 2) + line * 64 + column % 16 * 4);
        auto real = [&](int at) { return scale_bits(*reinterpret_cast<const uint16_t*>(header + at), bf); };
        const int group = in_block / p.group;
        // Before they are looked at, all there is of the header: the scale, u or sc, m or the zero.
        float scale = real((group * int(panel_outputs) + column) * 2), shift = 0.0f;
        int times = 1, less = f.zero == Zero::none && !eight && !two_level ? 8 : 0;
        if (two_level) {
            const int u = header[64 + tile * 32 + column];
            times = inner < 32 ? u & 15 : u >> 4;
            less = header[192 + tile * 64 + column * 2 + inner / 32];
        } else if (f.zero == Zero::integer) {
            const uint8_t z = header[p.groups * int(panel_outputs) * 2 + group * int(panel_outputs) + column];
            less = f.packing == Packing::int4 ? int(z) : int(int8_t(z));
        } else if (f.zero == Zero::real) {
            shift = real(((p.groups + group) * int(panel_outputs) + column) * 2);
        }
        if (of_k(f.packing)) {  // d sc and dmin m are exact
            const int of_group = int(k_index(f, in_block, column));
            scale *= float(int8_t(header[k_scales_at(f) + of_group]));
            if (f.zero == Zero::real) shift = -(shift * float(header[k_minima_at(f) + of_group]));
        }
        store_four(a.out + r * a.k + at, count, of_four([&](int j) {
            const int byte = int(codes >> (8 * j) & 255), code = eight ? int(int8_t(byte)) : inner < 32 ? byte & 15 : byte >> 4;
            const float value = float(times * code - less) * scale;
            return f.zero == Zero::real ? value + shift : value;
        }));
    });
}
