"""Tokens a second of models, beside the limits of the machine: each model in each type by threads, batch, depth and test,
round by round so that all share the machine's moods, until their medians are known well enough."""

from __future__ import annotations

import gc
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Callable, Iterable

from genkit import _core, machine
from genkit.batch import PREFILL_CHUNK
from genkit.bench import device_limits, limits
from genkit.bench.noise import Watch, forget_peak, judge, memory_words, note_load
from genkit.bench.passes import Passes, pages_needed
from genkit.bench.results import Limit, Results, Row
from genkit.bench.subjects import Subject, open_subjects
from genkit.bench.work import Cost
from genkit.devices import choose_device, free_memory, most_used, using
from genkit.engine import choose_threads
from genkit.errors import UsageError

Tell = Callable[[str, int, int], None]

# A sample lasts at least so long, by repetition: far above what the clock and a single interruption can do to it.
SAMPLE_SECONDS = 0.2
# A limit is measured again when this many seconds old: beside every sample, but not for each of many short ones.
STALE = 1.0
# A shared machine stays in one mood for up to so long (docs/bench.md): samples of less are of one mood, and two runs of less
# differ by their moods.
MOOD_SECONDS = 40.0
MOST_ROWS = 1000  # of a model in one type: more is a mistyped range
# Kinds of arithmetic below this share of all operations are not worth measuring a limit: the floor stays one without them.
NEGLIGIBLE = 0.01


@dataclass(frozen=True)
class Plan:
    """What to measure. models: as genkit.load takes them, none for the model in the package. types: of subjects.TYPES.
    prompts and generates: tokens of each test, pp and tg. depths: tokens in the cache before. batches: sequences. rounds:
    samples of each row at least; more are taken for at most `seconds` where the interval of a median is wider than `ci`."""

    models: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    prompts: tuple[int, ...] = (512,)
    generates: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = ()
    devices: tuple[str, ...] = ("auto",)
    kv_type: str = "auto"
    rounds: int = 5
    warmup: int = 1
    ci: float = 0.05
    seconds: float = 60.0
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass
class Case:
    """A row and how it is measured. test: "pp" or "tg"."""

    row: Row
    subject: Subject
    threads: int
    batch: int
    depth: int
    test: str
    tokens: int
    passes: "Passes | None" = None
    cost: "Cost | None" = None  # of one pass
    kinds: tuple[str, ...] = ()  # of its arithmetic
    working_set: int = 0  # bytes that a step reads
    others: int = 0  # bytes that other models in memory hold
    others_there: int = 0  # and on the device
    bounds: "Counter[str]" = field(default_factory=Counter)  # what bounded its samples: near the ridge now this, now that
    beside: "list[dict[str, float]]" = field(default_factory=list)  # all limits beside each sample

    def take(self, passes: Passes, others: int, on_device: "int | None", others_there: int) -> None:
        """The loaded model; bytes that others hold in memory, and that this one and others take on its device if that is not the
        processor."""
        self.passes, self.others, self.others_there = passes, others, others_there
        loaded, work, device = passes.loaded, passes.work, self.subject.device
        if self.test == "pp":
            self.cost = work.prompt(self.batch, self.depth, self.tokens)
            steps = self.batch * -(-self.tokens // PREFILL_CHUNK)
        else:
            together = not loaded.config.varies(self.depth + self.tokens)
            self.cost = work.decode(self.batch, self.depth, self.tokens, together)
            steps = self.tokens * (1 if together else self.batch)
        if device != "cpu" and "f16" in (loaded.kv_type, self.row.id["type"]):
            # Its tensor cores multiply f16 as fast as bf16 at most, which is the bound measured.
            self.cost = self.cost.counted_as("f32", "bf16")
        # Never so much that the memory to read from is not there; beyond the caches all sizes are alike.
        self.working_set = min(limits.READ_BYTES, free_memory(device) // 4,
                               max(64 * self.threads, device_limits.LEAST, round(self.cost.nbytes / steps)))
        total = sum(self.cost.operations.values())
        self.kinds = tuple(kind for kind, count in self.cost.operations.items() if count >= NEGLIGIBLE * total)
        tokens = self.batch * self.tokens
        self.row.facts.update(
            bytes_per_token=self.cost.nbytes / tokens, operations_per_token=total / tokens, weight_bytes=work.weight_bytes,
            peak_memory=None, tier=loaded.tier, bound=None, load_s=loaded.load_s, kv_type=loaded.kv_type,
            prompt=self.tokens if self.test == "pp" else 0, generate=self.tokens if self.test == "tg" else 0,
            depth=self.depth, working_set=self.working_set)
        if on_device is not None:
            self.row.facts |= {"device_memory": on_device, "device_peak": None}

    def once(self) -> float:
        """Seconds of one pass."""
        _core.set_threads(self.threads)
        run = self.passes.prompt if self.test == "pp" else self.passes.decode
        with using(self.subject.device):
            return run(self.batch, self.depth, self.tokens)

    def sample(self, limit: "Limits") -> None:
        read = limit.read(self.subject.device, self.working_set, self.threads)
        peaks = {kind: limit.peak(self.subject.device, kind, self.threads) for kind in self.kinds}
        device, resettable, seconds, count = self.subject.device, forget_peak(), 0.0, 0
        most_used(device)
        with Watch() as watch:
            while seconds < SAMPLE_SECONDS:
                seconds += self.once()
                count += 1
        peak = memory_words("self", "VmHWM") if resettable else None
        row, facts = self.row, self.row.facts
        row.samples.append(count * self.batch * self.tokens / seconds)
        row.others.append(watch.others)
        if peak is not None:
            facts["peak_memory"] = max(facts["peak_memory"] or 0, peak - self.others)
        if (there := most_used(device)) is not None:
            facts["device_peak"] = max(facts["device_peak"] or 0, there - self.others_there - limit.held(device))
        floor, bound = self.cost.floor(read, peaks)
        row.shares.append(count * floor / seconds)
        self.bounds[bound] += 1
        self.beside.append(peaks | {"read": read})
        facts["bound"] = bound = self.bounds.most_common(1)[0][0]
        row.limit = Limit(bound, "B/s" if bound == "read" else "op/s", [values.get(bound) for values in self.beside])


class Limits:
    """The machine's limits of this moment, each device's its own."""

    def __init__(self) -> None:
        self._known: "dict[Any, tuple[float, float]]" = {}  # with the time
        self._memory: "dict[str, _core.Tensor]" = {}  # of devices, to be read

    def read(self, device: str, size: int, threads: int) -> float:
        if device == "cpu":
            return self._recent((size, threads), lambda: limits.read_bandwidth(size, threads))
        if device not in self._memory or self._memory[device].nbytes < size:
            self._memory[device] = device_limits.memory(device, size)
        return self._recent((device, size), lambda: device_limits.on(device, device_limits.read, self._memory[device], size))

    def held(self, device: str) -> int:
        """Bytes of the device that are there to be read."""
        return self._memory[device].nbytes if device in self._memory else 0

    def peak(self, device: str, kind: str, threads: int) -> float:
        if device == "cpu":
            return self._recent((kind, threads), lambda: limits.arithmetic_peak(kind, threads))
        return self._recent((device, kind), lambda: device_limits.on(device, device_limits.peak, kind))

    def _recent(self, key: Any, measured: Callable[[], float]) -> float:
        value, at = self._known.get(key, (0.0, -STALE))
        if time.monotonic() - at >= STALE:
            value = measured()
            self._known[key] = value, time.monotonic()
        return value



def measure(results: Results, plan: Plan, tell: "Tell | None" = None) -> None:
    """Fills results with a row for every model, type, device, threads, batch, depth and test. tell(what, done, total).

    Raises UsageError, BadFileError, ResourceError or DeviceError, all but those of damaged weights before anything is
    loaded.
    """
    tell = tell or (lambda what, done, total: None)
    results.settings = plan.as_dict()
    tests = [("pp", count) for count in plan.prompts] + [("tg", count) for count in plan.generates]
    if not tests:
        raise UsageError("-p none and -n none: nothing is left to measure")
    devices = list(dict.fromkeys(choose_device(device) for device in plan.devices))
    threads = [choose_threads(count) for count in plan.threads or (None,)]
    if error := _core.isa_error():
        raise UsageError(error)
    count = len(tests) * len(threads) * len(devices) * len(plan.depths) * len(plan.batches)
    if count > MOST_ROWS:
        raise UsageError(f"these lists make {count:,} rows of each model; at most {MOST_ROWS:,}")
    most, depths, batch = max(count for _, count in tests), sorted(plan.depths), max(plan.batches)
    with ExitStack() as stack:
        opened = open_subjects(plan.models, plan.shapes, plan.types, plan.kv_type, plan.seed, stack)
        subjects = [replace(subject, device=device) for subject in opened for device in devices]
        for subject in subjects:
            subject.check_context(depths[-1], most)
        words = f"{depths[-1] + most} tokens in {batch} sequence(s)"
        needs = [subject.check_memory(pages_needed(subject.config, depths, batch, most), words) for subject in subjects]
        note_load(results)
        for device in devices:
            device_limits.note(results, device)
        groups = [subjects]
        if any(sum(need for need, subject in zip(needs, subjects) if subject.device == device) > free_memory(device)
               for device in devices):
            groups = [[subject] for subject in subjects]
            results.notes.append("the models do not fit into memory together: they were measured one after the other, not "
                                 "in turns; what the machine did meanwhile is in their differences too")
        cases = [_case(subject, plan.kv_type, count, sequences, depth, test, tokens) for subject in subjects
                 for count in (threads if subject.device == "cpu" else [max(threads)]) for sequences in plan.batches
                 for depth in plan.depths for test, tokens in tests]
        results.rows += [case.row for case in cases]
        try:
            for group in groups:
                _measure_group([case for case in cases if any(case.subject is one for one in group)], group, plan,
                               plan.seconds / len(groups), tell)
        finally:
            judge(results, plan.ci)


def _case(subject: Subject, kv_type: str, threads: int, batch: int, depth: int, test: str, tokens: int) -> Case:
    keys = {} if kv_type == "auto" else {"keys": kv_type}  # asked for, it is another thing to measure
    row = Row({"model": subject.name, "type": subject.type, **keys, "device": subject.device, "threads": threads, "batch": batch,
               "test": f"{test}{tokens}" + (f" @ d{depth}" if depth else "")}, "tokens/s")
    return Case(row, subject, threads, batch, depth, test, tokens)


def _measure_group(cases: list[Case], subjects: list[Subject], plan: Plan, seconds: float, tell: Tell) -> None:
    """Of models that are in memory together."""
    held: list[tuple[int, int | None]] = []
    loaded: list[Passes] = []
    for subject in subjects:
        before, free = memory_words("self", "VmRSS") or 0, free_memory(subject.device)
        own = [case for case in cases if case.subject is subject]
        name = f"{subject.name} {subject.type}"
        depths, batch, most = sorted(plan.depths), max(plan.batches), max(case.tokens for case in own)
        model = subject.load(max(case.threads for case in own), lambda done, total: tell(f"loading {name}", done, total),
                             pages_needed(subject.config, depths, batch, most))
        with using(subject.device):
            passes = Passes(model, depths, batch, most)
            passes.fill(max(plan.batches), lambda done, total: tell(f"filling the cache of {name}", done, total))
        loaded.append(passes)
        held.append(((memory_words("self", "VmRSS") or 0) - before,
                     None if subject.device == "cpu" else free - free_memory(subject.device)))
    for subject, passes, (own, on_device) in zip(subjects, loaded, held):
        for case in cases:
            if case.subject is subject:
                case.take(passes, sum(near for near, _ in held) - own, on_device, sum(there or 0 for _, there in held) - (on_device or 0))
    total, done, limit = len(cases) * (plan.warmup + plan.rounds), 0, Limits()
    begun = time.monotonic()
    for number in range(plan.warmup + plan.rounds):
        for case in rotated(cases, number):
            tell(" ".join(str(case.row.id[key]) for key in ("model", "type", "test")), done, total)
            if number < plan.warmup:
                case.once()
            else:
                case.sample(limit)
            done += 1
    narrow(cases, plan, limit, seconds, begun, tell)
    for case in cases:  # memory is for the next group
        case.passes = None
    loaded.clear()
    gc.collect()


def narrow(cases: list[Case], plan: Plan, limit: Limits, seconds: float, begun: float, tell: Tell) -> None:
    """More rounds until the time is out: over all rows while the machine may still be in the mood it was in when they began,
    then over those whose median is not known to plan.ci yet."""
    start = time.monotonic()
    number = plan.rounds

    def unsettled() -> list[Case]:
        if time.monotonic() - begun < MOOD_SECONDS:
            return cases
        return [case for case in cases if not case.row.estimate.width <= plan.ci]

    while going := unsettled():
        for case in rotated(going, number):
            elapsed = time.monotonic() - start
            if elapsed >= seconds:
                return
            tell(f"narrowing {len(going)} of {len(cases)} rows", round(10 * elapsed), round(10 * seconds))
            case.sample(limit)
        number += 1


def rotated(cases: list[Case], by: int) -> Iterable[Case]:
    """From another one on each round, so that none always follows the same pause."""
    at = by % len(cases)
    return cases[at:] + cases[:at]
