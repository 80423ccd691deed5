"""linear on every tier: against float64 within a bound from norms, and one arithmetic for any rows, ranges and threads."""

import numpy as np
import pytest
from kernel_helpers import DTYPES, EPS, assert_within, chain, products, pytest_tier, same_bits, seen_by_linear, strided, tensor, values

from genkit import _core

tier = pytest_tier()


@pytest.fixture
def threads():
    before = _core.get_threads()
    yield _core.set_threads
    _core.set_threads(before)


def problem(rng, rows, n, k, dtype, scale=1.0):
    x = (rng.standard_normal((rows, k)) * scale).astype(np.float32)
    weight = tensor(rng.standard_normal((n, k)), dtype)
    bias = rng.standard_normal(n).astype(np.float32)
    residual = rng.standard_normal((rows, n)).astype(np.float32)
    return x, weight, bias, residual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", (1, 7, 16, 33, 257, 1024, 1100, 2083))
def test_linear(tier, dtype, k):
    rng = np.random.default_rng(k)
    for rows in (0, 1, 2, 3, 4, 5, 8, 24, 25, 33, 70):
        n = int(rng.integers(1, 64))
        x, weight, bias, residual = problem(rng, rows, n, k, dtype, scale=float(rng.choice([1e-3, 1.0, 100.0])))
        want, size = products(seen_by_linear(x, weight), values(weight))
        what = f"rows {rows} n {n} k {k}"
        assert_within(_core.linear(tensor(x), weight).numpy(), want, EPS * chain(k) * size, what)
        got = _core.linear(strided(x, 1, 4), weight, tensor(bias), tensor(residual)).numpy()
        allowed = EPS * chain(k) * size + EPS * (np.abs(bias) + np.abs(residual))
        assert_within(got, want + bias + residual, allowed, what)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", (33, 257, 1100))
def test_one_row_and_many_rows_have_the_same_bits(tier, threads, dtype, k):
    rng = np.random.default_rng(k)
    n, most = 101, 70
    x, weight, bias, residual = problem(rng, most, n, k, dtype)
    threads(1)
    want = np.concatenate([_core.linear(tensor(x[m:m + 1]), weight, tensor(bias), tensor(residual[m:m + 1])).numpy()
                           for m in range(most)])
    for count in (1, 2, 3):
        threads(count)
        for rows in (2, 3, 4, 5, 8, 24, 25, 33, 70):
            first = int(rng.integers(0, most - rows + 1))
            part = slice(first, first + rows)
            got = _core.linear(strided(x[part], 2, 1), weight, tensor(bias), tensor(residual[part])).numpy()
            assert same_bits(got, want[part]), f"rows {rows} threads {count}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_range_of_outputs_has_the_same_bits(tier, dtype):
    rng = np.random.default_rng(8)
    for rows in (1, 6, 40):
        x, weight, _, _ = problem(rng, rows, 120, 300, dtype)
        want = _core.linear(tensor(x), weight).numpy()
        for begin, end in ((0, 1), (1, 8), (5, 47), (47, 120), (119, 120), (30, 30)):
            got = _core.linear(tensor(x), weight.rows(begin, end)).numpy()
            assert same_bits(got, want[:, begin:end]), f"rows {rows} outputs {begin} to {end}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_products_on_several_threads(tier, threads, dtype):
    rng = np.random.default_rng(9)
    x, weight, _, _ = problem(rng, 90, 600, 520, dtype)
    want, size = products(seen_by_linear(x, weight), values(weight))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(_core.linear(tensor(x), weight).numpy().copy())
    assert_within(results[0], want, EPS * chain(520) * size)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


@pytest.mark.parametrize("rows", (1, 3, 30))
def test_weights_at_the_edges_of_f16(tier, rows):
    """Denormals count, infinities and NaN show in their own outputs only."""
    rng = np.random.default_rng(10)
    weight = rng.integers(1, 0x400, (9, 40)).astype(np.uint16).view(np.float16)  # all denormal
    weight[4, 39], weight[7, 3] = np.inf, np.nan
    x = rng.random((rows, 40)).astype(np.float32) + 1
    got = _core.linear(tensor(x), _core.Tensor.from_numpy(weight)).numpy()
    with np.errstate(invalid="ignore"):
        want, _ = products(x, weight)
    assert (got[:, 4] == np.inf).all() and np.isnan(got[:, 7]).all()
    rest = [0, 1, 2, 3, 5, 6, 8]
    assert_within(got[:, rest], want[:, rest], EPS * chain(40) * want[:, rest])
    assert (got[:, rest] > 0).all()


def test_a_poisoned_row_does_not_reach_its_neighbours(tier):
    rng = np.random.default_rng(11)
    for rows in (3, 30):
        x, weight, _, _ = problem(rng, rows, 20, 37, "bf16")
        clean = _core.linear(tensor(x), weight).numpy().copy()
        x[1, 36] = np.nan
        got = _core.linear(tensor(x), weight).numpy()
        others = [r for r in range(rows) if r != 1]
        assert np.isnan(got[1]).all() and same_bits(got[others], clean[others])
