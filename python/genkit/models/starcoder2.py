"""StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173): a window on every layer, LayerNorm, a plain MLP, biases."""

from typing import TYPE_CHECKING

from genkit.models.config import activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, folds, layers_prefix,  # noqa: F401 some offered here too
                                   output, plain_feed, read_inner, read_rotary, read_sizes, read_window, separate_qkv,
                                   tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    sizes = read_sizes(fields, checkpoint)
    rope = read_rotary(fields, sizes)
    bias = fields.boolean("use_bias", default=True)
    mlp = plain_feed(sizes, read_inner(fields), activation(fields, "hidden_act", "gelu_pytorch_tanh"), "mlp.c_fc",
                     "mlp.c_proj", bias)
    layer = Layer(separate_qkv(sizes, bias), output(sizes, bias), mlp, window=read_window(fields))
    return DecoderConfig(
        **sizes, layer=(layer,) * sizes["layers"], ropes=(rope,), norm="layer",
        norm_eps=fields.number("norm_epsilon", 0.0, 1.0, default=1e-5),
        tied=fields.boolean("tie_word_embeddings", default=True))
