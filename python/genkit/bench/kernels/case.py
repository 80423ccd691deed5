"""What is measured: one call of an op, with what it must read, write and compute counted by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Hashable, Mapping, Optional, Sequence, TypeVar

import numpy as np

from genkit import _core
from genkit.devices import using
from genkit.errors import UsageError

T = TypeVar("T")

# Weights and pages that a model reads from memory are read here in turn from copies of this size together: a call never
# finds its own in a cache of ordinary size. The limit is measured over as many bytes.
ROTATION = 256 << 20
COPIES_MOST = 2048  # calls of one recording

# Rows that the head and what is done with logits are measured with at most: a prefill needs those of its last row.
HEAD_ROWS = 64

INTENSE = 32  # operations a byte from which on people count operations

BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1, "i8": 1}


@dataclass(frozen=True)
class Sizes:
    """Of a model, from the fields of its config.json."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    experts: int
    experts_per_token: int
    expert_width: int

    @classmethod
    def read(cls, name: str, fields: Mapping[str, Any]) -> "Sizes":
        """Raises UsageError for a model without one of the sizes. One without experts is measured with 32, an eighth as wide as
        its MLP, of which 4 run."""

        def first(*keys: str, default: Optional[int] = None) -> int:
            for key in keys:
                if isinstance(fields.get(key), int):
                    return int(fields[key])
            if default is None:
                raise UsageError(f"--shape {name}: its kernels cannot be measured, it has no {keys[0]}")
            return default

        hidden, heads = first("hidden_size", "n_embd"), first("num_attention_heads", "n_head")
        intermediate = first("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden)
        experts = first("num_experts", "num_local_experts", "n_routed_experts", default=0)
        width = first("moe_intermediate_size", default=intermediate if experts else max(64, intermediate // 8))
        return cls(hidden, heads, first("num_key_value_heads", default=heads), first("head_dim", default=hidden // heads),
                   intermediate, first("vocab_size"), experts or 32, first("num_experts_per_tok", default=4), width)

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True)
class Scope:
    """What cases are made for. types: names of formats.py, None for the usual ones; contexts: keys that attention sees; device:
    where they run."""

    sizes: Sizes
    rows: Sequence[int] = (1, 512)
    contexts: Sequence[int] = (128, 4096)
    types: Optional[Sequence[str]] = None
    rotation: int = ROTATION
    device: str = "cpu"

    @property
    def head_rows(self) -> list[int]:
        return [rows for rows in self.rows if rows <= HEAD_ROWS] or [1]

    def copies(self, nbytes: int) -> int:
        """How many of `nbytes` are walked through in turn."""
        return max(1, min(COPIES_MOST, -(-self.rotation // max(1, nbytes))))

    def arithmetic(self, dtype: str) -> str:
        """Of products with numbers of a type. A GPU's tensor cores multiply f16 as fast as bf16 at most, which is what is measured."""
        return "bf16" if dtype == "bf16" or dtype == "f16" and self.device != "cpu" else "f32"


@dataclass(frozen=True)
class Case:
    """One call. kernel: what people ask for; case: which of it; slots: the kernels it runs, in order, of which the last may
    be left out where the work is not split.

    nbytes: what must be read and written, everything once. operations: multiplications and additions, of `kind` of
    arithmetic. make gives the function to call with 0 .. copies - 1, each reading other memory; working_set: bytes that
    all of these touch; shared: a key and the bytes of what other cases use as well; making: bytes needed only until inputs
    are made.
    """

    kernel: str
    case: str
    rows: int
    slots: tuple[str, ...]
    nbytes: int
    make: Callable[["Store"], Callable[[int], Any]]
    operations: int = 0
    kind: str = "f32"
    copies: int = 1
    working_set: int = 0  # 0: nbytes
    shared: Optional[tuple[Hashable, int]] = None
    making: int = 0

    @property
    def unit(self) -> str:
        """Of its speed, whatever bounds it today."""
        return "op/s" if self.operations >= INTENSE * self.nbytes else "B/s"

    @property
    def touched(self) -> int:
        return self.working_set or self.nbytes

    @property
    def memory(self) -> int:
        """Bytes beside what is shared, at most: inputs, outputs, and what lies between two kernels."""
        return 2 * self.nbytes + self.making

    @property
    def id(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "case": self.case, "rows": self.rows}


@dataclass
class Store:
    """Random inputs on a device, which is in use where it is not the processor. What is kept under a key is made once for all cases of
    a batch."""

    rng: np.random.Generator
    device: str = "cpu"
    kept: dict[Hashable, Any] = field(default_factory=dict)

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def copies(self, count: int, make: Callable[[], Any]) -> list[Any]:
        """What `make` makes on the processor, so many times; on another device one is sent again and again."""
        with using("cpu"):
            if self.device == "cpu":
                return [make() for _ in range(count)]
            near = make()
        return [near.to(self.device) for _ in range(count)]

    def floats(self, *shape: int, dtype: str = "f32", scale: float = 1.0) -> _core.Tensor:
        """Normal numbers; beyond a million the same again, which no kernel can tell."""
        return self.copies(1, lambda: self.near_floats(*shape, dtype=dtype, scale=scale))[0]

    def near_floats(self, *shape: int, dtype: str = "f32", scale: float = 1.0) -> _core.Tensor:
        """The same on the processor, which is in use."""
        tensor = _core.Tensor(shape, dtype)
        flat = tensor.numpy().reshape(-1)
        block = self.keep(("floats", dtype, scale), lambda: self._block(dtype, scale))
        repeat(block, flat, int(self.rng.integers(len(block))))
        return tensor

    def _block(self, dtype: str, scale: float) -> np.ndarray:
        numbers = _core.Tensor.from_numpy(self.rng.standard_normal(1 << 20, np.float32) * np.float32(scale))
        return (numbers if dtype == "f32" else _core.convert(numbers, dtype)).numpy()


def repeat(block: np.ndarray, out: np.ndarray, start: int = 0) -> None:
    """Fills out [size] with the block, from `start` on, again and again."""
    done = 0
    while done < len(out):
        piece = block[start : start + len(out) - done]
        out[done : done + len(piece)] = piece
        done, start = done + len(piece), 0


def ints(values: Any, dtype: Any = np.int32) -> _core.Tensor:
    return _core.Tensor.from_numpy(np.ascontiguousarray(values, dtype=dtype))
