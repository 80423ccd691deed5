"""What a GPU can do at this moment, by loops of the plugin that do nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from genkit.bench.limits import KINDS, Case, readable_memory
from genkit.bench.results import Results, Row
from genkit.devices import free_memory, using
from genkit.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from genkit._core import Tensor
    from genkit.bench.limits import Plan, Tell

# Bytes, well beyond the second-level cache of any (50 MB of an H100, 126 MB of a B200). The largest that are more than a
# quarter of free memory are left out.
WORKING_SETS = (256 << 20, 1 << 30, 4 << 30)
FREE_SHARE = 4
LEAST = 4096


def cases(device: str, plan: "Plan", results: Results, tell: "Tell") -> list[Case]:
    """Rows of the device and what measures them: {"what": "read" or "copy", "bytes", "device"} in B/s, {"what": "arithmetic",
    "kind", "device"} in op/s. Raises UsageError, or ResourceError where a working set and its copy do not fit."""
    if plan.tiers or plan.threads:
        raise UsageError(f"{'--tier' if plan.tiers else '-t'} is of the processor; leave it out, or use --device cpu")
    free = free_memory(device)
    sizes = plan.working_sets or tuple(size for size in WORKING_SETS if size <= free // FREE_SHARE) or (max(LEAST, free // FREE_SHARE // LEAST * LEAST),)
    for size in sizes:
        if size < LEAST:
            raise UsageError(f"a working set of {size} bytes is too small for a GPU: {LEAST} or more")
        if 2 * size > free:
            raise ResourceError(f"a working set of {size / 2**30:.2f} GiB and its copy do not fit: {free / 2**30:.2f} GiB are free on {device}")
    results.settings = plan.as_dict() | {"working_sets": list(sizes), "device": device}
    note(results, device)
    source = memory(device, max(sizes), tell)
    target = on(device, source.zeros, [max(sizes)], "u8")
    found = []
    for size in sizes:
        found.append(Case([Row({"what": "read", "bytes": size, "device": device}, "B/s")],
                          lambda size=size: (on(device, read, source, size),)))
        found.append(Case([Row({"what": "copy", "bytes": size, "device": device}, "B/s")],
                          lambda size=size: (on(device, copy, source, target, size),)))
    return found + [Case([Row({"what": "arithmetic", "kind": kind, "device": device}, "op/s")], lambda kind=kind: (on(device, peak, kind),))
                    for kind in KINDS]


def note(results: Results, device: str) -> None:
    """What the GPU is; nothing of the processor."""
    from genkit import _core

    if device == "cpu":
        return
    facts = _core.device_facts()
    results.machine["cuda"] = {name: facts[name] for name in ("name", "capability", "processors", "memory", "available", "driver",
                                                              "targets")}


def memory(device: str, size: int, tell: "Tell | None" = None) -> "Tensor":
    """Numbers on the device, none of them zero, to be read."""
    from genkit.engine import choose_threads

    with using("cpu"):
        near = readable_memory(size, choose_threads(None), tell)
    with using(device):
        return near.to(device)


def read(source: "Tensor", size: int) -> float:
    from genkit import _core

    return _core.device_read_bandwidth(source.rows(0, size))


def copy(source: "Tensor", target: "Tensor", size: int) -> float:
    from genkit import _core

    return _core.device_copy_bandwidth(source.rows(0, size), target.rows(0, size))


def peak(kind: str) -> float:
    from genkit import _core

    return _core.device_arithmetic_peak(kind)


def on(device: str, measured: Callable[..., float], *of: Any) -> float:
    with using(device):
        return measured(*of)
