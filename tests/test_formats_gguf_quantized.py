"""Files that llama.cpp's own quantizer made, whole, of every type: they run packed, as llama.cpp computes them."""

import ctypes

import numpy as np
import pytest

ll = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python to make files")

from gguf_files import CONFIGS, SEED, WIDE, logits_of, make_model, write_model  # noqa: E402
from test_formats_gguf import llama, llama_logits  # noqa: E402,F401

from genkit import _core, models  # noqa: E402
from genkit.checkpoints.gguf import open_model  # noqa: E402

# llama.cpp's numbers of what a whole file may be; of the mixed ones ("_M") values and downs are of a larger type in some layers.
FILES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15,
         "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30}
MXFP4 = 38  # experts only


def quantize(source, out, number):
    parameters = ll.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = number, 1
    assert ll.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters)) == 0


def decoded(path):
    """Every tensor of the file by our name, float32."""
    found = {}
    with open_model(path).checkpoint as checkpoint:
        for name, info in checkpoint.tensors.items():
            found[name] = (checkpoint.codes(name, info.shape).dequantize() if name in checkpoint.quantized
                           else checkpoint.load_f32(name, info.shape).numpy())
    return found


@pytest.mark.parametrize("kind", FILES)
def test_what_llama_cpp_quantizes(tmp_path, llama, kind):  # noqa: F811
    rng = np.random.default_rng(SEED)
    folder = make_model(tmp_path / "model", CONFIGS["qwen3"] | WIDE | dict(num_hidden_layers=8), rng)
    write_model(folder, tmp_path / "f32.gguf", "f32")
    path = tmp_path / "model.gguf"
    quantize(tmp_path / "f32.gguf", path, FILES[kind])
    opened = open_model(path)
    with opened.checkpoint as checkpoint:
        model = models.load_model(opened.fields, checkpoint)
    block = model.blocks[0]
    for linear in (block.attention.qkv, block.attention.out, block.mlp.gate_up, block.mlp.down, model.head):
        weights = linear.weight if isinstance(linear.weight, tuple) else (linear.weight,)
        assert all(isinstance(weight, _core.PackedWeight) for weight in weights)
    compare(kind, path, llama)


def compare(kind, path, llama):  # noqa: F811
    """Logits of genkit and of llama.cpp with those of the weights the file holds, in f32."""
    ids = np.random.default_rng(SEED).integers(0, 300, 40).tolist()
    expected = logits_of(path, ids, decoded(path))
    ours, theirs = logits_of(path, ids), llama(llama_logits, path, ids)
    errors = [np.linalg.norm(found - expected) / np.linalg.norm(expected) for found in (ours, theirs)]
    print(f"{kind}: ours {errors[0]:.1e}, llama.cpp's {errors[1]:.1e}")
    assert max(errors) < 5e-2 and errors[0] < 1.5 * errors[1] + 1e-3


def test_experts_in_four_bits(tmp_path, llama):  # noqa: F811
    architectures = pytest.importorskip("test_gguf_architectures", reason="needs torch and transformers to make models")
    folder = architectures.make_folder("gpt_oss", tmp_path / "model")
    architectures.write_gguf("gpt_oss", folder, tmp_path / "f32.gguf")
    path = tmp_path / "model.gguf"
    quantize(tmp_path / "f32.gguf", path, MXFP4)
    with open_model(path).checkpoint as checkpoint:
        assert {info.dtype for name, info in checkpoint.tensors.items() if ".experts." in name and "bias" not in name} == {"mxfp4"}
    compare("MXFP4", path, llama)
