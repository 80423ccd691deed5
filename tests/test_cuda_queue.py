"""Calls of slots put into one kernel (cuda/queue.inl): the same memory as one by one, and fewer kernels a step."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import compilers
from cuda_stand_in import needs_compiler

TESTS = Path(__file__).parent
# Kernels of a layer of the default model at most, and those a step has beside: embedding, rope's table, last norm, head.
MOST = {"int4": 7, "none": 7}
BESIDE = 4


@needs_compiler
def test_calls_in_any_order_leave_the_same_memory(tmp_path):
    program = compilers.compile_source(compilers.native(), TESTS / "cuda_queue_check.cpp", tmp_path / "check", "-O1",
                                       "-Wno-unused-function", f"-I{TESTS}")
    seed = str(random.SystemRandom().randrange(2**32))
    done = subprocess.run([program, seed, "150"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
    assert int(re.search(r"(\d+) kernels saved", done.stdout)[1]) > 10, f"seed {seed}"


@needs_compiler
def test_steps_have_fewer_kernels_and_the_same_bits(stand_in):
    alone, fused = steps(stand_in, "0"), steps(stand_in, "1")
    assert alone.keys() == fused.keys() and len(fused) == 3
    for what, step in fused.items():
        assert step["bits"] == alone[what]["bits"], what
        assert step["kernels"] <= MOST[what.split()[0]] * step["layers"] + BESIDE, (what, step)
        # Four roundings and two norms of each layer are in its products.
        if what.startswith("int4"):
            assert step["kernels"] <= alone[what]["kernels"] - 6 * step["layers"], (what, step)
        else:  # two norms, and gates with ups
            assert step["kernels"] <= alone[what]["kernels"] - 3 * step["layers"], (what, step)


def steps(stand_in, fuse):
    folder, plugin = stand_in
    done = subprocess.run([sys.executable, TESTS / "cuda_steps.py", plugin], capture_output=True, text=True, timeout=600,
                          env=os.environ | {"LD_LIBRARY_PATH": str(folder), "GENKIT_CUDA_FUSE": fuse})
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line.pop("what"): line for line in map(json.loads, done.stdout.splitlines())}
    for what, line in found.items():
        print(f"GENKIT_CUDA_FUSE={fuse} {what}: {line['kernels']} kernels, {line['layers']} layers")
    return found
