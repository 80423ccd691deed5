"""GGUF files, versions 2 and 3: keys with values, then tensors, written by llama.cpp and others. Nothing here knows models.

All little-endian. A string is u64 length, then UTF-8. The file:
  "GGUF", u32 version, u64 number of tensors, u64 number of keys
  keys     string name, u32 type, value; an array is u32 type of its items, u64 count, the items
  tensors  string name, u32 number of sizes, u64 sizes (the innermost first), u32 type, u64 offset
  then, from the next multiple of the alignment on, the tensors' data; offsets count from there and are multiples of it.
A model may be split: NAME-00001-of-00003.gguf and so on, each a file of this kind with keys split.no (from 0), split.count and
split.tensors.count (in all files); the first has what else there is to say.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Mapping, Sequence

import numpy as np

from genkit.checkpoints.files import failure, open_regular, read_into, shown, shown_path
from genkit.checkpoints.gguf_blocks import BY_ID, NAMES, TYPES
from genkit.checkpoints.safetensors import TensorInfo
from genkit.errors import BadFileError

if TYPE_CHECKING:
    from genkit.checkpoints.gguf_blocks import BlockType

ALIGNMENT = 32  # bytes, where general.alignment says nothing
MAX_HEAD = 256 << 20  # bytes before the tensors' data; vocabularies of today take 5 to 40 MB
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 22  # in all arrays together
MAX_NAME = 65535  # bytes of a key
MAX_TENSOR_NAME = 64
MAX_BYTES = 2**63 - 1
SPLIT_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Entry:
    """A tensor: type by name ("Q4_0"), shape outermost first, offset from the start of its file."""

    type: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    def info(self) -> TensorInfo:
        """As a tensor of floats, or its rows of blocks as bytes: u8 [all rows, bytes of one]."""
        if self.type in ("F32", "F16", "BF16"):
            return TensorInfo(self.type.lower(), self.shape, self.file, self.offset, self.nbytes)
        rows = math.prod(self.shape[:-1])
        return TensorInfo("u8", (rows, self.nbytes // rows), self.file, self.offset, self.nbytes)


@dataclass(frozen=True)
class Container:
    """keys: numbers, bool, str; arrays are numpy arrays, or lists of bytes where they hold strings. path: the first file."""

    path: Path
    keys: Mapping[str, Any]
    tensors: Mapping[str, Entry]


def open_container(path: Path, descriptors: dict[Path, int]) -> Container:
    """A file, or all files of a split model from its first one on; `descriptors` gets what is opened. Raises BadFileError and
    ResourceError."""

    def opened(path: Path) -> Container:
        descriptors[path], size = open_regular(path)
        return read_container(path, descriptors[path], size)

    first = opened(path)
    count = _split_number(first, "split.count", 1)
    if count <= 1:
        if not first.tensors:
            raise BadFileError(f"{shown_path(path)}: holds no tensors")
        return first
    paths = split_paths(path, count, _split_number(first, "split.no", 0))
    missing = [file for file in paths if not os.path.lexists(file)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadFileError(f"{shown_path(path)}: one of {count} files; {shown_path(missing[0])}{more} not found; download it "
                           "too")
    tensors = dict(first.tensors)
    for i, file in enumerate(paths[1:], 1):
        part = opened(file)
        found = _split_number(part, "split.no", 0), _split_number(part, "split.count", 1)
        if found != (i, count):
            raise BadFileError(f"{shown_path(file)}: split.no and split.count are {found[0]} and {found[1]}; expected {i} and "
                               f"{count}, of {shown_path(path.name)}")
        twice = next((name for name in part.tensors if name in tensors), None)
        if twice is not None:
            raise BadFileError(f"{shown_path(file)}: tensor {shown(twice)} is in {shown_path(tensors[twice].file.name)} too")
        tensors |= part.tensors
        if len(tensors) > MAX_TENSORS:
            raise BadFileError(f"{shown_path(path)}: more than {MAX_TENSORS} tensors in its {count} files")
    if len(tensors) != _split_number(first, "split.tensors.count", len(tensors)) or not tensors:
        raise BadFileError(f"{shown_path(path)}: split.tensors.count is {shown(first.keys.get('split.tensors.count'))}, the "
                           f"{count} files hold {len(tensors)}; download them again")
    return Container(path, first.keys, tensors)


def _split_number(container: Container, key: str, default: int) -> int:
    value = container.keys.get(key, default)
    if type(value) is not int or value < 0:
        raise BadFileError(f"{shown_path(container.path)}: {key} is {shown(value)}; expected a number from 0 on")
    return value


def split_paths(path: Path, count: int, number: int) -> list[Path]:
    """The files of a split model, from the name of its first. Raises BadFileError for another, and for a name that does not say
    which it is."""
    match = SPLIT_NAME.fullmatch(path.name)
    if not match or not 1 <= count < 10**5 or int(match[3]) != count:
        raise BadFileError(f"{shown_path(path)}: one of {count} files of a split model, which are named "
                           f"NAME-00001-of-{count:05}.gguf; give it the name it had")
    paths = [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if int(match[2]) != 1 or number != 0:
        raise BadFileError(f"{shown_path(path)}: part {number + 1} of a split model; give its first file, "
                           f"{shown_path(paths[0])}")
    return paths


def read_container(path: Path, descriptor: int, size: int) -> Container:
    """What an open file of `size` bytes says of itself, every tensor checked to lie in it and on no other.

    Raises BadFileError.
    """
    return _Reader(path, descriptor, size).read()


class _Reader:
    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path, self.descriptor, self.size = path, descriptor, size
        self.data = b""  # the file's beginning, as far as it was needed
        self.at = 0
        self.strings_left = MAX_STRINGS

    def error(self, words: str) -> BadFileError:
        return BadFileError(f"{shown_path(self.path)}: {words}")

    def need(self, count: int, what: str) -> None:
        """Sees to it that data holds `count` bytes from `at` on."""
        end = self.at + count
        if end <= len(self.data):
            return
        if end > self.size:
            raise self.error(f"truncated: {what} should end at byte {end}, the file ends at {self.size}; download it again")
        if end > MAX_HEAD:
            raise self.error(f"{what} ends at byte {end}; keys and names may take {MAX_HEAD} bytes")
        more = bytearray(min(self.size, MAX_HEAD, max(end, 2 * len(self.data), 1 << 20)) - len(self.data))
        try:
            done = read_into(self.descriptor, memoryview(more), len(self.data))
        except OSError as error:
            raise failure(self.path, error) from None
        if done < len(more):
            raise self.error(f"file ended at byte {len(self.data) + done}; it was cut while being read")
        self.data += more

    def number(self, format: str, what: str) -> Any:
        count = struct.calcsize("<" + format)
        self.need(count, what)
        value = struct.unpack_from("<" + format, self.data, self.at)[0]
        self.at += count
        return value

    def string(self, limit: int, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        if length > limit:
            raise self.error(f"{what} has {length} bytes; at most {limit} are allowed")
        self.need(length, what)
        text = self.data[self.at:self.at + length]
        self.at += length
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 text (byte {error.start} of it)") from None

    def strings(self, count: int, what: str) -> list[bytes]:
        """A vocabulary has hundreds of thousands: one pass over the bytes."""
        if count > self.strings_left:
            raise self.error(f"{what} has {count} strings; {MAX_STRINGS} are allowed in all")
        self.strings_left -= count
        found = []
        length_of = struct.Struct("<Q").unpack_from
        at, data, size = self.at, self.data, len(self.data)
        for _ in range(count):
            if at + 8 > size:
                self.at = at
                self.need(8, what)
                data, size = self.data, len(self.data)
            end = at + 8 + length_of(data, at)[0]
            if end > size:
                self.at = at
                self.need(end - at, what)
                data, size = self.data, len(self.data)
            found.append(data[at + 8:end])
            at = end
        self.at = at
        return found

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.string(MAX_HEAD, what)
        if kind == ARRAY:
            return self.array(what)
        if kind not in SCALARS:
            raise self.error(f"{what} has value type {kind}, which is unknown")
        value = self.number(SCALARS[kind], what)
        # Of f32 the shortest decimal: 1e-06 and not 9.99999997e-07, as the model's own config.json had it.
        return float(str(np.float32(value))) if kind == F32 else value

    def array(self, what: str) -> Any:
        kind, count = self.number("I", what), self.number("Q", what)
        if kind == STRING:
            return self.strings(count, what)
        if kind not in SCALARS:
            raise self.error(f"{what} is an array of arrays" if kind == ARRAY else
                             f"{what} is an array of value type {kind}, which is unknown")
        dtype = np.dtype("u1" if kind == BOOL else "<" + SCALARS[kind])
        self.need(count * dtype.itemsize, what)
        found = np.frombuffer(self.data, dtype, count, self.at).copy()
        self.at += found.nbytes
        return found

    def read(self) -> Container:
        self.need(4, "the first word")
        if self.data[:4] != b"GGUF":
            raise self.error(f"begins with {shown(self.data[:4])}, not with GGUF; not a GGUF file, or a damaged one")
        self.at = 4
        version = self.number("I", "the version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") <= 3
            raise self.error("a big-endian GGUF file; only little-endian ones are read" if swapped and version else
                             f"GGUF version {version}; versions 2 and 3 are read. Write it anew with llama.cpp's tools")
        tensors, keys = self.number("Q", "the number of tensors"), self.number("Q", "the number of keys")
        for what, count, limit, least in (("tensors", tensors, MAX_TENSORS, 24), ("keys", keys, MAX_KEYS, 13)):
            if count > limit or count * least > self.size:
                raise self.error(f"claims {count} {what} in {self.size} bytes; at most {limit} are allowed, of at least "
                                 f"{least} bytes each")
        found: dict[str, Any] = {}
        for i in range(keys):
            key = self.string(MAX_NAME, f"the name of key {i}")
            if key in found:
                raise self.error(f"key {shown(key)} is there twice")
            found[key] = self.value(self.number("I", f"the type of key {shown(key)}"), f"key {shown(key)}")
        entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
        for i in range(tensors):
            name = self.string(MAX_TENSOR_NAME, f"the name of tensor {i}")
            if name in entries:
                raise self.error(f"tensor {shown(name)} is there twice")
            entries[name] = self.entry(name)
        return Container(self.path, found, self.placed(entries, found.get("general.alignment", ALIGNMENT)))

    def entry(self, name: str) -> tuple[str, tuple[int, ...], int]:
        what = f"tensor {shown(name)}"
        count = self.number("I", what)
        if not 1 <= count <= 4:
            raise self.error(f"{what} has {count} dimensions; 1 to 4 are allowed")
        shape = tuple(self.number("Q", what) for _ in range(count))[::-1]
        kind, offset = self.number("I", what), self.number("Q", what)
        if kind not in BY_ID:
            known = ", ".join(TYPES)
            raise self.error(f"{what} has type {NAMES.get(kind, kind)}, which is not supported; known: {known}")
        elements = 1
        for size in shape:
            elements *= size
            if not 1 <= elements <= MAX_BYTES // 8:
                raise self.error(f"{what} has shape {list(shape)}, which cannot be")
        block = BY_ID[kind]
        if shape[-1] % block.weights:
            raise self.error(f"{what} of shape {list(shape)} has type {block.name}, whose blocks are {block.weights} long")
        return block.name, shape, offset

    def placed(self, entries: Mapping[str, tuple[str, tuple[int, ...], int]], alignment: Any) -> dict[str, Entry]:
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.error(f"general.alignment is {shown(alignment)}; expected a power of two from 8 to {1 << 20}")
        start = -(-self.at // alignment) * alignment
        placed = {}
        for name, (kind, shape, offset) in entries.items():
            if offset % alignment:
                raise self.error(f"tensor {shown(name)} has offset {offset}, no multiple of {alignment}")
            nbytes = nbytes_of(TYPES[kind], shape)
            if start + offset + nbytes > self.size:
                raise self.error(f"truncated: tensor {shown(name)} should end at byte {start + offset + nbytes}, the file "
                                 f"ends at {self.size}; download it again")
            placed[name] = Entry(kind, shape, self.path, start + offset, nbytes)
        before, end = "", 0
        for name, entry in sorted(placed.items(), key=lambda item: item[1].offset):
            if entry.offset < end:
                raise self.error(f"tensor {shown(name)} overlaps {shown(before)}: begins at byte {entry.offset}, not {end}")
            before, end = name, entry.offset + entry.nbytes
        return placed


def nbytes_of(block: "BlockType", shape: Sequence[int]) -> int:
    """Bytes of a tensor; shape[-1] is whole blocks."""
    count = 1
    for size in shape:
        count *= size
    return count // block.weights * block.nbytes


Key = tuple[str, int, Any]  # name, value type, value; for ARRAY a pair of item type and items


def head_bytes(keys: Sequence[Key], tensors: Iterable[tuple[str, str, Sequence[int]]]) -> tuple[bytes, dict[str, int], int]:
    """The file up to the tensors' data, which lie in this order: (name, type, shape) each. Also where each begins in the
    file, and where the file ends."""
    tensors = list(tensors)
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    for name, kind, value in keys:
        out += _string(name) + struct.pack("<I", kind)
        _append_value(out, kind, value)
    at, offsets = 0, {}
    for name, kind, shape in tensors:
        out += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), TYPES[kind].id, at)
        offsets[name] = at
        at = _aligned(at + nbytes_of(TYPES[kind], shape))
    out += b"\0" * (_aligned(len(out)) - len(out))
    return bytes(out), {name: len(out) + offset for name, offset in offsets.items()}, len(out) + at


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: "str | bytes") -> bytes:
    data = text.encode("utf-8") if isinstance(text, str) else text
    return len(data).to_bytes(8, "little") + data


def _append_value(out: bytearray, kind: int, value: Any) -> None:
    if kind == STRING:
        out += _string(value)
    elif kind != ARRAY:
        out += struct.pack("<" + SCALARS[kind], value)
    else:
        item, items = value
        out += struct.pack("<IQ", item, len(items))
        out += b"".join(map(_string, items)) if item == STRING else np.asarray(items, "<" + SCALARS[item]).tobytes()
