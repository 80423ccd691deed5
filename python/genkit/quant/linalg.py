"""Products and triangular factors whose bits do not depend on the number of threads.

What is large goes through the core's linear; what is left is 128 wide and elementwise in float64. BLAS, which numpy's own
products use, may add in another order with another number of threads.
"""

from __future__ import annotations

import numpy as np

from genkit import _core
from genkit._core import Tensor

BLOCK = 128  # columns factored at a time
STRIP = 1024  # rows of the inverse that one product makes, so that it skips most of the zeros on their left


def tensor(array: np.ndarray) -> Tensor:
    """A float32 copy for the core."""
    return Tensor.from_numpy(np.ascontiguousarray(array, np.float32))


def stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32: the array as "f32", "f16" or "bf16" has it."""
    return _core.convert(_core.convert(tensor(array.reshape(1, -1)), dtype), "f32").numpy().reshape(array.shape)


def quadratic(rows: np.ndarray, matrix: Tensor) -> np.ndarray:
    """float64 [n]: r M r^T of each row of float32 [n, k], M symmetric [k, k]."""
    out = np.empty(len(rows))
    for begin in range(0, len(rows), STRIP):
        part = np.ascontiguousarray(rows[begin:begin + STRIP])
        product = _core.linear(tensor(part), matrix).numpy()
        product *= part
        out[begin:begin + STRIP] = product.sum(1, dtype=np.float64)
    return out


def inverse_cholesky(matrix: np.ndarray) -> np.ndarray:
    """float32 [k, k], symmetric -> lower L with positive diagonal and matrix^-1 = L L^T, float32.

    With J the reversal of rows and columns: J matrix J = C C^T, and L = J C^-T J, so that one factor and the inverse of a
    triangle are all it takes. Beside the matrix, memory is three times its size. Raises numpy.linalg.LinAlgError where the
    matrix is not positive definite, as far as float32 can tell.
    """
    work = tensor(matrix[::-1, ::-1])
    inverses = _cholesky(work)
    return np.ascontiguousarray(_inverse_transposed(work, inverses).numpy()[::-1, ::-1])


def _cholesky(work: Tensor) -> list[np.ndarray]:
    """Overwrites blocks below the diagonal with those of C, work = C C^T; returns the inverses of its diagonal blocks."""
    a, k = work.numpy(), len(work.numpy())
    inverses = []
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        if begin:
            left = work.rows(begin, k).columns(0, begin)
            a[begin:, begin:end] -= _core.linear(left, tensor(a[begin:end, :begin])).numpy()
        inverses.append(_inverse_of_factor(a[begin:end, begin:end].astype(np.float64), begin))
        if end < k:
            a[end:, begin:end] = _core.linear(work.rows(end, k).columns(begin, end), tensor(inverses[-1])).numpy()
    return inverses


def _inverse_of_factor(a: np.ndarray, place: int) -> np.ndarray:
    """C^-1 of a small a = C C^T, of which the lower half is read and changed."""
    inverse = np.eye(len(a))
    for j in range(len(a)):
        pivot = a[j, j]
        if not 0 < pivot < np.inf:
            raise np.linalg.LinAlgError(f"not positive definite: pivot {place + j} from the end is {pivot}")
        a[j:, j] /= np.sqrt(pivot)
        a[j + 1:, j + 1:] -= a[j + 1:, j, None] * a[j + 1:, j]
        inverse[j] /= a[j, j]
        inverse[j + 1:] -= a[j + 1:, j, None] * inverse[j]
    return inverse


def _inverse_transposed(work: Tensor, inverses: list[np.ndarray]) -> Tensor:
    """C^-T, upper, from the blocks of C below the diagonal and the inverses of those on it."""
    a, k = work.numpy(), len(work.numpy())
    out = Tensor.zeros([k, k])
    u = out.numpy()
    for block, inverse in enumerate(inverses):
        begin, end = block * BLOCK, min(block * BLOCK + BLOCK, k)
        u[begin:end, begin:end] = inverse.T
        for top in range(0, begin, STRIP):
            bottom = min(top + STRIP, begin)
            known = out.rows(top, bottom).columns(top, begin)
            product = _core.linear(known, tensor(a[begin:end, top:begin]))
            u[top:bottom, begin:end] = -_core.linear(product, tensor(inverse)).numpy()
    return out
