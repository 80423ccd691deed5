"""MLX's affine form, as quant/writers/mlx.py lays it out: weight = scale code + bias. Codes of other widths are a run of bits
as well; those of 2 and 3 bits are held in 4, those of 5 and 6 in 8."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Mapping

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.grid import Decoded, Grid, byte_rows, nibble_rows
from genkit.checkpoints.parts import FLOATS, OTHERS, check_k, matrix, named, refused
from genkit.checkpoints.quantized import Read, Stored, part
from genkit.quant.codes import widen
from genkit.quant.words import narrow

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo

BITS = {2: "int4", 3: "int4", 4: "int4", 5: "int8", 6: "int8", 8: "int8"}


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]", read: Read) -> dict[str, Stored]:
    """Raises BadFileError for other modes, bits and groups, and for arrays that are not as they should be."""
    quantization = fields.object("quantization") or fields.object("quantization_config")
    whole = _settings(quantization)
    found = {}
    for name, info in tensors.items():
        if info.dtype == "u32" and name.endswith(".weight"):
            x = name.removesuffix(".weight")
            own = quantization.raw.get(x)
            if own is False:
                raise refused(info, name, "is U32, while config.json's quantization says false, that it has no codes")
            settings = whole if own in (None, True) else _settings(named(quantization, "quantization", x))
            found[name] = _stored(x, settings, tensors)
    return found


def _settings(settings: Fields) -> tuple[int, int]:
    """(bits, group)."""
    if settings.optional("mode") not in (None, "affine"):
        raise settings.error("mode", f"affine; {OTHERS}")
    bits = settings.integer("bits", 1, 16)
    if bits not in BITS:
        raise settings.error("bits", f"one of {', '.join(map(str, BITS))}; {OTHERS}")
    group = settings.integer("group_size", 1, 2**31 - 1)
    if group % 32:
        raise settings.error("group_size", f"a multiple of 32; {OTHERS}")
    return bits, group


def _stored(x: str, settings: tuple[int, int], tensors: "Mapping[str, TensorInfo]") -> Stored:
    bits, group = settings
    weight = matrix(tensors, x + ".weight", ("u32",))
    n, k = weight.shape[0], weight.shape[1] * 32 // bits
    if weight.shape[1] * 32 != k * bits:
        raise refused(weight, x + ".weight", f"holds {list(weight.shape)} words, no whole number of {bits}-bit codes")
    check_k(weight, x + ".weight", k, group)
    scales = part(tensors, x + ".scales", FLOATS, (n, k // group))
    parts = {"weight": weight, "scales": scales, "biases": part(tensors, x + ".biases", (scales.dtype,), (n, k // group))}
    grid = Grid(BITS[bits], k, group, "real", scales.dtype)
    return Stored((n, k), grid.format, parts, partial(_decode, grid, bits), label=grid.label, widened=grid.widened)


def _decode(grid: Grid, bits: int, parts: dict[str, np.ndarray]) -> Decoded:
    packed = parts["weight"].view(np.uint8)
    if bits == 4:
        return grid.codes(nibble_rows(packed, grid.k), parts["scales"], parts["biases"])
    if bits < 8:
        codes = byte_rows(_unpacked(packed, bits), grid.k)
        return grid.codes(codes if bits < 4 else codes.view(np.int8), parts["scales"], parts["biases"])
    # Codes are c = u - 128 here, so the offset is b + 128 s: nothing for symmetric codes. It lies among the weights, and
    # is rounded as a weight kept in that type would be.
    codes = byte_rows(packed ^ 0x80, grid.k).view(np.int8)
    wide = grid.scale_dtype == "f32"
    scales, offsets = ((part if wide else widen(part, grid.scale_dtype)) for part in (parts["scales"], parts["biases"]))
    with np.errstate(invalid="ignore"):
        offsets = offsets + np.float32(128) * scales
    offsets = narrow(offsets, "f16" if wide else grid.scale_dtype)
    return grid.codes(codes, parts["scales"], widen(offsets, "f16") if wide else offsets)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes of a run of bits, least significant first, u8 [n, k]: eight of them lie in as many bytes as one has bits."""
    eights = packed.reshape(len(packed), -1, bits)
    wide = np.zeros(eights.shape[:2], np.uint64)
    for i in range(bits):
        wide |= eights[:, :, i].astype(np.uint64) << np.uint64(8 * i)
    out = np.empty((*wide.shape, 8), np.uint8)
    for i in range(8):
        out[:, :, i] = wide >> np.uint64(bits * i) & np.uint64(2**bits - 1)
    return out.reshape(len(packed), -1)
