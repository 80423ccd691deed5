"""GGUF: blocks against the gguf package, files against llama.cpp, tokenizers both ways."""

import ctypes
import json
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import refused
from format_files import random_codes
from gguf_files import CONFIGS, KINDS, SEED, WIDE, YARN, logits_of, make_model, read_keys, small_file, split, tokenizer_folder, \
    vocabulary_file, write_model
from text_folders import FOREIGN, make_folder

import genkit
from genkit import _core, checkpoints, models
from genkit.checkpoints import gguf_container as container
from genkit.checkpoints.config import Fields
from genkit.checkpoints.gguf import open_model
from genkit.checkpoints.gguf_blocks import BY_FORMAT, TYPES, decode, encode, round_q6_k
from genkit.checkpoints.gguf_model import gguf_name, interleave
from genkit.checkpoints.gguf_names import ARCHITECTURES, tensor_name
from genkit.errors import UsageError
from genkit.inspection import examine
from genkit.quant.codes import Codes, groups_of
from genkit.quant.formats import Format
from genkit.quant.writers.base import Source
from genkit.quant.writers.gguf import Model
from genkit.text.gguf_pre import PRE
from genkit.text.gguf_vocab import WHOLE, tokenizer_of
from genkit.text.tokenizer import Tokenizer



# Blocks.


@pytest.mark.parametrize("name", [block.name for block in TYPES.values() if block.format is not None])
@pytest.mark.parametrize("n, blocks", [(7, 1), (3, 2), (37, 5), (1, 9)])
def test_blocks_as_the_gguf_package_reads_them(name, n, blocks):
    """Any bytes: scales that are NaN, infinite and subnormal as well."""
    gguf = pytest.importorskip("gguf")
    block = TYPES[name]
    raw = np.random.default_rng([SEED, n]).integers(0, 256, (n, blocks * block.nbytes), np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
        found = decode(name, raw)
        values = found.dequantize()
    assert found.format == block.format and found.shape == (n, blocks * block.weights)
    assert values.dtype == np.float32 and np.array_equal(values, expected, equal_nan=True)
    if BY_FORMAT.get(found.format) == block:
        assert np.array_equal(encode(found), raw)
    packed = found.pack()
    ids = _core.Tensor.from_numpy(np.arange(n, dtype=np.int32))
    assert np.array_equal(_core.unpack(ids, packed).numpy(), expected, equal_nan=True)


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
    back = decode(block.name, raw)
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
    found = decode("Q6_K", raw).dequantize()
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
    llama = ARCHITECTURES["llama"]
    assert [tensor_name(llama, gguf_name(name)) for name in names] == names
    for unknown in ("blk.0.ffn_gate_exps.weight", "blk.00.ffn_up.weight", "blk.1.weight", "output.scale"):
        assert tensor_name(llama, unknown) is None


def test_rows_within_heads():
    rows = np.random.default_rng(SEED).standard_normal((24, 3))
    whole, parts = interleave(rows, 4), [interleave(rows[i:i + 6], 1) for i in range(0, 24, 6)]
    assert np.array_equal(whole, np.concatenate(parts)) and not np.array_equal(whole, rows)


# Whole models.

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_file(tmp_path_factory.mktemp("small") / "model")


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
                assert np.array_equal(checkpoint.codes(tensor, values.shape).dequantize(), values)
                assert np.array_equal(checkpoint.codes_of_rows(tensor, values.shape, 5, 23).dequantize(), values[5:23])
            else:
                assert np.array_equal(checkpoint.load_f32(tensor, values.shape).numpy(), values)
                if values.ndim == 2:
                    part = checkpoint.load_rows(tensor, values.shape, 5, 23)
                    assert np.array_equal((part if part.dtype == "f32" else _core.convert(part, "f32")).numpy(), values[5:23])


def test_split_files_are_one_model(tmp_path, small):
    path = tmp_path / "model.gguf"
    path.write_bytes(small[0])
    model = genkit.load(path, kv_type="f32")
    ids = model.tokenizer.encode(TEXTS[2])
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(small[0])
    first = split(folder / "model.gguf", 3)[0]
    (folder / "model.gguf").unlink()
    for name in (first, folder):
        found = genkit.load(name, kv_type="f32")
        assert np.array_equal(found.logits(ids), model.logits(ids)) and found.tokenizer.encode(TEXTS[2]) == ids
    assert examine(first)["disk_bytes"] == sum(part.stat().st_size for part in folder.iterdir())


def test_version_2_is_laid_out_alike(tmp_path, small):
    path = tmp_path / "model.gguf"
    path.write_bytes(small[0])
    expected = genkit.load(path, kv_type="f32").logits([3, 4, 5])
    path.write_bytes(small[0][:4] + b"\2" + small[0][5:])
    assert np.array_equal(genkit.load(path, kv_type="f32").logits([3, 4, 5]), expected)


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
    assert error <= {"f32": 0, "f16": 2e-3, "bf16": 1.5e-2}.get(kind, 5e-2)


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
        name = tensor_name(ARCHITECTURES["llama"], tensor.name)
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
    table[:, 208:] = rng.standard_normal((9, 1)).astype(np.float16).view(np.uint8)
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
        ours, theirs = (np.linalg.norm(decode("Q6_K", raw).dequantize() - values) for raw in (round_q6_k(values), theirs))
        print(f"{ours / theirs:.4f}")
        assert ours < theirs


TEXTS = ["Hello world", " two  spaces   three", "x = [i**2 for i in range(1234567)]\n\n\tif x:\r\n  y",
         "don't DON'T we'll 'tis", "", "a", FOREIGN.strip(), "1234567890 12 3", "<|eot_id|> and <s> inside\n"]


def folder_of(found, folder):
    """tokenizer_of's answer as a Tokenizer."""
    folder.mkdir()
    (folder / ("tokenizer.model" if found[0][:1] == b"\x12" else "tokenizer.json")).write_bytes(found[0])
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
        for parse in (False, True):
            ids = ours.encode(text, parse_special=parse)
            assert exact.encode(text, parse_special=parse) == ids
            assert exact.decode(ids) == ours.decode(ids)
            if not kind.startswith("llama2") or kind == "llama2_file" or not (text.startswith(" ") or (parse and "<s>" in text)):
                assert rebuilt.encode(text, parse_special=parse) == ids, text
                assert rebuilt.decode(ids) == ours.decode(ids)
    assert exact.special_tokens.items() <= ours.special_tokens.items() and exact.chat_template == ours.chat_template
    assert (rebuilt.bos_id, rebuilt.eos_id) == (exact.bos_id, exact.eos_id) == (ours.bos_id, ours.eos_id)


@pytest.mark.parametrize("kind", [*PRE, "gpt2", "llama2_file"])
def test_llama_cpp_gives_the_same_tokens(tmp_path, llama, kind):
    ours = Tokenizer(tokenizer_folder(kind, tmp_path / "tokenizer"))
    folder = tmp_path / "tokenizer"
    make_model(folder, dict(model_type="llama", vocab_size=ours.vocab_size + 3), np.random.default_rng(SEED))
    write_model(folder, tmp_path / "model.gguf", "f16")
    # llama.cpp puts no characters together (NFC), and has simpler expressions for upper and lower case.
    texts = [text for text in TEXTS if kind not in ("qwen2", "qwen35", "tekken", "gpt-4o", "tiny_aya") or text.isascii()]
    found, bos, eos = llama(llama_tokens, tmp_path / "model.gguf", texts)
    assert found == [ours.encode(text, parse_special=True) for text in texts]
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
    assert [t.decode() for t in found.keys["tokenizer.ggml.tokens"]] == tokens
    assert [t.decode() for t in found.keys["tokenizer.ggml.merges"]] == merges
