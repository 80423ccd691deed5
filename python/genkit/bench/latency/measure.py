"""The measuring behind `genkit bench latency`: the command in fresh processes, and a loaded model in one of its own, in turns.

Nothing is loaded here, so that nothing is in the way of what is measured.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from genkit import errors
from genkit.batch import BURST_SECONDS
from genkit.bench import device_limits, noise
from genkit.bench.estimates import quantile
from genkit.bench.latency import page_cache
from genkit.bench.latency.prompts import prompt_of
from genkit.bench.peers.process import Failed, Worker
from genkit.bench.results import Results, Row
from genkit.bench.shapes import folder_for
from genkit.bench.subjects import Subject
from genkit.bench.synthetic import RandomCheckpoint
from genkit.errors import Error, UsageError
from genkit.kv_cache import pages_for
from genkit.text.tokenizer import Tokenizer

DRIVERS = Path(__file__).with_name("drivers")
COLD, WARM, PEAK = "cold start to first token", "warm start to first token", "peak memory"
LOADED = "first token, loaded"
AHEAD, PEAK_THERE = "token of a burst", "peak memory on the GPU"  # of a device
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
TOGETHER = BURST_SECONDS / 10  # seconds between pieces of text that a reader has at once
NOTE = ("cold: a new process, and the model's files read from their disk, but Python's own as they are; warm: a new process; "
        "loaded: the model in memory")
KEPT = 0.01  # of the files in memory, more of which is not cold

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """Tokens of the prompt and of the text, repetitions, and seconds to wait for the machine to become quiet."""

    prompt: int = 16
    generate: int = 64
    repetitions: int = 5
    patience: float = 1.0

    def __post_init__(self) -> None:
        for option, value, least in (("-p", self.prompt, 1), ("-n", self.generate, 2), ("-r", self.repetitions, 1)):
            if value < least:
                raise UsageError(f"{option} {value}: at least {least}"
                                 + (", for there to be a time between tokens" if option == "-n" else ""))


@dataclass
class Case:
    """A model in one type on so many threads."""

    subject: Subject
    threads: int
    device: str
    path: Path = Path()
    text: str = ""
    ids: list[int] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def words(self) -> str:
        return f"{self.subject.name} {self.subject.type}"

    @property
    def options(self) -> dict[str, Any]:
        layers = {} if self.device == "cpu" else {"gpu_layers": self.subject.config.layers}  # all: a model is measured on one device
        return {"device": self.device, "threads": self.threads, "quantize": self.subject.quantize} | layers

    def command(self, prompt: Path, generate: int) -> list[str]:
        options = [word for name, value in self.options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return [sys.executable, "-m", "genkit", "generate", "-m", str(self.path), "-f", str(prompt), "-n", str(generate),
                *options, "--temperature", "0", "--ignore-eos", "--no-chat", "--offline", "-q"]

    def files(self) -> list[Path]:
        """What the command reads of the model."""
        if self.path.is_dir():
            return sorted(path for path in self.path.iterdir() if path.is_file())
        return sorted({self.path, *(info.file for info in self.subject.opened.checkpoint.tensors.values())})


def check(subjects: Sequence[Subject], settings: Settings) -> None:
    """Raises UsageError where prompt and text are longer than a model's context, ResourceError where it does not fit into
    memory."""
    total = settings.prompt + settings.generate
    for subject in subjects:
        longest = subject.config.max_positions
        if total > longest:
            raise UsageError(f"{subject.name}: -p {settings.prompt} and -n {settings.generate} are {total} tokens, beyond its "
                             f"context of {longest}; take fewer")
        subject.check_memory(pages_for(total) + 1, f"{total} tokens")


def measure(results: Results, subjects: Sequence[Subject], threads: Sequence[int], device: str, settings: Settings,
            tell: Tell | None = None) -> None:
    """Appends the rows and fills them, a sample a repetition; all cases take turns. Shapes are written as folders first.
    Children are ended with it, however it ends. Raises what a child's failure stands for, and as `check`. threads: on a device the
    most of them."""
    check(subjects, settings)
    cases = [Case(subject, count, device) for subject in subjects for count in (threads if device == "cpu" else [max(threads)])]
    for case in cases:
        case.rows = _rows(case, settings)
        results.rows += case.rows.values()
    results.notes.append(NOTE)
    device_limits.note(results, device)
    noise.note_load(results)
    try:
        for case in cases:
            _prepare(case, settings, tell)
        with tempfile.TemporaryDirectory(prefix="genkit-latency-") as scratch:
            _rounds(cases, settings, Path(scratch), tell)
    finally:
        noise.judge(results)


def _rounds(cases: Sequence[Case], settings: Settings, scratch: Path, tell: Tell | None) -> None:
    steps, done = [_cold, _warm, _loaded], 0
    for _ in range(settings.repetitions):
        for i, case in enumerate(cases):
            prompt = scratch / f"prompt-{i}.txt"
            prompt.write_text(case.text + "\n", encoding="utf-8")  # one newline is dropped
            for step in steps:
                if tell is not None:
                    tell(f"{case.words}: {step.__doc__}", done, settings.repetitions * len(cases) * len(steps))
                noise.wait_until_quiet(settings.patience)
                step(case, settings, prompt, scratch / "errors.txt")
                done += 1


def _rows(case: Case, settings: Settings) -> dict[str, Row]:
    tests = [COLD, WARM, LOADED, *(f"token {name}" for name in SHARES), *([AHEAD] if case.device != "cpu" else []),
             *(f"text gap {name}" for name in SHARES), PEAK, *([PEAK_THERE] if case.device != "cpu" else [])]
    subject, rows = case.subject, {}
    for test in tests:
        row_id = {"model": subject.name, "type": subject.type, "device": case.device, "threads": case.threads, "test": test}
        rows[test] = Row(row_id, "B" if test in (PEAK, PEAK_THERE) else "s", "less", facts={"generate": settings.generate})
    return rows


def _prepare(case: Case, settings: Settings, tell: Tell | None) -> None:
    """Files, and the prompt."""
    subject = case.subject
    case.path = subject.opened.path
    if isinstance(subject.opened.checkpoint, RandomCheckpoint):
        progress = None if tell is None else lambda done, total: tell(f"writing {subject.name}", done, total)
        case.path = folder_for(subject.name, subject.opened.checkpoint.dtype, progress=progress)
    elif not subject.opened.has_tokenizer:
        raise UsageError(f"{subject.name}: has no tokenizer, and the command that is timed takes text")
    tokenizer = Tokenizer(case.path) if case.path != subject.opened.path else subject.opened.tokenizer()
    case.text, case.ids = prompt_of(tokenizer, settings.prompt)
    longest = subject.config.max_positions
    if len(case.ids) + settings.generate > longest:
        raise UsageError(f"{subject.name}: the shortest prompt has {len(case.ids)} tokens, with -n {settings.generate} beyond its "
                         f"context of {longest}; take fewer")
    for row in case.rows.values():
        row.facts["prompt"] = len(case.ids)


@contextmanager
def _worker(driver: str, log: Path) -> Iterator[Worker]:
    """A driver's process, gone afterwards with all it has started: it leads a group of its own."""
    worker = Worker(DRIVERS / driver, {}, sys.executable, {}, log)
    try:
        yield worker
    except Failed as failed:
        raise Error(f"genkit bench latency: {failed}") from None
    finally:
        try:
            os.killpg(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        worker.close()


def _start(case: Case, settings: Settings, prompt: Path, log: Path,
           to_the_end: bool) -> tuple[dict[str, Any], float | None]:
    """What the starter says of the command, and what others had of the machine meanwhile."""
    with _worker("starter.py", log) as worker:
        begin, busy = time.monotonic(), noise.machine_busy_seconds()
        found = worker.call("start", command=case.command(prompt, settings.generate), to_the_end=to_the_end)
        elapsed, after = time.monotonic() - begin, noise.machine_busy_seconds()
        own = found["cpu_s"] + noise.cpu_seconds(worker.pid)
    if found["first_s"] is None:
        said = found["said"].removeprefix("genkit: error: ") or f"exit code {found['code']}"
        raise _error_of(found["code"])(f"{case.words}: the command failed: {said}")
    if busy is None or after is None:
        return found, None
    return found, max(0.0, after - busy - own) / elapsed / (os.cpu_count() or 1)


def _error_of(code: int) -> type[Error]:
    kinds = (UsageError, errors.BadFileError, errors.ResourceError, errors.DeviceError)
    return next((kind for kind in kinds if kind.exit_code == code), Error)


def _cold(case: Case, settings: Settings, prompt: Path, log: Path) -> None:
    """cold start"""
    files = case.files()
    row = case.rows[COLD]
    if not page_cache.drop(files):
        row.failure = "this system cannot be asked to forget files"
        return
    kept = page_cache.share_held(files)
    row.facts["cold"] = "process and the model's files, not Python's own"
    row.facts["kept_in_memory"] = kept
    if (kept or 0) > KEPT:
        row.noise = [f"{kept:.0%} of the model's files stayed in memory: not all of it was cold"]
    found, others = _start(case, settings, prompt, log, to_the_end=True)
    _add(row, found["first_s"], others)
    _add(case.rows[PEAK], found["peak"], None)


def _warm(case: Case, settings: Settings, prompt: Path, log: Path) -> None:
    """warm start"""
    never_cold = bool(case.rows[COLD].failure)
    case.rows[WARM].facts["cold"] = "process"
    found, others = _start(case, settings, prompt, log, to_the_end=never_cold)
    _add(case.rows[WARM], found["first_s"], others)
    if never_cold:
        _add(case.rows[PEAK], found["peak"], None)


def _loaded(case: Case, settings: Settings, prompt: Path, log: Path) -> None:
    """tokens"""
    with _worker("loaded.py", log) as worker:
        facts = worker.call("load", path=str(case.path), **case.options)
        with noise.Watch(worker.pid) as text_watch:
            pieces = worker.call("text", ids=case.ids, count=settings.generate)
        with noise.Watch(worker.pid) as token_watch:
            timed = worker.call("tokens", ids=case.ids, count=settings.generate)
    steps = timed["seconds"]
    for row in case.rows.values():
        row.facts |= {"tier": facts["tier"], "load_s": facts["load_s"]}
    if pieces:
        _add(case.rows[LOADED], pieces[0], text_watch.others)
    if timed["ahead"] is not None:
        _add(case.rows[AHEAD], timed["ahead"], token_watch.others)
    elif AHEAD in case.rows:
        case.rows[AHEAD].failure = "every step is another: the model's positions depend on the length of the text"
    if timed["most_used"] is not None:
        _add(case.rows[PEAK_THERE], timed["most_used"], None)
    elif PEAK_THERE in case.rows:
        case.rows[PEAK_THERE].failure = "the driver does not say"
    gaps = [after - before for before, after in zip(pieces, pieces[1:]) if after - before > TOGETHER]
    for name, share in SHARES.items():
        _add(case.rows[f"token {name}"], quantile(steps, share), token_watch.others)
        row = case.rows[f"text gap {name}"]
        if gaps:
            row.failure = ""
            _add(row, quantile(gaps, share), text_watch.others)
        elif not row.samples:
            row.failure = (f"all text came at once: {settings.generate} tokens take less than the {BURST_SECONDS:g} s "
                           "between two hand-outs; a larger -n shows gaps")


def _add(row: Row, value: float, others: float | None) -> None:
    row.samples.append(value)
    row.others.append(others)
