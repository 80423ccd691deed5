"""Decode steps of the default model through the plugin of tests/cuda_plugin.cpp: python cuda_steps.py PLUGIN. Prints a line of
JSON for each way to run it: bits of the logits of a few steps, and kernels a recorded step has."""

import ctypes
import hashlib
import json
import sys

import genkit
from genkit import machine
from genkit.devices import using
from genkit.kv_cache import Sequence
from genkit.plan import Decoder

WAYS = [("int4", 1), ("int4", 2), ("none", 1)]  # weights, sequences


def main() -> None:
    machine.CUDA_PLUGIN = sys.argv[1]
    started = ctypes.CDLL(sys.argv[1]).genkit_started
    started.restype = ctypes.c_int64
    for quantize, count in WAYS:
        loaded = genkit.load(genkit.DEFAULT_MODEL, device="cuda", quantize=quantize)
        model, sequences = loaded._model, [Sequence() for _ in range(count)]
        with using("cuda"):
            cache = loaded._cache([1100] * count)
            model(cache.step([(s, [5 + i, 7, 11]) for i, s in enumerate(sequences)]), cache)
            decoder = Decoder(model, cache, 1100)  # keys of two splits
            before = started()
            decoder._rows(count, draws=False)
            kernels = started() - before
            digest = hashlib.sha256()
            for token in (3, 1):
                digest.update(decoder.step([(s, token + i) for i, s in enumerate(sequences)]).numpy().tobytes())
        print(json.dumps({"what": f"{quantize} {count}", "kernels": kernels, "layers": model.config.layers, "bits": digest.hexdigest()}), flush=True)


if __name__ == "__main__":
    main()
