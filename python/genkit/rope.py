"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): the frequencies, for every way of stretching them.

A rotation turns channel pair i of a head by position * inv_freq[i]. The scaling types differ only in inv_freq and in
one factor on cosines and sines (yarn's), so everything about them is here, in numpy; the table of cosines and sines
is made by the core once a step (nn.RoPE).

Types, named as in config.json:
  default   inv_freq[i] = theta ** (-2i / dim)
  linear    divided by `factor` (position interpolation, Chen et al. 2023, arXiv:2306.15595)
  dynamic   theta grown with the length of the sequence beyond the trained one ("dynamic NTK", bloc97 and emozilla 2023)
  llama3    long wavelengths divided by `factor`, short ones kept, a smooth step between (Llama 3.1, Meta 2024)
  yarn      the same idea with a linear ramp over channels and an attention factor (Peng et al. 2023, arXiv:2309.00071)
  longrope  a factor for each channel, of two sets: for contexts as long as those trained before stretching, and for longer
            ones; with an attention factor (Ding et al. 2024, arXiv:2402.13753; Phi-3's older files call it "su")
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from genkit.checkpoints.config import Fields, rope_parameters
from genkit.checkpoints.files import shown_path
from genkit.errors import BadFileError


@dataclass(frozen=True)
class Rope:
    """Rotary settings of a model, checked. `dim` channels of a head are rotated, rounded up to pairs."""

    type: str
    dim: int
    theta: float
    positions: int  # max_position_embeddings
    factor: float = 1.0
    original_positions: int = 0  # llama3, yarn, longrope: the length trained before stretching
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float = 1.0  # on cosines and sines; 1 unless yarn or longrope
    short_factors: tuple[float, ...] = ()  # longrope
    long_factors: tuple[float, ...] = ()  # longrope

    @property
    def max_positions(self) -> int:
        """Longest sequence the settings are meant for, in tokens.

        `factor` stretches max_position_embeddings (linear, dynamic) or the original length (yarn), where the
        configuration has not stretched it already; llama3 files state the stretched length.
        """
        if self.type in ("linear", "dynamic"):
            return max(self.positions, int(self.positions * self.factor))
        if self.type == "yarn":
            return max(self.positions, int(self.original_positions * self.factor))
        return self.positions

    @property
    def fresh_keys_beyond(self) -> int:
        """See ModelConfig."""
        return self.original_positions if self.type == "longrope" else 0

    def varies(self, longest: int) -> bool:
        """Whether the frequencies of contexts of up to `longest` tokens are not all inv_freq()."""
        return self.type == "dynamic" and longest > self.positions or \
            self.type == "longrope" and longest > self.original_positions

    def inv_freq(self, context_length: int = 0) -> np.ndarray:
        """Radians a position, float32 [ceil(dim / 2)]. Only `dynamic` and `longrope` look at context_length (tokens)."""
        if self.type == "dynamic" and context_length > self.positions:
            # float32 throughout: the models were run so.
            stretch = np.float32(self.factor * context_length) / np.float32(self.positions)
            grown = _power(stretch - np.float32(self.factor - 1), self.dim / (self.dim - 2))
            return 1 / _powers(np.float32(self.theta) * grown, self.dim)
        inv_freq = 1 / _powers(self.theta, self.dim)
        if self.type == "linear":
            return inv_freq / np.float32(self.factor)
        if self.type == "llama3":
            return self._llama3(inv_freq)
        if self.type == "yarn":
            return self._yarn()
        if self.type == "longrope":
            factors = self.long_factors if context_length > self.original_positions else self.short_factors
            return 1 / (np.array(factors, np.float32) * _powers(self.theta, self.dim))
        return inv_freq

    def _llama3(self, inv_freq: np.ndarray) -> np.ndarray:
        wavelength = np.float32(2 * math.pi) / inv_freq
        longest_kept = np.float32(self.original_positions / self.high_freq_factor)
        shortest_divided = np.float32(self.original_positions / self.low_freq_factor)
        smooth = (np.float32(self.original_positions) / wavelength - np.float32(self.low_freq_factor)) / np.float32(
            self.high_freq_factor - self.low_freq_factor
        )
        factor = np.float32(self.factor)
        between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
        divided = np.where(wavelength > shortest_divided, inv_freq / factor, between)
        return np.where(wavelength < longest_kept, inv_freq, divided)

    def _yarn(self) -> np.ndarray:
        def channel(rotations: float) -> float:  # the channel that turns this often over the original length
            turns = self.original_positions / (rotations * 2 * math.pi)
            return self.dim * math.log(turns) / (2 * math.log(self.theta))

        low, high = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        if low == high:
            high += 0.001  # a step instead of a ramp, not a division by zero
        powers = _powers(self.theta, self.dim)
        pairs = np.arange(len(powers), dtype=np.float32)
        kept = 1 - np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
        return 1 / (np.float32(self.factor) * powers) * (1 - kept) + 1 / powers * kept


def _power(base: float, exponent) -> np.ndarray:
    # Taken in double and rounded once: numpy's and torch's float32 powers differ by units in the last place between
    # processors, and this agrees with torch's to the bit almost everywhere.
    return np.power(np.float64(np.float32(base)), np.asarray(np.float32(exponent), np.float64)).astype(np.float32)


def _powers(theta: float, dim: int) -> np.ndarray:
    """theta ** (2i / dim), float32 [ceil(dim / 2)]."""
    return _power(theta, np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))


def read_rope(fields: Fields, head_dim: int, positions: int, **defaults: Any) -> Rope:
    """Rotary settings out of config.json, in transformers 4's spelling or 5's.

    `positions` is max_position_embeddings; defaults: the keywords of rope_parameters. Raises BadFileError, naming file and
    key, for a type not known here and for values that cannot be.
    """
    values = rope_parameters(fields, **defaults)
    kind, partial, factor = values["rope_type"], values["partial_rotary_factor"], values.get("factor", 1.0)
    dim = int(head_dim * partial)
    if dim < (4 if kind == "dynamic" else 2) or dim + dim % 2 > head_dim:
        raise BadFileError(f"{shown_path(fields.path)}: head_dim {head_dim} with partial_rotary_factor {partial:g} "
                           f"rotates {dim} channels; rope_type {kind!r} needs whole pairs of them within the head")
    settings = dict(type=kind, dim=dim, theta=values["rope_theta"], positions=positions, factor=factor)
    if kind in ("llama3", "yarn", "longrope"):
        settings["original_positions"] = values["original_max_position_embeddings"]
    if kind == "llama3":
        settings.update(low_freq_factor=values["low_freq_factor"], high_freq_factor=values["high_freq_factor"])
    if kind == "yarn":
        # 0 counts as unset, as transformers has it.
        settings.update(beta_fast=values.get("beta_fast") or 32.0, beta_slow=values.get("beta_slow") or 1.0,
                        truncate=values.get("truncate", True))
        mscale, mscale_all = values.get("mscale"), values.get("mscale_all_dim")
        computed = yarn_scale(factor, mscale) / yarn_scale(factor, mscale_all) if mscale and mscale_all \
            else yarn_scale(factor)
        settings["attention_factor"] = values.get("attention_factor", computed)
    if kind == "longrope":
        for key in ("short", "long"):
            settings[key + "_factors"] = values[key + "_factor"]
            if len(values[key + "_factor"]) != (dim + 1) // 2:
                raise BadFileError(f"{shown_path(fields.path)}: {key}_factor has {len(values[key + '_factor'])} values; "
                                   f"expected {(dim + 1) // 2}, one for each pair of the {dim} channels that are rotated")
        computed = math.sqrt(1 + math.log(factor) / math.log(settings["original_positions"])) if factor > 1 else 1.0
        settings["attention_factor"] = values.get("attention_factor", computed)
    return Rope(**settings)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """Yarn's attention factor for a stretch by `factor` (section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
