"""OLMo 2 (OLMo et al. 2025, arXiv:2501.00656): Llama with RMSNorms after attention and MLP in place of before, and on all
queries and all keys.
"""

from typing import TYPE_CHECKING

from genkit.models.config import activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, folds, gated_feed,  # noqa: F401 some offered here too
                                   layers_prefix, output, read_inner, read_rotary, read_sizes, separate_qkv,
                                   tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    sizes = read_sizes(fields, checkpoint)
    rope = read_rotary(fields, sizes)
    bias = fields.boolean("attention_bias", default=False)
    layer = Layer(separate_qkv(sizes, bias), output(sizes, bias),
                  gated_feed(sizes, read_inner(fields), activation(fields, "hidden_act", "silu")),
                  attention_norm="", mlp_norm="", post_attention_norm="post_attention_layernorm",
                  post_mlp_norm="post_feedforward_layernorm")
    return DecoderConfig(
        **sizes, layer=(layer,) * sizes["layers"], ropes=(rope,), norm="rms",
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-5), qk_norm="whole",
        tied=fields.boolean("tie_word_embeddings", default=False))
