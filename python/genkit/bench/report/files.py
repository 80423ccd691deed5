"""Documents as files, by the suffix of their names; made sure of before anything is measured, and never half written."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Iterable

from genkit.bench.report.document import Document
from genkit.bench.report.drawing import drawing
from genkit.bench.report.numbers import clean
from genkit.bench.report.page import page
from genkit.bench.report.png import MISSING, png
from genkit.bench.report.svg import svg
from genkit.bench.report.tables import common, markdown_table
from genkit.checkpoints.files import shown_path
from genkit.plaintext import json_text, strict
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


def check_plot(name: str, force: bool) -> Path:
    """As check_file; raises UsageError for a PNG without matplotlib, which is not imported yet: it would count as memory."""
    path = check_file("--plot", name, PLOTS, force)
    if path.suffix.lower() == ".png" and find_spec("matplotlib") is None:
        raise UsageError(f"--plot {shown_path(name)}: {MISSING}")
    return path


# ---- Writing -------------------------------------------------------------------------------------------------------


def write_output(path: Path, made: Document) -> None:
    replace(path, OUTPUTS[path.suffix.lower()](made).encode("utf-8"))


def write_plot(path: Path, made: Document) -> None:
    replace(path, PLOTS[path.suffix.lower()](made))


def replace(path: Path, data: bytes) -> None:
    """All of it or nothing: written beside it, then renamed. Raises ResourceError."""
    beside = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
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


def markdown(made: Document) -> str:
    """GitHub's. Text of others stands in cells as text: no table, tag or link begins in it."""
    table = made.table
    parts = [f"# {escaped(made.title)}", "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in made.head)]
    if table.columns:
        titles, lines, ends = [c.title for c in table.columns], table.rows, [c.right for c in table.columns]
        said = ["; ".join(row) for row in table.notes]
        if any(said):
            titles, lines, ends = titles + ["notes"], [[*line, note] for line, note in zip(lines, said)], ends + [False]
        parts += [escaped(common(table))]
        parts.append(markdown_table([*map(escaped, titles)], [[*map(escaped, line)] for line in lines], ends))
    parts += ["\n".join(f"- {escaped(note)}" for note in made.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    return "".join("\\" + letter if letter in "\\`*_[]<>|~&#" else letter for letter in text)


def comma_separated(made: Document) -> str:
    """A line a record under a line of names, numbers in full. A name that two groups have is said with its group, as in
    "facts.threads"."""
    places: "dict[tuple[str, str], str]" = {}
    groups = list(dict.fromkeys(group for record in made.records for group in record))
    for group in groups:
        for name in dict.fromkeys(name for record in made.records for name in record.get(group, ())):
            places[group, name] = f"{group}.{name}" if any(name == other for _, other in places) else name
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell(title) for title in places.values()])
    writer.writerows([cell(record.get(group, {}).get(name)) for group, name in places] for record in made.records)
    return text.getvalue()


def cell(value: Any) -> str:
    """A text that a spreadsheet would run as a formula gets a '."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    text = clean(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def one_line(value: Any, encoding: str = "utf-8") -> str:
    """Strict JSON that can be written: a path that is no text has letters that only escapes can say."""
    text = json_text(value)
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return json.dumps(strict(value), allow_nan=False)


OUTPUTS: dict[str, Callable[[Document], str]] = {
    ".md": markdown,
    ".csv": comma_separated,
    ".json": lambda made: one_line(made.whole) + "\n",
    ".jsonl": lambda made: "".join(one_line(line) + "\n" for line in made.lines),
    ".html": page,
}
PLOTS: dict[str, Callable[[Document], bytes]] = {
    ".svg": lambda made: svg(drawing(made.charts)).encode("utf-8"),
    ".png": lambda made: png(drawing(made.charts)),
}
