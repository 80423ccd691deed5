"""Ids of random texts, as compare_tokenizers.py compares them: a part of what it does when run by hand."""

import random
import unicodedata

import pytest

pytest.importorskip("sentencepiece")
pytest.importorskip("tiktoken")
pytest.importorskip("regex")

from compare_tokenizers import KINDS, SPECIAL, compare, pair, random_text  # noqa: E402


@pytest.mark.parametrize("kind", KINDS)
def test_random_texts(kind, tmp_path):
    assert compare(kind, 3000, tmp_path) == []


def test_the_texts_are_of_every_kind():
    rng = random.Random(5)
    text = "".join(random_text(rng) for _ in range(3000))
    assert {ord(c) >> 16 for c in text} == set(range(17)) and all(token in text for token in SPECIAL)
    assert len({unicodedata.category(c) for c in text}) > 25 and "      " in text and "1234567" in text


@pytest.mark.parametrize("kind", ["spm-bpe", "unigram", "unigram-bytes", "llama3"])
def test_long_texts(kind, tmp_path):
    """Ties and heaps of another size than a line's."""
    ours, theirs = pair(kind, tmp_path)
    rng = random.Random(6)
    texts = ["".join(random_text(rng) for _ in range(500)), "ab" * 20_000, "a" * 30_000, " " * 20_000, "for self in the text\n" * 2_000]
    for text in texts:
        assert ours.encode(text, add_special=False) == theirs(text)
