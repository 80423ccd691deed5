"""Granite 3 (IBM 2024): Llama with constants on the embedding, the scores, what each layer adds, and the logits."""

from typing import TYPE_CHECKING

from genkit.models.config import activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, folds, gated_feed,  # noqa: F401 some offered here too
                                   layers_prefix, output, read_inner, read_rotary, read_sizes, separate_qkv,
                                   tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    def multiplier(key: str) -> float:
        return fields.number(key, 1e-6, 1e6, default=1.0)

    sizes = read_sizes(fields, checkpoint)
    rope = read_rotary(fields, sizes)
    bias = fields.boolean("attention_bias", default=False)
    layer = Layer(separate_qkv(sizes, bias), output(sizes, bias),
                  gated_feed(sizes, read_inner(fields), activation(fields, "hidden_act", "silu"),
                             fields.boolean("mlp_bias", default=False)))
    return DecoderConfig(
        **sizes, layer=(layer,) * sizes["layers"], ropes=(rope,), norm="rms",
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        attention_scale=multiplier("attention_multiplier"), residual_scale=multiplier("residual_multiplier"),
        embedding_scale=multiplier("embedding_multiplier"), logit_scale=1 / multiplier("logits_scaling"),
        tied=fields.boolean("tie_word_embeddings", default=False))
