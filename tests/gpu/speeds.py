"""What the device can do at most, and how near single kernels come: python -m gpu.speeds PLUGIN SEED SCALE. Lines of JSON:
{"limit", "value", "unit"}, then {"kernel", "seconds", "rate", "unit", "share"}."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, Callable, Iterator

import numpy as np
from gpu.keys import Pages
from gpu.measure import COLD, Timer, copies_of, numbers
from gpu.problems import floats, ints

from genkit import _core
from genkit.bench.kernels.case import Store
from genkit.bench.kernels.weights import DENSE, make_weight, weight_bytes


@dataclass(frozen=True)
class Speed:
    """A kernel: bytes it must move, operations it must do, and a function that makes its call(i) of copies."""

    kernel: str
    nbytes: int
    operations: int
    copies: int
    make: Callable[[np.random.Generator], Callable[[int], Any]]


def limits(timer: Timer, rng: np.random.Generator, full: bool) -> Iterator[dict[str, Any]]:
    """Bytes a second are of a large block, read ones and written ones counted. The product is cuBLAS's, through torch."""
    rows = 512 if full else 2
    x = floats(numbers(rng, rows, 1 << 20))
    nbytes = x.nbytes
    copy = 2 * nbytes / timer.of_call(lambda i: _core.convert(x, "f32"), 1)
    read = nbytes / timer.of_call(lambda i: _core.nonfinite(x), 1)
    del x
    dense = None
    try:
        import torch
    except ImportError:
        torch = None
    if full and torch is not None and torch.cuda.is_available():
        block = torch.randn(1 << 29, device="cuda")
        other = torch.empty_like(block)
        read = max(read, block.nbytes / _torch_seconds(torch, block.sum))
        copy = max(copy, 2 * block.nbytes / _torch_seconds(torch, lambda: other.copy_(block)))
        del block, other
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        dense = 2 * 8192**3 / _torch_seconds(torch, lambda: a @ b)
        torch.cuda.empty_cache()
    yield {"limit": "copy", "value": copy, "unit": "B/s"}
    yield {"limit": "read", "value": max(read, copy), "unit": "B/s"}
    if dense is not None:
        yield {"limit": "dense bf16", "value": dense, "unit": "op/s"}


def _torch_seconds(torch: Any, run: Callable[[], Any]) -> float:
    """The median of ten, after three that warm up."""
    times = []
    for i in range(13):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times[3:])[5]


# ---- kernels ---------------------------------------------------------------------------------------------------------


def speeds(full: bool) -> Iterator[Speed]:
    """At the sizes of an 8B model; the smallest first where two are alike."""
    width, inner, vocab = (4096, 14336, 128256) if full else (64, 96, 300)
    cold = COLD if full else 1
    yield product("bf16", 1, 2048 if full else 32, 2048 if full else 64, cold)
    for kind in ("bf16", "int8", "int4", "int4-g128"):
        yield product(kind, 1, 2 * inner, width, cold)
    yield product("bf16", 1, vocab, width, cold)
    for rows in (64, 2048) if full else (17,):
        for kind in ("bf16", "int4"):
            yield product(kind, rows, 2 * inner, width, cold)
    for kind in ("bf16", "i8"):
        yield decode(32_768 if full else 130, kind, *((32, 8, 128) if full else (4, 2, 32)))
    for kind in ("bf16", "i8"):
        yield prefill(2048 if full else 20, kind, *((32, 8, 128) if full else (4, 2, 32)))
    yield sample(vocab)


def product(kind: str, rows: int, n: int, k: int, cold: int) -> Speed:
    dense = kind in DENSE
    each = weight_bytes(kind, n, k)
    copies = copies_of(each, cold) if rows <= 64 else 1

    def make(rng: np.random.Generator) -> Callable[[int], Any]:
        _core.use_device("cpu")
        try:
            host = make_weight(Store(rng), kind, n, k)
        finally:
            _core.use_device("cuda")
        weights = [host.to("cuda") for _ in range(copies)]
        x = floats(numbers(rng, rows, k))
        return (lambda i: _core.linear(x, weights[i])) if dense else (lambda i: _core.packed_linear(x, weights[i]))

    return Speed(f"{kind} {rows} row{'s' * (rows > 1)}, {n}x{k}", each + 4 * rows * (n + k), 2 * rows * n * k, copies, make)


def filled_pages(rng: np.random.Generator, kind: str, kv_heads: int, head_dim: int, keys: int) -> Pages:
    pages = Pages(kind, kv_heads, keys // _core.PAGE_KEYS + 1, head_dim)
    table = ints(np.arange(keys // _core.PAGE_KEYS + 1)[None])
    for begin in range(0, keys, 4096):
        at = np.arange(begin, min(keys, begin + 4096))
        k, v = (numbers(rng, len(at), kv_heads * head_dim) for _ in range(2))
        pages.write(k, v, (table, ints(at * 0), ints(at)))
    return pages


def decode(keys: int, kind: str, heads: int, kv_heads: int, head_dim: int) -> Speed:
    nbytes = 2 * keys * kv_heads * (head_dim + 4 if kind == "i8" else 2 * head_dim)

    def make(rng: np.random.Generator) -> Callable[[int], Any]:
        caches = [filled_pages(rng, kind, kv_heads, head_dim, keys) for _ in range(2)]
        where = ints(np.arange(keys // _core.PAGE_KEYS + 1)[None]), ints([0]), ints([keys - 1])
        q = floats(numbers(rng, 1, heads * head_dim))
        return lambda i: _core.attention(q, caches[i].k, caches[i].v, *where, head_dim**-0.5, 0, None, *caches[i].scales.values())

    return Speed(f"attention, 1 query, {keys} keys, {heads}/{kv_heads}x{head_dim} {kind}", nbytes, 4 * keys * heads * head_dim, 2, make)


def prefill(rows: int, kind: str, heads: int, kv_heads: int, head_dim: int) -> Speed:
    def make(rng: np.random.Generator) -> Callable[[int], Any]:
        pages = filled_pages(rng, kind, kv_heads, head_dim, rows)
        where = ints(np.arange(rows // _core.PAGE_KEYS + 1)[None]), ints([0] * rows), ints(range(rows))
        q = floats(numbers(rng, rows, heads * head_dim))
        return lambda i: _core.attention(q, pages.k, pages.v, *where, head_dim**-0.5, 0, None, *pages.scales.values())

    element, seen = 1 if kind == "i8" else 2, rows * (rows + 1) // 2
    nbytes = rows * head_dim * (2 * element * kv_heads + 8 * heads)
    return Speed(f"attention, {rows} queries, {heads}/{kv_heads}x{head_dim} {kind}", nbytes, 4 * seen * heads * head_dim, 1, make)


def sample(vocab: int) -> Speed:
    def make(rng: np.random.Generator) -> Callable[[int], Any]:
        logits, zero = floats(numbers(rng, 1, vocab, scale=2.0)), ints([0], np.int64)
        return lambda i: _core.sample(logits, zero, zero, 0.8, 0, 0.95, 0.0, 1)

    return Speed(f"sample, top-p 0.95 of {vocab}", 4 * vocab, 0, 1, make)


def run(plugin: str, seed: int, scale: str) -> Iterator[dict[str, Any]]:
    if trouble := _core.open_device(plugin):
        yield {"what": "device", "wrong": trouble}
        return
    _core.use_device("cuda")
    full, rng = scale == "full", np.random.default_rng(seed)
    timer = Timer(0.02, 5, 8) if full else Timer(1e-4, 1, 1)
    top = {}
    for line in limits(timer, rng, full):
        top[line["limit"]] = line["value"]
        yield line
    for speed in speeds(full):
        try:
            seconds = timer.of_call(speed.make(rng), speed.copies)
        except Exception as error:
            yield {"what": speed.kernel, "wrong": f"{type(error).__name__}: {error}"}
            continue
        floors = {"read": speed.nbytes / top["read"]} | ({"dense bf16": speed.operations / top["dense bf16"]} if "dense bf16" in top else {})
        bound = max(floors, key=lambda of: floors[of])
        amount, unit = (speed.nbytes, "B/s") if bound == "read" else (speed.operations, "op/s")
        yield {"kernel": speed.kernel, "seconds": seconds, "rate": amount / seconds, "unit": unit, "share": floors[bound] / seconds}


if __name__ == "__main__":
    for line in run(sys.argv[1], int(sys.argv[2]), sys.argv[3]):
        print(json.dumps(line), flush=True)
