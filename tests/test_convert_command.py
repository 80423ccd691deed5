"""`genkit convert`: the same codes in every form that has a place for them, and what is said where one has not."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_files import CONFIGS, WIDE, make_model, mixed_file, read_keys
from checkpoint_files import write_tensors

import genkit
from genkit import _core
from genkit.checkpoints.safetensors import read_header
from genkit.errors import UsageError
from genkit.opening import open_model
from genkit.quant.formats import BY_NAME, Format
from genkit.quant.job import quantize
from genkit.quant.quantize import Recipe
from genkit.quant.rewrite import REPORT, candidates, convert

FIXTURES = Path(__file__).parent / "fixtures"
SEED = 20261127


def run(*arguments, limit=None):
    preexec = limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    return subprocess.run([sys.executable, "-m", "genkit", "convert", *map(str, arguments)], capture_output=True, text=True,
                          timeout=120, stdin=subprocess.DEVNULL, preexec_fn=preexec)


def refusal(done, code, *words):
    assert done.returncode == code and done.stdout == "", done.stderr
    assert done.stderr.startswith("genkit: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class Held:
    """What a model's files hold: numbers f32 by name, each as [n, k] for codes; codes cut to k, and formats."""

    def __init__(self, path):
        from contextlib import ExitStack

        with ExitStack() as stack:
            checkpoint = open_model(path, stack).checkpoint
            self.numbers, self.codes, self.formats, self.dtypes = {}, {}, {}, {}
            for name, info in checkpoint.tensors.items():
                tensor = checkpoint.load_rows(name, info.shape, 0, info.shape[0], exact=True)
                self.numbers[name] = (tensor if tensor.dtype == "f32" else _core.convert(tensor, "f32")).numpy().copy()
                self.dtypes[name] = info.dtype
                stored = checkpoint.quantized.get(name)
                if stored is not None and stored.format is not None:
                    self.formats[name] = stored.format
                    self.codes[name] = checkpoint.codes(name, stored.shape).codes[:, :stored.shape[1]]

    def same_numbers(self, other):
        assert self.numbers.keys() == other.numbers.keys()
        for name, values in self.numbers.items():
            assert np.array_equal(values, other.numbers[name]), name

    def same_codes(self, other, names):
        for name in names:
            assert np.array_equal(self.codes[name], other.codes[name]), name


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A llama of random float32 weights, every width whole groups of 32."""
    return make_model(tmp_path_factory.mktemp("floats") / "llama", CONFIGS["llama"], np.random.default_rng(SEED))


def quantized(floats, out, **recipe):
    quantize(floats, out, Recipe(**{"method": "rtn"} | recipe), price=False)
    return out


def proj(held):
    return [name for name in held.formats if "proj" in name]


# ---- codes -----------------------------------------------------------------------------------------------------------

ROUNDS = {
    "int4": (dict(format="genkit", group_size=32), ("gguf", "gptq", "compressed-tensors", "mlx", "gguf", "genkit")),
    "int8": (dict(format="genkit", group_size=32, type="int8"), ("mlx", "gguf", "compressed-tensors", "gptq", "genkit")),
    "minimum": (dict(format="gguf", asymmetric=True), ("mlx", "genkit", "gguf")),
    "zero": (dict(format="compressed-tensors", asymmetric=True), ("genkit", "compressed-tensors")),
    "two-level": (dict(format="genkit"), ("gguf", "genkit")),  # as eight bits, which u q - m has
}


@pytest.mark.parametrize("kind", ROUNDS)
def test_codes_go_round_every_form(kind, floats, tmp_path):
    recipe, forms = ROUNDS[kind]
    path = quantized(floats, tmp_path / ("0.gguf" if recipe["format"] == "gguf" else "0"), **recipe)
    first = Held(path)
    names = proj(first)
    assert len(names) == 14
    for i, form in enumerate(forms):
        out = tmp_path / (f"{i + 1}.gguf" if form == "gguf" else str(i + 1))
        report = convert(path, out, form)
        now = Held(out)
        now.same_numbers(first)
        if kind != "two-level":
            now.same_codes(first, names)
        else:
            assert all(now.formats[name].packing == "int8" for name in names)
        assert {report["tensors"][name]["how"] for name in names} == {"same"}
        assert all(entry["error"] == 0 for entry in [*report["classes"], *report["tensors"].values()])
        assert sum(entry["tensors"] for entry in report["classes"]) == len(report["tensors"]) == len(first.numbers)
        assert sum(entry["parameters"] for entry in report["classes"]) == report["parameters"]
        path = out
    m = genkit.load(path, kv_type="f32")
    assert m.quantize == "none" and np.isfinite(m.logits([3, 1, 4, 1, 5])).all()


def test_offsets_that_are_eight_scales_are_symmetric_again(floats, tmp_path):
    """MLX has nothing but offsets; where one is not -8 s its matrix is rounded again, with those that one product reads."""
    quantized(floats, tmp_path / "a", group_size=32)
    convert(tmp_path / "a", tmp_path / "mlx", "mlx")
    assert {f.zero for name, f in Held(tmp_path / "mlx").formats.items()} == {"real"}
    convert(tmp_path / "mlx", tmp_path / "b", "compressed-tensors")
    assert {f.zero for name, f in Held(tmp_path / "b").formats.items()} == {"none"}
    with open(tmp_path / "mlx" / "model.safetensors", "r+b") as file:
        tensors = read_header(tmp_path / "mlx" / "model.safetensors", file.fileno(), os.fstat(file.fileno()).st_size)
        file.seek(tensors["model.layers.1.self_attn.k_proj.biases"].offset + 4 * 7)
        file.write(np.float32(0.25).tobytes())
    refusal(run(tmp_path / "mlx", tmp_path / "c", "--format", "compressed-tensors"), 2, "layers.1.self_attn.q_proj",
            "int4 per 32 with minimum", "second time", "int4 per 32 with zero", "2 more")
    report = convert(tmp_path / "mlx", tmp_path / "c", "compressed-tensors", allow_loss=True)
    before, after = Held(tmp_path / "mlx"), Held(tmp_path / "c")
    for name in proj(before):
        odd = name.startswith("model.layers.1.self_attn") and "o_proj" not in name
        entry = report["tensors"][name]
        assert entry["to"] == ("int4 per 32 with zero" if odd else "int4 per 32"), name
        assert entry["how"] == ("rounded again" if odd else "same")
        change = after.numbers[name] - before.numbers[name]
        assert entry["error"] == pytest.approx(np.linalg.norm(change) / np.linalg.norm(before.numbers[name]), rel=1e-4)


def test_every_type_of_gguf_has_a_place_in_genkit_s_form(tmp_path):
    """Codes of all, K-quants' two levels of scales too; other forms have none for those."""
    mixed_file(tmp_path / "a.gguf")
    report = convert(tmp_path / "a.gguf", tmp_path / "b", "genkit")
    a, b = Held(tmp_path / "a.gguf"), Held(tmp_path / "b")
    b.same_numbers(a), b.same_codes(a, a.formats)
    assert a.formats == b.formats and len(set(a.formats.values())) > 6
    assert {entry["how"] for entry in report["classes"]} == {"same"}
    ids = [3, 1, 4, 1, 5]
    assert np.array_equal(*(genkit.load(path, kv_type="f32").logits(ids) for path in (tmp_path / "a.gguf", tmp_path / "b")))
    refusal(run(tmp_path / "b", tmp_path / "c.gguf"), 2, "int8 per 32 with minimum", "7 more", "--allow-loss")
    report = convert(tmp_path / "b", tmp_path / "c.gguf", allow_loss=True)
    for entry in report["classes"]:
        exact = entry["from"] in ("int4 per 32", "int4 per 32 with minimum", "int8 per 32", "f16", "f32")
        assert entry["how"] == ("same" if exact else "rounded again") and (entry["error"] == 0) == exact, entry


def test_candidates_begin_with_what_it_is():
    for source in (Format("int4", 64, "integer", "bf16"), Format("int8"), BY_NAME["int4"], Format("int8_k", 16)):
        found = candidates(source)
        assert found[0] == source and len(set(found)) == len(found)
        assert all(f.packing == "int8" or source.packing != "int8" for f in found)


# ---- floats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_floats_to_gguf_and_back(kind, floats, tmp_path):
    report = convert(floats, tmp_path / "a.gguf", "gguf", kind)
    a, source = Held(tmp_path / "a.gguf"), Held(floats)
    for name, values in source.numbers.items():
        wanted = kind if values.ndim == 2 else "f32"
        expected = _core.convert(_core.convert(_core.Tensor.from_numpy(values), wanted), "f32").numpy()
        assert a.dtypes[name] == wanted and np.array_equal(a.numbers[name], expected), name
    lossy = [entry for entry in report["classes"] if entry["how"] == "narrowed"]
    assert bool(lossy) == (kind != "f32") and all(0 < entry["error"] < 2.0**-8 for entry in lossy)
    convert(tmp_path / "a.gguf", tmp_path / "b", "safetensors")
    convert(tmp_path / "b", tmp_path / "c.gguf")
    b, c = Held(tmp_path / "b"), Held(tmp_path / "c.gguf")
    b.same_numbers(a), c.same_numbers(a)
    assert a.dtypes == b.dtypes == c.dtypes
    named = json.loads((tmp_path / "b" / "config.json").read_text())["dtype"]
    assert named == {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[kind]
    first, last = read_keys(tmp_path / "a.gguf"), read_keys(tmp_path / "c.gguf")
    assert [(n, e.type, e.shape, e.offset) for n, e in first.tensors.items()] == [
        (n, e.type, e.shape, e.offset) for n, e in last.tensors.items()]
    assert {k: str(v) for k, v in first.keys.items()} == {k: str(v) for k, v in last.keys.items()}
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3", "mistral"])
def test_codes_to_floats_and_the_model_is_the_same(name, tmp_path):
    """int8 codes as float32 folders: the very numbers, also where the file holds [k, n] (gpt2)."""
    source = tmp_path / "in"
    source.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / name / file, source)
    small = quantized(source, tmp_path / "small", type="int8", group_size=32)
    report = convert(small, tmp_path / "wide", "safetensors", "f32")
    assert {entry["how"] for entry in report["classes"]} <= {"widened", "same"}
    codes, wide = Held(small), Held(tmp_path / "wide")
    for tensor, values in codes.numbers.items():
        turned = name == "gpt2" and tensor in codes.formats and ".h." in tensor
        assert np.array_equal(wide.numbers[tensor].T if turned else wide.numbers[tensor], values), tensor
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    wanted, got = (genkit.load(path, kv_type="f32").logits(ids) for path in (small, tmp_path / "wide"))
    assert np.linalg.norm(got - wanted) < 0.06 * np.linalg.norm(wanted)  # activations are rounded beside codes
    convert(tmp_path / "wide", tmp_path / "again", "genkit")
    Held(tmp_path / "again").same_numbers(wide)


def test_what_float_types_lose_is_measured(floats, tmp_path):
    small = quantized(floats, tmp_path / "small", group_size=32)
    report = convert(small, tmp_path / "half", "safetensors", "bf16")
    before, after = Held(small), Held(tmp_path / "half")
    assert set(after.dtypes.values()) == {"bf16"}
    for name, entry in report["tensors"].items():
        error = np.linalg.norm((after.numbers[name] - before.numbers[name]).astype(np.float64).ravel())
        assert entry["error"] == pytest.approx(error / np.linalg.norm(before.numbers[name].astype(np.float64).ravel()), rel=1e-6)
    widened = [entry for entry in report["classes"] if entry["from"] == "int4 per 32"]
    assert [entry["how"] for entry in widened] == ["widened"] and 1e-4 < widened[0]["error"] < 2.0**-8
    assert widened[0]["error"] == max(e["error"] for e in report["tensors"].values() if e["from"] == "int4 per 32")


def test_numbers_beyond_float16(floats, tmp_path):
    broken = tmp_path / "large"
    shutil.copytree(floats, broken)
    values = dict(Held(floats).numbers)
    values["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e5
    write_tensors(broken / "model.safetensors", values)
    refusal(run(broken, tmp_path / "out", "--format", "safetensors", "--type", "f16"), 2, "up_proj", "100000", "bf16")
    assert not (tmp_path / "out").exists()
    convert(broken, tmp_path / "out.gguf", "gguf", "bf16")


# ---- what a form has no place for ------------------------------------------------------------------------------------


def test_a_second_rounding_is_refused_by_name_and_measured(tmp_path):
    """The package's model is bf16, so compressed-tensors has bf16 scales, which float16's are not."""
    small = quantized(genkit.DEFAULT_MODEL, tmp_path / "small", group_size=32, method="search")
    refusal(run(small, tmp_path / "out", "--format", "compressed-tensors"), 2, "q_proj.weight", "int4 per 32", "scales",
            "34 more", "--allow-loss", "--type")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    done = run(small, tmp_path / "out", "--format", "compressed-tensors", "--allow-loss", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out" / REPORT).read_text())
    how = {entry["how"]: entry for entry in report["classes"]}
    assert how["scales rounded"]["tensors"] == 35 and 1e-4 < how["scales rounded"]["error"] < 2.0**-8
    assert how["widened"]["to"] == "f32" and how["widened"]["error"] == 0  # the embedding, which has no codes there
    before, after = Held(small), Held(tmp_path / "out")
    after.same_codes(before, proj(before))
    worst = max(np.linalg.norm(after.numbers[name] - before.numbers[name]) / np.linalg.norm(before.numbers[name])
                for name in proj(before))
    assert how["scales rounded"]["error"] == pytest.approx(worst, rel=1e-3)


def test_six_bits_have_no_place_elsewhere(tmp_path):
    config = CONFIGS["qwen3"] | WIDE | dict(tie_word_embeddings=False)
    floats = make_model(tmp_path / "floats", config, np.random.default_rng(SEED))
    small = quantized(floats, tmp_path / "small.gguf", format="gguf", head="q6_k")
    refusal(run(small, tmp_path / "out", "--format", "mlx"), 2, "lm_head.weight", "q6_k", "int8 per 32", "--allow-loss")
    done = run(small, tmp_path / "out", "--format", "mlx", "--allow-loss")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("q6_k")]
    before, after = Held(small), Held(tmp_path / "out")
    change = np.linalg.norm(after.numbers["lm_head.weight"] - before.numbers["lm_head.weight"])
    error = change / np.linalg.norm(before.numbers["lm_head.weight"])
    assert line.split()[:6] == ["q6_k", "int8", "per", "32", "rounded", "again"] and line.split()[-1] == f"{error:.1e}"
    assert 1e-4 < error < 1e-2


def test_dry_run_writes_nothing(floats, tmp_path):
    done = run(floats, tmp_path / "out", "--format", "safetensors", "--type", "bf16", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    report = convert(floats, tmp_path / "out", "safetensors", "bf16")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {entry["error"] for entry in plan["classes"]} == {None} and all(entry["error"] for entry in report["classes"])
    for part in (plan, report):
        for entry in [*part["classes"], *part["tensors"].values()]:
            del entry["error"]
    assert plan == report
    text = run(floats, tmp_path / "out2", "--format", "safetensors", "--type", "bf16", "--dry-run").stdout
    assert "known once written" in text and "f32   bf16  narrowed" in text and "written" not in text.splitlines()[0]


def test_refusals(floats, tmp_path):
    (tmp_path / "there").mkdir()
    refusal(run(floats, tmp_path / "there", "--format", "genkit"), 2, "exists already", "--force")
    refusal(run(floats, floats, "--format", "genkit", "--force"), 2, "the model that is read")
    refusal(run(floats, tmp_path / "out"), 2, "--format", "safetensors", ".gguf")
    refusal(run(floats, tmp_path / "out.gguf", "--format", "mlx"), 2, "out.gguf", "mlx")
    refusal(run(floats, tmp_path / "out", "--format", "awq"), 2, "awq")
    refusal(run(floats, tmp_path / "out", "--format", "genkit", "--type", "int4"), 2, "int4")
    refusal(run(FIXTURES / "gpt2", tmp_path / "out.gguf"), 2, "gpt2")
    refusal(run(tmp_path / "nothing", tmp_path / "out.gguf"), 3, "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# ---- whole or not at all ---------------------------------------------------------------------------------------------


def test_a_stop_leaves_the_old_and_is_gone_on_with(tmp_path):
    """A disk that is full at any stage; --resume then ends with the bytes of a run that nobody stopped."""
    convert(genkit.DEFAULT_MODEL, tmp_path / "whole", "safetensors", "f16")
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    for limit in (100, 50_000, 9_000_000):
        done = run(genkit.DEFAULT_MODEL, out, "--format", "safetensors", "--type", "f16", "--force", "--resume", limit=limit)
        refusal(done, 4, "out.partial", "--resume")
        assert (out / "old").read_text() == "old"
    refusal(run(genkit.DEFAULT_MODEL, out, "--format", "safetensors", "--type", "bf16", "--force", "--resume"), 2,
            "out.partial", "another")
    done = run(genkit.DEFAULT_MODEL, out, "--format", "safetensors", "--type", "f16", "--force", "--resume")
    assert done.returncode == 0 and contents(out) == contents(tmp_path / "whole"), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    assert subprocess.run([sys.executable, "-m", "genkit", "verify", out], capture_output=True, timeout=60).returncode == 0


def test_what_comes_back_as_another_is_not_put_in_place(floats, tmp_path, monkeypatch):
    from genkit.quant.writers import gguf

    small = quantized(floats, tmp_path / "small", group_size=32)
    encode = gguf.encode

    def wrong(codes):
        made = encode(codes)
        made[-1, -1] ^= 0x10
        return made

    monkeypatch.setattr(gguf, "encode", wrong)
    with pytest.raises(ValueError, match="is not what it was"):
        convert(small, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    with pytest.raises(UsageError, match="left by a run"):
        convert(small, tmp_path / "out.gguf")
