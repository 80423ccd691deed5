"""Architectures, one file each, found by config.json's model_type.

A model file offers `read_config(fields, checkpoint)`, a ModelConfig, and `build(fields, checkpoint, config, format)`, a model:
`model.config` and `model(step, cache)`, logits f32 [rows asked for, vocab_size]. Adding one: a file here, a line below,
a parity test.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Optional, Protocol

from genkit.errors import BadFileError

if TYPE_CHECKING:
    from genkit._core import Tensor, WeightFormat
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint
    from genkit.kv_cache import KVCache, Step
    from genkit.models.config import ModelConfig

# model_type -> module
ARCHITECTURES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


class Model(Protocol):
    config: "ModelConfig"

    def __call__(self, step: "Step", cache: "KVCache") -> "Tensor": ...


def read_model_config(fields: "Fields", checkpoint: "Checkpoint") -> "ModelConfig":
    """What config.json says of the model; no weights are read.

    Raises BadFileError for an unknown architecture or a value that cannot be.
    """
    return _module(fields).read_config(fields, checkpoint)


def load_model(fields: "Fields", checkpoint: "Checkpoint", format: Optional["WeightFormat"] = None) -> Model:
    """The model that config.json describes, its weights read from the checkpoint and rounded to `format`, if any.

    Raises BadFileError as read_model_config, and for sizes that are not the weights'.
    """
    return _module(fields).build(fields, checkpoint, read_model_config(fields, checkpoint), format)


def _module(fields: "Fields") -> ModuleType:
    from genkit.checkpoints.files import shown, shown_path

    path, model_type = shown_path(fields.path), fields.model_type
    if model_type not in ARCHITECTURES:
        raise BadFileError(f"{path}: architecture {shown(model_type)} is not supported; "
                           f"known: {', '.join(sorted(ARCHITECTURES))}")
    quantization = fields.object("quantization_config")
    if quantization is not None:
        method = quantization.optional("quant_method")
        raise BadFileError(f"{path}: quantization_config with quant_method {shown(method)} is not supported; "
                           "use the model's f32, f16 or bf16 checkpoint")
    return importlib.import_module(f"genkit.models.{ARCHITECTURES[model_type]}")
