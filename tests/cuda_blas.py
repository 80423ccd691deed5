"""Products of more than 16 rows with bf16 weights through the plugin of tests/cuda_plugin.cpp, by whatever library it finds: python
cuda_blas.py PLUGIN LIBRARY SEED. Prints a line of JSON: the largest errors, a hash of all bits, what the library was asked for and
what it made, what the plugin says of it."""

import ctypes
import hashlib
import json
import os
import sys

import numpy as np
from gpu.problems import bf16_bits, bf16_values, floats

from genkit import _core, machine
from genkit.devices import choose_device, using


def main() -> None:
    machine.CUDA_PLUGIN = sys.argv[1]
    choose_device("cuda")
    library = ctypes.CDLL(sys.argv[2])
    random = np.random.default_rng(int(sys.argv[3]))
    worst, kernels, digest = 0.0, [], hashlib.sha256()
    started = ctypes.CDLL(sys.argv[1]).genkit_started
    started.restype = ctypes.c_int64

    def look(out: _core.Tensor, x: np.ndarray, weight: np.ndarray, *more: np.ndarray) -> None:
        nonlocal worst
        want = bf16_values(bf16_bits(x)) @ bf16_values(bf16_bits(weight)).T + sum(more)
        got = out.numpy()
        digest.update(got.tobytes())
        worst = max(worst, float(np.linalg.norm(got - want) / np.linalg.norm(want)))

    for rows, n, k in ((17, 30, 64), (40, 33, 72), (130, 16, 600)):
        x, weight = (random.standard_normal(shape, np.float32) for shape in ((rows, k), (n, k)))
        bias, residual = (random.standard_normal(shape, np.float32) for shape in (n, (rows, n)))
        with using("cuda"):
            given, matrix, one, two = floats(x), floats(weight, "bf16"), floats(bias), floats(residual)
            look(_core.linear(given, matrix), x, weight)
            look(_core.linear(given, matrix, one, two), x, weight, bias, residual)
            if os.environ.get("FAKE_BLAS") == "fails":  # on the device it fails when it is recorded, here only when it runs
                continue
            before = started()
            plan, out = _core.Plan.record(lambda: _core.linear(given, matrix, one, two))
            kernels.append(started() - before)
            for _ in range(2):
                plan.replay()
                look(out, x, weight, bias, residual)
    print(json.dumps({"worst": worst, "bits": digest.hexdigest(), "made": library.fake_made(), "looked": library.fake_looked(), "kernels": kernels,
                      "said": machine.cuda_facts()["cublaslt"]}))


if __name__ == "__main__":
    main()
