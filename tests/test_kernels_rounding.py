"""round_weight on every tier: the same bits as the reference, ranges that the packed layouts allow, and the squared error:
of a search never above that of rounding to nearest, by float64."""

import numpy as np
import pytest
from kernel_helpers import pytest_tier, same_bits, tensor, values

from genkit import _core
from genkit.quant.codes import Codes, depth_of, groups_of, widen
from genkit.quant.formats import Format

tier = pytest_tier()

TWO_LEVEL = Format("int4_two_level")
FORMATS = [TWO_LEVEL,
           *(Format("int4", group, zero, scales) for group in (32, 64, 128, 256) for zero in ("none", "integer", "real")
             for scales in ("f16", "bf16")),
           *(Format("int8", group, "none", scales) for group in (32, 64, 128, 256) for scales in ("f16", "bf16"))]
FEW = [TWO_LEVEL, Format("int4", 32), Format("int4", 64, "integer", "bf16"), Format("int4", 128, "real"),
       Format("int8", 256, "none", "bf16")]
SIZES = ((1, 1), (3, 31), (17, 33), (18, 64), (33, 300), (2, 4104))


def rounded(weight, form, search=False, importance=None):
    """(Codes, the bytes of its arrays)."""
    h = None if importance is None else _core.Tensor.from_numpy(importance.astype(np.float32))
    parts = [None if t is None else np.array(t.numpy()).view(np.uint16 if t.dtype in ("f16", "bf16") else t.numpy().dtype)
             for t in _core.round_weight(weight, form.core(), search, h)]
    c = Codes(form, weight.shape[1], *parts)
    return c, {name: array.tobytes() for name, array in c.parts().items()}


def check_ranges(c):
    """Shapes and ranges as pack_weight asks for them, which it then checks itself."""
    n, k = c.shape
    assert c.codes.shape == (n, depth_of(k)) and c.scales.shape == (n, groups_of(k, c.format.group))
    assert set(c.parts()) == {"codes", "scales", *(("subscales", "minima") if c.format == TWO_LEVEL else ()),
                              *(() if c.format.zero == "none" else ("zeros",))}
    if c.format.packing == "int8":
        assert c.codes.dtype == np.int8 and c.codes.min() >= -127
    else:
        assert c.codes.dtype == np.uint8 and c.codes.max() <= 15
    if c.format == TWO_LEVEL:
        u, m = c.subscales.astype(int), c.minima.astype(int)
        assert u.min() >= 1 and u.max() <= 15 and m.max() <= 128 and (15 * u - m).max() <= 127
    if c.format.zero == "integer":
        assert c.zeros.dtype == np.uint8 and c.zeros.max() <= 15
    c.pack()


def weights(rng, n, k):
    """Rows of normal and of heavy-tailed weights at different sizes."""
    w = np.where(rng.random((n, 1)) < 0.5, rng.standard_normal((n, k)), rng.standard_t(3, (n, k)))
    return w * 10.0 ** rng.uniform(-3, 0, (n, 1)) + rng.choice([0, 0, 0.01], (n, 1))


def importances(rng, k):
    return rng.lognormal(0, 1.5, k) * (rng.random(k) > 0.05)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_every_tier_makes_the_same_bits(form):
    rng = np.random.default_rng()
    for n, k in SIZES if form in FEW else SIZES[2:5]:
        w = weights(rng, n, k)
        if n > 4:
            w[1], w[2], w[3, k // 2] = 0, w[2] * 1e-6, 1e30
            w[4, -1] = rng.choice([np.nan, np.inf])
        for dtype in ("f32", "f16", "bf16"):
            with np.errstate(over="ignore"):
                weight = tensor(w, dtype)
            for search, h in ((False, None), (True, None), (True, importances(rng, k))):
                made = {}
                try:
                    for name in _core.tiers():
                        _core.use_tier(name)
                        made[name] = rounded(weight, form, search, h)
                finally:
                    _core.use_tier(_core.tiers()[-1])
                check_ranges(made["reference"][0])
                for name, (_, parts) in made.items():
                    different = [part for part in parts if parts[part] != made["reference"][1][part]]
                    assert not different, f"{name} makes other {different} of [{n}, {k}] {dtype}, search {search}"


def test_threads_do_not_change_a_bit(tier):
    rng = np.random.default_rng()
    weight, h = tensor(weights(rng, 150, 300)), importances(rng, 300)
    before = _core.get_threads()
    try:
        for form in FEW:
            made = []
            for threads in (1, 2, 3):
                _core.set_threads(threads)
                made.append(rounded(weight, form, True, h)[1])
            assert made[0] == made[1] == made[2]
    finally:
        _core.set_threads(before)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_to_nearest_is_what_the_packed_weight_holds(tier, form):
    rng = np.random.default_rng()
    for n, k in SIZES:
        weight = tensor(weights(rng, n, k), "bf16")
        ids = _core.Tensor.from_numpy(np.arange(n, dtype=np.int32))
        for search in (False, True):
            c, _ = rounded(weight, form, search)
            unpacked = _core.unpack(ids, c.pack()).numpy()
            assert same_bits(c.dequantize(), unpacked)
            if not search and form.zero == "none" and form.scale_dtype == "f16":
                assert same_bits(unpacked, _core.unpack(ids, _core.quantize_weight(weight, form.core())).numpy())


def a_of(w, h, form):
    """What a search weighs each weight with, up to a factor a block (QuantizeWeightArgs)."""
    if h is None:
        return np.ones_like(w)
    a = np.empty_like(w)
    for block in range(0, w.shape[1], 256):
        part = w[:, block:block + 256]
        a[:, block:block + 256] = h[block:block + 256] * np.sqrt(part ** 2 + (part ** 2).mean(1, keepdims=True))
    return a


def group_errors(w, c, a):
    """[n, groups]: float64 sums of a (w - what the code stands for)^2 over what shares a scale."""
    e = a * (w - c.dequantize().astype(np.float64)) ** 2
    starts = np.arange(0, w.shape[1], c.format.group)
    return np.add.reduceat(e, starts, 1), np.add.reduceat(a * w ** 2, starts, 1)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_search_is_never_worse_than_nearest(tier, form):
    """In each group of weights that share a scale, by what the search weighs."""
    rng = np.random.default_rng()
    for n, k in SIZES:
        w = weights(rng, n, k)
        w[0] = w[0, 0]
        weight = tensor(w)
        w = values(weight)
        for h in (None, importances(rng, k), np.zeros(k)):
            nearest, found = rounded(weight, form)[0], rounded(weight, form, True, h)[0]
            a = a_of(w, h, form)
            (before, size), (after, _) = group_errors(w, nearest, a), group_errors(w, found, a)
            # Errors are compared in f32, by sums of larger terms: what is below 1e-9 of the weights does not count.
            assert (after <= before * (1 + 1e-3) + size * 4e-9).all(), (n, k, h is None, (after / before).max())


# Squared error / squared norm on normal and on Student's t weights with 5 degrees of freedom.
ERRORS = {TWO_LEVEL: (0.00520, 0.0073), Format("int4", 32): (0.0066, 0.0108), Format("int4", 32, "integer"): (0.0060, 0.0082),
          Format("int4", 32, "real"): (0.0049, 0.0067), Format("int4", 64, "real", "bf16"): (0.0067, 0.0104),
          Format("int4", 128): (0.0095, 0.021), Format("int8", 32): (2.45e-5, 4.2e-5), Format("int8", 256): (4.65e-5, 1.3e-4)}


@pytest.mark.parametrize("form", ERRORS, ids=str)
def test_errors_on_known_distributions(form):
    rng = np.random.default_rng(11)
    for w, most in zip((rng.standard_normal((256, 2048)), rng.standard_t(5, (256, 2048))), ERRORS[form]):
        w = (w * 0.02).astype(np.float32)
        error = ((rounded(tensor(w), form, True)[0].dequantize() - w) ** 2).sum() / (w ** 2).sum()
        nearest = ((rounded(tensor(w), form)[0].dequantize() - w) ** 2).sum() / (w ** 2).sum()
        assert error < most and error < nearest * 0.97, (error, nearest)


def test_importance_moves_errors_to_where_it_is_small():
    rng = np.random.default_rng(12)
    w = (rng.standard_normal((64, 1024)) * 0.02).astype(np.float32)
    h = np.where(rng.random(1024) < 0.2, 100.0, 1.0)
    for form in FEW:
        plain, weighed = (rounded(tensor(w), form, True, x)[0].dequantize() - w for x in (None, h))
        assert (weighed[:, h > 1] ** 2).sum() < (plain[:, h > 1] ** 2).sum() * 0.95
        assert (weighed[:, h == 1] ** 2).sum() > (plain[:, h == 1] ** 2).sum()


@pytest.mark.parametrize("form", FEW, ids=str)
def test_importance_has_no_unit(form):
    rng = np.random.default_rng()
    weight, h = tensor(weights(rng, 20, 300)), importances(rng, 300).astype(np.float32)
    want = rounded(weight, form, True, h)[1]
    for factor in (2.0 ** -100, 2.0 ** 100):
        assert rounded(weight, form, True, h * np.float32(factor))[1] == want


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_rows_of_zeros_constants_and_extremes(tier, form):
    rng = np.random.default_rng()
    for k in (33, 300):
        base = rng.standard_normal(k).astype(np.float32)
        w = np.stack([base * 0, base * 0 + 0.37, base * 0 - 0.37, np.abs(base), -np.abs(base), base * np.float32(1e-42),
                      base * np.float32(1e-30), base * 3e3, np.where(np.arange(k) == 7, 5, base * 1e-3)]).astype(np.float32)
        for search, h in ((False, None), (True, None), (True, np.ones(k))):
            c, _ = rounded(tensor(w), form, search, h)
            check_ranges(c)
            got = c.dequantize().astype(np.float64)
            assert np.isfinite(got).all()
            assert (got[0] == 0).all()
            if form.zero == "real":  # one value is its own zero, rounded
                allowed = 2.0 ** (-8 if form.scale_dtype == "bf16" else -11)
                assert (np.abs(got[1:3] - w[1:3]) <= 0.37 * allowed).all()
            error = ((got - w) ** 2).sum(1) / np.maximum((w.astype(np.float64) ** 2).sum(1), 1e-300)
            assert error[[1, 2, 3, 4, 7]].max() < 0.06, error
            # Without a scale, zeros or the middle of the range.
            assert error[[5, 6]].max() <= (2 if form.zero == "real" else 1.01), error
            assert abs(got[8, 7] - 5) < 0.3


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_weights_that_are_not_numbers_make_their_scales_so(tier, form):
    rng = np.random.default_rng()
    w = rng.standard_normal((40, 300)).astype(np.float32)
    w[3, 299], w[20, 0], w[39, 100] = np.nan, np.inf, -np.inf
    for search, h in ((False, None), (True, None), (True, importances(rng, 300))):
        c, _ = rounded(tensor(w), form, search, h)
        check_ranges(c)
        scales = widen(c.scales, form.scale_dtype)
        bad = np.isnan(scales)
        assert bad[3, -1] and bad[20, 0] and bad[39, 100 // form.group]
        assert not np.delete(bad, [3, 20, 39], 0).any() and np.isfinite(scales[~bad]).all()
    # A scale that its type does not hold.
    w = np.full((2, 64), 1e37, np.float32)
    w[1] = rng.standard_normal(64)
    for search in (False, True):
        scales = widen(rounded(tensor(w), form, search)[0].scales, form.scale_dtype)
        assert np.isnan(scales[0]).all() == (form.scale_dtype == "f16") and np.isfinite(scales[1]).all()


def test_bad_arguments_name_themselves():
    w = tensor(np.ones((3, 64)))
    with pytest.raises(ValueError, match="int8 is rounded without zeros"):
        _core.round_weight(w, _core.WeightFormat("int8", 64, "integer"))
    with pytest.raises(ValueError, match="importance counts in a search only"):
        _core.round_weight(w, TWO_LEVEL.core(), False, tensor(np.ones(64)))
    with pytest.raises(ValueError, match=r"importance is \[63\]"):
        _core.round_weight(w, TWO_LEVEL.core(), True, tensor(np.ones(63)))
    for bad in (np.nan, -1.0, np.inf):
        h = np.ones(64)
        h[5] = bad
        with pytest.raises(ValueError, match=r"importance\[5\] is"):
            _core.round_weight(w, TWO_LEVEL.core(), True, tensor(h))
    with pytest.raises(ValueError, match="weight is .* expected f32 or f16 or bf16"):
        _core.round_weight(_core.Tensor.from_numpy(np.ones((3, 64), np.int8)), TWO_LEVEL.core())
