// A part of kernel_check.cpp: cache and attention.

// K and V pages of a type, full of NaN (0xff, which is -1 as int8; its scales are NaN): what was not written must not be seen.
struct Pages {
    std::vector<char> k, v;
    std::vector<float> k_scales, v_scales;
    Pages(int64_t keys, int64_t dim, DType dtype)
        : k(size_t(keys * dim * (dtype == DType::f32 ? 4 : dtype == DType::i8 ? 1 : 2)), char(0xff)), v(k),
          k_scales(dtype == DType::i8 ? size_t(keys) : 0, NAN), v_scales(k_scales) {}
};

void check_attention(int64_t rows, int64_t kv_heads, int64_t group, int64_t dim, int64_t longest, int64_t window, bool alibi,
                     DType dtype, float softcap = 0, bool sunk = false, float size = 1) {
    const int64_t sequences = 3, max_pages = longest / page_keys + 1, pages = sequences * max_pages;
    const int64_t heads = kv_heads * group, stride = heads * dim + (rows % 2 ? 7 : 8), width = kv_heads * dim;
    Pages cache(pages * kv_heads * page_keys, dim, dtype), other = cache;
    std::vector<int32_t> table, owner, key, sequence, position;
    int64_t apart = 5;
    while (std::gcd(apart, pages) > 1) apart++;  // or a page would be two places'
    for (int64_t p = 0; p < pages; p++) table.push_back(int32_t((p * apart + 1) % pages));
    auto where = [&](Pages& p, const std::vector<int32_t>& s, const std::vector<int32_t>& at) {
        return KvPages{p.k.data(), p.v.data(), p.k_scales.data(), p.v_scales.data(), table.data(), s.data(), at.data(), kv_heads,
                       pages, dim, max_pages, dtype};
    };
    for (int64_t s = 0; s < sequences; s++) {
        for (int64_t p = 0; p < longest; p++) {
            owner.push_back(int32_t(s));
            key.push_back(int32_t(p));
        }
    }
    const int64_t tokens = sequences * longest, middle = rng.below(tokens);
    const std::vector<float> k = rng.normals(tokens * width), v = rng.normals(tokens * width, size);
    plain.kv_write({k.data(), v.data(), width, where(cache, owner, key)}, 0, tokens);
    const KvWriteArgs write{k.data(), v.data(), width, where(other, owner, key)};
    fast.kv_write(write, middle, tokens);
    fast.kv_write(write, 0, middle);
    const std::string what = " rows " + std::to_string(rows) + " group " + std::to_string(group) + " dim " +
                             std::to_string(dim) + " type " + std::to_string(int(dtype));
    auto same_floats = [](const std::vector<float>& a, const std::vector<float>& b) {
        return a.empty() || memcmp(a.data(), b.data(), a.size() * 4) == 0;
    };
    if (cache.k != other.k || cache.v != other.v || !same_floats(cache.k_scales, other.k_scales) ||
        !same_floats(cache.v_scales, other.v_scales)) {
        printf("kv_write%s differs\n", what.c_str());
        failures++;
    }

    for (int64_t r = 0; r < rows; r++) {
        sequence.push_back(int32_t(r * sequences / rows));
        position.push_back(int32_t(rng.below(longest)));
    }
    const std::vector<float> q = rng.normals(rows * stride), slopes = rng.normals(heads, 0.1f), sinks = rng.normals(heads, 3);
    const int64_t splits = (max_pages * page_keys + attention_split - 1) / attention_split;
    std::vector<float> want(size_t(rows * heads * dim)), got = want, partials(size_t(rows * heads * splits * (dim + 2)));
    AttentionArgs a{q.data(), alibi ? slopes.data() : nullptr, sunk ? sinks.data() : nullptr, want.data(), nullptr,
                    where(cache, sequence, position), rows, heads, stride, heads * dim, window, 1 + rng.below(rows), splits,
                    float(1 / sqrt(double(dim))), softcap};
    const int64_t units = (rows + a.unit_rows - 1) / a.unit_rows * kv_heads;
    plain.attention(a, 0, units);
    a.out = got.data();
    fast.attention(a, 0, units);
    // A score is off by at most dim * eps * scale * |q| |k| <= dim * eps * sqrt(dim) * 9, ALiBi by an ulp of 0.3 * longest;
    // a weight by e times that, and |v| <= 3. Random errors are far below this bound: a twentieth of it is allowed.
    // Queries and weights in bf16 add a few times 2^-9.
    const double score_error = eps * (double(dim) * sqrt(double(dim)) * 9 + (alibi ? 0.3 * double(longest) : 0));
    const double bound = 3 * (2 * score_error + eps * double(longest));
    // So do those of a device's tensor cores, in the pages' type.
    const bool on_device = fast.sample_counts, tiles = on_device && dim % 32 == 0;
    const bool rounded = on_device ? tiles && dtype == DType::bf16 : fast.row_input != RowInput::f32 && (dtype == DType::bf16 || dtype == DType::i8);
    const double coarse = rounded ? 0.06 : tiles && (dtype == DType::f16 || dtype == DType::i8) ? 0.06 / 8 : 0;
    check("attention" + what, got, want, std::vector<double>(want.size(), (bound / 20 + 8 * eps + coarse) * size));

    auto split = [&](Kernels& tier, const std::vector<float>& whole) {  // partials, merged, have the same bits
        std::vector<float> merged(whole.size());
        AttentionArgs b = a;
        b.partials = partials.data();
        b.out = merged.data();
        tier.attention(b, 0, units * splits);
        tier.attention_merge(b, 0, rows * heads);
        check("attention in splits" + what, merged, whole, std::vector<double>(whole.size(), 0));
    };
    split(plain, want);
    split(fast, got);
    // A row alone has the same bits; on a device, of tiles, one of few rows among few and one of many among many.
    const int64_t least = tiles && dtype != DType::f32 && rows > 64 ? 65 : 1;
    for (int64_t r = 0; r + least <= rows; r += least > 1 ? 11 : 1) {
        std::vector<float> alone(size_t(least * heads * dim));
        AttentionArgs b = a;
        b.q += r * stride;
        b.pages.sequences += r;
        b.pages.positions += r;
        b.out = alone.data();
        b.rows = least, b.unit_rows = 1;
        fast.attention(b, 0, least * kv_heads);
        check("attention row alone", alone, std::vector<float>(got.begin() + r * heads * dim, got.begin() + (r + least) * heads * dim),
              std::vector<double>(alone.size(), 0));
    }
}

// Rotation and writing as one, against one after the other; keys among the heads that turn, or elsewhere.
void check_rope_kv_write(int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, DType dtype, bool interleaved, bool among) {
    const int64_t width = (heads + 2 * kv_heads) * dim, half = interleaved ? dim / 4 : dim / 2, pages = 3, max_pages = 1;
    std::vector<float> x = rng.normals(rows * width), y = x;
    const std::vector<float> angles = rng.normals(rows * 2 * half);
    const std::vector<int32_t> table = {2, 0, 1};
    std::vector<int32_t> owner, position;
    for (int64_t r = 0; r < rows; r++) owner.push_back(int32_t(r % pages)), position.push_back(int32_t(rng.below(page_keys)));
    Pages want(pages * kv_heads * page_keys, dim, dtype), got = want;
    auto args = [&](std::vector<float>& all, Pages& p) {
        const KvPages place{p.k.data(), p.v.data(), p.k_scales.data(), p.v_scales.data(), table.data(), owner.data(), position.data(), kv_heads,
                            pages, dim, max_pages, dtype};
        float* k = all.data() + heads * dim;
        return RopeKvWriteArgs{{all.data(), angles.data(), heads + (among ? kv_heads : 0), dim, half, width, interleaved},
                               {k, k + kv_heads * dim, width, place}};
    };
    plain.rope_kv_write(args(x, want), 0, rows);
    fast.rope_kv_write(args(y, got), 0, rows / 2);
    fast.rope_kv_write(args(y, got), rows / 2, rows);
    check("rope_kv_write " + std::to_string(dim), y, x, std::vector<double>(x.size(), eps * 40));
    // Where a tier contracts products, another bit may be rounded to another code.
    if (x == y && (want.k != got.k || want.v != got.v)) {
        printf("rope_kv_write differs: heads %ld dim %ld type %d\n", long(heads), long(dim), int(dtype));
        failures++;
    }
}
