"""Ctrl-C: the first lets what was made be written and stops at the next token, the second ends the process at once.
SIGTERM ends it as ever, but not with the cursor hidden."""

import os
import signal
import sys
import threading

from genkit.cli.failure import INTERRUPTED

SHOW_CURSOR = b"\x1b[?25h"


class Interrupts:
    """While entered, SIGINT raises KeyboardInterrupt; after `defer()` it only sets `requested`, so that no character
    is torn and what the decoder holds back comes out. A second SIGINT exits without ado."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        self._previous = None

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle), signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous[0])
            signal.signal(signal.SIGTERM, self._previous[1])

    def defer(self) -> None:
        self._deferred = True

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            show_cursor()
            os._exit(INTERRUPTED)
        self.requested = True
        if not self._deferred:
            raise KeyboardInterrupt

    def _terminate(self, number: int, frame: object) -> None:
        show_cursor()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def show_cursor() -> None:
    """A bar may have hidden it."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(2, SHOW_CURSOR)
