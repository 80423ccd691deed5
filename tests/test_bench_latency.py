"""genkit bench latency: what is timed is what it says, children are gone afterwards, and bad input is one line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import genkit
from cli_player import make_player
from genkit.bench.estimates import quantile
from genkit.bench.latency import measure, page_cache
from genkit.bench.latency.prompts import prompt_of
from genkit.bench.results import Results, parse_results
from genkit.bench.subjects import open_subjects
from genkit.errors import BadFileError
from genkit.opening import open_model
from genkit.plan import Decoder

GENKIT = [sys.executable, "-m", "genkit", "bench", "latency"]


def run(*arguments, **environment):
    return subprocess.run(GENKIT + [str(a) for a in arguments], capture_output=True, text=True, timeout=240,
                          stdin=subprocess.DEVNULL, env=os.environ | environment)


def driver(name):
    spec = importlib.util.spec_from_file_location(name, measure.DRIVERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Driver()


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    return make_player(tmp_path_factory.mktemp("models") / "player", context=256)


def by_test(results):
    return {row.id["test"]: row for row in results.rows}


def test_default_model(tmp_path):
    done = run("-r", 2, "-n", 500, "-p", 20, "-t", 1, "--json", "-o", tmp_path / "out.json", "-q")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    results = parse_results(json.loads(done.stdout))
    assert json.loads((tmp_path / "out.json").read_text())["rows"] and results.kind == "latency" and results.complete
    rows = by_test(results)
    assert list(rows) == [measure.COLD, measure.WARM, measure.LOADED, "token p50", "token p95", "token p99", "token max",
                          "text gap p50", "text gap p95", "text gap p99", "text gap max", measure.PEAK]
    for row in rows.values():
        assert len(row.samples) == len(row.others) == 2 and min(row.samples) > 0 and not row.failure
        assert row.id["model"] == "default" and row.id["threads"] == 1 and row.better == "less"
        assert row.facts["prompt"] == 20 and row.facts["generate"] == 500 and row.facts["load_s"] > 0
    for what in ("token", "text gap"):
        for quantiles in zip(*(rows[f"{what} {name}"].samples for name in measure.SHARES)):
            assert list(quantiles) == sorted(quantiles)
    assert min(rows["text gap p50"].samples) > measure.TOGETHER
    weights = (genkit.DEFAULT_MODEL / "model.safetensors").stat().st_size
    assert rows[measure.PEAK].unit == "B" and min(rows[measure.PEAK].samples) > weights
    # A new process imports Python's half; a loaded model does not.
    assert min(rows[measure.WARM].samples) > 3 * max(rows[measure.LOADED].samples)


def test_shape(tmp_path):
    done = run("--shape", "smollm2-135m", "--type", "int4", "-r", 1, "-n", 40, "-q", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (tmp_path / "genkit-bench/shapes/smollm2-135m-bf16/model.safetensors").stat().st_size > 269e6
    lines = [line for line in done.stdout.splitlines() if line.startswith("smollm2-135m")]
    assert len(lines) == 12 and all(" int4 " in line for line in lines) and measure.COLD in lines[0]


def test_start_is_timed_to_the_first_byte_and_counts_its_own_memory():
    held = bytearray(400 << 20)  # what the parent holds must not be counted
    held[:: 4096] = b"x" * len(held[:: 4096])
    code = "import time; a = b'x' * {}; time.sleep(0.4); print('text', flush=True); time.sleep({})"
    started = time.monotonic()
    with measure._worker("starter.py", Path(os.devnull)) as worker:
        small = worker.call("start", command=[sys.executable, "-c", code.format(10, 60)], to_the_end=False)
        assert time.monotonic() - started < 30  # ended after its first byte
        large = worker.call("start", command=[sys.executable, "-c", code.format(200 << 20, 0)], to_the_end=True)
        silent = worker.call("start", command=[sys.executable, "-c", "import sys; sys.exit('one\\ntwo words')"], to_the_end=True)
    assert 0.4 <= small["first_s"] < 10 and small["peak"] < 100 << 20
    assert large["peak"] > 200 << 20 and large["code"] == 0
    assert silent["first_s"] is None and silent["code"] == 1 and silent["said"] == "two words"
    del held


def test_steps_are_timed_one_by_one(monkeypatch, player):
    loaded = driver("loaded")
    loaded.load(str(player), threads=1, quantize="none")
    draw, calls = Decoder.draw, []

    def slow_now_and_then(*arguments):
        calls.append(None)
        if len(calls) % 10 == 0:
            time.sleep(0.1)
        return draw(*arguments)

    monkeypatch.setattr(Decoder, "draw", slow_now_and_then)
    ids = list(range(30, 50))
    found = loaded.tokens(ids, 61)
    assert found["tokens"] == loaded.model.generate(ids, max_tokens=61, ignore_eos=True).tokens
    assert len(found["seconds"]) == 60 and sum(seconds > 0.1 for seconds in found["seconds"]) == 6
    assert quantile(found["seconds"], 0.5) < 0.1 < quantile(found["seconds"], 0.95)


def test_text_that_comes_at_once_has_no_gaps(player):
    with ExitStack() as stack:
        subject, = open_subjects([str(player)], [], [], "auto", 0, stack)
        results = Results("latency", {})
        measure.measure(results, [subject], [1], "cpu", measure.Settings(3, 2, 1, 0.0))
    rows = by_test(results)
    assert "a larger -n" in rows["text gap p50"].failure and not rows["text gap p50"].samples
    assert len(rows["token max"].samples) == 1


def test_page_cache(tmp_path):
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True).stdout.strip()
    if kind in ("", "tmpfs", "ramfs") or not hasattr(os, "posix_fadvise"):
        pytest.skip("needs files on a disk")
    path = tmp_path / "file"
    path.write_bytes(os.urandom(64 << 20))
    assert page_cache.share_held([path]) == 1
    assert page_cache.drop([path]) and page_cache.share_held([path]) < 0.05
    with open(path, "rb", buffering=0) as file:
        file.read(4096)  # and what the system reads ahead
    assert 0 < page_cache.share_held([path]) < 0.9


@pytest.mark.parametrize("count", [1, 16, 333, 5000])
def test_prompts_have_as_many_tokens_as_asked_for(count):
    with ExitStack() as stack:
        tokenizer = open_model(Path(genkit.DEFAULT_MODEL), stack).tokenizer()
    text, ids = prompt_of(tokenizer, count)
    assert len(ids) == count and tokenizer.encode(text) == ids


def test_a_child_that_fails(player, tmp_path):
    with ExitStack() as stack:
        subject, = open_subjects([str(player)], [], [], "auto", 0, stack)
        case = measure.Case(subject, 1, "cpu", path=tmp_path / "gone", text="x", ids=[5])
        with pytest.raises(BadFileError, match="player f32: the command failed: .*gone: no such folder"):
            measure._start(case, measure.Settings(), Path(measure.__file__), tmp_path / "log", True)


def test_interrupt_shows_what_there_is_and_ends_the_children(tmp_path):
    arguments = ["-r", "50", "-n", "100", "-q", "--json", "-o", str(tmp_path / "out.json")]
    process = subprocess.Popen(GENKIT + arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                               env=os.environ | {"TMPDIR": str(tmp_path)})

    def children():
        """Processes with the run's own folder on their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if str(tmp_path / "genkit-latency").encode() in path.read_bytes():
                    found.append(path.parent.name)
            except OSError:
                pass
        return found

    deadline, starts = time.monotonic() + 60, 0
    while starts < 3 and time.monotonic() < deadline:  # in the second repetition
        starts += bool(children())
        while children() and time.monotonic() < deadline and starts < 3:
            time.sleep(0.02)
        time.sleep(0.02)
    assert children()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == b""
    results = parse_results(json.loads(out))
    assert not results.complete and len(by_test(results)["token p50"].samples) == 1
    assert json.loads((tmp_path / "out.json").read_text())["complete"] is False
    assert not children() and not list(tmp_path.glob("genkit-latency*"))


@pytest.mark.parametrize("arguments, code, said", [
    (["-p", "0"], 2, "-p 0: at least 1"), (["-n", "1"], 2, "-n 1: at least 2"), (["-r", "-1"], 2, "-r -1: at least 1"),
    (["-t", "0"], 2, "-t 0"), (["-t", "1,x"], 2, "-t x"), (["-n", "100000"], 2, "beyond its context of"),
    (["--shape", "llama-9b"], 2, "known: "), (["--type", "int3"], 2, "int3"), (["--type", "f32"], 2, "f32"),
    (["-m", "nowhere"], 3, "nowhere"), (["-o", "x.docx"], 2, "x.docx"), (["--shape", "llama-3.1-70b"], 4, "141 GB"),
    (["-n", "many"], 2, "'many' is not a whole number"),
])
def test_bad_input_is_one_line(arguments, code, said, tmp_path):
    if "llama-3.1-70b" in arguments and genkit.machine.memory_available() > 141e9:
        pytest.skip("so much memory is there")
    done = run(*arguments, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == code and said in done.stderr, done.stderr
    assert done.stderr.startswith("genkit: error: ") and done.stderr.count("\n") == 1 and done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_model_without_tokenizer(player, tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((player / name).read_bytes())
    done = run("-m", tmp_path)
    assert done.returncode == 2 and "has no tokenizer" in done.stderr and done.stderr.count("\n") == 1
