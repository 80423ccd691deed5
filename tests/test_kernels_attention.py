"""Attention and its pages on every tier and type: against float64 with bounds from norms, pages to the bit against numpy,
and the same bits whatever rows, units, splits or threads there are."""

import numpy as np
import pytest
from kernel_helpers import EPS, assert_within, bf16_bits, bf16_values, ints, pytest_tier, same_bits, strided, tensor

from genkit import _core

tier = pytest_tier()
PAGE = _core.PAGE_KEYS
TYPES = ("f32", "f16", "bf16", "i8")


def new_pages(shape, dtype):
    """K and V pages, and their scales for i8, full of NaN (bytes 0xff, which is -1 as i8; its scales are NaN)."""
    pages = [_core.Tensor(shape, dtype) for _ in range(2)]
    pages += [_core.Tensor(shape[:3], "f32") if dtype == "i8" else None for _ in range(2)]
    for t in pages:
        if t is not None:
            np.frombuffer(t.bytes(), np.uint8)[:] = 0xFF
    return pages


def kv_write(k, v, pages, *where):
    _core.kv_write(tensor(k), tensor(v), pages[0], pages[1], *where, pages[2], pages[3])


def quantized(x):
    """i8 codes and scales [..., 1] of keys or values [..., head_dim], as KvPages has them."""
    with np.errstate(all="ignore"):
        scale = (np.abs(x).max(-1, keepdims=True) / np.float32(127)).astype(np.float32)
        scale[~np.isfinite(x).all(-1)] = np.nan
        codes = np.where(scale > 0, np.clip(np.rint(x / scale), -127, 127), 0)
    return codes.astype(np.int8), scale


def stored(x, dtype):
    """What keys or values become in a page, as float64."""
    if dtype == "i8":
        codes, scale = quantized(x)
        return codes.astype(np.float64) * scale
    return x.astype(np.float64) if dtype == "f32" else bf16_values(bf16_bits(x)) if dtype == "bf16" else \
        x.astype(np.float16).astype(np.float64)


class Case:
    """Sequences of given lengths in shuffled pages; slots that were never written hold NaN."""

    def __init__(self, seed, heads, kv_heads, head_dim, lengths, rows, alibi=False, window=0, dtype="f32", softcap=0.0, sinks=False):
        rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.head_dim, self.window, self.dtype = heads, kv_heads, head_dim, window, dtype
        self.max_pages = max(lengths) // PAGE + 1
        pages = len(lengths) * self.max_pages
        self.table = rng.permutation(pages).reshape(len(lengths), self.max_pages)
        keys = [rng.standard_normal((n, kv_heads, head_dim)).astype(np.float32) for n in lengths]
        values = [(rng.standard_normal((n, kv_heads, head_dim)) * rng.choice([.5, 2, 8], (n, kv_heads, 1))).astype(np.float32)
                  for n in lengths]
        self.pages = new_pages((kv_heads, pages, PAGE, head_dim), dtype)
        for s, n in enumerate(lengths):
            kv_write(keys[s].reshape(n, -1), values[s].reshape(n, -1), self.pages, ints(self.table), ints([s] * n), ints(range(n)))
        self.keys, self.values = [stored(k, dtype) for k in keys], [stored(v, dtype) for v in values]
        self.sequences = np.sort(rng.integers(0, len(lengths), rows))
        self.positions = np.array([rng.integers(0, lengths[s]) for s in self.sequences], dtype=np.int32)
        self.positions[::3] = [lengths[s] - 1 for s in self.sequences[::3]]
        self.q = (rng.standard_normal((rows, heads * head_dim)) * 1.5).astype(np.float32)
        self.slopes = (-rng.random(heads) * 0.2).astype(np.float32) if alibi else None
        self.scale = float(np.float32(head_dim**-0.5))
        self.softcap = softcap
        self.sinks = (rng.standard_normal(heads) * 4).astype(np.float32) if sinks else None

    def run(self, rows=slice(None)):
        slopes, sinks = (None if x is None else tensor(x) for x in (self.slopes, self.sinks))
        return _core.attention(strided(self.q[rows], 3, 2), *self.pages[:2], ints(self.table),
                               ints(self.sequences[rows]), ints(self.positions[rows]), self.scale, self.window,
                               slopes, *self.pages[2:], self.softcap, sinks).numpy().copy()

    def expected(self):
        """float64 results and the error allowed: a weight is off by e to twice the error of a score. Where a tier has bf16
        dot products, bf16 and i8 pages see queries and weights rounded to bf16: the queries here too, for the weights
        half a unit of their 8 bits is allowed, twice for i8, whose total is not of rounded weights."""
        rounded = _core.slots()["attention"] in ("avx512bf16", "amx") and self.dtype in ("bf16", "i8")
        log2e = np.float32(1.44269504)
        unit = np.float32(2.0**-16 if self.dtype == "i8" else 1)
        factor = np.float32(self.scale) * log2e * unit
        queries = bf16_values(bf16_bits(self.q * factor)) / float(factor) if rounded else self.q.astype(np.float64)
        want, allowed = np.zeros((2, *self.q.shape))
        for r, (s, position) in enumerate(zip(self.sequences, self.positions)):
            first = max(0, position - self.window + 1) if self.window else 0
            seen = slice(first, position + 1)
            for h in range(self.heads):
                part = slice(h * self.head_dim, (h + 1) * self.head_dim)
                q, k = queries[r, part], self.keys[s][seen, h * self.kv_heads // self.heads]
                v = self.values[s][seen, h * self.kv_heads // self.heads]
                score = k @ q * self.scale
                error = EPS * self.head_dim / 2 * (np.abs(k) @ np.abs(q)) * self.scale + EPS * 5 * np.abs(score)
                if self.softcap:  # changes by less than what it caps does
                    score = self.softcap * np.tanh(score / self.softcap)
                    error = error + 6 * EPS * np.abs(score)
                if self.slopes is not None:
                    bias = float(self.slopes[h]) * (np.arange(first, position + 1) - position)
                    score, error = score + bias, error + 2 * EPS * np.abs(bias)
                sink = -np.inf if self.sinks is None else float(self.sinks[h])
                shifted = score - max(score.max(), sink)
                sink_share = np.exp(sink - max(score.max(), sink))
                p = np.exp(shifted) / (np.exp(shifted).sum() + sink_share)
                if self.sinks is not None:  # merged last: its distance from the largest score is rounded
                    error = error + 4 * EPS * (abs(sink) + abs(score.max()) + 1)
                relative = error + error.max() + EPS * (np.minimum(-shifted, 90) + len(p) / 4 + 16)
                relative = relative + (2.0**-8 if rounded else 0)
                relative = relative + (p * relative).sum()
                want[r, part] = p @ v
                allowed[r, part] = (p * relative) @ np.abs(v) + 1e-30
        return want, allowed


SHAPES = [(4, 4, 16), (4, 2, 20), (3, 1, 64), (7, 1, 64), (8, 2, 80), (14, 2, 96), (2, 2, 128), (36, 2, 18), (5, 5, 2), (3, 1, 33), (2, 1, 512)]


@pytest.mark.parametrize("heads,kv_heads,head_dim", SHAPES)
@pytest.mark.parametrize("alibi", (False, True))
@pytest.mark.parametrize("dtype", TYPES)
def test_attention(tier, heads, kv_heads, head_dim, alibi, dtype):
    for seed, lengths, rows in ((1, (1,), 1), (2, (5, 130, 64), 19), (3, (200, 65), 9)):
        case = Case(seed, heads, kv_heads, head_dim, lengths, rows, alibi, dtype=dtype)
        assert_within(case.run(), *case.expected(), f"lengths {lengths}")


@pytest.mark.parametrize("heads,kv_heads,head_dim", SHAPES[1:9:2] + SHAPES[9:10])
@pytest.mark.parametrize("softcap,sinks", ((3.0, False), (0.0, True), (50.0, True)))
@pytest.mark.parametrize("dtype", TYPES)
def test_softcap_and_sinks(tier, heads, kv_heads, head_dim, softcap, sinks, dtype):
    for seed, lengths, rows, alibi, window in ((1, (1,), 1, False, 0), (2, (5, 130, 64), 19, True, 0), (3, (200, 65), 9, False, 50)):
        case = Case(seed, heads, kv_heads, head_dim, lengths, rows, alibi, window, dtype, softcap, sinks)
        case.q *= 2
        assert_within(case.run(), *case.expected(), f"lengths {lengths}")


@pytest.mark.parametrize("dtype", TYPES)
def test_sinks_far_from_the_scores(tier, dtype):
    case = Case(12, 8, 2, 32, (150,), 12, dtype=dtype, sinks=True)
    plain = Case(12, 8, 2, 32, (150,), 12, dtype=dtype).run()
    case.sinks[:] = -np.inf, -3e38, -1e4, -100, 90, 300, 1e4, 2e38
    got = case.run().reshape(12, 8, 32)
    assert same_bits(got[:, :3], plain.reshape(12, 8, 32)[:, :3])
    assert (got[:, 5:] == 0).all() and np.isfinite(got).all() and 0 < np.abs(got[:, 4]).max() < 1e-30
    case.q *= 1000  # scores as far away
    case.sinks[:] = -1e4, -1e3, -100, 0, 100, 1e3, 1e4, 1e5
    assert_within(case.run(), *case.expected())
    case.sinks[3] = np.nan
    got = case.run().reshape(12, 8, 32)
    assert np.isnan(got[:, 3]).all() and np.isfinite(np.delete(got, 3, 1)).all()


@pytest.mark.parametrize("window", (1, 2, 15, 63, 64, 65, 100, 1000))
@pytest.mark.parametrize("dtype", TYPES)
def test_sliding_window(tier, window, dtype):
    for heads, kv_heads, head_dim in ((4, 2, 20), (7, 1, 64)):
        case = Case(window, heads, kv_heads, head_dim, (190, 70, 300), 21, window=window, dtype=dtype)
        assert_within(case.run(), *case.expected())


@pytest.mark.parametrize("heads,kv_heads,head_dim,window,alibi,softcap,sinks",
                         ((4, 4, 64, 0, False, 0, False), (7, 1, 20, 0, True, 0, False), (14, 2, 96, 70, False, 0, False),
                          (40, 2, 16, 3, True, 0, False), (14, 2, 64, 70, False, 5, True)))
@pytest.mark.parametrize("dtype", TYPES)
def test_bits_do_not_depend_on_mates_chunks_or_threads(tier, heads, kv_heads, head_dim, window, alibi, softcap, sinks, dtype):
    case = Case(5, heads, kv_heads, head_dim, (150, 260, 64), 33, alibi, window, dtype, softcap, sinks)
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


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window,softcap,sinks", ((0, 0, False), (1500, 0, False), (1500, 4, True), (0, 0, True)))
def test_splits_of_long_contexts(tier, dtype, window, softcap, sinks):
    """Partials of key blocks are merged: by one unit with one thread, by attention_merge where threads would be idle."""
    case = Case(11, 3, 1, 24, (3000, 1024, 1025, 100), 7, window=window, dtype=dtype, softcap=softcap, sinks=sinks)
    case.positions[-7:] = [case.keys[s].shape[0] - 1 - i % 2 for i, s in enumerate(case.sequences)]
    before = _core.get_threads()
    try:
        _core.set_threads(1)
        want = case.run()
        assert_within(want, *case.expected())
        for threads in (2, 5):
            _core.set_threads(threads)
            assert same_bits(case.run(), want)
            assert same_bits(np.concatenate([case.run(slice(r, r + 1)) for r in range(7)]), want)
    finally:
        _core.set_threads(before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("softcap,sinks", ((0, False), (4, True)))
def test_prefill_in_any_chunks_has_the_same_bits(tier, dtype, softcap, sinks):
    """The same prompt written and attended in one piece, in pieces and token by token."""
    rng = np.random.default_rng(6)
    length, heads, kv_heads, dim = 140, 6, 2, 24
    q = rng.standard_normal((length, heads * dim)).astype(np.float32)
    k, v = rng.standard_normal((2, length, kv_heads * dim)).astype(np.float32)
    results = []
    for chunk in (length, 64, 37, 1):
        pages = new_pages((kv_heads, 3, PAGE, dim), dtype)
        parts = []
        for begin in range(0, length, chunk):
            part = slice(begin, min(begin + chunk, length))
            positions = np.arange(length)[part]
            where = ints([[2, 0, 1]]), ints(positions * 0), ints(positions)
            kv_write(k[part], v[part], pages, *where)
            parts.append(_core.attention(tensor(q[part]), *pages[:2], *where, 0.2, k_scales=pages[2], v_scales=pages[3],
                                         softcap=softcap, sinks=tensor(np.arange(heads)) if sinks else None).numpy().copy())
        results.append(np.concatenate(parts))
    assert np.isfinite(results[0]).all()
    assert all(same_bits(results[0], other) for other in results[1:])


# ---- pages -----------------------------------------------------------------------------------------------------


def from_page(page, dtype, values):
    """A K page [PAGE, head_dim], or a V page, put in order of keys and channels."""
    dim = page.shape[1]
    if dtype == "f32":
        return page if values else page.reshape(-1, dim, 16).transpose(0, 2, 1).reshape(PAGE, dim)
    if values:
        return page.reshape(-1, dim, 2).transpose(0, 2, 1).reshape(PAGE, dim)
    tiles = page.reshape(PAGE // 16, dim * 16)
    pairs = tiles[:, :dim // 2 * 32].reshape(PAGE // 16, dim // 2, 16, 2).transpose(0, 2, 1, 3).reshape(PAGE, dim // 2 * 2)
    return np.hstack([pairs, tiles[:, dim // 2 * 32:].reshape(PAGE, dim % 2)])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", (1, 8, 33, 64, 96))
def test_pages_hold_what_numpy_says(tier, dtype, dim):
    rng = np.random.default_rng(dim)
    rows, kv_heads = 90, 2
    k, v = (rng.standard_normal((2, rows, kv_heads, dim)) * rng.choice([1e-3, 1, 30], (2, rows, kv_heads, 1))).astype(np.float32)
    k[3, 1], v[4, 0] = 0, 0
    k[5, 0], k[6, 0] = 1e-45, np.float32(300 * 2.0**-149)  # scales of 0, and of 2 units where 2.36 would be right
    k[7, 1] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 3.5][:dim] + [0.0] * max(0, dim - 8)  # ties at scale 1
    v[8, 1, dim // 2], k[9, 0, 0], v[10, 0, -1] = np.nan, np.inf, -np.inf
    pages = new_pages((kv_heads, 2, PAGE, dim), dtype)
    order = rng.permutation(rows)
    for part in np.split(order, [1, 7, 50]):  # any order, whole batches: tokens of a pair come apart
        kv_write(k[part].reshape(len(part), -1), v[part].reshape(len(part), -1), pages, ints([[1, 0]]), ints(part * 0), ints(part))
    for t, x, values in ((0, k, False), (1, v, True)):
        raw = pages[t].numpy()
        got = np.stack([np.concatenate([from_page(raw[h, n], dtype, values) for n in (1, 0)])[:rows] for h in range(kv_heads)], 1)
        if dtype == "i8":
            codes, scale = quantized(x)
            assert same_bits(got, codes)
            scales = pages[2 + t].numpy()
            np.testing.assert_array_equal(np.concatenate([scales[:, 1], scales[:, 0]], 1).T[:rows], scale[..., 0])
        else:
            with np.errstate(all="ignore"):
                wanted = {"f32": x, "f16": x.astype(np.float16), "bf16": bf16_bits(x)}[dtype]
            np.testing.assert_array_equal(got, wanted)


def test_rope_kv_write_is_rope_then_kv_write(tier):
    rng = np.random.default_rng(12)
    rows, heads, kv_heads, dim = 5, 4, 2, 24
    width = (heads + 2 * kv_heads) * dim
    x = rng.standard_normal((rows, width)).astype(np.float32)
    where = ints([[0, 1]]), ints([0] * rows), ints(range(62, 62 + rows))
    at, end = heads * dim, (heads + kv_heads) * dim
    for dtype in TYPES:
        for half, interleaved in ((12, False), (12, True), (5, False)):
            table = tensor(rng.standard_normal((rows, 2 * half)))
            one, two = tensor(x), tensor(x)
            pages, others = (new_pages((kv_heads, 2, PAGE, dim), dtype) for _ in range(2))
            _core.rope_(one.columns(0, end), table, dim, interleaved)
            _core.kv_write(one.columns(at, end), one.columns(end, width), *pages[:2], *where, *pages[2:])
            _core.rope_kv_write(two.columns(0, end), table, two.columns(at, end), two.columns(end, width), *others[:2], *where,
                                interleaved, *others[2:])
            assert same_bits(one.numpy(), two.numpy()) and not same_bits(one.numpy(), x)
            for a, b in zip(pages, others):
                assert a is None or bytes(a.bytes()) == bytes(b.bytes())


# ---- what must be seen, and what must not ------------------------------------------------------------------------


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


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("poison", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("of", ("key", "value"))
def test_what_is_not_finite_shows_in_later_rows_only(tier, dtype, poison, of):
    case = Case(9, 2, 1, 20, (100,), 8, dtype=dtype)
    case.q[:] = np.abs(case.q)
    case.positions[:3] = 49, 50, 51
    clean = case.run()
    k, v = np.ones((2, 1, 20), np.float32)
    (k if of == "key" else v)[0, 7] = poison
    kv_write(k, v, case.pages, ints(case.table), ints([0]), ints([50]))
    got = case.run()
    earlier = case.positions < 50
    assert earlier.any() and not earlier.all() and np.isfinite(clean).all()
    assert same_bits(got[earlier], clean[earlier])
    if of == "key" and poison == -np.inf and dtype != "i8":
        assert not np.isinf(got).any()  # a score of -infinity is a key nobody looks at
    else:
        later = got[~earlier].reshape(-1, 2, 20)
        seen = ~np.isfinite(later)
        assert seen[..., 7].all() if of == "value" else seen.all()


@pytest.mark.parametrize("call,message", (
    (lambda p, q, w: _core.attention(q, p[0], p[1], *w, 1.0), "k_scales are missing"),
    (lambda p, q, w: _core.kv_write(q, q, p[0], p[1], *w, p[2]), "v_scales are missing"),
    (lambda p, q, w: _core.kv_write(q, q, p[0], p[1], *w, p[2], p[2].reshape((1, 2 * PAGE))), "v_scales"),
    (lambda p, q, w: _core.attention(q, p[0], tensor(np.zeros((2, 1, PAGE, 8))), *w, 1.0), "v_pages"),
    (lambda p, q, w: _core.attention(q, *[tensor(np.zeros((2, 1, PAGE, 8)))] * 2, *w, 1.0, k_scales=p[2]), "are for i8 pages"),
    (lambda p, q, w: _core.rope_kv_write(q, tensor(np.zeros((1, 10))), q, q, p[0], p[1], *w, False, p[2], p[3]), "do not fit"),
))
def test_wrong_pages_are_refused(call, message):
    pages = new_pages((2, 1, PAGE, 8), "i8")
    with pytest.raises(ValueError, match=message):
        call(pages, tensor(np.ones((1, 16))), (ints([[0]]), ints([0]), ints([0])))
