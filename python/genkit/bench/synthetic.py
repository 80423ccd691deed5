"""Weights nobody trained, as a checkpoint without files: any model that a config.json describes, made while it is read.

A weight depends on the seed, its tensor's name and its place there, never on the order of reading. 16 random bits choose one
of 65,536 values: quantiles of a normal distribution, rounded to the tensor's type, none of them zero.
"""

from __future__ import annotations

import functools
import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Iterator, Mapping

import numpy as np

from genkit import machine, models
from genkit.checkpoints.mxfp4 import GROUP, VALUES
from genkit.checkpoints.safetensors import NUMPY, Checkpoint, TensorInfo

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields

DTYPES = ("bf16", "f16", "f32")
BLOCK = 1 << 18  # values made from one random stream
PIECE = 1 << 13  # of them looked up at a time: their indices stay in the cache, and in memory that is not given back
OTHERS = 0.02  # spread of biases, attention sinks and what else is no matrix and no norm
NORMS = 0.1  # of norms' weights around 1


class RandomCheckpoint(Checkpoint):
    """What `random_checkpoint` gives; used as any Checkpoint."""

    def __init__(self, name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int, norms_at: float) -> None:
        self.dtype = dtype
        self._seed = seed
        self._norms_at = norms_at
        super().__init__(Path(name), {tensor: _info(name, tensor, shape, dtype) for tensor, shape in shapes.items()}, {})

    @property
    def parameters(self) -> int:
        """Weights in all, as people count them: MXFP4's scales are none."""
        counts = (math.prod(info.shape) * (2 if info.dtype == "u8" else 1)
                  for name, info in self.tensors.items() if not name.endswith("_scales"))
        return sum(counts)

    def pieces(self, name: str, most: int) -> Iterator[np.ndarray]:
        """The bytes of a tensor from the first to the last, at most so many at a time (a multiple of 4)."""
        info = self.tensors[name]
        for begin in range(0, info.nbytes, most):
            piece = np.empty(min(most, info.nbytes - begin), np.uint8)
            self._fill(name, info, memoryview(piece), begin)
            yield piece

    def _fill(self, name: str, info: TensorInfo, target: memoryview, skip: int) -> None:
        table = self._table(name)
        values = np.frombuffer(target, table.dtype)
        first = (info.offset + skip) // table.itemsize
        key = hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=16).digest()
        words = np.frombuffer(key, np.uint32).tolist()

        def make(block: int) -> int:
            begin, end = max(first, block * BLOCK), min(first + len(values), (block + 1) * BLOCK)
            part = values[begin - first : end - first]
            _choose(table, words + [block], begin - block * BLOCK, part)
            return part.nbytes

        blocks = range(first // BLOCK, -(-(first + len(values)) // BLOCK))
        if len(blocks) < 3:
            for block in blocks:
                self._tell(make(block))
            return
        with ThreadPoolExecutor(machine.available_threads()) as pool:  # numpy lets go of the interpreter
            for made in pool.map(make, blocks):
                self._tell(made)

    def _tell(self, nbytes: int) -> None:
        if self.progress is not None:
            self.progress(nbytes)

    def _table(self, name: str) -> np.ndarray:
        """What 16 random bits become in this tensor. Matrices keep the size of what goes through them: 1 / sqrt(inputs),
        which for embeddings (a head as well where they are tied) gives logits of about 1."""
        info = self.tensors[name]
        if name.endswith("_blocks"):
            return _nibbles()
        if name.endswith("_scales"):
            inputs = info.shape[-1] * GROUP
            return _exponents(round(math.log2(inputs**-0.5 / float(VALUES.std()))))
        if len(info.shape) > 1 and not name.endswith("bias"):
            return _normal(0.0, info.shape[-1] ** -0.5, info.dtype)
        return _normal(self._norms_at, NORMS, info.dtype) if name.endswith(".weight") else _normal(0.0, OTHERS, info.dtype)


def random_checkpoint(fields: "Fields", dtype: str = "bf16", seed: int = 0) -> RandomCheckpoint:
    """All tensors of the model that these fields describe: as the dtype, one of DTYPES, or gpt-oss' experts in MXFP4 where
    the fields say so. Nothing is made before it is read. Raises BadFileError for fields that describe no model."""
    quantization = fields.object("quantization_config")
    mxfp4 = quantization is not None and quantization.optional("quant_method") == "mxfp4"
    # A model file looks at some names to tell one form of files from another.
    names = {"model.layers.0.mlp.experts.gate_up_proj_blocks": ()} if mxfp4 else {}
    name = str(fields.path)
    config = models.read_model_config(fields, RandomCheckpoint(name, names, dtype, seed, 1.0))
    shapes = models.tensor_shapes(fields, config)
    plus_one = getattr(config, "norm", "") == "rms_plus_one"  # whose files hold the weights less one
    return RandomCheckpoint(name, shapes, dtype, seed, 0.0 if plus_one else 1.0)


def _info(model: str, tensor: str, shape: tuple[int, ...], dtype: str) -> TensorInfo:
    dtype = "u8" if tensor.endswith(("_blocks", "_scales")) else dtype
    return TensorInfo(dtype, tuple(shape), Path(model), 0, math.prod(shape) * np.dtype(NUMPY[dtype]).itemsize)


def _choose(table: np.ndarray, key: list[int], skip: int, out: np.ndarray) -> None:
    """Fills out with the values number `skip` and after of the stream with this key."""
    before, skip = divmod(skip, 4)  # a word of 64 bits chooses four
    stream = np.random.SFC64(key)
    if before:
        stream.random_raw(before, output=False)
    for begin in range(-skip, len(out), PIECE):
        end = min(begin + PIECE, len(out))
        chosen = stream.random_raw((end - begin + 3) // 4).view(np.uint16)[: end - begin]
        begin, chosen = max(begin, 0), chosen[max(-begin, 0) :]
        np.take(table, chosen, out=out[begin:end], mode="clip")


@functools.lru_cache(None)
def _quantiles() -> np.ndarray:
    """f64 [65536]: of the standard normal distribution, in the middle of equal shares."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)])


@functools.lru_cache(64)
def _normal(mean: float, spread: float, dtype: str) -> np.ndarray:
    values = (mean + spread * _quantiles()).astype(np.float32)
    if dtype == "f32":
        return values
    if dtype == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to nearest even


@functools.lru_cache(None)
def _nibbles() -> np.ndarray:
    return np.arange(65536).astype(np.uint8)


@functools.lru_cache(64)
def _exponents(middle: int) -> np.ndarray:
    """u8: powers of two one below, at and above 2^middle, biased as MXFP4 has them."""
    return (127 + middle + np.arange(65536) % 3 - 1).astype(np.uint8)
