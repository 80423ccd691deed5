"""TextStream: pieces put together are the whole decoded text, and no piece is a broken character or taken back."""

import random

import pytest
from text_folders import FOREIGN, KINDS, make_folder

from genkit.errors import BadFileError
from genkit.text import Tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("streams")
    return {kind: Tokenizer(make_folder(kind, root / kind)) for kind in KINDS}


def streamed(tokenizer, ids, skip=True):
    stream = tokenizer.stream(skip)
    return [stream.push(token) for token in ids], stream.flush()


@pytest.mark.parametrize("kind", KINDS)
def test_every_prefix_of_real_text(tokenizers, kind):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(f"  two spaces {FOREIGN} the end")
    for cut in range(len(ids) + 1):
        pieces, rest = streamed(tokenizer, ids[:cut])
        assert "".join(pieces) + rest == tokenizer.decode(ids[:cut])
        assert "\ufffd" not in "".join(pieces)  # the text has none, so only an unfinished character could be one
    pieces, rest = streamed(tokenizer, ids)
    assert rest == "" and sum(map(bool, pieces)) > 20  # text flows, it is not all held back


@pytest.mark.parametrize("character", ["é", "€", "日", "😀", "𓀀", "e\u0301", "👨‍👩‍👧", "🇩🇪", "\ufffd"])
@pytest.mark.parametrize("kind", ["gpt2", "llama2", "gemma"])
def test_characters_cut_into_bytes(tokenizers, kind, character):
    """One token a byte: nothing comes out before a character is whole, and then it does."""
    tokenizer = tokenizers[kind]
    data = f"a{character}b".encode()
    if kind == "gpt2":
        from genkit.text.utf8 import _byte_alphabet

        names = {byte: symbol for symbol, byte in _byte_alphabet().items()}
        ids = [tokenizer.id_of(names[byte]) for byte in data]
    else:
        ids = [tokenizer.id_of(f"<0x{byte:02X}>") if byte > 127 else tokenizer.id_of(chr(byte)) for byte in data]
    pieces, rest = streamed(tokenizer, ids)
    assert "".join(pieces) + rest == f"a{character}b" == tokenizer.decode(ids)
    assert pieces[-1].endswith("b") and rest == ""
    if kind == "gpt2":
        given = 0
        for i in range(len(data)):  # as early as can be: whatever is complete at byte i is out at byte i
            given += len(pieces[i])
            assert given == len(data[: i + 1].decode(errors="ignore"))
    for cut in range(1, len(data)):  # cut off in the middle: U+FFFD at the end and only there
        pieces, rest = streamed(tokenizer, ids[:cut])
        assert "".join(pieces) + rest == tokenizer.decode(ids[:cut])
        assert "\ufffd" not in "".join(pieces).replace(character, "")


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_random_ids(tokenizers, kind, skip):
    """Invalid UTF-8, special tokens in between, ids without a token."""
    tokenizer, rng = tokenizers[kind], random.Random(5)
    low = sorted(range(tokenizer.vocab_size), key=lambda i: len(tokenizer.token(i)))[:300]  # many single bytes
    for round in range(400):
        pool = low if round % 2 else range(tokenizer.vocab_size + 5)
        ids = [rng.choice(pool) for _ in range(rng.randrange(60))]
        pieces, rest = streamed(tokenizer, ids, skip)
        whole = tokenizer.decode(ids, skip)
        assert "".join(pieces) + rest == whole, ids
        given = ""
        for i, piece in enumerate(pieces):  # never taken back: what is out is a beginning of every longer text
            given += piece
            assert tokenizer.decode(ids[: i + 1], skip).startswith(given)


def decoder_grid():
    from tokenizers import decoders as d

    return {
        "none": None,
        "metaspace": d.Metaspace(),
        "metaspace first": d.Metaspace(prepend_scheme="first"),
        "metaspace never": d.Metaspace(prepend_scheme="never"),
        "bytes and metaspace": d.Sequence([d.ByteFallback(), d.Metaspace()]),
        "strip every token": d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Strip(" ", 1, 0), d.Fuse()]),
        "strip more": d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 3, 0)]),
        "replace across": d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Replace("e ", "E")]),
        "byte level in a sequence": d.Sequence([d.ByteLevel()]),
        "wordpiece": d.WordPiece(prefix="e", cleanup=True),
        "bpe": d.BPEDecoder(suffix="e"),
        "ctc": d.CTC(pad_token="e", word_delimiter_token="s", cleanup=True),
    }


@pytest.mark.parametrize("name", decoder_grid())
def test_other_decoders(tmp_path, name):
    """Whatever the decoder does, the pieces are the whole text and never taken back."""
    from tokenizers import Tokenizer as Backend

    folder = make_folder("llama2_file", tmp_path)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.decoder = decoder_grid()[name]
    backend.save(str(folder / "tokenizer.json"))
    tokenizer, rng = Tokenizer(folder), random.Random(9)
    short = [i for i in range(tokenizer.vocab_size) if i > 258 and len(tokenizer.token(i)) < 3] + [5, 70, 200]
    for _ in range(300):
        ids = [rng.choice(short if rng.random() < 0.9 else range(262)) for _ in range(rng.randrange(25))]
        pieces, rest = streamed(tokenizer, ids)
        given = ""
        for i, piece in enumerate(pieces):
            given += piece
            assert tokenizer.decode(ids[: i + 1]).startswith(given), ids
        assert given + rest == tokenizer.decode(ids), ids


def test_a_decoder_that_strips_the_end(tmp_path):
    """tokenizers 0.23 panics (a BaseException) where the text is shorter than what is to be stripped."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders as d

    folder = make_folder("llama2_file", tmp_path)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip("e", 0, 2)])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode("some three", add_special=False)
    pieces, rest = streamed(tokenizer, ids)
    assert "".join(pieces) == "" and rest == tokenizer.decode(ids) == " some thr"
    e = [tokenizer.id_of("e")]
    for call in (lambda: tokenizer.decode(e), lambda: streamed(tokenizer, e)):
        try:
            assert call() in ("", ([""], ""))
        except BadFileError as error:
            assert "tokenizer.json: cannot decode" in str(error)


def test_a_run_of_byte_tokens_that_turns_invalid(tokenizers):
    """Llama 2's decoder takes a whole run of byte tokens as U+FFFD when its end is invalid."""
    tokenizer = tokenizers["llama2"]
    euro = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in "€".encode()]
    bad = tokenizer.id_of("<0xFF>")
    assert tokenizer.decode([*euro, bad]) == "\ufffd" * 4
    pieces, rest = streamed(tokenizer, [*euro, bad])
    assert "".join(pieces) + rest == "\ufffd" * 4


def test_leading_space_of_later_words_stays(tokenizers):
    tokenizer = tokenizers["llama2"]
    ids = tokenizer.encode("the end of the text", add_special=False)
    assert "".join(streamed(tokenizer, ids)[0]) == "the end of the text"
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    mixed = [bos, *ids, eos, bos, *ids]  # after a special token the space is not dropped again
    assert "".join(streamed(tokenizer, mixed)[0]) == tokenizer.decode(mixed) == "the end of the text the end of the text"


@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_the_cost_of_a_token_does_not_grow(tokenizers, kind, monkeypatch):
    """Longest list of ids decoded at once, over a long text of which a third is invalid bytes."""
    tokenizer, rng = tokenizers[kind], random.Random(6)
    stream, longest = tokenizer.stream(), 0
    decode = stream._decode

    def spy(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    monkeypatch.setattr(stream, "_decode", spy)
    words = tokenizer.encode("some words of a text, and more", add_special=False)
    for _ in range(3000):
        stream.push(rng.choice(words if rng.random() < 0.67 else range(3, 250)))
    stream.flush()
    assert longest < 80


def test_a_decoder_that_looks_back_is_given_out_at_the_end(tmp_path):
    """WordPiece takes back the space before a full stop: nothing can be told before the end."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.WordLevel({"hello": 0, ".": 1, "##s": 2}, unk_token="hello"))
    backend.decoder = decoders.WordPiece(cleanup=True)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    pieces, rest = streamed(tokenizer, [0, 2, 1, 0])
    assert "".join(pieces) == "" and rest == tokenizer.decode([0, 2, 1, 0]) == "hellos. hello"


def test_a_stream_starts_anew_after_flush(tokenizers):
    tokenizer = tokenizers["llama2"]
    stream, ids = tokenizer.stream(), tokenizer.encode("again", add_special=False)
    for _ in range(2):
        assert "".join(stream.push(token) for token in ids) + stream.flush() == "again"
