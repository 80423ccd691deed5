"""Whole models with random weights: python -m gpu.models PLUGIN SHAPE WEIGHTS SCALE [prompts]. Lines of JSON, tokens a second of
decoding at several batches and contexts and of prompts; what sampling adds to a token; with "prompts" a prompt by kernels of our own. One layer's weights are made on the processor and sent
for each layer anew, so that every layer reads memory of its own."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
from gpu.measure import numbers
from gpu.problems import floats, ints

from genkit import _core, models
from genkit.batch import prefill
from genkit.bench.shapes import SHAPES
from genkit.bench.synthetic import random_checkpoint
from genkit.checkpoints.config import Fields
from genkit.decoding.sampling import Sampler, SamplingSettings
from genkit.devices import free_memory, place, using
from genkit.kv_cache import PAGE_KEYS, KVCache, Sequence, page_bytes, pages_for
from genkit.plan import Decoder
from genkit.quant.formats import BY_NAME

NAMES = {"1B": "llama-3.2-1b", "8B": "llama-3.1-8b"}
TINY = dict(SHAPES["smollm2-135m"], hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=300)
WEIGHTS = ("bf16", "int8", "int4")

# (batch, context) in the order of what matters most, should time run out; and tokens of prompts.
DECODES = [(1, 128), (64, 1024), (1, 4096), (8, 128), (64, 128), (1, 32768), (8, 4096), (64, 4096), (8, 32768), (64, 32768)]
PROMPTS = [2048, 128, 512, 8192]
SPARE = 1 << 30  # bytes of the device that are left alone
TOKENS = 32  # of a measurement

# Tokens a second to reach on an H200: issue 7's numbers, decoding at batch 1 and context 128, the others as their keys say.
GOALS = {("1B", "bf16", "1 x 128"): 1275, ("1B", "int8", "1 x 128"): 2080, ("1B", "int4", "1 x 128"): 2790,
         ("8B", "bf16", "1 x 128"): 245, ("8B", "int8", "1 x 128"): 448, ("8B", "int4", "1 x 128"): 735,
         ("8B", "bf16", "64 x 1024"): 8000, ("8B", "int4", "64 x 1024"): 13000, ("8B", "bf16", "prompt 2048"): 35000,
         ("8B", "bf16", "prompt 2048 without cuBLASLt"): 25000}
SAMPLING_GOAL = 15  # microseconds a token that sampling adds, at most


def build(shape: str, weights: str, full: bool) -> Any:
    """The model on the device in use, its blocks each with memory of its own."""
    fields = TINY if not full else SHAPES[NAMES[shape]]
    layers = fields["num_hidden_layers"]
    described = Fields(Path(shape), dict(fields, num_hidden_layers=1))
    format = None if weights == "bf16" else BY_NAME[weights].core()
    with using("cpu"):
        model = models.load_model(described, random_checkpoint(described, "bf16"), format)
    block = model.blocks[0]
    model.blocks = []
    model.config = dataclasses.replace(model.config, layers=layers)
    model = place(model, "cuda")
    model.blocks = [place(block, "cuda") for _ in range(layers)]
    return model


def filled(model: Any, batch: int, context: int, room: int) -> tuple[KVCache, list[Sequence]]:
    """A cache in bf16 of so many sequences with random keys and values, and pages for `room` more tokens of each."""
    c = model.config
    count = batch * pages_for(context + room)
    cache = KVCache(c.layers, c.kv_heads, c.head_dim, count, "bf16")
    width, rng = c.kv_heads * c.head_dim, np.random.default_rng(context)
    most = min(8192, count * PAGE_KEYS)
    x, zeros, table = floats(numbers(rng, most, 2 * width)), ints(np.zeros(most)), ints(np.arange(count)[None])
    for begin in range(0, count * PAGE_KEYS, most):
        n = min(most, count * PAGE_KEYS - begin)
        at, rows = ints(np.arange(begin, begin + n)), x.rows(0, n)
        sequences = zeros if n == most else ints(np.zeros(n))
        for layer in cache.layers:
            _core.kv_write(rows.columns(0, width), rows.columns(width, 2 * width), layer.k, layer.v, table, sequences, at)
    sequences = [Sequence() for _ in range(batch)]
    for sequence in sequences:
        cache.extend(sequence, context)
    return cache, sequences


def bytes_needed(model: Any, batch: int, context: int) -> int:
    c = model.config
    return (batch * pages_for(context + 4 * TOKENS) + 1) * page_bytes(c.layers, c.kv_heads, c.head_dim, "bf16")


def decode_seconds(model: Any, batch: int, context: int, settings: SamplingSettings, tokens: int) -> float:
    """Of a token of each of `batch` sequences; the median of three stretches, after one that records."""
    cache, sequences = filled(model, batch, context, 4 * tokens)
    sampler = Sampler(settings, model.config.vocab_size)
    decoder = Decoder(model, cache, context + 4 * tokens, sampler)
    last, times = [1] * batch, []
    for _ in range(4):
        done, start = 0, time.perf_counter()
        while done < tokens:
            drawn = decoder.draw(list(zip(sequences, last)), tokens - done, 3600.0, ())
            if not drawn[0]:
                raise RuntimeError("a step gave logits that are not finite")
            done, last = done + len(drawn[0]), [one[-1] for one in drawn]
        times.append((time.perf_counter() - start) / tokens)
    return sorted(times[1:])[1]


def prompt_seconds(model: Any, tokens: int, tries: int = 3) -> float:
    c, times = model.config, []
    cache = KVCache(c.layers, c.kv_heads, c.head_dim, pages_for(tokens), "bf16")
    ids = np.random.default_rng(tokens).integers(0, c.vocab_size, tokens).tolist()
    for _ in range(1 + tries):
        sequence, start = Sequence(), time.perf_counter()
        logits = prefill(model, cache, sequence, ids, lambda: False)
        if not np.isfinite(logits.numpy()).all():
            raise RuntimeError("the prompt gave logits that are not finite")
        times.append(time.perf_counter() - start)
        cache.release(sequence)
    return sorted(times[1:])[tries // 2]


def run(plugin: str, shape: str, weights: str, scale: str, part: str = "") -> Iterator[dict[str, Any]]:
    if trouble := _core.open_device(plugin):
        yield {"what": "device", "wrong": trouble}
        return
    if shape not in NAMES or weights not in WEIGHTS or scale not in ("tiny", "full"):
        raise SystemExit(f"{shape} {weights} {scale}: expected one of {', '.join(NAMES)}, of {', '.join(WEIGHTS)}, and tiny or full")
    full = scale == "full"
    decodes, prompts, tokens = (DECODES, PROMPTS, TOKENS) if full else ([(1, 8), (5, 70), (1, 1 << 24)], [20], 2)
    with using("cuda"):
        model = build(shape, weights, full)

        def row(what: str, measure: Any, need: int) -> dict[str, Any]:
            made: dict[str, Any] = {"model": shape, "weights": weights, "what": f"{shape} {what}"}
            goal: Optional[int] = GOALS.get((shape, weights, what))
            if goal:
                made["goal"] = goal
            if need + (SPARE if full else 0) > free_memory("cuda"):
                return made | {"reason": "no room"}
            try:
                return made | {"value": measure()}
            except Exception as error:
                return made | {"reason": "wrong", "wrong": f"{type(error).__name__}: {error}"}

        if part == "prompts":
            yield row(f"prompt {prompts[0]} without cuBLASLt", lambda: prompts[0] / prompt_seconds(model, prompts[0]), bytes_needed(model, 1, prompts[0]))
            return
        greedy = SamplingSettings()
        for number in range(max(len(decodes), len(prompts))):
            if number < len(decodes):
                batch, context = decodes[number]
                yield row(f"{batch} x {context}", lambda: batch / decode_seconds(model, batch, context, greedy, tokens),
                          bytes_needed(model, batch, context))
            if number < len(prompts):
                length = prompts[number]
                yield row(f"prompt {length}", lambda: length / prompt_seconds(model, length), bytes_needed(model, 1, length))
            if number == 0:
                drawn = SamplingSettings(temperature=0.8, top_p=0.95, top_k=50, seed=1)
                found = row("sampling, us a token", lambda: 1e6 * (decode_seconds(model, *decodes[0], drawn, tokens)
                                                                    - decode_seconds(model, *decodes[0], greedy, tokens)), 0)
                yield found | {"goal": SAMPLING_GOAL}


if __name__ == "__main__":
    for line in run(*sys.argv[1:6]):
        print(json.dumps(line), flush=True)
