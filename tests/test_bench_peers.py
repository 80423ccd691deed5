"""The side-by-side benchmark with made-up drivers in real processes: no peer is needed, no test depends on time."""

import json
import os
import signal
import subprocess
import sys
import time

import genkit
import numpy as np
import pytest
from genkit.bench.peers import agreement, engines, faster, files, measure, run
from genkit.bench.peers.engines import Engine
from genkit.bench.peers.files import WorkFolder
from genkit.bench.peers.gguf import write_gguf
from genkit.bench.peers.measure import Comparison, Settings
from genkit.bench.peers.process import Failed, Worker
from genkit.bench.peers.workloads import Workload, workloads
from genkit.bench.report.document import document
from genkit.bench.report.files import markdown
from genkit.bench.report.text import plain
from genkit.bench.results import Results, machine_facts, parse_results
from genkit.cli import failure
from genkit.cli.app import app
from genkit.errors import ResourceError, UsageError

# ---- made-up engines -----------------------------------------------------------------------------------------------

# A driver whose clock is an option: `speed` tokens a second; and so are the ways to go wrong.
FAKE = """
import os, signal, time
import numpy as np


class Driver:
    def __init__(self, speed=100.0, trouble="", quantize=""):
        self.speed, self.trouble = speed, trouble

    def about(self):
        print("noise on standard output")
        os.write(1, b"and from a library\\n")
        return {"version": "fake 1", "settings": "made up"}

    def write(self, source, out, threads):
        if self.trouble == "write":
            raise ValueError("two\\nlines")
        with open(out, "w") as file:
            file.write("weights")

    def load(self, path, threads, context):
        assert os.path.exists(path) and threads == 3
        if self.trouble == "load":
            raise MemoryError("no room")
        return {"seconds": 10 / self.speed}

    def check(self, prompts, out):
        if self.trouble == "SIGILL":
            os.kill(os.getpid(), signal.SIGILL)
        logits = np.array([[(7 * sum(ids) + 13 * j) % 101 for j in range(50)] for ids in prompts], np.float32)
        if self.trouble == "shifted":
            logits += 5
        if self.trouble == "others":
            logits = logits[:, ::-1].copy()
        if self.trouble == "nan":
            logits[3, 3] = np.nan
        if self.trouble == "few":
            logits = logits[:, :40].copy()
        if self.trouble in ("tokens", "other tokens"):
            return [int(row.argmax() if self.trouble == "tokens" else row.argmin()) for row in logits]
        logits.tofile(out)

    def cost(self, kind, sequences, before, tokens):
        # A second's worth at 100 tokens a second of a machine that reads 1e9 bytes or does 1e9 operations.
        share = tokens * sequences / 100
        read, compute = (1e8, 1e9) if kind == "prefill" else (1e9, 1e6)
        return {"nbytes": read * share, "operations": {"int8": compute * share, "f32": 1.0}, "walked": 1e6,
                "facts": {"tier": "made up"}}

    def prefill(self, before, ids):
        return len(ids) / self.speed

    def decode(self, prompts, tokens):
        if self.trouble == "abort":
            os.abort()
        if self.trouble == "exit":
            os._exit(3)
        if self.trouble == "hang":
            time.sleep(60)
        return tokens / self.speed
"""

LIMITS = """
class Driver:
    def read(self, nbytes, threads):
        assert nbytes == 1_000_000
        return 1e9

    def peak(self, kind, threads):
        return {"int8": 1e9}[kind]  # what hardly counts is not asked for
"""

OURS = Engine("genkit-int4", "genkit", "int4", "int4", {"speed": 50.0}, same=False)


def fake(name, type="int4", file="fake.bin", same=False, family="fake", **options):
    return Engine(name, family, type, "made up", options, file, "fake", same)


@pytest.fixture
def drivers(tmp_path):
    folder = tmp_path / "drivers"
    folder.mkdir()
    texts = {"fake": FAKE, "genkit": FAKE, "llama_cpp": FAKE, "limits": LIMITS, "missing": "import no_such_package_at_all"}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


TESTS = workloads([8], [8], batches=[1, 2], load=True)


def compare(drivers, model, chosen, tests=TESTS, rounds=3, **more):
    settings = Settings(model, "made-up", "bf16", 50, 100, 0.0, 3, rounds, patience=0.0, retries=0, drivers=drivers, **more)
    results = Results("against", machine_facts())
    work = WorkFolder(model.parent / "work", model)
    try:
        Comparison(results, settings, chosen, tests, work).run()
    finally:
        work.close()
    return {(row.id["engine"], row.id["test"], row.id["batch"]): row for row in results.rows}, results


def worker(drivers, tmp_path, name="fake", **options):
    return Worker(drivers / f"{name}.py", options, sys.executable, {}, tmp_path / "log")


def test_a_run_takes_every_test_of_every_engine_once_a_round(drivers, model):
    rows, results = compare(drivers, model, [OURS, fake("slow", speed=20.0), fake("quick", "int8", speed=200.0),
                                             fake("quick4", speed=100.0)])
    assert not any(row.failure for row in rows.values()) and len(rows) == 16
    ours, slow = rows["genkit-int4", "pp8", 1], rows["slow", "pp8", 1]
    assert list(ours.id) == ["model", "engine", "weights", "threads", "batch", "test"] and ours.id["model"] == "made-up"
    assert ours.samples == [pytest.approx(50)] * 3 and rows["slow", "tg8", 2].samples == [pytest.approx(40)] * 3
    assert rows["slow", "load", 1].samples == [0.5] * 3 and rows["slow", "load", 1].better == "less"
    assert slow.facts["file_bytes"] == len("weights") and slow.facts["version"] == "fake 1"
    assert slow.facts["weights_by"] == "fake" and slow.facts["settings"] == "made up" and slow.facts["peak_memory"] > 0
    # A kind of test has its own limit, measured beside each sample: half of the machine at half of 100 tokens a second.
    assert (ours.limit.of, ours.limit.samples, ours.shares) == ("int8", [1e9] * 3, [pytest.approx(0.5)] * 3)
    decode = rows["genkit-int4", "tg8", 1]
    assert decode.limit.of == "read" and decode.shares == [pytest.approx(0.5)] * 3 and decode.facts["tier"] == "made up"
    # Ratios: to the peers of the same type, loading the other way round.
    assert slow.facts["ratio"]["of"] == "genkit-int4" and slow.facts["ratio"]["samples"] == [pytest.approx(2.5)] * 3
    assert rows["quick4", "tg8", 2].facts["ratio"]["median"] == pytest.approx(0.5)
    assert rows["slow", "load", 1].facts["ratio"]["median"] == pytest.approx(2.5)
    assert "ratio" not in rows["quick", "pp8", 1].facts and "ratio" not in ours.facts
    assert slow.facts["agreement"] | {"error": 0.0} == {
        "prompts": 16, "same_tokens": 16, "error": 0.0, "bound": 0.9, "expected": agreement.OTHERS["int4"].what, "agrees": True}
    # What is shown has the ratio beside the speed, and the file holds everything.
    assert "genkit, times as fast" in plain(document(results)) and "2.50 (2.50-2.50)" in plain(document(results))
    assert "2.50 (2.50-2.50) |" in markdown(document(results))
    assert parse_results(json.loads(json.dumps(results.as_dict()))).rows[4].facts == results.rows[4].facts
    missed = list(faster.missed(results.rows, 1.0))
    assert len(missed) == 4 and missed[0] == "genkit-int4 is 0.5 times as fast as quick4 at pp8"
    assert missed[2] == "genkit-int4 is 0.5 times as fast as quick4 at tg8 of 2"
    assert list(faster.missed(results.rows, 0.5)) == []


@pytest.mark.parametrize("trouble, words", [("abort", "SIGABRT"), ("exit", "exit code 3")])
def test_a_crash_is_a_row_and_the_other_tests_go_on(drivers, model, trouble, words):
    rows, results = compare(drivers, model, [OURS, fake("bad", trouble=trouble), fake("good")], TESTS[:2], rounds=2)
    bad = rows["bad", "tg8", 1]
    assert words in bad.failure and "decode" in bad.failure and bad.samples == []
    assert rows["bad", "pp8", 1].samples == [pytest.approx(100)] * 2 == rows["good", "tg8", 1].samples
    assert "ratio" in rows["bad", "pp8", 1].facts and "ratio" not in bad.facts
    assert f"failed: {bad.failure}" in plain(document(results))


@pytest.mark.parametrize("engine, words", [
    (fake("gone", family="missing"), "not installed: No module named 'no_such_package_at_all'"),
    (fake("full", trouble="load"), "load: MemoryError: no room"),
    (fake("unwritable", file="x.bin", trouble="write"), "write: ValueError: two lines"),
    (fake("no-driver", family="absent"), "FileNotFoundError"),
    (fake("few", trouble="few"), "check:"),
    (fake("gcc", family="llama.cpp", file=None, trouble="SIGILL"), "SIGILL"),
])
def test_an_engine_that_cannot_start_is_a_row(drivers, model, engine, words):
    rows, _ = compare(drivers, model, [engine, fake("good")], TESTS[:1], rounds=1)
    bad = rows[engine.name, "pp8", 1]
    assert words in bad.failure and bad.samples == [] and ("clang" in bad.failure) == (engine.name == "gcc")
    assert rows["good", "pp8", 1].samples == [pytest.approx(100)]


def test_pictures_of_another_torch_do_not_matter(tmp_path):
    """No driver finds torchvision: transformers looks for it as this one does, and loads what it finds with every model."""
    (tmp_path / "torchvision.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    (tmp_path / "driver.py").write_text("from importlib.util import find_spec\n\n\nclass Driver:\n    def about(self):\n"
                                        "        return str(find_spec('torchvision'))\n")
    worker = Worker(tmp_path / "driver.py", {}, sys.executable, {"PYTHONPATH": str(tmp_path)}, tmp_path / "log")
    try:
        assert worker.call("about") == "None"
    finally:
        worker.close()


def test_an_engine_that_does_not_fit_says_what_it_needs(drivers, model, monkeypatch):
    monkeypatch.setattr(measure.machine, "memory_available", lambda: 5)
    rows, _ = compare(drivers, model, [fake("large")], TESTS[:1], rounds=1)
    assert "10 bytes" in rows["large", "pp8", 1].failure and "5 bytes" in rows["large", "pp8", 1].failure


def test_a_cache_that_does_not_fit_is_known_before(tmp_path):
    """Of the real command: 10**6 sequences of 1,009 tokens, whose keys and values nobody allocates."""
    done = command("transformers", "-p", "none", "-n", "8", "-r", "1", "--depth", "1000", "--batch", "1000000", "--type", "int8", "--json",
                   "--work", tmp_path / "work")
    (row,) = json.loads(done.stdout)["rows"]
    assert done.returncode == 0 and "GB of memory" in row["failure"] and "free" in row["failure"]


def test_engines_leave_memory_to_one_another(drivers, model, monkeypatch):
    free = iter([100, 100, 100] + [5, 100] * 50)  # for the head, the reference and the first; each later load finds room only after somebody has gone
    monkeypatch.setattr(measure.machine, "memory_available", lambda: next(free))
    rows, _ = compare(drivers, model, [fake("a"), fake("b", file="b.bin")], TESTS[:1], rounds=2)
    assert [row.samples for row in rows.values()] == [[pytest.approx(100)] * 2] * 2


def test_without_the_limits_there_are_still_figures(drivers, model):
    (drivers / "limits.py").write_text("class Driver:\n    pass")
    rows, results = compare(drivers, model, [OURS], TESTS[1:2], rounds=2)
    row = rows["genkit-int4", "tg8", 1]
    assert row.samples == [pytest.approx(50)] * 2 and row.shares == [None, None] and row.limit is None
    assert sum("could not be measured" in note and "read" in note for note in results.notes) == 1


def test_more_rounds_until_the_interval_is_narrow(drivers, model):
    # Its clock runs differently each time: an interval that stays wide, until the time is out.
    (drivers / "wild.py").write_text(FAKE.replace("return len(ids) / self.speed",
                                                  "self.n = getattr(self, 'n', 0) + 1; return self.n ** 3"))
    many = compare(drivers, model, [fake("wild", family="wild")], TESTS[:1], rounds=2, ci=0.01, seconds=0.5)[0]
    few = compare(drivers, model, [fake("wild", family="wild")], TESTS[:1], rounds=2, ci=0.01, seconds=0.0)[0]
    even = compare(drivers, model, [fake("even")], TESTS[:1], rounds=2, ci=0.01, seconds=60.0)[0]
    assert [len(rows[next(iter(rows))].samples) for rows in (few, even)] == [2, 2]
    assert len(many["wild", "pp8", 1].samples) > 3


# ---- agreement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble, agrees", [("", True), ("shifted", True), ("tokens", True), ("others", False), ("nan", False),
                                             ("other tokens", False)])
@pytest.mark.parametrize("same", [True, False])
def test_who_computes_something_else_has_no_ratio(drivers, model, trouble, agrees, same):
    rows, results = compare(drivers, model, [OURS, fake("peer", same=same, trouble=trouble)], TESTS[:1], rounds=1)
    row = rows["peer", "pp8", 1]
    assert row.samples == [pytest.approx(100)] and row.facts["agreement"]["agrees"] is agrees
    assert ("ratio" in row.facts) is agrees
    assert any("does not agree" in note for note in row.noise) is not agrees
    assert ("does not agree with genkit" in plain(document(results))) is not agrees
    assert row.facts["agreement"]["bound"] == (agreement.CODES if same else agreement.OTHERS["int4"]).error or "token" in trouble


def test_agreement_by_logits_and_by_tokens():
    ours = np.array([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]], np.float32)
    bound = agreement.Bound(0.1, 0.5, "b")
    assert agreement.compare(ours, ours + 7, bound)["error"] == pytest.approx(0)  # softmax does not see it
    assert agreement.compare(ours, 1.05 * ours, bound)["error"] == pytest.approx(0.05)
    found = agreement.compare(ours, 1.2 * ours, bound)
    assert found["error"] == pytest.approx(0.2) and not found["agrees"] and found["same_tokens"] == 2
    assert "logits differ by 0.2 of ours (bound 0.1, b), 2 of 2" in agreement.words(found)
    # The second best once: 1 of a deviation of 1.118, over two prompts.
    found = agreement.compare(ours, [3, 1], bound)
    assert found["regret"] == pytest.approx(0.5 / 1.25**0.5) and found["same_tokens"] == 1 and found["agrees"]
    assert "0.45 deviations below our best" in agreement.words(found)
    for wrong in ([3], [3, 4], [-1, 0], ours[:1]):
        with pytest.raises(ValueError):
            agreement.compare(ours, wrong, bound)


def test_whose_ratio_is_of_whom():
    contender = lambda *arguments, **more: measure.Contender(Engine(*arguments, **more))  # noqa: E731
    ours, floats = contender("genkit-int4", "genkit", "int4", "", same=False), contender("genkit-bf16", "genkit", "bf16", "")
    file = contender("genkit-q4_0", "genkit", "int4", "", file="q4_0", usual=False)
    peer, other = contender("a", "llama.cpp", "int4", "", file="q4_0"), contender("b", "openvino", "int4", "", file="x")
    everybody = [ours, floats, file, peer, other]
    assert faster.ours(peer, everybody) is file  # the very same file
    assert faster.ours(other, everybody) is ours and faster.ours(file, everybody) is ours
    assert faster.ours(ours, everybody) is None and faster.ours(floats, everybody) is None
    assert faster.ours(contender("c", "transformers", "f32", ""), everybody) is None
    test = workloads([1], [])[0]
    ours.values[test], peer.values[test] = [20.0, 10.0, None, 30.0], [10.0, 5.0, 4.0, None]
    assert faster.samples(ours, peer, test) == [2.0, 2.0]  # rounds that have both


# ---- processes -----------------------------------------------------------------------------------------------------


def test_what_an_engine_prints_is_not_an_answer(drivers, tmp_path):
    child = worker(drivers, tmp_path)
    assert child.call("about") == {"version": "fake 1", "settings": "made up"}
    child.close()
    assert "noise on standard output" in (tmp_path / "log").read_text()


def test_silence_ends_the_process(drivers, tmp_path):
    child = worker(drivers, tmp_path, trouble="hang")
    with pytest.raises(Failed, match="decode: no answer in 0.2 s"):
        child.call("decode", timeout=0.2, prompts=[[1]], tokens=1)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_an_error_leaves_the_process_alive(drivers, tmp_path):
    child = worker(drivers, tmp_path)
    with pytest.raises(Failed, match="AttributeError"):
        child.call("no_such_method")
    assert child.call("prefill", before=[], ids=[1, 2]) == 0.02
    child.close()
    child.close()


def test_an_interpreter_that_is_not_there(drivers, tmp_path):
    with pytest.raises(Failed, match="No such file"):
        Worker(drivers / "fake.py", {}, str(tmp_path / "python"), {}, tmp_path / "log")


def test_a_driver_is_not_hidden_by_its_neighbours(drivers, tmp_path):
    (drivers / "json.py").write_text("raise RuntimeError('the wrong json')")
    (drivers / "fake.py").write_text(FAKE + "\nimport json\njson.dumps\n")
    child = worker(drivers, tmp_path)
    assert child.call("about")["version"] == "fake 1"
    child.close()


# ---- what is asked for ---------------------------------------------------------------------------------------------


def test_tests_are_named_as_llama_bench_names_them():
    tests = workloads([512], [128], [0, 4096], [1, 4], load=True)
    assert [test.name for test in tests] == ["pp512", "pp512 @ d4096", "tg128", "tg128", "tg128 @ d4096", "tg128 @ d4096", "load"]
    assert [test.context for test in tests] == [513, 4609, 130, 130, 4225, 4225, 1]
    assert tests[3].value(2.0) == 256 and tests[-1].value(2.0) == 2.0
    assert workloads([], []) == []


def test_prompts():
    test = Workload("prefill", 16, 4)
    first, second = test.arguments(50, 1), test.arguments(50, 2)
    assert len(first["ids"]) == 16 and set(first["ids"]) <= set(range(50)) and first["ids"] != second["ids"]
    assert test.arguments(50, 1) == first and first["before"] == second["before"] and len(first["before"]) == 4
    decode = Workload("decode", 8, 20, 3)
    assert decode.arguments(50, 1) == decode.arguments(50, 2)
    assert decode.arguments(50, 0, brief=True)["tokens"] == 4
    prompts = decode.arguments(50, 1)["prompts"]
    assert len(prompts) == 3 and prompts[0] == prompts[2] and len(prompts[0]) == 20
    assert len(Workload("decode", 8).arguments(50, 1)["prompts"][0]) == 1


def names(*arguments):
    return [engine.name for engine in engines.choose(*arguments)]


def test_peers_by_family_and_by_name():
    assert names(["transformers"], None, "bf16") == ["genkit-bf16", "transformers-bf16"]
    assert names(["transformers"], None, "f32") == ["genkit-f32", "transformers-f32"]
    assert names(["llama.cpp"], ["int4"], "bf16") == ["genkit-int4", "llama-cpp-q4_0", "llama-cpp-q4_0-fa"]
    assert names(["llama-cpp-q4_k_m", "ctranslate2"], None, "bf16") == [
        "genkit-int4", "genkit-int8", "llama-cpp-q4_k_m", "ctranslate2-int8"]
    assert names(["genkit-q4_0", "llama-cpp-q4_0-fa"], None, "bf16") == ["genkit-int4", "genkit-q4_0", "llama-cpp-q4_0-fa"]
    assert len(names(list(engines.FAMILIES), None, "bf16")) == 11
    for wrong in ("vllm", "genkit-int3", "llama_cpp", ""):
        with pytest.raises(UsageError, match="known: llama.cpp, openvino, ctranslate2, transformers"):
            engines.check_peers([wrong])
    with pytest.raises(UsageError, match="--type bf16: expected int4, int8 or f32"):
        names(["transformers"], ["bf16"], "f32")
    with pytest.raises(UsageError, match="weights are f16"):
        names(["transformers-bf16"], None, "f16")
    for engine in engines.known().values():
        assert (measure.process.DRIVERS / f"{engines.driver_name(engine.family)}.py").is_file()


# ---- files ---------------------------------------------------------------------------------------------------------


def test_weights_are_written_once_and_again_for_another_model(tmp_path, model):
    written = []

    def write(path):
        written.append(path)
        path.write_text("x" * len(written))

    def get():
        folder = WorkFolder(tmp_path / "work", model)
        try:
            return folder.get("a.bin", write)
        finally:
            folder.close()

    assert get() == get() and len(written) == 1
    (model / "config.json").write_text('{"other": 1}')
    assert get().read_text() == "xx" and len(written) == 2
    folder = WorkFolder(tmp_path / "work", model)
    assert folder.facts("a.bin")["bytes"] == 2
    folder.close()
    (tmp_path / "work" / files.RECORD).write_text("not json")
    assert get().read_text() == "xxx"


def test_what_was_not_finished_is_not_found(tmp_path, model):
    def fail(path):
        path.mkdir()
        (path / "half").write_text("half")
        raise Failed("stopped")

    folder = WorkFolder(tmp_path / "work", model)
    with pytest.raises(Failed):
        folder.get("b", fail)
    assert [path.name for path in (tmp_path / "work").iterdir()] == [files.LOCK]


def test_one_run_at_a_time_has_a_work_folder(tmp_path, model):
    folder = WorkFolder(tmp_path / "work", model)
    with pytest.raises(UsageError, match="another run"):
        WorkFolder(tmp_path / "work", model)
    folder.close()
    WorkFolder(tmp_path / "work", model).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="--work"):
        WorkFolder(tmp_path / "file" / "work", model)
    assert files.default_folder(tmp_path / "a" / "x") != files.default_folder(tmp_path / "b" / "x")


def test_gguf_in_every_form(tmp_path):
    """Of floats exactly the model's, of codes ours; genkit reads each, and little is left beside it."""
    folder = WorkFolder(tmp_path / "work", genkit.DEFAULT_MODEL)
    ids = agreement.prompts(6144, 1024)[0]
    ours = genkit.load(genkit.DEFAULT_MODEL, quantize="none", threads=1).logits(ids)[-1:]
    errors = {}
    for kind in ("bf16", "q8_0", "q4_0"):
        path = folder.get(engines.gguf_file(kind), lambda out: write_gguf(genkit.DEFAULT_MODEL, out, kind, 1))
        theirs = genkit.load(path, threads=1).logits(ids)[-1:]
        errors[kind] = agreement.compare(ours, theirs, agreement.FLOATS)["error"]
    folder.close()
    assert errors["bf16"] == 0 < errors["q8_0"] < 0.05 < errors["q4_0"] < 0.5
    assert sorted(path.suffix for path in (tmp_path / "work").iterdir()) == ["", ".gguf", ".gguf", ".gguf", ".json"]


# ---- the command ---------------------------------------------------------------------------------------------------

GENKIT = [sys.executable, "-m", "genkit", "bench", "against"]
SHORT = ["-p", "8", "-n", "4", "-r", "1", "--patience", "0", "-t", "1"]


def command(*arguments):
    return subprocess.run([*GENKIT, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_the_command_with_a_peer_that_is_not_there(tmp_path):
    """genkit's own driver and limits, on the default model, to the files."""
    done = command("ctranslate2", "llama-cpp-q4_0-fa", "--type", "int8", *SHORT, "--load", "--work", tmp_path / "work", "--json",
                   "-o", tmp_path / "out.md", "--python", f"ctranslate2={tmp_path}/python", "--python", f"llama.cpp={tmp_path}/python")
    assert done.returncode == 0, done.stderr
    results = parse_results(json.loads(done.stdout))
    rows = {(row.id["engine"], row.id["test"]): row for row in results.rows}
    assert results.kind == "against" and {name for name, _ in rows} == {"genkit-int8", "llama-cpp-q4_0-fa", "ctranslate2-int8"}
    for test in ("pp8", "tg4", "load"):
        assert rows["genkit-int8", test].samples[0] > 0
        assert "No such file" in rows["ctranslate2-int8", test].failure and rows["ctranslate2-int8", test].samples == []
    ours = rows["genkit-int8", "tg4"]
    assert ours.limit.of == "read" and 0 < ours.shares[0] < 5 and ours.facts["weight_bytes"] > 8e6
    assert ours.facts["agreement"]["agrees"] and ours.facts["agreement"]["same_tokens"] >= 14
    assert done.stderr == "" and "genkit-int8" in (tmp_path / "out.md").read_text()


def test_a_peer_that_is_genkit_runs_the_file_that_was_written(tmp_path):
    done = command("genkit-q8_0", "genkit-q4_0", *SHORT[:2], "-n", "none", *SHORT[4:], "--work", tmp_path / "work", "--json", "--goal", "1e5")
    assert done.returncode == 1 and done.stderr.startswith("genkit: error: --goal 100000 is missed: genkit-int")
    rows = {row["id"]["engine"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == ["genkit-int4", "genkit-int8", "genkit-q4_0", "genkit-q8_0"]
    assert rows["genkit-q4_0"]["facts"]["agreement"]["error"] == 0 and rows["genkit-q4_0"]["facts"]["weights_by"] == "genkit"
    assert rows["genkit-q8_0"]["facts"]["ratio"]["of"] == "genkit-int8"


def test_ctrl_c_shows_what_there_is_and_leaves_nobody_behind(tmp_path):
    work = tmp_path / "work"
    process = subprocess.Popen([*GENKIT, "transformers", *SHORT, "-r", "1000", "--work", work, "--json", "--python",
                                f"transformers={tmp_path}/python"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (work / "limits.log").exists() and time.monotonic() < deadline:  # the first sample is there
        time.sleep(0.05)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    results = json.loads(out)
    assert results["complete"] is False and any(row["samples"] for row in results["rows"])
    assert children and not any(os.path.exists(f"/proc/{pid}") for pid in children)


@pytest.mark.parametrize("arguments, code, words", [
    (["vllm"], 2, "known: llama.cpp, openvino, ctranslate2, transformers"),
    (["llama.cpp", "--isa", "mmx"], 2, "--isa mmx"),
    (["llama.cpp", "--python", "x=y"], 2, "--python x=y"),
    (["llama.cpp", "--goal", "0"], 2, "--goal"),
    (["llama.cpp", "-r", "0"], 2, "-r"),
    (["llama.cpp", "-p", "0"], 2, "-p 0"),
    (["llama.cpp", "-n", "-5"], 2, "-n -5"),
    (["llama.cpp", "-p", "none", "-n", "none"], 2, "nothing to measure"),
    (["llama.cpp", "--depth", "1000"], 2, "made for 1024"),
    (["llama.cpp", "--type", "f32"], 2, "--type f32"),
    (["llama.cpp", "--shape", "llama-9"], 2, "known: "),
    (["llama.cpp", "--shape", "llama-3.2-1b", "-m", "x"], 2, "name one"),
    (["llama.cpp", "-m", "/no/such/folder"], 3, "/no/such/folder"),
    (["llama.cpp", "-o", "out.pdf"], 2, "out.pdf"),
    (["llama.cpp", "--time", "-1"], 2, "--time"),
])
def test_usage_errors_are_one_line(tmp_path, capsys, arguments, code, words):
    with pytest.raises(BaseException) as raised:
        app(["bench", "against", *arguments, "--work", str(tmp_path / "work")], standalone_mode=False)
    assert failure.report(raised.value) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err
    assert not (tmp_path / "work").exists()


def test_models_that_peers_cannot_read(tmp_path):
    write_gguf(genkit.DEFAULT_MODEL, tmp_path / "m.gguf", "q4_0", 1)
    for path, words in ((tmp_path / "m.gguf", "genkit convert"), (tmp_path / "none", "none")):
        with pytest.raises(genkit.errors.Error, match=words):
            run.Plan(["llama.cpp"], TESTS, str(path)).check()
