"""`genkit quantize`, `verify` and `eval` as processes: what they write, what stops them, and what a stop leaves behind."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import genkit
from checkpoint_files import write_tensors
from genkit.checkpoints import open_checkpoint, read_config
from genkit.checkpoints.safetensors import read_header

FIXTURES = Path(__file__).parent / "fixtures"
FAST = ("--no-price", "-q")


def run(*arguments, limit=None, **options):
    """limit: RLIMIT_FSIZE, which stands for a disk that is full."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "COLUMNS"))}
    preexec = limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    return subprocess.run([sys.executable, "-m", "genkit", *map(str, arguments)], capture_output=True, text=True, timeout=300,
                          env=environment, stdin=subprocess.DEVNULL, preexec_fn=preexec, **options)


def refusal(done, code, *words):
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("genkit: error: "), done.stderr
    assert all(word in lines[0] for word in words), lines[0]


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The default model in int4, by the command."""
    out = tmp_path_factory.mktemp("quantized") / "int4"
    done = run("quantize", genkit.DEFAULT_MODEL, out, "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "quantization.json").read_text())
    return out


def test_it_writes_a_model_that_runs(small):
    m = genkit.load(small)
    assert m.quantize == "none"
    text = m.generate("def add(a, b):\n", max_tokens=40, temperature=0).text
    assert len(text) > 20
    assert m.generate("def add(a, b):\n", max_tokens=40, temperature=0).text == text


def test_the_report_says_size_and_price(small):
    report = json.loads((small / "quantization.json").read_text())
    assert report["file_bytes"] == (small / "model.safetensors").stat().st_size
    assert 4.43 < report["bits_in_memory"] < 4.5 and 4.43 < report["bits_in_file"] < 4.55
    price = report["price"]
    assert 0 < price["kl"]["median"] < price["kl"]["mean"] < price["kl"]["p99"] < price["kl"]["p999"] <= price["kl"]["max"]
    assert price["kl"]["mean"] < 0.03 and 0.8 < price["same_top"] < 1 and price["kl"]["error"] < price["kl"]["mean"] / 20
    assert price["perplexity"] == pytest.approx(price["base_perplexity"] * price["perplexity_ratio"])
    assert len(price["output_errors"]) == 20 and 0 < max(price["output_errors"].values()) < 0.02


def test_eval_agrees_with_the_report(small):
    done = run("eval", "perplexity", small, "--against", genkit.DEFAULT_MODEL, "--json", "--tokens", 32768, "-q")
    assert done.returncode == 0, done.stderr
    found, reported = json.loads(done.stdout), json.loads((small / "quantization.json").read_text())["price"]
    assert found["kl"] == reported["kl"] and found["perplexity"] == reported["perplexity"]
    assert "output_errors" not in found


def test_eval_is_what_the_engine_computes(tmp_path):
    text = (Path(genkit.__file__).parent / "errors.py").read_text()
    (tmp_path / "text").write_text(text)
    done = run("eval", "perplexity", genkit.DEFAULT_MODEL, "--text", tmp_path / "text", "--json", "-c", 100, "-t", 3)
    found = json.loads(done.stdout)
    m = genkit.load(genkit.DEFAULT_MODEL, quantize="none")
    ids, losses = m.tokenizer.encode(text), []
    for i in range(0, len(ids), 100):
        part = ids[i:i + 100]
        if len(part) > 1:
            logits = m.logits(part)[:-1].astype(np.float64)
            losses.extend(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(part) - 1), part[1:]])
    assert found["positions"] == len(losses)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_a_model_against_itself_costs_nothing():
    done = run("eval", "perplexity", genkit.DEFAULT_MODEL, "--against", genkit.DEFAULT_MODEL, "--json", "--tokens", 2000, "--max-kld", 0)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["kl"]["max"] == 0 and found["perplexity_ratio"] == 1 and found["same_top"] == 1


def test_the_same_command_gives_the_same_bytes(small, tmp_path):
    for threads in (1, 3):
        done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / str(threads), "-t", threads, "-q")
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / str(threads)) == contents(small)


def test_calibrated_files_repeat_and_lose_less(small, tmp_path):
    for threads in (1, 3):
        done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / str(threads), "--method", "gptq", "--samples", 6, "-t", threads, "-q")
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    report, plain = (json.loads((folder / "quantization.json").read_text()) for folder in (tmp_path / "1", small))
    assert report["price"]["kl"]["mean"] < 0.97 * plain["price"]["kl"]["mean"]
    methods = {entry["method"].split(",")[0] for entry in report["tensors"].values() if entry["type"].startswith("int4")}
    assert "gptq" in methods


@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_other_methods(method, small, tmp_path):
    done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", "--method", method, "--samples", 6, "--json", "-q")
    assert done.returncode == 0, done.stderr
    report, searched = json.loads(done.stdout), json.loads((small / "quantization.json").read_text())
    better = report["price"]["kl"]["mean"] < searched["price"]["kl"]["mean"]
    assert better == (method == "awq")
    assert max(report["price"]["output_errors"].values()) < 0.06
    with open_checkpoint(genkit.DEFAULT_MODEL) as source, open_checkpoint(tmp_path / "out") as made:
        name = "model.layers.1.input_layernorm.weight"
        norms = [checkpoint.load_f32(name, checkpoint.tensors[name].shape).numpy() for checkpoint in (source, made)]
    assert np.array_equal(*norms) == (method == "rtn")


FORMATS = [("genkit", "int4"), ("genkit", "int8"), ("compressed-tensors", "int4"), ("compressed-tensors", "int8"), ("gguf", "int4"),
           ("gguf", "int8"), ("gptq", "int4"), ("gptq", "int8"), ("mlx", "int4"), ("mlx", "int8")]


@pytest.mark.parametrize("form, kind", FORMATS)
def test_every_format(form, kind, tmp_path):
    out = tmp_path / ("out.gguf" if form == "gguf" else "out")
    done = run("quantize", genkit.DEFAULT_MODEL, out, "--format", form, "--type", kind, *FAST)
    assert done.returncode == 0, done.stderr
    assert not [name for name in left(tmp_path) if "partial" in name]
    done = run("verify", out)
    assert done.returncode == 0 and "checksums" in done.stdout, done.stdout
    done = run("eval", "perplexity", out, "--against", genkit.DEFAULT_MODEL, "--tokens", 3000, "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["kl"]["mean"] < {"int4": 0.02, "int8": 0.001}[kind]
    done = run("inspect", out, "--json")
    types = json.loads(done.stdout)["tensors"]
    assert any(name.startswith(kind) for name in types), types
    done = run("generate", "-m", out, "def add(a, b):", "-n", 8, "--temp", 0, "-q")
    assert done.returncode == 0 and len(done.stdout) > 5


def test_rewriting_keeps_the_codes(tmp_path):
    """compressed-tensors to gptq and back to the same numbers; two-level codes to eight bits exactly."""
    run("quantize", genkit.DEFAULT_MODEL, tmp_path / "ct", "--format", "compressed-tensors", *FAST)
    done = run("quantize", tmp_path / "ct", tmp_path / "gptq", "--format", "gptq", "--json", *FAST)
    assert done.returncode == 0, done.stderr
    methods = {entry["method"] for name, entry in json.loads(done.stdout)["tensors"].items() if "proj" in name}
    assert methods == {"same codes"}
    done = run("eval", "perplexity", tmp_path / "gptq", "--against", tmp_path / "ct", "--tokens", 1000, "--json", "-q")
    assert json.loads(done.stdout)["kl"]["max"] < 1e-4  # scales in bf16 there, in f16 here
    run("quantize", genkit.DEFAULT_MODEL, tmp_path / "int4", *FAST)
    done = run("quantize", tmp_path / "int4", tmp_path / "int8", "--type", "int8", "--group-size", "128", *FAST)
    assert done.returncode == 0, done.stderr
    with open_checkpoint(tmp_path / "int4", read_config(tmp_path / "int4")) as a, open_checkpoint(tmp_path / "int8", read_config(tmp_path / "int8")) as b:
        for name, stored in a.quantized.items():
            assert np.array_equal(a.codes(name, stored.shape).dequantize(), b.codes(name, stored.shape).dequantize()), name


def test_verify_finds_what_was_changed(small, tmp_path):
    done = run("verify", small, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["problems"] == []
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-5000] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    done = run("verify", copy)
    assert done.returncode == 3 and "SHA-256" in done.stdout and "model.safetensors" in done.stdout
    (copy / "manifest.json").unlink()
    tensors = read_header(copy / "model.safetensors", os.open(copy / "model.safetensors", os.O_RDONLY), len(data))
    name = "model.layers.2.mlp.up_proj.weight"
    where = tensors[name + ".scales"].offset
    data[where:where + 2] = b"\x00\x7e"  # NaN
    (copy / "model.safetensors").write_bytes(data)
    done = run("verify", copy)
    assert done.returncode == 3 and name in done.stdout and "NaN" in done.stdout, done.stdout


def test_dry_run_writes_nothing_and_says_the_size(small, tmp_path):
    done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", "--dry-run", "--json")
    plan, report = json.loads(done.stdout), json.loads((small / "quantization.json").read_text())
    assert done.returncode == 0 and left(tmp_path) == []
    for key in ("file_bytes", "memory_bytes", "parameters", "types"):
        assert plan[key] == report[key], key


def test_types_by_name(tmp_path):
    done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", *FAST, "--tensor", "down_proj=int8", "--tensor", r"\.0\..*down=bf16",
               "--embeddings", "int8", "--group-size", "64", "--json")
    assert done.returncode == 0, done.stderr
    types = {name: entry["type"] for name, entry in json.loads(done.stdout)["tensors"].items()}
    assert types["model.layers.0.mlp.down_proj.weight"] == "bf16" and types["model.layers.1.mlp.down_proj.weight"] == "int8 per 256"
    assert types["model.layers.1.mlp.up_proj.weight"] == "int4 per 64" and types["model.embed_tokens.weight"] == "int8 per 256"
    fields = read_config(tmp_path / "out")
    with open_checkpoint(tmp_path / "out", fields) as checkpoint:
        assert checkpoint.tensors["model.layers.0.mlp.down_proj.weight"].dtype == "bf16"
        assert checkpoint.quantized["model.layers.1.mlp.up_proj.weight"].format.group == 64
    assert genkit.load(tmp_path / "out").generate("import", max_tokens=5, temperature=0).tokens


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "qwen3", "mistral"])
def test_every_architecture(name, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / name / file, source)
    done = run("quantize", source, tmp_path / "out", "--type", "int8", "--group-size", "32")
    assert done.returncode == 0, done.stderr
    assert "no tokenizer" in done.stdout
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    wanted, got = (genkit.load(path, kv_type="f32").logits(ids) for path in (source, tmp_path / "out"))
    assert np.linalg.norm(got - wanted) < 0.08 * np.linalg.norm(wanted)
    assert run("verify", tmp_path / "out").returncode == 0


def test_fit_spends_what_it_is_given(tmp_path):
    sizes = {}
    for size in ("14MiB", "16MiB", "20MiB"):
        done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", "--fit", size, "--context", 256, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)
        sizes[size] = plan["memory_bytes"]
        assert plan["memory_bytes"] < int(size[:-3]) << 20
    assert sizes["14MiB"] < sizes["16MiB"] < sizes["20MiB"]
    refusal(run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", "--fit", "3MiB"), 2, "--fit", "smallest form", "1024 tokens")


def test_max_kld(tmp_path):
    done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", "--max-kld", "0.00001", "-q")
    refusal(done, 1, "KL divergence", "--max-kld", str(tmp_path / "out"))
    assert (tmp_path / "out" / "manifest.json").exists()


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_refusals(tmp_path, small):
    model = genkit.DEFAULT_MODEL
    (tmp_path / "there").mkdir()
    refusal(run("quantize", model, tmp_path / "there"), 2, "there", "exists already", "--force")
    refusal(run("quantize", model, model, "--force"), 2, "the model that is read")
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    refusal(run("quantize", copy, copy / "inner", "--force"), 2, "the model that is read")
    refusal(run("quantize", copy, tmp_path, "--force"), 2, "the model that is read")
    (tmp_path / "link").symlink_to(copy)
    refusal(run("quantize", copy, tmp_path / "link", "--force"), 2, "the model that is read")
    refusal(run("quantize", model, tmp_path / "no" / "where"), 2, "no such folder")
    refusal(run("quantize", model, tmp_path / "out", "--tensor", "q_proj=int8"), 2, "q_proj", "k_proj", "one type")
    refusal(run("quantize", model, tmp_path / "out", "--tensor", "(=int8"), 2, "(=int8", "regular expression")
    refusal(run("quantize", model, tmp_path / "out", "--tensor", "up=int3"), 2, "int3", "int4")
    refusal(run("quantize", model, tmp_path / "out", "--group-size", "48"), 2, "48", "64")
    refusal(run("quantize", model, tmp_path / "out", "--fit", "8parsecs"), 2, "8parsecs")
    refusal(run("quantize", small, tmp_path / "out", "--group-size", "64"), 2, "--requantize", "model.")
    refusal(run("quantize", model, tmp_path / "out", "--max-kld", "1", "--no-price"), 2, "--no-price")
    refusal(run("quantize", tmp_path / "nothing", tmp_path / "out"), 3, "nothing")
    (tmp_path / "text").write_text("some text " * 100)
    refusal(run("quantize", model, tmp_path / "out", "--calibration", tmp_path / "text", "--eval", tmp_path / "text"), 2, "one text")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    refusal(run("quantize", model, tmp_path / "out", "--eval", tmp_path / "bytes"), 3, "UTF-8")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("value", [0x7FC0, 0x7F80, 0xFF80])
def test_numbers_that_are_none_are_refused_by_name(value, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    broken = with_tensor(tmp_path, name, lambda bits: bits.__setitem__((5, 7), value))
    refusal(run("quantize", broken, tmp_path / "out", *FAST), 3, name, "row 5", "NaN")
    assert not (tmp_path / "out").exists()


def with_tensor(tmp_path, name, change):
    """A copy of the default model in which one bf16 tensor is changed."""
    copy = tmp_path / "broken"
    shutil.copytree(genkit.DEFAULT_MODEL, copy)
    with open_checkpoint(copy) as checkpoint:
        tensors = {key: np.array(checkpoint.load(key, info.shape).numpy()) for key, info in checkpoint.tensors.items()}
    change(tensors[name])
    write_tensors(copy / "model.safetensors", tensors)
    return copy


def test_damaged_sources(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(genkit.DEFAULT_MODEL, copy)
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    refusal(run("quantize", copy, tmp_path / "out", *FAST), 3, "truncated")
    (copy / "model.safetensors").unlink()
    refusal(run("quantize", copy, tmp_path / "out", *FAST), 3, "no weights")
    assert left(tmp_path) == ["copy"]


def test_sharded_sources(undisturbed, tmp_path):
    """As one file gives; a shard that is missing, cut or not what it says is named."""
    copy = tmp_path / "sharded"
    shutil.copytree(genkit.DEFAULT_MODEL, copy)
    with open_checkpoint(copy) as checkpoint:
        tensors = {key: np.array(checkpoint.load(key, info.shape).numpy()) for key, info in checkpoint.tensors.items()}
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for file, held in shards.items():
        write_tensors(copy / file, {name: tensors[name] for name in held})
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    done = run("quantize", copy, tmp_path / "out", *FAST)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out")["model.safetensors"] == undisturbed[0]["model.safetensors"]
    last = copy / "model-00002-of-00002.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[:-1000])
    refusal(run("quantize", copy, tmp_path / "out2", *FAST), 3, last.name, "truncated")
    last.write_bytes(b"\xff" * 8 + whole[8:])
    refusal(run("quantize", copy, tmp_path / "out2", *FAST), 3, last.name)
    last.unlink()
    refusal(run("quantize", copy, tmp_path / "out2", *FAST), 3, last.name, "not found")
    assert left(tmp_path) == ["out", "sharded"]


# ---- stopped on the way ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(contents, seconds) of a run that nobody stopped."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    start = time.monotonic()
    done = run("quantize", genkit.DEFAULT_MODEL, out, *FAST)
    assert done.returncode == 0, done.stderr
    return contents(out), time.monotonic() - start


@pytest.mark.parametrize("replacing", [False, True])
def test_killed_at_any_moment(replacing, undisturbed, tmp_path):
    """25 points each: an old OUT stays whole, and --resume ends with the bytes of a run that nobody stopped."""
    wanted, seconds = undisturbed
    draw = random.Random()
    resumed = 0
    for i in range(25):
        out = tmp_path / f"out{i}"
        if replacing:
            out.mkdir()
            (out / "old").write_text("old")
        command = [sys.executable, "-m", "genkit", "quantize", genkit.DEFAULT_MODEL, out, *FAST, *(["--force"] if replacing else [])]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        if i % 3:  # while tensors are written; else anywhere from the start of Python to the end
            journal, lines = tmp_path / f"out{i}.partial.jsonl", draw.randrange(48)
            while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= lines):
                time.sleep(0.0005)
        else:
            time.sleep(draw.uniform(0.2, 1.1) * seconds)
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            now = contents(out) if out.exists() else None
            assert now in ([wanted, {"old": hashlib.sha256(b"old").hexdigest()}] if replacing else [None, wanted]), now
        resumed += (tmp_path / f"out{i}.partial").exists()
        done = run("quantize", genkit.DEFAULT_MODEL, out, *FAST, "--resume", *(["--force"] if replacing else []))
        assert done.returncode == 0, done.stderr
        assert contents(out) == wanted
        assert not [name for name in left(tmp_path) if "partial" in name or name.endswith(".old")]
        shutil.rmtree(out)
    assert resumed >= 3, "the kills came too early or too late to test anything"


def test_a_full_disk_at_each_stage(undisturbed, tmp_path):
    wanted, _ = undisturbed
    out = tmp_path / "out"
    for limit in (100, 20_000, 1_000_000, 5_000_000):
        done = run("quantize", genkit.DEFAULT_MODEL, out, *FAST, "--resume", limit=limit)
        refusal(done, 4, "out.partial", "--resume")
        assert not out.exists()
    done = run("quantize", genkit.DEFAULT_MODEL, out, *FAST, "--resume")
    assert done.returncode == 0 and contents(out) == wanted


def half(tmp_path):
    """Stopped by SIGKILL once a few tensors are in the journal."""
    journal = tmp_path / "out.partial.jsonl"
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-m", "genkit", "quantize", str(genkit.DEFAULT_MODEL), str(tmp_path / "out"), *FAST, "-t", "1"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 4):
            time.sleep(0.001)
        process.kill()
        process.wait()
        if journal.exists() and (tmp_path / "out.partial").exists():
            return journal
        shutil.rmtree(tmp_path / "out")
    raise AssertionError("could not be stopped half way")


def test_what_a_stopped_run_left_is_not_mixed_with_another(undisturbed, tmp_path):
    journal = half(tmp_path)
    refusal(run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", *FAST), 2, "out.partial", "--resume", "--force")
    refusal(run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", *FAST, "--resume", "--type", "int8"), 2, "recipe", "--force")
    changed = with_tensor(tmp_path, "model.norm.weight", lambda bits: None)
    refusal(run("quantize", changed, tmp_path / "out", *FAST, "--resume"), 2, "another", "source")
    assert len(journal.read_bytes().splitlines()) > 4
    done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", *FAST, "--resume")
    assert done.returncode == 0 and contents(tmp_path / "out") == undisturbed[0]


def test_a_damaged_half_is_done_again(undisturbed, tmp_path):
    journal = half(tmp_path)
    file = tmp_path / "out.partial" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[20_000:30_000] = bytes(10_000)
    file.write_bytes(data)
    journal.write_bytes(journal.read_bytes() + b'{"tensor": "model.no')  # killed while a line was written
    done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", *FAST, "--resume")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == undisturbed[0]


def test_interrupt_leaves_what_is_finished(undisturbed, tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "genkit", "quantize", str(genkit.DEFAULT_MODEL), str(tmp_path / "out"), *FAST, "-t", "1"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    journal = tmp_path / "out.partial.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (130, 0), stderr
    if process.returncode == 130:
        assert not (tmp_path / "out").exists()
    done = run("quantize", genkit.DEFAULT_MODEL, tmp_path / "out", *FAST, "--resume")
    assert done.returncode == 0 and contents(tmp_path / "out") == undisturbed[0]


def test_two_runs_do_not_write_one_output(tmp_path):
    from genkit.errors import UsageError
    from genkit.quant.output import Output

    source = tmp_path / "source"
    source.mkdir()
    with Output(tmp_path / "out", source, {"recipe": 1}):
        with pytest.raises(UsageError, match="another genkit"):
            Output(tmp_path / "out", source, {"recipe": 1}, resume=True)
