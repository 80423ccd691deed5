"""compressed-tensors: the layout by its definition, both ways, and the library itself with transformers."""

import json

import numpy as np
import pytest
from format_files import EMBEDDING, HEAD, Q, UP, assert_same, bit_field, by_pieces, hostile, random_codes, read_back, \
    rounded, write_model, writer_for
from kernel_helpers import bf16_bits, rounds_rows
from test_quantize import widened

import genkit
from genkit import _core
from genkit.errors import UsageError
from genkit.quant.codes import widen
from genkit.quant.formats import Format

RANDOM = np.random.default_rng()
X = Q.removesuffix(".weight")
KINDS = [(kind, group, asymmetric) for kind in ("int4", "int8") for group in (32, 64, 128) for asymmetric in (False, True)
         if not (kind == "int8" and asymmetric)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind,group,asymmetric", KINDS)
def test_there_and_back(kind, group, asymmetric, dtype, tmp_path):
    made = writer_for("compressed-tensors", tmp_path / "source", dtype=dtype)
    format = made.format(kind, group, asymmetric)
    assert format == Format(kind, group, "integer" if asymmetric else "none", "bf16" if dtype == "bfloat16" else "f16")
    values = {Q: random_codes(RANDOM, 8 if asymmetric else 3, 3 * group, format), UP: random_codes(RANDOM, 72, group, format),
              EMBEDDING: np.ones((5, 3), np.float32)}
    assert all(made.check(name, value.shape, format) is None for name, value in values.items() if name != EMBEDDING)
    write_model(made, values, tmp_path / "out")
    back = read_back(tmp_path / "out", {name: value.shape for name, value in values.items()})
    assert_same(back[Q], values[Q])
    assert_same(back[UP], values[UP])
    assert back[EMBEDDING].numpy().tolist() == [[1.0] * 3] * 5
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["lm_head"] and config["config_groups"]["group_0"]["targets"] == ["Linear"]
    for whole, joined in zip(made.encode(UP, values[UP]), by_pieces(made, UP, values[UP])):
        assert np.array_equal(whole, joined)


@pytest.mark.parametrize("kind,asymmetric", [("int4", False), ("int4", True), ("int8", False)])
def test_the_layout_bit_by_bit(kind, asymmetric, tmp_path):
    n, k, group = 16, 96, 32
    made = writer_for("compressed-tensors", tmp_path, dtype="float16")
    codes = random_codes(RANDOM, n, k, made.format(kind, group, asymmetric))
    planned = made.arrays(Q, (n, k), codes.format)
    names = [X + ".weight_packed", X + ".weight_scale", X + ".weight_zero_point"]
    assert [a.name for a in planned] == names[: 2 + asymmetric]
    packed, scale, *zero = made.encode(Q, codes)
    bits = int(kind[-1])
    want = np.empty((n, k), np.float32)
    for i in range(n):
        for j in range(k):
            q = bit_field(packed[i], j, bits) - 2 ** (bits - 1)
            z = bit_field(zero[0][:, j // group], i, 4) - 8 if asymmetric else 0
            want[i, j] = widen(scale, "f16")[i, j // group] * np.float32(q - z)
    assert np.array_equal(want, codes.dequantize())


def test_mixed_formats_and_a_head_in_codes(tmp_path):
    made = writer_for("compressed-tensors", tmp_path / "source", "qwen3")
    four, eight = made.format("int4", 64), made.format("int8")
    values = {EMBEDDING: np.zeros((7, 64), np.float32), Q: random_codes(RANDOM, 3, 64, four),
              UP: random_codes(RANDOM, 5, 96, eight), HEAD: random_codes(RANDOM, 7, 64, eight),
              "model.layers.0.mlp.down_proj.weight": np.zeros((64, 5), np.float32)}
    write_model(made, values, tmp_path / "out")
    back = read_back(tmp_path / "out", {name: value.shape for name, value in values.items()})
    for name in (Q, UP, HEAD):
        assert_same(back[name], values[name])
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["model.layers.0.mlp.down_proj"]
    assert [group["targets"] for group in config["config_groups"].values()] == [[Q[:-7]], [UP[:-7], "lm_head"]]


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(UsageError, match="not gpt2"):
        writer_for("compressed-tensors", tmp_path, "gpt2")
    made = writer_for("compressed-tensors", tmp_path)
    with pytest.raises(UsageError, match="--asym with int8"):
        made.format("int8", asymmetric=True)
    with pytest.raises(UsageError, match="--group-size 48"):
        made.format("int4", 48)
    with pytest.raises(UsageError, match="type 'int5'"):
        made.format("int5")
    assert made.format("f16") == "f16"
    assert "80 inputs are no multiple of the group of 32" in made.check(Q, (8, 80), made.format("int4"))
    assert "12 rows" in made.check(Q, (12, 64), made.format("int4", asymmetric=True))
    assert made.check(EMBEDDING, (8, 64), made.format("int4")) and not made.check(HEAD, (8, 64), made.format("int4"))
    assert "rounded to bf16" in made.check(Q, (8, 64), Format("int4", 32))
    assert made.check(Q, (8, 64), Format("int4_two_level")) and made.check(Q, (8, 64), Format("int4", 32, "real", "bf16"))
    # Without a type in config.json the output says float32, as the scales are.
    made = writer_for("compressed-tensors", tmp_path, dtype=None)
    write_model(made, {Q: random_codes(RANDOM, 2, 32, made.format("int4"))}, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    codes = random_codes(RANDOM, 8, 32, Format("int4", 32, "integer"))
    codes.zeros[3, 0] = 16
    with pytest.raises(ValueError, match="zero of 16"):
        made.encode(Q, codes)


def groups(raw):
    return raw.config["quantization_config"]["config_groups"]


def put(**changes):
    return lambda raw: groups(raw)["group_0"]["weights"].update(changes)


def top(**changes):
    return lambda raw: raw.config["quantization_config"].update(changes)


def array(name, values, dtype="I32"):
    def change(raw):
        raw.arrays[X + name], raw.dtypes[X + name] = values, dtype
    return change


HOSTILE = {
    "channel": (put(strategy="channel"), "BF16 scales [8, 2] with zeros"),
    "tensor_group": (put(strategy="tensor_group"), "strategy is 'tensor_group'; expected 'group' or 'channel' or"),
    "actorder": (put(actorder="random"), "actorder is 'random'"),
    "g_idx": (array(".weight_g_idx", np.arange(64, dtype=np.int32)), "weight_g_idx' holds group 2; expected 0 to 1"),
    "g_idx uneven": (array(".weight_g_idx", np.zeros(64, np.int32)), "has groups that are not of 32 inputs each"),
    "float": (put(type="float"), "num_bits is 4; expected 8"),
    "bits": (put(num_bits=3), "num_bits is 3; expected 4 or 8"),
    "bits true": (put(num_bits=True), "num_bits"),
    "eight bits": (put(num_bits=8), "describes tensor 'model.layers.0.self_attn.q_proj.weight_packed' of [8, 64] in 4 bits"),
    "group 0": (put(group_size=0), "group_size is 0; expected a number of inputs"),
    "group -1": (put(group_size=-1), "group_size is -1"),
    "group huge": (put(group_size=2**70), "group_size"),
    "group list": (put(group_size=[32]), "group_size"),
    "other group": (put(group_size=64), "BF16 scales [8, 2] with zeros"),
    "dynamic": (put(dynamic=True), "dynamic is true"),
    "format": (top(format="nvfp4-pack-quantized"), "format is 'nvfp4-pack-quantized'; expected 'pack-quantized' or 'int-quantized'"),
    "status": (top(quantization_status="frozen"), "quantization_status is 'frozen'"),
    "transforms": (top(transform_config={"config_groups": {}}), "transform_config is an object; expected nothing"),
    "sparsity": (top(sparsity_config={"format": "sparse-bitmask"}), "sparsity_config.format is 'sparse-bitmask'"),
    "no groups": (top(config_groups={}), "config_groups is an object; expected"),
    "groups list": (top(config_groups=[1]), "config_groups"),
    "group of nothing": (top(config_groups={"a": {"targets": ["Linear"]}}), "weights is missing"),
    "null group": (top(config_groups={"a": None}), "config_groups.'a' is null"),
    "a name of control characters": (top(config_groups={"\x1b[2J": {"weights": 1}}), "config_groups.'\\x1b[2J'.weights is 1"),
    "scale missing": (lambda raw: raw.arrays.pop(X + ".weight_scale"), "weight_scale' is missing"),
    "shape missing": (lambda raw: raw.arrays.pop(X + ".weight_shape"), "weight_shape' is missing"),
    "zeros missing": (lambda raw: raw.arrays.pop(X + ".weight_zero_point"), "BF16 scales [8, 2] without zeros"),
    "codes missing": (lambda raw: raw.arrays.pop(X + ".weight_packed"), "q_proj.weight' is missing"),
    "twice": (array(".weight", np.zeros((8, 64), np.float32), "F32"), "is there as floats and as codes"),
    "codes of bytes": (array(".weight_packed", np.zeros((8, 32), np.int8), "I8"), "is I8 [8, 32]; expected I32 [n, m]"),
    "codes empty": (array(".weight_packed", np.zeros((0, 8), np.int32)), "is I32 [0, 8]; expected I32 [n, m]"),
    "codes long": (array(".weight_packed", np.zeros((8, 9), np.int32)), "holds [8, 9] words; weight_shape says [8, 64]"),
    "codes flat": (array(".weight_packed", np.zeros(64, np.int32)), "is I32 [64]"),
    "scales F64": (array(".weight_scale", np.zeros((8, 2)), "F64"), "is F64 [8, 2]"),
    "another shape": (array(".weight_shape", np.array([8, 63]), "I64"), "of [8, 63] in 4 bits"),
    "negative shape": (array(".weight_shape", np.array([-8, 64]), "I64"), "weight_shape says [-8, 64]"),
    "zeros short": (array(".weight_zero_point", np.zeros((2, 2), np.int32)), "is I32 [2, 2]; expected I32 [1, 2]"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    made = writer_for("compressed-tensors", tmp_path / "source")
    write_model(made, {Q: random_codes(RANDOM, 8, 64, made.format("int4", asymmetric=True))}, tmp_path / "out")
    change, message = HOSTILE[name]
    assert message in hostile(tmp_path / "out", change, {Q: (8, 64)})


def test_scales_that_are_nan_pass_through(tmp_path):
    made = writer_for("compressed-tensors", tmp_path / "source")
    codes = random_codes(RANDOM, 8, 64, made.format("int4"))
    codes.scales[2, 1] = 0x7FC0
    write_model(made, {Q: codes}, tmp_path / "out")
    back = read_back(tmp_path / "out", {Q: (8, 64)})[Q]
    assert_same(back, codes)
    values = back.dequantize()
    assert np.isnan(values[2, 32:]).all() and np.isfinite(np.delete(values, 2, 0)).all()


MODEL = dict(hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
             head_dim=32, vocab_size=203, max_position_embeddings=128)
CASES = [  # model, type on disk, kind, group, asymmetric, untied head in codes
    ("llama", "bfloat16", "int4", 32, False, False), ("llama", "bfloat16", "int4", 32, True, False),
    ("llama", "float16", "int8", 32, False, True), ("qwen2", "float32", "int4", 32, False, False),
    ("qwen3", "float32", "int4", 32, True, True), ("mistral", "bfloat16", "mixed", None, False, False)]


@pytest.mark.parametrize("model_type,dtype,kind,group,asymmetric,head", CASES)
def test_transformers_loads_it(model_type, dtype, kind, group, asymmetric, head, tmp_path):
    """Every weight is to the bit what the codes stand for, in the model's type; so logits are."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **MODEL, tie_word_embeddings=not head)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "source")
    made = writer_for_folder(tmp_path / "source")
    values, wide = {}, {}
    for i, (name, weight) in enumerate(model.state_dict().items()):
        array = weight.float().numpy()
        format = made.format("int8" if i % 3 else "int4", 32) if kind == "mixed" else made.format(kind, group, asymmetric)
        if name.endswith("_proj.weight") or (name == HEAD and head):
            if made.check(name, array.shape, format) is None:
                values[name] = rounded(array, format)
                wide[name] = torch.from_numpy(values[name].dequantize()).to(weight.dtype)
                continue
        if name == HEAD and not head:
            continue
        values[name] = bf16_bits(array) if dtype == "bfloat16" else array.astype(dtype)
    assert len(wide) >= 14
    write_model(made, values, tmp_path / "out")

    exact = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source")
    exact.load_state_dict(wide, strict=False)
    ids = torch.arange(3, 60)[None]
    want_logits = exact(ids).logits
    # Two ways in, each with a gap of its own (transformers 5.23, compressed-tensors 0.20): decompression at the first call
    # does not make room for packed zeros, and dequantization at loading takes one group's scheme for all.
    at_loading = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    ways = [{}] * (not asymmetric) + [at_loading] * (kind != "mixed")
    for way in ways:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **way)
        assert torch.equal(loaded(ids).logits, want_logits)
        weights = loaded.state_dict()
        for name, want in wide.items():
            assert weights[name].dtype == want.dtype and torch.equal(weights[name], want), name

    # And genkit's are those of float32, where its activations are float32 as well.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, **ways[0])
    with torch.no_grad():
        expected = theirs(ids).logits[0].numpy()
    before = _core.current_tier()
    try:
        for tier in reversed(_core.tiers()):
            _core.use_tier(tier)
            if not rounds_rows():
                break
        ours = genkit.load(tmp_path / "out", kv_type="f32", threads=1)
        if kind == "mixed":  # of what one product reads: weights stay as they are, side by side
            assert any(isinstance(block.attention.qkv.weight, tuple) for block in ours._model.blocks)
            assert any(isinstance(block.mlp.gate_up.weight, tuple) for block in ours._model.blocks)
        widened(ours._model)
        assert np.abs(ours.logits(ids[0].tolist()) - expected).max() < 1e-3 * np.abs(expected).max()
    finally:
        _core.use_tier(before)


def writer_for_folder(folder):
    from genkit.checkpoints import read_config
    from genkit.quant.writers import writer
    from genkit.quant.writers.base import Source

    return writer("compressed-tensors", Source(folder, read_config(folder), None))
