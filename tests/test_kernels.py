"""Element-wise kernels, norms, rope, pages and logits on every tier against float64, over awkward sizes and values."""

import math

import numpy as np
import pytest
from kernel_helpers import (DTYPES, EPS, TINY, assert_within, bf16_bits, bf16_values, chain, ints, pytest_tier, same_bits,
                            strided, tensor, values)

from genkit import _core

tier = pytest_tier()
KINDS = ("silu", "gelu", "gelu_tanh", "relu")
DIMS = (1, 2, 7, 15, 16, 17, 33, 64, 80, 257, 1000)


@pytest.fixture(params=(3, 4))
def rng(request):
    return np.random.default_rng(request.param)


# ---- storage types ---------------------------------------------------------------------------------------------


def test_convert_widens_every_value_exactly(tier):
    every = np.arange(2**16, dtype=np.uint16)
    half = _core.convert(_core.Tensor.from_numpy(every.view(np.float16)), "f32").numpy()
    np.testing.assert_array_equal(half, every.view(np.float16).astype(np.float32))
    brain = _core.convert(_core.Tensor.from_numpy(every, dtype="bf16"), "f32").numpy()
    np.testing.assert_array_equal(brain, bf16_values(every).astype(np.float32))


def hard_floats(rng):
    """Random bit patterns, every midpoint between neighbours of both small types and its neighbours, and edges."""
    every = np.arange(2**16, dtype=np.uint16)
    half = every[(every & 0x7C00) != 0x7C00].view(np.float16).astype(np.float32)
    step = np.where(np.abs(half) < 2**-14, np.float32(2**-24), np.exp2(np.floor(np.log2(np.abs(half) + TINY)) - 10))
    middle = (half + np.float32(0.5) * step.astype(np.float32)).astype(np.float32)
    brain_middle = (every.astype(np.uint32) << 16) | 0x8000
    near = np.concatenate([middle.view(np.uint32), brain_middle])
    bits = np.concatenate([near, near + 1, near - 1, rng.integers(0, 2**32, 20011, dtype=np.uint64).astype(np.uint32)])
    edges = np.array([0, -0.0, 65504, 65519.996, 65520, -65520, 1e-40, 2.0**-25, 3.4e38, np.inf, -np.inf, np.nan], np.float32)
    return np.concatenate([bits.astype(np.uint32).view(np.float32), edges])


def test_convert_rounds_to_nearest_even(tier, rng):
    x = hard_floats(rng)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(np.float16)
    got = _core.convert(tensor(x), "f16").numpy()
    np.testing.assert_array_equal(got, want)
    assert np.array_equal(np.signbit(got), np.signbit(want))
    got = _core.convert(tensor(x), "bf16").numpy()
    finite = ~np.isnan(x)
    np.testing.assert_array_equal(got[finite], bf16_bits(x)[finite])
    assert np.isnan(bf16_values(got[~finite])).all() and (~finite).sum() > 50


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_convert_every_pair_and_length(tier, rng, source, target):
    for count in (0, 1, 5, 16, 31, 5003):
        x = tensor(rng.standard_normal(count), source)
        assert same_bits(_core.convert(x, target).numpy(), tensor(values(x), target).numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
def test_embedding(tier, rng, dtype, dim):
    table = tensor(rng.standard_normal((13, dim)), dtype)
    for rows in (0, 1, 29):
        ids = rng.integers(0, 13, rows)
        np.testing.assert_array_equal(_core.embedding(ints(ids), table).numpy(), values(table)[ids])


# ---- norms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
def test_rms_norm(tier, rng, dim):
    weight = rng.standard_normal(dim)
    for rows, scale in ((1, 1e-3), (6, 1.0), (0, 1.0), (3, 1e6)):
        x = (rng.standard_normal((rows, dim)) * scale).astype(np.float32)
        w = weight.astype(np.float32).astype(np.float64)
        wide = x.astype(np.float64)
        want = wide / np.sqrt((wide**2).mean(1, keepdims=True) + float(np.float32(1e-5))) * w
        for view in (tensor(x), strided(x, 3, 2)):
            assert_within(_core.rms_norm(view, tensor(weight), 1e-5).numpy(), want, EPS * chain(dim) * np.abs(want))


@pytest.mark.parametrize("dim", (16, 20, 64, 80, 128))
def test_rms_norm_heads_in_place(tier, rng, dim):
    heads, rows = 3, 5
    x = rng.standard_normal((rows, heads * dim)).astype(np.float32)
    weight = rng.standard_normal(dim).astype(np.float32)
    view = strided(x, 1, 6)
    _core.rms_norm_heads_(view, tensor(weight), 1e-6)
    wide = x.astype(np.float64).reshape(rows, heads, dim)
    want = (wide / np.sqrt((wide**2).mean(2, keepdims=True) + 1e-6) * weight).reshape(rows, -1)
    assert_within(view.numpy(), want, EPS * chain(dim) * np.abs(want))


def layer_normed(x, weight, bias, eps):
    """float64 over the last axis, and the error allowed. The mean is off by a chain of roundings of |x|; so is every
    difference, and the deviation relatively."""
    wide, dim = x.astype(np.float64), x.shape[-1]
    mean = wide.mean(-1, keepdims=True)
    deviation = np.sqrt(wide.var(-1, keepdims=True) + float(np.float32(eps)))
    want = (wide - mean) / deviation * weight + bias
    shift = EPS * chain(dim) * np.abs(wide).mean(-1, keepdims=True) + EPS * np.abs(wide)
    allowed = np.abs(weight) / deviation * (shift + EPS * chain(dim) * np.abs(wide - mean)) \
        + np.abs(weight) * np.abs(wide - mean) / deviation**2 * shift.max(-1, keepdims=True, initial=0) \
        + EPS * np.abs(want) + EPS * np.abs(bias)
    return want, allowed


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("biased", (True, False))
def test_layer_norm(tier, rng, dim, biased):
    weight, bias = rng.standard_normal((2, dim)).astype(np.float32)
    for rows, offset in ((1, 0.0), (5, 3.0), (0, 0.0)):
        x = (rng.standard_normal((rows, dim)) + offset).astype(np.float32)
        want, allowed = layer_normed(x, weight, bias if biased else 0 * bias, 1e-5)
        for view in (tensor(x), strided(x, 5, 1)):
            got = _core.layer_norm(view, tensor(weight), tensor(bias) if biased else None, 1e-5).numpy()
            assert_within(got, want, allowed)


@pytest.mark.parametrize("dim", (2, 20, 64, 80))
@pytest.mark.parametrize("own", (True, False))
@pytest.mark.parametrize("biased", (True, False))
def test_layer_norm_heads_in_place(tier, rng, dim, own, biased):
    heads, rows = 3, 5
    x = rng.standard_normal((rows, heads * dim)).astype(np.float32)
    weight, bias = rng.standard_normal((2, heads, dim) if own else (2, dim)).astype(np.float32)
    view = strided(x, 1, 6)
    _core.layer_norm_heads_(view, tensor(weight), tensor(bias) if biased else None, 1e-5)
    want, allowed = layer_normed(x.reshape(rows, heads, dim), weight, bias if biased else 0 * bias, 1e-5)
    assert_within(view.numpy(), want.reshape(rows, -1), allowed.reshape(rows, -1))


# ---- element-wise, softmax -------------------------------------------------------------------------------------


def activate(kind, x):
    x = np.asarray(x, np.float64)
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "gelu":
        return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.ravel()]).reshape(x.shape)
    y = x if kind == "silu" else 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-y))


def activation_error(x, want):
    # Each is x times e to a power of at most |x|, x^2 / 2 or 1.6 x + 0.072 x^3, whose roundings the result repeats.
    size = np.abs(x)
    return EPS * (12 + 4 * (size + size**2 / 2 + 0.072 * size**3)) * np.abs(want) + TINY * (1 + size)  # e^88.7 overflows


@pytest.mark.parametrize("kind", KINDS)
def test_activation_and_gated(tier, rng, kind):
    for dim in DIMS:
        for rows in (0, 1, 3):
            x = (rng.standard_normal((rows, 2 * dim)) * rng.choice([0.1, 1, 5])).astype(np.float32)
            want = activate(kind, x)
            for view in (tensor(x), strided(x, 7, 4)):
                assert_within(_core.activation(view, kind).numpy(), want, activation_error(x, want), kind)
                gate = want[:, :dim] * x[:, dim:]
                assert_within(_core.gated(view, kind).numpy(), gate,
                              activation_error(x[:, :dim], gate) + TINY * np.abs(x).max(initial=1)**2, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_over_the_whole_range(tier, kind):
    x = np.concatenate([np.linspace(-14, 14, 40001), np.logspace(-30, 3, 999), -np.logspace(-30, 0, 999)]).astype(np.float32)
    want = activate(kind, x)
    assert_within(_core.activation(tensor(x[None]), kind).numpy()[0], want, activation_error(x, want), kind)
    odd = np.array([[np.inf, 3e38, -1e30, -0.0, np.nan]], np.float32)
    got = _core.activation(tensor(odd), kind).numpy()[0]
    assert got[0] == np.inf and got[1] == odd[0, 1] and got[2] == 0 and got[3] == 0 and np.isnan(got[4])


def test_swiglu_oai(tier, rng):
    for dim in DIMS:
        x = (rng.standard_normal((3, 2 * dim)) * rng.choice([0.3, 3, 30], (3, 1))).astype(np.float32)
        gate, up = np.minimum(x[:, :dim], 7).astype(np.float64), np.clip(x[:, dim:], -7, 7).astype(np.float64)
        want = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
        for view in (tensor(x), strided(x, 7, 4)):
            assert_within(_core.gated(view, "swiglu_oai").numpy(), want,
                          EPS * (12 + 8 * np.abs(gate)) * np.abs(want) + EPS * np.abs(gate) + TINY * 99)
    odd = np.array([[np.inf, -np.inf, -1e30, np.nan, 1, 1e30, 2, 3, 4, np.nan]], np.float32)
    got = _core.gated(tensor(odd), "swiglu_oai").numpy()[0]
    assert_within(got[0], 7 / (1 + math.exp(-1.702 * 7)) * 8, 20 * EPS * 56)
    assert np.isnan(got[[3, 4]]).all() and got[2] == 0


@pytest.mark.parametrize("shape", ((0, 3), (1, 1), (3, 17), (7, 1001)))
def test_add(tier, rng, shape):
    a, b = rng.standard_normal((2, *shape)).astype(np.float32)
    np.testing.assert_array_equal(_core.add(tensor(a), tensor(b)).numpy(), a + b)
    for scale in (0.22, -3.0, 0.0):
        part = float(np.float32(scale)) * b.astype(np.float64)
        assert_within(_core.add(tensor(a), tensor(b), scale).numpy(), a + part, EPS * (np.abs(a) + np.abs(part)))


@pytest.mark.parametrize("shape", ((0, 3), (5,), (3, 17), (2, 3, 401)))
def test_scale(tier, rng, shape):
    x = (rng.standard_normal(shape) * 40).astype(np.float32)
    np.testing.assert_array_equal(_core.scale(tensor(x), 0.3).numpy(), x * np.float32(0.3))
    for cap in (0.5, 30.0):
        want = cap * np.tanh((x * np.float32(0.3)).astype(np.float64) / cap)
        assert_within(_core.scale(tensor(x), 0.3, cap).numpy(), want, 5 * EPS * np.abs(want))


def test_softcap_over_the_whole_range(tier):
    size = np.concatenate([np.linspace(0, 14, 40001), np.logspace(-30, 38, 2999)]).astype(np.float32)
    x = np.concatenate([size, -size])
    want = np.tanh(x.astype(np.float64))
    got = _core.scale(tensor(x), 1.0, 1.0).numpy()
    assert_within(got, want, 4 * EPS * np.abs(want))
    assert np.abs(got).max() == 1
    got = _core.scale(tensor([np.inf, -np.inf, np.nan]), 1.0, 8.0).numpy()
    assert got[0] == 8 and got[1] == -8 and np.isnan(got[2])


@pytest.mark.parametrize("width,more", ((1, 0), (7, 5), (40, 0), (64, 33), (200, 77)))
def test_gather_columns(tier, rng, width, more):
    both = np.arange(width + more)
    indices = [rng.integers(-1, width + more, 3 * width), both, np.roll(both, 5), np.repeat(both, 2), np.empty(0, np.int64),
               np.concatenate([both[width // 2:], np.full(19, -1), both[::-1], [-1], both])]
    for rows in (0, 1, 6):
        x, y = (rng.standard_normal((rows, n)).astype(np.float32) for n in (width, more))
        wide = np.concatenate([x, y, np.zeros((rows, 1), np.float32)], 1)
        for index in indices:
            got = _core.gather_columns(strided(x, 3, 1), ints(index), strided(y, 2, 9) if more else None).numpy()
            np.testing.assert_array_equal(got, wide[:, index])


@pytest.mark.parametrize("dim", (*DIMS, 5003))
def test_softmax(tier, rng, dim):
    for rows, scale, offset in ((0, 1, 0), (1, 1, 0), (4, 20, 1e4)):
        x = (rng.standard_normal((rows, dim)) * scale + offset).astype(np.float32)
        x[rng.random((rows, dim)) < 0.1] = -np.inf
        x[:, :1] = offset  # one at least is finite
        shifted = x.astype(np.float64) - x.max(1, keepdims=True, initial=-np.inf)
        total = np.exp(shifted).sum(1, keepdims=True)
        want = np.exp(shifted) / total
        finite = np.where(np.isinf(shifted), 0, -shifted)
        assert_within(_core.softmax(tensor(x)).numpy(), want, EPS * (chain(dim) + finite) * want + TINY)
        assert_within(_core.log_softmax(tensor(x)).numpy(), shifted - np.log(total),
                      EPS * (chain(dim) + 2 * finite + np.log(total)))


def test_softmax_shows_nan(tier, rng):
    for dim in (5, 16, 300):
        for poison in (np.nan, np.inf):
            x = rng.standard_normal((3, dim)).astype(np.float32)
            x[1, rng.integers(dim)] = poison
            got = _core.softmax(tensor(x)).numpy()
            assert np.isnan(got[1]).any() and np.isfinite(got[[0, 2]]).all()


# ---- rope, pages -----------------------------------------------------------------------------------------------


def test_rope_table(tier, rng):
    positions = np.array([0, 1, 63, 64, 1000, 131071])
    inv_freq = (10000.0 ** (-np.arange(20) / 20)).astype(np.float32)
    angle = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    got = _core.rope_table(ints(positions), tensor(inv_freq), 1.25).numpy()
    assert_within(got, np.concatenate([np.cos(angle), np.sin(angle)], 1) * 1.25, EPS * 1.25)


@pytest.mark.parametrize("head_dim,half", ((16, 8), (20, 10), (64, 32), (80, 40), (80, 10), (96, 48), (128, 16), (7, 3)))
@pytest.mark.parametrize("interleaved", (False, True))
def test_rope(tier, rng, head_dim, half, interleaved):
    heads = 3
    for rows in (0, 1, 5):
        x = rng.standard_normal((rows, heads * head_dim)).astype(np.float32)
        table = rng.standard_normal((rows, 2 * half)).astype(np.float32)
        view = strided(x, 2, 5)
        _core.rope_(view, tensor(table), head_dim, interleaved)
        want = x.astype(np.float64).reshape(rows, heads, head_dim)
        first, second = np.arange(half) * 2, np.arange(half) * 2 + 1
        if not interleaved:
            first, second = np.arange(half), np.arange(half) + half
        a, b = want[:, :, first].copy(), want[:, :, second].copy()
        cosine, sine = table[:, None, :half].astype(np.float64), table[:, None, half:].astype(np.float64)
        size = np.zeros_like(want)
        want[:, :, first], want[:, :, second] = a * cosine - b * sine, b * cosine + a * sine
        size[:, :, first] = np.abs(a * cosine) + np.abs(b * sine)
        size[:, :, second] = np.abs(b * cosine) + np.abs(a * sine)
        assert_within(view.numpy(), want.reshape(x.shape), 2 * EPS * size.reshape(x.shape))


def test_kv_write_and_copy_pages(tier, rng):
    kv_heads, dim, pages, max_pages, rows = 3, 20, 9, 4, 40
    table = rng.permutation(pages)[:2 * max_pages].reshape(2, max_pages)
    places = rng.permutation(2 * max_pages * _core.PAGE_KEYS)[:rows]
    sequences, positions = places // (max_pages * _core.PAGE_KEYS), places % (max_pages * _core.PAGE_KEYS)
    k, v = rng.standard_normal((2, rows, kv_heads * dim)).astype(np.float32)
    shape = (kv_heads, pages, _core.PAGE_KEYS, dim)
    k_pages, v_pages = _core.Tensor.zeros(shape), _core.Tensor.zeros(shape)
    _core.kv_write(strided(k, 3, 3), strided(v, 4, 2), k_pages, v_pages, ints(table), ints(sequences), ints(positions))
    want_k = np.zeros((kv_heads, pages, _core.PAGE_KEYS // 16, dim, 16), np.float32)
    want_v = np.zeros(shape, np.float32)
    for r in range(rows):
        page, slot = table[sequences[r], positions[r] // _core.PAGE_KEYS], positions[r] % _core.PAGE_KEYS
        want_k[:, page, slot // 16, :, slot % 16] = k[r].reshape(kv_heads, dim)
        want_v[:, page, slot] = v[r].reshape(kv_heads, dim)
    np.testing.assert_array_equal(k_pages.numpy(), want_k.reshape(shape))
    np.testing.assert_array_equal(v_pages.numpy(), want_v)

    _core.copy_pages(k_pages, ints([0, 3]), ints([7, 5]))
    want = want_k.reshape(shape).copy()
    want[:, 7], want[:, 5] = want[:, 0], want[:, 3]
    np.testing.assert_array_equal(k_pages.numpy(), want)


# ---- logits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
def test_argmax_and_nonfinite(tier, rng, dim):
    x = rng.integers(-4, 4, (40, dim)).astype(np.float32)  # many equals
    x[x == 0] *= rng.choice([1, -1], (x == 0).sum())  # -0 equals 0
    x[1] = -rng.random(dim) - 1e30
    for row, poison in ((2, np.nan), (3, np.inf), (4, -np.inf)):
        x[row, rng.integers(dim)] = poison
    x[5] = -np.inf
    x[6, rng.integers(dim)] = 1e38
    want = np.where((x == -np.inf).all(1), -2, np.argmax(x, 1))
    want[np.isnan(x).any(1) | (x == np.inf).any(1)] = -1
    np.testing.assert_array_equal(_core.argmax(tensor(x)).numpy(), want)
    np.testing.assert_array_equal(_core.nonfinite(tensor(x)).numpy(), (~np.isfinite(x)).sum(1))
    assert _core.argmax(tensor(x[:0])).numpy().shape == (0,)


@pytest.mark.parametrize("dim", (1, 7, 33, 1000))
def test_top_k(tier, rng, dim):
    x = rng.integers(-30, 30, (5, dim)).astype(np.float32)
    order = np.argsort(-x, axis=1, kind="stable")
    for k in {1, min(5, dim), (dim + 1) // 2, dim}:
        top_values, ids = _core.top_k(tensor(x), k)
        np.testing.assert_array_equal(ids.numpy(), order[:, :k])
        np.testing.assert_array_equal(top_values.numpy(), np.take_along_axis(x, order[:, :k], 1))


def test_bias(tier, rng):
    logits = rng.standard_normal((3, 50)).astype(np.float32)
    ids, values = rng.permutation(50)[:20], rng.standard_normal(20).astype(np.float32)
    values[4], want = -np.inf, logits.copy()
    want[:, ids] += values
    got = tensor(logits)
    _core.bias_(got, ints(ids), tensor(values))
    np.testing.assert_array_equal(got.numpy(), want)
    with pytest.raises(ValueError, match=r"\[bias_\] ids\[0\] is 50; expected 0 to 49"):
        _core.bias_(got, ints([50]), tensor(values[:1]))
