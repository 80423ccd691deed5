"""GPTQ's form, version 1 and 2: a linear X of [n, k] is X.qweight I32 [k bits / 32, n], code of input i and output j at bit
i bits down column j; X.qzeros I32 [groups, n bits / 32], of version 1 less one; X.scales [groups, n]; and X.g_idx I32 [k],
the group of each input, in files of today. Weight = scale (code - zero).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Mapping, Optional

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.grid import Decoded, Grid, ordered, turned
from genkit.checkpoints.parts import FLOATS, OTHERS, check_single, matrix, refused
from genkit.checkpoints.quantized import Read, Stored, part
from genkit.quant.codes import from_nibbles

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo

QWEIGHT = ".qweight"
MAX_GROUP = 2**31 - 1


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]", read: Read) -> dict[str, Stored]:
    """Bits and group of a matrix follow from its arrays' shapes, so patterns in "dynamic" need not be matched.

    Raises BadFileError for another format, by name, and for arrays that are not as they should be."""
    quantization = fields.object("quantization_config")
    # Version 1 stores zeros less one.
    above = {"gptq": 1, "gptq_v2": 0}[quantization.string("checkpoint_format", ("gptq", "gptq_v2"), "gptq")]
    if quantization.boolean("is_marlin_format", False):
        raise quantization.error("is_marlin_format", f"false; {OTHERS}")
    return linears(quantization, tensors, read, quantization.boolean("sym", False), above)


def linears(quantization: Fields, tensors: "Mapping[str, TensorInfo]", read: Read, symmetric: bool,
            above: int) -> dict[str, Stored]:
    """The matrices of a file; `above` is what is missing from its zeros."""
    bits = quantization.integer("bits", 1, 16)
    if bits not in (4, 8):
        raise quantization.error("bits", f"4 or 8; {OTHERS}")
    group = group_size(quantization)
    return {name.removesuffix(QWEIGHT) + ".weight":
            _stored(name.removesuffix(QWEIGHT), (bits, group, symmetric, above), tensors, read)
            for name in tensors if name.endswith(QWEIGHT)}


def group_size(quantization: Fields) -> int:
    """Inputs to a scale; MAX_GROUP for all of a row, which files write as -1."""
    group = quantization.integer("group_size", -1, MAX_GROUP, 128)
    if group == 0:
        raise quantization.error("group_size", "-1 (a row) or a number of inputs")
    return MAX_GROUP if group == -1 else group


def _stored(x: str, settings: tuple[int, int, bool, int], tensors: "Mapping[str, TensorInfo]", read: Read) -> Stored:
    usual_bits, usual_group, symmetric, above = settings
    qweight, scales = matrix(tensors, x + QWEIGHT, ("i32",)), matrix(tensors, x + ".scales", FLOATS)
    check_single(tensors, x + ".weight", x + QWEIGHT)
    (words, n), groups = qweight.shape, scales.shape[0]
    g_idx = tensors.get(x + ".g_idx")
    k_known = g_idx.shape[0] if g_idx is not None and len(g_idx.shape) == 1 else None
    zeros = matrix(tensors, x + ".qzeros", ("i32",))
    for bits in (usual_bits, 4, 8):
        k, rest = divmod(words * 32, bits)
        group = _group(k, groups, usual_group)
        if not rest and group and k_known in (k, None) and zeros.shape == (groups, -(-n * bits // 32)):
            break
    else:
        order = "no g_idx" if k_known is None else f"a g_idx of {k_known}"
        raise refused(qweight, x + QWEIGHT, f"is {list(qweight.shape)} with scales {list(scales.shape)}, qzeros "
                                            f"{list(zeros.shape)} and {order}; "
                                            f"expected 4 or 8 bits and groups of one size; {OTHERS}")
    grid = Grid("int8" if bits == 8 else "int4", k, group, "none" if symmetric else "integer", scales.dtype)
    parts = {"qweight": qweight, "scales": part(tensors, x + ".scales", FLOATS, (groups, n)), "qzeros": zeros}
    if g_idx is not None:
        parts["g_idx"] = part(tensors, x + ".g_idx", ("i32",), (k,))
        try:
            found = ordered(grid, read(g_idx, x + ".g_idx"))
        except ValueError as error:
            raise refused(g_idx, x + ".g_idx", str(error)) from None
        if found is None:
            raise refused(g_idx, x + ".g_idx", f"has groups that are not of {group} inputs each; {OTHERS}")
        grid = found
    return Stored((n, k), grid.format, parts, partial(_decode, grid, n, above), label=grid.label, widened=grid.widened,
                  order=grid.order)


def _group(k: int, groups: int, usual: int) -> int:
    """The size of groups by how many there are: the usual one where it fits; 0 where none does."""
    usual = min(usual, k)
    if k and -(-k // usual) == groups:
        return usual
    return k // groups if k and k % groups == 0 else 0


def _decode(grid: Grid, n: int, above: int, parts: dict[str, np.ndarray]) -> Decoded:
    eight = grid.packing == "int8"
    packed = parts["qzeros"].view(np.uint8)
    stored = (packed if eight else from_nibbles(packed))[:, :n]
    middle = 128 if eight else 8
    if grid.zero == "none" and (stored != middle - above).any():
        raise ValueError(f"qzeros hold {stored[stored != middle - above][0] + above}; sym: true means {middle} everywhere")
    if eight and stored.max() + np.int16(above) > 255:
        raise ValueError("qzeros hold 256, which eight bits do not; readers disagree about it")
    codes = turned(parts["qweight"], 8 if eight else 4, grid.k, True, grid.order)
    return grid.codes(codes, np.ascontiguousarray(parts["scales"].T), _zeros(grid, stored, above))


def _zeros(grid: Grid, stored: np.ndarray, above: int) -> Optional[np.ndarray]:
    """Integer zeros [n, groups], of eight bits less 128 as the codes are."""
    if grid.zero == "none":
        return None
    zeros = np.ascontiguousarray(stored.T).astype(np.int16) + above
    return (zeros - 128).astype(np.int8) if grid.packing == "int8" else zeros.astype(np.uint8)
