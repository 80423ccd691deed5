"""Qwen3-MoE (Yang et al. 2025, arXiv:2505.09388): Qwen3 with many small experts, none of them shared."""

from typing import TYPE_CHECKING

from genkit.models.config import MAX_LAYERS, MAX_POSITIONS
from genkit.models.llama import llama_config
from genkit.models.sparse import (Model, SparseConfig, expert_size, folds, layers_prefix,  # noqa: F401 offered here too
                                  sparse_config, sparse_layers, tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> SparseConfig:
    window = 0
    if fields.boolean("use_sliding_window", default=False):  # on all layers
        window = fields.integer("sliding_window", 1, MAX_POSITIONS, default=4096)
    base = llama_config(fields, checkpoint, mlp_bias=False, qk_norm=True,
                        windows=(window,) * fields.integer("num_hidden_layers", 1, MAX_LAYERS))
    # transformers 5 calls the number so, and has the old name still.
    count = "num_experts" if "num_local_experts" not in fields else "num_local_experts"
    return sparse_config(base, fields, count, expert_size=expert_size(fields, 768),
                         normalize=fields.boolean("norm_topk_prob", default=False),
                         sparse=sparse_layers(fields, base.layers))
