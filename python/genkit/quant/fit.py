"""Types tensor by tensor so that a model fits into a given memory, bits spent where they save most of the output error.

Every matrix begins as the smallest type. The step to a larger one that lowers the sum of relative output errors most for
each byte is taken, again and again, as long as the whole fits. Output errors come from one sequence of text sent through
the float model; of the embedding, and of a head, from rows of the weights themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Optional, Sequence

import numpy as np

from genkit import _core
from genkit.checkpoints.files import size_words
from genkit.errors import UsageError
from genkit.kv_cache import page_bytes, pages_for
from genkit.nn import Tensor
from genkit.quant.formats import Format
from genkit.quant.rounding import round_matrix
from genkit.quant.streaming import Streamed

if TYPE_CHECKING:
    from genkit.quant.quantize import Plan
    from genkit.quant.writers.base import Kind

STEPS = ("int4", "int8", "bf16")  # from small to large
SAMPLED_ROWS = 1024
CHUNK = 512  # rows of a prefill, whose intermediates need memory too


@dataclass
class Choice:
    """What one group of matrices may become: bytes in memory and relative squared output error of each step."""

    names: tuple[str, ...]
    kinds: "list[Kind]"
    nbytes: list[float]
    errors: list[float]
    step: int = 0

    def gain(self) -> float:
        """Of the next step, error a byte; negative where there is none."""
        if self.step + 1 == len(self.kinds):
            return -1.0
        more = self.nbytes[self.step + 1] - self.nbytes[self.step]
        return max(0.0, self.errors[self.step] - self.errors[self.step + 1]) / max(more, 1.0)


def choose(plan: "Plan", sequence: Sequence[int], progress: Optional[Callable[[str, int, int], None]] = None) -> dict[str, str]:
    """A type for every matrix. Raises UsageError where even the smallest does not fit."""
    recipe, config = plan.recipe, plan.source.config
    context = config.max_positions if recipe.context is None else recipe.context
    if not 1 <= context <= config.max_positions:
        raise UsageError(f"--context {context}: the model was made for 1 to {config.max_positions}")
    cache = pages_for(context) * page_bytes(config.layers, config.kv_heads, config.head_dim, "bf16")
    widest = max(n + k for n, k in plan.roles.matrices.values() if n != config.vocab_size)
    others = sum(4 * int(np.prod(shape)) for shape in plan.roles.others.values())
    fixed = cache + others + 4 * (CHUNK * 2 * widest + config.vocab_size)
    choices = [_choice(plan, names) for names in plan.roles.together]
    least = fixed + sum(choice.nbytes[0] for choice in choices)
    if least > recipe.fit:
        raise UsageError(f"--fit {size_words(recipe.fit)}: the smallest form takes {size_words(int(least))}, {size_words(cache)} of it "
                         f"keys and values of {context} tokens; give it more, or a smaller --context")
    _measure(plan, choices, sequence, progress)
    room = recipe.fit - least
    while True:
        best = max((c for c in choices if c.gain() >= 0 and c.nbytes[c.step + 1] - c.nbytes[c.step] <= room),
                   key=lambda c: c.gain(), default=None)
        if best is None:
            return {name: STEPS[choice.step] for choice in choices for name in choice.names}
        room -= best.nbytes[best.step + 1] - best.nbytes[best.step]
        best.step += 1


def _choice(plan: "Plan", names: tuple[str, ...]) -> Choice:
    recipe, made = plan.recipe, plan.writer
    count = sum(plan.roles.matrices[name][0] * plan.roles.matrices[name][1] for name in names)
    kinds = [made.format("int4", recipe.group_size, recipe.asymmetric), made.format("int8"), made.format("bf16")]
    return Choice(names, kinds, [count * (kind.bits if isinstance(kind, Format) else 16) / 8 for kind in kinds], [0.0] * 3)


def _measure(plan: "Plan", choices: list[Choice], sequence: Sequence[int], progress: Optional[Callable[[str, int, int], None]]) -> None:
    inputs: dict[tuple[str, ...], np.ndarray] = {}
    by_names = {choice.names: choice for choice in choices}
    source = Streamed(plan.source.fields, plan.checkpoint, [sequence], tap=lambda names, x: inputs.__setitem__(names, x.numpy().copy()))
    for i in range(plan.source.config.layers):
        inputs.clear()
        source.apply(source.block(i))
        for names, x in inputs.items():
            _outputs(plan, by_names[names], Tensor.from_numpy(x))
        if progress is not None:
            progress("choosing types", i + 1, plan.source.config.layers)
    for choice in choices:
        if choice.names[0] not in plan.roles.layers or choice.names[0] in plan.roles.experts:
            _rows(plan, choice)


def _float(plan: "Plan", name: str) -> np.ndarray:
    shape = plan.roles.matrices[name]
    if name in plan.roles.transposed:
        return _core.convert(plan.checkpoint.load_transposed(name, shape[::-1]), "f32").numpy()
    return _core.convert(plan.checkpoint.load(name, shape), "f32").numpy()


def _outputs(plan: "Plan", choice: Choice, x: Tensor) -> None:
    size, errors = 0.0, [0.0] * len(choice.kinds)
    for name in choice.names:
        weight = _float(plan, name)
        wanted = _core.linear(x, Tensor.from_numpy(weight)).numpy()
        size += float(np.square(wanted, dtype=np.float64).sum())
        for i, kind in enumerate(choice.kinds):
            if isinstance(kind, Format):
                got = _core.linear(x, Tensor.from_numpy(np.ascontiguousarray(round_matrix(weight, kind, search=True).dequantize()))).numpy()
                errors[i] += float(np.square(got - wanted, dtype=np.float64).sum())
    choice.errors = [error / size if size else 0.0 for error in errors]


def _rows(plan: "Plan", choice: Choice) -> None:
    n, k = plan.roles.matrices[choice.names[0]]
    step = max(1, n * len(choice.names) // SAMPLED_ROWS)
    rows = np.concatenate([_core.convert(plan.checkpoint.load_rows(name, (n, k), i, i + 1), "f32").numpy()
                           for j, name in enumerate(choice.names) for i in range(-(j * n) % step, n, step)])
    size = float(np.square(rows, dtype=np.float64).sum())
    for i, kind in enumerate(choice.kinds):
        if isinstance(kind, Format):
            wrong = round_matrix(rows, kind, search=True).dequantize() - rows
            choice.errors[i] = float(np.square(wrong, dtype=np.float64).sum()) / size if size else 0.0
