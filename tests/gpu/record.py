"""Puts what scripts/gpu.sh found into docs/performance.md: python -m gpu.record build/gpu.json. Nothing that was not measured, and
nothing of a run in which a check was wrong, cut short or skipped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Iterator, Mapping

from gpu import report

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/performance.md"
BEGIN, END = "<!-- scripts/gpu.sh --record: from here -->\n", "<!-- to here -->\n"


def refusal(found: Mapping[str, Any]) -> str:
    """Why it is not to be recorded, or ""."""
    wrong = list(report.wrongs(found))
    unfinished = [step["name"] for step in found["steps"] if step["kind"] == "check" and step["state"] != "done"
                  and not step["name"].startswith("compute-sanitizer")]
    if wrong:
        return f"{len(wrong)} checks were wrong, the first: {wrong[0]}"
    if unfinished:
        return f"not all was checked: {', '.join(unfinished)}"
    if not any(step["kind"] == "check" for step in found["steps"]):
        return "nothing was checked"
    if found["device"]["capability"] == "0.0":
        return f"{found['device']['name']}: figures are of GPUs only"
    return "" if found["models"] or found["kernels"] else "nothing was measured"


def rows(found: Mapping[str, Any]) -> Iterator[str]:
    device = found["device"]
    yield f"{found['date'][:10]}, {device['name']}, CUDA {device['driver']}, commit {found['commit']}, all checks right"
    if found["limits"]:
        yield "; measured " + ", ".join(f"{name} {report.spoken(*value)}" for name, value in found["limits"].items())
    yield ".\n\n"
    if found["models"]:
        yield "| tokens/s (goal) | bf16 | int8 | int4 |\n|---|---|---|---|\n"
        for words in sorted({row["what"] for row in found["models"]}, key=report.numbers):
            cells = {row["weights"]: report.cell(row) for row in found["models"] if row["what"] == words}
            yield f"| {words} | " + " | ".join(cells.get(kind, "") for kind in ("bf16", "int8", "int4")) + " |\n"
        yield "\n"
    if found["kernels"]:
        yield "| kernel | us | rate | of the limit |\n|---|---|---|---|\n"
        for row in found["kernels"]:
            yield f"| {row['kernel']} | {row['seconds'] * 1e6:.1f} | {report.spoken(row['rate'], row['unit'])} | {row['share']:.0%} |\n"


def record(found: Mapping[str, Any], document: Path) -> str:
    """Writes it; returns why not, or ""."""
    if words := refusal(found):
        return words
    text = document.read_text(encoding="utf-8")
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    document.write_text(text[:begin] + "".join(rows(found)) + text[end:], encoding="utf-8")
    return ""


if __name__ == "__main__":
    trouble = record(json.loads(Path(sys.argv[1]).read_text()), DOCUMENT)
    sys.exit(f"{sys.argv[1]} is not recorded: {trouble}" if trouble else 0)
