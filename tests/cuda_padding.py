"""Batches whose rows end one by one, through the plugin of tests/cuda_plugin.cpp, whose device is a stand-in: on a device steps are
recorded for a few numbers of rows only, the others padded (genkit/plan.py). Prints a line of JSON for each: python cuda_padding.py PLUGIN."""

import ctypes
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from architectures import llama, qwen3_moe
from checkpoint_files import write_tensors
from kernel_helpers import bf16_bits
from models_run import random_checkpoint
from safetensors.numpy import load_file

import genkit
from genkit import _core, batch, engine, machine
from genkit.batch import Batch, Job
from genkit.decoding.sampling import Sampler, SamplingSettings
from genkit.devices import using
from genkit.errors import ResourceError
from genkit.generation import Generation, Request
from genkit.kv_cache import Sequence, page_bytes
from genkit.plan import Decoder

SMALL = dict(vocab_size=307, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
CASES = {"dense": llama(tie_word_embeddings=False, **SMALL), "experts": qwen3_moe(tie_word_embeddings=False, **SMALL)}
SETTINGS = {"greedy": SamplingSettings(), "drawn": SamplingSettings(temperature=1.2, top_p=0.9, seed=5),
            "penalized": SamplingSettings(temperature=0.5, repeat_penalty=1.4, repeat_last_n=6, seed=8)}


def checkpoint(folder: Path, name: str, token_0: float = 1.0) -> Path:
    """A model with weights in bf16; token_0: what the embedding of that token is multiplied by."""
    path = folder / f"{name} {token_0}"
    path.mkdir()
    random_checkpoint(CASES[name], path, seed=3)
    values = load_file(path / "model.safetensors")
    values["model.embed_tokens.weight"][0] *= np.float32(token_0)
    write_tensors(path / "model.safetensors", {key: bf16_bits(value) for key, value in values.items()})
    return path


class Texts:
    """Prompts of unlike lengths, side by side: the i-th has i + 4 tokens to say, so rows leave one by one, the first after three steps."""

    def __init__(self, loaded: genkit.LoadedModel, settings: SamplingSettings, eos_ids: "tuple[int, ...]" = ()) -> None:
        self.loaded, self.settings, self.eos_ids = loaded, settings, eos_ids

    def run(self, numbers: "list[int]") -> "tuple[list[list[int]], Decoder]":
        jobs = [Job(Request(i + 4, (), not self.eos_ids, 1, 1.0, None, lambda: False),
                    Generation([(7 * i + 3 * j) % 300 + 1 for j in range(1 + 11 * i % 70)])) for i in numbers]
        lengths = sorted((len(job.generation.prompt_tokens) + job.request.max_tokens for job in jobs), reverse=True)
        model, cache = self.loaded.model, self.loaded._cache(lengths)
        together = Batch(model, cache, lengths[0], Sampler(self.settings, model.config.vocab_size), None, self.eos_ids)
        list(together.run(jobs, len(jobs)))
        assert cache.free_pages == len(cache._references)
        return [job.generation.tokens for job in jobs], together._decoder

    def both(self, rows: int) -> dict:
        """Texts of so many rows together and alone, and how the steps were made."""
        calls = []
        step, draw = Decoder.step, Decoder.draw
        Decoder.step = lambda self, *rest: calls.append("step") or step(self, *rest)
        Decoder.draw = lambda self, *rest: calls.append("draw") or draw(self, *rest)
        together, decoder = self.run(list(range(rows)))
        Decoder.step, Decoder.draw = step, draw
        alone = [self.run([i])[0][0] for i in range(rows)]
        arenas = [sum(block.nbytes for block in made.plan.arena) for made in decoder._recorded.values()]
        return dict(same=together == alone, tokens=together, calls=calls, recorded=[rows for rows, _ in decoder._recorded], arenas=arenas)


def first_drawn(loaded: genkit.LoadedModel) -> int:
    """What a padding row draws greedily."""
    cache = loaded._cache([1])
    return int(loaded.model(cache.step([(Sequence(), [0])]), cache).numpy()[0].argmax())


def steps(loaded: genkit.LoadedModel, started: "ctypes._FuncPointer") -> dict:
    """Logits of 5 rows beside a padding row and of each alone; kernels of steps recorded beside others, and first of all."""
    model, cache = loaded.model, loaded._cache([9] * 16)
    sequences = [Sequence() for _ in range(5)]
    for i, sequence in enumerate(sequences):
        model(cache.step([(sequence, [5 + i, 7, 11])]), cache)
    work = [(sequence, 20 + i) for i, sequence in enumerate(sequences)]
    alone = []
    for one in work:
        decoder = Decoder(model, cache, 9)
        alone.append(decoder.step([one]).numpy()[0].copy())
        cache.truncate(one[0], 3)
    logits = decoder.step(work)
    same = logits.shape == (5, model.config.vocab_size) and np.array_equal(logits.numpy(), np.stack(alone))

    def kernels(decoder: Decoder, rows: int) -> int:
        before = started()
        decoder._rows(rows, draws=False)
        return started() - before

    counts, falling, rising = (8, 6, 3, 2, 1), Decoder(model, cache, 9), Decoder(model, cache, 9)
    kernels(falling, 16), kernels(rising, 1)
    return dict(same=bool(same), first=[kernels(Decoder(model, cache, 9), rows) for rows in counts],
                beside=[kernels(falling, rows) for rows in counts], growing=[kernels(rising, rows) for rows in (16, 8, 6)],
                first_growing=[kernels(Decoder(model, cache, 9), rows) for rows in (16, 8, 6)])


def room(loaded: genkit.LoadedModel) -> dict:
    """Bytes of a cache for 5 sequences of 9 tokens, what it ought to take with the page of padding rows, and whether just enough for it
    and for a step of 6 rows is taken, a byte less refused."""
    c, lengths = loaded.config, [9] * 5
    held = (2 * len(lengths) + 1) * page_bytes(c.layers, c.kv_heads, c.head_dim, loaded.kv_type)
    before, enough, honest = _core.device_facts()["available"], [], engine.free_memory
    for less in (0, 1):
        engine.free_memory = lambda device: held + loaded.placing.step_bytes(9, 6) - less
        try:
            cache = loaded._cache(lengths)
            enough.append(True)
        except ResourceError:
            enough.append(False)
    engine.free_memory = honest
    return dict(taken=before - _core.device_facts()["available"], held=held, enough=enough, free=cache.free_pages)


def main() -> None:
    def tell(what: str, **found: object) -> None:
        print(json.dumps({"what": what, **found}), flush=True)

    machine.CUDA_PLUGIN = sys.argv[1]
    plugin = ctypes.CDLL(sys.argv[1])
    plugin.genkit_started.restype = ctypes.c_int64
    batch.BURST_SECONDS = 1e9
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        paths = {name: checkpoint(folder, name) for name in CASES}
        for name, quantize, kv_type in (("dense", "none", "bf16"), ("dense", "int8", "f32"), ("experts", "int8", "int8")):
            loaded = genkit.load(paths[name], device="cuda", quantize=quantize, kv_type=kv_type)
            with using("cuda"):
                free = _core.device_facts()["available"]
                for rows in (5, 7, 11) if quantize == "none" else (5,):
                    for way, settings in SETTINGS.items() if rows == 5 else [("greedy", SETTINGS["greedy"])]:
                        tell(f"{name} {quantize} {rows} {way}", **Texts(loaded, settings).both(rows))
                if name == "dense":
                    tell(f"steps {quantize}", **steps(loaded, plugin.genkit_started))
                if quantize == "none":
                    stop = first_drawn(loaded)
                    tell("room", **room(loaded))
                    tell("a stop id drawn by padding", stop=stop, **Texts(loaded, SETTINGS["greedy"], (stop,)).both(5))
                tell(f"{name} {quantize} given back", bytes=free - _core.device_facts()["available"])
        near = genkit.load(paths["dense"], device="cpu", quantize="none", kv_type="bf16")
        tell("on the processor", **Texts(near, SETTINGS["greedy"]).both(7))
        bad = genkit.load(checkpoint(folder, "dense", float("nan")), device="cuda", quantize="none", kv_type="bf16")
        with using("cuda"):
            tell("padding that is not finite", **Texts(bad, SETTINGS["greedy"]).both(5))


if __name__ == "__main__":
    main()
