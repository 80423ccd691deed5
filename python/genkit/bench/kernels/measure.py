"""Takes the times: cases that fit memory together in rounds, each beside the limit that bounds it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Callable, Hashable, Iterator, Optional, Sequence

import numpy as np

from genkit import _core
from genkit.bench import device_limits
from genkit.bench.kernels import experts, keys, logits, products, rowwise
from genkit.bench.kernels.case import Case, Scope, Sizes, Store
from genkit.bench.kernels.gauge import DeviceGauge, Gauge
from genkit.bench.kernels.recording import Recording
from genkit.bench.noise import Watch, judge, note_load
from genkit.bench.results import Limit, Results, Row
from genkit.devices import free_memory, using
from genkit.engine import choose_threads
from genkit.errors import ResourceError, UsageError

FAMILIES = (products, experts, keys, rowwise, logits)

SAMPLE = 0.02  # seconds of work in a sample, repeated so often
REPLAY = 2e-4  # of one replay, beside which its start is nothing
DEVICE_REPLAY = 1e-3  # the same on a GPU, where a graph starts some microseconds after the one before
CALLS_MOST = 4096  # in one replay
SLOW = 2.0  # seconds a call takes: such a case is not measured

BATCH_BYTES = 3 << 30  # of inputs at a time

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """names: kernels, or how their names begin; none: all. tiers: none: the one in use, "all": all there are. threads: none:
    the processors this process may use. repetitions: samples of a row at least; rows whose interval is wider than ci, a share of
    the median, get more for up to `seconds`."""

    scope: Scope
    names: Sequence[str] = ()
    tiers: Sequence[str] = ()
    threads: Sequence[int] = ()
    repetitions: int = 5
    ci: float = 0.05
    seconds: float = 60.0

    def as_dict(self) -> dict[str, Any]:
        scope = self.scope
        return {"device": scope.device, "names": list(self.names), "sizes": asdict(scope.sizes), "rows": list(scope.rows),
                "contexts": list(scope.contexts), "types": None if scope.types is None else list(scope.types),
                "tiers": list(self.tiers), "threads": list(self.threads), "repetitions": self.repetitions,
                "ci": self.ci, "seconds": self.seconds}


@dataclass
class Entry:
    """A case on one tier with so many threads, or on a device that has no tiers, its recording and its row."""

    case: Case
    tier: str
    threads: int
    served_by: tuple[str, ...]
    device: str = "cpu"
    row: Row = field(init=False)
    recording: Optional[Recording] = None
    replays: int = 1  # in a sample
    running: int = 0  # threads: one where nothing is split

    def __post_init__(self) -> None:
        where = {"threads": self.threads, "tier": self.tier} if self.device == "cpu" else {"device": self.device}
        self.row = Row({**self.case.id, **where}, self.case.unit)
        self.running = self.threads

    @property
    def group(self) -> Hashable:
        """Of entries that use the same memory."""
        return self.case.shared[0] if self.case.shared else (self.case.kernel, self.case.case)

    @property
    def amount(self) -> int:
        """Of a call, in the row's unit."""
        return self.case.nbytes if self.row.unit == "B/s" else self.case.operations

    @property
    def bounded(self) -> int:
        """Of a call, in the limit's unit."""
        return self.case.nbytes if self.row.limit.of == "read" else self.case.operations

    def enter(self) -> None:
        if self.device != "cpu":
            return
        if _core.current_tier() != self.tier:
            _core.use_tier(self.tier)
        if _core.get_threads() != self.threads:
            _core.set_threads(self.threads)

    def seconds(self) -> float:
        """Of one call."""
        return self.recording.seconds(self.replays)


def kernel_names() -> list[str]:
    """Of everything that is measured, on any tier and number of threads."""
    some = Scope(Sizes(64, 4, 2, 16, 128, 512, 8, 2, 64), rows=(1,), contexts=(64,))
    names = {case.kernel for family in FAMILIES for case in family.cases(some)}
    return sorted(names | set(products.ROUNDS_ROWS.values()) | {"attention_merge"})


def choose(names: Sequence[str], known: Sequence[str]) -> set[str]:
    """A kernel by its name, or all whose names begin so. Raises UsageError."""
    found: set[str] = set()
    for name in names:
        matching = [name] if name in known else [one for one in known if one.startswith(name)]
        if not name or not matching:
            raise UsageError(f"kernel {name!r} is unknown; known: {', '.join(known)}")
        found.update(matching)
    return found or set(known)


def entries(request: Request) -> list[Entry]:
    """What there is to measure, entries that use the same memory side by side. A kernel that several tiers share is measured
    under the first of them. Raises UsageError for unknown names and tiers, and where nothing is left."""
    scope = request.scope
    if scope.device != "cpu":
        return device_entries(request)
    for tier in request.tiers:
        if tier not in ("all", *_core.tiers()):
            raise UsageError(f"--tier {tier}: this processor has {', '.join(_core.tiers())}; all are these")
    tiers = _core.tiers() if "all" in request.tiers else request.tiers or [_core.current_tier()]
    wanted = choose(request.names, kernel_names())
    found: list[Entry] = []
    seen = set()
    with keeping_the_core():
        for threads in request.threads or [choose_threads(None)]:
            _core.set_threads(choose_threads(threads))
            for tier in tiers:
                _core.use_tier(tier)
                slots = _core.slots()
                for case in (case for family in FAMILIES for case in family.cases(scope) if case.kernel in wanted):
                    entry = Entry(case, tier, threads, tuple(slots[slot] for slot in case.slots))
                    key = (*case.id.values(), threads, case.slots, entry.served_by)
                    if key not in seen:
                        seen.add(key)
                        found.append(entry)
    if not found:
        raise UsageError(f"{', '.join(sorted(wanted))}: nothing of it runs on these tiers: round_rows is avx512bf16's, tile_rows "
                         f"amx's, and attention_merge needs two threads and --context above {keys.SPLIT}")
    return side_by_side(found)


def device_entries(request: Request) -> list[Entry]:
    """The same on a GPU."""
    scope = request.scope
    if request.tiers or request.threads:
        raise UsageError(f"{'--tier' if request.tiers else '-t'} is of the processor; leave it out, or use --device cpu")
    wanted, missing = choose(request.names, kernel_names()), _core.device_missing()
    found = [Entry(case, "", 1, (scope.device,) * len(case.slots), scope.device) for family in FAMILIES for case in family.cases(scope)
             if case.kernel in wanted and not any(slot in missing for slot in case.slots)]
    if not found:
        raise UsageError(f"{', '.join(sorted(wanted))}: nothing of it runs on a GPU: weights are made into codes on the processor, "
                         f"and attention_merge needs --context above {keys.SPLIT}")
    return side_by_side(found)


def side_by_side(found: Sequence[Entry]) -> list[Entry]:
    first: dict[Hashable, int] = {}
    for place, entry in enumerate(found):
        first.setdefault(entry.group, place)
    return sorted(found, key=lambda entry: first[entry.group])


class keeping_the_core:
    """The tier and the threads of before, afterwards."""

    def __enter__(self) -> None:
        self._tier, self._threads = _core.current_tier(), _core.get_threads()

    def __exit__(self, *_: object) -> None:
        _core.use_tier(self._tier)
        _core.set_threads(self._threads)


def batches(found: Sequence[Entry], available: int, read: Callable[[Sequence[Entry]], int] = Gauge.reads) -> list[list[Entry]]:
    """Entries whose memory fits together, beside what measuring the limit of some reads. Raises ResourceError where what belongs
    together does not."""
    made: list[list[Entry]] = []
    most, held = min(BATCH_BYTES, available // 2), math.inf
    for _, group in groupby(found, lambda entry: entry.group):
        together = list(group)
        shared = together[0].case.shared
        needed = (shared[1] if shared else 0) + sum(entry.case.memory for entry in together)
        largest = read(together)
        if needed + largest > available:
            entry = together[-1]
            raise ResourceError(f"{entry.case.kernel} {entry.case.case}: needs {(needed + largest) / 2**30:.1f} GiB, "
                                f"{available / 2**30:.1f} GiB are free; take a smaller --shape, fewer --rows or a shorter --context")
        if held + needed + largest > most:
            made.append([])
            held = 0
        made[-1] += together
        held += needed
    return made


def measure(results: Results, request: Request, tell: Optional[Tell] = None) -> None:
    """Fills results: a row a case, tier and number of threads. Raises UsageError for what is unknown, ResourceError, before
    anything is made, where memory is short."""
    found = entries(request)
    device, free = request.scope.device, free_memory(request.scope.device)
    # Beyond any cache of a GPU, as weights are.
    size = max(device_limits.LEAST, min(request.scope.rotation, free // device_limits.FREE_SHARE))
    made = batches(found, free) if device == "cpu" else batches(found, free, lambda _: size)
    note_load(results)
    device_limits.note(results, device)
    results.notes += notes(request)
    total, done = len(found) * (1 + request.repetitions), 0

    def step(entry: Entry) -> None:
        nonlocal done
        done += 1
        if tell:
            tell(f"{entry.case.kernel} {entry.case.case}", min(done, total), total)

    try:
        with keeping_the_core(), using(device):
            gauge = None if device == "cpu" else DeviceGauge(device, size)
            for batch in made:
                measure_batch(batch, request, request.seconds * len(batch) / len(found), results, step, gauge)
    finally:  # Ctrl-C too
        judge(results, request.ci)


def measure_batch(batch: Sequence[Entry], request: Request, seconds: float, results: Results,
                  step: Callable[[Entry], None], gauge: Optional[Gauge] = None) -> None:
    """seconds: for rounds after `repetitions`."""
    gauge = gauge or Gauge(batch)
    store = Store(np.random.default_rng(), request.scope.device)
    try:
        for entry in batch:
            step(entry)
            results.rows.append(entry.row)
            prepare(entry, store, gauge)
        for entry in rounds([entry for entry in batch if entry.recording], request, seconds):
            step(entry)
            sample(entry, gauge)
    finally:
        for entry in batch:
            entry.recording = None  # and with it what it reads
            if entry.row.samples:
                entry.row.facts["seconds"] = entry.amount / entry.row.estimate.median
            elif not entry.row.failure:
                entry.row.failure = "not measured: interrupted before"


def notes(request: Request) -> list[str]:
    made = [f"weights, keys and values are read in turn from copies of {request.scope.rotation >> 20} MiB together; everything "
            "else lies where the call before left it"]
    if request.scope.device != "cpu":
        made.append("limits are of the GPU's memory and of all its multiprocessors: a kernel of few bytes takes as long as starting one, "
                    "and one whose bytes lie in a cache may be above")
    if len(request.tiers) > 1 or "all" in request.tiers:
        made.append("a kernel that several tiers share is measured under the first of them")
    return made


def prepare(entry: Entry, store: Store, gauge: Gauge) -> None:
    """Finds what bounds the case, makes inputs, and finds how often a sample repeats the call."""
    case, row = entry.case, entry.row
    entry.enter()
    row.facts = {"bytes": case.nbytes, "operations": case.operations, "working_set": case.touched}
    once = limit_of(entry, gauge)
    if once <= SLOW:
        call = case.make(store)
        record(entry, call, 1)
        entry.seconds()  # memory is touched the first time
        once = entry.seconds()
    if once > SLOW:
        row.failure = f"not measured: a call takes {once:.1f} s on {entry.device if entry.tier == '' else f'tier {entry.tier}'}; take fewer --rows"
        entry.recording = None
        return
    if entry.recording.plan.phases == 0:  # too small for more than one thread
        entry.running = 1
        limit_of(entry, gauge)
    row.facts["bound"] = row.limit.of
    if entry.device == "cpu":
        row.facts["running_threads"] = entry.running
    calls = calls_for(entry, once)
    if calls > 1:
        record(entry, call, calls)
        entry.seconds()
    if entry.device != "cpu":  # a call alone is mostly what starting it and waiting for it take
        once = entry.seconds()
        if (more := calls_for(entry, once)) > calls:
            calls = more
            record(entry, call, calls)
            entry.seconds()
    entry.replays = max(1, math.ceil(SAMPLE / (calls * once)))


def calls_for(entry: Entry, once: float) -> int:
    """In a replay, of a call that takes so many seconds. What computes more than it reads need not go through all copies."""
    copies, least = entry.case.copies, REPLAY if entry.device == "cpu" else DEVICE_REPLAY
    calls = copies if entry.row.limit.of == "read" else min(copies, math.ceil(SAMPLE / once))
    if calls * once < least:
        calls *= min(math.ceil(least / (calls * once)), max(1, CALLS_MOST // calls))
    return calls


def limit_of(entry: Entry, gauge: Gauge) -> float:
    """Seconds that what bounds the case lets a call take at the least: the roofline (work.py has its source)."""
    case = entry.case
    floors = {"read": case.nbytes / gauge.value("read", entry)}
    if case.operations:
        floors[case.kind] = case.operations / gauge.value(case.kind, entry)
    bound = max(floors, key=lambda of: floors[of])
    entry.row.limit = Limit(bound, "B/s" if bound == "read" else "op/s")
    return floors[bound]


def record(entry: Entry, call: Callable[[int], Any], calls: int) -> None:
    entry.recording = Recording(call, entry.case.copies, calls)
    made = entry.recording.plan.steps
    steps = made // calls
    each = steps if entry.device == "cpu" else min(steps, len(entry.case.slots))  # there every expert's product is a kernel
    if made != steps * calls or not 0 <= len(entry.case.slots) - each <= 1:
        raise RuntimeError(f"{entry.case.id}: {made} kernels in {calls} calls of {entry.case.slots}")
    entry.row.facts |= {"kernels": list(entry.case.slots[:each]), "served_by": list(entry.served_by[:each])}


def rounds(batch: Sequence[Entry], request: Request, seconds: float) -> Iterator[Entry]:
    """Each entry once a round: `repetitions` rounds, then more for those with a wide interval, for so many seconds."""
    for _ in range(request.repetitions):
        yield from batch
    deadline = time.monotonic() + seconds
    while wide := [entry for entry in batch if entry.row.estimate.width > request.ci]:
        for entry in wide:
            if time.monotonic() >= deadline:
                return
            yield entry


def sample(entry: Entry, gauge: Gauge) -> None:
    entry.enter()
    row = entry.row
    with Watch() as watch:
        limit = gauge.value(row.limit.of, entry)
        if entry.replays > 1:
            entry.recording.plan.replay()  # the limit's loop has had the caches
        seconds = entry.seconds()
    row.samples.append(entry.amount / seconds)
    row.limit.samples.append(limit)
    row.shares.append(entry.bounded / limit / seconds)
    row.others.append(watch.others)
