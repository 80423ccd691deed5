"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023, arXiv:2306.11644): attention and a plain MLP side by side behind one LayerNorm,
partial rotation, biases everywhere, the head too.
"""

from typing import TYPE_CHECKING

from genkit.models.config import activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, folds, layers_prefix,  # noqa: F401 some offered here too
                                   output, plain_feed, read_inner, read_rotary, read_sizes, separate_qkv,
                                   tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    sizes = read_sizes(fields, checkpoint)
    rope = read_rotary(fields, sizes, default_partial=0.5)
    mlp = plain_feed(sizes, read_inner(fields, default=4 * sizes["hidden_size"]),
                     activation(fields, "hidden_act", "gelu_new"), "mlp.fc1", "mlp.fc2")
    layer = Layer(separate_qkv(sizes, True), output(sizes, True, "self_attn.dense"), mlp, mlp_norm="")
    return DecoderConfig(
        **sizes, layer=(layer,) * sizes["layers"], ropes=(rope,), norm="layer",
        norm_eps=fields.number("layer_norm_eps", 0.0, 1.0, default=1e-5), parallel=True,
        qk_norm="head" if fields.boolean("qk_layernorm", default=False) else "",
        q_norm="self_attn.q_layernorm", k_norm="self_attn.k_layernorm",
        tied=fields.boolean("tie_word_embeddings", default=False), head_bias=True, norm_name="model.final_layernorm")
