"""Files that lie: each ends in one line that names the file and what is wrong, and never in another exception."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

import genkit
from genkit import errors
from genkit.checkpoints import open_checkpoint
from genkit.checkpoints.files import open_regular
from genkit.checkpoints.safetensors import INDEX, SINGLE

FIXTURES = Path(__file__).parent / "fixtures"


def refused(call, *arguments, kind=errors.BadFileError):
    """The message of the error that must come: of this kind, one printable line."""
    with pytest.raises(kind) as error:
        call(*arguments)
    message = str(error.value)
    assert error.value.exit_code == {errors.BadFileError: 3, errors.ResourceError: 4}[kind]
    assert message.isprintable() and 10 < len(message) < 700, message
    return message


# --- the safetensors header -----------------------------------------------------------------------------------------

def entry(dtype="F32", shape=(2, 3), begin=0, end=24, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def file_of(header, data=bytes(range(24)), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


A, B = entry(end=24), entry(begin=24, end=48)
TWO = bytes(range(48))

LIES = {
    # the length
    "empty file": (b"", "only 0 bytes"),
    "seven bytes": (b"\0" * 7, "only 7 bytes"),
    "length zero": (file_of(b""), "does not begin with"),
    "length past the end": (file_of({"a": A}, b"", length=1000), "truncated: the header should be 1000 bytes"),
    "length one past the end": (file_of(b"{}", b"", length=3), "truncated: the header should be 3 bytes, 2 are there"),
    "length of 2**63": (file_of({"a": A}, length=2**63), "claims a header of 9223372036854775808 bytes"),
    "length of 2**64 - 1": (file_of({"a": A}, length=2**64 - 1), "claims a header of 18446744073709551615 bytes"),
    "length over 100 MB": (file_of({"a": A}, length=100_000_001), "claims a header of 100000001 bytes"),
    "length too short": (file_of({"a": A}, length=20), "header: broken JSON"),
    "length into the data": (file_of({"a": A}, b"\xff" * 24, length=len(json.dumps({"a": A})) + 4), "header: not UTF-8"),
    # the text
    "not a safetensors file": (b"PK\x03\x04" + bytes(100), "claims a header|truncated"),
    "an HTML page": (b"<!DOCTYPE html><html>Access denied</html>", "not a safetensors file"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a safetensors file"),
    "leading space": (file_of(b" " + json.dumps({"a": A}).encode()), "does not begin with '{'"),
    "byte order mark": (file_of(b"\xef\xbb\xbf" + json.dumps({"a": A}).encode()), "does not begin with '{'"),
    "a list": (file_of(b"[1]"), "does not begin with '{'"),
    "not UTF-8": (file_of(json.dumps({"a": A}).encode().replace(b"a", b"\xff", 1)), "not UTF-8"),
    "broken JSON": (file_of(b'{"a":'), "header: broken JSON"),
    "tensor twice": (file_of(b'{"a":' + json.dumps(A).encode() + b',"a":' + json.dumps(A).encode() + b"}"),
                     "the key 'a' is there twice"),
    "shape twice": (file_of(b'{"a":' + json.dumps(A).encode()[:-1] + b',"shape":[6]}}'), "the key 'shape' is there twice"),
    "nested deep": (file_of(b'{"a":' + b'{"x":' * 5000 + b"1" + b"}" * 5000 + b"}"), "nested more than 64 deep"),
    "lists nested deep": (file_of(b'{"a":' + b"[" * 50000 + b"]" * 50000 + b"}"), "nested more than 64 deep"),
    "too many values": (file_of(b'{"a":[' + b"[]," * 2_000_001 + b"[]]}"), "more than 1000000 tensors"),
    # the entries
    "entry is null": (file_of({"a": None}), "tensor 'a': header holds null"),
    "entry is a list": (file_of({"a": [1]}), r"tensor 'a': header holds \[1\]"),
    "no dtype": (file_of({"a": {"shape": [6], "data_offsets": [0, 24]}}), "tensor 'a': header has no dtype"),
    "no shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 24]}}), "header has no shape"),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [6]}}), "header has no data_offsets"),
    "metadata is a list": (file_of({"__metadata__": ["pt"], "a": A}), "__metadata__ is not an object of strings"),
    "metadata of numbers": (file_of({"__metadata__": {"n": 1}, "a": A}), "__metadata__ is not an object of strings"),
    # the dtype
    "unknown dtype": (file_of({"a": entry("F31")}), "tensor 'a': dtype 'F31' is unknown"),
    "lower-case dtype": (file_of({"a": entry("f32")}), "dtype 'f32' is unknown"),
    "dtype is a number": (file_of({"a": entry(32)}), "dtype 32 is unknown"),
    "dtype is a list": (file_of({"a": entry(["F32"])}), r"dtype \['F32'\] is unknown"),
    "another dtype": (file_of({"a": entry("F16")}), r"F16 of shape \[2, 3\] takes 12 bytes, data_offsets \[0, 24\] hold 24"),
    "a dtype of half bytes": (file_of({"a": entry("F4", (3,), 0, 2)}, b"ab"), r"F4 of shape \[3\] takes 12 bits"),
    # the shape
    "shape too large": (file_of({"a": entry(shape=(2, 4))}), "takes 32 bytes, .* hold 24"),
    "shape too small": (file_of({"a": entry(shape=(2, 2))}), "takes 16 bytes, .* hold 24"),
    "shape empty": (file_of({"a": entry(shape=())}), "takes 4 bytes, .* hold 24"),
    "negative size": (file_of({"a": entry(shape=(-2, -3))}), r"shape \[-2, -3\] is not a list"),
    "fractional size": (file_of({"a": entry(shape=(2.0, 3))}), r"shape \[2.0, 3\] is not a list"),
    "size as text": (file_of({"a": entry(shape=("2", 3))}), "is not a list of at most 32 sizes"),
    "size true": (file_of({"a": entry(shape=(True, 6))}), r"shape \[true, 6\] is not a list"),
    "size null": (file_of({"a": entry(shape=(None, 6))}), r"shape \[null, 6\] is not a list"),
    "shape is a number": (file_of({"a": {**A, "shape": 6}}), "shape 6 is not a list"),
    "33 sizes": (file_of({"a": entry(shape=[1] * 32 + [6])}), "is not a list of at most 32 sizes"),
    "product wraps to 6": (file_of({"a": entry(shape=(2**32, 2**32, 6))}), "is beyond any memory"),
    "product wraps to 0": (file_of({"a": entry(shape=(2**62, 4), end=0)}, b""), "is beyond any memory"),
    "bytes wrap to 24": (file_of({"a": entry(shape=(2**62 + 6,))}), "is beyond any memory"),
    "size of 2**64": (file_of({"a": entry(shape=(2**64,))}), "is not a list of at most 32 sizes"),
    "size of 5000 digits": (file_of(json.dumps({"a": A}).encode().replace(b"[2, 3]", b"[" + b"9" * 5000 + b"]")),
                            r"a.shape\[0\] is a number of 5000 digits"),
    "size NaN": (file_of(json.dumps({"a": A}).encode().replace(b"[2, 3]", b"[NaN]")), r"a.shape\[0\] is NaN"),
    "size 1e999": (file_of(json.dumps({"a": A}).encode().replace(b"[2, 3]", b"[1e999]")), r"a.shape\[0\] is 1e999"),
    # the offsets
    "one offset": (file_of({"a": {**A, "data_offsets": [24]}}), r"data_offsets \[24\] are not two byte positions"),
    "three offsets": (file_of({"a": {**A, "data_offsets": [0, 24, 48]}}), "are not two byte positions"),
    "negative offset": (file_of({"a": entry(begin=-24, end=0)}), "are not two byte positions"),
    "offset as text": (file_of({"a": {**A, "data_offsets": ["0", "24"]}}), "are not two byte positions"),
    "fractional offset": (file_of({"a": {**A, "data_offsets": [0, 24.0]}}), "are not two byte positions"),
    "offset of 2**64": (file_of({"a": entry(begin=2**64 - 24, end=2**64)}), "are not two byte positions"),
    "offsets reversed": (file_of({"a": entry(begin=24, end=0)}), r"data_offsets \[24, 0\] end before they begin"),
    "overlap": (file_of({"a": A, "b": entry(begin=20, end=44)}, TWO[:44]), "tensor 'b' overlaps tensor 'a'"),
    "the same bytes twice": (file_of({"a": A, "b": A}), "tensor 'b' overlaps tensor 'a'"),
    "one inside the other": (file_of({"a": A, "b": entry("U8", (4,), 8, 12)}), "tensor 'b' overlaps tensor 'a'"),
    "hole": (file_of({"a": A, "b": entry(begin=28, end=52)}, TWO + b"1234"), "tensor 'b' leaves a hole after tensor 'a'"),
    "hole at the start": (file_of({"a": entry(begin=8, end=32)}, TWO[:32]), "tensor 'a' leaves a hole after the header"),
    "past the end": (file_of({"a": A, "b": B}, TWO[:47]), "truncated: tensor 'b' should end at byte .* ends at"),
    "data cut in the first": (file_of({"a": A, "b": B}, TWO[:3]), "truncated: tensor 'a' should end at byte"),
    "no data": (file_of({"a": A, "b": B}, b""), "truncated: tensor 'a'"),
    "trailing byte": (file_of({"a": A}, TWO[:25]), "1 bytes after the last tensor"),
    "data and no tensors": (file_of({}, b"1234"), "4 bytes after the last tensor"),
    "empty tensor far away": (file_of({"a": A, "b": entry(shape=(0,), begin=48, end=48)}), "truncated: tensor 'b'"),
    "empty tensor in the middle": (file_of({"a": A, "b": entry(shape=(0,), begin=8, end=8)}), "overlaps"),
    # names that attack the terminal
    "a name with escapes": (file_of({"a\x1b[2J\n\u202e": entry("F31")}), r"tensor 'a\\x1b\[2J\\n\\u202e': dtype"),
    "a name of a megabyte": (file_of({"n" * 10**6: entry("F31")}), r"tensor 'nnn.*\.\.\.: dtype 'F31' is unknown"),
    "a lone surrogate": (file_of(b'{"\\ud800": {}}'), r"tensor '\\ud800': header has no dtype"),
    "no tensors": (file_of({}, b""), "the weights hold no tensors"),
    "metadata alone": (file_of({"__metadata__": {"format": "pt"}}, b""), "the weights hold no tensors"),
}


@pytest.mark.parametrize("name", LIES)
def test_header_that_lies(tmp_path, name):
    content, words = LIES[name]
    (tmp_path / SINGLE).write_bytes(content)
    message = refused(open_checkpoint, tmp_path)
    assert message.startswith(f"{tmp_path}{'' if 'hold no tensors' in words else '/' + SINGLE}: ")
    assert re.search(words, message), message


def test_the_table_starts_from_good_files(tmp_path):
    for header, data in [({"a": A}, TWO[:24]), ({"a": A, "b": B}, TWO), ({"b": B, "a": A}, TWO),
                         ({"a": A, "b": entry(shape=(0, 5), begin=24, end=24)}, TWO[:24]),
                         ({"__metadata__": {"format": "pt"}, "a": A}, TWO[:24])]:
        (tmp_path / SINGLE).write_bytes(file_of(header, data))
        with open_checkpoint(tmp_path) as checkpoint:
            assert bytes(checkpoint.load("a", (2, 3)).bytes()) == TWO[:24]


def library_opens(path):
    """name -> (dtype, shape, bytes) if the safetensors library takes the file, else None."""
    try:
        with safe_open(path, "numpy") as file:
            result = {}
            for name in file.keys():
                piece = file.get_slice(name)
                result[name] = (piece.get_dtype(), tuple(piece.get_shape()))
        raw = path.read_bytes()
        header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
        start = 8 + int.from_bytes(raw[:8], "little")
        return {name: (*value, raw[start + header[name]["data_offsets"][0]:start + header[name]["data_offsets"][1]])
                for name, value in result.items()}
    except SafetensorError:
        return None


def genkit_opens(folder):
    """The same by genkit, or its message. Anything but a genkit error fails the test."""
    begin = time.perf_counter()
    try:
        with open_checkpoint(folder) as checkpoint:
            result = {}
            for name, info in checkpoint.tensors.items():
                if info.dtype in ("f32", "f16", "bf16"):
                    data = bytes(checkpoint.load(name, info.shape).bytes()) if info.nbytes else b""
                else:
                    raw = info.file.read_bytes()
                    data = raw[info.offset:info.offset + info.nbytes]
                result[name] = (info.dtype.upper(), info.shape, data)
            return result
    except errors.BadFileError as error:
        return str(error)
    finally:
        assert time.perf_counter() - begin < 2


# What genkit refuses and the library takes. Every other disagreement is a bug.
STRICTER = ("is there twice", "does not begin with '{'", "the weights hold no tensors", "at most 32 sizes",
            "beyond any memory", "not two byte positions", "nested more than 64")


def seed_file(rng):
    """A small file with the things a header can hold: types, an empty tensor, a scalar, metadata, padding."""
    tensors, data = {"__metadata__": {"format": "pt"}}, b""
    for name, dtype, shape in [("a", "F32", [2, 3]), ("b.weight", "BF16", [3, 2, 1]), ("e", "F16", [0, 4]),
                               ("s", "F32", []), ("n", "I64", [2]), ("k", "BOOL", [5])]:
        size = int(np.prod(shape)) * {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "BOOL": 1}[dtype]
        tensors[name] = entry(dtype, shape, len(data), len(data) + size)
        data += rng.bytes(size)
    text = json.dumps(tensors, separators=(",", ":")).encode()
    return file_of(text + b" " * (-len(text) % 8), data)


def mutants(rng, seed, count):
    """Every prefix, every bit of the header turned, then random edits, among them such as keep the JSON whole."""
    header_end = 8 + int.from_bytes(seed[:8], "little")
    for length in range(len(seed)):
        yield seed[:length]
    for bit in range(8 * header_end):
        turned = bytearray(seed)
        turned[bit // 8] ^= 1 << bit % 8
        yield bytes(turned)
    words = [b'"F32"', b'"F16"', b'"I64"', b'"F4"', b'"shape"', b'"dtype"', b"[]", b"{}", b"0", b"1", b"-1", b"1e3",
             b"18446744073709551615", b"9223372036854775808", b"null", b"true", b",", b" ", b'"a"', b"NaN"]
    for _ in range(count):
        edited = bytearray(seed)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, min(header_end + 8, len(edited)) or 1))
            kind = int(rng.integers(0, 6))
            if kind == 0:
                edited[at:at + 1] = rng.bytes(1)
            elif kind == 1:
                del edited[at:at + int(rng.integers(1, 20))]
            elif kind == 2:
                edited[at:at] = words[int(rng.integers(0, len(words)))]
            elif kind == 3:  # a digit for a digit
                digits = [i for i in range(8, min(header_end, len(edited))) if 48 <= edited[i] < 58]
                if digits:
                    edited[digits[int(rng.integers(0, len(digits)))]] = 48 + int(rng.integers(0, 10))
            elif kind == 4:  # a piece of the header twice
                edited[at:at] = edited[at:at + int(rng.integers(1, 40))]
            else:  # a whole entry twice
                begin = edited.find(b'"', at)
                if edited[begin - 1:begin] == b"," and b"}," in edited[begin:]:
                    edited[begin:begin] = edited[begin:edited.find(b"},", begin) + 2]
        if rng.integers(0, 2) and len(edited) > 8:  # the length field made right again
            edited[:8] = max(0, len(edited) - (len(seed) - header_end) - 8).to_bytes(8, "little")
        yield bytes(edited)


def test_mutants_agree_with_the_safetensors_library(tmp_path):
    """What genkit takes the library takes, with the same tensors and bytes; what it refuses beyond that is in a list."""
    rng = np.random.default_rng(0)
    path = tmp_path / SINGLE
    counts = {"taken": 0, "refused": 0, "stricter": 0}
    seed = seed_file(rng)
    path.write_bytes(seed)
    assert genkit_opens(tmp_path) == library_opens(path) and len(library_opens(path)) == 6
    for number, content in enumerate(mutants(rng, seed, 3000)):
        path.write_bytes(content)
        here, there = genkit_opens(tmp_path), library_opens(path)
        if isinstance(here, dict):
            assert here == there, (number, content)
            counts["taken"] += 1
        elif there is None:
            counts["refused"] += 1
        else:
            assert any(words in here for words in STRICTER), (number, here, content)
            counts["stricter"] += 1
        if isinstance(here, str):
            assert here.isprintable() and len(here) < 700
    # Each kind of outcome is met, or the mutants are too dull or too wild to say anything.
    assert counts["taken"] > 50 and counts["refused"] > 5000 and counts["stricter"] > 0, counts


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


def test_gguf_is_said_to_be_unsupported(tmp_path):
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    shutil.copy(FIXTURES / "llama" / "config.json", tmp_path)
    for target in (tmp_path, tmp_path / "model-Q4_K_M.gguf"):
        message = refused(genkit.load, target)
        assert "model-Q4_K_M.gguf: GGUF is not supported yet" in message


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
              "rope_parameters": MAY_LACK, "max_position_embeddings": MAY_LACK, "tie_word_embeddings": (*MAY_LACK, "true")},
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
                               ("0.5", "partial_rotary_factor"), ("2**31", "original_max_position_embeddings")}, (name, key)


@pytest.mark.parametrize("content, words", [
    (b"", "empty"), (b"{", "broken JSON"), (b"\xff\xfe{}", "not UTF-8"), (b"[]", "expected a JSON object"),
    (b'{"a":' * 100000, "nested more than 64 deep"), (b'{"model_type": "llama", "model_type": "gpt2"}', "is there twice"),
    (b'{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}', "architecture 'mamba2' is not supported; known: "),
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
