"""GGUF, the file of llama.cpp and what is built on it: everything in one file, tokenizer included.

checkpoints/gguf_container.py has the layout, gguf_blocks.py that of the blocks, gguf_model.py the names. llama.cpp's types
have 32 weights to a float16 scale: int4 becomes Q4_0, with a minimum Q4_1, int8 Q8_0. Vectors are F32. The kind "q6_k" is
llama.cpp's own 6 bits, which `encode` rounds floats to.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Mapping, Sequence

import numpy as np

from genkit.checkpoints.files import shown, shown_path
from genkit.checkpoints.gguf_blocks import BY_FORMAT, TYPES, BlockType, encode, round_q6_k
from genkit.checkpoints.gguf_container import STRING, U32, Key, head_bytes, nbytes_of
from genkit.checkpoints.gguf_model import (ARCHITECTURES, ROPE_FACTORS, check_model, config_keys, generation_keys, gguf_name,
                                           interleave, is_permuted, rope_factors)
from genkit.errors import BadFileError, UsageError
from genkit.quant.codes import Codes
from genkit.quant.formats import Format
from genkit.quant.writers.base import FLOATS, Array, File, Kind, Source, Writer

if TYPE_CHECKING:
    from genkit.quant.roles import Roles

NAME = "model.gguf"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
BLOCK = 32
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q6_K": 18, "BF16": 32}  # llama.cpp's name for the whole


class Model(Writer):
    def __init__(self, source: Source, vocabulary: bool = True) -> None:
        """vocabulary: whether to take the tokenizer along."""
        super().__init__(source)
        check_model(source.fields, source.config)
        self._q6_k: set[str] = set()  # tensors
        self._vocabulary = vocabulary and any(name in source.files or (source.folder / name).exists() for name in TOKENIZERS)
        self._architecture = ARCHITECTURES[source.config.model_type]
        if self._architecture == "llama":  # rows change places within a head
            self.row_multiple = math.lcm(BLOCK, source.config.head_dim)

    def format(self, kind: str, group_size: int | None = None, asymmetric: bool = False) -> Kind:
        if kind in (*FLOATS, "q6_k"):
            return kind
        if kind not in ("int4", "int8"):
            raise UsageError(f"type {kind!r}: --format gguf holds int4, int8, q6_k, {', '.join(FLOATS)}")
        if group_size not in (None, BLOCK):
            raise UsageError(f"--group-size {group_size}: GGUF's blocks are of {BLOCK}; leave it away")
        if kind == "int8" and asymmetric:
            raise UsageError("--asym with int8: GGUF has no such type; leave it away")
        return Format(kind, BLOCK, "real" if asymmetric else "none")

    def default(self, name: str, roles: "Roles", kind: str) -> str | None:
        """Eight bits for embedding and head, as llama.cpp has them."""
        if name not in (roles.embedding, roles.head):
            return None
        return "float" if roles.shape(name)[1] % BLOCK else "int8"

    def plain(self, name: str, shape: tuple[int, ...], dtype: str) -> str:
        return dtype if len(shape) > 1 else "f32"

    def check(self, name: str, shape: tuple[int, int], kind: Kind) -> str | None:
        if isinstance(kind, Format) and kind not in BY_FORMAT:
            return f"{kind.words} in {kind.scale_dtype} is no type of GGUF"
        block = _block(kind)
        return f"{shape[1]} columns are not whole blocks of {block.weights}" if shape[1] % block.weights else None

    def arrays(self, name: str, shape: tuple[int, ...], kind: Kind) -> list[Array]:
        self.shapes[name] = shape
        block = _block(kind)
        if kind == "q6_k":
            self._q6_k.add(name)
        return [Array(gguf_name(name), block.name, shape, nbytes_of(block, shape))]

    def encode(self, name: str, value: Codes | np.ndarray) -> list[np.ndarray]:
        """Rows of whole heads, where they change places. A q6_k tensor is given as float32. Raises BadFileError for one that
        cannot be rounded."""
        rows = encode(value) if isinstance(value, Codes) else value
        if name in self._q6_k:
            try:
                rows = round_q6_k(value)
            except ValueError as error:
                raise BadFileError(f"{shown_path(self.source.folder)}: tensor {shown(name, 200)}: {error}") from None
        if is_permuted(self._architecture, name):
            rows = np.ascontiguousarray(interleave(rows, rows.shape[0] // self.source.config.head_dim))
        return [rows]

    def files(self, arrays: Sequence[Array], kinds: Mapping[str, Kind]) -> list[File]:
        tensors = [(array.name, array.dtype, array.shape) for array in arrays]
        factors = rope_factors(self.source.config.rope)
        if factors is not None:  # first, so that its bytes are of the file's beginning
            tensors.insert(0, (ROPE_FACTORS, "F32", factors.shape))
        head, offsets, nbytes = head_bytes(self._keys(arrays), tensors)
        if factors is not None:
            del offsets[ROPE_FACTORS]
            head += factors.astype("<f4").tobytes()
        return [File(NAME, head, offsets, nbytes)]

    def _keys(self, arrays: Sequence[Array]) -> list[Key]:
        from genkit.checkpoints.config import generation_defaults

        source, files = self.source, self.source.files
        self.notes = []
        window = max(source.config.windows)
        if 0 < window < source.config.rope.positions:
            self.notes.append(f"sliding_window {window}: llama.cpp's llama has none, so it sees further back than the model "
                              "was made for; genkit keeps to it")
        weights = {kind: sum(math.prod(array.shape) for array in arrays if array.dtype == kind) for kind in FILE_TYPES}
        keys: list[Key] = [("general.architecture", STRING, self._architecture), ("general.type", STRING, "model"),
                           ("general.file_type", U32, FILE_TYPES[max(weights, key=weights.__getitem__)]),
                           ("general.quantization_version", U32, 2), *config_keys(source.config)]
        defaults = generation_defaults(source.folder, source.fields, json.loads(files.get("generation_config.json", "null")))
        keys += generation_keys(defaults)
        if not self._vocabulary:
            return [*keys, ("tokenizer.ggml.model", STRING, "no_vocab")]
        from genkit.text.gguf_vocab import vocabulary_keys
        from genkit.text.tokenizer import Tokenizer

        tokenizer = Tokenizer(source.folder, files.get("tokenizer.json") or files.get("tokenizer.model"), json.loads(files.get("tokenizer_config.json", "null")))
        vocabulary, notes = vocabulary_keys(tokenizer, source.config.vocab_size, defaults.eos_token_ids)
        self.notes += notes
        return keys + vocabulary

    def extras(self, kinds: Mapping[str, Kind]) -> dict[str, bytes]:
        return {}


def _block(kind: Kind) -> BlockType:
    return TYPES[kind.upper()] if isinstance(kind, str) else BY_FORMAT[kind]
