"""Any genkit of the past, through what its public interface has had all along."""

import os
import sys


class Driver:
    def __init__(self, folder: str = "") -> None:
        """folder: where to import it from instead of where this interpreter has it."""
        if folder:
            # An editable install answers before the path is looked at.
            sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
            sys.path.insert(0, folder)
        import genkit

        self.genkit = genkit
        self.model = None
        if folder and not os.path.realpath(genkit.__file__).startswith(os.path.realpath(folder) + os.sep):
            raise ImportError(f"genkit came from {genkit.__file__}, not from {folder}")

    def about(self) -> dict:
        return {"version": self.genkit.__version__, "where": os.path.dirname(os.path.realpath(self.genkit.__file__))}

    def load(self, path: str, options: dict) -> dict:
        self.model = None
        self.model = self.genkit.load(path, **options)
        return {"context": self.model.context, "type": self.model.quantize, "threads": self.model.threads,
                "device": self.model.device, "tier": self.model.tier}

    def prefill(self, tokens: int) -> float:
        """Seconds of a prompt."""
        return self._generate(tokens, 1).prefill_s

    def decode(self, tokens: int) -> float:
        """Seconds of so many tokens after the first."""
        timings = self._generate(1, tokens + 1)
        if timings.tokens != tokens + 1:
            raise RuntimeError(f"asked for {tokens + 1} tokens, got {timings.tokens}")
        return timings.decode_s

    def _generate(self, prompt: int, tokens: int):
        # Ids that every vocabulary has, and that do not repeat soon.
        ids = [5 + 7919 * place % 211 for place in range(prompt)]
        return self.model.generate(ids, max_tokens=tokens, temperature=0, ignore_eos=True).timings
