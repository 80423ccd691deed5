"""What GGUF calls the models here: tensor names, the order of rows, and the keys that stand for config.json. Both ways.

The architecture "llama" rotates neighbouring channels of a head where Hugging Face's files rotate its halves, so rows of q
and k lie in another order there (`interleave`); "qwen2" and "qwen3" rotate halves.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Mapping

import numpy as np

from genkit.checkpoints.files import shown, shown_path
from genkit.checkpoints.gguf_container import ARRAY, F32, I32, STRING, U32, Container, Key
from genkit.errors import BadFileError, UsageError

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields, GenerationDefaults
    from genkit.models.llama import LlamaConfig
    from genkit.rope import Rope

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # model_type -> theirs

GLOBAL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_GLOBAL_BACK = {theirs: ours for ours, theirs in GLOBAL.items()}
_LAYER_BACK = {theirs: ours for ours, theirs in LAYER.items()}
ROPE_FACTORS = "rope_freqs.weight"  # what llama.cpp divides each frequency by
SAMPLING = {"temperature": ("temp", F32), "top_k": ("top_k", I32), "top_p": ("top_p", F32), "min_p": ("min_p", F32),
            "repetition_penalty": ("penalty_repeat", F32)}  # generation_config.json -> general.sampling.*


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight. Raises BadFileError where llama.cpp has no name."""
    stem, _, kind = name.rpartition(".")
    if stem in GLOBAL:
        return f"{GLOBAL[stem]}.{kind}"
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    if not stem.startswith("model.layers.") or rest not in LAYER:
        raise BadFileError(f"tensor '{name}' has no name in llama.cpp")
    return f"blk.{layer}.{LAYER[rest]}.{kind}"


def tensor_name(name: str) -> str | None:
    """The reverse; None for a name that no model here has."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in _GLOBAL_BACK:
        return f"{_GLOBAL_BACK[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,4})\.([a-z_]+)", stem)
    if not match or match[2] not in _LAYER_BACK:
        return None
    return f"model.layers.{match[1]}.{_LAYER_BACK[match[2]]}.{kind}"


def is_permuted(architecture: str, name: str) -> bool:
    """Whether rows of this tensor (the name as Hugging Face has it) lie in another order."""
    return architecture == "llama" and (".q_proj." in name or ".k_proj." in name)


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (x0 x1 .. y0 y1 ..) to pairs (x0 y0 x1 y1 ..), as llama.cpp turns them."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def uninterleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """The reverse of interleave."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


# Writing.


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
        keys += [(prefix + "attn_factor", F32, rope.attention_factor / _yarn_scale(rope.factor)),
                 (prefix + "yarn_beta_fast", F32, rope.beta_fast), (prefix + "yarn_beta_slow", F32, rope.beta_slow)]
    if rope.type == "llama3":  # llama.cpp reads the tensor ROPE_FACTORS instead
        keys += [(prefix + "low_freq_factor", F32, rope.low_freq_factor),
                 (prefix + "high_freq_factor", F32, rope.high_freq_factor)]
    return keys


def _yarn_scale(factor: float) -> float:
    """What llama.cpp multiplies cosines and sines by for yarn, before attn_factor."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


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


# Reading.


class _Keys:
    def __init__(self, container: Container, architecture: str) -> None:
        self.container, self.prefix = container, architecture + "."

    def get(self, name: str, types: tuple[type, ...], default: Any = None) -> Any:
        value = self.container.keys.get(self.prefix + name)
        if value is None:
            return default
        if not isinstance(value, types) or isinstance(value, bool):
            what = "an array" if isinstance(value, (list, np.ndarray)) else shown(value)
            wanted = "text" if str in types else "one number for all layers"
            raise BadFileError(f"{shown_path(self.container.path)}: {self.prefix}{name} is {what}; expected {wanted}")
        return value

    def integer(self, name: str, default: int | None = None) -> int | None:
        return self.get(name, (int,), default)

    def number(self, name: str, default: float | None = None) -> float | None:
        return self.get(name, (int, float), default)


def architecture_of(container: Container) -> str:
    """Raises BadFileError for one that is not known."""
    value = container.keys.get("general.architecture")
    if value not in ARCHITECTURES.values():
        known = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise BadFileError(f"{shown_path(container.path)}: architecture {shown(value)} is not supported in GGUF; known: "
                           f"{known}")
    return value


def config_of(container: Container, factors: np.ndarray | None) -> dict[str, Any]:
    """config.json for what the keys say; values are checked where config.json's are. factors: ROPE_FACTORS, if there."""
    architecture = architecture_of(container)
    keys, tensors = _Keys(container, architecture), container.tensors
    if any(keys.integer(name) for name in ("expert_count", "leading_dense_block_count")):
        raise BadFileError(f"{shown_path(container.path)}: a mixture of experts ({architecture}.expert_count), which is not "
                           "supported")
    window = keys.integer("attention.sliding_window")
    heads, width = keys.integer("attention.head_count"), keys.integer("embedding_length")
    embedding = tensors.get("token_embd.weight")
    model_type = "mistral" if window and architecture == "llama" else architecture
    config: dict[str, Any] = {
        "model_type": model_type, "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "vocab_size": embedding.shape[0] if embedding else keys.integer("vocab_size"),
        "hidden_size": width, "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": keys.integer("attention.key_length", width // heads if width and heads else None),
        "max_position_embeddings": keys.integer("context_length"), "hidden_act": "silu",
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_output.bias" in tensors,
        "mlp_bias": any(f"blk.0.ffn_{part}.bias" in tensors for part in ("gate", "up", "down")),
    }
    if window:
        config |= {"sliding_window": window} if architecture == "llama" else {}
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(name, config["head_dim"]) != config["head_dim"]:
            raise BadFileError(f"{shown_path(container.path)}: {architecture}.{name} is {keys.integer(name)} and "
                               f"attention.key_length {config['head_dim']}; both must be the same")
    config["rope_parameters"] = _rope_of(container, keys, config, factors)
    return {key: value for key, value in config.items() if value is not None}


def _rope_of(container: Container, keys: _Keys, config: Mapping[str, Any], factors: np.ndarray | None) -> dict[str, Any]:
    prefix = "rope.scaling."
    where = f"{shown_path(container.path)}: {keys.prefix}{prefix}"
    kind = keys.get(prefix + "type", (str,), "linear")
    factor = keys.number(prefix + "factor", keys.number("rope.scale_linear"))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base", 10000.0)}
    original = keys.integer(prefix + "original_context_length")
    if factors is not None:
        rope |= {"rope_type": "llama3", "factor": float(f"{factors.max():.6g}"),
                 "original_max_position_embeddings": original or 8192,
                 "low_freq_factor": keys.number(prefix + "low_freq_factor", 1.0),
                 "high_freq_factor": keys.number(prefix + "high_freq_factor", 4.0)}
        _check_factors(container, config, rope, factors)
    elif kind == "linear":
        rope |= {"rope_type": "linear", "factor": factor} if factor not in (None, 0, 1) else {}
    elif kind == "yarn":
        if not isinstance(factor, (int, float)) or not 0 < factor < 1e6:
            raise BadFileError(f"{where}factor is {shown(factor)}; expected a number above 0")
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
                 "attention_factor": keys.number(prefix + "attn_factor", 1.0) * _yarn_scale(factor),
                 "beta_fast": keys.number(prefix + "yarn_beta_fast"), "beta_slow": keys.number(prefix + "yarn_beta_slow")}
    elif kind != "none":
        raise BadFileError(f"{where}type {shown(kind)} is not supported; known: none, linear, yarn")
    return {key: value for key, value in rope.items() if value is not None}


def _check_factors(container: Container, config: Mapping[str, Any], rope: Mapping[str, Any], factors: np.ndarray) -> None:
    """Whether Llama 3's formula gives these factors; its constants are not in files that others made."""
    from genkit.checkpoints.config import Fields
    from genkit.rope import read_rope

    fields = Fields(container.path, {"rope_parameters": dict(rope)})
    expected = None
    if np.isfinite(factors).all() and config["head_dim"] == 2 * len(factors):
        expected = rope_factors(read_rope(fields, config["head_dim"], 1))
    if expected is None or np.abs(expected - factors).max() > 1e-4 * factors.max():
        raise BadFileError(f"{shown_path(container.path)}: {ROPE_FACTORS} is not Llama 3's scaling with low_freq_factor "
                           f"{rope['low_freq_factor']:g}, high_freq_factor {rope['high_freq_factor']:g} and length "
                           f"{rope['original_max_position_embeddings']}; other ones are not supported")


def generation_of(container: Container) -> dict[str, Any]:
    """generation_config.json for what the keys say."""
    found: dict[str, Any] = {}
    eos = container.keys.get("genkit.eos_token_ids")
    if not isinstance(eos, np.ndarray):
        from genkit.text.gguf_vocab import stop_ids

        eos = stop_ids(container)
    found["eos_token_id"] = [int(i) for i in eos if isinstance(i, (int, np.integer))] or None
    found |= {f"{name}_token_id": container.keys.get(f"tokenizer.ggml.{key}_token_id")
              for name, key in (("bos", "bos"), ("pad", "padding"))}
    sampling = {name: container.keys.get(f"general.sampling.{key}") for name, (key, _) in SAMPLING.items()}
    if any(value is not None for value in sampling.values()):
        found |= {"do_sample": True} | sampling
    return {key: value for key, value in found.items() if value is not None}
