"""CTranslate2's Generator in int8. It takes tokens as text: ids go through the vocabulary that its converter wrote."""

import json
import os
import time

import ctranslate2
import numpy as np


class Driver:
    def __init__(self) -> None:
        self.generator = None
        self.kept = None  # the static prompt it holds the state after

    def about(self) -> dict:
        return {"version": f"ctranslate2 {ctranslate2.__version__}", "settings": "compute type int8, one worker"}

    def write(self, source: str, out: str, threads: int) -> None:
        """source: the Hugging Face folder."""
        converter = ctranslate2.converters.TransformersConverter(source, load_as_float16=False, low_cpu_mem_usage=True)
        converter.convert(out, quantization="int8", force=True)
        # A model without a token to begin with gets a null for it, which the loader refuses. A benchmark never asks for it.
        path = os.path.join(out, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        with open(path, "w", encoding="utf-8") as file:
            json.dump({key: config.get("eos_token") or "" if value is None else value for key, value in config.items()}, file)

    def load(self, path: str, threads: int, context: int) -> dict:
        start = time.perf_counter()
        self.generator = ctranslate2.Generator(path, device="cpu", compute_type="int8", inter_threads=1,
                                               intra_threads=threads)
        seconds = time.perf_counter() - start
        with open(os.path.join(path, "vocabulary.json"), encoding="utf-8") as file:
            self.words = json.load(file)
        return {"seconds": seconds}

    def check(self, prompts: list, out: str) -> None:
        """Logits after each prompt into `out`, float32."""
        with open(out, "wb") as file:
            for ids in prompts:
                logits = np.array(self.generator.forward_batch([ids]))
                file.write(np.ascontiguousarray(logits[0, -1], np.float32).tobytes())

    def _generate(self, prompts: list, tokens: int, before: list = ()) -> tuple:
        """Seconds to the first new token, and from it to the last."""
        times = []

        def step(result) -> bool:
            times.append((result.step, time.perf_counter()))
            return False

        start = time.perf_counter()
        results = self.generator.generate_batch(
            [[self.words[i] for i in ids] for ids in prompts], max_batch_size=len(prompts), max_length=tokens,
            min_length=tokens, sampling_topk=1, include_prompt_in_result=False, callback=step,
            static_prompt=[self.words[i] for i in before] or None, cache_static_prompt=True)
        got = [len(result.sequences_ids[0]) for result in results]
        if got != [tokens] * len(prompts):
            raise RuntimeError(f"asked for {tokens} tokens, got {got}")
        first = next(at for step, at in times if step == times[0][0])
        return first - start, times[-1][1] - first

    def prefill(self, before: list, ids: list) -> float:
        if before and self.kept != before:
            self._generate([ids[:1]], 1, before)
            self.kept = before
        return self._generate([ids], 1, before)[0]

    def decode(self, prompts: list, tokens: int) -> float:
        return self._generate(prompts, tokens + 1)[1]
