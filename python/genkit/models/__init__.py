"""Architectures, one file each, found by config.json's model_type.

A model file offers `read_config(fields, checkpoint)`, a ModelConfig; `tensor_shapes(config)`, every tensor the checkpoint
must hold; `layers_prefix(config)`, what the names of the layers' begin with; `folds(config, i)` for quant/; and `Model`.
decoder.py has all but read_config for whatever its blocks can say. Adding one: a file here, a line below, a parity test.
"""

import functools
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from genkit.errors import BadFileError
from genkit.nn import Weights

if TYPE_CHECKING:
    from genkit._core import Tensor, WeightFormat
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint
    from genkit.kv_cache import KVCache, Step
    from genkit.models.config import Fold, ModelConfig

# model_type -> module
ARCHITECTURES = {
    "bloom": "bloom", "cohere2": "cohere2", "falcon": "falcon", "gemma": "gemma", "gemma2": "gemma", "gemma3": "gemma",
    "gemma3_text": "gemma", "glm": "glm4", "glm4": "glm4", "gpt2": "gpt2", "gpt_neox": "gpt_neox", "granite": "granite",
    "llama": "llama", "mistral": "llama", "olmo2": "olmo2", "phi": "phi", "phi3": "phi3", "qwen2": "qwen2", "qwen3": "qwen3",
    "deepseek_v3": "deepseek_v3", "gpt_oss": "gpt_oss", "mixtral": "mixtral", "olmoe": "olmoe", "qwen2_moe": "qwen2_moe",
    "qwen3_moe": "qwen3_moe",
    "smollm3": "smollm3", "stablelm": "stablelm", "starcoder2": "starcoder2",
}


class Model(Protocol):
    """Made of a configuration and Weights, without its blocks: `blocks` are what `block(i)` gives for each layer. Called, it
    gives logits f32 [rows asked for, vocab_size]: `start`, the blocks one after the other with what is `shared`, `finish`."""

    config: "ModelConfig"
    blocks: "list[Any]"

    def block(self, i: int) -> "Any": ...
    def start(self, step: "Step") -> "Tensor": ...
    def shared(self, step: "Step") -> "tuple[Tensor, ...]": ...
    def finish(self, x: "Tensor", step: "Step") -> "Tensor": ...
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
    model = open_model(fields, checkpoint, functools.partial(Weights, format=format))
    model.blocks = [model.block(i) for i in range(model.config.layers)]
    return model


def open_model(fields: "Fields", checkpoint: "Checkpoint", weights: "Callable[..., Weights]" = Weights) -> Model:
    """The same without its blocks, its weights read by another kind of Weights."""
    module, config = _module(fields), read_model_config(fields, checkpoint)
    return module.Model(config, weights(fields, checkpoint, module.tensor_shapes(config), module.layers_prefix(config)))


def tensor_shapes(fields: "Fields", config: "ModelConfig") -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this model holds."""
    return _module(fields).tensor_shapes(config)


def unread(fields: "Fields", checkpoint: "Checkpoint") -> list[str]:
    """What the model leaves alone in its files, by the first word of the tensors' names: a vision tower, say."""
    shapes = _module(fields).tensor_shapes(read_model_config(fields, checkpoint))
    return sorted({name.removeprefix("model.").split(".")[0] for name in checkpoint.tensors
                   if name not in shapes and not name.endswith((*Weights.BUFFERS, "lm_head.weight"))})


def folds(fields: "Fields", config: "ModelConfig", i: int) -> "list[Fold]":
    """Where inputs of layer i's products can be scaled without a cost."""
    return _module(fields).folds(config, i)


def _module(fields: "Fields") -> ModuleType:
    from genkit.checkpoints.files import shown, shown_path

    path, model_type = shown_path(fields.path), fields.model_type
    if model_type not in ARCHITECTURES:
        raise BadFileError(f"{path}: architecture {shown(model_type)} is not supported; "
                           f"known: {', '.join(sorted(ARCHITECTURES))}")
    return importlib.import_module(f"genkit.models.{ARCHITECTURES[model_type]}")
