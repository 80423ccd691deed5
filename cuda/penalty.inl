// What was said before: penalties by a table of each row, and the table's next token.

// A thread an entry, whose logit no other one touches. Grid: rows x pieces of row_threads entries.
GK_KERNEL void penalty_kernel(PenaltyArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block(), i = gk::block_y() * row_threads + gk::thread();
    if (i >= a.history.lengths[r]) return;
    const int32_t* entry = a.history.entries + r * 3 * a.history.capacity + i;
    const int32_t id = entry[0], seen = entry[a.history.capacity], generated = entry[2 * a.history.capacity];
    if (id < 0 || id >= a.dim) return;
    float& logit = a.logits[r * a.dim + id];
    logit = penalized(a, logit, seen, generated);
}

// A block a row. Each thread looks at eight entries at a time, all asked for at once, and changes the one whose token comes or goes;
// where none has the token that comes, the first thread adds it.
constexpr int remember_entries = 8;
GK_KERNEL void remember_kernel(RememberArgs a, int64_t first) {
    gk::let_next_start(), gk::wait_for_previous();
    const int64_t r = first + gk::block(), capacity = a.history.capacity;
    int32_t *ids = a.history.entries + r * 3 * capacity, *seen = ids + capacity, *generated = seen + capacity;
    auto* known = reinterpret_cast<int*>(gk::shared());
    const int32_t token = a.tokens[r], next = a.window > 0 ? a.next[r] : 0;
    const int length = a.history.lengths[r];
    if (token < 0) return;
    const int32_t left = a.window > 0 ? a.recent[r * a.window + next] : -1, gone = left < 0 ? -1 : left >> 1;
    if (gk::thread() == 0) *known = 0;
    gk::sync();
    for (int begin = gk::thread(); begin < length; begin += remember_entries * row_threads) {
        int32_t id[remember_entries];
        GK_UNROLL
        for (int j = 0; j < remember_entries; j++) {
            const int i = begin + j * row_threads;
            id[j] = i < length ? ids[i] : -1;
        }
        GK_UNROLL
        for (int j = 0; j < remember_entries; j++) {
            const int i = begin + j * row_threads, comes = id[j] == token, goes = id[j] >= 0 && id[j] == gone;
            if (!comes && !goes) continue;
            seen[i] += comes - goes;
            generated[i] += comes - (goes & left);
            if (comes) *known = 1;
        }
    }
    gk::sync();
    if (gk::thread() != 0) return;
    if (!*known && length < capacity) {
        ids[length] = token, seen[length] = generated[length] = 1;
        a.history.lengths[r] = length + 1;
    }
    if (a.window == 0) return;
    a.recent[r * a.window + next] = recent_word(token);
    a.next[r] = next + 1 < a.window ? next + 1 : 0;
}
