"""Codes that make up for each other's errors, knowing how the inputs go together (GPTQ, arXiv 2210.17323).

What is made small is tr(D H D^T), D the error of the weight and H the mean of x x^T over calibration inputs. Scales of all
groups are fitted first and stay. Then columns are rounded one after the other, and what rounding one got wrong is spread
over those still to come. Then each code moves, one column after the other, to where the error is least given all others.
Rows do not know of each other: matrices with the same inputs may be stacked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

import numpy as np

from genkit import _core
from genkit.quant import linalg
from genkit.quant.codes import SUB, Codes, widen
from genkit.quant.formats import Format
from genkit.quant.rounding import round_matrix

BLOCK = 128  # columns between two products with all columns before, or all columns
INNER = 16  # columns of a block between two products with its other columns
ROWS = 2048  # of the weight at a time: a block of them stays in the cache
DAMPING = 0.01  # of the mean of H's diagonal, added to it
PASSES = 1  # over all columns, once all have codes
TRIES = 10  # each with twice the damping of the one before


@dataclass
class Factor:
    """What a Hessian [k, k] gives, for all weights with these inputs.

    importance float32 [k]: its diagonal, damped. order: columns as they are visited. lower float32 [k, k]: L of
    (H + ridge)^-1 = L L^T in that order; None where H could not be factored. ridge: damping times the mean of H's diagonal.
    note: with what damping it went if not the one asked for, or that it did not; else "".
    """

    importance: np.ndarray
    order: np.ndarray
    lower: Optional[np.ndarray]
    ridge: float
    note: str = ""


@dataclass
class Solved:
    """note: the factor's. Without a factor the codes are those of the search."""

    codes: Codes
    note: str = ""


def factorize(hessian: np.ndarray, *, order: bool = True, damping: float = DAMPING) -> Factor:
    """hessian float32 [k, k], symmetric. Columns go by falling diagonal, or with order=False as they lie.

    Inputs that were always zero say nothing about their column, which is then rounded to nearest. Raises ValueError for a
    hessian with a NaN, an infinity or a negative diagonal, and for damping that is not positive.
    """
    diagonal = np.diag(hessian).astype(np.float64)
    if not np.isfinite(hessian).all():
        raise ValueError(f"the hessian [{len(hessian)}, {len(hessian)}] has a NaN or an infinity")
    if (diagonal < 0).any():
        raise ValueError(f"the hessian has {diagonal.min()} at {diagonal.argmin()} of its diagonal: no mean of squares")
    if not damping > 0:
        raise ValueError(f"damping is {damping}; it must be above 0")
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if not dead.all() else 1.0
    importance = (diagonal + damping * mean).astype(np.float32)
    visits = np.argsort(-diagonal, kind="stable") if order else np.arange(len(diagonal))
    work = hessian[np.ix_(visits, visits)]
    gone = dead[visits]
    work[gone], work[:, gone] = 0, 0
    diagonal[dead] = mean
    for attempt in range(TRIES):
        tried = damping * 2**attempt
        np.fill_diagonal(work, diagonal[visits] + tried * mean)
        try:
            lower = linalg.inverse_cholesky(work)
        except np.linalg.LinAlgError:
            continue
        return Factor(importance, visits, lower, tried * mean, f"damping {tried:g}" if attempt else "")
    note = f"the hessian is not positive definite, not even with damping {tried:g}: scale search only"
    return Factor(importance, visits, None, tried * mean, note)


def gptq(weight: np.ndarray, hessian: np.ndarray, format: Format, *, order: bool = True, damping: float = DAMPING,
         passes: int = PASSES, factor: Optional[Factor] = None) -> Solved:
    """weight float32 [n, k], hessian float32 [k, k] -> codes. factor: what factorize made of this hessian, where several
    weights share it. Raises ValueError as factorize and round_matrix do."""
    if weight.shape[1:] != hessian.shape[:1] or weight.shape[1:] != hessian.shape[1:]:
        raise ValueError(f"a weight {list(weight.shape)} and a hessian {list(hessian.shape)} do not belong together")
    factor = factor or factorize(hessian, order=order, damping=damping)
    searched = round_matrix(weight, format, True, factor.importance)
    if factor.lower is None:
        return Solved(searched, factor.note)
    codes = replace(searched, codes=searched.codes.copy())
    matrix = linalg.tensor(hessian)
    np.fill_diagonal(matrix.numpy(), np.diag(hessian) + factor.ridge)
    for begin in range(0, len(weight), ROWS):
        rows, part = weight[begin:begin + ROWS], codes.rows(begin, begin + ROWS)
        with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite, whose scales are NaN
            grid = _Grid.of(part)
            part.codes[:, : part.k] = _visit(rows, grid, factor)
            for _ in range(passes):
                _move(rows, grid, matrix)
    return Solved(codes, factor.note)


@dataclass
class _Grid:
    """The values codes can stand for, s (u c - m) + b, columns first. All float32 [groups, n]; inverse and offset, with
    which the nearest code of w is w * inverse + offset, per `step` columns."""

    codes: Codes
    step: int
    inverse: np.ndarray
    offset: np.ndarray
    scales: np.ndarray
    factors: Optional[np.ndarray] = None
    minima: Optional[np.ndarray] = None
    biases: Optional[np.ndarray] = None

    @staticmethod
    def of(codes: Codes) -> "_Grid":
        f = codes.format
        scales = np.ascontiguousarray(widen(codes.scales, f.scale_dtype).T)
        if f.packing == "int4_two_level":
            u, m = (np.ascontiguousarray(part.T, dtype=np.float32) for part in (codes.subscales, codes.minima))
            size = np.repeat(scales, f.group // SUB, 0)[: len(u)] * u
            return _Grid(codes, SUB, _inverse(size), m / np.maximum(u, 1), scales, u, m)
        inverse, zero = _inverse(scales), np.float32(8 if f.packing == "int4" else 0)
        if f.zero == "real":
            biases = np.ascontiguousarray(widen(codes.zeros, f.scale_dtype).T)
            return _Grid(codes, f.group, inverse, -biases * inverse, scales, biases=biases)
        if f.zero == "integer":
            zeros = np.ascontiguousarray(codes.zeros.T, dtype=np.float32)
        else:
            zeros = np.broadcast_to(zero, scales.shape)
        return _Grid(codes, f.group, inverse, zeros, scales, minima=zeros)

    def nearest(self, column: int, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes for w [n] in this column, as floats, and what they stand for: the sums of Codes.dequantize."""
        at, group = column // self.step, column // self.codes.format.group
        c = w * self.inverse[at]
        c += self.offset[at]
        np.rint(c, out=c)
        low, high = (-128, 127) if self.codes.format.packing == "int8" else (0, 15)
        np.fmax(np.fmin(c, high, out=c), low, out=c)  # NaN becomes a code as well
        value = c * self.factors[at] if self.factors is not None else c.copy()
        if self.minima is not None:
            value -= self.minima[at]
        value *= self.scales[group]
        if self.biases is not None:
            value += self.biases[group]
        return c, value


def _inverse(size: np.ndarray) -> np.ndarray:
    """1 / size, and 0 where that is no float."""
    tiny = np.abs(size) < 2.0**-126
    return np.where(tiny, np.float32(0), np.float32(1) / np.where(tiny, np.float32(1), size))


def _visit(weight: np.ndarray, grid: _Grid, factor: Factor) -> np.ndarray:
    """Codes [n, k] of a few rows."""
    n, k = weight.shape
    columns = np.ascontiguousarray(weight.T)
    codes = np.empty((k, n), grid.codes.codes.dtype)
    errors = _core.Tensor((n, k))  # of columns visited, over their diagonal in L
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        visited = factor.order[begin:end]
        block, lower = columns[visited], factor.lower[begin:end, begin:end]
        if begin:
            block -= _core.linear(errors.columns(0, begin), linalg.tensor(factor.lower[begin:end, :begin])).numpy().T
        for first in range(0, end - begin, INNER):
            last = min(first + INNER, end - begin)
            for j in range(first, last):
                codes[visited[j]], value = grid.nearest(visited[j], block[j])
                block[j] -= value
                block[j] /= lower[j, j]
                block[j + 1:last] -= lower[j + 1:last, j, None] * block[j]
            if last < end - begin:
                block[last:] -= _product(lower[last:, first:last], block[first:last])
        errors.numpy()[:, begin:end] = block.T
    return codes.T


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b of float32 [m, few] and [few, n]."""
    return _core.linear(linalg.tensor(a), linalg.tensor(b.T)).numpy()


def _move(weight: np.ndarray, grid: _Grid, matrix: _core.Tensor) -> None:
    """Moves each column's codes, in place, to the nearest of what the others would have them be: no row's d H d^T rises.
    matrix is H [k, k]."""
    k, h = weight.shape[1], matrix.numpy()
    errors = linalg.tensor(grid.codes.dequantize() - weight)
    d, codes = errors.numpy(), grid.codes.codes
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        slopes = np.ascontiguousarray(_core.linear(errors, matrix.rows(begin, end)).numpy().T)  # of half the error
        block, original = np.ascontiguousarray(d[:, begin:end].T), np.ascontiguousarray(weight[:, begin:end].T)
        changes = np.empty_like(block)
        for first in range(0, end - begin, INNER):
            last = min(first + INNER, end - begin)
            for j in range(first, last):
                column = begin + j
                codes[:, column], value = grid.nearest(column, original[j] + block[j] - slopes[j] / h[column, column])
                changes[j] = value - original[j] - block[j]
                block[j] = value - original[j]
                slopes[j + 1:last] += h[column + 1:begin + last, column, None] * changes[j]
            if last < end - begin:
                slopes[last:] += _product(h[begin + last:end, begin + first:begin + last], changes[first:last])
        d[:, begin:end] = block.T


def row_errors(weight: np.ndarray, rounded: np.ndarray, hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [n], [n]: d H d^T and w H w^T of each row, d = rounded - weight; weight and rounded float32 [n, k]."""
    matrix = linalg.tensor(hessian)
    return linalg.quadratic(rounded - weight, matrix), linalg.quadratic(weight, matrix)


def output_error(weight: np.ndarray, rounded: np.ndarray, hessian: np.ndarray) -> float:
    """tr(D H D^T) / tr(W H W^T): the mean square of the outputs' error over that of the outputs."""
    error, whole = (part.sum() for part in row_errors(weight, rounded, hessian))
    return float(error / whole) if whole > 0 else float(error > 0)


def keep_better(weight: np.ndarray, hessian: np.ndarray, first: Codes, second: Codes) -> tuple[Codes, np.ndarray]:
    """Of each row the codes with the smaller d H d^T, the first where both are equal; and where the second was better,
    bool [n]. Raises ValueError for codes of different formats."""
    if first.format != second.format or first.shape != second.shape:
        raise ValueError("codes of different formats or shapes cannot be mixed")
    matrix = linalg.tensor(hessian)
    a, b = (linalg.quadratic(codes.dequantize() - weight, matrix) for codes in (first, second))
    better = b < a
    others = second.parts()
    mixed = {name: np.where(better[:, None], others[name], part) for name, part in first.parts().items()}
    return replace(first, **mixed), better
