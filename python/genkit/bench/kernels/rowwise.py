"""What is done to rows between products: embeddings, norms, activations, sums."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import numpy as np

from genkit import _core
from genkit.bench.kernels.case import BYTES, Case, Scope, Store, ints
from genkit.bench.kernels.weights import DENSE

# Multiplications, additions and divisions that a number takes in cpp/cpu/functions.inl.
EXP = 17
ACTIVATIONS = {"silu": EXP + 3, "gelu_tanh": EXP + 8, "gelu": EXP + 37, "relu": 1}
GATED = {"silu": ACTIVATIONS["silu"] + 1, "gelu_tanh": ACTIVATIONS["gelu_tanh"] + 1, "swiglu_oai": ACTIVATIONS["silu"] + 3}

EPS = 1e-5


def elementwise(kernel: str, case: str, rows: int, nbytes: int, operations: int, make: Callable[[Store], Callable[[], Any]],
                working_set: int = 0) -> Case:
    def build(store: Store) -> Callable[[int], Any]:
        call = make(store)
        return lambda i: call()

    return Case(kernel, case, rows, (kernel,), nbytes, build, operations, working_set=working_set)


def cases(scope: Scope) -> Iterator[Case]:
    for rows in scope.rows:
        yield from embeddings(scope, rows)
        yield from norms(scope, rows)
        yield from inside(scope, rows)
    yield from conversions(scope)


def embeddings(scope: Scope, rows: int) -> Iterator[Case]:
    n, k = scope.sizes.vocab, scope.sizes.hidden
    for kind in (kind for kind in scope.types or ("bf16",) if kind in DENSE):
        row = k * BYTES[kind]
        copies = scope.copies(rows * row)

        def make(store: Store, kind: str = kind, copies: int = copies) -> Callable[[int], Any]:
            table = store.keep(("weights", kind, n, k, "table"), lambda: store.floats(n, k, dtype=kind))
            ids = [ints(store.rng.integers(0, n, rows)) for _ in range(copies)]
            return lambda i: _core.embedding(ids[i], table)

        yield Case("embedding", f"{kind} {n}x{k}", rows, ("embedding",), rows * (row + 4 * k + 4), make, 0, "f32", copies,
                   copies * rows * row + rows * 4 * k, (("weights", kind, n, k, "table"), n * row))


def norms(scope: Scope, rows: int) -> Iterator[Case]:
    """x is read and written; a norm of heads has a weight as wide as one."""
    sizes = scope.sizes
    width, heads = sizes.hidden, sizes.heads * sizes.head_dim

    def over_rows(op: Callable[..., Any], vectors: int) -> Callable[[Store], Callable[[], Any]]:
        def make(store: Store) -> Callable[[], Any]:
            x, weights = store.floats(rows, width), [store.floats(width) for _ in range(vectors)]
            return lambda: op(x, *weights, EPS)
        return make

    def over_heads(op: Callable[..., Any], vectors: int) -> Callable[[Store], Callable[[], Any]]:
        def make(store: Store) -> Callable[[], Any]:
            # In place, and the same again: with weights of any size the small numbers would soon be none.
            x, signs = store.floats(rows, heads), [np.sign(store.rng.uniform(-1, 1, sizes.head_dim)) for _ in range(vectors)]
            weights = [_core.Tensor.from_numpy(sign.astype(np.float32)) for sign in signs]
            return lambda: op(x, *weights, EPS)
        return make

    for kernel, op, op_heads, vectors, operations in (("rms_norm", _core.rms_norm, _core.rms_norm_heads_, 1, 4),
                                                      ("layer_norm", _core.layer_norm, _core.layer_norm_heads_, 2, 7)):
        yield elementwise(kernel, f"{width}", rows, 4 * (2 * rows * width + vectors * width), operations * rows * width,
                          over_rows(op, vectors))
        own = vectors * sizes.head_dim
        yield elementwise(kernel, f"heads {sizes.heads}x{sizes.head_dim}", rows, 4 * (2 * rows * heads + own),
                          operations * rows * heads, over_heads(op_heads, vectors), 4 * (rows * heads + own))


def inside(scope: Scope, rows: int) -> Iterator[Case]:
    width, inner = scope.sizes.hidden, scope.sizes.intermediate

    def one(op: Callable[..., Any], columns: int, *options: Any) -> Callable[[Store], Callable[[], Any]]:
        def make(store: Store) -> Callable[[], Any]:
            x = store.floats(rows, columns)
            return lambda: op(x, *options)
        return make

    def two(store: Store) -> Callable[[], Any]:
        a, b = store.floats(rows, width), store.floats(rows, width)
        return lambda: _core.add(a, b)

    def reordered(store: Store) -> Callable[[], Any]:
        x, order = store.floats(rows, width), ints(store.rng.permutation(width))
        return lambda: _core.gather_columns(x, order)

    for kind, operations in GATED.items():
        yield elementwise("gated", f"{kind} {inner}", rows, 12 * rows * inner, operations * rows * inner,
                          one(_core.gated, 2 * inner, kind))
    for kind, operations in ACTIVATIONS.items():
        yield elementwise("activation", f"{kind} {inner}", rows, 8 * rows * inner, operations * rows * inner,
                          one(_core.activation, inner, kind))
    yield elementwise("add", f"{width}", rows, 12 * rows * width, 2 * rows * width, two)
    yield elementwise("scale", f"{width}", rows, 8 * rows * width, rows * width, one(_core.scale, width, 0.5))
    yield elementwise("scale", f"{width} capped", rows, 8 * rows * width, (EXP + 8) * rows * width,
                      one(_core.scale, width, 0.5, 30.0))
    yield elementwise("gather_columns", f"{width}", rows, 8 * rows * width + 4 * width, 0, reordered)


def conversions(scope: Scope) -> Iterator[Case]:
    """A whole matrix, as loading does; rows are its own."""
    n, k = scope.sizes.hidden, scope.sizes.intermediate
    for source, target in (("f32", "bf16"), ("bf16", "f32"), ("f32", "f16"), ("f16", "f32")):
        def make(store: Store, source: str = source, target: str = target) -> Callable[[], Any]:
            x = store.floats(n, k, dtype=source)
            return lambda: _core.convert(x, target)

        yield elementwise("convert", f"{source} to {target} {n}x{k}", n, n * k * (BYTES[source] + BYTES[target]), 0, make)
