"""MLX's affine form. A linear or embedding X of [n, k] becomes
  X.weight  U32 [n, k bits / 32], unsigned codes u as in words.py
  X.scales  the model's type [n, k / group], signed
  X.biases  the same: w = s u + b
Symmetric codes are held exactly: b is -8 s or -128 s, a power of two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping

import numpy as np

from genkit.errors import UsageError
from genkit.quant.codes import Codes, widen
from genkit.quant.formats import Format
from genkit.quant.words import narrow, scales_to_file, to_words
from genkit.quant.writers.base import Array, Kind, array
from genkit.quant.writers.linears import LinearsWriter, bits, module, most_common

if TYPE_CHECKING:
    from genkit.quant.roles import Roles


HELD = (("int4", "real"), ("int4", "none"), ("int8", "none"))  # packing and zero


class Model(LinearsWriter):
    label = "mlx"
    in_codes = ("_proj.weight", "lm_head.weight", "embed_tokens.weight")

    def zero(self, kind: str, asymmetric: bool) -> str:
        if asymmetric and kind == "int8":
            raise UsageError("--asym with int8: eight bits are kept symmetric; leave it away")
        return "real" if kind == "int4" else "none"  # an offset costs nothing here, it is there in any case

    def default(self, name: str, roles: "Roles", kind: str) -> str | None:
        return None

    def check(self, name: str, shape: tuple[int, int], kind: Kind) -> str | None:
        if isinstance(kind, Format) and (kind.packing, kind.zero) not in HELD:
            return "codes of this kind are not in --format mlx"
        return super().check(name, shape, kind)

    def code_arrays(self, name: str, shape: tuple[int, int], format: Format) -> list[Array]:
        (n, k), x = shape, module(name)
        per_group = [n, k // format.group]
        return [array(name, "U32", [n, k * bits(format) // 32]), array(x + ".scales", self.dtype.upper(), per_group),
                array(x + ".biases", self.dtype.upper(), per_group)]

    def encode_codes(self, name: str, codes: Codes) -> list[np.ndarray]:
        f = codes.format
        offsets = codes.zeros
        if f.zero == "none":
            exact = widen(codes.scales, f.scale_dtype) * np.float32(-8 if bits(f) == 4 else -128)
            offsets = narrow(exact, f.scale_dtype)
            if (np.isinf(widen(offsets, f.scale_dtype)) & np.isfinite(exact)).any():
                raise ValueError(f"{name}: an offset of {np.abs(exact).max():g} is beyond {f.scale_dtype}")
        return [to_words(codes.codes[:, : codes.k], bits(f)).view("<u4"),
                *(scales_to_file(part, f, codes.k, self.dtype) for part in (codes.scales, offsets))]

    def quantization_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        common = most_common(kinds)
        if common is None:
            return {}
        settings: dict[str, Any] = affine(common)
        for name, kind in kinds.items():
            if isinstance(kind, Format) and affine(kind) != affine(common):
                settings[module(name)] = affine(kind)
            elif isinstance(kind, str) and name.endswith(self.in_codes):
                settings[module(name)] = False
        return settings

    def more_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        quantization = self.quantization_config(kinds)  # mlx-lm reads this key, and writes both
        return super().more_config(kinds) | ({"quantization": quantization} if quantization else {})


def affine(format: Format) -> dict[str, Any]:
    return {"group_size": format.group, "bits": bits(format), "mode": "affine"}
