"""Every architecture in awkward shapes, and the sizes of published models. Needs nothing but Python: test_parity.py runs it
against transformers, docs/models.md is made from it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A small model: keys of config.json, the type of its weights on disk, its largest shard, and how many of 64 greedy
    tokens have to differ for it to count as lively (models with little sense of position repeat themselves)."""

    model_type: str
    sizes: dict[str, Any] = field(default_factory=dict)
    dtype: str = "f32"
    shard: str = "2GB"
    distinct: int = 16


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


def small(model_type, dtype="f32", shard="2GB", distinct=4, **changes):
    """A case of any other architecture, over keys that most have."""
    sizes = dict(vocab_size=503, hidden_size=96, intermediate_size=151, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=2, max_position_embeddings=512)
    given = {key: value for key, value in (sizes | changes).items() if value is not ...}
    return Case(model_type, given, dtype, shard, distinct)


def bloom(dtype="f32", **changes):
    return Case("bloom", dict(vocab_size=503, hidden_size=96, n_layer=2, n_head=6) | changes, dtype, distinct=2)


def falcon(dtype="f32", **changes):
    sizes = dict(hidden_size=112, num_attention_heads=7, num_key_value_heads=..., intermediate_size=...)
    return small("falcon", dtype, **sizes | changes)


def longrope(pairs, **changes):
    return {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1 + 0.05 * i for i in range(pairs)],
            "long_factor": [2 + 0.9 * i for i in range(pairs)]} | changes


def mixtral(dtype="f32", shard="2GB", **changes):
    sizes = dict(vocab_size=1003, hidden_size=96, intermediate_size=75, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=2, head_dim=20, max_position_embeddings=512, num_local_experts=5, num_experts_per_tok=2)
    return Case("mixtral", sizes | changes, dtype, shard)


def qwen2_moe(dtype="f32", **changes):
    sizes = dict(vocab_size=1003, hidden_size=112, intermediate_size=83, num_hidden_layers=3, num_attention_heads=7,
                 num_key_value_heads=1, max_position_embeddings=512, num_experts=9, num_experts_per_tok=4,
                 moe_intermediate_size=35, shared_expert_intermediate_size=61)
    return Case("qwen2_moe", sizes | changes, dtype)


def qwen3_moe(dtype="f32", **changes):
    sizes = dict(vocab_size=1003, hidden_size=72, intermediate_size=91, num_hidden_layers=3, num_attention_heads=6,
                 num_key_value_heads=2, head_dim=40, max_position_embeddings=512, num_experts=17, num_experts_per_tok=3,
                 moe_intermediate_size=33)
    return Case("qwen3_moe", sizes | changes, dtype)


def olmoe(dtype="f32", **changes):
    sizes = dict(vocab_size=1003, hidden_size=96, intermediate_size=50, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=3, max_position_embeddings=512, num_experts=7, num_experts_per_tok=7, pad_token_id=1,
                 eos_token_id=2)
    return Case("olmoe", sizes | changes, dtype)


def gpt_oss(dtype="f32", shard="2GB", **changes):
    sizes = dict(vocab_size=1003, hidden_size=80, intermediate_size=50, num_hidden_layers=3, num_attention_heads=6,
                 num_key_value_heads=2, head_dim=24, max_position_embeddings=512, num_local_experts=9, num_experts_per_tok=4,
                 sliding_window=33, rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 8.0,
                                                     "original_max_position_embeddings": 64, "truncate": False})
    return Case("gpt_oss", sizes | changes, dtype, shard)


def deepseek_v3(dtype="f32", shard="2GB", **changes):
    sizes = dict(vocab_size=1003, hidden_size=96, intermediate_size=131, moe_intermediate_size=27, num_hidden_layers=3,
                 num_attention_heads=5, num_key_value_heads=5, n_routed_experts=12, num_experts_per_tok=4, n_group=4,
                 topk_group=2, first_k_dense_replace=1, kv_lora_rank=36, q_lora_rank=44, qk_rope_head_dim=12,
                 qk_nope_head_dim=22, v_head_dim=18, max_position_embeddings=512)
    return Case("deepseek_v3", sizes | changes, dtype, shard)


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
    "gpt_oss": gpt_oss(),
    "gpt_oss-one-kv-head-without-biases": gpt_oss(
        "bf16", "90KB", num_key_value_heads=1, attention_bias=False, num_local_experts=4, num_experts_per_tok=1,
        layer_types=["full_attention", "sliding_attention", "full_attention"]),
    "deepseek_v3": deepseek_v3(),
    "deepseek_v3-plain-queries-yarn": deepseek_v3(
        "bf16", q_lora_rank=None, n_group=1, topk_group=1, n_shared_experts=2, norm_topk_prob=False, rope_interleave=False,
        attention_bias=True, first_k_dense_replace=0, v_head_dim=34,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
                         "mscale": 1.0, "mscale_all_dim": 0.8}),
    "mixtral": mixtral(),
    "mixtral-window-one-expert-tied": mixtral("bf16", "90KB", sliding_window=31, num_local_experts=1, num_experts_per_tok=1,
                                              tie_word_embeddings=True, head_dim=None),
    "qwen2_moe": qwen2_moe(),
    "qwen2_moe-some-layers-normalized-windows": qwen2_moe(
        "bf16", num_hidden_layers=4, decoder_sparse_step=2, norm_topk_prob=True, use_sliding_window=True, sliding_window=40,
        max_window_layers=3),
    "qwen3_moe": qwen3_moe(norm_topk_prob=True),
    "qwen3_moe-mlp-only-layers": qwen3_moe("f16", mlp_only_layers=[1], use_sliding_window=True, sliding_window=29),
    "olmoe": olmoe(),
    "olmoe-normalized": olmoe("bf16", num_experts=64, num_experts_per_tok=8, norm_topk_prob=True, num_key_value_heads=6),
    "gpt2": gpt2(layer_norm_epsilon=0.1),
    "gpt2-untied-by-layer": gpt2("bf16", "300KB", tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True,
                                 n_layer=3),
    "gpt2-unscaled-gelu": gpt2("f16", n_embd=60, n_head=5, n_inner=None, scale_attn_weights=False,
                               activation_function="gelu"),
    "phi3": small("phi3", sliding_window=40, original_max_position_embeddings=512, pad_token_id=0),
    "phi3-longrope": small("phi3", "bf16", original_max_position_embeddings=100, pad_token_id=0, tie_word_embeddings=True,
                           rope_parameters=longrope(6, partial_rotary_factor=0.75)),
    "phi3-longrope-short": small("phi3", "f16", original_max_position_embeddings=256, pad_token_id=0, num_key_value_heads=6,
                                 rope_parameters=longrope(8, attention_factor=1.3)),
    "phi3-longrope-outgrown-while-writing": small("phi3", original_max_position_embeddings=170, pad_token_id=0,
                                                  rope_parameters=longrope(8)),
    "starcoder2": small("starcoder2", "f16", sliding_window=50),
    "starcoder2-no-biases-untied": small("starcoder2", use_bias=False, tie_word_embeddings=False, norm_epsilon=0.1,
                                         num_key_value_heads=6),
    "smollm3": small("smollm3", "bf16", num_hidden_layers=5, hidden_size=64, num_attention_heads=4, pad_token_id=0),
    "smollm3-own-layers": small("smollm3", num_hidden_layers=3, no_rope_layers=[0, 1, 1], use_sliding_window=True,
                                sliding_window=33, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
                                pad_token_id=0),
    "gpt_neox": small("gpt_neox", num_key_value_heads=..., hidden_size=132),
    "gpt_neox-serial-no-biases-tied": small(
        "gpt_neox", "bf16", num_key_value_heads=..., use_parallel_residual=False, attention_bias=False,
        hidden_act="gelu_fast", tie_word_embeddings=True, rope_parameters={"rope_theta": 3e4, "partial_rotary_factor": 0.5}),
    "phi": small("phi", hidden_size=120, num_key_value_heads=6),
    "phi-grouped": small("phi", "f16", partial_rotary_factor=0.4, layer_norm_eps=0.1, hidden_act="gelu"),
    "cohere2": small("cohere2", num_hidden_layers=5, sliding_window=40, logit_scale=0.5, pad_token_id=0, bos_token_id=1,
                     eos_token_id=0),
    "cohere2-biases-untied": small(
        "cohere2", "f16", sliding_window=70, attention_bias=True, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
        layer_types=["full_attention", "sliding_attention"], layer_norm_eps=0.1, eos_token_id=0, hidden_size=120,
        logit_scale=1.2),
    "granite": small("granite", embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.6,
                     logits_scaling=0.8, pad_token_id=0),
    "granite-biases-tied": small("granite", "bf16", attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
                                 attention_multiplier=0.2, residual_multiplier=1.7, pad_token_id=0, num_key_value_heads=6),
    "gemma": small("gemma", "bf16", distinct=1, head_dim=24, pad_token_id=0),
    "gemma-untied-biases": small("gemma", head_dim=20, tie_word_embeddings=False, attention_bias=True, pad_token_id=0,
                                 num_key_value_heads=6),
    "gemma2": small("gemma2", distinct=1, num_hidden_layers=3, head_dim=24, sliding_window=50, query_pre_attn_scalar=20,
                    pad_token_id=0, attn_logit_softcapping=5.0, final_logit_softcapping=20.0),
    "gemma2-layer-types-untied": small(
        "gemma2", "bf16", head_dim=16, sliding_window=33, pad_token_id=0, tie_word_embeddings=False, attention_bias=True,
        layer_types=["full_attention", "sliding_attention"]),
    "gemma3_text": small("gemma3_text", "bf16", distinct=1, num_hidden_layers=7, head_dim=24, sliding_window=50,
                         pad_token_id=0, query_pre_attn_scalar=20),
    "gemma3_text-linear-capped": small(
        "gemma3_text", head_dim=20, sliding_window=33, pad_token_id=0, final_logit_softcapping=9.0,
        layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=False,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}),
    "stablelm-parallel-qk-norms": small("stablelm", qk_layernorm=True, use_parallel_residual=True, hidden_size=192,
                                        partial_rotary_factor=0.5, layer_norm_eps=0.1),
    "phi-qk-norms": small("phi", "bf16", qk_layernorm=True, num_key_value_heads=6),
    "stablelm": small("stablelm", "bf16", use_qkv_bias=True, num_key_value_heads=6),
    "olmo2": small("olmo2", "bf16", num_hidden_layers=3, pad_token_id=0),
    "olmo2-biases": small("olmo2", attention_bias=True, num_key_value_heads=6,
                               rms_norm_eps=0.1, pad_token_id=0),
    "glm4": small("glm4", "bf16", head_dim=20, eos_token_id=0, pad_token_id=0),
    "glm4-biases": small("glm4", head_dim=24, attention_bias=True, partial_rotary_factor=0.25, num_key_value_heads=6,
                         rms_norm_eps=0.1, eos_token_id=0, pad_token_id=0),
    "glm": small("glm", "f16", head_dim=16, attention_bias=True, eos_token_id=0, pad_token_id=0),
    "bloom": bloom(),
    "bloom-normed-residual-untied": bloom("f16", n_head=4, apply_residual_connection_post_layernorm=True,
                                          tie_word_embeddings=False, layer_norm_epsilon=0.1),
    "falcon": falcon(),
    "falcon-grouped": falcon("bf16", new_decoder_architecture=True, num_attention_heads=14, num_kv_heads=2,
                             tie_word_embeddings=False),
    "falcon-grouped-one-norm": falcon("f16", new_decoder_architecture=True, num_attention_heads=8, num_kv_heads=4,
                                      num_ln_in_parallel_attn=1, ffn_hidden_size=201, bias=True),
    # 8 heads: transformers has these biases in bfloat16, where a power of two times a small position is exact.
    "falcon-alibi-serial-biases": falcon(alibi=True, multi_query=False, parallel_attn=False, bias=True,
                                         num_attention_heads=8),
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
    "gpt-oss-20b": ("gpt_oss", dict(num_hidden_layers=24, num_local_experts=32)),
    "deepseek-v3": ("deepseek_v3", dict(max_position_embeddings=163840, rope_parameters={
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096})),
    "mixtral-8x7b": ("mixtral", dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, vocab_size=32000,
                                     num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=32768,
                                     num_local_experts=8, num_experts_per_tok=2)),
    "qwen1.5-moe-a2.7b": ("qwen2_moe", dict(hidden_size=2048, intermediate_size=5632, moe_intermediate_size=1408,
                                            shared_expert_intermediate_size=5632, num_hidden_layers=24, vocab_size=151936,
                                            num_attention_heads=16, num_key_value_heads=16, num_experts=60,
                                            num_experts_per_tok=4, max_position_embeddings=8192)),
    "qwen3-30b-a3b": ("qwen3_moe", dict(hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
                                        num_hidden_layers=48, vocab_size=151936, num_attention_heads=32,
                                        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
                                        norm_topk_prob=True, max_position_embeddings=40960)),
    "olmoe-1b-7b": ("olmoe", dict(hidden_size=2048, intermediate_size=1024, num_hidden_layers=16, vocab_size=50304,
                                  num_attention_heads=16, num_key_value_heads=16, num_experts=64, num_experts_per_tok=8,
                                  max_position_embeddings=4096)),
    "gpt2": ("gpt2", {}),
    "gpt2-xl": ("gpt2", dict(n_embd=1600, n_head=25, n_layer=48)),
    "gemma-2b": ("gemma", dict(hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8,
                               num_key_value_heads=1, head_dim=256)),
    "gemma-2-2b": ("gemma2", {}),
    "gemma-3-1b": ("gemma3_text", dict(hidden_size=1152, intermediate_size=6912, num_attention_heads=4,
                                       num_key_value_heads=1, vocab_size=262144, max_position_embeddings=32768,
                                       sliding_window=512)),
    "phi-2": ("phi", dict(hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, partial_rotary_factor=0.4)),
    "phi-3-mini-4k": ("phi3", dict(sliding_window=2047)),
    "phi-4-mini": ("phi3", dict(num_attention_heads=24, num_key_value_heads=8, vocab_size=200064, tie_word_embeddings=True,
                                max_position_embeddings=131072, sliding_window=262144,
                                rope_parameters=longrope(48, partial_rotary_factor=0.75))),
    "pythia-1b": ("gpt_neox", dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=8,
                                   vocab_size=50304)),
    "starcoder2-3b": ("starcoder2", dict(max_position_embeddings=16384, sliding_window=4096)),
    "olmo-2-7b": ("olmo2", dict(vocab_size=100352, max_position_embeddings=4096, rope_parameters={"rope_theta": 500000.0})),
    "granite-3.1-2b": ("granite", dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=40, vocab_size=49155,
                                       num_key_value_heads=8, attention_multiplier=0.015625, embedding_multiplier=12.0,
                                       logits_scaling=8.0, residual_multiplier=0.22, tie_word_embeddings=True,
                                       max_position_embeddings=131072, rope_parameters={"rope_theta": 5e6})),
    "stablelm-2-1.6b": ("stablelm", dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, vocab_size=100352,
                                         use_qkv_bias=True)),
    "stablelm-2-12b": ("stablelm", dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, vocab_size=100352,
                                        num_key_value_heads=8, qk_layernorm=True, use_parallel_residual=True)),
    "command-r7b": ("cohere2", dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                                    num_key_value_heads=8, logit_scale=0.25, max_position_embeddings=132096)),
    "glm-4-9b": ("glm", {}),
    "glm-4-9b-0414": ("glm4", dict(attention_bias=False, max_position_embeddings=32768)),
    "smollm3-3b": ("smollm3", dict(max_position_embeddings=65536, rope_parameters={"rope_theta": 5e6})),
    "falcon-7b": ("falcon", {}),
    "falcon-40b": ("falcon", dict(hidden_size=8192, num_hidden_layers=60, num_attention_heads=128, num_kv_heads=8,
                                  new_decoder_architecture=True)),
    "falcon-rw-1b": ("falcon", dict(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, vocab_size=50304,
                                    alibi=True, multi_query=False, parallel_attn=False, bias=True)),
    "bloom-560m": ("bloom", dict(hidden_size=1024, n_layer=24, n_head=16)),
}
