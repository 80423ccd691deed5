"""AWQ's "gemm" form: a linear X of [n, k] is X.qweight I32 [k, n / 8], bits 4 i of a word holding output 0, 2, 4, 6, 1, 3, 5,
7 of its eight; X.qzeros I32 [groups, n / 8] in the same order; X.scales [groups, n]. Weight = scale (code - zero).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Mapping

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.gptq import QWEIGHT, group_size
from genkit.checkpoints.grid import Decoded, Grid, turned
from genkit.checkpoints.parts import FLOATS, OTHERS, check_single, matrix, refused
from genkit.checkpoints.quantized import Read, Stored, part
from genkit.quant.codes import from_nibbles

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo

OUTPUTS = [0, 4, 1, 5, 2, 6, 3, 7]  # where output j of eight lies in a word


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]", read: Read) -> dict[str, Stored]:
    """What modules_to_not_convert leaves out is there as floats. Raises BadFileError for another version, by name, and for
    arrays that are not as they should be."""
    quantization = fields.object("quantization_config")
    version = quantization.string("version", None, "gemm")
    if version.lower() != "gemm":
        raise quantization.error("version", f"gemm; {OTHERS}")
    return linears(quantization, tensors, not quantization.boolean("zero_point", True))


def linears(quantization: Fields, tensors: "Mapping[str, TensorInfo]", symmetric: bool) -> dict[str, Stored]:
    if quantization.integer("bits", 1, 16, 4) != 4:
        raise quantization.error("bits", f"4; {OTHERS}")
    group = group_size(quantization)
    return {name.removesuffix(QWEIGHT) + ".weight": _stored(name.removesuffix(QWEIGHT), group, symmetric, tensors)
            for name in tensors if name.endswith(QWEIGHT)}


def _stored(x: str, group: int, symmetric: bool, tensors: "Mapping[str, TensorInfo]") -> Stored:
    qweight = matrix(tensors, x + QWEIGHT, ("i32",))
    check_single(tensors, x + ".weight", x + QWEIGHT)
    k, words = qweight.shape
    n, group = words * 8, min(group, k)
    scales = matrix(tensors, x + ".scales", FLOATS)
    if scales.shape[0] != -(-k // group):  # a layer with settings of its own
        if k % scales.shape[0]:
            raise refused(scales, x + ".scales", f"has {scales.shape[0]} rows for {k} inputs; expected groups of one size")
        group = k // scales.shape[0]
    parts = {"qweight": qweight, "scales": part(tensors, x + ".scales", FLOATS, (-(-k // group), n)),
             "qzeros": part(tensors, x + ".qzeros", ("i32",), (-(-k // group), words))}
    grid = Grid("int4", k, group, "none" if symmetric else "integer", scales.dtype)
    return Stored((n, k), grid.format, parts, partial(_decode, grid), label=grid.label, widened=grid.widened)


def _decode(grid: Grid, parts: dict[str, np.ndarray]) -> Decoded:
    zeros = from_nibbles(parts["qzeros"].view(np.uint8))
    zeros = zeros.reshape(len(zeros), -1, 8)[:, :, OUTPUTS].reshape(len(zeros), -1)
    if grid.zero == "none":
        if (zeros != 8).any():
            raise ValueError(f"qzeros hold {zeros[zeros != 8][0]}; zero_point: false means 8 everywhere")
        zeros = None
    return grid.codes(turned(parts["qweight"], 4, grid.k, False), np.ascontiguousarray(parts["scales"].T),
                      None if zeros is None else np.ascontiguousarray(zeros.T))
