"""Every slot against float64, on ragged shapes: python -m gpu.slots PLUGIN SEED SCALE EVERY ONLY. A line of JSON a case, then one
that names the slots without any. EVERY: only each so many-th case of a slot; ONLY: whose names begin so."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from typing import Iterator

from gpu import keys, logits, products, rowwise
from gpu.problems import Case, Sizes, check, each

from genkit import _core

FAMILIES = (rowwise, products, keys, logits)
# Of the core's slots: what only loads models, on the processor; and the limits, which are measured and have no result.
ELSEWHERE = ("quantize_weight", "pack", "round_rows", "tile_rows")


def cases(scale: str) -> list[Case]:
    """Of the families in turn, so that a run that is cut short has seen something of each."""
    rows = itertools.zip_longest(*(family.cases(Sizes(scale)) for family in FAMILIES))
    return [case for row in rows for case in row if case is not None]


def chosen(found: list[Case], every: int, only: str) -> list[Case]:
    """Each so many-th of those that run the same slots, the first among them; whose names begin so."""
    seen: Counter[tuple[str, ...]] = Counter()
    kept = []
    for case in found:
        if seen[case.slots] % every == 0 and case.name.startswith(only):
            kept.append(case)
        seen[case.slots] += 1
    return kept


def uncovered(found: list[Case]) -> list[str]:
    covered = {slot for case in found for slot in case.slots}
    return [slot for slot in _core.slots() if slot not in covered and slot not in ELSEWHERE and not slot.startswith("measure_")]


def run(plugin: str, seed: int, scale: str, every: int, only: str) -> Iterator[dict[str, object]]:
    if trouble := _core.open_device(plugin):
        yield {"case": "device", "wrong": trouble}
        return
    found = cases(scale)
    for case, own in each(chosen(found, every, only), seed):
        try:
            yield check(case, own)
        except Exception as error:  # one kernel that is refused must not hide the others; a fault on the device ends them all
            yield {"case": case.name, "slots": case.slots, "wrong": f"{type(error).__name__}: {error}"}
    yield {"case": "all slots have a case", "wrong": ", ".join(uncovered(found))}


if __name__ == "__main__":
    for line in run(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]):
        print(json.dumps(line), flush=True)
