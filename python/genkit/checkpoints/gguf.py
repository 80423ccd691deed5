"""A model in a GGUF file: what its keys say as config.json would, its tensors under Hugging Face's names."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from genkit.checkpoints.config import Fields
from genkit.checkpoints.files import failure, open_regular, read_into, shown, shown_path
from genkit.checkpoints.gguf_blocks import TYPES, decode
from genkit.checkpoints.gguf_container import Container, read_container
from genkit.checkpoints.gguf_model import (ROPE_FACTORS, architecture_of, config_of, generation_of, is_permuted, tensor_name,
                                           uninterleave)
from genkit.checkpoints.quantized import Stored
from genkit.checkpoints.safetensors import Checkpoint, TensorInfo
from genkit.errors import BadFileError


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
    """Keys and places are read and checked, no weights. Close the checkpoint. Raises BadFileError and ResourceError."""
    path = Path(path)
    descriptor, size = open_regular(path)
    try:
        container = read_container(path, descriptor, size)
        fields = Fields(path, config_of(container, _rope_factors(container, descriptor)))
        from genkit.text.gguf_vocab import tokenizer_of  # needs the architecture known first: its messages are plainer

        tokenizer_json, tokenizer_config = tokenizer_of(container)
        checkpoint = _checkpoint(container, fields, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return OpenModel(fields, generation_of(container), checkpoint, tokenizer_json, tokenizer_config)


def _rope_factors(container: Container, descriptor: int) -> np.ndarray | None:
    entry, where = container.tensors.get(ROPE_FACTORS), f"{shown_path(container.path)}: tensor '{ROPE_FACTORS}'"
    if entry is None:
        return None
    if entry.type != "F32" or len(entry.shape) != 1 or entry.shape[0] > 1 << 16:
        raise BadFileError(f"{where} is {entry.type} {list(entry.shape)}; expected F32 of one dimension")
    found = np.empty(entry.shape, "<f4")
    try:
        done = read_into(descriptor, memoryview(found).cast("B"), entry.offset)
    except OSError as error:
        raise failure(container.path, error) from None
    if done < found.nbytes:
        raise BadFileError(f"{where}: the file ended in it; it was cut while being read")
    return found


def _checkpoint(container: Container, fields: Fields, descriptor: int) -> Checkpoint:
    path, architecture = container.path, architecture_of(container)
    tensors: dict[str, TensorInfo] = {}
    quantized: dict[str, Stored] = {}
    heads: dict[str, int] = {}
    for theirs, entry in container.tensors.items():
        if theirs == ROPE_FACTORS:
            continue
        name = tensor_name(theirs)
        where = f"{shown_path(path)}: tensor {shown(theirs)}"
        if name is None:
            raise BadFileError(f"{where} has no place in a model of architecture {architecture}")
        info = entry.info(path)
        if info.dtype == "u8":
            if len(entry.shape) != 2:
                raise BadFileError(f"{where} of shape {list(entry.shape)} has type {entry.type}; only matrices can")
            n, k = entry.shape
            quantized[name] = Stored((n, k), TYPES[entry.type].format, {"blocks": info}, partial(_decoded, entry.type, k),
                                     entry.type.lower())
        tensors[name] = info
        if is_permuted(architecture, name):
            key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
            heads[name] = fields.integer(key, 1, 1 << 16)
            if entry.shape[0] % (2 * heads[name]):
                raise BadFileError(f"{where} of shape {list(entry.shape)} has no even number of rows for each of "
                                   f"{heads[name]} heads")
    return _GGUFCheckpoint(path, tensors, {path: descriptor}, quantized, heads)


def _decoded(kind: str, k: int, parts: Mapping[str, np.ndarray]) -> Any:
    return decode(kind, parts["blocks"], k)


class _GGUFCheckpoint(Checkpoint):
    """Gives rows of q and k in Hugging Face's order. heads: the tensors whose rows lie otherwise, and how many heads."""

    def __init__(self, path: Path, tensors: dict[str, TensorInfo], descriptors: dict[Path, int],
                 quantized: Mapping[str, Stored], heads: Mapping[str, int]) -> None:
        super().__init__(path, tensors, descriptors, quantized)
        self._heads = {name: (count, tensors[name]) for name, count in heads.items()}

    def _fill(self, name: str, info: TensorInfo, target: memoryview, skip: int) -> None:
        if name not in self._heads:
            super()._fill(name, info, target, skip)
            return
        heads, whole = self._heads[name]
        rows = whole.shape[0] // heads
        size = whole.nbytes // heads
        begin = info.offset + skip - whole.offset
        end, out = begin + len(target), np.frombuffer(target, np.uint8)
        buffer = np.empty((rows, size // rows), np.uint8)
        for head in range(begin // size, -(-end // size)):  # whole ones, which hold their own rows only
            first = head * size
            super()._fill(name, replace(whole, offset=whole.offset + first, nbytes=size), memoryview(buffer.reshape(-1)), 0)
            low, high = max(begin, first), min(end, first + size)
            out[low - begin:high - begin] = uninterleave(buffer, 1).reshape(-1)[low - first:high - first]
