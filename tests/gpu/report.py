"""The table that scripts/gpu.sh ends with: at most LINES lines, what is wrong before what was measured."""

from __future__ import annotations

from typing import Any, Iterator, Mapping

LINES = 60
WRONG = 8  # lines that say what is wrong
KERNELS = 13

Found = Mapping[str, Any]


def table(found: Found) -> str:
    """Of what __main__.py wrote to its JSON."""
    wrong, shown = list(wrongs(found)), []
    if wrong:
        shown = [f"  {line[:150]}" for line in wrong[:WRONG]]
        if len(wrong) > WRONG:
            shown[-1] = f"  ... and {len(wrong) - WRONG + 1} more, in the JSON"
    lines = [*header(found), "", *checks(found), *shown, *kernels(found), *models(found)]
    last = f"{len(wrong)} wrong" if wrong else "nothing is wrong"
    skipped = [step["name"] for step in found["steps"] if step["state"] == "skipped"]
    short = [step["name"] for step in found["steps"] if step["state"] == "cut" and step["kind"] == "measure"]
    if skipped:
        last += f"; not done: {', '.join(skipped)}"
    if short:
        last += f"; cut short: {', '.join(short)}"
    if len(lines) > LINES - 1:
        lines = [*lines[: LINES - 2], f"... {len(lines) - LINES + 2} lines more, in the JSON"]
    return "\n".join([*lines, f"{last} ({found['seconds']:.0f} s)"])


def header(found: Found) -> Iterator[str]:
    device, limits = found["device"], found["limits"]
    if not device:
        yield f"genkit {found['commit']}, {found['date']}: no device was opened"
        return
    yield (f"genkit {found['commit']}, {found['date']}, {device['name']}, {device['processors']} multiprocessors, "
           f"{device['memory'] / 2**30:.0f} GiB, CUDA {device['driver']}, for {device['targets']}")
    if limits:
        yield "limits measured: " + ", ".join(f"{name} {spoken(*value)}" for name, value in limits.items())


def spoken(value: float, unit: str) -> str:
    """A rate with three digits."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def checks(found: Found) -> Iterator[str]:
    yield f"{'check':<50} {'cases':>6} {'wrong':>6} {'s':>5}"
    for step in found["steps"]:
        if step["kind"] != "check":
            continue
        if step["state"] == "skipped":
            yield f"{step['name']:<50} skipped: {step['reason']}"
        else:
            yield f"{step['name']:<50} {step['cases']:>6} {len(step['wrong']):>6} {step['seconds']:>5.0f}"


def wrongs(found: Found) -> Iterator[str]:
    for step in found["steps"]:
        for line in step["wrong"]:
            yield f"{step['name']}: {line}"


def kernels(found: Found) -> Iterator[str]:
    rows = found["kernels"]
    if not rows:
        return
    yield ""
    yield f"{'kernel':<54} {'us':>8} {'rate':>12} {'of limit':>8}"
    for row in rows[:KERNELS]:
        yield f"{row['kernel']:<54} {row['seconds'] * 1e6:>8.1f} {spoken(row['rate'], row['unit']):>12} {row['share']:>8.0%}"


def models(found: Found) -> Iterator[str]:
    """A line for each shape and situation (batch x context), a column for each type of weights; goals in parentheses."""
    rows = found["models"]
    if not rows:
        return
    types = sorted({row["weights"] for row in rows}, key=["bf16", "int8", "int4"].index)
    yield ""
    yield f"{'tokens/s (goal)':<40}" + "".join(f"{name:>18}" for name in types)
    for words in sorted({row["what"] for row in rows}, key=numbers):
        cells = {row["weights"]: cell(row) for row in rows if row["what"] == words}
        yield f"{words:<40}" + "".join(f"{cells.get(name, ''):>18}" for name in types)


def numbers(words: str) -> tuple[object, ...]:
    """Decoding first, by context and batch, then prompts by length, then sampling: "8B 1 x 4096", "8B prompt 512"."""
    shape, *rest = words.split()
    kind = 0 if "x" in rest else 1 if rest[0] == "prompt" else 2
    return shape, kind, [int(word) for word in reversed(rest) if word.isdigit()]


def cell(row: Found) -> str:
    if row.get("reason"):
        return row["reason"]
    value = f"{row['value']:.4g}" if row["value"] < 1000 else f"{row['value']:.0f}"
    return value + (f" ({row['goal']})" if row.get("goal") else "")

