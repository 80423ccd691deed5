"""Command R7B and Command A (Cohere 2025, arXiv:2504.00698): attention and gated MLP side by side behind one LayerNorm
without bias, neighbouring channels rotated; three layers with a window, then one that sees all and does not rotate.
"""

from typing import TYPE_CHECKING

from genkit.models.config import activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, folds, gated_feed,  # noqa: F401 some offered here too
                                   layers_prefix, output, read_inner, read_rotary, read_sizes, read_sliding,
                                   read_window, separate_qkv, tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    sizes = read_sizes(fields, checkpoint)
    rope = read_rotary(fields, sizes)
    bias, window = fields.boolean("attention_bias", default=False), read_window(fields, default=4096)
    mlp = gated_feed(sizes, read_inner(fields), activation(fields, "hidden_act", "silu"))
    layers = tuple(Layer(separate_qkv(sizes, bias), output(sizes, bias), mlp, mlp_norm="", window=window if sliding else 0,
                         rope=0 if sliding and window else None)
                   for sliding in read_sliding(fields, sizes["layers"], pattern=4))
    return DecoderConfig(
        **sizes, layer=layers, ropes=(rope,), interleaved=True, norm="layer_no_bias",
        norm_eps=fields.number("layer_norm_eps", 0.0, 1.0, default=1e-5), parallel=True,
        logit_scale=fields.number("logit_scale", 1e-6, 1e6, default=0.0625),
        tied=fields.boolean("tie_word_embeddings", default=True))
