"""Every architecture in awkward shapes, and the sizes of published models. Needs nothing but Python: test_parity.py runs it
against transformers, docs/models.md is made from it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A small model: keys of config.json, the type of its weights on disk, its largest shard."""

    model_type: str
    sizes: dict[str, Any] = field(default_factory=dict)
    dtype: str = "f32"
    shard: str = "2GB"


def make_config(case: Case):
    """transformers' configuration of a case."""
    from transformers import AutoConfig

    return AutoConfig.for_model(case.model_type, **case.sizes)


def llama(dtype="f32", shard="2GB", **changes):
    sizes = dict(vocab_size=1003, hidden_size=112, intermediate_size=173, num_hidden_layers=2, num_attention_heads=14,
                 num_key_value_heads=2, head_dim=80, max_position_embeddings=512, rms_norm_eps=1e-5)
    return Case("llama", sizes | changes, dtype, shard)


def llama_rope(positions=512, **rope):
    rope.setdefault("rope_theta", 10000.0)
    return llama(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=24, vocab_size=509,
                 max_position_embeddings=positions, rope_parameters=rope)


def mistral(dtype="f32", **changes):
    sizes = dict(vocab_size=1003, hidden_size=96, intermediate_size=151, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=2, head_dim=80, max_position_embeddings=512, sliding_window=50)
    return Case("mistral", sizes | changes, dtype)


def qwen2(dtype="f32", **changes):
    sizes = dict(vocab_size=1003, hidden_size=112, intermediate_size=173, num_hidden_layers=3, num_attention_heads=7,
                 num_key_value_heads=1, max_position_embeddings=512, rope_parameters={"rope_theta": 1e6})
    return Case("qwen2", sizes | changes, dtype)


def qwen3(dtype="f32", shard="2GB", **changes):
    sizes = dict(vocab_size=1003, hidden_size=72, intermediate_size=139, num_hidden_layers=3, num_attention_heads=14,
                 num_key_value_heads=2, head_dim=80, max_position_embeddings=512)
    return Case("qwen3", sizes | changes, dtype, shard)


def gpt2(dtype="f32", shard="2GB", **changes):
    sizes = dict(vocab_size=1003, n_embd=240, n_layer=2, n_head=3, n_positions=256, n_inner=301, bos_token_id=None,
                 eos_token_id=0)
    return Case("gpt2", sizes | changes, dtype, shard)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CASES = {
    "llama-head80-7-a-kv-head": llama(),
    "llama-head96-multi-query-tied": llama(
        "bf16", hidden_size=100, num_attention_heads=4, num_key_value_heads=1, head_dim=96, tie_word_embeddings=True),
    "llama-multi-head-biases-sharded": llama(
        "f16", "100KB", hidden_size=96, num_attention_heads=6, num_key_value_heads=6, head_dim=None, attention_bias=True,
        mlp_bias=True, rms_norm_eps=0.1),
    "llama-gelu": llama("bf16", hidden_act="gelu", vocab_size=33),
    "llama-gelu-tanh": llama(shard="200KB", hidden_act="gelu_pytorch_tanh", intermediate_size=33),
    "llama-one-layer": llama(num_hidden_layers=1, head_dim=6, vocab_size=65),
    "llama-theta": llama_rope(rope_type="default", rope_theta=500000.0),
    "llama-linear": llama_rope(128, rope_type="linear", factor=4.0),
    "llama-dynamic": llama_rope(100, rope_type="dynamic", factor=3.0),
    "llama-dynamic-grows-while-writing": llama_rope(170, rope_type="dynamic", factor=2.5),
    "llama-llama3": llama_rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                               original_max_position_embeddings=60),
    "llama-yarn": llama_rope(**YARN),
    "llama-yarn-own-length": llama_rope(100, rope_type="yarn", factor=3.0),
    "llama-yarn-mscale": llama_rope(**YARN, mscale=1.0, mscale_all_dim=0.7, beta_fast=2.0, beta_slow=0.5),
    "llama-yarn-attention-factor": llama_rope(**YARN, attention_factor=1.4, truncate=False),
    "mistral-window": mistral(),
    # Not 1: transformers' cache then keeps every key, and its cached text differs from its own without a cache.
    "mistral-window-2": mistral(sliding_window=2),
    "mistral-window-of-a-page": mistral("bf16", sliding_window=64, head_dim=None),
    "mistral-no-window": mistral("f16", sliding_window=None, num_key_value_heads=1),
    "qwen2": qwen2("bf16"),
    "qwen2-window-on-late-layers": qwen2(use_sliding_window=True, sliding_window=40, max_window_layers=1),
    "qwen2-layer-types-tied-yarn": qwen2(
        "f16", num_attention_heads=8, num_key_value_heads=8, use_sliding_window=True, sliding_window=33,
        tie_word_embeddings=True, rope_parameters={"rope_theta": 1e6} | YARN,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "qwen3": qwen3(),
    "qwen3-tied-biases-default-head": qwen3(
        "bf16", "150KB", num_attention_heads=3, num_key_value_heads=1, head_dim=128, attention_bias=True,
        rms_norm_eps=0.1, tie_word_embeddings=True),
    "qwen3-layer-types": qwen3(use_sliding_window=True, sliding_window=29, num_attention_heads=4,
                               layer_types=["full_attention", "sliding_attention", "full_attention"]),
    "gpt2": gpt2(layer_norm_epsilon=0.1),
    "gpt2-untied-by-layer": gpt2("bf16", "300KB", tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True,
                                 n_layer=3),
    "gpt2-unscaled-gelu": gpt2("f16", n_embd=60, n_head=5, n_inner=None, scale_attn_weights=False,
                               activation_function="gelu"),
}

# The published sizes, from the models' own config.json files.
PUBLISHED = {
    "llama-2-7b": ("llama", dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000,
                                 num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096)),
    "llama-3.2-1b": ("llama", dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, vocab_size=128256,
                                   num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                                   tie_word_embeddings=True, max_position_embeddings=131072,
                                   rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
                                                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                    "original_max_position_embeddings": 8192})),
    "tinyllama-1.1b": ("llama", dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, vocab_size=32000,
                                     num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048)),
    "smollm2-135m": ("llama", dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152,
                                   num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
                                   max_position_embeddings=8192)),
    "mistral-7b-v0.1": ("mistral", dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                                        vocab_size=32000, num_attention_heads=32, num_key_value_heads=8,
                                        sliding_window=4096, max_position_embeddings=32768)),
    "qwen2.5-0.5b": ("qwen2", dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, vocab_size=151936,
                                   num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
                                   max_window_layers=24, max_position_embeddings=32768)),
    "qwen3-0.6b": ("qwen3", dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, vocab_size=151936,
                                 num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
                                 max_position_embeddings=40960)),
    "gpt2": ("gpt2", {}),
    "gpt2-xl": ("gpt2", dict(n_embd=1600, n_head=25, n_layer=48)),
}
