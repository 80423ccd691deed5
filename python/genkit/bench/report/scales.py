"""Where the marks of an axis stand, and what is written at them."""

from __future__ import annotations

import math
from typing import Iterable

from genkit.bench.report.charts import Axis, Chart


def span(values: Iterable[float], log: bool, from_zero: bool) -> tuple[float, float]:
    """Ends of an axis that holds the values: round ones; by logarithms a little beyond them."""
    known = [value for value in values if not log or value > 0]
    low, high = (min(known), max(known)) if known else (1.0, 1.0)
    if log:
        room = max(high / low, 1.5) ** 0.06
        return low / room, high * room
    low = min(0.0, low) if from_zero else low
    if high <= low:
        low, high = low - (abs(low) or 1) * (not from_zero), high + (abs(high) or 1)
    step = round_step((high - low) / 5)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def round_step(least: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def marks(low: float, high: float, log: bool) -> list[float]:
    """Up to about eight round numbers from low to high."""
    if not log:
        step = round_step((high - low) / 5)
        first = math.ceil(low / step - 1e-9)
        return [step * index for index in range(first, math.floor(high / step + 1e-9) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in decades for factor in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= 8:
            return found
    return found[:: math.ceil(len(found) / 8)]


def limits(chart: Chart) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of both axes; of bars the second counts them from the top."""
    points = [point for series in chart.series for point in series.points]
    ends = [value for point in points for value in (point.low, point.high) if value is not None]
    reference = [] if chart.reference is None else [chart.reference]
    if chart.bars:
        return span([*(point.x for point in points), *ends, *reference], chart.x.log, True), (len(points) - 0.5, -0.5)
    values, fixed = [point.x for point in points], chart.x.ticks or chart.x.names
    across = span(values, chart.x.log, chart.x.zero and not fixed)
    if fixed and not chart.x.log:
        room = 0.04 * (max(values) - min(values)) or 1.0
        across = min(values) - room, max(values) + room
    return across, span([*(point.y for point in points), *ends], chart.y.log, chart.y.zero)


def place(value: float, ends: tuple[float, float], log: bool) -> float:
    """0 at the first end, 1 at the second. What has no logarithm is at the lower end."""
    if not log:
        return (value - ends[0]) / (ends[1] - ends[0])
    return math.log(max(value, ends[0]) / ends[0]) / math.log(ends[1] / ends[0])


def ticks(axis: Axis, ends: tuple[float, float], apart: float = 0.0) -> list[tuple[float, str]]:
    """Values and what stands at them; those nearer than `apart` to the one before, as a share of the axis, go."""
    if axis.names:
        chosen = [(float(index), name) for index, name in enumerate(axis.names)]
    else:
        chosen = [(value, axis.spell(value)) for value in axis.ticks or marks(*ends, axis.log)]
    kept: list[tuple[float, str]] = []
    for value, text in chosen:
        if not kept or abs(place(value, ends, axis.log) - place(kept[-1][0], ends, axis.log)) >= apart:
            kept.append((value, text))
    return kept
