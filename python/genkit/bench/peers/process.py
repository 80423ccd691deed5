"""The parent's side: a driver in a process of its own, which may crash, hang or not start without harm to the run."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Mapping

WORKER = Path(__file__).with_name("worker.py")
DRIVERS = Path(__file__).with_name("drivers")

# No single request of a benchmark that is worth waiting for takes longer.
TIMEOUT = 1800.0  # seconds


class Failed(Exception):
    """A driver's own error, the end of its process or its silence, in one line: a row of the report."""


class Worker:
    """A driver, its process started at once; requests one at a time."""

    def __init__(self, driver: Path, options: Mapping[str, Any], python: str, environment: Mapping[str, str],
                 log: Path) -> None:
        self._log = log
        self._buffer = b""
        with open(log, "ab") as stderr:
            try:
                # A session of its own: Ctrl-C is the parent's to answer.
                self._process = subprocess.Popen([python, str(WORKER), str(driver), json.dumps(dict(options))],
                                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                                                 env={**os.environ, **environment}, start_new_session=True)
            except OSError as error:
                raise Failed(f"{python}: {error.strerror}") from None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, method: str, timeout: float = TIMEOUT, **arguments: Any) -> Any:
        """What the driver's method returns. Raises Failed; after an end or a silence the process is gone."""
        request = json.dumps({"call": method, "arguments": arguments}) + "\n"
        try:
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
        except OSError:
            raise Failed(self._ending(method)) from None
        line = self._line(method, time.monotonic() + timeout, timeout)
        try:
            answer = json.loads(line)
            if "error" not in answer:
                return answer["result"]
        except (ValueError, KeyError, TypeError):
            self.close()
            raise Failed(f"{method}: an answer that is none: {line[:80]!r}") from None
        if answer["kind"] == "ModuleNotFoundError":
            raise Failed(f"not installed: {answer['error']}")
        raise Failed(f"{method}: {answer['kind']}: {answer['error'][:300]}")

    def _line(self, method: str, deadline: float, timeout: float) -> bytes:
        while b"\n" not in self._buffer:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                self.close()
                raise Failed(f"{method}: no answer in {timeout:g} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise Failed(self._ending(method))
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ending(self, method: str) -> str:
        code = self._process.wait()
        self.close()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"{method}: the process was ended by {name}{hint}; what it said is in {self._log}"
        return f"{method}: the process ended with exit code {code}; what it said is in {self._log}"

    def close(self) -> None:
        """Ends the process. Harmless when it has ended."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except OSError:  # a request that could not be written any more
                pass
