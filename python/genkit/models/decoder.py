"""Decoder-only transformers as data. A model file reads config.json into a DecoderConfig: what each layer is made of, under
the names its tensors have, and which of the variations below it has. The tensors a checkpoint must hold, the blocks and
the model follow from that.

x = embedding; per layer, with each norm that has a name:
  serial    x += post_attention_norm(attention(attention_norm(x))); x += post_mlp_norm(mlp(mlp_norm(x)))
  parallel  x += attention(attention_norm(x)) + mlp(mlp_norm(x)), where no mlp_norm means the attention's
logits = head(norm(x))
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np

from genkit import _core
from genkit.models.config import (MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH, Fold,
                                  ModelConfig, check_multiple)
from genkit.nn import MLP, Attention, GatedMLP, Norm, RoPE, Tensor, Weights, select_rows
from genkit.rope import Rope, read_rope

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint
    from genkit.kv_cache import KVCache, LayerPages, Step

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Product:
    """Matrices multiplied as one. parts: (name within the layer, outputs) of each, a matrix [outputs, inputs].

    groups = (count, queries, head_dim): rows of the one matrix lie in `count` groups of so many query heads, a key and a
    value head.
    """

    parts: tuple[tuple[str, int], ...]
    inputs: int
    bias: bool = False
    groups: Optional[tuple[int, int, int]] = None

    def names(self, layer: str) -> list[str]:
        return [layer + name for name, _ in self.parts]

    def shapes(self, layer: str) -> Shapes:
        found: Shapes = {}
        for name, outputs in self.parts:
            found[f"{layer}{name}.weight"] = (outputs, self.inputs)
            if self.bias:
                found[f"{layer}{name}.bias"] = (outputs,)
        return found

    def linear(self, weights: Weights, layer: str) -> Any:
        rows = None if self.groups is None else rows_by_kind(*self.groups)
        return weights.linear(*self.names(layer), rows=rows)


def rows_by_kind(count: int, queries: int, head_dim: int) -> np.ndarray:
    """i64: the order that puts Product.groups' rows as Attention wants them, all queries, all keys, all values."""
    heads = np.arange(count * (queries + 2)).reshape(count, queries + 2)
    order = np.concatenate([heads[:, :queries].ravel(), heads[:, -2], heads[:, -1]])
    return (order[:, None] * head_dim + np.arange(head_dim)).ravel()


@dataclass(frozen=True)
class Feed:
    """An MLP: down(f(up(x))), gated down(f(gate(x)) * up(x)) with gates and ups in `up`."""

    up: Product
    down: Product
    activation: str
    gated: bool = True

    def shapes(self, layer: str) -> Shapes:
        return self.up.shapes(layer) | self.down.shapes(layer)

    def build(self, weights: Weights, layer: str) -> Any:
        if self.gated:
            up = weights.gated_linear(*self.up.names(layer), activation=self.activation)
            return GatedMLP(up, self.down.linear(weights, layer))
        return MLP(self.up.linear(weights, layer), self.down.linear(weights, layer), self.activation)


@dataclass(frozen=True)
class Layer:
    """Names are those within the layer; "" for a norm that is not there."""

    qkv: Product
    out: Product
    mlp: Any  # a Feed, or what has its two methods
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    post_attention_norm: str = ""
    post_mlp_norm: str = ""
    window: int = 0  # keys it sees, 0 for all
    rope: Optional[int] = 0  # which of the model's; None: positions do not show


@dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    layer: tuple[Layer, ...]
    norm: str  # a key of NORMS
    norm_eps: float
    tied: bool  # the head is the embedding
    ropes: tuple[Rope, ...] = ()
    interleaved: bool = False  # neighbouring channels are rotated together
    alibi_slopes: tuple[float, ...] = ()
    attention_scale: Optional[float] = None  # None: head_dim ** -0.5
    attention_softcap: float = 0.0
    qk_norm: str = ""  # "head": one weight for all heads; "heads": one for each; "whole": all heads as one; in NORMS' kind
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    parallel: bool = False
    residual_is_normed: bool = False  # what a layer's parts are added to is what they were given
    residual_scale: float = 1.0  # of what a layer's parts add
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    head_bias: bool = False
    layers_name: str = "model.layers."
    embedding_name: str = "model.embed_tokens"
    embedding_norm_name: str = ""
    norm_name: str = "model.norm"
    head_name: str = "lm_head"

    @property
    def fresh_keys_beyond(self) -> int:
        return max((rope.fresh_keys_beyond for rope in self.ropes), default=0)

    def varies(self, longest: int) -> bool:
        return any(rope.varies(longest) for rope in self.ropes)


# The kinds of norm: whether there is a bias, and the making.
NORMS: dict[str, tuple[bool, Callable[[Weights, str, float], Norm]]] = {
    "rms": (False, lambda weights, name, eps: weights.rms_norm(name, eps)),
    "rms_plus_one": (False, lambda weights, name, eps: weights.rms_norm(name, eps, plus_one=True)),
    "layer": (True, lambda weights, name, eps: weights.layer_norm(name, eps)),
    "layer_no_bias": (False, lambda weights, name, eps: weights.layer_norm(name, eps)),
}


def tensor_shapes(c: DecoderConfig) -> Shapes:
    """Every tensor the checkpoint must hold."""
    def norm(name: str, width: int, bias: bool = NORMS[c.norm][0]) -> None:
        if name:
            shapes[name + ".weight"] = (width,)
        if name and bias:
            shapes[name + ".bias"] = (width,)

    shapes: Shapes = {c.embedding_name + ".weight": (c.vocab_size, c.hidden_size)}
    norm(c.embedding_norm_name, c.hidden_size)
    for i, layer in enumerate(c.layer):
        prefix = f"{c.layers_name}{i}."
        for part in (layer.qkv, layer.out, layer.mlp):
            shapes |= part.shapes(prefix)
        for name in (layer.attention_norm, layer.mlp_norm, layer.post_attention_norm, layer.post_mlp_norm):
            norm(name and prefix + name, c.hidden_size)
        for name, heads in ((c.q_norm, c.heads), (c.k_norm, c.kv_heads)):
            if c.qk_norm == "heads":
                for head in _head_names(prefix + name, heads):
                    norm(head, c.head_dim, bias=False)
            elif c.qk_norm:
                norm(prefix + name, c.head_dim * (heads if c.qk_norm == "whole" else 1))
    norm(c.norm_name, c.hidden_size)
    if not c.tied:
        shapes[c.head_name + ".weight"] = (c.vocab_size, c.hidden_size)
    if c.head_bias:
        shapes[c.head_name + ".bias"] = (c.vocab_size,)
    return shapes


def _head_names(name: str, heads: int) -> list[str]:
    return [f"{name}.norms.{head}" for head in range(heads)]


def layers_prefix(c: DecoderConfig) -> str:
    return c.layers_name


def folds(c: DecoderConfig, i: int) -> list[Fold]:
    """Of layer i. A norm that two products share, or whose output stays in x, is nobody's to scale; nor are values and ups
    that lie fused with others, have biases, or go through a function."""
    layer, prefix, found = c.layer[i], f"{c.layers_name}{i}.", []
    gated = isinstance(layer.mlp, Feed) and layer.mlp.gated
    consumers = [(layer.attention_norm, layer.qkv)]
    if isinstance(layer.mlp, Feed):
        consumers.append((layer.mlp_norm, layer.mlp.up))
    bias, plus_one = NORMS[c.norm][0], c.norm == "rms_plus_one"
    if not c.residual_is_normed and not (c.parallel and not layer.mlp_norm):
        for name, product in consumers:
            if name:
                found.append(Fold(_weights(product, prefix), norm=f"{prefix}{name}.weight",
                                  norm_bias=f"{prefix}{name}.bias" if bias else "", offset=1.0 if plus_one else 0.0))
    if c.heads == c.kv_heads and len(layer.qkv.parts) == 3 and not layer.qkv.bias:
        found.append(Fold(_weights(layer.out, prefix), rows=_weights(layer.qkv, prefix)[2]))
    if gated and len(layer.mlp.up.parts) == 2 and not layer.mlp.up.bias:
        found.append(Fold(_weights(layer.mlp.down, prefix), rows=_weights(layer.mlp.up, prefix)[1]))
    return found


def _weights(product: Product, prefix: str) -> tuple[str, ...]:
    return tuple(name + ".weight" for name in product.names(prefix))


class Block:
    def __init__(self, c: DecoderConfig, weights: Weights, i: int) -> None:
        layer, prefix = c.layer[i], f"{c.layers_name}{i}."

        def norm(name: str) -> Optional[Norm]:
            return NORMS[c.norm][1](weights, prefix + name, c.norm_eps) if name else None

        self.rope, self.parallel = layer.rope, c.parallel
        self.scale, self.residual_is_normed = c.residual_scale, c.residual_is_normed
        self.attention_norm, self.mlp_norm = norm(layer.attention_norm), norm(layer.mlp_norm)
        self.post_attention_norm, self.post_mlp_norm = norm(layer.post_attention_norm), norm(layer.post_mlp_norm)
        self.attention = self.make_attention(c, weights, i)
        self.mlp = layer.mlp.build(weights, prefix)

    def make_attention(self, c: DecoderConfig, weights: Weights, i: int) -> Any:
        layer, prefix = c.layer[i], f"{c.layers_name}{i}."

        def qk_norm(name: str, heads: int) -> Optional[Norm]:
            if c.qk_norm == "heads":
                return weights.layer_norm_heads(_head_names(prefix + name, heads), c.norm_eps)
            return NORMS[c.norm][1](weights, prefix + name, c.norm_eps) if c.qk_norm else None

        slopes = Tensor.from_numpy(np.array(c.alibi_slopes, np.float32)) if c.alibi_slopes else None
        return Attention(
            layer.qkv.linear(weights, prefix), layer.out.linear(weights, prefix), heads=c.heads, kv_heads=c.kv_heads,
            head_dim=c.head_dim, scale=c.attention_scale, window=layer.window, softcap=c.attention_softcap,
            alibi_slopes=slopes, interleaved=c.interleaved, q_norm=qk_norm(c.q_norm, c.heads),
            k_norm=qk_norm(c.k_norm, c.kv_heads))

    def __call__(self, x: Tensor, step: "Step", pages: "LayerPages", *rope_tables: Tensor) -> Tensor:
        table = None if self.rope is None else rope_tables[self.rope]
        normed = self.attention_norm(x) if self.attention_norm else x
        if self.parallel:
            mlp_input = self.mlp_norm(x) if self.mlp_norm else normed
            return self.mlp(mlp_input, self.attention(normed, x, step, pages, table))
        x = self._added(normed if self.residual_is_normed else x, self.post_attention_norm,
                        lambda residual: self.attention(normed, residual, step, pages, table))
        normed = self.mlp_norm(x) if self.mlp_norm else x
        return self._added(normed if self.residual_is_normed else x, self.post_mlp_norm,
                           lambda residual: self.mlp(normed, residual))

    def _added(self, x: Tensor, post_norm: Optional[Norm], part: Callable[[Optional[Tensor]], Tensor]) -> Tensor:
        """x + scale * post_norm(part); the part's last product adds x itself where nothing comes between."""
        if post_norm is None and self.scale == 1:
            return part(x)
        y = part(None)
        return _core.add(x, post_norm(y) if post_norm else y, *([] if self.scale == 1 else [self.scale]))


class Decoder:
    """`blocks` may be made and called one at a time, as quant/streaming.py does."""

    def __init__(self, config: DecoderConfig, weights: Weights) -> None:
        c = self.config = config
        norm = NORMS[c.norm][1]
        self._weights = weights
        self.embedding = weights.embedding(c.embedding_name)
        self.embedding_norm = norm(weights, c.embedding_norm_name, c.norm_eps) if c.embedding_norm_name else None
        self.norm = norm(weights, c.norm_name, c.norm_eps)
        self.head = weights.head(c.head_name, self.embedding)
        self.ropes = [RoPE(rope) for rope in c.ropes]
        self.blocks: list[Block] = []

    def block(self, i: int) -> Block:
        return Block(self.config, self._weights, i)

    def start(self, step: "Step") -> Tensor:
        """What the first block gets."""
        x = self.embedding(step.token_ids)
        if self.config.embedding_scale != 1:
            x = _core.scale(x, self.config.embedding_scale)
        return self.embedding_norm(x) if self.embedding_norm else x

    def shared(self, step: "Step") -> tuple[Tensor, ...]:
        """What every block gets beside its own."""
        return tuple(rope(step) for rope in self.ropes)

    def finish(self, x: Tensor, step: "Step") -> Tensor:
        logits = self.head(self.norm(select_rows(x, step.logit_rows)))
        if self.config.logit_scale != 1 or self.config.logit_softcap:
            logits = _core.scale(logits, self.config.logit_scale, self.config.logit_softcap)
        return logits

    def __call__(self, step: "Step", cache: "KVCache") -> Tensor:
        """-> logits f32 [len(step.logit_rows) or n, vocab_size]; the step's keys and values are in the cache."""
        x, shared = self.start(step), self.shared(step)
        for block, pages in zip(self.blocks, cache.layers):
            x = block(x, step, pages, *shared)
        return self.finish(x, step)


Model = Decoder


# What model files read config.json with.

def read_sizes(fields: "Fields", checkpoint: "Checkpoint", *, width: str = "hidden_size", layers: str = "num_hidden_layers",
               heads: str = "num_attention_heads", kv_heads: Optional[int] = None,
               positions: str = "max_position_embeddings") -> dict[str, Any]:
    """ModelConfig's values, under the keys most files have. kv_heads: where the file's num_key_value_heads does not say."""
    hidden_size = fields.integer(width, 1, MAX_WIDTH)
    count = fields.integer(heads, 1, MAX_HEADS)
    kv_count = kv_heads or fields.integer("num_key_value_heads", 1, MAX_HEADS, default=count)
    check_multiple(fields, heads, count, "the key-value heads", kv_count)
    head_dim = fields.integer("head_dim", 1, MAX_HEAD_DIM, default=None)
    if head_dim is None:
        check_multiple(fields, width, hidden_size, heads, count)
        head_dim = hidden_size // count
        if head_dim > MAX_HEAD_DIM:
            raise fields.error(width, f"at most {MAX_HEAD_DIM} for each of {count} heads")
    return dict(model_type=fields.model_type, vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB), hidden_size=hidden_size,
                layers=fields.integer(layers, 1, MAX_LAYERS), heads=count, kv_heads=kv_count, head_dim=head_dim,
                max_positions=fields.integer(positions, 1, MAX_POSITIONS, default=2048), weight_bytes=checkpoint.nbytes)


def read_rotary(fields: "Fields", sizes: dict[str, Any], **defaults: Any) -> Rope:
    """read_rope for these sizes, whose max_positions becomes what the rope is meant for."""
    rope = read_rope(fields, sizes["head_dim"], sizes["max_positions"], **defaults)
    sizes["max_positions"] = rope.max_positions
    return rope


def separate_qkv(sizes: dict[str, Any], bias: bool, prefix: str = "self_attn.") -> Product:
    q, kv = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    return Product(((prefix + "q_proj", q), (prefix + "k_proj", kv), (prefix + "v_proj", kv)), sizes["hidden_size"], bias)


def output(sizes: dict[str, Any], bias: bool, name: str = "self_attn.o_proj") -> Product:
    return Product(((name, sizes["hidden_size"]),), sizes["heads"] * sizes["head_dim"], bias)


def gated_feed(sizes: dict[str, Any], inner: int, activation: str, bias: bool = False, fused: bool = False) -> Feed:
    """gate_proj and up_proj, or fused in gate_up_proj; down_proj."""
    up = (("mlp.gate_up_proj", 2 * inner),) if fused else (("mlp.gate_proj", inner), ("mlp.up_proj", inner))
    down = Product((("mlp.down_proj", sizes["hidden_size"]),), inner, bias)
    return Feed(Product(up, sizes["hidden_size"], bias), down, activation)


def plain_feed(sizes: dict[str, Any], inner: int, activation: str, up: str, down: str, bias: bool = True) -> Feed:
    return Feed(Product(((up, inner),), sizes["hidden_size"], bias), Product(((down, sizes["hidden_size"]),), inner, bias),
                activation, gated=False)


def read_inner(fields: "Fields", key: str = "intermediate_size", default: Optional[int] = None) -> int:
    return fields.integer(key, 1, MAX_WIDTH) if default is None else fields.integer(key, 1, MAX_WIDTH, default=default)


def read_window(fields: "Fields", default: Optional[int] = None) -> int:
    """sliding_window, 0 where it is null; `default` where it is missing."""
    if "sliding_window" not in fields.raw and default is not None:
        return default
    return fields.integer("sliding_window", 1, MAX_POSITIONS, default=0)


def read_sliding(fields: "Fields", layers: int, pattern: Optional[int] = None) -> list[bool]:
    """Which layers have the window: by layer_types, else all but every sliding_window_pattern'th (pattern: its default;
    None: no layer)."""
    types = fields.optional("layer_types")
    if types is None:
        every = fields.integer("sliding_window_pattern", 1, MAX_LAYERS, default=pattern)
        return [every is not None and (i + 1) % every != 0 for i in range(layers)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
        raise fields.error("layer_types", f"{layers} of {', '.join(known)}, one a layer")
    return [t == "sliding_attention" for t in types]


def alibi_slopes(heads: int) -> np.ndarray:
    """float32 [heads]: powers of 2 ** (-8 / n) for n heads, n a power of two; others follow with every second of 2n's."""
    n = 1 << (heads.bit_length() - 1)
    powers = [2.0 ** (-8 * (i + 1) / n) for i in range(n)] + [2.0 ** (-4 * (2 * i + 1) / n) for i in range(heads - n)]
    return np.array(powers, np.float32)

