"""What else the machine did: processor time of others, quiet moments, and peaks of memory. Linux; elsewhere unknown."""

from __future__ import annotations

import os
import time
from pathlib import Path

# A sample during which others held more of the machine than this is disturbed.
DISTURBED = 0.1


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its threads so far; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def machine_busy_seconds() -> float | None:
    """Processor time spent by all of the machine, what other guests took from it included; None where unknown."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def memory_words(pid: int | str, name: str) -> int | None:
    """A line of /proc/PID/status in bytes: VmRSS, held now; VmHWM, the most held."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def wait_until_quiet(patience: float, share: float = 0.1, window: float = 0.15) -> None:
    """Returns when the processors have been idle for a moment, or patience is at an end. Engines keep their threads
    spinning for some time after a request, which would be measured with the next one's."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before, start = machine_busy_seconds(), time.monotonic()
        if before is None:
            time.sleep(min(patience, 0.5))
            return
        time.sleep(window)
        if machine_busy_seconds() - before <= share * (time.monotonic() - start):
            return


class Watch:
    """How much of the machine others had meanwhile: `others`, 1 for all its processors, None where it is unknown or the
    time too short to tell (the clock ticks a hundred times a second)."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = os.getpid() if pid is None else pid
        self.others: float | None = None

    def __enter__(self) -> "Watch":
        self._start, self._busy = time.monotonic(), machine_busy_seconds()
        self._own = cpu_seconds(self._pid)
        return self

    def __exit__(self, *_: object) -> None:
        busy, own = machine_busy_seconds(), cpu_seconds(self._pid)
        elapsed = time.monotonic() - self._start
        if self._busy is not None and busy is not None and own and elapsed >= 0.1:
            others = busy - self._busy - (own - self._own)
            self.others = max(0.0, others / elapsed / (os.cpu_count() or 1))
