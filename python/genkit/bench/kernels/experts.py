"""A mixture of experts: where rows go, and the products of those that share an expert."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import numpy as np

from genkit import _core
from genkit.bench.kernels.case import Case, Scope, Store, ints
from genkit.bench.kernels.products import rounds_rows
from genkit.bench.kernels.rowwise import EXP
from genkit.bench.kernels.weights import DENSE, MAIN, make_weight, weight_bytes

# A processor learns where a few rows go when they come again and again: as many others come between.
ROWS_APART = 512


def cases(scope: Scope) -> Iterator[Case]:
    for rows in scope.rows:
        yield from routing(scope, rows)
    for kind in scope.types or MAIN:
        for rows in scope.rows:
            yield product(scope, rows, kind)


def places(rows: int, k: int, experts: int) -> int:
    """Where the rows of experts lie that got equally many, each from a multiple of 16 on."""
    used = min(experts, rows * k)
    return used * -(-rows * k // used // 16) * 16


def balanced(rows: int, k: int, experts: int, shift: int) -> np.ndarray:
    """k experts for each row, [rows, k]: each gets as many rows as any other, one at most."""
    return (np.arange(rows * k).reshape(rows, k) + shift) % experts


def routing(scope: Scope, rows: int) -> Iterator[Case]:
    """As many places as the op makes room for, which is more than rows take, are neither read nor counted."""
    sizes = scope.sizes
    experts, k, width = sizes.experts, sizes.experts_per_token, sizes.hidden
    words, turns = f"{k} of {experts}", max(1, ROWS_APART // rows)

    def groups(store: Store) -> _core.Groups:
        return _core.group_rows(ints(balanced(rows, k, experts, 0)), experts)

    def route(store: Store) -> Callable[[int], Any]:
        logits = [store.floats(rows, experts) for _ in range(turns)]
        return lambda i: _core.route(logits[i], k)

    def group(store: Store) -> Callable[[int], Any]:
        ids = [ints(balanced(rows, k, experts, store.rng.integers(experts))) for _ in range(turns)]
        return lambda i: _core.group_rows(ids[i], experts)

    def gather(store: Store) -> Callable[[int], Any]:
        x, found = store.floats(rows, width), groups(store)
        return lambda i: _core.gather_rows(x, found)

    def combine(store: Store) -> Callable[[int], Any]:
        found = groups(store)
        y, weights, residual = store.floats(found.sources.shape[0], width), store.floats(rows, k), store.floats(rows, width)
        return lambda i: _core.combine(y, weights, found, residual)

    each = rows * k
    logits, places_bytes = 4 * rows * experts, 4 * places(rows, k, experts)
    yield Case("route", words, rows, ("route",), logits + 8 * each, route, (EXP + 3) * rows * experts, copies=turns,
               working_set=turns * logits + 8 * each)
    yield Case("group_rows", words, rows, ("group_rows",), 8 * each + places_bytes, group, copies=turns,
               working_set=(turns + 1) * 4 * each + places_bytes)
    yield Case("gather_rows", f"{words} {width}", rows, ("gather_rows",), 4 * (rows * width + each * width + each), gather)
    yield Case("combine", f"{words} {width}", rows, ("combine",), 4 * (each * width + 2 * rows * width + 2 * each), combine,
               2 * each * width)


def product(scope: Scope, rows: int, kind: str) -> Case:
    """The gates and ups of the experts of balanced rows. Few rows have a few of the experts, other ones at each call."""
    sizes = scope.sizes
    experts, per_token, k, n = sizes.experts, sizes.experts_per_token, sizes.hidden, 2 * sizes.expert_width
    packed = kind not in DENSE
    each, used = rows * per_token, min(experts, rows * per_token)
    one = weight_bytes(kind, n, k)
    layers, turns = scope.copies(experts * one), experts // used
    io = each * 4 * (k + n // 2)
    key = "experts", kind, n, k

    def layer(store: Store) -> _core.ExpertWeights:
        made = _core.ExpertWeights(experts)
        weight = make_weight(store, kind, n, k, gated=packed)
        for expert in range(experts):
            made.set(expert, weight)
        return made

    def make(store: Store) -> Callable[[int], Any]:
        weights = store.keep(key, lambda: store.copies(layers, lambda: layer(store)))
        groups = [_core.group_rows(ints(balanced(rows, per_token, experts, turn * used)), experts) for turn in range(turns)]
        x = store.floats(groups[0].sources.shape[0], k)
        return lambda i: _core.expert_linear(x, groups[i // layers], weights[i % layers], None, "silu")

    rounds = rounds_rows(scope) if kind == "bf16" else "quantize" if packed else None
    slots = tuple(slot for slot in (rounds, "packed_linear" if packed else "linear", None if packed else "gated") if slot)
    words = f"{kind} {per_token} of {experts} {n}x{k}"
    return Case("expert_linear", words, rows, slots, used * one + io, make, 2 * each * n * k,
                "int8" if packed else scope.arithmetic(kind), layers * turns, layers * turns * used * one + io,
                (key, layers * experts * one), 2 * n * k * packed)
