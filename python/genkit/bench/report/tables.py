"""The table of a result, before anybody asks where it is shown: what the columns are, and what is said around it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Callable

from genkit.bench.report.numbers import RATIO, clean, format_size, measured, number, percent, scale
from genkit.bench.results import Results, Row
from genkit.plaintext import format_bytes

# Ids that are columns even where all rows agree; what else all rows agree on is said once, above.
ALWAYS = ("model", "type", "test", "threads")

# How soon a column goes where the room is too small; 0 never. Ids that tell rows apart never go.
DROP = {"limit": 9, "tier": 8, "threads": 7, "peak memory": 6, "on the GPU": 6, "peak there": 6, "MB/token": 5, "model": 4, "type": 3, "test": 2, "device": 2,
        "genkit, times as fast": 0, "answers differ": 6, "verdict": 0}


def megabytes(value: float) -> str:
    return number(value / 1e6)


def times(ratio: dict[str, Any]) -> str:
    """Of bench/peers/ratios.py: the median and its interval."""
    interval = f" ({number(ratio['low'])}-{number(ratio['high'])})" if len(ratio["samples"]) > 1 else ""
    return number(ratio["median"]) + interval


def difference(found: dict[str, Any]) -> str:
    """Of bench/peers/agreement.py: of logits a share, of tokens standard deviations."""
    return percent(found["error"]) if "error" in found else f"{number(found['regret'])} sd"


# Of Row.facts, those with a column; the others are in the files.
FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "bytes_per_token": ("MB/token", megabytes),
    "peak_memory": ("peak memory", format_bytes),
    "device_memory": ("on the GPU", format_bytes),
    "device_peak": ("peak there", format_bytes),
    "tier": ("tier", clean),
    "seconds": ("us/call", lambda seconds: number(1e6 * seconds)),
    "level": ("cache level", clean),
    "ratio": ("genkit, times as fast", times),
    "agreement": ("answers differ", difference),
    "verdict": ("verdict", clean),
}


@dataclass
class Column:
    """cells: a text a row. drop: how soon it goes where the room is too small, 0 never."""

    title: str
    cells: list[str]
    right: bool = False
    drop: int = 0

    @property
    def constant(self) -> bool:
        return len(set(self.cells)) == 1


@dataclass
class Table:
    """columns; shares: of the limit, 0 to 1, for bars; notes: of each row, why it failed first; failed: whether
    it has; common: what all rows agree on and is no column."""

    columns: list[Column] = field(default_factory=list)
    shares: list[float | None] = field(default_factory=list)
    notes: list[list[str]] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)
    common: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[list[str]]:
        return [list(cells) for cells in zip(*(column.cells for column in self.columns))]


SHARE = "share of limit"


def table_of(results: Results) -> Table:
    rows = results.rows
    made = Table(shares=[row.share.median if row.share else None for row in rows],
                 notes=[["failed: " + clean(row.failure)] * bool(row.failure) + list(map(clean, row.noise)) for row in rows],
                 failed=[bool(row.failure) for row in rows])
    if not rows:
        return made
    for name in dict.fromkeys(name for row in rows for name in row.id):
        spelled = format_size if name == "bytes" else clean
        cells = ["" if row.id.get(name) is None else spelled(row.id[name]) for row in rows]
        varies = len(set(cells)) > 1
        if varies or name in ALWAYS or len(rows) == 1:
            numeric = all(isinstance(row.id.get(name), (int, float, type(None))) for row in rows)
            made.columns.append(Column(clean(name), cells, numeric, 0 if varies else DROP.get(name, 1)))
        else:
            made.common[clean(name)] = cells[0]
    made.columns.append(_values(rows))
    if any(row.share for row in rows):
        made.columns.append(Column(SHARE, [_share(row) for row in rows], True))
        made.columns.append(Column("limit", [_limit(row) for row in rows], True, DROP["limit"]))
    if results.kind == "compare":
        made.columns += [Column(f"{side.upper()}, median", [_side(row, side) for row in rows], True, 3) for side in ("a", "b")]
    for name, (title, spelled) in FACTS.items():
        cells = ["" if row.facts.get(name) is None else spelled(row.facts[name]) for row in rows]
        if any(cells):
            made.columns.append(Column(title, cells, spelled is not clean, DROP.get(title, 5)))
    return made


def _values(rows: list[Row]) -> Column:
    units = {row.unit for row in rows}
    known = [row.estimate.median for row in rows if row.estimate]
    factor, title = scale(rows[0].unit, known) if len(units) == 1 else (1.0, "measured")
    cells = []
    for row in rows:
        found = row.estimate
        if found is None:
            cells.append("failed" if row.failure else "not measured")
        elif len(units) == 1:
            cells.append(measured(found, row.unit, factor))
        else:
            own, name = scale(row.unit, [found.median])
            text, _, spread = measured(found, row.unit, own).partition(" ")
            cells.append(" ".join(filter(None, [text, "" if row.unit == RATIO else name, spread])))
    return Column(title or "measured", cells, True)


def _side(row: Row, side: str) -> str:
    """What one of two that are compared does: "41.9 GB/s"."""
    value, unit = row.facts.get(side), row.facts.get("of", "")
    if value is None:
        return ""
    factor, name = scale(unit, [value])
    return f"{number(value / factor)} {name}"


def _share(row: Row) -> str:
    return f"{percent(row.share.median)} {clean(row.limit.of) if row.limit else ''}".rstrip() if row.share else ""


def _limit(row: Row) -> str:
    known = [value for value in row.limit.samples if value is not None] if row.limit else []
    if not known:
        return ""
    middle = sorted(known)[len(known) // 2]
    factor, name = scale(row.limit.unit, [middle])
    return f"{number(middle / factor)} {name}"


def head(results: Results) -> list[tuple[str, str]]:
    """What machine this was, in which state: names and values."""
    facts = dict(results.machine)
    lines = [("processor", facts.pop("processor", None)), ("cores", _cores(facts)), ("memory", _memory(facts)),
             ("tier", facts.pop("tier", None)),
             ("versions", ", ".join(f"{name} {version}" for name, version in (facts.pop("versions", None) or {}).items())),
             ("system", facts.pop("system", None)),
             ("load average", " ".join(f"{value:g}" for value in facts.pop("load_average", None) or []) or "unknown"),
             ("date", str(facts.pop("date", "")).replace("T", " ").replace("+00:00", " UTC"))]
    if gpu := facts.pop("cuda", None):
        lines.append(("gpu", f"{gpu.get('name')}, compute capability {gpu.get('capability')}, {format_bytes(gpu.get('available') or 0)} "
                             f"free of {format_bytes(gpu.get('memory') or 0)}, driver for CUDA {gpu.get('driver')}, kernels for "
                             f"{gpu.get('targets')}"))
    lines += [(name.replace("_", " "), _plain(value)) for name, value in facts.items()]
    return [(clean(name), clean(value)) for name, value in lines if value not in (None, "", {}, [])]


def _cores(facts: dict[str, Any]) -> str:
    total, usable = facts.pop("logical_processors", None), facts.pop("usable_processors", None)
    return f"{usable} usable of {total}{_allowed(facts.get('cgroup'), 'processors', '{:g}'.format)}" if usable else ""


def _memory(facts: dict[str, Any]) -> str:
    memory, group = facts.pop("memory", None) or {}, facts.pop("cgroup", None)
    if not memory.get("total"):
        return ""
    return (f"{format_bytes(memory.get('available') or 0)} available of {format_bytes(memory['total'])}"
            + _allowed(group, "memory", format_bytes))


def _allowed(group: "dict[str, Any] | None", name: str, spelled: Callable[[float], str]) -> str:
    if group is None:
        return ""
    return ", no cgroup limit" if group.get(name) is None else f", cgroup allows {spelled(group[name])}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else clean(value)


def notes(results: Results) -> list[str]:
    """Of the run as a whole."""
    made = [clean(note) for note in results.notes]
    if not any(row.samples for row in results.rows):
        made.insert(0, "nothing was measured")
    if not results.complete:
        made.insert(0, "interrupted: this is what was measured until then")
    return made


def common(table: Table, dropped: "list[Column] | None" = None) -> str:
    """"in all rows: device cpu, batch 1", of ids that are no columns and of columns that had no room."""
    said = table.common | {column.title: column.cells[0] for column in dropped or [] if column.constant}
    return "in all rows: " + ", ".join(f"{name} {value or '-'}" for name, value in said.items()) if said else ""


class Footnotes:
    """Numbers for texts: the same for texts that differ in percentages only, which are said from the least to the most."""

    PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?)(?=\s?%)")

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], list[list[str]]] = {}  # words -> percentages of each text

    def of(self, texts: list[str]) -> str:
        numbers = []
        for text in texts:
            parts = self.PERCENTAGE.split(text)
            self._found.setdefault(tuple(parts[::2]), []).append(parts[1::2])
            numbers.append(list(self._found).index(tuple(parts[::2])) + 1)
        return ",".join(map(str, dict.fromkeys(numbers)))

    @property
    def lines(self) -> list[str]:
        made = []
        for place, (words, found) in enumerate(self._found.items(), 1):
            ends = [(min(values, key=float), max(values, key=float)) for values in zip(*found)]
            said = [least if least == most else f"{least}-{most}" for least, most in ends]
            made.append(f"{place}: " + "".join(word + value for word, value in zip(words, [*said, ""])))
        return made


def markdown_table(header: list[str], rows: list[list[str]], right: "list[bool] | None" = None) -> str:
    """Cells hold no | of their own."""
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    ends = "".join("---:|" if end else "---|" for end in right or [False] * len(header))
    return "\n".join([line(header), "|" + ends, *map(line, rows)])
