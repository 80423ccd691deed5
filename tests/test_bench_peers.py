"""The side-by-side benchmark with made-up drivers in real processes: no peer is needed, no test depends on time."""

import json
import os
import subprocess
import sys

import genkit
import numpy as np
import pytest
from genkit.bench.peers import engines, files, measure, report, workloads
from genkit.bench.peers.engines import Engine
from genkit.bench.peers.files import WorkFolder
from genkit.bench.peers.gguf import write_gguf
from genkit.checkpoints.gguf_model import gguf_name, interleave
from genkit.bench.peers.measure import Comparison, Results, Row, Settings
from genkit.bench.peers.process import Failed, Worker
from genkit.bench.peers.report import Spread, paired, spread
from genkit.bench.peers.workloads import Workload, parse, parse_all
from genkit.errors import BadFileError, UsageError

# ---- made-up engines -----------------------------------------------------------------------------------------------

# A driver whose clock is an option: `speed` tokens a second, or a way to go wrong.
FAKE = """
import os, sys, time


class Driver:
    def __init__(self, speed=100.0, trouble=""):
        self.speed, self.trouble = speed, trouble

    def about(self):
        print("noise on standard output")
        os.write(1, b"and from a library\\n")
        return {"version": "fake 1", "notes": "made up"}

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

    def prefill(self, ids):
        return len(ids) / self.speed

    def decode(self, ids, tokens):
        if self.trouble == "abort":
            os.abort()
        if self.trouble == "exit":
            os._exit(3)
        if self.trouble == "hang":
            time.sleep(60)
        return tokens / self.speed

    def batch(self, prompts, tokens):
        return self.decode(prompts[0], tokens)
"""

GENKIT = FAKE.replace('"seconds": 10 / self.speed', '"seconds": 10 / self.speed, "work": WORK').replace(
    "class Driver", 'WORK = {"kind": "int8", "weight_bytes": 1e6, "kv_bytes": 100.0, "layer_weights": 1000, '
    '"head_weights": 50, "attention_width": 10}\n\n\nclass Driver', 1)

LIMITS = """
class Driver:
    def read(self, threads):
        return 1e9

    def peak(self, kind, threads):
        return {"int8": 1e9}[kind]
"""


FACTS = {"model": "m", "date": "d", "processor": "p", "threads": 3, "rounds": 3, "isa": None}


@pytest.fixture
def drivers(tmp_path):
    folder = tmp_path / "drivers"
    folder.mkdir()
    texts = {"fake": FAKE, "genkit": GENKIT, "limits": LIMITS, "missing": "import no_such_package_at_all"}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def compare(drivers, model, chosen, tests="prefill8,decode8,batch2x4,load", rounds=3):
    settings = Settings(model, 50, 3, rounds, patience=0.0, retries=0, drivers=drivers)
    return Comparison(settings, chosen, parse_all(tests), WorkFolder(model.parent / "work", model)).run()


def worker(drivers, tmp_path, name="fake", **options):
    return Worker(drivers / f"{name}.py", options, sys.executable, {}, tmp_path / "log")


def test_a_run_takes_every_test_of_every_engine_once_a_round(drivers, model):
    results = compare(drivers, model, [Engine("genkit-int4", "genkit", 4, {"speed": 50.0}),
                                       Engine("slow", "fake", 4, {"speed": 20.0}, "fake.bin"),
                                       Engine("fast", "fake", 8, {"speed": 100.0}, "fake.bin")])
    ours, slow, fast = results.rows
    assert not any(row.failure or row.failures for row in results.rows)
    assert ours.values == {"prefill8": [pytest.approx(50)] * 3, "decode8": [pytest.approx(50)] * 3,
                           "batch2x4": [pytest.approx(100)] * 3, "load": [pytest.approx(0.2)] * 3}
    assert slow.file["bytes"] == len("weights") and fast.version == "fake 1" and ours.file is None
    # A kind of test has its own limit, a round each.
    assert results.limits == {"prefill8 int8": [1e9] * 3, "decode8 read": [1e9] * 3, "batch2x4 read": [1e9] * 3}
    found = {(r.test, r.among): (r.peer, r.ratio.median) for r in report.ratios(results)}
    assert found["decode8", "4 bits"] == ("slow", pytest.approx(2.5))
    assert found["decode8", "all"] == ("fast", pytest.approx(0.5))
    assert found["load", "4 bits"] == ("slow", pytest.approx(2.5))  # less is better
    text = report.markdown(results, FACTS, 1.0)
    assert "| slow | 20.0 (20.0-20.0) |" in text
    assert "| decode8 | genkit-int4 | 4 bits | slow | 2.50 (2.50-2.50) | met |" in text
    assert "| decode8 | genkit-int4 | all | fast | 0.500 (0.500-0.500) | missed |" in text
    data = json.loads(json.dumps(report.as_json(results, FACTS, 1.0)))
    assert data["engines"][1]["tests"]["decode8"]["median"] == pytest.approx(20)
    assert [share["test"] for share in data["shares"]] == ["prefill8", "decode8", "batch2x4"]


@pytest.mark.parametrize("trouble, words", [("abort", "SIGABRT"), ("exit", "exit code 3")])
def test_a_crash_is_a_row_and_the_other_tests_go_on(drivers, model, trouble, words):
    results = compare(drivers, model, [Engine("bad", "fake", 4, {"trouble": trouble}), Engine("good", "fake", 4)],
                      "decode8,prefill8", rounds=2)
    bad, good = results.rows
    assert words in bad.failures["decode8"] and "decode" in bad.failures["decode8"] and not bad.failure
    assert bad.values == {"decode8": [None, None], "prefill8": [pytest.approx(100)] * 2}
    assert good.values["decode8"] == [pytest.approx(100)] * 2
    text = report.markdown(results, FACTS, 1.0)
    assert f"| bad | - | 100 (100-100) | decode8: {bad.failures['decode8']} |" in text


@pytest.mark.parametrize("engine, words", [
    (Engine("gone", "missing", 4), "not installed: No module named 'no_such_package_at_all'"),
    (Engine("full", "fake", 4, {"trouble": "load"}), "load: MemoryError: no room"),
    (Engine("unwritable", "fake", 4, {"trouble": "write"}, "x.bin"), "write: ValueError: two lines"),
    (Engine("no-driver", "absent", 4), "FileNotFoundError"),
])
def test_an_engine_that_cannot_start_is_a_row(drivers, model, engine, words):
    bad, good = compare(drivers, model, [engine, Engine("good", "fake", 4)], "prefill8", rounds=1).rows
    assert words in bad.failure
    assert good.values == {"prefill8": [pytest.approx(100)]}


def test_without_the_limits_there_are_still_figures(drivers, model):
    (drivers / "limits.py").write_text("class Driver:\n    pass")
    results = compare(drivers, model, [Engine("genkit-int4", "genkit", 4)], "decode8", rounds=2)
    assert results.rows[0].values == {"decode8": [pytest.approx(100)] * 2}
    assert "read" in results.limits_failure and report.shares(results) == []
    assert "could not be measured" in report.markdown(results, FACTS, 1.0)


# ---- processes -----------------------------------------------------------------------------------------------------


def test_what_an_engine_prints_is_not_an_answer(drivers, tmp_path):
    child = worker(drivers, tmp_path)
    assert child.call("about") == {"version": "fake 1", "notes": "made up"}
    child.close()
    assert "noise on standard output" in (tmp_path / "log").read_text()


def test_silence_ends_the_process(drivers, tmp_path):
    child = worker(drivers, tmp_path, trouble="hang")
    with pytest.raises(Failed, match="decode: no answer in 0.2 s"):
        child.call("decode", timeout=0.2, ids=[1], tokens=1)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_an_error_leaves_the_process_alive(drivers, tmp_path):
    child = worker(drivers, tmp_path)
    with pytest.raises(Failed, match="AttributeError"):
        child.call("no_such_method")
    assert child.call("prefill", ids=[1, 2]) == 0.02
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


# ---- sums ----------------------------------------------------------------------------------------------------------


def test_medians_and_quotients_of_the_same_round():
    assert spread([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([None]) is None and spread([]) is None
    # A machine that halves its speed in one round halves both: the ratio stays.
    assert paired([20.0, 10.0, 22.0], [10.0, 5.0, 11.0]) == Spread(2.0, 2.0, 2.0)
    assert paired([20.0, None, 30.0], [10.0, 5.0, None]) == Spread(2.0, 2.0, 2.0)
    assert paired([None], [1.0]) is None


def test_the_best_peer_is_the_fastest_or_the_first_loaded():
    test, load = parse("decode8"), parse("load")
    rows = [Row(Engine("genkit-int4", "genkit", 4), values={"decode8": [99.0], "load": [0.1]}),
            Row(Engine("a", "fake", 4), values={"decode8": [10.0, 30.0, 11.0], "load": [2.0]}),
            Row(Engine("b", "fake", 4), values={"decode8": [12.0, 12.0, 12.0], "load": [3.0]}),
            Row(Engine("c", "fake", 4), values={"decode8": [None]})]
    assert report.best_peer(rows, test).engine.name == "b"
    assert report.best_peer(rows, load).engine.name == "a"
    assert report.best_peer(rows[:1], test) is None
    assert report.ratios(Results(rows[:1], [test])) == []


def test_work_of_a_token():
    work = {"weight_bytes": 1000.0, "kv_bytes": 10.0, "layer_weights": 1000, "head_weights": 50, "attention_width": 10}
    # 5 tokens a second after 100: the weights and on average 104 keys, each 10 bytes.
    assert report.bytes_a_second(parse("decode8@100"), work, 5.0) == 5 * (1000 + 1040)
    # Two sequences share the weights of a step.
    assert report.bytes_a_second(parse("batch2x8@100"), work, 10.0) == 5 * (1000 + 2 * 1040)
    # 3 ids: 2 operations a weight and id, the head once, 1 + 2 + 3 keys seen, 4 operations each and column.
    assert report.operations_a_second(parse("prefill3"), work, 3.0) == 6000 + 100 + 4 * 10 * 6


@pytest.mark.parametrize("value, text", [(0.01234, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (12.34, "12.3"),
                                         (123.4, "123"), (1234.5, "1234")])
def test_numbers_have_three_digits(value, text):
    assert report.number(value) == text


def test_a_cell_cannot_break_the_table():
    assert report.table(["a", "b"], [["x|y", ""]]) == "| a | b |\n|---|---|\n| x/y |  |"


# ---- what is asked for ---------------------------------------------------------------------------------------------


def test_tests_by_name():
    assert parse("prefill512") == Workload("prefill512", "prefill", 512)
    assert parse("decode128") == Workload("decode128", "decode", 128, workloads.SHORT_PROMPT)
    assert parse("decode128@4096") == Workload("decode128@4096", "decode", 128, 4096)
    assert parse("batch4") == Workload("batch4", "batch", workloads.BATCH_TOKENS, workloads.SHORT_PROMPT, 4)
    assert parse("batch8x32@100") == Workload("batch8x32@100", "batch", 32, 100, 8)
    assert parse("batch4x32").value(2.0) == 64 and parse("load").value(2.0) == 2.0
    assert [test.name for test in parse_all(" load, decode8,load ")] == ["load", "decode8"]
    assert len(parse_all(workloads.DEFAULT)) == 6
    for wrong in ("prefill", "prefill0", "prefill8@4", "decode8x2", "decode8@0", "batch0", "nonsense", "decode-1"):
        with pytest.raises(UsageError, match="--tests"):
            parse(wrong)
    with pytest.raises(UsageError):
        parse_all(" , ")


def test_prompts():
    test = parse("prefill16")
    first, second = test.arguments(50, 1), test.arguments(50, 2)
    assert len(first["ids"]) == 16 and set(first["ids"]) <= set(range(50)) and first != second
    assert test.arguments(50, 1) == first
    decode = parse("decode8@20")
    assert decode.arguments(50, 1) == decode.arguments(50, 2)
    assert decode.arguments(50, 0, brief=True)["tokens"] == 4
    assert parse("batch3x8").arguments(50, 1)["prompts"][0] == parse("batch3x8").arguments(50, 1)["prompts"][2]


def test_engines_by_name_and_family():
    assert [engine.name for engine in engines.choose("genkit")] == ["genkit-int4", "genkit-int8", "genkit-bf16"]
    assert [engine.name for engine in engines.choose("llama-cpp-q4_0, ctranslate2")] == [
        "llama-cpp-q4_0", "ctranslate2-int8"]
    assert len(engines.choose("all")) == len(engines.ENGINES)
    assert engines.choose(engines.DEFAULT)
    for wrong in ("", "vllm", "genkit-int3"):
        with pytest.raises(UsageError, match="--engines"):
            engines.choose(wrong)
    for engine in engines.ENGINES.values():
        assert (measure.process.DRIVERS / f"{engine.family}.py").is_file()


# ---- files ---------------------------------------------------------------------------------------------------------


def test_weights_are_written_once_and_again_for_another_model(tmp_path, model):
    written = []

    def write(path):
        written.append(path)
        path.write_text("x" * len(written))

    def get():
        return WorkFolder(tmp_path / "work", model).get("a.bin", write)

    assert get() == get() and len(written) == 1
    (model / "config.json").write_text('{"other": 1}')
    assert get().read_text() == "xx" and len(written) == 2
    assert WorkFolder(tmp_path / "work", model).facts("a.bin")["bytes"] == 2
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
    assert list((tmp_path / "work").iterdir()) == []


def test_names_and_rows_of_llama_cpp():
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("model.layers.12.self_attn.q_proj.bias") == "blk.12.attn_q.bias"
    with pytest.raises(BadFileError, match="model.layers.0.mystery.weight"):
        gguf_name("model.layers.0.mystery.weight")
    rows = np.arange(8)[:, None] * [1, 10]  # two heads of four rows
    assert interleave(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleave(rows[:, 0], 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_models_tensors_as_gguf(tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install genkit[peers]")
    from genkit import checkpoints

    write_gguf(genkit.DEFAULT_MODEL, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    with checkpoints.open_checkpoint(genkit.DEFAULT_MODEL) as checkpoint:
        assert len(tensors) == len(checkpoint.tensors)
        info = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
        values = checkpoint.load("model.layers.0.mlp.up_proj.weight", info.shape).numpy()
    up = tensors["blk.0.ffn_up.weight"]
    assert list(up.shape) == list(reversed(info.shape)) and bytes(up.data) == values.tobytes()
    assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


# ---- the command ---------------------------------------------------------------------------------------------------


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "genkit.bench.peers", *map(str, arguments)], capture_output=True,
                          text=True, timeout=120)


def test_the_command_with_an_engine_that_is_not_there(tmp_path):
    done = command(genkit.DEFAULT_MODEL, "--engines", "genkit-bf16,ctranslate2", "--tests", "prefill8,decode4,load",
                   "--rounds", 1, "--patience", 0, "--retries", 0, "--threads", 1, "--work", tmp_path, "--json",
                   "--python", f"ctranslate2={tmp_path}/python")
    assert done.returncode == 0, done.stderr
    ours, peer = json.loads(done.stdout)["engines"]
    assert all(ours["tests"][test]["median"] > 0 for test in ("prefill8", "decode4", "load"))
    assert "No such file" in peer["failure"] and peer["tests"] == {}
    assert done.stderr == ""


@pytest.mark.parametrize("arguments, code, words", [
    (["--engines", "vllm"], 2, "--engines: 'vllm'"),
    (["--tests", "sleep"], 2, "--tests: 'sleep'"),
    (["--isa", "mmx"], 2, "--isa mmx"),
    (["--python", "x=y"], 2, "--python 'x=y'"),
    (["--goal", "0"], 2, "--goal"),
    (["--rounds", "0"], 2, "rounds"),
])
def test_usage_errors_are_one_line(tmp_path, arguments, code, words):
    done = command(genkit.DEFAULT_MODEL, "--work", tmp_path, *arguments)
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.count("\n") == 1 and words in done.stderr


def test_a_folder_that_is_no_model(tmp_path):
    done = command(tmp_path, "--work", tmp_path / "work")
    assert done.returncode == 3 and done.stderr.count("\n") == 1
