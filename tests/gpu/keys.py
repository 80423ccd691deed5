"""Cases of the paged KV cache and attention over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator

import numpy as np
from gpu.problems import Case, Problem, Sizes, Strided, bf16_bits, floats, ints
from gpu.rowwise import turned
from test_kernels_attention import from_page, quantized, stored

from genkit import _core

PAGE = _core.PAGE_KEYS
TYPES = ("f32", "f16", "bf16", "i8")
# Queries and weights of the softmax may be rounded to the type of the pages (kernels.h).
LIMITS = {"f32": 1e-4, "f16": 5e-3, "bf16": 5e-3, "i8": 5e-3}


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    lengths: tuple[int, ...]
    rows: int
    window: int = 0
    alibi: bool = False
    softcap: float = 0.0
    sinks: bool = False

    @property
    def words(self) -> str:
        extras = [f"window {self.window}"] * bool(self.window) + ["alibi"] * self.alibi + ["softcap"] * bool(self.softcap) + \
            ["sinks"] * self.sinks
        return " ".join([f"{self.heads}/{self.kv_heads}x{self.head_dim}", f"{self.rows} of {max(self.lengths)}", *extras])


TINY = [Shape(4, 2, 20, (5, 130, 64), 9), Shape(7, 1, 64, (200, 65), 5, alibi=True), Shape(4, 2, 16, (190, 70), 7, window=65),
        Shape(3, 1, 33, (100,), 3, softcap=3.0, sinks=True), Shape(3, 1, 24, (1100, 1024), 3),
        Shape(8, 8, 64, (70,), 1), Shape(4, 4, 128, (140,), 33)]
FULL = [Shape(32, 8, 64, (129, 4096, 1000, 1), 4), Shape(32, 8, 128, (4096,), 1), Shape(32, 8, 128, (8192, 77, 1025), 18),
        Shape(32, 8, 128, (300, 700), 517), Shape(8, 4, 256, (4200,), 34, window=4096, softcap=50.0),
        Shape(64, 8, 64, (3000,), 130, window=128, sinks=True), Shape(71, 1, 64, (900,), 66), Shape(16, 16, 112, (600,), 67, alibi=True),
        Shape(5, 5, 2, (300,), 4), Shape(2, 1, 512, (200,), 20), Shape(36, 2, 18, (150,), 19)]


def cases(sizes: Sizes) -> Iterator[Case]:
    for kind in TYPES:
        for shape in sizes(TINY, FULL):
            yield attention(kind, shape)
        for dim in sizes((8, 33), (64, 96, 128, 256)):
            yield write(kind, dim)
            yield rotated_write(kind, dim)
        yield copy_pages(kind)


class Pages:
    """Empty pages of a layer: every byte 0xff, which is NaN as a float, and -1 as an i8, whose scale is NaN."""

    def __init__(self, kind: str, kv_heads: int, count: int, head_dim: int) -> None:
        shape = kv_heads, count, PAGE, head_dim
        types = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16, "i8": np.uint8}
        bits = np.full(shape, -1, np.int64).astype(types[kind])
        self.kind = kind
        self.k, self.v = self._tensor(bits), self._tensor(bits)
        empty = np.full(shape[:3], np.nan)
        self.scales = {name: floats(empty) if kind == "i8" else None for name in ("k_scales", "v_scales")}

    def _tensor(self, bits: np.ndarray) -> _core.Tensor:
        if self.kind in ("f16", "bf16"):
            return _core.Tensor.from_numpy(bits, dtype=self.kind)
        return _core.Tensor.from_numpy(bits.view(np.float32 if self.kind == "f32" else np.int8))

    def write(self, k: np.ndarray, v: np.ndarray, where: tuple[Any, ...]) -> None:
        _core.kv_write(floats(k.reshape(len(k), -1)), floats(v.reshape(len(v), -1)), self.k, self.v, *where, **self.scales)

    @property
    def all(self) -> dict[str, _core.Tensor]:
        return {"k": self.k, "v": self.v} | {name: scale for name, scale in self.scales.items() if scale is not None}


def attention(kind: str, shape: Shape) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        s, lengths = shape, shape.lengths
        width = max(lengths) // PAGE + 1
        table = rng.permutation(len(lengths) * width).reshape(len(lengths), width)
        pages = Pages(kind, s.kv_heads, table.size, s.head_dim)
        keys = [rng.standard_normal((n, s.kv_heads, s.head_dim)).astype(np.float32) for n in lengths]
        held = [(rng.standard_normal((n, s.kv_heads, s.head_dim)) * rng.choice([.5, 2], (n, s.kv_heads, 1))).astype(np.float32)
                for n in lengths]
        for number, n in enumerate(lengths):
            pages.write(keys[number], held[number], (ints(table), ints([number] * n), ints(range(n))))
        sequences = np.sort(rng.integers(0, len(lengths), s.rows))
        positions = np.array([rng.integers(0, lengths[number]) for number in sequences], np.int32)
        positions[::3] = [lengths[number] - 1 for number in sequences[::3]]
        q = (rng.standard_normal((s.rows, s.heads * s.head_dim)) * 1.5).astype(np.float32)
        slopes = (-rng.random(s.heads) * 0.2).astype(np.float32) if s.alibi else None
        sinks = (rng.standard_normal(s.heads) * 4).astype(np.float32) if s.sinks else None
        scale, given = float(np.float32(s.head_dim**-0.5)), Strided.of(q)
        where = ints(table), ints(sequences), ints(positions)
        slopes_there, sinks_there = (None if x is None else floats(x) for x in (slopes, sinks))
        want = attended(s, q, [stored(k, kind) for k in keys], [stored(v, kind) for v in held], sequences, positions, scale,
                        slopes, sinks)

        def call() -> dict[str, Any]:
            return {"out": _core.attention(given.view, pages.k, pages.v, *where, scale, s.window, slopes_there, *pages.scales.values(),
                                           s.softcap, sinks_there)}

        return Problem(call, {"out": want}, LIMITS[kind])

    return Case(f"attention {kind} {shape.words}", ("attention", "attention_merge"), make)


def attended(s: Shape, q: np.ndarray, keys: list[np.ndarray], held: list[np.ndarray], sequences: np.ndarray, positions: np.ndarray,
             scale: float, slopes: "np.ndarray | None", sinks: "np.ndarray | None") -> np.ndarray:
    """By the formula of AttentionArgs, float64; [rows, heads * head_dim], a row and head together where norms are taken."""
    group, want = s.heads // s.kv_heads, np.empty((s.rows, s.heads, s.head_dim))
    for r, (number, position) in enumerate(zip(sequences, positions)):
        first = max(0, position - s.window + 1) if s.window else 0
        k, v = keys[number][first : position + 1], held[number][first : position + 1]
        heads = q[r].astype(np.float64).reshape(s.kv_heads, group, s.head_dim)
        score = np.matmul(heads, k.transpose(1, 2, 0)).reshape(s.heads, -1) * scale
        if s.softcap:
            score = s.softcap * np.tanh(score / s.softcap)
        if slopes is not None:
            score += slopes[:, None].astype(np.float64) * (np.arange(first, position + 1) - position)
        most = score.max(1, keepdims=True)
        if sinks is not None:
            most = np.maximum(most, sinks[:, None].astype(np.float64))
        weight = np.exp(score - most)
        total = weight.sum(1, keepdims=True) + (0 if sinks is None else np.exp(sinks[:, None] - most))
        share = (weight / total).reshape(s.kv_heads, group, -1)
        want[r] = np.matmul(share, v.transpose(1, 0, 2)).reshape(s.heads, s.head_dim)
    return want.reshape(s.rows, -1)


# ---- pages -----------------------------------------------------------------------------------------------------------


def write(kind: str, dim: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        n, kv_heads = 90, 2
        k, v = (rng.standard_normal((2, n, kv_heads, dim)) * rng.choice([1e-3, 1, 30], (2, n, kv_heads, 1))).astype(np.float32)
        k[3, 1], v[8, 1, dim // 2] = 0, np.nan
        given, where = [Strided.of(x.reshape(n, -1)) for x in (k, v)], (ints([[1, 0]]), ints([0] * n), ints(range(n)))

        def call() -> dict[str, Any]:
            made = Copies(pages)
            _core.kv_write(given[0].view, given[1].view, made.k, made.v, *where, **made.scales)
            return made.all

        pages = Pages(kind, kv_heads, 2, dim)
        return Problem(call, filled(pages, k, v))

    return Case(f"kv_write {kind} {dim}", ("kv_write",), make, same_bits=True)


class Copies:
    """The same pages again, each a copy made on the device, for what is written at every call."""

    def __init__(self, pages: Pages) -> None:
        copy = (lambda t: t) if pages.kind == "i8" else lambda t: _core.convert(t, t.dtype)
        self.k, self.v = copy(pages.k), copy(pages.v)  # of i8 there is no copying kernel: written again, to the same codes
        self.scales = {name: None if scale is None else _core.convert(scale, "f32") for name, scale in pages.scales.items()}

    all = Pages.all


def filled(pages: Pages, k: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
    """What pages [1, 0] of a sequence hold after its first keys k [n, kv_heads, dim] and values, the rest as it was."""
    n, kv_heads, dim = k.shape
    want = {name: tensor.numpy().copy() for name, tensor in pages.all.items()}
    for name, x, values in (("k", k, False), ("v", v, True)):
        with np.errstate(all="ignore"):
            codes = quantized(x) if pages.kind == "i8" else ({"f32": x, "f16": x.astype(np.float16), "bf16": bf16_bits(x)}[pages.kind],)
        for head in range(kv_heads):
            # Where each element of a page in order of keys and channels lies in it.
            order = from_page(np.arange(PAGE * dim).reshape(PAGE, dim), pages.kind, values)
            for page in range(2):
                here = slice(page * PAGE, min(n, (page + 1) * PAGE))
                count = here.stop - here.start
                want[name][head, 1 - page].reshape(-1)[order[:count].reshape(-1)] = codes[0][here, head].reshape(-1)
                if pages.kind == "i8":
                    want[f"{name}_scales"][head, 1 - page, :count] = codes[1][here, head, 0]
    return {name: _values(array, pages.kind) for name, array in want.items()}


def _values(array: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16" and array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def rotated_write(kind: str, dim: int) -> Case:
    """rope_kv_write against rope, in float64, and against what kv_write then stores."""
    half, n, heads, kv_heads = max(1, dim // 3), 7, 4, 2

    def make(rng: np.random.Generator) -> Problem:
        width = (heads + 2 * kv_heads) * dim
        x, angles = rng.standard_normal((n, width)).astype(np.float32), rng.standard_normal((n, 2 * half)).astype(np.float32)
        given, table, where = Strided.of(x), floats(angles), (ints([[0, 1]]), ints([0] * n), ints(range(62, 62 + n)))
        at, end = heads * dim, (heads + kv_heads) * dim
        want = x.astype(np.float64)
        want[:, :end] = turned(x[:, :end].reshape(n, -1, dim), angles, half, False).reshape(n, -1)

        def parts(made: Strided) -> list[_core.Tensor]:
            return [made.wide.columns(3 + a, 3 + b) for a, b in ((0, end), (at, end), (end, width))]

        def call() -> dict[str, Any]:
            one, pages = given.copy(), Copies(empty)
            both, k, v = parts(one)
            _core.rope_kv_write(both, table, k, v, pages.k, pages.v, *where, False, *pages.scales.values())
            return {"x": one.wide} | pages.all

        empty, apart, two = Pages(kind, kv_heads, 2, dim), Pages(kind, kv_heads, 2, dim), given.copy()
        both, k, v = parts(two)
        _core.rope_(both, table, dim, False)
        _core.kv_write(k, v, apart.k, apart.v, *where, **apart.scales)
        stored = {name: _values(tensor.numpy().copy(), kind) for name, tensor in apart.all.items()}
        return Problem(call, {"x": given.around(want)} | stored, limits={"x": 1e-6})

    return Case(f"rope_kv_write {kind} {dim}", ("rope_kv_write",), make)


def copy_pages(kind: str) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        pages = Pages(kind, 2, 9, 20)
        n = 9 * PAGE
        k = rng.standard_normal((n, 2, 20)).astype(np.float32)
        pages.write(k, k, (ints(np.arange(9)[None]), ints([0] * n), ints(range(n))))
        want, source, target = _values(pages.k.numpy().copy(), kind), ints([0, 3]), ints([7, 5])
        want[:, 7], want[:, 5] = want[:, 0], want[:, 3]

        def call() -> dict[str, Any]:
            made = Copies(pages)
            _core.copy_pages(made.k, source, target)
            return {"k": made.k}

        return Problem(call, {"k": want})

    return Case(f"copy_pages {kind}", ("copy_pages",), make)
