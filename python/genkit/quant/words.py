"""Codes in little-endian words, as compressed-tensors, GPTQ and MLX keep them: code i of a row lies at bit i * bits of the
row's words, unsigned, which for two's complement i8 is the top bit turned. And scales in the type of the model."""

from __future__ import annotations

import numpy as np

from genkit.quant.codes import to_nibbles, widen
from genkit.quant.formats import Format


def to_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """codes u8 0..15 or i8 [n, m] -> i32 [n, m * bits / 32]. m * bits must be a multiple of 32."""
    packed = to_nibbles(codes) if bits == 4 else codes.view(np.uint8) ^ 0x80
    return np.ascontiguousarray(packed).view("<i4")


def narrow(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> uint16 bits of "f16" or "bf16", rounded to nearest even."""
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, bits >> 16 | 0x40, rounded).astype(np.uint16)


def exact_bits(values: np.ndarray, dtype: str) -> "np.ndarray | None":
    """Scales of a file as uint16 bits of "f16" or "bf16", its own where it has such; of "f32" those of f16, None where that
    would round one."""
    if dtype != "f32":
        return values
    bits = narrow(values, "f16")
    return bits if ((widen(bits, "f16") == values) | np.isnan(values)).all() else None


def scales_to_file(bits: np.ndarray, format: Format, k: int, dtype: str) -> np.ndarray:
    """Scales of a format for a file: as they are, or widened where its type is "f32"."""
    bits = bits[:, : k // format.group]
    return widen(np.ascontiguousarray(bits), format.scale_dtype) if dtype == "f32" else bits
