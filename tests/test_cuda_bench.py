"""`genkit bench` on a GPU, over the plugin whose device is a stand-in: what is measured where and what is said of it. Its speeds
mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_stand_in import needs_compiler
from test_cuda_layers import WORKSPACE, command

import genkit
from genkit.bench import passes
from genkit.bench.latency import measure

SHORT = ("-p", "3", "-n", "2", "-r", "1", "--warmup", "0", "-q")


@needs_compiler
def test_models_on_both_side_by_side(stand_in, tmp_path):
    done = command(*stand_in, "bench", "--device", "cpu,cuda", "-t", "1,2", *SHORT, "--json", "-o", tmp_path / "a.html",
                   "--plot", tmp_path / "a.svg")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {(row["id"]["device"], row["id"]["threads"], row["id"]["test"]): row for row in found["rows"]}
    assert set(rows) == {("cpu", 1, "pp3"), ("cpu", 1, "tg2"), ("cpu", 2, "pp3"), ("cpu", 2, "tg2"), ("cuda", 2, "pp3"), ("cuda", 2, "tg2")}
    for (device, _, _), row in rows.items():
        assert row["median"] > 0 and (row["facts"]["tier"] == "cuda") == (device == "cuda")
        assert row["share"]["median"] > 0 and row["facts"]["bound"] in ("read", "f32", "bf16", "int8")
        if device == "cuda":
            assert row["facts"]["device_peak"] >= row["facts"]["device_memory"] > row["facts"]["weight_bytes"] > 0
        else:
            assert not {"device_memory", "device_peak"} & set(row["facts"])
    gpu = found["machine"]["cuda"]
    assert "stands in for a GPU" in gpu["name"] and gpu["driver"] == "13.0" and gpu["targets"] == "no GPU"
    assert 0 < gpu["available"] <= gpu["memory"]


@needs_compiler
def test_the_table_tells_of_the_gpu(stand_in):
    lines = command(*stand_in, "bench", "--device", "cuda", *SHORT).stdout.splitlines()
    assert any(line.split()[0] == "gpu" and "driver for CUDA 13.0" in line for line in lines if line)
    assert any("on the GPU" in line and "share of limit" in line for line in lines)


@needs_compiler
def test_limits_are_the_devices_own(stand_in):
    done = command(*stand_in, "bench", "limits", "--device", "cuda", "--bytes", "64KiB,300001", "-r", "1", "-q", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["id"] for row in found["rows"]] == [
        *({"what": what, "bytes": size, "device": "cuda"} for size in (65536, 300001) for what in ("read", "copy")),
        *({"what": "arithmetic", "kind": kind, "device": "cuda"} for kind in ("f32", "bf16", "int8"))]
    assert all(row["median"] > 0 for row in found["rows"]) and "stands in for a GPU" in found["machine"]["cuda"]["name"]
    near = command(*stand_in, "bench", "limits", "-t", "1", "--bytes", "64KiB", "-r", "1", "-q", "--json")  # auto, of what a GPU has not
    assert near.returncode == 0 and json.loads(near.stdout)["rows"][0]["id"] == {"what": "read", "bytes": 65536, "threads": 1}


@needs_compiler
@pytest.mark.parametrize("more, code, words", [
    (("-t", "1"), 2, "-t is of the processor"), (("--tier", "avx2"), 2, "--tier is of the processor"),
    (("--bytes", "64"), 2, "too small for a GPU"), (("--bytes", "1TiB"), 4, "do not fit")])
def test_limits_that_cannot_be(stand_in, more, code, words):
    done = command(*stand_in, "bench", "limits", "--device", "cuda", *more)
    assert done.returncode == code and not done.stdout and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


# ---- genkit bench kernels ------------------------------------------------------------------------------------------------

SOME_KERNELS = """
import json, sys
from genkit import machine
machine.CUDA_PLUGIN = sys.argv[1]
from genkit.bench.kernels import measure as measuring
from genkit.bench.kernels.case import Scope, Sizes
from genkit.bench.results import Results
measuring.SAMPLE, measuring.DEVICE_REPLAY = 1e-4, 0.0
assert machine.cuda_state()[0]
sizes = Sizes(hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=192, vocab=301, experts=8, experts_per_token=2, expert_width=32)
scope = Scope(sizes, (3,), (70,), ("f16", "int4"), 1 << 13, "cuda")
names = ("linear", "packed", "unpack", "expert", "group", "embed", "attention", "rope_", "rms_norm", "bias", "sample", "convert")
results = Results("kernels", {})
measuring.measure(results, measuring.Request(scope, names, repetitions=2, seconds=0))
print(json.dumps(results.as_dict()))
"""


@needs_compiler
def test_kernels_of_every_family(stand_in):
    folder, plugin = stand_in
    done = subprocess.run([sys.executable, "-c", SOME_KERNELS, plugin], capture_output=True, text=True, timeout=600,
                          env=os.environ | {"LD_LIBRARY_PATH": str(folder)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "stands in for a GPU" in found["machine"]["cuda"]["name"] and any("limits are of the GPU's memory" in note for note in found["notes"])
    rows = {(row["id"]["kernel"], row["id"]["case"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) and {kernel for kernel, _ in rows} == {
        "linear", "packed_linear", "unpack", "expert_linear", "group_rows", "embedding", "attention", "rope_kv_write", "rope_table",
        "rms_norm", "bias", "sample", "convert"}
    for row in found["rows"]:
        assert list(row["id"]) == ["kernel", "case", "rows", "device"] and row["id"]["device"] == "cuda" and not row["failure"]
        assert len(row["samples"]) == 2 and min(row["samples"]) > 0 and row["share"]["median"] > 0 and row["facts"]["seconds"] > 0
        assert set(row["facts"]["served_by"]) == {"cuda"} and "running_threads" not in row["facts"]
    kinds = {row["limit"]["of"] for row in found["rows"]}
    assert kinds <= {"read", "f32", "bf16", "int8"}
    # The limit is one of memory: rows of one moment share it, whatever they touch.
    reads = [row["limit"]["samples"][0] for row in found["rows"] if row["limit"]["of"] == "read"]
    assert len(reads) > len(set(reads))


@needs_compiler
def test_the_kernels_command(stand_in):
    small = {"GENKIT_STAND_IN_MEMORY": str(WORKSPACE + (8 << 20)), "GENKIT_CUDA_BLAS": "0"}
    done = command(*stand_in, "proven", "bench", "kernels", "add", "--rows", "1,2", "--device", "auto", "-r", "1", "-q", **small)
    assert done.returncode == 0, done.stderr
    assert "device cuda" in done.stdout and "us/call" in done.stdout and any(line.startswith("gpu ") for line in done.stdout.splitlines())
    near = command(*stand_in, "bench", "kernels", "add", "--rows", "1", "-t", "1", "-r", "1", "-q", "--json", **small)
    assert near.returncode == 0 and json.loads(near.stdout)["rows"][0]["id"]["tier"] and "cuda" not in json.loads(near.stdout)["machine"]


@needs_compiler
@pytest.mark.parametrize("more, code, words", [
    (("add", "-t", "1"), 2, "-t is of the processor"), (("add", "--tier", "avx2"), 2, "--tier is of the processor"),
    (("pack",), 2, "on the processor"), (("linear",), 4, "are free; take a smaller --shape")])
def test_kernels_that_cannot_be(stand_in, more, code, words):
    small = {"GENKIT_STAND_IN_MEMORY": str(WORKSPACE + (8 << 20)), "GENKIT_CUDA_BLAS": "0"}
    done = command(*stand_in, "bench", "kernels", *more, "--device", "cuda", "-q", **small)
    assert done.returncode == code and not done.stdout and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


# ---- genkit bench latency ------------------------------------------------------------------------------------------------


@needs_compiler
def test_latency(stand_in, tmp_path):
    """Its children are genkits of their own: a package with the plugin beside its core."""
    folder, plugin = stand_in
    package = tmp_path / "genkit"
    package.mkdir()
    for entry in Path(genkit.__file__).parent.iterdir():
        if entry.name not in ("__pycache__", "libgenkit_cuda.so"):
            (package / entry.name).symlink_to(entry)
    (package / "libgenkit_cuda.so").symlink_to(plugin)
    arguments = ["bench", "latency", "--device", "cuda", "-p", "3", "-n", "3", "-r", "1", "-t", "1,2", "-q", "--json"]
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "genkit", *arguments], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = json.loads(done.stdout)
    rows = {row["id"]["test"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 14 and {measure.AHEAD, measure.PEAK_THERE} <= set(rows) and found["settings"]["device"] == "cuda"
    for test, row in rows.items():
        assert row["id"]["device"] == "cuda" and row["id"]["threads"] == 2 and row["facts"]["tier"] == "cuda"
        assert len(row["samples"]) == 1 and row["samples"][0] > 0 or test.startswith("text gap")
    assert "stands in for a GPU" in found["machine"]["cuda"]["name"]
    small = environment | {"GENKIT_STAND_IN_MEMORY": str(WORKSPACE + (3 << 20)), "GENKIT_CUDA_BLAS": "0"}
    done = subprocess.run([sys.executable, "-m", "genkit", *arguments], capture_output=True, text=True, timeout=600, env=small)
    assert done.returncode == 4 and not done.stdout and "is free on cuda" in done.stderr and len(done.stderr.splitlines()) == 1


def test_latency_without_a_plugin(tmp_path):
    done = command(tmp_path, "absent.so", "bench", "latency", "--device", "cuda", "-q")
    assert done.returncode == 5 and not done.stdout and len(done.stderr.splitlines()) == 1


# ---- genkit bench --------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("room, more, words", [
    (3 << 20, (), "is free on cuda"), (14 << 20, (), "of 5 layers fit on cuda"), (40 << 20, (), ""),
    (40 << 20, ("--batch", "64", "--depth", "1000"), "keys and values of 1003 tokens in 64 sequence(s)")])
def test_a_model_is_there_whole_or_not_measured(stand_in, room, more, words):
    small = {"GENKIT_STAND_IN_MEMORY": str(WORKSPACE + room), "GENKIT_CUDA_BLAS": "0"}
    done = command(*stand_in, "bench", "--device", "cuda", *SHORT, *more, **small)
    if words:
        assert done.returncode == 4 and not done.stdout and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_without_a_plugin_nothing_is_measured(tmp_path):
    done = command(tmp_path, "absent.so", "bench", "--device", "cpu,cuda", *SHORT)
    assert done.returncode == 5 and not done.stdout and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("test", ["prompt", "decode"])
def test_the_device_is_waited_for_before_each_look_at_the_clock(test, monkeypatch):
    seen = []

    class Clock:
        @staticmethod
        def perf_counter():
            seen.append("clock")
            return 0.0

    loaded = genkit.load(genkit.DEFAULT_MODEL, device="cpu")
    measured = passes.Passes(loaded, [0], 1, 3)
    measured.fill(1, lambda done, total: None)
    monkeypatch.setattr(passes, "time", Clock)
    monkeypatch.setattr(passes, "wait", lambda device: seen.append(device))
    getattr(measured, test)(1, 0, 3)
    assert seen == ["cpu", "clock"] * 2
