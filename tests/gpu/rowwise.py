"""Cases of what works element by element or row by row: types, norms, activations, softmax, positions, columns."""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np
from gpu.problems import Case, Problem, Sizes, Strided, floats, ints, rounded
from test_kernels import activate

from genkit import _core

TYPES = ("f32", "f16", "bf16")
LIMIT = 1e-5  # of float32 with sums of a few thousand terms


def cases(sizes: Sizes) -> Iterator[Case]:
    dims = sizes((1, 33, 80), (1000, 2048, 4096, 14336))
    rows = sizes((3,), (1, 64, 517))
    for dim in dims:
        for n in rows:
            yield from norms(n, dim)
            yield from activations(n, dim)
            yield from softmaxes(n, dim)
    for source in TYPES:
        for target in TYPES:
            yield convert(source, target, 5003)
        for dim in dims:
            yield embedding(source, dim)
    for shape in sizes([(3, 17)], [(64, 4096), (1000, 1001)]):
        yield from sums(shape)
    for width, more in sizes([(40, 33)], [(4096, 0), (3000, 577)]):
        yield gather_columns(width, more)
    for n in sizes((5,), (1, 512)):
        yield rope_table(n)
        for head_dim, half in sizes([(20, 10), (80, 10)], [(64, 32), (128, 64), (256, 64)]):
            for interleaved in (False, True):
                yield rope(n, head_dim, half, interleaved)


def convert(source: str, target: str, count: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        x = rng.standard_normal(count) * 10.0 ** rng.integers(-6, 5, count)
        x[:4] = np.inf, -np.inf, -0.0, 65519.0
        return narrowing(rounded(x, source), source, target)

    return Case(f"convert {source} to {target}", ("convert",), make, same_bits=True)


def narrowing(x: np.ndarray, source: str, target: str) -> Problem:
    with np.errstate(over="ignore"):
        given, want = floats(x, source), rounded(x, target)
    return Problem(lambda: {"out": _core.convert(given, target)}, {"out": want})


def embedding(dtype: str, dim: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        table, rows = rng.standard_normal((131, dim)), rng.integers(0, 131, 29)
        weight, ids = floats(table, dtype), ints(rows)
        return Problem(lambda: {"out": _core.embedding(ids, weight)}, {"out": rounded(table, dtype)[rows]})

    return Case(f"embedding {dtype} {dim}", ("embedding",), make)


def norms(n: int, dim: int) -> Iterator[Case]:
    def rms(rng: np.random.Generator) -> Problem:
        x = Strided.of(rng.standard_normal((n, dim)) * 10.0 ** rng.integers(-3, 4, (n, 1)))
        w, wide = rng.standard_normal(dim), x.wide.numpy()[:, 3:-2].astype(np.float64)
        weight, want = floats(w), wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * rounded(w, "f32")
        return Problem(lambda: {"out": _core.rms_norm(x.view, weight, 1e-5)}, {"out": want}, LIMIT)

    def heads(rng: np.random.Generator) -> Problem:
        x, w = rng.standard_normal((n, 3 * dim)), rng.standard_normal(dim)
        given, weight, wide = Strided.of(x), floats(w), rounded(x, "f32").reshape(n, 3, dim)
        want = wide / np.sqrt((wide**2).mean(2, keepdims=True) + 1e-6) * rounded(w, "f32")

        def call() -> dict[str, Any]:
            made = given.copy()
            _core.rms_norm_heads_(made.view, weight, 1e-6)
            return {"out": made.wide}

        return Problem(call, {"out": given.around(want.reshape(n, -1))}, LIMIT)

    def layer(rng: np.random.Generator) -> Problem:
        x, (w, b) = rng.standard_normal((n, dim)) + 2, rng.standard_normal((2, dim))
        given, weight, bias, wide = Strided.of(x), floats(w), floats(b), rounded(x, "f32")
        want = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5) * rounded(w, "f32")
        return Problem(lambda: {"out": _core.layer_norm(given.view, weight, bias, 1e-5)}, {"out": want + rounded(b, "f32")}, LIMIT)

    def layer_heads(rng: np.random.Generator) -> Problem:
        x, (w, b) = rng.standard_normal((n, 3 * dim)), rng.standard_normal((2, 3, dim))
        given, weight, bias, wide = Strided.of(x), floats(w), floats(b), rounded(x, "f32").reshape(n, 3, dim)
        want = (wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + 1e-5) * rounded(w, "f32")
        want += rounded(b, "f32")

        def call() -> dict[str, Any]:
            made = given.copy()
            _core.layer_norm_heads_(made.view, weight, bias, 1e-5)
            return {"out": made.wide}

        return Problem(call, {"out": given.around(want.reshape(n, -1))}, LIMIT)

    yield Case(f"rms_norm {n}x{dim}", ("rms_norm",), rms)
    yield Case(f"layer_norm {n}x{dim}", ("layer_norm",), layer)
    if n * dim <= 1 << 20:  # heads are not as wide, and float64 takes its time
        yield Case(f"rms_norm {n}x3 heads of {dim}", ("rms_norm",), heads)
        yield Case(f"layer_norm {n}x3 heads of {dim}", ("layer_norm",), layer_heads)


def activations(n: int, dim: int) -> Iterator[Case]:
    def one(kind: str) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = Strided.of(rng.standard_normal((n, dim)) * 3)
            want = activate(kind, x.wide.numpy()[:, 3:-2])
            return Problem(lambda: {"out": _core.activation(x.view, kind)}, {"out": want}, LIMIT)

        return Case(f"activation {kind} {n}x{dim}", ("activation",), make)

    def pair(kind: str) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            x = Strided.of(rng.standard_normal((n, 2 * dim)) * 3)
            wide = x.wide.numpy()[:, 3:-2].astype(np.float64)
            gate, up = wide[:, :dim], wide[:, dim:]
            if kind == "swiglu_oai":
                gate = np.minimum(gate, 7)
                want = gate / (1 + np.exp(-1.702 * gate)) * (np.clip(up, -7, 7) + 1)
            else:
                want = activate(kind, gate) * up
            return Problem(lambda: {"out": _core.gated(x.view, kind)}, {"out": want}, LIMIT)

        return Case(f"gated {kind} {n}x{dim}", ("gated",), make)

    for kind in ("silu", "gelu", "gelu_tanh", "relu"):
        if n * dim <= 1 << 17 or kind in ("silu", "relu"):  # erf of millions takes a while in Python
            yield one(kind)
            yield pair(kind)
    yield pair("swiglu_oai")


def softmaxes(n: int, dim: int) -> Iterator[Case]:
    def make(rng: np.random.Generator) -> Problem:
        x = (rng.standard_normal((n, dim)) * 8 + 100).astype(np.float32)
        x[rng.random(x.shape) < 0.1] = -np.inf
        x[:, :1] = 100
        given, shifted = floats(x), x.astype(np.float64) - x.max(1, keepdims=True)
        total = np.exp(shifted).sum(1, keepdims=True)
        return Problem(lambda: {"softmax": _core.softmax(given), "log_softmax": _core.log_softmax(given)},
                       {"softmax": np.exp(shifted) / total, "log_softmax": shifted - np.log(total)}, LIMIT)

    yield Case(f"softmax {n}x{dim}", ("softmax",), make)


def sums(shape: tuple[int, int]) -> Iterator[Case]:
    def add(rng: np.random.Generator) -> Problem:
        x, y = rng.standard_normal((2, *shape)).astype(np.float32)
        a, b = floats(x), floats(y)
        return Problem(lambda: {"sum": _core.add(a, b), "scaled": _core.add(a, b, -0.22)},
                       {"sum": x.astype(np.float64) + y, "scaled": x - float(np.float32(0.22)) * y.astype(np.float64)}, 1e-6)

    def scale(rng: np.random.Generator) -> Problem:
        x = (rng.standard_normal(shape) * 40).astype(np.float32)
        given, y = floats(x), (x * np.float32(0.3)).astype(np.float64)
        return Problem(lambda: {"plain": _core.scale(given, 0.3), "capped": _core.scale(given, 0.3, 30.0)},
                       {"plain": y, "capped": 30 * np.tanh(y / 30)}, 1e-6)

    yield Case(f"add {shape[0]}x{shape[1]}", ("add",), add)
    yield Case(f"scale {shape[0]}x{shape[1]}", ("scale",), scale)


def gather_columns(width: int, more: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        x, y = (rng.standard_normal((6, count)).astype(np.float32) for count in (width, more))
        chosen = rng.integers(-1, width + more, 2 * width)
        given, other, index = Strided.of(x), Strided.of(y) if more else None, ints(chosen)
        wide = np.concatenate([x, y, np.zeros((6, 1), np.float32)], 1)
        return Problem(lambda: {"out": _core.gather_columns(given.view, index, other and other.view)}, {"out": wide[:, chosen].astype(np.float64)})

    return Case(f"gather_columns {width}+{more}", ("gather_columns",), make)


def rope_table(n: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        at, frequencies = rng.integers(0, 131072, n), (5e5 ** (-np.arange(64) / 64)).astype(np.float32)
        positions, inverse = ints(at), floats(frequencies)
        angle = (at.astype(np.float32)[:, None] * frequencies).astype(np.float64)
        want = np.concatenate([np.cos(angle), np.sin(angle)], 1) * 1.25
        return Problem(lambda: {"out": _core.rope_table(positions, inverse, 1.25)}, {"out": want}, 1e-6)

    return Case(f"rope_table {n}", ("rope_table",), make)


def turned(x: np.ndarray, table: np.ndarray, half: int, interleaved: bool) -> np.ndarray:
    """x [n, heads, head_dim] with the first 2 half channels of each head rotated, float64."""
    first, second = np.arange(half), np.arange(half) + half
    if interleaved:
        first, second = 2 * first, 2 * first + 1
    want, cosine, sine = x.astype(np.float64), table[:, None, :half].astype(np.float64), table[:, None, half:].astype(np.float64)
    a, b = want[:, :, first].copy(), want[:, :, second].copy()
    want[:, :, first], want[:, :, second] = a * cosine - b * sine, b * cosine + a * sine
    return want


def rope(n: int, head_dim: int, half: int, interleaved: bool) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        x = rng.standard_normal((n, 3 * head_dim)).astype(np.float32)
        angles = rng.standard_normal((n, 2 * half)).astype(np.float32)
        given, table = Strided.of(x), floats(angles)
        want = turned(x.reshape(n, 3, head_dim), angles, half, interleaved)

        def call() -> dict[str, Any]:
            made = given.copy()
            _core.rope_(made.view, table, head_dim, interleaved)
            return {"out": made.wide}

        return Problem(call, {"out": given.around(want.reshape(n, -1))}, 1e-6)

    return Case(f"rope {n}x3x{head_dim}, {half}{' interleaved' if interleaved else ''}", ("rope",), make)
