"""What is measured: tests by name."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from genkit.errors import UsageError

DEFAULT = "prefill512,prefill2048,decode128,decode128@4096,batch4,load"

SHORT_PROMPT = 16  # ids before a decode that asks for no depth
BATCH_TOKENS = 64


@dataclass(frozen=True)
class Workload:
    """`name` as asked for: prefillN, a prompt of N ids; decodeN[@D], N tokens after a prompt of D; batchB[xN][@D], B
    sequences of it at once; load, from files to a model that answers."""

    name: str
    kind: str  # "prefill", "decode", "batch" or "load"
    tokens: int = 0
    depth: int = 0
    sequences: int = 1

    @property
    def unit(self) -> str:
        return "s" if self.kind == "load" else "tokens/s"

    @property
    def context(self) -> int:
        """Tokens an engine must have room for in a sequence."""
        return self.depth + self.tokens + 1

    def value(self, seconds: float) -> float:
        """In `unit`."""
        return seconds if self.kind == "load" else self.tokens * self.sequences / seconds

    def arguments(self, vocabulary: int, turn: int, brief: bool = False) -> dict:
        """Of the driver's method of this kind. `brief` is for a turn that is not counted."""
        if self.kind == "prefill":
            # Another prompt every turn, for no engine to have it from the last.
            return {"ids": random_ids(self.tokens, vocabulary, turn)}
        tokens = min(self.tokens, 4) if brief else self.tokens
        ids = random_ids(self.depth, vocabulary, 0)
        return {"prompts": [ids] * self.sequences, "tokens": tokens} if self.kind == "batch" else {
            "ids": ids, "tokens": tokens}


def random_ids(count: int, vocabulary: int, seed: int) -> list[int]:
    draw = random.Random(seed * 1_000_003 + count)
    return [draw.randrange(vocabulary) for _ in range(count)]


PATTERN = re.compile(r"(?P<kind>prefill|decode|batch)(?P<count>\d{1,7})"
                     r"(?:x(?P<tokens>\d{1,7}))?(?:@(?P<depth>\d{1,7}))?")


def parse(text: str) -> Workload:
    """Raises UsageError."""
    if text == "load":
        return Workload(text, "load")
    found = PATTERN.fullmatch(text)
    if found:
        kind, count = found["kind"], int(found["count"])
        tokens = int(found["tokens"] or BATCH_TOKENS) if kind == "batch" else count
        depth = int(found["depth"] or (0 if kind == "prefill" else SHORT_PROMPT))
        allowed = {"prefill": not found["tokens"] and not found["depth"], "decode": not found["tokens"], "batch": True}
        if allowed[kind] and count and tokens and (depth or kind == "prefill"):
            return Workload(text, kind, tokens, depth, count if kind == "batch" else 1)
    raise UsageError(f"--tests: {text!r} is none; tests are prefillN, decodeN, decodeN@DEPTH, batchB, batchBxN@DEPTH "
                     "and load, numbers above 0")


def parse_all(names: str) -> list[Workload]:
    asked = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not asked:
        raise UsageError("--tests names none")
    return [parse(name) for name in asked]
