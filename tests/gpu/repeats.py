"""The same bits again and again: python -m gpu.repeats PLUGIN SEED SCALE TIMES EVERY ONLY. Every case that slots.py has is called
TIMES times, then recorded as a graph and replayed as often. A line a case with a digest of its results, for comparing with other
settings of the device."""

from __future__ import annotations

import json
import sys
from typing import Iterator

import numpy as np
from gpu.problems import digest, each
from gpu.slots import cases, chosen

from genkit import _core


def run(plugin: str, seed: int, scale: str, times: int, every: int, only: str) -> Iterator[dict[str, object]]:
    if trouble := _core.open_device(plugin):
        yield {"case": "device", "wrong": trouble}
        return
    _core.use_device("cuda")
    for case, own in each(chosen(cases(scale), every, only), seed):
        try:
            call = case.make(np.random.default_rng(own)).call
            first = digest(call())
            eager = {digest(call()) for _ in range(times - 1)} | {first}
            plan, made = _core.Plan.record(call)
            replayed = set()
            for _ in range(times):
                plan.replay()
                replayed.add(digest(made))
            wrong = f"{len(eager)} results of {times} calls" if len(eager) > 1 else \
                f"{len(replayed)} results of {times} replays" if len(replayed) > 1 else \
                "a replay gives other bits than a call" if replayed != eager else ""
            yield {"case": case.name, "digest": first, "wrong": wrong}
        except Exception as error:
            yield {"case": case.name, "digest": "", "wrong": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    for line in run(sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:6]), sys.argv[6]):
        print(json.dumps(line), flush=True)
