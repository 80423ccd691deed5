"""A prompt of so many tokens, for a command that takes text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import genkit

if TYPE_CHECKING:
    from genkit.text.tokenizer import Tokenizer

TEXT = Path(genkit.__file__).parent / "assets/text/evaluation.txt"


def prompt_of(tokenizer: "Tokenizer", count: int) -> tuple[str, list[int]]:
    """Text and its ids: as close to `count` of them as text comes, for what a tokenizer puts before every text, and joins,
    leaves no choice."""
    text = TEXT.read_text(encoding="utf-8")
    text *= -(-8 * count // len(text))  # no token is that long on average
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.encode(text[: ends[middle]])) < count:
            low = middle + 1
        else:
            high = middle
    best: tuple[str, list[int]] | None = None
    for end in range(ends[low], ends[low - 1] - 1 if low else 0, -1):
        ids = tokenizer.encode(text[:end])
        if best is None or abs(len(ids) - count) < abs(len(best[1]) - count):
            best = text[:end], ids
    assert best is not None
    return best
