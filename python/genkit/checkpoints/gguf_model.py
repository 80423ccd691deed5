"""GGUF as it is written: tensor names, the order of rows, and the keys that stand for config.json. gguf_config.py reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.checkpoints.files import shown_path
from genkit.checkpoints.gguf_config import SAMPLING, yarn_scale
from genkit.checkpoints.gguf_container import ARRAY, F32, STRING, U32, Key
from genkit.checkpoints.gguf_names import LAYER as _LAYER, ROPE_FACTORS, WHOLE  # noqa: F401 one offered here too
from genkit.errors import BadFileError, UsageError

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields, GenerationDefaults
    from genkit.models.llama import LlamaConfig
    from genkit.rope import Rope

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # model_type -> theirs

GLOBAL = {ours: theirs for theirs, ours in WHOLE.items()}
LAYER = {ours: theirs for theirs, ours in _LAYER.items()}


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight. Raises BadFileError where llama.cpp has no name."""
    stem, _, kind = name.rpartition(".")
    if stem in GLOBAL:
        return f"{GLOBAL[stem]}.{kind}"
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    if not stem.startswith("model.layers.") or rest not in LAYER:
        raise BadFileError(f"tensor '{name}' has no name in llama.cpp")
    return f"blk.{layer}.{LAYER[rest]}.{kind}"


def is_permuted(architecture: str, name: str) -> bool:
    """Whether rows of this tensor (the name as Hugging Face has it) lie in another order."""
    return architecture == "llama" and (".q_proj." in name or ".k_proj." in name)


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (x0 x1 .. y0 y1 ..) to pairs (x0 y0 x1 y1 ..), as llama.cpp turns them."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def check_model(fields: "Fields", config: Any) -> None:
    """Raises UsageError for a model llama.cpp would not compute as it is meant."""
    where = shown_path(fields.path)
    if config.model_type not in ARCHITECTURES:
        raise UsageError(f"{where}: GGUF is written for {', '.join(sorted(ARCHITECTURES))} only, not for {config.model_type}")
    c: "LlamaConfig" = config
    architecture = ARCHITECTURES[c.model_type]
    troubles = {
        f"rope_type {c.rope.type!r}": c.rope.type in ("dynamic", "longrope") or (c.rope.type == "yarn" and not c.rope.truncate),
        f"beta_fast {c.rope.beta_fast:g} and beta_slow {c.rope.beta_slow:g}":
            (c.rope.beta_fast, c.rope.beta_slow) != (32, 1),
        f"rotation of {c.rope.dim} of {c.head_dim} channels": c.rope.dim != c.head_dim,
        f"hidden_act {c.activation!r}": c.activation != "silu",
        f"{c.heads} heads of {c.head_dim} channels for a hidden_size of {c.hidden_size}":
            architecture == "qwen2" and c.heads * c.head_dim != c.hidden_size,
        "sliding_window": architecture != "llama" and any(c.windows),
        "a bias on attention": architecture == "qwen3" and (c.qkv_bias or c.out_bias),
    }
    for what, there in troubles.items():
        if there:
            raise UsageError(f"{where}: llama.cpp's {architecture} has no {what}; use another --format")


def config_keys(c: "LlamaConfig") -> list[Key]:
    """Sizes and constants, as llama.cpp's own converter names them."""
    a = ARCHITECTURES[c.model_type]
    keys: list[Key] = [
        (f"{a}.block_count", U32, c.layers), (f"{a}.context_length", U32, c.rope.positions),
        (f"{a}.embedding_length", U32, c.hidden_size), (f"{a}.feed_forward_length", U32, c.intermediate_size),
        (f"{a}.attention.head_count", U32, c.heads), (f"{a}.attention.head_count_kv", U32, c.kv_heads),
        (f"{a}.attention.key_length", U32, c.head_dim), (f"{a}.attention.value_length", U32, c.head_dim),
        (f"{a}.attention.layer_norm_rms_epsilon", F32, c.norm_eps), (f"{a}.vocab_size", U32, c.vocab_size),
        (f"{a}.rope.dimension_count", U32, c.rope.dim), (f"{a}.rope.freq_base", F32, c.rope.theta)]
    if any(c.windows):
        keys.append((f"{a}.attention.sliding_window", U32, c.windows[0]))  # llama.cpp's llama sees all, whatever it says
    return keys + _rope_keys(f"{a}.rope.scaling.", c.rope)


def _rope_keys(prefix: str, rope: "Rope") -> list[Key]:
    keys: list[Key] = []
    if rope.type in ("linear", "yarn"):
        keys += [(prefix + "type", STRING, rope.type), (prefix + "factor", F32, rope.factor)]
    if rope.type in ("yarn", "llama3"):
        keys.append((prefix + "original_context_length", U32, rope.original_positions))
    if rope.type == "yarn":
        keys += [(prefix + "attn_factor", F32, rope.attention_factor / yarn_scale(rope.factor)),
                 (prefix + "yarn_beta_fast", F32, rope.beta_fast), (prefix + "yarn_beta_slow", F32, rope.beta_slow)]
    if rope.type == "llama3":  # llama.cpp reads the tensor ROPE_FACTORS instead
        keys += [(prefix + "low_freq_factor", F32, rope.low_freq_factor),
                 (prefix + "high_freq_factor", F32, rope.high_freq_factor)]
    return keys


def rope_factors(rope: "Rope") -> np.ndarray | None:
    """ROPE_FACTORS, float32 [dim / 2], for the scaling that llama.cpp has no keys for."""
    if rope.type != "llama3":
        return None
    from dataclasses import replace

    return (replace(rope, type="default").inv_freq() / rope.inv_freq()).astype(np.float32)


def generation_keys(defaults: "GenerationDefaults") -> list[Key]:
    keys: list[Key] = []
    if defaults.eos_token_ids:  # the standard keys name one
        keys.append(("genkit.eos_token_ids", ARRAY, (U32, defaults.eos_token_ids)))
    if defaults.do_sample:
        for name, (key, kind) in SAMPLING.items():
            value = getattr(defaults, name)
            if name == "temperature" and value is None:
                value = 1.0  # some key must say that there is sampling
            if value is not None:
                keys.append((f"general.sampling.{key}", kind, value))
    return keys
