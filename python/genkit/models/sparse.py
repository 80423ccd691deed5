"""Llama with experts in place of the MLP, on some layers or on all: what mixtral.py, qwen2_moe.py, qwen3_moe.py and olmoe.py
share. A model gives its own names of the experts' tensors and its switches."""

from dataclasses import dataclass, fields as fields_of
from typing import TYPE_CHECKING, Any, Union

from genkit.models import llama
from genkit.models.config import MAX_LAYERS, MAX_WIDTH, Fold, read_experts
from genkit.models.llama import LlamaConfig, LlamaModel
from genkit.moe import Router, SparseMLP
from genkit.nn import GatedMLP, Weights

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields


@dataclass(frozen=True)
class SparseConfig(LlamaConfig):
    experts: int
    chosen: int  # experts a row goes to
    expert_size: int
    normalize: bool  # weights of the chosen add up to 1
    sparse: tuple[bool, ...]  # layers that have experts; the others have Llama's MLP
    shared_size: int = 0  # of the expert every row goes to, 0 for none
    module: str = "mlp"  # what a layer's router and experts are called
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")  # of an expert


def sparse_config(base: LlamaConfig, fields: "Fields", experts_key: str, **settings: Any) -> SparseConfig:
    """The settings config.json shares with Llama, and the experts'."""
    experts = read_experts(fields, experts_key, base.layers)
    given = {f.name: getattr(base, f.name) for f in fields_of(base)}
    settings.setdefault("sparse", (True,) * base.layers)
    return SparseConfig(**given, experts=experts, chosen=fields.integer("num_experts_per_tok", 1, experts), **settings)


def sparse_layers(fields: "Fields", layers: int) -> tuple[bool, ...]:
    """Qwen's rule: every decoder_sparse_step-th layer, but none of mlp_only_layers."""
    step = fields.integer("decoder_sparse_step", 1, MAX_LAYERS, default=1)
    dense = fields.integers("mlp_only_layers", 0, MAX_LAYERS, default=[])
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))


def expert_size(fields: "Fields", default: int) -> int:
    return fields.integer("moe_intermediate_size", 1, MAX_WIDTH, default=default)


def tensor_shapes(c: SparseConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the checkpoint must hold."""
    shapes = llama.tensor_shapes(c)
    for i in range(c.layers):
        if not c.sparse[i]:
            continue
        layer = f"model.layers.{i}."
        for part in ("gate_proj", "up_proj", "down_proj"):
            del shapes[f"{layer}mlp.{part}.weight"]
        shapes |= expert_shapes(c, f"{layer}{c.module}.")
    return shapes


def expert_shapes(c: SparseConfig, module: str) -> dict[str, tuple[int, ...]]:
    """Of a layer's router, experts and shared expert."""
    shapes: dict[str, tuple[int, ...]] = {module + "gate.weight": (c.experts, c.hidden_size)}
    for e in range(c.experts):
        shapes |= mlp_shapes(f"{module}experts.{e}.", c.parts, c.hidden_size, c.expert_size)
    if c.shared_size:
        shapes |= mlp_shapes(module + "shared_expert.", c.parts, c.hidden_size, c.shared_size)
        shapes[module + "shared_expert_gate.weight"] = (1, c.hidden_size)
    return shapes


def mlp_shapes(prefix: str, parts: tuple[str, str, str], width: int, inner: int) -> dict[str, tuple[int, ...]]:
    gate, up, down = (f"{prefix}{part}.weight" for part in parts)
    return {gate: (inner, width), up: (inner, width), down: (width, inner)}


def gated_mlp(weights: Weights, prefix: str, activation: str) -> GatedMLP:
    return GatedMLP(weights.gated_linear(prefix + "gate_proj", prefix + "up_proj", activation=activation),
                    weights.linear(prefix + "down_proj"))


def sparse_mlp(c: SparseConfig, weights: Weights, module: str) -> SparseMLP:
    gate, up, down = c.parts
    experts = [f"{module}experts.{e}." for e in range(c.experts)]
    router = Router(weights.router(module + "gate"), c.chosen, normalize=c.normalize)
    gate_up = weights.expert_linear([(e + gate, e + up) for e in experts], c.activation)
    mlp = SparseMLP(router, gate_up, weights.expert_linear([(e + down,) for e in experts]))
    if c.shared_size:
        mlp.shared = gated_mlp(weights, module + "shared_expert.", c.activation)
        mlp.shared_gate = weights.router(module + "shared_expert_gate")
    return mlp


class Block(llama.Block):
    def make_mlp(self, c: SparseConfig, weights: Weights, i: int) -> Union[GatedMLP, SparseMLP]:
        if not c.sparse[i]:
            return super().make_mlp(c, weights, i)
        return sparse_mlp(c, weights, f"model.layers.{i}.{c.module}.")


class Model(LlamaModel):
    def block(self, i: int) -> Block:
        return Block(self.config, self._weights, i)


def folds(c: SparseConfig, i: int) -> list[Fold]:
    """As Llama's; what goes into experts goes into their router too, so nothing can be scaled there."""
    found = llama.folds(c, i)
    return [fold for fold in found if not (c.sparse[i] and ".mlp." in fold.consumers[0])]


layers_prefix = llama.layers_prefix
