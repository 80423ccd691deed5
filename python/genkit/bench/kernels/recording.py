"""Calls of an op as one plan, replayed: what a call costs in a model, with nothing of Python between two of them."""

from __future__ import annotations

import time
from typing import Any, Callable

from genkit import _core
from genkit.devices import wait


class Recording:
    """Of call(0), call(1) .. call(copies - 1) in turn, `calls` in all, on the device in use."""

    def __init__(self, call: Callable[[int], Any], copies: int, calls: int) -> None:
        def body() -> None:
            for i in range(calls):
                call(i % copies)

        self.calls = calls
        self.plan = _core.Plan.record(body)[0]
        self._device = _core.device_in_use()

    def seconds(self, replays: int = 1) -> float:
        """Of one call, of so many replays that are waited for together."""
        wait(self._device)
        start = time.perf_counter()
        for _ in range(replays):
            self.plan.replay()
        wait(self._device)
        return (time.perf_counter() - start) / (replays * self.calls)

    def replays_of(self, least: float) -> int:
        """How many replays take so many seconds, starting and waiting included."""
        replays = 1
        while (took := replays * self.calls * self.seconds(replays)) < least:
            replays = max(replays + 1, min(10 * replays, int(1.2 * replays * least / max(took, 1e-9))))
        return replays
