"""tokenizer.model: what the file may say, the JSON files beside it, and what nobody should trust."""

import io
import json
import struct
from pathlib import Path

import pytest
from checkpoint_files import refused
from mutants import Seed, hunt
from text_folders import make_folder

from genkit.errors import BadFileError
from genkit.text import Tokenizer
from genkit.text.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, SentencePiece, parse

PIECES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), *((f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)),
          ("ab", -1.0, NORMAL), ("▁a", -2.0, NORMAL), ("▁", -3.0, NORMAL), ("a", -4.0, NORMAL), ("b", -5.0, NORMAL), ("▁ab", -0.5, NORMAL),
          ("<t>", 0.0, USER_DEFINED), ("bb", -6.0, NORMAL)]


def model(pieces=PIECES, **settings):
    texts, scores, types = zip(*pieces)
    settings = dict(byte_fallback=True) | settings
    return SentencePiece(Path("x"), list(texts), list(scores), list(types), {"unk": 0, "bos": 1, "eos": 2}, **settings)


def folder_with(tmp_path, data=None, **files):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "tokenizer.model").write_bytes(model().to_bytes() if data is None else data)
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def names(tokenizer, ids):
    return [tokenizer._tokenizer.id_to_token(i) for i in ids]


def test_what_is_written_is_read():
    for settings in ({}, dict(unigram=True, add_dummy_prefix=False, remove_extra_whitespaces=True), dict(whitespace_as_suffix=True)):
        again = parse(model(**settings).to_bytes(), Path("x"))
        assert again == model(**settings)


def test_a_small_model_by_hand(tmp_path):
    tokenizer = Tokenizer(folder_with(tmp_path))
    assert names(tokenizer, tokenizer.encode("ab abb é")) == ["<s>", "▁ab", "▁ab", "b", "▁", "<0xC3>", "<0xA9>"]
    assert names(tokenizer, tokenizer.encode("<s>a</s>", False)) == ["▁", *(f"<0x{b:02X}>" for b in b"<s>"), "a",
                                                                     *(f"<0x{b:02X}>" for b in b"</s>")]
    assert names(tokenizer, tokenizer.encode("<s>a</s> a", False, parse_special=True)) == ["<s>", "a", "</s>", "▁a"]
    assert names(tokenizer, tokenizer.encode("a<t>a", False)) == ["▁a", "<t>", "a"]
    assert tokenizer.decode(tokenizer.encode(" ab é<t>")) == " ab é<t>"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 267)
    assert tokenizer.special_ids == {0, 1, 2} and tokenizer.path.name == "tokenizer.model"
    assert tokenizer.token(tokenizer.id_of("▁ab")) == " ab"


def test_flags_beside_it(tmp_path):
    def ids(**config):
        tokenizer = Tokenizer(folder_with(tmp_path, tokenizer_config=config))
        return names(tokenizer, tokenizer.encode("ab</s>ab", parse_special=True))

    assert ids() == ["<s>", "▁ab", "</s>", "ab"]
    assert ids(legacy=True) == ["<s>", "▁ab", "</s>", "▁ab"]
    assert ids(add_prefix_space=False) == ["<s>", "ab", "</s>", "ab"]
    assert ids(add_bos_token=False, add_eos_token=True) == ["▁ab", "</s>", "ab", "</s>"]


def test_added_tokens(tmp_path):
    flags = {"lstrip": False, "rstrip": True, "normalized": False, "special": True}
    config = {"added_tokens_decoder": {"267": {"content": "<|end|>", **flags}, "268": {"content": "<tool>", **flags, "special": False},
                                       "265": {"content": "<new>", "special": False}}, "pad_token": "<pad>"}
    tokenizer = Tokenizer(folder_with(tmp_path, tokenizer_config=config, added_tokens={"<old>": 270}))
    text = "a<tool>  a<|end|>  a<new><old><t>"
    assert names(tokenizer, tokenizer.encode(text, False, parse_special=True)) == [
        "▁a", "<tool>", "a", "<|end|>", "a", "<new>", "<old>", *(f"<0x{b:02X}>" for b in b"<t>")]
    assert tokenizer.encode("<|end|>", False) != [267] and tokenizer.encode("<|end|>", False, parse_special=True) == [267]
    assert tokenizer.id_of("<pad>") == 271 and tokenizer.vocab_size == 272
    for i, (files, words) in enumerate([
            (dict(added_tokens={"a": 5}), "token 'a' has id 5 here and 262 elsewhere"),
            (dict(added_tokens={"x": -1}), "token 'x' has id -1; expected one from 0 to"),
            (dict(added_tokens={"x": 1 << 30}), "has id 1073741824; expected"), (dict(added_tokens={"": 300}), "no text that could be"),
            (dict(added_tokens={"\ud800": 300}), "no text that could be"),
            (dict(tokenizer_config={"added_tokens_decoder": {"x": {"content": "y"}}}), "token 'y' has id 'x'; expected")]):
        assert words in refused(Tokenizer, folder_with(tmp_path / str(i), **files))


def test_gguf_keeps_it(tmp_path):
    import os

    from genkit.checkpoints import gguf_container as container
    from genkit.text.gguf_vocab import tokenizer_of, vocabulary_keys

    ours = Tokenizer(folder_with(tmp_path, tokenizer_config={"legacy": True, "chat_template": {"default": "a", "tool_use": "b"}}))
    keys, notes = vocabulary_keys(ours, 300)
    head, _, nbytes = container.head_bytes([("general.architecture", 8, "llama"), *keys], [("token_embd.weight", "F32", (1,))])
    (tmp_path / "a.gguf").write_bytes(head.ljust(nbytes, b"\0"))
    descriptor = os.open(tmp_path / "a.gguf", os.O_RDONLY)
    again = Tokenizer(tmp_path / "a.gguf", *tokenizer_of(container.read_container(tmp_path / "a.gguf", descriptor, nbytes)))
    os.close(descriptor)
    for text in ("ab  ab", "a<t>b</s> b", "é<0x41>"):
        for parse_special in (False, True):
            assert again.encode(text, parse_special=parse_special) == ours.encode(text, parse_special=parse_special)
    assert notes == [] and again.chat_templates == ours.chat_templates and (again.bos_id, again.eos_id) == (1, 2)


def field(number, wire, payload):
    return bytes([number << 3 | wire]) + payload


GOOD = model().to_bytes()
BROKEN = {
    "holds no pieces": b"",
    "begins no field": b"pickle",
    "truncated": GOOD[:-3],
    "model_type is word": field(2, 2, b"\x02\x18\x03") + field(1, 2, b"\x03\x0a\x01a"),
    "another type than": field(1, 0, b"\x01"),
    "more than 10 bytes": field(2, 0, b"\xff" * 11),
    "is not UTF-8": field(1, 2, b"\x03\x0a\x01\xff"),
    "piece 0 is empty": field(1, 2, b"\x00"),
    "is there twice": field(1, 2, b"\x03\x0a\x01a") * 2,
    "a second unknown": field(1, 2, b"\x05\x0a\x01a\x18\x02") + field(1, 2, b"\x05\x0a\x01b\x18\x02"),
    "has type 9": field(1, 2, b"\x05\x0a\x01a\x18\x09"),
    "no <0x00> to <0xFF>": field(1, 2, b"\x05\x0a\x01a\x18\x06"),
    "is no number": field(1, 2, b"\x08\x0a\x01a\x15" + struct.pack("<f", float("nan"))),
    "no double array": field(1, 2, b"\x03\x0a\x01a") + field(3, 2, b"\x03\x12\x01\x05"),
}


@pytest.mark.parametrize("words", BROKEN)
def test_broken_files(tmp_path, words):
    assert words in refused(Tokenizer, folder_with(tmp_path, BROKEN[words]))


def attempt(folder):
    """Opens a tokenizer and uses all of it."""
    tokenizer = Tokenizer(folder)
    for text in ("Hello <s> 12 日本\n\n  ab<|im_end|> ", "\u0000ﬁ①a\u3000b"):
        for parse_special in (False, True):
            ids = tokenizer.encode(text, parse_special=parse_special)
            stream = tokenizer.stream()
            assert "".join(stream.push(i) for i in ids) + stream.flush() == tokenizer.decode(ids)
    [tokenizer.token(i) for i in ids[:5]]


def charsmap_model():
    """With a map of characters: sentencepiece's own where there is one, else a double array of nothing."""
    try:
        import sentencepiece
    except ImportError:
        return model(unigram=True, charsmap=struct.pack("<I", 8) + struct.pack("<2I", 0, 0) + b"x\0").to_bytes()
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["the words of a text", "ab ab ba"] * 20), model_writer=out, num_threads=1,
                                             model_type="unigram", vocab_size=30, hard_vocab_limit=False, minloglevel=2,
                                             normalization_rule_tsv=str(_rules()))
    return out.getvalue()


def _rules():
    import tempfile

    path = Path(tempfile.mkdtemp()) / "rules.tsv"
    path.write_text("FB01\t66 69\n2460\t31\n3000\t20\n41\t61\n")
    return path


def test_mutants_of_tokenizer_model(tmp_path):
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "legacy": True, "chat_template": "x",
              "added_tokens_decoder": {"267": {"content": "<|im_end|>", "special": True, "lstrip": True}}}
    bpe = folder_with(tmp_path / "bpe", tokenizer_config=config, added_tokens={"<x>": 268})
    unigram = folder_with(tmp_path / "unigram", charsmap_model())
    hunt({"bpe": Seed.folder(bpe, attempt)}, 1200, tmp_path)
    hunt({"unigram": Seed.folder(unigram, attempt)}, 800, tmp_path)


def test_mutants_of_tokenizer_json(tmp_path):
    for kind in ("llama3", "llama2"):
        hunt({kind: Seed.folder(make_folder(kind, tmp_path / kind), attempt)}, 300, tmp_path)


def test_the_error_is_ours(tmp_path):
    with pytest.raises(BadFileError):
        parse(b"\x0a", tmp_path)
