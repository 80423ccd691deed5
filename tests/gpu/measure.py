"""Times on the device: calls recorded as one graph, so that starting them costs what it does in a model, and replayed."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from genkit.bench.kernels.recording import Recording

COLD = 256 << 20  # bytes that calls read in turn, several times any cache
MILLION = 1 << 20


class Timer:
    """least: seconds that the replays of one try take together, of which there are `tries`; the median counts.
    calls: recorded in one graph, at least."""

    def __init__(self, least: float, tries: int, calls: int) -> None:
        self._least, self._tries, self._calls = least, tries, calls

    def of_call(self, call: Callable[[int], Any], copies: int) -> float:
        """Seconds of a call, of call(0), call(1) .. call(copies - 1) in turn."""
        recording = Recording(call, copies, max(copies, self._calls))
        recording.seconds()
        replays = recording.replays_of(self._least)
        return sorted(recording.seconds(replays) for _ in range(self._tries))[self._tries // 2]


def numbers(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers, f32; beyond a million the same again. Never zeros, on which hardware is faster."""
    count = int(np.prod(shape))
    block = rng.standard_normal(min(count, MILLION), np.float32) * np.float32(scale)
    return np.resize(block, count).reshape(shape)


def copies_of(nbytes: int, cold: int) -> int:
    """Of what is read, until `cold` bytes are."""
    return max(1, min(64, -(-cold // max(1, nbytes))))
