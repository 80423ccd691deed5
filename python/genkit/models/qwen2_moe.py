"""Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024, arXiv:2407.10671): Qwen2 with many small experts, and a shared one behind a
sigmoid gate."""

from typing import TYPE_CHECKING

from genkit.models.config import MAX_LAYERS, MAX_POSITIONS, MAX_WIDTH
from genkit.models.llama import llama_config
from genkit.models.qwen2 import read_windows
from genkit.models.sparse import (Model, SparseConfig, expert_size, folds, layers_prefix,  # noqa: F401 offered here too
                                  sparse_config, sparse_layers, tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def windows(fields: "Fields") -> tuple[int, ...]:
    """As Qwen2's, but without layer_types it is every other one of the first max_window_layers that has the window."""
    if fields.optional("layer_types") is not None or not fields.boolean("use_sliding_window", default=False):
        return read_windows(fields)
    window = fields.integer("sliding_window", 1, MAX_POSITIONS, default=4096)
    last = fields.integer("max_window_layers", 0, MAX_POSITIONS, default=28)
    return tuple(window if i % 2 == 0 and i < last else 0 for i in range(fields.integer("num_hidden_layers", 1, MAX_LAYERS)))


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> SparseConfig:
    base = llama_config(fields, checkpoint, qkv_bias=fields.boolean("qkv_bias", default=True), out_bias=False,
                        mlp_bias=False, windows=windows(fields))
    return sparse_config(base, fields, "num_experts", expert_size=expert_size(fields, 1408),
                         normalize=fields.boolean("norm_topk_prob", default=False),
                         sparse=sparse_layers(fields, base.layers),
                         shared_size=fields.integer("shared_expert_intermediate_size", 1, MAX_WIDTH, default=5632))
