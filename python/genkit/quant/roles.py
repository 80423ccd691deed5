"""What each tensor of a model is for: asked of the model file itself, which is built without reading a weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional, Sequence

import numpy as np

from genkit import models
from genkit.nn import Embedding, ExpertLinear, LayerNorm, Linear, RMSNorm, Weights

if TYPE_CHECKING:
    from genkit.checkpoints import Checkpoint, Fields


COMPARED = 4 << 20  # weights compared at a time


@dataclass
class Roles:
    """matrices: name -> [n out, k in] of all that may be kept in codes, in the model's order; transposed: those the file
    holds as [k, n]. together: matrices that one product reads at once, so that all need one format. embedding and head
    are names; head is None where the embedding serves."""

    matrices: dict[str, tuple[int, int]] = field(default_factory=dict)
    transposed: set[str] = field(default_factory=set)
    together: list[tuple[str, ...]] = field(default_factory=list)
    others: dict[str, tuple[int, ...]] = field(default_factory=dict)
    embedding: str = ""
    head: str | None = None
    experts: set[str] = field(default_factory=set)  # matrices that only some rows go through
    fused: list[str] = field(default_factory=list)  # tensors that hold all experts of a layer
    layers: dict[str, int] = field(default_factory=dict)  # which block a matrix belongs to

    def shape(self, name: str) -> tuple[int, ...]:
        """[n, k] of a matrix, the file's shape of others."""
        return self.matrices.get(name) or self.others[name]


class _Survey(Weights):
    """Hands out layers without weights, and takes down what was asked for."""

    roles: Roles
    layer: int | None = None

    def _note(self, names: Sequence[str], transposed: bool = False) -> None:
        weights = tuple(name + ".weight" for name in names)
        for weight in weights:
            shape = self.shapes[weight]
            self.roles.matrices[weight] = shape[::-1] if transposed else shape
            if self.layer is not None:
                self.roles.layers[weight] = self.layer
            if transposed:
                self.roles.transposed.add(weight)
        self.roles.together.append(weights)

    def linear(self, *names: str, rows: Optional[np.ndarray] = None) -> Linear:
        self._note(names)
        return Linear(None)

    def gated_linear(self, *names: str, activation: str) -> Linear:
        self._note(names)
        return Linear(None)

    def router(self, name: str) -> Linear:
        return Linear(None)

    def expert_linear(self, names: Sequence[Sequence[str]], activation: str = "") -> ExpertLinear:
        """Of all experts: the core wants them in one format."""
        every = [name for parts in names for name in parts]
        self._note(every)
        self.roles.experts |= {name + ".weight" for name in every}
        return ExpertLinear(None)

    def fused_experts(self, name: str, rows: Optional[np.ndarray] = None, activation: str = "") -> ExpertLinear:
        self.roles.fused.append(name)
        return ExpertLinear(None)

    def vector(self, name: str) -> None:
        return None

    def linear_transposed(self, name: str) -> Linear:
        self._note([name], transposed=True)
        return Linear(None)

    def embedding(self, name: str) -> Embedding:
        self._note([name])
        self.roles.embedding = name + ".weight"
        return Embedding(None)

    def position_embedding(self, name: str) -> Embedding:
        return Embedding(None)

    def rms_norm(self, name: str, eps: float, plus_one: bool = False) -> RMSNorm:
        return RMSNorm(None, eps)

    def layer_norm(self, name: str, eps: float) -> LayerNorm:
        return LayerNorm(None, None, eps)

    def layer_norm_heads(self, names: Sequence[str], eps: float) -> LayerNorm:
        return LayerNorm(None, None, eps)

    def head(self, name: str, embedding: Embedding) -> Linear:
        weight = name + ".weight"
        if weight not in self.shapes and weight in self.checkpoint and not self._is_table(weight):
            self.shapes = dict(self.shapes) | {weight: self.shapes[self.roles.embedding]}
        if weight in self.shapes:
            self._note([name])
            self.roles.head = weight
        return Linear(None)

    def _is_table(self, head: str) -> bool:
        """Whether a head that config.json calls tied is the embedding, number for number."""
        table, shape = self.roles.embedding, self.shapes[self.roles.embedding]
        if {head, table} & set(self.checkpoint.quantized):
            return False
        step = max(1, COMPARED // shape[1])
        return all(self._rows(head, shape, i, step) == self._rows(table, shape, i, step) for i in range(0, shape[0], step))

    def _rows(self, name: str, shape: tuple[int, int], begin: int, count: int) -> bytes:
        return bytes(self.checkpoint.load_rows(name, shape, begin, min(begin + count, shape[0])).bytes())


def survey(fields: "Fields", checkpoint: "Checkpoint") -> Roles:
    """Raises BadFileError as building the model would, before any weight is read."""
    roles = Roles()
    shapes: dict[str, Any] = {}

    def weights(*arguments: Any) -> Weights:
        found = _Survey(*arguments)
        found.roles = roles
        shapes.update(found.shapes)
        return found

    model = models.open_model(fields, checkpoint, weights)
    for i in range(model.config.layers):
        model._weights.layer = i
        model.block(i)
    roles.others = {name: shape for name, shape in shapes.items() if name not in roles.matrices}
    return roles
