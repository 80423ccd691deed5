"""Weights rounded while they are loaded: what it costs, what it saves, how it is asked for."""

import json
import math
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import write_tensors
from kernel_helpers import bf16_bits

import genkit
from genkit import _core, nn
from genkit.checkpoints import open_checkpoint, read_config
from genkit.errors import BadFileError, ResourceError, UsageError
from genkit.models import load_model
from genkit.quant.formats import BY_NAME, Format

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir())


def divergence(base, other):
    """Mean KL divergence of the distributions that logits [n, vocab] stand for, in nats."""
    logs = [x.astype(np.float64) - x.max(1, keepdims=True) for x in (base, other)]
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in logs)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def widened(model):
    """The model with its packed weights as f32, so that activations stay f32 as well. Changes it in place."""
    seen = {}

    def wide(weight):
        if isinstance(weight, tuple):
            return tuple(map(wide, weight))
        if not isinstance(weight, _core.PackedWeight):
            return weight
        if id(weight) not in seen:
            ids = _core.Tensor.from_numpy(np.arange(weight.shape[0], dtype=np.int32))
            seen[id(weight)] = weight, _core.unpack(ids, weight)
        return seen[id(weight)][1]

    def visit(thing):
        if isinstance(thing, (nn.Linear, nn.GatedLinear, nn.Embedding)) and isinstance(thing.weight, (tuple, _core.PackedWeight)):
            if isinstance(thing, nn.Linear):
                order = thing.order
                thing.__init__(wide(thing.weight), thing.bias)
                thing.order = order
            else:
                thing.weight = wide(thing.weight)
        elif hasattr(thing, "__dict__"):
            for value in list(vars(thing).values()):
                for part in value if isinstance(value, list) else [value]:
                    if type(part).__module__.startswith("genkit."):
                        visit(part)

    visit(model)
    assert seen
    return model


def gap(folder, name, ids, **options):
    """KL divergence of int8-activation logits against f32-activation logits, the weights the same."""
    m = genkit.load(folder, quantize=name, kv_type="f32", **options)
    rounded = m.logits(ids)
    widened(m._model)
    exact = m.logits(ids)
    assert 0 < np.abs(rounded - exact).max()
    return divergence(exact, rounded)


@pytest.mark.parametrize("name", BY_NAME)
def test_int8_activations_on_the_default_model(name):
    """The gate of the issue is 0.002; measured 0.0004 to 0.0005."""
    source = Path(sysconfig.get_paths()["stdlib"], "bisect.py").read_text(encoding="utf-8")
    ids = genkit.load(genkit.DEFAULT_MODEL).tokenizer.encode(source)[:400]
    assert gap(genkit.DEFAULT_MODEL, name, ids) < 0.002


@pytest.mark.parametrize("name", BY_NAME)
def test_int8_activations_at_the_width_of_a_1b_model(name, tmp_path):
    """Llama-3.2-1B's layers, two of them, over a smaller vocabulary; random weights."""
    vocab, width, inner, kv = 4096, 2048, 8192, 512
    config = dict(model_type="llama", vocab_size=vocab, hidden_size=width, intermediate_size=inner, num_hidden_layers=2,
                  num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
                  max_position_embeddings=4096, rms_norm_eps=1e-5)
    (tmp_path / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)

    def matrix(*shape):
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        return bf16_bits(values)

    ones = bf16_bits(np.ones(width))
    tensors = {"model.embed_tokens.weight": matrix(vocab, width), "model.norm.weight": ones}
    for i in range(2):
        layer = f"model.layers.{i}."
        tensors |= {layer + "input_layernorm.weight": ones, layer + "post_attention_layernorm.weight": ones,
                    layer + "self_attn.q_proj.weight": matrix(width, width), layer + "self_attn.k_proj.weight": matrix(kv, width),
                    layer + "self_attn.v_proj.weight": matrix(kv, width), layer + "self_attn.o_proj.weight": matrix(width, width),
                    layer + "mlp.gate_proj.weight": matrix(inner, width), layer + "mlp.up_proj.weight": matrix(inner, width),
                    layer + "mlp.down_proj.weight": matrix(width, inner)}
    write_tensors(tmp_path / "model.safetensors", tensors)
    assert gap(tmp_path, name, random.integers(0, vocab, 48).tolist()) < 0.002


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_loads_rounded(name):
    """int8 hardly moves the logits, int4 some; greedy text goes on."""
    ids = list(range(3, 60))
    base = genkit.load(FIXTURES / name, quantize="none", kv_type="f32").logits(ids)
    moved = {form: genkit.load(FIXTURES / name, quantize=form, kv_type="f32").logits(ids) - base for form in BY_NAME}
    spread = base.std()
    assert 0 < moved["int8"].std() < 0.1 * spread and moved["int8"].std() < moved["int4"].std() < 0.6 * spread
    m = genkit.load(FIXTURES / name, quantize="int4")
    assert (m.quantize, m.kv_type) == ("int4", "bf16")
    assert m.generate(ids, max_tokens=5, ignore_eos=True).tokens[0] == int(m.logits(ids)[-1].argmax())


def test_a_tied_head_is_one_weight():
    m = genkit.load(genkit.DEFAULT_MODEL, quantize="int4")
    assert m._model.head.weight is m._model.embedding.weight
    assert isinstance(m._model.blocks[0].mlp.gate_up.weight, _core.PackedWeight) and m._model.blocks[0].mlp.gate_up.weight.gated


def test_bits_are_what_packing_takes():
    for form in (*BY_NAME.values(), Format("int4", 32), Format("int4", 128, "integer"), Format("int8", 64, "real", "bf16")):
        weight = _core.Tensor.from_numpy(np.ones((64, 512), np.float32))
        if form.zero == "none":
            assert _core.quantize_weight(weight, form.core()).nbytes * 8 == math.ceil(form.bits * 64 * 512)
    assert (BY_NAME["int4"].bits, BY_NAME["int8"].bits) == (4.4375, 8.0625)


def test_memory_while_loading(tmp_path):
    """Packed weights and a quarter more, beside what the process holds anyway."""
    vocab, width, inner = 4096, 1024, 4096
    config = dict(model_type="llama", vocab_size=vocab, hidden_size=width, intermediate_size=inner, num_hidden_layers=24,
                  num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    shared = bf16_bits(random.standard_normal(inner * width, dtype=np.float32))

    def matrix(n, k):
        return shared[: n * k].reshape(n, k)

    ones = bf16_bits(np.ones(width))
    tensors = {"model.embed_tokens.weight": matrix(vocab, width), "model.norm.weight": ones}
    for i in range(24):
        layer = f"model.layers.{i}."
        tensors |= {layer + "input_layernorm.weight": ones, layer + "post_attention_layernorm.weight": ones,
                    layer + "mlp.gate_proj.weight": matrix(inner, width), layer + "mlp.up_proj.weight": matrix(inner, width),
                    layer + "mlp.down_proj.weight": matrix(width, inner)}
        for part, n in (("q", width), ("k", width // 4), ("v", width // 4), ("o", width)):
            tensors[f"{layer}self_attn.{part}_proj.weight"] = matrix(n, width)
    write_tensors(tmp_path / "model.safetensors", tensors)
    code = """
import sys, genkit
from genkit import _core
def held(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
genkit.load(sys.argv[2], quantize="int4", threads=2)
before = held("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
m = genkit.load(sys.argv[1], quantize="int4", threads=2)
packed = sum(w.weight.nbytes for b in m._model.blocks for w in (b.attention.qkv, b.attention.out, b.mlp.gate_up, b.mlp.down))
packed += m._model.embedding.weight.nbytes
print(held("VmHWM") - before, packed)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(genkit.DEFAULT_MODEL)], capture_output=True, text=True)
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not let a process reset its peak of memory")
    assert done.returncode == 0, done.stderr
    peak, packed = map(int, done.stdout.split())
    assert packed > 150e6 and peak < 1.25 * packed


def test_asking_for_it(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "llama", tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    assert genkit.load(folder).quantize == "none"
    for value in ("int8", "int4"):
        (folder / "config.json").write_text(json.dumps(config | {"genkit_quantize": value}))
        assert genkit.load(folder).quantize == value
        assert genkit.load(folder, quantize="none").quantize == "none"
    (folder / "config.json").write_text(json.dumps(config | {"genkit_quantize": "int3"}))
    with pytest.raises(BadFileError, match="genkit_quantize"):
        genkit.load(folder)
    with pytest.raises(UsageError, match="quantize is 'int5'; expected none, int4, int8"):
        genkit.load(folder, quantize="int5")
    with pytest.raises(UsageError, match="kv_type is 'int4'; expected auto, f32, f16, bf16, int8"):
        genkit.load(folder, quantize="none", kv_type="int4")


def test_a_model_too_large_when_rounded_is_refused(monkeypatch):
    monkeypatch.setattr("genkit.checkpoints.safetensors.memory_available", lambda: 100_000)
    with pytest.raises(ResourceError, match="the weights need"):
        genkit.load(FIXTURES / "llama", quantize="int4")


def test_weights_with_nan_are_found():
    """A NaN in a matrix reaches the logits and ends in one line, rounded or not."""
    with open_checkpoint(FIXTURES / "llama") as checkpoint:
        model = load_model(read_config(FIXTURES / "llama"), checkpoint)
    weight = model.blocks[0].mlp.down.weight
    weight.bytes()[0:2] = b"\xc0\x7f"
    packed = _core.quantize_weight(weight, BY_NAME["int4"].core())
    out = _core.packed_linear(_core.Tensor.from_numpy(np.ones((1, weight.shape[1]), np.float32)), packed).numpy()
    assert np.isnan(out[0, 0]) and np.isfinite(out[0, 1:]).all()
