"""Products with weights, what is done to their inputs, and what brings weights into codes."""

from __future__ import annotations

from typing import Any, Callable, Iterator, NamedTuple, Optional

from genkit import _core
from genkit.bench.kernels.case import Case, Scope, Sizes, Store, ints
from genkit.bench.kernels.weights import DENSE, FORMATS, MAIN, OTHERS, make_codes, make_weight, weight_bytes
from genkit.quant.codes import depth_of

# What runs before `linear` with bf16 weights on tiers that multiply rows of bf16.
ROUNDS_ROWS = {"avx512bf16": "round_rows", "amx": "tile_rows"}


def rounds_rows(scope: Scope) -> Optional[str]:
    return ROUNDS_ROWS.get(_core.slots()["linear"]) if scope.device == "cpu" else None


class Product(NamedTuple):
    n: int
    k: int
    gated: bool = False  # gates and ups: a packed weight gives f(gate) * up
    residual: bool = False
    head: bool = False


def products(sizes: Sizes) -> dict[str, Product]:
    return {
        "qkv": Product(sizes.qkv, sizes.hidden),
        "out": Product(sizes.hidden, sizes.heads * sizes.head_dim, residual=True),
        "gate and up": Product(2 * sizes.intermediate, sizes.hidden, gated=True),
        "down": Product(sizes.hidden, sizes.intermediate, residual=True),
        "head": Product(sizes.vocab, sizes.hidden, head=True),
    }


def cases(scope: Scope) -> Iterator[Case]:
    for kind in MAIN + OTHERS if scope.types is None else scope.types:
        shapes = products(scope.sizes)
        if scope.types is None and kind in OTHERS:
            shapes = {"down": shapes["down"]}
        made: dict[Any, Case] = {}
        for shape in shapes.values():
            for rows in scope.head_rows if shape.head else scope.rows:
                case = product(scope, kind, shape, rows)
                made.setdefault((case.case, rows), case)  # some models have two of a size
        yield from made.values()
    yield from inputs(scope)
    for kind in packed_types(scope):
        for rows in scope.rows:
            yield unpack(scope, kind, rows)
    if scope.device == "cpu":  # where models are loaded
        yield from into_codes(scope)


def product(scope: Scope, kind: str, shape: Product, rows: int) -> Case:
    n, k = shape.n, shape.k
    packed = kind not in DENSE
    gated = shape.gated and packed
    nbytes = weight_bytes(kind, n, k)
    copies = scope.copies(nbytes)
    outputs = n // 2 if gated else n
    io = rows * 4 * (k + outputs + (n if shape.residual else 0))
    key = "weights", kind, n, k, gated

    def make(store: Store) -> Callable[[int], Any]:
        weights = store.keep(key, lambda: store.copies(copies, lambda: make_weight(store, kind, n, k, gated)))
        x = store.floats(rows, k)
        residual = store.floats(rows, n) if shape.residual else None
        if gated:
            return lambda i: _core.packed_linear(x, weights[i], None, None, "silu")
        op = _core.packed_linear if packed else _core.linear
        return lambda i: op(x, weights[i], None, residual)

    rounds = rounds_rows(scope) if kind == "bf16" else "quantize" if packed else None
    name = "packed_linear" if packed else "linear"
    return Case(name, f"{kind} {n}x{k}{' gated' * gated}", rows, (rounds, name) if rounds else (name,), nbytes + io, make,
                2 * rows * n * k, "int8" if packed else scope.arithmetic(kind), copies, copies * nbytes + io,
                (key, copies * nbytes), 2 * n * k * packed)


def inputs(scope: Scope) -> Iterator[Case]:
    """Rounding of rows for a product, as wide as the MLP's input and its inside."""
    rounds = rounds_rows(scope)
    for k in dict.fromkeys((scope.sizes.hidden, scope.sizes.intermediate)):
        for rows in scope.rows:
            def quantize(store: Store, k: int = k, rows: int = rows) -> Callable[[int], Any]:
                x = store.floats(rows, k)
                return lambda i: _core.quantize(x)

            # Codes, scales of 256, sums of 32; the largest of a block, a product, a sum.
            yield Case("quantize", f"f32 to int8 {k}", rows, ("quantize",),
                       rows * (4 * k + depth_of(k) + -(-k // 256) * 4 + depth_of(k) // 32 * 2), quantize, 3 * rows * k)
            if rounds is None:
                continue

            def to_bf16(store: Store, k: int = k, rows: int = rows) -> Callable[[int], Any]:
                x, nothing = store.floats(rows, k), _core.Tensor((0, k), "bf16")
                return lambda i: _core.linear(x, nothing)  # a product without outputs only rounds its input

            places = -(-rows // 16) * min(rows, 16) if rounds == "tile_rows" else rows
            yield Case(rounds, f"f32 to bf16 {k}", rows, (rounds,), 4 * rows * k + 2 * places * -(-k // 32) * 32, to_bf16)


def packed_types(scope: Scope) -> list[str]:
    return [kind for kind in (MAIN if scope.types is None else scope.types) if kind in FORMATS]


def into_codes(scope: Scope) -> Iterator[Case]:
    """What loading does, with the matrix of attention's output; rows are its outputs."""
    n, k = scope.sizes.hidden, scope.sizes.heads * scope.sizes.head_dim
    for kind in packed_types(scope):
        format = FORMATS[kind]
        codes_bytes = n * depth_of(k) + row_parts(kind, n, k)
        for search in (False, True):
            if format.zero != "none" or format.of_k:
                continue

            def rounded(store: Store, format: Any = format, search: bool = search) -> Callable[[int], Any]:
                weight, core = store.floats(n, k, dtype="bf16", scale=0.02), format.core()
                return lambda i: _core.round_weight(weight, core, search)

            yield Case("quantize_weight", f"bf16 to {kind} {n}x{k}{', search' * search}", n, ("quantize_weight",),
                       2 * n * k + codes_bytes, rounded)

        def pack(store: Store, format: Any = format) -> Callable[[int], Any]:
            codes = make_codes(store, format, n, k)
            return lambda i: codes.pack()

        yield Case("pack", f"{kind} {n}x{k}", n, ("pack",), codes_bytes + weight_bytes(kind, n, k), pack)


def row_parts(kind: str, n: int, k: int) -> int:
    """Bytes of scales, subscales, minima and zeros of row-major codes (WeightCodes in cpp/packed.h)."""
    format = FORMATS[kind]
    depth = depth_of(k)
    groups = -(-depth // format.scale_group)
    zeros = {"none": 0, "integer": 1, "real": 2}[format.zero] * groups
    if format.packing == "int4_two_level":
        return n * (2 * groups + 2 * depth // 32)
    if format.of_k:
        return n * (2 * groups + zeros + depth // format.group * (2 if format.zero == "real" else 1))
    return n * (2 * groups + zeros)


def unpack(scope: Scope, kind: str, rows: int) -> Case:
    """Rows of a packed embedding: only their own codes count, though a line of memory has those of 16."""
    n, k = scope.sizes.vocab, scope.sizes.hidden
    row = round(depth_of(k) * FORMATS[kind].bits / 8)
    copies = scope.copies(rows * row)

    def make(store: Store) -> Callable[[int], Any]:
        table, = store.keep(("weights", kind, n, k, "table"), lambda: store.copies(1, lambda: make_weight(store, kind, n, k)))
        ids = [ints(store.rng.integers(0, n, rows)) for _ in range(copies)]
        return lambda i: _core.unpack(ids[i], table)

    return Case("unpack", f"{kind} {n}x{k}", rows, ("unpack",), rows * (row + 4 * k + 4), make, 2 * rows * k, "f32", copies,
                copies * rows * row + rows * 4 * k, (("weights", kind, n, k, "table"), weight_bytes(kind, n, k)), 2 * n * k)
