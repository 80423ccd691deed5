"""Lists of numbers and names as llama-bench takes them: 1,2,4 or 1-4 or 1-9+2 or 1-8*2, an option once or again."""

from __future__ import annotations

import re
from typing import Iterable

from genkit.errors import UsageError

RANGE = re.compile(r"(\d{1,12})(?:-(\d{1,12})(?:([+*])(\d{1,12}))?)?")
MOST = 1000  # numbers in one list


def numbers(option: str, texts: Iterable[str], least: int = 1) -> list[int]:
    """["1-8*2,5"] -> [1, 2, 4, 8, 5], each once, in the order given. Raises UsageError for what is none, for numbers below
    `least` and for ranges that never end."""
    found: dict[int, None] = {}
    for text in names(option, texts):
        if re.fullmatch(r"-\d+", text):
            raise UsageError(f"{option} {text}: {text} is below {least}")
        match = RANGE.fullmatch(text)
        if not match:
            raise UsageError(f"{option} {text}: expected whole numbers like 512, 1,2,4, 1-4, 1-9+2 or 1-8*2")
        first, last, sign, step = int(match[1]), int(match[2] or match[1]), match[3] or "+", int(match[4] or 1)
        if first < least:
            raise UsageError(f"{option} {text}: {first} is below {least}")
        if last < first:
            raise UsageError(f"{option} {text}: the range ends before it begins")
        if step < 1 or (sign == "*" and (step < 2 or first < 1)):
            raise UsageError(f"{option} {text}: a step of {sign}{step} from {first} never reaches {last}")
        value = first
        while value <= last:
            found[value] = None
            if len(found) > MOST:
                raise UsageError(f"{option} {text}: more than {MOST} numbers")
            value = value + step if sign == "+" else value * step
    return list(found)


def names(option: str, texts: Iterable[str]) -> list[str]:
    """["a,b", "c"] -> ["a", "b", "c"], each once. Raises UsageError where nothing is named."""
    found = [name.strip() for text in texts for name in text.split(",")]
    if not found or not all(found):
        raise UsageError(f"{option}: names nothing between its commas" if found else f"{option}: names nothing")
    return list(dict.fromkeys(found))
