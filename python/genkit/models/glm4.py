"""GLM-4 (Zeng et al. 2024, arXiv:2406.12793), and its 0414 release with two more norms: Llama with half of each head
rotated, neighbouring channels together, and gates and ups in one matrix.
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
    rope = read_rotary(fields, sizes, default_partial=0.5)
    # Files that do not say differ in what they mean.
    bias = fields.boolean("attention_bias", default="model.layers.0.self_attn.q_proj.bias" in checkpoint)
    more = {} if fields.model_type == "glm" else {"post_attention_norm": "post_self_attn_layernorm",
                                                  "post_mlp_norm": "post_mlp_layernorm"}
    layer = Layer(separate_qkv(sizes, bias), output(sizes, False),
                  gated_feed(sizes, read_inner(fields), activation(fields, "hidden_act", "silu"), fused=True), **more)
    return DecoderConfig(
        **sizes, layer=(layer,) * sizes["layers"], ropes=(rope,), interleaved=True,
        norm="rms", norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1.5625e-7),
        tied=fields.boolean("tie_word_embeddings", default=False))
