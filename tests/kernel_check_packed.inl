// A part of kernel_check.cpp: integer weights, the same bits as the reference; experts.

template <class T>
void same(const std::string& what, const std::vector<T>& got, const std::vector<T>& want) {
    for (size_t i = 0; i < want.size(); i++) {
        if (memcmp(&got[i], &want[i], sizeof(T)) != 0) {
            printf("%s: element %zu is %.9g, the reference %.9g\n", what.c_str(), i, double(got[i]), double(want[i]));
            failures++;
            return;
        }
    }
}

std::string name_of(const WeightFormat& f) {
    const char* packings[] = {"int4_two_level", "int4", "int8", "int4_k", "int8_k"};
    const char* zeros[] = {"", " integer zeros", " real zeros"};
    return packings[int(f.packing)] + (" group " + std::to_string(f.group)) + zeros[int(f.zero)] +
           (f.scale_dtype == DType::bf16 ? " bf16" : "");
}

// Row-major codes of a random weight, within the ranges ops.cpp checks.
struct RandomCodes {
    int64_t n, k;
    WeightFormat f;
    std::vector<uint8_t> codes, u, m, zeros;
    std::vector<uint16_t> scales, real_zeros;

    RandomCodes(int64_t n_, int64_t k_, const WeightFormat& f_) : n(n_), k(k_), f(f_) {
        const int64_t depth = round_up(k, tile_depth), groups = n * ((depth + scale_depth(f) - 1) / scale_depth(f));
        for (int64_t i = 0; i < n * depth; i++) codes.push_back(uint8_t(rng.below(eight_bits(f.packing) ? 256 : 16)));
        for (int64_t i = 0; of_k(f.packing) && i < n * depth / f.group; i++) {
            u.push_back(uint8_t(rng.below(256)));
            m.push_back(uint8_t(rng.below(256)));
        }
        for (int64_t i = 0; !of_k(f.packing) && i < n * depth / sub_depth; i++) {
            const int64_t sub = 1 + rng.below(15), least = 15 * sub > 127 ? 15 * sub - 127 : 0;
            u.push_back(uint8_t(sub));
            m.push_back(uint8_t(least + rng.below(129 - least)));
        }
        for (int64_t i = 0; i < groups; i++) {
            scales.push_back(real(rng.normal() * 0.01f));
            real_zeros.push_back(real(rng.normal()));
            zeros.push_back(uint8_t(rng.below(f.packing == Packing::int8 ? 256 : 17)));
        }
    }
    uint16_t real(float x) const {
        return f.scale_dtype == DType::bf16 ? narrowed<bf16>({x})[0].bits : narrowed<f16>({x})[0].bits;
    }
    WeightCodes args() {
        return {codes.data(), scales.data(), u.data(), m.data(),
                f.zero == Zero::integer ? static_cast<void*>(zeros.data()) : real_zeros.data()};
    }
};

void check_quantize(int64_t rows, int64_t k, bool tiled, int64_t run = sub_depth) {
    const int64_t stride = k + 3, depth = round_up(k, tile_depth), places = tiled ? round_up(rows, code_tile_rows) : rows;
    std::vector<float> x = rng.normals(rows * stride, 2);
    if (rows > 3) {
        for (int64_t i = 0; i < k; i++) {
            x[size_t(stride + i)] *= 1e-38f;
            x[size_t(2 * stride + i)] = floorf(x[size_t(2 * stride + i)] * 20) / 2;
        }
        x[size_t(3 * stride + rng.below(k))] = rng.below(2) ? NAN : -INFINITY;
    }
    std::vector<int8_t> want(size_t(places * depth)), got(want.size(), tiled ? 77 : 0);
    std::vector<int16_t> want_sums(size_t(rows * depth / run)), got_sums = want_sums;
    std::vector<float> want_scales(size_t(places * ((k + block_depth - 1) / block_depth))), got_scales(want_scales.size(), 9);
    plain.quantize({x.data(), want.data(), want_scales.data(), want_sums.data(), k, stride, depth, rows, tiled, run}, 0, rows);
    const int64_t middle = rng.below(rows + 1);
    fast.quantize({x.data(), got.data(), got_scales.data(), got_sums.data(), k, stride, depth, rows, tiled, run}, 0, middle);
    fast.quantize({x.data(), got.data(), got_scales.data(), got_sums.data(), k, stride, depth, rows, tiled, run}, middle, rows);
    const std::string what = std::string(tiled ? "tiled " : "") + "quantize " + std::to_string(rows) + " x " + std::to_string(k);
    same(what, got, want);
    same(what + " sums", got_sums, want_sums);
    check(what + " scales", got_scales, want_scales, relative(want_scales, 0));
}

void check_quantize_weight(int64_t n, int64_t k, const WeightFormat& f, DType dtype) {
    std::vector<float> wide = rng.normals(n * k, 0.02f);
    for (int64_t i = 0; n > 2 && i < k; i++) wide[size_t(i)] *= 1e-5f, wide[size_t(k + i)] = 0;  // denormal scales, and none
    if (n > 3) wide[size_t(3 * k - 1)] = NAN;
    if (n > 4) wide[size_t(4 * k - 1)] = 1e30f;  // its scale is not an f16
    const std::vector<f16> half = narrowed<f16>(wide);
    const std::vector<bf16> brain = narrowed<bf16>(wide);
    const void* weight = dtype == DType::f16 ? static_cast<const void*>(half.data())
                         : dtype == DType::bf16 ? static_cast<const void*>(brain.data()) : wide.data();
    std::vector<float> importance = rng.normals(k);
    for (float& h : importance) h = h * h;
    const std::string shape = std::to_string(n) + " x " + std::to_string(k) + " " + name_of(f);
    for (int64_t mode = 0; mode < 3; mode++) {
        RandomCodes want(n, k, f), got = want;
        const bool search = mode > 0;
        const float* h = mode > 1 ? importance.data() : nullptr;
        plain.quantize_weight({weight, want.args(), k, f, dtype, search, h}, 0, n);
        const int64_t middle = rng.below(n + 1);
        fast.quantize_weight({weight, got.args(), k, f, dtype, search, h}, 0, middle);
        fast.quantize_weight({weight, got.args(), k, f, dtype, search, h}, middle, n);
        const std::string what = (mode == 0 ? "quantize_weight " : mode == 1 ? "search " : "weighed search ") + shape;
        same(what, got.codes, want.codes);
        same(what + " scales", got.scales, want.scales);
        same(what + " u", got.u, want.u);
        same(what + " m", got.m, want.m);
        same(what + " zeros", got.zeros, want.zeros);
        same(what + " real zeros", got.real_zeros, want.real_zeros);
    }
}

void check_packed(int64_t n, int64_t k, const WeightFormat& f, bool gated, std::initializer_list<int64_t> row_counts) {
    const std::string what = " n " + std::to_string(n) + " k " + std::to_string(k) + (gated ? " gated " : " ") + name_of(f);
    RandomCodes c(n, k, f);
    const int64_t panels = gated ? (n / 2 + 15) / 16 : (n + panel_outputs - 1) / panel_outputs;
    std::vector<uint8_t> want_panels(size_t(panels * panel_bytes(f, k)), 0xaa), got_panels(want_panels.size(), 0x55);
    plain.pack({c.args(), want_panels.data(), n, k, f, gated}, 0, panels);
    const int64_t middle = rng.below(panels + 1);
    fast.pack({c.args(), got_panels.data(), n, k, f, gated}, 0, middle);
    fast.pack({c.args(), got_panels.data(), n, k, f, gated}, middle, panels);
    same("pack" + what, got_panels, want_panels);

    std::vector<int32_t> ids;
    for (int64_t i = 0; i < n; i++) ids.push_back(int32_t(n - 1 - i));
    std::vector<float> got_rows(size_t(n * k)), want_rows = got_rows;
    plain.unpack({ids.data(), want_panels.data(), want_rows.data(), n, k, f, gated}, 0, n);
    fast.unpack({ids.data(), want_panels.data(), got_rows.data(), n, k, f, gated}, 0, n);
    same("unpack" + what, got_rows, want_rows);

    for (int64_t rows : row_counts) {
        const int64_t depth = round_up(k, tile_depth), stride = depth + 64, out_n = gated ? n / 2 : n, out_stride = out_n + 3;
        const std::vector<float> x = rng.normals(rows * k), bias = rng.normals(n);
        std::vector<int8_t> codes(size_t(rows * stride), 77);
        std::vector<int16_t> sums(size_t(rows * depth / sum_depth(f)));
        std::vector<float> scales(size_t(rows * ((k + block_depth - 1) / block_depth)));
        plain.quantize({x.data(), codes.data(), scales.data(), sums.data(), k, k, stride, rows, false, sum_depth(f)}, 0, rows);
        std::vector<float> want = rng.normals(rows * out_stride), got = want;
        PackedLinearArgs a{codes.data(), scales.data(), sums.data(), want_panels.data(), bias.data(),
                           gated ? nullptr : want.data(), want.data(), rows, n, k, stride, out_stride, f, gated, Activation::silu};
        plain.packed_linear(a, 0, panels);
        a.out = got.data();
        if (!gated) a.residual = got.data();
        if (fast.code_tiles && rows > untiled_rows) {
            codes.assign(size_t(round_up(rows, code_tile_rows) * stride), 77);
            scales.assign(size_t(round_up(rows, code_tile_rows) * ((k + block_depth - 1) / block_depth)), 9);
            plain.quantize({x.data(), codes.data(), scales.data(), sums.data(), k, k, stride, rows, true, sum_depth(f)}, 0, rows);
            a.codes = codes.data(), a.scales = scales.data(), a.tiled = true;
        }
        const int64_t split = rng.below(panels + 1);
        fast.packed_linear(a, 0, split);
        fast.packed_linear(a, split, panels);
        const std::string product = "packed_linear rows " + std::to_string(rows) + what;
        if (gated) check(product, got, want, relative(want, 64, 1e-30));  // gates are of size 20 at most
        else same(product, got, want);
    }
}

void check_experts(int64_t rows, int64_t experts, int64_t k, int64_t groups, int64_t dim) {
    const std::string what = " of " + std::to_string(experts) + " experts, rows " + std::to_string(rows);
    const std::vector<float> logits = rng.normals(rows * experts), correction = rng.normals(experts);
    std::vector<int32_t> ids(size_t(rows * k)), got_ids(ids.size());
    std::vector<float> want(ids.size()), got(ids.size());
    for (Scoring scoring : {Scoring::softmax, Scoring::softmax_chosen, Scoring::sigmoid}) {
        const bool sigmoid = scoring == Scoring::sigmoid;
        RouteArgs a{logits.data(), sigmoid ? correction.data() : nullptr, ids.data(), want.data(), experts, k,
                    sigmoid ? groups : 1, sigmoid ? (groups + 1) / 2 : 1, scoring, true, 2.5f};
        plain.route(a, 0, rows);
        a.ids = got_ids.data(), a.weights = got.data();
        fast.route(a, 0, rows);
        same("route ids" + what, got_ids, ids);
        check("route" + what, got, want, relative(want, 64));
    }
    const int64_t places = most_places(rows * k, experts), regions = most_regions(rows * k, experts);
    std::vector<Region> region(static_cast<size_t>(regions));
    std::vector<int32_t> tiles(size_t(places / region_rows)), sources(static_cast<size_t>(places)), place_of(ids.size());
    fast.group_rows({ids.data(), region.data(), tiles.data(), sources.data(), place_of.data(), rows, k, experts, regions, places}, 0, 1);
    const std::vector<float> x = rng.normals(rows * dim), residual = rng.normals(rows * dim);
    std::vector<float> y = rng.normals(places * dim), out(x.size()), sum(x.size());
    fast.gather_rows({x.data(), sources.data(), y.data(), dim, dim}, 0, places);
    CombineArgs c{y.data(), want.data(), place_of.data(), residual.data(), sum.data(), dim, k};
    plain.combine(c, 0, rows);
    c.out = out.data();
    fast.combine(c, 0, rows);
    check("combine" + what, out, sum, relative(sum, 64, 1e-5));
}

void check_integer_weights() {
    for (int64_t k : {1, 31, 64, 100, 256, 257, 600, 2048}) check_quantize(1 + rng.below(7), k, false), check_quantize(5, k, false);
    for (int64_t k : {1, 100, 256, 600}) check_quantize(5, k, false, 16), check_quantize(19, k, true, 16);
    for (int64_t k : {1, 100, 256, 600}) check_quantize(9, k, true), check_quantize(16, k, true), check_quantize(37, k, true);
    for (Packing packing : {Packing::int4_two_level, Packing::int4, Packing::int8, Packing::int4_k, Packing::int8_k}) {
        for (int64_t group : {16, 32, 64, 128, 256}) {
            if (packing == Packing::int4_two_level ? group != 256 : of_k(packing) ? group > 32 : group == 16) continue;
            for (Zero zero : {Zero::none, Zero::integer, Zero::real}) {
                if (of_k(packing)) continue;  // nothing rounds to them
                if (packing != Packing::int4 && zero != Zero::none) continue;
                for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
                    const bool brain = packing != Packing::int4_two_level && dtype == DType::bf16;
                    const WeightFormat f{packing, group, zero, brain ? DType::bf16 : DType::f16};
                    check_quantize_weight(1, 1, f, dtype);
                    check_quantize_weight(6, 300, f, dtype);
                    check_quantize_weight(21, 544, f, dtype);
                }
            }
            for (Zero zero : {Zero::none, Zero::integer, Zero::real}) {
                if (packing == Packing::int4_two_level && zero != Zero::none) continue;
                if (of_k(packing) && zero == Zero::integer) continue;
                const WeightFormat f{packing, group, zero, zero == Zero::integer ? DType::bf16 : DType::f16};
                check_packed(1, 1, f, false, {1, 3});
                check_packed(70, 330, f, false, {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33});
                check_packed(33, 600, f, false, {1, 4, 6, 20});
                check_packed(66, 290, f, true, {1, 5, 18});
                if (fast.row_input == RowInput::bf16_tiles) check_packed(200, 600, f, false, {31, 32, 48, 49, 64, 70});  // tiles of rows
                if (fast.row_input == RowInput::bf16_tiles) check_packed(40, 100, f, false, {530});  // more rows than a slab
            }
        }
    }
}
