"""A document as one HTML page that needs nothing else: the table with bars, and the charts inside."""

from __future__ import annotations

from html import escape

from genkit.bench.report.document import Document
from genkit.bench.report.drawing import DARK, LIGHT, drawing
from genkit.bench.report.svg import FONTS, svg
from genkit.bench.report.tables import SHARE, Footnotes, common


def page(made: Document) -> str:
    title, table = escape(made.title), made.table
    parts = [f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
             '<meta name="viewport" content="width=device-width, initial-scale=1">',
             f"<style>\n{_style()}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<dl>"]
    parts += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in made.head]
    parts.append("</dl>")
    if common(table):
        parts.append(f"<p>{escape(common(table))}</p>")
    if table.columns:
        parts += _table(made)
    parts += [f'<p class="note">{escape(note)}</p>' for note in made.notes]
    parts += ["<section>", *(f"<figure>{svg(drawing([chart]))}</figure>" for chart in made.charts), "</section>"]
    return "\n".join([*parts, "</body>\n</html>\n"])


def _table(made: Document) -> list[str]:
    table, marks = made.table, Footnotes()
    titles = [_cell("th", column.title, column.right and column.title != SHARE) for column in table.columns] + ["<th></th>"]
    lines = ["<div><table>", f"<thead><tr>{''.join(titles)}</tr></thead>", "<tbody>"]
    for index, row in enumerate(table.rows):
        cells = [_bar(cell, table.shares[index]) if column.title == SHARE else _cell("td", cell, column.right)
                 for column, cell in zip(table.columns, row)]
        note = f'<td class="note">{marks.of(table.notes[index])}</td>'
        lines.append(f"<tr{' class=failed' if table.failed[index] else ''}>{''.join(cells)}{note}</tr>")
    return [*lines, "</tbody></table></div>", *(f'<p class="note">{escape(line)}</p>' for line in marks.lines)]


def _cell(kind: str, text: str, right: bool) -> str:
    return f'<{kind}{" class=r" if right else ""}>{escape(text)}</{kind}>'


def _bar(text: str, share: float | None) -> str:
    if share is None:
        return "<td></td>"
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<td class="share"><i><b style="width:{width:.1f}%"></b></i>{escape(text)}</td>'


def _style() -> str:
    return "\n".join([
        f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}",
        f"body {{ font: 15px/1.45 {FONTS}; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }}",
        "body { background: var(--paper); color: var(--ink) }",
        "h1 { font-size: 1.5rem }",
        "dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: 0 0 1rem }",
        "dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }",
        "div { overflow-x: auto }",
        "table { border-collapse: collapse; font-variant-numeric: tabular-nums }",
        "th, td { padding: .25rem .55rem; text-align: left; border-bottom: 1px solid var(--grid); white-space: nowrap }",
        ".r { text-align: right }",
        ".note { color: var(--s1); margin: .2rem 0 } .failed { color: var(--soft) }",
        ".share i { display: inline-block; width: 6rem; height: .7rem; margin-right: .6rem; background: var(--grid) }",
        ".share b { display: block; height: 100%; background: var(--s2) }",
        "section { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 0 1.5rem }",
        "figure { margin: 1rem 0 } svg { max-width: 100%; height: auto }",
        *(f"svg .{name} {{ fill: var(--{name}) }} svg .l.{name} {{ fill: none; stroke: var(--{name}) }}" for name in LIGHT),
    ]) + "\n"


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
