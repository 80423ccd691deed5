"""Shapes: published sizes, random weights that are the same however they are read, and the same as files."""

import dataclasses
import json
import shutil

import models_run
import numpy as np
import pytest
from architectures import CASES

import genkit
from genkit import _core, models
from genkit.bench import shapes
from genkit.bench.shapes import SHAPES, folder_for, open_shape, write_folder
from genkit.bench.synthetic import BLOCK, random_checkpoint
from genkit.checkpoints import Fields, open_checkpoint, read_config
from genkit.errors import ResourceError, UsageError
from genkit.quant import formats

# As the models' cards and safetensors files count them.
PARAMETERS = {
    "gemma-2-2b": 2614341888, "gemma-2-9b": 9241705984, "gemma-3-1b": 999885952, "gpt-oss-20b": 20914757184,
    "gpt2": 124439808, "gpt2-xl": 1557611200, "llama-2-7b": 6738415616, "llama-3.1-8b": 8030261248,
    "llama-3.1-70b": 70553706496, "llama-3.2-1b": 1235814400, "llama-3.2-3b": 3212749824, "mistral-7b": 7248023552,
    "mixtral-8x7b": 46702792704, "olmoe-1b-7b": 6919161856, "phi-4": 14659507200, "qwen2.5-0.5b": 494032768,
    "qwen2.5-1.5b": 1543714304, "qwen2.5-7b": 7615616512, "qwen3-0.6b": 596049920, "qwen3-1.7b": 1720574976,
    "qwen3-4b": 4022468096, "qwen3-8b": 8190735360, "qwen3-14b": 14768307200, "qwen3-32b": 32762123264,
    "qwen3-30b-a3b": 30532122624, "smollm2-135m": 134515008, "smollm2-360m": 361821120, "smollm2-1.7b": 1711376384,
    "tinyllama-1.1b": 1100048384,
}
SMALL = "smollm2-135m"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "genkit-bench" / "shapes"


def bits(checkpoint, name):
    return checkpoint.load(name, checkpoint.tensors[name].shape).numpy().copy()


def test_published_sizes():
    assert {name: open_shape(name)[1].parameters for name in SHAPES} == PARAMETERS


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_in_every_format(name):
    case = CASES[name]
    fields = Fields(models_run.Path(name), {"model_type": case.model_type} | case.sizes)
    for format in (None, "int8", "int4"):
        model = models.load_model(fields, random_checkpoint(fields, "bf16", 3),
                                  None if format is None else formats.BY_NAME[format].core())
        logits = models_run.logits(model, [1, 30, 8, 12, 1])
        assert np.isfinite(logits).all() and np.ptp(logits, axis=1).min() > 0.5


def test_mxfp4_experts():
    fields = Fields(models_run.Path("small"), dict(CASES["gpt_oss"].sizes, model_type="gpt_oss", hidden_size=64, intermediate_size=96,
                                                   quantization_config={"quant_method": "mxfp4"}))
    checkpoint = random_checkpoint(fields)
    assert checkpoint.tensors["model.layers.0.mlp.experts.down_proj_blocks"].shape == (9, 64, 3, 16)
    logits = models_run.logits(models.load_model(fields, checkpoint), [1, 30, 8, 12, 1])
    assert np.isfinite(logits).all() and np.ptp(logits, axis=1).min() > 0.5


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_all_layers_of_a_real_shape(dtype):
    """What goes through keeps its size, and a token is not simply followed by itself."""
    logits = models_run.logits(models.load_model(*open_shape(SMALL, dtype)), list(range(7, 40)))
    assert 0.5 < logits.std() < 2 and len(set(logits.argmax(1).tolist())) > 5
    assert (logits.argmax(1) == np.arange(7, 40)).mean() < 0.5


def test_order_of_reading_does_not_matter():
    name = "model.layers.1.mlp.gate_proj.weight"
    whole = bits(open_shape(SMALL)[1], name)
    checkpoint = open_shape(SMALL)[1]
    rows, columns = whole.shape
    assert rows * columns > 3 * BLOCK  # several threads
    for begin, end in ((1500, 1536), (0, 1), (1, 456), (455, 912), (3, 4)):  # across the blocks' borders, and within one
        part = checkpoint.load_rows(name, whole.shape, begin, end).numpy()
        assert np.array_equal(part, whole[begin:end])
    assert np.array_equal(np.concatenate(list(checkpoint.pieces(name, 100_004))).view(np.uint16), whole.ravel())
    assert not np.array_equal(bits(open_shape(SMALL, seed=1)[1], name), whole)
    other = bits(checkpoint, name.replace("layers.1", "layers.2"))
    assert abs(np.corrcoef((other > 0x8000).ravel(), (whole > 0x8000).ravel())[0, 1]) < 0.01


def test_values():
    checkpoint = open_shape(SMALL, "f32")[1]
    matrix = bits(checkpoint, "model.layers.0.mlp.down_proj.weight")
    assert abs(matrix.mean()) < 1e-4 and matrix.std() == pytest.approx(1536**-0.5, rel=0.01) and (matrix != 0).all()
    assert np.abs(matrix).max() > 4 * matrix.std()
    lags = [np.corrcoef(matrix.ravel()[:-lag], matrix.ravel()[lag:])[0, 1] for lag in (1, 2, 4, 576, BLOCK)]
    assert np.abs(lags).max() < 0.01
    norm = bits(checkpoint, "model.norm.weight")
    assert norm.mean() == pytest.approx(1, abs=0.02) and norm.std() == pytest.approx(0.1, rel=0.2)
    for dtype in ("bf16", "f16"):  # the same numbers, rounded
        rounded = open_shape(SMALL, dtype)[1].load("model.norm.weight", (576,))
        assert np.array_equal(_core.convert(_core.Tensor.from_numpy(norm), dtype).numpy(), rounded.numpy())
    bias = bits(open_shape("qwen2.5-0.5b", "f32")[1], "model.layers.0.self_attn.k_proj.bias")
    assert bias.all() and 0.01 < bias.std() < 0.04


def test_progress():
    fields, checkpoint = open_shape(SMALL, layers=2)
    told = []
    checkpoint.progress = told.append
    models.load_model(fields, checkpoint)
    assert sum(told) == checkpoint.nbytes and len(told) > 50


@pytest.mark.parametrize("arguments, words", [
    (dict(name="llama-9b"), "llama-9b: not known; known: gemma-2-2b, .*, llama-3.2-1b"),
    (dict(name=SMALL, dtype="int4"), "dtype is 'int4'"),
    (dict(name=SMALL, seed=-1), "seed: -1"),
    (dict(name=SMALL, layers=0), "layers: 0 is not a whole number from 1 to 30"),
    (dict(name=SMALL, layers=31), "layers: 31"),
])
def test_refused(arguments, words, cache):
    for function in (open_shape, folder_for):
        with pytest.raises(UsageError, match=words):
            function(**arguments)


def test_folder_has_the_same_numbers(tmp_path):
    told = []
    write_folder(SMALL, tmp_path / "it", seed=5, layers=2, progress=lambda *amounts: told.append(amounts))
    fields, made = open_shape(SMALL, seed=5, layers=2)
    assert told[-1] == (made.nbytes, made.nbytes)
    with open_checkpoint(tmp_path / "it") as files:
        assert {name: dataclasses.replace(info, file=None, offset=0) for name, info in files.tensors.items()} == {
            name: dataclasses.replace(info, file=None) for name, info in made.tensors.items()}
        for name in made.tensors:
            assert np.array_equal(bits(files, name), bits(made, name)), name
    assert read_config(tmp_path / "it").raw == fields.raw | {"torch_dtype": "bfloat16"}
    model = genkit.load(tmp_path / "it", threads=1)
    assert model.tokenizer.vocab_size == fields.raw["vocab_size"]
    generation = model.generate("Once upon a time", max_tokens=5, ignore_eos=True)
    assert len(generation.text) > 5 and generation.text.isprintable() and 3 < len(generation.prompt_tokens) < 16
    with pytest.raises(UsageError, match="it: is there already"):
        write_folder(SMALL, tmp_path / "it")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it"]


def test_folder_is_written_once(cache):
    folder = folder_for(SMALL, layers=1)
    weights = folder / "model.safetensors"
    before = weights.stat()
    assert folder.parent == cache and folder_for(SMALL, layers=1) == folder and weights.stat().st_mtime_ns == before.st_mtime_ns
    record = json.loads((folder / shapes.RECORD).read_text())
    (folder / shapes.RECORD).write_text(json.dumps(record | {"maker": 0}))  # as an older genkit would have left it
    assert folder_for(SMALL, layers=1) == folder and weights.stat().st_mtime_ns > before.st_mtime_ns
    assert folder_for(SMALL, "f16", layers=1) != folder != folder_for(SMALL, seed=1, layers=1)


def test_no_disk(cache, monkeypatch):
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=10**9))
    with pytest.raises(ResourceError, match=r"llama-3.2-1b.*: needs 2.54 GB of disk, 1 GB are free"):
        folder_for("llama-3.2-1b")
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written: Not a directory"):
        write_folder(SMALL, tmp_path / "file" / "it", layers=1)


def test_transformers_reads_it(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch to compare with")
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    for name in (SMALL, "gpt2"):
        write_folder(name, tmp_path / name, "f32", layers=2)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        text = "Every word has its tokens, <|eos|> too."
        ids = tokenizer(text)["input_ids"]
        made = models.load_model(*open_shape(name, "f32", layers=2))
        assert len(tokenizer) == made.config.vocab_size and max(ids) > 256
        assert tokenizer.decode(ids) == text
        assert genkit.load(tmp_path / name, threads=1).tokenizer.encode(text, parse_special=True) == ids
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        logits = models_run.logits(made, ids)
        assert np.abs(logits - expected).max() < 0.05 * expected.std()  # bfloat16 products on some tiers
        assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.9
