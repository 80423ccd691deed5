"""Every architecture against committed goldens (make_goldens.py), without torch: logits, greedy text, and the promise
that neither chunks, threads nor batch mates change a bit. What a wrong configuration ends in."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import kernel_helpers
import models_run
import numpy as np
import pytest
from safetensors.numpy import load_file

import genkit
from genkit import _core
from genkit.errors import BadFileError
from genkit.kv_cache import KVCache, Sequence

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir())


@pytest.fixture
def tier(request):
    before = _core.current_tier()
    _core.use_tier(request.param)
    yield request.param
    _core.use_tier(before)


@pytest.fixture
def threads():
    before = _core.get_threads()
    yield _core.set_threads
    _core.set_threads(before)


def golden(name: str) -> tuple[list[int], np.ndarray, list[int]]:
    """Prompt, logits, greedy continuation."""
    data = load_file(FIXTURES / name / "golden.safetensors")
    return data["prompt"].tolist(), data["logits"], data["tokens"].tolist()


def rounds_rows(name: str) -> bool:
    """Whether linear rounds activations to bf16 as some tiers do for weights of bf16."""
    config = json.loads((FIXTURES / name / "config.json").read_text())
    return config["dtype"] == "bfloat16" and kernel_helpers.rounds_rows()


def divergence(expected: np.ndarray, got: np.ndarray) -> float:
    """Mean KL divergence of the distributions that logits stand for."""
    logs = [x - x.max(1, keepdims=True) for x in (expected.astype(np.float64), got.astype(np.float64))]
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in logs)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def altered(tmp_path: Path, name: str, **changes) -> Path:
    """A copy of a fixture with other values in its config.json; None removes a key."""
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_all_architectures_have_a_golden():
    assert set(NAMES) == {"gpt2", "llama", "mistral", "qwen2", "qwen3"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tier", _core.tiers(), indirect=True)
def test_matches_golden(name, tier):
    model = models_run.load(FIXTURES / name)
    prompt, expected, tokens = golden(name)
    assert np.ptp(expected, axis=1).min() > 4  # a golden of near-uniform logits would show little
    got = models_run.logits(model, prompt)
    assert got.dtype == np.float32 and got.shape == expected.shape
    if rounds_rows(name):
        assert divergence(expected, got) < 1e-3  # and close logits may change places
        return
    assert np.abs(got - expected).max() < 1e-3
    assert models_run.greedy(model, prompt, len(tokens))[0] == tokens


@pytest.mark.parametrize("name", NAMES)
def test_matches_golden_through_the_library(name):
    model = genkit.load(FIXTURES / name, threads=1, kv_type="f32")  # as the goldens were made
    prompt, expected, tokens = golden(name)
    if rounds_rows(name):
        assert divergence(expected, model.logits(prompt)) < 1e-3
        return
    assert np.abs(model.logits(prompt) - expected).max() < 1e-3
    assert model.generate(prompt, max_tokens=len(tokens), ignore_eos=True, temperature=0).tokens == tokens


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kv_type,bound", (("f16", 0.002), ("bf16", 0.016), ("int8", 0.04)))
def test_rounded_keys_and_values_move_logits_a_little(name, kv_type, bound):
    """The root mean square of what they change, against the logits' spread: measured at most half of each bound."""
    prompt, _, _ = golden(name)
    expected, got = (genkit.load(FIXTURES / name, threads=1, kv_type=kind).logits(prompt) for kind in ("f32", kv_type))
    moved = got - expected
    if rounds_rows(name):
        bound = max(bound, 0.016)  # what moves a little is rounded to another bf16 here and there
    assert 0 < np.sqrt((moved**2).mean()) < bound * expected.std()


@pytest.mark.parametrize("name", NAMES)
def test_old_spelling_of_the_configuration(name, tmp_path):
    """transformers 4 wrote torch_dtype, rope_theta and rope_scaling, and of windows only where they begin."""
    config = json.loads((FIXTURES / name / "config.json").read_text())
    changes = {"dtype": None, "torch_dtype": config["dtype"], "layer_types": None, "transformers_version": "4.40.0"}
    if rope := config.get("rope_parameters"):
        scaling = {("type" if key == "rope_type" else key): rope[key] for key in rope if key != "rope_theta"}
        changes |= {"rope_parameters": None, "rope_theta": rope["rope_theta"],
                    "rope_scaling": scaling if rope["rope_type"] != "default" else None}
    prompt, _, _ = golden(name)
    new = models_run.logits(models_run.load(FIXTURES / name), prompt)
    old = models_run.logits(models_run.load(altered(tmp_path, name, **changes)), prompt)
    assert np.array_equal(new, old)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tier", _core.tiers(), indirect=True)
def test_chunks_and_threads_change_no_bit(name, tier, threads):
    model = models_run.load(FIXTURES / name)
    prompt, _, tokens = golden(name)
    prompt = prompt + tokens  # more than two pages
    threads(1)
    expected = models_run.logits(model, prompt)
    for count in (1, 2, 3):
        threads(count)
        for chunk in (1, 7, 64, len(prompt)):
            assert np.array_equal(models_run.logits(model, prompt, chunk), expected), (count, chunk)


@pytest.mark.parametrize("tier", _core.tiers(), indirect=True)
def test_a_wide_model_changes_no_bit(tier, threads, tmp_path):
    """The goldens are so narrow that one row's linear is one piece of work; here each is split over the threads."""
    from safetensors.numpy import save_file

    from genkit.checkpoints import Fields
    from genkit.models import llama

    values = dict(model_type="llama", vocab_size=4099, hidden_size=320, intermediate_size=901, num_hidden_layers=2,
                  num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True)
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = llama.read_config(Fields(tmp_path / "config.json", values), SimpleNamespace(nbytes=0))
    random = np.random.default_rng(1)
    save_file({name: (random.standard_normal(shape) / 320**0.5 + (len(shape) == 1)).astype(np.float16)
               for name, shape in llama.tensor_shapes(config).items()}, tmp_path / "model.safetensors")
    model = models_run.load(tmp_path)
    prompt = random.integers(0, 4099, 100).tolist()
    threads(1)
    expected = models_run.logits(model, prompt)
    assert np.ptp(expected, axis=1).min() > 4
    for count, chunk in ((1, 7), (2, 1), (2, 100), (3, 64), (3, 1)):
        threads(count)
        assert np.array_equal(models_run.logits(model, prompt, chunk), expected), (count, chunk)


@pytest.mark.parametrize("name", NAMES)
def test_batch_mates_change_no_bit(name):
    """Sequences of unlike lengths in one step, and one forked from another's past, as beam search does."""
    model = models_run.load(FIXTURES / name)
    c = model.config
    prompt, _, tokens = golden(name)
    prompts = [prompt[:70], tokens, prompt[3:20]]
    alone = [models_run.logits(model, p) for p in prompts]
    cache = KVCache(c.layers, c.kv_heads, c.head_dim, 12)
    sequences = [Sequence() for _ in prompts]
    heads = [cache.step([(s, p[:-2])]) for s, p in zip(sequences, prompts)]
    for step, expected in zip(heads, alone):
        assert np.array_equal(model(step, cache).numpy(), expected[:-2])
    step = cache.step([(s, p[-2:]) for s, p in zip(sequences, prompts)])
    assert np.array_equal(model(step, cache).numpy(), np.concatenate([expected[-2:] for expected in alone]))
    fork = cache.fork(sequences[0])
    step = cache.step([(fork, [5]), (sequences[0], [6])], logit_rows=[1, 0])
    got = model(step, cache).numpy()
    for row, token in enumerate((6, 5)):
        assert np.array_equal(got[row], models_run.logits(model, prompts[0] + [token])[-1])


@pytest.mark.parametrize("name", NAMES)
def test_logit_rows(name):
    model = models_run.load(FIXTURES / name)
    prompt, _, _ = golden(name)
    every = models_run.logits(model, prompt)
    for rows in ([], [0], [len(prompt) - 1], [3, 4, 5], [9, 2, 2, 40], list(range(len(prompt)))):
        got = models_run.Run(model, len(prompt)).feed(prompt, logit_rows=rows)
        assert got.shape == (len(rows), model.config.vocab_size) and np.array_equal(got, every[rows])


def test_config_is_what_the_engine_needs():
    c = models_run.load(FIXTURES / "llama").config
    assert (c.model_type, c.vocab_size, c.layers, c.heads, c.kv_heads, c.head_dim) == ("llama", 307, 2, 7, 1, 20)
    assert c.max_positions == 256
    assert 0.9 * c.weight_bytes < (FIXTURES / "llama" / "model.safetensors").stat().st_size
    assert models_run.load(FIXTURES / "gpt2").config.max_positions == 160


def test_gpt2_names_without_prefix(tmp_path):
    """The hub's own gpt2 was saved from the body: no "transformer." before the names, and buffers nobody needs."""
    from safetensors.numpy import save_file

    folder = altered(tmp_path, "gpt2")
    tensors = load_file(folder / "model.safetensors")
    assert all(name.startswith("transformer.") for name in tensors)
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 160, 160), np.float32))
    save_file(tensors, folder / "model.safetensors")
    prompt, expected, _ = golden("gpt2")
    assert np.abs(models_run.logits(models_run.load(folder), prompt) - expected).max() < 1e-3


def test_tied_model_with_a_head_of_its_own(tmp_path):
    """transformers keeps a head that differs from the embedding although the file says they are tied."""
    from safetensors.numpy import save_file

    folder = altered(tmp_path, "qwen3")
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    prompt, expected, _ = golden("qwen3")
    tensors["lm_head.weight"] = embedding.copy()
    save_file(tensors, folder / "model.safetensors")
    model = models_run.load(folder)
    assert model.head.weight is model.embedding.weight  # equal: kept once
    assert np.abs(models_run.logits(model, prompt) - expected).max() < 1e-3
    tensors["lm_head.weight"] = np.roll(embedding, 1, axis=0)
    save_file(tensors, folder / "model.safetensors")
    got = models_run.logits(models_run.load(folder), prompt)
    assert np.abs(got - np.roll(expected, 1, axis=1)).max() < 1e-3


def refusal(folder: Path, *words: str) -> None:
    with pytest.raises(BadFileError) as error:
        models_run.load(folder)
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_unknown_architecture(tmp_path):
    refusal(altered(tmp_path, "llama", model_type="bert"), "config.json", "'bert'",
            "gpt2, ", "llama, mistral, ", "qwen2, qwen2_moe, qwen3, ")


def test_quantized_checkpoint(tmp_path):
    refusal(altered(tmp_path, "llama", quantization_config={"quant_method": "exl9", "bits": 4}), "config.json",
            "quantization_config", "exl9", "compressed-tensors")


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                 "num_attention_heads", "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", [-1, 0, 1, 1000, 10**7, 10**30, 2.5, float("nan"), float("inf"), "7", True, [7], {}])
def test_absurd_sizes(name, key, value, tmp_path):
    if (name, key, value) == ("llama", "num_key_value_heads", 1) and value is not True:
        return  # what the file says anyway
    refusal(altered(tmp_path, name, **{key: value}), "config.json")


@pytest.mark.parametrize("key", ["vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "n_inner"])
@pytest.mark.parametrize("value", [-1, 0, 1, 1000, 10**7, 10**30, 2.5, float("nan"), "7", True, [7]])
def test_absurd_gpt2_sizes(key, value, tmp_path):
    if (key, value) == ("n_head", 1) and value is not True:
        return  # a model of one head could have the same weights
    refusal(altered(tmp_path, "gpt2", **{key: value}), "config.json")


@pytest.mark.parametrize("name, changes, words", [
    ("llama", {"hidden_act": "relu6"}, ["hidden_act", "'relu6'", "silu"]),
    ("llama", {"rms_norm_eps": -1e-5}, ["rms_norm_eps"]),
    ("llama", {"rms_norm_eps": float("nan")}, ["rms_norm_eps", "NaN"]),
    ("llama", {"max_position_embeddings": 0}, ["max_position_embeddings"]),
    ("llama", {"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "'yes'"]),
    ("llama", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, ["spiral", "yarn"]),
    ("llama", {"num_attention_heads": 8, "num_key_value_heads": 3}, ["num_attention_heads", "multiple", "3"]),
    ("llama", {"head_dim": None, "num_attention_heads": 5}, ["hidden_size", "multiple", "5"]),
    ("llama", {"vocab_size": None}, ["vocab_size", "missing"]),
    ("llama", {"attention_bias": True}, ["model.layers.0.self_attn.q_proj.bias"]),
    ("llama", {"vocab_size": 308}, ["vocab_size", "model.embed_tokens.weight", "[308, 56]", "[307, 56]"]),
    ("mistral", {"sliding_window": -5}, ["sliding_window", "-5"]),
    ("mistral", {"sliding_window": 0}, ["sliding_window"]),
    ("qwen2", {"layer_types": ["full_attention"]}, ["layer_types"]),
    ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, ["layer_types", "linear_attention"]),
    ("qwen2", {"layer_types": [[], {}]}, ["layer_types"]),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["full_attention", "sliding_attention"]}, ["layer_types"]),
    ("qwen3", {"tie_word_embeddings": False}, ["lm_head.weight"]),
    ("gpt2", {"n_head": 4}, ["n_embd", "multiple", "4"]),
    ("gpt2", {"add_cross_attention": True}, ["add_cross_attention"]),
    ("gpt2", {"activation_function": "relu6"}, ["activation_function", "relu6"]),
    ("gpt2", {"tie_word_embeddings": False}, ["lm_head.weight"]),
])
def test_refused_configurations(name, changes, words, tmp_path):
    refusal(altered(tmp_path, name, **changes), *words)


def test_lying_sizes_allocate_nothing(tmp_path, monkeypatch):
    """The header is compared first, whatever the size."""
    made = []
    tensor = _core.Tensor
    monkeypatch.setattr(_core, "Tensor", lambda *a, **k: made.append(a) or tensor(*a, **k))
    refusal(altered(tmp_path, "llama", intermediate_size=10**6), "intermediate_size", "mlp.gate_proj")
    assert not made
