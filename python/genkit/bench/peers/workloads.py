"""What is measured: tests, named as llama-bench names them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Sequence

BRIEF = 4  # tokens of a decode that is not counted


@dataclass(frozen=True)
class Workload:
    """"prefill": `tokens` of prompt after `depth` others. "decode": so many new tokens after `depth` others (one where that
    is 0, for something to go on from), in each of `batch` sequences. "load": from files to a model that answers."""

    kind: str
    tokens: int = 0
    depth: int = 0
    batch: int = 1

    @property
    def name(self) -> str:
        if self.kind == "load":
            return "load"
        return f"{'pp' if self.kind == 'prefill' else 'tg'}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def unit(self) -> str:
        return "s" if self.kind == "load" else "tokens/s"

    @property
    def before(self) -> int:
        """Tokens in the cache before the clock starts."""
        return max(1, self.depth) if self.kind == "decode" else self.depth

    @property
    def context(self) -> int:
        """Tokens an engine must have room for in a sequence."""
        return self.before + self.tokens + 1

    def value(self, seconds: float) -> float:
        """In `unit`."""
        return seconds if self.kind == "load" else self.tokens * self.batch / seconds

    def arguments(self, vocabulary: int, turn: int, brief: bool = False) -> dict[str, Any]:
        """Of the driver's method of this kind. `brief` is for a turn that is not counted."""
        before = random_ids(self.before, vocabulary, 0)
        if self.kind == "prefill":
            # Another prompt every turn, for no engine to have it from the last.
            return {"before": before, "ids": random_ids(self.tokens, vocabulary, 1 + turn)}
        return {"prompts": [before] * self.batch, "tokens": min(self.tokens, BRIEF) if brief else self.tokens}


def workloads(prompts: Sequence[int], generates: Sequence[int], depths: Sequence[int] = (0,), batches: Sequence[int] = (1,),
              load: bool = False) -> list[Workload]:
    """A prompt goes in alone, whatever the batch."""
    found = [Workload("prefill", tokens, depth) for depth in depths for tokens in prompts]
    found += [Workload("decode", tokens, depth, batch) for depth in depths for batch in batches for tokens in generates]
    return found + [Workload("load")] * load


def random_ids(count: int, vocabulary: int, seed: int) -> list[int]:
    draw = random.Random(seed * 1_000_003 + count)
    return [draw.randrange(vocabulary) for _ in range(count)]
