"""attention on every tier: against float64 with bounds from norms, and the same bits whatever rows share a unit."""

import numpy as np
import pytest
from kernel_helpers import EPS, assert_within, ints, pytest_tier, same_bits, strided, tensor

from genkit import _core

tier = pytest_tier()
PAGE = _core.PAGE_KEYS


class Case:
    """Sequences of given lengths in shuffled pages; slots that were never written hold NaN."""

    def __init__(self, seed, heads, kv_heads, head_dim, lengths, rows, alibi=False, window=0):
        rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.head_dim, self.window = heads, kv_heads, head_dim, window
        self.max_pages = max(lengths) // PAGE + 1
        pages = len(lengths) * self.max_pages
        self.table = rng.permutation(pages).reshape(len(lengths), self.max_pages)
        self.keys = [rng.standard_normal((n, kv_heads, head_dim)).astype(np.float32) for n in lengths]
        self.values = [rng.standard_normal((n, kv_heads, head_dim)).astype(np.float32) for n in lengths]
        shape = (pages, kv_heads, PAGE, head_dim)
        self.k_pages, self.v_pages = (tensor(np.full(shape, np.nan)) for _ in range(2))
        for s, n in enumerate(lengths):
            _core.kv_write(tensor(self.keys[s].reshape(n, -1)), tensor(self.values[s].reshape(n, -1)), self.k_pages,
                           self.v_pages, ints(self.table), ints([s] * n), ints(range(n)))
        self.sequences = np.sort(rng.integers(0, len(lengths), rows))
        self.positions = np.array([rng.integers(0, lengths[s]) for s in self.sequences], dtype=np.int32)
        self.positions[::3] = [lengths[s] - 1 for s in self.sequences[::3]]
        self.q = (rng.standard_normal((rows, heads * head_dim)) * 1.5).astype(np.float32)
        self.slopes = (-rng.random(heads) * 0.2).astype(np.float32) if alibi else None
        self.scale = float(np.float32(head_dim**-0.5))

    def run(self, rows=slice(None)):
        return _core.attention(strided(self.q[rows], 3, 2), self.k_pages, self.v_pages, ints(self.table),
                               ints(self.sequences[rows]), ints(self.positions[rows]), self.scale, self.window,
                               None if self.slopes is None else tensor(self.slopes)).numpy().copy()

    def expected(self):
        """float64 results and the error allowed: a weight is off by e to twice the error of a score."""
        want, allowed = np.zeros((2, *self.q.shape))
        for r, (s, position) in enumerate(zip(self.sequences, self.positions)):
            first = max(0, position - self.window + 1) if self.window else 0
            seen = slice(first, position + 1)
            for h in range(self.heads):
                part = slice(h * self.head_dim, (h + 1) * self.head_dim)
                q, k = self.q[r, part].astype(np.float64), self.keys[s][seen, h * self.kv_heads // self.heads].astype(np.float64)
                v = self.values[s][seen, h * self.kv_heads // self.heads].astype(np.float64)
                score = k @ q * self.scale
                error = EPS * self.head_dim / 2 * (np.abs(k) @ np.abs(q)) * self.scale + EPS * 4 * np.abs(score)
                if self.slopes is not None:
                    bias = float(self.slopes[h]) * (np.arange(first, position + 1) - position)
                    score, error = score + bias, error + 2 * EPS * np.abs(bias)
                shifted = score - score.max()
                p = np.exp(shifted) / np.exp(shifted).sum()
                relative = error + error.max() + EPS * (np.minimum(-shifted, 90) + len(p) / 4 + 16)
                relative = relative + (p * relative).sum()
                want[r, part] = p @ v
                allowed[r, part] = (p * relative) @ np.abs(v)
        return want, allowed


SHAPES = [(4, 4, 16), (4, 2, 20), (3, 1, 64), (7, 1, 64), (8, 2, 80), (14, 2, 96), (2, 2, 128), (36, 2, 18), (5, 5, 2), (2, 1, 512)]


@pytest.mark.parametrize("heads,kv_heads,head_dim", SHAPES)
@pytest.mark.parametrize("alibi", (False, True))
def test_attention(tier, heads, kv_heads, head_dim, alibi):
    for seed, lengths, rows in ((1, (1,), 1), (2, (5, 130, 64), 19), (3, (200, 65), 9)):
        case = Case(seed, heads, kv_heads, head_dim, lengths, rows, alibi)
        assert_within(case.run(), *case.expected(), f"lengths {lengths}")


@pytest.mark.parametrize("window", (1, 2, 15, 63, 64, 65, 100, 1000))
def test_sliding_window(tier, window):
    for heads, kv_heads, head_dim in ((4, 2, 20), (7, 1, 64)):
        case = Case(window, heads, kv_heads, head_dim, (190, 70, 300), 21, window=window)
        assert_within(case.run(), *case.expected())


@pytest.mark.parametrize("heads,kv_heads,head_dim,window,alibi",
                         ((4, 4, 64, 0, False), (7, 1, 20, 0, True), (14, 2, 96, 70, False), (40, 2, 16, 3, True)))
def test_bits_do_not_depend_on_mates_chunks_or_threads(tier, heads, kv_heads, head_dim, window, alibi):
    case = Case(5, heads, kv_heads, head_dim, (150, 260, 64), 33, alibi, window)
    before = _core.get_threads()
    try:
        _core.set_threads(1)
        want = np.concatenate([case.run(slice(r, r + 1)) for r in range(33)])
        for threads in (1, 2, 3):
            _core.set_threads(threads)
            for begin, end in ((0, 33), (0, 2), (1, 4), (7, 12), (3, 11), (25, 33)):
                assert same_bits(case.run(slice(begin, end)), want[begin:end]), f"rows {begin} to {end}, {threads} threads"
    finally:
        _core.set_threads(before)


def test_prefill_in_any_chunks_has_the_same_bits(tier):
    """The same prompt written and attended in one piece, in pieces and token by token."""
    rng = np.random.default_rng(6)
    length, heads, kv_heads, dim = 140, 6, 2, 24
    q = rng.standard_normal((length, heads * dim)).astype(np.float32)
    k, v = rng.standard_normal((2, length, kv_heads * dim)).astype(np.float32)
    results = []
    for chunk in (length, 64, 37, 1):
        pages = [tensor(np.full((3, kv_heads, PAGE, dim), np.nan)) for _ in range(2)]
        parts = []
        for begin in range(0, length, chunk):
            part = slice(begin, min(begin + chunk, length))
            positions = np.arange(length)[part]
            where = ints([[2, 0, 1]]), ints(positions * 0), ints(positions)
            _core.kv_write(tensor(k[part]), tensor(v[part]), *pages, *where)
            parts.append(_core.attention(tensor(q[part]), *pages, *where, 0.2).numpy().copy())
        results.append(np.concatenate(parts))
    assert np.isfinite(results[0]).all()
    assert all(same_bits(results[0], other) for other in results[1:])


def test_no_rows_and_equal_scores(tier):
    case = Case(7, 4, 2, 16, (100,), 5)
    assert case.run(slice(0, 0)).shape == (0, 64)
    case.q[:] = 0  # every key counts the same: the mean of what is seen
    want, allowed = case.expected()
    mean = np.stack([case.values[0][:p + 1].astype(np.float64).mean(0) for p in case.positions])
    np.testing.assert_allclose(want, np.repeat(mean, 2, axis=1).reshape(5, -1), rtol=1e-12, atol=1e-14)
    assert_within(case.run(), want, allowed)


def test_large_scores_do_not_overflow(tier):
    case = Case(8, 4, 2, 32, (150,), 12)
    case.q *= 300
    got = case.run()
    assert np.isfinite(got).all()
    assert_within(got, *case.expected())


def test_nan_in_a_later_key_is_not_seen_earlier(tier):
    case = Case(9, 2, 1, 20, (100,), 8)
    clean = case.run()
    row = np.full((1, 20), np.nan, np.float32)
    _core.kv_write(tensor(row), tensor(row), case.k_pages, case.v_pages, ints(case.table), ints([0]), ints([50]))
    got = case.run()
    earlier = case.positions < 50
    assert earlier.any() and not earlier.all()
    assert same_bits(got[earlier], clean[earlier]) and np.isnan(got[~earlier]).all()
