"""What every writer offers, and the part of it that folders of safetensors share.

A model's tensors are written in any order and one at a time: where each array goes is settled beforehand from names and
shapes alone (`arrays`, `files`), so that nothing is moved, a disk that is too small is found early, and a run that was
killed goes on where it stood.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence, Union

import numpy as np

from genkit.quant.codes import Codes
from genkit.quant.formats import Format

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.models.config import ModelConfig
    from genkit.quant.roles import Roles

FLOATS = ("f32", "f16", "bf16")
Kind = Union[Format, str]  # what a tensor is kept as: codes of a format, or one of FLOATS


@dataclass(frozen=True)
class Source:
    """The model that is quantized: its folder and what config.json says."""

    folder: Path
    fields: "Fields"
    config: "ModelConfig"
    files: "Mapping[str, bytes]" = field(default_factory=dict)  # of a source that is one file: what it holds of COPIED


@dataclass(frozen=True)
class Array:
    """An array of the output. dtype as its container spells it ("I32", "BF16"; GGUF: "Q4_0")."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class File:
    """A file of the output: its first bytes, and where each array begins. Gaps between arrays are zeros."""

    name: str
    head: bytes
    offsets: Mapping[str, int]
    nbytes: int


class Writer:
    """Raises UsageError in its constructor for a model, and in `format` for a type, that the form cannot hold."""

    by_rows = True  # arrays lie row after row, so that `encode` may get some rows at a time, multiples of row_multiple
    row_multiple = 32

    def __init__(self, source: Source) -> None:
        self.source = source
        self.notes: list[str] = []  # what the user should know, after `files`
        self.shapes: dict[str, tuple[int, ...]] = {}  # of what `arrays` was asked for

    def format(self, kind: str, group_size: int | None = None, asymmetric: bool = False) -> Kind:
        """What "int4", "int8" or a float type becomes here, by default or with this group."""
        raise NotImplementedError

    def default(self, name: str, roles: "Roles", kind: str) -> str | None:
        """What a matrix becomes when all are to be `kind` and nobody speaks of this one: another type, "float", or None
        for just that. Here: everything is `kind`."""
        return None

    def plain(self, name: str, shape: tuple[int, ...], dtype: str) -> str:
        """The float type of a tensor that is kept as a float, dtype in the source."""
        return dtype

    def check(self, name: str, shape: tuple[int, int], kind: Kind) -> str | None:
        """Why this matrix [n, k] cannot be kept so here (it then stays a float), or None."""
        return None

    def arrays(self, name: str, shape: tuple[int, ...], kind: Kind) -> list[Array]:
        """The arrays a tensor of the model becomes. shape is [n, k] for codes, whatever the source's order was."""
        raise NotImplementedError

    def encode(self, name: str, value: Codes | np.ndarray) -> list[np.ndarray]:
        """Their contents, in the order of `arrays`: of codes, or of a float tensor (bf16 as uint16 bits)."""
        raise NotImplementedError

    def files(self, arrays: Sequence[Array], kinds: Mapping[str, Kind]) -> list[File]:
        """Where all arrays go. kinds: every tensor of the model and what it is kept as."""
        raise NotImplementedError

    def extras(self, kinds: Mapping[str, Kind]) -> dict[str, bytes]:
        """Other files by name, config.json above all."""
        raise NotImplementedError

    def index(self, files: Sequence[File], arrays: Sequence[Array]) -> dict[str, bytes]:
        """A file that says which array is where, if the form has one."""
        return {}


SHARD = 5 * 10**9  # bytes a safetensors file holds at most, as transformers cuts them
NUMPY = {"F32": np.dtype(np.float32), "F16": np.dtype(np.uint16), "BF16": np.dtype(np.uint16), "U8": np.dtype(np.uint8),
         "I8": np.dtype(np.int8), "I32": np.dtype(np.int32), "U32": np.dtype(np.uint32), "I64": np.dtype(np.int64)}
# Files of a model folder that are not weights and go along as they are.
COPIED = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
          "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json", "LICENSE",
          "LICENSE.txt", "NOTICE")
MAX_COPIED = 200 << 20  # bytes


def array(name: str, dtype: str, shape: Sequence[int]) -> Array:
    count = 1
    for size in shape:
        count *= size
    return Array(name, dtype, tuple(shape), count * NUMPY[dtype].itemsize)


class SafetensorsWriter(Writer):
    """A Hugging Face folder. Subclasses say what codes become and what config.json says of them."""

    def code_arrays(self, name: str, shape: tuple[int, int], format: Format) -> list[Array]:
        raise NotImplementedError

    def encode_codes(self, name: str, codes: Codes) -> list[np.ndarray]:
        raise NotImplementedError

    def quantization_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """What config.json holds under this key."""
        raise NotImplementedError

    def more_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """Other keys of config.json to set."""
        return {}

    def arrays(self, name: str, shape: tuple[int, ...], kind: Kind) -> list[Array]:
        self.shapes[name] = shape
        if isinstance(kind, str):
            return [array(name, kind.upper(), shape)]
        return self.code_arrays(name, shape, kind)

    def encode(self, name: str, value: Codes | np.ndarray) -> list[np.ndarray]:
        return self.encode_codes(name, value) if isinstance(value, Codes) else [value]

    def files(self, arrays: Sequence[Array], kinds: Mapping[str, Kind]) -> list[File]:
        shards: list[list[Array]] = [[]]
        for entry in arrays:
            if shards[-1] and sum(a.nbytes for a in shards[-1]) + entry.nbytes > SHARD:
                shards.append([])
            shards[-1].append(entry)
        if len(shards) == 1:
            return [safetensors_file("model.safetensors", shards[0])]
        return [safetensors_file(shard_name(i, len(shards)), shard) for i, shard in enumerate(shards)]

    def extras(self, kinds: Mapping[str, Kind]) -> dict[str, bytes]:
        from genkit.checkpoints.files import read_small

        config = dict(self.source.fields.raw)
        for key in ("quantization_config", "quantization", "genkit_quantize"):
            config.pop(key, None)
        config |= self.more_config(kinds)
        quantization = self.quantization_config(kinds)
        if quantization:
            config["quantization_config"] = quantization
        files = {"config.json": json_bytes(config)}
        files |= self.source.files
        for name in COPIED:
            path = self.source.folder / name
            if path.is_file():
                files[name] = read_small(path, MAX_COPIED)
        return files

    def index(self, files: Sequence[File], arrays: Sequence[Array]) -> dict[str, bytes]:
        """model.safetensors.index.json, where there is more than one file."""
        if len(files) == 1:
            return {}
        weight_map = {name: file.name for file in files for name in file.offsets}
        total = sum(a.nbytes for a in arrays)
        return {"model.safetensors.index.json": json_bytes({"metadata": {"total_size": total}, "weight_map": weight_map})}


def shard_name(i: int, count: int) -> str:
    return f"model-{i + 1:05}-of-{count:05}.safetensors"


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def safetensors_file(name: str, arrays: Sequence[Array]) -> File:
    """Header and places (docs of the safetensors format): the arrays in this order, without gaps; the header is filled up
    with spaces so that the first begins at a multiple of 64."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, offsets = 0, {}
    for a in arrays:
        entries[a.name] = {"dtype": a.dtype, "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        offsets[a.name] = at
        at += a.nbytes
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % 64)
    head = len(header).to_bytes(8, "little") + header
    return File(name, head, {a: len(head) + offset for a, offset in offsets.items()}, len(head) + at)
