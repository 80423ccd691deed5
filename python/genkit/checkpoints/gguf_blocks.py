"""The tensor types of GGUF that are known here, and their blocks as Codes and back. cpp/ops_gguf.cpp has the layouts, and
reads them; what is written is below.

A block holds 32 or 256 weights that are neighbours along k; a row is whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from genkit.quant.codes import Codes
from genkit.quant.formats import Format


@dataclass(frozen=True)
class BlockType:
    """id as the file has it; weights and bytes of a block; what its codes are, None for floats."""

    id: int
    name: str
    weights: int
    nbytes: int
    format: Optional[Format] = None


_KNOWN = (
    BlockType(0, "F32", 1, 4), BlockType(1, "F16", 1, 2), BlockType(30, "BF16", 1, 2),
    BlockType(2, "Q4_0", 32, 18, Format("int4", 32)), BlockType(3, "Q4_1", 32, 20, Format("int4", 32, "real")),
    BlockType(6, "Q5_0", 32, 22, Format("int8", 32)), BlockType(7, "Q5_1", 32, 24, Format("int8", 32, "real")),
    BlockType(8, "Q8_0", 32, 34, Format("int8", 32)),
    BlockType(10, "Q2_K", 256, 84, Format("int4_k", 16, "real")), BlockType(11, "Q3_K", 256, 110, Format("int4_k", 16)),
    BlockType(12, "Q4_K", 256, 144, Format("int4_k", 32, "real")), BlockType(13, "Q5_K", 256, 176, Format("int8_k", 32, "real")),
    BlockType(14, "Q6_K", 256, 210, Format("int8_k", 16)),
    BlockType(20, "IQ4_NL", 32, 18, Format("int8", 32)), BlockType(23, "IQ4_XS", 256, 136, Format("int8_k", 32)),
    BlockType(39, "MXFP4", 32, 17, Format("int8", 32, scale_dtype="bf16")))
TYPES = {block.name: block for block in _KNOWN}
BY_ID = {block.id: block for block in _KNOWN}
BY_FORMAT = {TYPES[name].format: TYPES[name] for name in ("Q4_0", "Q4_1", "Q8_0")}  # that `encode` writes
# Types of the format for messages; those above are read.
NAMES = {9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8",
         25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4"}


def encode(codes: Codes) -> np.ndarray:
    """Codes of a format in BY_FORMAT, k whole blocks -> u8 [n, bytes of a row]."""
    block = BY_FORMAT[codes.format]
    n, k = codes.shape
    count = k // block.weights
    out = np.empty((n, count, block.nbytes), np.uint8)
    grid = codes.codes.reshape(n, -1, 32)[:, :count]
    out[:, :, :2] = _as_bytes(codes.scales[:, :count])
    if block.name == "Q8_0":
        out[:, :, 2:] = grid.view(np.uint8)
    else:
        if block.name == "Q4_1":
            out[:, :, 2:4] = _as_bytes(codes.zeros[:, :count])
        np.bitwise_or(grid[:, :, :16], grid[:, :, 16:] << 4, out=out[:, :, -16:])
    return out.reshape(n, -1)


def decode(name: str, blocks: np.ndarray) -> Codes:
    """u8 [n, bytes of a row] -> what the blocks stand for, exactly. Raises MemoryError."""
    from genkit import _core

    block = TYPES[name]
    parts = [None if part is None else part.numpy() for part in _core.unpack_blocks(_core.Tensor.from_numpy(blocks), name)]
    codes, scales, subscales, minima, zeros = parts
    return Codes(block.format, blocks.shape[1] // block.nbytes * block.weights, codes, scales.view(np.uint16),
                 subscales, minima, None if zeros is None else zeros.view(np.uint16))


def round_q6_k(values: np.ndarray) -> np.ndarray:
    """float32 [n, k], k whole blocks -> u8 [n, bytes of a row]. Scales are searched for, by the squares of errors. Raises
    ValueError for NaN, infinity, and numbers beyond float16's scales."""
    rows = values.reshape(-1, 256)
    out = np.empty((len(rows), 210), np.uint8)
    for begin in range(0, len(rows), PIECE):
        _round_q6_k(rows[begin:begin + PIECE], out[begin:begin + PIECE])
    return out.reshape(values.shape[0], -1)


PIECE = 1024  # blocks at a time, which stay in the cache


def _round_q6_k(rows: np.ndarray, out: np.ndarray) -> None:
    x = rows.reshape(-1, 16)
    peak = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    if not np.isfinite(peak).all():
        raise ValueError("holds NaN or infinity; the model is damaged")
    best, scales = np.full(len(x), -1, np.float32), np.zeros(len(x), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers whose inverses or squares are beyond float32
        inverse = np.divide(-1, peak, out=np.zeros_like(peak), where=peak != 0)
        for step in (29.5, 30, 30.5, 31, 31.5, 32):  # the code of the largest, before it is rounded
            codes = np.clip(np.rint(x * (inverse * np.float32(step))), -32, 31)
            product, square = np.einsum("ij,ij->i", x, codes), np.einsum("ij,ij->i", codes, codes)
            gain = np.divide(product * product, square, out=np.zeros_like(best), where=square > 0)
            better = gain > best
            best[better] = gain[better]
            scales[better] = np.divide(product, square, out=np.zeros_like(best), where=square > 0)[better]
    plain = ~np.isfinite(scales) | ((scales == 0) & (peak[:, 0] != 0))
    scales[plain] = peak[plain, 0] / -32
    scales = scales.reshape(-1, 16)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(1)[:, None], 1)
    with np.errstate(over="ignore"):
        d = (largest / -128).astype(np.float16)
    if not np.isfinite(d).all():
        raise ValueError("holds numbers beyond what a float16 scale reaches")
    wide = d.astype(np.float32)
    small = np.clip(np.rint(np.divide(scales, wide, out=np.zeros_like(scales), where=wide != 0)), -128, 127)
    steps = (wide * small)[:, :, None]
    grid = rows.reshape(-1, 16, 16)
    codes = np.clip(np.rint(np.divide(grid, steps, out=np.zeros_like(grid), where=steps != 0)), -32, 31).astype(np.int8) + 32
    codes = codes.view(np.uint8).reshape(-1, 2, 2, 64)
    out[:, :128] = (codes[:, :, 0] & 15 | (codes[:, :, 1] & 15) << 4).reshape(-1, 128)
    high = (codes >> 4).reshape(-1, 2, 4, 32)
    out[:, 128:192] = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(-1, 64)
    out[:, 192:208] = small.astype(np.int8).view(np.uint8)
    out[:, 208:] = _as_bytes(d.view(np.uint16)).reshape(-1, 2)


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """u16 [...] -> u8 [..., 2], little-endian."""
    return np.ascontiguousarray(values, "<u2").view(np.uint8).reshape(*values.shape, 2)
