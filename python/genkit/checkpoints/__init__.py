"""What is on disk -> named tensors: model folders and hub names, their configuration and their weights."""

from genkit.checkpoints.config import (
    Fields,
    GenerationDefaults,
    check_token_ids,
    generation_defaults,
    read_config,
    read_json,
    rope_parameters,
)
from genkit.checkpoints.hub import resolve
from genkit.checkpoints.safetensors import Checkpoint, TensorInfo, check_memory, open_checkpoint

__all__ = ["Checkpoint", "Fields", "GenerationDefaults", "TensorInfo", "check_memory", "check_token_ids",
           "generation_defaults", "open_checkpoint", "read_config", "read_json", "resolve", "rope_parameters"]
