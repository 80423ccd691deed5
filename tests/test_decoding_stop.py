"""Stop strings: same result however the text is cut, nothing given out that could belong to a stop string."""

import itertools
import random

import pytest

from genkit.decoding.stop import StopChecker
from genkit.errors import UsageError


def whole(text, stops):
    """(text before the stop, stopped), plainly: the first position where some stop ends; the longest that ends there."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def in_pieces(pieces, stops):
    checker, out = StopChecker(stops), ""
    for piece in pieces:
        safe, stopped = checker.push(piece)
        out += safe
        yield out, stopped
        if stopped:
            return
    yield out + checker.flush(), False


@pytest.mark.parametrize("stops", [
    ["ab"], ["aab", "b"], ["b", "ab"], ["abab"], ["aa", "aaa"], ["abc", "bc", "c"], ["bca", "cab", "abc"], ["日本", "本a"],
])
def test_every_cut_of_every_text(stops):
    alphabet = sorted(set("".join(stops)) | {"a"})
    for length in range(1, 6):
        for text in map("".join, itertools.product(alphabet, repeat=length)):
            wanted = whole(text, stops)
            for cuts in range(2 ** (length - 1)):
                pieces, start = [], 0
                for i in range(1, length + 1):
                    if i == length or cuts >> (i - 1) & 1:
                        pieces.append(text[start:i])
                        start = i
                results = list(in_pieces(pieces, stops))
                assert results[-1] == wanted, (text, pieces, stops)
                for given, _ in results:  # never taken back
                    assert wanted[0].startswith(given)


def test_random_texts_and_stops():
    rng = random.Random(8)
    for _ in range(2000):
        stops = ["".join(rng.choice("abc\n") for _ in range(rng.randrange(1, 7))) for _ in range(rng.randrange(1, 4))]
        pieces = ["".join(rng.choice("abc\n") for _ in range(rng.randrange(5))) for _ in range(rng.randrange(12))]
        assert list(in_pieces(pieces, stops))[-1] == whole("".join(pieces), stops)


def test_only_what_could_begin_a_stop_is_held_back():
    checker = StopChecker(["\n\nUser:", "</s>"])
    assert checker.push("Hello\n") == ("Hello", False)
    assert checker.push("\nUs") == ("", False)
    assert checker.push("a <") == ("\n\nUsa ", False)
    assert checker.push("/b") == ("</b", False)
    assert checker.push("</s> and more") == ("", True)
    assert checker.push("nothing after it") == ("", True) and checker.flush() == ""


def test_text_that_ends_inside_a_stop():
    checker = StopChecker("stop")  # one string is one stop
    assert checker.push("do not sto") == ("do not ", False)
    assert checker.flush() == "sto" and checker.flush() == ""


def test_without_stops_everything_passes():
    assert StopChecker().push("any text") == ("any text", False)


@pytest.mark.parametrize("stops", [[""], ["a", ""], "", [None], [5], [b"a"]])
def test_bad_stops(stops):
    with pytest.raises(UsageError, match="stop: .* non-empty"):
        StopChecker(stops)
