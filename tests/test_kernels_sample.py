"""The draw: the Philox generator by its known answers, and every filter against a plain float64 sampler."""

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


def draw(logits, sequences, positions, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0):
    t = _core.sample(tensor(logits), ints(sequences, np.int64), ints(positions, np.int64), temperature, top_k, top_p, min_p,
                     seed)
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


def plain_sample(logits, u, temperature, top_k, top_p, min_p):
    order = np.argsort(-logits, kind="stable")
    order = order[np.isfinite(logits[order])]
    mass = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / float(np.float32(temperature)))
    if top_k:
        mass = mass[:top_k]
    if top_p < 1:
        before = np.cumsum(mass) - mass
        mass = mass[before < float(np.float32(top_p)) * mass.sum()]
    mass = mass[mass >= float(np.float32(min_p))]
    return order[min(np.searchsorted(np.cumsum(mass), u * mass.sum(), side="right"), len(mass) - 1)]


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
    assert got[:4].tolist() == [-1, -1, -1, 17] and got[4] >= 0


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
