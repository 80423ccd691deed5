"""config.json and generation_config.json for what the keys of a GGUF file say, by architecture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Optional

import numpy as np

from genkit.checkpoints.files import shown, shown_path
from genkit.checkpoints.gguf_container import F32, I32, Container
from genkit.checkpoints.gguf_names import ARCHITECTURES, LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS, Architecture
from genkit.errors import BadFileError

SAMPLING = {"temperature": ("temp", F32), "top_k": ("top_k", I32), "top_p": ("top_p", F32), "min_p": ("min_p", F32),
            "repetition_penalty": ("penalty_repeat", F32)}  # generation_config.json -> general.sampling.*
MAX_LAYERS = 1 << 16  # of which lists are made here; models/ allow fewer

Tables = Mapping[str, np.ndarray]  # the tensors of gguf_names.TABLES that are there, f32 [n]


class Keys:
    """Getters of an architecture's keys. A number for each layer counts as one where all are the same."""

    def __init__(self, container: Container) -> None:
        self.container, self.tensors = container, container.tensors
        self.prefix = f"{container.keys['general.architecture']}."

    def error(self, words: str) -> BadFileError:
        return BadFileError(f"{shown_path(self.container.path)}: {words}")

    def get(self, name: str, types: tuple[type, ...], default: Any = None) -> Any:
        value = self.container.keys.get(self.prefix + name)
        if value is None:
            return default
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            value = value[0].item()
        if not isinstance(value, types) or isinstance(value, bool) != (types == (bool,)):
            what = "an array" if isinstance(value, (list, np.ndarray)) else shown(value)
            wanted = "text" if str in types else "true or false" if bool in types else "one number for all layers"
            raise self.error(f"{self.prefix}{name} is {what}; expected {wanted}")
        return value

    def integer(self, name: str, default: Optional[int] = None) -> Optional[int]:
        return self.get(name, (int,), default)

    def number(self, name: str, default: Optional[float] = None) -> Optional[float]:
        return self.get(name, (int, float), default)

    def boolean(self, name: str, default: bool) -> bool:
        return self.get(name, (bool,), default)

    def layers(self) -> int:
        count = self.integer("block_count")
        if count is None or not 0 <= count <= MAX_LAYERS:
            raise self.error(f"{self.prefix}block_count is {shown(count)}; expected 0 to {MAX_LAYERS}")
        return count

    def windows(self, period: int) -> dict[str, Any]:
        """sliding_window and layer_types: the last of `period` layers sees all, or as the file says."""
        window, layers = self.integer("attention.sliding_window"), self.layers()
        pattern = self.container.keys.get(self.prefix + "attention.sliding_window_pattern", period)
        if isinstance(pattern, np.ndarray) and pattern.dtype == np.uint8 and len(pattern) == layers:
            slides = pattern != 0
        elif type(pattern) is int and 0 < pattern <= MAX_LAYERS:
            slides = (np.arange(layers) + 1) % pattern != 0
        else:
            raise self.error(f"{self.prefix}attention.sliding_window_pattern is no number and no list of {layers} booleans")
        types = ["sliding_attention" if window and slide else "full_attention" for slide in slides]
        return {"sliding_window": window or None, "layer_types": types}


@dataclass(frozen=True)
class _Reading:
    """How config.json says it. names: fields of it -> keys; numbers and integers have the same types there and here. fixed:
    fields the architecture implies. more: fields that take computing."""

    eps: str = "rms_norm_eps"
    names: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    more: Callable[[Keys, dict[str, Any]], dict[str, Any]] = lambda keys, config: {}


def _gemma(large: int) -> Callable[[Keys, dict[str, Any]], dict[str, Any]]:
    """large: layers of the one size whose scale is of the width and not of the head."""

    def more(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
        width, heads = config.get("hidden_size"), config.get("num_attention_heads")
        scalar = width // heads if width and heads and keys.layers() == large else config.get("head_dim")
        found = {"query_pre_attn_scalar": scalar} | keys.windows(2 if large == 46 else 6)
        if large == 46:
            return found | {"attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
                            "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0)}
        return found | {"rope_local_base_freq": keys.number("rope.freq_base_swa", 10000.0),
                        "final_logit_softcapping": keys.number("final_logit_softcapping")}

    return more


def _biases(config_key: str, *tensors: str) -> Callable[[Keys, dict[str, Any]], dict[str, Any]]:
    return lambda keys, config: {config_key: any(f"blk.0.{name}.bias" in keys.tensors for name in tensors)}


def _llama(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    window = keys.integer("attention.sliding_window")
    return {"model_type": "mistral", "sliding_window": window} if window else {}


def _mixture(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    if keys.integer("leading_dense_block_count"):
        raise keys.error(f"{keys.prefix}leading_dense_block_count is not supported")
    return {}


def _phi3(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {"original_max_position_embeddings": keys.integer("rope.scaling.original_context_length"),
            "sliding_window": keys.integer("attention.sliding_window") or None}


def _olmo2(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "olmo3"} | keys.windows(4) if keys.integer("attention.sliding_window") else {}


def _stablelm(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in keys.tensors,
            "use_qkv_bias": "blk.0.attn_q.bias" in keys.tensors, "qk_layernorm": "blk.0.attn_q_norm.weight" in keys.tensors}


def _falcon(keys: Keys, config: dict[str, Any]) -> dict[str, Any]:
    groups = config.get("num_kv_heads")
    return {"new_decoder_architecture": groups != 1, "multi_query": groups == 1, "parallel_attn": True, "alibi": False,
            "num_ln_in_parallel_attn": 2 if "blk.0.attn_norm_2.weight" in keys.tensors else 1,
            "bias": "blk.0.attn_output.bias" in keys.tensors}


_EXPERTS = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
            "moe_intermediate_size": "expert_feed_forward_length"}
_LAYER_NORM = "attention.layer_norm_epsilon"
_READING = {
    "llama": _Reading(more=_llama),
    "mixtral": _Reading(names={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}, more=_mixture),
    "qwen2": _Reading(), "qwen3": _Reading(),
    "qwen2moe": _Reading(names=_EXPERTS | {"shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
                         fixed={"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}),
    "qwen3moe": _Reading(names=_EXPERTS, fixed={"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}),
    "olmoe": _Reading(names={"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
                             "clip_qkv": "attention.clamp_kqv"}, fixed={"norm_topk_prob": False}),
    "gemma": _Reading(fixed={"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": _Reading(fixed={"hidden_activation": "gelu_pytorch_tanh"}, more=_gemma(46)),
    "gemma3": _Reading(fixed={"hidden_activation": "gelu_pytorch_tanh"}, more=_gemma(62)),
    "phi2": _Reading("layer_norm_eps", fixed={"hidden_act": "gelu_new"}),
    "phi3": _Reading(more=_phi3),
    "starcoder2": _Reading("norm_epsilon", fixed={"hidden_act": "gelu_pytorch_tanh"}, more=_biases("use_bias", "attn_q")),
    "olmo2": _Reading(more=_olmo2),
    "granite": _Reading(names={"embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
                               "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale"}),
    "stablelm": _Reading("layer_norm_eps", more=_stablelm),
    "cohere2": _Reading("layer_norm_eps", {"logit_scale": "logit_scale"}, more=lambda keys, config: keys.windows(4)),
    "smollm3": _Reading(more=lambda keys, config: {
        "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(keys.layers())]}),
    "glm4": _Reading(),
    "gpt-oss": _Reading(names={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
                               "intermediate_size": "expert_feed_forward_length"}, more=lambda keys, config: keys.windows(2)),
    "gptneox": _Reading("layer_norm_eps", fixed={"hidden_act": "gelu"}, more=lambda keys, config: {
        "use_parallel_residual": keys.boolean("use_parallel_residual", True)}),
    "falcon": _Reading("layer_norm_epsilon", {"num_kv_heads": "attention.head_count_kv",
                                              "ffn_hidden_size": "feed_forward_length"}, {"activation": "gelu"}, _falcon),
    "bloom": _Reading("layer_norm_epsilon", {"n_layer": "block_count", "n_head": "attention.head_count"}),
    "gpt2": _Reading("layer_norm_epsilon", {"n_embd": "embedding_length", "n_layer": "block_count",
                                            "n_head": "attention.head_count", "n_positions": "context_length",
                                            "n_inner": "feed_forward_length"}, {"activation_function": "gelu_new"}),
}
_NO_ROPE = ("gpt2", "bloom")


def architecture_of(container: Container) -> str:
    """The key of ARCHITECTURES. Raises BadFileError for one that is not known."""
    value = container.keys.get("general.architecture")
    if not isinstance(value, str) or value not in ARCHITECTURES or value == "mixtral":
        known = ", ".join(sorted(set(ARCHITECTURES) - {"mixtral"}))
        raise BadFileError(f"{shown_path(container.path)}: architecture {shown(value)} is not supported in GGUF; known: "
                           f"{known}")
    return "mixtral" if value == "llama" and container.keys.get("llama.expert_count") else value


def config_of(container: Container, tables: Tables) -> dict[str, Any]:
    """config.json for what the keys say; values are checked where config.json's are. Raises BadFileError."""
    name = architecture_of(container)
    architecture, reading = ARCHITECTURES[name], _READING[name]
    keys, tensors = Keys(container), container.tensors
    if keys.integer("expert_count") and "ffn_gate_exps" not in architecture.layer:
        raise keys.error(f"a mixture of experts ({keys.prefix}expert_count), which is not supported")
    heads, width = keys.integer("attention.head_count"), keys.integer("embedding_length")
    embedding = tensors.get("token_embd.weight")
    config: dict[str, Any] = {
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0] if embedding else keys.integer("vocab_size"),
        "hidden_size": width, "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": keys.integer("attention.key_length", width // heads if width and heads else None),
        "max_position_embeddings": keys.integer("context_length"), "hidden_act": "silu",
        reading.eps: keys.number(_LAYER_NORM if reading.eps != "rms_norm_eps" else "attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors or "blk.0.attn_output.bias" in tensors
        or "blk.0.attn_qkv.bias" in tensors,
        "mlp_bias": any(f"blk.0.ffn_{part}.bias" in tensors for part in ("gate", "up", "down")),
    }
    if name in _NO_ROPE:
        for unused in ("head_dim", "num_key_value_heads"):
            del config[unused]
    config |= {field: keys.number(key) for field, key in reading.names.items()} | dict(reading.fixed)
    config |= reading.more(keys, config)
    if name not in _NO_ROPE:
        config |= _rope_of(keys, architecture, config, tables)
    config["architectures"] = ["".join(map(str.capitalize, config["model_type"].split("_"))) + "ForCausalLM"]
    return {key: value for key, value in config.items() if value is not None}


def _rope_of(keys: Keys, architecture: Architecture, config: Mapping[str, Any], tables: Tables) -> dict[str, Any]:
    """rope_parameters."""
    head_dim = config["head_dim"]
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise keys.error(f"{keys.prefix}attention.value_length is {keys.integer('attention.value_length')} and "
                         f"attention.key_length {head_dim}; both must be the same")
    dim = keys.integer("rope.dimension_count", head_dim)
    if dim != head_dim and (architecture.pairs or not head_dim or not 0 < dim <= head_dim):
        raise keys.error(f"{keys.prefix}rope.dimension_count is {dim} and attention.key_length {shown(head_dim)}; both must be "
                         "the same")
    prefix = "rope.scaling."
    kind = keys.get(prefix + "type", (str,), "linear")
    factor = keys.number(prefix + "factor", keys.number("rope.scale_linear"))
    original = keys.integer(prefix + "original_context_length")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base", 10000.0)}
    if head_dim and dim and not architecture.pairs:
        partial = dim / head_dim
        rope["partial_rotary_factor"] = partial if int(head_dim * partial) == dim else math.nextafter(partial, 2)
    if ROPE_FACTORS in tables:
        factors = tables[ROPE_FACTORS]
        rope |= {"rope_type": "llama3", "factor": float(f"{factors.max():.6g}"),
                 "original_max_position_embeddings": original or 8192,
                 "low_freq_factor": keys.number(prefix + "low_freq_factor", 1.0),
                 "high_freq_factor": keys.number(prefix + "high_freq_factor", 4.0)}
        _check_factors(keys, config, rope, factors)
    elif LONG_FACTORS in tables and SHORT_FACTORS in tables:
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": original,
                 "attention_factor": keys.number(prefix + "attn_factor")}
        for name, table in (("short_factor", SHORT_FACTORS), ("long_factor", LONG_FACTORS)):
            rope[name] = tables[table].tolist()
    elif kind == "linear":
        rope |= {"rope_type": "linear", "factor": factor} if factor not in (None, 0, 1) else {}
    elif kind == "yarn":
        if not isinstance(factor, (int, float)) or not 0 < factor < 1e6:
            raise keys.error(f"{keys.prefix}{prefix}factor is {shown(factor)}; expected a number above 0")
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
                 "attention_factor": keys.number(prefix + "attn_factor", 1.0) * yarn_scale(factor),
                 "beta_fast": keys.number(prefix + "yarn_beta_fast"), "beta_slow": keys.number(prefix + "yarn_beta_slow")}
        if architecture.model_type == "gpt_oss":  # no key says so
            rope["truncate"] = False
    elif kind != "none":
        raise keys.error(f"{keys.prefix}{prefix}type {shown(kind)} is not supported; known: none, linear, yarn")
    rope = {key: value for key, value in rope.items() if value is not None}
    if "rope_local_base_freq" in config:  # of the layers with a window
        local = {"rope_type": "default", "rope_theta": config["rope_local_base_freq"]}
        rope = {"full_attention": rope, "sliding_attention": local}
    return {"rope_parameters": rope}


def yarn_scale(factor: float) -> float:
    """What llama.cpp multiplies cosines and sines by for yarn, before attn_factor."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def _check_factors(keys: Keys, config: Mapping[str, Any], rope: Mapping[str, Any], factors: np.ndarray) -> None:
    """Whether Llama 3's formula gives these factors; its constants are not in files that others made."""
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.gguf_model import rope_factors
    from genkit.rope import read_rope

    fields = Fields(keys.container.path, {"rope_parameters": dict(rope)})
    expected = None
    if np.isfinite(factors).all() and config["head_dim"] == 2 * len(factors):
        expected = rope_factors(read_rope(fields, config["head_dim"], 1))
    if expected is None or np.abs(expected - factors).max() > 1e-4 * factors.max():
        raise keys.error(f"{ROPE_FACTORS} is not Llama 3's scaling with low_freq_factor "
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
