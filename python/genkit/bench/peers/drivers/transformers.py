"""PyTorch through transformers, in the checkpoint's own type: a forward pass a token, without generate()'s overhead."""

import inspect
import time


class Driver:
    def __init__(self) -> None:
        import torch
        import transformers

        self.torch, self.transformers = torch, transformers
        self.model = None
        self.filled = {}  # prompts -> their cache and first tokens

    def about(self) -> dict:
        torch, transformers = self.torch.__version__.split("+")[0], self.transformers.__version__
        return {"version": f"torch {torch}, transformers {transformers}", "settings": "eager, sdpa attention"}

    def load(self, path: str, threads: int, context: int) -> dict:
        self.torch.set_num_threads(threads)
        self.torch.set_grad_enabled(False)
        start = time.perf_counter()
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True,
                                                                            attn_implementation="sdpa")
        self.model.eval()
        seconds = time.perf_counter() - start
        # Its argument and its output of keys and values have had two names.
        self.cache_name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        return {"seconds": seconds}

    def check(self, prompts: list, out: str) -> None:
        """Logits after each prompt into `out`, float32."""
        with self.torch.inference_mode():
            logits = self.model(input_ids=self.torch.tensor(prompts), logits_to_keep=1).logits[:, -1]
        logits.float().numpy().tofile(out)

    def _forward(self, ids, cache=None) -> tuple:
        """The cache and the likeliest tokens after ids [sequences, n]."""
        with self.torch.inference_mode():
            more = {} if cache is None else {self.cache_name: cache}
            out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **more)
            return out[self.cache_name], out.logits[:, -1:].argmax(-1)

    def _after(self, prompts: list) -> tuple:
        """A long prompt is paid once a run: what was written after it is dropped again, by `_drop`."""
        key = tuple(map(tuple, prompts))
        if key not in self.filled:
            self.filled[key] = self._forward(self.torch.tensor(prompts))
        return self.filled[key]

    def _drop(self, cache, tokens: int) -> None:
        with self.torch.inference_mode():
            cache.crop(-tokens)

    def prefill(self, before: list, ids: list) -> float:
        cache = self._after([before])[0] if before else None
        start = time.perf_counter()
        self._forward(self.torch.tensor([ids]), cache)
        seconds = time.perf_counter() - start
        if before:
            self._drop(cache, len(ids))
        return seconds

    def decode(self, prompts: list, tokens: int) -> float:
        cache, next_ids = self._after(prompts)
        start = time.perf_counter()
        for _ in range(tokens):
            cache, next_ids = self._forward(next_ids, cache)
        seconds = time.perf_counter() - start
        self._drop(cache, tokens)
        return seconds
