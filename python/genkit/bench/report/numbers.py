"""Numbers and names as people read them, the same in every table and chart."""

from __future__ import annotations

from typing import Any, Iterable

from genkit.bench.estimates import Estimate
from genkit.plaintext import format_bytes

# What is counted in large numbers or small ones gets a prefix: 41.9e9 B/s -> 41.9 GB/s, 0.0123 s -> 12.3 ms.
SPELLED = {"B/s": "B/s", "op/s": "OP/s", "B": "B", "s": "s"}
LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
RATIO = "ratio"


def number(value: float) -> str:
    """Three digits that mean something: 0.0123, 1.23, 12.3, 123, 1234."""
    for limit, digits in ((0.1, 4), (1, 3), (10, 2), (100, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def scale(unit: str, values: Iterable[float]) -> tuple[float, str]:
    """(What to divide by, the unit's name then) so that the smallest of the values that belong together is above 1."""
    known = [abs(value) for value in values if value]
    if unit not in SPELLED or not known:
        return 1.0, SPELLED.get(unit, unit)
    prefixes = SMALL if unit == "s" else LARGE
    fitting = [(factor, prefix) for factor, prefix in prefixes if min(known) >= factor] or [prefixes[-1]]
    factor, prefix = fitting[0]
    return factor, prefix + SPELLED[unit]


def percent(share: float) -> str:
    """0.623 -> "62 %", 0.0123 -> "1.2 %"."""
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 9.95 else f"{value:.1f} %"


def spread(found: Estimate) -> str:
    """How far the end of the interval that is farther away lies from the median, as a share of it; "" for one sample."""
    if found.count < 2 or not found.median:
        return ""
    return "±" + percent(max(found.high - found.median, found.median - found.low) / abs(found.median))


def measured(found: Estimate, unit: str, factor: float = 1.0) -> str:
    """"41.9 ±1.2 %"; of ratios the interval itself: "1.02 (0.98-1.06)"."""
    if unit == RATIO:
        interval = f" ({number(found.low)}-{number(found.high)})" if found.count > 1 else ""
        return number(found.median) + interval
    return " ".join(filter(None, [number(found.median / factor), spread(found)]))


def format_size(count: float) -> str:
    """4194304 -> "4 MiB", a working set's."""
    return format_bytes(count).replace(".0 ", " ")


def clean(value: Any) -> str:
    """As text on one line that no terminal, table or page takes for a command: names come from files and users."""
    if isinstance(value, float):
        return number(value)
    text = "" if value is None else "yes" if value is True else "no" if value is False else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
