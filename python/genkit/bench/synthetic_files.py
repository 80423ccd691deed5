"""A RandomCheckpoint as a Hugging Face folder, for what reads files: config.json, model.safetensors and a tokenizer that has
every id the model may write."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator

from genkit.checkpoints.files import shown_path, size_words
from genkit.checkpoints.safetensors import SINGLE
from genkit.errors import ResourceError
from genkit.quant.writers.base import array, json_bytes, safetensors_file

if TYPE_CHECKING:
    from genkit.bench.synthetic import RandomCheckpoint
    from genkit.checkpoints.config import Fields

TORCH = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
PIECE = 64 << 20  # bytes made and written at a time
SPARE = 64 << 20  # bytes of disk that stay free beside the tokenizer


def write(fields: "Fields", checkpoint: "RandomCheckpoint", dtype: str, folder: Path,
          progress: Callable[[int, int], None] | None = None) -> None:
    """Into a folder that is there; progress(done, total) is told bytes of weights. Raises ResourceError where the disk is too
    small, before anything is written, or cannot be written."""
    arrays = [array(name, info.dtype.upper(), info.shape) for name, info in checkpoint.tensors.items()]
    file = safetensors_file(SINGLE, arrays)
    with writing(folder):
        free = shutil.disk_usage(folder).free
        if file.nbytes + SPARE > free:
            raise ResourceError(f"{shown_path(folder)}: needs {size_words(file.nbytes + SPARE)} of disk, {size_words(free)} are free")
        config = fields.raw | {"torch_dtype": TORCH[dtype]}
        (folder / "config.json").write_bytes(json_bytes(config))
        for name, contents in tokenizer_files(fields).items():
            (folder / name).write_bytes(contents)
        done = 0
        with open(folder / SINGLE, "wb", buffering=0) as target:
            _write(target, memoryview(file.head))
            for name in checkpoint.tensors:
                for piece in checkpoint.pieces(name, PIECE):
                    _write(target, memoryview(piece))
                    done += len(piece)
                    if progress is not None:
                        progress(done, checkpoint.nbytes)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{shown_path(path)}: cannot be written: {error.strerror or error}") from None


def _write(target: Any, data: memoryview) -> None:
    while data:
        data = data[target.write(data):]


def tokenizer_files(fields: "Fields") -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE with as many entries as the embedding has rows and as many
    merges as a real one has: its words are all runs of letters, short ones first."""
    from tokenizers.pre_tokenizers import ByteLevel

    size = fields.raw["vocab_size"]
    special: dict[int, str] = {}
    for key in ("bos", "eos", "pad"):
        token = fields.raw.get(f"{key}_token_id")
        if token is not None:
            special.setdefault(token, f"<|{key}|>")
    letters = sorted(ByteLevel.alphabet())
    merges = list(islice(_merges(), size - len(letters) - len(special)))
    tokens = iter([*letters, *map("".join, merges)])
    vocabulary = {special.get(i) or next(tokens): i for i in range(size)}
    added = [dict(id=i, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for i, content in sorted(special.items())]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None, pre_tokenizer=byte_level,
                     post_processor=None, decoder=byte_level,
                     model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                                fuse_unk=False, byte_fallback=False, vocab=vocabulary, merges=list(map(" ".join, merges))))
    config = dict(tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=False,
                  **{f"{key}_token": special[fields.raw[f"{key}_token_id"]] for key in ("bos", "eos", "pad")
                     if fields.raw.get(f"{key}_token_id") is not None})
    return {"tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(), "tokenizer_config.json": json_bytes(config)}


def _merges() -> Iterator[tuple[str, str]]:
    """A word and its next letter, all words of one length before any longer one; the first letter may be a space."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    words = ["Ġ", *alphabet]
    while True:
        longer = []
        for word in words:
            for letter in alphabet:
                yield word, letter
                longer.append(word + letter)
        words = longer
