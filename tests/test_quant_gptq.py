"""GPTQ against the paper's update in float64, column by column, and what it must do for every layer and format."""

import numpy as np
import pytest
from kernel_helpers import same_bits
from quant_layers import FORMATS, layer, levels, named, nearest, trace

from genkit import _core
from genkit.quant import gptq as module
from genkit.quant.codes import Codes
from genkit.quant.formats import Format
from genkit.quant.gptq import factorize, gptq, keep_better, output_error
from genkit.quant.rounding import round_matrix

every_format = pytest.mark.parametrize("format", FORMATS, ids=named)


@pytest.fixture
def threads():
    before = _core.get_threads()
    yield _core.set_threads
    _core.set_threads(before)


def search(weight, hessian, format):
    return round_matrix(weight, format, True, np.ascontiguousarray(np.diag(hessian)))


def same_codes(a, b):
    return a.format == b.format and a.k == b.k and all(same_bits(x, b.parts()[name]) for name, x in a.parts().items())


def by_the_paper(weight, hessian, grid, order, damping=0.01):
    """What equations 2 and 3 of arXiv 2210.17323 leave of the weight: float64, the inverse itself, no blocks, no factor."""
    w, k = weight.astype(np.float64), len(hessian)
    inverse = np.linalg.inv(hessian.astype(np.float64) + damping * np.diag(hessian).mean(dtype=np.float64) * np.eye(k))
    for j in order:
        value = nearest(grid, j, w[:, j])
        error = (w[:, j] - value) / inverse[j, j]
        w -= error[:, None] * inverse[j]
        w[:, j] = value
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j], inverse[:, j] = 0, 0
    return w


@every_format
@pytest.mark.parametrize("n, k", [(40, 33), (24, 300)])
def test_the_papers_update(format, n, k):
    weight, _, hessian = layer(np.random.default_rng(), n, k)
    for ordered in (False, True):
        found = gptq(weight, hessian, format, order=ordered, passes=0)
        order = np.argsort(-np.diag(hessian), kind="stable") if ordered else np.arange(k)
        want = by_the_paper(weight, hessian, found.codes, order)
        got = found.codes.dequantize()
        assert found.note == ""
        # A weight halfway between two codes may go either way in float32, and its row another way from there.
        same = (np.abs(got - want) <= 1e-6 * np.abs(weight).max()).all(1)
        assert same.mean() >= 0.85
        assert trace(got - weight, hessian) == pytest.approx(trace(want - weight, hessian), rel=1e-3 if same.all() else 0.03)


@every_format
@pytest.mark.parametrize("k", [33, 64, 300])
def test_outputs_are_nearer_than_those_of_the_search(format, k):
    """Measured 0.1 to 0.35 of the search's error for these layers."""
    weight, x, hessian = layer(np.random.default_rng(), 50, k)
    searched, found = search(weight, hessian, format), gptq(weight, hessian, format).codes
    found.pack()  # all in their range
    errors = [trace(codes.dequantize() - weight, hessian) for codes in (searched, found)]
    assert errors[1] < 0.6 * errors[0]
    outputs = x.astype(np.float64) @ weight.T
    off = [np.square(x @ codes.dequantize().T.astype(np.float64) - outputs).mean() for codes in (searched, found)]
    assert off[1] < 0.6 * off[0]


@every_format
def test_a_pass_only_improves(format):
    weight, _, hessian = layer(np.random.default_rng(), 30, 150)
    ridge = np.float32(0.01 * np.diag(hessian).mean()) * np.eye(150, dtype=np.float32)
    made = [gptq(weight, hessian, format, passes=passes).codes.dequantize() - weight for passes in (0, 1, 3)]
    errors = [np.array([trace(row[None], hessian + ridge) for row in rows]) for rows in made]
    assert (errors[1] <= errors[0] * (1 + 1e-4)).all() and (errors[2] <= errors[1] * (1 + 1e-4)).all()
    assert errors[1].sum() < errors[0].sum()


@every_format
def test_inputs_that_do_not_go_together(format):
    """Then each weight goes to the nearest code."""
    weight, _, _ = layer(np.random.default_rng(), 20, 100)
    for diagonal in (np.ones(100, np.float32), np.random.default_rng().uniform(0.1, 5, 100).astype(np.float32)):
        codes = gptq(weight, np.diag(diagonal), format).codes
        check_nearest(codes, weight, range(100))


def check_nearest(codes, weight, columns):
    values = codes.dequantize().astype(np.float64)
    for j in columns:
        off = np.abs(values[:, j] - weight[:, j])
        least = np.abs(levels(codes, j) - weight[:, j, None].astype(np.float64)).min(1)
        assert (off <= least * (1 + 1e-5) + 1e-6 * np.abs(weight[:, j])).all(), j


@every_format
def test_inputs_that_were_always_zero(format):
    rng = np.random.default_rng()
    weight, _, hessian = layer(rng, 20, 90)
    dead = rng.choice(90, 12, replace=False)
    hessian[dead], hessian[:, dead] = 0, 0
    found = gptq(weight, hessian, format)
    assert found.note == ""
    check_nearest(found.codes, weight, dead)
    assert output_error(weight, found.codes.dequantize(), hessian) < output_error(
        weight, search(weight, hessian, format).dequantize(), hessian)
    nothing = gptq(weight, np.zeros_like(hessian), format)
    check_nearest(nothing.codes, weight, range(90))


@every_format
def test_fewer_inputs_than_columns(format):
    weight, x, _ = layer(np.random.default_rng(), 20, 130)
    hessian = (x[:5].T @ x[:5] / 5).astype(np.float32)
    found = gptq(weight, hessian, format)
    assert output_error(weight, found.codes.dequantize(), hessian) < 0.3 * output_error(
        weight, search(weight, hessian, format).dequantize(), hessian)


def test_a_hessian_that_is_none():
    """Damping doubles until there is a factor; where it never comes the codes are those of the search."""
    weight, _, hessian = layer(np.random.default_rng(), 20, 80)
    np.fill_diagonal(hessian, 1)
    off = ~np.eye(80, dtype=bool)
    hessian[off] = -0.5 / 79 * 2.2  # smallest eigenvalue -0.1: from damping 0.16 on
    found = gptq(weight, hessian, FORMATS[1])
    assert found.note == "damping 0.16"
    hessian[off] = -1
    found = gptq(weight, hessian, FORMATS[1])
    assert "not positive definite" in found.note and "search" in found.note
    assert same_codes(found.codes, round_matrix(weight, FORMATS[1], True, factorize(hessian).importance))


@every_format
def test_rows_do_not_know_of_each_other(format, monkeypatch):
    weight, _, hessian = layer(np.random.default_rng(), 50, 140)
    whole = gptq(weight, hessian, format).codes
    factor = factorize(hessian)
    monkeypatch.setattr(module, "ROWS", 16)
    assert same_codes(gptq(weight, hessian, format, factor=factor).codes, whole)
    parts = [gptq(weight[i:i + 7], hessian, format, factor=factor).codes for i in range(0, 50, 7)]
    assert same_codes(Codes.stack(parts), whole)


@every_format
def test_bits_do_not_depend_on_threads(format, threads):
    weight, _, hessian = layer(np.random.default_rng(), 65, 300)
    made = []
    for count in (1, 2, 3):
        threads(count)
        codes = gptq(weight, hessian, format).codes
        made.append((codes, output_error(weight, codes.dequantize(), hessian)))
    assert all(same_codes(codes, made[0][0]) and error == made[0][1] for codes, error in made[1:])


@every_format
def test_rows_that_are_no_numbers_stay_alone(format):
    weight, _, hessian = layer(np.random.default_rng(), 9, 140)
    whole = gptq(weight, hessian, format).codes
    broken = weight.copy()
    broken[2, 70], broken[5, 3] = np.nan, np.inf
    found = gptq(broken, hessian, format).codes
    found.pack()
    rows = [0, 1, 3, 4, 6, 7, 8]
    assert same_bits(found.codes[rows], whole.codes[rows])
    assert np.isnan(found.dequantize()[[2, 5]]).any(1).all()


def test_zeros():
    weight, _, hessian = layer(np.random.default_rng(), 9, 140)
    weight[3], weight[:, 64:96] = 0, 0
    for format in FORMATS:
        values = gptq(weight, hessian, format).codes.dequantize()
        assert np.isfinite(values).all() and not values[3].any()


def test_output_error_and_the_better_of_two():
    rng = np.random.default_rng()
    weight, _, hessian = layer(rng, 40, 120)
    format = Format("int4", 32)
    first, second = search(weight, hessian, format), gptq(weight, hessian, format).codes
    for codes in (first, second):
        want = trace(codes.dequantize() - weight, hessian) / trace(weight, hessian)
        assert output_error(weight, codes.dequantize(), hessian) == pytest.approx(want, rel=1e-3)
    assert output_error(weight, weight, hessian) == 0
    swapped = rng.random(40) < 0.5
    ones, others = (Codes.stack([(a if s else b).rows(i, i + 1) for i, s in enumerate(swapped)])
                    for a, b in ((first, second), (second, first)))
    best, better = keep_better(weight, hessian, ones, others)
    assert same_bits(better, swapped) and same_codes(best, second)
    best, better = keep_better(weight, hessian, first, first)
    assert not better.any() and same_codes(best, first)
    with pytest.raises(ValueError, match="cannot be mixed"):
        keep_better(weight, hessian, first, search(weight, hessian, FORMATS[0]))


def test_what_is_refused():
    weight, _, hessian = layer(np.random.default_rng(), 3, 40)
    for value, words in ((np.nan, "NaN or an infinity"), (-1, "of its diagonal")):
        broken = hessian.copy()
        broken[7, 7] = value
        with pytest.raises(ValueError, match=words):
            gptq(weight, broken, FORMATS[0])
    with pytest.raises(ValueError, match=r"\[3, 40\].*\[39, 39\]"):
        gptq(weight, hessian[1:, 1:], FORMATS[0])
    with pytest.raises(ValueError, match="damping is 0"):
        gptq(weight, hessian, FORMATS[0], damping=0)
