"""Paged KV cache: pages of PAGE_KEYS keys, shared by reference count, copied on write.

Beam search, and later prefix reuse and batching, are all the same thing here: sequences that share pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Optional
from typing import Sequence as Sized

import numpy as np

from genkit import _core
from genkit.devices import using
from genkit.errors import ResourceError

PAGE_KEYS = _core.PAGE_KEYS


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE_KEYS)


# Types of keys and values -> bytes of an element. int8 has a float32 scale for each key, and value, of a head.
KV_TYPES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}


def page_bytes(layers: int, kv_heads: int, head_dim: int, dtype: str = "f32") -> int:
    """Bytes of one page over all layers: K and V, and their scales."""
    row = head_dim * KV_TYPES[dtype] + (4 if dtype == "int8" else 0)
    return layers * 2 * kv_heads * PAGE_KEYS * row


class LayerPages(NamedTuple):
    """A layer's keys and values, [kv_heads, pages, PAGE_KEYS, head_dim] in kernel order (KvPages in kernels.h)."""

    k: _core.Tensor
    v: _core.Tensor
    k_scales: Optional[_core.Tensor]  # f32 [kv_heads, pages, PAGE_KEYS] for int8, else None
    v_scales: Optional[_core.Tensor]


@dataclass
class Step:
    """What one forward pass is about. Everything that varies lies in small tensors that kernels read."""

    token_ids: _core.Tensor  # i32 [n]
    positions: _core.Tensor  # i32 [n], position of each token in its sequence
    sequences: _core.Tensor  # i32 [n], row of page_table
    page_table: _core.Tensor  # i32 [sequences, max_pages]
    logit_rows: list[int] | None  # rows that get logits; None: all
    context_length: int  # tokens of the longest prompt this step belongs to: what dynamic rope scaling looks at

    @property
    def longest(self) -> int:
        """What context_length may be in steps that are this one again (plan.py): of most steps, only itself."""
        return self.context_length


@dataclass(eq=False)
class Sequence:
    """Tokens cached so far and the pages that hold their keys and values."""

    length: int = 0
    pages: list[int] = field(default_factory=list)


class KVCache:
    """Keys and values of all layers in one of KV_TYPES. Memory is committed by the system as pages are first written.

    padding: a sequence with a page beside the `pages` that others may have, for rows of a step that are nobody's (plan.py). None on
    the processor, and where layers lie there: no step is padded.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, pages: int, dtype: str = "f32", on_processor: int = 0) -> None:
        """on_processor: of so many layers, the first ones, they lie there whatever device is in use."""
        if dtype not in KV_TYPES:
            raise ValueError(f"keys and values cannot be {dtype!r}; known: {', '.join(KV_TYPES)}")
        padded = not on_processor and _core.device_in_use() != "cpu"
        self.padding = Sequence(pages=[pages]) if padded else None
        shape = (kv_heads, pages + padded, PAGE_KEYS, head_dim)
        element = "i8" if dtype == "int8" else dtype

        def layer() -> LayerPages:
            scales = [_core.Tensor.zeros(shape[:3]) if dtype == "int8" else None for _ in range(2)]
            return LayerPages(_core.Tensor.zeros(shape, element), _core.Tensor.zeros(shape, element), *scales)

        try:
            with using("cpu" if on_processor else _core.device_in_use()):
                self.layers = [layer() for _ in range(on_processor)]
            self.layers += [layer() for _ in range(on_processor, layers)]
        except MemoryError:
            size = shape[1] * page_bytes(layers, kv_heads, head_dim, dtype)
            raise ResourceError(f"KV cache of {pages * PAGE_KEYS} tokens needs {size / 2**30:.1f} GiB, which the system "
                                "refused; use a smaller --context or fewer --beams") from None
        self.dtype = dtype
        self._references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    def step(self, work: Sized[tuple[Sequence, Sized[int]]], *, logit_rows: list[int] | None = None,
             context_length: int = 0) -> Step:
        """Makes room for new tokens of some sequences and describes the forward pass over all of them."""
        for sequence, tokens in work:
            self.extend(sequence, len(tokens))
        width = max(len(sequence.pages) for sequence, _ in work)
        table = np.zeros((len(work), width), np.int32)
        ids, positions, rows = [], [], []
        for row, (sequence, tokens) in enumerate(work):
            table[row, : len(sequence.pages)] = sequence.pages
            ids.extend(tokens)
            positions.extend(range(sequence.length - len(tokens), sequence.length))
            rows.extend([row] * len(tokens))
        tensor = _core.Tensor.from_numpy
        return Step(tensor(np.array(ids, np.int32)), tensor(np.array(positions, np.int32)),
                    tensor(np.array(rows, np.int32)), tensor(table), logit_rows,
                    max(context_length, max(sequence.length for sequence, _ in work)))

    def fork(self, sequence: Sequence) -> Sequence:
        """A second sequence with the same past; pages are shared until one of the two writes."""
        for page in sequence.pages:
            self._references[page] += 1
        return Sequence(sequence.length, list(sequence.pages))

    def copy(self, sequence: Sequence) -> Sequence:
        """The same with pages of its own."""
        twin = Sequence(sequence.length, [self._take() for _ in sequence.pages])
        self._copy_pages(sequence.pages, twin.pages)
        return twin

    def release(self, sequence: Sequence) -> None:
        """Gives the sequence's pages back; the sequence is empty afterwards."""
        for page in sequence.pages:
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)
        sequence.pages.clear()
        sequence.length = 0

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Takes back what lies beyond the first `length` tokens."""
        spare = sequence.pages[pages_for(length) :]
        sequence.pages = sequence.pages[: pages_for(length)]
        sequence.length = length
        self.release(Sequence(pages=spare))

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def extend(self, sequence: Sequence, count: int) -> None:
        """Makes room for `count` more tokens; the sequence's length says that they are there."""
        if sequence.length % PAGE_KEYS and count and self._references[sequence.pages[-1]] > 1:
            self._own_last_page(sequence)
        sequence.length += count
        while len(sequence.pages) < pages_for(sequence.length):
            sequence.pages.append(self._take())

    def _own_last_page(self, sequence: Sequence) -> None:
        shared, own = sequence.pages[-1], self._take()
        self._copy_pages([shared], [own])
        self._references[shared] -= 1
        sequence.pages[-1] = own

    def _copy_pages(self, source: list[int], target: list[int]) -> None:
        for device, layers in groupby(self.layers if source else [], lambda layer: layer.k.device):
            with using(device):
                indices = [_core.Tensor.from_numpy(np.array(pages, np.int32)) for pages in (source, target)]
                for pages in (pages for layer in layers for pages in layer if pages is not None):
                    _core.copy_pages(pages, *indices)

    def _take(self) -> int:
        if not self._free:
            raise ResourceError(f"KV cache is full: all {len(self._references)} pages of {PAGE_KEYS} tokens are in use")
        page = self._free.pop()
        self._references[page] = 1
        return page
