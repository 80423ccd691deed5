"""scripts/gpu.sh and the checks of tests/gpu, before there is a GPU: on the plugin whose device is a stand-in, at small sizes,
and on plugins with an error in them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_stand_in import needs_compiler
from gpu import __main__ as gpu_main
from gpu import record, report, slots
from gpu.problems import judge

import genkit

TESTS = Path(__file__).parent
SCRIPT = TESTS.parent / "scripts/gpu.sh"


@pytest.fixture(scope="module")
def built(stand_in, tmp_path_factory):
    """(driver, a folder as the script builds it: the package, with the plugin beside its core)."""
    folder = tmp_path_factory.mktemp("built")
    package = folder / "genkit"
    package.mkdir()
    for entry in Path(genkit.__file__).parent.iterdir():
        if entry.name not in ("__pycache__", "libgenkit_cuda.so"):
            (package / entry.name).symlink_to(entry)
    (package / "libgenkit_cuda.so").symlink_to(stand_in[1])
    return stand_in[0], folder


def run_script(built, folder, *options, **environment):
    machine, package = built
    done = subprocess.run([SCRIPT, "--built", package, "--json", folder / "found.json", "--scale", "tiny", "--jobs", "2", *options],
                          capture_output=True, text=True, timeout=600,
                          env=os.environ | {"LD_LIBRARY_PATH": str(machine), "PYTHON": sys.executable} | environment)
    found = json.loads((folder / "found.json").read_text()) if (folder / "found.json").exists() else None
    return done, found


@needs_compiler
def test_everything_is_right_on_the_stand_in(built, tmp_path):
    done, found = run_script(built, tmp_path, "--steps", "every slot,products")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= report.LINES and lines[-1].startswith("nothing is wrong")
    assert f"seed {found['seed']}" in done.stderr and "a processor that stands in for a GPU" in lines[0]
    step = found["steps"][0]
    products = found["steps"][1]
    assert products["settings"] == {"GENKIT_CUDA_BLAS": "0"} and products["cases"] >= 10
    assert step["cases"] > 250 and step["findings"][-1] == {"case": "all slots have a case", "wrong": ""}

    done, found = run_script(built, tmp_path, "--steps", "bits", "--times", "2", "--every", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step["settings"] for step in found["steps"]] == [{}, {"GENKIT_CUDA_PDL": "0"}, {"GENKIT_CUDA_FUSE": "0"}]
    digests = [[(line["case"], line["digest"]) for line in step["findings"]] for step in found["steps"]]
    assert len(digests[0]) > 25 and digests[0] == digests[1] == digests[2]


@needs_compiler
def test_measurements_on_the_stand_in(built, tmp_path):
    done, found = run_script(built, tmp_path, "--steps", "speeds of kernels,speeds of 8B,speeds of 1B int4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(found["limits"]) == ["copy", "read"] and len(found["kernels"]) == 13 and len(found["models"]) == 21
    assert all(row["seconds"] > 0 and row["share"] > 0 for row in found["kernels"])
    for row in found["models"]:
        assert row.get("reason") == "no room" if row["what"].endswith("16777216") else "value" in row
        assert row.get("goal") == (15 if "sampling" in row["what"] else None)
    assert "no room" in done.stdout and len(done.stdout.splitlines()) <= report.LINES
    assert record.refusal(found) == "nothing was checked"


@needs_compiler
def test_a_checker_that_finds_something(built, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    tool = tools / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho '{\"case\": \"one\"}'\necho '========= COMPUTE-SANITIZER'\n"
                    "echo '========= Invalid __global__ read of size 4'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    done, found = run_script(built, tmp_path, "--steps", "compute-sanitizer mem")
    assert done.returncode == 1 and found["steps"][0]["wrong"] == ["ended with 9: Invalid __global__ read of size 4"]

def test_the_clock_ends_what_is_late_and_skips_what_would_be():
    def program(words):
        return [sys.executable, "-c", f"import time; print('{{\"case\": \"one\"}}', flush=True); {words}"]

    late, fault, after = (gpu_main.Step(name, program(words), 3, kind) for name, words, kind in (
        ("late", "time.sleep(60)", "check"), ("fault", "import os; os.abort()", "check"), ("after", "time.sleep(0)", "measure")))
    clock = gpu_main.Clock(60, 0)
    gpu_main.run([after, late, fault], clock, 2)
    assert late.state == "cut" and late.wrong == ["not finished in 3 s, 1 cases were"] and 3 <= late.took < 30
    assert fault.state == "done" and len(fault.wrong) == 1 and fault.wrong[0].startswith("ended with -6") and len(fault.findings) == 1
    assert after.state == "done" and not after.wrong and clock.left < 57
    again = gpu_main.Step("again", program("0"), 50)
    gpu_main.run([again], gpu_main.Clock(60, 58), 2)
    assert again.state == "skipped" and again.reason == "2 s were left"


def test_every_slot_has_problems_at_every_scale():
    for scale in ("tiny", "full"):
        found = slots.cases(scale)
        assert len({case.name for case in found}) == len(found)
        for every in (1, 2, 9):
            assert slots.uncovered(slots.chosen(found, every, "")) == []
        assert len(slots.chosen(found, 2, "")) < 0.6 * len(found) and slots.uncovered(slots.chosen(found, 1, "linear"))


def test_what_is_missing_is_said_in_a_line(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("dirname", "bash", "env"):
        (tools / name).symlink_to(shutil.which(name))
    lone = tools / "python"
    lone.write_text(f"#!/bin/sh\nexec {sys.executable} -S \"$@\"\n")  # without its packages
    lone.chmod(0o755)
    for python, words in ((str(lone), " has no numpy, "), ("absent", "no absent; PYTHON names another")):
        done = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=60, env={"PATH": str(tools), "PYTHON": python})
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


# ---- the table and the judge -------------------------------------------------------------------------------------------


def found_of(**more):
    step = {"name": "every slot", "kind": "check", "state": "done", "reason": "", "cases": 3, "wrong": [], "seconds": 2.0}
    device = {"name": "NVIDIA X", "capability": "9.0", "processors": 132, "memory": 80 << 30, "driver": "13.0", "targets": "90a"}
    kernel = {"kernel": "bf16", "seconds": 1e-5, "rate": 3e12, "unit": "B/s", "share": 0.75}
    situations = [f"{shape} {what}" for shape in ("8B", "1B") for what in ("64 x 128", "1 x 128", "prompt 512", "prompt 8192", "1 x 4096")]
    models = [{"model": what[:2], "weights": kind, "what": what, "value": 1234.56, "goal": 1300} for what in situations for kind in ("int4", "bf16")]
    return {"date": "2026-11-27T20:00", "commit": "abc", "device": device, "seconds": 8.0, "limits": {"copy": [3e12, "B/s"]},
            "steps": [step | more], "kernels": [kernel] * 40, "models": models}


def test_the_table_has_sixty_lines_at_most():
    found = found_of(wrong=[f"case {i}" for i in range(50)])
    lines = report.table(found).splitlines()
    assert len(lines) <= report.LINES and lines[-1] == "50 wrong (8 s)"
    assert "  every slot: case 0" in lines and "  ... and 43 more, in the JSON" in lines
    shapes = [line.split("  ")[0] for line in lines if line[:2] in ("1B", "8B")]
    assert shapes[:5] == ["1B 1 x 128", "1B 64 x 128", "1B 1 x 4096", "1B prompt 512", "1B prompt 8192"]
    assert "1235 (1300)" in lines[-2] and "3 TB/s" in "\n".join(lines)
    found["models"] *= 2
    found["models"] = [row | {"what": f"{row['what'].replace('x', 'x 1')}{i}"} for i in range(4) for row in found["models"]]
    lines = report.table(found).splitlines()
    assert len(lines) == report.LINES and "lines more, in the JSON" in lines[-2] and lines[-1].startswith("50 wrong")


def test_only_what_was_right_is_recorded(tmp_path):
    document = tmp_path / "performance.md"
    text = record.DOCUMENT.read_text()
    document.write_text(text)
    for more, words in (({"wrong": ["add: x"]}, "1 checks were wrong, the first: every slot: add: x"),
                        ({"state": "cut"}, "not all was checked: every slot"), ({"kind": "measure"}, "nothing was checked")):
        assert record.record(found_of(**more), document) == words and document.read_text() == text
    stand_in = found_of()
    stand_in["device"] = stand_in["device"] | {"capability": "0.0"}
    assert "figures are of GPUs only" in record.record(stand_in, document) and document.read_text() == text
    assert record.record(found_of(), document) == ""
    new = document.read_text()
    assert "2026-11-27, NVIDIA X, CUDA 13.0, commit abc, all checks right; measured copy 3 TB/s." in new
    assert "| 1B 1 x 128 | 1235 (1300) |  | 1235 (1300) |" in new and "Nothing yet" not in new
    assert new.split(record.BEGIN)[0] == text.split(record.BEGIN)[0] and new.split(record.END)[1] == text.split(record.END)[1]


def test_the_judge_sees_a_row_and_an_element():
    seed = np.random.SeedSequence().entropy
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    want = rng.standard_normal((500, 400)) * 10.0 ** rng.integers(-1, 2, (500, 1))
    near = want * (1 + 1e-3 * rng.standard_normal(want.shape))
    assert judge(near, want, 2e-3)[1] == "" and judge(near, want, 5e-4)[1] != "" and judge(want, want, 0) == (0.0, "")
    element, row, hole = near.copy(), near.copy(), near.copy()
    element[7, 9] += 0.2 * np.abs(want[7]).max()
    row[11] *= 1.01
    hole[499, 399] = np.nan
    for wrong in (element, row, hole):
        assert judge(wrong, want, 2e-3)[1] != ""
    assert judge(near, want, 0)[1].startswith("200000 of 200000 differ")


@needs_compiler
@pytest.mark.parametrize("planted, step, case, words", (
    ("softmax", "every slot", "softmax", "not finite"), ("scale", "every slot", "scale", "first at (0, 0)"),
    ("flicker", "bits: 3 calls", "scale", "results of 3 calls")))
def test_a_planted_error_is_found(built, tmp_path, planted, step, case, words):
    done, found = run_script(built, tmp_path, "--steps", step, "--times", "3", "--only", case, GENKIT_STAND_IN_PLANTED=planted)
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = found["steps"][0]["wrong"]
    assert wrong and all(line.startswith(case) and words in line for line in wrong), wrong
    assert wrong[0][:100] in done.stdout and not done.stdout.splitlines()[-1].startswith("nothing")
