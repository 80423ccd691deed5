"""Forms a quantized model is written in, one file each, found by the name --format gives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genkit.quant.writers.base import Source, Writer

# --format -> module with a class `Model`
FORMATS = {"genkit": "native", "compressed-tensors": "compressed_tensors", "gguf": "gguf", "gptq": "gptq", "mlx": "mlx",
           "safetensors": "floats"}


def writer(name: str, source: "Source") -> "Writer":
    """The writer of a format for a model. Raises UsageError for a model that the format has no place for."""
    return importlib.import_module(f"genkit.quant.writers.{FORMATS[name]}").Model(source)
