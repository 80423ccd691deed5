"""Sequences decoded side by side over one cache: a prompt comes in when a row is free, a row is free when its text has
ended. What a sequence says does not depend on the others."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Collection, Iterator, Sequence as Sized

from genkit import _core
from genkit.decoding.logprobs import RawLogprobs
from genkit.generation import Generation, Request, Text
from genkit.kv_cache import KVCache, Sequence
from genkit.plan import Decoder

if TYPE_CHECKING:
    from genkit._core import Tensor
    from genkit.decoding.sampling import History, Sampler
    from genkit.models import Model
    from genkit.text.tokenizer import Tokenizer

# Tokens of a prompt that go through the model at once: enough to keep the processor busy, few enough that the
# activations of a large model stay small.
PREFILL_CHUNK = 512

# How much is drawn between two looks at `cancelled` and at stop strings: short enough that text seems to flow.
BURST_SECONDS = 0.03
BURST_TOKENS = 256


@dataclass(frozen=True)
class Job:
    request: Request
    generation: Generation  # prompt_tokens is read, the rest grows


class Row:
    """A sequence in the batch."""

    def __init__(self, number: int, job: Job, history: "History | None", text: Text) -> None:
        self.number = number
        self.job = job
        self.history = history
        self.text = text
        self.sequence = Sequence()
        self.began = 0.0  # when its prompt was through

    @property
    def left(self) -> int:
        return self.job.request.max_tokens - self.job.generation.timings.tokens

    def take(self, token: int, eos_ids: Collection[int]) -> str:
        """Adds a token -> the text that came of it. generation.finish_reason says whether it was the last."""
        generation, request = self.job.generation, self.job.request
        generation.tokens.append(token)
        generation.timings.tokens += 1
        ends = not request.ignore_eos and token in eos_ids
        piece = "" if ends else self.text.push(token)
        if ends or self.text.stopped:
            generation.finish_reason = "stop"
        elif self.left <= 0:
            generation.finish_reason = "length"
        self.clock()
        return piece

    def clock(self) -> None:
        self.job.generation.timings.decode_s = time.perf_counter() - self.began


class Batch:
    """Runs jobs over one model and cache. All draw with one sampler, and ask for log-probabilities or none does."""

    def __init__(self, model: "Model", cache: KVCache, longest: int, sampler: "Sampler", tokenizer: "Tokenizer | None",
                 eos_ids: Collection[int]) -> None:
        """longest: tokens a sequence may come to hold."""
        self._model = model
        self._cache = cache
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._decoder = Decoder(model, cache, longest, sampler)

    def run(self, jobs: Sized[Job], rows: int) -> Iterator[tuple[int, str]]:
        """(number of the job, piece of text) as they are made; the generations are complete at the end."""
        waiting = deque(enumerate(jobs))
        running: list[Row] = []
        cancelled = jobs[0].request.cancelled
        while waiting or running:
            while waiting and len(running) < rows:
                row, logits = self._begin(*waiting.popleft())
                running.append(row)
                if logits is None:
                    row.job.generation.finish_reason = "interrupted"
                else:
                    yield from self._take(row, self._choose(logits, [row])[0])
            going_on = [row for row in running if not row.job.generation.finish_reason]
            if going_on and cancelled():
                for generation in [row.job.generation for row in going_on] + [job.generation for _, job in waiting]:
                    generation.finish_reason = "interrupted"
                waiting.clear()
            elif going_on:
                yield from self.advance(going_on)
            for row in running:
                if row.job.generation.finish_reason:
                    if rest := row.text.finish():
                        yield row.number, rest
                    row.clock()
                    self._cache.release(row.sequence)
            running = [row for row in going_on if not row.job.generation.finish_reason]

    def advance(self, rows: list[Row]) -> Iterator[tuple[int, str]]:
        """A burst: some more tokens of each row, whose last one is not fed yet -> as run."""
        for row, tokens in zip(rows, self._draw(rows)):
            yield from self._take(row, tokens)

    def _begin(self, number: int, job: Job) -> "tuple[Row, Tensor | None]":
        """The prompt of a new row -> logits after it, or None when cancelled on the way."""
        prompt = job.generation.prompt_tokens
        text = Text(self._tokenizer, job.request.stop, job.generation)
        row = Row(number, job, self._sampler.history(prompt), text)
        start = time.perf_counter()
        logits = prefill(self._model, self._cache, row.sequence, prompt, job.request.cancelled)
        row.began = time.perf_counter()
        job.generation.timings.prefill_s = row.began - start
        return row, logits

    def _take(self, row: Row, tokens: Sized[int]) -> Iterator[tuple[int, str]]:
        """Tokens past the end of a text, which a burst may hold, are dropped."""
        for token in tokens:
            if piece := row.take(token, self._eos_ids):
                yield row.number, piece
            if row.job.generation.finish_reason:
                return

    def _draw(self, rows: list[Row]) -> list[list[int]]:
        """The next tokens of each row, equally many, at least one."""
        request = rows[0].job.request
        work = [(row.sequence, row.job.generation.tokens[-1]) for row in rows]
        if request.logprobs is None:
            count = min(BURST_TOKENS, *(row.left for row in rows))
            stop_ids = () if request.ignore_eos else self._eos_ids
            drawn = self._decoder.draw(work, count, BURST_SECONDS, stop_ids, [row.history for row in rows])
            if drawn[0]:
                return drawn
        if self._decoder.varies:  # with each sequence's own length
            return [self._choose(self._alone(row, one), [row])[0] for row, one in zip(rows, work)]
        return self._choose(self._decoder.step(work), rows)

    def _alone(self, row: Row, work: tuple[Sequence, int]) -> "Tensor":
        """Logits after a row's newest token."""
        generation = row.job.generation
        if row.sequence.length == self._model.config.fresh_keys_beyond:
            self._cache.release(row.sequence)
            return prefill(self._model, self._cache, row.sequence, generation.prompt_tokens + generation.tokens, lambda: False)
        return self._decoder.step([work], context_length=len(generation.prompt_tokens))

    def _choose(self, logits: "Tensor", rows: list[Row]) -> list[list[int]]:
        """A token for each row from its logits. The number of a sequence is 0, whoever is beside it: it draws what it
        draws alone."""
        count = rows[0].job.request.logprobs
        raw = None if count is None else RawLogprobs(logits, count)
        tokens = self._sampler.next(logits, [row.history for row in rows], [0] * len(rows),
                                    [row.sequence.length for row in rows])
        if raw is not None:
            for row, entry in zip(rows, raw.entries(tokens, self._token_text)):
                row.job.generation.logprobs.append(entry)
        return [[token] for token in tokens]

    def _token_text(self, token: int) -> str:
        return "" if self._tokenizer is None else self._tokenizer.token(token)


def prefill(model: "Model", cache: KVCache, sequence: Sequence, ids: list[int],
            cancelled: Callable[[], bool]) -> "Tensor | None":
    """Logits [1, vocab] after the last id, or None when cancelled on the way."""
    logits, arena = None, _core.Arena()
    for begin in range(0, len(ids), PREFILL_CHUNK):
        if cancelled():
            return None
        chunk = ids[begin : begin + PREFILL_CHUNK]
        last = begin + len(chunk) == len(ids)
        step = cache.step([(sequence, chunk)], logit_rows=[len(chunk) - 1] if last else [], context_length=len(ids))
        logits = arena.run(model, step, cache)
    return logits
