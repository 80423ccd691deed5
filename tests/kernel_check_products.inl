// A part of kernel_check.cpp: products with weights of 16 and 32 bits.

// A row of x by one of a bf16 weight as tdpbf16ps is defined, 32 k at a time. Normal numbers only: it knows no denormals.
float tile_product(const float* x, const float* weight, int64_t k) {
    float sum = 0;
    for (int64_t from = 0; from < k; from += 32) {
        float parts[2] = {0, 0};
        for (int64_t i = from; i < from + 32 && i < k; i++) parts[i % 2] = fmaf(x[i], weight[i], parts[i % 2]);
        sum += parts[0] + parts[1];
    }
    return sum;
}

// What a device's tensor cores take of x for weights of 16 bits, where the tier's linear takes that: bf16 or tf32.
float rounded_x(float x, DType dtype) {
    if (dtype == DType::f16) return from_bits((to_bits(x) + 0x1000u) & 0xffffe000u);
    bf16 b;
    narrow(x, b);
    return widen(b);
}
bool rounds_x(int64_t k, DType dtype) {
    if (dtype == DType::f32 || k % 8 != 0) return false;
    alignas(16) const uint16_t weight[8] = {uint16_t(dtype == DType::f16 ? 0x3c00 : 0x3f80)};
    const float x[8] = {1.00001f};
    float out = 0;
    fast.linear({x, weight, nullptr, nullptr, &out, 1, 1, 8, 8, 1, dtype}, 0, 1);
    return out != x[0];
}

void check_linear(int64_t rows, int64_t n, int64_t k, DType dtype, bool extras) {
    const int64_t stride = k + 3;
    std::vector<float> x = rng.normals(rows * stride), wide = rng.normals(n * k), bias = rng.normals(n);
    std::vector<float> want = rng.normals(rows * n), got = want;
    const std::vector<f16> half = narrowed<f16>(wide);
    const std::vector<bf16> brain = narrowed<bf16>(wide);
    const void* weight = dtype == DType::f16 ? static_cast<const void*>(half.data())
                         : dtype == DType::bf16 ? static_cast<const void*>(brain.data()) : wide.data();
    std::vector<double> allowed;
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t j = 0; j < n; j++) {
            double size = extras ? fabs(bias[j]) + fabs(want[m * n + j]) : 0;
            for (int64_t i = 0; i < k; i++) size += fabs(double(x[m * stride + i]) * wide[j * k + i]);
            allowed.push_back(eps * (double(k) / 8 + 16) * size);  // chains of k / 8 or fewer sums on either side
        }
    }
    LinearArgs a{x.data(), weight, extras ? bias.data() : nullptr, extras ? want.data() : nullptr, want.data(),
                 rows, n, k, stride, n, dtype};
    std::vector<float> taken = x;
    if (rounds_x(k, dtype))
        for (float& v : taken) v = rounded_x(v, dtype);
    a.x = taken.data();
    plain.linear(a, 0, n);
    a.x = x.data();
    a.out = got.data();
    if (extras) a.residual = got.data();
    const int64_t middle = rng.below(n + 1);
    fast.linear(a, 0, middle);
    fast.linear(a, middle, n);
    check("linear rows " + std::to_string(rows) + " n " + std::to_string(n) + " k " + std::to_string(k), got, want, allowed);
    if (extras || rows < 2 || (fast.sample_counts && rows > 16 && dtype != DType::f32)) return;
    for (int64_t m = 0; m < rows; m++) {  // a row alone has the same bits; on a device (which counts) few rows have
        std::vector<float> alone(static_cast<size_t>(n));
        LinearArgs b{x.data() + m * stride, weight, nullptr, nullptr, alone.data(), 1, n, k, stride, n, dtype};
        fast.linear(b, 0, n);
        check("linear row alone", alone, std::vector<float>(got.begin() + m * n, got.begin() + (m + 1) * n),
              std::vector<double>(static_cast<size_t>(n), 0));
    }
}

// bf16 weights by rows in tiles, where the tier's linear takes them.
void check_tiled_linear(int64_t rows, int64_t n, int64_t k, bool extras) {
    const int64_t stride = k + 3, row_tiles = (rows + 15) / 16, steps = (k + 31) / 32;
    const std::string what = "tiled linear rows " + std::to_string(rows) + " n " + std::to_string(n) + " k " + std::to_string(k);
    std::vector<float> x = rng.normals(rows * stride), bias = rng.normals(n), rounded(x.size()), wide(size_t(n * k));
    const std::vector<bf16> weight = narrowed<bf16>(rng.normals(n * k)), x_bits = narrowed<bf16>(x);
    for (size_t i = 0; i < x.size(); i++) rounded[i] = widen(x_bits[i]);
    for (size_t i = 0; i < wide.size(); i++) wide[i] = widen(weight[i]);
    std::vector<uint16_t> want_tiles(size_t(row_tiles * steps * 32 * tile_columns(rows)), 0xaaaa), tiles(want_tiles.size(), 0x5555);
    plain.tile_rows({x.data(), want_tiles.data(), rows, k, stride}, 0, row_tiles);
    const int64_t half = rng.below(row_tiles + 1);
    fast.tile_rows({x.data(), tiles.data(), rows, k, stride}, 0, half);
    fast.tile_rows({x.data(), tiles.data(), rows, k, stride}, half, row_tiles);
    if (tiles != want_tiles) {
        printf("%s: tile_rows differs\n", what.c_str());
        failures++;
    }
    if (fast.row_input == RowInput::f32) return;
    std::vector<float> want = rng.normals(rows * n), got = want;
    std::vector<double> allowed;
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t j = 0; j < n; j++) {
            double size = extras ? fabs(bias[size_t(j)]) + fabs(want[size_t(m * n + j)]) : 0;
            for (int64_t i = 0; i < k; i++) size += fabs(double(rounded[size_t(m * stride + i)]) * wide[size_t(j * k + i)]);
            allowed.push_back(eps * (double(k) / 8 + 32) * size);
        }
    }
    LinearArgs a{rounded.data(), weight.data(), extras ? bias.data() : nullptr, extras ? want.data() : nullptr, want.data(),
                 rows, n, k, stride, n, DType::bf16};
    plain.linear(a, 0, n);
    a.x = nullptr;
    std::vector<uint16_t> rows_bf16(size_t(rows * steps * 32));
    fast.round_rows({x.data(), rows_bf16.data(), k, stride}, 0, rows);
    a.x_bf16 = fast.row_input == RowInput::bf16_tiles ? tiles.data() : rows_bf16.data();
    a.out = got.data();
    if (extras) a.residual = got.data();
    const int64_t middle = rng.below(n + 1);
    fast.linear(a, 0, middle);
    fast.linear(a, middle, n);
    check(what, got, want, allowed);
    if (fast.row_input == RowInput::bf16_rows) {  // a row alone has the same bits
        const int64_t m = rng.below(rows);
        std::vector<float> alone(got.begin() + m * n, got.begin() + (m + 1) * n);
        if (extras) return;
        const std::vector<float> row = alone;
        LinearArgs b = a;
        b.x_bf16 = rows_bf16.data() + m * steps * 32;
        b.rows = 1;
        b.out = alone.data();
        fast.linear(b, 0, n);
        check(what + " alone", alone, row, std::vector<double>(row.size(), 0));
        return;
    }
    if (extras) return;
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t j = 0; j < n; j++) want[size_t(m * n + j)] = tile_product(rounded.data() + m * stride, wide.data() + j * k, k);
    }
    check(what + " by definition", got, want, std::vector<double>(want.size(), 0));
}

void check_tiles() {
    for (int64_t k : {1, 31, 32, 33, 96, 511, 512, 513, 1100, 1600}) {
        for (int64_t rows : {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 49, 64, 70}) {
            check_tiled_linear(rows, 1 + rng.below(70), k, false);
            check_tiled_linear(rows, 1 + rng.below(70), k, true);
        }
    }
    check_tiled_linear(5, 300, 64, true);
    check_tiled_linear(40, 300, 600, true);   // more outputs than wait at once
    check_tiled_linear(530, 50, 544, false);  // more rows than a slab
}
