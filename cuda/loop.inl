// The last kernel of a step of the token loop, one block: tells the host what was drawn, and makes it what is fed next.

GK_KERNEL void advance_kernel(AdvanceArgs a) {
    gk::wait_for_previous();
    gk::let_next_start();
    auto* ends = reinterpret_cast<uint32_t*>(gk::shared());
    const bool stopped = a.state->stopped != 0;
    const int64_t step = a.state->steps + 1;
    if (gk::thread() == 0) *ends = 0;
    gk::sync();
    if (stopped) return;
    char* place = a.ring + ring_place(step, a.rows);
    auto* said = reinterpret_cast<int32_t*>(place + 8);
    for (int64_t r = gk::thread(); r < a.rows; r += gk::threads()) {
        const int32_t token = a.tokens[r], nonfinite = a.nonfinite[r];
        bool stop = token < 0 || nonfinite != 0;
        for (int32_t i = 0; i < a.state->stops; i++) stop = stop || token == a.state->stop_ids[i];
        if (stop) gk::add_shared(ends, 1u);
        said[r] = token;
        said[a.rows + r] = nonfinite;
    }
    gk::fence_system();
    gk::sync();
    const bool stop = *ends != 0;
    for (int64_t r = gk::thread(); r < a.rows && !stop; r += gk::threads()) {
        a.token_ids[r] = a.tokens[r];
        a.positions[r]++;
        a.draw_positions[r]++;
    }
    if (gk::thread() == 0) {
        a.state->steps = step;
        a.state->stopped = stop;
        *reinterpret_cast<volatile int64_t*>(place) = step;
    }
}

void advance(const AdvanceArgs& a) { GK_LAUNCH(advance_kernel, 1, 1, a.rows < 32 ? 32 : row_threads, int(sizeof(uint32_t)), a); }
