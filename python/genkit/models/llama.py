"""Llama (Touvron et al. 2023, arXiv:2302.13971; Llama 2, 3.x, TinyLlama, SmolLM) and Mistral (Jiang et al. 2023,
arXiv:2310.06825), which adds a sliding window.

x = embedding; per layer x += attention(rms_norm(x)), x += gated_mlp(rms_norm(x)); logits = head(rms_norm(x)).
qwen2.py and qwen3.py are this with other switches.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from genkit.models.config import (MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH, Fold,
                                  ModelConfig, activation, check_multiple)
from genkit.nn import Attention, GatedMLP, RMSNorm, RoPE, Tensor, Weights, select_rows
from genkit.rope import Rope, read_rope

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint
    from genkit.kv_cache import KVCache, Step


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    intermediate_size: int
    activation: str
    norm_eps: float
    rope: Rope
    windows: tuple[int, ...]  # keys each layer sees, 0 for all
    tied: bool  # the head is the embedding
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm on each query and key head

    @property
    def fresh_keys_beyond(self) -> int:
        return self.rope.fresh_keys_beyond

    def varies(self, longest: int) -> bool:
        return self.rope.varies(longest)


def llama_config(fields: "Fields", checkpoint: "Checkpoint", *, qkv_bias: Optional[bool] = None,
                 out_bias: Optional[bool] = None, mlp_bias: Optional[bool] = None, qk_norm: bool = False,
                 head_dim: Optional[int] = None, windows: Optional[tuple[int, ...]] = None) -> LlamaConfig:
    """config.json checked. The keywords are an architecture's fixed traits; None asks the file, as Llama does."""
    hidden_size = fields.integer("hidden_size", 1, MAX_WIDTH)
    layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    kv_heads = fields.integer("num_key_value_heads", 1, MAX_HEADS, default=heads)
    check_multiple(fields, "num_attention_heads", heads, "num_key_value_heads", kv_heads)
    if head_dim is None and fields.optional("head_dim") is None:
        check_multiple(fields, "hidden_size", hidden_size, "num_attention_heads", heads)
        head_dim = hidden_size // heads
    head_dim = fields.integer("head_dim", 1, MAX_HEAD_DIM, default=head_dim)
    positions = fields.integer("max_position_embeddings", 1, MAX_POSITIONS, default=2048)
    rope = read_rope(fields, head_dim, positions)
    attention_bias = fields.boolean("attention_bias", default=False)
    return LlamaConfig(
        model_type=fields.model_type,
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB),
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=rope.max_positions,
        weight_bytes=checkpoint.nbytes,
        intermediate_size=fields.integer("intermediate_size", 1, MAX_WIDTH),
        activation=activation(fields, "hidden_act", "silu"),
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        rope=rope,
        windows=(0,) * layers if windows is None else windows,
        tied=fields.boolean("tie_word_embeddings", default=False),
        qkv_bias=attention_bias if qkv_bias is None else qkv_bias,
        out_bias=attention_bias if out_bias is None else out_bias,
        mlp_bias=fields.boolean("mlp_bias", default=False) if mlp_bias is None else mlp_bias,
        qk_norm=qk_norm,
    )


def tensor_shapes(c: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the checkpoint must hold."""
    width, q, kv, inner = c.hidden_size, c.heads * c.head_dim, c.kv_heads * c.head_dim, c.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, width)}
    for i in range(c.layers):
        layer = f"model.layers.{i}."
        linears = [("self_attn.q_proj", (q, width), c.qkv_bias), ("self_attn.k_proj", (kv, width), c.qkv_bias),
                   ("self_attn.v_proj", (kv, width), c.qkv_bias), ("self_attn.o_proj", (width, q), c.out_bias),
                   ("mlp.gate_proj", (inner, width), c.mlp_bias), ("mlp.up_proj", (inner, width), c.mlp_bias),
                   ("mlp.down_proj", (width, inner), c.mlp_bias)]
        for name, shape, bias in linears:
            shapes[layer + name + ".weight"] = shape
            if bias:
                shapes[layer + name + ".bias"] = shape[:1]
        shapes[layer + "input_layernorm.weight"] = shapes[layer + "post_attention_layernorm.weight"] = (width,)
        if c.qk_norm:
            shapes[layer + "self_attn.q_norm.weight"] = shapes[layer + "self_attn.k_norm.weight"] = (c.head_dim,)
    shapes["model.norm.weight"] = (width,)
    if not c.tied:
        shapes["lm_head.weight"] = (c.vocab_size, width)
    return shapes


class Block:
    def __init__(self, c: LlamaConfig, weights: Weights, i: int) -> None:
        def norm(name: str) -> RMSNorm:
            return weights.rms_norm(layer + name, c.norm_eps)

        layer = f"model.layers.{i}."
        attention = layer + "self_attn."
        self.attention_norm = norm("input_layernorm")
        self.attention = Attention(
            weights.linear(attention + "q_proj", attention + "k_proj", attention + "v_proj"),
            weights.linear(attention + "o_proj"),
            heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, window=c.windows[i],
            q_norm=norm("self_attn.q_norm") if c.qk_norm else None,
            k_norm=norm("self_attn.k_norm") if c.qk_norm else None,
        )
        self.mlp_norm = norm("post_attention_layernorm")
        self.mlp = self.make_mlp(c, weights, i)

    def make_mlp(self, c: LlamaConfig, weights: Weights, i: int) -> GatedMLP:
        mlp = f"model.layers.{i}.mlp."
        return GatedMLP(weights.gated_linear(mlp + "gate_proj", mlp + "up_proj", activation=c.activation),
                        weights.linear(mlp + "down_proj"))

    def __call__(self, x: Tensor, step: "Step", pages: tuple[Tensor, Tensor], rope_table: Tensor) -> Tensor:
        x = self.attention(self.attention_norm(x), x, step, pages, rope_table)
        return self.mlp(self.mlp_norm(x), x)


class LlamaModel:
    """`blocks` may be made and called one at a time, as quant/streaming.py does."""

    def __init__(self, config: LlamaConfig, weights: Weights) -> None:
        self.config = config
        self._weights = weights
        self.embedding = weights.embedding("model.embed_tokens")
        self.norm = weights.rms_norm("model.norm", config.norm_eps)
        self.head = weights.head("lm_head", self.embedding)
        self.rope = RoPE(config.rope)
        self.blocks: list[Block] = []

    def block(self, i: int) -> Block:
        return Block(self.config, self._weights, i)

    def start(self, step: "Step") -> Tensor:
        """What the first block gets."""
        return self.embedding(step.token_ids)

    def shared(self, step: "Step") -> tuple[Tensor, ...]:
        """What every block gets beside its own."""
        return (self.rope(step),)

    def finish(self, x: Tensor, step: "Step") -> Tensor:
        return self.head(self.norm(select_rows(x, step.logit_rows)))

    def __call__(self, step: "Step", cache: "KVCache") -> Tensor:
        """-> logits f32 [len(step.logit_rows) or n, vocab_size]; the step's keys and values are in the cache."""
        x, shared = self.start(step), self.shared(step)
        for block, pages in zip(self.blocks, cache.layers):
            x = block(x, step, pages, *shared)
        return self.finish(x, step)


Model = LlamaModel


def folds(c: LlamaConfig, i: int) -> list[Fold]:
    """Of layer i. Biases of values and ups would have to be scaled too: such models keep theirs."""
    layer = f"model.layers.{i}."
    q, k, v, o = (f"{layer}self_attn.{part}_proj.weight" for part in "qkvo")
    gate, up, down = (f"{layer}mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
    found = [Fold((q, k, v), norm=layer + "input_layernorm.weight"),
             Fold((gate, up), norm=layer + "post_attention_layernorm.weight")]
    if c.heads == c.kv_heads and not c.qkv_bias:
        found.append(Fold((o,), rows=v))
    if not c.mlp_bias:
        found.append(Fold((down,), rows=up))
    return found


def layers_prefix(c: LlamaConfig) -> str:
    return "model.layers."


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> LlamaConfig:
    if fields.model_type != "mistral":
        return llama_config(fields, checkpoint)
    # A Mistral file that says nothing has the window of the first release; null is none.
    window = 4096
    if "sliding_window" in fields.raw:
        window = fields.integer("sliding_window", 1, MAX_POSITIONS, default=0)
    layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    return llama_config(fields, checkpoint, qkv_bias=False, out_bias=False, mlp_bias=False, windows=(window,) * layers)
