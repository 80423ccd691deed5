"""Qwen3 (Yang et al. 2025, arXiv:2505.09388), dense: Llama with an RMSNorm on each query and key head before RoPE."""

from typing import TYPE_CHECKING

from genkit.models.llama import (LlamaConfig, Model, folds, layers_prefix, llama_config,  # noqa: F401 offered here too
                                 tensor_shapes)
from genkit.models.qwen2 import read_windows

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> LlamaConfig:
    return llama_config(fields, checkpoint, mlp_bias=False, qk_norm=True, head_dim=128,
                        windows=read_windows(fields))
