"""genkit, timed as `genkit bench` times it."""

import numpy as np

import genkit
from genkit import _core
from genkit.batch import PREFILL_CHUNK
from genkit.bench.passes import Passes


class Driver:
    def __init__(self, quantize: str) -> None:
        self.quantize = quantize
        self.model = None
        self.passes = {}  # tokens before, sequences -> the passes over them, and the most tokens of one

    def about(self) -> dict:
        return {"version": f"genkit {genkit.__version__}", "settings": f"tier {_core.current_tier()}"}

    def load(self, path: str, threads: int, context: int) -> dict:
        self.model = genkit.load(path, device="cpu", threads=threads, quantize=self.quantize)
        return {"seconds": self.model.load_s}

    def check(self, prompts: list, out: str) -> None:
        """Logits after each prompt into `out`, float32."""
        with open(out, "wb") as file:
            for ids in prompts:
                file.write(np.ascontiguousarray(self.model.logits(ids)[-1]).tobytes())

    def cost(self, kind: str, sequences: int, before: int, tokens: int) -> dict:
        """What a test takes at the least: bytes to read, operations by kind of arithmetic; walked: bytes a step reads, whose
        number decides from which memory they come."""
        work, config = self._passes(before, sequences, tokens).work, self.model.config
        if kind == "prefill":
            cost, steps = work.prompt(1, before, tokens), -(-tokens // PREFILL_CHUNK)
        else:
            cost, steps = work.decode(sequences, before, tokens, not config.varies(before + tokens)), tokens
        return {"nbytes": cost.nbytes, "operations": dict(cost.operations), "walked": cost.nbytes / steps,
                "facts": {"bytes_per_token": cost.nbytes / tokens / sequences, "weight_bytes": work.weight_bytes,
                          "operations_per_token": sum(cost.operations.values()) / tokens / sequences,
                          "tier": _core.current_tier()}}

    def _passes(self, before: int, sequences: int, tokens: int) -> Passes:
        key = before, sequences
        if key not in self.passes or self.passes[key][1] < tokens:
            made = Passes(self.model, [before], sequences, tokens)
            made.fill(sequences, lambda done, total: None)
            self.passes[key] = made, tokens
        return self.passes[key][0]

    def prefill(self, before: list, ids: list) -> float:
        return self._passes(len(before), 1, len(ids)).prompt(1, len(before), len(ids))

    def decode(self, prompts: list, tokens: int) -> float:
        return self._passes(len(prompts[0]), len(prompts), tokens).decode(len(prompts), len(prompts[0]), tokens)
