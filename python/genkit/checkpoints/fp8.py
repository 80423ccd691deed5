"""Eight-bit floats with scales, which no kernel takes: widened. X.weight F8_E4M3 or F8_E5M2 [n, k] is multiplied by
X.weight_scale_inv [n / rows, k / columns] for blocks (DeepSeek's form, in spite of its name), or by X.weight_scale: one for
all, or [n, 1].
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Mapping, Optional

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.parts import FLOATS, OTHERS, matrix, refused
from genkit.checkpoints.quantized import Read, Stored, part
from genkit.quant.codes import widen

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo

DTYPES = ("f8_e4m3", "f8_e5m2")
WEIGHT, INVERSE, SCALE = ".weight", ".weight_scale_inv", ".weight_scale"


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]", read: Read) -> dict[str, Stored]:
    """What modules_to_not_convert leaves out is there as floats. Raises BadFileError for arrays that are not as they should
    be. Scales of activations do not matter: they are rounded as they come, if at all."""
    quantization = fields.object("quantization_config")
    block = block_size(quantization, "weight_block_size")
    found = {}
    for name, info in tensors.items():
        if info.dtype in DTYPES and name.endswith(WEIGHT):
            x = name.removesuffix(WEIGHT)
            scale = x + (INVERSE if x + INVERSE in tensors else SCALE)
            found[name] = scaled(tensors, x, scale, block)
    return found


def block_size(fields: Fields, key: str) -> Optional[tuple[int, int]]:
    """[rows, columns] of a block that has a scale, or None."""
    block = fields.integers(key, 1, 2**31 - 1, None)
    if block is not None and len(block) != 2:
        raise fields.error(key, "two integers")
    return block and (block[0], block[1])


def scaled(tensors: "Mapping[str, TensorInfo]", x: str, scale: str, block: Optional[tuple[int, int]]) -> Stored:
    """X.weight of eight-bit floats and its scales, of any shape there is."""
    weight = matrix(tensors, x + WEIGHT, DTYPES)
    n, k = weight.shape
    shape = tensors[scale].shape if scale in tensors else ()
    if len(shape) == 2 and shape != (n, 1):
        if block is None or shape != (-(-n // block[0]), -(-k // block[1])):
            raise refused(tensors[scale], scale, f"is {list(shape)} for {[n, k]} in blocks of {list(block or ())}; {OTHERS}")
    elif shape not in ((), (1,), (n,), (n, 1)):
        raise refused(tensors[scale], scale, f"is {list(shape)}; expected [], [1], [{n}, 1] or blocks")
    blocks = block if len(shape) == 2 and shape != (n, 1) else (n, k) if shape in ((), (1,)) else (1, k)
    parts = {"weight": weight, "scale": part(tensors, scale, FLOATS, shape)}
    return Stored((n, k), None, parts, partial(_decode, weight.dtype, parts["scale"].dtype, blocks), label=weight.dtype,
                  widened="FP8", block=blocks[0] if len(shape) == 2 else 1, per_row=("scale",) if shape == (n,) else ())


def _decode(dtype: str, scale_dtype: str, block: tuple[int, int], parts: dict[str, np.ndarray]) -> np.ndarray:
    scale = parts["scale"]
    wide = (widen(scale, scale_dtype) if scale.dtype == np.uint16 else scale).reshape(len(scale) if scale.ndim else 1, -1)
    values = table(dtype)[parts["weight"]]
    for begin in range(0, len(values), block[0]):
        rows = values[begin:begin + block[0]]
        rows *= np.repeat(wide[begin // block[0]], block[1])[: values.shape[1]]
    return values


@cache
def table(dtype: str) -> np.ndarray:
    """The float32 values of all 256. E5M2 is the upper byte of a float16; E4M3 has a bias of 7, no infinities, and NaN where
    all other bits are ones (OCP's 8-bit floating point specification)."""
    bits = np.arange(256)
    if dtype == "f8_e5m2":
        return (bits << 8).astype(np.uint16).view(np.float16).astype(np.float32)
    exponent, fraction = bits >> 3 & 15, bits & 7
    values = np.where(exponent, np.ldexp(8.0 + fraction, exponent - 10), np.ldexp(fraction * 1.0, -9))
    values[bits & 127 == 127] = np.nan
    return np.where(bits & 128, -values, values).astype(np.float32)
