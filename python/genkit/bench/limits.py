"""What the machine can do at this moment, by loops of the core that do nothing else: read, multiply and add, meet.

`measure` is `genkit bench limits`; the functions below it give single figures.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from genkit.bench.noise import Watch, judge, note_load
from genkit.bench.results import Results, Row
from genkit.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from genkit._core import Tensor

Tell = Callable[[str, int, int], None]

# Of memory: beyond any cache, and small enough to walk a few times in a second.
READ_BYTES = 1 << 30

# What a model's weights are multiplied in: f32 for lack of anything faster, int8 where they are rounded.
KINDS = ("f32", "bf16", "int8")

# Bytes: through the caches in steps that show where each ends, and well beyond the last. The largest that are more than a
# quarter of free memory are left out.
WORKING_SETS = tuple(size << 10 for size in (32, 128, 512)) + tuple(size << 20 for size in (1, 2, 4, 8, 32, 128, 256, 512)) + (
    1 << 30, 2 << 30, 4 << 30)
FREE_SHARE = 4
FILL_BYTES = 64 << 20  # at once: memory the system has to find first takes its time


@dataclass(frozen=True)
class Plan:
    """What to measure. threads: none for all this process may use, and one. tiers: none for every loop of every tier once;
    named ones with all that each runs. working_sets: bytes. rounds: samples of each row at least; more are taken for at most
    `seconds` where the interval of a median is wider than `ci`."""

    threads: tuple[int, ...] = ()
    tiers: tuple[str, ...] = ()
    working_sets: tuple[int, ...] = ()
    device: str = "auto"
    rounds: int = 5
    ci: float = 0.05
    seconds: float = 60.0

    def as_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass
class Case:
    """Rows that one call measures."""

    rows: list[Row]
    call: Callable[[], tuple[float, ...]]

    def sample(self) -> None:
        with Watch() as watch:
            values = self.call()
        for row, value in zip(self.rows, values):
            row.samples.append(value)
            row.others.append(watch.others)

    def is_wide(self, ci: float) -> bool:
        return any(not row.estimate.width <= ci for row in self.rows)


def measure(results: Results, plan: Plan, tell: "Tell | None" = None) -> None:
    """Fills results with what the machine can do: {"what": "read", "bytes", "threads"} in B/s, {"what": "arithmetic", "kind",
    "tier", "threads"} in op/s, {"what": "barrier", "of": "fork-join" or "phase", "threads"} in seconds. tell(what, done,
    total). Memory is read by the tier in use; it and the number of threads are afterwards what they were.
    On a GPU: {"what": "read" or "copy", "bytes", "device"}, {"what": "arithmetic", "kind", "device"}.

    Raises UsageError, ResourceError or DeviceError before anything is measured.
    """
    from genkit import _core
    from genkit.bench import device_limits
    from genkit.devices import choose_measured
    from genkit.engine import choose_threads

    tell = tell or (lambda what, done, total: None)
    device = choose_measured(plan.device, bool(plan.tiers or plan.threads))
    if device != "cpu":
        cases = device_limits.cases(device, plan, results, tell)
        results.rows += [row for case in cases for row in case.rows]
        try:
            return run(cases, plan, tell)
        finally:
            judge(results, plan.ci)
    every = choose_threads(None)
    threads = [choose_threads(count) for count in plan.threads or dict.fromkeys((1, every))]
    if error := _core.isa_error():
        raise UsageError(error)
    plan = replace(plan, threads=tuple(threads), working_sets=working_sets(plan.working_sets, max(threads)))
    results.settings = plan.as_dict()
    arithmetic = arithmetic_cases(plan, results.notes)
    note_load(results)
    memory = readable_memory(max(plan.working_sets), every, tell)
    cases = read_cases(plan, memory) + arithmetic + barrier_cases(plan)
    results.rows += [row for case in cases for row in case.rows]
    try:
        run(cases, plan, tell)
    finally:
        judge(results, plan.ci)


def run(cases: list[Case], plan: Plan, tell: Tell) -> None:
    """Rounds over all cases, then over those whose medians are not known to plan.ci yet, until the time is out."""
    total = len(cases) * plan.rounds
    for number in range(total):
        case = cases[number % len(cases)]
        tell(name(case.rows[0]), number, total)
        case.sample()
    start = time.monotonic()
    while wide := [case for case in cases if case.is_wide(plan.ci)]:
        for case in wide:
            elapsed = time.monotonic() - start
            if elapsed >= plan.seconds:
                return
            tell(f"narrowing {len(wide)} of {len(cases)} rows", round(10 * elapsed), round(10 * plan.seconds))
            case.sample()


def name(row: Row) -> str:
    return " ".join(str(row.id[key]) for key in ("what", "kind", "tier") if key in row.id)


# ---- what is measured ----------------------------------------------------------------------------------------------


def working_sets(asked: tuple[int, ...], threads: int) -> tuple[int, ...]:
    """Those asked for, or WORKING_SETS as far as there is memory and a line of a cache for each thread."""
    from genkit import machine

    least, most = 64 * threads, machine.memory_available() // FREE_SHARE
    for size in asked:
        if size < least:
            raise UsageError(f"a working set of {size} bytes is too small for {threads} threads: {least} or more")
    return asked or tuple(size for size in WORKING_SETS if least <= size <= most) or (max(least, WORKING_SETS[0]),)


def read_cases(plan: Plan, memory: "Tensor") -> list[Case]:
    levels = cache_levels()
    cases = []
    for size in plan.working_sets:
        for threads in plan.threads:
            row = Row({"what": "read", "bytes": size, "threads": threads}, "B/s")
            row.facts = {"level": level_of(size, threads, levels), "bytes_per_thread": size // threads}
            cases.append(Case([row], lambda size=size, threads=threads: (read_bandwidth(size, threads, memory),)))
    return cases


def arithmetic_cases(plan: Plan, notes: list[str]) -> list[Case]:
    """A row for each kind that a tier has a loop of its own for, or for all that a named tier runs; facts say which tier's
    loop that is."""
    from genkit import _core

    known, before = _core.tiers(), _core.current_tier()
    for tier in plan.tiers:
        if tier not in known:
            raise UsageError(f"--tier {tier}: not one this machine can run; it can run: {', '.join(known)}")
    cases = []
    try:
        for tier in plan.tiers or known:
            _core.use_tier(tier)
            slots = _core.slots()
            for kind in KINDS:
                loop = slots[f"measure_{kind}"]
                if not _core.has_arithmetic(kind):
                    if plan.tiers:
                        notes.append(f"tier {tier} has no instructions for {kind}: it multiplies {kind} in f32")
                elif plan.tiers or loop == tier:
                    for threads in plan.threads:
                        row = Row({"what": "arithmetic", "kind": kind, "tier": tier, "threads": threads}, "op/s", facts={"loop": loop})
                        cases.append(Case([row], lambda kind=kind, tier=tier, threads=threads: peak_of(kind, tier, threads)))
    finally:
        _core.use_tier(before)
    return cases


def peak_of(kind: str, tier: str, threads: int) -> tuple[float]:
    from genkit import _core

    before = _core.current_tier()
    _core.use_tier(tier)
    try:
        return (arithmetic_peak(kind, threads),)
    finally:
        _core.use_tier(before)


def barrier_cases(plan: Plan) -> list[Case]:
    """Of one thread, what beginning and ending costs that waits for nobody."""
    return [Case([Row({"what": "barrier", "of": of, "threads": threads}, "s", "less") for of in ("fork-join", "phase")],
                 lambda threads=threads: barrier_cost(threads)) for threads in plan.threads]


def cache_levels(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> list[tuple[str, int, int]]:
    """(name, bytes, processors that share one) of the data caches, the smallest first; empty where the system does not say."""
    found = []
    for folder in sorted(root.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
            shared = _count((folder / "shared_cpu_list").read_text())
            if kind != "Instruction":
                found.append((f"L{int(level)}", int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0), shared))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda level: level[1])


def _count(processors: str) -> int:
    """"0-3,8" -> 5"""
    ends = [part.split("-") for part in processors.strip().split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def level_of(size: int, threads: int, levels: list[tuple[str, int, int]]) -> str:
    """The smallest cache that holds what its threads read, those that share one taken to sit together; "" if unknown."""
    for level, bytes, shared in levels:
        if min(threads, shared) * (size // threads) <= bytes:
            return level
    return "memory" if levels else ""


# ---- single figures ------------------------------------------------------------------------------------------------


def read_bandwidth(bytes: int, threads: int, memory: "Tensor | None" = None) -> float:
    """Bytes a second that `threads` threads read together of a block of so many bytes, each a share of its own over and
    over: a tenth of a second. memory: where, from `readable_memory`; without it some is made first, which takes longer than
    reading it. Raises ResourceError for more than is free, ValueError below 64 bytes a thread."""
    from genkit import _core

    if memory is None:
        memory = readable_memory(bytes, threads)
    return _core.read_bandwidth(bytes, threads, memory)


def readable_memory(bytes: int, threads: int, tell: "Tell | None" = None) -> "Tensor":
    """Memory for read_bandwidth, filled by so many threads. Raises ResourceError for more than is free."""
    from genkit import _core, machine

    free = machine.memory_available()
    if bytes > free:
        raise ResourceError(f"a working set of {bytes / 2**30:.2f} GiB does not fit: {free / 2**30:.2f} GiB are free")
    try:
        memory = _core.Tensor([bytes], "u8")
    except MemoryError:
        raise ResourceError(f"a working set of {bytes / 2**30:.2f} GiB: the system refuses the memory") from None
    for begin in range(0, bytes, FILL_BYTES):
        if tell:
            tell("filling memory", begin, bytes)
        _core.make_readable(memory.rows(begin, min(begin + FILL_BYTES, bytes)), threads)
    return memory


def arithmetic_peak(kind: str, threads: int) -> float:
    """Operations a second (a multiplication and an addition are two) of one of KINDS, operands in registers, as the tier in
    use does it; bf16 without instructions for it is f32 (_core.has_arithmetic)."""
    from genkit import _core

    return _core.arithmetic_peak(kind, threads)


def barrier_cost(threads: int) -> tuple[float, float]:
    """(seconds to begin and end a job together, seconds from one step of a replayed plan to the next), of `threads` threads
    with nothing else to do."""
    from genkit import _core

    return _core.barrier_cost(threads)
