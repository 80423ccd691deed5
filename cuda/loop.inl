// The last kernel of a step of the token loop, one block: tells the host what was drawn, and makes it what is fed next.

// Shared memory: the ids that stop, then how many rows end the loop. All of memory that is looked at is asked for at once.
constexpr int advance_threads_most = 1024;
GK_KERNEL void GK_BOUNDS(advance_threads_most, 1) advance_kernel(AdvanceArgs a) {
    gk::let_next_start(), gk::wait_for_previous();
    auto* stop_ids = reinterpret_cast<int32_t*>(gk::shared());
    auto* ends = reinterpret_cast<uint32_t*>(stop_ids + a.stop_room);
    struct Row {
        int32_t token, nonfinite, position;
        int64_t draw_position;
    };
    auto row = [&](int64_t r) { return Row{a.tokens[r], a.nonfinite[r], a.positions[r], a.draw_positions[r]}; };
    const bool stopped = a.state->stopped != 0;
    const int64_t step = a.state->steps + 1, live = a.state->live;
    Row first{};
    if (gk::thread() < a.rows) first = row(gk::thread());
    for (int i = gk::thread(); i < int(a.stop_room); i += gk::threads()) stop_ids[i] = reinterpret_cast<const int32_t*>(a.state + 1)[i];
    if (gk::thread() == 0) *ends = 0;
    gk::sync();
    if (stopped) return;
    auto* said = reinterpret_cast<volatile uint64_t*>(a.ring + ring_place(step, a.rows));
    for (int64_t r = gk::thread(); r < live; r += gk::threads()) {
        const Row now = r == gk::thread() ? first : row(r);
        bool stop = now.token < 0 || now.nonfinite != 0;
        for (int i = 0; i < int(a.stop_room); i++) stop |= now.token == stop_ids[i];
        said[r] = ring_word(step, now.token, now.nonfinite != 0);
        if (stop) gk::add_shared(ends, 1u);
    }
    gk::sync();
    const bool stop = *ends != 0;
    for (int64_t r = gk::thread(); r < live && !stop; r += gk::threads()) {
        const Row now = r == gk::thread() ? first : row(r);
        a.token_ids[r] = now.token;
        a.positions[r] = now.position + 1;
        a.draw_positions[r] = now.draw_position + 1;
    }
    if (gk::thread() == 0) a.state->steps = step, a.state->stopped = stop;
}

void advance(const AdvanceArgs& a) {
    const int64_t threads = std::min<int64_t>(round_up(a.rows, 32), advance_threads_most);
    GK_LAUNCH(advance_kernel, 1, 1, int(threads), int((a.stop_room + 1) * sizeof(uint32_t)), a);
}
