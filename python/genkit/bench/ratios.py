"""How far apart two sets of samples are, as a ratio with its interval. Ranks only: nothing here assumes a distribution.

Mostly Hodges and Lehmann's estimates (1963) on logarithms, with the intervals of the Mann-Whitney and the Wilcoxon signed-rank
test, counted out exactly (Hollander, Wolfe and Chicken 2014, Nonparametric Statistical Methods, 3.1-3.3 and 4.1-4.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Sequence

import numpy as np

from genkit.bench.estimates import CONFIDENCE

# Samples of one run follow each other, and what disturbs one disturbs the next. So many groups of neighbours, each as its
# median, are taken for independent.
GROUPS = 20

FAST = 0.9
RESAMPLES = 400


@dataclass(frozen=True)
class Ratio:
    """value, and the interval [low, high] that holds the true one with `confidence`; p: how likely samples at least so far
    apart are where there is no difference, both sides taken together."""

    value: float
    low: float
    high: float
    p: float
    confidence: float


def two_sample(a: Sequence[float], b: Sequence[float], slack: float = 0.0) -> Ratio | None:
    """b against a, positive numbers in the order of time, of which none belongs to one of the others; None where they are
    too few for a confidence of CONFIDENCE. slack: how far apart, as a logarithm, is no difference yet."""
    logs_a, logs_b = grouped(np.log(a)), grouped(np.log(b))
    return _ratio(np.subtract.outer(logs_b, logs_a).ravel(), _rank_sums(len(logs_a), len(logs_b)), slack)


def paired(ratios: Sequence[float], slack: float = 0.0) -> Ratio | None:
    """The same of ratios that each compare two samples of one moment."""
    logs = grouped(np.log(ratios))
    averages = (logs[:, None] + logs) / 2  # Walsh's
    return _ratio(averages[np.triu_indices(len(logs))], _signed_ranks(len(logs)), slack)


def fast_ends(a: Sequence[float], b: Sequence[float], slack: float = 0.0) -> Ratio | None:
    """The same of speeds, of which the FAST quantiles are compared: a shared machine can only take from a speed, and what it
    takes differs more from one minute to the next than what it leaves at best. The interval is the bootstrap's, of groups
    of neighbours (Davison and Hinkley 1997, Bootstrap Methods, 8.2.3), the same at every call."""
    random = np.random.default_rng(0)
    ends, errors = [], []
    for values in (np.log(a), np.log(b)):
        count = min(len(values), GROUPS)
        groups = values[len(values) % count:].reshape(count, -1)
        drawn = groups[random.integers(count, size=(RESAMPLES, count))].reshape(RESAMPLES, -1)
        errors.append(np.std(np.quantile(drawn, FAST, axis=1)))
        ends.append(np.quantile(values, FAST))
    shift, error = float(ends[1] - ends[0]), float(np.hypot(*errors))
    reach = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error + slack
    beyond = max(0.0, abs(shift) - slack)
    p = 2 * NormalDist().cdf(-beyond / error) if error else float(beyond == 0)
    return Ratio(math.exp(shift), math.exp(shift - reach), math.exp(shift + reach), p, CONFIDENCE)


def grouped(values: Sequence[float]) -> np.ndarray:
    """Medians of at most GROUPS groups of neighbours."""
    return np.array([np.median(group) for group in np.array_split(np.asarray(values, float), min(len(values), GROUPS))])


def _ratio(values: np.ndarray, chances: np.ndarray, slack: float) -> Ratio | None:
    """values: shifts, as many of them below the true one as the test's statistic says. chances[k]: that it is k at most."""
    rank = int(np.searchsorted(chances, (1 - CONFIDENCE) / 2, side="right")) - 1
    if rank < 0:
        return None
    values = np.sort(values)
    slower, faster = chances[np.sum(values >= -slack)], chances[np.sum(values <= slack)]
    low, high = values[rank] - slack, values[-1 - rank] + slack
    return Ratio(math.exp(np.median(values)), math.exp(low), math.exp(high), min(1.0, 2 * float(min(slower, faster))),
                 1 - 2 * float(chances[rank]))


def _rank_sums(a: int, b: int) -> np.ndarray:
    """Of Mann and Whitney's U of samples of a and b where all orders are equally likely: how likely 0, 1, ... a*b at most.

    U's distribution is the Gaussian binomial coefficient: the product over i to b of (1 - q^(a+i)) / (1 - q^i).
    """
    counts = np.zeros(a * b + 1)
    counts[0] = 1
    for i in range(1, b + 1):
        for k in range(a * b, a + i - 1, -1):
            counts[k] -= counts[k - a - i]
        for k in range(i, a * b + 1):
            counts[k] += counts[k - i]
    return np.cumsum(counts) / math.comb(a + b, b)


def _signed_ranks(count: int) -> np.ndarray:
    """Of Wilcoxon's signed-rank statistic, where all signs are equally likely: how likely 0, 1, ... n(n+1)/2 at most."""
    counts = np.ones(1)
    for i in range(1, count + 1):
        counts = np.pad(counts, (0, i)) + np.pad(counts, (i, 0))
    return np.cumsum(counts) / 2.0**count
