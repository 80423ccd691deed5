"""MLX's affine form in 4 and 8 bits, as quant/writers/mlx.py lays it out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Mapping

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.parts import FLOATS, OTHERS, check_group, check_k, matrix, named, refused, scale_type
from genkit.checkpoints.quantized import Stored, part
from genkit.quant.codes import Codes, widen
from genkit.quant.formats import Format
from genkit.quant.words import from_words, narrow, scales_from_file

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]") -> dict[str, Stored]:
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
    if bits not in (4, 8):
        raise settings.error("bits", f"4 or 8; {OTHERS}")
    return bits, check_group(settings, "group_size")


def _stored(x: str, settings: tuple[int, int], tensors: "Mapping[str, TensorInfo]") -> Stored:
    bits, group = settings
    weight = matrix(tensors, x + ".weight", ("u32",))
    n, k = weight.shape[0], weight.shape[1] * 32 // bits
    check_k(weight, x + ".weight", k, group)
    scales = part(tensors, x + ".scales", FLOATS, (n, k // group))
    parts = {"weight": weight, "scales": scales, "biases": part(tensors, x + ".biases", (scales.dtype,), (n, k // group))}
    format = Format("int8" if bits == 8 else "int4", group, "real", scale_type(scales))
    return Stored((n, k), format, parts, partial(_decode, format, k))


def _decode(format: Format, k: int, parts: dict[str, np.ndarray]) -> Codes:
    eight = format.packing == "int8"
    codes = from_words(parts["weight"], 8 if eight else 4, k)
    scales = scales_from_file(parts["scales"], k, format.group)
    offsets = scales_from_file(parts["biases"], k, format.group)
    if eight:
        # Codes are c = u - 128 here, so the offset is b + 128 s: nothing for symmetric codes. It lies among the weights, and
        # is rounded as a weight kept in that type would be.
        with np.errstate(invalid="ignore"):
            exact = widen(offsets, format.scale_dtype) + np.float32(128) * widen(scales, format.scale_dtype)
        offsets = narrow(exact, format.scale_dtype)
    return Codes(format, k, codes, scales, zeros=offsets)
