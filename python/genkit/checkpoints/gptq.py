"""GPTQ's form without activation order, as quant/writers/gptq.py lays it out; with zeros of its own as well."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Mapping

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.parts import FLOAT, GROUPS, OTHERS, check_single, matrix, refused
from genkit.checkpoints.quantized import Stored, part
from genkit.quant.codes import Codes, from_nibbles
from genkit.quant.formats import Format
from genkit.quant.words import from_words, scales_from_file

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo

QWEIGHT = ".qweight"


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]") -> dict[str, Stored]:
    """Bits and group of a matrix follow from its arrays' shapes, so patterns in "dynamic" need not be matched.

    Raises BadFileError for another format, by name, and for arrays that are not as they should be."""
    quantization = fields.object("quantization_config")
    # Version 1 stores zeros less one.
    above = {"gptq": 1, "gptq_v2": 0}[quantization.string("checkpoint_format", ("gptq", "gptq_v2"), "gptq")]
    symmetric = quantization.boolean("sym", False)
    bits = quantization.integer("bits", 1, 16)
    if bits not in (4, 8):
        raise quantization.error("bits", f"4 or 8; {OTHERS}")
    return {name.removesuffix(QWEIGHT) + ".weight": _stored(name.removesuffix(QWEIGHT), symmetric, above, tensors)
            for name in tensors if name.endswith(QWEIGHT)}


def _stored(x: str, symmetric: bool, above: int, tensors: "Mapping[str, TensorInfo]") -> Stored:
    qweight, scales = matrix(tensors, x + QWEIGHT, ("i32",)), matrix(tensors, x + ".scales", ("f16", "bf16"))
    check_single(tensors, x + ".weight", x + QWEIGHT)
    (words, n), groups = qweight.shape, scales.shape[0]
    g_idx = tensors.get(x + ".g_idx")
    k = g_idx.shape[0] if g_idx is not None and len(g_idx.shape) == 1 else 0
    bits = next((bits for bits in (4, 8) if words * 32 == k * bits), 0)
    group = next((group for group in GROUPS if groups * group == k), 0)
    if not bits or not group:
        raise refused(qweight, x + QWEIGHT, f"is {list(qweight.shape)} with {groups} rows of scales and a g_idx of {k}; "
                                            f"expected 4 or 8 bits and groups of {', '.join(map(str, GROUPS))}; {OTHERS}")
    parts = {"qweight": qweight, "scales": part(tensors, x + ".scales", ("f16", "bf16"), (groups, n)),
             "qzeros": part(tensors, x + ".qzeros", ("i32",), (groups, -(-n * bits // 32))),
             "g_idx": part(tensors, x + ".g_idx", ("i32",), (k,))}
    format = Format("int8" if bits == 8 else "int4", group, "none" if symmetric else "integer", scales.dtype)
    return Stored((n, k), format, parts, partial(_decode, format, (n, k), above))


def _decode(format: Format, shape: tuple[int, int], above: int, parts: dict[str, np.ndarray]) -> Codes:
    (n, k), eight = shape, format.packing == "int8"
    if not np.array_equal(parts["g_idx"], np.arange(k, dtype=np.int32) // format.group):
        raise ValueError(f"g_idx orders its inputs anew (desc_act), which is not supported. {FLOAT}")
    packed = parts["qzeros"].view(np.uint8)
    stored = (packed if eight else from_nibbles(packed))[:, :n]
    middle = 128 if eight else 8
    if format.zero == "none" and (stored != middle - above).any():
        raise ValueError(f"qzeros hold {stored[stored != middle - above][0] + above}; sym: true means {middle} everywhere")
    if eight and stored.max() + np.int16(above) > 255:
        raise ValueError("qzeros hold 256, which eight bits do not; readers disagree about it")
    codes = from_words(_transposed(parts["qweight"]), 8 if eight else 4, k)
    scales = scales_from_file(_transposed(parts["scales"]), k, format.group)
    if format.zero == "none":
        return Codes(format, k, codes, scales)
    zeros = _transposed(stored).astype(np.int16) + above
    zeros = (zeros - 128).astype(np.int8) if eight else zeros.astype(np.uint8)
    return Codes(format, k, codes, scales, zeros=scales_from_file(zeros, k, format.group))


def _transposed(words: np.ndarray, block: int = 64) -> np.ndarray:
    """[a, b] -> [b, a], some rows at a time, so that the columns they become are met again in the cache."""
    out = np.empty(words.shape[::-1], words.dtype)
    for begin in range(0, words.shape[0], block):
        out[:, begin:begin + block] = words[begin:begin + block].T
    return out
