"""Safetensors headers that lie, by table and by mutation, against the safetensors library's own judgement."""

import json
import re
import time

import numpy as np
import pytest
from checkpoint_files import TWO, A, B, entry, file_of, refused
from safetensors import SafetensorError, safe_open

from genkit import errors
from genkit.checkpoints import open_checkpoint
from genkit.checkpoints.safetensors import SINGLE

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
    "length into the data": (file_of({"a": A}, b"\xff" * 24, length=len(json.dumps({"a": A})) + 4),
                             "header: not UTF-8"),
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
    "shape twice": (file_of(b'{"a":' + json.dumps(A).encode()[:-1] + b',"shape":[6]}}'),
                    "the key 'shape' is there twice"),
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
    "another dtype": (file_of({"a": entry("F16")}),
                      r"F16 of shape \[2, 3\] takes 12 bytes, data_offsets \[0, 24\] hold 24"),
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
    "hole": (file_of({"a": A, "b": entry(begin=28, end=52)}, TWO + b"1234"),
             "tensor 'b' leaves a hole after tensor 'a'"),
    "hole at the start": (file_of({"a": entry(begin=8, end=32)}, TWO[:32]),
                          "tensor 'a' leaves a hole after the header"),
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
    """What genkit takes the library takes, with the same bytes; what genkit refuses beyond that is in STRICTER."""
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
