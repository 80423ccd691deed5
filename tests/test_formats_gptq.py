"""GPTQ, version 1 and 2: the layout by its definition, both ways, and files that are not what they say."""

import json
import re

import numpy as np
import pytest
from format_files import EMBEDDING, HEAD, NORM, Q, UP, Raw, assert_same, bit_field, hostile, random_codes, read_back, \
    write_model, writer_for

from genkit.errors import UsageError
from genkit.quant.codes import Codes, widen
from genkit.quant.formats import Format

RANDOM = np.random.default_rng()
X = Q.removesuffix(".weight")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("group", [None, 32, 64, 128])
def test_there_and_back(kind, group, dtype, tmp_path):
    made = writer_for("gptq", tmp_path / "source", dtype=dtype)
    format = made.format(kind, group)
    assert format == Format(kind, group or 32)
    values = {Q: random_codes(RANDOM, 8, 3 * format.group, format), UP: random_codes(RANDOM, 200, 5 * format.group, format),
              EMBEDDING: np.ones((5, 3), np.float32)}
    assert all(made.check(name, value.shape, format) is None for name, value in values.items() if name != EMBEDDING)
    write_model(made, values, tmp_path / "out")
    back = read_back(tmp_path / "out", {name: value.shape for name, value in values.items()})
    assert_same(back[Q], values[Q])
    assert_same(back[UP], values[UP])
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config.pop("meta")["quantizer"][0].startswith("genkit:")
    assert config == {"quant_method": "gptq", "bits": int(kind[-1]), "group_size": format.group, "sym": True,
                      "desc_act": False, "checkpoint_format": "gptq", "lm_head": False, "pack_dtype": "int32"}


def dequantized(arrays, bits, group, above):
    """w = s (u - z) by the definition: code of input i and output j at bit i * bits down column j of qweight, its zero at bit
    j * bits along row i // group of qzeros, stored less `above`."""
    qweight, qzeros, scales, g_idx = arrays
    k, n = len(g_idx), qweight.shape[1]
    want = np.empty((n, k), np.float32)
    for i in range(k):
        for j in range(n):
            z = bit_field(qzeros[g_idx[i]], j, bits) + above
            want[j, i] = widen(scales[g_idx[i], j], "f16") * np.float32(bit_field(qweight[:, j], i, bits) - z)
    return want


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_the_layout_bit_by_bit(kind, tmp_path):
    n, k = 16, 96
    made = writer_for("gptq", tmp_path)
    codes = random_codes(RANDOM, n, k, made.format(kind))
    planned = made.arrays(Q, (n, k), codes.format)
    assert [(a.name.removeprefix(X), a.dtype) for a in planned] == [
        (".qweight", "I32"), (".qzeros", "I32"), (".scales", "F16"), (".g_idx", "I32")]
    arrays = made.encode(Q, codes)
    assert set(arrays[1].view(np.uint32).ravel()) == {0x77777777 if kind == "int4" else 0x7F7F7F7F}
    assert np.array_equal(dequantized(arrays, int(kind[-1]), 32, 1), codes.dequantize())


@pytest.mark.parametrize("form,above", [("gptq", 1), ("gptq_v2", 0), (None, 1)])
@pytest.mark.parametrize("kind,n", [("int4", 16), ("int4", 11), ("int8", 16), ("int8", 6)])
def test_zeros_of_other_peoples_files(kind, n, form, above, tmp_path):
    """Asymmetric codes are read, of either version; nothing here writes them. Rows that do not fill a word included."""
    k, bits = 64, int(kind[-1])
    words = -(-n * bits // 32)
    qweight = RANDOM.integers(-2**31, 2**31, (k * bits // 32, n)).astype(np.int32)
    qzeros = RANDOM.integers(0, 255, (2, words * 4), dtype=np.uint8).view(np.int32)  # no 255: one more is no byte
    scales = RANDOM.standard_normal((2, n)).astype(np.float16).view(np.uint16)
    g_idx = np.arange(k, dtype=np.int32) // 32
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": False, "checkpoint_format": form}
    arrays = {X + ".qweight": qweight, X + ".qzeros": qzeros, X + ".scales": scales, X + ".g_idx": g_idx}
    Raw(tmp_path, {"model_type": "llama", "quantization_config": config}, arrays, {X + ".scales": "F16"}).save()
    got = read_back(tmp_path, {Q: (n, k)})[Q]
    assert isinstance(got, Codes) and got.format == Format(kind, 32, "integer")
    assert np.array_equal(got.dequantize(), dequantized((qweight, qzeros, scales, g_idx), bits, 32, above))
    got.pack()


def test_what_is_left_out_or_differs_is_in_dynamic(tmp_path):
    made = writer_for("gptq", tmp_path / "source")
    down = "model.layers.1.mlp.down_proj.weight"
    values = {EMBEDDING: np.zeros((7, 64), np.float32), Q: random_codes(RANDOM, 8, 64, made.format("int4")),
              Q.replace("0", "1"): random_codes(RANDOM, 8, 64, made.format("int4")),
              UP: random_codes(RANDOM, 8, 64, made.format("int8", 64)),
              down: np.zeros((64, 5), np.float32), HEAD: np.zeros((7, 64), np.float32)}
    write_model(made, values, tmp_path / "out")
    back = read_back(tmp_path / "out", {name: value.shape for name, value in values.items()})
    assert_same(back[UP], values[UP])
    assert_same(back[Q], values[Q])
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["bits"] == 4 and config["dynamic"] == {
        r"+:^model\.layers\.0\.mlp\.up_proj$": {"bits": 8, "group_size": 64}, r"-:^model\.layers\.1\.mlp\.down_proj$": {}}
    left_out = list(config["dynamic"])[1].removeprefix("-:")
    assert re.match(left_out, down[:-7]) and not re.match(left_out, down.replace("1", "11")[:-7])


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(UsageError, match="--format gptq holds llama, mistral, qwen2, qwen3, not gpt2"):
        writer_for("gptq", tmp_path, "gpt2")
    made = writer_for("gptq", tmp_path)
    with pytest.raises(UsageError, match="--asym"):
        made.format("int4", asymmetric=True)
    assert "rows in eights, and it has 12" in made.check(Q, (12, 64), made.format("int4"))
    assert "80 inputs" in made.check(Q, (8, 80), made.format("int4"))
    assert all(made.check(name, (8, 64), made.format("int4")) for name in (EMBEDDING, HEAD))
    assert made.check(Q, (8, 64), Format("int4_two_level")) and made.check(Q, (8, 64), Format("int4", 32, "integer"))
    assert "rounded to f16" in made.check(Q, (8, 64), Format("int4", 32, "none", "bf16"))
    assert made.check(NORM, (8, 64), "bf16") is None


def top(**changes):
    return lambda raw: raw.config["quantization_config"].update(changes)


def array(name, values, dtype="I32"):
    def change(raw):
        raw.arrays[X + name], raw.dtypes[X + name] = values, dtype
    return change


HOSTILE = {
    "marlin": (top(checkpoint_format="marlin"), "checkpoint_format is 'marlin'; expected one of gptq, gptq_v2"),
    "bits": (top(bits=3), "bits is 3; expected 4 or 8; others are not supported"),
    "bits huge": (top(bits=2**40), "bits is"),
    "sym": (top(sym="yes"), "sym is 'yes'; expected true or false"),
    "uneven order": (array(".g_idx", np.arange(64, dtype=np.int32) // 40), "g_idx' has groups that are not of 32 inputs each"),
    "negative order": (array(".g_idx", np.full(64, -1, np.int32)), "g_idx' holds group -1; expected 0 to 1"),
    "order beyond": (array(".g_idx", np.full(64, 2**31 - 1, np.int32)), "holds group 2147483647"),
    "order of another k": (array(".g_idx", np.arange(65, dtype=np.int32)), "a g_idx of 65; expected 4 or 8 bits"),
    "order I64": (array(".g_idx", np.arange(64) // 32, "I64"), "g_idx' is I64 [64]; expected I32 [64]"),
    "order [64, 1]": (array(".g_idx", np.zeros((64, 1), np.int32)), "g_idx' is I32 [64, 1]; expected I32 [64]"),
    "scales missing": (lambda raw: raw.arrays.pop(X + ".scales"), "scales' is missing"),
    "zeros missing": (lambda raw: raw.arrays.pop(X + ".qzeros"), "qzeros' is missing"),
    "codes missing": (lambda raw: raw.arrays.pop(X + ".qweight"), "q_proj.weight' is missing"),
    "one group": (array(".scales", np.zeros((1, 8), np.uint16), "F16"), "with scales [1, 8], qzeros [2, 1] and a g_idx of 64"),
    "odd groups": (array(".scales", np.zeros((3, 8), np.uint16), "F16"), "expected 4 or 8 bits and groups of one size"),
    "no groups": (array(".scales", np.zeros((0, 8), np.uint16), "F16"), "scales' is F16 [0, 8]; expected BF16 or F16 or F32 [n, m]"),
    "scales F64": (array(".scales", np.zeros((2, 8)), "F64"), "is F64 [2, 8]"),
    "scales of other rows": (array(".scales", np.zeros((2, 9), np.uint16), "F16"), "[2, 9]; expected BF16 or F16 or F32 [2, 8]"),
    "codes of bytes": (array(".qweight", np.zeros((8, 8), np.uint8), "U8"), "is U8 [8, 8]; expected I32 [n, m]"),
    "two bits": (array(".qweight", np.zeros((4, 8), np.int32)), "expected 4 or 8 bits"),
    "twice": (array(".weight", np.zeros((8, 64), np.float32), "F32"), "is there as floats and as codes"),
    "another zero": (array(".qzeros", np.full((2, 1), 0x77777776, np.int32)), "qzeros hold 7; sym: true means 8 everywhere"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    made = writer_for("gptq", tmp_path / "source")
    write_model(made, {Q: random_codes(RANDOM, 8, 64, made.format("int4"))}, tmp_path / "out")
    change, message = HOSTILE[name]
    assert message in hostile(tmp_path / "out", change, {Q: (8, 64)})


def test_zeros_that_are_no_byte(tmp_path):
    made = writer_for("gptq", tmp_path / "source")
    write_model(made, {Q: random_codes(RANDOM, 8, 64, made.format("int8"))}, tmp_path / "out")

    def change(raw):
        raw.config["quantization_config"]["sym"] = False
        raw.arrays[X + ".qzeros"] = np.full((2, 2), -1, np.int32)
    assert "qzeros hold 256" in hostile(tmp_path / "out", change, {Q: (8, 64)})
