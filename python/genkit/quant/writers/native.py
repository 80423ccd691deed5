"""genkit's own form: a Hugging Face folder whose matrices are codes as the core packs them.

A matrix W [n, k] of name X.weight becomes arrays, all row-major, k filled up to depth, a multiple of 64:
  X.weight.codes      int4: U8 [n, depth / 2], of two neighbours along k the first in the low nibble; int8: I8 [n, depth]
  X.weight.scales     F16 or BF16 [n, ceil(depth / group)]
  X.weight.subscales  two-level: U8 [n, depth / 64], nibbles as above: u of 32 codes each
  X.weight.minima     two-level: U8 [n, depth / 32]: m of 32 codes each
  X.weight.zeros      U8 (int8: I8) or the scales' type [n, ceil(depth / group)], in formats that have them
int4_k and int8_k have their codes as int4 and int8, and
  X.weight.scales     F16 [n, ceil(depth / 256)]: d
  X.weight.subscales  I8 [n, depth / group]: sc
  X.weight.minima     U8 [n, depth / group], X.weight.zeros F16 as scales: m and dmin, in formats with a minimum
docs/quantization.md says what a code stands for. config.json's quantization_config:
  {"quant_method": "genkit", "version": 1, "formats": {tensor name: {"packing", "group", "zero", "scale_dtype", "k"}}}
"""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from genkit.errors import UsageError
from genkit.quant import formats
from genkit.quant.codes import SUB, Codes, depth_of, groups_of, to_nibbles
from genkit.quant.formats import Format
from genkit.quant.writers.base import FLOATS, Array, Kind, SafetensorsWriter, array

VERSION = 1


class Model(SafetensorsWriter):
    def format(self, kind: str, group_size: int | None = None, asymmetric: bool = False) -> Kind:
        if kind in FLOATS:
            return kind
        if kind not in formats.BY_NAME:
            raise UsageError(f"type {kind!r}: --format genkit holds {', '.join([*formats.BY_NAME, *FLOATS])}")
        if group_size is None and not asymmetric:
            return formats.BY_NAME[kind]
        if kind == "int8":
            if asymmetric:
                raise UsageError("--asym with int8: eight bits are kept symmetric; leave it away")
            return Format("int8", group_size)
        return Format("int4", group_size or 32, "real" if asymmetric else "none")

    def code_arrays(self, name: str, shape: tuple[int, int], format: Format) -> list[Array]:
        n, k = shape
        depth, groups = depth_of(k), groups_of(k, format.scale_group)
        codes = ("I8", [n, depth]) if format.eight_bits else ("U8", [n, depth // 2])
        found = [array(name + ".codes", *codes), array(name + ".scales", format.scale_dtype.upper(), [n, groups])]
        if format.packing == "int4_two_level":
            found.append(array(name + ".subscales", "U8", [n, depth // SUB // 2]))
            found.append(array(name + ".minima", "U8", [n, depth // SUB]))
        if format.of_k:
            found.append(array(name + ".subscales", "I8", [n, depth // format.group]))
            if format.zero == "real":
                found.append(array(name + ".minima", "U8", [n, depth // format.group]))
        if format.zero != "none":
            integer = "I8" if format.packing == "int8" else "U8"
            found.append(array(name + ".zeros", integer if format.zero == "integer" else format.scale_dtype.upper(), [n, groups]))
        return found

    def encode_codes(self, name: str, codes: Codes) -> list[np.ndarray]:
        two_level = codes.format.packing == "int4_two_level"
        found = [codes.codes if codes.format.eight_bits else to_nibbles(codes.codes), codes.scales,
                 to_nibbles(codes.subscales) if two_level else codes.subscales, codes.minima, codes.zeros]
        return [part for part in found if part is not None]

    def quantization_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        listed = {name: kind.as_dict() | {"k": self.shapes[name][1]}
                  for name, kind in sorted(kinds.items()) if isinstance(kind, Format)}
        return {"quant_method": "genkit", "version": VERSION, "formats": listed} if listed else {}
