"""Integer codes with one scale for a run of inputs, as most schemes have them: which Format holds them, and how.

The core's groups are GROUPS long. A longer run is some of them with one scale: a whole row (channel) and any multiple of
32. Where no group fits, or a float32 scale is not one of float16, codes are widened.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Union

import numpy as np

from genkit import _core
from genkit.checkpoints.parts import GROUPS
from genkit.quant.codes import Codes, as_tensor, depth_of, from_nibbles, groups_of, widen
from genkit.quant.formats import Format
from genkit.quant.words import exact_bits

Decoded = Union[Codes, np.ndarray]


@dataclass(frozen=True)
class Grid:
    """Codes of a matrix [n, k]: packing "int4" or "int8", `group` inputs to a scale (k or more: all), zero as in Format,
    scale_dtype what the file has: "f16", "bf16" or "f32"."""

    packing: str
    k: int
    group: int
    zero: str
    scale_dtype: str
    order: Optional[np.ndarray] = None  # as in Codes

    @property
    def fitting(self) -> int:
        """The core's group, 0 where none fits."""
        if self.group in GROUPS:
            return self.group
        if self.group >= self.k:
            return GROUPS[-1]
        return next((group for group in reversed(GROUPS) if self.group % group == 0), 0)

    @property
    def format(self) -> Optional[Format]:
        if not self.fitting:
            return None
        return Format(self.packing, self.fitting, self.zero, "bf16" if self.scale_dtype == "bf16" else "f16")

    @property
    def widened(self) -> str:
        """Why there is no format, or nothing."""
        return "" if self.fitting else f"groups of {self.group}"

    @property
    def label(self) -> str:
        """Stored.label."""
        return "" if self.fitting else self.packing

    @property
    def groups(self) -> int:
        """Scales of a row in the file."""
        return -(-self.k // self.group)

    def codes(self, codes: np.ndarray, scales: np.ndarray, zeros: Optional[np.ndarray] = None) -> Decoded:
        """codes as in Codes, or nibbles; scales and zeros [n, groups] as the file has them, bits where they are 16."""
        format = self.format
        bits = None if format is None else exact_bits(scales, self.scale_dtype)
        real = zeros if zeros is None or self.zero != "real" else exact_bits(zeros, self.scale_dtype)
        if bits is None or (zeros is not None and real is None):
            return self._floats(codes, scales, zeros)
        return Codes(format, self.k, codes, self._spread(bits), zeros=None if real is None else self._spread(real),
                     order=self.order)

    def _spread(self, per_group: np.ndarray) -> np.ndarray:
        """[n, groups] -> one for each of the core's groups."""
        whole = groups_of(self.k, self.fitting)
        if self.group >= self.k:
            return np.repeat(per_group, whole, 1)
        if self.group != self.fitting:
            per_group = np.repeat(per_group, self.group // self.fitting, 1)[:, :whole]
        missing = whole - per_group.shape[1]
        return np.pad(per_group, ((0, 0), (0, missing))) if missing else per_group

    def _floats(self, codes: np.ndarray, scales: np.ndarray, zeros: Optional[np.ndarray]) -> np.ndarray:
        """What the codes stand for, f32 [n, k]."""
        if self.packing == "int4" and 2 * codes.shape[1] == depth_of(self.k):
            codes = from_nibbles(codes)
        q = codes[:, : self.k].astype(np.float32)

        def spread(values: np.ndarray) -> np.ndarray:
            wide = values.astype(np.float32) if values.dtype != np.uint16 else widen(values, self.scale_dtype)
            return np.repeat(wide, min(self.group, self.k), 1)[:, : self.k]

        if self.zero == "integer":
            q -= spread(zeros)
        elif self.zero == "none" and self.packing == "int4":
            q -= 8
        q *= spread(scales)
        if self.zero == "real":
            q += spread(zeros)
        if self.order is None:
            return q
        out = np.empty_like(q)
        out[:, self.order] = q
        return out


def ordered(grid: Grid, g_idx: np.ndarray) -> Optional[Grid]:
    """The grid of codes whose input i has the scale g_idx[i]: with the order that brings groups together, where there is any.
    None where groups are not as long as they should be, so that no order does. Raises ValueError for a group that cannot be.
    """
    groups = np.arange(grid.k, dtype=np.int64) // grid.group
    if np.array_equal(g_idx, groups):
        return grid
    if g_idx.min() < 0 or g_idx.max() >= grid.groups:
        wrong = g_idx[(g_idx < 0) | (g_idx >= grid.groups)][0]
        raise ValueError(f"holds group {wrong}; expected 0 to {grid.groups - 1}")
    order = np.argsort(g_idx, kind="stable").astype(np.int32)
    return replace(grid, order=order) if np.array_equal(g_idx[order], groups) else None


def turned(words: np.ndarray, bits: int, k: int, down: bool, order: Optional[np.ndarray] = None) -> np.ndarray:
    """The core's turn_words: codes along the columns of a file as rows: nibbles u8, or i8."""
    found = _core.turn_words(as_tensor(words), bits, k, down,
                             None if order is None else _core.Tensor.from_numpy(order)).numpy()
    if bits == 4:
        return found
    np.bitwise_xor(found, 0x80, out=found)
    return found.view(np.int8)


def nibble_rows(packed: np.ndarray, k: int) -> np.ndarray:
    """Nibbles u8 [n, k / 2 up] of a file, filled up to whole tiles."""
    missing = depth_of(k) // 2 - packed.shape[1]
    return np.pad(packed, ((0, 0), (0, missing))) if missing else packed


def byte_rows(codes: np.ndarray, k: int) -> np.ndarray:
    """i8 [n, k] filled up to whole tiles."""
    missing = depth_of(k) - codes.shape[1]
    return np.pad(codes, ((0, 0), (0, missing))) if missing else codes
