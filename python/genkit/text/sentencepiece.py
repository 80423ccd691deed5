"""tokenizer.model: SentencePiece's file, a protobuf message. Read with checks of our own; the core cuts texts (cpp/pieces.h).

ModelProto    1 pieces (repeated), 2 TrainerSpec, 3 NormalizerSpec
piece         1 text, 2 score (f32), 3 type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
TrainerSpec   3 model_type (1 unigram, 2 BPE, 3 words, 4 characters), 24 treat_whitespace_as_suffix, 35 byte_fallback,
              40 unk_id, 41 bos_id, 42 eos_id, 43 pad_id
NormalizerSpec 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

from genkit.checkpoints.files import shown, shown_path
from genkit.errors import BadFileError

if TYPE_CHECKING:
    import tokenizers

    from genkit._core import Pieces

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
SPACE = "▁"
MAX_PIECES = 1 << 22
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which this file never had


@dataclass(frozen=True)
class SentencePiece:
    """What a tokenizer.model says. texts, scores and types are of each piece; special maps "bos", "eos", "unk" and "pad" to
    ids, as far as there are such pieces."""

    path: Path
    texts: list[str]
    scores: list[float]
    types: list[int]
    special: dict[str, int]
    unigram: bool = False
    byte_fallback: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    escape_whitespaces: bool = True
    whitespace_as_suffix: bool = False
    fuse_unknown: bool = True

    def encoder(self) -> "Pieces":
        """Raises BadFileError where these pieces make no tokenizer."""
        from genkit import _core

        try:
            return _core.Pieces([text.encode("utf-8") for text in self.texts], self.scores, self.types, self.charsmap,
                                unigram=self.unigram, byte_fallback=self.byte_fallback,
                                remove_extra_whitespaces=self.remove_extra_whitespaces,
                                escape_whitespaces=self.escape_whitespaces, whitespace_as_suffix=self.whitespace_as_suffix,
                                fuse_unknown=self.fuse_unknown)
        except ValueError as error:
            raise BadFileError(f"{shown_path(self.path)}: {error}") from None

    def names(self, vocab: dict[str, int]) -> "tokenizers.Tokenizer":
        """A tokenizers object that knows these tokens by name and turns ids into text; it encodes nothing."""
        from tokenizers import Tokenizer, decoders, models

        tokenizer = Tokenizer(models.BPE(vocab, []))
        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.add_dummy_prefix and not self.whitespace_as_suffix:
            steps.append(decoders.Strip(content=" ", left=1))
        tokenizer.decoder = decoders.Sequence(steps)
        return tokenizer

    def to_bytes(self) -> bytes:
        """The file, TrainerSpec first: its first byte is 0x12."""
        ids = [self.special.get(name, -1) for name in ("unk", "bos", "eos", "pad")]
        trainer = _number(3, 1 if self.unigram else 2) + _number(24, self.whitespace_as_suffix) + _number(35, self.byte_fallback)
        trainer += b"".join(_number(40 + i, value) for i, value in enumerate(ids))
        normalizer = _bytes(2, self.charsmap) + _number(3, self.add_dummy_prefix)
        normalizer += _number(4, self.remove_extra_whitespaces) + _number(5, self.escape_whitespaces)
        pieces = (_bytes(1, _bytes(1, text.encode("utf-8")) + b"\x15" + struct.pack("<f", score) + _number(3, of_type))
                  for text, score, of_type in zip(self.texts, self.scores, self.types))
        return _bytes(2, trainer) + _bytes(3, normalizer) + b"".join(pieces)


def parse(data: bytes, path: Path) -> SentencePiece:
    """Raises BadFileError for what is no SentencePiece model of type unigram or BPE."""
    where = shown_path(path)
    pieces: list[tuple[bytes, float, int]] = []
    specs: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    for field, value in _fields(data, where):
        if field == 1:
            if len(pieces) == MAX_PIECES:
                raise BadFileError(f"{where}: more than {MAX_PIECES} pieces")
            pieces.append(_piece(_expected(value, bytes, field, where), where))
        elif field in specs:  # given twice, the second adds to the first, as protobuf has it
            specs[field].update(_fields(_expected(value, bytes, field, where), where))
    if not pieces:
        raise BadFileError(f"{where}: no SentencePiece model: it holds no pieces")
    trainer, normalizer = specs[2], specs[3]

    def number(spec: dict[int, Any], field: int, default: int) -> int:
        value = _expected(spec.get(field, default), int, field, where)
        return value - (1 << 64) if value >> 63 else value  # a negative one is spelled with 64 bits

    kind = number(trainer, 3, 1)
    if kind not in (1, 2):
        raise BadFileError(f"{where}: model_type is {MODEL_TYPES.get(kind, kind)}; unigram and bpe are supported")
    texts, types = [], []
    for i, (text, _, of_type) in enumerate(pieces):
        try:
            texts.append(text.decode("utf-8"))
        except UnicodeDecodeError:
            raise BadFileError(f"{where}: piece {i}, {shown(text)}, is not UTF-8 text") from None
        types.append(of_type)
    special = {}
    for field, name, default in ((40, "unk", 0), (41, "bos", 1), (42, "eos", 2), (43, "pad", -1)):
        i = number(trainer, field, default)
        if 0 <= i < len(pieces) and types[i] == (UNKNOWN if name == "unk" else CONTROL):
            special[name] = i
    if UNKNOWN in types:
        special["unk"] = types.index(UNKNOWN)
    return SentencePiece(
        path, texts, [score for _, score, _ in pieces], types, special, unigram=kind == 1,
        byte_fallback=bool(number(trainer, 35, 0)), charsmap=_expected(normalizer.get(2, b""), bytes, 2, where),
        add_dummy_prefix=bool(number(normalizer, 3, 1)), remove_extra_whitespaces=bool(number(normalizer, 4, 1)),
        escape_whitespaces=bool(number(normalizer, 5, 1)), whitespace_as_suffix=bool(number(trainer, 24, 0)))


def _piece(message: bytes, where: str) -> tuple[bytes, float, int]:
    """Text, score, type. Nearly all are written alike: text of under 128 bytes, score, and perhaps a type."""
    if len(message) > 6 and message[0] == 0x0A and message[1] < 128:
        end = 2 + message[1]
        rest = message[end:]
        if len(rest) in (5, 7) and rest[0] == 0x15 and (len(rest) == 5 or (rest[5] == 0x18 and rest[6] < 128)):
            return message[2:end], struct.unpack_from("<f", rest, 1)[0], rest[6] if len(rest) == 7 else NORMAL
    found: dict[int, Any] = dict(_fields(message, where))
    return (_expected(found.get(1, b""), bytes, 1, where), _expected(found.get(2, 0.0), float, 2, where),
            _expected(found.get(3, NORMAL), int, 3, where) & 0xFF)


def _expected(value: Any, kind: type, field: int, where: str) -> Any:
    if type(value) is not kind:
        raise BadFileError(f"{where}: no SentencePiece model: field {field} has another type than it should")
    return value


def _fields(data: bytes, where: str) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: int, bytes, float (of 32 bits); 64-bit ones are passed over."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at, where)
        field, wire = key >> 3, key & 7
        if field == 0 or wire not in (VARINT, FIXED64, BYTES, FIXED32):
            raise BadFileError(f"{where}: no SentencePiece model: byte {at} begins no field of a protobuf message")
        if wire == VARINT:
            value, at = _varint(data, at, where)
            yield field, value
            continue
        size = 8 if wire == FIXED64 else 4
        if wire == BYTES:
            size, at = _varint(data, at, where)
        if size > end - at:
            raise BadFileError(f"{where}: truncated: a field should end at byte {at + size}, its message ends at {end}")
        if wire == BYTES:
            yield field, data[at:at + size]
        elif wire == FIXED32:
            yield field, struct.unpack_from("<f", data, at)[0]
        at += size


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise BadFileError(f"{where}: truncated: ends within a number at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise BadFileError(f"{where}: no SentencePiece model: a number at byte {at} has more than 10 bytes")


def _number(field: int, value: int) -> bytes:
    return _encoded(field << 3 | VARINT) + _encoded(int(value) & (1 << 64) - 1)


def _bytes(field: int, value: bytes) -> bytes:
    return _encoded(field << 3 | BYTES) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
