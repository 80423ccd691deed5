// A part of kernel_check.cpp: what has a row, or an element, at a time.

void check_convert() {
    const std::vector<float> special = {0.0f, -0.0f, 1.0f, -2.5f, 65504.0f, 65519.9f, 65520.0f, 6.1e-5f, 6.0e-8f, 2.9e-8f,
                                        3.0e-8f, 1e-40f, 3.4e38f, INFINITY, -INFINITY, NAN, 1.00390625f, 1.01171875f};
    std::vector<float> x = rng.normals(1000);
    for (size_t i = 0; i < 300; i++) x[i] = from_bits(uint32_t(rng.below(int64_t(1) << 32)));
    x.insert(x.end(), special.begin(), special.end());
    const int64_t n = int64_t(x.size());
    const DType types[] = {DType::f32, DType::f16, DType::bf16};
    for (DType in : types) {
        std::vector<float> source = x;
        if (in != DType::f32) plain.convert({x.data(), source.data(), DType::f32, in}, 0, n);
        for (DType out : types) {
            std::vector<float> got(x.size()), want(x.size());
            const int64_t middle = rng.below(n);
            plain.convert({source.data(), want.data(), in, out}, 0, n);
            fast.convert({source.data(), got.data(), in, out}, 0, middle);
            fast.convert({source.data(), got.data(), in, out}, middle, n);
            std::vector<float> wide_got(x.size()), wide_want(x.size());
            plain.convert({got.data(), wide_got.data(), out, DType::f32}, 0, n);
            plain.convert({want.data(), wide_want.data(), out, DType::f32}, 0, n);
            check("convert " + std::to_string(int(in)) + " to " + std::to_string(int(out)), wide_got, wide_want,
                  relative(wide_want, 0));
        }
    }
}

void check_rows(int64_t rows, int64_t dim) {
    const int64_t stride = 2 * dim + 5;
    const std::vector<float> x = rng.normals(rows * stride, 3), weight = rng.normals(dim), bias = rng.normals(dim);
    const std::string size = " " + std::to_string(rows) + " x " + std::to_string(dim);
    std::vector<float> got(size_t(rows * dim)), want = got;
    const double sum_error = double(dim) / 4 + 16;

    RmsNormArgs rms{x.data(), weight.data(), want.data(), dim, 1, stride, dim, 1e-5f};
    plain.rms_norm(rms, 0, rows);
    rms.out = got.data();
    fast.rms_norm(rms, 0, rows);
    check("rms_norm" + size, got, want, relative(want, sum_error));

    LayerNormArgs layer{x.data(), weight.data(), bias.data(), want.data(), dim, 1, stride, dim, 0, 1e-5f};
    plain.layer_norm(layer, 0, rows);
    layer.out = got.data();
    fast.layer_norm(layer, 0, rows);
    if (dim > 1) check("layer_norm" + size, got, want, std::vector<double>(want.size(), 40 * sum_error * eps));
    for (bool own : {false, true}) {  // heads in place
        std::vector<float> heads_want = x, heads_got = x;
        const std::vector<float> weights = rng.normals(2 * dim), biases = rng.normals(2 * dim);
        LayerNormArgs a{heads_want.data(), weights.data(), own ? biases.data() : nullptr, heads_want.data(), dim, 2, stride, stride,
                        own ? dim : 0, 1e-5f};
        plain.layer_norm(a, 0, 2 * rows);
        a.x = a.out = heads_got.data();
        fast.layer_norm(a, 0, rows);
        fast.layer_norm(a, rows, 2 * rows);
        const std::string what = "layer_norm of heads" + size;
        if (dim > 1) check(what, heads_got, heads_want, std::vector<double>(x.size(), 40 * sum_error * eps));
    }

    std::vector<double> factor;  // each is x times e to some power at its tail, whose rounding the result repeats
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t i = 0; i < dim; i++) {
            const double v = fabs(double(x[size_t(r * stride + i)]));
            factor.push_back(eps * (16 + 4 * (v + v * v / 2 + 0.072 * v * v * v)));
        }
    }
    auto tail_error = [&] {
        std::vector<double> allowed;
        for (size_t i = 0; i < want.size(); i++) allowed.push_back(factor[i] * fabs(double(want[i])) + 1e-37);
        return allowed;
    };
    for (Activation kind : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
        ActivationArgs act{x.data(), want.data(), dim, stride, kind};
        plain.activation(act, 0, rows);
        act.out = got.data();
        fast.activation(act, 0, rows);
        check("activation" + size, got, want, tail_error());
        GatedArgs gate{x.data(), want.data(), dim, stride, kind};
        plain.gated(gate, 0, rows);
        gate.out = got.data();
        fast.gated(gate, 0, rows);
        check("gated" + size, got, want, tail_error());
    }
    GatedArgs oai{x.data(), want.data(), dim, stride, Activation::swiglu_oai};
    plain.gated(oai, 0, rows);
    oai.out = got.data();
    fast.gated(oai, 0, rows);
    check("swiglu_oai" + size, got, want, relative(want, 100, 16 * eps));
    const std::vector<float> packed = rng.normals(rows * dim, 3), other = rng.normals(rows * dim);
    for (bool log : {false, true}) {
        SoftmaxArgs soft{packed.data(), want.data(), dim, log};
        plain.softmax(soft, 0, rows);
        soft.out = got.data();
        fast.softmax(soft, 0, rows);
        check("softmax" + size, got, want, relative(want, log ? 8 : sum_error, log ? eps * (sum_error + 32) : 0));
    }
    for (float factor : {1.0f, 0.3f}) {
        plain.add({packed.data(), other.data(), want.data(), factor}, 0, rows * dim);
        fast.add({packed.data(), other.data(), got.data(), factor}, 0, rows * dim);
        check("add" + size, got, want, factor == 1 ? relative(want, 0) : relative(want, 1, 2 * eps));
        const float softcap = factor == 1 ? 0 : 2;
        plain.scale({packed.data(), want.data(), factor, softcap}, 0, rows * dim);
        fast.scale({packed.data(), got.data(), factor, softcap}, 0, rows * dim);
        check("scale" + size, got, want, relative(want, softcap > 0 ? 6 : 0));
    }
    std::vector<int32_t> columns;
    for (int64_t i = 0; i < dim; i++) columns.push_back(int32_t(rng.below(2) ? rng.below(2 * dim + 1) - 1 : (dim / 2 + i) % (2 * dim)));
    GatherColumnsArgs gather{x.data(), packed.data(), columns.data(), want.data(), dim, dim, stride, dim};
    for (bool shifted : {false, true}) {
        for (int64_t i = 0; shifted && i < dim; i++) columns[size_t(i)] = int32_t(dim / 2 + i);
        gather.out = want.data();
        plain.gather_columns(gather, 0, rows);
        gather.out = got.data();
        fast.gather_columns(gather, 0, rows);
        check("gather_columns" + size, got, want, relative(want, 0));
    }

    for (float poison : {0.0f, NAN, INFINITY, -INFINITY}) {
        std::vector<float> y = packed;
        y[size_t(rng.below(rows * dim))] = y[size_t(rng.below(rows * dim))] = poison;
        if (poison == -INFINITY) {
            for (int64_t i = 0; i < dim; i++) y[i] = poison;
        }
        std::vector<int32_t> a(static_cast<size_t>(rows)), b = a, c = a, d = a;
        plain.argmax({y.data(), a.data(), dim}, 0, rows);
        fast.argmax({y.data(), b.data(), dim}, 0, rows);
        plain.nonfinite({y.data(), c.data(), dim}, 0, rows);
        fast.nonfinite({y.data(), d.data(), dim}, 0, rows);
        if (a != b || c != d) {
            printf("argmax or nonfinite%s differs\n", size.c_str());
            failures++;
        }
    }

    std::vector<int32_t> biased;
    for (int64_t i = 0; i < dim; i++)
        if (rng.below(3) == 0) biased.push_back(int32_t(i));
    std::vector<float> added = rng.normals(int64_t(biased.size()), 5);
    if (!added.empty()) added[0] = -INFINITY;
    want = packed, got = packed;
    plain.bias({want.data(), biased.data(), added.data(), dim, int64_t(biased.size())}, 0, rows);
    fast.bias({got.data(), biased.data(), added.data(), dim, int64_t(biased.size())}, 0, rows);
    if (got != want) {
        printf("bias%s differs\n", size.c_str());
        failures++;
    }

    const std::vector<bf16> table = narrowed<bf16>(packed);
    std::vector<int32_t> ids;
    for (int64_t r = 0; r < rows; r++) ids.push_back(int32_t(rng.below(rows)));
    plain.embedding({ids.data(), table.data(), want.data(), dim, DType::bf16}, 0, rows);
    fast.embedding({ids.data(), table.data(), got.data(), dim, DType::bf16}, 0, rows);
    check("embedding" + size, got, want, relative(want, 0));

    for (bool interleaved : {false, true}) {
        const int64_t half = dim / 2, heads = 2;
        std::vector<float> angles = rng.normals(rows * 2 * half), p = rng.normals(rows * stride), q = p;
        std::vector<double> allowed;
        for (int64_t i = 0; i < rows * stride; i++) allowed.push_back(eps * 40);
        plain.rope({p.data(), angles.data(), heads, dim, half, stride, interleaved}, 0, rows);
        fast.rope({q.data(), angles.data(), heads, dim, half, stride, interleaved}, 0, rows);
        check("rope" + size, q, p, allowed);
    }
}
