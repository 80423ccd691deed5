"""scripts/gpu.sh and the checks of tests/gpu, before there is a GPU: on the plugin whose device is a stand-in, at small sizes,
and on plugins with an error in them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import compilers
import pytest
from gpu import report
from gpu.problems import judge
from test_cuda import driver, needs_compiler

import genkit

TESTS = Path(__file__).parent
SCRIPT = TESTS.parent / "scripts/gpu.sh"


def make_built(folder, source, *flags):
    """A folder as the script builds it: the package, with a plugin of this source beside its core."""
    package = folder / "genkit"
    package.mkdir(parents=True)
    for entry in Path(genkit.__file__).parent.iterdir():
        if entry.name not in ("__pycache__", "libgenkit_cuda.so"):
            (package / entry.name).symlink_to(entry)
    compilers.compile_source(compilers.native(), TESTS / source, package / "libgenkit_cuda.so", "-O1", "-shared", "-fPIC",
                             "-Wno-unused-function", f"-I{TESTS}", *flags)
    return folder


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return driver(tmp_path_factory.mktemp("driver"))


def run_script(machine, built, folder, *options):
    done = subprocess.run([SCRIPT, "--built", built, "--json", folder / "found.json", "--scale", "tiny", "--jobs", "2", *options],
                          capture_output=True, text=True, timeout=600,
                          env=os.environ | {"LD_LIBRARY_PATH": str(machine), "PYTHON": sys.executable})
    found = json.loads((folder / "found.json").read_text()) if (folder / "found.json").exists() else None
    return done, found


@needs_compiler
def test_everything_is_right_on_the_stand_in(machine, tmp_path):
    built = make_built(tmp_path / "built", "cuda_plugin.cpp")
    done, found = run_script(machine, built, tmp_path, "--steps", "every slot")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= report.LINES and lines[-1].startswith("nothing is wrong")
    assert f"seed {found['seed']}" in done.stderr and "a processor that stands in for a GPU" in lines[0]
    slots = found["steps"][0]
    assert slots["cases"] > 250 and slots["findings"][-1] == {"case": "all slots have a case", "wrong": ""}

    done, found = run_script(machine, built, tmp_path, "--steps", "bits", "--times", "2", "--every", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step["settings"] for step in found["steps"]] == [{}, {"GENKIT_CUDA_PDL": "0"}, {"GENKIT_CUDA_FUSE": "0"}]
    digests = [[(line["case"], line["digest"]) for line in step["findings"]] for step in found["steps"]]
    assert len(digests[0]) > 25 and digests[0] == digests[1] == digests[2]


@needs_compiler
@pytest.mark.parametrize("planted, step, case, words", (
    (1, "every slot", "softmax", "not finite"), (2, "every slot", "scale", "first at (0, 0)"), (3, "bits: 3 calls", "scale", "results of 3 calls")))
def test_a_planted_error_is_found(machine, tmp_path, planted, step, case, words):
    built = make_built(tmp_path / "built", "cuda_planted.cpp", f"-DPLANTED={planted}")
    done, found = run_script(machine, built, tmp_path, "--steps", step, "--times", "3", "--only", case)
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = found["steps"][0]["wrong"]
    assert wrong and all(line.startswith(case) and words in line for line in wrong), wrong
    assert wrong[0][:100] in done.stdout and not done.stdout.splitlines()[-1].startswith("nothing")
