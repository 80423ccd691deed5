"""A problem: a call of ops on inputs of the device in use, and what must come out of it, known from float64 or exactly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Mapping, Sequence

import numpy as np

from genkit import _core

Tensor = _core.Tensor


@dataclass(frozen=True)
class Problem:
    """call: makes all its results anew at each call, in tensors of its own, so that it can be repeated and recorded."""

    call: Callable[[], Mapping[str, Tensor]]
    want: Mapping[str, np.ndarray]
    limit: float = 0.0  # of the error against the size, by norms; 0: equal
    limits: Mapping[str, float] = field(default_factory=dict)  # of single results

    def limit_of(self, name: str) -> float:
        return self.limits.get(name, self.limit)


@dataclass(frozen=True)
class Case:
    """slots: the kernels it runs. same_bits: the processor's results are these to the bit."""

    name: str
    slots: tuple[str, ...]
    make: Callable[[np.random.Generator], Problem]
    same_bits: bool = False


class Sizes:
    """Awkward numbers, few and small for a processor that stands in for a device or for a checker, many on a device."""

    def __init__(self, scale: str) -> None:
        if scale not in ("tiny", "full"):
            raise ValueError(f"scale is {scale!r}; expected tiny or full")
        self.full = scale == "full"

    def __call__(self, tiny: Sequence[Any], full: Sequence[Any]) -> Sequence[Any]:
        """The tiny ones, and the full ones as well."""
        return [*tiny, *full] if self.full else tiny


# ---- inputs ----------------------------------------------------------------------------------------------------------


def floats(array: np.ndarray, dtype: str = "f32") -> Tensor:
    """On the device in use, rounded to nearest even."""
    array = np.ascontiguousarray(array, np.float32)
    if dtype == "f16":
        return Tensor.from_numpy(array.astype(np.float16))
    return Tensor.from_numpy(bf16_bits(array), dtype="bf16") if dtype == "bf16" else Tensor.from_numpy(array)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """What `floats` keeps of it, float64."""
    array = np.asarray(array, np.float32)
    if dtype == "f16":
        return array.astype(np.float16).astype(np.float64)
    return bf16_values(bf16_bits(array)) if dtype == "bf16" else array.astype(np.float64)


def bf16_bits(array: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def ints(values: Any, dtype: Any = np.int32) -> Tensor:
    return Tensor.from_numpy(np.ascontiguousarray(values, dtype=dtype))


@dataclass(frozen=True)
class Strided:
    """Rows inside a wider tensor whose other columns are NaN."""

    wide: Tensor
    left: int
    width: int

    @classmethod
    def of(cls, array: np.ndarray, left: int = 3, right: int = 2) -> "Strided":
        wide = np.full((array.shape[0], left + array.shape[1] + right), np.nan, np.float32)
        wide[:, left : left + array.shape[1]] = array
        return cls(floats(wide), left, array.shape[1])

    @property
    def view(self) -> Tensor:
        return self.wide.columns(self.left, self.left + self.width)

    def copy(self) -> "Strided":
        """For what is changed in place."""
        return Strided(_core.convert(self.wide, "f32"), self.left, self.width)

    def around(self, want: np.ndarray) -> np.ndarray:
        """What the wide tensor holds when the view holds this."""
        wide = np.full(self.wide.shape, np.nan)
        wide[:, self.left : self.left + self.width] = want
        return wide


def on_processor(make: Callable[[], Any]) -> Any:
    """What is made there, brought to the device in use."""
    device = _core.device_in_use()
    _core.use_device("cpu")
    try:
        made = make()
    finally:
        _core.use_device(device)
    return made if device == "cpu" else made.to(device)


# ---- judgement -------------------------------------------------------------------------------------------------------


def values(tensor: Tensor) -> np.ndarray:
    """Floats as float64, whole numbers as they are."""
    array = tensor.numpy()
    if tensor.dtype == "bf16":
        return bf16_values(array)
    return array.astype(np.float64) if array.dtype.kind == "f" else array.copy()


def judge(got: np.ndarray, want: np.ndarray, limit: float) -> tuple[float, str]:
    """(the error against the size, by norms over everything; what is wrong, or ""). A row may be off by 4 times the limit of
    its own size, an element by 16 times of its row's: else a single wrong one would be lost among many. NaN is wanted where
    `want` has it."""
    if got.shape != want.shape:
        return np.inf, f"shape {got.shape}, expected {want.shape}"
    if got.size == 0:
        return 0.0, ""
    if limit == 0:
        differs = ~((got == want) | (_nan(got) & _nan(want)))
        return (float(differs.mean()), f"{differs.sum()} of {got.size} differ, {_at(differs, got, want)}") if differs.any() else (0.0, "")
    strange = ~np.isfinite(want)
    differs = strange & ~((got == want) | (np.isnan(got) & np.isnan(want))) | ~strange & ~np.isfinite(got)
    if differs.any():
        return np.inf, f"{differs.sum()} of {got.size} are not finite, or should not be, {_at(differs, got, want)}"
    rows = want.shape[-1] if want.ndim else 1
    want, got = np.where(strange, 0.0, want).reshape(-1, rows), np.where(strange, 0.0, got).reshape(-1, rows)
    error, size = got - want, float(np.linalg.norm(want))
    total = float(np.linalg.norm(error)) / size if size else float(np.linalg.norm(error))
    usual = size / len(want) ** 0.5
    row = np.maximum(np.linalg.norm(want, axis=1), 1e-3 * usual)[:, None]  # of nothing but zeros, say
    allowed = 16 * limit * np.maximum(row / rows**0.5, np.abs(want)) + np.finfo(np.float32).tiny
    far = np.abs(error) > allowed
    far |= np.linalg.norm(error, axis=1)[:, None] > 4 * limit * row + np.finfo(np.float32).tiny
    if far.any():
        return total, _at(far, got, want)
    return total, "" if total <= limit else f"error {total:.2e} of the size"


def _nan(array: np.ndarray) -> np.ndarray:
    return np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)


def _at(places: np.ndarray, got: np.ndarray, want: np.ndarray) -> str:
    at = tuple(int(i) for i in np.argwhere(places)[0])
    return f"first at {at}: {got[at]!r}, expected {want[at]!r}"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of all their bits."""
    sum = hashlib.blake2b(digest_size=12)
    for name in sorted(tensors):
        sum.update(np.ascontiguousarray(tensors[name].numpy()).tobytes())
    return sum.hexdigest()


def check(case: Case, seed: int) -> dict[str, Any]:
    """Runs a case on "cuda" -> {"case", "slots", "error", "limit", "wrong"}; wrong is "" where all is right."""
    _core.use_device("cuda")
    problem = case.make(np.random.default_rng(seed))
    found: dict[str, Any] = {"case": case.name, "slots": case.slots, "error": 0.0, "limit": problem.limit, "wrong": ""}
    made = problem.call()
    for name, want in problem.want.items():
        error, wrong = judge(values(made[name]), np.asarray(want), problem.limit_of(name))
        found["error"] = max(found["error"], error)
        if wrong and not found["wrong"]:
            found["wrong"] = f"{name}: {wrong}"
    if case.same_bits and not found["wrong"]:
        _core.use_device("cpu")
        theirs = case.make(np.random.default_rng(seed)).call()
        for name in problem.want:
            _, wrong = judge(values(made[name]), values(theirs[name]), 0)
            if wrong and not found["wrong"]:
                found["wrong"] = f"{name}: not the processor's bits: {wrong}"
    return found


def each(cases: Sequence[Case], seed: int) -> Iterator[tuple[Case, int]]:
    """With a seed of its own each, which does not hang on the others."""
    for case in cases:
        yield case, seed ^ int.from_bytes(hashlib.blake2b(case.name.encode(), digest_size=6).digest(), "little")
