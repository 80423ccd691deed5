"""The machine's limits as if they were an engine, so that they are measured in turn with the others."""

from genkit.bench import limits


class Driver:
    def read(self, nbytes: int, threads: int) -> float:
        return limits.read_bandwidth(nbytes, threads)

    def peak(self, kind: str, threads: int) -> float:
        return limits.arithmetic_peak(kind, threads)
