"""PyTorch through transformers, in the checkpoint's own type: a forward pass a token, without generate()'s overhead."""

import inspect
import time


class Driver:
    def __init__(self) -> None:
        import torch
        import transformers

        self.torch, self.transformers = torch, transformers
        self.model = None
        self.filled = {}  # prompt -> its cache and first token

    def about(self) -> dict:
        torch, transformers = self.torch.__version__.split("+")[0], self.transformers.__version__
        return {"version": f"torch {torch}, transformers {transformers}", "notes": "eager, sdpa attention"}

    def load(self, path: str, threads: int, context: int) -> dict:
        self.torch.set_num_threads(threads)
        self.torch.set_grad_enabled(False)
        start = time.perf_counter()
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True)
        self.model.eval()
        seconds = time.perf_counter() - start
        # Its argument and its output of keys and values have had two names.
        self.cache_name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        return {"seconds": seconds}

    def _fill(self, prompts: list) -> tuple:
        with self.torch.inference_mode():
            out = self.model(input_ids=self.torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            return out[self.cache_name], out.logits[:, -1:].argmax(-1)

    def _steps(self, cache, next_ids, tokens: int) -> float:
        with self.torch.inference_mode():
            start = time.perf_counter()
            for _ in range(tokens):
                out = self.model(input_ids=next_ids, use_cache=True, **{self.cache_name: cache})
                next_ids = out.logits[:, -1:].argmax(-1)
            return time.perf_counter() - start

    def prefill(self, ids: list) -> float:
        start = time.perf_counter()
        self._fill([ids])
        return time.perf_counter() - start

    def decode(self, ids: list, tokens: int) -> float:
        # A long prompt is paid once a run: what was written after it is dropped again.
        key = tuple(ids)
        if key not in self.filled:
            self.filled[key] = self._fill([ids])
        cache, first = self.filled[key]
        seconds = self._steps(cache, first, tokens)
        with self.torch.inference_mode():
            cache.crop(-tokens)
        return seconds

    def batch(self, prompts: list, tokens: int) -> float:
        return self._steps(*self._fill(prompts), tokens)
