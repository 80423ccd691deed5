"""Rounding that looks at what a layer is given: layer after layer over the core's own forward pass.

A layer runs as the source has it, over hidden states that the small layers before it made, and its products' inputs are
watched. Then its matrices are rounded and written, and the states go on through the layer read back from the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Sequence

import numpy as np

from genkit import _core
from genkit.nn import Tensor
from genkit.quant.codes import Codes
from genkit.quant.formats import Format
from genkit.quant.gptq import Factor, factorize, gptq, keep_better
from genkit.quant.quantize import Run
from genkit.quant.rounding import round_matrix
from genkit.quant.streaming import Streamed

if TYPE_CHECKING:
    from genkit.opening import Opened

Sequences = Sequence[Sequence[int]]
Open = Callable[[], "Opened"]


@dataclass
class Inputs:
    """Of one product: mean x x^T over all rows seen, float32 [k, k]."""

    hessian: np.ndarray
    rows: int = 0

    def add(self, x: Tensor) -> None:
        rows = x.numpy()
        turned = Tensor.from_numpy(np.ascontiguousarray(rows.T))
        self.hessian += _core.linear(turned, turned).numpy()  # the core's product: the same bits with any number of threads
        self.rows += len(rows)

    def mean(self) -> np.ndarray:
        return self.hessian / np.float32(max(1, self.rows))


class Watch:
    """Collects Inputs for the products it is told about."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[str, ...], Inputs] = {}

    def __call__(self, names: tuple[str, ...], x: Tensor) -> None:
        if names not in self.inputs:
            self.inputs[names] = Inputs(np.zeros((x.shape[1], x.shape[1]), np.float32))
        self.inputs[names].add(x)


def calibrated(run: Run, sequences: Sequences, reopen: Open) -> None:
    """Writes all tensors of the plan. reopen: opens the output as far as it is written."""
    plan, watch = run.plan, Watch()
    before = [name for name in plan.kinds if name not in plan.roles.layers and name != plan.roles.head]
    layers: list[list[str]] = [[] for _ in range(plan.source.config.layers)]
    for name, layer in plan.roles.layers.items():
        layers[layer].append(name)
    run.simple(before)
    made = reopen()
    states = Streamed(made.fields, made.checkpoint, sequences)
    source = Streamed(plan.source.fields, plan.checkpoint, sequences, tap=watch)
    source.states = states.states
    for i, names in enumerate(layers):
        if any(name not in run.finished for name in names):
            watch.inputs.clear()
            source.apply(source.block(i), keep=False)
            for product, inputs in list(watch.inputs.items()):
                hessian = inputs.mean()
                factor = factorize(hessian)
                for name in product:
                    if name not in run.finished:
                        _matrix(run, name, hessian, factor)
                del watch.inputs[product]
        states.apply(states.block(i))
    if plan.roles.head is not None:
        run.simple([plan.roles.head])


def _matrix(run: Run, name: str, hessian: np.ndarray, factor: Factor) -> None:
    plan, kind = run.plan, run.plan.kinds[name]
    shape = plan.roles.shape(name)
    if not isinstance(kind, Format):
        run.simple([name])
        return
    if name in plan.roles.transposed:
        weight = plan.checkpoint.load_transposed(name, (shape[1], shape[0]))
    else:
        weight = plan.checkpoint.load(name, shape)
    weight = _core.convert(weight, "f32").numpy() if weight.dtype != "f32" else weight.numpy()
    codes, method = best(weight, hessian, factor, kind)
    step = shape[0] if not plan.writer.by_rows else 4096
    run.put(name, ((begin, shape[0], codes.rows(begin, min(begin + step, shape[0]))) for begin in range(0, shape[0], step)), method)


def best(weight: np.ndarray, hessian: np.ndarray, factor: Factor, format: Format) -> tuple[Codes, str]:
    """GPTQ's codes; of rows where they lose more of the output than the search weighted by the inputs' mean squares, that
    one's."""
    searched = round_matrix(weight, format, True, factor.importance)
    found = gptq(weight, hessian, format, factor=factor)
    codes, better = keep_better(weight, hessian, searched, found.codes)
    if not better.any():
        return codes, "search" + (f" ({found.note})" if found.note else "")
    return codes, "gptq" if better.all() else f"gptq, {int((~better).sum())} of {len(better)} rows by search"
