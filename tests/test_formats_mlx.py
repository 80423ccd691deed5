"""MLX's affine form: the layout by its definition, both ways, and files that are not what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
from format_files import EMBEDDING, HEAD, NORM, Q, UP, Raw, assert_same, bit_field, bits_of, by_pieces, hostile, \
    random_codes, read_back, write_model, writer_for

from genkit.errors import UsageError
from genkit.quant.codes import widen
from genkit.quant.formats import Format

RANDOM = np.random.default_rng()
X = Q.removesuffix(".weight")


def offset_form(codes):
    """Symmetric codes as MLX gives them back: with an offset."""
    f, s = codes.format, widen(codes.scales, codes.format.scale_dtype)
    zeros = np.zeros_like(codes.scales) if f.packing == "int8" else bits_of(s * np.float32(-8), f.scale_dtype)
    return replace(codes, format=replace(f, zero="real"), zeros=zeros)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind,zero", [("int4", "real"), ("int4", "none"), ("int8", "none")])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_there_and_back(group, kind, zero, dtype, tmp_path):
    made = writer_for("mlx", tmp_path / "source", dtype=dtype)
    format = made.format(kind, group)
    assert format == Format(kind, group, "real" if kind == "int4" else "none", "bf16" if dtype == "bfloat16" else "f16")
    format = replace(format, zero=zero)
    values = {Q: random_codes(RANDOM, 3, 3 * group, format), UP: random_codes(RANDOM, 71, group, format),
              EMBEDDING: random_codes(RANDOM, 33, group, format), HEAD: random_codes(RANDOM, 33, group, format),
              NORM: np.ones(3, np.float32)}
    assert all(made.check(name, value.shape, format) is None for name, value in values.items() if name != NORM)
    write_model(made, values, tmp_path / "out")
    back = read_back(tmp_path / "out", {name: value.shape for name, value in values.items()})
    for name in (Q, UP, EMBEDDING, HEAD):
        assert_same(back[name], values[name] if zero == "real" else offset_form(values[name]))
        assert np.array_equal(back[name].dequantize(), values[name].dequantize())
        back[name].pack()
    for whole, joined in zip(made.encode(UP, values[UP]), by_pieces(made, UP, values[UP])):
        assert np.array_equal(whole, joined)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"group_size": group, "bits": int(kind[-1]), "mode": "affine"}
    assert config["quantization"] == config["quantization_config"]


@pytest.mark.parametrize("kind,zero", [("int4", "real"), ("int4", "none"), ("int8", "none")])
def test_the_layout_bit_by_bit(kind, zero, tmp_path):
    n, k, bits = 7, 96, int(kind[-1])
    made = writer_for("mlx", tmp_path, dtype="float16")
    codes = random_codes(RANDOM, n, k, Format(kind, 32, zero))
    planned = [(a.name, a.dtype) for a in made.arrays(Q, (n, k), codes.format)]
    assert planned == [(Q, "U32"), (X + ".scales", "F16"), (X + ".biases", "F16")]
    weight, scales, biases = made.encode(Q, codes)
    assert weight.dtype == np.uint32
    want = np.empty((n, k), np.float32)
    for i in range(n):
        for j in range(k):
            s, b = (float(widen(part, "f16")[i, j // 32]) for part in (scales, biases))
            want[i, j] = s * bit_field(weight[i], j, bits) + b  # exact in float64, rounded once
    assert np.array_equal(want, codes.dequantize())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_eight_bits_of_other_peoples_files(dtype, tmp_path):
    """Offsets of any kind: what is read is within half a step of the type around the offset of the middle code."""
    n, k = 5, 128
    made = writer_for("mlx", tmp_path / "source", dtype={"F16": "float16", "BF16": "bfloat16"}[dtype])
    write_model(made, {Q: random_codes(RANDOM, n, k, made.format("int8", 64))}, tmp_path / "out")
    raw = Raw.read(tmp_path / "out")
    low = RANDOM.standard_normal((n, 2)) - 1
    raw.arrays[X + ".biases"] = bits_of(low.astype(np.float32), dtype.lower())
    raw.arrays[X + ".scales"] = bits_of((np.abs(RANDOM.standard_normal((n, 2))) / 255).astype(np.float32), dtype.lower())
    raw.save()
    s, b = (np.repeat(widen(raw.arrays[X + part], dtype.lower()), 64, 1).astype(float) for part in (".scales", ".biases"))
    u = raw.arrays[Q].view(np.uint8).astype(np.float64)
    got = read_back(tmp_path / "out", {Q: (n, k)})[Q].dequantize()
    step = {"F16": 2.0**-11, "BF16": 2.0**-8}[dtype]
    assert (np.abs(got - (s * u + b)) <= np.abs(b + 128 * s) * step + 1e-6).all()


def test_mixed_formats_and_floats(tmp_path):
    made = writer_for("mlx", tmp_path / "source", "qwen2")
    four, eight = made.format("int4"), made.format("int8", 64)
    values = {EMBEDDING: random_codes(RANDOM, 7, 64, eight), Q: random_codes(RANDOM, 3, 64, four),
              UP: random_codes(RANDOM, 5, 64, four), "model.layers.0.mlp.down_proj.weight": np.zeros((64, 5), np.float32),
              NORM: np.zeros(64, np.float32)}
    write_model(made, values, tmp_path / "out")
    back = read_back(tmp_path / "out", {name: value.shape for name, value in values.items()})
    assert_same(back[UP], values[UP])
    assert_same(back[EMBEDDING], offset_form(values[EMBEDDING]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"] == {
        "group_size": 32, "bits": 4, "mode": "affine", "model.embed_tokens": {"group_size": 64, "bits": 8, "mode": "affine"},
        "model.layers.0.mlp.down_proj": False}


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(UsageError, match="not gpt2"):
        writer_for("mlx", tmp_path, "gpt2")
    made = writer_for("mlx", tmp_path)
    with pytest.raises(UsageError, match="--asym with int8"):
        made.format("int8", asymmetric=True)
    assert made.format("int4", asymmetric=True) == made.format("int4")
    assert "80 inputs" in made.check(Q, (8, 80), made.format("int4"))
    for format in (Format("int4_two_level"), Format("int4", 32, "integer", "bf16"), Format("int8", 32, "real", "bf16"),
                   Format("int4", 32)):
        assert made.check(Q, (8, 64), format)
    made = writer_for("mlx", tmp_path, dtype="float16")
    codes = random_codes(RANDOM, 1, 32, Format("int8", 32))
    codes.scales[0, 0] = np.float16(512).view(np.uint16)
    with pytest.raises(ValueError, match="an offset of 65536 is beyond f16"):
        made.encode(Q, codes)


def both(change):
    def changed(raw):
        change(raw.config["quantization"])
        raw.config.pop("quantization_config")
    return changed


def put(**changes):
    return both(lambda quantization: quantization.update(changes))


def array(name, values, dtype):
    def change(raw):
        raw.arrays[X + name], raw.dtypes[X + name] = values, dtype
    return change


HOSTILE = {
    "mode": (put(mode="mxfp4"), "mode is 'mxfp4'; expected affine"),
    "bits": (put(bits=7), "bits is 7; expected one of 2, 3, 4, 5, 6, 8; others are not supported"),
    "bits text": (put(bits="4"), "bits is '4'"),
    "group 0": (put(group_size=0), "group_size is 0; expected an integer from 1"),
    "group negative": (put(group_size=-64), "group_size is -64"),
    "group missing": (both(lambda q: q.pop("group_size")), "group_size is missing"),
    "group of another": (put(group_size=64), "scales' is BF16 [3, 2]; expected BF16 or F16 or F32 [3, 1]"),
    "own bits": (put(**{X: {"bits": 7, "group_size": 32}}), "q_proj'.bits is 7"),
    "own list": (put(**{X: [4]}), "q_proj' is [4]; expected an object"),
    "said to be floats": (put(**{X: False}), "config.json's quantization says false"),
    "list": (lambda raw: raw.config.update(quantization=[4], quantization_config=None), "quantization is [4]; expected"),
    "scales missing": (lambda raw: raw.arrays.pop(X + ".scales"), "scales' is missing"),
    "biases missing": (lambda raw: raw.arrays.pop(X + ".biases"), "biases' is missing"),
    "codes missing": (lambda raw: raw.arrays.pop(Q), "q_proj.weight' is missing"),
    "codes I32": (array(".weight", np.zeros((3, 8), np.int32), "I32"), "has shape [3, 8]"),
    "codes flat": (array(".weight", np.zeros(24, np.uint32), "U32"), "is U32 [24]; expected U32 [n, m]"),
    "codes long": (array(".weight", np.zeros((3, 9), np.uint32), "U32"), "rows of 72 codes; expected a multiple of"),
    "codes empty": (array(".weight", np.zeros((3, 0), np.uint32), "U32"), "is U32 [3, 0]"),
    "biases of another type": (array(".biases", np.zeros((3, 2), np.uint16), "F16"), "is F16 [3, 2]; expected BF16 [3, 2]"),
    "scales F64": (array(".scales", np.zeros((3, 2)), "F64"), "is F64 [3, 2]"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    made = writer_for("mlx", tmp_path / "source")
    write_model(made, {Q: random_codes(RANDOM, 3, 64, made.format("int4"))}, tmp_path / "out")
    change, message = HOSTILE[name]
    assert message in hostile(tmp_path / "out", change, {Q: (3, 64)})


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_scales_that_are_no_numbers_pass_through(kind, tmp_path):
    made = writer_for("mlx", tmp_path / "source")
    codes = random_codes(RANDOM, 3, 64, made.format(kind))
    codes.scales[2, 1], codes.scales[0, 0] = 0x7FC0, 0x7F80
    write_model(made, {Q: codes}, tmp_path / "out")
    back = read_back(tmp_path / "out", {Q: (3, 64)})[Q]
    assert np.array_equal(back.scales, codes.scales)
    with np.errstate(invalid="ignore"):
        assert np.isnan(back.dequantize()[2, 32:]).all()
