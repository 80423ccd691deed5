"""Takes turns: round by round every test, in every test every engine once, each in its own process, one at work.

Before the first round each engine's weights are written and its answers compared with genkit's own (agreement.py). What is
found goes into the rows of a `Results` at once.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping

import numpy as np

from genkit import machine
from genkit.bench import noise
from genkit.bench.peers import agreement, faster, process
from genkit.bench.peers.engines import BITS, HINTS, ISA, Engine, driver_name, gguf_file
from genkit.bench.peers.files import WorkFolder, size_of
from genkit.bench.peers.gguf import write_gguf
from genkit.bench.peers.process import Failed, Worker
from genkit.bench.peers.workloads import Workload
from genkit.bench.results import Limit, Results, Row
from genkit.bench.throughput import NEGLIGIBLE, SAMPLE_SECONDS
from genkit.checkpoints.files import size_words
from genkit.errors import Error

# What an engine may hold beyond its weights while it loads and runs: caches, a second copy in another layout.
MEMORY_FACTOR = 1.5

MOST_PASSES = 100  # of one sample

# The reference that answers are compared with, and what measures the machine, in processes of their own.
REFERENCE, LIMITS = "reference", "limits"


@dataclass
class Settings:
    """name: of the model, in the rows. dtype: its matrices are stored in. longest: context it was made for. kv_bytes: of a token's
    keys and values in 16 bits. rounds: at least;
    then, for at most `seconds`, of tests in which the interval of a median is wider than `ci` of it."""

    folder: Path
    name: str
    dtype: str
    vocabulary: int
    longest: int
    kv_bytes: float
    threads: int
    rounds: int = 5
    ci: float = 0.05
    seconds: float = 0.0
    isa: str | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)  # family -> interpreter
    patience: float = 10.0  # seconds to wait for a quiet machine before a turn
    retries: int = 2
    drivers: Path = process.DRIVERS


@dataclass
class Contender:
    """What is known of an engine. `values` has an entry a round, None where there is none."""

    engine: Engine
    path: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)  # facts of each of its rows
    agreement: dict[str, Any] | None = None
    memory: int | None = None  # most held, bytes
    failure: str = ""  # of the engine as a whole
    rows: dict[Workload, Row] = field(default_factory=dict)
    values: dict[Workload, list[float | None]] = field(default_factory=dict)

    def fail(self, why: str) -> None:
        """Ends it; what it has measured before stays."""
        self.failure = why
        for row in self.rows.values():
            row.failure = row.failure or why


class Comparison:
    """One run. tell(what, steps done, steps in all) hears what happens."""

    def __init__(self, results: Results, settings: Settings, engines: Iterable[Engine], tests: list[Workload], work: WorkFolder,
                 tell: Callable[[str, int, int], None] | None = None) -> None:
        self.results, self.settings, self.tests, self.work = results, settings, tests, work
        self.contenders = [Contender(engine) for engine in engines]
        self._tell = tell or (lambda what, done, total: None)
        self._done, self._steps = 0, len(self.contenders) * (1 + (settings.rounds + 1) * len(tests))
        self._workers: dict[str, Worker] = {}
        self._loaded: dict[str, None] = {}  # names of engines whose model is in memory, the longest unused first
        self._answers: dict[Path, np.ndarray] = {}  # file -> genkit's own logits
        self._costs: dict[str, dict[Workload, dict[str, Any]]] = {}  # engine -> test -> what it takes at the least
        self._no_limits = False
        for test in tests:
            for contender in self.contenders:
                contender.rows[test] = self._row(contender.engine, test)
                contender.values[test] = []
                results.rows.append(contender.rows[test])

    def _row(self, engine: Engine, test: Workload) -> Row:
        """Any row's id tells what its peer, whichever the run, is measured with."""
        settings = self.settings
        return Row({"model": settings.name, "engine": engine.name, "weights": engine.weights, "threads": settings.threads,
                    "batch": test.batch, "test": test.name}, test.unit, "less" if test.kind == "load" else "more",
                   facts={"type": engine.type})

    def run(self) -> Results:
        noise.note_load(self.results)
        try:
            for contender in self.contenders:
                self._prepare(contender)
            for turn in range(self.settings.rounds + 1):
                self._round(turn, self.tests, counted=turn > 0)  # the first is not counted: compilers and caches warm up
            self._narrow(time.monotonic() + self.settings.seconds)
            return self.results
        finally:
            faster.fill(self.contenders, self.tests)
            noise.judge(self.results, self.settings.ci)
            for worker in self._workers.values():
                worker.close()

    def _narrow(self, deadline: float) -> None:
        """More rounds. Whole ones, since a ratio needs both of its sides in each."""
        turn = self.settings.rounds
        while (wide := [test for test in self.tests if self._wide(test)]) and time.monotonic() < deadline:
            turn += 1
            self._steps += len(wide) * len(self.contenders)
            self._round(turn, wide, counted=True)

    def _wide(self, test: Workload) -> bool:
        found = [c.rows[test].estimate for c in self.contenders if not c.rows[test].failure]
        return any(one.width > self.settings.ci for one in found if one)

    def _step(self, what: str) -> None:
        self._tell(what, min(self._done, self._steps), self._steps)
        self._done += 1

    # Before the rounds.

    def _prepare(self, contender: Contender) -> None:
        engine = contender.engine
        self._step(f"{engine.name}: weights and first answers")
        try:
            contender.about |= self._call(contender, "about") | {"weights_by": engine.writer}
            contender.path = self._weights(contender)
            self._agree(contender)
        except (Failed, Error) as error:
            contender.fail(str(error))
            self._end(engine.name)
        except MemoryError:
            contender.fail("out of memory while its weights were written")
        for row in contender.rows.values():
            row.facts |= contender.about

    def _weights(self, contender: Contender) -> Path:
        engine, settings = contender.engine, self.settings
        if engine.file is None:
            return settings.folder

        def write(out: Path) -> None:
            if engine.writer == "genkit":
                write_gguf(settings.folder, out, engine.file.removeprefix("model-").removesuffix(".gguf"), settings.threads)
                return
            source = settings.folder
            if engine.family == "llama.cpp":
                floats = gguf_file(settings.dtype)
                source = self.work.get(floats, lambda to: write_gguf(settings.folder, to, settings.dtype, settings.threads))
            self._call(contender, "write", source=str(source), out=str(out), threads=settings.threads)

        path = self.work.get(engine.file, write)
        facts = self.work.facts(engine.file)
        contender.about |= {"file_bytes": facts["bytes"], "written_s": facts["seconds"]}
        return path

    def _agree(self, contender: Contender) -> None:
        """Raises Failed where there is no answer to compare."""
        engine, settings = contender.engine, self.settings
        asked = agreement.prompts(settings.vocabulary, settings.longest)
        if engine.is_genkit and engine.same and engine.file is None:
            self._load(contender)  # this is what the others are compared with
            return
        ours = self._reference(contender.path if engine.same else settings.folder, asked)
        self._load(contender)
        theirs = self._ask(asked, lambda **arguments: self._call(contender, "check", **arguments))
        self._note_memory(contender)
        try:
            contender.agreement = found = agreement.compare(ours, theirs, agreement.bound_of(engine))
        except ValueError as error:
            raise Failed(f"check: {error}") from None
        contender.about["agreement"] = found
        if not found["agrees"]:
            for row in contender.rows.values():
                row.noise.append(f"it does not agree with genkit, so there is no ratio: {agreement.words(found)}")

    def _ask(self, prompts: list[list[int]], check: Callable[..., Any]) -> Any:
        """Logits [prompts, vocabulary], or tokens."""
        out = self.work.folder / "answers.f32"
        try:
            tokens = check(prompts=prompts, out=str(out))
            if tokens is not None:
                return tokens
            return np.fromfile(out, np.float32).reshape(len(prompts), -1)
        except (OSError, ValueError) as error:
            raise Failed(f"check: {error}") from None
        finally:
            out.unlink(missing_ok=True)

    def _reference(self, path: Path, prompts: list[list[int]]) -> np.ndarray:
        if path not in self._answers:
            self._make_room(int(MEMORY_FACTOR * size_of(path)))
            worker = self._worker(REFERENCE, "genkit", {"quantize": "none"})
            try:
                worker.call("load", path=str(path), threads=self.settings.threads, context=len(prompts[0]))
                self._answers[path] = self._ask(prompts, lambda **arguments: worker.call("check", **arguments))
            except Failed as error:
                raise Failed(f"genkit's own answers: {error}") from None
            finally:
                self._end(REFERENCE)
        return self._answers[path]

    # Processes.

    def _worker(self, name: str, family: str, options: Mapping[str, Any]) -> Worker:
        if name not in self._workers:
            python = self.settings.pythons.get(family, sys.executable)
            environment = ISA.get(self.settings.isa or "", {})
            self._workers[name] = Worker(self.settings.drivers / f"{driver_name(family)}.py", options, python, environment,
                                         self.work.folder / f"{name}.log")
        return self._workers[name]

    def _call(self, contender: Contender, method: str, **arguments: Any) -> Any:
        engine = contender.engine
        options = dict(engine.options)
        if engine.family == "llama.cpp" and self.settings.isa:
            options["isa"] = self.settings.isa
        try:
            return self._worker(engine.name, engine.family, options).call(method, **arguments)
        except Failed as error:
            self._end(engine.name)  # whatever state it is in, the next request finds a fresh one
            hints = [hint for (family, word), hint in HINTS.items() if family == engine.family and word in str(error)]
            raise Failed("; ".join([str(error), *hints])) from None

    def _end(self, name: str) -> None:
        self._loaded.pop(name, None)
        worker = self._workers.pop(name, None)
        if worker is not None:
            worker.close()

    def _make_room(self, need: int) -> None:
        """Ends engines, those first that have not been used for longest, until so many bytes are free. Raises Failed."""
        while need > (free := machine.memory_available()):
            if not self._loaded:
                raise Failed(f"needs about {size_words(need)} of memory, {size_words(free)} is free")
            self._end(next(iter(self._loaded)))

    def _load(self, contender: Contender) -> float:
        engine, settings = contender.engine, self.settings
        need = MEMORY_FACTOR * size_of(contender.path)
        if engine.is_genkit and engine.file is None:  # rounds while it reads
            need *= BITS[engine.type] / BITS[settings.dtype]
        need += settings.kv_bytes * max(test.batch * test.context for test in self.tests)
        self._make_room(int(need))
        loaded = self._call(contender, "load", path=str(contender.path), threads=settings.threads,
                            context=max(test.context for test in self.tests))
        self._loaded[engine.name] = None
        self._note_memory(contender)
        return loaded["seconds"]

    def _note_memory(self, contender: Contender) -> None:
        worker = self._workers[contender.engine.name]
        contender.memory = max(contender.memory or 0, noise.memory_words(worker.pid, "VmHWM") or 0) or None
        contender.about["peak_memory"] = contender.memory

    # The rounds.

    def _round(self, turn: int, tests: list[Workload], counted: bool) -> None:
        ready = [contender for contender in self.contenders if not contender.failure]
        ready = ready[turn % len(ready):] + ready[:turn % len(ready)] if ready else []  # nobody always follows the same one
        for test in tests:
            for contender in ready:
                self._step(f"round {turn}, {test.name}: {contender.engine.name}" if turn else f"warming up: {contender.engine.name}")
                self._turn(contender, test, turn, counted)

    def _turn(self, contender: Contender, test: Workload, turn: int, counted: bool) -> None:
        row, sample = contender.rows[test], None
        if not row.failure and (counted or test.kind != "load"):
            try:
                sample = self._sample(contender, test, turn, brief=not counted)
            except Failed as error:
                row.failure = str(error)
        if counted:
            contender.values[test].append(None if sample is None else sample[0])
        if counted and sample is not None:
            row.samples.append(sample[0])
            row.others.append(sample[1])
            if contender.engine.is_genkit:
                self._share(contender, test, sample[0])
        row.facts["peak_memory"] = contender.memory

    def _sample(self, contender: Contender, test: Workload, turn: int, brief: bool) -> tuple[float, float | None]:
        """The least disturbed of up to 1 + retries tries, in the test's unit, and what others had of the machine."""
        best: tuple[float, float | None] | None = None
        for _ in range(1 if brief else 1 + self.settings.retries):
            seconds, others, quiet = self._try(contender, test, turn, brief)
            if not seconds > 0:
                raise Failed(f"{test.name}: measured {seconds} seconds")
            if best is None or (others or 0) < (best[1] or 0):
                best = test.value(seconds), others
            if (best[1] or 0) <= noise.DISTURBED or not quiet:  # who never got a quiet moment will not get one now
                break
        return best

    def _try(self, contender: Contender, test: Workload, turn: int, brief: bool) -> tuple[float, float | None, bool]:
        """Seconds, what others had, and whether it was quiet before."""
        name = contender.engine.name
        if test.kind == "load":
            self._end(name)
            self._call(contender, "about")  # imports are no part of loading
            quiet = noise.wait_until_quiet(self.settings.patience)
            with noise.Watch(self._workers[name].pid) as watch:
                seconds = self._load(contender)
            return seconds, watch.others, quiet
        if name not in self._loaded:
            try:
                self._load(contender)
            except Failed as error:
                contender.fail(str(error))
                raise
        self._loaded[name] = self._loaded.pop(name)  # used last
        quiet = noise.wait_until_quiet(0.0 if brief else self.settings.patience)
        seconds, count = 0.0, 0
        with noise.Watch(self._workers[name].pid) as watch:
            while not count or (not brief and 0 < seconds < SAMPLE_SECONDS and count < MOST_PASSES):
                arguments = test.arguments(self.settings.vocabulary, turn * MOST_PASSES + count, brief)
                seconds += self._call(contender, test.kind, **arguments)
                count += 1
        self._note_memory(contender)
        return seconds / count, watch.others, quiet

    # genkit beside the machine's limits.

    def _share(self, contender: Contender, test: Workload, value: float) -> None:
        """One more entry of the share of what bounds this test, measured now."""
        row = contender.rows[test]
        if test.kind == "load":
            return
        try:
            cost = self._cost(contender, test)
            row.shares.append(None)
            if row.limit is not None:
                row.limit.samples.append(None)
            if self._no_limits:
                return
            total = sum(cost["operations"].values())
            counting = [kind for kind, count in cost["operations"].items() if count >= NEGLIGIBLE * total]
            noise.wait_until_quiet(self.settings.patience)
            worker, threads = self._worker(LIMITS, LIMITS, {}), self.settings.threads
            limits = {"read": worker.call("read", nbytes=int(cost["walked"]), threads=threads)}
            limits |= {kind: worker.call("peak", kind=kind, threads=threads) for kind in counting}
        except Failed as error:
            self._no_limits = True
            self.results.notes.append(f"the limits of the machine could not be measured: {error}")
            self._end(LIMITS)
            return
        reading = cost["nbytes"] / limits["read"]
        computing = sum(cost["operations"][kind] / limits[kind] for kind in counting)
        if row.limit is None:
            kind = max(cost["operations"], key=cost["operations"].__getitem__)
            row.limit = Limit("read", "B/s") if reading >= computing else Limit(kind, "op/s")
            row.limit.samples = [None] * len(row.shares)
        row.shares[-1] = max(reading, computing) * value / (test.tokens * test.batch)
        row.limit.samples[-1] = limits[row.limit.of]

    def _cost(self, contender: Contender, test: Workload) -> dict[str, Any]:
        """Bytes and operations of one run of a test at the least, and how large the weights are that it walks through."""
        costs = self._costs.setdefault(contender.engine.name, {})
        if test not in costs:
            costs[test] = self._call(contender, "cost", kind=test.kind, sequences=test.batch, before=test.before, tokens=test.tokens)
            contender.rows[test].facts |= costs[test].pop("facts")
        return costs[test]
