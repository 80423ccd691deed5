"""A model on a device: how many of its layers fit there, and one of which only the last ones do.

The last layers and the head go to the device, since the next token is drawn there; the embedding, of which a step needs a few
rows, and the first layers stay on the processor. So a step crosses over once, with a row of hidden state for each token.
"""

from __future__ import annotations

import math
import re
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterable

from genkit import _core, machine
from genkit.devices import free_memory, place, using, weights
from genkit.errors import ResourceError
from genkit.kv_cache import KVCache, Step, page_bytes, pages_for
from genkit.plaintext import format_bytes

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import Checkpoint
    from genkit.models import Model
    from genkit.nn import Tensor

# Rows of a step whose memory is set aside while layers are placed: a chunk of a prompt (batch.PREFILL_CHUNK).
ROWS = 512
# Tokens whose keys and values are, where nobody says how long the context is to be.
TOKENS = 4096
# What only the processor needs of a model whose first layers stay there.
FIRST = ("embedding", "positions", "embedding_norm")


@dataclass(frozen=True)
class Placing:
    """Where a model's layers are, and what they take there."""

    device: str
    layers: int  # on the device, the last ones
    whole: bool  # with everything else
    weight_bytes: int
    free: int  # bytes that were free on the device before
    row_bytes: int  # that a step takes for each row
    logit_bytes: int  # and for each row of logits

    def step_bytes(self, rows: int, logit_rows: int) -> int:
        return rows * self.row_bytes + logit_rows * self.logit_bytes


class SplitModel:
    """As Model; called with the device in use. No step of it is recorded: a plan is one device's."""

    def __init__(self, near: "Model", far: "Model", device: str) -> None:
        self.config = near.config
        self._near, self._far, self._device = near, far, device

    @property
    def blocks(self) -> list[Any]:
        return self._near.blocks + self._far.blocks

    def __call__(self, step: Step, cache: KVCache) -> "Tensor":
        with using("cpu"):
            try:
                x = _core.Arena().run(self._begin, step, cache)
            except MemoryError:
                raise ResourceError("out of memory on the processor; use a smaller --context or more --gpu-layers") from None
        return _core.Arena().run(self._end, x.to(self._device), step, cache)

    def _begin(self, step: Step, cache: KVCache) -> "Tensor":
        parts = (_core.Tensor.from_numpy(part.numpy()) for part in (step.token_ids, step.positions, step.sequences, step.page_table))
        step = Step(*parts, step.logit_rows, step.context_length)
        x, shared = self._near.start(step), self._near.shared(step)
        for block, pages in zip(self._near.blocks, cache.layers):
            x = block(x, step, pages, *shared)
        return x

    def _end(self, x: "Tensor", step: Step, cache: KVCache) -> "Tensor":
        shared = self._far.shared(step)
        for block, pages in zip(self._far.blocks, cache.layers[len(self._near.blocks) :]):
            x = block(x, step, pages, *shared)
        return self._far.finish(x, step)


def load(model: "Model", checkpoint: "Checkpoint", device: str, gpu_layers: int | None, context: int | None, kv_type: str,
         bits: float | None) -> "tuple[Model, Placing]":
    """Reads the blocks of a model, the last one first, each to the device or to stay, and brings the rest after them. gpu_layers:
    so many of them to the device, None: as many as fit beside what a step needs. Raises ResourceError before any weight is on the
    device where so many do not fit, going by the file's header; and later, with all memory given back, where that was wrong."""
    c, free = model.config, free_memory(device)
    wanted = c.layers if gpu_layers is None else min(gpu_layers, c.layers)
    # Kernels' code and recorded steps take some that nobody tells of.
    budget = free - min(256 << 20, free // 32)
    # With a spare page for copies on write and one for padding rows, as the engine's caches have.
    cache = pages_for(min(c.max_positions, TOKENS) if context is None else context) + 2
    cache *= page_bytes(1, c.kv_heads, c.head_dim, kv_type)
    far = copy(model)
    first = [name for name in FIRST if name in vars(model)]
    for name in first:
        setattr(far, name, None)
    last = model.block(c.layers - 1)
    stored = stored_bytes(model._weights.shapes, checkpoint, c.layers, bits)
    row_bytes, logit_bytes = step_row_bytes(last), 3 * 4 * c.vocab_size
    need = taken = size_of(far) + ROWS * row_bytes + logit_bytes
    if gpu_layers is not None:
        need += sum(stored[c.layers - wanted :]) + wanted * cache
    if need > budget:
        raise _refused(c.layers, 0 if gpu_layers is None else wanted, need, free, device)
    blocks: list[Any] = []  # on the device, the last one first
    staying: list[Any] = []
    placed: dict[int, Any] = {}
    far = place(far, device, placed)
    for i in range(c.layers - 1, -1, -1):
        block = last if i == c.layers - 1 else model.block(i)
        size = size_of(block) + cache
        if len(blocks) == c.layers - 1 - i and len(blocks) < wanted:
            if taken + size <= budget:
                blocks.append(place(block, device, dict(placed)))
                taken += size
                last = block = None
                continue
            if gpu_layers is not None:
                raise _refused(c.layers, wanted, taken + size, free, device)
        if not staying and (left := sum(stored[:i])) > machine.memory_available():
            raise ResourceError(f"{len(blocks)} of {c.layers} layers are on the device, and the other ones need {format_bytes(left)}, "
                                f"{format_bytes(machine.memory_available())} of memory is available; take a smaller model or --quantize")
        staying.append(block)
    blocks.reverse()
    staying.reverse()
    if not staying and taken + size_of([vars(model)[name] for name in first], without=model.head) <= budget:
        for name in first:
            setattr(far, name, place(vars(model)[name], device, placed))
        far.blocks = blocks
        return far, _placing(far, device, c.layers, True, free, row_bytes, logit_bytes)
    far.blocks, model.blocks = blocks, staying
    model.head = model.norm = None
    return SplitModel(model, far, device), _placing(far, device, len(blocks), False, free, row_bytes, logit_bytes)


def _placing(far: "Model", device: str, layers: int, whole: bool, free: int, row_bytes: int, logit_bytes: int) -> Placing:
    return Placing(device, layers, whole, sum(weight.nbytes for weight in weights(far)), free, row_bytes, logit_bytes)


def _refused(layers: int, wanted: int, need: int, free: int, device: str) -> ResourceError:
    what = f"{wanted} of {layers} layers, their keys and values," if wanted else "the head"
    return ResourceError(f"--device {device}: {what} and a step's own memory need {format_bytes(need)}, "
                         f"and {format_bytes(free)} are free there; use fewer --gpu-layers (or auto), --quantize, a smaller "
                         "--context, --kv-type int8 or --device cpu")


def size_of(layer: Any, without: Any = None) -> int:
    """Bytes of a layer's weights, but for those that `without` has too."""
    other = {id(weight) for weight in weights(without)}
    return sum(weight.nbytes for weight in weights(layer) if id(weight) not in other)


def stored_bytes(names: Iterable[str], checkpoint: "Checkpoint", layers: int, bits: float | None) -> list[int]:
    """About what the weights of each layer take in memory, by the file's header: matrices in their codes, or rounded to so many
    bits. names: of the model's tensors."""
    found = [0.0] * layers
    for name in names:
        layer = re.search(r"\.(\d+)\.", name)  # an expert's number comes after it
        info, stored = checkpoint.tensors.get(name), checkpoint.quantized.get(name)
        if info is None or layer is None or int(layer[1]) >= len(found):
            continue
        numbers = math.prod(info.shape)
        if stored is not None and bits is None:
            need = max(numbers * (16 if name in checkpoint.widened else stored.format.bits) / 8, info.nbytes)  # with its scales
        elif len(info.shape) < 2:
            need = 4 * numbers
        elif info.dtype == "u8" and len(info.shape) > 2:  # MXFP4, two to a byte; eight bits each where they stay so
            need = 2 * numbers * (bits or 8) / 8
        else:
            need = info.nbytes if bits is None else numbers * bits / 8
        found[int(layer[1])] += need
    return [int(need) for need in found]


def step_row_bytes(block: Any) -> int:
    """What a row of a step takes while the block runs, at most: inputs and results of all its products at once. Rows of
    experts are as many as each is sent to."""
    chosen = getattr(getattr(getattr(block, "mlp", None), "router", None), "k", 1)
    row = 0
    for weight in weights(block):
        if isinstance(weight, _core.ExpertWeights):
            row += 2 * chosen * sum(weight.shape[1:])
        elif len(weight.shape) == 2:
            row += sum(weight.shape)
    return 4 * row
