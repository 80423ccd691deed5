"""Matrices that lie in a file as integer codes: which formats are known, and how their arrays become Codes.

A scheme is a module with `find(fields, tensors, read) -> dict[str, Stored]`: fields is config.json, tensors everything the
files hold by name, read gives the contents of one, for small ones. What it finds carries the name that the float matrix would have ("X.weight").
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Callable, Mapping, Optional

from genkit.checkpoints.files import shown, shown_path
from genkit.errors import BadFileError

if TYPE_CHECKING:
    import numpy as np

    from genkit._core import PackedWeight, Tensor
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import TensorInfo
    from genkit.quant.codes import Codes
    from genkit.quant.formats import Format

# quant_method -> module in this folder
SCHEMES = {"genkit": "native", "compressed-tensors": "compressed_tensors", "gptq": "gptq", "awq": "awq", "mlx": "mlx",
           "auto-round": "autoround", "intel/auto-round": "autoround", "bitsandbytes": "bitsandbytes", "fp8": "fp8",
           "fbgemm_fp8": "fp8", "mxfp4": "mxfp4"}


@dataclass(frozen=True)
class Stored:
    """A matrix [n, k] in codes. parts: where its arrays lie, by role. decode gets their contents (bf16 and f16 as uint16
    bits) and gives Codes of `format`, or floats [n, k] float32 where format is None and no kernel takes the codes. It
    raises ValueError, without the tensor's name, for contents that cannot be."""

    shape: tuple[int, int]
    format: "Optional[Format]"
    parts: "Mapping[str, TensorInfo]"
    decode: "Callable[[dict[str, np.ndarray]], Codes | np.ndarray]"

    label: str = ""  # what people call the type, where no format does
    # Straight into the kernels' order: gets the arrays of one or more matrices of this label, one under another, and whether
    # they are gates and ups. Raises ValueError and MemoryError.
    pack: "Optional[Callable[[Mapping[str, Tensor], bool], PackedWeight]]" = None
    widened: str = ""  # why format is None, in words: "FP8"
    order: "Optional[np.ndarray]" = None  # i32 [k], that of the Codes
    block: int = 1  # rows for which parts of fewer rows have one
    per_row: tuple[str, ...] = ()  # parts of one dimension that have a number for each row

    @property
    def writable(self) -> bool:
        """Whether its codes have a place in other files as they are: inputs in their order."""
        return self.format is not None and self.order is None

    def info(self) -> "TensorInfo":
        """It as one tensor, of dtype "int4" or "int8"."""
        parts = list(self.parts.values())
        label = self.label or ("int8" if self.format.eight_bits else "int4")
        return replace(parts[0], dtype=label, shape=self.shape, nbytes=sum(info.nbytes for info in parts))


Read = "Callable[[TensorInfo, str], np.ndarray]"  # a small array of the files, by where it lies and its name


def find(fields: "Fields", tensors: "Mapping[str, TensorInfo]", read: Read) -> dict[str, Stored]:
    """The quantized matrices that config.json speaks of; none where it has no quantization_config. Raises BadFileError for
    a method that is not known."""
    quantization = fields.object("quantization_config")
    method = None if quantization is None else quantization.optional("quant_method")
    if method is None and "quantization" in fields.raw:
        method = "mlx"  # mlx-lm's key; newer files have both, without a method
    if quantization is None and method is None:
        return {}
    if not isinstance(method, str) or method not in SCHEMES:
        raise BadFileError(f"{shown_path(fields.path)}: quantization_config with quant_method {shown(method)} is not "
                           f"supported; known: {', '.join(SCHEMES)}. Use the model's f32, f16 or bf16 checkpoint")
    return importlib.import_module(f"genkit.checkpoints.{SCHEMES[method]}").find(fields, tensors, read)


def part(tensors: "Mapping[str, TensorInfo]", name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> "TensorInfo":
    """A scheme's array, checked. Raises BadFileError when it is missing or another."""
    info = tensors.get(name)
    if info is None:
        raise BadFileError(f"tensor {shown(name, 200)} is missing from the weights")
    if info.dtype not in dtypes or info.shape != shape:
        raise BadFileError(f"{shown_path(info.file)}: tensor {shown(name, 200)} is {info.dtype.upper()} {list(info.shape)}; "
                           f"expected {' or '.join(d.upper() for d in dtypes)} {list(shape)}")
    return info
