"""Two installs of genkit beside each other: which they are, a commit built where one is named, and turns taken A B B A."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Callable, Sequence

from genkit.bench import compare
from genkit.bench.peers import process
from genkit.bench.peers.process import Failed, Worker
from genkit.bench.ratios import paired
from genkit.bench.results import Results, Row
from genkit.checkpoints.files import shown_path
from genkit.errors import BadFileError, DeviceError, Error, ResourceError, UsageError

Tell = Callable[[str, int, int], None]

# Fewer pairs tell nothing from chance at 95 % (the signed-rank test).
FEWEST_ROUNDS = 6
BUILD_SECONDS = 240  # or so, of all of genkit on two cores


@dataclass
class Install:
    """name: as it was asked for. python: the interpreter that runs it. folder: where that finds genkit, if not by itself.
    commit: what has to be built into that folder first."""

    name: str
    python: str
    folder: str = ""
    commit: str = ""


def find(text: str) -> Install | Path:
    """A result file, an interpreter, a virtual environment, or a commit of the repository here. Raises UsageError."""
    path = Path(text)
    if os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                start = file.read(4)
        except OSError as error:
            raise BadFileError(f"{shown_path(text)}: {error.strerror}") from None
        runs = os.access(path, os.X_OK) and start[:2] in (b"#!", b"\x7fE", b"MZ", b"\xcf\xfa", b"\xca\xfe")
        return Install(text, os.path.abspath(path)) if runs else path
    for inner in ("bin/python", "Scripts/python.exe"):
        if os.path.isfile(path / inner):
            return Install(text, os.path.abspath(path / inner))
    if text.startswith("python") and (known := shutil.which(text)):
        return Install(text, known)
    if commit := find_commit(text):
        return Install(text, sys.executable, str(cache_folder() / f"{commit}-{sys.implementation.cache_tag}"), commit)
    if path.suffix.lower() == ".json" or (os.sep in text and not os.path.exists(path)):
        raise BadFileError(f"{shown_path(text)}: no such file")
    what = "a folder without bin/python" if os.path.isdir(path) else "no such file, virtual environment or commit"
    raise UsageError(f"{shown_path(text)}: {what}; expected a result of genkit bench -o FILE.json, a Python interpreter or virtual"
                     " environment with genkit, or a commit of the git repository in this folder")


def find_commit(text: str) -> str:
    """Its full name, "" where there is none of that name, no repository here, or no git."""
    if not text or text.startswith("-"):
        return ""
    try:
        done = subprocess.run(["git", "rev-parse", "--verify", "--quiet", text + "^{commit}"], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
    except (OSError, ValueError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "genkit-bench" / "commits"


def build(install: Install, tell: Tell | None = None) -> None:
    """Makes the folder of a commit, once. Raises Error with the last line the build said, ResourceError."""
    folder = Path(install.folder)
    if not install.commit or (folder / "genkit").is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-", ignore_cleanup_errors=True) as work:
            source, made = Path(work, "source"), Path(work, "made")
            _run(["git", "-C", _run(["git", "rev-parse", "--show-toplevel"], install, work).strip(), "archive", "-o",
                  f"{work}/source.tar", install.commit], install, work)
            with tarfile.open(f"{work}/source.tar") as archive:
                archive.extractall(source, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            _run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target",
                  str(made), str(source)], install, work, tell)
            if not (made / "genkit").is_dir():
                raise UsageError(f"{shown_path(install.name)}: what this commit installs is not genkit")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(made, folder)
    except OSError as error:
        raise ResourceError(f"{folder}: commit {shown_path(install.name)} cannot be built there: {error.strerror or error}") from None


def _run(command: list[str], install: Install, work: str, tell: Tell | None = None) -> str:
    """Standard output of a command that takes its children with it when it has to go."""
    with open(Path(work, "said"), "w+", encoding="utf-8", errors="replace") as said:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        start = time.monotonic()
        try:
            while child.poll() is None:
                if tell is not None:
                    done = min(int(10 * (time.monotonic() - start)), 10 * BUILD_SECONDS - 1)
                    tell(f"building {install.name}, once", done, 10 * BUILD_SECONDS)
                try:
                    child.wait(0.2)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        said.seek(0)
        text = said.read()
    if child.returncode:
        raise Error(f"commit {shown_path(install.name)} cannot be built: {shown_path(_reason(text))[:300]}")
    return text


def _reason(text: str) -> str:
    """The last line that tells of an error: within what pip quotes of the build, where it does."""
    lines = [line.strip() for line in text.partition("[end of output]")[0].splitlines() if line.strip()]
    return ([line for line in lines if "error" in line.lower() and "subprocess-exited" not in line] or lines or ["it said nothing"])[-1]


@dataclass(frozen=True)
class Subject:
    """A model: what it and its type are called (None: as it says itself), where it is, and load's quantize, None for the
    default."""

    model: str
    path: str
    type: str | None = None
    quantize: str | None = None


@dataclass
class Plan:
    """prompts and generates: tokens of each test, pp and tg. rounds: of A B B A at least, and not fewer than FEWEST_ROUNDS.
    seconds: for all rows; a row ends before when its interval is narrower than `ci`. device: None for what each install takes."""

    subjects: Sequence[Subject]
    threads: Sequence[int | None]
    prompts: Sequence[int]
    generates: Sequence[int]
    rounds: int = FEWEST_ROUNDS
    ci: float = 0.05
    seconds: float = 60.0
    device: str | None = None


@dataclass
class _Test:
    row: Row
    method: str
    tokens: int
    ratios: list[float] = field(default_factory=list)
    speeds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def take(self, seconds: Sequence[float], ci: float) -> None:
        """Seconds of A B B A: what drifts evenly meanwhile falls out."""
        first, second, third, fourth = seconds
        self.ratios.append(math.sqrt(first * fourth / (second * third)))
        for side, pair in zip(self.speeds, ((first, fourth), (second, third))):
            side += [self.tokens / value for value in pair]
        self.row.facts |= {"a": median(self.speeds[0]), "b": median(self.speeds[1])}
        found = paired(self.ratios, compare.BETWEEN_PROCESSES)
        if found is not None:
            compare.set_ratio(self.row, found, len(self.ratios), self.ratios)


def measure(results: Results, installs: Sequence[Install], plan: Plan, tolerance: float, tell: Tell | None = None) -> None:
    """Fills results, of kind "compare", with a row for each type, number of threads and test. Raises UsageError where an
    install is none, or cannot run what is asked."""
    with tempfile.TemporaryDirectory(prefix="genkit-bench-", ignore_cleanup_errors=True) as logs:
        turns = _Turns(results, installs, plan, Path(logs), tell)
        try:
            turns.run()
        finally:
            compare.judge(results.rows, tolerance)


def _kind(error: Failed) -> tuple[type[Error], str]:
    """The error of genkit's own that a process answered with, and its words; Error where it is none."""
    for kind in (UsageError, BadFileError, ResourceError, DeviceError):
        _, found, said = str(error).partition(f": {kind.__name__}: ")
        if found:
            return kind, said
    return Error, str(error)


class _Turns:
    def __init__(self, results: Results, installs: Sequence[Install], plan: Plan, logs: Path, tell: Tell | None) -> None:
        self.results, self.installs, self.plan, self.logs, self.tell = results, installs, plan, logs, tell
        self._workers: list[Worker] = []

    def run(self) -> None:
        plan = self.plan
        cases = [(subject, threads) for subject in plan.subjects for threads in plan.threads]
        for place, (subject, threads) in enumerate(cases):
            try:
                self._start()
                tests = self._load(subject, threads)
                self._rounds(tests, place, len(cases))
            finally:
                self._end()

    def _start(self) -> None:
        """Both in processes of their own. What PYTHONPATH says is this process's business: it would make both the same."""
        for name, install in zip("AB", self.installs):
            options = {"folder": install.folder} if install.folder else {}
            try:
                worker = Worker(process.DRIVERS / "installs.py", options, install.python, {"PYTHONPATH": ""}, self.logs / f"{name}.log")
                self._workers.append(worker)
                about = worker.call("about", timeout=120)
            except Failed as error:
                raise UsageError(f"{shown_path(install.name)}: no genkit that works: {error}") from None
            self.results.settings[name.lower()] = install.name
            said = f"{name} is {shown_path(install.name)}: genkit {about['version']} in {about['where']}"
            if said not in self.results.notes:
                self.results.notes.append(said)

    def _end(self) -> None:
        while self._workers:
            self._workers.pop().close()

    def _load(self, subject: Subject, threads: int | None) -> list[_Test]:
        plan, loaded = self.plan, []
        wanted = ("quantize", subject.quantize), ("threads", threads), ("device", plan.device)
        options = {name: value for name, value in wanted if value is not None}
        self._say(f"loading {subject.model}", 0.0, 1)
        for install, worker in zip(self.installs, self._workers):
            try:
                loaded.append(worker.call("load", path=subject.path, options=options))
            except Failed as error:
                kind, said = _kind(error)
                raise kind(f"{shown_path(install.name)}: {said}") from None
        context = min(facts["context"] for facts in loaded)
        for option, tokens, more in [("-p", count, 1) for count in plan.prompts] + [("-n", count, 2) for count in plan.generates]:
            if tokens + more > context:
                raise UsageError(f"{option} {tokens}: {subject.model} was made for {context} tokens")
        first, second = loaded
        for what in ("type", "threads", "device"):
            if first[what] != second[what]:
                raise UsageError(f"A runs {subject.model} with {what} {first[what]}, B with {second[what]}; say which with"
                                 f" {'-t' if what == 'threads' else '--' + what}")
        facts = {"tier": first["tier"] if first["tier"] == second["tier"] else f"{first['tier']}, {second['tier']}", "of": "tokens/s"}
        tests = []
        for method, short, counts in (("prefill", "pp", plan.prompts), ("decode", "tg", plan.generates)):
            for count in counts:
                row = Row({"model": subject.model, "type": subject.type or ("stored" if first["type"] == "none" else first["type"]),
                           "device": first["device"], "threads": first["threads"], "batch": 1, "test": f"{short}{count}"},
                          "ratio", facts=dict(facts))
                tests.append(_Test(row, method, count))
        self.results.rows += [test.row for test in tests]
        return tests

    def _rounds(self, tests: list[_Test], place: int, cases: int) -> None:
        plan = self.plan
        for test in tests:  # caches and clocks warm up
            for worker in self._workers:
                self._seconds(worker, test)
        start = time.monotonic()
        given = plan.seconds / cases
        rounds = 0
        while True:
            spent = time.monotonic() - start
            going = [test for test in tests if not test.row.failure and not self._done(test)]
            if not going or (spent >= given and rounds >= max(plan.rounds, FEWEST_ROUNDS)):
                return
            for test in going:
                self._say(f"{test.row.id['test']}, round {rounds + 1}", place + min(spent / given, 1.0), cases)
                turns = [self._seconds(self._workers[side], test) for side in (0, 1, 1, 0)]
                if None not in turns:
                    test.take(turns, plan.ci)
            rounds += 1

    def _done(self, test: _Test) -> bool:
        found = test.row.computed
        return (len(test.ratios) >= max(self.plan.rounds, FEWEST_ROUNDS) and found is not None
                and found.high - found.low <= self.plan.ci * found.median)

    def _seconds(self, worker: Worker, test: _Test) -> float | None:
        if test.row.failure:
            return None
        try:
            seconds = worker.call(test.method, tokens=test.tokens)
            if seconds > 0:
                return seconds
            test.row.failure = f"measured {seconds} seconds"
        except Failed as error:
            test.row.failure = f"{'AB'[self._workers.index(worker)]}: {error}"
        return None

    def _say(self, what: str, done: float, total: int) -> None:
        if self.tell is not None:
            scale = 10 * self.plan.seconds / total
            self.tell(what, int(done * scale), max(1, int(total * scale)))
