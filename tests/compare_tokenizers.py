"""Token ids of random texts against the libraries they come from: python tests/compare_tokenizers.py [COUNT] [KIND ...]

Vocabularies are trained on the spot, offline. COUNT texts in all (default 1,000,000), split over the kinds; the texts hold
every plane of Unicode, runs of whitespace, digits, code, and names of special tokens, which stay text. References:
sentencepiece for its own models, read as they are and through a GGUF file's keys; tiktoken for llama3 and qwen2; for gpt2
and deepseek the published algorithm, word by word, with the words of the `regex` module; for bert tokenizers' WordPiece.
"""

import io
import json
import random
import sys
import tempfile
import time
import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np
from text_folders import corpus

from genkit.checkpoints import gguf_container as container
from genkit.text.gguf_pre import PRE
from genkit.text.gguf_vocab import tokenizer_of, vocabulary_keys
from genkit.text.tokenizer import Tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<s>", "</s>", "<unk>", "<pad>", "[CLS]", "[SEP]", "<0x41>"]
WORDS = [" the", "self", "def ", "return", "don't", "WE'LL", "'s", "    ", "\n\n", "\r\n", "\t", "==", "://", "naïve", "e\u0301", "ﬁ",
         "①", "ｱﾞ", "\u3000", "\u00a0", "\u2028", "\ufeff", "\u200b", "▁", "▁▁", "12", "1234567", "٣", "中文", "日本語", "👨‍👩‍👧", "🇩🇪",
         "हिन्दी", "x += 1", "<td>", "abc", "\ufffd", "İ", "ß", "가", "\u0000"]
# Blocks with letters, marks, digits and signs of many scripts; half of all drawn characters come from these.
BLOCKS = [0x00, 0x80, 0x300, 0x370, 0x400, 0x590, 0x600, 0x900, 0xE00, 0x1100, 0x1E00, 0x2000, 0x2190, 0x2580, 0x3040, 0x4E00, 0xAC00,
          0xFB00, 0xFF00, 0x10000, 0x1D400, 0x1F300, 0x1F600, 0x20000, 0xE0000]


def random_text(rng):
    parts = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.random()
        if kind < 0.3:
            parts.append(rng.choice(WORDS))
        elif kind < 0.4:
            parts.append(rng.choice(SPECIAL))
        elif kind < 0.6:
            parts.append("".join(rng.choice("abcdefghilmnoprstu  .,'()=_0123456789\nETA") for _ in range(rng.randrange(10))))
        elif kind < 0.7:
            parts.append(rng.choice(" \n\t\r0a=") * rng.randrange(1, 9))
        else:
            point = rng.choice(BLOCKS) + rng.randrange(128) if rng.random() < 0.6 else rng.randrange(0x110000)
            parts.append(chr(point) if not 0xD800 <= point < 0xE000 else "")
    return "".join(parts)


# Vocabularies.

SPM = {  # options of sentencepiece's trainer
    "spm-bpe": dict(model_type="bpe", vocab_size=900, byte_fallback=True, normalization_rule_name="identity", split_digits=True,
                    remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.995),
    "spm-bpe-runs": dict(model_type="bpe", vocab_size=900, byte_fallback=True, normalization_rule_name="identity",
                         remove_extra_whitespaces=False, add_dummy_prefix=False, character_coverage=0.995,
                         user_defined_symbols=["▁▁", "▁▁▁", "▁▁▁▁", "\n\n", "<td>", "<t", "ab", "abc"]),
    "spm-bpe-nfkc": dict(model_type="bpe", vocab_size=900, normalization_rule_name="nmt_nfkc", character_coverage=0.99),
    "unigram": dict(model_type="unigram", vocab_size=700, normalization_rule_name="nmt_nfkc", bos_id=-1, character_coverage=0.995),
    "unigram-bytes": dict(model_type="unigram", vocab_size=900, byte_fallback=True, normalization_rule_name="nfkc_cf",
                          user_defined_symbols=["<td>", "▁▁"], character_coverage=0.995),
}
BYTE_LEVEL = {"llama3": "llama-bpe", "qwen2": "qwen2", "gpt2": "gpt-2", "deepseek-v3": "deepseek-v3", "deepseek-coder": "deepseek-coder"}


def lines():
    return [line for text in corpus() for line in text.split("\n") if line.strip()]


@lru_cache(None)
def spm_model(kind):
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines()), model_writer=out, minloglevel=2, num_threads=1,
                                             hard_vocab_limit=False, **SPM[kind])
    return out.getvalue()


def spm_folder(kind, folder):
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(spm_model(kind))
    return folder


def byte_level_folder(kind, folder):
    """Of llama3 and qwen2, as transformers converts tiktoken's: every way to make a token is a merge."""
    from tokenizers import Regex, Tokenizer as Fast, decoders, models, normalizers, pre_tokenizers, trainers

    patterns, ignore_merges = PRE[BYTE_LEVEL[kind]]
    fast = Fast(models.BPE(ignore_merges=ignore_merges))
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
                                                 + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        fast.normalizer = normalizers.NFC()
    fast.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL[:4], show_progress=False,
                                                           initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    data = json.loads(fast.to_str())
    vocab = data["model"]["vocab"]
    if kind in ("llama3", "qwen2"):
        ways = [(vocab[token], vocab[token[:cut]], vocab[token[cut:]], [token[:cut], token[cut:]]) for token in vocab
                for cut in range(1, len(token)) if token not in SPECIAL and token[:cut] in vocab and token[cut:] in vocab]
        data["model"]["merges"] = [pair for *_, pair in sorted(ways)]
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def through_gguf(tokenizer, path):
    """The tokenizer rebuilt from llama.cpp's keys alone."""
    import os

    keys, _ = vocabulary_keys(tokenizer, tokenizer.vocab_size)
    keys = [key for key in keys if not key[0].startswith("tokenizer.huggingface")]
    head, _, nbytes = container.head_bytes([("general.architecture", container.STRING, "llama"), *keys], [("token_embd.weight", "F32", (1,))])
    path.write_bytes(head.ljust(nbytes, b"\0"))
    descriptor = os.open(path, os.O_RDONLY)
    found = tokenizer_of(container.read_container(path, descriptor, path.stat().st_size))
    os.close(descriptor)
    return Tokenizer(path, *found)


# References: text to ids, without what stands around a text.


def sentencepiece_ids(kind):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=spm_model(kind))
    return lambda text: processor.encode(text)


def alphabet():
    from genkit.text.utf8 import _byte_alphabet

    return _byte_alphabet()


def tiktoken_ids(folder, kind):
    import tiktoken

    [pattern], _ = PRE[BYTE_LEVEL[kind]]
    letters = alphabet()
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    ranks = {bytes(letters[c] for c in token): i for token, i in vocab.items() if token not in SPECIAL}
    encoding = tiktoken.Encoding(kind, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    if kind == "qwen2":
        return lambda text: encoding.encode_ordinary(unicodedata.normalize("NFC", text))
    return encoding.encode_ordinary


@lru_cache(None)
def newer():
    """Characters that the regex module's tables of Unicode know and those of the tokenizers library do not yet."""
    import regex
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    known = r"[\p{L}\p{N}\p{P}\p{S}\p{M}]"
    text = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    rest = Split(Regex(known), "removed").pre_tokenize_str(text)
    return {c for part, _ in rest for c in regex.findall(known, part)}


def plain_bpe_ids(folder, kind):
    import regex

    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    letter_of = {byte: letter for letter, byte in alphabet().items()}
    patterns = [regex.compile(pattern) for pattern in PRE[BYTE_LEVEL[kind]][0]]
    unassigned = {ord(c): "\u0378" for c in newer()}

    def words(texts, pattern):
        for text in texts:
            at = 0
            for match in pattern.finditer(text.translate(unassigned)):
                yield from (part for part in (text[at:match.start()], text[slice(*match.span())]) if part)
                at = match.end()
            if at < len(text):
                yield text[at:]

    @lru_cache(200_000)
    def of_word(word):
        parts = [letter_of[byte] for byte in word.encode()]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda pair: ranks.get(pair, 1 << 30))
            if best not in ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i:i + 2]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return [model["vocab"][part] for part in parts]

    def ids(text):
        found = [text]
        for pattern in patterns:
            found = list(words(found, pattern))
        return [i for word in found for i in of_word(word)]

    return ids


def word_piece(folder):
    """(ours through GGUF's keys, a reference)."""
    from tokenizers import BertWordPieceTokenizer, Tokenizer as Tokens, models, normalizers, pre_tokenizers

    fast = BertWordPieceTokenizer()
    fast.train_from_iterator(corpus(), vocab_size=700, show_progress=False)
    vocab = fast.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    spelled = [token if token in special else token[2:] if token.startswith("##") else "▁" + token for token in tokens]
    keys = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": [token.encode() for token in spelled],
            "tokenizer.ggml.unknown_token_id": vocab["[UNK]"], "tokenizer.ggml.token_type":
            np.array([3 if token in special else 1 for token in tokens], "i4")}
    ours = Tokenizer(folder, *tokenizer_of(container.Container(folder, keys, {})))
    plain = Tokens(models.WordPiece(vocab, unk_token="[UNK]"))  # names of special tokens are text
    plain.normalizer, plain.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return ours, lambda text: plain.encode(text, add_special_tokens=False).ids


KINDS = [*SPM, *(f"gguf-{kind}" for kind in SPM), *BYTE_LEVEL, *(f"gguf-{kind}" for kind in BYTE_LEVEL), "gguf-bert"]


def pair(kind, folder):
    """Ours and the reference of a kind, both text to ids."""
    if kind == "gguf-bert":
        ours, theirs = word_piece(folder / "vocabulary.gguf")
        return ours, theirs
    name = kind.removeprefix("gguf-")
    made = (spm_folder if name in SPM else byte_level_folder)(name, folder / "model")
    ours = Tokenizer(made)
    if name in SPM:
        theirs = sentencepiece_ids(name)
    elif name in ("llama3", "qwen2"):
        theirs = tiktoken_ids(made, name)
    else:
        theirs = plain_bpe_ids(made, name)
    return through_gguf(ours, folder / "vocabulary.gguf") if kind != name else ours, theirs


def compare(kind, count, folder, seed=5):
    """[(text, ours, theirs)] where they differ."""
    ours, theirs = pair(kind, folder)
    rng, wrong = random.Random(f"{seed} {kind}"), []
    for _ in range(count):
        text = random_text(rng)
        found, wanted = ours.encode(text, add_special=False), theirs(text)
        if found != wanted:
            wrong.append((text, found, wanted))
    return wrong


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    kinds = sys.argv[2:] or KINDS
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            share = -(-count // len(kinds))
            wrong = compare(kind, share, Path(folder))
            print(f"{kind}: {share} texts, {len(wrong)} differ ({time.perf_counter() - start:.0f} s)", flush=True)
            for text, found, wanted in wrong[:3]:
                print(f"  {text!r}\n    ours   {found}\n    theirs {wanted}", flush=True)


if __name__ == "__main__":
    main()
