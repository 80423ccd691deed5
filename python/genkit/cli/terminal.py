"""What goes to stderr: notes and bars. Bars only when stderr is a terminal; rich is imported only to draw one."""

import os
import sys
from contextlib import contextmanager
from typing import Callable, Iterator, Optional


def stderr_is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:
        return False


def note(message: str) -> None:
    """One line of information on stderr; a closed stderr is not a reason to fail."""
    try:
        print(message, file=sys.stderr, flush=True)
    except (OSError, AttributeError, ValueError):
        pass


def console(stderr: bool = True):
    """A rich console that prints text as it is: no markup, no emoji codes, no guessing at numbers."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def byte_bar(label: str, enabled: bool) -> Iterator[Optional[Callable[[int, int], None]]]:
    """Yields a function (bytes done, bytes in all) that draws a bar on stderr, or None where none is wanted."""
    if not enabled or not stderr_is_terminal():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    # transient: nothing of the bar stays between the command and the text.
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


def format_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
