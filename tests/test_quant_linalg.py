"""The inverse factor and the quadratic form against float64; the same bits with any number of threads."""

import numpy as np
import pytest
from kernel_helpers import EPS, same_bits

from genkit import _core
from genkit.quant import linalg


def positive(rng, k, least):
    """float32 [k, k], symmetric, with eigenvalues from `least` to 1."""
    q = np.linalg.qr(rng.standard_normal((k, k)))[0]
    matrix = (q * np.geomspace(least, 1, k)) @ q.T
    return ((matrix + matrix.T) / 2).astype(np.float32)


@pytest.fixture
def threads():
    before = _core.get_threads()
    yield _core.set_threads
    _core.set_threads(before)


@pytest.mark.parametrize("least", [0.5, 1e-3])
@pytest.mark.parametrize("k", [1, 2, 33, 128, 129, 300, linalg.STRIP + 2 * linalg.BLOCK + 5])
def test_inverse_factor(k, least):
    matrix = positive(np.random.default_rng(), k, least)
    found = linalg.inverse_cholesky(matrix)
    wide = matrix.astype(np.float64)
    want = np.linalg.cholesky(np.linalg.inv(wide))
    assert found.dtype == np.float32 and found.shape == (k, k) and same_bits(found, np.tril(found))
    # A factor made in float32 is exact for a matrix this near; its inverse's factor moves by the condition at most.
    allowed = EPS * (np.sqrt(k) + 4) / least
    assert np.linalg.norm(found - want) <= allowed * np.linalg.norm(want)
    assert np.linalg.norm(found @ found.T.astype(np.float64) @ wide - np.eye(k)) <= 2 * allowed * np.sqrt(k)


@pytest.mark.parametrize("k", [1, 40, 200])
def test_what_is_not_positive_definite_has_no_factor(k):
    rng = np.random.default_rng()
    matrix = positive(rng, k, 0.1)
    for value in (-1.0, 0.0, np.nan, np.inf):
        broken = matrix.copy()
        at = rng.integers(k)
        broken[at, at] = value
        with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
            linalg.inverse_cholesky(broken)


@pytest.mark.parametrize("n, k", [(1, 1), (5, 33), (70, 300), (linalg.STRIP + 3, 64)])
def test_quadratic_form(n, k):
    rng = np.random.default_rng()
    rows, matrix = rng.standard_normal((n, k)).astype(np.float32), positive(rng, k, 0.1)
    found = linalg.quadratic(rows, linalg.tensor(matrix))
    want = np.einsum("ij,jk,ik->i", rows, matrix, rows, dtype=np.float64)
    size = np.einsum("ij,jk,ik->i", np.abs(rows), np.abs(matrix), np.abs(rows), dtype=np.float64)
    assert found.dtype == np.float64 and (np.abs(found - want) <= EPS * (k + 2) * size).all()


@pytest.mark.parametrize("dtype, bits", [("f32", 24), ("f16", 11), ("bf16", 8)])
def test_stored(dtype, bits):
    values = np.random.default_rng().uniform(0.5, 2, 300)
    found = linalg.stored(values, dtype)
    assert found.dtype == np.float32 and (np.abs(found / values - 1) <= 2.0**-bits).all()
    assert same_bits(linalg.stored(found, dtype), found)


def test_bits_do_not_depend_on_threads(threads):
    rng = np.random.default_rng()
    matrix, rows = positive(rng, 500, 1e-2), rng.standard_normal((40, 500)).astype(np.float32)
    made = []
    for count in (1, 2, 3):
        threads(count)
        made.append((linalg.inverse_cholesky(matrix), linalg.quadratic(rows, linalg.tensor(matrix))))
    assert all(same_bits(a, b) for other in made[1:] for a, b in zip(made[0], other))
