"""What the machine can do at this moment: loops of the core that do nothing else."""

# Of memory: beyond any cache, and small enough to walk a few times in a second.
READ_BYTES = 1 << 30

# What a model's weights are multiplied in: f32 for lack of anything faster, int8 where they are rounded.
KINDS = ("f32", "bf16", "int8")


def read_bandwidth(bytes: int, threads: int) -> float:
    """Bytes a second that `threads` threads read together of a block of so many bytes, a megabyte at least."""
    from genkit import _core

    return _core.read_bandwidth(max(1 << 20, bytes), threads)


def arithmetic_peak(kind: str, threads: int) -> float:
    """Operations a second (a multiplication and an addition are two) of one of KINDS, operands in registers."""
    from genkit import _core

    return _core.arithmetic_peak(kind, threads)
