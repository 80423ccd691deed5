"""Runs the steps, keeps the time, writes the JSON and prints the table last: scripts/gpu.sh calls it. Exit code 1 when
anything is wrong, a check that could not be finished included."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

from genkit.machine import name_cublaslt
from gpu import report

TESTS = Path(__file__).resolve().parent.parent
LEAST = 5.0  # seconds below which no step is begun


@dataclass
class Step:
    """command: a program that prints a line of JSON a finding; settings: of its environment. judge: what is wrong with a
    finding, or "". kind: "check" may run beside others, "measure" runs alone and is wrong only where it fails."""

    name: str
    command: list[str]
    seconds: float
    kind: str = "check"
    settings: dict[str, str] = field(default_factory=dict)
    judge: Callable[[dict[str, Any]], str] = lambda line: line.get("wrong", "")
    reason: str = ""  # why it cannot be run

    def __post_init__(self) -> None:
        self.findings: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.state = "skipped" if self.reason else ""
        self.took = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "state": self.state, "reason": self.reason, "cases": len(self.findings),
                "wrong": self.wrong, "seconds": self.took, "settings": self.settings, "findings": self.findings}


class Running:
    """A step's process; what it prints goes to files, so that nothing is lost when it is ended."""

    def __init__(self, step: Step, folder: Path, limit: float) -> None:
        self.step, self._limit, self._start = step, limit, time.monotonic()
        self._out, self._errors = folder / "out", folder / "errors"
        with open(self._out, "wb") as out, open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(step.command, stdout=out, stderr=errors, stdin=subprocess.DEVNULL,
                                             env=os.environ | {"PYTHONUNBUFFERED": "1"} | step.settings)

    def over(self) -> bool:
        """Ends the process when its time is up."""
        late = time.monotonic() - self._start > self._limit
        if self._process.poll() is None and not late:
            return False
        if self._process.poll() is None:
            self._process.kill()
        code, step = self._process.wait(), self.step
        step.took = time.monotonic() - self._start
        step.state, tool = "cut" if late else "done", []
        for text in self._out.read_text(errors="replace").splitlines():
            try:
                finding = json.loads(text)
            except ValueError:  # the last line of a process that was ended, or words of compute-sanitizer
                tool += [text.strip("= ")] if text.startswith("========= ") else []
                continue
            step.findings.append(finding)
            if words := step.judge(finding):
                step.wrong.append(f"{finding.get('case', finding.get('what', ''))}: {words}")
        if late and step.kind == "check":
            step.wrong.append(f"not finished in {self._limit:.0f} s, {len(step.findings)} cases were")
        elif code != 0 and not late:
            said = self._errors.read_text(errors="replace").strip().splitlines()
            step.wrong.append(f"ended with {code}: {' | '.join([*tool[1:4], *said[-2:]])}")
        elif not late and not step.findings:
            step.wrong.append("found nothing")
        return True


class Clock:
    def __init__(self, seconds: float, spent: float) -> None:
        self._end = time.monotonic() + seconds - spent
        self._whole = seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    @property
    def spent(self) -> float:
        return self._whole - self.left


def run(steps: Sequence[Step], clock: Clock, jobs: int) -> None:
    """Checks side by side, `jobs` at a time, then measurements one by one. A step that no time is left for is skipped."""
    with tempfile.TemporaryDirectory() as folder:
        waiting = sorted((step for step in steps if not step.reason), key=lambda step: step.kind != "check")
        running: list[Running] = []
        number = 0
        while waiting or running:
            while waiting and (not running or len(running) < jobs and waiting[0].kind == "check"):
                step = waiting.pop(0)
                limit = min(step.seconds, clock.left)
                if limit < min(LEAST, step.seconds):
                    step.state, step.reason = "skipped", f"{max(0.0, clock.left):.0f} s were left"
                    continue
                print(f"{clock.spent:4.0f} s  {step.name}", file=sys.stderr, flush=True)
                place = Path(folder) / str(number)
                place.mkdir()
                running.append(Running(step, place, limit))
                number += 1
            running = [one for one in running if not one.over()]
            time.sleep(0.02)


def compare_digests(steps: Sequence[Step]) -> None:
    """The results of repeats.py under other settings of the device are those of the first, to the bit."""
    known: dict[str, str] = {}
    for step in steps:
        for finding in step.findings:
            first = known.setdefault(finding["case"], finding["digest"])
            if finding["digest"] != first:
                step.wrong.append(f"{finding['case']}: other bits than with other settings")


def steps_for(options: argparse.Namespace) -> list[Step]:
    python, plugin = [sys.executable], str(options.plugin)
    # References take most of the time, and bits need none: every second of the many problems of a device is enough.
    every = options.every * (2 if options.scale == "full" else 1)
    repeats = ["-m", "gpu.repeats", plugin, str(options.seed), options.scale, str(options.times), str(every), options.only]
    engine = [str(TESTS / "cuda_engine.py"), plugin]
    from cuda_engine import wrong_with

    made = [
        Step("every slot against float64",
             [*python, "-m", "gpu.slots", plugin, str(options.seed), options.scale, str(options.every), options.only], 150,
             settings={"GENKIT_CUDA_POISON": "1"}),
        Step("products without cuBLASLt", [*python, "-m", "gpu.slots", plugin, str(options.seed), options.scale, str(options.every), options.only or "linear "],
             60, settings={"GENKIT_CUDA_BLAS": "0"}),
        Step(f"bits: {options.times} calls, {options.times} replays", [*python, *repeats], 150),
        Step("bits: without dependent launch", [*python, *repeats], 150, settings={"GENKIT_CUDA_PDL": "0"}),
        Step("bits: without fused kernels", [*python, *repeats], 150, settings={"GENKIT_CUDA_FUSE": "0"}),
        Step("text of the default model, CPU and CUDA", [*python, *engine, "default"], 100, judge=wrong_with),
        Step("logits of every architecture, CPU and CUDA", [*python, *engine, "architectures"], 100, judge=wrong_with),
    ]
    made += [
        sanitizer_step(tool, [*python, "-m", "gpu.slots", plugin, str(options.seed), "tiny", str(max(options.every, 2)), options.only])
        for tool in ("memcheck", "racecheck", "initcheck")]
    made.append(Step("speeds of kernels", [*python, "-m", "gpu.speeds", plugin, str(options.seed), options.scale], 60, "measure"))
    made += [Step(f"speeds of {shape} {weights}", [*python, "-m", "gpu.models", plugin, shape, weights, options.scale], 45, "measure")
             for weights in ("int4", "bf16", "int8") for shape in ("8B", "1B")]
    made.append(Step("speeds of 8B bf16 without cuBLASLt", [*python, "-m", "gpu.models", plugin, "8B", "bf16", options.scale, "prompts"], 30,
                     "measure", {"GENKIT_CUDA_BLAS": "0"}))
    chosen = options.steps.split(",") if options.steps else []
    for name in chosen:
        if not any(step.name.startswith(name) for step in made):
            raise SystemExit(f"--steps {name}: no step begins so; there are: {', '.join(step.name for step in made)}")
    return [step for step in made if not chosen or any(step.name.startswith(name) for name in chosen)]


def sanitizer_step(tool: str, command: list[str]) -> Step:
    """A checker of compute-sanitizer over every second small problem."""
    folders = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    checker = [program or "", "--tool", tool, "--error-exitcode", "9", "--print-limit", "4"]
    return Step(f"compute-sanitizer {tool}", [*checker, *command], 90, reason="" if program else "compute-sanitizer is not installed")


def device_facts(plugin: Path) -> "dict[str, Any]":
    """Asked in a process of its own: this one stays without a device. Raises SystemExit with the reason."""
    ask = "import json, sys; from genkit import _core; print(json.dumps([_core.open_device(sys.argv[1]), ''])); " \
          "print(json.dumps(_core.device_facts()))"
    done = subprocess.run([sys.executable, "-c", ask, str(plugin)], capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or lines[0][0]:
        words = lines[0][0] if lines and lines[0][0] else done.stderr.strip().splitlines()[-1]
        raise SystemExit(f"no device can be used: {words}")
    return lines[1]


def commit() -> str:
    """The state of the repository, or "unknown"."""
    if shutil.which("git") is None:
        return "unknown"
    asked = [subprocess.run(["git", "-C", str(TESTS), *words], capture_output=True, text=True)
             for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])]
    if asked[0].returncode:
        return "unknown"
    return asked[0].stdout.strip() + (" with changes" if asked[1].stdout.strip() else "")


def read_options(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    parser.add_argument("--plugin", type=Path, required=True, help="libgenkit_cuda.so")
    parser.add_argument("--json", type=Path, default=TESTS.parent / "build/gpu.json", help="where everything found is written")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all steps together")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds of these that are gone already")
    parser.add_argument("--scale", choices=("tiny", "full"), default="full", help="sizes of the checks")
    parser.add_argument("--times", type=int, default=20, help="repeats whose bits are compared")
    parser.add_argument("--every", type=int, default=1, help="check each so many-th case only")
    parser.add_argument("--only", default="", help="check cases whose names begin so only")
    parser.add_argument("--seed", type=int, default=None, help="of all inputs; default: a fresh one")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 3), help="checks at a time")
    parser.add_argument("--steps", default="", help="only those whose names begin so, by commas")
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    options = read_options(arguments)
    options.plugin = options.plugin.resolve()  # for the steps, wherever they look from
    clock = Clock(options.seconds, options.spent)
    options.seed = secrets.randbits(40) if options.seed is None else options.seed
    name_cublaslt()  # the steps open the plugin by its path
    steps = steps_for(options)
    found: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"), "commit": commit(),
        "device": device_facts(options.plugin), "seed": options.seed, "limits": {}, "kernels": [], "models": []}
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    run(steps, clock, options.jobs)
    for finding in (finding for step in steps if step.kind == "measure" for finding in step.findings):
        if "limit" in finding:
            found["limits"][finding["limit"]] = [finding["value"], finding["unit"]]
        elif "kernel" in finding:
            found["kernels"].append(finding)
        elif "model" in finding:
            found["models"].append(finding)
    compare_digests([step for step in steps if step.name.startswith("bits")])
    found |= {"steps": [step.as_dict() for step in steps], "seconds": clock.spent}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(report.table(found))
    return 1 if any(step.wrong for step in steps) else 0


if __name__ == "__main__":
    sys.exit(main())
