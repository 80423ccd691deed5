"""A drawing as PNG, by matplotlib: a canvas of lines, boxes and words, no axes of its own."""

from __future__ import annotations

import io

from genkit.bench.report.drawing import LIGHT, Box, Drawing, Line, Mark, Words
from genkit.bench.report.svg import REACH, corners
from genkit.errors import UsageError

DOTS = 200  # an inch; a pixel of the drawing is a hundredth of an inch
TALLEST = 30000  # dots; matplotlib draws no more than 65535, and holds all of them in memory
SIDES = {"start": "left", "middle": "center", "end": "right"}
POINTS = 0.72  # of a printer, a pixel of the drawing
MISSING = "a PNG needs matplotlib: pip install 'genkit[plot]', or draw a .svg, which needs nothing"


def png(drawn: Drawing) -> bytes:
    """Raises UsageError without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.patches import Circle, Polygon, Rectangle
    except ImportError:
        raise UsageError(MISSING) from None
    with rc_context({"text.parse_math": False, "font.family": "sans-serif"}):  # a $ in a name is a $
        dots = min(DOTS, TALLEST / (drawn.height / 100))
        figure = Figure((drawn.width / 100, drawn.height / 100), dpi=dots, facecolor=LIGHT["paper"])
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, drawn.width), ylim=(drawn.height, 0))
        axes.axis("off")
        for order, item in enumerate(drawn.items):
            colour = LIGHT[item.colour]
            if isinstance(item, Line):
                xs, ys = zip(*item.points)
                made = Line2D(xs, ys, color=colour, linewidth=item.width * POINTS, solid_capstyle="butt")
                if item.dash:
                    made.set_dashes([part / item.width for part in item.dash])
            elif isinstance(item, Box):
                made = Rectangle((item.x, item.y), item.width, item.height, facecolor=colour, edgecolor="none")
            elif isinstance(item, Mark):
                made = (Circle((item.x, item.y), REACH, facecolor=colour, edgecolor="none") if item.shape == "circle"
                        else Polygon(corners(item), facecolor=colour, edgecolor="none"))
            elif isinstance(item, Words):
                placed = {"ha": SIDES[item.anchor], "va": "baseline"}
                if item.upwards:
                    placed = {"rotation": 90, "ha": "right", "va": "center"}
                axes.text(item.x, item.y, item.text, color=colour, fontsize=item.size * POINTS, zorder=order,
                          fontweight="bold" if item.bold else "normal", **placed)
                continue
            made.set_zorder(order)
            axes.add_artist(made)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dots)
    return file.getvalue()
