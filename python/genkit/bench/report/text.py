"""Tables as text: for a terminal with bars and colours as far as there is room, for a pipe plain and complete."""

from __future__ import annotations

from typing import Any

from genkit.bench.report.document import Document
from genkit.bench.report.tables import SHARE, Column, Footnotes, Table, common

BAR = 10  # cells
NAME = 32  # of a name, what is kept on one line while anything else can go
FOLDED = 12  # where nothing else can go, names longer than this take several lines; numbers never do
EIGHTHS = " ▏▎▍▌▋▊▉█"


def plain(made: Document) -> str:
    """Aligned columns without escape codes; nothing is cut."""
    from genkit.plaintext import table as pairs

    table = made.table
    parts = ["\n".join([made.title, *pairs(made.head)])]
    if table.columns:
        lines = [[column.title for column in table.columns], *table.rows]
        if any(table.notes):
            lines = [[*line, note] for line, note in zip(lines, ["notes", *map("; ".join, table.notes)])]
        parts.append("\n".join(filter(None, [common(table), *aligned(lines, [column.right for column in table.columns])])))
    return "\n\n".join(part.rstrip("\n") for part in [*parts, "\n".join(made.notes)] if part)


def aligned(lines: list[list[str]], right: list[bool]) -> list[str]:
    """Cells under one another, by the width they have on a screen; those beyond `right` are on the left."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*lines)]
    right = right + [False] * (len(widths) - len(right))
    made = []
    for line in lines:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths)]
        made.append("  ".join(gap + cell if end else cell + gap for cell, gap, end in zip(line, gaps, right)).rstrip())
    return made


def fitted(table: Table, width: int) -> tuple[list[Column], list[Column], bool]:
    """(Columns that fit, those that do not, whether there is room for bars): the least important go first, then the bars,
    then the shares. What tells rows apart stays, if need be on several lines."""
    shown = list(table.columns)
    extra = 3 if any(table.notes) else 0
    bars = any(column.title == SHARE for column in shown)

    def needed(fold: int) -> int:
        widths = [_width(column) if column.right else min(_width(column), fold) for column in shown]
        return sum(widths) + 2 * len(widths) + extra + (BAR + 1) * bars

    while needed(NAME) > width:
        droppable = [column for column in shown if column.drop]
        if droppable:
            last = max(droppable, key=lambda column: column.drop)
            shown = [column for column in shown if column is not last]
        elif bars:
            bars = False
        else:
            if needed(FOLDED) > width:
                shown = [column for column in shown if column.title != SHARE]
            break
    return shown, [column for column in table.columns if column not in shown], bars


def _width(column: Column) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, [column.title, *column.cells]))


def rich_lines(made: Document, width: int, unicode: bool = True) -> list[Any]:
    """What rich prints for a terminal of this width."""
    from rich.table import Table as RichTable
    from rich.text import Text

    from genkit.plaintext import table as pairs

    table = made.table
    lines: list[Any] = [Text(made.title, "bold"), *(Text(line, "dim") for line in pairs(made.head)), Text("")]
    if table.columns:
        shown, dropped, bars = fitted(table, width)
        marks = Footnotes()
        marked = [marks.of(said) for said in table.notes]
        drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in shown:
            short = column.right or _width(column) <= FOLDED
            drawn.add_column(Text(column.title), justify="right" if column.right else "left", overflow="fold", no_wrap=short)
        if any(marked):
            drawn.add_column("")
        for index, cells in enumerate(zip(*(column.cells for column in shown))):
            line = [Text(cell, "red" if table.failed[index] else "") for cell in cells]
            for place, column in enumerate(shown):
                if column.title == SHARE and bars:
                    longest = max(map(len, column.cells))  # bars begin under one another
                    line[place] = bar(table.shares[index], unicode) + Text(" " + cells[place].rjust(longest))
            drawn.add_row(*line, *([Text(marked[index], "yellow")] if any(marked) else []))
        text = common(table, dropped)
        if text:
            lines.append(Text(text, "dim"))
        lines += [drawn, *(Text(line, "yellow") for line in marks.lines)]
        lost = [column.title for column in dropped if not column.constant]
        if lost:
            lines.append(Text(f"no room for {', '.join(lost)}: a wider terminal, a pipe or -o shows them", "dim"))
    return lines + [Text(note, "yellow") for note in made.notes]


def bar(share: float | None, unicode: bool = True) -> Any:
    """BAR cells, to an eighth of one; in red beyond the limit, which cannot be."""
    from rich.text import Text

    if share is None:
        return Text(" " * BAR)
    eighths = round(8 * BAR * min(max(share, 0.0), 1.0))
    full, rest = divmod(eighths, 8)
    text = "█" * full + (EIGHTHS[rest] if rest else "") if unicode else "#" * round(eighths / 8)
    return Text(text, "green" if share <= 1 else "red") + Text(("░" if unicode else ".") * (BAR - len(text)), "dim")
