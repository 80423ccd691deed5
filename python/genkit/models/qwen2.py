"""Qwen2 and 2.5 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on q, k and v, and a window on some layers."""

from typing import TYPE_CHECKING

from genkit.models.config import MAX_LAYERS, MAX_POSITIONS
from genkit.models.llama import (LlamaConfig, Model, folds, layers_prefix, llama_config,  # noqa: F401 offered here too
                                 tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_windows(fields: "Fields") -> tuple[int, ...]:
    """Keys each layer sees, 0 for all: by layer_types, else the layers from max_window_layers on have the window."""
    layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    window = 0
    if fields.boolean("use_sliding_window", default=False):
        window = fields.integer("sliding_window", 1, MAX_POSITIONS, default=0)
    types = fields.optional("layer_types")
    if types is None:
        first = fields.integer("max_window_layers", 0, MAX_POSITIONS, default=28)
        return tuple(window if i >= first else 0 for i in range(layers))
    known = {"full_attention": 0, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != layers or \
            not all(isinstance(t, str) and t in known for t in types):
        raise fields.error("layer_types", f"{layers} of {', '.join(known)}, one a layer")
    if "sliding_attention" in types and not window:
        raise fields.error("layer_types", "full_attention only: use_sliding_window is off or sliding_window missing")
    return tuple(known[t] for t in types)


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> LlamaConfig:
    return llama_config(fields, checkpoint, qkv_bias=True, out_bias=False, mlp_bias=False,
                        windows=read_windows(fields))
