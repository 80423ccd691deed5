"""What else the machine did: processor time of others, quiet moments, and peaks of memory. Linux; elsewhere unknown."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.bench.estimates import estimate

if TYPE_CHECKING:
    from genkit.bench.results import Results

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


def forget_peak() -> bool:
    """Lets this process's VmHWM begin anew at what it holds now; False where the system does not do that (Linux: proc(5),
    clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False


def wait_until_quiet(patience: float, share: float = 0.1, window: float = 0.15) -> bool:
    """Returns when the processors have been idle for a moment, or patience is at an end: whether they were, or nobody can
    tell. Engines keep their threads spinning for some time after a request, which would be measured with the next one's."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before, start = machine_busy_seconds(), time.monotonic()
        if before is None:
            time.sleep(min(patience, 0.5))
            return True
        time.sleep(window)
        if machine_busy_seconds() - before <= share * (time.monotonic() - start):
            return True
    return False


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


# Of a row's samples, largest less smallest beside their median: four times the interval asked for by default, beyond what a
# steady machine does by itself.
SPREAD = 0.2
# The same of the limit measured beside them: loops that do nothing else differ by a few per cent while clocks are steady.
LIMIT_SPREAD = 0.2
# Of the processors, in the load average of the last minute.
BUSY = 0.25


def note_load(results: "Results") -> None:
    """Notes a machine that has work already."""
    load, processors = results.machine.get("load_average"), os.cpu_count() or 1
    if load and load[0] > BUSY * processors:
        results.notes.append(f"the load average was {load[0]:g} on {processors} processors at the start: others were "
                             "at work")


def judge(results: "Results", ci: float | None = None) -> None:
    """Says in every row why not to trust it, and in the notes that there are such rows. ci: the width of a median's interval
    that was asked for, as a share of it."""
    for row in results.rows:
        found = row.estimate
        if found is None:
            continue
        spread = found.spread
        if spread > SPREAD:
            row.noise.append(f"samples differ by {spread:.0%} of their median (over {SPREAD:.0%})")
        elif ci is not None and found.count > 1 and found.width > ci:
            row.noise.append(f"the interval of the median is {found.width:.1%} wide (asked for: {100 * ci:g}%)")
        others = estimate(row.others)
        if others and others.median > DISTURBED:
            row.noise.append(f"others had {others.median:.0%} of the machine")
        limit = row.limit and estimate(row.limit.samples)
        if limit and limit.spread > LIMIT_SPREAD:
            row.noise.append(f"the {row.limit.of} limit itself changed by {limit.spread:.0%}: other clocks, or others at "
                             "work")
    noisy = sum(bool(row.noise) for row in results.rows)
    if noisy:
        results.notes.append(f"noisy: {noisy} of {len(results.rows)} rows; their notes say why")
    if any(row.estimate and row.estimate.count == 1 for row in results.rows):
        results.notes.append("one sample only in some rows: nothing is known of their spread")
