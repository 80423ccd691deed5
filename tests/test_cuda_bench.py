"""`genkit bench` on a GPU, over the plugin whose device is a stand-in: what is measured where and what is said of it. Its speeds
mean nothing."""

import json

import pytest
from test_cuda import needs_compiler, stand_in  # noqa: F401
from test_cuda_layers import WORKSPACE, command

import genkit
from genkit.bench import passes

SHORT = ("-p", "3", "-n", "2", "-r", "1", "--warmup", "0", "-q")


@needs_compiler
def test_models_on_both_side_by_side(stand_in, tmp_path):  # noqa: F811
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
            assert row["facts"]["device_memory"] > row["facts"]["weight_bytes"] > 0
        else:
            assert "device_memory" not in row["facts"]
    gpu = found["machine"]["cuda"]
    assert "stands in for a GPU" in gpu["name"] and gpu["driver"] == "13.0" and gpu["targets"] == "no GPU"
    assert 0 < gpu["available"] <= gpu["memory"]


@needs_compiler
def test_the_table_tells_of_the_gpu(stand_in):  # noqa: F811
    lines = command(*stand_in, "bench", "--device", "cuda", *SHORT).stdout.splitlines()
    assert any(line.split()[0] == "gpu" and "driver for CUDA 13.0" in line for line in lines if line)
    assert any("on the GPU" in line and "share of limit" in line for line in lines)


@needs_compiler
def test_limits_are_the_devices_own(stand_in):  # noqa: F811
    done = command(*stand_in, "bench", "limits", "--device", "cuda", "--bytes", "64KiB,300001", "-r", "1", "-q", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["id"] for row in found["rows"]] == [
        *({"what": what, "bytes": size, "device": "cuda"} for size in (65536, 300001) for what in ("read", "copy")),
        *({"what": "arithmetic", "kind": kind, "device": "cuda"} for kind in ("f32", "bf16", "int8"))]
    assert all(row["median"] > 0 for row in found["rows"]) and "stands in for a GPU" in found["machine"]["cuda"]["name"]


@needs_compiler
@pytest.mark.parametrize("more, code, words", [
    (("-t", "1"), 2, "-t is of the processor"), (("--tier", "avx2"), 2, "--tier is of the processor"),
    (("--bytes", "64"), 2, "too small for a GPU"), (("--bytes", "1TiB"), 4, "do not fit")])
def test_limits_that_cannot_be(stand_in, more, code, words):  # noqa: F811
    done = command(*stand_in, "bench", "limits", "--device", "cuda", *more)
    assert done.returncode == code and not done.stdout and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@needs_compiler
@pytest.mark.parametrize("subcommand", ["latency"])
def test_what_is_not_measured_there_says_so(stand_in, subcommand):  # noqa: F811
    done = command(*stand_in, "bench", subcommand, "--device", "cuda", "-q")
    assert done.returncode == 5 and not done.stdout
    assert done.stderr.splitlines() == ["genkit: error: --device cuda: only genkit bench itself and bench limits measure on a GPU yet; use --device cpu"]


@needs_compiler
@pytest.mark.parametrize("room, more, words", [
    (3 << 20, (), "is free on cuda"), (14 << 20, (), "of 5 layers fit on cuda"), (40 << 20, (), ""),
    (40 << 20, ("--batch", "64", "--depth", "1000"), "keys and values of 1003 tokens in 64 sequence(s)")])
def test_a_model_is_there_whole_or_not_measured(stand_in, room, more, words):  # noqa: F811
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
