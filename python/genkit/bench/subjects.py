"""The models a benchmark measures: found, checked against context and memory before any weights are read, and loaded."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterable, Sequence

import genkit
from genkit import checkpoints
from genkit.bench.shapes import check_shape, open_shape
from genkit.checkpoints.config import GenerationDefaults
from genkit.checkpoints.files import size_words
from genkit.checkpoints.safetensors import memory_needed
from genkit.devices import free_memory
from genkit.engine import LoadedModel, choose_kv_type, choose_quantize, load_opened
from genkit.errors import ResourceError, UsageError
from genkit.kv_cache import PAGE_KEYS, page_bytes
from genkit.models import read_model_config
from genkit.opening import Opened, open_model
from genkit.quant.formats import BY_NAME
from genkit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from genkit.models.config import ModelConfig

FLOATS = ("f32", "f16", "bf16")
TYPES = ("stored", *FLOATS, *BY_NAME)


@dataclass
class Subject:
    """A model in one type on one device. name and type are those of its rows: the type is what its weights are in memory, "bf16", "int4",
    "Q4_K". quantize: as load takes it."""

    name: str
    type: str
    opened: Opened
    quantize: str
    config: "ModelConfig"
    kv_type: str
    device: str = "cpu"

    @property
    def weight_bytes(self) -> int:
        """Of memory, on the processor while it is loaded too."""
        bits = None if self.quantize == "none" else BY_NAME[self.quantize].bits
        return memory_needed(self.opened.checkpoint, bits, reading=self.device == "cpu")

    def cache_bytes(self, pages: int) -> int:
        c, pages = self.config, pages + (self.device != "cpu")  # a device's cache has one more, for padding rows
        return pages * page_bytes(c.layers, c.kv_heads, c.head_dim, self.kv_type)

    def check_context(self, depth: int, tokens: int) -> None:
        """Raises UsageError where so many tokens after so many are more than the model was made for."""
        if depth + tokens > self.config.max_positions:
            raise UsageError(f"{self.name}: --depth {depth} and {tokens} tokens more are {depth + tokens}, beyond its "
                             f"context of {self.config.max_positions}; take fewer")

    def check_memory(self, pages: int, what: str) -> int:
        """Bytes of weights and of so many pages of keys and values, `what` in words. Raises ResourceError where they are
        more than is free."""
        weights, cache, free = self.weight_bytes, self.cache_bytes(pages), free_memory(self.device)
        there = "" if self.device == "cpu" else f" on {self.device}"
        if weights + cache > free:
            raise ResourceError(f"{self.name} in {self.type}: the weights need {size_words(weights)}, keys and values of "
                                f"{what} {size_words(cache)}, together {size_words(weights + cache)}, and "
                                f"{size_words(free)} is free{there}; take a smaller model, type, --depth or --batch")
        return weights + cache

    def load(self, threads: int, progress: "Callable[[int, int], None] | None", pages: int | None = None) -> LoadedModel:
        """pages: of keys and values, for which room is left on a device. Raises ResourceError where only some of the layers fit
        there: that would be another thing to measure."""
        context = None if pages is None or self.device == "cpu" else min(self.config.max_positions, pages * PAGE_KEYS)
        loaded = load_opened(self.opened, self.name, threads, device=self.device, quantize=self.quantize, kv_type=self.kv_type,
                             context=context, progress=progress)
        if loaded.placing and not loaded.placing.whole:
            raise ResourceError(f"{self.name} in {self.type}: {loaded.placing.layers} of {self.config.layers} layers fit on "
                                f"{self.device}, and a model is measured on one device; take a smaller model or type")
        return loaded


def open_subjects(models: Sequence[str], shapes: Sequence[str], types: Iterable[str], kv_type: str, seed: int,
                  stack: ExitStack) -> list[Subject]:
    """Every model, and every shape, in every type; without any, the model in the package. No types: stored, for shapes
    bf16. The files stay open until the stack is left; of weights nothing is read. Raises UsageError and BadFileError."""
    types = list(types)
    for kind in types:
        if kind not in TYPES:
            raise UsageError(f"--type {kind}: expected {', '.join(TYPES)}")
    for name in shapes:
        check_shape(name)
    if not models and not shapes:
        models = [str(genkit.DEFAULT_MODEL)]
    named = {path: _name(path) for path in models}
    found: "dict[tuple[str, str], Subject]" = {}

    def add(subject: Subject) -> None:
        found.setdefault((subject.name, subject.type), subject)

    for path, name in named.items():
        name = name if Counter(named.values())[name] == 1 and name not in shapes else path
        opened = open_model(checkpoints.resolve(path), stack)
        for kind in types or ["stored"]:
            add(_of_files(name, kind, opened, kv_type))
    for name in shapes:
        for kind in types or ["bf16"]:
            add(_of_shape(name, kind, kv_type, seed))
    return list(found.values())


def _name(path: str) -> str:
    if Path(path) == Path(genkit.DEFAULT_MODEL):
        return "default"
    return Path(path).resolve().name if Path(path).exists() else path


def _of_files(name: str, kind: str, opened: Opened, kv_type: str) -> Subject:
    checkpoint = opened.checkpoint
    quantize = {"stored": choose_quantize(None, opened.fields)}.get(kind, kind if kind in BY_NAME else "none")
    if checkpoint.quantized and kind != "stored":
        raise UsageError(f"{name}: --type {kind}: its weights are {_stored_type(opened)} codes; only stored can be measured")
    if kind in FLOATS and kind != _stored_type(opened):
        raise UsageError(f"{name}: --type {kind}: its weights are {_stored_type(opened)}; take that, stored, or one of "
                         f"{', '.join(BY_NAME)}, to which they are rounded")
    config = read_model_config(opened.fields, checkpoint)
    return Subject(name, _stored_type(opened) if quantize == "none" else quantize, opened, quantize, config,
                   choose_kv_type(kv_type, checkpoint, quantize))


def _of_shape(name: str, kind: str, kv_type: str, seed: int) -> Subject:
    quantize = kind if kind in BY_NAME else "none"
    dtype = kind if kind in FLOATS else "bf16"
    fields, checkpoint = open_shape(name, dtype, seed)
    path = Path(name)
    opened = Opened(path, fields, checkpoint, GenerationDefaults(), lambda: Tokenizer(path), False)
    config = read_model_config(fields, checkpoint)
    return Subject(name, dtype if quantize == "none" else quantize, opened, quantize, config,
                   choose_kv_type(kv_type, checkpoint, quantize))


def _stored_type(opened: Opened) -> str:
    """What most of the matrices are."""
    sizes: "Counter[str]" = Counter()
    for info in opened.checkpoint.tensors.values():
        if len(info.shape) > 1:
            sizes[info.dtype] += info.nbytes
    kind = sizes.most_common(1)[0][0] if sizes else "f32"
    return "mxfp4" if kind == "u8" else kind
