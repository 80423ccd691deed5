"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with 8 experts on every layer, of which a row goes to 2."""

from typing import TYPE_CHECKING

from genkit.models.config import MAX_LAYERS, MAX_POSITIONS
from genkit.models.llama import llama_config
from genkit.models.sparse import (Model, SparseConfig, folds, layers_prefix, sparse_config,  # noqa: F401 offered here too
                                  tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> SparseConfig:
    layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    window = fields.integer("sliding_window", 1, MAX_POSITIONS, default=0)
    base = llama_config(fields, checkpoint, qkv_bias=False, out_bias=False, mlp_bias=False, windows=(window,) * layers)
    return sparse_config(base, fields, "num_local_experts", expert_size=base.intermediate_size, normalize=True,
                         module="block_sparse_moe", parts=("w1", "w3", "w2"))
