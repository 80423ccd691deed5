"""One model in memory and what is timed with it: prompts that go through it, and tokens that come out, over a cache that
already holds some."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Callable

from genkit import _core, batch
from genkit.bench.work import Work, work
from genkit.decoding.sampling import Sampler, SamplingSettings
from genkit.devices import wait
from genkit.generation import Generation, Request, Text
from genkit.kv_cache import KVCache, Sequence, pages_for

if TYPE_CHECKING:
    from genkit.engine import LoadedModel
    from genkit.models.config import ModelConfig


def pages_needed(config: "ModelConfig", depths: "list[int]", sequences: int, tokens: int) -> int:
    """Pages for so many sequences, each with the deepest past once, a last page of its own for every depth, and room for
    `tokens` more; a model that may have to make all keys anew then needs them again for every depth."""
    pages = pages_for(max(depths)) + len(depths) + pages_for(tokens) + 1
    if config.fresh_keys_beyond:
        pages += len(depths) * pages_for(max(depths) + tokens)
    return sequences * pages


class Passes:
    """Passes of a loaded model, whose device is in use. Token ids are random, the same in every run; what the logits say does
    not matter."""

    def __init__(self, loaded: "LoadedModel", depths: "list[int]", sequences: int, tokens: int) -> None:
        """depths: tokens in the cache before a pass; sequences and tokens: the most of a pass."""
        self.loaded = loaded
        self.model = loaded.model
        self.work: Work = work(self.model, loaded.kv_type)
        self._deepest = max(depths)
        c = self.model.config
        pages = pages_needed(c, depths, sequences, tokens)
        self._cache = KVCache(c.layers, c.kv_heads, c.head_dim, pages, loaded.kv_type)
        self._sampler = Sampler(SamplingSettings(), c.vocab_size)
        self._batches: "dict[int, batch.Batch]" = {}
        self._pasts: "list[Sequence]" = []  # of the deepest depth
        self._ids: "list[list[int]]" = []  # the tokens in them
        self._sequences: "dict[tuple[int, int], Sequence]" = {}
        self._random = random.Random(0)

    def fill(self, sequences: int, told: Callable[[int, int], None]) -> None:
        """Puts the deepest past into so many sequences: once, whatever is measured over it. told(done, total) tokens."""
        done = 0

        def tick() -> bool:
            nonlocal done
            told(min(done, self._deepest * alike), self._deepest * alike)
            done += batch.PREFILL_CHUNK
            return False

        # Of equal pasts all but one can be copied; with experts, equal rows would go to equal ones.
        alike = sequences if any(product.experts > 1 for product in self.work.products) else 1
        _core.set_threads(self.loaded.threads)
        for row in range(sequences):
            if row < alike:
                sequence = Sequence()
                self._ids.append(self.random_ids(self._deepest))
                if self._deepest:
                    batch.prefill(self.model, self._cache, sequence, self._ids[-1], tick)
            else:
                sequence = self._cache.copy(self._pasts[0])
                self._ids.append(self._ids[0])
            self._pasts.append(sequence)

    def random_ids(self, count: int) -> "list[int]":
        return self._random.choices(range(self.model.config.vocab_size), k=count)

    def prompt(self, sequences: int, depth: int, tokens: int) -> float:
        """Seconds for so many prompts of so many tokens, one after the other as the engine takes them."""
        rows = [(self._sequence(row, depth), self.random_ids(tokens)) for row in range(sequences)]
        wait(self.loaded.device)
        start = time.perf_counter()
        for sequence, ids in rows:
            batch.prefill(self.model, self._cache, sequence, ids, lambda: False)
        wait(self.loaded.device)
        seconds = time.perf_counter() - start
        self._take_back(sequences, depth)
        return seconds

    def decode(self, sequences: int, depth: int, tokens: int) -> float:
        """Seconds for so many steps, each of a token of every sequence: the likeliest, whatever ends a text."""
        if depth + tokens not in self._batches:
            self._batches[depth + tokens] = batch.Batch(self.model, self._cache, depth + tokens, self._sampler, None, ())
        together = self._batches[depth + tokens]
        rows = [self._row(row, depth, tokens) for row in range(sequences)]
        wait(self.loaded.device)
        start = time.perf_counter()
        while not rows[0].job.generation.finish_reason:
            for _ in together.advance(rows):
                pass
        wait(self.loaded.device)
        seconds = time.perf_counter() - start
        self._take_back(sequences, depth)
        return seconds

    def _row(self, number: int, depth: int, tokens: int) -> batch.Row:
        request = Request(tokens, (), True, 1, 1.0, None, lambda: False)
        generation = Generation(self._ids[number][:depth], self.random_ids(1))
        row = batch.Row(number, batch.Job(request, generation), None, Text(None, (), generation))
        row.sequence = self._sequence(number, depth)
        return row

    def _sequence(self, row: int, depth: int) -> Sequence:
        if (row, depth) not in self._sequences:
            self._sequences[row, depth] = self._cache.fork(self._pasts[row])
            self._cache.truncate(self._sequences[row, depth], depth)
        return self._sequences[row, depth]

    def _take_back(self, sequences: int, depth: int) -> None:
        for row in range(sequences):
            self._cache.truncate(self._sequence(row, depth), depth)
