"""Memory of a device, what does not fit it, and models that are only partly there: the engine over the plugin whose device is a
stand-in (tests/cuda_plugin.cpp)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_stand_in import driver, needs_compiler

from genkit import machine

TESTS = Path(__file__).parent
WORKSPACE = (32 << 20) + (1 << 18)  # what the plugin takes for itself (cuda/workspace.h)
SHORT = ("generate", "-n", "2", "--temp", "0", "def f")


def findings(stand_in, part, memory=None):
    """What cuda_layers.py tells of a part, by name; memory: bytes of the device."""
    folder, plugin = stand_in
    more = {} if memory is None else {"GENKIT_STAND_IN_MEMORY": str(memory), "GENKIT_CUDA_BLAS": "0"}
    done = subprocess.run([sys.executable, TESTS / "cuda_layers.py", plugin, part], capture_output=True, text=True, timeout=600,
                          env=os.environ | {"LD_LIBRARY_PATH": str(folder)} | more)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line.pop("what"): line for line in map(json.loads, done.stdout.splitlines())}
    assert found.pop("device")["state"][0]
    return found


def command(folder, plugin, *arguments, **environment):
    """genkit of these arguments, over the plugin and the driver in the folder."""
    return subprocess.run([sys.executable, TESTS / "cuda_layers.py", plugin, "genkit", *map(str, arguments)], capture_output=True,
                          text=True, timeout=600, stdin=subprocess.DEVNULL,
                          env=os.environ | {"LD_LIBRARY_PATH": str(folder)} | environment)


@needs_compiler
def test_a_device_in_use_is_put_back(stand_in):
    found = findings(stand_in, "scopes")
    assert found["devices in use"]["seen"] == ["cpu", "cpu", "cuda", "cuda", "cuda", "cuda", "cpu"]
    beams = found["beams with logprobs"]
    assert beams["tokens"][0] == beams["tokens"][1]
    # The processor's tiers lie 0.03 to 0.06 apart here: activations rounded to int8 fall one way or the other.
    assert beams["ours"] == pytest.approx(beams["want"], abs=0.1)


# ---- models that are only partly on the device, and what does not fit ------------------------------------------------------


@needs_compiler
def test_the_last_layers_on_the_device_write_the_same_text(stand_in):
    found = findings(stand_in, "default")
    assert [(line["placed"], line["whole"]) for line in found.values()] == [(0, False), (1, False), (3, False), (5, True)]
    wrong = [(what, way) for what, line in found.items() for way, same in line["same"].items() if not same]
    assert not wrong and "together" in found["3 layers"]["same"]


@needs_compiler
def test_every_architecture_split(stand_in):
    """And a step takes no more memory than is set aside for it, weights what they are said to."""
    found = findings(stand_in, "architectures")
    split = {name: line for name, line in found.items() if "placed" in line}
    assert len(split) >= 25
    for name, line in split.items():
        assert line["placed"] == line["of"] - 1 and line["distance"] < 1e-4 and line["same"], (name, line)
        assert line["most"] <= line["room"] < 4 * line["most"], (name, line)
        assert line["weights"] <= line["taken"] < 1.05 * line["weights"], (name, line)
        assert found[f"{name} given back"]["bytes"] == 0


@needs_compiler
def test_what_does_not_fit_is_refused_and_given_back(stand_in):
    found = findings(stand_in, "memory", memory=WORKSPACE + (16 << 20))
    assert found["fitted"]["placed"] in range(1, 5) and found["fitted"]["taken"] < 16 << 20
    words = {what: line["words"] for what, line in found.items() if "code" in line}
    assert {line["code"] for line in found.values() if "code" in line} == {4}
    assert words["all layers"].startswith("--device cuda: 5 of 5 layers, their keys and values, and a step's own memory need ")
    assert "MiB are free there; use fewer --gpu-layers" in words["all layers"]
    assert re.match(r"\d+ tokens in 200 sequence\(s\) need \d+\.\d MiB on cuda", words["batch"])
    assert "on cuda beside the weights" in words["batch"] and "fewer sequences at once" in words["batch"]
    assert words["cache in the middle"].startswith("KV cache of ")
    assert words["step in the middle"].startswith("--device cuda: its memory ran out in the middle of a step, ")
    assert words["weights in the middle"].startswith("--device cuda: no memory for a weight of ")
    assert found["usable afterwards"]["same"]
    assert {line["bytes"] for what, line in found.items() if what.endswith("given back")} == {0}


@needs_compiler
def test_as_many_layers_as_fit_are_taken_and_said(stand_in):
    folder, plugin = stand_in
    small = {"GENKIT_STAND_IN_MEMORY": str(WORKSPACE + (16 << 20)), "GENKIT_CUDA_BLAS": "0"}
    want = command(folder, plugin, *SHORT, "--device", "cpu", "-q")
    fitted = command(folder, plugin, *SHORT, "--device", "cuda", **small)
    assert fitted.returncode == 0 and fitted.stdout == want.stdout
    line = re.search(r"genkit: ([1-4]) of 5 layers on the GPU \(\d\.\d MiB of weights, 16\.0 MiB were free\), the rest on the processor\n",
                     fitted.stderr)
    assert line
    facts = json.loads(command(folder, plugin, *SHORT, "--device", "cuda", "-ngl", "auto", "--json", **small).stdout)
    assert (facts["layers"], facts["gpu_layers"]) == (5, int(line[1])) and 0 < facts["gpu_weight_bytes"] < 16 << 20
    refused = command(folder, plugin, *SHORT, "--device", "cuda", "-ngl", "99", **small)
    assert (refused.returncode, refused.stdout) == (4, "") and refused.stderr.startswith("genkit: error: --device cuda: 5 of 5 layers")
    whole = command(folder, plugin, *SHORT, "--device", "cuda", "-ngl", "99")
    assert whole.returncode == 0 and "layers on the GPU" not in whole.stderr and whole.stdout == want.stdout


@pytest.mark.parametrize("arguments, words", [
    (("--device", "cpu", "-ngl", "3"), "--gpu-layers 3 with --device cpu: no layer runs on a GPU; leave one away"),
    (("-ngl", "-2"), "'-2' is not a number of layers, auto or all"), (("-ngl", "few"), "'few' is not a whole number")])
def test_layers_that_cannot_be_are_refused(tmp_path, arguments, words):
    refused = command(tmp_path, "absent.so", *SHORT, *arguments)
    assert refused.returncode == 2 and words in refused.stderr


# ---- which device, and what is said of it --------------------------------------------------------------------------------


@needs_compiler
def test_auto_takes_the_gpu_or_says_why_not(stand_in, tmp_path):
    folder, plugin = stand_in
    taken = command(folder, plugin, "proven", *SHORT, "-v")
    assert taken.returncode == 0 and "device cuda" in taken.stderr and "running on" not in taken.stderr
    unproven = command(folder, plugin, *SHORT)
    assert unproven.returncode == 0 and unproven.stdout == taken.stdout and unproven.stderr.startswith(
        "genkit: running on the processor: its CUDA kernels have changed since they last ran on a GPU; --device cuda uses them\n")
    named = command(folder, plugin, *SHORT, "-v", "--device", "cuda")
    assert "device cuda" in named.stderr and named.stdout == taken.stdout
    near = command(folder, plugin, *SHORT, "-v", "--device", "cpu")
    assert "device cpu" in near.stderr and "running on" not in near.stderr and near.stdout == taken.stdout
    failing = driver(tmp_path, cuInit="return 100;")
    reason = "the NVIDIA driver gives error 100 (is a device present and allowed?)"
    said = command(failing, plugin, *SHORT)
    assert said.returncode == 0 and said.stderr.startswith(f"genkit: running on the processor: {reason}\n") and said.stdout == taken.stdout
    assert said.stderr.count("running on") == 1 and command(failing, plugin, *SHORT, "-q").stderr == ""
    for quiet in (command(failing, plugin, *SHORT, "--device", "cpu"), command(failing, plugin, *SHORT, CUDA_VISIBLE_DEVICES="")):
        assert quiet.returncode == 0 and "running on" not in quiet.stderr
    unbuilt = command(folder, "absent.so", *SHORT)
    assert unbuilt.returncode == 0 and "genkit: running on the processor: CUDA is not built into this package\n" in unbuilt.stderr


@needs_compiler
def test_cuda_that_cannot_be_is_exit_5_with_the_reason(stand_in, tmp_path):
    failed = command(driver(tmp_path, cuDriverGetVersion="*n = 12080; return 0;"), stand_in[1], *SHORT, "--device", "cuda")
    assert (failed.returncode, failed.stdout) == (5, "")
    assert failed.stderr == ("genkit: error: --device cuda: the NVIDIA driver is for CUDA 12.8; 13.0 is needed (driver 580 or newer); "
                             "use --device cpu or auto\n")


@pytest.mark.parametrize("there, expected", [
    ([], False), (["dev/null"], False), (["dev/nvidia0"], True), (["dev/nvidiactl"], True), (["dev/nvidia-caps"], False)])
def test_a_gpu_is_expected_where_it_shows(tmp_path, monkeypatch, there, expected):
    def absent(name):
        raise OSError(name)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("ctypes.CDLL", absent)
    (tmp_path / "dev").mkdir()
    for name in there:
        (tmp_path / name).touch()
    assert machine.gpu_expected(tmp_path) is expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert machine.gpu_expected(tmp_path) is False
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("ctypes.CDLL", lambda name: name)
    assert machine.gpu_expected(tmp_path) is True


# ---- genkit doctor -------------------------------------------------------------------------------------------------------


def rows(text):
    """The table's, by name."""
    return dict(line.split("  ", 1) for line in text.splitlines() if "  " in line)


@needs_compiler
def test_doctor_tells_of_the_device(stand_in):
    folder, plugin = stand_in
    said = {name: value.strip() for name, value in rows(command(folder, plugin, "doctor").stdout).items()}
    assert said["cuda driver"] == "for CUDA 13.0" and said["cuda plugin"] == str(plugin) and said["cuda targets"] == "no GPU"
    assert said["cuda device"] == "a processor that stands in for a GPU" and said["compute capability"] == "0.0"
    assert said["cuda memory"].endswith("free of 1.0 GiB")
    assert said["auto"] == "the processor: its CUDA kernels have changed since they last ran on a GPU; --device cuda uses them"
    assert "auto" not in rows(command(folder, plugin, "proven", "doctor").stdout)  # it takes the GPU
    facts = json.loads(command(folder, plugin, "doctor", "--json").stdout)["cuda"]
    assert facts["present"] and facts["driver"] == {"version": "13.0", "reason": None}
    assert facts["plugin"] == {"path": str(plugin), "targets": "no GPU", "reason": None}
    assert facts["device"]["memory"] == 2**30 and 0 < facts["device"]["available"] < 2**30 and facts["device"]["reason"] is None


@needs_compiler
@pytest.mark.parametrize("answers, version, reason", [
    ({"cuDriverGetVersion": "*n = 12080; return 0;"}, "12.8", "the NVIDIA driver is for CUDA 12.8; 13.0 is needed (driver 580 or newer)"),
    ({"cuDeviceGetCount": "*n = 0; return 0;"}, "13.0", "the NVIDIA driver sees no device"),
    ({"cuDriverGetVersion": "return 3;"}, None, "the NVIDIA driver gives error 3 when asked for its version"),
])
def test_doctor_says_why_each_part_is_missing(stand_in, tmp_path, answers, version, reason):
    folder, plugin = driver(tmp_path, **answers), stand_in[1]
    said = {name: value.strip() for name, value in rows(command(folder, plugin, "doctor").stdout).items()}
    assert said["cuda driver"] == (f"for CUDA {version}; {reason}" if version else f"none: {reason}")
    assert said["cuda plugin"] == str(plugin)
    assert said["cuda device"] == said["cuda memory"] == said["compute capability"] == f"none: {reason}"
    assert said["auto"] == f"the processor: {reason}"
    facts = json.loads(command(folder, plugin, "doctor", "--json").stdout)["cuda"]
    assert not facts["present"] and facts["driver"] == {"version": version, "reason": reason} and facts["device"]["reason"] == reason


@needs_compiler
def test_doctor_without_a_plugin(stand_in):
    said = {name: value.strip() for name, value in rows(command(stand_in[0], "absent.so", "doctor").stdout).items()}
    assert said["cuda driver"] == "for CUDA 13.0" and said["cuda plugin"] == "none: CUDA is not built into this package"
    assert said["cuda device"] == "none: CUDA is not built into this package" and "cuda targets" not in said


@needs_compiler
def test_doctor_looks_for_cublaslt(stand_in, tmp_path):
    """A wheel's folder first; what cannot be opened is not it."""
    library = tmp_path / "nvidia/cu13/lib/libcublasLt.so.13"
    library.parent.mkdir(parents=True)
    library.write_text("no library")
    def said():
        environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
        return json.loads(command(*stand_in, "doctor", "--json", **environment).stdout)["cuda"]["cublaslt"]
    assert said()["path"] != str(library)
    (tmp_path / "empty.c").write_text("int nothing;")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "empty.c"], check=True)
    assert said() == {"path": str(library), "reason": "has no cublasLtCreate; the plugin's own kernels are used"}
    off = json.loads(command(*stand_in, "doctor", "--json", GENKIT_CUDA_BLAS="0").stdout)["cuda"]["cublaslt"]
    assert off == {"path": None, "reason": "GENKIT_CUDA_BLAS=0"}


def test_layers_asked_for_where_no_gpu_is(tmp_path):
    """auto goes on by the processor, and says so; --device cuda does not."""
    done = command(tmp_path, "absent.so", "generate", "hi", "-n", "2", "-ngl", "2")
    assert done.returncode == 0 and done.stderr.splitlines()[0].startswith("genkit: running on the processor, without --gpu-layers: ")
    assert command(tmp_path, "absent.so", "generate", "hi", "-n", "2", "-ngl", "2", "--device", "cuda").returncode == 5
