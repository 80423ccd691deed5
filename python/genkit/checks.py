"""Range checks of arguments: what is wrong, with which value, and what is allowed, as a UsageError."""

from __future__ import annotations

import math
from typing import Any

from genkit.errors import UsageError


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """value as an int in [low, high]; anything else (True, 3.0 and "3" too) is a UsageError."""
    try:
        number = low - 1 if isinstance(value, bool) else value.__index__()
    except AttributeError:
        number = low - 1
    if not low <= number <= high:
        raise UsageError(f"{name}: {value!r} is not a whole number from {low} to {high}")
    return number


def real_number(name: str, value: Any, low: float, high: float, what: str = "a number", above: bool = False) -> float:
    """value as a float in [low, high], or in (low, high] with `above`; NaN, text and the rest are a UsageError."""
    number = math.nan
    if not isinstance(value, (bool, str)):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    if not low <= number <= high or (above and number == low):
        allowed = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise UsageError(f"{name}: {value!r} is not {what} {allowed}")
    return number
