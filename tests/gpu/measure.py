"""Times on the device: calls recorded as one graph, so that starting them costs what it does in a model, and replayed."""

from __future__ import annotations

import time
from typing import Any, Callable

import numpy as np

from genkit import _core

COLD = 256 << 20  # bytes that calls read in turn, several times any cache
MILLION = 1 << 20


class Timer:
    """least: seconds that the replays of one try take together, of which there are `tries`; the median counts.
    calls: recorded in one graph, at least."""

    def __init__(self, least: float, tries: int, calls: int) -> None:
        self._least, self._tries, self._calls = least, tries, calls
        self._small = _core.Tensor.from_numpy(np.zeros(1, np.float32))

    def wait(self) -> None:
        """Until the device has done all it was given."""
        self._small.numpy()

    def of(self, run: Callable[[], Any]) -> float:
        """Seconds of one run, which starts work on the device and may not wait for it."""
        run()
        self.wait()
        count, times = 1, []
        while True:
            start = time.perf_counter()
            for _ in range(count):
                run()
            self.wait()
            took = time.perf_counter() - start
            if took >= self._least:
                times.append(took / count)
                if len(times) >= self._tries:
                    return sorted(times)[len(times) // 2]
            else:
                count = max(count + 1, min(10 * count, int(1.2 * count * self._least / max(took, 1e-9))))

    def of_call(self, call: Callable[[int], Any], copies: int) -> float:
        """Seconds of a call, of call(0), call(1) .. call(copies - 1) in turn."""
        calls = max(copies, self._calls)

        def body() -> None:
            for i in range(calls):
                call(i % copies)

        return self.of(_core.Plan.record(body)[0].replay) / calls


def numbers(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers, f32; beyond a million the same again. Never zeros, on which hardware is faster."""
    count = int(np.prod(shape))
    block = rng.standard_normal(min(count, MILLION), np.float32) * np.float32(scale)
    return np.resize(block, count).reshape(shape)


def copies_of(nbytes: int, cold: int) -> int:
    """Of what is read, until `cold` bytes are."""
    return max(1, min(64, -(-cold // max(1, nbytes))))
