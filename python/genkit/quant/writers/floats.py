"""A Hugging Face folder of floats, without codes: what everything reads."""

from __future__ import annotations

from typing import Any, Mapping

from genkit.errors import UsageError
from genkit.quant.formats import Format
from genkit.quant.writers.base import FLOATS, Array, Kind, SafetensorsWriter
from genkit.quant.writers.linears import DTYPES


class Model(SafetensorsWriter):
    def format(self, kind: str, group_size: int | None = None, asymmetric: bool = False) -> Kind:
        if kind not in FLOATS:
            raise UsageError(f"type {kind!r}: --format safetensors holds {', '.join(FLOATS)}")
        return kind

    def check(self, name: str, shape: tuple[int, int], kind: Kind) -> str | None:
        return "--format safetensors holds no codes" if isinstance(kind, Format) else None

    def code_arrays(self, name: str, shape: tuple[int, int], format: Format) -> list[Array]:
        raise ValueError(f"{name}: codes of {format.words} among floats")

    def quantization_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        return {}

    def more_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """dtype, which transformers loads the model as: that of most matrices. And what genkit rounds it to, as before."""
        floats = [kind for name, kind in kinds.items() if len(self.shapes[name]) > 1]
        common = max(dict.fromkeys(floats), key=floats.count)
        raw = self.source.fields.raw
        rounded = {"genkit_quantize": raw["genkit_quantize"]} if "genkit_quantize" in raw else {}
        return {"dtype": next(name for name, short in DTYPES.items() if short == common)} | rounded
