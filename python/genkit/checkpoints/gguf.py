"""A model in GGUF files: what its keys say as config.json would, its tensors under Hugging Face's names."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Collection, Iterator, Mapping

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.files import failure, read_into, shown, shown_path
from genkit.checkpoints.gguf_blocks import TYPES, decode
from genkit.checkpoints.gguf_config import architecture_of, config_of, generation_of
from genkit.checkpoints.gguf_container import Container, Entry, open_container
from genkit.checkpoints.gguf_names import ARCHITECTURES, TABLES, Order, row_order, tensor_name
from genkit.checkpoints.quantized import Stored
from genkit.checkpoints.safetensors import Checkpoint, TensorInfo
from genkit.errors import BadFileError
from genkit.quant.codes import Codes

if TYPE_CHECKING:
    from genkit._core import PackedWeight, Tensor

MAX_EXPERTS = 50_000  # matrices and biases of single experts; DeepSeek-V3 has 44544


@dataclass(frozen=True)
class OpenModel:
    """fields and generation stand for config.json and generation_config.json. tokenizer_json is None where the file has no
    vocabulary, and a tokenizer.model (first byte 0x12) where that is of SentencePiece; tokenizer_config has the special tokens and the chat template."""

    fields: Fields
    generation: dict[str, Any]
    checkpoint: Checkpoint
    tokenizer_json: bytes | None
    tokenizer_config: dict[str, Any]

    def files(self) -> dict[str, bytes]:
        """What would lie beside the weights in a folder, config.json apart."""
        found = {"generation_config.json": json.dumps(self.generation, indent=2).encode()} if self.generation else {}
        if self.tokenizer_json is not None:
            config = {"tokenizer_class": "PreTrainedTokenizerFast"} | self.tokenizer_config
            name = "tokenizer.json" if self.tokenizer_json[:1] != b"\x12" else "tokenizer.model"
            found |= {name: self.tokenizer_json, "tokenizer_config.json": json.dumps(config, indent=2).encode()}
        return found


def open_model(path: Path) -> OpenModel:
    """The file, or the first of a split model's. Keys and places are read and checked, no weights. Close the checkpoint.
    Raises BadFileError and ResourceError."""
    path = Path(path)
    descriptors: dict[Path, int] = {}
    try:
        container = open_container(path, descriptors)
        fields = Fields(path, config_of(container, _tables(container, descriptors)))
        from genkit.text.gguf_vocab import tokenizer_of  # needs the architecture known first: its messages are plainer

        tokenizer_json, tokenizer_config = tokenizer_of(container)
        checkpoint = _checkpoint(container, fields, descriptors)
    except BaseException:
        for descriptor in descriptors.values():
            os.close(descriptor)
        raise
    return OpenModel(fields, generation_of(container), checkpoint, tokenizer_json, tokenizer_config)


def _tables(container: Container, descriptors: Mapping[Path, int]) -> dict[str, np.ndarray]:
    """The tensors that say something of the configuration."""
    found = {}
    for name in TABLES:
        entry, where = container.tensors.get(name), f"{shown_path(container.path)}: tensor '{name}'"
        if entry is None:
            continue
        if entry.type != "F32" or len(entry.shape) != 1 or entry.shape[0] > 1 << 16:
            raise BadFileError(f"{where} is {entry.type} {list(entry.shape)}; expected F32 of one dimension")
        found[name] = np.empty(entry.shape, "<f4")
        try:
            done = read_into(descriptors[entry.file], memoryview(found[name]).cast("B"), entry.offset)
        except OSError as error:
            raise failure(entry.file, error) from None
        if done < found[name].nbytes:
            raise BadFileError(f"{where}: the file ended in it; it was cut while being read")
    return found


def _checkpoint(container: Container, fields: Fields, descriptors: dict[Path, int]) -> Checkpoint:
    kind = architecture_of(container)
    architecture = ARCHITECTURES[kind]
    if "blk.0.attn_norm_2.weight" in container.tensors:  # Falcon's larger models
        architecture = replace(architecture, layer=architecture.layer | {"attn_norm": "ln_mlp"})
    tensors: dict[str, TensorInfo] = {}
    quantized: dict[str, Stored] = {}
    shifted: set[str] = set()
    orders: dict[str, Order] = {}
    experts = 0
    for theirs, entry in container.tensors.items():
        if theirs in TABLES:
            continue
        name = tensor_name(architecture, theirs)
        where = f"{shown_path(entry.file)}: tensor {shown(theirs)}"
        if name is None:
            raise BadFileError(f"{where} has no place in a model of architecture {kind}")
        if "{}" in name and len(entry.shape) > 1:
            experts += entry.shape[0]
            if experts > MAX_EXPERTS:
                raise BadFileError(f"{where} of shape {list(entry.shape)}: more than {MAX_EXPERTS} matrices of experts in all")
        if name.endswith("shared_expert_gate.weight") and len(entry.shape) == 1:
            entry = replace(entry, shape=(1, *entry.shape))
        for name, entry in _experts(name, entry, where):
            info = entry.info()
            if info.dtype == "u8":
                if len(entry.shape) != 2:
                    raise BadFileError(f"{where} of shape {list(entry.shape)} has type {entry.type}; only matrices can")
                quantized[name] = Stored(entry.shape, TYPES[entry.type].format, {"blocks": info},
                                         partial(_decoded, entry.type), entry.type.lower(), partial(_packed, entry.type))
            tensors[name] = info
            if architecture.plus_one and name.endswith("norm.weight"):
                if entry.type != "F32":
                    raise BadFileError(f"{where} is {entry.type}; norms of architecture {kind} are F32")
                shifted.add(name)
            try:
                order = row_order(architecture, name, fields, entry.shape[0])
            except ValueError as error:
                raise BadFileError(f"{where} of shape {list(entry.shape)} {error}") from None
            if order is not None:
                orders[name] = order
    checkpoint = _GGUFCheckpoint(container.path, tensors, descriptors, quantized, orders, shifted)
    if architecture.transposed:
        checkpoint.turned = {name for name in tensors if name.startswith(architecture.prefix)}
    return checkpoint


def _experts(name: str, entry: Entry, where: str) -> Iterator[tuple[str, Entry]]:
    """A tensor, or the part of each expert in one for all."""
    if "{}" not in name:
        yield name, entry
        return
    if len(entry.shape) < 2:
        raise BadFileError(f"{where} of shape {list(entry.shape)} is not one for each expert")
    size = entry.nbytes // entry.shape[0]
    for i in range(entry.shape[0]):
        yield name.format(i), replace(entry, shape=entry.shape[1:], offset=entry.offset + i * size, nbytes=size)


def _decoded(kind: str, parts: Mapping[str, np.ndarray]) -> Codes:
    return decode(kind, parts["blocks"])


def _packed(kind: str, parts: "Mapping[str, Tensor]", gated: bool) -> "PackedWeight":
    from genkit import _core

    return _core.pack_blocks(parts["blocks"], kind, gated)


class _GGUFCheckpoint(Checkpoint):
    """Gives rows in Hugging Face's order, and norms less one where they lie with one added. orders: the tensors whose rows lie
    otherwise; shifted: those norms."""

    def __init__(self, path: Path, tensors: dict[str, TensorInfo], descriptors: dict[Path, int],
                 quantized: Mapping[str, Stored], orders: Mapping[str, Order], shifted: Collection[str]) -> None:
        super().__init__(path, tensors, descriptors, quantized)
        self._orders = {name: (order, tensors[name]) for name, order in orders.items()}
        self._shifted = shifted

    def load_transposed(self, name: str, shape: tuple[int, int]) -> "Tensor":
        return self.load(name, shape[::-1]) if name in self.turned else super().load_transposed(name, shape)

    def _fill(self, name: str, info: TensorInfo, target: memoryview, skip: int) -> None:
        if name in self._orders:
            self._fill_rows(name, info, target, skip)
            return
        super()._fill(name, info, target, skip)
        if name in self._shifted:  # exact: the sum was rounded when it was written, and adding one gives it back
            values = np.frombuffer(target, "<f4")
            values -= np.float32(1)

    def _fill_rows(self, name: str, info: TensorInfo, target: memoryview, skip: int) -> None:
        order, whole = self._orders[name]
        row = whole.nbytes // whole.shape[0]
        size = order.rows * row
        begin = info.offset + skip - whole.offset
        end, out = begin + len(target), np.frombuffer(target, np.uint8)
        buffer = np.empty((order.rows, row), np.uint8)
        for i in range(begin // size, -(-end // size)):  # whole ones, which hold their own rows only
            there = replace(whole, offset=whole.offset + int(order.starts[i]) * row, nbytes=size)
            super()._fill(name, there, memoryview(buffer.reshape(-1)), 0)
            rows = buffer.reshape(-1, 2, row).swapaxes(0, 1) if order.paired else buffer
            first = i * size
            low, high = max(begin, first), min(end, first + size)
            out[low - begin:high - begin] = rows.reshape(-1)[low - first:high - first]
