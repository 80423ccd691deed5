"""BLOOM (Scao et al. 2022, arXiv:2211.05100): ALiBi in place of positions, a LayerNorm on the embedding, a plain MLP; q, k
and v of a head lie together in one matrix. Names start with "transformer." or not, as the file was saved from the whole
model or from its body.
"""

from typing import TYPE_CHECKING

from genkit.models.decoder import (DecoderConfig, Layer, Model, Product, alibi_slopes,  # noqa: F401 some offered here too
                                   folds, layers_prefix, output, plain_feed, read_sizes, tensor_shapes)

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    old = "n_embed" in fields and "hidden_size" not in fields
    sizes = read_sizes(fields, checkpoint, width="n_embed" if old else "hidden_size",
                       layers="num_hidden_layers" if "num_hidden_layers" in fields else "n_layer",
                       heads="num_attention_heads" if "num_attention_heads" in fields else "n_head", positions="seq_length")
    width, heads = sizes["hidden_size"], sizes["heads"]
    qkv = Product((("self_attention.query_key_value", 3 * width),), width, True, groups=(heads, 1, sizes["head_dim"]))
    mlp = plain_feed(sizes, 4 * width, "gelu_tanh", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    prefix = "" if "word_embeddings.weight" in checkpoint else "transformer."
    return DecoderConfig(
        **sizes, layer=(Layer(qkv, output(sizes, True, "self_attention.dense"), mlp, rope=None),) * sizes["layers"],
        norm="layer", norm_eps=fields.number("layer_norm_epsilon", 0.0, 1.0, default=1e-5),
        alibi_slopes=tuple(alibi_slopes(heads).tolist()),
        residual_is_normed=fields.boolean("apply_residual_connection_post_layernorm", default=False),
        tied=fields.boolean("tie_word_embeddings", default=True), layers_name=prefix + "h.",
        embedding_name=prefix + "word_embeddings", embedding_norm_name=prefix + "word_embeddings_layernorm",
        norm_name=prefix + "ln_f")
