"""Phi-3, 3.5 and 4 (Abdin et al. 2024, arXiv:2404.14219): Llama with q, k, v in one matrix, gates and ups in another,
longrope and partial rotation in some sizes, a window in others.
"""

from typing import TYPE_CHECKING

from genkit.models.config import activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, Product, folds,  # noqa: F401 some offered here too
                                   gated_feed, layers_prefix, output, read_inner, read_rotary, read_sizes,
                                   read_window, tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    sizes = read_sizes(fields, checkpoint)
    rope = read_rotary(fields, sizes)
    heads, kv_heads, head_dim = sizes["heads"], sizes["kv_heads"], sizes["head_dim"]
    qkv = Product((("self_attn.qkv_proj", (heads + 2 * kv_heads) * head_dim),), sizes["hidden_size"])
    mlp = gated_feed(sizes, read_inner(fields), activation(fields, "hidden_act", "silu"), fused=True)
    layer = Layer(qkv, output(sizes, False), mlp, window=read_window(fields))
    return DecoderConfig(
        **sizes, layer=(layer,) * sizes["layers"], ropes=(rope,), norm="rms",
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-5),
        tied=fields.boolean("tie_word_embeddings", default=False))
