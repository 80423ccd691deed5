"""Medians with their confidence intervals, and ratios of two sets of samples. Nothing here assumes a distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Iterable, Sequence

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median with the interval [low, high] that holds the true one with `confidence`, and the smallest and the largest."""

    median: float
    low: float
    high: float
    minimum: float
    maximum: float
    count: int
    confidence: float

    @property
    def width(self) -> float:
        """Of the interval, as a share of the median; infinite for one sample."""
        return (self.high - self.low) / abs(self.median) if self.count > 1 and self.median else math.inf

    @property
    def spread(self) -> float:
        """From the smallest to the largest, as a share of the median."""
        return (self.maximum - self.minimum) / abs(self.median) if self.median else 0.0

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high, "min": self.minimum, "max": self.maximum,
                "confidence": self.confidence}


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Of the values that are there; None where none is.

    The interval lies between two order statistics, chosen by the binomial distribution (David and Nagaraja 2003, Order
    Statistics, 7.1): the narrowest pair of equal ranks from both ends that holds the median with CONFIDENCE, or all of
    the samples where they are too few for it (five: 93.75 %).
    """
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    rank, confidence = median_ranks(len(known))
    return Estimate(median(known), known[rank], known[-1 - rank], known[0], known[-1], len(known), confidence)


@lru_cache(None)
def median_ranks(count: int) -> tuple[int, float]:
    """(rank from either end, from 0; the confidence it gives) of the interval of a median of `count` samples."""
    def chance(below: int) -> float:
        """That exactly so many of the samples lie below the median."""
        logarithm = math.lgamma(count + 1) - math.lgamma(below + 1) - math.lgamma(count - below + 1) - count * math.log(2)
        return math.exp(logarithm)

    rank, outside = 0, 2 * chance(0)
    while True:
        more = outside + 2 * chance(rank + 1)
        if 1 - more < CONFIDENCE or 2 * (rank + 1) >= count:
            return rank, max(0.0, 1 - outside)
        rank, outside = rank + 1, more


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie: between two neighbours in proportion (type 7 of Hyndman and Fan 1996)."""
    known = sorted(values)
    place = share * (len(known) - 1)
    below = math.floor(place)
    return known[below] + (known[min(below + 1, len(known) - 1)] - known[below]) * (place - below)
