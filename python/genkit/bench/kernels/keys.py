"""Positions, the KV cache and attention."""

from __future__ import annotations

from typing import Any, Callable, Iterator, NamedTuple, Optional

import numpy as np

from genkit import _core
from genkit.bench.kernels.case import BYTES, Case, Scope, Sizes, Store, ints
from genkit.kv_cache import KV_TYPES, PAGE_KEYS, pages_for

# Keys after which attention begins a new partial result (cpp/kernels.h).
SPLIT = 1024


class Pages(NamedTuple):
    """Of one layer, filled with `context` keys of one sequence."""

    k: _core.Tensor
    v: _core.Tensor
    table: _core.Tensor
    scales: dict[str, Optional[_core.Tensor]]


def page_row(kind: str, head_dim: int) -> int:
    """Bytes of a key, or a value, of one head."""
    return head_dim * KV_TYPES[kind] + (4 if kind == "int8" else 0)


def make_pages(store: Store, kind: str, kv_heads: int, head_dim: int, context: int) -> Pages:
    count = pages_for(context)
    shape, element = (kv_heads, count, PAGE_KEYS, head_dim), "i8" if kind == "int8" else kind
    scales = {name: _core.Tensor.zeros(shape[:3]) if kind == "int8" else None for name in ("k_scales", "v_scales")}
    k, v = _core.Tensor.zeros(shape, element), _core.Tensor.zeros(shape, element)
    pages = Pages(k, v, ints(np.arange(count)[None]), scales)
    rows = store.keep(("rows", kv_heads * head_dim), lambda: store.floats(1024, 2 * kv_heads * head_dim))
    width = kv_heads * head_dim
    for begin in range(0, context, 1024):
        n = min(1024, context - begin)
        x = rows.rows(0, n)
        _core.kv_write(x.columns(0, width), x.columns(width, 2 * width), pages.k, pages.v, pages.table, ints(np.zeros(n)),
                       ints(np.arange(begin, begin + n)), **scales)
    return pages


def cases(scope: Scope) -> Iterator[Case]:
    for rows in scope.rows:
        yield rope_table(scope.sizes, rows)
        yield rope(scope.sizes, rows)
        for kind in KV_TYPES:
            yield write(scope.sizes, rows, kind)
            yield write(scope.sizes, rows, kind, rotated=True)
        yield copy(scope, rows)
    for kind in KV_TYPES:
        for rows in scope.rows:
            for context in dict.fromkeys(max(context, rows) for context in scope.contexts):
                yield attention(scope, "attention", rows, context, kind, scope.sizes.kv_heads)
    if scope.device != "cpu" or _core.get_threads() > 1:  # one thread splits no keys
        for context in (context for context in scope.contexts if context > SPLIT):
            yield attention(scope, "attention_merge", 1, context, "bf16", 1)


def rope_table(sizes: Sizes, rows: int) -> Case:
    """Sines and cosines have no fixed number of operations: their angles and factors count."""
    half = sizes.head_dim // 2

    def make(store: Store) -> Callable[[int], Any]:
        positions = ints(np.arange(rows))
        frequencies = _core.Tensor.from_numpy((1e4 ** -(np.arange(half) / half)).astype(np.float32))
        return lambda i: _core.rope_table(positions, frequencies)

    nbytes = 4 * (rows + half + rows * 2 * half)
    return Case("rope_table", f"{sizes.head_dim}", rows, ("rope_table",), nbytes, make, 3 * rows * half)


def angles(store: Store, rows: int, half: int) -> _core.Tensor:
    """Of a true rotation, so that rotating again and again changes no size."""
    turns = store.rng.uniform(0, 2 * np.pi, (rows, half))
    return _core.Tensor.from_numpy(np.concatenate([np.cos(turns), np.sin(turns)], 1).astype(np.float32))


def rope(sizes: Sizes, rows: int) -> Case:
    heads, dim = sizes.heads + sizes.kv_heads, sizes.head_dim
    width = heads * dim

    def make(store: Store) -> Callable[[int], Any]:
        x, table = store.floats(rows, width), angles(store, rows, dim // 2)
        return lambda i: _core.rope_(x, table, dim)

    return Case("rope", f"{heads}x{dim}", rows, ("rope",), 4 * rows * (2 * width + dim), make, 3 * rows * width,
                working_set=4 * rows * (width + dim))


def write(sizes: Sizes, rows: int, kind: str, rotated: bool = False) -> Case:
    """Of the new keys and values of a prompt's tokens; rotated: the queries and keys are turned before."""
    dim, kv = sizes.head_dim, sizes.kv_heads * sizes.head_dim
    turned = sizes.heads * dim + kv

    def make(store: Store) -> Callable[[int], Any]:
        qkv = store.floats(rows, sizes.qkv)
        pages, table = make_pages(store, kind, sizes.kv_heads, dim, rows), angles(store, rows, dim // 2)
        x, k, v = (qkv.columns(*span) for span in ((0, turned), (turned - kv, turned), (turned, turned + kv)))
        where = pages.k, pages.v, pages.table, ints(np.zeros(rows)), ints(np.arange(rows))
        if rotated:
            return lambda i: _core.rope_kv_write(x, table, k, v, *where, **pages.scales)
        return lambda i: _core.kv_write(k, v, *where, **pages.scales)

    stored = rows * 2 * sizes.kv_heads * page_row(kind, dim)
    name = "rope_kv_write" if rotated else "kv_write"
    nbytes = stored + 4 * rows * ((2 * turned + dim + kv) if rotated else 2 * kv)
    return Case(name, f"{kind} {sizes.kv_heads}x{dim}", rows, (name,), nbytes, make, 3 * rows * turned if rotated else 0,
                working_set=nbytes - 4 * rows * turned * rotated)


def attention(scope: Scope, name: str, rows: int, context: int, kind: str, kv_heads: int) -> Case:
    """The last `rows` tokens of a context. Keys and values lie in as many layers as are needed to find none in a cache."""
    heads, dim = scope.sizes.heads, scope.sizes.head_dim
    layer = context * 2 * kv_heads * page_row(kind, dim)
    copies = scope.copies(layer)
    io = rows * 4 * 2 * heads * dim
    key = "pages", kind, kv_heads, dim, context

    def make(store: Store) -> Callable[[int], Any]:
        layers = store.keep(key, lambda: [make_pages(store, kind, kv_heads, dim, context) for _ in range(copies)])
        q = store.floats(rows, (heads + 2 * kv_heads) * dim).columns(0, heads * dim)
        sequences, positions = ints(np.zeros(rows)), ints(np.arange(context - rows, context))
        return lambda i: _core.attention(q, layers[i].k, layers[i].v, layers[i].table, sequences, positions, dim**-0.5,
                                         **layers[i].scales)

    seen = rows * context - rows * (rows - 1) // 2  # each row all keys up to its own
    words = f"{kind} {context} keys {heads}/{kv_heads}x{dim}"
    return Case(name, words, rows, ("attention", "attention_merge"), layer + io, make,
                4 * dim * heads * seen, scope.arithmetic("bf16" if kind == "int8" else kind), copies, copies * layer + io,
                (key, copies * 2 * kv_heads * pages_for(context) * PAGE_KEYS * page_row(kind, dim)))


def copy(scope: Scope, rows: int) -> Case:
    """Pages that so many tokens fill, of the keys of a layer."""
    sizes, pairs = scope.sizes, pages_for(rows)
    page = sizes.kv_heads * PAGE_KEYS * sizes.head_dim * BYTES["bf16"]

    def make(store: Store) -> Callable[[int], Any]:
        pages = store.floats(sizes.kv_heads, 2 * pairs, PAGE_KEYS * sizes.head_dim, dtype="bf16")
        source, target = ints(np.arange(pairs)), ints(np.arange(pairs, 2 * pairs))
        return lambda i: _core.copy_pages(pages, source, target)

    return Case("copy_pages", f"bf16 {sizes.kv_heads}x{sizes.head_dim}", rows, ("copy_pages",), 2 * pairs * page, make)
