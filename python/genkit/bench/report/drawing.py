"""Charts laid out, one below the other, as lines, boxes, marks and words: what svg.py and png.py write down."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Callable, Union

from genkit.bench.report.charts import Chart, Point, Series
from genkit.bench.report.numbers import number
from genkit.bench.report.scales import limits, place, ticks

# By what a thing is. The series: Okabe and Ito 2008, colours that differ for colour-blind eyes too, less its yellow.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c")
LIGHT = {f"s{i}": colour for i, colour in enumerate(SERIES)} | {
    "paper": "#ffffff", "ink": "#1f2328", "soft": "#59636e", "grid": "#e2e6ea"}
DARK = LIGHT | {"paper": "#14181d", "ink": "#e6edf3", "soft": "#a0abb6", "grid": "#2d343c",
                "s0": "#3b8eea", "s5": "#9bdcff", "s6": "#b5b5b5"}
SHAPES = ("circle", "square", "diamond", "up", "down")
DASHES = ((), (7, 4), (2, 3), (9, 3, 2, 3))

WIDTH = 760.0
TITLE, TEXT, SMALL = 15.0, 12.0, 11.0  # heights of letters
PLOT = 300.0  # height of a chart's inside
BAR = 24.0  # height of a bar's line
LETTER = 0.58  # width of a letter, of its height


@dataclass(frozen=True)
class Line:
    points: tuple[tuple[float, float], ...]
    colour: str
    width: float = 1.0
    dash: tuple[int, ...] = ()


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class Mark:
    """told: said when a pointer rests on it."""

    x: float
    y: float
    shape: str
    colour: str
    told: str = ""


@dataclass(frozen=True)
class Words:
    """anchor: "start", "middle" or "end" of the text is at x; y is its base line; upwards: read from below."""

    x: float
    y: float
    text: str
    size: float = TEXT
    anchor: str = "start"
    colour: str = "ink"
    bold: bool = False
    upwards: bool = False


Item = Union[Line, Box, Mark, Words]


@dataclass
class Drawing:
    """Numbers are pixels, y grows downwards."""

    width: float = WIDTH
    height: float = 0.0
    items: list[Item] = field(default_factory=list)


def drawing(charts: list[Chart]) -> Drawing:
    made = Drawing()
    for chart in charts:
        made.height = _bars(made, chart) if chart.bars else _lines(made, chart)
    if not charts:
        made.height = 56
        made.items.append(Words(16, 34, "Nothing was measured"))
    return made


def text_width(text: str, size: float) -> float:
    """About: fonts differ."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text) * size * LETTER


def shortened(text: str, room: float, size: float) -> str:
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + "…", size) > room:
        text = text[:-1]
    return text + "…"


def _heading(made: Drawing, chart: Chart) -> float:
    top = made.height + 28
    made.items.append(Words(16, top, shortened(chart.title, WIDTH - 32, TITLE), TITLE, bold=True))
    return top + 12


def style(chart: Chart, series: Series) -> tuple[str, tuple[int, ...], str]:
    """(colour, dash, shape): marked ones have colours, limits are grey lines."""
    alike = [other for other in chart.series if other.marked == series.marked]
    index = next(index for index, other in enumerate(alike) if other is series)
    if not series.marked:
        return "soft", DASHES[index % len(DASHES)], ""
    return f"s{index % len(SERIES)}", (), SHAPES[index % len(SHAPES)]


# ---- Lines and points ----------------------------------------------------------------------------------------------


def _lines(made: Drawing, chart: Chart) -> float:
    top = _legend(made, chart, _heading(made, chart)) + 14
    across, upright = limits(chart)
    left, right, bottom = 70.0, WIDTH - 24, top + PLOT

    def x(value: float) -> float:
        return left + (right - left) * place(value, across, chart.x.log)

    def y(value: float) -> float:
        return bottom - PLOT * place(value, upright, chart.y.log)

    for value, text in ticks(chart.y, upright, 0.05):
        made.items += [Line(((left, y(value)), (right, y(value))), "grid"),
                       Words(left - 8, y(value) + 4, text, SMALL, "end", "soft")]
    named = ticks(chart.x, across, 0.0)
    longest = max((text_width(text, SMALL) for _, text in named), default=0)
    for value, text in ticks(chart.x, across, (longest + 10) / (right - left)):
        made.items += [Line(((x(value), bottom), (x(value), bottom + 4)), "soft"),
                       Words(x(value), bottom + 18, text, SMALL, "middle", "soft")]
    made.items += [Line(((left, bottom), (right, bottom)), "soft"),
                   Words((left + right) / 2, bottom + 38, chart.x.title, TEXT, "middle"),
                   Words(18, (top + bottom) / 2, chart.y.title, TEXT, "middle", upwards=True)]
    for series in chart.series:
        _series(made, chart, series, x, y)
    return bottom + 54


def _series(made: Drawing, chart: Chart, series: Series, x: Callable[[float], float], y: Callable[[float], float]) -> None:
    colour, dash, shape = style(chart, series)
    if series.joined:
        places = tuple((x(point.x), y(point.y)) for point in series.points)
        made.items.append(Line(places, colour, 2 if series.marked else 1.4, dash))
    if not series.marked:
        return
    for point in series.points:
        if point.low is not None and point.high is not None:
            made.items += _whisker(x(point.x), y(point.low), x(point.x), y(point.high), colour)
        text = f"{point.name or series.name}: {told(point, point.y)} {chart.y.title}"
        made.items.append(Mark(x(point.x), y(point.y), shape, colour, text))


def told(point: Point, value: float) -> str:
    if point.low is None or point.high is None:
        return number(value)
    return f"{number(value)} ({number(point.low)}-{number(point.high)})"


def _whisker(x0: float, y0: float, x1: float, y1: float, colour: str) -> list[Item]:
    """From one end to the other, a short stroke across at both."""
    across, along = (3.5, 0.0) if x0 == x1 else (0.0, 3.5)
    ends = [Line(((x - across, y - along), (x + across, y + along)), colour, 1.2) for x, y in ((x0, y0), (x1, y1))]
    return [Line(((x0, y0), (x1, y1)), colour, 1.2), *ends]


def _legend(made: Drawing, chart: Chart, top: float) -> float:
    """Between title and plot, where no data can be; returns where it ends."""
    if len(chart.series) < 2 and all(series.marked for series in chart.series):
        return top
    x, y = 16.0, top + 12
    for series in chart.series:
        colour, dash, shape = style(chart, series)
        name = shortened(series.name, WIDTH - 80, SMALL)
        width = 32 + text_width(name, SMALL) + 18
        if x > 16 and x + width > WIDTH - 8:
            x, y = 16.0, y + 18
        if series.joined:
            made.items.append(Line(((x, y - 4), (x + 24, y - 4)), colour, 1.4 if not series.marked else 2, dash))
        if series.marked:
            made.items.append(Mark(x + 12, y - 4, shape, colour))
        made.items.append(Words(x + 31, y, name, SMALL))
        x += width
    return y + 4


# ---- Bars ----------------------------------------------------------------------------------------------------------


def _bars(made: Drawing, chart: Chart) -> float:
    top = _heading(made, chart) + 4
    across, _ = limits(chart)
    points, names = chart.series[0].points, chart.y.names
    room = min(max((text_width(name, SMALL) for name in names), default=0.0), 0.46 * WIDTH)
    said = [told(point, point.x) for point in points]
    left, right = 16 + room + 10, WIDTH - 24 - max(text_width(text, SMALL) for text in said)
    bottom = top + BAR * len(points)

    def x(value: float) -> float:
        return left + (right - left) * place(value, across, chart.x.log)

    for value, text in ticks(chart.x, across, 60 / (right - left)):
        made.items += [Line(((x(value), top), (x(value), bottom)), "grid"),
                       Words(x(value), bottom + 16, text, SMALL, "middle", "soft")]
    for point, name, text in zip(points, names, said):
        middle = top + BAR * (point.y + 0.5)
        made.items.append(Words(left - 8, middle + 4, shortened(name, room, SMALL), SMALL, "end"))
        if not chart.x.log:  # a bar has a length only from zero on
            made.items.append(Box(x(0), middle - 7, max(x(point.x) - x(0), 0.5), 14, "s0"))
        if point.low is not None and point.high is not None:
            made.items += _whisker(x(point.low), middle, x(point.high), middle, "s0" if chart.x.log else "ink")
        if chart.x.log:
            made.items.append(Mark(x(point.x), middle, "circle", "s0", f"{name}: {text}"))
        made.items.append(Words(x(max(point.x, point.high or point.x)) + 8, middle + 4, text, SMALL, colour="soft"))
    if chart.reference is not None:
        made.items.append(Line(((x(chart.reference), top - 2), (x(chart.reference), bottom + 2)), "s1", 1.4, (5, 3)))
    made.items += [Line(((left, top), (left, bottom)), "soft"),
                   Words((left + right) / 2, bottom + 34, chart.x.title, TEXT, "middle")]
    return bottom + 50
