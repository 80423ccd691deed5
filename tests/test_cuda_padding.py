"""Steps recorded for more rows than there are, on a device: what rows say does not depend on the padding."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cuda_stand_in import needs_compiler

from genkit.plan import padded_rows

TESTS = Path(__file__).parent


def test_rows_that_steps_are_recorded_for():
    counts = [padded_rows(rows) for rows in range(1, 65)]
    assert sorted(set(counts)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert [padded_rows(rows) for rows in (65, 96, 97, 128, 129, 1000)] == [96, 96, 128, 128, 160, 1024]
    assert all(rows <= padded_rows(rows) < 1.5 * rows for rows in range(1, 1000))


@needs_compiler
def test_padding_does_not_show(stand_in):
    folder, plugin = stand_in
    done = subprocess.run([sys.executable, TESTS / "cuda_padding.py", plugin], capture_output=True, text=True, timeout=900,
                          env=os.environ | {"LD_LIBRARY_PATH": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line.pop("what"): line for line in map(json.loads, done.stdout.splitlines())}
    texts = {what: line for what, line in found.items() if "calls" in line}
    assert len(texts) == 14 and all(line["same"] for line in found.values() if "same" in line)
    assert texts.pop("on the processor")["recorded"] == [7, 6, 5, 4, 3, 2, 1]
    recorded = {5: [6, 4, 3, 2, 1], 7: [8, 6, 4, 3, 2, 1], 11: [12, 8, 6, 4, 3, 2, 1]}
    for what, line in texts.items():
        rows = len(line["tokens"])
        assert [len(tokens) for tokens in line["tokens"]] == [i + 4 for i in range(rows)], what
        assert line["calls"] == ["draw"] * rows, what  # a loop ends where a row's tokens do, and nowhere else
        assert line["recorded"] == recorded[rows] and len(set(line["arenas"])) == 1, what
    stopped, bad = found["a stop id drawn by padding"], found["padding that is not finite"]
    assert not any(stopped["stop"] in tokens for tokens in stopped["tokens"])
    assert bad["tokens"] == found["dense none 5 greedy"]["tokens"] and not any(0 in tokens for tokens in bad["tokens"])
    for steps in (found["steps none"], found["steps int8"]):
        assert steps["beside"] == steps["first"] and steps["growing"] == steps["first_growing"]
    room = found["room"]
    assert room["held"] <= room["taken"] < room["held"] + 4096 and room["enough"] == [True, False] and room["free"] == 10
    assert {line["bytes"] for what, line in found.items() if what.endswith("given back")} == {0}
