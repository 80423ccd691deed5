"""GPTQ's form, version 1, symmetric. A linear X of [n, k] becomes
  X.qweight  I32 [k bits / 32, n], codes as in words.py but down a column
  X.qzeros   I32 [k / group, n bits / 32]: every zero is 8 (128), stored one less
  X.scales   F16 [k / group, n], signed
  X.g_idx    I32 [k]: i // group
Embeddings and head stay floats.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any, Mapping

import numpy as np

from genkit.errors import UsageError
from genkit.quant.codes import Codes
from genkit.quant.formats import Format
from genkit.quant.words import to_words
from genkit.quant.writers.base import Array, Kind, Source, array
from genkit.quant.writers.linears import LinearsWriter, bits, is_linear, module, most_common

ZEROS = {4: 0x77777777, 8: 0x7F7F7F7F}


class Model(LinearsWriter):
    label = "gptq"
    by_rows = False

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.scale_dtype = "f16"  # of any model

    def zero(self, kind: str, asymmetric: bool) -> str:
        if asymmetric:
            raise UsageError("--asym with --format gptq: readers disagree about its zeros; leave it away, or take "
                             "--format compressed-tensors")
        return "none"

    def check(self, name: str, shape: tuple[int, int], kind: Kind) -> str | None:
        if isinstance(kind, Format):
            if kind.packing not in ("int4", "int8") or kind.zero != "none":
                return "codes of this kind are not in --format gptq"
            if shape[0] % 8:
                return f"GPTQ's readers want rows in eights, and it has {shape[0]}"
        return super().check(name, shape, kind)

    def code_arrays(self, name: str, shape: tuple[int, int], format: Format) -> list[Array]:
        (n, k), x, groups = shape, module(name), shape[1] // format.group
        return [array(x + ".qweight", "I32", [k * bits(format) // 32, n]),
                array(x + ".qzeros", "I32", [groups, n * bits(format) // 32]),
                array(x + ".scales", "F16", [groups, n]), array(x + ".g_idx", "I32", [k])]

    def encode_codes(self, name: str, codes: Codes) -> list[np.ndarray]:
        (n, k), f = codes.shape, codes.format
        words, groups = to_words(codes.codes[:, :k], bits(f)), k // f.group
        return [np.ascontiguousarray(words.T), np.full((groups, n * bits(f) // 32), ZEROS[bits(f)], np.int32),
                np.ascontiguousarray(codes.scales[:, :groups].T), np.arange(k, dtype=np.int32) // f.group]

    def quantization_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        common = most_common(kinds)
        if common is None:
            return {}
        dynamic: dict[str, Any] = {}  # GPTQModel's: -: leaves a module out, +: gives it other settings
        for name, kind in kinds.items():
            pattern = f"^{re.escape(module(name))}$"
            if isinstance(kind, Format) and kind != common:
                dynamic["+:" + pattern] = {"bits": bits(kind), "group_size": kind.group}
            elif isinstance(kind, str) and is_linear(name):
                dynamic["-:" + pattern] = {}
        found = {"quant_method": "gptq", "checkpoint_format": "gptq", "bits": bits(common), "group_size": common.group,
                 "sym": True, "desc_act": False, "lm_head": False, "pack_dtype": "int32",
                 "meta": {"quantizer": [f"genkit:{version('genkit')}"]}}
        return found | {"dynamic": dynamic} if dynamic else found
