"""The draw: the Philox generator by its known answers, every filter against a plain float64 sampler, and every tier
against the masses of cpp/cpu/draw.inl in numpy, token by token."""

import numpy as np
import pytest
from kernel_helpers import ints, pytest_tier, tensor

from genkit import _core

tier = pytest_tier()


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def uniform(seed, sequence, position):
    halves = [part for n in (sequence, position) for part in (n & 0xFFFFFFFF, n >> 32)]
    a, b, _, _ = philox(halves, (seed & 0xFFFFFFFF, seed >> 32))
    return ((a << 32 | b) >> 11) * 2.0**-53


def test_philox_known_answers():
    """Random123's kat_vectors: the generator the draws below are compared with."""
    ones = 0xFFFFFFFF
    assert philox((0,) * 4, (0,) * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox((ones,) * 4, (ones,) * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def draw(logits, sequences, positions, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, finite_only=False):
    t = _core.sample(tensor(logits), ints(sequences, np.int64), ints(positions, np.int64), temperature, top_k, top_p, min_p,
                     seed, finite_only)
    return t.numpy()


@pytest.mark.parametrize("seed", (0, 1, 7, 2**32, 2**64 - 1))
def test_uniform_is_keyed_by_seed_sequence_and_position(tier, seed):
    """Equal logits are drawn in ascending order, so the token is floor(u * dim)."""
    dim = 1 << 14
    sequences = [0, 0, 1, 5, 2**31, 2**40 + 3, 2**63 - 1]
    positions = [0, 1, 0, 9, 2**31, 2**33, 2**63 - 1]
    want = [int(uniform(seed, s, p) * dim) for s, p in zip(sequences, positions)]
    assert len(set(want)) == len(want)
    np.testing.assert_array_equal(draw(np.full((7, dim), 2.5), sequences, positions, seed=seed), want)


def plain_kept(logits, temperature, top_k, top_p, min_p):
    """What the filters keep, in ascending order, and the running sums of its masses."""
    order = np.argsort(-logits, kind="stable")
    order = order[np.isfinite(logits[order])]
    mass = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / float(np.float32(temperature)))
    if top_k:
        mass = mass[:top_k]
    if top_p < 1:
        before = np.cumsum(mass) - mass
        mass = mass[before < float(np.float32(top_p)) * mass.sum()]
    mass = mass[mass >= float(np.float32(min_p))]
    order = order[:len(mass)]
    return np.sort(order), np.cumsum(mass[np.argsort(order)])


def plain_sample(logits, u, **settings):
    ids, sums = plain_kept(logits, **settings)
    return ids[min(np.searchsorted(sums, u * sums[-1], side="right"), len(ids) - 1)]


FILTERS = [dict(), dict(temperature=0.3), dict(temperature=5.0), dict(top_k=1), dict(top_k=5), dict(top_k=10**6), dict(top_p=0.9),
           dict(top_p=1e-6), dict(min_p=0.1), dict(min_p=1.0), dict(top_k=20, top_p=0.7), dict(top_p=0.95, min_p=0.05),
           dict(temperature=0.7, top_k=30, top_p=0.9, min_p=0.02)]


@pytest.mark.parametrize("settings", FILTERS, ids=str)
@pytest.mark.parametrize("dim", (1, 3, 60, 1009))
def test_filters_keep_what_a_plain_sampler_keeps(tier, settings, dim):
    rng = np.random.default_rng(dim)
    rows = 200
    logits = (rng.standard_normal((rows, dim)) * 3).astype(np.float32)
    logits[::3] = np.round(logits[::3])  # equals
    logits[1::4, 1:][rng.random(logits[1::4, 1:].shape) < 0.3] = -np.inf
    full = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) | settings
    want = [plain_sample(logits[r], uniform(9, 3, r), **full) for r in range(rows)]
    got = draw(logits, [3] * rows, range(rows), seed=9, **full)
    np.testing.assert_array_equal(got, want)
    assert dim == 1 or len(set(got.tolist())) > 1


def test_the_token_that_crosses_top_p_stays(tier):
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]] * 500))
    for top_p, kept in ((0.49, {0}), (0.51, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2}), (0.96, {0, 1, 2, 3})):
        assert set(draw(logits, [0] * 500, range(500), top_p=top_p).tolist()) == kept


def test_temperature_zero_is_argmax_with_ties_to_the_lowest(tier):
    logits = np.random.default_rng(5).integers(-3, 3, (50, 40)).astype(np.float32)
    np.testing.assert_array_equal(draw(logits, [0] * 50, range(50), temperature=0.0), np.argmax(logits, 1))
    assert (draw(logits, [0] * 50, range(50), temperature=1.0) != np.argmax(logits, 1)).any()


@pytest.mark.parametrize("temperature", (0.0, 1e-30, 1.0))
def test_what_cannot_be_drawn(tier, temperature):
    logits = np.random.default_rng(6).standard_normal((5, 33)).astype(np.float32)
    logits[0, 20] = np.nan
    logits[1, 32] = np.inf
    logits[2] = -np.inf
    logits[3] = -np.inf
    logits[3, 17] = -3e38
    got = draw(logits, [0] * 5, range(5), temperature=temperature, top_p=0.9)
    assert got[:4].tolist() == [-1, -1, -2, 17] and got[4] >= 0
    got = draw(logits, [0] * 5, range(5), temperature=temperature, top_p=0.9, finite_only=True)
    assert got[:4].tolist() == [-1] * 4 and got[4] >= 0


def test_batch_mates_and_threads_change_nothing(tier):
    logits = np.random.default_rng(7).standard_normal((9, 500)).astype(np.float32)
    before = _core.get_threads()
    try:
        _core.set_threads(3)
        together = draw(logits, range(9), range(9), top_p=0.9, seed=3)
        _core.set_threads(1)
        alone = [draw(logits[r:r + 1], [r], [r], top_p=0.9, seed=3)[0] for r in range(9)]
    finally:
        _core.set_threads(before)
    assert together.tolist() == alone


# ---- to the bit ------------------------------------------------------------------------------------------------


def masses(logits, temperature):
    """draw.inl: 2^((logit - largest) * log2(e) / temperature) in units of 2^-40, in f32 without FMA, as integers."""
    f32 = np.float32
    scale = f32(min(1.4426950408889634 / float(f32(temperature)), 3.4e38))
    with np.errstate(over="ignore"):
        t = np.maximum((logits - logits.max()) * scale, f32(-64))
    n = np.rint(t)
    f = t - n
    p = np.full_like(f, f32(1.32647273e-3))
    for term in (9.67151299e-3, 0.0555073358, 0.240222424, 0.693147004, 1.0):
        p = p * f + f32(term)
    assert p.dtype == np.float32
    return np.rint(np.ldexp(p, n.astype(int) + 40)).astype(np.int64)


def exact_sample(logits, temperature, top_k, top_p, min_p, random):
    """The token for 53 random bits, in whole numbers."""
    if logits.max() == -np.inf:
        return -2
    mass, order = masses(logits, temperature), np.argsort(-logits, kind="stable")
    order = order[:top_k] if top_k else order
    if top_p < 1:
        total = int(mass[order].sum())
        share = float(np.float32(top_p)) * float(total)
        wanted = min(max(int(np.ceil(share)), 1), total)
        order = order[:np.searchsorted(np.cumsum(mass[order]), wanted) + 1]
    ids = np.sort(order[mass[order] >= np.float64(np.float32(min_p)) * 2.0**40])
    sums = np.cumsum(mass[ids])
    return ids[np.searchsorted(sums, random * int(sums[-1]) >> 53, side="right")]


def shapes(rng, rows, dim):
    """Rows that are hard in one way or another."""
    x = (rng.standard_normal((rows, dim)) * rng.choice([0.01, 1, 4], (rows, 1))).astype(np.float32)
    x[0] = 1.25  # nothing but equals
    x[1] = np.sort(x[1])
    x[2] = np.sort(x[2])[::-1]
    x[3] = rng.integers(-3, 3, dim)
    x[4] = np.where(rng.random(dim) < 0.5, 0.0, -0.0)
    x[5, ::7] = -np.inf
    x[6] = -np.inf
    x[6, rng.integers(dim)] = -1e30
    x[7] = np.exp(rng.uniform(-88, 88, dim)) * rng.choice([-1, 1], dim)  # of all sizes
    x[8] = -np.log(np.arange(dim) + 1) * 1.5 + 20  # large ones first, as in vocabularies sorted by frequency
    x[9] = -5
    x[9, np.arange(dim) % 1024 < 16] = 3  # what the guess at top_p's end looks at is not what the others are
    x[10] = 3
    x[10, np.arange(dim) % 1024 < 16] = -5
    x[11, :] = -1000
    x[11, rng.integers(dim)] = 1000
    return x


EXACT = [dict(), dict(temperature=0.8), dict(temperature=100.0), dict(temperature=1e-6), dict(temperature=0.8, top_k=40),
         dict(top_k=1), dict(top_k=3000), dict(temperature=0.8, top_p=0.95), dict(temperature=100.0, top_p=0.95),
         dict(temperature=2.0, top_p=0.5), dict(top_p=0.999), dict(temperature=100.0, top_p=1e-6), dict(temperature=0.8, min_p=0.05),
         dict(temperature=100.0, min_p=0.9), dict(min_p=1.0), dict(min_p=1e-20), dict(temperature=1.5, top_p=0.9, min_p=0.1),
         dict(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05), dict(temperature=30.0, top_k=5000, top_p=0.7, min_p=0.01)]


@pytest.mark.parametrize("dim", (1, 5, 16, 33, 1023, 1024, 1025, 4096, 6001, 20_011))
def test_tokens_are_those_of_whole_numbers(tier, dim):
    rows = 24
    for number, settings in enumerate(EXACT):
        full = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) | settings
        logits = shapes(np.random.default_rng(100 * dim + number), rows, dim)
        want = [exact_sample(logits[r], **full, random=int(uniform(17, r, dim) * 2**53)) for r in range(rows)]
        np.testing.assert_array_equal(draw(logits, range(rows), [dim] * rows, seed=17, **full), want, str(settings))


@pytest.mark.parametrize("temperature", (1e-3, 0.8, 100.0))
@pytest.mark.parametrize("offset", (0, 300, -300, 1e5))
def test_min_p_at_its_border(tier, temperature, offset):
    """One likely token a stretch, just over min_p's mass or just under it: none is passed over unseen."""
    stretches, dim = 12, 12 * 1024
    logits = np.full(dim, offset - 200 * temperature, np.float32)
    border = np.log(0.05) * temperature
    logits[np.arange(stretches) * 1024 + 77] = offset + border * (1 - 0.02 * np.linspace(-1, 1, stretches)**7)
    logits[1024 * 5 + 500] = offset
    settings = dict(temperature=temperature, top_k=0, top_p=1.0, min_p=0.05)
    want = [exact_sample(logits, **settings, random=int(uniform(2, 0, p) * 2**53)) for p in range(120)]
    got = draw(np.tile(logits, (120, 1)), [0] * 120, range(120), seed=2, **settings)
    np.testing.assert_array_equal(got, want)
    assert len(set(want)) > 1


def test_masses_are_those_of_float64():
    """Every mass within 4e-6 of exp (the rounding of t where it is large), or within half a unit."""
    logits = np.random.default_rng(1).uniform(-30, 0, 200_000).astype(np.float32)
    logits[0] = 0
    for temperature in (0.5, 1.0, 3.0, 100.0):
        want = np.exp(logits.astype(np.float64) / temperature) * 2.0**40
        got = masses(logits, temperature)
        assert got[0] == 2**40 == got.max()
        assert (np.abs(got - want) <= 4e-6 * want + 0.5).all()


@pytest.mark.parametrize("settings", (dict(temperature=100.0), dict(temperature=2.0, top_p=0.9), dict(temperature=3.0, min_p=0.02),
                                      dict(temperature=1.5, top_k=300, top_p=0.95)), ids=str)
def test_a_large_vocabulary_is_drawn_as_float64_draws_it(tier, settings):
    """Hundreds of numbers into a few thousand tokens: the same token, but for a number at the border of two neighbours."""
    dim, draws = 30_000, 400
    logits = (np.random.default_rng(11).standard_normal(dim) * 2).astype(np.float32)
    full = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) | settings
    ids, sums = plain_kept(logits, **full)
    numbers = np.array([uniform(3, 5, p) for p in range(draws)])
    want = np.searchsorted(sums, numbers * sums[-1], side="right")
    tokens = draw(np.tile(logits, (draws, 1)), [5] * draws, range(draws), seed=3, **full)
    got = np.searchsorted(ids, tokens)
    assert (ids[got] == tokens).all() and (np.abs(got - want) <= 1).all()
    assert (got != want).sum() <= 2 and len(set(tokens.tolist())) > 80


@pytest.mark.parametrize("dim", (1, 17, 1024, 5000, 40_000))
def test_top_k_of_hard_rows(tier, dim):
    x = shapes(np.random.default_rng(dim), 20, dim)  # more rows than slots
    x[12, ::3] = np.nan  # counts as -infinity
    x[13, ::2] = np.inf
    keys = np.where(np.isnan(x), -np.inf, x)
    order = np.argsort(-keys, axis=1, kind="stable")
    for k in {1, min(40, dim), min(700, dim), (dim + 1) // 2, dim}:
        values, ids = _core.top_k(tensor(x), k)
        np.testing.assert_array_equal(ids.numpy(), order[:, :k])
        np.testing.assert_array_equal(values.numpy(), np.take_along_axis(keys, order[:, :k], 1))


@pytest.mark.parametrize("dim", (1, 15, 16, 1000, 1024, 1025, 3000))
def test_argmax_and_checks_see_every_place(tier, dim):
    x = np.random.default_rng(dim).standard_normal((1, dim)).astype(np.float32)
    for place in {0, dim - 1, dim // 2, max(0, dim - 17), *range(0, dim, 97)}:
        for value, allowed in ((100.0, None), (np.nan, -1), (np.inf, -1)):
            y = x.copy()
            y[0, place] = value
            want = place if allowed is None else allowed
            assert _core.argmax(tensor(y)).numpy()[0] == want
            assert draw(y, [0], [0], temperature=0.0)[0] == want
            assert draw(y, [0], [0], temperature=1.0, top_k=1)[0] == want
            y[0, place] = -np.inf
            assert draw(y, [0], [0], temperature=1.0, finite_only=True)[0] == -1


def test_too_large_a_vocabulary_is_refused():
    x = _core.Tensor.from_numpy(np.zeros((1, 2**22 + 1), np.float32))
    with pytest.raises(ValueError, match="at most 4194304"):
        _core.top_k(x, 1)
    with pytest.raises(ValueError, match="at most 4194304"):
        draw(x.numpy(), [0], [0])
