"""Text of a growing list of token ids, piece by piece: what is given out is complete and never taken back."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

# What a decoder may be made of for text to be final before the last token is known. Each of these treats a token on
# its own, or (ByteFallback) a run of byte tokens, or (Strip, Metaspace) the first characters of all.
_STREAMABLE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


class TextStream:
    """Incremental detokenizer: the pieces of all `push` calls and of `flush`, put together, are
    `tokenizer.decode(all ids, skip_special)` to the character.

    A character is given out when its last byte is there. Cost of a token does not grow with the text before it.
    - byte-level vocabularies (GPT-2, Llama 3, Qwen): bytes go through an incremental UTF-8 decoder.
    - vocabularies with byte tokens like <0xE2> (Llama 2, Mistral): a run of byte tokens is text only if the whole run
      is valid UTF-8, so it is held back until another token ends it.
    - any other kind of decoder: everything is held back until `flush`.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, decode: Callable[[list[int]], str], skip_special: bool = True
    ) -> None:
        """decode: text of ids, special ones included. `Tokenizer.stream` makes one."""
        self._tokenizer = tokenizer
        self._decode = decode
        self._skipped: frozenset[int] = frozenset()
        if skip_special:
            added = tokenizer.get_added_tokens_decoder()
            self._skipped = frozenset(token_id for token_id, token in added.items() if token.special)
        kinds = decoder_kinds(tokenizer)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace") if kinds == ["ByteLevel"] else None
        self._streamable = bool(kinds) and _STREAMABLE.issuperset(kinds)
        self._byte_tokens = "ByteFallback" in kinds
        # Ids that decide how the next ones read: the last ones given out, then the ones held back.
        self._before: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Text that is final after this token; "" when nothing is. An id without a token has no text."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._skipped:
            return ""
        if self._utf8 is not None:
            return self._utf8.decode(_token_bytes(token))
        self._held.append(token_id)
        if not self._streamable or (self._byte_tokens and _is_byte_token(token)):
            return ""
        return self._take()

    def flush(self) -> str:
        """The rest, at the end: an unfinished character is U+FFFD. The stream starts anew after it."""
        text = self._utf8.decode(b"", final=True) if self._utf8 is not None else self._take()
        self._before, self._held = [], []
        return text

    def _take(self) -> str:
        # Decoders drop a space at the very start. Decoding the held ids behind ids already given out, and then
        # cutting off the text of those, leaves the drop with the ids that it belongs to.
        start = self._decode(self._before) if self._before else ""
        text = self._decode(self._before + self._held)[len(start) :]
        if text:
            self._before = self._held
            self._held = []
        return text


def decoder_kinds(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Names of the decoder's steps; empty when it has none or one that works on the end of the text."""
    if tokenizer.decoder is None:
        return []
    steps = [json.loads(tokenizer.decoder.__getstate__())]
    kinds = []
    while steps:
        step = steps.pop(0)
        if step["type"] == "Sequence":
            steps = step["decoders"] + steps
        elif step["type"] == "Strip" and (step["stop"] > 0 or step["start"] > 1):
            return []  # takes from the end, or from more tokens than the first
        elif "Fuse" in kinds and step["type"] != "Strip":
            return []  # works on text across tokens
        else:
            kinds.append(step["type"])
    return kinds


def _is_byte_token(token: str) -> bool:
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return False
    try:
        int(token[3:5], 16)
    except ValueError:
        return False
    return True


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019): printable Latin-1 characters stand for
    themselves, the others for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_alphabet()


def _token_bytes(token: str) -> bytes:
    """Bytes of a byte-level token. A token with any other character (an added one) is its own text."""
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode("utf-8")
