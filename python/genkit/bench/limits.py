"""What the machine can do at this moment: loops of the core that do nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genkit.errors import ResourceError

if TYPE_CHECKING:
    from genkit._core import Tensor

# Of memory: beyond any cache, and small enough to walk a few times in a second.
READ_BYTES = 1 << 30

# What a model's weights are multiplied in: f32 for lack of anything faster, int8 where they are rounded.
KINDS = ("f32", "bf16", "int8")


def read_bandwidth(bytes: int, threads: int, memory: "Tensor | None" = None) -> float:
    """Bytes a second that `threads` threads read together of a block of so many bytes, each a share of its own over and
    over: a tenth of a second. memory: where, from `readable_memory`; without it some is made first, which takes longer than
    reading it. Raises ResourceError for more than is free, ValueError below 64 bytes a thread."""
    from genkit import _core

    if memory is None:
        memory = readable_memory(bytes, threads)
    return _core.read_bandwidth(bytes, threads, memory)


def readable_memory(bytes: int, threads: int) -> "Tensor":
    """Memory for read_bandwidth. Raises ResourceError for more than is free."""
    from genkit import _core, machine

    free = machine.memory_available()
    if bytes > free:
        raise ResourceError(f"a working set of {bytes / 2**30:.2f} GiB does not fit: {free / 2**30:.2f} GiB are free")
    return _core.readable_memory(bytes, threads)


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
