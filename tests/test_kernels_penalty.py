"""What was said before: penalties by its tables, and the tables' next tokens, on every tier."""

import numpy as np
import pytest
from kernel_helpers import EPS, assert_within, ints, pytest_tier, tensor

from genkit import _core
from genkit.decoding.sampling import History, Tables

tier = pytest_tier()


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def test_penalize(tier, rng):
    logits = rng.standard_normal((3, 50)).astype(np.float32) * 5
    logits[0, 7] = -np.inf
    lengths = [9, 0, 20]
    entries = np.full((3, 3, 21), 10**6, np.int32)
    for row, length in zip(entries, lengths):
        row[:, :length] = rng.permutation(50)[:length], rng.integers(0, 3, length), rng.integers(0, 4, length)
    entries[0, 0, 0] = 7 if 7 not in entries[0, 0] else entries[0, 0, 0]
    want, untouched = logits.astype(np.float64), np.ones((3, 50), bool)
    for r in range(3):
        for token, seen, generated in entries[r, :, : lengths[r]].T:
            untouched[r, token] = False
            if seen:
                want[r, token] *= 1 / 1.3 if want[r, token] > 0 else 1.3
            if generated:
                want[r, token] -= 0.5 + 0.25 * generated
    got = tensor(logits)
    _core.penalize_(got, ints(entries), ints(lengths), 1.3, 0.5, 0.25)
    assert_within(got.numpy(), want, 4 * EPS * (np.abs(np.where(np.isinf(logits), 0, logits)) + 1.5))
    np.testing.assert_array_equal(got.numpy()[untouched], logits[untouched])


def test_penalize_refuses(tier):
    logits, entries = tensor(np.ones((2, 5))), np.zeros((2, 3, 4), np.int32)
    entries[1, 0, :] = 1, 0, 5, -1
    _core.penalize_(logits, ints(entries), ints([4, 2]), 1.3, 0.5, 0.25)
    for lengths, words in (([4, 3], r"ids\[2\] is 5; expected 0 to 4"), ([5, 0], r"lengths\[0\] is 5; expected 0 to 4"),
                           ([0, -1], r"lengths\[1\] is -1"), ([0], "lengths is"), ([0, 0, 0], "lengths is")):
        with pytest.raises(ValueError, match=words):
            _core.penalize_(logits, ints(entries), ints(lengths), 1.3, 0.5, 0.25)
    for wrong in (entries[:1], entries[:, :2], entries[0]):
        with pytest.raises(ValueError, match=r"\[penalize_\] entries is"):
            _core.penalize_(logits, ints(wrong), ints([0, 0]), 1.3, 0.5, 0.25)


@pytest.mark.parametrize("window", [0, 1, 3, 64])
def test_remember_against_counting(tier, rng, window):
    """Rows with a past of their own; tokens that are none; a table that is full takes no new ones."""
    histories = [History(rng.integers(0, 40, n).tolist(), window or -1) for n in (0, 30, 200)]
    tables = Tables(3, 50, window)
    tables.write(histories, 3)
    for _ in range(100):
        tokens = rng.integers(0, 40, 3)
        tokens[rng.integers(3)] = -1
        _core.remember_(ints(tokens), tables.entries, tables.lengths, tables.recent, tables.next)
        for row, (token, history) in enumerate(zip(tokens.tolist(), histories)):
            if token >= 0:
                history.append(token)
            found = tables.entries.numpy()[row, :, : tables.lengths.numpy()[row]].T.tolist()
            assert len({entry[0] for entry in found}) == len(found)
            assert sorted(entry for entry in found if entry[1]) == sorted(history.entries().T.tolist())
    full = Tables(1, 2)
    full.write([History([5, 6])], 1)
    for token in (5, 7):
        _core.remember_(ints([token]), full.entries, full.lengths, full.recent, full.next)
    assert full.entries.numpy().tolist() == [[[5, 6], [2, 1], [1, 0]]] and full.lengths.numpy().tolist() == [2]
    with pytest.raises(ValueError, match=r"\[remember_\] next\[0\] is 3; expected 0 to 2"):
        _core.remember_(ints([1]), full.entries, full.lengths, ints([[-1, -1, -1]]), ints([3]))
