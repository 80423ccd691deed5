"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745; Pythia, Biderman et al. 2023, arXiv:2304.01373): attention and a plain MLP
side by side, each behind a LayerNorm of its own, partial rotation; q, k and v of a head lie together in one matrix.
"""

from typing import TYPE_CHECKING

from genkit.models.config import activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, Product, folds,  # noqa: F401 some offered here too
                                   layers_prefix, output, plain_feed, read_inner, read_rotary, read_sizes,
                                   tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    sizes = read_sizes(fields, checkpoint)
    rope = read_rotary(fields, sizes, default_partial=0.25, theta_key="rotary_emb_base",
                     partial_key="rotary_pct")
    width, heads, bias = sizes["hidden_size"], sizes["heads"], fields.boolean("attention_bias", default=True)
    qkv = Product((("attention.query_key_value", 3 * width),), width, bias, groups=(heads, 1, sizes["head_dim"]))
    mlp = plain_feed(sizes, read_inner(fields, default=4 * width), activation(fields, "hidden_act", "gelu"),
                     "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    head = "lm_head" if "lm_head.weight" in checkpoint else "embed_out"
    layer = Layer(qkv, output(sizes, bias, "attention.dense"), mlp)
    return DecoderConfig(
        **sizes, layer=(layer,) * sizes["layers"], ropes=(rope,), norm="layer",
        norm_eps=fields.number("layer_norm_eps", 0.0, 1.0, default=1e-5),
        parallel=fields.boolean("use_parallel_residual", default=True),
        tied=fields.boolean("tie_word_embeddings", default=False), layers_name="gpt_neox.layers.",
        embedding_name="gpt_neox.embed_in", norm_name="gpt_neox.final_layer_norm", head_name=head)
