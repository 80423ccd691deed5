"""The same codes in another format, without rounding them a second time.

Codes are seen as w = s c + b with s and b for 32 along k: of two-level codes s = scale u and b = -scale m, exact in float32,
as is every product of a scale and a small integer here. A target asks for fewer of them, or for other types.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import numpy as np

from genkit.quant.codes import SUB, Codes, groups_of, widen
from genkit.quant.formats import Format
from genkit.quant.words import narrow


def possible(source: Format, target: Format) -> bool:
    """Whether any codes of one format have a place in another. Scales may be rounded on the way, codes are not."""
    if source == target:
        return True
    if source.of_k or target.of_k:
        return False
    if target.packing == "int4_two_level" or (source.packing == "int8" and target.packing == "int4"):
        return False
    if target.group > (SUB if source.packing == "int4_two_level" and target.packing == "int4" else source.group):
        return False
    if source.packing == "int4_two_level":
        return target.packing == "int8" or target.zero == "real"
    if target.packing != source.packing:  # int4 to int8: integer zeros go into the codes
        return target.zero == "real" or source.zero != "real"
    order = ("none", "integer", "real")
    return order.index(source.zero) <= order.index(target.zero)


def regroup(codes: Codes, format: Format) -> tuple[Codes, float]:
    """Codes in another format, and the largest relative change of a scale or an offset, 0.0 when they are exact.

    Beyond what is `possible` for any, codes whose scales happen to agree are taken too. Raises ValueError where codes would
    have to be rounded anew, or a scale is beyond the new type.
    """
    f = codes.format
    if f == format:
        return codes, 0.0
    if f.of_k or format.of_k or format.packing == "int4_two_level" or (f.packing == "int8" and format.packing == "int4"):
        raise ValueError(f"{f.packing} codes would have to be rounded anew to {format.packing}")
    if f.packing != format.packing and format.packing == "int8":
        codes = _to_int8(codes)
    scale, offset = _per_sub(codes)
    scale, offset = _coarser(scale, codes.k, format.group), _coarser(offset, codes.k, format.group)
    zeros: Optional[np.ndarray] = None
    change = 0.0
    if format.zero == "real":
        zeros, change = _rounded(offset, format.scale_dtype)
    elif format.zero == "integer":
        zeros = _integers(scale, offset, format.packing)
    elif not _same(offset, scale * _offset(format.packing)):
        raise ValueError("codes with zeros of their own would have to be rounded anew to symmetric ones")
    scales, scale_change = _rounded(scale, format.scale_dtype)
    return Codes(format, codes.k, codes.codes, scales, zeros=zeros), max(change, scale_change)


def _offset(packing: str) -> np.float32:
    """b / s of symmetric codes."""
    return np.float32(0 if packing == "int8" else -8)


def _to_int8(codes: Codes) -> Codes:
    """int4 codes of either kind, with what is subtracted from them subtracted: -128 .. 127."""
    f, k = codes.format, codes.k
    q = codes.codes.astype(np.int16)
    if f.packing == "int4_two_level":
        q = q * np.repeat(codes.subscales, SUB, 1) - np.repeat(codes.minima, SUB, 1).astype(np.int16)
    elif f.zero == "integer":
        q -= np.repeat(codes.zeros, f.group, 1)[:, : q.shape[1]].astype(np.int16)
    elif f.zero == "none":
        q -= 8
    if q.size and not -128 <= q[:, :k].min() <= q[:, :k].max() <= 127:
        raise ValueError(f"codes reach {q[:, :k].min()} .. {q[:, :k].max()}, beyond eight bits")
    zeros = codes.zeros if f.zero == "real" else None
    format = Format("int8", f.group, "none" if zeros is None else "real", f.scale_dtype)
    return replace(codes, format=format, codes=q.astype(np.int8), subscales=None, minima=None, zeros=zeros)


def _per_sub(codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    """s and b float32 [n, depth / 32]."""
    f, count = codes.format, codes.codes.shape[1] // SUB

    def spread(per_group: np.ndarray) -> np.ndarray:
        return np.repeat(per_group, f.group // SUB, 1)[:, :count]

    scale = spread(widen(codes.scales, f.scale_dtype))
    with np.errstate(invalid="ignore", over="ignore"):
        if f.packing == "int4_two_level":
            return scale * codes.subscales, -scale * codes.minima
        if f.zero == "real":
            return scale, spread(widen(codes.zeros, f.scale_dtype))
        return scale, scale * _offset(f.packing) if f.zero == "none" else -scale * spread(codes.zeros)


def _coarser(per_sub: np.ndarray, k: int, group: int) -> np.ndarray:
    """[n, depth / 32] -> [n, groups], for groups whose parts agree. What is past k agrees with anything."""
    per, groups = group // SUB, groups_of(k, group)
    used = np.minimum(np.arange(groups * per), -(-k // SUB) - 1)
    parts = per_sub[:, used].reshape(-1, groups, per)
    first = parts[:, :, :1]
    if not _same(parts, np.broadcast_to(first, parts.shape)):
        raise ValueError(f"groups with different scales would have to be rounded anew to groups of {group}")
    return np.ascontiguousarray(first[:, :, 0])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a == b) | (np.isnan(a) & np.isnan(b))).all())


def _integers(scale: np.ndarray, offset: np.ndarray, packing: str) -> np.ndarray:
    """z with b = -s z. Raises ValueError where it is no integer of the codes' range."""
    low, high = (0, 16) if packing == "int4" else (-128, 127)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        zero = np.where(offset == 0, np.float32(0), -offset / scale)
        zero = np.where(np.isnan(zero), np.float32(0), zero)  # of a scale that is none: any
        whole = (zero == np.rint(zero)) & (zero >= low) & (zero <= high) & ((-scale * zero == offset) | np.isnan(scale))
    if not whole.all():
        raise ValueError(f"a zero of {zero[~whole][0]:g} would have to be rounded to an integer from {low} to {high}")
    return zero.astype(np.uint8 if packing == "int4" else np.int8)


def _rounded(values: np.ndarray, dtype: str) -> tuple[np.ndarray, float]:
    """Bits of the values in a type, and the largest relative change. Raises ValueError for values beyond the type."""
    bits = narrow(values, dtype)
    wide = widen(bits, dtype)
    finite = np.isfinite(values)
    if (finite & ~np.isfinite(wide)).any():
        raise ValueError(f"a scale of {np.abs(values[finite]).max():g} is beyond {dtype}")
    counted = finite & (values != 0)
    if not counted.any():
        return bits, 0.0
    exact = values[counted].astype(np.float64)
    return bits, float((np.abs(wide[counted] - exact) / np.abs(exact)).max())
