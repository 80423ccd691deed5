"""Gemma (Gemma Team 2024, arXiv:2403.08295), Gemma 2 (arXiv:2408.00118) and the text model of Gemma 3 (arXiv:2503.19786).

All: Llama with a GeGLU, RMSNorms whose files hold the weight less one, embeddings times the root of their width.
Gemma 2: norms after attention and MLP too, soft-capped scores and logits, a window on every other layer.
Gemma 3: no caps, an RMSNorm on each query and key head; five layers with a window and short-wave RoPE, then one without.
A folder of model_type "gemma3" holds a vision tower as well, which is left alone: its text_config says what is read here.
"""

from typing import TYPE_CHECKING, Any

from genkit.models.config import activation
from genkit.models.decoder import (DecoderConfig, Layer, Model, folds, gated_feed,  # noqa: F401 some offered here too
                                   layers_prefix, output, read_inner, read_rotary, read_sizes, read_sliding, read_window,
                                   separate_qkv, tensor_shapes)
from genkit.rope import Rope, read_rope

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint

# What Gemma 3's files leave out.
GEMMA3 = dict(vocab_size=262208, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
              num_key_value_heads=4, max_position_embeddings=131072)

PREFIXES = ("language_model.model.", "model.language_model.", "model.")  # of its text model beside a vision tower


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    if fields.model_type == "gemma":
        return _gemma(fields, checkpoint)
    if fields.model_type == "gemma2":
        return _gemma2(fields, checkpoint)
    return _gemma3(fields, checkpoint)


def _common(fields: "Fields", sizes: dict[str, Any]) -> dict[str, Any]:
    if fields.boolean("use_bidirectional_attention", default=False):
        raise fields.error("use_bidirectional_attention", "false: only text that is written from left to right")
    return sizes | dict(norm="rms_plus_one", norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
                        embedding_scale=sizes["hidden_size"]**0.5, tied=fields.boolean("tie_word_embeddings", default=True))


def _gemma(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    sizes = read_sizes(fields.filled(head_dim=256), checkpoint)
    rope = read_rotary(fields, sizes)
    bias = fields.boolean("attention_bias", default=False)
    function = activation(fields, "hidden_act", "gelu_pytorch_tanh")
    if function == "gelu":  # as the first files have it, which mean the other
        function = "gelu_tanh"
    layer = Layer(separate_qkv(sizes, bias), output(sizes, bias), gated_feed(sizes, read_inner(fields), function))
    return DecoderConfig(**_common(fields, sizes), layer=(layer,) * sizes["layers"],
                         ropes=(rope,))


def _four_norms(fields: "Fields", checkpoint: "Checkpoint", pattern: int, prefix: str = "model.",
                **more: Any) -> DecoderConfig:
    """Of Gemma 2 and 3: a layer with a window has the last of the ropes."""
    sizes = read_sizes(fields.filled(head_dim=256), checkpoint)
    bias, window = fields.boolean("attention_bias", default=False), read_window(fields, default=4096)
    mlp = gated_feed(sizes, read_inner(fields), activation(fields, "hidden_activation", "gelu_pytorch_tanh"))
    ropes = more.pop("ropes")(sizes)
    layers = tuple(Layer(separate_qkv(sizes, bias), output(sizes, bias), mlp, mlp_norm="pre_feedforward_layernorm",
                         post_attention_norm="post_attention_layernorm", post_mlp_norm="post_feedforward_layernorm",
                         window=window if sliding else 0, rope=len(ropes) - 1 if sliding else 0)
                   for sliding in read_sliding(fields, sizes["layers"], pattern))
    return DecoderConfig(
        **_common(fields, sizes) | {"max_positions": ropes[0].max_positions}, layer=layers, ropes=ropes,
        attention_scale=fields.number("query_pre_attn_scalar", 1e-6, 1e6, default=256.0)**-0.5,
        layers_name=prefix + "layers.", embedding_name=prefix + "embed_tokens", norm_name=prefix + "norm", **more)


def _softcap(fields: "Fields", key: str, default: float) -> float:
    """0 where the file says null."""
    if key not in fields.raw:
        return default
    return fields.number(key, 1e-3, 1e6, default=0.0)


def _gemma2(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    return _four_norms(
        fields, checkpoint, pattern=2, attention_softcap=_softcap(fields, "attn_logit_softcapping", 50.0),
        logit_softcap=_softcap(fields, "final_logit_softcapping", 30.0),
        ropes=lambda sizes: (read_rope(fields, sizes["head_dim"], sizes["max_positions"]),))


def _gemma3(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    prefix = "model."
    if fields.model_type == "gemma3":
        text = fields.object("text_config")
        if text is None:
            raise fields.error("text_config", "the configuration of the text model")
        prefix = next((p for p in PREFIXES if p + "layers.0.mlp.up_proj.weight" in checkpoint), PREFIXES[0])
        fields = text.filled(model_type="gemma3_text")
    fields = fields.filled(**GEMMA3)
    return _four_norms(
        fields, checkpoint, pattern=6, prefix=prefix, qk_norm="head",
        attention_softcap=_softcap(fields, "attn_logit_softcapping", 0.0),
        logit_softcap=_softcap(fields, "final_logit_softcapping", 0.0), ropes=lambda sizes: _gemma3_ropes(fields, sizes))


def _gemma3_ropes(fields: "Fields", sizes: dict[str, Any]) -> tuple[Rope, Rope]:
    """For layers that see all, and for those with a window. Newer files have an object for each kind of layer."""
    both = fields.object("rope_parameters") or fields.only()
    kept = {key: fields.optional(key) for key in ("rope_scaling", "rope_theta", "max_position_embeddings")}
    full = fields.only(rope_parameters=both.optional("full_attention"), **kept)
    sliding = fields.only(rope_parameters=both.optional("sliding_attention"),
                          rope_local_base_freq=fields.optional("rope_local_base_freq"))
    size = sizes["head_dim"], sizes["max_positions"]
    return read_rope(full, *size, default_theta=1e6), read_rope(sliding, *size, theta_key="rope_local_base_freq")
