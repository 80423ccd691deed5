"""How the commands of `genkit bench` show what they found: on standard output, in files, in a plot, in a history."""

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterator, Optional

from genkit.cli.failure import explain
from genkit.cli.interrupt import Interrupts
from genkit.cli.terminal import note
from genkit.errors import Error, UsageError

if TYPE_CHECKING:
    from genkit.bench.report.document import Document
    from genkit.bench.results import Results


class Report:
    """Where results go. Made before anything is measured: raises UsageError for suffixes nobody writes, for files that
    exist without `force` and for a plot that nothing here can draw, ResourceError for places that cannot be written."""

    def __init__(self, output: Optional[str], plot: Optional[str], history: Optional[str], force: bool, as_json: bool) -> None:
        from genkit.bench.report.files import OUTPUTS, check_file, check_plot
        from genkit.bench.report.history import check_history

        self.output = None if output is None else check_file("-o", output, OUTPUTS, force)
        self.plot = None if plot is None else check_plot(plot, force)
        self.history = None if history is None else check_history(history)
        if self.history is not None and self.history.resolve() in (self.output, self.plot):
            raise UsageError(f"--history {history}: is what -o or --plot would replace; name another file")
        self.as_json = as_json

    def show(self, results: "Results") -> None:
        """Prints, and writes the files; one that fails keeps nothing else from being shown."""
        from genkit.bench.report.document import document
        from genkit.bench.report.history import append

        # An interrupted run that has nothing replaces no file.
        files, history = any(row.samples for row in results.rows), self.history
        more = [lambda: append(history, results)] if files and history is not None else []
        self.show_document(document(results), files, more)

    def show_document(self, made: "Document", files: bool = True, more: "list[Callable[[], None]] | None" = None) -> None:
        from genkit.bench.report.files import write_output, write_plot

        steps: "list[Callable[[], None]]" = [lambda: print_document(made, self.as_json)]
        if files and self.output is not None:
            steps.append(lambda: write_output(self.output, made))
        if files and self.plot is not None:
            steps.append(lambda: write_plot(self.plot, made))
        failed = []
        for step in steps + (more or []):
            try:
                step()
            except Exception as error:
                failed.append(error)
        for error in failed[1:]:
            say(error)
        if failed:
            raise failed[0]


@contextmanager
def measured(results: "Results", report: Report) -> Iterator[None]:
    """Around the measuring: after Ctrl-C, or an error in the middle, what there is is shown before it ends. Bars belong
    inside, so that they are gone by then."""
    with Interrupts():
        try:
            yield
        except (KeyboardInterrupt, Error) as error:
            results.complete = False
            if isinstance(error, KeyboardInterrupt) or any(row.samples for row in results.rows):
                try:
                    report.show(results)
                except Exception as failed:  # told, but not instead of what ended the measuring
                    say(failed)
            raise


def say(error: Exception) -> None:
    message = explain(error)[1]
    if message:
        note(f"genkit: error: {message}")


def print_document(made: "Document", as_json: bool) -> None:
    if as_json:
        from genkit.bench.report.files import one_line

        print(one_line(made.whole, sys.stdout.encoding or "utf-8"), flush=True)
    elif sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from genkit.bench.report.text import rich_lines
        from genkit.cli.terminal import console

        screen = console(stderr=False)
        for line in rich_lines(made, screen.width, unicode=not screen.options.ascii_only):
            screen.print(line)
        sys.stdout.flush()
    else:
        from genkit.bench.report.text import plain

        print_text(plain(made))


def print_text(text: str) -> None:
    """To standard output; where its encoding has no such letter, as close as it can."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.replace("±", "+-").replace("µ", "u").encode("ascii", "replace").decode()
    print(text, flush=True)
