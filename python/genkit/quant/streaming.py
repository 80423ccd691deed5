"""A model whose layers are read, used and dropped one after the other: memory holds a few of them, whatever its size.

Hidden states of all sequences wait between layers. The embedding gives single rows read from the file; the head is read
in slices. Numbers are those of the engine: the same blocks over the same ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Iterator, Optional, Sequence

import numpy as np

from genkit import _core, models
from genkit.checkpoints.files import shown_path
from genkit.kv_cache import KVCache, Step, pages_for
from genkit.kv_cache import Sequence as Cached
from genkit.nn import Embedding, GatedLinear, Linear, Tensor, Weights

if TYPE_CHECKING:
    from genkit.checkpoints import Checkpoint, Fields

HEAD_BYTES = 64 << 20  # of the head, as floats, in memory at a time
Tap = Callable[[tuple[str, ...], Tensor], None]  # the names of a product's matrices, and what goes into it [rows, k]


class Tapped:
    """A linear whose inputs somebody wants to see."""

    def __init__(self, linear: Any, names: tuple[str, ...], tap: Tap) -> None:
        self.linear, self.names, self._tap = linear, names, tap

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        self._tap(self.names, x)
        return self.linear(x, *rest)


class FileRows:
    """An embedding table [vocab, width] that stays in the file."""

    def __init__(self, checkpoint: "Checkpoint", name: str, shape: tuple[int, int]) -> None:
        self.checkpoint, self.name, self.shape = checkpoint, name, shape

    def __call__(self, ids: Tensor) -> Tensor:
        wanted, places = np.unique(ids.numpy(), return_inverse=True)
        rows = [_core.convert(self.checkpoint.load_rows(self.name, self.shape, int(i), int(i) + 1), "f32").numpy() for i in wanted]
        return Tensor.from_numpy(np.concatenate(rows)[places.reshape(-1)])


class FileHead:
    """A head [vocab, width] that stays in the file: a slice of its rows at a time is multiplied."""

    def __init__(self, slices: Callable[[], Iterator[tuple[int, Any]]], vocab: int) -> None:
        self._slices, self._vocab = slices, vocab

    def __call__(self, x: Tensor) -> Tensor:
        out = np.empty((x.shape[0], self._vocab), np.float32)
        for begin, linear in self._slices():
            part = linear(x).numpy()
            out[:, begin:begin + part.shape[1]] = part
        return Tensor.from_numpy(out)


class StreamedWeights(Weights):
    """Weights whose linears may be tapped, and whose table and head stay in the file."""

    tap: Optional[Tap] = None

    def _tapped(self, linear: Any, *names: str) -> Any:
        if self.tap is None:
            return linear
        return Tapped(linear, tuple(name + ".weight" for name in names), self.tap)

    def linear(self, *names: str, rows: Optional[np.ndarray] = None) -> Linear:
        return self._tapped(super().linear(*names, rows=rows), *names)

    def gated_linear(self, *names: str, activation: str) -> GatedLinear:
        return self._tapped(super().gated_linear(*names, activation=activation), *names)

    def linear_transposed(self, name: str) -> Linear:
        return self._tapped(super().linear_transposed(name), name)

    def embedding(self, name: str) -> Any:
        self.table = name + ".weight"
        return FileRows(self.checkpoint, self.table, self.shapes[self.table])

    def head(self, name: str, embedding: Embedding) -> Any:
        weight = name + ".weight"
        shape = self.shapes[self.table]
        if weight not in self.shapes and weight not in self.checkpoint:
            weight = self.table
        rows = max(1, HEAD_BYTES // (4 * shape[1]))
        bias = self._biases([name])

        def slices() -> Iterator[tuple[int, Any]]:
            for begin in range(0, shape[0], rows):
                end = min(begin + rows, shape[0])
                part = None if bias is None else Tensor.from_numpy(bias.numpy()[begin:end])
                yield begin, Linear(self.slice(weight, shape, begin, end), part)

        return FileHead(slices, shape[0])

    def slice(self, name: str, shape: tuple[int, int], begin: int, end: int) -> Any:
        """Rows of a matrix as a weight: codes stay codes."""
        stored = self.checkpoint.quantized.get(name)
        if stored is not None and stored.format is not None and stored.order is None:
            found = self.checkpoint.rows_to_run(name, shape, begin, end)
            if not isinstance(found, np.ndarray):
                return found.pack()
        return self.checkpoint.load_rows(name, shape, begin, end)


class Streamed:
    """A model and the hidden states of its sequences, [tokens, width] each, on their way through the layers."""

    def __init__(self, fields: "Fields", checkpoint: "Checkpoint", sequences: Sequence[Sequence[int]],
                 kv_type: str = "bf16", tap: Optional[Tap] = None) -> None:
        def weights(*arguments: Any) -> Weights:
            made = StreamedWeights(*arguments)
            made.tap = tap
            return made

        self.model = models.open_model(fields, checkpoint, weights)
        c = self.config = self.model.config
        self._cache = KVCache(1, c.kv_heads, c.head_dim, pages_for(max(map(len, sequences))), kv_type)
        self._arena = _core.Arena()
        self.where = shown_path(checkpoint.folder)
        self.tokens = [list(tokens) for tokens in sequences]
        self.states: list[np.ndarray] = []
        for tokens in self.tokens:
            self.states.append(self.model.start(self._step(tokens)).numpy().copy())

    def _step(self, tokens: Sequence[int]) -> Step:
        sequence = Cached()
        step = self._cache.step([(sequence, tokens)])
        self._cache.release(sequence)  # one at a time: the pages are written before they are read
        return step

    def block(self, i: int) -> Any:
        """Layer i, read now."""
        return self.model.block(i)

    def apply(self, block: Any, which: Optional[Sequence[int]] = None, keep: bool = True) -> None:
        """Sends the hidden states (of sequences `which`, default all) through a block; keep False: what comes out is lost."""
        for i in range(len(self.states)) if which is None else which:
            step = self._step(self.tokens[i])
            shared = self.model.shared(step)
            out = self._arena.run(block, Tensor.from_numpy(self.states[i]), step, self._cache.layers[0], *shared)
            if keep:
                self.states[i][...] = out.numpy()

    def head_inputs(self, i: int) -> Tensor:
        """Of sequence i, f32 [tokens, width], once all layers are behind it."""
        return self.model.norm(Tensor.from_numpy(self.states[i]))

    def logits(self, i: int, begin: int, end: int) -> Tensor:
        """Of rows [begin, end) of sequence i, f32 [rows, vocab], once all layers are behind it."""
        return self.model.finish(Tensor.from_numpy(self.states[i][begin:end]), self._step(self.tokens[i]))
