"""What the kernel tests share: stored weights with their exact values, awkward views, bounds from epsilons."""

import numpy as np
import pytest

from genkit import _core

EPS = float(np.finfo(np.float32).eps)  # the relative spacing of floats: twice the rounding error of one operation
TINY = float(np.finfo(np.float32).tiny)
DTYPES = ("f32", "f16", "bf16")


def pytest_tier():
    """A fixture that runs a test on every tier this processor has, and puts the best one back."""

    @pytest.fixture(params=_core.tiers())
    def tier(request):
        _core.use_tier(request.param)
        yield request.param
        _core.use_tier(_core.tiers()[-1])

    return tier


def tensor(array, dtype="f32"):
    """The array as a tensor of this storage type, rounded to nearest even."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    if dtype == "f16":
        return _core.Tensor.from_numpy(array.astype(np.float16))
    if dtype == "bf16":
        return _core.Tensor.from_numpy(bf16_bits(array), dtype="bf16")
    return _core.Tensor.from_numpy(array)


def seen_by_linear(x, weight):
    """x as the current tier's products with this weight take it: some round rows to bf16 for bf16 weights."""
    return bf16_values(bf16_bits(x)) if weight.dtype == "bf16" and rounds_rows() else x


def rounds_rows():
    """Whether the current tier multiplies bf16 weights with rows rounded to bf16."""
    return _core.slots()["linear"] in ("avx512bf16", "amx")


def ints(values, dtype=np.int32):
    return _core.Tensor.from_numpy(np.asarray(values, dtype=dtype))


def values(t):
    """The exact values of a tensor as float64."""
    return bf16_values(t.numpy()) if t.dtype == "bf16" else t.numpy().astype(np.float64)


def strided(array, left, right):
    """The array as a view inside a wider tensor of NaN: rows far apart and unaligned, poison on either side."""
    rows, dim = array.shape
    wide = np.full((rows, left + dim + right), np.nan, np.float32)
    wide[:, left:left + dim] = array
    return _core.Tensor.from_numpy(wide).columns(left, left + dim)


def bf16_bits(array):
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def bf16_values(bits):
    with np.errstate(invalid="ignore"):
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def products(x, w):
    """x @ w.T in float64, and its size |x| @ |w|.T. Not by BLAS, whose threads spin against a busy machine's."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    return np.einsum("mk,nk->mn", x, w), np.einsum("mk,nk->mn", np.abs(x), np.abs(w))


def chain(count):
    """Roundings that follow one another in a sum of `count` terms held in at least four lanes, and a few around it."""
    return count / 4 + 12


def assert_within(got, want, allowed, what=""):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if got.size == 0:
        return
    with np.errstate(invalid="ignore"):
        excess = np.abs(got - want) - np.broadcast_to(allowed, want.shape)
    excess = np.where((got == want) | (np.isnan(got) & np.isnan(want)), -np.inf, excess)
    excess = np.where(np.isnan(excess), np.inf, excess)
    worst = np.unravel_index(np.argmax(excess), want.shape)
    assert excess[worst] <= 0, (f"{what}: element {tuple(map(int, worst))} is {got[worst]!r}, expected {want[worst]!r}, "
                                f"allowed error {np.broadcast_to(allowed, want.shape)[worst]:.3g}")


def same_bits(a, b):
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.shape == b.shape and a.tobytes() == b.tobytes()
