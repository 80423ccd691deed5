// A row of logits in pieces, a block each. Blocks leave what they found in the workspace; the last one of a row to arrive
// goes on with it. A kernel is one look at the logits:
//   sample_largest   the largest logit; with temperature 0 that is all
//   sample_bins      with filters: how many logits, and how much mass, so far below the largest
//   sample_choose    with filters: the candidates of the bins that count, sorted by one block: the token where all of them are
//                    few, else the last candidate that the filter keeps
//   sample_draw      masses of what is kept, piece by piece, and where the random number falls
// What must be sorted and is too much for that is one block's (draw_alone, top_k).

constexpr int split_threads = 256;
constexpr int64_t most_pieces = split_threads;
constexpr int choose_threads = 512;
constexpr int bin_count = 2048;           // the last one has all that is further down
constexpr float bins_a_logit = 64.0f;
constexpr int64_t listed_most = 1024;
constexpr int64_t rows_at_once = 512;

enum class Todo : int32_t { nothing, bins, choose_all, choose_bin, alone, draw };

struct SplitRow {
    uint64_t best[most_pieces], sum[most_pieces];
    uint64_t mass[bin_count], list[listed_most];
    uint32_t count[bin_count];
    uint32_t listed, last_key;
    int64_t last_id;
    uint64_t wanted;  // what the filter's weights are to reach, of choose_bin beyond the bins before it
    float largest;
    int32_t bin;
    Todo todo;
};
static_assert(rows_at_once * sizeof(SplitRow) <= workspace_bytes && rows_at_once <= workspace_counters);

// Rows first, first + stride, ... Grid: pieces x rows.
struct Split {
    SplitRow* rows;
    uint32_t* arrived;
    int64_t first, stride, piece;
};
// Logits of a block: few rows have as many blocks as there can be.
static constexpr int64_t split_piece(int64_t rows, int64_t dim) {
    const int64_t least = rows < 8 ? 1024 : 4096;
    return ((dim + most_pieces - 1) / most_pieces + least - 1) / least * least;
}
DEVICE SplitRow& space_of(const Split& s) { return s.rows[gk::block_y()]; }
DEVICE int64_t row_of(const Split& s) { return s.first + gk::block_y() * s.stride; }

// body(i, x[i]) for this block's piece of a row, four loads at a time.
template <class Body>
DEVICE void each_of_piece(const Split& s, const float* x, int64_t dim, Body body) {
    const int64_t from = gk::block() * s.piece, to = from + s.piece < dim ? from + s.piece : dim;
    for (int64_t i = from + gk::thread(); i < to; i += 4 * gk::threads()) {
        float values[4];
        GK_UNROLL
        for (int j = 0; j < 4; j++) values[j] = i + j * gk::threads() < to ? x[i + j * gk::threads()] : 0.0f;
        GK_UNROLL
        for (int j = 0; j < 4; j++)
            if (i + j * gk::threads() < to) body(i + j * gk::threads(), values[j]);
    }
}

// Whether this is the last block of its row: then it sees what the others have written, by load_fresh.
DEVICE bool last_to_arrive(const Split& s, uint32_t& place) {
    gk::fence();
    gk::sync();
    if (gk::thread() == 0) {
        place = gk::add_global(s.arrived + gk::block_y(), 1u) + 1 == uint32_t(gk::blocks());
        if (place) s.arrived[gk::block_y()] = 0;
    }
    gk::sync();
    gk::fence();
    return place != 0;
}

// How far below the largest: rounding keeps the order.
DEVICE int bin_of(float x, float largest) {
    if (x == largest) return 0;
    const float at = (largest - x) * bins_a_logit;
    return at < float(bin_count - 1) ? int(at) : bin_count - 1;  // NaN is last
}

// tokens: none where all rows go on; `next`: what with, `nothing` for argmax. nonfinite: as NonfiniteArgs' out, or null.
GK_KERNEL void sample_largest_kernel(Split s, const float* logits, int64_t dim, int32_t* tokens, int32_t* nonfinite, bool finite_only, Todo next) {
    gk::wait_for_previous();
    auto& place = *reinterpret_cast<SamplePlace*>(gk::shared());
    SplitRow& space = space_of(s);
    uint64_t best = 0, odd = 0, total;  // odd: those of no use in the high half, those not finite
    each_of_piece(s, logits + row_of(s) * dim, dim, [&](int64_t i, float x) {
        const uint64_t rank = rank_of(x, i);
        best = rank > best ? rank : best;
        odd += (uint64_t(!((finite_only ? abs(x) : x) < infinity)) << 32) + is_nan_or_inf(x);
    });
    gk::let_next_start();
    best = block_best(best, place.warps);
    block_before(odd, place.warps, total);
    if (gk::thread() == 0) space.best[gk::block()] = best, space.sum[gk::block()] = total;
    for (int64_t i = gk::block() * gk::threads() + gk::thread(); next == Todo::bins && i < bin_count; i += gk::blocks() * gk::threads())
        space.mass[i] = 0, space.count[i] = 0;
    if (!last_to_arrive(s, place.bad)) return;
    const bool mine = gk::thread() < gk::blocks();
    best = block_best(mine ? gk::load_fresh(space.best + gk::thread()) : 0, place.warps);
    block_before(mine ? gk::load_fresh(space.sum + gk::thread()) : 0, place.warps, total);
    if (gk::thread() != 0) return;
    const int64_t r = row_of(s);
    if (nonfinite) nonfinite[r] = int32_t(uint32_t(total));
    const int32_t token = total >> 32 ? -1 : order_in(best) == order_of(-infinity) ? -2 : int32_t(id_in(best));
    const bool done = tokens && (next == Todo::nothing || token < 0);
    if (done) tokens[r] = token;
    space.largest = of_order(order_in(best));
    space.todo = done ? Todo::nothing : next;
    space.listed = 0;
    space.last_key = 0;
    space.last_id = dim;
}

struct BinPlace {
    SamplePlace sums;
    uint64_t mass[bin_count];
    uint32_t count[bin_count];
};

// top_k: 0 is off; so is top_p from 1 on, of which scale is.
GK_KERNEL void sample_bins_kernel(Split s, const float* logits, int64_t dim, int64_t top_k, float top_p, float scale) {
    gk::wait_for_previous();
    SplitRow& space = space_of(s);
    if (space.todo != Todo::bins) return;
    auto& place = *reinterpret_cast<BinPlace*>(gk::shared());
    for (int i = gk::thread(); i < bin_count; i += gk::threads()) place.mass[i] = 0, place.count[i] = 0;
    gk::sync();
    const float largest = space.largest;
    const bool weighs = top_p < 1.0f;
    uint64_t rest = 0;
    uint32_t rest_count = 0;
    each_of_piece(s, logits + row_of(s) * dim, dim, [&](int64_t, float x) {
        const int bin = bin_of(x, largest);
        const uint64_t mass = weighs ? uint64_t(mass_of(x, largest, scale)) : 0;
        if (bin == bin_count - 1) {  // often most of them
            rest += mass, rest_count++;
            return;
        }
        gk::add_shared(place.count + bin, 1u);
        if (weighs) gk::add_shared(place.mass + bin, mass);
    });
    gk::let_next_start();
    if (rest_count) gk::add_shared(place.count + bin_count - 1, rest_count);
    if (rest) gk::add_shared(place.mass + bin_count - 1, rest);
    gk::sync();
    for (int i = gk::thread(); i < bin_count; i += gk::threads()) {
        if (place.count[i]) gk::add_global(space.count + i, place.count[i]);
        if (place.mass[i]) gk::add_global(space.mass + i, place.mass[i]);
    }
    if (!last_to_arrive(s, place.sums.bad)) return;
    // A thread has eight bins, one after the other.
    constexpr int each = bin_count / split_threads;
    uint64_t counts = 0, masses = 0, total = 0, all;
    for (int i = 0; i < each; i++) {
        counts += gk::load_fresh(space.count + gk::thread() * each + i);
        masses += gk::load_fresh(space.mass + gk::thread() * each + i);
    }
    const bool by_count = top_k > 0;
    uint64_t fewer = block_before(counts, place.sums.warps, all), above = block_before(masses, place.sums.warps, total);
    const uint64_t wanted = by_count ? uint64_t(top_k) : uint64_t(top_p_sum(top_p, int64_t(total)));
    if (by_count) above = fewer;
    if (above >= wanted || above + (by_count ? counts : masses) < wanted) return;
    for (int bin = gk::thread() * each;; bin++) {  // ends: the sum is in one of these
        const uint64_t count = gk::load_fresh(space.count + bin);
        const uint64_t weight = by_count ? count : gk::load_fresh(space.mass + bin);
        if (above + weight < wanted) {
            fewer += count, above += weight;
            continue;
        }
        const bool all_fit = int64_t(fewer + count) <= listed_most;
        const bool bin_fits = int64_t(count) <= listed_most && !(by_count && weighs);
        space.bin = bin;
        space.wanted = all_fit ? wanted : wanted - above;
        space.todo = all_fit ? Todo::choose_all : bin_fits ? Todo::choose_bin : Todo::alone;
        return;
    }
}

// Descending; what is beyond count up to the next power of two is zeros afterwards.
DEVICE void sort_list(uint64_t* list, int count) {
    int size = 2;
    while (size < count) size *= 2;
    for (int i = count + gk::thread(); i < size; i += gk::threads()) list[i] = 0;
    gk::sync();
    for (int run = 2; run <= size; run *= 2) {
        for (int apart = run / 2; apart > 0; apart /= 2) {
            for (int i = gk::thread(); i < size / 2; i += gk::threads()) {
                const int low = 2 * i - (i & (apart - 1)), high = low + apart;
                const uint64_t a = list[low], b = list[high];
                if ((a < b) == ((low & run) == 0)) list[low] = b, list[high] = a;
            }
            gk::sync();
        }
    }
}

struct ChoosePlace {
    SamplePlace sums;
    uint64_t list[listed_most];
};

// This block's candidates to the row's list; in the row's last block all of them, sorted. -> how many, -1 in other blocks.
DEVICE int gather_candidates(const Split& s, const float* x, int64_t dim, ChoosePlace& place) {
    SplitRow& space = space_of(s);
    const float largest = space.largest;
    const int bin = space.bin;
    const bool all = space.todo == Todo::choose_all;
    each_of_piece(s, x, dim, [&](int64_t i, float value) {
        const int own = bin_of(value, largest);
        if (own == bin || (all && own < bin)) space.list[gk::add_global(&space.listed, 1u)] = rank_of(value, i);
    });
    gk::let_next_start();
    if (!last_to_arrive(s, place.sums.bad)) return -1;
    const int count = int(gk::load_fresh(&space.listed));
    for (int i = gk::thread(); i < count; i += gk::threads()) place.list[i] = gk::load_fresh(space.list + i);
    gk::sync();
    sort_list(place.list, count);
    return count;
}

// The first place of [0, count) up to which weight(place) adds up to `wanted` or more; there is one.
template <class Weight>
DEVICE int reach(int count, uint64_t wanted, Weight weight, SamplePlace& place) {
    const int each = (count + gk::threads() - 1) / gk::threads(), from = gk::thread() * each, to = min(from + each, count);
    uint64_t sum = 0, total;
    for (int i = from; i < to; i++) sum += weight(i);
    uint64_t passed = block_before(sum, place.warps, total);
    if (passed < wanted && passed + sum >= wanted) {
        int i = from;
        while ((passed += weight(i)) < wanted) i++;
        place.found = i;
    }
    gk::sync();
    const int found = int(place.found);
    gk::sync();
    return found;
}
template <class Weight>
DEVICE uint64_t total_weight(int count, Weight weight, SamplePlace& place) {
    uint64_t sum = 0, total;
    for (int i = gk::thread(); i < count; i += gk::threads()) sum += weight(i);
    block_before(sum, place.warps, total);
    return total;
}

GK_KERNEL void sample_choose_kernel(Split s, SampleArgs a, float scale) {
    gk::wait_for_previous();
    auto& place = *reinterpret_cast<ChoosePlace*>(gk::shared());
    SplitRow& space = space_of(s);
    const int64_t r = row_of(s);
    const Todo todo = space.todo;
    const float largest = space.largest;
    if (todo == Todo::alone && gk::block() == 0) draw_alone(a, r, largest, scale, place.sums);
    if (todo != Todo::choose_all && todo != Todo::choose_bin) return;
    int count = gather_candidates(s, a.logits + r * a.dim, a.dim, place);
    if (count < 0) return;

    uint64_t* list = place.list;
    auto mass = [&](int i) { return uint64_t(mass_of(of_order(order_in(list[i])), largest, scale)); };
    const bool limited = a.top_k > 0 && a.top_k < a.dim;
    if (todo == Todo::choose_bin) {
        const int last = reach(count, space.wanted, [&](int i) { return limited ? uint64_t(1) : mass(i); }, place.sums);
        if (gk::thread() == 0) space.last_key = order_in(list[last]), space.last_id = id_in(list[last]), space.todo = Todo::draw;
        return;
    }
    if (limited && a.top_k < count) count = int(a.top_k);
    if (a.top_p < 1.0f) {
        const uint64_t wanted = limited ? uint64_t(top_p_sum(a.top_p, int64_t(total_weight(count, mass, place.sums)))) : space.wanted;
        count = reach(count, wanted, mass, place.sums) + 1;
    }
    const float least = a.min_p * mass_one;  // exact
    auto kept = [&](int i) { return float(mass(i)) >= least ? mass(i) : 0; };
    const uint64_t total = total_weight(count, kept, place.sums);
    const int64_t target = draw_target(random_bits(a.seed, a.sequences[r], a.positions[r]), int64_t(total));
    for (int i = gk::thread(); i < count; i += gk::threads())  // by id, kept in the high half the other way round
        list[i] = uint64_t(uint32_t(~id_in(list[i]))) << 32 | order_in(list[i]);
    gk::sync();
    sort_list(list, count);
    auto by_id = [&](int i) {
        const auto weight = uint64_t(mass_of(of_order(uint32_t(list[i])), largest, scale));
        return float(weight) >= least ? weight : 0;
    };
    const int found = reach(count, uint64_t(target) + 1, by_id, place.sums);
    if (gk::thread() == 0) {
        a.tokens[r] = int32_t(~order_in(list[found]));
        space.todo = Todo::nothing;
    }
}

GK_KERNEL void sample_draw_kernel(Split s, SampleArgs a, float scale) {
    gk::wait_for_previous();
    auto& place = *reinterpret_cast<SamplePlace*>(gk::shared());
    SplitRow& space = space_of(s);
    if (space.todo != Todo::draw) return;
    const int64_t r = row_of(s), last_id = space.last_id;
    const float* x = a.logits + r * a.dim;
    const float largest = space.largest, least = a.min_p * mass_one;  // exact
    const uint32_t last_key = space.last_key;
    auto kept = [&](int64_t i, float value) {
        const float mass = mass_of(value, largest, scale);
        const uint32_t order = order_of(value);
        return mass >= least && (order > last_key || (order == last_key && i <= last_id)) ? uint64_t(mass) : 0;
    };
    uint64_t sum = 0, total;
    each_of_piece(s, x, a.dim, [&](int64_t i, float value) { sum += kept(i, value); });
    gk::let_next_start();
    block_before(sum, place.warps, total);
    if (gk::thread() == 0) space.sum[gk::block()] = total;
    if (!last_to_arrive(s, place.bad)) return;
    sum = gk::thread() < gk::blocks() ? gk::load_fresh(space.sum + gk::thread()) : 0;
    uint64_t passed = block_before(sum, place.warps, total);
    const auto target = uint64_t(draw_target(random_bits(a.seed, a.sequences[r], a.positions[r]), int64_t(total)));
    if (passed <= target && passed + sum > target) place.found = gk::thread(), place.left = target - passed;
    gk::sync();
    // Of that piece each thread has some, one after the other.
    const uint64_t left = place.left;
    const int64_t each = s.piece / gk::threads(), from = place.found * s.piece + gk::thread() * each;
    const int64_t to = from + each < a.dim ? from + each : a.dim;
    sum = 0;
    for (int64_t i = from; i < to; i++) sum += kept(i, x[i]);
    passed = block_before(sum, place.warps, total);
    if (passed > left || passed + sum <= left) return;
    int64_t i = from;
    while ((passed += kept(i, x[i])) <= left) i++;
    a.tokens[r] = int32_t(i);
}

GK_KERNEL void top_k_choose_kernel(Split s, TopKArgs a) {
    gk::wait_for_previous();
    auto& place = *reinterpret_cast<ChoosePlace*>(gk::shared());
    if (space_of(s).todo != Todo::choose_all) return;
    const int64_t r = row_of(s);
    const float* x = a.x + r * a.dim;
    if (gather_candidates(s, x, a.dim, place) < 0) return;
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
    gk::wait_for_previous(), gk::let_next_start();
    auto& place = *reinterpret_cast<SamplePlace*>(gk::shared());
    const int64_t slot = first + gk::block();
    struct Pair {
        float value;
        int32_t id;
    };
    auto* list = reinterpret_cast<Pair*>(static_cast<char*>(a.scratch) + slot * scratch_bytes(a.dim));
    Pair* other = list + a.k;
    for (int64_t r = slot; r < a.rows; r += scratch_slots(a.rows)) {
        if (begun && begun[r].todo == Todo::choose_all) continue;
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
