"""How the commands of `genkit bench` show what they found: on standard output, in files, in a plot, in a history."""

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Iterator, Optional

from genkit.cli.failure import explain
from genkit.cli.interrupt import Interrupts
from genkit.cli.terminal import note
from genkit.errors import Error, UsageError

if TYPE_CHECKING:
    from genkit.bench.results import Results


class Report:
    """Where results go. Made before anything is measured: raises UsageError for suffixes nobody writes, for files that
    exist without `force` and for a plot that nothing here can draw, ResourceError for places that cannot be written."""

    def __init__(self, output: Optional[str], plot: Optional[str], history: Optional[str], force: bool, as_json: bool) -> None:
        from genkit.bench.report.files import OUTPUTS, check_file

        if plot or history:
            raise UsageError("--plot and --history: not there yet")
        self.output = None if output is None else check_file("-o", output, OUTPUTS, force)
        self.as_json = as_json

    def show(self, results: "Results") -> None:
        """Prints, and writes the files; one that fails keeps nothing else from being shown."""
        from genkit.bench.report import files

        failed: "list[Exception]" = []

        def attempt(write, *arguments) -> None:
            try:
                write(*arguments)
            except Exception as error:
                failed.append(error)

        attempt(print_results, results, self.as_json)
        if any(row.samples for row in results.rows):  # an interrupted run that has nothing replaces no file
            for path, write in ((self.output, files.write_output),):
                if path is not None:
                    attempt(write, path, results)
        for error in failed[1:]:
            note(f"genkit: {explain(error)[1]}")
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
                    message = explain(failed)[1]
                    if message:
                        note(f"genkit: {message}")
            raise


def print_results(results: "Results", as_json: bool) -> None:
    if as_json:
        from genkit.cli.result import json_text

        print(json_text(results.as_dict()), flush=True)
    elif sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from genkit.bench.report.text import rich_lines
        from genkit.cli.terminal import console

        screen = console(stderr=False)
        for line in rich_lines(results, screen.width, unicode=not screen.options.ascii_only):
            screen.print(line, soft_wrap=False)
        sys.stdout.flush()
    else:
        from genkit.bench.report.text import plain

        print_text(plain(results))


def print_text(text: str) -> None:
    """To standard output; where its encoding has no such letter, as close as it can."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.replace("±", "+-").replace("µ", "u").encode("ascii", "replace").decode()
    print(text, flush=True)
