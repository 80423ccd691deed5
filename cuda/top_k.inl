// The k largest of a row, in order: by many blocks as far as a list of sample_split.inl goes, else by one.

GK_KERNEL void top_k_choose_kernel(Split s, TopKArgs a) {
    gk::let_next_start(), gk::wait_for_previous();
    auto& place = *reinterpret_cast<ChoosePlace*>(gk::shared());
    SplitRow& space = space_of(s);
    const int64_t r = row_of(s);
    const float* x = a.x + r * a.dim;
    Piece piece = first_of_piece(s, a.x, a.dim);
    const float largest = space.largest;
    find_bin(space, a.k, 1.0f, place);
    list_candidates(space, piece, largest, true, 0.0f, 0.0f, place);
    if (!last_to_arrive(s, true, place.sums.bad) || sorted_candidates(space, place) > listed_most) return;
    if (gk::thread() == 0) space.chosen = 1;
    for (int64_t i = gk::thread(); i < a.k; i += gk::threads()) {
        const int64_t id = id_in(place.list[i]);
        a.values[r * a.k + i] = x[id] == x[id] ? x[id] : -infinity;
        a.ids[r * a.k + i] = int32_t(id);
    }
}

// Takes what belongs to the k largest, then sorts by merging: an element's place is its own in its run plus those of the
// other run that come before it. Scratch: two lists of (value, id).
// Where many blocks have been at it, rows they could not finish.
GK_KERNEL void top_k_kernel(TopKArgs a, int64_t first, const SplitRow* begun) {
    gk::let_next_start(), gk::wait_for_previous();
    auto& place = *reinterpret_cast<SamplePlace*>(gk::shared());
    const int64_t slot = first + gk::block();
    struct Pair {
        float value;
        int32_t id;
    };
    auto* list = reinterpret_cast<Pair*>(static_cast<char*>(a.scratch) + slot * scratch_bytes(a.dim));
    Pair* other = list + a.k;
    for (int64_t r = slot; r < a.rows; r += scratch_slots(a.rows)) {
        if (begun && begun[r].chosen) continue;
        const float* x = a.x + r * a.dim;
        uint32_t key = 0;
        int64_t id = a.dim;
        last_of(x, a.dim, uint64_t(a.k), [](int64_t) { return uint64_t(1); }, place, key, id);
        auto kept = [&](int64_t i) { return order_of(x[i]) > key || (order_of(x[i]) == key && i <= id); };
        const int64_t piece = (a.dim + gk::threads() - 1) / gk::threads(), from = gk::thread() * piece;
        const int64_t to = from + piece < a.dim ? from + piece : a.dim;
        uint64_t count = 0;
        for (int64_t i = from; i < to; i++) count += kept(i);
        uint64_t total;
        auto at = int64_t(block_before(count, place.warps, total));
        for (int64_t i = from; i < to; i++)
            if (kept(i)) list[at++] = {x[i] == x[i] ? x[i] : -infinity, int32_t(i)};
        gk::sync();
        Pair *in = list, *out = other;
        for (int64_t width = 1; width < a.k; width *= 2) {
            for (int64_t i = gk::thread(); i < a.k; i += gk::threads()) {
                const int64_t start = i / width % 2 ? i / width * width - width : i / width * width + width;  // of the other run
                int64_t low = start < a.k ? start : a.k, high = start + width < a.k ? start + width : a.k;
                const int64_t begin = low;
                while (low < high) {
                    const int64_t middle = (low + high) / 2;
                    if (before(in[middle].value, in[middle].id, in[i].value, in[i].id)) low = middle + 1;
                    else high = middle;
                }
                out[i / (2 * width) * (2 * width) + i % width + (low - begin)] = in[i];
            }
            gk::sync();
            Pair* swap = in;
            in = out;
            out = swap;
        }
        for (int64_t i = gk::thread(); i < a.k; i += gk::threads()) a.values[r * a.k + i] = in[i].value, a.ids[r * a.k + i] = in[i].id;
        gk::sync();
    }
}
