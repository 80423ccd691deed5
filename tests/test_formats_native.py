"""genkit's own folders: the layout by its definition, both ways, and files that are not what they say."""

import json

import numpy as np
import pytest
from format_files import EMBEDDING, FORMATS, HEAD, K_FORMATS, NORM, Q, UP, assert_same, by_pieces, hostile, random_codes, read_back, \
    write_model, writer_for

from genkit import _core
from genkit.errors import UsageError
from genkit.quant.codes import to_nibbles, widen
from genkit.quant.formats import BY_NAME, Format

RANDOM = np.random.default_rng()


@pytest.mark.parametrize("format", FORMATS + K_FORMATS, ids=str)
def test_there_and_back(format, tmp_path):
    made = writer_for("genkit", tmp_path / "source", "gpt2")
    values = {Q: random_codes(RANDOM, 3, 448, format), UP: random_codes(RANDOM, 65, 71, format),
              EMBEDDING: random_codes(RANDOM, 1, 1, format), NORM: np.arange(5, dtype=np.float16)}
    write_model(made, values, tmp_path / "out")
    back = read_back(tmp_path / "out", {name: value.shape for name, value in values.items()})
    for name in (Q, UP, EMBEDDING):
        assert_same(back[name], values[name])
        # Nothing is lost of what is past k either.
        assert all(np.array_equal(array, back[name].parts()[part]) for part, array in values[name].parts().items())
        back[name].pack()
    assert back[NORM].numpy().tolist() == [0, 1, 2, 3, 4]
    for whole, joined in zip(made.encode(UP, values[UP]), by_pieces(made, UP, values[UP])):
        assert np.array_equal(whole, joined)


@pytest.mark.parametrize("format", [
    Format("int4_two_level"), Format("int4", 32, "integer"), Format("int4", 64, "real", "bf16"), Format("int8", 128),
    Format("int8", 32, "integer", "bf16"), Format("int8", 256, "real"), *K_FORMATS], ids=str)
def test_the_layout_by_its_definition(format, tmp_path):
    n, k = 3, 300
    made = writer_for("genkit", tmp_path)
    codes = random_codes(RANDOM, n, k, format)
    names = [array.name.removeprefix(Q + ".") for array in made.arrays(Q, (n, k), format)]
    file = dict(zip(names, made.encode(Q, codes), strict=True))
    want = np.empty((n, k), np.float32)
    for i in range(n):
        for j in range(k):
            if format.eight_bits:
                c = int(file["codes"][i, j])
            else:
                c = int(file["codes"][i, j // 2]) >> 4 * (j % 2) & 15
            s = widen(file["scales"][i, j // format.scale_group], format.scale_dtype)
            if format.of_k:
                s = s * np.float32(file["subscales"][i, j // format.group])
                if format.zero == "real":
                    m = widen(file["zeros"][i, j // 256], "f16") * np.float32(file["minima"][i, j // format.group])
                    want[i, j] = s * np.float32(c) - m
                else:
                    want[i, j] = s * np.float32(c - (8 if format.packing == "int4_k" else 0))
            elif format.packing == "int4_two_level":
                u = int(file["subscales"][i, j // 64]) >> 4 * (j // 32 % 2) & 15
                want[i, j] = s * np.float32(u * c - int(file["minima"][i, j // 32]))
            elif format.zero == "real":
                want[i, j] = s * np.float32(c) + widen(file["zeros"][i, j // format.group], format.scale_dtype)
            else:
                z = {"int4": 8, "int8": 0}[format.packing]
                if format.zero == "integer":
                    z = int(file["zeros"][i, j // format.group])
                want[i, j] = s * np.float32(c - z)
    assert np.array_equal(want, codes.dequantize())


def test_rows_are_read_alone(tmp_path):
    from genkit.checkpoints import open_checkpoint, read_config

    made = writer_for("genkit", tmp_path / "source")
    values = {EMBEDDING: random_codes(RANDOM, 40, 71, BY_NAME["int4"]), HEAD: random_codes(RANDOM, 40, 71, BY_NAME["int8"])}
    write_model(made, values, tmp_path / "out")
    with open_checkpoint(tmp_path / "out", read_config(tmp_path / "out")) as checkpoint:
        for name, codes in values.items():
            assert_same(checkpoint.codes_of_rows(name, (40, 71), 7, 19), codes.rows(7, 19))
            assert checkpoint.tensors[name].dtype == ("int4" if name == EMBEDDING else "int8")
            assert checkpoint.tensors[name].shape == (40, 71)


def test_types_by_their_names(tmp_path):
    made = writer_for("genkit", tmp_path)
    assert made.format("int4") == BY_NAME["int4"] and made.format("int8") == BY_NAME["int8"] and made.format("bf16") == "bf16"
    assert made.format("int4", 64) == Format("int4", 64)
    assert made.format("int4", asymmetric=True) == Format("int4", 32, "real")
    assert made.format("int8", 128) == Format("int8", 128)
    with pytest.raises(UsageError, match="--asym with int8"):
        made.format("int8", asymmetric=True)
    with pytest.raises(UsageError, match="type 'q4_0'"):
        made.format("q4_0")


def test_a_model_of_floats_says_nothing_of_codes(tmp_path):
    made = writer_for("genkit", tmp_path / "source", quantization={"bits": 4}, quantization_config={"quant_method": "awq"},
                      genkit_quantize="int4")
    write_model(made, {NORM: np.ones(3, np.float32)}, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "llama", "dtype": "bfloat16"}


def entry(**changes):
    return lambda raw: raw.config["quantization_config"]["formats"][Q].update(changes)


def top(**changes):
    return lambda raw: raw.config["quantization_config"].update(changes)


def array(name, values, dtype):
    def change(raw):
        raw.arrays[Q + name], raw.dtypes[Q + name] = values, dtype
    return change


def fill(name, value):
    def change(raw):
        raw.arrays[Q + name] = np.full_like(raw.arrays[Q + name], value)
    return change


HOSTILE = {
    "version": (top(version=2), "version is 2; expected 1, which this genkit reads"),
    "no version": (top(version=None), "version is null"),
    "no formats": (top(formats=None), "formats is null; expected an object"),
    "formats list": (top(formats=[Q]), "formats is"),
    "format list": (top(formats={Q: [1]}), "q_proj.weight' is [1]; expected an object"),
    "format null": (top(formats={Q: None}), "q_proj.weight' is null; expected an object"),
    "another tensor": (lambda raw: raw.config["quantization_config"]["formats"].update(
        {"x\n": {"packing": "int4", "group": 32, "zero": "none", "scale_dtype": "f16", "k": 64}}), "'x\\n.codes' is missing"),
    "a name of control characters": (top(formats={"\x1b[2J\n": {"packing": 4}}), "formats.'\\x1b[2J\\n'.packing is 4"),
    "packing": (entry(packing="int3"), "packing is 'int3'; expected one of int4_two_level, int4, int8"),
    "group 0": (entry(group=0), "group is 0; expected 32, 64, 128, 256"),
    "group 48": (entry(group=48), "group is 48"),
    "group huge": (entry(group=10**30), "group is 10"),
    "group of two levels": (entry(group=64), "with it a group of 256"),
    "zero of two levels": (entry(zero="real"), "with it a group of 256"),
    "zero": (entry(zero=1), "zero is 1"),
    "scales": (entry(scale_dtype="f32"), "scale_dtype is 'f32'; expected one of f16, bf16"),
    "k 0": (entry(k=0), "k is 0; expected an integer from 1 to 2147483647"),
    "k negative": (entry(k=-64), "k is -64"),
    "k huge": (entry(k=2**31), "k is 2147483648"),
    "k of another row": (entry(k=2**31 - 1), "is U8 [3, 160]; expected U8 [3, 1073741824]"),
    "k text": (entry(k="300"), "k is '300'"),
    "codes missing": (lambda raw: raw.arrays.pop(Q + ".codes"), ".codes' is missing"),
    "minima missing": (lambda raw: raw.arrays.pop(Q + ".minima"), ".minima' is missing"),
    "twice": (array("", np.zeros((3, 300), np.uint16), "BF16"), "is there as floats and as codes"),
    "codes i8": (array(".codes", np.zeros((3, 160), np.int8), "I8"), "is I8 [3, 160]; expected U8 [3, 160]"),
    "no rows": (array(".codes", np.zeros((0, 160), np.uint8), "U8"), "is U8 [0, 160]"),
    "codes flat": (array(".codes", np.zeros(480, np.uint8), "U8"), "is U8 [480]"),
    "scales short": (array(".scales", np.zeros((3, 1), np.uint16), "F16"), "is F16 [3, 1]; expected F16 [3, 2]"),
    "scales bf16": (array(".scales", np.zeros((3, 2), np.uint16), "BF16"), "is BF16 [3, 2]; expected F16 [3, 2]"),
    "group of k": (entry(packing="int4_k", group=64, zero="none"), "group is 64; expected an integer from 16 to 32"),
    "another group of k": (entry(packing="int8_k", group=24, zero="none"), "group is 24; expected 16 or 32"),
    "zero of k": (entry(packing="int8_k", group=16, zero="integer"), "zero is 'integer'; expected one of none, real"),
    "scales of k": (entry(packing="int4_k", group=32, scale_dtype="bf16"), "scale_dtype is 'bf16'"),
    "subscales of k": (entry(packing="int4_k", group=32), "subscales' is U8 [3, 5]; expected I8 [3, 10]"),
    "minima beyond": (fill(".minima", 129), "minima reach 129"),
    "15 u - m beyond": (fill(".minima", 0), "15 u - m"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    codes = random_codes(RANDOM, 3, 300, BY_NAME["int4"])
    codes.subscales[1, 2], codes.minima[1, 2] = 15, 98
    write_model(writer_for("genkit", tmp_path / "source"), {Q: codes}, tmp_path / "out")
    change, message = HOSTILE[name]
    assert message in hostile(tmp_path / "out", change, {Q: (3, 300)})


def test_zeros_beyond_their_range_are_refused(tmp_path):
    codes = random_codes(RANDOM, 3, 64, Format("int4", 32, "integer"))
    write_model(writer_for("genkit", tmp_path / "source"), {Q: codes}, tmp_path / "out")
    assert "holds a zero of 17; expected 0 to 16" in hostile(tmp_path / "out", fill(".zeros", 17), {Q: (3, 64)})


def test_scales_that_are_nan_pass_through(tmp_path):
    codes = random_codes(RANDOM, 3, 300, BY_NAME["int4"])
    codes.scales[2, 1] = 0x7E00
    write_model(writer_for("genkit", tmp_path / "source"), {Q: codes}, tmp_path / "out")
    values = read_back(tmp_path / "out", {Q: (3, 300)})[Q].dequantize()
    assert np.isnan(values[2, 256:]).all() and np.isfinite(values[:2]).all()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("format", [Format("int4_two_level"), Format("int4", 32), Format("int4", 64, "integer"), Format("int4", 128, "real", "bf16")])
@pytest.mark.parametrize("n, k", [(2, 1), (34, 64), (70, 300), (130, 513)])
def test_nibbles_pack_as_codes_do(n, k, format, gated):
    """What a file holds goes to the core as it is, a panel at a time; on any number of threads."""
    codes = random_codes(np.random.default_rng(), n, k, format)
    wanted = codes.pack(gated)
    parts = {name: _core.Tensor.from_numpy(np.ascontiguousarray(part)) for name, part in codes.parts().items()}
    for name, dtype in (("scales", format.scale_dtype), ("zeros", format.scale_dtype if format.zero == "real" else None)):
        if name in parts and dtype:
            parts[name] = _core.Tensor.from_numpy(getattr(codes, name), dtype)
    for name in ("codes", "subscales"):
        if name in parts:
            parts[name] = _core.Tensor.from_numpy(to_nibbles(getattr(codes, name)))
    for threads in (1, 3):
        _core.set_threads(threads)
        got = _core.pack_weight(parts["codes"], parts["scales"], parts.get("subscales"), parts.get("minima"), parts.get("zeros"), k,
                                format.core(), gated)
        assert bytes(got.panels.bytes()) == bytes(wanted.panels.bytes())
