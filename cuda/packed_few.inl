// The kernel of packed_few_plan.inl.

// Adds a list of terms of an output and a row's x, in order.
template <int rows>
DEVICE float few_add(float acc, const float* terms, int row, int count, const float* x_scales, int shift) {
    constexpr int stride = few_term_floats(rows), at_once = 8;
    auto add = [&](auto many, int from) {
        float value[many.value], scale[many.value];
        GK_UNROLL
        for (int i = 0; i < many.value; i++) {
            if (rows == 1) {
                const Words2 pair = reinterpret_cast<const Words2*>(terms + i * stride)[gk::lane()];
                value[i] = from_bits(pair.x[0]), scale[i] = from_bits(pair.x[1]);
            } else {
                value[i] = terms[i * stride + row * few_term_row(rows) + gk::lane()];
                scale[i] = terms[i * stride + rows * few_term_row(rows) + gk::lane()] * x_scales[(from + i) >> shift];
            }
        }
        GK_UNROLL
        for (int i = 0; i < many.value; i++) acc = gk::fma(value[i], scale[i], acc);
        terms += many.value * stride;
    };
    int from = 0;
    GK_ROLLED
    for (; from + at_once <= count; from += at_once) add(std::integral_constant<int, at_once>(), from);
    GK_ROLLED
    for (; from < count; from++) add(std::integral_constant<int, 1>(), from);
    return acc;
}

// Grid: p.slots of the panels [begin, end) at once, the tiles of rows of one beside each other; 32 p.warps threads; shared memory
// p.bytes.
template <Packing packing, bool by16, int rows>
GK_KERNEL void GK_BOUNDS(few_warps(rows, by16) * 32, few_bound(rows, by16))
packed_few_kernel(PackedLinearArgs a, FewPlan p, FewSource source, int64_t begin, int64_t end) {
    gk::let_next_start();
    const WeightFormat& f = a.format;
    const int warp = gk::thread() / 32, lane = gk::lane();
    const int slot = int(gk::block()) / p.row_tiles, panels = int(end - begin);
    int row0 = (int(gk::block()) - slot * p.row_tiles) * rows, last = int(a.rows) - 1;  // of all rows, or of all places
    const uint8_t* weight = a.weight + begin * p.panel_bytes;
    const float* bias = a.bias;
    char* shared = gk::shared();
    char* ring = shared + p.ring_at + warp * p.stages * p.slot;
    auto* barriers = reinterpret_cast<uint64_t*>(shared + p.barriers_at) + warp * few_stages_most;
    GK_ROLLED
    for (int i = 0; i < p.stages; i++) gk::copy_barrier(barriers + i);
    gk::sync_warp();
    int copied_panel = warp < p.cut && warp < p.blocks ? slot : panels, copied_block = warp;
    auto copy_next = [&](int to) {
        if (copied_panel >= panels) return;
        const int bytes = copied_block + 1 < p.blocks ? p.slot : p.last;
        const uint8_t* from = weight + copied_panel * p.panel_bytes + int64_t(copied_block) * p.slot;
        gk::copy_bulk(ring + to * p.slot, from, bytes, barriers + to);
        copied_block += p.cut;
        if (copied_block >= p.blocks) copied_block = warp, copied_panel += p.slots;
    };
    auto fill = [&] {
        GK_ROLLED
        for (int i = 0; i < p.stages; i++) copy_next(i);
    };
    if (!a.region) fill();
    if (rows <= few_normed_most && source.norm.x)
        for (int at = gk::thread() * 32; at < int(source.norm.dim); at += p.warps * 32 * 32) gk::fetch(source.norm.weight + at);
    gk::wait_for_previous();
    if (a.region) {  // which weights, only the kernel before knows
        if (row0 >= a.region->rows) return;
        const int64_t all = a.gated ? (a.n / 2 + 15) / 16 : (a.n + panel_outputs - 1) / panel_outputs;
        row0 += a.region->first, last = a.region->first + a.region->rows - 1;
        weight += a.region->expert * all * p.panel_bytes;
        if (bias) bias += a.region->expert * a.n;
        fill();
    }
    if (source.rounding.x) few_make<rows>(source, p, row0, last, shared, slot == 0);
    else few_load<rows>(a, p, row0, last, shared);
    gk::sync();

    const int n = int(a.gated ? a.n / 2 : a.n);
    int stage = 0, parity = 0, buffer = 0, turn = warp;
    GK_ROLLED
    for (int panel = slot; panel < panels; panel += p.slots, turn = turn > 0 ? turn - 1 : p.warps - 1) {
        const int row = row0 + turn, column = a.gated ? lane % 16 : lane;  // of the warp that adds a row's terms: another one each time
        const bool adds = turn < rows && row <= last;
        const int i = (int(begin) + panel) * (a.gated ? 16 : int(panel_outputs)) + column;
        const bool writes = adds && i < n;
        auto* more = reinterpret_cast<float*>(shared + p.more_at) + warp * 64 + lane;  // the bias and the residual, asked for in good time
        if (bias && writes) gk::copy_async_word(more, bias + i + (lane != column ? n : 0));
        if (a.residual && writes) gk::copy_async_word(more + 32, a.residual + row * a.out_stride + i);
        gk::copy_commit();
        float acc = 0.0f;
        GK_ROLLED
        for (int round = 0; round < p.rounds; round++) {
            auto* terms = reinterpret_cast<float*>(shared + p.terms_at + buffer * p.buffer);
            const int first = round * p.depth * p.cut, end_of = warp < p.cut ? min_of(p.depth * p.cut, p.blocks - first) : 0;
            GK_ROLLED
            for (int d = warp; d < end_of; d += p.cut) {
                const int b = first + d;
                gk::copy_bulk_wait(barriers + stage, parity);
                const auto* sums = reinterpret_cast<const int16_t*>(shared + p.sums_at) + b * p.sums;
                const auto* scales = reinterpret_cast<const float*>(shared + p.scales_at) + b;
                const FewRows x{shared + b * int(block_depth), sums, scales, p.x_stride, p.blocks * p.sums};
                few_block<packing, by16, rows>(f, p, ring + stage * p.slot, x, terms + d * p.terms * few_term_floats(rows));
                gk::sync_warp();
                copy_next(stage);
                if (++stage == p.stages) stage = 0, parity ^= 1;
            }
            gk::sync();
            if (adds) {
                const int blocks = min_of(p.depth * p.cut, p.blocks - first), less = round + 1 < p.rounds ? 0 : p.terms - p.last_terms;
                const auto* x_scales = reinterpret_cast<const float*>(shared + p.scales_at) + turn * p.blocks + first;
                acc = few_add<rows>(acc, terms, turn, blocks * p.terms - less, x_scales, p.term_shift);
            }
            if (p.buffers == 1) gk::sync();
            else buffer ^= 1;
        }
        gk::copy_wait<0>();
        if (bias && writes) acc += *more;
        float* out = a.out + row * a.out_stride + i;
        if (a.gated) {
            const float up = gk::shuffle_xor(acc, 16);
            if (writes && lane < 16) with_kind(a.kind, [&](auto kind) { *out = gate<decltype(kind)::value>(acc, up); });
        } else if (writes) {
            *out = a.residual ? acc + more[32] : acc;
        }
    }
}
