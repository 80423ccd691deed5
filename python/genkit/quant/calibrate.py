"""Rounding that looks at what a layer is given: layer after layer over the core's own forward pass.

A layer runs as the source has it, over hidden states that the small layers before it made, and its products' inputs are
watched. Then its matrices are rounded and written, and the states go on through the layer read back from the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

import numpy as np

from genkit import _core, models
from genkit.nn import Tensor
from genkit.quant.awq import awq_scales, fold_into_norm, fold_into_rows
from genkit.quant.codes import Codes
from genkit.quant.formats import Format
from genkit.quant.gptq import Factor, factorize, gptq, keep_better
from genkit.quant.quantize import Run
from genkit.quant.rounding import round_matrix
from genkit.quant.streaming import Streamed

if TYPE_CHECKING:
    from genkit.models.config import Fold
    from genkit.opening import Opened

HEAD_ROWS = 16 << 20  # weights of the head at a time
Sequences = Sequence[Sequence[int]]
Open = Callable[[], "Opened"]


@dataclass
class Inputs:
    """Of one product, over all rows seen: mean x x^T float32 [k, k], and mean |x| float64 [k]."""

    hessian: np.ndarray
    sizes: np.ndarray
    rows: int = 0

    def add(self, x: Tensor) -> None:
        rows = x.numpy()
        turned = Tensor.from_numpy(np.ascontiguousarray(rows.T))
        self.hessian += _core.linear(turned, turned).numpy()  # the core's product: the same bits with any number of threads
        self.sizes += np.abs(rows).sum(0, dtype=np.float64)
        self.rows += len(rows)

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        count = max(1, self.rows)
        return self.hessian / np.float32(count), (self.sizes / count).astype(np.float32)


class Watch:
    """Collects Inputs for every product."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[str, ...], Inputs] = {}

    def __call__(self, names: tuple[str, ...], x: Tensor) -> None:
        if names not in self.inputs:
            k = x.shape[1]
            self.inputs[names] = Inputs(np.zeros((k, k), np.float32), np.zeros(k))
        self.inputs[names].add(x)


def calibrated(run: Run, sequences: Sequences, reopen: Open) -> None:
    """Writes all tensors of the plan. reopen: opens the output as far as it is written."""
    plan, watch = run.plan, Watch()
    c = plan.source.config
    layers: list[list[str]] = [[] for _ in range(c.layers)]
    for name, layer in plan.roles.layers.items():
        layers[layer].append(name)
    scaled = [models.folds(plan.source.fields, c, i) if plan.method == "awq" else [] for i in range(c.layers)]
    norms = [[name for fold in folds for name in (fold.norm, fold.norm_bias) if name] for folds in scaled]
    later = {name for names in [*layers, *norms] for name in names}
    _head(run, sequences)
    run.simple([name for name in plan.kinds if name not in later])
    made = reopen()
    states = Streamed(made.fields, made.checkpoint, sequences)
    source = Streamed(plan.source.fields, plan.checkpoint, sequences, tap=watch)
    source.states = states.states
    for i, names in enumerate(layers):
        if any(name not in run.finished for name in names + norms[i]):
            watch.inputs.clear()
            source.apply(source.block(i), keep=False)
            if plan.method == "awq":
                _scaled_layer(run, watch, scaled[i])
            else:
                _solved_layer(run, watch)
            run.simple(names)  # what was not watched: experts
        states.apply(states.block(i))


def _head(run: Run, sequences: Sequences) -> None:
    """The head, or the embedding that serves as one, over what the float model gives it. Layers come after, since their
    states begin at the small embedding."""
    plan = run.plan
    name = plan.roles.head or plan.roles.embedding
    kind = plan.kinds[name]
    if name in run.finished or not isinstance(kind, Format):
        return
    final = Streamed(plan.source.fields, plan.checkpoint, sequences)
    for i in range(plan.source.config.layers):
        final.apply(final.block(i))
    n, k = shape = plan.roles.matrices[name]
    inputs = Inputs(np.zeros((k, k), np.float32), np.zeros(k))
    for i in range(len(sequences)):
        inputs.add(final.head_inputs(i))
    hessian, _ = inputs.means()
    factor = factorize(hessian) if plan.method == "gptq" else None
    step = max(32, HEAD_ROWS // k // 32 * 32) if plan.writer.by_rows else n
    step = -(-step // plan.writer.row_multiple) * plan.writer.row_multiple

    def pieces() -> Iterator[tuple[int, int, Codes]]:
        for begin in range(0, n, step):
            weight = plan.checkpoint.load_rows(name, shape, begin, min(begin + step, n))
            if factor is None:
                yield begin, n, round_matrix(weight, kind, True, np.ascontiguousarray(np.diagonal(hessian)))
            else:
                yield begin, n, best(_core.convert(weight, "f32").numpy(), hessian, factor, kind)[0]

    run.put(name, pieces(), "gptq" if factor is not None else "search")


def _solved_layer(run: Run, watch: Watch) -> None:
    for product in list(watch.inputs):
        hessian, _ = watch.inputs.pop(product).means()
        factor = factorize(hessian)
        for name in product:
            kind = run.plan.kinds[name]
            if name in run.finished:
                continue
            if isinstance(kind, Format):
                _put(run, name, *best(_floats(run, name), hessian, factor, kind))
            else:
                run.simple([name])


def best(weight: np.ndarray, hessian: np.ndarray, factor: Factor, format: Format) -> tuple[Codes, str]:
    """GPTQ's codes; of rows where they lose more of the output than the search weighted by the inputs' mean squares, that
    one's."""
    searched = round_matrix(weight, format, True, factor.importance)
    found = gptq(weight, hessian, format, factor=factor)
    codes, better = keep_better(weight, hessian, searched, found.codes)
    if not better.any():
        return codes, "search" + (f" ({found.note})" if found.note else "")
    return codes, "gptq" if better.all() else f"gptq, {int((~better).sum())} of {len(better)} rows by search"


def _scaled_layer(run: Run, watch: Watch, folds: "list[Fold]") -> None:
    """AWQ: scales of every product's inputs first, then the matrices with what is folded into them from both sides."""
    plan = run.plan
    columns: dict[str, np.ndarray] = {}  # matrix -> what its columns are multiplied by
    rows: dict[str, np.ndarray] = {}  # and its rows divided by
    hessians = {}
    for product, inputs in watch.inputs.items():
        hessian, sizes = inputs.means()
        hessians |= dict.fromkeys(product, hessian)
        fold = next((fold for fold in folds if fold.consumers == product), None)
        kind = plan.kinds[product[0]]
        scales = np.ones(len(sizes), np.float32)
        if fold is not None and isinstance(kind, Format):
            scales = awq_scales([_floats(run, name) for name in product], sizes, hessian, kind)
        if fold is not None and fold.norm:
            scales = _fold_norm(run, fold, scales)
        elif fold is not None and (scales != 1).any():
            rows[fold.rows] = scales
        columns |= dict.fromkeys(product, scales)
    for name, scales in columns.items():
        if name in run.finished:
            continue
        kind, weight = plan.kinds[name], _floats(run, name)
        if name in rows:
            weight, _ = fold_into_rows(weight, rows[name])
        weight = weight * scales
        if isinstance(kind, Format):
            importance = np.ascontiguousarray(np.diagonal(hessians[name])) / scales**2
            _put(run, name, round_matrix(weight, kind, True, importance), "awq" if (scales != 1).any() or name in rows else "search")
        else:
            stored = weight.T if name in plan.roles.transposed else weight
            made = run.converted(Tensor.from_numpy(np.ascontiguousarray(stored)), kind, name)
            run.put(name, iter([(0, len(stored), made)]), "converted")


def _fold_norm(run: Run, fold: "Fold", scales: np.ndarray) -> np.ndarray:
    """Writes the norm with its scales; they come back as its rounding made them."""
    plan = run.plan
    kind = plan.kinds[fold.norm]
    norm = plan.checkpoint.load_f32(fold.norm, plan.roles.shape(fold.norm)).numpy()
    folded, scales = fold_into_norm(norm, scales, kind, fold.offset)
    written = [(fold.norm, folded)]
    if fold.norm_bias:
        written.append((fold.norm_bias, plan.checkpoint.load_f32(fold.norm_bias, plan.roles.shape(fold.norm_bias)).numpy() / scales))
    for name, values in written:
        if name not in run.finished:
            run.put(name, iter([(0, len(values), run.converted(Tensor.from_numpy(values), plan.kinds[name], name))]), "awq")
    return scales


def _floats(run: Run, name: str) -> np.ndarray:
    """A matrix as float32 [n, k]."""
    plan, shape = run.plan, run.plan.roles.shape(name)
    if name in plan.roles.transposed:
        weight = plan.checkpoint.load_transposed(name, (shape[1], shape[0]))
    else:
        weight = plan.checkpoint.load(name, shape)
    return (_core.convert(weight, "f32") if weight.dtype != "f32" else weight).numpy()


def _put(run: Run, name: str, codes: Codes, method: str) -> None:
    n = codes.shape[0]
    step = n if not run.plan.writer.by_rows else 4096
    run.put(name, ((begin, n, codes.rows(begin, min(begin + step, n))) for begin in range(0, n, step)), method)
