"""Qwen3 (Yang et al. 2025, arXiv:2505.09388), dense: Llama with an RMSNorm on each query and key head before RoPE."""

from typing import TYPE_CHECKING

from genkit.models.llama import LlamaModel, build, read_config
from genkit.models.qwen2 import read_windows

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def load(fields: "Fields", checkpoint: "Checkpoint") -> LlamaModel:
    config = read_config(fields, checkpoint, mlp_bias=False, qk_norm=True, head_dim=128,
                         windows=read_windows(fields))
    return build(fields, checkpoint, config)
