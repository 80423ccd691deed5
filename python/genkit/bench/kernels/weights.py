"""Types of weights by name, how many bytes they take, and random weights of each."""

from __future__ import annotations

from typing import Iterable, Union

import numpy as np

from genkit import _core
from genkit.bench.kernels.case import BYTES, Store, repeat
from genkit.errors import UsageError
from genkit.quant.codes import Codes, depth_of
from genkit.quant.formats import BY_NAME, Format

DENSE = ("f32", "f16", "bf16")


def _formats() -> dict[str, Format]:
    """Every format there is with f16 scales: int4 and int8 as checkpoints are rounded to, then PACKING-gGROUP, -zero with
    integer zeros and -min with minima."""
    found = dict(BY_NAME)
    for packing, groups, zeros in (("int4", (32, 64, 128, 256), ("none", "integer", "real")),
                                   ("int8", (32, 64, 128, 256), ("none", "integer", "real")),
                                   ("int4_k", (16, 32), ("none", "real")), ("int8_k", (16, 32), ("none", "real"))):
        for group in groups:
            for zero in zeros:
                made = Format(packing, group, zero)
                if made not in BY_NAME.values():
                    found[f"{packing}-g{group}" + {"none": "", "integer": "-zero", "real": "-min"}[zero]] = made
    return found


FORMATS = _formats()
TYPES = (*DENSE, *FORMATS)

# All products are measured with MAIN, one of them with the others that files have: Q4_0, GPTQ and AWQ, MLX, Q8_0, Q4_K, Q3_K,
# Q2_K, Q6_K, Q5_K in turn.
MAIN = ("bf16", "int8", "int4")
OTHERS = ("f32", "f16", "int4-g32", "int4-g128-zero", "int4-g32-min", "int8-g32", "int4_k-g32-min", "int4_k-g16",
          "int4_k-g16-min", "int8_k-g16", "int8_k-g32-min")


def check_types(names: Iterable[str]) -> list[str]:
    """"all" are TYPES. Raises UsageError."""
    names = list(names)
    for name in names:
        if name not in ("all", *TYPES):
            raise UsageError(f"--type {name}: unknown; known: all, {', '.join(TYPES)}")
    return list(TYPES) if "all" in names else names


def weight_bytes(kind: str, n: int, k: int) -> int:
    """Of a weight [n, k]; packed ones are panels of 32 outputs, of blocks of 256 along k (cpp/packed.h)."""
    if kind in DENSE:
        return n * k * BYTES[kind]
    format, depth = FORMATS[kind], depth_of(k)
    groups = 256 // format.group
    if format.packing == "int4_two_level":
        header = 448
    elif format.of_k:
        header = (64 + 32 * groups) * (2 if format.zero == "real" else 1)
    else:
        header = -(-groups * 32 * {"none": 2, "integer": 3, "real": 4}[format.zero] // 64) * 64
    return -(-n // 32) * (-(-depth // 256) * header + depth * 32 // (1 if format.eight_bits else 2))


def make_weight(store: Store, kind: str, n: int, k: int, gated: bool = False) -> Union[_core.Tensor, _core.PackedWeight]:
    """On the processor, which is in use."""
    if kind in DENSE:
        return store.near_floats(n, k, dtype=kind, scale=0.02)
    return make_codes(store, FORMATS[kind], n, k).pack(gated)


def make_codes(store: Store, format: Format, n: int, k: int) -> Codes:
    """Random codes with scales and zeros that a matrix of normal numbers could have."""
    def bytes_of(columns: int, low: int, high: int, dtype: type) -> np.ndarray:
        block = store.keep(("codes", low, high, dtype), lambda: store.rng.integers(low, high, 1 << 20, dtype))
        out = np.empty(n * columns, dtype)
        repeat(block, out, int(store.rng.integers(len(block))))
        return out.reshape(n, columns)

    def halves(columns: int, scale: float) -> np.ndarray:
        numbers = store.rng.uniform(0.5 * scale, scale, 1 << 12).astype(np.float16).view(np.uint16)
        out = np.empty(n * columns, np.uint16)
        repeat(numbers, out)
        return out.reshape(n, columns)

    depth = depth_of(k)
    groups = -(-depth // format.scale_group)
    codes = bytes_of(depth, -127, 128, np.int8) if format.eight_bits else bytes_of(depth, 0, 16, np.uint8)
    made = Codes(format, k, codes, halves(groups, 1e-3 if format.eight_bits else 1e-2))
    if format.packing == "int4_two_level":
        made.subscales = bytes_of(depth // 32, 1, 9, np.uint8)
        made.minima = made.subscales * np.uint8(8)  # 15 u - m is at most 56
    elif format.of_k:
        made.subscales = bytes_of(depth // format.group, 1, 64, np.int8)
        made.scales = halves(groups, 1e-5 if format.eight_bits else 1e-4)
        if format.zero == "real":
            made.minima, made.zeros = bytes_of(depth // format.group, 0, 64, np.uint8), halves(groups, 1e-4)
    elif format.zero == "integer":
        made.zeros = bytes_of(groups, -8, 8, np.int8) if format.eight_bits else bytes_of(groups, 4, 13, np.uint8)
    elif format.zero == "real":
        made.zeros = halves(groups, 1e-2)
    return made
