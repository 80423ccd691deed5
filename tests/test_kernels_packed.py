"""Packed integer weights on every tier: the layout against a numpy transcription of packed.h, sums of integers exactly,
outputs against float64 and, tier against tier, to the bit."""

import numpy as np
import pytest
from format_files import K_FORMATS, random_codes
from kernel_helpers import EPS, assert_within, bf16_bits, bf16_values, pytest_tier, same_bits, strided, tensor

from genkit import _core
from genkit.quant.codes import Codes

tier = pytest_tier()

TWO_LEVEL = ("int4_two_level", 256, "none", "f16")
FORMATS = [TWO_LEVEL,
           *(("int4", group, zero, scales) for group in (32, 64, 128, 256)
             for zero, scales in (("none", "f16"), ("integer", "bf16"), ("real", "f16"), ("real", "bf16"))),
           *(("int8", group, zero, scales) for group in (32, 64, 128, 256)
             for zero, scales in (("none", "f16"), ("integer", "f16"), ("real", "bf16")))]
K_SPECS = [(form.packing, form.group, form.zero, form.scale_dtype) for form in K_FORMATS]
FORMATS += K_SPECS
FEW_FORMATS = [TWO_LEVEL, ("int4", 32, "none", "f16"), ("int4", 128, "integer", "f16"), ("int4", 64, "real", "bf16"),
               ("int8", 256, "none", "f16"), ("int8", 64, "integer", "bf16"), ("int8", 128, "real", "f16"),
               *K_SPECS]


def depth_of(k):
    return -(-k // 64) * 64


def of_k(spec):
    return spec[0].endswith("_k")


class RandomCodes:
    """A random weight in row-major codes, and what they stand for by the definition in packed.h, float64."""

    def __init__(self, rng, n, k, spec):
        packing, group, zero, scale_dtype = spec
        self.spec, self.n, self.k, depth = spec, n, k, depth_of(k)
        shared = 256 if of_k(spec) else group
        groups, subs = -(-depth // shared), depth // 32
        self.scales = self.real(rng.uniform(0.5, 1.5, (n, groups)) * 10.0 ** rng.uniform(-4, 0, (n, 1)), scale_dtype)
        self.scales[1][rng.random((n, groups)) < 0.3] *= -1
        self.scales[0][self.scales[1] < 0] |= 0x8000
        self.subscales = self.minima = self.zeros = None
        per_code = lambda a, size: np.repeat(a, size, 1)[:, :depth].astype(np.float64)
        s = per_code(self.scales[1], shared)
        if packing.startswith("int8"):
            self.codes = rng.integers(-128, 128, (n, depth)).astype(np.int8)
            level = self.codes.astype(np.float64)
        else:
            self.codes = rng.integers(0, 16, (n, depth)).astype(np.uint8)
            level = self.codes.astype(np.float64)
        if of_k(spec):
            self.subscales = rng.integers(-128, 128, (n, depth // group)).astype(np.int8)
            values = s * per_code(self.subscales, group) * (level - (8 if (packing, zero) == ("int4_k", "none") else 0))
            if zero == "real":
                self.minima = rng.integers(0, 256, (n, depth // group)).astype(np.uint8)
                self.zeros, dmin = self.real(rng.standard_normal((n, groups)), scale_dtype)
                values = values - per_code(dmin, 256) * per_code(self.minima, group)
        elif packing == "int4_two_level":
            self.subscales = rng.integers(1, 16, (n, subs)).astype(np.uint8)
            least = np.maximum(0, 15 * self.subscales.astype(int) - 127)
            self.minima = (least + np.floor(rng.random((n, subs)) * (129 - least))).astype(np.uint8)
            self.integers = per_code(self.subscales, 32) * level - per_code(self.minima, 32)
            assert np.abs(self.integers).max() <= 128
            values = s * self.integers
        elif zero == "none":
            values = s * (level - (8 if packing == "int4" else 0))
        elif zero == "integer":
            low, high = (0, 17) if packing == "int4" else (-128, 128)
            self.zeros = rng.integers(low, high, (n, groups)).astype(np.uint8 if packing == "int4" else np.int8)
            values = s * (level - per_code(self.zeros, group))
        else:
            self.zeros, b = self.real(rng.standard_normal((n, groups)), scale_dtype)
            values = s * level + per_code(b, group)
        self.values = values[:, :k]

    @staticmethod
    def real(array, dtype):
        """(bits, values) of an array rounded to f16 or bf16."""
        if dtype == "f16":
            half = array.astype(np.float16)
            return half.view(np.uint16), half.astype(np.float64)
        bits = bf16_bits(array)
        return bits, bf16_values(bits)

    def packed(self, gated=False):
        packing, group, zero, scale_dtype = self.spec
        from_numpy = _core.Tensor.from_numpy
        parts = [None if p is None else from_numpy(p) for p in (self.subscales, self.minima)]
        zeros = None
        if self.zeros is not None:
            zeros = from_numpy(self.zeros, dtype=scale_dtype if zero == "real" else None)
        return _core.pack_weight(from_numpy(self.codes), from_numpy(self.scales[0], dtype=scale_dtype), *parts, zeros,
                                 self.k, _core.WeightFormat(packing, group, zero, scale_dtype), gated)


def transcription(c, gated):
    """The panels by packed.h, byte for byte, written the slow way."""
    packing, group, zero, _ = c.spec
    depth, subs_of_zero = depth_of(c.k), {"none": 0, "integer": 1, "real": 2}[zero]
    half = c.n // 2
    panels = -(-half // 16) if gated else -(-c.n // 32)
    eight, shared = packing.startswith("int8"), 256 if of_k(c.spec) else group
    tile = 2048 if eight else 1024
    header = 448 if packing == "int4_two_level" else -(-(256 // group) * 32 * (2 + subs_of_zero) // 64) * 64
    if of_k(c.spec):
        header = (64 + 8192 // group) * (2 if zero == "real" else 1)
    out = []
    for panel in range(panels):
        rows = [panel * 16 + j % 16 + (half if j >= 16 else 0) if gated else panel * 32 + j for j in range(32)]
        if gated:
            rows = [r if panel * 16 + j % 16 < half else None for j, r in enumerate(rows)]
        else:
            rows = [r if r < c.n else None for r in rows]
        for start in range(0, depth, 256):
            count = min(256, depth - start)
            head, body = np.zeros(header, np.uint8), np.zeros((count // 64, tile), np.uint8)
            for j, row in enumerate(rows):
                if row is None:
                    continue
                for g in range(-(-count // shared)):
                    source = start // shared + g
                    head[(g * 32 + j) * 2:][:2] = np.frombuffer(c.scales[0][row, source].tobytes(), np.uint8)
                    at = 256 // shared * 64
                    if zero == "integer":
                        head[at + g * 32 + j] = c.zeros[row, source].view(np.uint8)
                    if zero == "real":
                        head[at + (g * 32 + j) * 2:][:2] = np.frombuffer(c.zeros[row, source].tobytes(), np.uint8)
                for g in range(count // group if of_k(c.spec) else 0):
                    at = (64 if zero == "none" else 128) + g * group // 64 * (2048 // group)
                    if group == 32:
                        at += j * 2 + g % 2
                    else:
                        at += g % 2 * 64 + j * 2 + g % 4 // 2
                    head[at] = c.subscales[row, start // group + g].view(np.uint8)
                    if zero == "real":
                        head[at + 8192 // group] = c.minima[row, start // group + g]
                if packing == "int4_two_level":
                    for t in range(count // 64):
                        u, m = (a[row, start // 32 + 2 * t:][:2] for a in (c.subscales, c.minima))
                        head[64 + t * 32 + j] = u[0] | u[1] << 4
                        head[192 + t * 64 + 2 * j:][:2] = m
                for k in range(count):
                    t, inner, code = k // 64, k % 64, int(c.codes[row, start + k])
                    if eight:
                        body[t, j // 16 * 1024 + inner // 4 * 64 + j % 16 * 4 + inner % 4] = code & 255
                    else:
                        body[t, j // 16 * 512 + inner % 32 // 4 * 64 + j % 16 * 4 + inner % 4] |= code << (4 if inner >= 32 else 0)
            out += [head, body.reshape(-1)]
    return np.concatenate(out).reshape(panels, -1)


@pytest.mark.parametrize("spec", FORMATS, ids=str)
def test_panels_lie_as_documented(tier, spec):
    rng = np.random.default_rng(1)
    for n, k, gated in ((1, 1, False), (33, 70, False), (34, 330, True), (66, 600, False)):
        c = RandomCodes(rng, n, k, spec)
        packed = c.packed(gated)
        assert packed.shape == (n, k) and packed.gated == gated
        assert np.array_equal(packed.panels.numpy(), transcription(c, gated)), (n, k, gated)
        ids = rng.integers(0, n, 50)
        got = _core.unpack(_core.Tensor.from_numpy(ids.astype(np.int32)), packed).numpy()
        size = np.abs(c.values[ids]) + (np.abs(c.values).max() if spec[2] == "real" else 0)
        assert_within(got, c.values[ids], EPS * size)


@pytest.mark.parametrize("form", K_FORMATS, ids=str)
def test_codes_in_numpy_stand_for_the_same(tier, form):
    rng = np.random.default_rng(11)
    for n, k in ((1, 16), (5, 300), (40, 512)):
        codes = random_codes(rng, n, k, form)
        packed = Codes.stack([codes.rows(0, n // 2), codes.rows(n // 2, n)]).pack()
        assert same_bits(_core.unpack(_core.Tensor.from_numpy(np.arange(n, dtype=np.int32)), packed).numpy(), codes.dequantize())
    assert random_codes(rng, 64, 512, form).pack().nbytes * 8 == 64 * 512 * form.bits


def quantized(x):
    """kernels.h's QuantizeArgs in numpy: codes [rows, depth], scales [rows, blocks], sums [rows, depth / 32]."""
    rows, k = x.shape
    wide = np.zeros((rows, -(-k // 256) * 256), np.float32)
    wide[:, :k] = x
    blocks = wide.reshape(rows, -1, 256)
    largest = np.abs(blocks).max(-1)
    finite = np.isfinite(blocks).all(-1)
    counts = finite & (largest >= np.float32(2.0**-100))
    with np.errstate(all="ignore"):
        inverse = np.where(counts, np.float32(127) / largest, np.float32(0))
        scales = np.where(counts, largest / np.float32(127), np.where(finite, np.float32(0), np.float32(np.nan)))
        codes = np.where(counts[..., None], np.rint(blocks * inverse[..., None]), 0).astype(np.int8)
    codes = codes.reshape(rows, -1)[:, :depth_of(k)]
    return codes, scales.astype(np.float32), codes.reshape(rows, -1, 32).sum(-1, dtype=np.int16)


def test_activations(tier):
    rng = np.random.default_rng(2)
    for k in (1, 31, 64, 100, 256, 257, 600, 2048):
        x = (rng.standard_normal((7, k)) * 10.0 ** rng.uniform(-6, 6, (7, 1))).astype(np.float32)
        x[2] = 0
        x[3] *= np.float32(1e-38)
        x[4, rng.integers(k)] = rng.choice([np.nan, np.inf, -np.inf])
        x[5] = np.round(x[5] / np.abs(x[5]).max() * 254) / 2  # many exact halves
        codes, scales, sums = (t.numpy() for t in _core.quantize(strided(x, 3, 1)))
        want = quantized(x)
        assert np.array_equal(codes[:, :depth_of(k)], want[0]), k
        assert np.array_equal(scales, want[1], equal_nan=True) and np.array_equal(sums, want[2])


def problem(rng, spec, rows, n, k, gated=False):
    c = RandomCodes(rng, n, k, spec)
    x = (rng.standard_normal((rows, k)) * 10.0 ** rng.uniform(-2, 2, (rows, 1))).astype(np.float32)
    return c, x


def exact(c, x):
    """Products of the rounded activations in float64, and their size."""
    codes, scales, _ = quantized(x)
    rounded = (codes * np.repeat(scales.astype(np.float64), 256, 1)[:, :codes.shape[1]])[:, :c.k]
    size = np.abs(rounded) @ np.abs(c.values).T
    if c.spec[2] != "none":  # the parts that cancel
        size = size + np.abs(rounded).sum(1, keepdims=True) * np.abs(c.values).max() * 16
    return rounded @ c.values.T, size


def bound(c, size):
    """A product of scales and an fma a group, each rounding once."""
    return EPS * (c.k / min(c.spec[1], 256) * 2 + 4) * size


@pytest.mark.parametrize("spec", FORMATS, ids=str)
def test_packed_linear(tier, spec):
    rng = np.random.default_rng(3)
    for rows, n, k in ((1, 1, 1), (1, 70, 300), (2, 33, 64), (3, 40, 520), (5, 31, 33), (8, 64, 256), (17, 32, 700),
                       (33, 65, 288), (1, 32, 1100)):
        c, x = problem(rng, spec, rows, n, k)
        bias, residual = (rng.standard_normal(s).astype(np.float32) for s in (n, (rows, n)))
        want, size = exact(c, x)
        assert_within(_core.packed_linear(tensor(x), c.packed()).numpy(), want, bound(c, size), f"{rows} {n} {k}")
        got = _core.packed_linear(strided(x, 1, 2), c.packed(), tensor(bias), tensor(residual)).numpy()
        assert_within(got, want + bias + residual, bound(c, size) + EPS * 3 * (np.abs(bias) + np.abs(residual) + np.abs(want)))


@pytest.mark.parametrize("spec", FEW_FORMATS, ids=str)
def test_gated(tier, spec):
    rng = np.random.default_rng(4)
    for rows, n, k in ((1, 2, 64), (1, 66, 300), (4, 34, 256), (19, 96, 330)):
        c, x = problem(rng, spec, rows, n, k)
        x /= np.abs(exact(c, x)[0]).max() / 20
        bias = rng.standard_normal(n).astype(np.float32)
        want, size = exact(c, x)
        gate, up = np.split(want + bias, 2, 1)
        gate_error, up_error = np.split(bound(c, size) + EPS * (np.abs(bias) + np.abs(want)), 2, 1)
        got = _core.packed_linear(tensor(x), c.packed(gated=True), tensor(bias), kind="silu").numpy()
        silu = gate / (1 + np.exp(-gate))
        allowed = (1.1 * gate_error + 8 * EPS * np.abs(silu)) * np.abs(up) + np.abs(silu) * up_error + 1e-30
        assert_within(got, silu * up, allowed, f"{rows} {n} {k}")
        got = _core.packed_linear(tensor(x), c.packed(gated=True), tensor(bias), kind="relu").numpy()
        relu = np.maximum(gate, 0)
        assert_within(got, relu * up, (gate_error + EPS * relu) * np.abs(up) + relu * up_error + 1e-30, f"{rows} {n} {k}")
        got = _core.packed_linear(tensor(x), c.packed(gated=True), tensor(bias), kind="swiglu_oai").numpy()
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
        glu = gate / (1 + np.exp(-1.702 * gate))
        allowed = (1.1 * gate_error + 20 * EPS * np.abs(glu)) * np.abs(up) + np.abs(glu) * (up_error + 8 * EPS) + 1e-30
        assert_within(got, glu * up, allowed, f"{rows} {n} {k}")


@pytest.mark.parametrize("spec", FORMATS, ids=str)
def test_every_tier_rows_and_threads_have_the_same_bits(spec):
    """The reference alone, a row at a time, is what every tier gives in any company."""
    rng = np.random.default_rng(5)
    try:
        for n, k in ((70, 600), (32, 97)):
            c, x = problem(rng, spec, 70, n, k)
            bias, residual = (rng.standard_normal(s).astype(np.float32) for s in (n, (70, n)))

            def product(part):
                return _core.packed_linear(tensor(x[part]), packed, tensor(bias), tensor(residual[part])).numpy().copy()

            _core.use_tier("reference")
            packed = c.packed()
            want = np.concatenate([product(slice(i, i + 1)) for i in range(70)])
            for name in _core.tiers():
                _core.use_tier(name)
                packed = c.packed()
                for threads in (1, 3):
                    _core.set_threads(threads)
                    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 31, 33, 70):
                        first = int(rng.integers(0, 70 - rows + 1))
                        part = slice(first, first + rows)
                        assert same_bits(product(part), want[part]), f"{name} rows {rows} threads {threads}"
    finally:
        _core.set_threads(1)
        _core.use_tier(_core.tiers()[-1])


def test_linears_side_by_side(tier):
    """The bits of each alone, in columns; rows in codes are made anew where a format wants other sums."""
    rng = np.random.default_rng(12)
    for rows in (1, 5, 20):
        weights = [RandomCodes(rng, n, 300, spec).packed() for n, spec in ((40, TWO_LEVEL), (33, K_SPECS[0]), (1, K_SPECS[-1]))]
        weights[1:1] = [tensor(rng.standard_normal((7, 300)), "bf16")]
        x, total = strided(rng.standard_normal((rows, 300)).astype(np.float32), 2, 3), 40 + 7 + 33 + 1
        bias, residual = tensor(rng.standard_normal(total)), tensor(rng.standard_normal((rows, total)))
        got, at = _core.linears(x, weights, bias, residual).numpy(), 0
        for weight in weights:
            op = _core.packed_linear if isinstance(weight, _core.PackedWeight) else _core.linear
            part = slice(at, at + weight.shape[0])
            want = op(x, weight, tensor(bias.numpy()[part]), tensor(residual.numpy()[:, part])).numpy()
            assert same_bits(got[:, part], want), (rows, weight.shape)
            at = part.stop
    gated = RandomCodes(rng, 4, 300, TWO_LEVEL).packed(gated=True)
    for wrong, words in (([gated], "gated weight has no place"), ([weights[0], None], "a weight is None"),
                         ([RandomCodes(rng, 4, 64, TWO_LEVEL).packed()], "expected")):
        with pytest.raises(ValueError, match=words):
            _core.linears(x, wrong)


def test_extremes_stay_exact(tier):
    """The largest sums the formats allow: nothing saturates, nothing wraps."""
    for spec in FEW_FORMATS:
        rng = np.random.default_rng(6)
        c = RandomCodes(rng, 64, 512, spec)
        eight = spec[0].startswith("int8")
        c.codes[:] = 127 if eight else 15
        c.codes[32:] = -128 if eight else 0
        if of_k(spec):
            c.subscales[:] = np.where(np.arange(64) % 2, -128, 127)[:, None]
            if c.minima is not None:
                c.minima[:] = 255
        elif c.subscales is not None:
            c.subscales[:], c.minima[:] = 15, 98
            c.minima[32:] = 128
        if c.zeros is not None and spec[2] == "integer":
            c.zeros[:] = -128 if spec[0] == "int8" else 0
            c.zeros[32:] = 127 if spec[0] == "int8" else 16
        x = np.where(rng.random((9, 512)) < 0.5, -1, 1).astype(np.float32) * np.float32(3)
        x[0], x[1] = 3, -3
        packed = c.packed()
        ids = _core.Tensor.from_numpy(np.arange(64, dtype=np.int32))
        values = _core.unpack(ids, packed).numpy().astype(np.float64)
        want, size = x.astype(np.float64) @ values.T, np.abs(x).astype(np.float64) @ np.abs(values).T
        size += np.abs(x).sum(1, keepdims=True) * (16 if spec[0] == "int4" else 256) * np.abs(c.scales[1]).max(1)
        if of_k(spec) and spec[2] == "real":
            size += np.abs(x).sum(1, keepdims=True) * 255 * np.abs(c.zeros.view(np.float16).astype(float)).max(1)
        assert_within(_core.packed_linear(tensor(x), packed).numpy(), want, EPS * 40 * size, str(spec))
        assert_within(_core.packed_linear(tensor(x[:1]), packed).numpy(), want[:1], EPS * 40 * size[:1], str(spec))


@pytest.mark.parametrize("spec", FEW_FORMATS, ids=str)
def test_a_poisoned_row_stays_alone(tier, spec):
    rng = np.random.default_rng(7)
    for rows in (3, 20):
        c, x = problem(rng, spec, rows, 40, 300)
        packed = c.packed()
        clean = _core.packed_linear(tensor(x), packed).numpy().copy()
        for poison in (np.nan, np.inf):
            x[1, 260] = poison
            got = _core.packed_linear(tensor(x), packed).numpy()
            others = [r for r in range(rows) if r != 1]
            assert np.isnan(got[1]).all() and same_bits(got[others], clean[others])


ROUNDED = [("int4_two_level", 256), ("int4", 32), ("int4", 64), ("int4", 128), ("int4", 256), ("int8", 32), ("int8", 256)]
# Squared error / squared norm on normal weights: what packed.h's layouts give with these scales, and a little more.
ERRORS = {("int4_two_level", 256): 0.0066, ("int4", 32): 0.0078, ("int4", 64): 0.0100, ("int4", 128): 0.0124,
          ("int4", 256): 0.0149, ("int8", 32): 3.1e-5, ("int8", 256): 5.4e-5}


@pytest.mark.parametrize("packing, group", ROUNDED)
@pytest.mark.parametrize("dtype", ("f32", "f16", "bf16"))
def test_rounding_weights(packing, group, dtype):
    """Close to the weights, and the same codes on every tier, gated or not."""
    rng = np.random.default_rng(8)
    for n, k in ((70, 512), (34, 300), (2, 33)):
        weight = rng.standard_normal((n, k)) * 0.02
        if k == 512:
            weight[5] = 0
            weight[6, :32] = 0
            weight[7, 100] = 3.0
        w = tensor(weight, dtype)
        format = _core.WeightFormat(packing, group)
        ids = _core.Tensor.from_numpy(np.arange(n, dtype=np.int32))
        panels = {}
        try:
            for name in _core.tiers():
                _core.use_tier(name)
                packed = _core.quantize_weight(w, format)
                gated = _core.quantize_weight(w, format, gated=True)
                got = _core.unpack(ids, packed).numpy()
                assert same_bits(got, _core.unpack(ids, gated).numpy())
                panels[name] = packed.panels.numpy().tobytes() + gated.panels.numpy().tobytes()
        finally:
            _core.use_tier(_core.tiers()[-1])
        assert len(set(panels.values())) == 1, "tiers round differently"
        plain = [r for r in range(n) if r not in (5, 6, 7)]
        error = ((got - weight)[plain] ** 2).sum() / (weight[plain] ** 2).sum()
        if k == 512:
            assert error < ERRORS[packing, group] + (1e-5 if dtype == "bf16" else 0), error
            assert (got[5] == 0).all() and (got[6, :32] == 0).all() and abs(got[7, 100] - 3) < 0.15
        else:
            assert error < ERRORS[packing, group] * 1.5


def test_weights_that_are_not_numbers_make_their_rows_so(tier):
    for packing, group in ROUNDED:
        weight = np.random.default_rng(9).standard_normal((40, 300)).astype(np.float32)
        weight[3, 299], weight[39, 0] = np.nan, np.inf
        got = _core.packed_linear(tensor(np.ones((2, 300))), _core.quantize_weight(tensor(weight), _core.WeightFormat(packing, group)))
        bad = np.isnan(got.numpy()).all(0)
        assert bad[[3, 39]].all() and bad.sum() == 2


def test_bad_arguments_name_themselves():
    rng = np.random.default_rng(10)
    packed = RandomCodes(rng, 32, 64, TWO_LEVEL).packed()
    with pytest.raises(ValueError, match=r"packing is 'int3'; known: int4_two_level, int4, int8, int4_k, int8_k"):
        _core.WeightFormat("int3", 32)
    with pytest.raises(ValueError, match="group is 48"):
        _core.WeightFormat("int4", 48)
    for wrong, words in ((("int4_k", 64), "group is 64; expected 16 or 32"), (("int8_k", 16, "integer"), "int8_k has f16 scales"),
                         (("int4_k", 32, "none", "bf16"), "int4_k has f16 scales")):
        with pytest.raises(ValueError, match=words):
            _core.WeightFormat(*wrong)
    with pytest.raises(ValueError, match="nothing rounds to int8_k"):
        _core.quantize_weight(tensor(np.ones((3, 64))), _core.WeightFormat("int8_k", 16))
    with pytest.raises(ValueError, match=r"x is \[1, 65\]"):
        _core.packed_linear(tensor(np.ones((1, 65))), packed)
    with pytest.raises(ValueError, match="gated weight needs its activation"):
        _core.packed_linear(tensor(np.ones((1, 64))), packed, kind="silu")
    with pytest.raises(ValueError, match="n 3 is odd"):
        _core.quantize_weight(tensor(np.ones((3, 64))), _core.WeightFormat("int8", 256), gated=True)
    with pytest.raises(ValueError, match="rounding makes f16 scales"):
        _core.quantize_weight(tensor(np.ones((3, 64))), _core.WeightFormat("int8", 256, scale_dtype="bf16"))
    c = RandomCodes(rng, 4, 64, ("int4", 32, "none", "f16"))
    c.codes[2, 5] = 16
    with pytest.raises(ValueError, match="codes holds 16"):
        c.packed()
    with pytest.raises(ValueError, match=r"ids\[0\] is 32"):
        _core.unpack(_core.Tensor.from_numpy(np.array([32], np.int32)), packed)
