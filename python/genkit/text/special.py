"""Special tokens by name in a text: which ones are meant, and which are only text.

A prompt of a user may hold "<|im_start|>" as anybody may write it; a chat template writes it and means the token. In a chat the
two meet in one text. So before a message goes into the template, the first letter of every special token's name in it is
replaced by a stand-in, a noncharacter that occurs nowhere (U+FDD0 to U+FDEF and the like); the template's text is split at
the special tokens that are left, and each stand-in becomes its letter again in what lies between.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping

# Code points that Unicode keeps free for such use within a program.
NONCHARACTERS = [chr(0xFDD0 + i) for i in range(32)] + [chr(plane << 16 | 0xFFFE | i) for plane in range(1, 17) for i in (0, 1)]


class Names:
    """A set of token names to be found in texts, the longest at the leftmost place. They map to anything."""

    def __init__(self, tokens: Mapping[str, Any]) -> None:
        self.tokens = dict(tokens)
        self._lengths: dict[str, list[int]] = {}  # by first letter, longest first
        for name in self.tokens:
            self._lengths.setdefault(name[0], []).append(len(name))
        self._lengths = {first: sorted(set(lengths), reverse=True) for first, lengths in self._lengths.items()}
        self._longest = max(map(len, self.tokens), default=0)

    def at(self, text: str, i: int) -> str | None:
        """The longest name that begins at text[i]."""
        for length in self._lengths.get(text[i], ()):
            name = text[i:i + length]
            if name in self.tokens:
                return name
        return None

    def starts(self, text: str) -> list[int]:
        """Where a letter stands that a name begins with."""
        found: list[int] = []
        for first in self._lengths:
            i = text.find(first)
            while i >= 0:
                found.append(i)
                i = text.find(first, i + 1)
        return sorted(found)

    def find(self, text: str) -> list[tuple[int, str]]:
        """Places and names, one after the other."""
        found, end = [], 0
        for i in self.starts(text):
            name = self.at(text, i) if i >= end else None
            if name is not None:
                found.append((i, name))
                end = i + len(name)
        return found

    def letters(self, text: str) -> list[int]:
        """Places of the letters that a name begins with: anywhere in the text, or at its end, where a name might go on in what
        follows."""
        return [i for i in self.starts(text) if self.at(text, i) is not None or self._begins(text, i)]

    def _begins(self, text: str, i: int) -> bool:
        if len(text) - i >= self._longest or text[i].isspace():
            return False
        return any(name.startswith(text[i:]) for name in self.tokens)


class StandIns:
    """Stand-ins for letters of one chat."""

    def __init__(self, names: Names, taken: Iterable[str]) -> None:
        """taken: every text that goes into the chat, and the template."""
        used: set[str] = set()
        for text in taken:
            used.update(character for character in text if ord(character) >= 0xFDD0)
        self._free = [character for character in NONCHARACTERS if character not in used]
        self._names = names
        self._by_letter: dict[str, str] = {}

    @property
    def used(self) -> bool:
        return bool(self._by_letter)

    def put(self, value: Any) -> Any:
        """The value with stand-ins in every text within it. A role that is one word stays: templates ask for it by name."""
        if isinstance(value, str):
            places = self._names.letters(value)
            if not places:
                return value
            letters = list(value)
            for i in places:
                letters[i] = self._stand_in(letters[i])
            return "".join(letters)
        if isinstance(value, Mapping):
            return {self.put(key): item if key == "role" and isinstance(item, str) and item.isalnum() else self.put(item)
                    for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.put(item) for item in value]
        return value

    def _stand_in(self, letter: str) -> str:
        if letter not in self._by_letter:
            self._by_letter[letter] = self._free.pop()
        return self._by_letter[letter]

    def take(self, text: str) -> str:
        """The text with its own letters again. Where a template has written JSON in ASCII, the escapes too."""
        for letter, stand_in in self._by_letter.items():
            text = text.replace(stand_in, letter)
            escape = stand_in.encode("utf-16-be").hex()
            text = text.replace("".join(f"\\u{escape[i:i + 4]}" for i in range(0, len(escape), 4)), letter)
        return text


def texts_of(value: Any) -> Iterable[str]:
    """Every text within plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts_of(key)
            yield from texts_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_of(item)


def is_text(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
