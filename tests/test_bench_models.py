"""`genkit bench` itself: what it measures, in what order, what it refuses, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from architectures import CASES
from cli_player import make_player
from models_run import random_checkpoint

import genkit
from genkit import batch, machine
from genkit.bench import limits, passes, shapes, subjects, throughput
from genkit.bench.noise import cpu_seconds
from genkit.bench.results import Results
from genkit.bench.throughput import Case, Plan, measure
from genkit.cli.failure import explain
from genkit.errors import DeviceError, ResourceError, UsageError
from genkit.plan import Decoder

GENKIT = [sys.executable, "-m", "genkit"]
TINY = dict(model_type="llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=300, max_position_embeddings=700, rms_norm_eps=1e-5, tie_word_embeddings=True)


@pytest.fixture
def quick(monkeypatch):
    """Samples as short as one pass, and the limits of another machine: what is tested here does not hang on them."""
    monkeypatch.setattr(throughput, "SAMPLE_SECONDS", 1e-9)
    monkeypatch.setattr(limits, "read_bandwidth", lambda size, threads: 1e9 * threads)
    monkeypatch.setattr(limits, "arithmetic_peak", lambda kind, threads: {"int8": 4e12, "bf16": 2e12, "f32": 1e12}[kind] * threads)
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    return make_player(tmp_path_factory.mktemp("models") / "player", context=256)


def run(**plan):
    """The results of a plan: few tokens, one round, no more."""
    results = Results("models", {})
    measure(results, Plan(**dict(prompts=(8,), generates=(4,), rounds=1, seconds=0.0, warmup=0) | plan))
    return results


def command(*arguments):
    """What the command raises, run in this process."""
    from genkit.cli.app import app

    return app(["bench", *map(str, arguments)], standalone_mode=False, prog_name="genkit")


def test_a_row_for_all_that_was_asked(quick):
    results = run(types=("bf16", "int8"), threads=(1, 2), batches=(1, 3), depths=(0, 70), rounds=2)
    assert [row.id for row in results.rows] == [
        {"model": "default", "type": kind, "device": "cpu", "threads": threads, "batch": sequences,
         "test": f"{test}{' @ d70' if depth else ''}"}
        for kind in ("bf16", "int8") for threads in (1, 2) for sequences in (1, 3) for depth in (0, 70) for test in ("pp8", "tg4")]
    for row in results.rows:
        assert len(row.samples) == len(row.shares) == len(row.others) == len(row.limit.samples) == 2
        assert row.unit == "tokens/s" and not row.failure and all(0 < share for share in row.shares)
        assert row.facts.keys() >= {"bytes_per_token", "operations_per_token", "weight_bytes", "peak_memory", "tier", "bound", "load_s",
                                    "prompt", "generate", "depth"}
        assert row.facts["bound"] == row.limit.of and row.limit.unit == ("B/s" if row.limit.of == "read" else "op/s")
        assert (row.facts["prompt"], row.facts["generate"]) == ((8, 0) if "pp" in row.id["test"] else (0, 4))
    assert results.settings["depths"] == [0, 70]


def test_the_share_is_the_floor_beside_the_time(quick):
    for row in run(batches=(1, 4), depths=(0, 100)).rows:
        threads, rate = row.id["threads"], row.samples[0]
        reading = row.facts["bytes_per_token"] / (1e9 * threads)
        computing = row.facts["operations_per_token"] / (4e12 * threads)
        assert row.shares[0] == pytest.approx(rate * max(reading, computing), rel=0.05)  # attention's share of work is bf16
        assert row.facts["bound"] == ("read" if reading > computing else "int8")


def test_the_limit_shown_is_the_one_that_bounds_most_samples(quick, monkeypatch):
    speeds = iter([1e15, 2e9, 3e9, 1e15, 4e9])
    monkeypatch.setattr(limits, "read_bandwidth", lambda size, threads: next(speeds))
    monkeypatch.setattr(throughput, "STALE", 0.0)
    row = run(prompts=(), rounds=5).rows[0]
    assert row.facts["bound"] == row.limit.of == "read" and row.limit.samples == [1e15, 2e9, 3e9, 1e15, 4e9]


def test_what_is_drawn_is_what_the_model_writes(quick, player, monkeypatch):
    """The timed passes are the engine's: the same tokens, also in a batch, over a past, and once more over the same past."""
    seen = []
    row = passes.Passes._row
    monkeypatch.setattr(passes.Passes, "_row", lambda *arguments: seen.append(row(*arguments)) or seen[-1])
    run(models=(str(player),), prompts=(), generates=(9,), depths=(0, 64, 70), batches=(1, 3), rounds=2)
    model = genkit.load(player)
    assert len(seen) == 2 * 3 * (1 + 3)
    for found in seen:
        generation = found.job.generation
        first, rest = generation.tokens[0], generation.tokens[1:]
        wanted = model.generate(generation.prompt_tokens + [first], max_tokens=9, temperature=0, ignore_eos=True)
        assert rest == wanted.tokens and len(rest) == 9


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-longrope-outgrown-while-writing", "mixtral", "deepseek_v3", "gpt2"])
def test_models_of_every_kind(name, quick, tmp_path, monkeypatch):
    """Those whose steps vary with the context, whose keys are made anew on the way, with experts; none has a tokenizer."""
    random_checkpoint(CASES[name], tmp_path / "model" if (tmp_path / "model").mkdir() is None else tmp_path, seed=3)
    seen = []
    row = passes.Passes._row
    monkeypatch.setattr(passes.Passes, "_row", lambda *arguments: seen.append(row(*arguments)) or seen[-1])
    results = run(models=(str(tmp_path / "model"),), prompts=(20,), generates=(12,), depths=(0, 163), batches=(2,), rounds=2)
    assert [len(one.samples) for one in results.rows] == [2] * 4 and results.rows[0].id["model"] == "model"
    if name != "phi3-longrope-outgrown-while-writing":
        return
    model = genkit.load(tmp_path / "model")
    for found in seen:
        generation = found.job.generation
        if len(generation.prompt_tokens) == 163:
            # Keys of the past are those of its length, and of the whole text from where it is outgrown.
            assert generation.tokens[8:] == model.generate(generation.prompt_tokens + generation.tokens[:8], max_tokens=5,
                                                           temperature=0, ignore_eos=True).tokens


def test_the_past_is_filled_once(quick, monkeypatch):
    calls = []
    prefill = batch.prefill
    monkeypatch.setattr(batch, "prefill", lambda model, cache, sequence, ids, cancelled:
                        calls.append((sequence.length, len(ids))) or prefill(model, cache, sequence, ids, cancelled))
    run(prompts=(8,), generates=(4,), depths=(50, 100), batches=(1, 2), rounds=3)
    assert calls[0] == (0, 100)
    assert sorted(calls[1:]) == sorted([(50, 8), (100, 8)] * 3 * 3)  # three prompts a round for each depth: one alone, two of a batch


def test_models_with_experts_have_a_past_a_sequence(quick, tmp_path, monkeypatch):
    random_checkpoint(CASES["mixtral"], tmp_path, seed=3)
    calls = []
    prefill = batch.prefill
    monkeypatch.setattr(batch, "prefill", lambda model, cache, sequence, ids, cancelled:
                        calls.append(tuple(ids)) or prefill(model, cache, sequence, ids, cancelled))
    run(models=(str(tmp_path),), prompts=(), generates=(4,), depths=(50,), batches=(3,))
    assert len(calls) == len(set(calls)) == 3 and all(len(ids) == 50 for ids in calls)


def test_a_wait_in_the_decode_step_is_found(quick, monkeypatch):
    draw = Decoder.draw

    def slow(*arguments):
        time.sleep(0.05)
        return draw(*arguments)

    monkeypatch.setattr(Decoder, "draw", slow)
    assert run(prompts=(), generates=(16,)).rows[0].samples[0] <= 16 / 0.05


def test_rounds_are_in_turns_and_begin_elsewhere_each_time(quick, monkeypatch):
    order = []
    sample, once = Case.sample, Case.once
    monkeypatch.setattr(Case, "sample", lambda self, limit: order.append(self.row.id["type"] + self.row.id["test"]) or sample(self, limit))
    run(types=("bf16", "int8"), rounds=3, warmup=2)
    names = ["bf16pp8", "bf16tg4", "int8pp8", "int8tg4"]
    assert order == [*names[2:], *names[:2], *names[3:], *names[:3], *names]  # two rounds of warm-up before
    assert once is Case.once


def test_a_short_pass_is_repeated_within_a_sample(quick, monkeypatch):
    monkeypatch.setattr(throughput, "SAMPLE_SECONDS", 0.2)
    count = 0
    once = Case.once

    def counted(self):
        nonlocal count
        count += 1
        return once(self)

    monkeypatch.setattr(Case, "once", counted)
    monkeypatch.setattr(passes.Passes, "decode", lambda self, sequences, depth, tokens: 0.03)
    row = run(prompts=(), generates=(4,)).rows[0]
    assert count == 7 and row.samples[0] == pytest.approx(4 / 0.03)


def narrowed(times, ci=0.05, seconds=30.0, rounds=3, mood=0.0):
    """Samples taken where a pass of the two rows takes these seconds in turns."""
    def once(self):
        takes = times[self.row.id["batch"]]
        return takes[len(self.row.samples) % len(takes)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Case, "once", once)
        patch.setattr(throughput, "MOOD_SECONDS", mood)
        return [len(row.samples) for row in run(prompts=(), batches=(1, 2), ci=ci, seconds=seconds, rounds=rounds).rows]


def test_more_rounds_only_where_the_median_is_not_known_yet(quick):
    steady, wild = [0.1], [0.1] * 5 + [0.2, 0.05]
    assert narrowed({1: steady, 2: steady}) == [3, 3]
    alone = narrowed({1: steady, 2: [0.1, 0.2, 0.1]})
    assert alone[0] == 3 and alone[1] > 3
    assert narrowed({1: wild, 2: wild}, ci=1.0) == [3, 3]
    assert narrowed({1: steady, 2: [0.1, 0.2]}, seconds=0.0) == narrowed({1: steady, 2: steady}, seconds=0.0, mood=9.0) == [3, 3]
    assert min(narrowed({1: steady, 2: steady}, mood=0.5)) > 3  # all of them while the machine may be in one mood still
    assert narrowed({1: [0.1, 0.2], 2: [0.1, 0.2]}, seconds=0.3, rounds=1)[0] > 1  # and the time is an end of it


def test_a_limit_is_measured_beside_the_samples(quick, monkeypatch):
    reads, peaks = [], []
    monkeypatch.setattr(limits, "read_bandwidth", lambda size, threads: reads.append((size, threads)) or 1e9)
    monkeypatch.setattr(limits, "arithmetic_peak", lambda kind, threads: peaks.append((kind, threads)) or 1e12)
    monkeypatch.setattr(throughput, "STALE", 1000.0)
    results = run(types=("bf16", "int8"), threads=(1, 2), rounds=2)
    sizes = {(row.facts["working_set"], row.id["threads"]) for row in results.rows}
    assert sorted(reads) == sorted(sizes)  # rows that read as much share it
    assert sorted(peaks) == [(kind, threads) for kind in ("bf16", "int8") for threads in (1, 2)]
    monkeypatch.setattr(throughput, "STALE", 0.0)
    reads.clear()
    assert len(run(rounds=3).rows) == 2 and len(reads) == 2 * 3  # an old one is none


def test_the_type_is_what_the_weights_are(quick, player, tmp_path):
    from genkit.bench.shapes import write_folder

    def types(**plan):
        return [row.id["type"] for row in run(prompts=(), **plan).rows]

    assert types() == ["int4"] and types(types=("stored", "int4", "int8", "bf16")) == ["int4", "int8", "bf16"]
    assert types(models=(str(player),)) == ["f32"] == types(models=(str(player),), types=("f32",))
    assert types(models=(str(player),), types=("int8", "stored")) == ["int8", "f32"]
    with pytest.raises(UsageError, match="player: --type bf16: its weights are f32"):
        types(models=(str(player),), types=("bf16",))
    assert types(shapes=("tiny",)) == ["bf16"] and types(shapes=("tiny",), types=("f32", "f16", "int4")) == ["f32", "f16", "int4"]
    write_folder("smollm2-135m", tmp_path / "small", "bf16", 0, layers=1)
    done = subprocess.run([*GENKIT, "quantize", str(tmp_path / "small"), str(tmp_path / "coded.gguf"), "--format", "gguf", "--no-price"],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    coded = types(models=(str(tmp_path / "coded.gguf"),))
    assert coded == ["q8_0"]  # as the table of embeddings is, the largest
    with pytest.raises(UsageError, match=f"coded.gguf: --type int8: its weights are {coded[0]} codes; only stored"):
        types(models=(str(tmp_path / "coded.gguf"),), types=("stored", "int8"))


def test_names_of_models(quick, player, tmp_path):
    twin = make_player(tmp_path / "player", context=64)

    def names(*models):
        return [row.id["model"] for row in run(models=models, prompts=()).rows]

    assert names(f"{player}/") == ["player"] and names(str(player), str(twin)) == [str(player), str(twin)]
    assert names(str(genkit.DEFAULT_MODEL)) == ["default"]


def test_shapes_are_the_same_in_every_run_and_other_with_another_seed(quick, monkeypatch):
    made = []
    load = subjects.Subject.load
    monkeypatch.setattr(subjects.Subject, "load", lambda self, *rest: made.append(load(self, *rest)) or made[-1])
    for seed in (0, 0, 5):
        run(shapes=("tiny",), seed=seed)
    first, again, other = (bytes(loaded.model.head.weight.bytes()) for loaded in made)
    assert first == again != other


def test_peak_memory_is_of_the_row_alone(quick, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "large", TINY | dict(vocab_size=300_000, hidden_size=128))  # 77 MB in bf16
    rows = run(shapes=("tiny", "large"), prompts=()).rows
    small, large = (row.facts["peak_memory"] for row in rows)
    if small is None:
        pytest.skip("the system does not tell")
    assert 60e6 < large - small < 120e6
    assert rows[1].facts["weight_bytes"] > 76.8e6


def test_memory_is_asked_for_before_anything_is_loaded(quick, monkeypatch):
    monkeypatch.setattr(subjects.Subject, "load", lambda *arguments: pytest.fail("loaded"))
    monkeypatch.setattr(machine, "memory_available", lambda: 10_000_000)
    with pytest.raises(ResourceError, match=r"large in f32: the weights need \d+ MB, keys and values of 108 tokens in 3 sequence\(s\) .* and "
                                            r"10(\.0)? MB is free") as caught:
        monkeypatch.setitem(shapes.SHAPES, "large", TINY | dict(vocab_size=300_000))
        run(shapes=("large",), types=("f32",), depths=(0, 100), batches=(1, 3))
    assert caught.value.exit_code == 4
    monkeypatch.setattr(machine, "memory_available", lambda: 5_000_000)  # weights fit, keys and values do not
    with pytest.raises(ResourceError, match="tiny"):
        run(shapes=("tiny",), types=("f32",), depths=(600,), batches=(64,))


def test_models_that_do_not_fit_together_are_measured_one_by_one(quick, monkeypatch):
    order, sample = [], Case.sample
    monkeypatch.setattr(Case, "sample", lambda self, limit: order.append(self.row.id["type"]) or sample(self, limit))
    need = 10_000_000  # of bf16 alone; with int8 it is more
    monkeypatch.setattr(machine, "memory_available", lambda: need)
    monkeypatch.setattr("genkit.checkpoints.safetensors.memory_available", lambda: 2**40)
    monkeypatch.setitem(shapes.SHAPES, "large", TINY | dict(vocab_size=60_000))  # 7.7 MB
    results = run(shapes=("large",), types=("bf16", "f16"), rounds=3, prompts=())
    assert order == ["bf16"] * 3 + ["f16"] * 3
    assert any("one after the other" in note for note in results.notes) and all(row.samples for row in results.rows)
    order.clear()
    need = 100_000_000
    assert not run(shapes=("large",), types=("bf16", "f16"), rounds=2, prompts=()).notes[:-1] and order == ["bf16", "f16", "f16", "bf16"]


def test_what_is_measured_when_it_ends_early_is_there(quick, monkeypatch):
    sample = Case.sample

    def stopped(self, limit):
        sample(self, limit)
        if self.row.id["test"] == "tg4" and len(self.row.samples) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Case, "sample", stopped)
    results = Results("models", {})
    with pytest.raises(KeyboardInterrupt):
        measure(results, Plan(prompts=(8,), generates=(4,), rounds=5, warmup=0))
    assert [len(row.samples) for row in results.rows] == [1, 2]


@pytest.mark.parametrize("arguments, code, words", [
    (["-p", "0"], 2, ["-p 0", "-p none"]), (["-n", "0,5"], 2, ["-n 0", "-n none"]), (["-p", "-5"], 2, ["-p -5"]), (["-n", "x"], 2, ["-n x"]),
    (["--depth", "-1"], 2, ["--depth -1", "below 0"]), (["--batch", "0"], 2, ["--batch 0"]), (["-t", "0"], 2, ["-t 0"]),
    (["-t", "5000"], 2, ["5000", "1024"]), (["-p", "none", "-n", "none"], 2, ["nothing is left"]), (["-p", "none,5"], 2, ["-p none"]),
    (["-p", "4-1"], 2, ["-p 4-1", "before"]), (["-p", "1-1000", "-n", "1-1000", "--batch", "1-10"], 2, ["20,000 rows"]),
    (["--shape", "llama-9"], 2, ["llama-9", "llama-3.2-1b", "qwen3-0.6b"]), (["--type", "int3"], 2, ["int3", "int4"]),
    (["--type", "f16"], 2, ["default", "f16", "bf16"]), (["--ci", "0%"], 2, ["--ci"]), (["--ci", "5 percent"], 2, ["--ci"]),
    (["-r", "0"], 2, ["-r 0"]), (["-r", "-2"], 2, ["-r -2"]), (["-r", "1.5"], 2, ["1.5"]), (["--warmup", "-1"], 2, ["--warmup -1"]),
    (["--time", "-1"], 2, ["--time -1"]), (["--time", "nan"], 2, ["--time nan"]), (["--seed", "-1"], 2, ["--seed -1"]),
    (["--depth", "1000"], 2, ["default", "--depth 1000", "512", "1024"]), (["-n", "1025", "-p", "none"], 2, ["1025", "1024"]),
    (["--device", "tpu"], 2, ["tpu"]), (["--device", "cpu,cuda"], 5, ["cuda"]), (["--kv-type", "int3"], 2, ["int3"]),
    (["-m", "no/such/model/here"], 3, ["no/such/model/here"]), (["--shape", "llama-3.1-70b", "--type", "f32"], 4, ["282 GB", "free"]),
    (["--shape", "llama-3.2-1b", "--batch", "64", "--depth", "100000"], 4, ["keys and values", "free", "64 sequence"]),
    (["-t", "1", "history"], 2, ["genkit bench history", "after its name"]), (["nonsense"], 2, ["nonsense"]),
    (["-o", "result.txt"], 2, ["result.txt"])])
def test_bad_input(arguments, code, words, monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 8 << 30)
    monkeypatch.setattr(machine, "cuda_state", lambda: (False, "none here"))
    monkeypatch.setattr(subjects.Subject, "load", lambda *arguments: pytest.fail("loaded"))
    with pytest.raises(Exception) as caught:
        command(*arguments)
    found, message = explain(caught.value)
    assert found == code and all(word in message for word in words) and "\n" not in message, message


def test_shape_help_lists_the_known_ones(capsys):
    command("--shape", "help")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shapes.SHAPES)
    assert "1.24 B weights, llama" in next(line for line in lines if line.startswith("llama-3.2-1b "))


def bench(*arguments):
    return subprocess.run([*GENKIT, "bench", *arguments], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def test_the_command(tmp_path):
    done = bench("-p", "16", "-n", "8", "--depth", "0,32", "--batch", "1-2", "-r", "1", "--warmup", "0", "--type", "stored,int8", "--json",
                 "-o", str(tmp_path / "out.md"))
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["genkit_bench"] == 1 and found["kind"] == "models" and found["complete"] and len(found["rows"]) == 16
    for row in found["rows"]:
        assert row["median"] > 0 and len(row["samples"]) == 1 and row["share"]["median"] > 0 and row["limit"]["median"] > 1e6
    assert "tg8 @ d32" in (tmp_path / "out.md").read_text()
    assert {"processor", "usable_processors", "cgroup", "memory", "tier", "versions", "load_average", "date"} <= set(found["machine"])
    again = bench("-o", str(tmp_path / "out.md"))
    assert again.returncode == 2 and "out.md" in again.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux only")
def test_an_interrupted_run_shows_what_it_has():
    process = subprocess.Popen([*GENKIT, "bench", "-p", "16", "-n", "8", "-r", "100000", "--warmup", "0", "--json"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while cpu_seconds(process.pid) < 3 and process.poll() is None and time.monotonic() < deadline:  # far beyond what a start and a round take
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    found = json.loads(out)
    assert not found["complete"] and all(row["samples"] for row in found["rows"]) and not errors


def test_help_shows_the_groups_own_options_and_its_commands():
    done = bench("--help")
    assert done.returncode == 0
    for words in ("-m, --model MODEL", "--shape NAME", "--depth LIST", "--ci SHARE", "--warmup N", "genkit bench --shape llama-3.2-1b"):
        assert words in done.stdout, words
