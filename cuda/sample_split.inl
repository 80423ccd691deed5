// A row of logits in pieces, a block each; what blocks find lies in the workspace. A kernel is one look at the logits:
//   sample_largest   each piece's largest logit; where that is all, the row's last block to arrive has the token
//   sample_bins      with filters: how many logits, or how much mass, so far below the largest
//   sample_choose    with filters: every block finds the bin in which the filter ends; its candidates are listed, and masses of what
//                    lies above are added up by piece. The row's last block sorts the list, which shows where the filter
//                    ends, adds what it keeps to the masses of their pieces, and draws: from a piece, then from its logits
//   sample_draw      without filters: masses piece by piece, and the draw
// More than a list has room for is one block's (draw_alone, top_k).

constexpr int split_threads = sample_threads;
constexpr int64_t most_pieces = split_threads;
constexpr int bin_count = 2048;  // the last one has all that is further down
constexpr int thread_bins = bin_count / split_threads;
constexpr float bins_a_logit = 64.0f;
constexpr int64_t listed_most = 1024;
constexpr int64_t rows_at_once = 512;

struct SplitRow {
    uint64_t best[most_pieces], sum[most_pieces];
    uint64_t weight[bin_count], list[listed_most];
    uint32_t listed;
    int32_t going;  // whether there is something to choose from
    int32_t chosen;  // by top_k_choose_kernel
    float largest;
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

// Four logits of a block's piece a thread, and the next ones; the first are asked for ahead of other things.
struct Piece {
    const float* x;  // the row
    int at, end;
    Four four;
};
DEVICE int count_of(const Piece& p) { return min_of(p.end - p.at, 4); }
DEVICE void load_piece(Piece& p) {
    if (p.at < p.end) p.four = load_four(p.x + p.at, count_of(p));
}
DEVICE Piece first_of_piece(const Split& s, const float* logits, int64_t dim) {
    Piece p{logits + row_of(s) * dim, int(gk::block() * s.piece) + gk::thread() * 4, int(least_of((gk::block() + 1) * s.piece, dim)), {}};
    load_piece(p);
    return p;
}
// body(id of the first, four, how many).
template <class Body>
DEVICE void each_of_piece(Piece& p, Body body) {
    GK_ROLLED
    while (p.at < p.end) {
        body(p.at, p.four, count_of(p));
        p.at += 4 * split_threads;
        load_piece(p);
    }
}

// Whether this is the last block of its row: then it sees what the others have written, by load_fresh. `all`: what all threads
// have written, else thread 0.
DEVICE bool last_to_arrive(const Split& s, bool all, uint32_t& place) {
    if (all) gk::sync();
    if (gk::thread() == 0) {
        gk::fence();
        place = gk::add_global(s.arrived + gk::block_y(), 1u) + 1 == uint32_t(gk::blocks());
        if (place) s.arrived[gk::block_y()] = 0;
    }
    gk::sync();
    if (place) gk::fence();
    return place != 0;
}

// How far below the largest: rounding keeps the order. A NaN is -infinity.
DEVICE int bin_of(float x, float largest) {
    if (x == largest || (x != x && largest == -infinity)) return 0;
    const float at = (largest - x) * bins_a_logit;
    return at < float(bin_count - 1) ? int(at) : bin_count - 1;
}

struct LargestPlace {
    uint64_t best[split_threads / 32];
    uint32_t odd[split_threads / 32], not_finite[split_threads / 32];
    uint32_t last;
};
// A row's, or a piece's, largest rank; how many logits make it undrawable, and how many are not finite. To all threads.
struct Found {
    uint64_t best;
    uint32_t odd, not_finite;
};
DEVICE Found found_together(Found f, LargestPlace& place) {
    const uint32_t order = gk::max_together(order_in(f.best)), id = gk::max_together(order_in(f.best) == order ? uint32_t(f.best) : 0u);
    const uint32_t odd = gk::add_together(f.odd), not_finite = gk::add_together(f.not_finite);
    gk::sync();
    if (gk::lane() == 0) {
        const int warp = gk::thread() / 32;
        place.best[warp] = uint64_t(order) << 32 | id, place.odd[warp] = odd, place.not_finite[warp] = not_finite;
    }
    gk::sync();
    f = {0, 0, 0};
    GK_UNROLL
    for (int w = 0; w < split_threads / 32; w++) {
        f.best = place.best[w] > f.best ? place.best[w] : f.best;
        f.odd += place.odd[w], f.not_finite += place.not_finite[w];
    }
    return f;
}
// Of a row, from what its pieces' blocks have written.
DEVICE Found found_in_row(const SplitRow& space, LargestPlace& place) {
    const bool mine = gk::thread() < gk::blocks();
    const uint64_t best = mine ? gk::load_fresh(space.best + gk::thread()) : 0, sum = mine ? gk::load_fresh(space.sum + gk::thread()) : 0;
    return found_together({best, uint32_t(sum >> 32), uint32_t(sum)}, place);
}
// -1 where nothing can be drawn, -2 where all are -infinity; else what has the largest logit.
DEVICE int32_t token_of(const Found& f) { return f.odd ? -1 : order_in(f.best) == order_of(-infinity) ? -2 : int32_t(id_in(f.best)); }

// alone: the row's last block gives tokens and nonfinite (as NonfiniteArgs' out), either of them or both; else who goes on does.
GK_KERNEL void sample_largest_kernel(Split s, const float* logits, int64_t dim, int32_t* tokens, int32_t* nonfinite, bool finite_only, bool alone) {
    gk::let_next_start(), gk::wait_for_previous();
    auto& place = *reinterpret_cast<LargestPlace*>(gk::shared());
    SplitRow& space = space_of(s);
    Found found{};
    Piece piece = first_of_piece(s, logits, dim);
    each_of_piece(piece, [&](int i, const Four& four, int count) {
        GK_UNROLL
        for (int j = 0; j < 4; j++) {
            if (j >= count) continue;
            const float x = four.x[j];
            const uint64_t rank = rank_of(x, i + j);
            found.best = rank > found.best ? rank : found.best;
            found.odd += !((finite_only ? abs(x) : x) < infinity);
            found.not_finite += is_nan_or_inf(x);
        }
    });
    found = found_together(found, place);
    if (gk::thread() == 0) space.best[gk::block()] = found.best, space.sum[gk::block()] = uint64_t(found.odd) << 32 | found.not_finite;
    if (!alone) {
        for (int i = int(gk::block()) * split_threads + gk::thread(); i < bin_count; i += int(gk::blocks()) * split_threads) space.weight[i] = 0;
        if (gk::block() == 0 && gk::thread() == 0) space.listed = 0, space.chosen = 0;
        return;
    }
    if (!last_to_arrive(s, false, place.last)) return;
    found = found_in_row(space, place);
    if (gk::thread() != 0) return;
    if (tokens) tokens[row_of(s)] = token_of(found);
    if (nonfinite) nonfinite[row_of(s)] = int32_t(found.not_finite);
}
// What follows that kernel begins so. -> whether there is something to draw; block 0 says what is known without. tokens: none where
// all rows go on.
DEVICE bool goes_on(const Split& s, SplitRow& space, const Found& found, int32_t* tokens, int32_t* nonfinite) {
    const int32_t token = token_of(found);
    const bool going = !tokens || token >= 0;
    if (gk::block() == 0 && gk::thread() == 0) {
        if (nonfinite) nonfinite[row_of(s)] = int32_t(found.not_finite);
        if (!going) tokens[row_of(s)] = token;
        space.going = going;
        space.largest = of_order(order_in(found.best));
    }
    return going;
}

struct BinPlace {
    LargestPlace sums;
    uint64_t weight[bin_count];
};

// The weights of a filter: with top_k (0 is off) all weigh 1, else by mass, of which `scale` is.
GK_KERNEL void sample_bins_kernel(Split s, const float* logits, int64_t dim, int32_t* tokens, int32_t* nonfinite, bool by_count, float scale) {
    gk::let_next_start();
    auto& place = *reinterpret_cast<BinPlace*>(gk::shared());
    for (int i = gk::thread(); i < bin_count; i += split_threads) place.weight[i] = 0;
    gk::wait_for_previous();
    SplitRow& space = space_of(s);
    Piece piece = first_of_piece(s, logits, dim);
    const Found found = found_in_row(space, place.sums);  // has barriers
    const float largest = of_order(order_in(found.best));
    if (!goes_on(s, space, found, tokens, nonfinite)) return;
    uint64_t rest = 0;
    each_of_piece(piece, [&](int, const Four& four, int count) {
        GK_UNROLL
        for (int j = 0; j < 4; j++) {
            if (j >= count) continue;
            const int bin = bin_of(four.x[j], largest);
            const uint64_t weight = by_count ? 1 : uint64_t(mass_of(four.x[j], largest, scale));
            if (bin == bin_count - 1) rest += weight;
            else if (weight) gk::add_shared(place.weight + bin, weight);
        }
    });
    if (rest) gk::add_shared(place.weight + bin_count - 1, rest);
    gk::sync();
    for (int i = gk::thread(); i < bin_count; i += split_threads)
        if (place.weight[i]) gk::add_global(space.weight + i, place.weight[i]);
}

struct ChoosePlace {
    SamplePlace sums;
    uint64_t list[listed_most], piece[most_pieces];
    uint64_t wanted;  // what the list's weights are to reach beyond the bins above
    int32_t bin;
};

// The bin in which the row's weights reach what the filter wants. A thread has eight bins, one after the other.
DEVICE void find_bin(const SplitRow& space, int64_t top_k, float top_p, ChoosePlace& place) {
    uint64_t weight[thread_bins], sum = 0, total;
    GK_UNROLL
    for (int i = 0; i < thread_bins; i++) weight[i] = gk::load_fresh(space.weight + gk::thread() * thread_bins + i);
    GK_UNROLL
    for (int i = 0; i < thread_bins; i++) sum += weight[i];
    uint64_t above = block_before(sum, place.sums.warps, total);
    const uint64_t wanted = top_k > 0 ? uint64_t(top_k) : uint64_t(top_p_sum(top_p, int64_t(total)));
    if (above < wanted && above + sum >= wanted) {
        int bin = gk::thread() * thread_bins;
        GK_UNROLL
        for (int i = 0; i < thread_bins - 1; i++) {
            const bool further = above + weight[i] < wanted && bin == gk::thread() * thread_bins + i;
            if (further) above += weight[i], bin++;
        }
        place.bin = bin, place.wanted = wanted - above;
    }
    gk::sync();
}

// Descending; what is beyond count up to the next power of two is zeros afterwards. Pairs that are at most 32 apart stay in a warp.
DEVICE void sort_list(uint64_t* list, int count) {
    int size = 2;
    while (size < count) size *= 2;
    for (int i = count + gk::thread(); i < size; i += gk::threads()) list[i] = 0;
    gk::sync();
    GK_ROLLED
    for (int run = 2; run <= size; run *= 2) {
        GK_ROLLED
        for (int apart = run / 2; apart > 0; apart /= 2) {
            GK_ROLLED
            for (int i = gk::thread(); i < size / 2; i += gk::threads()) {
                const int low = 2 * i - (i & (apart - 1)), high = low + apart;
                const uint64_t a = list[low], b = list[high];
                if ((a < b) == ((low & run) == 0)) list[low] = b, list[high] = a;
            }
            if (apart > 32 || (apart == 1 && run >= 64)) gk::sync();
            else gk::sync_warp();
        }
    }
    gk::sync();
}

// This block's candidates to the row's list: those of a bin, with `all` of those above as well. -> the masses of this block's that lie
// above and are not listed, and not below `least`.
DEVICE uint64_t list_candidates(SplitRow& space, Piece& piece, float largest, bool all, float scale, float least, ChoosePlace& place) {
    const int bin = place.bin;
    uint64_t above = 0, total;
    each_of_piece(piece, [&](int i, const Four& four, int count) {
        bool listed[4];
        uint32_t own = 0;
        GK_UNROLL
        for (int j = 0; j < 4; j++) {
            const int at = j < count ? bin_of(four.x[j], largest) : bin_count;
            listed[j] = at == bin || (all && at < bin);
            own += listed[j];
            if (!all && at < bin) {
                const float mass = mass_of(four.x[j], largest, scale);
                above += mass >= least ? uint64_t(mass) : 0;
            }
        }
        if (own == 0) return;
        uint32_t to = gk::add_global(&space.listed, own);
        GK_UNROLL
        for (int j = 0; j < 4; j++) {
            if (!listed[j]) continue;
            if (to < listed_most) space.list[to] = rank_of(four.x[j], i + j);
            to++;
        }
    });
    if (all) return 0;
    block_before(above, place.sums.warps, total);
    return total;
}
// In the row's last block: the list, sorted. -> how many, more than listed_most where there is no list.
DEVICE int sorted_candidates(SplitRow& space, ChoosePlace& place) {
    constexpr int each = int(listed_most) / split_threads;
    uint64_t own[each];  // asked for ahead of knowing how many there are
    const int count = int(gk::load_fresh(&space.listed));
    GK_UNROLL
    for (int j = 0; j < each; j++) own[j] = gk::load_fresh(space.list + gk::thread() + j * split_threads);
    if (count > listed_most) return count;
    GK_UNROLL
    for (int j = 0; j < each; j++)
        if (gk::thread() + j * split_threads < count) place.list[gk::thread() + j * split_threads] = own[j];
    sort_list(place.list, count);
    return count;
}

// The first place of [0, count) up to which weight(place) adds up to `wanted` or more; there is one.
template <class Weight>
DEVICE int reach(int count, uint64_t wanted, Weight weight, SamplePlace& place) {
    const int each = (count + split_threads - 1) / split_threads, from = gk::thread() * each, to = min_of(from + each, count);
    uint64_t sum = 0, total;
    GK_ROLLED
    for (int i = from; i < to; i++) sum += weight(i);
    uint64_t passed = block_before(sum, place.warps, total);
    if (passed < wanted && passed + sum >= wanted) {
        int i = from;
        GK_ROLLED
        while ((passed += weight(i)) < wanted) i++;
        place.found = i;
    }
    gk::sync();
    return int(place.found);
}

// The last steps of a draw, in a row's last block: `sum` is what is kept in this thread's piece, kept(id, logit) the mass of one.
template <class Kept>
DEVICE void draw_from_pieces(const Split& s, const SampleArgs& a, uint64_t random, uint64_t sum, Kept kept, SamplePlace& place) {
    const int64_t r = row_of(s);
    const float* x = a.logits + r * a.dim;
    uint64_t total, passed = block_before(sum, place.warps, total);
    const auto target = uint64_t(draw_target(random, int64_t(total)));
    if (passed <= target && passed + sum > target) place.found = gk::thread(), place.left = target - passed;
    gk::sync();
    // Of that piece each thread has some, one after the other.
    const uint64_t left = place.left;
    const int each = int(s.piece) / split_threads, from = int(place.found * s.piece) + gk::thread() * each;
    const int to = int(least_of(from + each, a.dim));
    sum = 0;
    GK_ROLLED
    for (int i = from; i < to; i += 4) {
        const Four four = load_four(x + i, to - i < 4 ? to - i : 4);
        GK_UNROLL
        for (int j = 0; j < 4; j++) sum += i + j < to ? kept(i + j, four.x[j]) : 0;
    }
    passed = block_before(sum, place.warps, total);
    if (passed > left || passed + sum <= left) return;
    int i = from;
    GK_ROLLED
    while ((passed += kept(i, x[i])) <= left) i++;
    a.tokens[r] = i;
}

GK_KERNEL void sample_choose_kernel(Split s, SampleArgs a, float scale) {
    gk::let_next_start(), gk::wait_for_previous();
    auto& place = *reinterpret_cast<ChoosePlace*>(gk::shared());
    SplitRow& space = space_of(s);
    // All that is known where it lies is asked for at once.
    Piece piece = first_of_piece(s, a.logits, a.dim);
    const int64_t r = row_of(s);
    const bool going = space.going;
    const float largest = space.largest, least = a.min_p * mass_one;  // exact
    const uint64_t random = random_bits(a.seed, a.sequences[r], a.positions[r]);
    const bool limited = a.top_k > 0 && a.top_k < a.dim, weighs = a.top_p < 1.0f, both = limited && weighs;
    find_bin(space, limited ? a.top_k : 0, a.top_p, place);
    if (!going) return;
    const uint64_t above = list_candidates(space, piece, largest, both, scale, least, place);
    if (gk::thread() == 0) space.sum[gk::block()] = above;
    if (!last_to_arrive(s, true, place.sums.bad)) return;

    const uint64_t unlisted = gk::thread() < gk::blocks() ? gk::load_fresh(space.sum + gk::thread()) : 0;
    int count = sorted_candidates(space, place);
    if (count > listed_most) return draw_alone(a, r, largest, scale, place.sums);
    const uint64_t* list = place.list;
    auto mass = [&](int i) { return uint64_t(mass_of(of_order(order_in(list[i])), largest, scale)); };
    uint64_t wanted = place.wanted;
    if (both) {  // of those that top_k leaves the smallest set that reaches top_p
        uint64_t sum = 0, total;
        count = min_of(count, int(a.top_k));
        for (int i = gk::thread(); i < count; i += split_threads) sum += mass(i);
        block_before(sum, place.sums.warps, total);
        wanted = uint64_t(top_p_sum(a.top_p, int64_t(total)));
    }
    count = limited && !weighs ? int(wanted) : reach(count, wanted, mass, place.sums) + 1;
    place.piece[gk::thread()] = unlisted;
    gk::sync();
    for (int i = gk::thread(); i < count; i += split_threads) {
        const uint64_t own = mass(i);
        if (float(own) >= least) gk::add_shared(place.piece + uint32_t(id_in(list[i])) / uint32_t(s.piece), own);
    }
    gk::sync();
    const uint64_t last = list[count - 1];
    auto kept = [&](int i, float x) {
        const float own = mass_of(x, largest, scale);
        return own >= least && rank_of(x, i) >= last ? uint64_t(own) : 0;
    };
    draw_from_pieces(s, a, random, place.piece[gk::thread()], kept, place.sums);
}

struct DrawPlace {
    LargestPlace largest;
    SamplePlace sums;
};
GK_KERNEL void sample_draw_kernel(Split s, SampleArgs a, float scale) {
    gk::let_next_start(), gk::wait_for_previous();
    auto& place = *reinterpret_cast<DrawPlace*>(gk::shared());
    SplitRow& space = space_of(s);
    const int64_t r = row_of(s);
    Piece piece = first_of_piece(s, a.logits, a.dim);
    const uint64_t random = random_bits(a.seed, a.sequences[r], a.positions[r]);
    const Found found = found_in_row(space, place.largest);
    if (!goes_on(s, space, found, a.tokens, a.nonfinite)) return;
    const float largest = of_order(order_in(found.best)), least = a.min_p * mass_one;  // exact
    auto kept = [&](int, float x) {
        const float own = mass_of(x, largest, scale);
        return own >= least ? uint64_t(own) : 0;
    };
    uint64_t sum = 0, total;
    each_of_piece(piece, [&](int i, const Four& four, int count) {
        GK_UNROLL
        for (int j = 0; j < 4; j++) sum += j < count ? kept(i + j, four.x[j]) : 0;
    });
    block_before(sum, place.sums.warps, total);
    gk::sync();
    if (gk::thread() == 0) space.weight[gk::block()] = total;  // not where other blocks still look
    if (!last_to_arrive(s, false, place.sums.bad)) return;
    draw_from_pieces(s, a, random, gk::thread() < gk::blocks() ? gk::load_fresh(space.weight + gk::thread()) : 0, kept, place.sums);
}
