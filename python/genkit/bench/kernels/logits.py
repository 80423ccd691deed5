"""What is done with logits. Sorting and drawing have no fixed number of operations: the bytes they must read count."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import numpy as np

from genkit import _core
from genkit.bench.kernels.case import Case, Scope, Store, ints
from genkit.bench.kernels.rowwise import EXP, elementwise

SAMPLING = {"temperature 0": (0.0, 0, 1.0, 0.0), "temperature 1": (1.0, 0, 1.0, 0.0), "top-k 40": (1.0, 40, 1.0, 0.0),
            "top-p 0.95": (1.0, 0, 0.95, 0.0), "min-p 0.05": (1.0, 0, 1.0, 0.05)}
SAID = 256  # tokens that were said before


def cases(scope: Scope) -> Iterator[Case]:
    vocab = scope.sizes.vocab
    for rows in scope.head_rows:
        def over(op: Callable[..., Any], *options: Any, rows: int = rows) -> Callable[[Store], Callable[[], Any]]:
            def make(store: Store) -> Callable[[], Any]:
                x = store.floats(rows, vocab, scale=3.0)
                return lambda: op(x, *options)
            return make

        read = 4 * rows * vocab
        yield elementwise("softmax", f"{vocab}", rows, 2 * read, (EXP + 3) * rows * vocab, over(_core.softmax))
        yield elementwise("softmax", f"{vocab} logarithm", rows, 2 * read, (EXP + 3) * rows * vocab, over(_core.log_softmax))
        yield elementwise("argmax", f"{vocab}", rows, read + 4 * rows, 0, over(_core.argmax))
        yield elementwise("nonfinite", f"{vocab}", rows, read + 4 * rows, 0, over(_core.nonfinite))
        yield elementwise("top_k", f"{vocab} k 40", rows, read + 40 * 8 * rows, 0, over(_core.top_k, min(40, vocab)))
        yield bias(vocab, rows)
        yield penalty(vocab, rows)
        yield remember(vocab, rows)
        for words, options in SAMPLING.items():
            yield sample(vocab, rows, words, options)


def bias(vocab: int, rows: int) -> Case:
    """As penalty. Ids and values, and their logits read and written."""
    said = min(SAID, vocab)

    def make(store: Store) -> Callable[[int], Any]:
        logits = store.floats(rows, vocab, scale=3.0)
        ids = ints(store.rng.permutation(vocab)[:said])
        values = [_core.Tensor.from_numpy(np.full(said, value, np.float32)) for value in (1.0, -1.0)]
        return lambda i: _core.bias_(logits, ids, values[i % 2])

    return Case("bias", f"{said} of {vocab}", rows, ("bias",), 8 * said * (rows + 1), make, rows * said, copies=2)


def penalty(vocab: int, rows: int) -> Case:
    """Every second call takes back what the one before did: logits stay what logits can be. Ids, their two counts, and
    their logits read and written."""
    said = min(SAID, vocab)

    def make(store: Store) -> Callable[[int], Any]:
        logits = store.floats(rows, vocab, scale=3.0)
        entries, lengths = table(store, vocab, rows, said)
        penalties = (2.0, 0.5, 0.25), (0.5, -0.5, -0.25)
        return lambda i: _core.penalize_(logits, entries, lengths, *penalties[i % 2])

    return Case("penalty", f"{said} of {vocab}", rows, ("penalty",), 20 * rows * said, make, 4 * rows * said, copies=2)


def remember(vocab: int, rows: int) -> Case:
    """A token of the table, and one that leaves a window of as many. Ids, and the counts of both read and written."""
    said = min(SAID, vocab)

    def make(store: Store) -> Callable[[], Any]:
        entries, lengths = table(store, vocab, rows, said)
        recent = ints(np.tile(2 * entries.numpy()[:, 0, :1], said))
        tokens, after = ints(entries.numpy()[:, 0, -1]), ints(np.zeros(rows))
        return lambda i: _core.remember_(tokens, entries, lengths, recent, after)

    return Case("remember", f"{said} of {vocab}", rows, ("remember",), 4 * rows * (said + 8), make)


def table(store: Store, vocab: int, rows: int, said: int) -> tuple[_core.Tensor, _core.Tensor]:
    """As penalize_ reads it: entries and lengths."""
    entries = store.rng.integers(1, 4, (rows, 3, said))
    for row in entries:
        row[0] = store.rng.permutation(vocab)[:said]
    return ints(entries), ints(np.full(rows, said))


def sample(vocab: int, rows: int, words: str, options: tuple[float, int, float, float]) -> Case:
    temperature, top_k, top_p, min_p = options

    def make(store: Store) -> Callable[[], Any]:
        logits = store.floats(rows, vocab, scale=3.0)
        sequences, positions = ints(np.arange(rows), np.int64), ints(np.arange(rows) + 7, np.int64)
        return lambda: _core.sample(logits, sequences, positions, temperature, top_k, top_p, min_p, 1)

    return elementwise("sample", f"{vocab} {words}", rows, 4 * rows * vocab + 4 * rows, 0, make)
