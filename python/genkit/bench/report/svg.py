"""A drawing as SVG. Each thing has its colour, for any viewer, and a class, by which a page can change it."""

from __future__ import annotations

from html import escape

from genkit.bench.report.drawing import LIGHT, Box, Drawing, Item, Line, Mark, Words

FONTS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
REACH = 4.2  # from the middle of a mark to its edge


def svg(drawn: Drawing) -> str:
    width, height = f"{drawn.width:.0f}", f"{drawn.height:.0f}"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="{FONTS}" role="img">',
        _box(Box(0, 0, drawn.width, drawn.height, "paper")), *map(_item, drawn.items), "</svg>"]) + "\n"


def _item(item: Item) -> str:
    if isinstance(item, Line):
        return _line(item)
    if isinstance(item, Box):
        return _box(item)
    return _mark(item) if isinstance(item, Mark) else _words(item)


def _fill(colour: str) -> str:
    return f'class="{colour}" fill="{LIGHT[colour]}"'


def _line(line: Line) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in line.points)
    dash = f' stroke-dasharray="{" ".join(map(str, line.dash))}"' if line.dash else ""
    return (f'<polyline class="l {line.colour}" points="{places}" fill="none" stroke="{LIGHT[line.colour]}" '
            f'stroke-width="{line.width:g}"{dash} stroke-linejoin="round"/>')


def _box(box: Box) -> str:
    return f'<rect {_fill(box.colour)} x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"/>'


def corners(mark: Mark) -> list[tuple[float, float]]:
    """Of a mark that is no circle."""
    x, y, r = mark.x, mark.y, REACH
    s = r - 0.4  # so that all look as large
    return {"square": [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)],
            "diamond": [(x, y - r - 1), (x + r + 1, y), (x, y + r + 1), (x - r - 1, y)],
            "up": [(x, y - r - 0.6), (x + r + 0.6, y + r), (x - r - 0.6, y + r)],
            "down": [(x, y + r + 0.6), (x + r + 0.6, y - r), (x - r - 0.6, y - r)]}[mark.shape]


def _mark(mark: Mark) -> str:
    told = f"<title>{escape(mark.told)}</title>" if mark.told else ""
    if mark.shape == "circle":
        return f'<circle {_fill(mark.colour)} cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="{REACH}">{told}</circle>'
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners(mark))
    return f'<polygon {_fill(mark.colour)} points="{places}">{told}</polygon>'


def _words(words: Words) -> str:
    turned = f' transform="rotate(-90 {words.x:.1f} {words.y:.1f})"' if words.upwards else ""
    bold = ' font-weight="600"' if words.bold else ""
    return (f'<text {_fill(words.colour)} x="{words.x:.1f}" y="{words.y:.1f}" font-size="{words.size:g}" '
            f'text-anchor="{words.anchor}"{bold}{turned}>{escape(words.text)}</text>')
