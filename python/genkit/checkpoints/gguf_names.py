"""The architectures of GGUF that are known here: what their tensors are called in Hugging Face's files, and where rows of
matrices lie in another order.

llama.cpp's "llama" and what derives from it rotate neighbouring channels of a head where Hugging Face's files rotate its
halves, so rows of q and k lie in another order there. Fused matrices that Hugging Face's files interleave by head lie as all
of q, all of k, all of v. Gemma's norms lie with one added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Mapping, Optional

import numpy as np

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields

ROPE_FACTORS = "rope_freqs.weight"  # what llama.cpp divides each frequency by
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
TABLES = (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)  # that are no weights

WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LAYER = ATTENTION | GATED | {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
EXPERTS = {f"ffn_{part}_exps": f"mlp.experts.{{}}.{part}_proj" for part in ("gate", "up", "down")}
SANDWICH = {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm"}


@dataclass(frozen=True)
class Architecture:
    """model_type as config.json has it. whole and layer: names of tensors, theirs -> ours without ".weight" and ".bias"; in a
    matrix for all experts, [experts, n, k], {} stands for the expert. prefix: what layers' names begin with."""

    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    whole: Mapping[str, str] = field(default_factory=lambda: WHOLE)
    prefix: str = "model.layers."
    pairs: bool = False  # rows of q and k are interleaved
    fused: str = ""  # the fused matrix (our name) whose rows lie by head in Hugging Face's files
    plus_one: bool = False  # norms lie with one added
    transposed: bool = False  # Hugging Face's matrices in layers are [in, out]


_NEOX_MLP = {"ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}
ARCHITECTURES = {
    "llama": Architecture("llama", pairs=True),  # and mistral
    "mixtral": Architecture("mixtral", LAYER | {
        "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
        "ffn_up_exps": "block_sparse_moe.experts.{}.w3", "ffn_down_exps": "block_sparse_moe.experts.{}.w2"}, pairs=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen2moe": Architecture("qwen2_moe", LAYER | EXPERTS | {
        "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
        **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}}),
    "qwen3moe": Architecture("qwen3_moe", LAYER | EXPERTS | {"ffn_gate_inp": "mlp.gate"}),
    "olmoe": Architecture("olmoe", LAYER | EXPERTS | {"ffn_gate_inp": "mlp.gate"}),
    "gemma": Architecture("gemma", plus_one=True),
    "gemma2": Architecture("gemma2", LAYER | SANDWICH, plus_one=True),
    "gemma3": Architecture("gemma3_text", LAYER | SANDWICH, plus_one=True),
    "phi2": Architecture("phi", LAYER | {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
                         WHOLE | {"output_norm": "model.final_layernorm"}),
    "phi3": Architecture("phi3", LAYER | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "starcoder2": Architecture("starcoder2", LAYER | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    "olmo2": Architecture("olmo2", ATTENTION | GATED | {"post_attention_norm": "post_attention_layernorm",
                                                        "post_ffw_norm": "post_feedforward_layernorm"}),
    "granite": Architecture("granite", pairs=True),
    "stablelm": Architecture("stablelm"),
    "cohere2": Architecture("cohere2"),
    "smollm3": Architecture("smollm3", pairs=True),
    "glm4": Architecture("glm4", LAYER | {"ffn_up": "mlp.gate_up_proj", "post_attention_norm": "post_self_attn_layernorm",
                                          "post_ffw_norm": "post_mlp_layernorm"}),
    "gpt-oss": Architecture("gpt_oss", ATTENTION | EXPERTS | {
        "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm", "attn_sinks": "self_attn.sinks",
        "ffn_gate_inp": "mlp.router"}),
    "gptneox": Architecture(
        "gpt_neox", {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
                     "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense", **_NEOX_MLP},
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
        "gpt_neox.layers.", fused="attention.query_key_value"),
    "falcon": Architecture(
        "falcon", {"attn_norm": "input_layernorm", "attn_norm_2": "ln_attn", "attn_qkv": "self_attention.query_key_value",
                   "attn_output": "self_attention.dense", **_NEOX_MLP},
        {"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head"},
        "transformer.h.", fused="self_attention.query_key_value"),
    "bloom": Architecture(
        "bloom", {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
                  "attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense", **_NEOX_MLP},
        {"token_embd": "transformer.word_embeddings", "token_embd_norm": "transformer.word_embeddings_layernorm",
         "output_norm": "transformer.ln_f", "output": "lm_head"},
        "transformer.h.", fused="self_attention.query_key_value"),
    "gpt2": Architecture(
        "gpt2", {"attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
                 "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
         "output": "lm_head"}, "transformer.h.", transposed=True),
}
_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.([a-z0-9_]+)")


def tensor_name(architecture: Architecture, name: str) -> Optional[str]:
    """blk.3.ffn_up.weight -> model.layers.3.mlp.up_proj.weight, with {} for the expert; None for a name that no such model
    has."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in architecture.whole:
        return f"{architecture.whole[stem]}.{kind}"
    match = _NAME.fullmatch(stem)
    if not match or match[2] not in architecture.layer:
        return None
    ours = f"{architecture.prefix}{match[1]}.{architecture.layer[match[2]]}"
    return ours if ours.endswith(".sinks") else f"{ours}.{kind}"


@dataclass(frozen=True)
class Order:
    """Where rows of a matrix lie in the file: those of a head, or of what goes with one, together. Our rows [i * rows, ...)
    begin at row starts[i] there, and are paired (x0 y0 x1 y1 .., ours x0 x1 .. y0 y1 ..) or as they are."""

    rows: int
    starts: np.ndarray
    paired: bool


def row_order(architecture: Architecture, name: str, fields: "Fields", rows: int) -> Optional[Order]:
    """For a matrix or bias by our name; None where rows lie as they do here. Raises ValueError for rows that do not fit the
    heads, and BadFileError."""
    heads = fields.integer("n_head" if "n_head" in fields else "num_attention_heads", 1, 1 << 16)
    if architecture.pairs and (".q_proj." in name or ".k_proj." in name):
        count = heads if ".q_proj." in name else fields.integer("num_key_value_heads", 1, 1 << 16)
        if rows % (2 * count):
            raise ValueError(f"has no even number of rows for each of {count} heads")
        return Order(rows // count, np.arange(count) * (rows // count), True)
    if architecture.fused and f".{architecture.fused}." in name:
        kv_heads = fields.integer("num_kv_heads", 1, 1 << 16, default=heads)
        if heads % kv_heads or rows % (heads + 2 * kv_heads):
            raise ValueError(f"has no whole rows for {heads} heads of queries and twice {kv_heads} of keys and values")
        queries = np.arange(heads).reshape(kv_heads, -1)
        keys = heads + np.arange(kv_heads)[:, None]
        size = rows // (heads + 2 * kv_heads)
        return Order(size, np.concatenate([queries, keys, keys + kv_heads], 1).reshape(-1) * size, False)
    return None
