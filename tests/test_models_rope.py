"""Rotary frequencies against transformers' own, for every scaling type, and against the formulas' known properties."""

import math
from pathlib import Path

import numpy as np
import pytest

from genkit.checkpoints.config import Fields
from genkit.errors import BadFileError
from genkit.rope import read_rope

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "default-theta": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "dynamic-odd": {"rope_type": "dynamic", "rope_theta": 123456.0, "factor": 3.7},
    "llama3": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 100},
    "llama3-wide": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.5,
                    "high_freq_factor": 16.0, "original_max_position_embeddings": 8192},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-betas": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "beta_fast": 20.0, "beta_slow": 2.0,
                   "original_max_position_embeddings": 4096},
    "yarn-mscale": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707,
                    "original_max_position_embeddings": 4096},
    "yarn-factor": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "attention_factor": 1.3,
                    "original_max_position_embeddings": 64},
    "yarn-straight": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "truncate": False,
                      "original_max_position_embeddings": 512},
    "yarn-own-length": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 3.0},
}


def fields_of(**values) -> Fields:
    return Fields(Path("config.json"), values)


def ulps(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32)).max())


@pytest.mark.parametrize("head_dim", [16, 80, 96, 128])
@pytest.mark.parametrize("name", ROPES)
def test_matches_transformers(name, head_dim):
    torch = pytest.importorskip("torch", reason="needs torch to compare with")
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    positions = 128
    config = transformers.LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim, num_hidden_layers=1,
        max_position_embeddings=positions, rope_parameters=dict(ROPES[name]),
    )
    rope = read_rope(fields_of(rope_parameters=ROPES[name], max_position_embeddings=positions), head_dim, positions)
    for length in (1, 127, 128, 129, 500, 4000):
        theirs = LlamaRotaryEmbedding(config)  # a new one each time: dynamic remembers the longest it saw
        theirs(torch.zeros(1), torch.arange(length)[None])
        expected = theirs.inv_freq.numpy()
        got = rope.inv_freq(length)
        assert got.dtype == np.float32 and got.shape == expected.shape
        # Torch's float32 power is good to a unit or two in the last place; dynamic takes two powers in a row.
        assert ulps(got, expected) <= (16 if name.startswith("dynamic") else 4), (length, got, expected)
        assert rope.attention_factor == pytest.approx(theirs.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("partial", [0.25, 0.5, 0.3])
def test_partial_rotation_matches_phi3(partial):
    """Llama's own class in transformers rotates whole heads only; Phi-3's takes the same factor."""
    pytest.importorskip("torch", reason="needs torch to compare with")
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    config = transformers.Phi3Config(
        hidden_size=192, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": partial},
    )
    for fields in (fields_of(partial_rotary_factor=partial, rope_theta=10000.0),
                   fields_of(rope_parameters={"rope_type": "default", "partial_rotary_factor": partial})):
        assert ulps(read_rope(fields, 96, 4096).inv_freq(), Phi3RotaryEmbedding(config).inv_freq.numpy()) <= 4


def test_both_spellings_agree():
    for name, new in ROPES.items():
        old = {("type" if key == "rope_type" else key): value for key, value in new.items() if key != "rope_theta"}
        a = read_rope(fields_of(rope_parameters=new, max_position_embeddings=128), 80, 128)
        b = read_rope(fields_of(rope_theta=new["rope_theta"], rope_scaling=old, max_position_embeddings=128), 80, 128)
        assert a == b, name


def test_properties_without_a_reference():
    """What each type promises, from its definition."""
    plain = read_rope(fields_of(rope_theta=10000.0), 64, 128).inv_freq()
    assert plain[0] == 1 and np.allclose(plain, 10000.0 ** (-np.arange(0, 64, 2) / 64), rtol=1e-6)

    def made(**values):
        return read_rope(fields_of(rope_parameters=values, max_position_embeddings=128), 64, 128)

    assert np.allclose(made(rope_type="linear", factor=4.0).inv_freq(), plain / 4, rtol=1e-6)
    dynamic = made(rope_type="dynamic", factor=2.0)
    assert np.array_equal(dynamic.inv_freq(128), plain)
    # The fastest channel stays; the slowest is divided by factor * length / trained length - (factor - 1).
    assert dynamic.inv_freq(256)[0] == 1
    assert dynamic.inv_freq(256)[-1] == pytest.approx(plain[-1] / 3, rel=1e-5)
    llama3 = made(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=100).inv_freq()
    wavelength = 2 * math.pi / plain
    assert np.array_equal(llama3[wavelength < 25], plain[wavelength < 25])
    assert np.allclose(llama3[wavelength > 100], plain[wavelength > 100] / 8, rtol=1e-6)
    middle = (wavelength > 26) & (wavelength < 99)
    assert middle.any() and (llama3[middle] < plain[middle]).all() and (llama3[middle] > plain[middle] / 8).all()
    yarn = made(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
    assert yarn.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert yarn.inv_freq()[0] == 1 and yarn.inv_freq()[-1] == pytest.approx(plain[-1] / 4, rel=1e-6)
    longrope = made(rope_type="su", short_factor=[1.0] * 32, long_factor=[2.0] * 32, original_max_position_embeddings=32)
    assert np.array_equal(longrope.inv_freq(32), plain) and np.array_equal(longrope.inv_freq(33), plain / 2)
    assert longrope.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(32)))
    assert longrope.max_positions == 128 and longrope.varies(33) and not longrope.varies(32)
    assert yarn.max_positions == 128 and dynamic.max_positions == 256


@pytest.mark.parametrize("values, named", [
    ({"rope_scaling": {"rope_type": "spiral", "factor": 4.0}}, ["spiral", "default", "linear", "yarn"]),
    ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 32}}, ["long_factor", "missing"]),
    ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 32, "long_factor": [2.0] * 31}}, ["long_factor", "31", "32"]),
    ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 31 + [0], "long_factor": [2.0] * 32}}, ["short_factor", "above 0"]),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32,
                       "original_max_position_embeddings": 1}}, ["original_max_position_embeddings", "2"]),
    ({"rope_parameters": {"rope_type": "linear"}}, ["factor"]),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, ["factor", "0"]),
    ({"rope_parameters": {"rope_type": "linear", "factor": float("nan")}}, ["factor", "NaN"]),
    ({"rope_theta": -1.0}, ["rope_theta", "-1"]),
    ({"partial_rotary_factor": 0.001}, ["partial_rotary_factor", "0.001"]),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.04}}, ["dynamic"]),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
     ["high_freq_factor", "low_freq_factor"]),
])
def test_refuses(values, named):
    with pytest.raises(BadFileError) as error:
        read_rope(fields_of(max_position_embeddings=128, **values), 64, 128)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)
    for word in named:
        assert word in str(error.value)


def test_refuses_an_odd_head():
    with pytest.raises(BadFileError, match="head_dim 17"):
        read_rope(fields_of(), 17, 128)
