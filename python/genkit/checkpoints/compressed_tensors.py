"""compressed-tensors' "pack-quantized" with groups, as quant/writers/compressed_tensors.py lays it out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Mapping

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.files import shown, shown_path
from genkit.checkpoints.parts import FLOAT, FLOATS, OTHERS, check_group, check_k, check_single, matrix, named, refused, \
    scale_type
from genkit.checkpoints.quantized import Stored, part
from genkit.errors import BadFileError
from genkit.quant.codes import Codes
from genkit.quant.formats import Format
from genkit.quant.words import from_words, scales_from_file

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo

PACKED = ".weight_packed"


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]") -> dict[str, Stored]:
    """Raises BadFileError for another format, strategy or type, by name, and for arrays that are not as they should be."""
    quantization = fields.object("quantization_config")
    _supported(quantization, "format", ("pack-quantized",))
    _supported(quantization, "quantization_status", ("compressed",))
    for key in ("kv_cache_scheme", "transform_config", "sparsity_config"):
        if quantization.optional(key) not in (None, {}):
            raise _unsupported(quantization, key)
    listed = quantization.object("config_groups")
    if listed is None or not listed.raw:
        raise quantization.error("config_groups", "an object of groups")
    groups = [_group(listed, name) for name in listed.raw]
    found = {}
    for packed in tensors:
        if packed.endswith(PACKED):
            x = packed.removesuffix(PACKED)
            found[x + ".weight"] = _stored(x, _of(x, groups, fields), tensors)
    return found


def _unsupported(fields: Fields, key: str) -> BadFileError:
    return fields.error(key, f"nothing: this is not supported. {FLOAT}")


def _supported(fields: Fields, key: str, values: tuple[Any, ...]) -> Any:
    value = fields.optional(key)
    if not any(value is known or value == known and type(value) is type(known) for known in values):
        raise fields.error(key, f"{' or '.join(map(shown, values))}; {OTHERS}")
    return value


def _group(groups: Fields, name: str) -> tuple[list[str], tuple[int, int, bool]]:
    """Its targets and its scheme."""
    group = named(groups, "quantization_config.config_groups", name)
    targets = group.optional("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise group.error("targets", "a list of names")
    return targets, _scheme(group)


def _scheme(group: Fields) -> tuple[int, int, bool]:
    """(bits, group, symmetric)."""
    _supported(group, "format", (None, "pack-quantized"))
    for key in ("input_activations", "output_activations"):
        _supported(group, key, (None,))
    weights = group.object("weights")
    if weights is None:
        raise group.error("weights", "an object")
    _supported(weights, "type", ("int",))
    _supported(weights, "strategy", ("group",))
    _supported(weights, "dynamic", (None, False))
    _supported(weights, "actorder", (None, False, "weight", "static"))
    bits = _supported(weights, "num_bits", (4, 8))
    symmetric = weights.boolean("symmetric", True)
    if bits == 8 and not symmetric:
        raise weights.error("symmetric", f"true for 8 bits; zeros are not supported there. {FLOAT}")
    return bits, check_group(weights, "group_size"), symmetric


def _of(x: str, groups: list[tuple[list[str], tuple[int, int, bool]]], fields: Fields) -> tuple[int, int, bool]:
    """The scheme of a module: that of its only group, of the one that names it, or of the one for all of its class."""
    if len(groups) == 1:
        return groups[0][1]
    for wanted in (x, "Linear"):
        for targets, scheme in groups:
            if wanted in targets:
                return scheme
    raise BadFileError(f"{shown_path(fields.path)}: quantization_config: no group of config_groups names {shown(x, 200)}; "
                       f"patterns (re:) among several groups are not supported. {FLOAT}")


def _stored(x: str, scheme: tuple[int, int, bool], tensors: "Mapping[str, TensorInfo]") -> Stored:
    bits, group, symmetric = scheme
    name = x + PACKED
    packed = matrix(tensors, name, ("i32",))
    check_single(tensors, x + ".weight", name)
    order = x + ".weight_g_idx"
    if order in tensors:
        raise refused(tensors[order], order, f"orders its inputs anew (actorder), which is not supported. {FLOAT}")
    n, k = packed.shape[0], packed.shape[1] * 32 // bits
    check_k(packed, name, k, group)
    scale = part(tensors, x + ".weight_scale", FLOATS, (n, k // group))
    parts = {"packed": packed, "scale": scale, "shape": part(tensors, x + ".weight_shape", ("i64", "i32"), (2,))}
    if not symmetric:
        parts["zero_point"] = part(tensors, x + ".weight_zero_point", ("i32",), (-(-n // 8), k // group))
    format = Format("int8" if bits == 8 else "int4", group, "none" if symmetric else "integer", scale_type(scale))
    return Stored((n, k), format, parts, partial(_decode, format, (n, k)))


def _decode(format: Format, shape: tuple[int, int], parts: dict[str, np.ndarray]) -> Codes:
    if tuple(parts["shape"]) != shape:
        raise ValueError(f"weight_shape says {parts['shape'].tolist()}; weight_packed holds {list(shape)}")
    k = shape[1]
    zeros = None
    if format.zero == "integer":
        # Along n: transposed they are words of rows. Unpacked to [groups, n filled up]; a tail of a word is cut off.
        down = from_words(parts["zero_point"].T, 4, parts["zero_point"].shape[0] * 8)
        zeros = scales_from_file(np.ascontiguousarray(down[:, : shape[0]].T), k, format.group)
    codes = from_words(parts["packed"], 8 if format.packing == "int8" else 4, k)
    return Codes(format, k, codes, scales_from_file(parts["scale"], k, format.group), zeros=zeros)
