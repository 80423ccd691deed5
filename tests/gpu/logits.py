"""Cases of what is done with logits: argmax, checks, the largest, penalties, the draw."""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np
from gpu.problems import Case, Problem, Sizes, floats, ints
from test_kernels_sample import exact_sample, shapes, uniform

from genkit import _core
from genkit.decoding.sampling import History, Tables
from genkit.devices import using

FILTERS = [dict(temperature=0.0), dict(temperature=0.8), dict(temperature=0.8, top_k=40), dict(temperature=100.0, top_p=0.95),
           dict(temperature=0.8, top_p=0.95), dict(temperature=1.5, min_p=0.05), dict(temperature=0.7, top_k=30, top_p=0.9, min_p=0.02),
           dict(temperature=30.0, top_k=5000, top_p=0.7, min_p=0.01)]


def cases(sizes: Sizes) -> Iterator[Case]:
    for dim in sizes((1, 33, 1500), (32_000, 50_257, 128_256)):
        yield looks(dim)
        yield top_k(dim)
        yield penalty(dim)
        for window in (0, 1, 3, 900):
            yield remember(dim, window)
        yield bias(dim)
        for settings in FILTERS:
            yield sample(dim, settings)


def hard(rng: np.random.Generator, dim: int) -> np.ndarray:
    """20 rows: more than there are places to work in."""
    return shapes(rng, 20, dim)


def looks(dim: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        x = hard(rng, dim)
        for row, poison in ((12, np.nan), (13, np.inf), (14, -np.inf)):
            x[row, rng.integers(dim)] = poison
        x[15] = -np.inf
        given, want = floats(x), np.where((x == -np.inf).all(1), -2, np.argmax(x, 1))
        want[np.isnan(x).any(1) | (x == np.inf).any(1)] = -1
        return Problem(lambda: {"argmax": _core.argmax(given), "nonfinite": _core.nonfinite(given)},
                       {"argmax": want, "nonfinite": (~np.isfinite(x)).sum(1)})

    return Case(f"argmax, nonfinite {dim}", ("argmax", "nonfinite"), make)


def top_k(dim: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        x = hard(rng, dim)
        given, order = floats(x), np.argsort(-x, axis=1, kind="stable")
        counts = sorted({1, min(40, dim), min(700, dim)})

        def call() -> dict[str, Any]:
            made = {}
            for k in counts:
                made[f"values {k}"], made[f"ids {k}"] = _core.top_k(given, k)
            return made

        want = {f"ids {k}": order[:, :k] for k in counts}
        want |= {f"values {k}": np.take_along_axis(x, order[:, :k], 1).astype(np.float64) for k in counts}
        return Problem(call, want)

    return Case(f"top_k {dim}", ("top_k",), make)


def penalty(dim: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        x = (rng.standard_normal((3, dim)) * 5).astype(np.float32)
        lengths, entries = (dim // 3, 0, dim), np.full((3, 3, dim), 2**31 - 1)
        want = x.astype(np.float64)
        factor = float(np.float32(1.3))
        for row, own, length in zip(want, entries, lengths):
            own[:, :length] = rng.permutation(dim)[:length], rng.integers(0, 3, length), rng.integers(0, 4, length)
            ids, seen, generated = own[:, :length]
            row[ids] = np.where(seen > 0, np.where(row[ids] > 0, row[ids] / factor, row[ids] * factor), row[ids])
            row[ids] -= np.where(generated > 0, 0.5 + 0.25 * generated, 0)
        given, arguments = floats(x), (ints(entries), ints(lengths))

        def call() -> dict[str, Any]:
            made = _core.convert(given, "f32")
            _core.penalize_(made, *arguments, 1.3, 0.5, 0.25)
            return {"out": made}

        return Problem(call, {"out": want}, 1e-6)

    return Case(f"penalty {dim}", ("penalty",), make)


def remember(dim: int, window: int) -> Case:
    """Nine tokens one after the other, by a copy of the tables that hold what was said before; and what penalties make of it."""

    def make(rng: np.random.Generator) -> Problem:
        said = [rng.integers(0, dim, count).tolist() for count in (0, 1, 40, 700, 2100)]
        rows, tokens = len(said), rng.integers(0, dim, (9, len(said)))
        tokens[4], tokens[5, :2] = tokens[3], (-1, -2)
        histories = [History(one, window or -1) for one in said]
        with using("cpu"):
            tables = Tables(rows, max(map(len, histories)) + len(tokens), window)
            tables.write(histories, rows)
            begun = [tensor.numpy() for tensor in (tables.entries, tables.lengths, tables.recent, tables.next)]
        ends = np.cumsum([0] + [array.size for array in begun]).tolist()
        flat = np.concatenate([array.ravel() for array in begun])
        twice = _core.Tensor([1, 2, len(flat)], "i32")
        twice.write(np.stack([flat, flat])[None])
        second = twice.reshape([2 * len(flat)]).rows(len(flat), 2 * len(flat))
        state = [second.rows(*ends[i : i + 2]).reshape(array.shape) for i, array in enumerate(begun)]
        given, drawn, (first, last) = floats(np.ones((rows, dim))), [ints(one) for one in tokens], (ints([0]), ints([1]))

        def call() -> dict[str, Any]:
            _core.copy_pages(twice, first, last)
            for one in drawn:
                _core.remember_(one, *state)
            made = _core.convert(given, "f32")
            _core.penalize_(made, *state[:2], 2.0, 0.0, 0.25)
            return {"out": made, "next": state[3]}

        want = np.ones((rows, dim))
        for row, history, own in zip(want, histories, tokens.T.tolist()):
            for token in own:
                if token >= 0:
                    history.append(token)
            ids, _, generated = history.entries()
            row[ids] = 0.5 - 0.25 * generated
        return Problem(call, {"out": want, "next": np.array([history.recent()[1] for history in histories])})

    return Case(f"remember {dim} window {window}", ("remember", "penalty"), make)


def bias(dim: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        x, ids = rng.standard_normal((3, dim)).astype(np.float32), rng.permutation(dim)[: dim // 2 + 1]
        added = rng.standard_normal(len(ids)).astype(np.float32)
        added[0], want = -np.inf, x.copy()
        want[:, ids] += added
        given, arguments = floats(x), (ints(ids), floats(added))

        def call() -> dict[str, Any]:
            made = _core.convert(given, "f32")
            _core.bias_(made, *arguments)
            return {"out": made}

        return Problem(call, {"out": want.astype(np.float64)})

    return Case(f"bias {dim}", ("bias",), make)


def sample(dim: int, settings: dict[str, Any]) -> Case:
    full = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) | settings

    def make(rng: np.random.Generator) -> Problem:
        x, seed = hard(rng, dim), int(rng.integers(1 << 62))
        logits, sequences, positions = floats(x), ints(np.arange(20), np.int64), ints(np.full(20, dim), np.int64)
        want = np.where((x == -np.inf).all(1), -2, np.argmax(x, 1)) if not full["temperature"] else \
            np.array([exact_sample(x[r], **full, random=int(uniform(seed, r, dim) * 2**53)) for r in range(20)])

        def call() -> dict[str, Any]:
            return {"tokens": _core.sample(logits, sequences, positions, full["temperature"], full["top_k"], full["top_p"],
                                           full["min_p"], seed)}

        return Problem(call, {"tokens": want})

    words = " ".join(f"{name} {value}" for name, value in settings.items())
    return Case(f"sample {dim} {words}", ("sample",) if full["temperature"] else ("sample", "argmax"), make)
