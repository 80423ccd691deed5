"""The machine's limits as if they were an engine, so that they are measured in turn with the others."""

from genkit.bench import limits


class Driver:
    def __init__(self) -> None:
        self.memory = None  # the largest block so far: to make one takes longer than to read it
        self.size = 0

    def read(self, nbytes: int, threads: int) -> float:
        nbytes = min(nbytes, limits.READ_BYTES)
        if nbytes > self.size:
            self.memory, self.size = limits.readable_memory(nbytes, threads), nbytes
        return limits.read_bandwidth(nbytes, threads, self.memory)

    def peak(self, kind: str, threads: int) -> float:
        return limits.arithmetic_peak(kind, threads)
