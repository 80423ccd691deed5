"""SmolLM3 (Hugging Face 2025): Llama whose every fourth layer does not rotate, after Yang et al. 2025 (arXiv:2501.18795)."""

from typing import TYPE_CHECKING

from genkit.models.config import MAX_LAYERS, activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, folds, gated_feed,  # noqa: F401 some offered here too
                                   layers_prefix, output, read_inner, read_rotary, read_sizes, read_sliding,
                                   read_window, separate_qkv, tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    sizes = read_sizes(fields, checkpoint)
    count = sizes["layers"]
    rope = read_rotary(fields, sizes, default_theta=2e6)
    every = fields.integer("no_rope_layer_interval", 1, MAX_LAYERS, default=4)
    # Of no_rope_layers a 1 is a layer that does rotate.
    rotated = fields.integers("no_rope_layers", 0, 1, default=[int((i + 1) % every != 0) for i in range(count)])
    if len(rotated) != count:
        raise fields.error("no_rope_layers", f"{count} of 0 and 1, one a layer")
    window = read_window(fields) if fields.boolean("use_sliding_window", default=False) else 0
    sliding = read_sliding(fields, count) if "layer_types" in fields else [not r for r in rotated]
    bias = fields.boolean("attention_bias", default=False)
    mlp = gated_feed(sizes, read_inner(fields), activation(fields, "hidden_act", "silu"),
                     fields.boolean("mlp_bias", default=False))
    layers = tuple(Layer(separate_qkv(sizes, bias), output(sizes, bias), mlp, window=window if s else 0,
                         rope=0 if r else None) for s, r in zip(sliding, rotated))
    return DecoderConfig(
        **sizes, layer=layers, ropes=(rope,), norm="rms",
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        tied=fields.boolean("tie_word_embeddings", default=True))
