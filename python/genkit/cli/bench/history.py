"""`genkit bench history`: what --history has collected, over time."""

from typing import Annotated

import typer

from genkit.cli.bench.options import Force, Json, Output, Plot, Traceback
from genkit.cli.bench.show import Report
from genkit.cli.terminal import note


def history(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What --history FILE has written.")],
    output: Output = None,
    plot: Plot = None,
    force: Force = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show every run of a history file: what was measured, and how it changed from the run before.

    A change counts as better or worse where the two intervals do not overlap; runs on other processors are not compared.
    """
    from pathlib import Path

    from genkit.bench.report.history import history_document, read_history

    report = Report(output, plot, None, force, as_json)
    runs, warnings = read_history(Path(file))
    for warning in warnings:
        note(f"genkit: warning: {warning}")
    report.show_document(history_document(runs, warnings))
