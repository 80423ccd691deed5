"""Layers to round: weights with heavy tails, inputs that go together, grids of codes by brute force."""

import numpy as np

from genkit.quant.codes import SUB, widen
from genkit.quant.formats import Format

FORMATS = [Format("int4_two_level"), Format("int4", 32), Format("int4", 128, "none", "bf16"), Format("int4", 64, "integer"),
           Format("int4", 32, "real", "bf16"), Format("int8", 256), Format("int8", 32)]


def named(format):
    return f"{format.packing}-{format.group}-{format.zero}-{format.scale_dtype}"


def layer(rng, n, k, rank=None, outliers=0):
    """weight [n, k], inputs [4 k, k], their mean x x^T, all float32: inputs mix `rank` hidden ones with noise."""
    rank = rank or max(1, k // 8)
    x = rng.standard_normal((4 * k, rank)) @ rng.standard_normal((rank, k)) / np.sqrt(rank)
    x += 0.5 * rng.standard_normal((4 * k, k))
    x *= np.exp(0.5 * rng.standard_normal(k))
    x[:, rng.choice(k, outliers, replace=False)] *= 20
    weight = 0.02 * rng.standard_t(5, (n, k))
    hessian = np.einsum("ij,ik->jk", x, x, optimize=True) / len(x)
    return weight.astype(np.float32), x.astype(np.float32), ((hessian + hessian.T) / 2).astype(np.float32)


def trace(rows, hessian):
    """tr(R H R^T) in float64."""
    rows, hessian = rows.astype(np.float64), hessian.astype(np.float64)
    return float(np.einsum("ij,jk,ik->", rows, hessian, rows, optimize=True))


def levels(codes, column):
    """float64 [n, levels]: all that a code of this column can stand for."""
    f, at = codes.format, column // codes.format.group
    c = np.arange(-128, 128) if f.packing == "int8" else np.arange(16)
    q = np.repeat(c[None].astype(np.float64), codes.shape[0], 0)
    if f.packing == "int4_two_level":
        q = q * codes.subscales[:, column // SUB, None] - codes.minima[:, column // SUB, None]
    elif f.zero == "integer":
        q -= codes.zeros[:, at, None]
    elif f.zero == "none" and f.packing == "int4":
        q -= 8
    q *= widen(codes.scales, f.scale_dtype)[:, at, None]
    return q + widen(codes.zeros, f.scale_dtype)[:, at, None] if f.zero == "real" else q


def nearest(codes, column, w):
    """Of the levels the nearest to w float64 [n]."""
    values = levels(codes, column)
    return np.take_along_axis(values, np.abs(values - w[:, None]).argmin(1)[:, None], 1)[:, 0]
