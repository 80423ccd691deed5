"""Cases of products with weights, dense and packed, of rounding activations, and of experts."""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np
from gpu.problems import Case, Problem, Sizes, Strided, floats, ints, on_processor, rounded
from test_kernels import activate
from test_kernels_experts import route_by_definition
from test_kernels_packed import FORMATS, K_SPECS, TWO_LEVEL, RandomCodes

from genkit import _core

# Rows may be rounded to the type of 16-bit weights (kernels.h).
LIMITS = {"f32": 1e-5, "f16": 4e-3, "bf16": 4e-3}
PACKED = 1e-5  # against exact sums of integers
MOST = [TWO_LEVEL, ("int4", 32, "none", "f16"), ("int4", 128, "none", "f16"), ("int4", 128, "integer", "f16"), ("int4", 64, "real", "bf16"),
        ("int8", 256, "none", "f16"), ("int8", 128, "none", "f16"), ("int8", 64, "integer", "bf16"), ("int8", 32, "real", "f16"), *K_SPECS]


def cases(sizes: Sizes) -> Iterator[Case]:
    shapes = sizes([(1, 20, 37), (3, 33, 64), (17, 70, 300)],
                   [(1, 2048, 2048), (2, 3072, 2048), (5, 1000, 4096), (16, 4096, 4104), (64, 4096, 2048), (65, 1000, 4096),
                    (517, 2056, 1001), (300, 4100, 4096), (1, 128_256, 2048), (4, 50_257, 768)])
    for shape in shapes:
        for dtype in ("f32", "f16", "bf16") if shape[1] < 100_000 else ("bf16",):
            yield linear(*shape, dtype, extras=shape[0] % 2 == 1)
    yield linears(*sizes([(3, 20, 64)], [(1, 1024, 4096)])[-1])
    packed = sizes([(1, 40, 100), (9, 33, 320)], [(1, 2048, 2048), (3, 4096, 2112), (8, 1000, 4096), (16, 4096, 4096), (64, 4096, 2048)])
    for spec in MOST:
        for n, shape in enumerate(packed):
            yield packed_linear(*shape, spec, gated=n % 2 == 1)
    for spec in FORMATS:  # every one there is, at a small size
        yield packed_linear(2, 64, 576, spec, gated=False)
    for spec in (TWO_LEVEL, *sizes((), MOST[1:7])):
        for shape in sizes([(20, 40, 100)], [(300, 4096, 2048), (517, 1000, 4096), (2048, 512, 1088)]):
            yield packed_linear(*shape, spec, gated=False)
    for rows, k in sizes([(5, 100), (3, 600)], [(1, 14336), (64, 4096), (517, 2056)]):
        yield quantize(rows, k)
    for spec in MOST:
        yield unpack(spec)
    for rows, experts, k in sizes([(5, 16, 4), (20, 5, 2)], [(1, 128, 8), (64, 32, 4), (517, 8, 2)]):
        width = sizes([64], [2048])[-1]
        yield from experts_cases(rows, experts, k, width, width // 2)


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ weight.astype(np.float64).T


def linear(rows: int, n: int, k: int, dtype: str, extras: bool) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        x, w = rng.standard_normal((rows, k), np.float32), rng.standard_normal((n, k), np.float32) * np.float32(k**-0.5)
        b, r = rng.standard_normal(n).astype(np.float32), rng.standard_normal((rows, n)).astype(np.float32)
        given, weight, bias, residual = Strided.of(x, 4, 4), floats(w, dtype), floats(b), floats(r)
        want = product(x, rounded(w, dtype)) + ((b.astype(np.float64) + r) if extras else 0)
        call = (lambda: {"out": _core.linear(given.view, weight, bias, residual)}) if extras else \
            (lambda: {"out": _core.linear(given.view, weight)})
        return Problem(call, {"out": want}, LIMITS[dtype])

    return Case(f"linear {dtype} {rows} rows {n}x{k}{' + bias + residual' if extras else ''}", ("linear",), make)


def linears(rows: int, n: int, k: int) -> Case:
    """Several weights side by side, of more than one type."""
    def make(rng: np.random.Generator) -> Problem:
        x = rng.standard_normal((rows, k)).astype(np.float32)
        w = [rng.standard_normal((n + 8 * i, k)).astype(np.float32) for i in range(3)]
        given, weights = floats(x), [floats(one, dtype) for one, dtype in zip(w, ("bf16", "f32", "bf16"))]
        want = np.concatenate([product(x, rounded(one, dtype)) for one, dtype in zip(w, ("bf16", "f32", "bf16"))], 1)
        return Problem(lambda: {"out": _core.linears(given, weights)}, {"out": want}, LIMITS["bf16"])

    return Case(f"linears {rows} rows 3 of {n}x{k}", ("linear",), make)


# ---- packed ----------------------------------------------------------------------------------------------------------


def coded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, k up to 64s] and scales [rows, k / 256 up] of activations by QuantizeArgs, in f32 as there."""
    rows, k = x.shape
    blocks = -(-k // 256)
    wide = np.zeros((rows, blocks, 256), np.float32)
    wide.reshape(rows, -1)[:, :k] = x
    largest = np.abs(wide).max(2)
    with np.errstate(divide="ignore"):
        factor = np.where(largest > 0, np.float32(127) / largest, np.float32(0)).astype(np.float32)
    codes = np.rint(wide * factor[:, :, None]).reshape(rows, -1)[:, : -(-k // 64) * 64]
    return codes, (largest / np.float32(127)).astype(np.float32)


def quantize(rows: int, k: int) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        x = (rng.standard_normal((rows, k)) * 10.0 ** rng.integers(-3, 3, (rows, 1))).astype(np.float32)
        x[0, :256] = 0
        given = Strided.of(x, 4, 4)
        codes, scales = coded(x)

        def call() -> dict[str, Any]:
            _, scales, sums = _core.quantize(given.view)  # a row of codes ends in bytes nobody reads
            return {"scales": scales, "sums": sums}

        return Problem(call, {"scales": scales.astype(np.float64), "sums": codes.reshape(rows, -1, 32).sum(2)}, limits={"scales": 1e-6})

    return Case(f"quantize {rows}x{k}", ("quantize",), make, same_bits=True)


def packed_linear(rows: int, n: int, k: int, spec: tuple[Any, ...], gated: bool) -> Case:
    n += n % 2
    kind = "silu" if gated else ""

    def make(rng: np.random.Generator) -> Problem:
        x = rng.standard_normal((rows, k)).astype(np.float32)
        weight = RandomCodes(rng, n, k, spec)
        b, r = rng.standard_normal(n).astype(np.float32), rng.standard_normal((rows, n)).astype(np.float32)
        codes, scales = coded(x)
        seen = (codes.reshape(rows, -1) * np.repeat(scales, 256, 1)[:, : codes.shape[1]].astype(np.float64))[:, :k]
        want = seen @ weight.values.T + b
        if gated:
            want = activate(kind, want[:, : n // 2]) * want[:, n // 2 :]
        else:
            want = want + r
        given, panels = floats(x), on_processor(lambda: weight.packed(gated))
        bias, residual = floats(b), None if gated else floats(r)
        return Problem(lambda: {"out": _core.packed_linear(given, panels, bias, residual, kind)}, {"out": want}, PACKED)

    words = f"{spec[0]} g{spec[1]} {spec[2]} {spec[3]}{' gated' if gated else ''}"
    return Case(f"packed_linear {words} {rows} rows {n}x{k}", ("packed_linear", "quantize"), make, same_bits=not gated)


def unpack(spec: tuple[Any, ...]) -> Case:
    def make(rng: np.random.Generator) -> Problem:
        weight, rows = RandomCodes(rng, 70, 320, spec), rng.integers(0, 70, 9)
        panels, ids = on_processor(weight.packed), ints(rows)
        return Problem(lambda: {"out": _core.unpack(ids, panels)}, {"out": weight.values[rows]}, 1e-6)

    return Case(f"unpack {spec[0]} g{spec[1]} {spec[2]} {spec[3]}", ("unpack",), make, same_bits=True)


# ---- experts ---------------------------------------------------------------------------------------------------------


def experts_cases(rows: int, experts: int, k: int, width: int, inner: int) -> Iterator[Case]:
    words = f"{rows} rows to {k} of {experts}"

    def chosen(rng: np.random.Generator) -> np.ndarray:
        return np.array([rng.permutation(experts)[:k] for _ in range(rows)], np.int32)

    def route(scoring: str) -> Case:
        def make(rng: np.random.Generator) -> Problem:
            # Scores that are well apart: which is larger must not hang on a rounding.
            logits = np.stack([rng.permutation(experts) for _ in range(rows)]).astype(np.float32) * np.float32(4 / experts) - 2
            given = floats(logits)
            ids, weights = route_by_definition(logits, k, scoring, None, 1, 1, True, 2.5)

            def call() -> dict[str, Any]:
                made = _core.route(given, k, scoring, None, 1, 1, True, 2.5)
                return {"ids": made[0], "weights": made[1]}

            return Problem(call, {"ids": ids, "weights": weights}, limits={"weights": 1e-5})

        return Case(f"route {scoring} {words}", ("route",), make)

    def moved(rng: np.random.Generator) -> Problem:
        """Rows to their places, weighed together again: by the definition of group_rows, whatever lies between."""
        x, w = rng.standard_normal((rows, width)).astype(np.float32), rng.random((rows, k)).astype(np.float32)
        given, residual, weights, ids = floats(x), floats(-x), floats(w), ints(chosen(rng))

        def call() -> dict[str, Any]:
            groups = _core.group_rows(ids, experts)
            return {"out": _core.combine(_core.gather_rows(given, groups), weights, groups, residual), "sources": groups.sources,
                    "place_of": groups.place_of, "regions": groups.regions.rows(0, len(regions))}

        wide = w.astype(np.float64).sum(1, keepdims=True)
        sources, place_of, regions = laid_out(ids.numpy(), experts)
        return Problem(call, {"out": wide * x - x, "sources": sources, "place_of": place_of, "regions": regions}, limits={"out": 1e-5})

    for scoring in ("softmax", "softmax_chosen", "sigmoid"):
        yield route(scoring)
    yield Case(f"group_rows, gather_rows, combine {words}", ("group_rows", "gather_rows", "combine"), moved)
    for dtype in ("f32", "bf16", TWO_LEVEL, ("int8", 128, "none", "f16")):
        yield expert_linear(rows, experts, k, width, inner, dtype, chosen)


def laid_out(ids: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sources, place_of and the regions in use of group_rows, by experts.h."""
    sources, place_of = np.full((ids.size + 15 * min(ids.size, experts)) // 16 * 16, -1), np.zeros(ids.shape, np.int64)
    used, at = sorted(set(ids.reshape(-1).tolist())), 0
    regions = np.zeros((len(used), 3), np.int64)
    for number, expert in enumerate(used):
        for place, row in enumerate(np.flatnonzero((ids == expert).any(1)), at):
            sources[place] = row
            place_of[row, ids[row] == expert] = place
        count = int((ids == expert).sum())
        regions[number] = expert, at, count
        at += -(-count // 16) * 16
    return sources, place_of, regions


def expert_linear(rows: int, experts: int, k: int, width: int, inner: int, dtype: Any, chosen: Any) -> Case:
    """The products of each row with its experts' weights, weighed together."""
    words = dtype if isinstance(dtype, str) else f"{dtype[0]} g{dtype[1]}"

    def make(rng: np.random.Generator) -> Problem:
        x, w = rng.standard_normal((rows, width), np.float32), rng.random((rows, k), np.float32)
        ids, some = chosen(rng), [_one(rng, inner, width, dtype) for _ in range(min(experts, 5))]

        def layer() -> _core.ExpertWeights:
            weights = _core.ExpertWeights(experts)
            for expert in range(experts):
                weights.set(expert, some[expert % len(some)][0]())
            return weights

        seen = x.astype(np.float64)
        if not isinstance(dtype, str):
            codes, scales = coded(x)
            seen = (codes * np.repeat(scales, 256, 1)[:, : codes.shape[1]].astype(np.float64))[:, :width]
        each = np.stack([seen @ values.T for _, values in some])  # [some, rows, inner]
        want = np.einsum("rk,rkn->rn", w.astype(np.float64), each[ids % len(some), np.arange(rows)[:, None]])
        given, weights, shares, there = floats(x), on_processor(layer), floats(w), ints(ids)

        def call() -> dict[str, Any]:
            groups = _core.group_rows(there, experts)
            made = _core.expert_linear(_core.gather_rows(given, groups), groups, weights)
            return {"out": _core.combine(made, shares, groups)}

        return Problem(call, {"out": want}, LIMITS.get(dtype, PACKED) if isinstance(dtype, str) else PACKED)

    slots = ("linear",) if isinstance(dtype, str) else ("packed_linear", "quantize")
    return Case(f"expert_linear {words} {rows} rows to {k} of {experts}, {inner}x{width}", slots, make)


def _one(rng: np.random.Generator, n: int, k: int, dtype: Any) -> tuple[Any, np.ndarray]:
    """(a function that makes the weight, its values)."""
    if isinstance(dtype, str):
        values = rng.standard_normal((n, k), np.float32) * np.float32(k**-0.5)
        return lambda: floats(values, dtype), rounded(values, dtype)
    codes = RandomCodes(rng, n, k, dtype)
    return codes.packed, codes.values
