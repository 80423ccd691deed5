"""Many runs in one file, a line of JSON each, and what changed from one to the next."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genkit.bench.estimates import Estimate
from genkit.bench.report.charts import Axis, Chart, Series, far_apart, names, point
from genkit.bench.report.document import Document, measured_numbers
from genkit.bench.report.files import one_line
from genkit.bench.report.numbers import clean, number, percent, scale
from genkit.bench.report.tables import Column, Table
from genkit.bench.results import SCHEMA, Results, Row, parse_results
from genkit.checkpoints.files import open_regular, shown, shown_path
from genkit.errors import BadFileError, ResourceError, UsageError

BEGINNING = b'{"genkit_bench":'


# ---- The file ------------------------------------------------------------------------------------------------------


def check_history(name: str) -> Path:
    """The path to append to later. Raises UsageError for a file that is no history, ResourceError where none can be made."""
    path, said = Path(name), shown_path(name)
    try:
        if not os.path.lexists(path):
            if not os.access(path.parent, os.W_OK | os.X_OK) or not path.parent.is_dir():
                raise ResourceError(f"--history {said}: its folder is not there or takes no files; name another file")
            return path
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UsageError(f"--history {said}: is there and no regular file; name another")
        with open(path, "rb+") as file:
            start = file.read(len(BEGINNING)).lstrip()
    except OSError as error:
        raise ResourceError(f"--history {said}: cannot be written: {error.strerror or error}; name another file") from None
    if start and not start.startswith(BEGINNING[:len(start)]):
        raise UsageError(f"--history {said}: exists and is no history of genkit bench; name another file")
    return path


def append(path: Path, results: Results) -> None:
    """One line more. Runs that end together wait for one another; a line is whole or, on a full disk, not there.

    Raises ResourceError.
    """
    line = one_line(results.as_dict()).encode("utf-8") + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a run that was killed in the middle of its line
                line = b"\n" + line
            try:
                if os.write(descriptor, line) < len(line):
                    raise OSError(None, "the disk is full")
            except BaseException:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ResourceError(f"cannot append to {shown_path(path)}: {error.strerror or error}") from None


def _lock(descriptor: int) -> None:
    with suppress(ImportError, OSError):  # file systems without locks still append in one write
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


def read_history(path: Path) -> tuple[list[Results], list[str]]:
    """(The runs by their dates, a warning a line that could not be read). Raises BadFileError for a file
    without any run."""
    descriptor, _ = open_regular(path)
    runs, warnings = [], []
    try:
        with os.fdopen(descriptor, "rb") as file:
            for place, line in enumerate(map(bytes.strip, file), 1):
                try:
                    if line:
                        runs.append(parse_results(json.loads(line)))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    warnings.append(f"{shown_path(path)}: line {place} is damaged and left out: {shown(str(error), 80)}")
    except OSError as error:
        raise BadFileError(f"{shown_path(path)}: cannot be read: {error.strerror or error}") from None
    if not runs:
        raise BadFileError(f"{shown_path(path)}: no run in it; expected what genkit bench --history FILE writes")
    runs.sort(key=lambda run: str(run.machine.get("date")))  # those that ran side by side end in any order
    return runs, warnings


# ---- Over time -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """From the run before: of the median, as a share of it; significant where the two intervals do not overlap; better."""

    share: float
    significant: bool
    better: bool


@dataclass
class Measured:
    """A row in one of the runs, the one at `place`. change: None in the first."""

    place: int
    run: Results
    row: Row
    found: Estimate
    change: Change | None = None


@dataclass
class Track:
    """The same thing in every run that measured it, on the same kind of machine."""

    kind: str
    id: dict[str, Any]
    unit: str
    better: str
    processor: str
    cores: Any
    runs: list[Measured] = field(default_factory=list)


def tracks(runs: list[Results]) -> list[Track]:
    found: dict[Any, Track] = {}
    for place, run in enumerate(runs):
        processor, cores = str(run.machine.get("processor")), run.machine.get("usable_processors")
        for row in run.rows:
            estimate = row.estimate
            if estimate is None:
                continue
            track = found.setdefault((run.kind, row.key, row.unit, processor, str(cores)),
                                     Track(run.kind, row.id, row.unit, row.better, processor, cores))
            before = track.runs[-1].found if track.runs else None
            track.runs.append(Measured(place, run, row, estimate, before and changed(before, estimate, row.better)))
    return list(found.values())


def changed(before: Estimate, now: Estimate, better: str) -> Change | None:
    if not before.median:
        return None
    apart = now.low > before.high or now.high < before.low
    share = now.median / before.median - 1
    return Change(share, apart and before.count > 1 and now.count > 1, (share > 0) == (better == "more"))


def history_document(runs: list[Results], warnings: list[str]) -> Document:
    found = tracks(runs)
    lines = [_line(track) for track in found]
    records = [{"id": track.id, "run": {"kind": track.kind, "processor": track.processor, "usable_processors": track.cores} | _run(one),
                "row": measured_numbers(one.row), "change": _change(one.change)} for track in found for one in track.runs]
    head = [("runs", str(len(runs))), ("from", _date(runs[0])), ("to", _date(runs[-1]))]
    return Document("genkit bench history", head, _table(found), [], _charts(found),
                    {"genkit_bench_history": SCHEMA, "warnings": warnings, "rows": lines}, lines, records)


def _line(track: Track) -> dict[str, Any]:
    return {"kind": track.kind, "id": track.id, "unit": track.unit, "better": track.better, "processor": track.processor,
            "usable_processors": track.cores,
            "runs": [_run(one) | one.found.as_dict() | {"samples": one.found.count} | _change(one.change) for one in track.runs]}


def _run(one: Measured) -> dict[str, Any]:
    return {"date": one.run.machine.get("date"), "genkit": _version(one), "complete": one.run.complete}


def _change(change: Change | None) -> dict[str, Any]:
    return {"change": change and change.share, "significant": change and change.significant}


def _version(one: Measured) -> str:
    return clean((one.run.machine.get("versions") or {}).get("genkit"))


def _date(run: Results) -> str:
    return clean(str(run.machine.get("date")).replace("T", " ").replace("+00:00", " UTC"))


def _table(found: list[Track]) -> Table:
    """A line a run, those of one track under one another."""
    lines = [(track, one) for track in found for one in track.runs]
    made = Table(shares=[None] * len(lines), failed=[False] * len(lines),
                 notes=[["interrupted"] * (not one.run.complete) + list(map(clean, one.row.noise)) for _, one in lines])
    if not lines:
        return made
    ids = [{"kind": track.kind, "processor": track.processor, "cores": track.cores, **track.id} for track, _ in lines]
    for name in dict.fromkeys(name for one in ids for name in one):
        cells = [clean(one.get(name)) for one in ids]
        if len(set(cells)) > 1:
            made.columns.append(Column(clean(name), cells, drop=0))
        else:
            made.common[clean(name)] = cells[0]
    medians, intervals = [], []
    for track, one in lines:
        factor, name = scale(track.unit, [each.found.median for each in track.runs])
        median, low, high = (number(value / factor) for value in (one.found.median, one.found.low, one.found.high))
        medians.append(f"{median} {name}")
        intervals.append(f"{low}-{high}" if one.found.count > 1 else "")
    made.columns += [Column("date", [_date(one.run) for _, one in lines]),
                     Column("genkit", [_version(one) for _, one in lines], drop=2),
                     Column("median", medians, True), Column("interval", intervals, True, 1),
                     Column("change", [_spelled(one) for _, one in lines])]
    return made


def _spelled(one: Measured) -> str:
    change = one.change
    if change is None:
        return ""
    said = "better" if change.better else "worse"
    if not change.significant:
        said = "one sample" if one.found.count < 2 else "within the noise"
    return f"{'+' if change.share >= 0 else '-'}{percent(abs(change.share))} {said}"


def _charts(found: list[Track]) -> list[Chart]:
    """One for what is measured in the same unit and, of models, by the same test."""
    made = []
    for kind, unit, test in dict.fromkeys((track.kind, track.unit, _test(track)) for track in found):
        chosen = [track for track in found if (track.kind, track.unit, _test(track)) == (kind, unit, test)]
        places = {id(one.run): one.place for track in chosen for one in track.runs}
        order = sorted(places, key=lambda run: places[run])
        dates = {id(one.run): _date(one.run) for track in chosen for one in track.runs}
        factor, name = scale(unit, [one.found.median for track in chosen for one in track.runs])
        told = names([{**track.id, "processor": track.processor, "cores": track.cores} for track in chosen])
        series = [Series(said or kind, [point(float(order.index(id(one.run))), one.found, factor, f"{said or kind}, {dates[id(one.run)]}")
                                        for one in track.runs]) for track, said in zip(chosen, told)]
        across, title = Axis("runs", names=[dates[run][5:16] for run in order]), f"{kind}, {test}" if test else kind
        made.append(Chart(f"{title}: over time", across, Axis(name, far_apart(series), zero=False), series))
    return made


def _test(track: Track) -> str:
    return str(track.id.get("test", "")) if track.kind == "models" else ""
