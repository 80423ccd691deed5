"""Steps of one token a sequence over a KV cache: recorded when first asked for, replayed in the core afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence as Sized

import numpy as np

from genkit import _core
from genkit.kv_cache import KVCache, Sequence, Step, pages_for
from genkit.split import SplitModel

if TYPE_CHECKING:
    from genkit.decoding.sampling import History, Sampler, Tables
    from genkit.models import Model

# Of a table of what was said: a burst's tokens and most prompts fit, so that few plans are recorded anew for a larger one.
LEAST_CAPACITY = 1024


class _FixedStep(Step):
    """A step whose tensors stay while their contents change. Notes when the model asks for what would not."""

    asked = False
    longest = 0

    @property
    def context_length(self) -> int:
        self.asked = True
        return self._context_length

    @context_length.setter
    def context_length(self, value: int) -> None:
        self._context_length = value


def padded_rows(rows: int) -> int:
    """Rows of the step that is recorded for so many on a device: a power of two, the middle between two, beyond 64 a multiple of
    32. Products of a few rows work on 8 or 16 at once however many there are (with packed weights on 2, 4 or 8), of more on 32 or 64;
    experts go by rows, so no step is padded by half or more. 16 and 64 are among them: products of more rows than 16, attention of
    more than 64, sum in another order (docs/cuda.md)."""
    step = min(32, 1 << max(0, (rows - 1).bit_length() - 2))
    return -(-rows // step) * step


class _Rows:
    """The step of `count` sequences of up to `pages` pages by a token each, as a plan whose memory is that of `beside` too. With a
    sampler the step draws the next tokens as well, and adds them to the tables that its penalties look at."""

    def __init__(self, model: "Model", cache: KVCache, count: int, pages: int, longest: int, sampler: "Sampler | None",
                 tables: "Tables | None", beside: "_Rows | None") -> None:
        def zeros(dtype: type, *shape: int) -> tuple[_core.Tensor, np.ndarray]:
            tensor = _core.Tensor.from_numpy(np.zeros(shape, dtype))
            return tensor, tensor.numpy()

        self.ids, self._ids = zeros(np.int32, count)
        self.positions, self._positions = zeros(np.int32, count)
        self.draw_positions, self._draw_positions = zeros(np.int64, count)
        page_table, self._page_table = zeros(np.int32, count, pages)
        self.tokens = self.nonfinite = None
        self.tables = tables
        step = _FixedStep(self.ids, self.positions, _core.Tensor.from_numpy(np.arange(count, dtype=np.int32)), page_table,
                          None, 0)
        step.longest = longest

        def record() -> _core.Tensor:
            logits = model(step, cache)
            if sampler is not None:
                # The number of a sequence is 0, whoever its batch mates are, so that it draws what it draws alone.
                sequences = _core.Tensor.from_numpy(np.zeros(count, np.int64))
                self.tokens, self.nonfinite = sampler.draw_step(logits, sequences, self.draw_positions, tables)
            return logits

        self.plan, self.logits = _core.Plan.record(record, beside and beside.plan)
        self.varies = step.asked  # with the length of the context: no two steps are the same

    def set(self, row: int, sequence: Sequence, token: int, fed: int) -> None:
        """The sequence's token at position `fed` is next; its pages are there."""
        self._ids[row] = token
        self._positions[row] = fed
        self._draw_positions[row] = fed + 1
        self._page_table[row, : len(sequence.pages)] = sequence.pages


class Decoder:
    """Runs a model over one cache, a token at a time. Results are those of model(cache.step(...), cache) to the bit; of more than 16
    rows on a device, those of a step with its padding rows."""

    def __init__(self, model: "Model", cache: KVCache, longest: int, sampler: "Sampler | None" = None) -> None:
        """longest: tokens a sequence may come to hold. sampler: what `draw` draws with."""
        self._model = model
        self._cache = cache
        self._longest = longest
        self._sampler = sampler
        self._split = isinstance(model, SplitModel)
        self._recorded: dict[tuple[int, bool], _Rows] = {}

    def step(self, work: Sized[tuple[Sequence, int]], context_length: int = 0) -> _core.Tensor:
        """Feeds a token to each sequence -> logits [rows, vocab], good until the next call."""
        rows = None if self._split else self._rows(len(work), draws=False)
        if rows is None or rows.varies:
            step = self._cache.step([(sequence, [token]) for sequence, token in work], context_length=context_length)
            return self._model(step, self._cache)
        for row, (sequence, token) in enumerate(work):
            self._cache.extend(sequence, 1)
            rows.set(row, sequence, token, sequence.length - 1)
        rows.plan.replay()
        return rows.logits.rows(0, len(work))

    def draw(self, work: Sized[tuple[Sequence, int]], count: int, seconds: float, stop_ids: Sized[int],
             histories: "Sized[History | None]" = ()) -> list[list[int]]:
        """Feeds a token to each sequence and then what it draws, without returning to Python -> what each drew, equally
        many: at most `count`, none after `seconds` or after a step that drew one of stop_ids. The last ones are not fed
        yet. histories: with penalties each row's, to which its tokens are appended. None at all, with nothing changed, where
        the caller has to `step` and look at the logits itself: some are not finite, or every step is another or on two
        devices."""
        capacity = max((len(history) for history in histories if history is not None), default=0) + count
        rows = None if self._split else self._rows(len(work), draws=True, capacity=capacity)
        if rows is None or rows.varies:
            return [[] for _ in work]
        if rows.tables is not None:
            rows.tables.write(histories, len(work))
        fed = [sequence.length for sequence, _ in work]
        for row, (sequence, token) in enumerate(work):
            self._cache.extend(sequence, count)
            rows.set(row, sequence, token, fed[row])
        drawn = rows.plan.decode(rows.ids, rows.positions, rows.draw_positions, rows.tokens, rows.nonfinite, len(work),
                                 stop_ids, count, seconds)
        for (sequence, _), length in zip(work, fed):
            self._cache.truncate(sequence, length + len(drawn) // len(work))
        tokens = [drawn[row :: len(work)] for row in range(len(work))]
        for history, own in zip(histories, tokens):
            for token in own if history is not None else ():
                history.append(token)
        return tokens

    @property
    def varies(self) -> bool:
        """Whether steps look at the length of the context: rows of unlike lengths cannot share one."""
        return self._model.config.varies(self._longest)

    def _rows(self, count: int, draws: bool, capacity: int = 0) -> _Rows:
        """A step for so many rows. On a device, where it is recorded for a few more, the others feed token 0 at position 0 of a page
        that is no sequence's. capacity: of the tables, where there are any."""
        padding = self._cache.padding
        recorded = count if padding is None else padded_rows(count)
        key = recorded, draws
        rows = self._recorded.get(key)
        if rows is None or (rows.tables is not None and rows.tables.capacity < capacity):
            sampler = self._sampler if draws else None
            room = max(LEAST_CAPACITY, 1 << (capacity - 1).bit_length())
            tables = None if sampler is None else sampler.tables(recorded, room, self._longest)
            beside = next(reversed(self._recorded.values()), None)  # plans of a decoder take turns
            rows = _Rows(self._model, self._cache, recorded, pages_for(self._longest), self._longest, sampler, tables, beside)
            self._recorded[key] = rows
        for row in range(count, recorded):
            rows.set(row, padding, 0, 0)
        return rows
