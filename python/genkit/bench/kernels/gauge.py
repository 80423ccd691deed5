"""What the machine can do at most, measured beside the samples of kernels."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Callable, Hashable, Sequence

from genkit.bench import device_limits, limits

if TYPE_CHECKING:
    from genkit.bench.kernels.measure import Entry

FRESH = 0.5  # seconds that a limit counts as measured beside a sample


class Gauge:
    """The processor's limits, each measured again when it is asked for and older than FRESH."""

    def __init__(self, found: "Sequence[Entry]") -> None:
        """For these entries."""
        self._memory = limits.readable_memory(self.reads(found), max(entry.threads for entry in found))
        self._known: dict[Hashable, tuple[float, float]] = {}

    @staticmethod
    def reads(found: "Sequence[Entry]") -> int:
        """Bytes of the largest working set that is read beside one of these: as many as it touches."""
        return max(64 * max(entry.threads for entry in found), *(entry.case.touched for entry in found))

    def value(self, of: str, entry: "Entry") -> float:
        """Bytes or operations a second of the threads that the entry runs on; its tier must be in use."""
        size = max(entry.case.touched, 64 * entry.running) if of == "read" else 0
        return self._recent((of, entry.running, entry.tier, size), lambda: limits.read_bandwidth(size, entry.running, self._memory)
                            if of == "read" else limits.arithmetic_peak(of, entry.running))

    def _recent(self, key: Hashable, measured: Callable[[], float]) -> float:
        then, value = self._known.get(key, (-math.inf, 0.0))
        if time.monotonic() - then > FRESH:
            value = measured()
            self._known[key] = time.monotonic(), value
        return value


class DeviceGauge(Gauge):
    """A GPU's, which is in use: of its memory, whatever a kernel touches, and of all its multiprocessors. Reading what fits a cache
    takes no longer than starting to."""

    def __init__(self, device: str, size: int) -> None:
        self._memory, self._known = device_limits.memory(device, size), {}

    def value(self, of: str, entry: "Entry") -> float:
        return self._recent(of, lambda: device_limits.read(self._memory, self._memory.nbytes) if of == "read" else device_limits.peak(of))
