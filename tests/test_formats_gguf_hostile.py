"""GGUF files that nobody should trust: cut, flipped, built by hand to lie. Only our own errors may come out."""

import struct

import numpy as np
import pytest
from checkpoint_files import refused
from gguf_files import mixed_file, read_keys, small_file, split, typed
from mutants import TIMES, Seed, hunt

from genkit import models
from genkit.checkpoints import gguf_container as container
from genkit.checkpoints.gguf import open_model
from genkit.errors import BadFileError, ResourceError
from genkit.text.gguf_vocab import WHOLE


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_file(tmp_path_factory.mktemp("small") / "model")


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


def test_mutants(tmp_path, small):
    data, head, _ = small
    dense = [(0, 1400), (head - 900, head)]  # keys of numbers, and tensors; between are strings
    refusals = hunt({"q4_0": Seed({"model.gguf": data}, open="model.gguf", dense={"model.gguf": dense})}, 2000, tmp_path)
    assert 400 < refusals["q4_0"] / TIMES < 2000


def test_mutants_of_every_type(tmp_path):
    """A model of all types of blocks, the same split in three, and one of experts."""
    path = tmp_path / "model.gguf"
    head = mixed_file(path)
    seeds = {"types": Seed({"model.gguf": path.read_bytes()}, open="model.gguf", dense={"model.gguf": [(0, head)]})}
    parts = {part.name: part.read_bytes() for part in split(path, 3)}
    seeds["split"] = Seed(parts, open=min(parts), dense={name: [(0, 1000)] for name in parts})
    head = mixed_file(path, experts=3)
    seeds["experts"] = Seed({"model.gguf": path.read_bytes()}, open="model.gguf", dense={"model.gguf": [(0, head)]})
    refusals = hunt(seeds, 800, tmp_path)
    assert all(80 < count / TIMES < 800 for count in refusals.values()), refusals


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
    "version 1": (built(version=1), "version 1"),
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
    "IQ2_XS": (built(tensors=tensor(shape=(256,), kind=17), count=1, data=bytes(960)), "IQ2_XS, which is not supported"),
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
    keys = typed(found.keys)
    tensors = {name: (entry.type, entry.shape) for name, entry in found.tensors.items()}
    change(keys, tensors)
    head, _, nbytes = container.head_bytes([(name, *value) for name, value in keys.items()],
                                           [(name, *value) for name, value in tensors.items()])
    out = tmp_path / "altered.gguf"
    out.write_bytes(head.ljust(nbytes, b"\0"))
    return out


CHANGES = {
    "expert_count is 'many'": lambda keys, tensors: keys.update({"llama.expert_count": (8, "many")}),
    "is not one for each expert": lambda keys, tensors: (keys.update({"llama.expert_count": (4, 8)}),
                                                         tensors.update({"blk.0.ffn_gate_exps.weight": ("F32", (4,))})),
    "more than 50000 matrices": lambda keys, tensors: (keys.update({"llama.expert_count": (4, 8)}),
                                                       tensors.update({"blk.0.ffn_gate_exps.weight": ("F32", (50001, 1, 1))})),
    "one number for all layers": lambda keys, tensors: keys.update({"llama.attention.head_count": (9, (4, [4, 2]))}),
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
    "tokenizer.ggml.model 'rwkv' is not supported":
        lambda keys, tensors: (keys.pop(WHOLE), keys.update({"tokenizer.ggml.model": (8, "rwkv")})),
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


def test_split_files(tmp_path, small):
    """What is said of each that is missing, another model's, or not the first."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small[0])
    first, *rest = split(path, 4)
    assert "part 2 of a split model; give its first file" in refused(open_model, rest[0])
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(first.read_bytes())
    assert "give it the name it had" in refused(open_model, renamed)
    data = rest[1].read_bytes()
    rest[1].unlink()
    assert "model-00003-of-00004.gguf not found" in refused(open_model, first)
    for other, words in ((rest[0].read_bytes(), "split.no and split.count are 1 and 4; expected 2 and 4"),
                         (data[:-1], "truncated"), (path.read_bytes(), "split.no and split.count are 0 and 1")):
        rest[1].write_bytes(other)
        assert words in refused(open_model, first)
    rest[1].write_bytes(data)
    open_model(first).checkpoint.close()
    for change, words in ((lambda i, keys: keys.update({"split.tensors.count": (4, 7)}), "split.tensors.count is 7"),
                          (lambda i, keys: keys.update({"split.count": (4, 2**31)}), "split model"),
                          (lambda i, keys: keys.update({"split.no": (8, "x")}), "split.no is 'x'"),
                          (lambda i, keys: keys.update({"split.count": (4, 1)}), "holds no tensors")):
        assert words in refused(open_model, split(path, 4, change)[0])
