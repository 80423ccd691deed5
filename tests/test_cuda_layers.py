"""Memory of a device, what does not fit it, and models that are only partly there: the engine over the plugin whose device is a
stand-in (tests/cuda_plugin.cpp)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cuda import needs_compiler, stand_in  # noqa: F401 (a fixture)

TESTS = Path(__file__).parent


def findings(stand_in, part, memory=None):  # noqa: F811
    """What cuda_layers.py tells of a part, by name; memory: bytes of the device."""
    folder, plugin = stand_in
    more = {} if memory is None else {"GENKIT_STAND_IN_MEMORY": str(memory)}
    done = subprocess.run([sys.executable, TESTS / "cuda_layers.py", plugin, part], capture_output=True, text=True, timeout=600,
                          env=os.environ | {"LD_LIBRARY_PATH": str(folder)} | more)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line.pop("what"): line for line in map(json.loads, done.stdout.splitlines())}
    assert found.pop("device")["state"][0]
    return found


@needs_compiler
def test_a_device_in_use_is_put_back(stand_in):  # noqa: F811
    found = findings(stand_in, "scopes")
    assert found["devices in use"]["seen"] == ["cpu", "cpu", "cuda", "cuda", "cuda", "cuda", "cpu"]
    beams = found["beams with logprobs"]
    assert beams["tokens"][0] == beams["tokens"][1]
    assert beams["ours"] == pytest.approx(beams["want"], abs=2e-2)
