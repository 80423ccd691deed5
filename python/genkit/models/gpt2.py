"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each part, biases everywhere, an MLP without gate.

The linears' files hold [in, out] (the original's Conv1D). Names start with "transformer." or not, as the file was
saved from the whole model or from its body.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genkit import _core
from genkit.models.config import (MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH, Fold, ModelConfig, activation,
                                  check_multiple)
from genkit.nn import MLP, Attention, Tensor, Weights, select_rows

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint
    from genkit.kv_cache import KVCache, Step


@dataclass(frozen=True)
class GPT2Config(ModelConfig):
    intermediate_size: int
    activation: str
    norm_eps: float
    scales: tuple[float, ...]  # of each layer's attention scores
    tied: bool
    prefix: str  # of tensor names: "transformer." or ""


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> GPT2Config:
    if fields.boolean("add_cross_attention", default=False):
        raise fields.error("add_cross_attention", "false: only decoder-only models are supported")
    width = fields.integer("n_embd", 1, MAX_WIDTH)
    layers = fields.integer("n_layer", 1, MAX_LAYERS)
    heads = fields.integer("n_head", 1, MAX_HEADS)
    check_multiple(fields, "n_embd", width, "n_head", heads)
    head_dim = width // heads
    scale = head_dim**-0.5 if fields.boolean("scale_attn_weights", default=True) else 1.0
    by_layer = fields.boolean("scale_attn_by_inverse_layer_idx", default=False)
    return GPT2Config(
        model_type=fields.model_type,
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB),
        hidden_size=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        max_positions=fields.integer("n_positions", 1, MAX_POSITIONS, default=1024),
        weight_bytes=checkpoint.nbytes,
        intermediate_size=fields.integer("n_inner", 1, MAX_WIDTH, default=4 * width),
        activation=activation(fields, "activation_function", "gelu_new"),
        norm_eps=fields.number("layer_norm_epsilon", 0.0, 1.0, default=1e-5),
        scales=tuple(scale / (i + 1) if by_layer else scale for i in range(layers)),
        tied=fields.boolean("tie_word_embeddings", default=True),
        prefix="" if "wte.weight" in checkpoint else "transformer.",
    )


def tensor_shapes(c: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Every tensor the checkpoint must hold."""
    width = c.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        c.prefix + "wte.weight": (c.vocab_size, width),
        c.prefix + "wpe.weight": (c.max_positions, width),
    }
    linears = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width),
               "mlp.c_fc": (width, c.intermediate_size), "mlp.c_proj": (c.intermediate_size, width)}
    for i in range(c.layers):
        layer = f"{c.prefix}h.{i}."
        for name, shape in linears.items():
            shapes[f"{layer}{name}.weight"] = shape
            shapes[f"{layer}{name}.bias"] = shape[1:]
        for norm in ("ln_1", "ln_2"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (width,)
    shapes[c.prefix + "ln_f.weight"] = shapes[c.prefix + "ln_f.bias"] = (width,)
    if not c.tied:
        shapes["lm_head.weight"] = (c.vocab_size, width)
    return shapes


class Block:
    def __init__(self, c: GPT2Config, weights: Weights, i: int) -> None:
        layer = f"{c.prefix}h.{i}."
        self.attention_norm = weights.layer_norm(layer + "ln_1", c.norm_eps)
        self.attention = Attention(
            weights.linear_transposed(layer + "attn.c_attn"), weights.linear_transposed(layer + "attn.c_proj"),
            heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, scale=c.scales[i],
        )
        self.mlp_norm = weights.layer_norm(layer + "ln_2", c.norm_eps)
        self.mlp = MLP(weights.linear_transposed(layer + "mlp.c_fc"), weights.linear_transposed(layer + "mlp.c_proj"),
                       c.activation)

    def __call__(self, x: Tensor, step: "Step", pages: tuple[Tensor, Tensor]) -> Tensor:
        x = self.attention(self.attention_norm(x), x, step, pages)
        return self.mlp(self.mlp_norm(x), x)


class GPT2Model:
    def __init__(self, config: GPT2Config, weights: Weights) -> None:
        self.config = config
        self._weights = weights
        self.embedding = weights.embedding(config.prefix + "wte")
        self.positions = weights.position_embedding(config.prefix + "wpe")
        self.norm = weights.layer_norm(config.prefix + "ln_f", config.norm_eps)
        self.head = weights.head("lm_head", self.embedding)
        self.blocks: list[Block] = []

    def block(self, i: int) -> Block:
        return Block(self.config, self._weights, i)

    def start(self, step: "Step") -> Tensor:
        return _core.add(self.embedding(step.token_ids), self.positions(step.positions))

    def shared(self, step: "Step") -> tuple[Tensor, ...]:
        return ()

    def finish(self, x: Tensor, step: "Step") -> Tensor:
        return self.head(self.norm(select_rows(x, step.logit_rows)))

    def __call__(self, step: "Step", cache: "KVCache") -> Tensor:
        """-> logits f32 [len(step.logit_rows) or n, vocab_size]; the step's keys and values are in the cache."""
        x, shared = self.start(step), self.shared(step)
        for block, pages in zip(self.blocks, cache.layers):
            x = block(x, step, pages, *shared)
        return self.finish(x, step)


Model = GPT2Model


def folds(c: GPT2Config, i: int) -> list[Fold]:
    layer = f"{c.prefix}h.{i}."
    return [Fold((layer + "attn.c_attn.weight",), norm=layer + "ln_1.weight", norm_bias=layer + "ln_1.bias"),
            Fold((layer + "mlp.c_fc.weight",), norm=layer + "ln_2.weight", norm_bias=layer + "ln_2.bias")]


def layers_prefix(c: GPT2Config) -> str:
    return c.prefix + "h."
