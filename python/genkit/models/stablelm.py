"""StableLM (Bellagente et al. 2024, arXiv:2402.17834): Llama with LayerNorm and partial rotation; in the 12B attention and
MLP side by side, and a LayerNorm for each query and key head.
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
    rope = read_rotary(fields, sizes, default_partial=0.25)
    parallel = fields.boolean("use_parallel_residual", default=False)
    layer = Layer(separate_qkv(sizes, fields.boolean("use_qkv_bias", default=False)), output(sizes, False),
                  gated_feed(sizes, read_inner(fields), activation(fields, "hidden_act", "silu")),
                  mlp_norm="" if parallel else "post_attention_layernorm")
    return DecoderConfig(
        **sizes, layer=(layer,) * sizes["layers"], ropes=(rope,), norm="layer",
        norm_eps=fields.number("layer_norm_eps", 0.0, 1.0, default=1e-5), parallel=parallel,
        qk_norm="heads" if fields.boolean("qk_layernorm", default=False) else "",
        q_norm="self_attn.q_layernorm", k_norm="self_attn.k_layernorm",
        tied=fields.boolean("tie_word_embeddings", default=False))
