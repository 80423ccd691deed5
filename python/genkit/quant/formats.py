"""The forms weights can have in memory beside f32, f16 and bf16. cpp/packed.h has the layout to the byte."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genkit._core import WeightFormat


@dataclass(frozen=True)
class Format:
    """Codes of one kind. What a code c stands for: packing "int4_two_level" s (u c - m) with u and m for 32 along k and s
    for 256; "int4" s (c - 8); "int8" s c; with zero "integer" s (c - z), with zero "real" s c + b. "int4_k" and "int8_k" have
    scales as GGUF's K-quants do, s = d sc and with zero "real" b = -dmin m: d and dmin f16 for 256 along k, sc -128..127 and
    m 0..255 for a group of 16 or 32."""

    packing: str
    group: int = 256  # codes along k that share a scale; of_k: sc
    zero: str = "none"
    scale_dtype: str = "f16"

    @property
    def bits(self) -> float:
        """Bits a weight takes, scales included, where rows are whole blocks of 256."""
        if self.packing == "int4_two_level":
            return 4 + (16 + 8 * (4 + 8)) / 256
        if self.of_k:
            return (4 + 4 * self.eight_bits) + (16 / 256 + 8 / self.group) * (2 if self.zero == "real" else 1)
        zero = {"none": 0, "integer": 8, "real": 16}[self.zero]
        return (8 if self.eight_bits else 4) + (16 + zero) / self.group

    @property
    def of_k(self) -> bool:
        """Whether scales are integers for a group times floats for 256."""
        return self.packing in ("int4_k", "int8_k")

    @property
    def eight_bits(self) -> bool:
        """Whether a code is an i8, else 0..15."""
        return self.packing in ("int8", "int8_k")

    @property
    def scale_group(self) -> int:
        """Codes along k that share a scale of floating point."""
        return 256 if self.of_k else self.group

    @property
    def words(self) -> str:
        """For people: "int4 two-level", "int4 per 32"."""
        if self.packing == "int4_two_level":
            return "int4 two-level"
        return f"{self.packing} per {self.group}" + {"none": "", "integer": " with zero", "real": " with minimum"}[self.zero]

    def as_dict(self) -> dict[str, object]:
        """For JSON; Format(**d) gives it back."""
        return asdict(self)

    def core(self) -> WeightFormat:
        """For the compiled core. Raises ValueError for a format it does not have."""
        from genkit import _core

        return _core.WeightFormat(self.packing, self.group, self.zero, self.scale_dtype)


# What `quantize=` and --quantize round a checkpoint's weights to while it is loaded.
BY_NAME = {"int4": Format("int4_two_level"), "int8": Format("int8")}

