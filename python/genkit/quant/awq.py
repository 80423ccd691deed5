"""Inputs that matter more get finer steps: their columns are scaled up before rounding, and what makes them is scaled down
(AWQ, arXiv 2306.00978). The scales are folded into the norm or the rows before, so that nothing is left to do at run time.
"""

from __future__ import annotations

from typing import Optional, Sequence

import numpy as np

from genkit.quant import linalg
from genkit.quant.codes import SUB
from genkit.quant.formats import Format
from genkit.quant.rounding import round_matrix

GRID = 20  # values of alpha
ROWS = 1024  # of all weights together, evenly spaced, that the values are tried on
LEAST = 1e-4  # of a mean size


def awq_scales(weights: Sequence[np.ndarray], mean_abs_x: np.ndarray, hessian: np.ndarray, format: Format) -> np.ndarray:
    """float32 [k]: what to multiply the columns of weights by, and to divide their shared input by.

    weights float32 [n_i, k]; mean_abs_x float32 [k]; hessian float32 [k, k], mean x x^T. Of s = mean |x|^alpha over
    (mean of |w| by its group's largest)^(1 - alpha) the one whose rounded weights have the least tr(D H D^T); ones if
    none does better than they. Raises ValueError as round_matrix does.
    """
    matrix, sizes = linalg.tensor(hessian), _mean_sizes(weights, format)
    sample = _spaced(weights)
    importance = np.diag(hessian)
    best = np.ones(len(hessian), np.float32)
    least = _loss(sample, best, importance, matrix, format)
    for step in range(GRID):
        scales = _scales(mean_abs_x.astype(np.float64), sizes, step / GRID)
        loss = _loss(sample, scales, importance, matrix, format)
        if loss < least:
            best, least = scales, loss
    return best


def _scales(mean_abs_x: np.ndarray, sizes: np.ndarray, alpha: float) -> np.ndarray:
    s = np.maximum(mean_abs_x, LEAST)**alpha / (sizes**(1 - alpha) + LEAST)
    return (s / np.sqrt(s.max() * s.min())).astype(np.float32)


def _mean_sizes(weights: Sequence[np.ndarray], format: Format) -> np.ndarray:
    """float64 [k]: the mean over rows of |w| by the largest of its group."""
    group, k = SUB if format.packing == "int4_two_level" else format.group, weights[0].shape[1]
    total = np.zeros(k)
    for part in (w[i:i + ROWS] for w in weights for i in range(0, len(w), ROWS)):
        size = np.abs(part)
        largest = np.maximum.reduceat(size, np.arange(0, k, group), 1)
        size /= np.repeat(np.where(largest > 0, largest, 1), group, 1)[:, :k]
        total += size.sum(0, dtype=np.float64)
    return total / sum(len(w) for w in weights)


def _spaced(weights: Sequence[np.ndarray]) -> np.ndarray:
    """ROWS rows of all weights, or all there are."""
    step = max(1, -(-sum(len(w) for w in weights) // ROWS))
    return np.concatenate([w[::step] for w in weights])


def _loss(weight: np.ndarray, scales: np.ndarray, importance: np.ndarray, matrix: linalg.Tensor, format: Format) -> float:
    """tr(D H D^T), D what rounding weight diag(scales) does to weight."""
    rounded = round_matrix(weight * scales, format, True, importance / scales**2).dequantize()
    return float(linalg.quadratic(rounded / scales - weight, matrix).sum())


def scaled_hessian(hessian: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Of inputs divided by scales."""
    return hessian / scales[:, None] / scales


def fold_into_norm(norm: np.ndarray, scales: np.ndarray, dtype: str, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """norm float32 [k], a norm's weight, to divide by scales -> the weight as dtype "f32", "f16" or "bf16" has it, float32,
    and the scales it has become: columns are to be multiplied by these, so that rounding the norm costs nothing.

    offset: 1 where the norm multiplies by 1 + weight. A place whose scale no such weight can give keeps its weight.
    """
    whole = norm.astype(np.float64) + offset
    made = linalg.stored(whole / scales - offset, dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        became = (whole / (made.astype(np.float64) + offset)).astype(np.float32)
    good = np.isfinite(became) & (np.abs(np.log2(np.maximum(became, LEAST) / scales)) < 0.5)
    return np.where(good, made, norm), np.where(good, became, np.float32(1))


def fold_into_rows(weight: np.ndarray, scales: np.ndarray, bias: Optional[np.ndarray] = None
                   ) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """weight float32 [n, k] and bias [n] whose outputs are to be divided by scales float32 [n]: ups before a down, or values
    before an output projection that has as many heads."""
    return weight / scales[:, None], None if bias is None else bias / scales
