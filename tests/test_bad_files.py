"""Files that lie: each ends in one line that names the file and what is wrong, and never in another exception."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import TWO, A, file_of, refused

import genkit
from genkit import errors
from genkit.checkpoints import open_checkpoint
from genkit.checkpoints.files import open_regular
from genkit.checkpoints.safetensors import INDEX, SINGLE

FIXTURES = Path(__file__).parent / "fixtures"

# --- shards and their index -----------------------------------------------------------------------------------------

def sharded(folder, weight_map=None, **more):
    for shard, name in (("model-1.safetensors", "a"), ("model-2.safetensors", "b")):
        (folder / shard).write_bytes(file_of({name: A}))
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"} if weight_map is None else weight_map
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map, **more}))


@pytest.mark.parametrize("file", [
    "../model-1.safetensors", "../../etc/x.safetensors", "/etc/x.safetensors", "sub/model-1.safetensors",
    "./model-1.safetensors", "a\0.safetensors", "..\\x.safetensors", "model-1.bin", "model-1.safetensors/", "..", "",
    ".", "model-1.safetensors\n", "\x1b[2J.safetensors", None, 1, [], {}, True, "x" * 10000])
def test_index_names_only_plain_files(tmp_path, file):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "model-1.safetensors").write_bytes(file_of({"a": A}))  # what "../" would reach
    sharded(folder, {"a": file, "b": "model-2.safetensors"})
    message = refused(open_checkpoint, folder)
    assert message.startswith(f"{folder}/{INDEX}: names ") and "expected the plain name" in message


@pytest.mark.parametrize("content, words", [
    ("{", "broken JSON"), ("[]", "expected a JSON object"), ("{}", "weight_map is null"),
    ('{"weight_map": []}', r"weight_map is []"), ('{"weight_map": {}}', "weight_map is an object"),
    ('{"weight_map": "model-1.safetensors"}', "weight_map is 'model-1.safetensors'"),
    ('{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}', "the key 'a' is there twice"),
    ('{"weight_map": NaN}', "weight_map is NaN")])
def test_broken_index(tmp_path, content, words):
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(content)
    message = refused(open_checkpoint, tmp_path)
    assert message.startswith(f"{tmp_path}/{INDEX}: ") and words in message


def test_missing_shards(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    assert refused(open_checkpoint, tmp_path) == (
        f"{tmp_path}/{INDEX}: names model-2.safetensors, not found in the folder; download the model again")
    (tmp_path / "model-1.safetensors").unlink()
    assert "names model-1.safetensors and 1 more, not found" in refused(open_checkpoint, tmp_path)
    (tmp_path / "model-1.safetensors").symlink_to("gone")
    sharded_two = file_of({"b": A})
    (tmp_path / "model-2.safetensors").write_bytes(sharded_two)
    assert "model-1.safetensors: a link to a file that is not there" in refused(open_checkpoint, tmp_path)


def test_shard_without_its_tensor(tmp_path):
    sharded(tmp_path, {"a": "model-1.safetensors", "b": "model-1.safetensors"})
    assert refused(open_checkpoint, tmp_path) == (
        f"{tmp_path}/model-1.safetensors: has no tensor 'b', which {INDEX} says it holds")


@pytest.mark.parametrize("cut", [1, 24, 25, 60])
def test_truncated_shard(tmp_path, cut):
    sharded(tmp_path)
    shard = tmp_path / "model-2.safetensors"
    os.truncate(shard, shard.stat().st_size - cut)
    message = refused(open_checkpoint, tmp_path)
    assert message.startswith(f"{shard}: truncated: ")


# --- what is no weights file at all -----------------------------------------------------------------------------------

class Bomb:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt", "weights.pkl",
                                  "pytorch_model-00001-of-00002.bin"])
def test_pickle_is_refused_by_name_and_never_loaded(tmp_path, name):
    import pickle

    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    shutil.copy(FIXTURES / "llama" / "config.json", tmp_path)
    for target in (tmp_path, tmp_path / name):
        message = refused(genkit.load, target)
        assert name in message and "pickle weights can run code" in message and "convert" in message
    assert not (tmp_path / "boom").exists()


def test_gguf_beside_a_configuration(tmp_path):
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    shutil.copy(FIXTURES / "llama" / "config.json", tmp_path)
    assert "model-Q4_K_M.gguf: no safetensors beside GGUF" in refused(genkit.load, tmp_path)
    assert "model-Q4_K_M.gguf: truncated" in refused(genkit.load, tmp_path / "model-Q4_K_M.gguf")


def test_folders_without_weights(tmp_path):
    assert refused(open_checkpoint, tmp_path) == f"{tmp_path}: no weights; looked for {SINGLE} and {INDEX}"
    (tmp_path / "adapter_model.safetensors").write_bytes(file_of({"a": A}))
    assert f"has adapter_model.safetensors, but no {INDEX} and no {SINGLE}" in refused(open_checkpoint, tmp_path)
    assert f"{tmp_path}/none: not found" in refused(open_checkpoint, tmp_path / "none")


# --- what is not a regular file ---------------------------------------------------------------------------------------

def test_only_regular_files(tmp_path):
    """None of these may block, which opening a pipe would."""
    made = {}
    for name in ("fifo", "folder", "device", "loop", "nowhere", "socket"):
        made[name] = tmp_path / name
        made[name].mkdir()
        path = made[name] / SINGLE
        if name == "fifo":
            os.mkfifo(path)
        elif name == "folder":
            path.mkdir()
        elif name == "device":
            path.symlink_to("/dev/zero")
        elif name == "loop":
            path.symlink_to(SINGLE)
        elif name == "nowhere":
            path.symlink_to("gone.safetensors")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(made["socket"])  # a socket's path is short
        try:
            listener.bind(SINGLE)
        finally:
            os.chdir(here)
        words = {"fifo": "is a named pipe; a regular file is needed", "folder": "is a folder; a regular file is needed",
                 "device": "is a device; a regular file is needed", "loop": "a link that leads back to itself",
                 "nowhere": "a link to a file that is not there", "socket": "is a socket; a regular file is needed"}
        for name, folder in made.items():
            assert refused(open_checkpoint, folder).startswith(f"{folder}/{SINGLE}: {words[name]}")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", SINGLE, "tokenizer.json"])
def test_pipes_in_a_model_folder(tmp_path, file):
    folder = copy_of("llama", tmp_path)
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    assert refused(genkit.load, folder).startswith(f"{folder}/{file}: is a named pipe")


def test_links_as_in_the_hub_cache_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "0123").write_bytes(file_of({"a": A}))
    (tmp_path / "snapshot" / SINGLE).symlink_to("../blobs/0123")
    with open_checkpoint(tmp_path / "snapshot") as checkpoint:
        assert bytes(checkpoint.load("a", (2, 3)).bytes()) == TWO[:24]


def test_unreadable_file():
    """As another user where the tests run as root, whom no permission stops."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / SINGLE).write_bytes(file_of({"a": A}))
        (folder / SINGLE).chmod(0)
        folder.chmod(0o755)
        code = textwrap.dedent("""
            import os, sys
            from genkit.checkpoints import open_checkpoint
            from genkit.errors import BadFileError
            if os.getuid() == 0:
                os.setgroups([]); os.setgid(65534); os.setuid(65534)
            try:
                open_checkpoint(sys.argv[1])
            except BadFileError as error:
                print(error)
            """)
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, timeout=60)
        assert done.stdout == f"{name}/{SINGLE}: cannot be read: Permission denied\n", done.stderr


def test_names_no_file_can_have(tmp_path):
    assert "no such name" in refused(open_regular, Path("a\0b"))
    assert "File name too long" in refused(open_regular, tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(open_regular, tmp_path / "file" / SINGLE)


def test_too_many_open_files_is_the_machines_fault(tmp_path):
    for shard in range(80):
        (tmp_path / f"m{shard}.safetensors").write_bytes(file_of({f"t{shard}": A}))
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {f"t{s}": f"m{s}.safetensors" for s in range(80)}}))
    code = textwrap.dedent("""
        import resource, sys
        import safetensors, numpy
        from genkit.checkpoints import open_checkpoint
        from genkit.errors import ResourceError
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        try:
            open_checkpoint(sys.argv[1])
        except ResourceError as error:
            print(error)
        """)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "Too many open files" in done.stdout and done.stdout.count("\n") == 1, done.stderr


# --- whole models ---------------------------------------------------------------------------------------------------

def copy_of(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    for file in ("config.json", SINGLE):
        shutil.copy(FIXTURES / name / file, folder)
    return folder


VALUES = {"missing": None, "null": "null", "-1": "-1", "0": "0", "2**31": str(2**31), "2**63": str(2**63), "NaN": "NaN",
          "Infinity": "Infinity", "5000 digits": "7" * 5000, "x": '"x"', "[]": "[]", "true": "true", "0.5": "0.5"}
# The keys that decide what is computed, by architecture: their absence is an error or not, and the values above that
# mean something.
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "model_type")
NEVER: tuple[str, ...] = ()
MAY_LACK = ("missing", "null")
KEYS = {
    "llama": {**dict.fromkeys(SIZES, NEVER), "num_key_value_heads": MAY_LACK, "head_dim": MAY_LACK,
              "max_position_embeddings": MAY_LACK, "rms_norm_eps": (*MAY_LACK, "0", "0.5"), "hidden_act": MAY_LACK,
              "rope_parameters": MAY_LACK, "attention_bias": MAY_LACK, "mlp_bias": MAY_LACK,
              "tie_word_embeddings": (*MAY_LACK, "true"), "eos_token_id": (*MAY_LACK, "0", "[]"),
              "bos_token_id": (*MAY_LACK, "0", "-1"), "pad_token_id": (*MAY_LACK, "0", "-1")},
    "gpt2": {**dict.fromkeys(("n_embd", "n_layer", "n_head", "vocab_size", "model_type"), NEVER), "n_inner": MAY_LACK,
             "n_positions": MAY_LACK, "layer_norm_epsilon": (*MAY_LACK, "0", "0.5"), "activation_function": MAY_LACK,
             "scale_attn_weights": (*MAY_LACK, "true"), "scale_attn_by_inverse_layer_idx": (*MAY_LACK, "true"),
             "tie_word_embeddings": (*MAY_LACK, "true"), "add_cross_attention": MAY_LACK},
    "qwen2": {"num_key_value_heads": MAY_LACK, "use_sliding_window": (*MAY_LACK, "true"), "layer_types": MAY_LACK,
              "rope_parameters": MAY_LACK, "max_position_embeddings": MAY_LACK,
              "tie_word_embeddings": (*MAY_LACK, "true")},
    "qwen3": {**dict.fromkeys(SIZES, NEVER), "num_key_value_heads": MAY_LACK, "head_dim": MAY_LACK,
              "rms_norm_eps": (*MAY_LACK, "0", "0.5")},
    "mistral": {"sliding_window": MAY_LACK, "num_hidden_layers": NEVER},
}


@pytest.mark.parametrize("architecture, key", [(name, key) for name, keys in KEYS.items() for key in keys])
def test_config_values(tmp_path, architecture, key):
    """A wrong value is refused by its key; a missing one is refused by its key, or stands for a default."""
    folder = copy_of(architecture, tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop(key, None)
    for name, value in VALUES.items():
        text = json.dumps(config)
        path.write_text(text if value is None else f'{text[:-1]}, "{key}": {value}}}')
        try:
            genkit.load(folder)
        except errors.BadFileError as error:
            message = str(error)
            assert message.isprintable() and len(message) < 700
            # A default, or a flag, that does not fit the weights is told by the tensor.
            by_tensor = name in (*MAY_LACK, "true") and KEYS[architecture][key] is not NEVER and "tensor '" in message
            named = "architecture 'x' is not supported" if (key, name) == ("model_type", "x") else key
            assert message.startswith(f"{path}: ") and named in message or by_tensor, (name, message)
        else:
            assert name in KEYS[architecture][key], f"{key} {name} was accepted"


@pytest.mark.parametrize("key", ["rope_theta", "factor", "low_freq_factor", "high_freq_factor", "rope_type",
                                 "original_max_position_embeddings", "partial_rotary_factor"])
def test_rope_values(tmp_path, key):
    folder = copy_of("llama", tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    inner = config.pop("rope_parameters")
    inner.pop(key, None)
    for name, value in VALUES.items():
        rope = json.dumps(inner) if value is None else f'{json.dumps(inner)[:-1]}, "{key}": {value}}}'
        path.write_text(f'{json.dumps(config)[:-1]}, "rope_parameters": {rope}}}')
        try:
            genkit.load(folder)
        except errors.BadFileError as error:
            assert str(error).startswith(f"{path}: ") and key in str(error), (name, error)
        else:
            assert (name in MAY_LACK and key not in ("factor", "low_freq_factor", "high_freq_factor")) or (
                name, key) in {("2**31", "rope_theta"), ("0.5", "factor"), ("0.5", "low_freq_factor"),
                               ("0.5", "partial_rotary_factor"), 
                               ("2**31", "original_max_position_embeddings")}, (name, key)


@pytest.mark.parametrize("content, words", [
    (b"", "empty"), (b"{", "broken JSON"), (b"\xff\xfe{}", "not UTF-8"), (b"[]", "expected a JSON object"),
    (b'{"a":' * 100000, "nested more than 64 deep"),
    (b'{"model_type": "llama", "model_type": "gpt2"}', "is there twice"),
    (b'{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}',
     "architecture 'mamba2' is not supported; known: "),
    (b" " * (16 * 2**20 + 1), "bytes; at most 16777216 are read")])
def test_broken_config(tmp_path, content, words):
    folder = copy_of("llama", tmp_path)
    (folder / "config.json").write_bytes(content)
    message = refused(genkit.load, folder)
    assert message.startswith(f"{folder}/config.json: ") and words in message


def test_missing_pieces_of_a_model(tmp_path):
    folder = copy_of("gpt2", tmp_path)
    (folder / SINGLE).unlink()
    assert refused(genkit.load, folder) == f"{folder}: no weights; looked for {SINGLE} and {INDEX}"
    (folder / "config.json").unlink()
    assert refused(genkit.load, folder) == f"{folder}/config.json: not found"
    shutil.rmtree(folder)
    assert f"{folder}: no such folder" in refused(genkit.load, folder)


def test_wrong_shapes_and_types_in_a_model(tmp_path):
    """A header that is right in itself and not what config.json describes."""
    folder = copy_of("llama", tmp_path)
    path = folder / SINGLE
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    header = json.loads(good[8:start])
    name = "model.layers.1.mlp.down_proj.weight"
    rows, columns = header[name]["shape"]
    for change, words in [({"shape": [columns, rows]}, name), ({"shape": [rows * columns]}, name),
                          ({"dtype": "I16"}, f"tensor '{name}' has dtype I16")]:
        path.write_bytes(file_of({**header, name: {**header[name], **change}}, good[start:]))
        assert words in refused(genkit.load, folder)
    renamed = {("lm_tail.weight" if key == "lm_head.weight" else key): value for key, value in header.items()}
    path.write_bytes(file_of(renamed, good[start:]))
    assert "tensor 'lm_head.weight'" in refused(genkit.load, folder)


def test_mutated_models_load_or_say_why(tmp_path):
    """Random edits anywhere in a model folder's files: a model, or one line."""
    rng = np.random.default_rng(5)
    folder = copy_of("qwen3", tmp_path)
    originals = {file: (folder / file).read_bytes() for file in ("config.json", SINGLE)}
    header_end = 8 + int.from_bytes(originals[SINGLE][:8], "little")
    loaded = failed = 0
    for _ in range(400):
        file = ("config.json", SINGLE)[int(rng.integers(0, 2))]
        content = bytearray(originals[file])
        limit = header_end if file == SINGLE else len(content)
        for _ in range(int(rng.integers(1, 5))):
            content[int(rng.integers(0, limit))] = int(rng.integers(32, 127)) if rng.integers(0, 4) else int(
                rng.integers(0, 256))
        (folder / file).write_bytes(content)
        try:
            model = genkit.load(folder)
        except errors.Error as error:
            assert str(error).isprintable() and len(str(error)) < 700
            failed += 1
        else:
            assert np.isfinite(model.logits([1, 2, 3])).all()
            loaded += 1
        (folder / file).write_bytes(originals[file])
    assert loaded > 10 and failed > 100


def test_tokenizer_of_another_model(tmp_path):
    """The largest id may be the embedding's last row; one more and the model is refused before it writes nonsense."""
    from tokenizers import Tokenizer, models

    folder = copy_of("llama", tmp_path)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    Tokenizer(models.WordLevel({"a": 0, "b": rows - 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
    assert genkit.load(folder).tokenizer.encode("b") == [rows - 1]
    Tokenizer(models.WordLevel({"a": 0, "b": rows}, unk_token="a")).save(str(folder / "tokenizer.json"))
    assert refused(genkit.load, folder) == (
        f"{folder}/tokenizer.json: has token id {rows}, but the embedding has {rows} rows (vocab_size in config.json); "
        f"tokenizer and weights are not of one model")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[:len(text) // 2])
    assert refused(genkit.load, folder).startswith(f"{folder}/tokenizer.json: ")


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poisoned_weights_are_an_error_and_no_token(tmp_path, poison):
    folder = copy_of("gpt2", tmp_path)
    path = folder / SINGLE
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:start])["transformer.h.0.mlp.c_fc.weight"]
    at = start + entry["data_offsets"][0]
    wide = np.float32(poison).tobytes()
    value = {"F32": wide, "BF16": wide[2:], "F16": np.float16(poison).tobytes()}[entry["dtype"]]
    content[at:at + len(value)] = value
    path.write_bytes(content)
    model = genkit.load(folder)
    message = refused(lambda: model.generate([1, 2, 3], max_tokens=2))
    assert "not finite" in message
