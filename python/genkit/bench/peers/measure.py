"""Takes turns: round by round every test, in every test every engine once, each in its own process, one at work."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping

from genkit import machine
from genkit.bench import noise
from genkit.bench.peers import process
from genkit.bench.peers.engines import GGUF, ISA, Engine
from genkit.bench.peers.files import WorkFolder, size_of
from genkit.bench.peers.process import Failed, Worker
from genkit.bench.peers.workloads import Workload
from genkit.errors import Error

# What an engine may hold beyond its file while it loads and runs: caches, a second copy in another layout.
MEMORY_FACTOR = 1.5


@dataclass
class Settings:
    folder: Path  # of the model
    vocabulary: int
    threads: int
    rounds: int = 5
    isa: str | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)  # family -> interpreter
    patience: float = 10.0  # seconds to wait for a quiet machine before a turn
    retries: int = 2
    drivers: Path = process.DRIVERS


@dataclass
class Row:
    """What is known of an engine. `values` and `disturbed` have an entry a round, None where there is none."""

    engine: Engine
    version: str = ""
    notes: str = ""
    work: dict[str, Any] | None = None  # genkit's: what one token costs
    file: dict[str, Any] | None = None  # seconds to write, bytes
    memory: int | None = None  # most held, bytes
    failure: str = ""  # of the engine as a whole
    failures: dict[str, str] = field(default_factory=dict)  # test -> what went wrong
    values: dict[str, list[float | None]] = field(default_factory=dict)
    disturbed: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass
class Results:
    rows: list[Row]
    tests: list[Workload]
    # Test and "read" or a kind of arithmetic -> bytes or operations a second, a round each.
    limits: dict[str, list[float | None]] = field(default_factory=dict)
    limits_failure: str = ""


class Comparison:
    """One run. tell(words, share of the work done) hears what happens."""

    def __init__(self, settings: Settings, engines: Iterable[Engine], tests: list[Workload], work: WorkFolder,
                 tell: Callable[[str, float], None] = lambda text, share: None) -> None:
        self.settings, self.work, self.tell = settings, work, tell
        self.results = Results([Row(engine) for engine in engines], tests)
        self._workers: dict[str, Worker] = {}
        self._paths: dict[str, Path] = {}
        self._done = 0

    def run(self) -> Results:
        try:
            for row in self.results.rows:
                self._prepare(row)
            for turn in range(self.settings.rounds + 1):  # the first is not counted: compilers and caches warm up
                self._round(turn, counted=turn > 0)
            return self.results
        finally:
            for worker in self._workers.values():
                worker.close()

    # Before the rounds.

    def _prepare(self, row: Row) -> None:
        self.tell(f"{row.engine.name}: weights", 0.0)
        try:
            about = self._call(row, "about")
            row.version, row.notes = about["version"], about["notes"]
            self._paths[row.engine.name] = self._weights(row)
        except (Failed, Error) as error:
            row.failure = str(error)
        except MemoryError:
            row.failure = "out of memory while its weights were written"
        self._end(row.engine.name)

    def _weights(self, row: Row) -> Path:
        from genkit.bench.peers.gguf import write_gguf

        engine, folder = row.engine, self.settings.folder
        if engine.file is None:
            return folder
        source = folder
        if engine.family == "llama_cpp":
            source = self.work.get(GGUF, lambda out: write_gguf(folder, out))
        if engine.file != GGUF:
            self.work.get(engine.file, lambda out: self._call(row, "write", source=str(source), out=str(out),
                                                              threads=self.settings.threads))
        row.file = self.work.facts(engine.file)
        return self.work.folder / engine.file

    # Processes.

    def _worker(self, name: str, family: str, options: Mapping[str, Any]) -> Worker:
        if name not in self._workers:
            python = self.settings.pythons.get(family, sys.executable)
            environment = ISA.get(self.settings.isa or "", {})
            self._workers[name] = Worker(self.settings.drivers / f"{family}.py", options, python, environment,
                                         self.work.folder / f"{name}.log")
        return self._workers[name]

    def _call(self, row: Row, method: str, **arguments: Any) -> Any:
        engine = row.engine
        options = dict(engine.options)
        if engine.family == "llama_cpp" and self.settings.isa:
            options["isa"] = self.settings.isa
        try:
            return self._worker(engine.name, engine.family, options).call(method, **arguments)
        except Failed:
            self._end(engine.name)  # whatever state it is in, the next request finds a fresh one
            raise

    def _end(self, name: str) -> None:
        worker = self._workers.pop(name, None)
        if worker is not None:
            worker.close()

    def _load(self, row: Row) -> float:
        path = self._paths[row.engine.name]
        need = int(MEMORY_FACTOR * size_of(path))
        if need > (free := machine.memory_available()):
            raise Failed(f"needs about {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; name fewer --engines")
        context = max(test.context for test in self.results.tests)
        loaded = self._call(row, "load", path=str(path), threads=self.settings.threads, context=context)
        row.work = loaded.get("work", row.work)
        worker = self._workers[row.engine.name]
        row.memory = max(row.memory or 0, noise.memory_words(worker.pid, "VmHWM") or 0) or None
        return loaded["seconds"]

    # The rounds.

    def _round(self, turn: int, counted: bool) -> None:
        rows = [row for row in self.results.rows if not row.failure]
        rows = rows[turn % len(rows):] + rows[:turn % len(rows)] if rows else []  # nobody always follows the same one
        for test in self.results.tests:
            if counted:
                self._limits(test, rows)
            for row in rows:
                self._tell_turn(row.engine.name, test, turn)
                self._turn(row, test, turn, counted)

    def _tell_turn(self, name: str, test: Workload, turn: int) -> None:
        settings, results = self.settings, self.results
        total = (settings.rounds + 1) * len(results.tests) * len(results.rows)
        self.tell(f"round {turn} of {settings.rounds}, {test.name}: {name}" if turn else f"warming up: {name}",
                  self._done / total)
        self._done += 1

    def _turn(self, row: Row, test: Workload, turn: int, counted: bool) -> None:
        value = disturbed = None
        if not row.failure and test.name not in row.failures and (counted or test.kind != "load"):
            try:
                value, disturbed = self._sample(row, test, turn, brief=not counted)
            except Failed as error:
                row.failures[test.name] = str(error)
        if counted:
            row.values.setdefault(test.name, []).append(value)
            row.disturbed.setdefault(test.name, []).append(disturbed)

    def _sample(self, row: Row, test: Workload, turn: int, brief: bool) -> tuple[float, float | None]:
        """The least disturbed of up to 1 + retries tries, in the test's unit, and what others had of the machine."""
        best: tuple[float, float | None] | None = None
        for _ in range(1 if brief else 1 + self.settings.retries):
            if test.kind != "load" and row.engine.name not in self._workers:
                self._loaded(row)
            noise.wait_until_quiet(0.0 if brief else self.settings.patience)
            if test.kind == "load":
                self._end(row.engine.name)
                self._call(row, "about")  # imports are no part of loading
                with noise.Watch(self._workers[row.engine.name].pid) as watch:
                    seconds = self._load(row)
            else:
                arguments = test.arguments(self.settings.vocabulary, turn, brief)
                with noise.Watch(self._workers[row.engine.name].pid) as watch:
                    seconds = self._call(row, test.kind, **arguments)
                row.memory = max(row.memory or 0, noise.memory_words(self._workers[row.engine.name].pid, "VmHWM") or 0) or None
            if not seconds > 0:
                raise Failed(f"{test.name}: measured {seconds} seconds")
            if best is None or (watch.others or 0) < (best[1] or 0):
                best = test.value(seconds), watch.others
            if (best[1] or 0) <= noise.DISTURBED:
                break
        return best

    def _loaded(self, row: Row) -> None:
        try:
            self._load(row)
        except Failed as error:
            row.failure = str(error)
            raise

    def _limits(self, test: Workload, rows: list[Row]) -> None:
        """One more entry for what bounds this test: the arithmetic of a prompt, reading memory for what follows."""
        works = [row.work for row in rows if row.work]
        keys = {"prefill": sorted({work["kind"] for work in works}), "decode": ["read"], "batch": ["read"]}
        for key in keys.get(test.kind, []) if works else []:
            entries = self.results.limits.setdefault(f"{test.name} {key}", [])
            entries.append(None)
            if self.results.limits_failure:
                continue
            noise.wait_until_quiet(self.settings.patience)
            arguments = {"threads": self.settings.threads} if key == "read" else {
                "kind": key, "threads": self.settings.threads}
            try:
                worker = self._worker("limits", "limits", {})
                entries[-1] = worker.call("read" if key == "read" else "peak", **arguments)
            except Failed as error:
                self.results.limits_failure = str(error)
                self._end("limits")
