"""Runs models on the processor and through the plugin of tests/cuda_plugin.cpp, whose device is a stand-in: a process of its
own, since a device is opened once and for good. Prints a line of JSON for each comparison: python cuda_engine.py PLUGIN."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from architectures import CASES
from models_run import random_checkpoint

import genkit
from genkit import machine

PROMPT = "def fibonacci(n):"
WAYS = {
    "greedy": dict(temperature=0), "beams": dict(beams=2, max_tokens=3), "logprobs": dict(temperature=0, logprobs=3, max_tokens=3),
    "top-p": dict(temperature=0.9, top_k=50, top_p=0.9, seed=3, repeat_penalty=1.2), "min-p": dict(temperature=1.1, min_p=0.05, seed=5),
    "penalties": dict(temperature=0, repeat_penalty=1.3, frequency_penalty=0.4, repeat_last_n=9),
}


def tell(what: str, **found: object) -> None:
    print(json.dumps({"what": what, **found}), flush=True)


def both(path: object, **options: object) -> "list[genkit.LoadedModel]":
    return [genkit.load(path, device=device, **options) for device in ("cpu", "cuda")]


def distance(ours: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(ours - want) / np.linalg.norm(want))


def wrong_with(line: dict) -> str:
    """What is wrong with a line of this program, or ""."""
    if line["what"] == "device":
        usable, words = line["state"]
        return "" if usable else words
    if "refused" in line:
        return ""
    if line["what"].startswith("logits"):  # keys and values in bf16 and int8 are rounded alike; some processors round scores too
        limit = 3e-2
    else:
        limit = 1e-1 if "int8" in line["what"] else 1e-4
    if not line.get("distance", 0.0) < limit:
        return f"logits {line['distance']:.1e} apart, at most {limit:.0e} allowed"
    # Activations near the middle between two codes round to either: with experts a row may even go to another one.
    return "" if limit == 1e-1 or line.get("same", True) else "other tokens"


def default_model() -> None:
    for quantize, kv_type in (("int4", "bf16"), ("int8", "int8"), ("int4", "f32")):
        cpu, cuda = both(genkit.DEFAULT_MODEL, quantize=quantize, kv_type=kv_type)
        ids = cpu.tokenizer.encode(PROMPT)
        tell(f"logits {quantize} {kv_type}", device=cuda.device, distance=distance(cuda.logits(ids), cpu.logits(ids)))
        for way, options in WAYS.items() if kv_type == "bf16" else ():
            options = {"max_tokens": 6} | options
            want, got = (model.generate(PROMPT, **options) for model in (cpu, cuda))
            tell(f"text {quantize} {way}", same=want.tokens == got.tokens)
    likeliest = [cpu.generate(PROMPT, temperature=0, max_tokens=1).tokens[0]]
    for _ in range(2):  # each banned token is the one that would have come
        banned = {token: float("-inf") for token in likeliest}
        want, got = (model.generate(PROMPT, temperature=0, logit_bias=banned, max_tokens=3).tokens for model in (cpu, cuda))
        tell(f"text without {len(banned)} tokens", same=want == got and got[0] not in banned)
        likeliest.append(want[0])
    prompts = [PROMPT, "import os\n", "class A", "x = 1\n", "for i in"]  # beside a row of padding
    alone = [cuda.generate(prompt, temperature=0.8, seed=2, max_tokens=5).tokens for prompt in prompts]
    together = [one.tokens for one in cuda.generate(prompts, temperature=0.8, seed=2, max_tokens=5)]
    tell("text of several prompts", same=alone == together)
    penalties = dict(temperature=0, repeat_penalty=1.3, presence_penalty=0.5, repeat_last_n=4, max_tokens=5)
    want, got = ([one.tokens for one in model.generate(prompts[:3], **penalties)] for model in (cpu, cuda))
    tell("text of several prompts with penalties", same=want == got)
    again = cuda.generate(PROMPT, temperature=0.8, seed=2, max_tokens=5).tokens
    tell("text again", same=again == alone[0])


def architectures() -> None:
    seen = set()
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            experts = any("expert" in key for key in case.sizes)
            if case.model_type in seen:
                continue
            seen.add(case.model_type)
            path = Path(folder) / name
            path.mkdir()
            random_checkpoint(case, path, seed=len(seen))
            ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79]
            for quantize in ("none", "int8") if experts else ("none",):
                try:
                    cpu, cuda = both(path, quantize=quantize)
                except genkit.errors.Error as error:  # quantizing while loading is not for every form of experts
                    tell(f"{name} {quantize}", refused=str(error))
                    continue
                tell(f"{name} {quantize}", distance=distance(cuda.logits(ids), cpu.logits(ids)),
                     same=cuda.generate(ids, temperature=0, max_tokens=2, ignore_eos=True).tokens
                     == cpu.generate(ids, temperature=0, max_tokens=2, ignore_eos=True).tokens)


if __name__ == "__main__":
    machine.CUDA_PLUGIN = sys.argv[1]
    tell("device", state=list(machine.cuda_state()), missing=genkit._core.device_missing())
    {"default": default_model, "architectures": architectures}[sys.argv[2]]()
