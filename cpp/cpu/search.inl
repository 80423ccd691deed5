// Weights to codes by search: scales, minima and zeros that make the sum of a_j (w_j - what its code stands for)^2 small.
// Written once for every tier and the reference, where a vector is one float: lanes are rows, sums run down the columns
// of a block, so all make the same bits. Scales and real zeros are rounded to their type before codes are chosen.

// h: the importance of an input. Without any, a = 1; with all alike, large weights count more than small ones.
INLINE vec importance_of(vec h, vec mean_square, vec w) { return h * sqrt(mean_square + w * w); }

// A block of up to `lanes` rows, column by column, and the importance of each weight.
struct Columns {
    alignas(64) float w[block_depth * lanes];
    alignas(64) float a[block_depth * lanes];
};

// Over columns: t = w * inverse + shift, q = t rounded within [low, high], r = t - q.
struct Sums {
    vec r, rr, q, qq, rq;  // of a times these
};

template <bool weighted>
INLINE Sums sums_of(const Columns& c, int64_t from, int64_t count, vec inverse, vec shift, vec low, vec high) {
    Sums s{zero(), zero(), zero(), zero(), zero()};
    for (int64_t i = from * lanes; i < (from + count) * lanes; i += lanes) {
        const vec t = fma(load(c.w + i), inverse, shift), q = min(max(round(t), low), high), r = t - q;
        const vec a = weighted ? load(c.a + i) : set1(1.0f), ar = weighted ? a * r : r, aq = weighted ? a * q : q;
        s.r = s.r + ar;
        s.rr = fma(ar, r, s.rr);
        s.q = s.q + aq;
        s.qq = fma(aq, q, s.qq);
        s.rq = fma(ar, q, s.rq);
    }
    return s;
}

template <bool weighted>
INLINE vec total_of(const Columns& c, int64_t from, int64_t count) {
    if (!weighted) return set1(count > 0 ? float(count) : 0.0f);
    vec total = zero();
    for (int64_t i = from * lanes; i < (from + count) * lanes; i += lanes) total = total + load(c.a + i);
    return total;
}

// x as the type stores it; what is below 2^-100 is 0.
INLINE vec stored(vec x, DType dtype) {
    x = select(less(abs(x), set1(0x1p-100f)), zero(), x);
    return dtype == DType::bf16 ? widen_bf16(narrow_bf16(x)) : widen_f16(narrow_f16(x));
}

INLINE vec inverse_of(vec s) { return select(equal(s, zero()), zero(), set1(1.0f) / s); }
INLINE vec within(vec x, vec low, vec high) { return min(max(x, low), high); }  // NaN becomes low
INLINE mask is_finite(vec x) { return less(abs(x), set1(infinity)); }

struct Extremes {
    vec high, low;  // the largest w and -w
};
INLINE Extremes extremes_of(const Columns& c, int64_t from, int64_t count, vec least) {
    Extremes e{least, least};
    for (int64_t i = from * lanes; i < (from + count) * lanes; i += lanes) {
        const vec w = load(c.w + i);
        e.high = max(w, e.high);
        e.low = max(zero() - w, e.low);
    }
    return e;
}

// ---- where results go -----------------------------------------------------------------------------------------

// The rows at hand: a vector's lanes go to `count` rows from `first` on.
struct RowCodes {
    const QuantizeWeightArgs& a;
    int64_t first, count, depth, groups;

    void put(uint8_t* to, int64_t stride, vec x) const {
        float wide[lanes];
        store(wide, x);
        for (int64_t lane = 0; lane < count; lane++) to[lane * stride] = uint8_t(int(wide[lane]));
    }
    void put_real(uint16_t* to, vec x) const {
        uint16_t bits[lanes];
        if (a.format.scale_dtype == DType::bf16) store_u16(bits, narrow_bf16(x));
        else store_u16(bits, narrow_f16(x));
        for (int64_t lane = 0; lane < count; lane++) to[lane * groups] = bits[lane];
    }
    // NaN scales where not `good`.
    void scale(int64_t group, vec s, mask good) const {
        put_real(a.out.scales + first * groups + group, select(good, s, set1(__builtin_nanf(""))));
    }
    void zeros(int64_t group, vec z) const {
        const int64_t at = first * groups + group;
        if (a.format.zero == Zero::integer) put(static_cast<uint8_t*>(a.out.zeros) + at, groups, z);
        if (a.format.zero == Zero::real) put_real(static_cast<uint16_t*>(a.out.zeros) + at, z);
    }
    void sub(int64_t from, vec u, vec m) const {
        const int64_t subs = depth / sub_depth, at = first * subs + from / sub_depth;
        put(a.out.subscales + at, subs, u);
        put(a.out.minima + at, subs, m);
    }
    // 32 columns' codes q + offset; block: the first column of the block that c holds.
    void codes(const Columns& c, int64_t block, int64_t from, vec inverse, vec shift, vec low, vec high, vec offset) const {
        uint8_t b[sub_depth * lanes];
        for (int64_t i = 0; i < sub_depth; i += sub_depth / lanes) {
            vec q[sub_depth / lanes];
            for (int64_t j = 0; j < sub_depth / lanes; j++) {
                q[j] = within(round(fma(load(c.w + (from + i + j) * lanes), inverse, shift)), low, high) + offset;
            }
            store(b + i * lanes, round_bytes(q));
        }
        for (int64_t lane = 0; lane < count; lane++) {
            uint8_t* to = a.out.codes + (first + lane) * depth + block + from;
            for (int64_t i = 0; i < sub_depth; i++) to[i] = b[i * lanes + lane];
        }
    }
};

// ---- two levels -----------------------------------------------------------------------------------------------

// Tried: u of the range and one beside it on either side; m for the range's middle and for it moved by parts of a step; with
// each, the m that is best for the codes it gives. Then s and m are fitted to the codes, and codes chosen again.
constexpr float step_changes[] = {0.0f, -1.0f, 1.0f}, phases[] = {0.0f, -0.2f, 0.2f, -0.4f, 0.4f};
constexpr int64_t fits = 2;

// columns: of the block, padding not counted. good: rows of finite weights.
template <bool weighted>
void search_two_level(const RowCodes& rows, const Columns& c, int64_t block, int64_t columns, mask good) {
    const int64_t subs = round_up(columns, tile_depth) / sub_depth;
    Extremes range[8];
    vec u[8], m[8], best_m[8], total[8], share[8], s = zero();
    auto count = [&](int64_t g) { return columns - g * sub_depth < sub_depth ? columns - g * sub_depth : sub_depth; };
    for (int64_t g = 0; g < subs; g++) {
        range[g] = extremes_of(c, g * sub_depth, count(g), zero());
        total[g] = total_of<weighted>(c, g * sub_depth, count(g));
        share[g] = inverse_of(total[g]);
        const vec h = range[g].high, l = range[g].low;
        s = max(s, max((h + l) / set1(225.0f), max(l / set1(128.0f), h / set1(127.0f))));
    }
    s = stored(s, DType::f16);
    good = both(good, is_finite(s));
    s = select(good, s, zero());
    const vec inverse = inverse_of(s), code_low = zero(), code_high = set1(15.0f);
    for (int64_t g = 0; g < subs; g++) {
        const vec width = (range[g].high + range[g].low) * inverse;
        const vec lean = (range[g].high - range[g].low) * inverse * set1(0.5f);
        const vec steps = within(round(width * set1(1.0f / 15.0f)), set1(1.0f), set1(15.0f));
        vec best = set1(infinity);
        u[g] = m[g] = set1(1.0f);
        for (float change : step_changes) {
            const vec step = within(steps + set1(change), set1(1.0f), set1(15.0f)), inverse_step = set1(1.0f) / step;
            const vec least = max(set1(15.0f) * step - set1(127.0f), zero()), middle = set1(7.5f) * step - lean;
            for (float phase : phases) {
                const vec from = within(round(fma(set1(phase), step, middle)), least, set1(128.0f));
                const Sums sum = sums_of<weighted>(c, g * sub_depth, count(g), inverse * inverse_step, from * inverse_step,
                                                   code_low, code_high);
                // In units of s, what is left is step * r + (minimum - from).
                const vec left = step * sum.r;
                const vec minimum = within(round(from - left * share[g]), least, set1(128.0f)), moved = minimum - from;
                const vec error = fma(step * step, sum.rr, moved * fma(moved, total[g], left + left));
                const mask better = less(error, best);
                best = select(better, error, best);
                u[g] = select(better, step, u[g]);
                m[g] = select(better, minimum, m[g]);
            }
        }
    }
    vec best = set1(infinity), best_s = s, s_now = s;
    for (int64_t g = 0; g < subs; g++) best_m[g] = m[g];
    for (int64_t fit = 0; fit <= fits; fit++) {
        // v = u q - m; in units of s_now, u r is what is left.
        vec error = zero(), dv = zero(), vv = zero(), mean_r[8], mean_q[8];
        const vec inverse_now = inverse_of(s_now);
        for (int64_t g = 0; g < subs; g++) {
            const vec inverse_u = set1(1.0f) / u[g];
            const Sums sum = sums_of<weighted>(c, g * sub_depth, count(g), inverse_now * inverse_u, m[g] * inverse_u,
                                               code_low, code_high);
            error = error + u[g] * u[g] * sum.rr;
            dv = dv + u[g] * (u[g] * sum.rq - m[g] * sum.r);
            vv = vv + (u[g] * u[g] * sum.qq + m[g] * (m[g] * total[g] - set1(2.0f) * u[g] * sum.q));
            mean_r[g] = u[g] * sum.r * share[g];
            mean_q[g] = u[g] * sum.q * share[g];
        }
        const vec unit = s_now * inverse;
        error = error * unit * unit;
        const mask better = less(error, best);
        best = select(better, error, best);
        best_s = select(better, s_now, best_s);
        for (int64_t g = 0; g < subs; g++) best_m[g] = select(better, m[g], best_m[g]);
        const vec s_next = stored(s_now + s_now * (dv / vv), DType::f16), change = s_now * inverse_of(s_next);
        for (int64_t g = 0; g < subs; g++) {
            const vec least = max(set1(15.0f) * u[g] - set1(127.0f), zero());
            m[g] = within(round(mean_q[g] - change * (mean_r[g] + mean_q[g] - m[g])), least, set1(128.0f));
        }
        s_now = s_next;
    }
    rows.scale(block / block_depth, best_s, good);
    const vec inverse_s = inverse_of(best_s);
    for (int64_t g = 0; g < subs; g++) {
        const vec inverse_u = set1(1.0f) / u[g];
        rows.sub(block + g * sub_depth, u[g], best_m[g]);
        rows.codes(c, block, g * sub_depth, inverse_s * inverse_u, best_m[g] * inverse_u, code_low, code_high, zero());
    }
}

// ---- groups ---------------------------------------------------------------------------------------------------

// Scales tried, as the code that the largest weight, or with zeros the whole range, would have; each is then fitted to the
// codes it gives. Zeros keep the codes in the middle of the range; real ones are also moved by part of a step.
constexpr float int4_codes[] = {6.8f, 7.1f, 7.5f, 7.8f, 8.2f, 8.4f, 8.7f, 9.0f, 9.4f, 10.0f};
constexpr float int8_codes[] = {120.0f, 122.0f, 123.0f, 124.0f, 125.0f, 126.0f};
constexpr float integer_codes[] = {13.5f, 14.0f, 14.5f, 15.0f, 15.5f, 16.0f, 16.5f, 17.0f};
constexpr float real_codes[] = {14.5f, 15.5f, 16.5f}, real_phases[] = {-0.3f, 0.0f, 0.3f};

// s c or s (c - z).
template <bool weighted>
void search_scale(const RowCodes& rows, const Columns& c, int64_t block, int64_t from, int64_t count, int64_t padded,
                  mask good) {
    const WeightFormat& f = rows.a.format;
    const bool eight_bits = f.packing == Packing::int8, integer = f.zero == Zero::integer;
    const Extremes range = extremes_of(c, from, count, zero());
    const vec width = range.high + range.low;
    const vec extreme = select(less(range.low, range.high), zero() - range.high, range.low);  // int4: its code is -8
    const vec first = integer      ? width / set1(15.0f)
                      : eight_bits ? max(range.high, range.low) / set1(127.0f)
                                   : extreme / set1(8.0f);
    vec s = stored(first, f.scale_dtype);
    good = both(good, is_finite(s));
    s = select(good, s, zero());
    const vec unit = inverse_of(s);
    auto low = [&](vec z) { return eight_bits ? set1(-127.0f) : zero() - z; };
    auto high = [&](vec z) { return eight_bits ? set1(127.0f) : set1(15.0f) - z; };
    vec z = integer ? within(round(range.low * unit), zero(), set1(15.0f)) : set1(eight_bits ? 0.0f : 8.0f);
    vec best = set1(infinity);
    auto consider = [&](vec tried, vec tried_zero) {
        const vec inverse = inverse_of(tried);
        const Sums sum = sums_of<weighted>(c, from, count, inverse, zero(), low(tried_zero), high(tried_zero));
        const vec fitted = stored(tried + tried * (sum.rq / sum.qq), f.scale_dtype);
        const vec change = set1(1.0f) - fitted * inverse, scale = tried * unit;
        const vec error = fma(change, fma(change, sum.qq, sum.rq + sum.rq), sum.rr) * scale * scale;
        const mask better = less(error, best);
        best = select(better, error, best);
        s = select(better, fitted, s);
        z = select(better, tried_zero, z);
    };
    if (rows.a.search) {
        consider(s, z);
        if (integer) {
            const vec lean = (range.low - range.high) * set1(0.5f);
            for (float code : integer_codes) {
                const vec tried = width / set1(code);
                consider(tried, within(round(fma(lean, inverse_of(tried), set1(7.5f))), zero(), set1(15.0f)));
            }
        } else if (eight_bits) {
            for (float code : int8_codes) consider(first * set1(127.0f / code), z);
        } else {
            for (float code : int4_codes) consider(extreme / set1(code), z);
        }
        consider(s, z);
    }
    rows.scale((block + from) / f.group, s, good);
    rows.zeros((block + from) / f.group, z);
    for (int64_t i = from; i < from + padded; i += sub_depth) {
        rows.codes(c, block, i, inverse_of(s), zero(), low(z), high(z), z);
    }
}

// s c + b.
template <bool weighted>
void search_real(const RowCodes& rows, const Columns& c, int64_t block, int64_t from, int64_t count, int64_t padded,
                 mask good) {
    const WeightFormat& f = rows.a.format;
    const Extremes range = extremes_of(c, from, count, set1(count > 0 ? -infinity : 0.0f));
    const vec width = range.high + range.low, middle = (range.high - range.low) * set1(0.5f);
    const vec code_low = zero(), code_high = set1(15.0f);
    vec s = stored(width / set1(15.0f), f.scale_dtype);
    vec b = stored(select(equal(s, zero()), middle, zero() - range.low), f.scale_dtype);
    good = both(good, both(is_finite(s), is_finite(b)));
    s = select(good, s, zero());
    b = select(good, b, zero());
    const vec unit = inverse_of(s), total = total_of<weighted>(c, from, count);
    vec best = set1(infinity);
    // fit: s and b may move to what suits the codes.
    auto consider = [&](vec tried, vec tried_zero, bool fit) {
        const vec inverse = inverse_of(tried), scale = tried * unit;
        const Sums sum = sums_of<weighted>(c, from, count, inverse, zero() - tried_zero * inverse, code_low, code_high);
        // In units of the scale tried, what is left is r + change q + shift.
        const vec d = total * sum.qq - sum.q * sum.q;
        vec fitted = tried, fitted_zero = tried_zero;
        if (fit) {
            fitted = stored(tried - tried * ((sum.q * sum.r - total * sum.rq) / d), f.scale_dtype);
            fitted_zero = stored(tried_zero - tried * ((sum.q * sum.rq - sum.qq * sum.r) / d), f.scale_dtype);
        }
        const vec change = set1(1.0f) - fitted * inverse, shift = (tried_zero - fitted_zero) * inverse;
        const vec moved = fma(change, fma(change, sum.qq, sum.rq + sum.rq), sum.rr);
        const vec error = (moved + shift * (sum.r + sum.r + set1(2.0f) * change * sum.q + shift * total)) * scale * scale;
        const mask better = less(error, best);
        best = select(better, error, best);
        s = select(better, fitted, s);
        b = select(better, fitted_zero, b);
    };
    if (rows.a.search) {
        consider(s, b, false);
        for (float code : real_codes) {
            const vec tried = width / set1(code);
            for (float phase : real_phases) consider(tried, middle - set1(7.5f + phase) * tried, true);
        }
        consider(s, b, true);
    }
    const int64_t group = (block + from) / f.group;
    rows.scale(group, s, good);
    rows.zeros(group, b);
    for (int64_t i = from; i < from + padded; i += sub_depth) {
        rows.codes(c, block, i, inverse_of(s), zero() - b * inverse_of(s), code_low, code_high, zero());
    }
}

// ---- blocks ---------------------------------------------------------------------------------------------------

// Weights of a block that are not all finite become zeros; the rows without such.
INLINE mask clean(Columns& c, int64_t columns) {
    vec size = zero();
    for (int64_t i = 0; i < columns * lanes; i += lanes) size = max_size(abs(load(c.w + i)), size);
    const mask good = is_finite(size);
    for (int64_t i = 0; i < columns * lanes; i += lanes) store(c.w + i, select(good, load(c.w + i), zero()));
    return good;
}

// importance: of the block's columns. Weights count as shares of the largest, lest their squares be 0 or infinite.
INLINE void weigh(Columns& c, const float* importance, int64_t columns) {
    vec largest = zero(), square = zero();
    for (int64_t i = 0; i < columns * lanes; i += lanes) largest = max(abs(load(c.w + i)), largest);
    const vec share = inverse_of(stored(largest, DType::bf16));
    for (int64_t i = 0; i < columns; i++) {
        const vec w = load(c.w + i * lanes) * share;
        square = fma(w, w, square);
    }
    square = square / set1(float(columns));
    for (int64_t i = 0; i < columns; i++) {
        store(c.a + i * lanes, importance_of(set1(importance[i]), square, load(c.w + i * lanes) * share));
    }
}

template <bool weighted>
void search_block(const RowCodes& rows, Columns& c, int64_t block, int64_t columns) {
    const WeightFormat& f = rows.a.format;
    const mask good = clean(c, columns);
    if (weighted) weigh(c, rows.a.importance + block, columns);
    if (f.packing == Packing::int4_two_level) return search_two_level<weighted>(rows, c, block, columns, good);
    const int64_t depth = round_up(columns, tile_depth);
    for (int64_t from = 0; from < depth; from += f.group) {
        const int64_t padded = depth - from < f.group ? depth - from : f.group;
        const int64_t count = columns - from < padded ? (columns > from ? columns - from : 0) : padded;
        if (f.zero == Zero::real) search_real<weighted>(rows, c, block, from, count, padded, good);
        else search_scale<weighted>(rows, c, block, from, count, padded, good);
    }
}

INLINE void load_columns(const QuantizeWeightArgs& a, int64_t row, int64_t rows, int64_t block, int64_t columns, float* w) {
    with_type(a.dtype, [&](auto type) {
        auto* weight = static_cast<const typename decltype(type)::type*>(a.weight);
        for (int64_t lane = 0; lane < lanes; lane++) {
            float values[block_depth] = {};
            if (lane < rows) padded_block(weight + (row + lane) * a.k + block, columns, values);
            for (int64_t i = 0; i < round_up(columns, tile_depth); i++) w[i * lanes + lane] = values[i];
        }
    });
}

void search_weight(const QuantizeWeightArgs& a, int64_t begin, int64_t end) {
    const int64_t depth = round_up(a.k, tile_depth), groups = (depth + a.format.group - 1) / a.format.group;
    for (int64_t r = begin; r < end; r += lanes) {
        const RowCodes rows{a, r, end - r < lanes ? end - r : lanes, depth, groups};
        for (int64_t block = 0; block < a.k; block += block_depth) {
            const int64_t columns = a.k - block < block_depth ? a.k - block : block_depth;
            Columns c;
            load_columns(a, r, rows.count, block, columns, c.w);
            if (a.importance) search_block<true>(rows, c, block, columns);
            else search_block<false>(rows, c, block, columns);
        }
    }
}
