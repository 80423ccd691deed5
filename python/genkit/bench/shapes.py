"""Models nobody downloaded: the sizes of published ones, as their config.json files have them, with random weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

from genkit.bench.synthetic import DTYPES, RandomCheckpoint, random_checkpoint
from genkit.checkpoints.config import Fields
from genkit.checks import whole_number
from genkit.errors import UsageError

LAYERS = ("num_hidden_layers", "n_layer")  # what config.json calls them
RECORD = "shape.json"  # beside a folder's files: what they were made from
MAKER = 1  # to be raised when the same seed begins to give other numbers


def _llama(width: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, *, theta: float, positions: int,
           bos: int, eos: int, **more: Any) -> dict[str, Any]:
    return dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=width, intermediate_size=inner,
                num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=vocab,
                rope_theta=theta, max_position_embeddings=positions, rms_norm_eps=1e-5, hidden_act="silu",
                tie_word_embeddings=False, bos_token_id=bos, eos_token_id=eos) | more


def _llama3(width: int, inner: int, layers: int, heads: int, head_dim: int, factor: float, tied: bool = False) -> dict[str, Any]:
    scaling = dict(rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=8192)
    return _llama(width, inner, layers, heads, 8, 128256, theta=500000.0, positions=131072, bos=128000, eos=128001,
                  head_dim=head_dim, rope_scaling=scaling, tie_word_embeddings=tied)


def _smollm2(width: int, inner: int, layers: int, heads: int, kv_heads: int, theta: float) -> dict[str, Any]:
    return _llama(width, inner, layers, heads, kv_heads, 49152, theta=theta, positions=8192, bos=0, eos=0,
                  tie_word_embeddings=True)


def _mistral(architecture: str, model_type: str, vocab: int, **more: Any) -> dict[str, Any]:
    return _llama(4096, 14336, 32, 32, 8, vocab, theta=1e6, positions=32768, bos=1, eos=2, sliding_window=None,
                  architectures=[architecture], model_type=model_type, **more)


def _qwen2(width: int, inner: int, layers: int, heads: int, kv_heads: int, *, vocab: int = 151936, positions: int,
           tied: bool) -> dict[str, Any]:
    return _llama(width, inner, layers, heads, kv_heads, vocab, theta=1e6, positions=positions, bos=151643, eos=151643,
                  architectures=["Qwen2ForCausalLM"], model_type="qwen2", rms_norm_eps=1e-6, tie_word_embeddings=tied,
                  use_sliding_window=False)


def _qwen3(width: int, inner: int, layers: int, heads: int, kv_heads: int = 8, *, tied: bool, **more: Any) -> dict[str, Any]:
    return _llama(width, inner, layers, heads, kv_heads, 151936, theta=1e6, positions=40960, bos=151643, eos=151645,
                  **dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=128, rms_norm_eps=1e-6,
                         attention_bias=False, tie_word_embeddings=tied, use_sliding_window=False) | more)


def _gemma2(width: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return dict(architectures=["Gemma2ForCausalLM"], model_type="gemma2", hidden_size=width, intermediate_size=inner,
                num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=256,
                vocab_size=256000, query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
                sliding_window=4096, max_position_embeddings=8192, rope_theta=10000.0, rms_norm_eps=1e-6,
                hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0)


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=50257, n_positions=1024, n_embd=width,
                n_layer=layers, n_head=heads, layer_norm_epsilon=1e-5, activation_function="gelu_new", bos_token_id=50256,
                eos_token_id=50256)


SHAPES: dict[str, dict[str, Any]] = {
    "gemma-2-2b": _gemma2(2304, 9216, 26, 8, 4),
    "gemma-2-9b": _gemma2(3584, 14336, 42, 16, 8),
    "gemma-3-1b": dict(architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", hidden_size=1152, intermediate_size=6912,
                       num_hidden_layers=26, num_attention_heads=4, num_key_value_heads=1, head_dim=256, vocab_size=262144,
                       query_pre_attn_scalar=256, sliding_window=512, sliding_window_pattern=6, max_position_embeddings=32768,
                       rope_theta=1e6, rope_local_base_freq=10000.0, rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh",
                       tie_word_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0),
    "gpt-oss-20b": dict(architectures=["GptOssForCausalLM"], model_type="gpt_oss", hidden_size=2880, intermediate_size=2880,
                        num_hidden_layers=24, num_attention_heads=64, num_key_value_heads=8, head_dim=64, vocab_size=201088,
                        num_local_experts=32, num_experts_per_tok=4, sliding_window=128, attention_bias=True,
                        layer_types=["sliding_attention", "full_attention"] * 12, max_position_embeddings=131072,
                        rope_theta=150000.0,
                        rope_scaling=dict(rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                                          original_max_position_embeddings=4096),
                        rms_norm_eps=1e-5, swiglu_limit=7.0, hidden_act="silu", tie_word_embeddings=False,
                        eos_token_id=200002, pad_token_id=199999, quantization_config=dict(quant_method="mxfp4")),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000, theta=10000.0, positions=4096, bos=1, eos=2),
    "llama-3.1-8b": _llama3(4096, 14336, 32, 32, 128, 8.0),
    "llama-3.1-70b": _llama3(8192, 28672, 80, 64, 128, 8.0),
    "llama-3.2-1b": _llama3(2048, 8192, 16, 32, 64, 32.0, tied=True),
    "llama-3.2-3b": _llama3(3072, 8192, 28, 24, 128, 32.0, tied=True),
    "mistral-7b": _mistral("MistralForCausalLM", "mistral", 32768, head_dim=128),  # v0.3
    "mixtral-8x7b": _mistral("MixtralForCausalLM", "mixtral", 32000, num_local_experts=8, num_experts_per_tok=2),
    "olmoe-1b-7b": _llama(2048, 1024, 16, 16, 16, 50304, theta=10000.0, positions=4096, bos=1, eos=50279, pad_token_id=1,
                          architectures=["OlmoeForCausalLM"], model_type="olmoe", num_experts=64, num_experts_per_tok=8,
                          norm_topk_prob=False, attention_bias=False),
    "phi-4": _llama(5120, 17920, 40, 40, 10, 100352, theta=250000.0, positions=16384, bos=100257, eos=100265,
                    architectures=["Phi3ForCausalLM"], model_type="phi3", original_max_position_embeddings=16384,
                    pad_token_id=100349, rope_scaling=None, sliding_window=None),
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2, positions=32768, tied=True),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2, positions=131072, tied=True),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4, vocab=152064, positions=131072, tied=False),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, tied=False),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, tied=False),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, tied=False),
    "qwen3-30b-a3b": _qwen3(2048, 6144, 48, 32, 4, tied=False, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe",
                            moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True,
                            decoder_sparse_step=1, mlp_only_layers=[]),
    "smollm2-135m": _smollm2(576, 1536, 30, 9, 3, 100000.0),
    "smollm2-360m": _smollm2(960, 2560, 32, 15, 5, 100000.0),
    "smollm2-1.7b": _smollm2(2048, 8192, 24, 32, 32, 130000.0),
    "tinyllama-1.1b": _llama(2048, 5632, 22, 32, 4, 32000, theta=10000.0, positions=2048, bos=1, eos=2),
}


def open_shape(name: str, dtype: str = "bf16", seed: int = 0, layers: int | None = None) -> tuple[Fields, RandomCheckpoint]:
    """What models.load_model takes: a shape's configuration, and its weights, made while they are read. layers: fewer than
    the real model has. gpt-oss' experts are MXFP4, as published, whatever the dtype of the rest.

    Raises UsageError for an unknown shape or dtype, a number of layers it has not, and a negative seed.
    """
    fields = shape_fields(name, layers)
    if dtype not in DTYPES:
        raise UsageError(f"--shape {name}: dtype is {dtype!r}; weights are made as {', '.join(DTYPES)}")
    return fields, random_checkpoint(fields, dtype, whole_number("seed", seed, 0, 2**63 - 1))


def shape_fields(name: str, layers: int | None = None) -> Fields:
    """Its config.json. Raises UsageError."""
    raw = dict(SHAPES[check_shape(name)])
    if layers is not None:
        key = next(key for key in LAYERS if key in raw)
        raw[key] = whole_number(f"--shape {name}: layers", layers, 1, raw[key])
        if "layer_types" in raw:
            raw["layer_types"] = raw["layer_types"][:layers]
    return Fields(Path(name), raw)


def check_shape(name: str) -> str:
    """The name. Raises UsageError, with all that are known, for another."""
    if name not in SHAPES:
        raise UsageError(f"--shape {name}: not known; known: {', '.join(SHAPES)}")
    return name


def write_folder(name: str, folder: Path, dtype: str = "bf16", seed: int = 0, layers: int | None = None,
                 progress: Callable[[int, int], None] | None = None) -> None:
    """The same numbers as open_shape's as a Hugging Face folder, which must not be there yet. It has its name only when it is
    complete. progress(done, total) is told bytes.

    Raises UsageError as open_shape, and for a folder that is there; ResourceError where the disk is too small.
    """
    from genkit.bench.synthetic_files import write, writing
    from genkit.checkpoints.files import shown_path

    fields, checkpoint = open_shape(name, dtype, seed, layers)
    if os.path.lexists(folder):
        raise UsageError(f"{shown_path(folder)}: is there already; remove it or name another folder")
    partial = folder.with_name(f".partial-{folder.name}")
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            partial.mkdir(parents=True)
            write(fields, checkpoint, dtype, partial, progress)
            (partial / RECORD).write_text(json.dumps(_record(name, dtype, seed, layers)), encoding="utf-8")
            os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def folder_for(name: str, dtype: str = "bf16", seed: int = 0, layers: int | None = None,
               progress: Callable[[int, int], None] | None = None) -> Path:
    """Such a folder in the user's cache, written unless it is there. Raises as write_folder."""
    import fcntl

    from genkit.bench.synthetic_files import writing

    open_shape(name, dtype, seed, layers)  # says what is wrong
    words = [name, dtype] + ([] if layers is None else [f"{layers}-layers"]) + ([f"seed-{seed}"] if seed else [])
    folder = cache_folder() / "-".join(words)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / ".lock", "w") as lock:  # two runs at once: the second waits for what the first writes
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _read_record(folder) != _record(name, dtype, seed, layers):
                shutil.rmtree(folder, ignore_errors=True)  # another genkit's numbers
                write_folder(name, folder, dtype, seed, layers, progress)
    return folder


def cache_folder() -> Path:
    """Where the folders are kept; it may be removed at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "genkit-bench" / "shapes"


def _record(name: str, dtype: str, seed: int, layers: int | None) -> dict[str, Any]:
    return {"maker": MAKER, "config": SHAPES[name], "dtype": dtype, "seed": seed, "layers": layers}


def _read_record(folder: Path) -> Any:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
