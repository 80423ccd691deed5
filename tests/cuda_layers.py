"""What tests/test_cuda_layers.py asks of the engine over the plugin of tests/cuda_plugin.cpp, in a process of its own (a device
is opened once and for good). Prints a line of JSON for each finding: python cuda_layers.py PLUGIN PART. With "genkit" for PART
it is the command line, of the arguments that follow; "genkit proven" as if auto might take a GPU."""

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Callable

from architectures import CASES
from cuda_engine import PROMPT, WAYS, distance
from models_run import random_checkpoint

import genkit
from genkit import _core, cli, devices, engine, machine, split
from genkit.devices import stepping, using
from genkit.kv_cache import KVCache, page_bytes, pages_for


def tell(what: str, **found: object) -> None:
    print(json.dumps({"what": what, **found}), flush=True)


def scopes() -> None:
    seen = [_core.device_in_use()]
    with using("cuda"):
        with using("cpu"):
            seen.append(_core.device_in_use())
        seen.append(_core.device_in_use())
        with using("cuda"):
            pass
        seen.append(_core.device_in_use())
        try:
            with using("cpu"):
                raise KeyError
        except KeyError:
            seen.append(_core.device_in_use())
        items = stepping("cuda", (i for i in range(2)))
        next(items)
        items.close()
        seen.append(_core.device_in_use())
    tell("devices in use", seen=seen + [_core.device_in_use()])
    found = [genkit.load(genkit.DEFAULT_MODEL, device=device).generate(PROMPT, beams=2, max_tokens=3, logprobs=2)
             for device in ("cpu", "cuda")]
    tell("beams with logprobs", tokens=[one.tokens for one in found],
         ours=[entry["logprob"] for entry in found[1].logprobs], want=[entry["logprob"] for entry in found[0].logprobs])


def default_model() -> None:
    """Every split of the model that ships: the texts of the processor, however they are asked for."""
    cpu = genkit.load(genkit.DEFAULT_MODEL, device="cpu")
    layers, prompts = cpu.config.layers, [PROMPT, "import os\n", "class A"]
    want = {way: cpu.generate(PROMPT, **{"max_tokens": 5} | options).tokens for way, options in WAYS.items()}
    for count in (0, 1, 3, layers):
        split = genkit.load(genkit.DEFAULT_MODEL, device="cuda", gpu_layers=count)
        same = {way: split.generate(PROMPT, **{"max_tokens": 5} | options).tokens == want[way]
                for way, options in WAYS.items() if count in (1, 3) or way == "greedy"}
        if count == 3:
            alone = [split.generate(prompt, temperature=0.8, seed=2, max_tokens=4).tokens for prompt in prompts]
            same["together"] = [one.tokens for one in split.generate(prompts, temperature=0.8, seed=2, max_tokens=4)] == alone
        tell(f"{count} layers", placed=split.placing.layers, whole=split.placing.whole, same=same)


def architectures() -> None:
    """Each with its last layer on the device: logits, text, and memory of a step as it was reckoned."""
    plugin = ctypes.CDLL(machine.cuda_plugin())
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate({case.model_type: (name, case) for name, case in CASES.items()}.values()):
            path = Path(folder) / name
            path.mkdir()
            random_checkpoint(case, path, seed=number)
            cpu = genkit.load(path, device="cpu")
            ids = [(7 * i + 3 * number) % 83 for i in range(70)]
            count, before = cpu.config.layers - 1, _core.device_facts()["available"]
            model = genkit.load(path, device="cuda", gpu_layers=count)
            free = _core.device_facts()["available"]
            plugin.genkit_most_used()
            logits = model.logits(ids)
            most = plugin.genkit_most_used() - (_core.device_facts()["memory"] - free)
            c, pages = model.config, pages_for(len(ids)) + 1
            room = model.placing.step_bytes(len(ids), len(ids)) + pages * page_bytes(count, c.kv_heads, c.head_dim, model.kv_type)
            texts = [[one.generate(ids[:9], temperature=0, max_tokens=2, ignore_eos=True, beams=beams).tokens for beams in (1, 2)]
                     for one in (cpu, model)]
            tell(name, placed=model.placing.layers, of=c.layers, most=most, room=room, distance=distance(logits, cpu.logits(ids)),
                 taken=before - free, weights=model.placing.weight_bytes, same=texts[0] == texts[1])
            del model
            tell(f"{name} given back", bytes=before - _core.device_facts()["available"])


def memory() -> None:
    """What does not fit is refused in a line, before or in the middle, with all given back and the model as usable as before."""
    before = _core.device_facts()["available"]

    def refused(what: str, call: "Callable[[], object]") -> None:
        try:
            call()
        except genkit.errors.Error as error:
            tell(what, code=error.exit_code, words=str(error))
        else:
            tell(what, code=0, words="")
        tell(f"{what}: given back", bytes=at - _core.device_facts()["available"])

    at = before
    refused("all layers", lambda: genkit.load(genkit.DEFAULT_MODEL, device="cuda", gpu_layers=9))
    model = genkit.load(genkit.DEFAULT_MODEL, device="cuda")
    tell("fitted", placed=model.placing.layers, of=model.config.layers, weights=model.placing.weight_bytes,
         taken=before - _core.device_facts()["available"])
    want = model.generate(PROMPT, temperature=0, max_tokens=3).tokens
    at = _core.device_facts()["available"]
    many = [PROMPT] * 200
    refused("batch", lambda: model.generate(many, temperature=0, max_tokens=900, batch_size=200))
    # As if somebody else had taken the memory after it was looked at.
    honest = engine.free_memory, split.free_memory
    engine.free_memory = split.free_memory = lambda device: 1 << 40
    refused("cache in the middle", lambda: model.generate(many, temperature=0, max_tokens=900, batch_size=200))
    kept = model._cache

    def nearly_all(*arguments: object) -> KVCache:
        cache = kept(*arguments)
        with using("cuda"):
            cache.rest = []
            for size in (1 << 20, 1 << 17, 1 << 14, 1 << 12):
                while _core.device_facts()["available"] > 2 * size:
                    cache.rest.append(_core.Tensor([size], "u8"))
        return cache

    model._cache = nearly_all
    refused("step in the middle", lambda: model.generate(PROMPT * 20, temperature=0, max_tokens=3))
    del model._cache
    tell("usable afterwards", same=model.generate(PROMPT, temperature=0, max_tokens=3).tokens == want)
    del model, kept, nearly_all
    at = before
    refused("weights in the middle", lambda: genkit.load(genkit.DEFAULT_MODEL, device="cuda", quantize="none"))
    engine.free_memory, split.free_memory = honest
    tell("all given back", bytes=before - _core.device_facts()["available"])


if __name__ == "__main__":
    machine.CUDA_PLUGIN = sys.argv[1]
    if sys.argv[2] == "genkit":
        arguments = sys.argv[3:]
        if arguments[0] == "proven":
            devices.PROVEN, arguments = True, arguments[1:]
        sys.argv = ["genkit", *arguments]
        cli.main()
    tell("device", state=list(machine.cuda_state()))
    {"scopes": scopes, "default": default_model, "architectures": architectures, "memory": memory}[sys.argv[2]]()
