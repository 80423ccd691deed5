"""What to draw of a result: charts of series of points with intervals. svg.py and png.py draw the same."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Callable, Iterable

from genkit.bench.estimates import Estimate
from genkit.bench.report.numbers import RATIO, clean, format_size, number, scale
from genkit.bench.results import Results, Row

# Values on one axis that differ by more than this are drawn by their logarithms.
FAR_APART = 30


def short(value: float) -> str:
    """0.05, 2.5, 4096, 20k, 3M."""
    for factor, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            return f"{value / (1e3 if name == 'k' else factor):.4g}{name}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Point:
    """low and high: the interval of y (of x in a chart of bars), None where there is none; name: what it is of, where the
    series does not say."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass
class Series:
    """joined: its points are one line; marked: each point has a mark. A line without marks is a limit, not a measurement."""

    name: str
    points: list[Point]
    joined: bool = True
    marked: bool = True


@dataclass
class Axis:
    """ticks: where the values themselves are the best marks; names: said instead of numbers, from 0 on; spell: a number in
    words; zero: it begins there."""

    title: str
    log: bool = False
    ticks: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    spell: Callable[[float], str] = short
    zero: bool = True


@dataclass
class Chart:
    """bars: lying, one for each of y.names, their length in Point.x; reference: a line at this x."""

    title: str
    x: Axis
    y: Axis
    series: list[Series]
    bars: bool = False
    reference: float | None = None


def charts(results: Results) -> list[Chart]:
    """Of what was measured; empty where nothing was."""
    rows = [row for row in results.rows if row.samples]
    if results.kind == "models":
        return [*throughput(rows), *roofline(rows)]
    if results.kind == "kernels":
        return [*roofline(rows), *bars(rows, results.kind)]
    if results.kind == "against":
        return [*bars(_ratios(rows), "genkit beside the others"), *bars(rows, results.kind)]
    curves, others = working_sets(rows) if results.kind == "limits" else ([], rows)
    return [*curves, *bars(others, results.kind)]


# ---- Throughput of models ------------------------------------------------------------------------------------------

SWEPT = {"depth": "tokens in the context before", "batch": "sequences at once", "threads": "threads"}


def throughput(rows: list[Row]) -> list[Chart]:
    """Against depth, batch and threads, each where it varies; where none does, as bars."""
    made = []
    for base in dict.fromkeys(map(base_test, rows)):
        chosen = [row for row in rows if base_test(row) == base]
        swept = [name for name in SWEPT if len({depth(row) if name == "depth" else row.id.get(name) for row in chosen}) > 1]
        for name in swept:
            made.append(_sweep(f"{base}: throughput against {name}", chosen, name))
        if not swept:
            made += bars(chosen, base)
    return made


def _sweep(title: str, rows: list[Row], name: str) -> Chart:
    """Of each series those rows that differ in nothing else."""
    place = depth if name == "depth" else (lambda row: row.id.get(name))
    parts = [(place(row), {**row.id, "test": base_test(row), "depth": depth(row)} | {name: None}, row) for row in rows]
    told = names([part for _, part, _ in parts])
    groups: dict[str, list[Point]] = {}
    for (x, _, row), series in zip(parts, told):
        groups.setdefault(series, []).append(point(float(x), row.estimate))
    series = [Series(series, sorted(points, key=lambda p: p.x)) for series, points in groups.items()]
    values = sorted({point.x for one in series for point in one.points})
    log = values[0] > 0 and values[-1] >= 8 * values[0]
    across = Axis(SWEPT[name], log, values if len(values) <= 10 else [])
    return Chart(title, across, Axis("tokens/s", far_apart(series)), series)


def base_test(row: Row) -> str:
    """"tg128 @ d4096" -> "tg128"."""
    return str(row.id.get("test", "")).partition(" @ ")[0]


def depth(row: Row) -> int:
    found = re.search(r" @ d(\d+)$", str(row.id.get("test", "")))
    return int(found[1]) if found else 0


def names(ids: list[dict[str, Any]]) -> list[str]:
    """Of each, what tells it from the others, in words: "int4, 2 threads"."""
    keys = [key for key in dict.fromkeys(key for one in ids for key in one) if len({str(one.get(key)) for one in ids}) > 1]
    return [", ".join(_named(key, one[key]) for key in keys if one.get(key) is not None) for one in ids]


def _named(key: str, value: Any) -> str:
    text = clean(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text
    return f"{text} thread{'s' * (value != 1)}" if key == "threads" else f"{key} {text}"


def point(x: float, found: Estimate, factor: float = 1.0, name: str = "") -> Point:
    if found.count < 2:
        return Point(x, found.median / factor, name=name)
    return Point(x, found.median / factor, found.low / factor, found.high / factor, name)


def far_apart(series: Iterable[Series]) -> bool:
    values = [point.y for one in series for point in one.points if point.y > 0]
    return bool(values) and max(values) > FAR_APART * min(values)


# ---- Roofline ------------------------------------------------------------------------------------------------------

# What makes a series of a roofline; what else rows differ in is said of each point.
GROUPED = ("model", "type", "kernel", "tier")

# Limits of reading that are nearer to one another than this are one: rows that read as much, measured at other moments.
ONE_LIMIT = 1.25


def roofline(rows: list[Row]) -> list[Chart]:
    """Each row at the operations it does per byte it reads, under the limits measured beside it, one chart a device and
    number of threads (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785)."""
    made = []
    rows = [row for row in rows if work_of(row)]
    sides = dict.fromkeys((row.id.get("device"), row.id.get("threads")) for row in rows)
    for device, threads in sides:
        chosen = [row for row in rows if (row.id.get("device"), row.id.get("threads")) == (device, threads)]
        where = [clean(device)] * (device is not None) + [_named("threads", threads)] * (threads is not None)
        title = "Roofline" + (f": {', '.join(where)}" if len(sides) > 1 else "")
        series = _placed(chosen)
        axes = Axis("operations per byte read", True), Axis("GOP/s", True)
        made.append(Chart(title, *axes, _roofs(chosen, series) + series))
    return made


def work_of(row: Row) -> tuple[float, float] | None:
    """(operations per byte, operations per what the row's unit counts), where the row has both."""
    facts = row.facts
    operations = facts.get("operations_per_token") if row.unit == "tokens/s" else facts.get("operations")
    read = facts.get("bytes_per_token") if row.unit == "tokens/s" else facts.get("bytes")
    if not operations or not read or row.unit not in ("tokens/s", "op/s", "B/s"):
        return None
    return operations / read, {"tokens/s": operations, "op/s": 1.0, "B/s": operations / read}[row.unit]


def _placed(chosen: list[Row]) -> list[Series]:
    grouped = names([{key: row.id.get(key) for key in GROUPED} for row in chosen])
    groups: dict[str, list[Point]] = {}
    for row, name, full in zip(chosen, grouped, names([row.id for row in chosen])):
        intensity, operations = work_of(row)
        groups.setdefault(name or "measured", []).append(point(intensity, row.estimate, 1e9 / operations, full))
    return [Series(name, points, joined=False) for name, points in groups.items()]


def _roofs(chosen: list[Row], series: list[Series]) -> list[Series]:
    """A slope for each bandwidth of memory or cache that rows were limited by, a level for each kind of arithmetic."""
    limits = [(row.limit.of, row.limit.unit, median(known)) for row in chosen
              if row.limit and (known := [value for value in row.limit.samples if value])]
    reads = _apart([value / 1e9 for _, unit, value in limits if unit == "B/s"])
    peaks = {of: median(other / 1e9 for name, _, other in limits if name == of) for of, unit, _ in limits if unit == "op/s"}
    places = [point.x for one in series for point in one.points]
    left, right = min(places) / 2, max([2 * max(places), *(2 * peak / read for peak in peaks.values() for read in reads)])
    made = []
    for read in reads:
        end = min(max(peaks.values(), default=right * read) / read, right)
        made.append(Series(f"read {number(read)} GB/s", [Point(left, left * read), Point(end, end * read)], marked=False))
    for of, peak in peaks.items():
        start = max(left, peak / max(reads)) if reads else left
        made.append(Series(f"{clean(of)} {number(peak)} GOP/s", [Point(start, peak), Point(right, peak)], marked=False))
    return made


def _apart(values: list[float]) -> list[float]:
    """Their medians, those near one another as one."""
    groups: list[list[float]] = []
    for value in sorted(values):
        if groups and value <= ONE_LIMIT * groups[-1][0]:
            groups[-1].append(value)
        else:
            groups.append([value])
    return [median(group) for group in groups]


# ---- Limits, and whatever has no axis of its own -------------------------------------------------------------------


def working_sets(rows: list[Row]) -> tuple[list[Chart], list[Row]]:
    """(Bandwidth against the working set, the other rows)."""
    curve = [row for row in rows if row.unit == "B/s" and isinstance(row.id.get("bytes"), (int, float))]
    others = [row for row in rows if row not in curve]
    groups: dict[str, list[Point]] = {}
    for row, name in zip(curve, names([{**row.id, "bytes": None} for row in curve])):
        groups.setdefault(name or "read", []).append(point(float(row.id["bytes"]), row.estimate, 1e9))
    series = [Series(name, sorted(points, key=lambda p: p.x)) for name, points in groups.items()]
    if not series:
        return [], others
    sizes = sorted({one.x for line in series for one in line.points})
    axes = Axis("working set", True, sizes, spell=format_size), Axis("GB/s", far_apart(series))
    return [Chart("Bandwidth against working set", *axes, series)], others


def bars(rows: list[Row], kind: str) -> list[Chart]:
    """A bar a row, a chart for those that can be compared: of one unit, one kernel and, of throughput, one test."""
    made = []
    for unit, *part in dict.fromkeys(map(_comparable, rows)):
        chosen = [row for row in rows if _comparable(row) == (unit, *part)]
        factor, name = scale(unit, [row.estimate.median for row in chosen])
        points = []
        for index, row in enumerate(chosen):
            found = point(0, row.estimate, factor)
            points.append(Point(found.y, index, found.low, found.high))
        title = ", ".join(_shared(chosen)) or kind
        made.append(Chart(f"{title}: {name}", Axis(name, far_apart([Series("", [Point(0, p.x) for p in points])])),
                          Axis("", names=names([row.id for row in chosen])), [Series("", points)], True,
                          1.0 if unit == RATIO else None))
    return made


def _ratios(rows: list[Row]) -> list[Row]:
    """Of genkit's speed to that of each row that has one in its facts."""
    found = [(row, row.facts["ratio"]) for row in rows if isinstance(row.facts.get("ratio"), dict)]
    return [Row(row.id, RATIO, samples=ratio["samples"]) for row, ratio in found if ratio.get("samples")]


def _comparable(row: Row) -> tuple[Any, ...]:
    return row.unit, row.id.get("kernel"), row.id.get("test") if row.unit == "tokens/s" else None


def _shared(rows: list[Row]) -> list[str]:
    """What all rows are, in words."""
    return [_named(key, value) for key, value in rows[0].id.items()
            if value is not None and all(row.id.get(key) == value for row in rows)]
