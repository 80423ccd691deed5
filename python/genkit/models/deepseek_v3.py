"""DeepSeek-V3 and R1 (DeepSeek-AI 2024, arXiv:2412.19437): keys and values from a narrow latent (arXiv:2405.04434, 2.1), experts
chosen by sigmoid scores and a correction within the best groups, and a shared expert.

Here a head's rotated channels lie first, then the others; values are filled up with zeros to the width of a key, so that both
have their place in the cache. Layers that predict further tokens, behind the last one, are left alone.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from genkit import _core
from genkit.checkpoints.config import rope_parameters
from genkit.models import decoder
from genkit.models.config import MAX_HEAD_DIM, MAX_LAYERS, MAX_WIDTH, Fold, activation, read_experts
from genkit.models.decoder import DecoderConfig, Layer, Shapes, gated_feed, read_inner, read_sizes, tensor_shapes  # noqa: F401
from genkit.models.sparse import gated_mlp, mlp_shapes
from genkit.moe import Router, SparseMLP
from genkit.nn import Linear, RMSNorm, Tensor, Weights
from genkit.rope import read_rope, yarn_scale

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint
    from genkit.kv_cache import LayerPages, Step

PARTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Latent:
    """Sizes of the attention: of a head its rotated channels, its others and its values."""

    width: int
    heads: int
    rotated: int
    others: int
    values: int
    q_rank: int  # 0: queries come without a latent
    kv_rank: int
    bias: bool

    def shapes(self, layer: str) -> Shapes:
        found: Shapes = {}

        def linear(name: str, outputs: int, inputs: int, bias: bool = False) -> None:
            found[f"{layer}self_attn.{name}.weight"] = (outputs, inputs)
            if bias:
                found[f"{layer}self_attn.{name}.bias"] = (outputs,)

        queries = self.heads * (self.rotated + self.others)
        if self.q_rank:
            linear("q_a_proj", self.q_rank, self.width, self.bias)
            linear("q_b_proj", queries, self.q_rank)
            found[f"{layer}self_attn.q_a_layernorm.weight"] = (self.q_rank,)
        else:
            linear("q_proj", queries, self.width)
        linear("kv_a_proj_with_mqa", self.kv_rank + self.rotated, self.width, self.bias)
        linear("kv_b_proj", self.heads * (self.others + self.values), self.kv_rank)
        found[f"{layer}self_attn.kv_a_layernorm.weight"] = (self.kv_rank,)
        linear("o_proj", self.width, self.heads * self.values, self.bias)
        return found


@dataclass(frozen=True)
class Nothing:
    """In place of o_proj, which Latent has."""

    def shapes(self, layer: str) -> Shapes:
        return {}


@dataclass(frozen=True)
class Experts:
    """A layer's router, experts and shared expert."""

    width: int
    inner: int
    shared: int
    experts: int
    chosen: int
    groups: int
    groups_kept: int
    normalize: bool
    scale: float
    activation: str

    def shapes(self, layer: str) -> Shapes:
        module = layer + "mlp."
        found: Shapes = {module + "gate.weight": (self.experts, self.width), module + "gate.e_score_correction_bias": (self.experts,)}
        for e in range(self.experts):
            found |= mlp_shapes(f"{module}experts.{e}.", PARTS, self.width, self.inner)
        return found | mlp_shapes(module + "shared_experts.", PARTS, self.width, self.shared)

    def build(self, weights: Weights, layer: str) -> SparseMLP:
        module = layer + "mlp."
        router = Router(weights.router(module + "gate"), self.chosen, scoring="sigmoid", groups=self.groups,
                        groups_kept=self.groups_kept, normalize=self.normalize, scale=self.scale,
                        correction=weights.vector(module + "gate.e_score_correction_bias"))
        gate, up, down = ([f"{module}experts.{e}.{part}" for e in range(self.experts)] for part in PARTS)
        return SparseMLP(router, weights.expert_linear(list(zip(gate, up)), self.activation),
                         weights.expert_linear([(name,) for name in down]),
                         gated_mlp(weights, module + "shared_experts.", self.activation))


class LatentAttention:
    """q = q_b(norm(q_a(x))); of each head k = k_b(c) after a rotated part that all heads share, v = v_b(c), c = norm(kv_a(x))."""

    def __init__(self, size: Latent, weights: Weights, layer: str, eps: float, scale: float, interleaved: bool) -> None:
        s = self.size = size
        layer += "self_attn."
        self.scale, self.interleaved = scale, interleaved
        head = s.rotated + s.others
        heads = np.arange(s.heads)[:, None]
        # The file has a head's rotated channels last.
        order = (heads * head + np.concatenate([np.arange(s.others, head), np.arange(s.others)])).ravel()
        self.q_a: Optional[Linear] = None
        self.q_norm: Optional[RMSNorm] = None
        if s.q_rank:
            self.q_a, self.q_norm = weights.linear(layer + "q_a_proj"), weights.rms_norm(layer + "q_a_layernorm", eps)
        self.q = weights.linear(layer + ("q_b_proj" if s.q_rank else "q_proj"), rows=order)
        self.kv_a, self.kv_norm = weights.linear(layer + "kv_a_proj_with_mqa"), weights.rms_norm(layer + "kv_a_layernorm", eps)
        self.kv_b, self.out = weights.linear(layer + "kv_b_proj"), weights.linear(layer + "o_proj")

        def index(parts: np.ndarray) -> Tensor:
            return Tensor.from_numpy(np.ascontiguousarray(parts, np.int32).ravel())

        pair, width = s.others + s.values, s.heads * (s.others + s.values)
        shared = np.broadcast_to(width + np.arange(s.rotated), (s.heads, s.rotated))
        self.keys = index(np.concatenate([shared, heads * pair + np.arange(s.others)], 1))
        filled = np.full((s.heads, head - s.values), -1)
        self.values = index(np.concatenate([heads * pair + s.others + np.arange(s.values), filled], 1))
        self.cut = index(heads * head + np.arange(s.values))

    def __call__(self, x: Tensor, residual: Optional[Tensor], step: "Step", pages: "LayerPages", rope_table: Tensor) -> Tensor:
        s = self.size
        q = self.q(x if self.q_a is None else self.q_norm(self.q_a(x)))
        latent = self.kv_a(x)
        shared = latent.columns(s.kv_rank, s.kv_rank + s.rotated)
        _core.rope_(q, rope_table, s.rotated + s.others, self.interleaved)
        _core.rope_(shared, rope_table, s.rotated, self.interleaved)
        kv = self.kv_b(self.kv_norm(latent.columns(0, s.kv_rank)))
        k, v = _core.gather_columns(kv, self.keys, shared), _core.gather_columns(kv, self.values)
        where = pages.k, pages.v, step.page_table, step.sequences, step.positions
        scales = {"k_scales": pages.k_scales, "v_scales": pages.v_scales}
        _core.kv_write(k, v, *where, **scales)
        mixed = _core.attention(q, *where, self.scale, **scales)
        return self.out(_core.gather_columns(mixed, self.cut), residual)


class Block(decoder.Block):
    def make_attention(self, c: DecoderConfig, weights: Weights, i: int) -> LatentAttention:
        return LatentAttention(c.layer[i].qkv, weights, f"{c.layers_name}{i}.", c.norm_eps, c.attention_scale, c.interleaved)


class Model(decoder.Decoder):
    def block(self, i: int) -> Block:
        return Block(self.config, self._weights, i)


def folds(c: DecoderConfig, i: int) -> list[Fold]:
    """None: two products share what the attention's norm gives."""
    return []


def layers_prefix(c: DecoderConfig) -> Union[str, tuple[str, ...]]:
    """Of the layers that are run: a file may have one more for each further token it was trained to predict."""
    return tuple(f"{c.layers_name}{i}." for i in range(c.layers))


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    rotated = fields.integer("qk_rope_head_dim", 2, MAX_HEAD_DIM, default=64)
    others = fields.integer("qk_nope_head_dim", 1, MAX_HEAD_DIM - rotated, default=128)
    values = fields.integer("v_head_dim", 1, rotated + others, default=128)
    sizes: dict[str, Any] = read_sizes(fields.filled(head_dim=rotated), checkpoint) | {"head_dim": rotated + others}
    if sizes["kv_heads"] != sizes["heads"]:
        raise fields.error("num_key_value_heads", f"num_attention_heads, {sizes['heads']}: every head has its own keys")
    rope = read_rope(fields, rotated, sizes["max_positions"])
    q_rank = 0 if fields.raw.get("q_lora_rank", 1) is None else fields.integer("q_lora_rank", 1, MAX_WIDTH, default=1536)
    attention = Latent(sizes["hidden_size"], sizes["heads"], rotated, others, values, q_rank,
                       fields.integer("kv_lora_rank", 1, MAX_WIDTH, default=512), fields.boolean("attention_bias", default=False))
    function = activation(fields, "hidden_act", "silu")
    experts = read_experts(fields, "n_routed_experts", sizes["layers"])
    inner = fields.integer("moe_intermediate_size", 1, MAX_WIDTH, default=2048)
    groups = fields.integer("n_group", 1, experts, default=8)
    if experts % groups:
        raise fields.error("n_group", f"a divisor of n_routed_experts, {experts}")
    kept = fields.integer("topk_group", 1, groups, default=4)
    mlp = Experts(sizes["hidden_size"], inner, inner * fields.integer("n_shared_experts", 1, 1024, default=1), experts,
                  fields.integer("num_experts_per_tok", 1, experts // groups * kept, default=8), groups, kept,
                  fields.boolean("norm_topk_prob", default=True),
                  fields.number("routed_scaling_factor", 0.0, 1e6, default=2.5), function)
    dense = gated_feed(sizes, read_inner(fields), function)
    first = fields.integer("first_k_dense_replace", 0, MAX_LAYERS, default=3)
    return DecoderConfig(
        **sizes | {"max_positions": rope.max_positions}, norm="rms", ropes=(rope,),
        layer=tuple(Layer(attention, Nothing(), dense if i < first else mlp) for i in range(sizes["layers"])),
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6), attention_scale=_scale(fields, rotated + others),
        interleaved=fields.boolean("rope_interleave", default=True), tied=fields.boolean("tie_word_embeddings", default=False))


def _scale(fields: "Fields", head_dim: int) -> float:
    """Of scores: stretched rope wants them sharper, by the square of yarn's factor for mscale_all_dim."""
    values = rope_parameters(fields)
    mscale = values.get("mscale_all_dim") if values["rope_type"] == "yarn" else None
    sharper = yarn_scale(values.get("factor", 1.0), mscale) if mscale else 1.0
    return head_dim**-0.5 * sharper * sharper
