"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867). 7B: all queries share a key, attention and MLP side by side behind one
LayerNorm. 40B ("new_decoder_architecture"): grouped queries in one matrix with their keys, two norms. RW: one after the
other, and ALiBi.
"""

from typing import TYPE_CHECKING

import numpy as np

from genkit._core import Tensor, convert
from genkit.models.config import MAX_HEADS, activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, Product, alibi_slopes,  # noqa: F401 some offered here too
                                   folds, layers_prefix, output, plain_feed, read_inner, read_rotary, read_sizes,
                                   tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint

OLD_NAMES = {"hidden_size": "n_embed", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
             "num_kv_heads": "n_head_kv"}


def _slopes(heads: int, head_dim: int) -> tuple[float, ...]:
    """Falcon adds them before it scales the scores, and has them in bfloat16."""
    rounded = Tensor.from_numpy(alibi_slopes(heads))
    return tuple((convert(convert(rounded, "bf16"), "f32").numpy() / np.float32(head_dim**0.5)).tolist())


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    new = fields.boolean("new_decoder_architecture", default=False)
    parallel = fields.boolean("parallel_attn", default=True)
    if new and not parallel:
        raise fields.error("parallel_attn", "true with new_decoder_architecture")
    names = {key: old if old in fields else key for key, old in OLD_NAMES.items()}
    multi_query = fields.boolean("multi_query", default=True)
    heads = fields.integer(names["num_attention_heads"], 1, MAX_HEADS)
    kv_heads = fields.integer(names["num_kv_heads"], 1, MAX_HEADS, default=heads) if new else 1 if multi_query else heads
    sizes = read_sizes(fields, checkpoint, width=names["hidden_size"], layers=names["num_hidden_layers"],
                       heads=names["num_attention_heads"], kv_heads=kv_heads)
    width, head_dim, bias = sizes["hidden_size"], sizes["head_dim"], fields.boolean("bias", default=False)
    qkv = Product((("self_attention.query_key_value", (heads + 2 * kv_heads) * head_dim),), width, bias,
                  groups=None if kv_heads == 1 else (kv_heads, heads // kv_heads, head_dim))
    mlp = plain_feed(sizes, read_inner(fields, "ffn_hidden_size", 4 * width), activation(fields, "activation", "gelu"),
                     "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias)
    norms = ("input_layernorm", "" if parallel else "post_attention_layernorm")
    if new and fields.integer("num_ln_in_parallel_attn", 1, 2, default=2) == 2:
        norms = ("ln_attn", "ln_mlp")
    alibi = fields.boolean("alibi", default=False)
    rope = None if alibi else read_rotary(fields, sizes)
    layer = Layer(qkv, output(sizes, bias, "self_attention.dense"), mlp, *norms, rope=None if alibi else 0)
    slopes = _slopes(heads, head_dim) if alibi else ()
    return DecoderConfig(
        **sizes, layer=(layer,) * sizes["layers"],
        ropes=(rope,) if rope else (), norm="layer", norm_eps=fields.number("layer_norm_epsilon", 0.0, 1.0, default=1e-5),
        alibi_slopes=slopes, parallel=parallel, tied=fields.boolean("tie_word_embeddings", default=True),
        layers_name="transformer.h.", embedding_name="transformer.word_embeddings", norm_name="transformer.ln_f")
