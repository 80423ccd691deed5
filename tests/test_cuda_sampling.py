"""Draws through the plugin of cuda_plugin.cpp are the processor's, token for token; fairly drawn; and the command's with every
option (tests/cuda_sampling.py)."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_stand_in import needs_compiler

TESTS = Path(__file__).parent
COMMAND = "import sys; from genkit import machine; machine.CUDA_PLUGIN = sys.argv.pop(1); from genkit.cli import main; main()"
OPTIONS = {
    "greedy": ["--temp", "0"],
    "penalties": ["--temp", "0", "--repeat-penalty", "1.3", "--presence-penalty", "0.5", "--frequency-penalty", "0.3"],
    "draw": ["--temp", "0.9"],
    "filters": ["--temp", "1.2", "--top-k", "60", "--top-p", "0.9", "--min-p", "0.02"],
    "bias": ["--temp", "0.7", "--logit-bias", "10=-100", "--logit-bias", "32=5", "--repeat-last-n", "4", "--repeat-penalty", "1.5"],
}


def run(stand_in, *command):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600,
                          env=os.environ | {"LD_LIBRARY_PATH": str(stand_in[0])})


@needs_compiler
@pytest.mark.parametrize("part", ["same", "alone", "often"])
def test_draws_are_the_processors(stand_in, part):
    seed = random.SystemRandom().randrange(2**32)
    done = run(stand_in, TESTS / "cuda_sampling.py", stand_in[1], seed, part)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    *wrong, last = done.stdout.splitlines()
    assert last.startswith("compared ") and int(last.split()[1]) >= 100
    assert not wrong, f"seed {seed}: " + "\n".join(wrong[:10])


@needs_compiler
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_command_writes_the_same_tokens(stand_in, options):
    """Of three seeds, as many tokens as one text has: logits of two devices differ by a rounding, so a draw near the end of a
    token's share may fall on the other side, and what follows is another text. From equal logits every draw is equal, above."""
    same = 0
    for _ in range(3):
        seed = str(random.SystemRandom().randrange(2**32))
        said = {}
        for device in ("cpu", "cuda"):
            done = run(stand_in, "-c", COMMAND, stand_in[1], "generate", "--device", device, "-n", "8", "--seed", seed, "--kv-type", "f32",
                       "--json", "-q", "def add(a, b):", *options)
            assert done.returncode == 0, done.stderr
            said[device] = json.loads(done.stdout)
        assert said["cpu"]["device"] == "cpu" and said["cuda"]["device"] == "cuda"
        pairs = list(zip(said["cpu"]["token_ids"], said["cuda"]["token_ids"]))
        same += next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), 8)
    assert same >= 8, f"the last seed is {seed}"
