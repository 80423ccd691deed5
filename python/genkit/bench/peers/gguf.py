"""A Hugging Face folder of the Llama kind as GGUF, for llama.cpp to measure.

Tensors only, without vocabulary: a benchmark speaks in token ids. Rotary scaling is left out too: speed does not depend
on the frequencies.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit import checkpoints
from genkit.errors import BadFileError, Error, UsageError
from genkit.models import read_model_config

if TYPE_CHECKING:
    from genkit.models.llama import LlamaConfig

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

GLOBAL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


class MissingPackage(Error):
    """A package that only this needs is not there."""


def write_gguf(folder: Path, out: Path) -> None:
    """Raises BadFileError for a model that cannot be read, UsageError for one of another kind, MissingPackage."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise MissingPackage("not installed: the package gguf, which writes llama.cpp's files") from None
    fields = checkpoints.read_config(folder)
    if fields.model_type not in ARCHITECTURES:
        raise UsageError(f"{folder}: llama.cpp's file is written for {', '.join(sorted(ARCHITECTURES))} only, not for "
                         f"{fields.model_type}")
    with checkpoints.open_checkpoint(folder) as checkpoint:
        config = read_model_config(fields, checkpoint)
        writer = gguf.GGUFWriter(str(out), ARCHITECTURES[fields.model_type])
        _write_header(writer, config)
        names = {name: gguf_name(name) for name in checkpoint.tensors if not name.endswith(".rotary_emb.inv_freq")
                 and not (name == "lm_head.weight" and config.tied)}
        types = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16,
                 "bf16": gguf.GGMLQuantizationType.BF16}
        for name, other in names.items():
            info = checkpoint.tensors[name]
            if info.dtype not in types:
                raise BadFileError(f"{info.file}: tensor '{name}' has dtype {info.dtype.upper()}; llama.cpp's file is "
                                   "written from F32, F16 and BF16 only")
            kind = types["f32" if len(info.shape) == 1 else info.dtype]  # llama.cpp's vectors are f32
            nbytes = info.shape[0] * 4 if len(info.shape) == 1 else info.nbytes
            writer.add_tensor_info(other, info.shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in names:  # one at a time: a checkpoint may be larger than memory
            writer.write_tensor_data(_values(checkpoint, name, config))
        writer.close()


def _write_header(writer: Any, config: "LlamaConfig") -> None:
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight. Raises BadFileError where llama.cpp has no name."""
    stem, _, kind = name.rpartition(".")
    if stem in GLOBAL:
        return f"{GLOBAL[stem]}.{kind}"
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    if not stem.startswith("model.layers.") or rest not in LAYER:
        raise BadFileError(f"tensor '{name}' has no name in llama.cpp")
    return f"blk.{layer}.{LAYER[rest]}.{kind}"


def _values(checkpoint: "checkpoints.Checkpoint", name: str, config: "LlamaConfig") -> np.ndarray:
    info = checkpoint.tensors[name]
    load = checkpoint.load_f32 if len(info.shape) == 1 else checkpoint.load
    values = load(name, info.shape).numpy()
    if config.model_type in ("llama", "mistral") and any(part in name for part in (".q_proj.", ".k_proj.")):
        values = interleave(values, config.heads if ".q_proj." in name else config.kv_heads)
    return np.ascontiguousarray(values).view(np.uint8)


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (x0 x1 .. y0 y1 ..) to pairs (x0 y0 x1 y1 ..), as llama.cpp turns them."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
