"""Phi-3, 3.5 and 4 (Abdin et al. 2024, arXiv:2404.14219): Llama with q, k, v in one matrix, gates and ups in another,
longrope and partial rotation in some sizes, a window in others.
"""

from typing import TYPE_CHECKING

from genkit.models.config import activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, Product, folds, gated_feed,  # noqa: F401 some offered here too
                                   layers_prefix, output, read_inner, read_sizes, read_window, tensor_shapes)
from genkit.rope import read_rope

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    fields = fields.filled(rms_norm_eps=1e-5)
    sizes = read_sizes(fields, checkpoint)
    rope = read_rope(fields, sizes["head_dim"], sizes["max_positions"])
    heads, kv_heads, head_dim = sizes["heads"], sizes["kv_heads"], sizes["head_dim"]
    layer = Layer(
        Product((("self_attn.qkv_proj", (heads + 2 * kv_heads) * head_dim),), sizes["hidden_size"]), output(sizes, False),
        gated_feed(sizes, read_inner(fields), activation(fields, "hidden_act", "silu"), fused=True), window=read_window(fields))
    return DecoderConfig(
        **sizes | {"max_positions": rope.max_positions}, layer=(layer,) * sizes["layers"], ropes=(rope,), norm="rms",
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0), tied=fields.boolean("tie_word_embeddings", default=False))
