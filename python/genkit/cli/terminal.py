"""What goes to stderr: notes and bars. Bars only when stderr is a terminal; rich is imported only to draw one."""

import os
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import Callable, Iterator, Optional


def stderr_is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:
        return False


def note(message: str) -> None:
    """One line on stderr; that it cannot be written is no reason to fail."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def console(stderr: bool = True):
    """A rich console that prints text as it is: no markup, no emoji codes, no guessing at numbers."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


# A bar for less than this would only flash, and rich takes longer to import than a small model to load.
BAR_AFTER = 0.3  # seconds


@contextmanager
def bar(label: str, enabled: bool, *, of_bytes: bool = False, rate: bool = False) -> Iterator[Optional[Callable[[int, int], None]]]:
    """Yields a function (done, in all) that draws a bar on stderr, or None where none is wanted. It is gone afterwards."""
    if not enabled or not stderr_is_terminal():
        yield None
        return
    with ExitStack() as stack:
        start = time.monotonic()
        progress = task = None

        def update(done: int, total: int, what: str = label) -> None:
            nonlocal progress, task
            if progress is None:
                if time.monotonic() - start < BAR_AFTER:
                    return
                progress = stack.enter_context(make_progress(of_bytes, rate))
                task = progress.add_task(label, total=total)
            progress.update(task, completed=done, total=total, description=what)

        yield update


@contextmanager
def step_bar(enabled: bool) -> Iterator[Optional[Callable[[str, int, int], None]]]:
    """As bar, for work in steps of different kinds: the function is (what is done now, done, in all); a new total begins anew."""
    with bar("", enabled, rate=True) as update:
        yield None if update is None else (lambda what, done, total: update(done, total, what))


def make_progress(of_bytes: bool, rate: bool = False):
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    amounts = (DownloadColumn(binary_units=True), TransferSpeedColumn()) if of_bytes else (TaskProgressColumn("{task.percentage:>3.0f}%", markup=False),)
    if rate:
        amounts += (speed_column(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *amounts, TimeRemainingColumn())
    return Progress(*columns, console=console(), transient=True)


def speed_column():
    """Of work that counts in millions (weights, bytes) how many a second."""
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task):
            return Text(f"{task.speed / 1e6:.0f} M/s" if task.speed and (task.total or 0) > 1e6 else "")

    return Speed()
