"""genkit's own form, as quant/writers/native.py lays it out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Mapping

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.parts import check_group, check_single, matrix, named
from genkit.checkpoints.quantized import Read, Stored, part
from genkit.quant.codes import SUB, Codes, depth_of, from_nibbles, groups_of
from genkit.quant.formats import Format

if TYPE_CHECKING:
    from genkit._core import PackedWeight, Tensor
    from genkit.checkpoints.safetensors import TensorInfo

MAX_K = 2**31 - 1


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]", read: Read) -> dict[str, Stored]:
    """Raises BadFileError for what is not as it should be."""
    quantization = fields.object("quantization_config")
    version = quantization.integer("version", 0, 2**31 - 1)
    if version != 1:
        raise quantization.error("version", "1, which this genkit reads; a newer one may read it")
    formats = quantization.object("formats")
    if formats is None:
        raise quantization.error("formats", "an object: tensor name -> format")
    return {name: _stored(formats, name, tensors) for name in formats.raw}


def _stored(formats: Fields, name: str, tensors: "Mapping[str, TensorInfo]") -> Stored:
    entry = named(formats, "quantization_config.formats", name)
    format, k = _format(entry), entry.integer("k", 1, MAX_K)
    check_single(tensors, name, name + ".codes")
    n = matrix(tensors, name + ".codes", ("u8", "i8")).shape[0]
    depth, groups = depth_of(k), groups_of(k, format.scale_group)

    def at(role: str, dtype: str, columns: int) -> None:
        parts[role] = part(tensors, f"{name}.{role}", (dtype,), (n, columns))

    parts: dict[str, TensorInfo] = {}
    eight = format.eight_bits
    at("codes", "i8" if eight else "u8", depth if eight else depth // 2)
    at("scales", format.scale_dtype, groups)
    if format.packing == "int4_two_level":
        at("subscales", "u8", depth // SUB // 2)
        at("minima", "u8", depth // SUB)
    if format.of_k:
        at("subscales", "i8", depth // format.group)
        if format.zero == "real":
            at("minima", "u8", depth // format.group)
    if format.zero != "none":
        at("zeros", format.scale_dtype if format.zero == "real" else "i8" if eight else "u8", groups)
    pack = partial(_pack, format, k) if format.packing != "int4_k" else None
    return Stored((n, k), format, parts, partial(_decode, format, k), pack=pack)


def _format(entry: Fields) -> Format:
    packing = entry.string("packing", ("int4_two_level", "int4", "int8", "int4_k", "int8_k"))
    if packing in ("int4_k", "int8_k"):
        group, zero = entry.integer("group", 16, 32), entry.string("zero", ("none", "real"))
        if group not in (16, 32):
            raise entry.error("group", f"16 or 32 with {packing}")
        return Format(packing, group, zero, entry.string("scale_dtype", ("f16",)))
    group, zero = check_group(entry, "group"), entry.string("zero", ("none", "integer", "real"))
    format = Format(packing, group, zero, entry.string("scale_dtype", ("f16", "bf16")))
    if packing == "int4_two_level" and format != Format("int4_two_level"):
        raise entry.error("packing", "with it a group of 256, no zeros and f16 scales")
    return format


def _pack(format: Format, k: int, parts: "Mapping[str, Tensor]", gated: bool) -> "PackedWeight":
    from genkit import _core

    return _core.pack_weight(parts["codes"], parts["scales"], parts.get("subscales"), parts.get("minima"), parts.get("zeros"),
                             k, format.core(), gated)


def _decode(format: Format, k: int, parts: dict[str, np.ndarray]) -> Codes:
    if format.eight_bits:
        return Codes(format, k, **parts)
    unpacked = {"codes": from_nibbles(parts["codes"])}
    if format.packing == "int4_two_level":
        unpacked["subscales"] = from_nibbles(parts["subscales"])
        # What the kernels' sums of integers count on: u q - m is an int8.
        minima = parts["minima"].astype(np.int16)
        worst = 15 * unpacked["subscales"].astype(np.int16) - minima
        if minima.max(initial=0) > 128 or worst.max(initial=0) > 127:
            raise ValueError(f"minima reach {minima.max()} and 15 u - m {worst.max()}; expected at most 128 and 127")
    elif format.zero == "integer" and parts["zeros"].max(initial=0) > 16:
        raise ValueError(f"holds a zero of {parts['zeros'].max()}; expected 0 to 16")
    return Codes(format, k, **(parts | unpacked))
