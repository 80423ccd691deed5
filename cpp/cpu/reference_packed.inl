// Integer weights, plainly: rounding, packing, and products with int8 activations. Included by reference.cpp.

// ---- a panel's parts ------------------------------------------------------------------------------------------

// One output's view of a block: where its codes, scales and zeros lie (packed.h).
struct PanelBlock {
    const WeightFormat& f;
    const uint8_t* header;
    const uint8_t* tiles;
    int64_t column;  // of the panel, 0 .. 31

    int64_t group_count() const { return block_depth / scale_depth(f); }
    int code(int64_t k) const {  // k within the block
        const int64_t tile = k / tile_depth, inner = k % tile_depth;
        const uint8_t* half = tiles + tile * tile_bytes(f.packing) + column / 16 * (tile_bytes(f.packing) / 2);
        if (eight_bits(f.packing)) return int8_t(half[inner / 4 * 64 + column % 16 * 4 + inner % 4]);
        const uint8_t byte = half[inner % 32 / 4 * 64 + column % 16 * 4 + inner % 4];
        return inner < 32 ? byte & 15 : byte >> 4;
    }
    float real(int64_t offset) const {  // of the scales' type
        const uint16_t bits = uint16_t(header[offset] | header[offset + 1] << 8);
        return f.scale_dtype == DType::bf16 ? widen(bf16{bits}) : widen(f16{bits});
    }
    float scale(int64_t group) const { return real((group * panel_outputs + column) * 2); }
    int64_t zeros_at() const { return group_count() * panel_outputs * 2; }
    float zero_real(int64_t group) const { return real(zeros_at() + (group * panel_outputs + column) * 2); }
    int zero(int64_t group) const {  // what is taken from the group's codes
        if (f.zero == Zero::real) return 0;
        if (f.zero == Zero::none) return eight_bits(f.packing) ? 0 : 8;
        const uint8_t byte = header[zeros_at() + group * panel_outputs + column];
        return f.packing == Packing::int4 ? byte : int8_t(byte);
    }
    int subscale(int64_t sub) const {  // sub: which 32 of the block
        const uint8_t byte = header[64 + sub / 2 * 32 + column];
        return sub % 2 ? byte >> 4 : byte & 15;
    }
    int minimum(int64_t sub) const { return header[192 + sub / 2 * 64 + column * 2 + sub % 2]; }
    int k_scale(int64_t k) const { return int8_t(header[k_scales_at(f) + k_index(f, k, column)]); }
    int k_minimum(int64_t k) const { return header[k_minima_at(f) + k_index(f, k, column)]; }
    int integer(int64_t k) const {  // what multiplies the scale; sc apart
        if (f.packing == Packing::int4_two_level) return subscale(k / sub_depth) * code(k) - minimum(k / sub_depth);
        return code(k) - zero(k / f.group);
    }
};

// ---- activations ----------------------------------------------------------------------------------------------

float round_even(float x) {  // |x| < 2^22
    const float big = 12582912.0f;
    return (x + big) - big;
}

void quantize(const QuantizeArgs& a, int64_t begin, int64_t end) {
    const int64_t depth = round_up(a.k, tile_depth), sums = depth / a.sum_depth;
    for (int64_t r = begin; r < end; r++) {
        const float* x = a.x + r * a.x_stride;
        auto code = [&](int64_t i) -> int8_t& { return a.codes[code_index(a, r, i)]; };
        for (int64_t from = 0; from < a.k; from += block_depth) {
            const int64_t to = from + block_depth < a.k ? from + block_depth : a.k;
            float largest = 0.0f;
            bool finite = true;
            for (int64_t i = from; i < to; i++) {
                const float size = fabsf(x[i]);
                finite = finite && size < INFINITY;
                if (size > largest) largest = size;
            }
            const bool counts = finite && largest >= 0x1p-100f;
            const float inverse = counts ? 127.0f / largest : 0.0f;
            a.scales[scale_index(a, r, from / block_depth)] = finite ? (counts ? largest / 127.0f : 0.0f) : NAN;
            for (int64_t i = from; i < to; i++) code(i) = int8_t(counts ? round_even(x[i] * inverse) : 0.0f);
        }
        for (int64_t i = a.k; i < depth; i++) code(i) = 0;
        for (int64_t i = 0; i < sums && a.sums; i++) {
            int sum = 0;
            for (int64_t j = 0; j < a.sum_depth; j++) sum += code(i * a.sum_depth + j);
            a.sums[r * sums + i] = int16_t(sum);
        }
    }
    if (!a.tiled || end != a.rows) return;
    for (int64_t r = a.rows; r % code_tile_rows != 0; r++) {
        for (int64_t i = 0; i < depth; i++) a.codes[code_index(a, r, i)] = 0;
        for (int64_t block = 0; block * block_depth < a.k; block++) a.scales[scale_index(a, r, block)] = 0.0f;
    }
}

// ---- products -------------------------------------------------------------------------------------------------

// One output of one row. codes, scales and sums are the row's.
float packed_dot(const PackedLinearArgs& a, int64_t panel, int64_t column, const int8_t* codes, const float* scales,
                 const int16_t* sums) {
    const uint8_t* block = a.weight + panel * panel_bytes(a.format, a.k);
    float acc = 0.0f;
    for (int64_t from = 0; from < a.k; from += block_depth, block += block_bytes(a.format)) {
        const PanelBlock b{a.format, block, block + header_bytes(a.format), column};
        const float x_scale = scales[from / block_depth];
        const int64_t depth = round_up(a.k, tile_depth) - from < block_depth ? round_up(a.k, tile_depth) - from : block_depth;
        if (of_k(a.format.packing)) {
            int32_t sum = 0, less = 0;
            for (int64_t k = 0; k < depth; k++) sum += b.k_scale(k) * b.integer(k) * codes[from + k];
            acc = fmaf(float(sum), b.scale(0) * x_scale, acc);
            if (a.format.zero != Zero::real) continue;
            for (int64_t k = 0; k < depth; k += a.format.group) less += b.k_minimum(k) * sums[(from + k) / a.format.group];
            acc = fmaf(float(less), -(b.zero_real(0) * x_scale), acc);
            continue;
        }
        for (int64_t group = 0; group * a.format.group < depth; group++) {
            const int64_t first = group * a.format.group;
            const int64_t last = first + a.format.group < depth ? first + a.format.group : depth;
            int32_t sum = 0, x_sum = 0;
            for (int64_t k = first; k < last; k++) sum += b.integer(k) * codes[from + k];
            for (int64_t k = first; k < last; k += sub_depth) x_sum += sums[(from + k) / sub_depth];
            acc = fmaf(float(sum), b.scale(group) * x_scale, acc);
            if (a.format.zero == Zero::real) acc = fmaf(float(x_sum), b.zero_real(group) * x_scale, acc);
        }
    }
    return acc;
}

void packed_linear(const PackedLinearArgs& a, int64_t begin, int64_t end) {
    const int64_t blocks = (a.k + block_depth - 1) / block_depth, subs = round_up(a.k, tile_depth) / sum_depth(a.format);
    const int64_t outputs = a.gated ? panel_outputs / 2 : panel_outputs, n = a.gated ? a.n / 2 : a.n;
    for (int64_t panel = begin; panel < end; panel++) {
        for (int64_t m = 0; m < a.rows; m++) {
            auto dot = [&](int64_t column) {
                return packed_dot(a, panel, column, a.codes + m * a.codes_stride, a.scales + m * blocks, a.sums + m * subs);
            };
            for (int64_t j = 0; j < outputs && panel * outputs + j < n; j++) {
                const int64_t i = panel * outputs + j, at = m * a.out_stride + i;
                float value = dot(j);
                if (a.bias) value += a.bias[i];
                if (a.gated) {
                    float up = dot(j + outputs);
                    if (a.bias) up += a.bias[n + i];
                    value = gate(a.kind, value, up);
                }
                if (a.residual) value += a.residual[at];
                a.out[at] = value;
            }
        }
    }
}

// ---- packing --------------------------------------------------------------------------------------------------

// The row that column j of a panel holds, or -1 past the end.
int64_t panel_row(int64_t panel, int64_t column, int64_t n, bool gated) {
    if (!gated) return panel * panel_outputs + column < n ? panel * panel_outputs + column : -1;
    const int64_t i = panel * 16 + column % 16;
    return i < n / 2 ? i + column / 16 * (n / 2) : -1;
}

void pack(const PackArgs& a, int64_t begin, int64_t end) {
    const WeightFormat& f = a.format;
    const int64_t depth = round_up(a.k, tile_depth), shared = scale_depth(f), row_groups = (depth + shared - 1) / shared;
    const bool two_level = f.packing == Packing::int4_two_level;
    for (int64_t panel = begin; panel < end; panel++) {
        uint8_t* header = a.panels + panel * panel_bytes(f, a.k);
        memset(header, 0, size_t(panel_bytes(f, a.k)));
        for (int64_t from = 0; from < depth; from += block_depth, header += block_bytes(f)) {
            const int64_t count = depth - from < block_depth ? depth - from : block_depth;
            uint8_t* tiles = header + header_bytes(f);
            for (int64_t column = 0; column < panel_outputs; column++) {
                const int64_t row = panel_row(panel, column, a.n, a.gated);
                if (row < 0) continue;
                for (int64_t g = 0; g * shared < count; g++) {
                    const int64_t at = g * panel_outputs + column, source = row * row_groups + from / shared + g;
                    memcpy(header + at * 2, a.in.scales + source, 2);
                    uint8_t* zeros = header + block_depth / shared * panel_outputs * 2;
                    if (f.zero == Zero::integer) zeros[at] = static_cast<const uint8_t*>(a.in.zeros)[source];
                    if (f.zero == Zero::real) memcpy(zeros + at * 2, static_cast<const uint16_t*>(a.in.zeros) + source, 2);
                }
                for (int64_t sub = 0; two_level && sub < count / sub_depth; sub++) {
                    const int64_t source = (row * depth + from) / sub_depth + sub;
                    header[64 + sub / 2 * 32 + column] |= uint8_t(a.in.subscales[source] << sub % 2 * 4);
                    header[192 + sub / 2 * 64 + column * 2 + sub % 2] = a.in.minima[source];
                }
                for (int64_t k = 0; of_k(f.packing) && k < count; k += f.group) {
                    const int64_t source = (row * depth + from + k) / f.group, at = k_index(f, k, column);
                    header[k_scales_at(f) + at] = a.in.subscales[source];
                    if (f.zero == Zero::real) header[k_minima_at(f) + at] = a.in.minima[source];
                }
                const uint8_t* codes = a.in.codes + row * depth + from;
                for (int64_t k = 0; k < count; k++) {
                    const int64_t inner = k % tile_depth;
                    uint8_t* half = tiles + k / tile_depth * tile_bytes(f.packing) + column / 16 * (tile_bytes(f.packing) / 2);
                    uint8_t& byte = half[(eight_bits(f.packing) ? inner : inner % 32) / 4 * 64 + column % 16 * 4 + inner % 4];
                    byte = uint8_t(byte | (eight_bits(f.packing) ? codes[k] : codes[k] << (inner < 32 ? 0 : 4)));
                }
            }
        }
    }
}

void unpack(const UnpackArgs& a, int64_t begin, int64_t end) {
    const WeightFormat& f = a.format;
    for (int64_t r = begin; r < end; r++) {
        const int64_t half = a.gated ? a.n / 2 : a.n, i = a.ids[r] < half ? a.ids[r] : a.ids[r] - half;
        const int64_t panel = a.gated ? i / 16 : i / panel_outputs;
        const int64_t column = a.gated ? i % 16 + (a.ids[r] < half ? 0 : 16) : i % panel_outputs;
        const uint8_t* block = a.panels + panel * panel_bytes(f, a.k);
        for (int64_t k = 0; k < a.k; k++) {
            const uint8_t* header = block + k / block_depth * block_bytes(f);
            const PanelBlock b{f, header, header + header_bytes(f), column};
            const int64_t inner = k % block_depth, group = inner / scale_depth(f);
            const bool scaled = of_k(f.packing);  // d sc and dmin m are exact
            float value = float(b.integer(inner)) * (scaled ? b.scale(group) * float(b.k_scale(inner)) : b.scale(group));
            if (f.zero == Zero::real) value += scaled ? -(b.zero_real(group) * float(b.k_minimum(inner))) : b.zero_real(group);
            a.out[r * a.k + k] = value;
        }
    }
}
