"""Results as files, by the suffix of their names; made sure of before anything is measured, and never half written."""

from __future__ import annotations

import csv
import io
import os
import stat
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterable

from genkit.bench.report.numbers import clean
from genkit.bench.report.tables import common, failures, head, markdown_table, notes, table_of
from genkit.bench.results import Results, Row
from genkit.checkpoints.files import shown_path
from genkit.cli.result import json_text
from genkit.errors import ResourceError, UsageError

# ---- Before measuring ----------------------------------------------------------------------------------------------


def check_file(option: str, name: str, suffixes: Iterable[str], force: bool) -> Path:
    """The path to write later. Raises UsageError for another suffix and for a file that exists without `force`,
    ResourceError where none can be made."""
    path, shown = Path(name), shown_path(name)
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {shown}: expected a name that ends in {', '.join(suffixes)}")
    try:
        mode = os.stat(path).st_mode if os.path.lexists(path) else None
        if mode is not None and not stat.S_ISREG(mode):
            raise UsageError(f"{option} {shown}: is there and no regular file; name another")
        if mode is not None and not force:
            raise UsageError(f"{option} {shown}: exists already; --force replaces it, or name another file")
        path = Path(os.path.realpath(path))  # a link stays one
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ResourceError(f"{option} {shown}: cannot be written: {error.strerror or error}; name another file") from None
    return path


# ---- Writing -------------------------------------------------------------------------------------------------------


def write_output(path: Path, results: Results) -> None:
    replace(path, OUTPUTS[path.suffix.lower()](results).encode("utf-8"))


def replace(path: Path, data: bytes) -> None:
    """All of it or nothing: written beside it, then renamed. Raises ResourceError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(beside, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ResourceError(f"cannot write {shown_path(path)}: {error.strerror or error}") from None


def markdown(results: Results) -> str:
    """GitHub's. Text of others stands in cells as text: no table, tag or link begins in it."""
    table = table_of(results)
    parts = [f"# genkit bench: {results.kind}", "\n".join(f"- {name}: {escaped(value)}" for name, value in head(results))]
    if table.columns:
        said = ["; ".join(filter(None, [why, *row])) for why, row in zip(failures(results), table.notes)]
        titles, lines = [column.title for column in table.columns], table.rows
        if any(said):
            titles, lines = titles + ["notes"], [[*line, note] for line, note in zip(lines, said)]
        text = common(table)
        parts += [escaped(text[0].upper() + text[1:] + ".")] if text else []
        ends = [column.right for column in table.columns] + [False]
        parts.append(markdown_table([escaped(title) for title in titles], [[escaped(cell) for cell in line] for line in lines], ends))
    parts += ["\n".join(f"- {escaped(note)}" for note in notes(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    return "".join("\\" + letter if letter in "\\`*_[]<>|~&#" else letter for letter in text)


def comma_separated(results: Results) -> str:
    """A line a row under a line of names, numbers in full. A text that a spreadsheet would run as a formula gets a '."""
    names, lines = flat(results)
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerows([names, *([cell(value) for value in line] for line in lines)])
    return made.getvalue()


def cell(value: Any) -> Any:
    if isinstance(value, bool) or value is None or not isinstance(value, (int, float)):
        text = clean(value)
        return "'" + text if text[:1] in ("=", "+", "-", "@") else text
    return repr(value)


def flat(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Names and, a row, their values: what identifies it, what was measured, facts of it and of the machine. A name that
    two of these groups have is said with its group, as in "facts.threads"."""
    machine = results.machine
    records = [{"id": row.id, "row": _numbers(row),
                "facts": {name: value for name, value in row.facts.items() if not isinstance(value, (dict, list))},
                "run": {"noise": "; ".join(row.noise), "failure": row.failure, "kind": results.kind,
                        "complete": results.complete, "date": machine.get("date"), "processor": machine.get("processor"),
                        "genkit": (machine.get("versions") or {}).get("genkit")}} for row in results.rows]
    places: "dict[tuple[str, str], str]" = {}
    for group in ("id", "row", "facts", "run"):
        for name in dict.fromkeys(name for record in records for name in record[group]):
            places[group, name] = f"{group}.{name}" if any(name == other for _, other in places) else name
    return ([clean(title) for title in places.values()],
            [[record[group].get(name) for group, name in places] for record in records])


def _numbers(row: Row) -> dict[str, Any]:
    found, share = row.estimate, row.share
    limit = [value for value in row.limit.samples if value is not None] if row.limit else []
    others = [value for value in row.others if value is not None]
    return {
        "unit": row.unit, "better": row.better, "median": found and found.median, "low": found and found.low,
        "high": found and found.high, "min": found and found.minimum, "max": found and found.maximum,
        "confidence": found and found.confidence, "samples": len(row.samples),
        "share": share and share.median, "share_low": share and share.low, "share_high": share and share.high,
        "limit_of": row.limit and row.limit.of, "limit_unit": row.limit and row.limit.unit,
        "limit": median(limit) if limit else None, "others": median(others) if others else None,
    }


def one_object(results: Results) -> str:
    return json_text(results.as_dict()) + "\n"


def lines_of_json(results: Results) -> str:
    """An object a row, each with all of the run beside it, so that it can be read alone."""
    made = results.as_dict()
    rows = made.pop("rows")
    return "".join(json_text(made | {"row": row}) + "\n" for row in rows)


OUTPUTS: dict[str, Callable[[Results], str]] = {
    ".md": markdown, ".csv": comma_separated, ".json": one_object, ".jsonl": lines_of_json,
}
