"""compressed-tensors' "pack-quantized", which transformers and vLLM load. A linear X of [n, k] becomes
  X.weight_packed      I32 [n, k bits / 32], codes as in words.py
  X.weight_scale       the model's type [n, k / group], signed
  X.weight_zero_point  asymmetric: I32 [n / 8, k / group], eight rows' zeros in a word, the first lowest
  X.weight_shape       I64 [2]: n, k
Embeddings stay floats, and so does the head where nobody says otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping, Sequence

import numpy as np

from genkit.errors import UsageError
from genkit.quant.codes import Codes
from genkit.quant.formats import Format
from genkit.quant.words import scales_to_file, to_words
from genkit.quant.writers.base import Array, File, Kind, array
from genkit.quant.writers.linears import ARCHITECTURES, LinearsWriter, bits, is_linear, module

MIXTURES = ("deepseek_v3", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")  # their experts are linears of their own
ROUTERS = (".gate.weight", ".shared_expert_gate.weight")


class Model(LinearsWriter):
    label = "compressed-tensors"
    architectures = (*ARCHITECTURES, *MIXTURES)
    in_codes = ("_proj.weight", "lm_head.weight", ".w1.weight", ".w2.weight", ".w3.weight")  # the last ones are Mixtral's

    def zero(self, kind: str, asymmetric: bool) -> str:
        if asymmetric and kind == "int8":
            raise UsageError("--asym with int8: eight bits are kept symmetric; leave it away")
        return "integer" if asymmetric else "none"

    def check(self, name: str, shape: tuple[int, int], kind: Kind) -> str | None:
        if isinstance(kind, Format):
            if (kind.packing, kind.zero) not in (("int4", "none"), ("int4", "integer"), ("int8", "none")):
                return "codes of this kind are not in --format compressed-tensors"
            if kind.zero == "integer" and shape[0] % 8:
                return f"zeros of eight rows share a word, and {shape[0]} rows are no multiple of eight"
        return super().check(name, shape, kind)

    def code_arrays(self, name: str, shape: tuple[int, int], format: Format) -> list[Array]:
        (n, k), x = shape, module(name)
        found = [array(x + ".weight_packed", "I32", [n, k * bits(format) // 32]),
                 array(x + ".weight_scale", self.dtype.upper(), [n, k // format.group])]
        if format.zero == "integer":
            found.append(array(x + ".weight_zero_point", "I32", [n // 8, k // format.group]))
        return found

    def encode_codes(self, name: str, codes: Codes) -> list[np.ndarray]:
        f, k = codes.format, codes.k
        found = [to_words(codes.codes[:, :k], bits(f)), scales_to_file(codes.scales, f, k, self.dtype)]
        if f.zero == "integer":
            if codes.zeros.max(initial=0) > 15:
                raise ValueError(f"{name}: a zero of {codes.zeros.max()} does not fit into four bits")
            found.append(np.ascontiguousarray(to_words(codes.zeros[:, : k // f.group].T, 4).T))
        return found

    def files(self, arrays: Sequence[Array], kinds: Mapping[str, Kind]) -> list[File]:
        """Shapes are known beforehand and not row by row: they lie first, and belong to the head of the file."""
        names = [name for name, kind in kinds.items() if isinstance(kind, Format)]
        shapes = [array(module(name) + ".weight_shape", "I64", [2]) for name in names]
        first, *others = super().files([*shapes, *arrays], kinds)
        contents = b"".join(np.array(self.shapes[name], "<i8").tobytes() for name in names)
        return [replace(first, head=first.head + contents), *others]

    def quantization_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        groups: dict[Format, list[str]] = {}
        for name, kind in kinds.items():
            if isinstance(kind, Format):
                groups.setdefault(kind, []).append(module(name))
        if not groups:
            return {}
        kept = [module(name) for name, kind in kinds.items() if isinstance(kind, str)
                and (is_linear(name) or name.endswith((*ROUTERS, *self.in_codes[2:])))]
        if not isinstance(kinds.get("lm_head.weight"), Format):
            kept.append("lm_head")  # of a tied model too: transformers has the layer
        config_groups = {f"group_{i}": {"targets": ["Linear"] if len(groups) == 1 else names, "weights": weights(format),
                                        "input_activations": None, "output_activations": None}
                         for i, (format, names) in enumerate(groups.items())}
        return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
                "config_groups": config_groups, "ignore": kept}


def weights(format: Format) -> dict[str, Any]:
    """compressed-tensors' QuantizationArgs, which knows no other keys."""
    return {"num_bits": bits(format), "type": "int", "symmetric": format.zero == "none", "strategy": "group",
            "group_size": format.group, "dynamic": False}
