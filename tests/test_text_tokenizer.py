"""Tokenizer: ids and text equal to transformers', and one clear error for each bad folder."""

import json
import random
import re
import subprocess
import sys

import pytest
from text_folders import FOREIGN, KINDS, make_folder

from genkit.errors import BadFileError, UsageError
from genkit.text import Tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: make_folder(kind, root / kind) for kind in KINDS}


def random_texts(count, seed):
    rng = random.Random(seed)
    pieces = [*"abcde  12.,'\n\t[]|", *FOREIGN, "<s>", "</s>", "<|im_end|>", "<|eot_id|>", "don't", " the", "  def", "\ufffd"]
    return ["".join(rng.choice(pieces) for _ in range(rng.randrange(25))) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_those_of_transformers(folders, kind):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(folders[kind]))
    ours = Tokenizer(folders[kind])
    for text in random_texts(400, seed=11):
        for add_special in (True, False):
            ids = ours.encode(text, add_special, parse_special=True)
            assert ids == theirs(text, add_special_tokens=add_special).input_ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    rng = random.Random(12)
    for _ in range(300):  # ids no text gives: parts of characters, specials anywhere
        ids = [rng.randrange(ours.vocab_size) for _ in range(rng.randrange(1, 30))]
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.bos_id == theirs.bos_token_id and ours.eos_id == theirs.eos_token_id
    assert ours.special_ids == set(theirs.all_special_ids) | {
        i for i, token in theirs.added_tokens_decoder.items() if token.special
    }


def test_bos_is_decided_by_tokenizer_json(folders, tmp_path):
    assert Tokenizer(folders["llama3"]).encode("hi")[0] == 0
    assert Tokenizer(folders["llama3"]).encode("hi", add_special=False)[0] != 0
    for asked in (True, False):  # as transformers 5: add_bos_token is not looked at
        folder = make_folder("llama2", tmp_path / str(asked))
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {"add_bos_token": asked}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        assert Tokenizer(folder).encode("hi").count(1) == 1


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path):
    folder = make_folder("gpt2", tmp_path / "cut")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = Tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("nothing may be cut from this"), False) == "nothing may be cut from this"


def test_tokens_named_only_beside_tokenizer_json(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = make_folder("smollm", tmp_path / "more")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["pad_token"] = "[PAD]"
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config["added_tokens_decoder"] = {
        **{str(i): {"content": t, **flags, "special": True} for i, t in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])},
        "600": {"content": "<tool>", **flags, "special": False},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
    text = "a<tool>b[PAD]c"
    assert ours.encode(text, parse_special=True) == theirs(text).input_ids
    assert ours.decode(ours.encode(text, parse_special=True)) == theirs.decode(theirs(text).input_ids, skip_special_tokens=True) == "a<tool>bc"
    assert ours.vocab_size == 600  # of the file: what the embedding must have room for


def test_special_tokens_map_of_older_folders(tmp_path):
    folder = make_folder("gemma", tmp_path / "old")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<unk>"}, "additional_special_tokens": ["<s>"]}))
    assert Tokenizer(folder).eos_id == 0


def test_other_folders_need_no_config(folders, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folders["llama3"] / "tokenizer.json").read_bytes())
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.eos_id is None and tokenizer.chat_template is None
    assert tokenizer.decode(tokenizer.encode("plain text")) == "plain text"
    with pytest.raises(UsageError, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def test_ids_without_a_token(folders):
    tokenizer = Tokenizer(folders["gpt2"])
    ids = tokenizer.encode("some text")
    assert tokenizer.decode([*ids[:1], 70000, 2**32 - 1, *ids[1:]]) == "some text"
    for bad in (-1, 2**32, 10**30, 1.0, "1", None, True):
        with pytest.raises(UsageError, match="token id .*: not a whole number from 0 to 4294967295"):
            tokenizer.decode([1, bad])


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_single_tokens(folders, kind):
    """What --logprobs shows: with the space a word begins with."""
    tokenizer = Tokenizer(folders[kind])
    ids = tokenizer.encode("the end  of the text", add_special=False)
    texts = [tokenizer.token(token) for token in ids]
    assert "".join(texts).removeprefix(" ") == "the end  of the text"
    assert any(len(text) > 1 and text.startswith(" ") for text in texts)
    assert tokenizer.token(tokenizer.eos_id) == tokenizer.special_tokens["eos_token"]
    assert tokenizer.token(tokenizer.eos_id, skip_special=True) == ""


@pytest.mark.parametrize("text", ["a\udc80b", "\ud83d"])
def test_lone_surrogates_are_refused(folders, text):
    with pytest.raises(UsageError, match="not valid Unicode"):
        Tokenizer(folders["gpt2"]).encode(text)
    with pytest.raises(UsageError, match="not text"):
        Tokenizer(folders["gpt2"]).encode(b"bytes")


def broken_json(data, key, value):
    data = json.loads(data)
    inner = data
    *path, last = key.split(".")
    for step in path:
        inner = inner[step]
    inner[last] = value
    return json.dumps(data).encode()


BROKEN = {
    "empty": lambda data: b"",
    "not JSON": lambda data: b"\x80\x05pickle",
    "cut": lambda data: data[: len(data) // 2],
    "a list": lambda data: b"[]",
    "no model": lambda data: b'{"version": "1.0"}',
    "no tokens": lambda data: b'{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{},"unk_token":"x"}}',
    "deep": lambda data: b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "model of another kind": lambda data: broken_json(data, "model.type", "Foo"),
    "vocab with text ids": lambda data: broken_json(data, "model.vocab", {"a": "b"}),
    "negative ids": lambda data: broken_json(data, "model.vocab", {"a": -1}),
    "merge of unknown tokens": lambda data: broken_json(data, "model.merges", [["never", "seen"]]),
    "unknown decoder": lambda data: broken_json(data, "decoder", {"type": "Eval"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_tokenizer_json(folders, tmp_path, what):
    data = (folders["gpt2"] / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(BROKEN[what](data))
    with pytest.raises(BadFileError) as caught:
        Tokenizer(tmp_path)
    message = str(caught.value)
    assert "tokenizer.json" in message and "\n" not in message and len(message) < 600


@pytest.mark.parametrize("name", ["tekken.json", "vocab.json"])
def test_other_tokenizer_files_alone_are_refused_with_advice(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadFileError, match=f"{name} alone is not read; .*save_pretrained"):
        Tokenizer(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BadFileError, match="tokenizer.json: not found"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("key, value, words", [
    ("eos_token", 7, "eos_token is 7; expected a token"),
    ("eos_token", {"text": "</s>"}, "eos_token is an object; expected a token"),
    ("eos_token", "", "eos_token is ''; expected a token"),
    ("added_tokens_decoder", {"5": 3}, "added_tokens_decoder.5 is 3; expected a token"),
    ("added_tokens_decoder", [], "added_tokens_decoder is .*; expected an object"),
    ("chat_template", 5, "chat_template is 5; expected a template"),
    ("chat_template", [{"name": "rag", "template": "x"}], "has the templates rag, but none named default"),
    ("tokenizer_class", 5, "tokenizer_class is 5; expected a string"),
])
def test_broken_tokenizer_config(folders, tmp_path, key, value, words):
    (tmp_path / "tokenizer.json").write_bytes((folders["gpt2"] / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(BadFileError, match=words) as caught:
        Tokenizer(tmp_path)
    assert "tokenizer_config.json" in str(caught.value)


def test_where_the_chat_template_is_found(folders, tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    (tmp_path / "tokenizer.json").write_bytes((folders["llama3"] / "tokenizer.json").read_bytes())
    for value in ("string", [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "list"}], {"default": "dict"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        wanted = value if isinstance(value, str) else "list" if isinstance(value, list) else "dict"
        assert Tokenizer(tmp_path).render_chat(messages) == wanted
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}file {{ messages[0].content }}", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "not this", "bos_token": "<|begin_of_text|>"}))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.render_chat(messages) == "<|begin_of_text|>file hi"
    assert tokenizer.encode_chat(messages)[0] == 0 and tokenizer.encode_chat(messages).count(0) == 1
    (tmp_path / "chat_template.jinja").write_text("one\n{{ 1 // 0 }}")
    with pytest.raises(BadFileError, match="chat_template.jinja, line 2"):
        Tokenizer(tmp_path).render_chat(messages)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(BadFileError, match="chat_template.jinja: not UTF-8"):
        Tokenizer(tmp_path)


def test_importing_is_light():
    code = "import sys, genkit.text; print([m for m in ('tokenizers', 'jinja2', 'numpy', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_files_that_would_abort_the_library(folders, tmp_path):
    """tokenizers 0.23 ends the process on these: in a child, so that a failure here is a failure and not the end."""
    data = (folders["llama3"] / "tokenizer.json").read_bytes()
    spellings = ['"continuing_subword_prefix"', '"continuing_subword_prefi\\u0078"', '"\\u0063ontinuing_subword_prefix"']
    for i, spelling in enumerate(spellings):
        folder = tmp_path / str(i)
        folder.mkdir()
        changed = re.sub(rb'"continuing_subword_prefix":\s*null', lambda _: f'{spelling}: "x"'.encode(), data)
        assert changed != data
        (folder / "tokenizer.json").write_bytes(changed)
        code = f"from genkit.text import Tokenizer; Tokenizer({str(folder)!r})"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == 1 and "BadFileError" in run.stderr
        assert "model.continuing_subword_prefix is 'x'; only null is supported" in run.stderr.splitlines()[-1]
    spelled = re.sub(rb'"continuing_subword_prefix":\s*null', rb'"continuing_subword_prefi\\u0078": null', data)
    (tmp_path / "tokenizer.json").write_bytes(spelled)
    assert Tokenizer(tmp_path).encode("fine") == Tokenizer(folders["llama3"]).encode("fine")


def test_mutants_of_tokenizer_json(folders, tmp_path):
    """Any value in the file replaced: it loads and works, or one clear error."""
    values = [None, -1, 2**32 - 1, 2**64, 1.5, True, "", "x", [], {}, [1], {"a": 1}]
    rng, loaded = random.Random(4), 0
    for kind in ("llama3", "llama2"):
        text = (folders[kind] / "tokenizer.json").read_text()
        for _ in range(120):
            data = json.loads(text)
            inner, key = data, rng.choice(list(data))
            while isinstance(inner[key], (dict, list)) and inner[key] and rng.random() < 0.8:
                inner = inner[key]
                key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner[key] = rng.choice(values)
            if data["model"] and isinstance(data["model"], dict) and data["model"].get("continuing_subword_prefix"):
                continue
            (tmp_path / "tokenizer.json").write_text(json.dumps(data))
            try:
                tokenizer = Tokenizer(tmp_path)
                ids = tokenizer.encode("Hello <s> 12 日本")
                stream = tokenizer.stream()
                assert "".join(stream.push(i) for i in ids) + stream.flush() == tokenizer.decode(ids)
                loaded += 1
            except BadFileError as error:
                assert "tokenizer.json" in str(error) and "\n" not in str(error)
    assert loaded > 5
