// Functions over the vocabulary of vec_*.h: the same arithmetic on every tier, and on CUDA.

constexpr float infinity = __builtin_inff();

// e^(x - n ln 2) - 1, where that is within ln 2 / 2: r + r^2 p(r) with p a minimax fit (relative error of e^r 3.3e-9).
INLINE vec exp_rest(vec x, vec n) {
    vec r = fma(n, set1(-0.693145752f), x);  // ln 2 in two parts, the first with zeros at its end
    r = fma(n, set1(-1.42860677e-6f), r);
    vec p = set1(1.3813145e-3f);
    p = fma(p, r, set1(8.3694188e-3f));
    p = fma(p, r, set1(4.1668456e-2f));
    p = fma(p, r, set1(1.6666515e-1f));
    p = fma(p, r, set1(4.9999994e-1f));
    return fma(r * r, p, r);
}

// e^x within 1 ulp (0.991 measured); denormal, zero, infinite and NaN results as they should be.
INLINE vec exp(vec x) {
    x = min(set1(89.0f), max(set1(-105.0f), x));
    const vec n = round(x * set1(1.44269504f));
    return scale_by_power(exp_rest(x, n) + set1(1.0f), n);
}

// (e^2x - 1) / (e^2x + 1) within 2 ulp, small results too: 2^n - 1 is exact.
INLINE vec tanh(vec x) {
    x = min(set1(20.0f), max(set1(-20.0f), x + x));
    const vec n = round(x * set1(1.44269504f)), power = times_power(set1(1.0f), n);
    const vec e = fma(power, exp_rest(x, n), power - set1(1.0f));
    return e / (e + set1(2.0f));
}

INLINE vec sigmoid_times(vec x, vec y) { return x / (set1(1.0f) + exp(set1(0.0f) - y)); }

// x times the normal distribution's integral. With a = |x| / sqrt 2, erfc(a) = exp(-a^2) p(s) / (1 + 2 a) where
// s = (a - 2) / (a + 2) and p is a minimax fit of (1 + 2 a) exp(a^2) erfc(a) (relative error 1.3e-8).
INLINE vec gelu(vec x) {
    const vec a = min(set1(15.0f), abs(x) * set1(0.707106781f));
    const vec s = (a - set1(2.0f)) / (a + set1(2.0f));
    vec p = set1(-4.01715137e-4f);
    p = fma(p, s, set1(-1.23187713e-3f));
    p = fma(p, s, set1(1.31372246e-3f));
    p = fma(p, s, set1(8.63327086e-3f));
    p = fma(p, s, set1(-8.05959944e-3f));
    p = fma(p, s, set1(-5.42047098e-2f));
    p = fma(p, s, set1(1.64055273e-1f));
    p = fma(p, s, set1(-1.66031390e-1f));
    p = fma(p, s, set1(-9.27639753e-2f));
    p = fma(p, s, set1(1.27697837f));
    const vec square = a * a;
    const vec lost = fma(a, a, set1(0.0f) - square);  // of a^2 by rounding; counts where a is large
    const vec e = exp(set1(0.0f) - square);
    const vec erfc = fma(set1(0.0f) - lost, e, e) * p / fma(set1(2.0f), a, set1(1.0f));
    const vec tail = set1(0.5f) * min(set1(22.0f), x) * erfc;  // erfc is 0 by then, and 0 times infinity is not
    return select(less(x, zero()), tail, x - tail);
}

template <Activation kind>
INLINE vec activate(vec x) {
    if (kind == Activation::gelu) return gelu(x);
    if (kind == Activation::gelu_tanh) {  // 0.5 (1 + tanh y) = 1 / (1 + exp(-2 y))
        const vec cube = x * x * x;
        return sigmoid_times(x, set1(1.59576912f) * fma(set1(0.044715f), cube, x));
    }
    if (kind == Activation::relu) return select(less(x, zero()), zero(), x);  // a NaN stays one
    return sigmoid_times(x, x);
}

template <Activation kind>
INLINE vec gate(vec x, vec up) {
    if (kind != Activation::swiglu_oai) return activate<kind>(x) * up;
    const vec g = min(set1(7.0f), x), u = max(set1(-7.0f), min(set1(7.0f), up));
    return sigmoid_times(g, set1(1.702f) * g) * (u + set1(1.0f));
}

template <Activation kind>
struct Kind {
    static constexpr Activation value = kind;
};

// Calls f with the kind as a type.
template <class F>
INLINE auto with_kind(Activation kind, F f) {
    switch (kind) {
        case Activation::gelu: return f(Kind<Activation::gelu>());
        case Activation::gelu_tanh: return f(Kind<Activation::gelu_tanh>());
        case Activation::relu: return f(Kind<Activation::relu>());
        case Activation::swiglu_oai: return f(Kind<Activation::swiglu_oai>());
        case Activation::silu: break;
    }
    return f(Kind<Activation::silu>());
}
