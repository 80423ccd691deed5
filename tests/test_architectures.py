"""Every architecture of models/decoder.py without transformers: what `genkit quantize` makes of it, layer by layer as
`--method awq` reads it, and where its scales may be folded. Weights are random; test_parity.py says that the float models
are right."""

import json
import zlib

import models_run
import numpy as np
import pytest
from architectures import CASES
from checkpoint_files import write_tensors

import genkit
from genkit import _core, models
from genkit.checkpoints import open_checkpoint, read_config
from genkit.errors import BadFileError, UsageError
from genkit.inspection import examine
from genkit.models.decoder import Decoder
from genkit.quant.job import quantize
from genkit.quant.quantize import Recipe
from genkit.quant.streaming import Streamed

NAMES = [name for name, case in CASES.items() if models_run.module_of(case).Model is Decoder]
PROMPT = 70  # tokens: more than a page, more than most windows
every_case = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def single_threaded():
    before = _core.get_threads()
    _core.set_threads(1)
    yield
    _core.set_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            models_run.random_checkpoint(CASES[name], made[name], zlib.crc32(name.encode()))
        return made[name]

    return folder


def prompt_of(folder):
    return np.random.default_rng(1).integers(0, read_config(folder).raw["vocab_size"], PROMPT).tolist()


def same_logits(folder, other):
    ids = prompt_of(folder)
    return np.array_equal(models_run.logits(models_run.load(folder), ids), models_run.logits(models_run.load(other), ids))


def divergence(base, other):
    """Mean KL divergence of the distributions that logits [n, vocab] stand for, in nats."""
    logs = [x.astype(np.float64) - x.max(1, keepdims=True) for x in (base, other)]
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in logs)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def rewritten(folder, target, change=lambda name, values: values):
    """The folder's model with every tensor in float32, changed."""
    fields = read_config(folder)
    with open_checkpoint(folder, fields) as checkpoint:
        tensors = {name: _core.convert(checkpoint.load(name, info.shape), "f32").numpy()
                   for name, info in checkpoint.tensors.items()}
    target.mkdir()
    write_tensors(target / "model.safetensors", {name: np.ascontiguousarray(change(name, values), np.float32)
                                                 for name, values in tensors.items()})
    raw = {key: value for key, value in fields.raw.items() if key != "quantization_config"}
    (target / "config.json").write_text(json.dumps(raw))
    return target


@every_case
def test_quantized(folders, name, tmp_path):
    """Codes compute what their values do, whatever order their rows are read in; eight bits say what the floats do."""
    folder = folders(name)
    ids = prompt_of(folder)
    floats = models_run.logits(models_run.load(folder), ids)
    for kind, most in (("int4", 1.0), ("int8", 0.02)):
        out = tmp_path / kind
        quantize(folder, out, Recipe(type=kind, method="rtn"), price=False)
        model = genkit.load(out, threads=1, kv_type="f32")
        got = model.logits(ids)
        widened = models_run.load(rewritten(out, tmp_path / f"{kind}-floats"))
        assert divergence(models_run.logits(widened, ids), got) < 0.01
        assert divergence(floats, got) < most
        made = model.generate(ids, max_tokens=5, temperature=0, ignore_eos=True).tokens
        assert len(made) == 5 and made[0] == got[-1].argmax()


@every_case
def test_layer_by_layer(folders, name):
    """As methods that calibrate see it: the same bits, and every product's input under its matrices' names."""
    folder = folders(name)
    fields, ids = read_config(folder), prompt_of(folder)
    seen = set()
    with open_checkpoint(folder, fields) as checkpoint:
        streamed = Streamed(fields, checkpoint, [ids], kv_type="f32", tap=lambda names, x: seen.add(names))
        for i in range(streamed.config.layers):
            streamed.apply(streamed.block(i))
        assert np.array_equal(streamed.logits(0, 0, len(ids)).numpy(), models_run.logits(models_run.load(folder), ids))
        for i in range(streamed.config.layers):
            assert {fold.consumers for fold in models.folds(fields, streamed.config, i)} <= seen


@every_case
def test_folds_change_nothing(folders, name, tmp_path):
    """Columns of what consumes are multiplied, what makes their inputs is divided."""
    folder = folders(name)
    fields, ids = read_config(folder), prompt_of(folder)
    rng, by = np.random.default_rng(), {}
    with open_checkpoint(folder, fields) as checkpoint:
        config = models.read_model_config(fields, checkpoint)
        for i in range(config.layers):
            for fold in models.folds(fields, config, i):
                scales = np.exp(rng.uniform(-1, 1, checkpoint.tensors[fold.consumers[0]].shape[1])).astype(np.float32)
                for consumer in fold.consumers:
                    by.setdefault(consumer, []).append(lambda w, s=scales: w * s)
                if fold.norm:
                    by.setdefault(fold.norm, []).append(lambda w, s=scales, o=fold.offset: (w + o) / s - o)
                if fold.norm_bias:
                    by.setdefault(fold.norm_bias, []).append(lambda b, s=scales: b / s)
                if fold.rows:
                    by.setdefault(fold.rows, []).append(lambda w, s=scales: w / s[:, None])

    def change(name, values):
        for function in by.get(name, ()):
            values = function(values)
        return values

    before = models_run.logits(models_run.load(folder), ids)
    after = models_run.logits(models_run.load(rewritten(folder, tmp_path / "scaled", change)), ids)
    assert divergence(before, after) < 1e-5


def test_text_that_outgrows_its_keys(folders):
    """Beyond what was trained before stretching, longrope has other frequencies: keys written before are made anew, so that
    text goes on as from the whole of it read at once."""
    model = genkit.load(folders("phi3-longrope-outgrown-while-writing"), threads=1, kv_type="f32")
    limit = model.config.fresh_keys_beyond
    prompt = np.random.default_rng(2).integers(0, model.config.vocab_size, limit + 1).tolist()
    lengths = (limit - 3, limit, limit + 1)
    made = [model.generate(prompt[:length], max_tokens=6, temperature=0, ignore_eos=True).tokens for length in lengths]
    for length, tokens in zip(lengths, made):
        for i, token in enumerate(tokens):
            assert model.logits(prompt[:length] + tokens[:i])[-1].argmax() == token, (length, i)
    together = model.generate([prompt[:length] for length in lengths], batch_size=3, max_tokens=6, temperature=0,
                                    ignore_eos=True)
    assert [generation.tokens for generation in together] == made
    for length, tokens in zip(lengths, made):
        generation = model.generate(prompt[:length], max_tokens=6, temperature=0, ignore_eos=True, logprobs=1)
        assert generation.tokens == tokens


@pytest.mark.parametrize("name, buffers", [
    ("gpt_neox", ["gpt_neox.layers.1.attention.bias", "gpt_neox.layers.1.attention.masked_bias",
                  "gpt_neox.layers.0.attention.rotary_emb.inv_freq"]),
    ("phi3", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
])
def test_buffers_of_old_files(folders, name, buffers, tmp_path):
    folder = rewritten(folders(name), tmp_path / "with")
    with open_checkpoint(folder) as checkpoint:
        tensors = {name: checkpoint.load(name, info.shape).numpy() for name, info in checkpoint.tensors.items()}
    write_tensors(folder / "model.safetensors", tensors | {buffer: np.ones((1, 1), np.float32) for buffer in buffers})
    assert same_logits(folder, folders(name))
    write_tensors(folder / "model.safetensors", tensors | {buffers[0] + ".more": np.ones(1, np.float32)})
    with pytest.raises(BadFileError, match="no place for tensor"):
        models_run.load(folder)


def test_a_vision_tower_is_left_alone_and_said_to_be(folders, tmp_path):
    """A folder of Gemma 3 with text_config; config.json leaves out what is usual, as published ones do."""
    folder = folders("gemma3_text")
    with open_checkpoint(folder) as checkpoint:
        tensors = {"language_model." + name: checkpoint.load(name, info.shape).numpy()
                   for name, info in checkpoint.tensors.items()}
    tower = {"vision_tower.vision_model.embeddings.patch_embedding.weight": np.ones((4, 3, 2, 2), np.float32),
             "multi_modal_projector.mm_input_projection_weight": np.ones((3, 3), np.float32)}
    source = tmp_path / "gemma3"
    source.mkdir()
    write_tensors(source / "model.safetensors", tensors | tower)
    text = json.loads((folder / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {}}))
    ids = prompt_of(folder)
    assert same_logits(folder, source)
    assert examine(source)["left_alone"] == ["multi_modal_projector", "vision_tower"]
    quantize(source, tmp_path / "int8", Recipe(type="int8"), price=False)
    notes = json.loads((tmp_path / "int8/quantization.json").read_text())["notes"]
    assert any("'multi_modal_projector', 'vision_tower'" in note for note in notes)
    floats = models_run.logits(models_run.load(folder), ids)
    assert divergence(floats, models_run.logits(models_run.load(tmp_path / "int8"), ids)) < 0.02


def test_bloom_saved_from_its_body(folders, tmp_path):
    """Published files of BLOOM have names without "transformer."."""
    folder = folders("bloom")
    with open_checkpoint(folder) as checkpoint:
        tensors = {name.removeprefix("transformer."): checkpoint.load(name, info.shape).numpy()
                   for name, info in checkpoint.tensors.items()}
    write_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert same_logits(folder, tmp_path)


@every_case
@pytest.mark.parametrize("format", ["gguf", "gptq", "mlx", "compressed-tensors"])
def test_formats_of_others_refuse_by_name(folders, name, format, tmp_path):
    folder = folders(name)
    with pytest.raises(UsageError, match=read_config(folder).model_type):
        quantize(folder, tmp_path / "out", Recipe(format=format), price=False)
