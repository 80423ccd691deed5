"""GGUF: blocks against the gguf package, files against llama.cpp, and files that nobody should trust."""

import ctypes
import json
import math
import multiprocessing
import os
import struct
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import refused, write_tensors
from format_files import random_codes, rounded
from text_folders import FOREIGN, corpus, make_folder

import genkit
from genkit import _core, checkpoints, models
from genkit.checkpoints import gguf_container as container
from genkit.checkpoints.config import Fields
from genkit.checkpoints.gguf import open_model
from genkit.checkpoints.gguf_blocks import BY_FORMAT, TYPES, decode, encode, round_q6_k
from genkit.checkpoints.gguf_model import gguf_name, interleave, tensor_name, uninterleave
from genkit.errors import BadFileError, ResourceError, UsageError
from genkit.kv_cache import KVCache, Sequence, pages_for
from genkit.quant.codes import Codes, groups_of
from genkit.quant.formats import Format
from genkit.quant.roles import survey
from genkit.quant.writers.base import Source
from genkit.quant.writers.gguf import Model
from genkit.text.gguf_vocab import PRE, WHOLE, tokenizer_of, vocabulary_keys
from genkit.text.tokenizer import Tokenizer

SEED = 20261127
KINDS = {"f32": "f32", "f16": "f16", "bf16": "bf16", "q4_0": "int4", "q4_1": "int4", "q8_0": "int8", "q6_k": "q6_k"}


# Blocks.


def halves(rng, shape):
    """float16 bits: normal numbers of either sign, subnormal ones and zero."""
    values = (rng.standard_normal(shape) * 10.0 ** rng.integers(-7, 2, shape)).astype(np.float16)
    return values.view(np.uint16)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "Q6_K"])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_blocks_as_the_gguf_package_reads_them(name, blocks):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(SEED)
    block = TYPES[name]
    raw = rng.integers(0, 256, (7, blocks, block.nbytes), np.uint8)
    for at in {"Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q6_K": [208]}[name]:
        raw[:, :, at:at + 2] = halves(rng, (7, blocks))[:, :, None].view(np.uint8)
    raw = raw.reshape(7, -1)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    found = decode(name, raw, blocks * block.weights)
    if isinstance(found, Codes):
        assert np.array_equal(encode(found), raw)
        assert found.format == block.format and found.scales.shape == (7, groups_of(blocks * 32, 32))
        found = found.dequantize()
    assert found.dtype == np.float32 and np.array_equal(found, expected)


@pytest.mark.parametrize("format", BY_FORMAT, ids=[block.name for block in BY_FORMAT.values()])
@pytest.mark.parametrize("n, k", [(1, 32), (5, 64), (3, 96), (33, 352)])
def test_codes_survive_as_blocks(format, n, k):
    gguf = pytest.importorskip("gguf")
    codes = random_codes(np.random.default_rng([SEED, n, k]), n, k, format)
    block = BY_FORMAT[format]
    raw = encode(codes)
    assert raw.shape == (n, container.nbytes_of(block, (n, k)) // n)
    expected = codes.dequantize()
    assert np.array_equal(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[block.name]), expected)
    back = decode(block.name, raw, k)
    assert np.array_equal(back.codes[:, :k], codes.codes[:, :k]) and np.array_equal(back.dequantize(), expected)
    back.pack()  # the core takes them


def test_six_bits(rng):
    """Rounding errs by half a step at most where codes reach, and by the norms that 64 levels give."""
    values = rng.standard_normal((9, 1024), dtype=np.float32) * np.float32(0.03)
    values[3] *= 0.1
    values[4, :300] = 0
    values[5, ::7] *= 20
    raw = round_q6_k(values)
    assert raw.shape == (9, 4 * 210) and np.array_equal(raw[2:6], round_q6_k(values[2:6]))
    found = decode("Q6_K", raw, 1024)
    error = np.linalg.norm(found - values, axis=1) / np.linalg.norm(values, axis=1)
    assert error[[0, 1, 2, 4, 6, 7, 8]].max() < 0.021 and error[3] < 0.03 and error[5] < 0.04
    assert not found[4, :256].any()
    # Codes are the nearest the chosen scales offer.
    steps = np.abs(found.reshape(9, 64, 16)).max(2)
    assert (np.abs(found - values).reshape(9, 64, 16).max(2) <= steps / 31 + np.abs(values).max() * 2**-5).all()
    for bad in (np.nan, np.inf, -np.inf, 3e38):
        values[1, 5] = bad
        with pytest.raises(ValueError):
            round_q6_k(values)


# Names and rows.


def test_names_go_both_ways():
    names = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias",
             "model.layers.31.mlp.down_proj.weight", "model.layers.7.self_attn.k_norm.weight"]
    assert [tensor_name(gguf_name(name)) for name in names] == names
    for unknown in ("blk.0.ffn_gate_exps.weight", "blk.00.ffn_up.weight", "blk.1.weight", "output.scale"):
        assert tensor_name(unknown) is None


def test_rows_go_both_ways():
    rows = np.random.default_rng(SEED).standard_normal((24, 3))
    assert np.array_equal(uninterleave(interleave(rows, 4), 4), rows)
    whole, parts = interleave(rows, 4), [interleave(rows[i:i + 6], 1) for i in range(0, 24, 6)]
    assert np.array_equal(whole, np.concatenate(parts)) and not np.array_equal(whole, rows)


# Whole models.

SIZES = dict(vocab_size=300, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=32, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False)
LLAMA3 = dict(rope_type="llama3", factor=8.0, rope_theta=10000.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", factor=4.0, rope_theta=50000.0, original_max_position_embeddings=64, attention_factor=1.3)
CONFIGS = {
    "llama": dict(model_type="llama", head_dim=16, rope_parameters=LLAMA3),
    "llama-bias": dict(model_type="llama", attention_bias=True, mlp_bias=True,
                       rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0)),
    "mistral": dict(model_type="mistral", sliding_window=40, num_key_value_heads=4),
    "qwen2": dict(model_type="qwen2", head_dim=24, tie_word_embeddings=True, rope_parameters=YARN),
    "qwen3": dict(model_type="qwen3", rms_norm_eps=1e-6, tie_word_embeddings=True),
}


WIDE = dict(hidden_size=256, intermediate_size=512, head_dim=64)  # whole blocks of 256


def make_model(folder, config, rng):
    """A model folder with random weights, without tokenizer."""
    folder.mkdir(exist_ok=True)
    config = SIZES | config
    (folder / "config.json").write_text(json.dumps(config))
    fields = Fields(folder / "config.json", config)
    module = models._module(fields)

    class Nothing:
        nbytes, tensors = 0, {}

    shapes = module.tensor_shapes(module.read_config(fields, Nothing))
    write_tensors(folder / "model.safetensors",
                  {name: (rng.standard_normal(shape) * (0.2 if len(shape) == 1 else shape[1] ** -0.5)
                          + ("norm" in name)).astype(np.float32) for name, shape in shapes.items()})
    return folder


def write_model(folder, out, kind, piece=None):
    """The folder as GGUF, matrices as `kind` (of KINDS), written some rows at a time. Returns what each tensor holds, f32."""
    fields = checkpoints.read_config(folder)
    expected = {}
    with checkpoints.open_checkpoint(folder, fields) as checkpoint:
        writer = Model(Source(folder, fields, models.read_model_config(fields, checkpoint)))
        roles = survey(fields, checkpoint)
        kinds, arrays = {}, {}
        for name in [*roles.matrices, *roles.others]:
            shape = roles.shape(name)
            kinds[name] = writer.plain(name, shape, checkpoint.tensors[name].dtype)
            if name in roles.matrices:
                wanted = writer.format(KINDS[kind], None, kind == "q4_1")
                if isinstance(wanted, str) or writer.check(name, shape, wanted) is None:
                    kinds[name] = wanted
            [arrays[name]] = writer.arrays(name, shape, kinds[name])
        [file] = writer.files(list(arrays.values()), kinds)
        data = bytearray(file.nbytes)
        data[:len(file.head)] = file.head
        for name, form in kinds.items():
            values = checkpoint.load_f32(name, roles.shape(name)).numpy()
            if isinstance(form, Format):
                value = rounded(values, form)
                expected[name] = value.dequantize()
            elif form == "q6_k":
                value, expected[name] = values, decode("Q6_K", round_q6_k(values), values.shape[1])
            else:
                tensor = _core.Tensor.from_numpy(values)
                value = expected[name] = values
                if form != "f32":
                    tensor = _core.convert(tensor, form)
                    value, expected[name] = tensor.numpy(), _core.convert(tensor, "f32").numpy()
            at = file.offsets[arrays[name].name]
            step = (piece or 1000) * writer.row_multiple
            for begin in range(0, len(values), step):
                end = min(begin + step, len(values))
                part = value.rows(begin, end) if isinstance(value, Codes) else value[begin:end]
                [encoded] = writer.encode(name, part)
                data[at:at + encoded.nbytes] = encoded.tobytes()
                at += encoded.nbytes
            assert at - file.offsets[arrays[name].name] == arrays[name].nbytes
    out.write_bytes(data)
    assert file.name == "model.gguf" and writer.extras(kinds) == {} and len(data) == file.nbytes
    return expected


def logits_of(path, ids, values=None):
    """genkit's logits of a GGUF file; with `values`, of these weights instead, by name, in f32."""
    with open_model(path).checkpoint as checkpoint:
        fields = open_model(path).fields
        if values is not None:
            folder = path.with_suffix(".folder")
            folder.mkdir()
            write_tensors(folder / "model.safetensors", values)
            checkpoint = checkpoints.open_checkpoint(folder)
        model = models.load_model(fields, checkpoint)
    c = model.config
    cache = KVCache(c.layers, c.kv_heads, c.head_dim, pages_for(len(ids)) + 2, "f32")
    return _core.Arena().run(model, cache.step([(Sequence(), ids)], context_length=len(ids)), cache).numpy()


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(SEED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_what_is_written_is_read(tmp_path, rng, name, kind):
    """Every tensor under its own name and in its own order, whole and in part, from pieces as from a whole."""
    config = CONFIGS[name] | (WIDE if kind == "q6_k" else {})
    folder, path = make_model(tmp_path / "model", config, rng), tmp_path / "model.gguf"
    expected = write_model(folder, path, kind, piece=1)
    again = tmp_path / "again.gguf"
    write_model(folder, again, kind)
    assert again.read_bytes() == path.read_bytes()
    opened = open_model(path)
    assert opened.tokenizer_json is None and opened.tokenizer_config == {}
    with opened.checkpoint as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        assert bool(checkpoint.quantized) == (kind[0] == "q")
        for tensor, values in expected.items():
            if tensor in checkpoint.quantized:
                assert checkpoint.tensors[tensor].dtype == kind
                if kind == "q6_k":
                    found = checkpoint.load(tensor, values.shape)
                    found = (found if found.dtype == "f32" else _core.convert(found, "f32")).numpy()
                    assert np.allclose(found, values, rtol=2**-10, atol=1e-7)
                    continue
                assert np.array_equal(checkpoint.codes(tensor, values.shape).dequantize(), values)
                assert np.array_equal(checkpoint.codes_of_rows(tensor, values.shape, 5, 23).dequantize(), values[5:23])
            else:
                assert np.array_equal(checkpoint.load_f32(tensor, values.shape).numpy(), values)
                if values.ndim == 2:
                    part = checkpoint.load_rows(tensor, values.shape, 5, 23)
                    assert np.array_equal((part if part.dtype == "f32" else _core.convert(part, "f32")).numpy(), values[5:23])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_comes_back(tmp_path, rng, name):
    folder, path = make_model(tmp_path / "model", CONFIGS[name], rng), tmp_path / "model.gguf"
    write_model(folder, path, "f32")
    fields = checkpoints.read_config(folder)
    with checkpoints.open_checkpoint(folder) as checkpoint, open_model(path).checkpoint as other:
        before, after = models.read_model_config(fields, checkpoint), models.read_model_config(open_model(path).fields, other)
        assert math.isclose(before.rope.attention_factor, after.rope.attention_factor, rel_tol=1e-6)
        for field in ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "max_positions", "norm_eps",
                      "windows", "tied", "qkv_bias", "out_bias", "mlp_bias", "qk_norm", "intermediate_size", "activation",
                      "model_type"):
            assert getattr(before, field) == getattr(after, field), field
        for field in ("type", "theta", "factor", "original_positions", "low_freq_factor", "high_freq_factor", "beta_fast"):
            assert getattr(before.rope, field) == getattr(after.rope, field), field
    ids = list(range(3, 60))
    base = genkit.load(folder, kv_type="f32").logits(ids)
    assert np.abs(logits_of(path, ids) - base).max() <= 1e-5 * np.abs(base).max()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_go_to_the_kernels(tmp_path, rng, kind):
    """The model runs on what the file holds; activations are rounded to 8 bits for codes, to bf16 for bf16."""
    folder, path = make_model(tmp_path / "model", CONFIGS["llama"] | WIDE, rng), tmp_path / "model.gguf"
    values = write_model(folder, path, kind)
    ids = rng.integers(0, 300, 70).tolist()
    expected, found = logits_of(path, ids, values), logits_of(path, ids)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"{kind}: {error:.2e}")
    assert error <= {"f32": 0, "f16": 2e-3, "bf16": 1.5e-2, "q6_k": 2e-3}.get(kind, 5e-2)


def test_a_gguf_file_is_a_model(tmp_path, small):
    """The file, and a folder of nothing else, by the API that everybody uses: ids, text and settings of the folder it was."""
    data, folder = small[0], small[2]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    model, source = genkit.load(path, kv_type="f32"), genkit.load(folder)
    ids = source.tokenizer.encode(TEXTS[2])
    assert model.tokenizer.encode(TEXTS[2]) == ids and model.tokenizer.chat_template == source.tokenizer.chat_template
    assert np.array_equal(model.logits(ids), logits_of(path, ids))
    assert genkit.load(tmp_path, kv_type="f32").generate(ids, max_tokens=5).tokens == model.generate(ids, max_tokens=5).tokens
    assert model._eos_ids == source._eos_ids
    with pytest.raises(UsageError, match="codes already"):
        genkit.load(path, quantize="int8")
    (tmp_path / "other.gguf").write_bytes(data)
    assert "config.json" in refused(genkit.load, tmp_path)  # which of two is not for us to say


@pytest.mark.parametrize("options", [dict(), dict(asymmetric=True), dict(type="int8"), dict(head="bf16")])
def test_quantize_there_and_on(tmp_path, options):
    """genkit quantize writes it, and from it, codes as they are, another form."""
    from genkit.quant.job import quantize
    from genkit.quant.quantize import Recipe

    path = tmp_path / "out.gguf"
    quantize(genkit.DEFAULT_MODEL, path, Recipe(format="gguf", **options), price=False)
    model = genkit.load(path, kv_type="f32")
    ids = model.tokenizer.encode(TEXTS[2])
    found = model.logits(ids)
    second = Recipe(format="genkit", group_size=32, **({} if "type" in options else {"head": "bf16"}) | options)
    report = quantize(path, tmp_path / "again", second, price=False)
    assert all("same codes" == entry["method"] for name, entry in report["tensors"].items()
               if name.endswith("proj.weight"))
    again = genkit.load(tmp_path / "again", kv_type="f32")
    assert again.tokenizer.encode(TEXTS[2]) == ids and again._defaults == model._defaults
    if "type" in options:  # else the embedding is another
        assert np.array_equal(again.logits(ids), found)


@pytest.mark.parametrize("options", [dict(), dict(asymmetric=True), dict(type="int8"), dict(head="bf16")])
def test_llama_cpp_runs_what_quantize_writes(tmp_path, llama, options):
    from genkit.quant.job import quantize
    from genkit.quant.quantize import Recipe

    path = tmp_path / "out.gguf"
    quantize(genkit.DEFAULT_MODEL, path, Recipe(format="gguf", **options), price=False)
    model = genkit.load(path, kv_type="f32")
    ids = model.tokenizer.encode(TEXTS[2] * 3)
    ours, theirs = model.logits(ids), llama(llama_logits, path, ids)
    error = np.linalg.norm(theirs - ours) / np.linalg.norm(ours - ours.mean())
    print(f"{options}: {error:.2e}")
    assert error < 5e-2


def test_as_the_gguf_package_reads_it(tmp_path, rng):
    gguf = pytest.importorskip("gguf")
    folder, path = make_model(tmp_path / "model", CONFIGS["llama"], rng), tmp_path / "model.gguf"
    make_folder("qwen", tmp_path / "tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tmp_path / "tokenizer" / name).read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 700}
    make_model(folder, config, rng)
    expected = write_model(folder, path, "q4_0")
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert keys["general.architecture"] == "llama" and keys["llama.block_count"] == 2 and keys["general.file_type"] == 2
    assert keys["llama.rope.freq_base"] == 10000.0 and keys["tokenizer.ggml.model"] == "gpt2"
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == 700
    assert json.loads(keys[WHOLE])["model"]["type"] == "BPE"
    for tensor in reader.tensors:
        assert tensor.data_offset % 32 == 0
        if tensor.name == "rope_freqs.weight":
            continue
        name = tensor_name(tensor.name)
        values = expected[name]
        if ".q_proj." in name or ".k_proj." in name:
            values = interleave(values, len(values) // 16)
        assert tensor.tensor_type == gguf.GGMLQuantizationType["Q4_0" if values.ndim == 2 else "F32"]
        assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape), values)
    assert len(reader.tensors) == len(expected) + 1


def test_what_others_write(tmp_path, rng):
    """A file of the gguf package: Q6_K, other keys, another alignment, no rope keys."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_custom_alignment(128)
    for add, value in ((writer.add_context_length, 64), (writer.add_embedding_length, 256), (writer.add_block_count, 0),
                       (writer.add_feed_forward_length, 256), (writer.add_head_count, 2),
                       (writer.add_layer_norm_rms_eps, 1e-6)):
        add(value)
    writer.add_array("other.numbers", [1, 2, 3])
    table = rng.integers(0, 256, (9, 210), np.uint8)
    table[:, 208:] = halves(rng, (9, 1)).view(np.uint8)
    writer.add_tensor("token_embd.weight", table, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    opened = open_model(path)
    raw = opened.fields.raw
    assert raw["tie_word_embeddings"] and raw["vocab_size"] == 9 and raw["head_dim"] == 128
    expected = gguf.quants.dequantize(table, gguf.GGMLQuantizationType.Q6_K)
    with opened.checkpoint as checkpoint:
        assert checkpoint.tensors["model.embed_tokens.weight"].dtype == "q6_k"
        found = checkpoint.load_rows("model.embed_tokens.weight", (9, 256), 2, 7)
        wide = (found if found.dtype == "f32" else _core.convert(found, "f32")).numpy()
        assert np.allclose(wide, expected[2:7], rtol=2**-10, atol=1e-7)


def test_models_llama_cpp_has_no_place_for(tmp_path, rng):
    dynamic = dict(rope_type="dynamic", factor=2.0)
    for name, config, words in (("dynamic", dict(model_type="llama", rope_parameters=dynamic), "dynamic"),
                                ("gelu", dict(model_type="llama", hidden_act="gelu"), "hidden_act"),
                                ("window", dict(model_type="qwen2", head_dim=24, use_sliding_window=True, sliding_window=20,
                                                max_window_layers=0), "sliding_window"),
                                ("yarn", dict(model_type="llama", rope_parameters=YARN | dict(beta_fast=16.0)), "beta_fast"),
                                ("ramp", dict(model_type="llama", rope_parameters=YARN | dict(truncate=False)), "yarn"),
                                ("wide", dict(model_type="qwen2"), "hidden_size"),
                                ("bias", dict(model_type="qwen3", attention_bias=True), "bias")):
        folder = make_model(tmp_path / name, config, rng)
        with pytest.raises(UsageError, match=words):
            write_model(folder, tmp_path / "out.gguf", "f32")
    fields = Fields(tmp_path / "config.json", {"model_type": "gpt2"})
    with pytest.raises(UsageError, match="not for gpt2"):
        Model(Source(tmp_path, fields, type("Config", (), {"model_type": "gpt2"})))


def test_types_and_groups():
    writer = Model.__new__(Model)
    assert writer.format("int4") == Format("int4", 32) and writer.format("int4", 32, True) == Format("int4", 32, "real")
    assert writer.format("int8") == Format("int8", 32) and writer.format("bf16") == "bf16"
    for wrong in (("int4", 64), ("int8", None, True), ("q5_k",)):
        with pytest.raises(UsageError):
            writer.format(*wrong)
    assert "33 columns" in writer.check("x", (4, 33), Format("int4", 32))
    assert writer.check("x", (4, 96), Format("int4", 32)) is None
    assert "blocks of 256" in writer.check("x", (4, 384), "q6_k") and writer.format("q6_k") == "q6_k"


# llama.cpp.


@pytest.fixture(scope="module")
def llama():
    """Runs what is below in a process of its own: llama.cpp sets up a thread's AMX tiles once and takes them to stay so."""
    pytest.importorskip("llama_cpp")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda call, *arguments: pool.submit(call, *arguments).result()


def llama_model(path, vocab_only=False):
    import llama_cpp as ll

    if not hasattr(llama_model, "quiet"):
        llama_model.quiet = ll.llama_log_callback(lambda level, text, data: None)
        ll.llama_log_set(llama_model.quiet, None)
        ll.llama_backend_init()
    parameters = ll.llama_model_default_params()
    parameters.vocab_only = vocab_only
    model = ll.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, "llama.cpp does not load the file"
    return ll, model


def llama_logits(path, ids):
    ll, model = llama_model(path)
    parameters = ll.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 256
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = 0  # f32
    parameters.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = ll.llama_init_from_model(model, parameters)
    batch = ll.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert ll.llama_decode(context, batch) == 0
    count = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(ll.llama_get_logits(context), (len(ids), count)).copy()
    ll.llama_batch_free(batch), ll.llama_free(context), ll.llama_model_free(model)
    return logits


def llama_tokens(path, texts):
    """Token ids of each text, and the ids of bos and eos."""
    ll, model = llama_model(path, vocab_only=True)
    vocab = ll.llama_model_get_vocab(model)
    found = []
    for text in texts:
        data = text.encode()
        out = (ll.llama_token * (len(data) + 8))()
        found.append(list(out[:ll.llama_tokenize(vocab, data, len(data), out, len(out), True, True)]))
    return found, ll.llama_vocab_bos(vocab), ll.llama_vocab_eos(vocab)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_computes_the_same(tmp_path, rng, llama, name, kind):
    """Against genkit's f32 logits of the very weights in the file; llama.cpp rounds activations to 8 bits for codes, and to
    the weights' type for f16 and bf16."""
    config = CONFIGS[name] | (WIDE if kind == "q6_k" else {}) | ({"sliding_window": None} if name == "mistral" else {})
    folder, path = make_model(tmp_path / "model", config, rng), tmp_path / "model.gguf"
    values = write_model(folder, path, kind)
    ids = rng.integers(0, 300, 70).tolist()
    expected, found = logits_of(path, ids, values), llama(llama_logits, path, ids)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"{name} {kind}: {error:.2e}")
    assert error < {"f32": 3e-6, "f16": 2e-3, "bf16": 1.5e-2}.get(kind, 5e-2)


def test_six_bits_are_as_good_as_llama_cpps(rng):
    ll = pytest.importorskip("llama_cpp")
    library = ctypes.CDLL(str(next((Path(ll.__file__).parent / "lib").glob("libggml-base.*"))))
    quantize = library.ggml_quantize_chunk
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    for values in (rng.standard_normal((64, 1024), dtype=np.float32) * np.float32(0.02),
                   (rng.standard_t(4, (64, 1024)) * 0.01).astype(np.float32)):
        theirs = np.empty((64, 840), np.uint8)
        quantize(TYPES["Q6_K"].id, values.ctypes.data, theirs.ctypes.data, 0, 64, 1024, None)
        ours, theirs = (np.linalg.norm(decode("Q6_K", raw, 1024) - values) for raw in (round_q6_k(values), theirs))
        print(f"{ours / theirs:.4f}")
        assert ours < theirs


TEXTS = ["Hello world", " two  spaces   three", "x = [i**2 for i in range(1234567)]\n\n\tif x:\r\n  y",
         "don't DON'T we'll 'tis", "", "a", FOREIGN.strip(), "1234567890 12 3", "<|eot_id|> and <s> inside\n"]


def tokenizer_folder(kind, folder):
    """One of llama.cpp's own ways to cut words (PRE), or one of text_folders'."""
    if kind not in PRE:
        return make_folder(kind, folder)
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Fast, models as kinds

    patterns, ignore_merges = PRE[kind]
    fast = Fast(kinds.BPE(ignore_merges=ignore_merges))
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
                                                 + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        fast.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(vocab_size=650, special_tokens=["<s>", "<|eot_id|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    fast.train_from_iterator(corpus(), trainer)
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|eot_id|>",
                                                              "chat_template": "{{ bos_token }}{{ messages }}"}))
    return folder


def vocabulary_file(tokenizer, path, drop=()):
    """A GGUF file with nothing but a tokenizer. Returns the notes."""
    keys, notes = vocabulary_keys(tokenizer, tokenizer.vocab_size + 3)
    keys = [("general.architecture", container.STRING, "llama"), *(key for key in keys if key[0] not in drop)]
    head, _, nbytes = container.head_bytes(keys, [("token_embd.weight", "F32", (1,))])
    path.write_bytes(head.ljust(nbytes, b"\0"))
    return notes


def read_keys(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return container.read_container(path, descriptor, path.stat().st_size)
    finally:
        os.close(descriptor)


def folder_of(found, folder):
    """tokenizer_of's answer as a Tokenizer."""
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(found[0])
    (folder / "tokenizer_config.json").write_text(json.dumps(found[1]))
    return Tokenizer(folder)


# llama.cpp's keys cannot say what llama2 does: no space before a text that has one, none after a special token.
@pytest.mark.parametrize("kind", [*PRE, "gpt2", "llama2", "llama2_legacy", "llama2_file"])
def test_tokenizers_come_back(tmp_path, kind):
    ours = Tokenizer(tokenizer_folder(kind, tmp_path / "tokenizer"))
    notes = vocabulary_file(ours, tmp_path / "a.gguf")
    assert notes == []
    exact = folder_of(tokenizer_of(read_keys(tmp_path / "a.gguf")), tmp_path / "exact")
    vocabulary_file(ours, tmp_path / "b.gguf", drop=(WHOLE,))
    rebuilt = folder_of(tokenizer_of(read_keys(tmp_path / "b.gguf")), tmp_path / "rebuilt")
    for text in TEXTS:
        assert exact.encode(text) == ours.encode(text)
        assert exact.decode(ours.encode(text)) == ours.decode(ours.encode(text))
        if not kind.startswith("llama2") or kind == "llama2_file" or not (text.startswith(" ") or "<s>" in text):
            assert rebuilt.encode(text) == ours.encode(text), text
            assert rebuilt.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    assert exact.special_tokens.items() <= ours.special_tokens.items() and exact.chat_template == ours.chat_template
    assert (rebuilt.bos_id, rebuilt.eos_id) == (exact.bos_id, exact.eos_id) == (ours.bos_id, ours.eos_id)


@pytest.mark.parametrize("kind", [*PRE, "gpt2", "llama2_file"])
def test_llama_cpp_gives_the_same_tokens(tmp_path, llama, kind):
    ours = Tokenizer(tokenizer_folder(kind, tmp_path / "tokenizer"))
    folder = tmp_path / "tokenizer"
    make_model(folder, dict(model_type="llama", vocab_size=ours.vocab_size + 3), np.random.default_rng(SEED))
    write_model(folder, tmp_path / "model.gguf", "f16")
    # llama.cpp puts no characters together (NFC), and has simpler expressions for upper and lower case.
    texts = [text for text in TEXTS if kind not in ("qwen2", "tekken", "gpt-4o") or text.isascii()]
    found, bos, eos = llama(llama_tokens, tmp_path / "model.gguf", texts)
    assert found == [ours.encode(text) for text in texts]
    assert (bos, eos) == (ours.bos_id, ours.eos_id)


def test_a_window_llama_cpp_does_not_know_is_said(tmp_path, rng):
    for window, count in ((40, 1), (512, 0)):
        folder = make_model(tmp_path / str(window), CONFIGS["mistral"] | {"sliding_window": window}, rng)
        fields = checkpoints.read_config(folder)
        with checkpoints.open_checkpoint(folder) as checkpoint:
            writer = Model(Source(folder, fields, models.read_model_config(fields, checkpoint)))
        writer.files(writer.arrays("model.norm.weight", (96,), "f32"), {})
        assert len(writer.notes) == count and all("sliding_window" in note for note in writer.notes)


def test_an_unknown_way_to_cut_words_is_said(tmp_path):
    ours = Tokenizer(genkit.DEFAULT_MODEL)
    notes = vocabulary_file(ours, tmp_path / "a.gguf")
    assert len(notes) == 1 and "default" in notes[0]
    gemma = Tokenizer(tokenizer_folder("gemma", tmp_path / "gemma"))
    assert vocabulary_file(gemma, tmp_path / "b.gguf") == []
    smollm = Tokenizer(make_folder("smollm", tmp_path / "smollm"))
    assert vocabulary_file(smollm, tmp_path / "c.gguf") == []
    assert read_keys(tmp_path / "c.gguf").keys["tokenizer.ggml.pre"] == "smollm"
    exact = folder_of(tokenizer_of(read_keys(tmp_path / "a.gguf")), tmp_path / "exact")
    assert all(exact.encode(text) == ours.encode(text) for text in TEXTS)


def test_a_large_vocabulary_is_read_quickly(tmp_path):
    tokens = [f"token {i}" for i in range(128_000)]
    merges = [f"left{i} right{i}" for i in range(280_000)]
    keys = [("general.architecture", container.STRING, "llama"), ("tokenizer.ggml.tokens", container.ARRAY, (8, tokens)),
            ("tokenizer.ggml.merges", container.ARRAY, (8, merges))]
    head, _, nbytes = container.head_bytes(keys, [("token_embd.weight", "F32", (1,))])
    (tmp_path / "a.gguf").write_bytes(head.ljust(nbytes, b"\0"))
    start = time.perf_counter()
    found = read_keys(tmp_path / "a.gguf")
    seconds = time.perf_counter() - start
    print(f"{seconds:.3f} s")
    assert [t.decode() for t in found.keys["tokenizer.ggml.tokens"]] == tokens and seconds < 2
    assert [t.decode() for t in found.keys["tokenizer.ggml.merges"]] == merges


# Files that nobody should trust.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A whole little model with tokenizer, as bytes, how long its head is, and the folder it was."""
    folder = tmp_path_factory.mktemp("small") / "model"
    tokenizer_folder("llama-bpe", folder)
    config = dict(model_type="llama", vocab_size=653, hidden_size=32, head_dim=8, intermediate_size=32, num_hidden_layers=1,
                  rope_parameters=LLAMA3)
    make_model(folder, config, np.random.default_rng(SEED))
    path = folder.parent / "model.gguf"
    write_model(folder, path, "q4_0")
    found = read_keys(path)
    return path.read_bytes(), min(entry.offset for entry in found.tensors.values()), folder


def attempt(path, data):
    """Opens and reads it all; only our own errors may come out."""
    path.write_bytes(data)
    try:
        opened = open_model(path)
    except (BadFileError, ResourceError) as error:
        assert str(error).isprintable() and len(str(error)) < 900
        return str(error)
    with opened.checkpoint as checkpoint:
        try:
            models.read_model_config(opened.fields, checkpoint)
            for name, info in checkpoint.tensors.items():
                checkpoint.load(name, info.shape)
        except (BadFileError, ResourceError) as error:
            return str(error)
    return None


def test_truncated_anywhere(tmp_path, small):
    data, head, _ = small
    path = tmp_path / "a.gguf"
    assert attempt(path, data) is None
    for end in [*range(0, 1500), *range(1500, head, max(1, head // 300)), *range(head - 400, head + 40), len(data) - 1]:
        assert attempt(path, data[:end]), end


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of float16 scales that became infinite
def test_flipped_bits(tmp_path, small):
    data, head, _ = small
    rng = np.random.default_rng(SEED)
    path = tmp_path / "a.gguf"
    dense = [i for i in range(head) if i < 1400 or i > head - 900]  # keys of numbers and tensors; between are strings
    refusals = 0
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = dense[rng.integers(len(dense))] if rng.random() < 0.8 else rng.integers(len(data))
            changed[at] ^= 1 << rng.integers(8)
        refusals += attempt(path, bytes(changed)) is not None
    assert 300 < refusals < 1500


def built(keys=(), tensors=b"", count=0, keys_count=None, version=3, magic=b"GGUF", data=b""):
    body = b"".join(keys)
    head = magic + struct.pack("<IQQ", version, count, len(keys) if keys_count is None else keys_count) + body + tensors
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + data


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"token_embd.weight", shape=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARRAY = struct.pack("<I", 9)
HOSTILE = {
    "empty": (b"", "truncated"),
    "not GGUF": (b"GGML" + bytes(100), "not with GGUF"),
    "version 2": (built(version=2), "version 2"),
    "big-endian": (built(version=0x03000000), "big-endian"),
    "many tensors": (built(count=2**60), "claims 1152921504606846976 tensors"),
    "many keys": (built(keys_count=2**40), "claims 1099511627776 keys"),
    "no tensors": (built(), "holds no tensors"),
    "long key": (built([struct.pack("<Q", 2**63)]), "at most 65535"),
    "long text": (built([text(b"a") + struct.pack("<IQ", 8, 2**50) + bytes(50)]), "at most"),
    "text to the end": (built([text(b"a") + struct.pack("<IQ", 8, 10**6) + bytes(50)]), "truncated"),
    "not text": (built([text(b"a\xff") + struct.pack("<II", 4, 1)]), "not UTF-8"),
    "twice": (built([text(b"a") + struct.pack("<II", 4, 1)] * 2), "there twice"),
    "type 13": (built([text(b"a") + struct.pack("<II", 13, 1) + bytes(9)]), "value type 13"),
    "array of arrays": (built([text(b"a") + ARRAY + struct.pack("<IQ", 9, 1) + bytes(20)]), "array of arrays"),
    "array of nothing": (built([text(b"a") + ARRAY + struct.pack("<IQ", 77, 1) + bytes(20)]), "value type 77"),
    "long array": (built([text(b"a") + ARRAY + struct.pack("<IQ", 11, 2**61)]), "truncated"),
    "many strings": (built([text(b"a") + ARRAY + struct.pack("<IQ", 8, 2**32)]), "4294967296 strings"),
    "alignment 0": (built([text(b"general.alignment") + struct.pack("<II", 4, 0)], tensor(), 1), "power of two"),
    "alignment 48": (built([text(b"general.alignment") + struct.pack("<II", 4, 48)], tensor(), 1), "power of two"),
    "alignment text": (built([text(b"general.alignment") + struct.pack("<I", 8) + text(b"x")], tensor(), 1), "power of two"),
    "offset": (built(tensors=tensor(offset=8), count=1, data=bytes(64)), "no multiple of 32"),
    "beyond the end": (built(tensors=tensor(offset=2**62), count=1, data=bytes(64)), "truncated"),
    "overlap": (built(tensors=tensor(shape=(16,)) + tensor(b"output_norm.weight", (8,), offset=32), count=2, data=bytes(96)),
                "overlaps"),
    "same name": (built(tensors=tensor() * 2, count=2, data=bytes(96)), "there twice"),
    "long name": (built(tensors=tensor(b"x" * 65), count=1, data=bytes(96)), "at most 64"),
    "no dimension": (built(tensors=tensor(shape=()), count=1, data=bytes(96)), "0 dimensions"),
    "five dimensions": (built(tensors=tensor(shape=(1,) * 5), count=1, data=bytes(96)), "5 dimensions"),
    "size 0": (built(tensors=tensor(shape=(0, 4)), count=1, data=bytes(96)), "which cannot be"),
    "huge": (built(tensors=tensor(shape=(2**40, 2**40)), count=1, data=bytes(96)), "which cannot be"),
    "half a block": (built(tensors=tensor(shape=(48, 2), kind=2), count=1, data=bytes(96)), "blocks are 32 long"),
    "Q4_K": (built(tensors=tensor(shape=(256,), kind=12), count=1, data=bytes(960)), "Q4_K, which is not supported"),
    "type 99": (built(tensors=tensor(kind=99), count=1, data=bytes(96)), "type 99"),
    "no architecture": (built(tensors=tensor(), count=1, data=bytes(96)), "architecture null"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, name):
    data, words = HOSTILE[name]
    (tmp_path / "a.gguf").write_bytes(data)
    assert words in refused(open_model, tmp_path / "a.gguf")


def altered(path, tmp_path, change):
    """The file with its keys and tensors changed: change(keys, tensors)."""
    found = read_keys(path)
    types = {bool: container.BOOL, int: container.U32, float: container.F32, str: container.STRING}
    keys = {}
    for name, value in found.keys.items():
        if isinstance(value, list):
            keys[name] = (container.ARRAY, (container.STRING, value))
        elif isinstance(value, np.ndarray):
            keys[name] = (container.ARRAY, (container.F32 if value.dtype.kind == "f" else container.I32, value))
        else:
            keys[name] = (types[type(value)], value)
    tensors = {name: (entry.type, entry.shape) for name, entry in found.tensors.items()}
    change(keys, tensors)
    head, _, nbytes = container.head_bytes([(name, *value) for name, value in keys.items()],
                                           [(name, *value) for name, value in tensors.items()])
    out = tmp_path / "altered.gguf"
    out.write_bytes(head.ljust(nbytes, b"\0"))
    return out


CHANGES = {
    "expert_count": lambda keys, tensors: keys.update({"llama.expert_count": (4, 8)}),
    "one number for all layers": lambda keys, tensors: keys.update({"llama.attention.head_count": (9, (4, [4, 4]))}),
    "no place in a model": lambda keys, tensors: tensors.update({"blk.0.ffn_gate_exps.weight": ("F32", (4,))}),
    "only matrices can": lambda keys, tensors: tensors.update({"output_norm.weight": ("Q4_0", (32,))}),
    "no even number of rows": lambda keys, tensors: tensors.update({"blk.0.attn_q.weight": ("F32", (3, 32))}),
    "both must be the same": lambda keys, tensors: keys.update({"llama.rope.dimension_count": (4, 4)}),
    "not Llama 3's scaling": lambda keys, tensors: keys.update({"llama.rope.freq_base": (6, 10.0)}),
    "expected F32 of one dimension": lambda keys, tensors: tensors.update({"rope_freqs.weight": ("F16", (4,))}),
    "there are 653 tokens": lambda keys, tensors: keys.update({"tokenizer.ggml.bos_token_id": (4, 653)}),
    "tokenizer.ggml.tokens is missing": lambda keys, tensors: keys.pop("tokenizer.ggml.tokens"),
    "is no text": lambda keys, tensors: keys.update({"tokenizer.chat_template": (4, 1)}),
    "tokenizer.ggml.pre 'strange' is not known":
        lambda keys, tensors: (keys.pop(WHOLE), keys.update({"tokenizer.ggml.pre": (8, "strange")})),
    "tokenizer.ggml.model 't5' is not supported":
        lambda keys, tensors: (keys.pop(WHOLE), keys.update({"tokenizer.ggml.model": (8, "t5")})),
    "one number for each": lambda keys, tensors: (keys.pop(WHOLE), keys.update({"tokenizer.ggml.token_type": (9, (5, [1]))})),
    "expected two tokens": lambda keys, tensors: (keys.pop(WHOLE), keys.update({"tokenizer.ggml.merges": (9, (8, ["a"]))})),
    "not UTF-8 text": lambda keys, tensors: (keys.pop(WHOLE), keys.update({"tokenizer.ggml.merges": (9, (8, [b"\xff a"]))})),
    "scaling.type 'other' is not": lambda keys, tensors: (tensors.pop("rope_freqs.weight"),
                                                          keys.update({"llama.rope.scaling.type": (8, "other")})),
}


@pytest.mark.parametrize("words", CHANGES)
def test_what_the_keys_say_is_checked(tmp_path, small, words):
    (tmp_path / "small.gguf").write_bytes(small[0])
    path = altered(tmp_path / "small.gguf", tmp_path, CHANGES[words])
    found = read_keys(path).tensors.get("rope_freqs.weight")
    if found:  # the only data that is looked at here
        original = read_keys(tmp_path / "small.gguf").tensors["rope_freqs.weight"]
        data = bytearray(path.read_bytes())
        data[found.offset:found.offset + found.nbytes] = small[0][original.offset:original.offset + found.nbytes]
        path.write_bytes(data)
    assert words in refused(open_model, path)
