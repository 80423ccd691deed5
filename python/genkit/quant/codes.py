"""A matrix in integer codes, row-major in numpy: what rounding gives, what files hold, what the core packs.

The layout is that of WeightCodes in cpp/packed.h. Rows are outputs; k, the inputs, is filled up to whole tiles of 64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional, Sequence

import numpy as np

from genkit.quant.formats import Format

if TYPE_CHECKING:
    from genkit._core import PackedWeight, Tensor

TILE = 64  # codes along k that a row is filled up to
SUB = 32  # codes that share u and m


def depth_of(k: int) -> int:
    """Codes in a row of k weights."""
    return -(-k // TILE) * TILE


def groups_of(k: int, group: int) -> int:
    """Scales in a row of k weights."""
    return -(-depth_of(k) // group)


def widen(bits: np.ndarray, dtype: str) -> np.ndarray:
    """uint16 bits of "f16" or "bf16" as float32."""
    if dtype == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass
class Codes:
    """Codes of a matrix [n, k]. What is past k is padding: codes and zeros of it mean nothing.

    codes u8 (int8, int8_k: i8) [n, depth]; scales u16 bits of format.scale_dtype [n, groups]; two-level: subscales and minima
    u8 [n, depth / 32]; zeros, where the format has them: u8 (int8: i8) or u16 bits [n, groups]. int4_k, int8_k: scales d
    [n, ceil(depth / 256)], subscales sc i8 [n, depth / group], with real zeros minima m u8 as subscales, zeros dmin as scales.
    int4 codes may be nibbles, as the core takes them: u8 [n, depth / 2], of two neighbours the first is the low one.
    """

    format: Format
    k: int
    codes: np.ndarray
    scales: np.ndarray
    subscales: Optional[np.ndarray] = None
    minima: Optional[np.ndarray] = None
    zeros: Optional[np.ndarray] = None
    order: Optional[np.ndarray] = None  # i32 [k]: column i belongs to input order[i]; None: to input i

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.k

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays there are, by name."""
        found = {name: getattr(self, name) for name in ("codes", "scales", "subscales", "minima", "zeros")}
        return {name: array for name, array in found.items() if array is not None}

    def unpacked(self) -> "Codes":
        """With a byte for each code."""
        codes = self.codes
        if self.format.packing == "int4" and 2 * codes.shape[1] == depth_of(self.k):
            codes = from_nibbles(codes)
        return self if codes is self.codes else replace(self, codes=codes)

    def rows(self, begin: int, end: int) -> "Codes":
        """Views of rows [begin, end)."""
        return replace(self, **{name: array[begin:end] for name, array in self.parts().items()})

    def take(self, order: np.ndarray) -> "Codes":
        """Rows in another order."""
        return replace(self, **{name: array[order] for name, array in self.parts().items()})

    @staticmethod
    def stack(parts: Sequence["Codes"]) -> "Codes":
        """Matrices of one format and k, one under another."""
        first = parts[0]
        if any(part.format != first.format or part.k != first.k or not same_order(part.order, first.order) for part in parts):
            raise ValueError("matrices of different formats cannot be put one under another")
        if len(parts) == 1:
            return first
        return replace(first, **{name: np.concatenate([part.parts()[name] for part in parts]) for name in first.parts()})

    def dequantize(self) -> np.ndarray:
        """float32 [n, k]: what the codes stand for. Integers are exact; one product in float32, with real zeros then one
        sum, as the core's unpack does."""
        f = self.format
        if (whole := self.unpacked()) is not self:
            return whole.dequantize()
        q = self.codes.astype(np.float32)
        if f.of_k:
            return self._dequantize_k(q)
        if f.packing == "int4_two_level":
            q = q * np.repeat(self.subscales, SUB, 1) - np.repeat(self.minima, SUB, 1).astype(np.float32)
        elif f.zero == "integer":
            q -= self._spread(self.zeros.astype(np.float32))
        elif f.zero == "none" and f.packing == "int4":
            q -= 8
        q *= self._spread(widen(self.scales, f.scale_dtype))
        if f.zero == "real":
            q += self._spread(widen(self.zeros, f.scale_dtype))
        if self.order is not None:
            out = np.empty((q.shape[0], self.k), np.float32)
            out[:, self.order] = q[:, : self.k]
            return out
        return q[:, : self.k]

    def _dequantize_k(self, q: np.ndarray) -> np.ndarray:
        f = self.format
        if f.packing == "int4_k" and f.zero == "none":
            q -= 8
        q *= self._spread(widen(self.scales, "f16")) * np.repeat(self.subscales, f.group, 1)
        if f.zero == "real":
            q -= self._spread(widen(self.zeros, "f16")) * np.repeat(self.minima, f.group, 1)
        return q[:, : self.k]

    def _spread(self, per_group: np.ndarray) -> np.ndarray:
        return np.repeat(per_group, self.format.scale_group, 1)[:, : self.codes.shape[1]]

    def pack(self, gated: bool = False) -> "PackedWeight":
        """For the kernels. Raises ValueError for codes, subscales, minima or zeros out of their range, MemoryError."""
        from genkit import _core

        def tensor(array: Optional[np.ndarray], dtype: Optional[str] = None) -> "Optional[_core.Tensor]":
            return None if array is None else as_tensor(array, dtype)

        f = self.format
        return _core.pack_weight(tensor(self.codes), tensor(self.scales, f.scale_dtype), tensor(self.subscales),
                                 tensor(self.minima), tensor(self.zeros, f.scale_dtype if f.zero == "real" else None),
                                 self.k, f.core(), gated)


def as_tensor(array: np.ndarray, dtype: Optional[str] = None) -> "Tensor":
    """For the core: a copy, or the tensor itself that the array shows."""
    from genkit._core import Tensor

    shown = array.base
    if dtype is None and isinstance(shown, Tensor) and shown.shape == array.shape and array.flags.c_contiguous:
        return shown
    return Tensor.from_numpy(np.ascontiguousarray(array), dtype)


def same_order(a: Optional[np.ndarray], b: Optional[np.ndarray]) -> bool:
    """Of Codes.order."""
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


PIECE = 1 << 20  # codes packed or widened at a time: what lies between stays in a cache


def to_nibbles(codes: np.ndarray) -> np.ndarray:
    """u8 codes 0..15 [n, even] -> u8 [n, half]: of two neighbours the first is the low nibble."""
    n, m = codes.shape
    out = np.empty((n, m // 2), np.uint8)
    rows = max(1, PIECE // max(m, 1))
    for begin in range(0, n, rows):
        pairs = np.ascontiguousarray(codes[begin:begin + rows]).view("<u2")
        out[begin:begin + rows] = pairs >> 4 | pairs  # the low byte of it
    return out


def from_nibbles(packed: np.ndarray, out: Optional[np.ndarray] = None) -> np.ndarray:
    """The reverse of to_nibbles; into the first columns of `out` [n, even], where it is given."""
    n, m = packed.shape
    pairs = np.empty((n, m), "<u2") if out is None else out.view("<u2")
    rows = max(1, PIECE // max(2 * m, 1))
    for begin in range(0, n, rows):
        part = pairs[begin:begin + rows, :m]
        np.left_shift(packed[begin:begin + rows], 4, out=part, dtype=np.uint16)
        part |= packed[begin:begin + rows]
        part &= 0x0F0F
    return pairs.view(np.uint8)
