"""Plain text for people and programs: sizes, columns, strict JSON."""

import math
from typing import Any


def format_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table(rows: "list[tuple[str, Any]]") -> "list[str]":
    """Lines of names and values, the values under one another."""
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows]


def columns(lines: "list[tuple[str, ...]]", right: "tuple[int, ...]") -> "list[str]":
    """Cells under one another; those of the columns `right` end together."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.rjust(width) if i in right else cell.ljust(width)
                      for i, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines]


def json_text(value: Any) -> str:
    """One line of strict JSON: readable characters, and null where a float is infinite (a forbidden token's logprob)."""
    import json  # costs more than the rest of the file, and few commands need it

    return json.dumps(strict(value), ensure_ascii=False, allow_nan=False)


def strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
