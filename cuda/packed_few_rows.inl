// The rows of packed_few.inl in shared memory: codes, scales and sums, read or made.

// Rows row0 .. of x into shared memory, all asked for at once; rows beyond the last are the last one's and not used. What lies beyond
// the depth is zeros.
template <int rows>
DEVICE void few_load(const PackedLinearArgs& a, const FewPlan& p, int row0, int last, char* shared) {
    const int depth = (p.blocks - 1) * int(block_depth) + p.last_tiles * int(tile_depth), sums = p.blocks * p.sums, shift = p.sums == 16 ? 4 : 5;
    const int threads = p.warps * 32 / rows, mine = rows == 1 ? gk::thread() : gk::thread() % threads;  // of a row
    GK_ROLLED
    for (int r = rows == 1 ? 0 : gk::thread() / threads; r < p.rows; r += rows) {
        const int64_t row = min_of(row0 + r, last);
        char* codes = shared + r * p.x_stride;
        GK_ROLLED
        for (int at = mine * 16; at < p.blocks * int(block_depth); at += threads * 16) {
            if (at < depth) gk::copy_async(codes + at, a.codes + row * a.codes_stride + at);
            else *reinterpret_cast<Chunk*>(codes + at) = {};
        }
        auto* to = reinterpret_cast<int16_t*>(shared + p.sums_at) + r * sums;
        GK_ROLLED
        for (int at = mine * 2; at < sums; at += threads * 2) {
            if (at < depth >> shift) gk::copy_async_word(to + at, a.sums + row * (depth >> shift) + at);
            else to[at] = to[at + 1] = 0;
        }
        GK_ROLLED
        for (int b = mine; b < p.blocks; b += threads)
            gk::copy_async_word(shared + p.scales_at + (r * p.blocks + b) * 4, a.scales + row * p.blocks + b);
    }
    gk::copy_commit();
    gk::copy_wait<0>();
}

// Where the kernel makes the codes itself: of rows of floats, or of what a norm makes of them.
struct FewSource {
    RmsNormArgs norm{};       // x null: none
    QuantizeArgs rounding{};  // x null: the codes are there
};
// Blocks of 256 of all rows that a block of threads may round for itself, and rows whose norm it may make. More, and many blocks of
// threads doing the same would take longer than a kernel more.
constexpr int64_t few_made_most = 64, few_normed_most = 2;
constexpr int made_eights = 2, normed_eights = 2;  // blocks of 256 whose floats a warp has at once; all of a row with a norm
// Only rows that are read by 16 bytes.
static bool few_makes(const FewSource& source, int64_t rows, const FewPlan& p) {
    auto by_eights = [&](const float* at, int64_t stride) { return reinterpret_cast<uintptr_t>(at) % 16 == 0 && (rows == 1 || stride % 4 == 0); };
    const RmsNormArgs& n = source.norm;
    const QuantizeArgs& q = source.rounding;
    if (q.k % 8 != 0 || rows * p.blocks > few_made_most) return false;
    if (!n.x) return by_eights(q.x, q.x_stride);
    return rows <= few_normed_most && p.blocks <= p.warps * normed_eights && p.bytes - p.terms_at >= p.blocks * 128 + 128 &&
           by_eights(n.x, n.x_stride) && by_eights(n.out, n.out_stride) && by_eights(n.weight, 0);
}

// The sum of a row's squares in the order of rms_norm, whose row_threads threads have the eights of lanes of 8 blocks of 256, then of the
// next 8 ..: `mine` are a lane's of block warp + j warps. `place`: floats [blocks of 256][32], and 8 more.
DEVICE float few_squares(const float (&mine)[normed_eights], const FewPlan& p, float* place) {
    constexpr int warps = row_threads / 32;
    const int warp = gk::thread() / 32, lane = gk::lane();
    float* sums = place + p.blocks * 32;
    GK_UNROLL
    for (int j = 0; j < normed_eights; j++)
        if (warp + j * p.warps < p.blocks) place[(warp + j * p.warps) * 32 + lane] = mine[j];
    gk::sync();
    if (warp < warps) {
        float sum = 0.0f;
        GK_ROLLED
        for (int b = warp; b < p.blocks; b += warps) sum += place[b * 32 + lane];
        sum = warp_sum(sum);
        if (lane == 0) sums[warp] = sum;
    }
    gk::sync();
    float sum = 0.0f;
    GK_UNROLL
    for (int i = 0; i < warps; i++) sum += sums[i];
    return sum;
}

// As few_load, of codes made here: the bits are those of rms_norm and quantize. With `keep` they are written for later readers
// as well, as is what the norm gave.
template <int rows>
DEVICE void few_make(const FewSource& source, const FewPlan& p, int row0, int last, char* shared, bool keep) {
    constexpr bool norms = rows <= few_normed_most;
    const RmsNormArgs& n = source.norm;
    const QuantizeArgs& q = source.rounding;
    const bool normed = norms && n.x;
    const int warp = gk::thread() / 32, lane = gk::lane(), k = int(q.k), depth = int(round_up(q.k, tile_depth)), shift = p.sums == 16 ? 4 : 5;
    const int turns = normed ? rows : (rows * p.blocks + p.warps * made_eights - 1) / (p.warps * made_eights);  // with a norm one a row
    GK_ROLLED
    for (int turn = 0; turn < turns; turn++) {
        // Row and block of 256 of a warp's j-th; rows where it has none.
        auto place_of = [&](int j, int& b) {
            const int i = normed ? warp + j * p.warps : warp + (turn * made_eights + j) * p.warps, r = normed ? turn : rows == 1 ? 0 : i / p.blocks;
            b = normed || rows == 1 ? i : i - r * p.blocks;
            return b < p.blocks ? r : rows;
        };
        float x[made_eights][8];
        GK_UNROLL
        for (int j = 0; j < made_eights; j++) {
            int b;
            const int r = place_of(j, b);
            const int64_t row = min_of(row0 + r, last);
            load_eight(normed ? n.x + row * n.x_stride : q.x + row * q.x_stride, b * int(block_depth) + lane * 8, r < rows ? k : 0, true, x[j]);
        }
        if (normed) {
            float mine[normed_eights], weight[normed_eights][8];
            GK_UNROLL
            for (int j = 0; j < normed_eights; j++) {
                load_eight(n.weight, (warp + j * p.warps) * int(block_depth) + lane * 8, k, true, weight[j]);
                mine[j] = squares(x[j]);
            }
            const float scale = rms_of(few_squares(mine, p, reinterpret_cast<float*>(shared + p.terms_at)), n.dim, n.eps);
            GK_UNROLL
            for (int j = 0; j < normed_eights; j++) {
                GK_UNROLL
                for (int i = 0; i < 8; i++) x[j][i] = x[j][i] * scale * weight[j][i];
            }
        }
        GK_ROLLED
        for (int j = 0; j < made_eights; j++) {
            int b;
            const int r = place_of(j, b);
            if (r >= rows) break;
            const int at = b * int(block_depth) + lane * 8, sum_at = at >> shift;
            int32_t codes[8], sum;
            const float scale = quantize_eight(x[0], codes, sum);
            sum = sum_together(sum, q.sum_depth);
            const Codes8 packed = pack_codes(codes);
            *reinterpret_cast<Codes8*>(shared + r * p.x_stride + at) = packed;
            if (lane == 0) reinterpret_cast<float*>(shared + p.scales_at)[r * p.blocks + b] = scale;
            if (at == sum_at << shift) reinterpret_cast<int16_t*>(shared + p.sums_at)[r * p.blocks * p.sums + sum_at] = int16_t(sum);
            const int64_t to = row0 + r;
            if (keep && to <= last) {
                if (normed) store_eight(n.out + to * n.out_stride, at, k, true, x[0]);
                if (lane == 0) q.scales[to * p.blocks + b] = scale;
                if (at < depth) *reinterpret_cast<Codes8*>(q.codes + to * q.codes_stride + at) = packed;
                if (at < depth && at == sum_at << shift) q.sums[to * (depth >> shift) + sum_at] = int16_t(sum);
            }
            GK_UNROLL
            for (int next = 1; next < made_eights; next++) {  // in registers, so they move up
                GK_UNROLL
                for (int l = 0; l < 8; l++) x[next - 1][l] = x[next][l];
            }
        }
    }
}
