"""Quantized folders of every form that others write (foreign_files.py): decoded to the bit, run, refused by name."""

import json
import subprocess
import sys

import numpy as np
import pytest
from format_files import Q, Raw, hostile
from foreign_files import FOREIGN, write_foreign
from gguf_files import SIZES, make_model
from kernel_helpers import rounds_rows
from models_run import greedy, load, logits
from test_quantize import widened
from text_folders import make_folder

import genkit
from genkit import _core, models
from genkit.checkpoints import open_checkpoint, read_config
from genkit.errors import BadFileError
from genkit.quant.streaming import Streamed

CONFIG = SIZES | dict(model_type="llama", hidden_size=192, intermediate_size=320, head_dim=48)
TAILS = ("ct-channel", "ct-channel-asym", "ct-8-channel", "ct-w8a8", "ct-w8a8-asym", "ct-w8a8-tensor", "ct-fp8-channel",
         "ct-fp8-tensor", "ct-fp8-block", "bnb-int8", "bnb-nf4", "bnb-nf4-nested", "bnb-fp4", "fp8-block", "fp8-tensor",
         "fp8-rows")
SHAPES = [(name, shape) for name in FOREIGN for shape in [(40, 192), (16, 320)]] + [(name, (13, 75)) for name in TAILS]


@pytest.mark.parametrize("name,shape", SHAPES)
def test_numbers_are_the_definitions(name, shape, tmp_path):
    w = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 0.05
    w[2] *= 40  # rows that are far apart
    want = write_foreign(tmp_path / "out", {"model_type": "llama"}, name, {Q: w})[Q]
    assert np.abs(want - w).max() < np.abs(w).max()
    with open_checkpoint(tmp_path / "out", read_config(tmp_path / "out")) as checkpoint:
        stored, held = checkpoint.quantized[Q], FOREIGN[name][3]
        assert list(checkpoint.tensors) == [Q] and stored.shape == shape
        if stored.format is None:
            assert checkpoint.widened[Q] == held and not stored.writable
            got = checkpoint._decoded(Q, shape)
            for i in range(0, shape[0], 7):
                end = min(i + 7, shape[0])
                assert np.array_equal(got[i:end], checkpoint.load_rows(Q, shape, i, end, exact=True).numpy())
            half = checkpoint.load(Q, shape).numpy()
            assert half.dtype == np.float16 and np.array_equal(half, want.astype(np.float16))
        else:
            found = checkpoint.rows_to_run(Q, shape, 0, shape[0])
            if isinstance(found, np.ndarray):
                got = found
                with pytest.raises(BadFileError, match="float32 scales"):
                    checkpoint.codes(Q, shape)
            else:
                assert stored.format.words == held
                got, packed = found.dequantize(), found.pack()
                rows = _core.unpack(_core.Tensor.from_numpy(np.arange(shape[0], dtype=np.int32)), packed).numpy()
                assert np.array_equal(rows, want if found.order is None else want[:, found.order])
                assert stored.writable == (found.order is None) == ("order" not in name)
                part = checkpoint.codes_of_rows(Q, shape, 3, 11)
                assert np.array_equal(part.dequantize(), want[3:11])
    assert got.dtype == np.float32 and np.array_equal(got, want)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("plain") / "model", CONFIG, np.random.default_rng(3))
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.load(name, info.shape).numpy().copy() for name, info in checkpoint.tensors.items()}


@pytest.mark.parametrize("name", FOREIGN)
def test_models_of_it_run(name, model, tmp_path):
    """Logits are those of the same numbers as floats: within rounding of activations to int8, and exactly where they stay."""
    values = write_foreign(tmp_path / "out", CONFIG, name, model)
    (tmp_path / "floats").mkdir()
    Raw(tmp_path / "floats", CONFIG, values, dict.fromkeys(values, "F32")).save()
    ids = np.random.default_rng(4).integers(0, CONFIG["vocab_size"], 40).tolist()
    before = _core.current_tier()
    try:
        for tier in reversed(_core.tiers()):
            _core.use_tier(tier)
            if not rounds_rows():
                break
        want = logits(load(tmp_path / "floats"), ids)
        fields = read_config(tmp_path / "out")
        with open_checkpoint(tmp_path / "out", fields) as checkpoint:
            ours = models.load_model(fields, checkpoint)
            reasons = set(checkpoint.widened.values())
        largest = np.abs(want).max()
        held = FOREIGN[name][3]
        assert reasons == (set() if held.startswith("int") else {held})
        error = np.abs(logits(ours, ids) - want).max() / largest
        assert error < (0.05 if not reasons else 2e-3)
        if not reasons:
            assert np.abs(logits(widened(ours), ids) - want).max() < 1e-3 * largest
    finally:
        _core.use_tier(before)


def test_orders_that_differ_are_widened(model, tmp_path):
    """Of q, k and v, which one product reads."""
    values = write_foreign(tmp_path / "out", CONFIG, "gptq-order", model)
    raw = Raw.read(tmp_path / "out")
    x = "model.layers.0.self_attn.k_proj"
    with open_checkpoint(tmp_path / "out", read_config(tmp_path / "out")) as checkpoint:
        order = checkpoint.quantized[x + ".weight"].order
    # The same matrix with the inputs of two groups swapped, and another g_idx with it.
    g_idx = raw.arrays[x + ".g_idx"]
    i, j = (int(np.flatnonzero(g_idx == g)[0]) for g in (0, 1))
    g_idx[[i, j]] = g_idx[[j, i]]
    raw.save()
    fields = read_config(tmp_path / "out")
    with open_checkpoint(tmp_path / "out", fields) as checkpoint:
        assert not np.array_equal(checkpoint.quantized[x + ".weight"].order, order)
        models.load_model(fields, checkpoint)
        assert len(checkpoint.widened) == 3
        assert set(checkpoint.widened.values()) == {"activation orders that differ within a product"}
    assert values


def test_the_engine_gathers_as_well(model, tmp_path):
    """Inputs in activation order, in the plan that decoding runs by, and in the layers that calibration streams."""
    write_foreign(tmp_path / "out", CONFIG, "gptq-order", model)
    loaded = genkit.load(tmp_path / "out", threads=2)
    prompt = list(range(3, 20))
    made = loaded.generate(prompt, max_tokens=24, temperature=0, ignore_eos=True).tokens
    assert list(made) == greedy(load(tmp_path / "out"), prompt, 24)[0]
    fields = read_config(tmp_path / "out")
    with open_checkpoint(tmp_path / "out", fields) as checkpoint:
        streamed = Streamed(fields, checkpoint, [prompt], loaded.kv_type)
        for i in range(CONFIG["num_hidden_layers"]):
            streamed.apply(streamed.block(i))
        got = streamed.logits(0, 0, len(prompt)).numpy()
    want = loaded.logits(prompt)
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()


def test_biases_of_zeros_and_scales_of_activations_are_no_matter(model, tmp_path):
    write_foreign(tmp_path / "out", CONFIG, "gptq-no-g_idx", model)
    raw = Raw.read(tmp_path / "out")
    x, heads = "model.layers.1.self_attn.o_proj", CONFIG["hidden_size"]
    raw.arrays |= {x + ".bias": np.zeros(heads, np.uint16), x + ".input_scale": np.ones(1, np.float32),
                   "model.layers.1.self_attn.k_scale": np.ones(1, np.float32)}
    raw.dtypes |= {x + ".bias": "F16", x + ".input_scale": "F32", "model.layers.1.self_attn.k_scale": "F32"}
    raw.save()
    load(tmp_path / "out")
    raw.arrays[x + ".bias"][3] = 0x3C00
    raw.save()
    with pytest.raises(BadFileError, match="has no place for tensor .*o_proj.bias"):
        load(tmp_path / "out")


def change(config=None, **arrays):
    """Sets parts of config.json's entry, and arrays (None: left out) by the end of their names, dots as underscores."""
    def changed(raw):
        key = "quantization" if "quantization" in raw.config else "quantization_config"
        raw.config[key].update(config or {})
        for end, value in arrays.items():
            [name] = [name for name in raw.arrays if name.replace(".", "_").endswith("q_proj_" + end)]
            if value is None:
                raw.arrays.pop(name)
            else:
                raw.arrays[name], raw.dtypes[name] = value
    return changed


def state(**changes):
    def changed(raw):
        [name] = [name for name in raw.arrays if "quant_state" in name]
        raw.arrays[name] = np.frombuffer(json.dumps(json.loads(raw.arrays[name].tobytes()) | changes).encode(), np.uint8)
    return changed


I32, F32 = np.int32, np.float32
REFUSED = {
    "gptq 3 bits": ("gptq-order", change({"bits": 3}), "bits is 3; expected 4 or 8; others are not supported"),
    "gptq 2 bits": ("gptq-order", change({"bits": 2}), "bits is 2"),
    "gptq marlin": ("gptq-order", change({"is_marlin_format": True}), "is_marlin_format is true"),
    "gptq group": ("gptq-order", change({"group_size": 0}), "group_size is 0"),
    "gptq other bits": ("gptq-no-g_idx", change(qzeros=(np.zeros((6, 3), I32), "I32")), "expected 4 or 8 bits and groups"),
    "awq gemv": ("awq", change({"version": "GEMV"}), "version is 'GEMV'; expected gemm"),
    "awq 8 bits": ("awq", change({"bits": 8}), "bits is 8; expected 4"),
    "awq zeros": ("awq", change({"zero_point": False}), "zero_point: false means 8 everywhere"),
    "awq scales": ("awq", change(scales=(np.zeros((5, 40), np.uint16), "F16")), "has 5 rows for 192 inputs"),
    "awq qzeros": ("awq", change(qzeros=None), "qzeros' is missing"),
    "autoround float": ("autoround", change({"data_type": "mx_fp"}), "data_type is 'mx_fp'"),
    "autoround acts": ("autoround", change({"act_bits": 8}), "act_bits is 8"),
    "autoround packing": ("autoround", change({"packing_format": "auto_round:fp8_static"}), "fp8_static'; expected"),
    "autoround rotation": ("autoround", change({"rotation_config": {"a": 1}}), "rotation_config is an object"),
    "w8a8 scales": ("ct-w8a8", change(weight_scale=(np.zeros((39, 1), np.uint16), "BF16")), "no group of config_groups"),
    "w8a8 no scales": ("ct-w8a8", change(weight_scale=None), "was asked for"),
    "fp8 zeros": ("ct-fp8-tensor", lambda raw: raw.arrays.update({Q[:-7] + ".weight_zero_point": np.zeros(1, I32)}),
                  "is there with eight-bit floats"),
    "fp8 blocks": ("fp8-block", change({"weight_block_size": [32, 32]}), "is [2, 4] for [40, 192] in blocks of [32, 32]"),
    "fp8 block of nothing": ("fp8-block", change({"weight_block_size": [0, 32]}), "weight_block_size"),
    "fp8 one size": ("fp8-block", change({"weight_block_size": [32]}), "weight_block_size is [32]; expected two integers"),
    "fp8 no scales": ("fp8-block", change(weight_scale_inv=None), "weight_scale' is missing"),
    "bnb SCB": ("bnb-int8", change(SCB=(np.zeros(39, F32), "F32")), "SCB' is F32 [39]; expected F32 [40]"),
    "bnb format": ("bnb-int8", change(weight_format=(np.full((), 2, np.uint8), "U8")), "weight_format is 2"),
    "bnb shape": ("bnb-nf4", state(shape=[40, 191]), "its codes are 3840 bytes, expected 3820"),
    "bnb shapes": ("bnb-nf4", state(shape=[40]), "shape is [40]; expected two sizes"),
    "bnb shape huge": ("bnb-nf4", state(shape=[2**31 - 1, 2**31 - 1]), "expected 2305843007066210305"),
    "bnb blocksize": ("bnb-nf4", state(blocksize=0), "blocksize is 0"),
    "bnb blocks": ("bnb-nf4", state(blocksize=32), "absmax' is F32 [120]; expected F32 [240]"),
    "bnb nested": ("bnb-nf4-nested", state(nested_blocksize=None), "nested_blocksize is null"),
    "bnb kind": ("bnb-nf4", state(quant_type="fp4"), "quant_type is 'fp4'; expected one of nf4"),
    "mlx mode": ("mlx-5", change({"mode": "mxfp4"}), "mode is 'mxfp4'; expected affine"),
    "mlx bits": ("mlx-5", change({"bits": 7}), "bits is 7"),
    "unknown": ("awq", change({"quant_method": "hqq"}), "quant_method 'hqq' is not supported; known: genkit, compressed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case, tmp_path):
    name, changed, words = REFUSED[case]
    w = np.random.default_rng(1).standard_normal((40, 192)).astype(np.float32)
    write_foreign(tmp_path / "out", {"model_type": "llama"}, name, {Q: w})
    if words == "was asked for":  # an i8 matrix without scales is no matrix in codes, and no float one
        words = "dtype I8; only F32, F16 and BF16 weights can be loaded"
    assert words in hostile(tmp_path / "out", changed, {Q: (40, 192)})


@pytest.mark.parametrize("name", [name for name in FOREIGN if name.startswith("ct-") and "order" not in name])
def test_compressed_tensors_decompresses_the_same(name, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    maker, arguments, config = FOREIGN[name][:3]
    w = np.random.default_rng(2).standard_normal((40, 192)).astype(np.float32)
    arrays, want = maker("x", w, **arguments | {"dtype": "F32"})
    tensors = {}
    for key, (dtype, array) in arrays.items():
        tensor = torch.from_numpy(np.array(array, order="C"))
        tensors[key.removeprefix("x.")] = tensor.view(torch.float8_e4m3fn) if dtype == "F8_E4M3" else tensor
    scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    made = BaseCompressor.get_value_from_registry(config["format"]).decompress(tensors, scheme)["weight"]
    assert np.array_equal(made.float().numpy(), want)


@pytest.mark.parametrize("name", ["bnb-int8", "bnb-nf4", "bnb-fp4"])
def test_bitsandbytes_dequantizes_the_same(name):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    maker, arguments = FOREIGN[name][:2]
    w = np.random.default_rng(2).standard_normal((40, 256)).astype(np.float32)  # rows of whole blocks, which its kernel wants
    arrays, want = maker("x", w, **arguments)
    weight = torch.from_numpy(arrays["x.weight"][1])
    if name == "bnb-int8":
        got = functional.int8_vectorwise_dequant(weight, torch.from_numpy(arrays["x.SCB"][1]))
    else:
        quant_state = functional.QuantState(torch.from_numpy(arrays["x.weight.absmax"][1]), torch.Size(w.shape),
                                            torch.from_numpy(arrays["x.weight.quant_map"][1]), arguments.get("blocksize", 64),
                                            name[4:], torch.float32)
        got = functional.dequantize_4bit(weight, quant_state)
    assert np.abs(got.numpy() - want).max() <= np.abs(want).max() * 1e-6


def test_generate_says_what_is_widened(tmp_path):
    config = CONFIG | dict(vocab_size=700, num_hidden_layers=1)
    with open_checkpoint(make_model(tmp_path / "plain", config, np.random.default_rng(3))) as checkpoint:
        weights = {name: checkpoint.load(name, info.shape).numpy() for name, info in checkpoint.tensors.items()}
        write_foreign(tmp_path / "out", config, "fp8-block", weights)
    make_folder("gpt2", tmp_path / "words")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "out" / name).write_bytes((tmp_path / "words" / name).read_bytes())
    for quiet in ([], ["-q"]):
        run = subprocess.run([sys.executable, "-m", "genkit", "generate", "a", "-n", "1", "-m", tmp_path / "out", *quiet],
                             capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        said = "genkit: 7 of 7 matrices in codes are widened to f16: FP8"
        assert (said in run.stderr.splitlines()) == (not quiet), run.stderr


def test_the_op_checks_its_arguments():
    words, order = _core.Tensor.from_numpy(np.zeros((8, 16), np.int32)), _core.Tensor.from_numpy(np.arange(64, dtype=np.int32))
    for arguments, message in [((words, 3, 64, True), "bits is 3"), ((words, 8, 64, False), "bits is 8"),
                               ((words, 4, 63, False), "63 codes ask for 63 rows"), ((words, 4, 0, True), "ask for 0 rows"),
                               ((words, 4, 64, True, _core.Tensor.from_numpy(np.full(64, 64, np.int32))), r"order\[0\] is 64"),
                               ((words, 4, 8, False, order), "order is for"), ((words, 4, 62, True, order), "order")]:
        with pytest.raises(ValueError, match=message):
            _core.turn_words(*arguments)
    assert _core.turn_words(words, 4, 61, True).shape == (16, 32)
