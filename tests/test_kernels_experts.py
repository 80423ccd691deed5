"""Mixture of experts on every tier: routing against float64, the layout of rows, products to the bit those of single
experts, whoever else is there, at once and from a plan."""

import numpy as np
import pytest
from format_files import random_codes
from kernel_helpers import EPS, assert_within, ints, pytest_tier, same_bits, strided, tensor

from genkit import _core
from genkit.quant.formats import Format

tier = pytest_tier()
WORDS = [("int4_two_level", 256), ("int4", 32), ("int8", 128)]
# Rows, experts, experts a row: experts without rows, with one, with some and with many.
SIZES = [(0, 4, 2), (1, 8, 2), (1, 3, 3), (5, 16, 4), (40, 5, 2), (70, 3, 1)]


def route_by_definition(logits, k, scoring, correction, groups, kept, normalize, scale):
    """float64 -> ids, weights: numpy's own sorts, nothing shared with the kernels."""
    logits = logits.astype(np.float64)
    if scoring == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
    choice = scores + (0 if correction is None else correction)
    if groups > 1:
        by_group = choice.reshape(len(logits), groups, -1)
        sums = -np.sort(-by_group, 2)[:, :, :2].sum(2)
        best = np.argsort(-sums, 1, kind="stable")[:, :kept]
        mask = np.zeros(sums.shape, bool)
        np.put_along_axis(mask, best, True, 1)
        choice = np.where(mask[:, :, None], by_group, -np.inf).reshape(choice.shape)
    ids = np.argsort(-choice, 1, kind="stable")[:, :k]
    weights = np.take_along_axis(scores, ids, 1)
    if normalize or scoring == "softmax_chosen":
        weights /= weights.sum(1, keepdims=True)
    return ids, weights * scale


@pytest.mark.parametrize("scoring", ["softmax", "softmax_chosen", "sigmoid"])
@pytest.mark.parametrize("experts, k, groups, kept", [(1, 1, 1, 1), (7, 7, 1, 1), (64, 6, 1, 1), (60, 4, 6, 2), (8, 2, 8, 3),
                                                      (256, 8, 8, 4), (1024, 5, 1, 1)])
def test_routes_as_defined(tier, scoring, experts, k, groups, kept):
    if groups > 1 and scoring != "sigmoid":
        return
    rng = np.random.default_rng(experts + k)
    # Scores that are well apart: which is larger must not hang on a rounding.
    logits = np.stack([rng.permutation(experts) for _ in range(9)]).astype(np.float32) * np.float32(4 / experts) - 2
    for normalize, scale, corrected in ((False, 1.0, False), (True, 2.5, True)):
        correction = None
        if corrected and scoring == "sigmoid":
            correction = np.where(np.arange(experts) % 3 == 0, np.float32(0.5), np.float32(-0.25))
        ids, weights = _core.route(tensor(logits), k, scoring, None if correction is None else tensor(correction), groups, kept,
                                   normalize, scale)
        want_ids, want = route_by_definition(logits, k, scoring, correction, groups, kept, normalize, scale)
        if groups == 1 and correction is None:
            assert np.array_equal(ids.numpy(), want_ids)
        for r in range(9):  # sums of two groups, or a score and its correction, may be a rounding apart
            assert len(set(ids.numpy()[r])) == k
        same = (ids.numpy() == want_ids).all(1)
        assert same.sum() >= 8
        assert_within(weights.numpy()[same], want[same], 16 * EPS * want[same] * max(1, np.log2(experts)))


def test_equal_logits_go_to_the_first_experts_and_nan_is_passed_over(tier):
    logits = np.zeros((3, 6), np.float32)
    logits[1, 4] = 1
    logits[2] = np.nan
    ids, weights = _core.route(tensor(logits), 3, "softmax_chosen")
    assert ids.numpy().tolist() == [[0, 1, 2], [4, 0, 1], [0, 1, 2]]
    assert np.allclose(weights.numpy()[0], 1 / 3) and np.isnan(weights.numpy()[2]).all()


@pytest.mark.parametrize("rows, experts, k", SIZES)
def test_rows_lie_by_expert(tier, rows, experts, k):
    rng = np.random.default_rng(rows)
    ids = np.array([rng.permutation(experts)[:k] for _ in range(rows)], np.int32).reshape(rows, k)
    groups = _core.group_rows(ints(ids), experts)
    regions, sources, place_of = groups.regions.numpy(), groups.sources.numpy(), groups.place_of.numpy()
    reached = 0
    used = [r for r in regions.tolist() if r[2]]
    assert [r[0] for r in used] == sorted(set(ids.reshape(-1).tolist()))
    for expert, first, count in used:
        assert first == reached and first % 16 == 0 and count == (ids == expert).sum()
        rows_there = sources[first:first + count].tolist()
        assert rows_there == [r for r in range(rows) if expert in ids[r]]
        reached = -(-(first + count) // 16) * 16
        assert (sources[first + count:reached] == -1).all()
    assert (sources[reached:] == -1).all() and (regions[len(used):, 2] == 0).all()
    for r in range(rows):
        for j in range(k):
            assert sources[place_of[r, j]] == r
    tiles = [i for i, r in enumerate(used) for _ in range(-(-r[2] // 16))]
    assert groups.tiles.numpy().tolist() == tiles + [-1] * (len(groups.tiles.numpy()) - len(tiles))


class Layer:
    """Random weights of `experts` [n, k], and what one expert alone makes of rows."""

    def __init__(self, rng, experts, n, k, dtype, gated=False, bias=True):
        self.one, self.kind = [], "silu" if gated else ""
        self.weights = _core.ExpertWeights(experts)
        for e in range(experts):
            weight = rng.standard_normal((n, k)).astype(np.float32)
            if isinstance(dtype, Format):
                weight = random_codes(rng, n, k, dtype).pack(gated)
            elif isinstance(dtype, tuple):
                weight = _core.quantize_weight(tensor(weight), _core.WeightFormat(*dtype), gated)
            else:
                weight = tensor(weight, dtype)
            self.one.append(weight)
            self.weights.set(e, weight)
        self.bias = tensor(rng.standard_normal((experts, n))) if bias else None

    def alone(self, expert, x):
        bias = None if self.bias is None else self.bias.rows(expert, expert + 1).reshape([self.bias.shape[1]])
        if isinstance(self.one[expert], _core.PackedWeight):
            return _core.packed_linear(x, self.one[expert], bias, None, self.kind)
        y = _core.linear(x, self.one[expert], bias)
        return _core.gated(y, self.kind) if self.kind else y

    def __call__(self, x, groups):
        return _core.expert_linear(x, groups, self.weights, self.bias, self.kind)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", *WORDS, Format("int4_k", 16, "real"), Format("int8_k", 32)], ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_each_row_gets_what_its_expert_gives_alone(tier, dtype, gated):
    rng = np.random.default_rng(7)
    for rows, experts, k in SIZES:
        n, depth = (34, 300) if rows != 40 else (130, 96)
        layer = Layer(rng, experts, n, depth, dtype, gated, bias=rows % 2 == 1)
        x = rng.standard_normal((rows, depth)).astype(np.float32)
        ids = np.array([rng.permutation(experts)[:k] for _ in range(rows)], np.int32).reshape(rows, k)
        if rows > 30:
            ids[ids == 1] = 0 if k == 1 else ids[ids == 1]  # all rows of expert 1 to expert 0: one without any
        groups = _core.group_rows(ints(ids), experts)
        got = layer(_core.gather_rows(strided(x, 3, 5), groups), groups).numpy()
        for r in range(rows):
            for j in range(k):
                want = layer.alone(int(ids[r, j]), tensor(x[r:r + 1])).numpy()
                assert same_bits(got[groups.place_of.numpy()[r, j]], want[0]), (rows, r, j)


@pytest.mark.parametrize("dtype", ["f32", "bf16", ("int4", 32)], ids=str)
def test_a_layer_by_float64(tier, dtype):
    """Gate and up, down, the weighted sum: within the rounding of x and weights, which packed formats have more of."""
    rng = np.random.default_rng(3)
    rows, experts, k, width, inner = 21, 6, 3, 64, 96
    up, down = Layer(rng, experts, 2 * inner, width, dtype, True), Layer(rng, experts, width, inner, dtype)
    x, residual = rng.standard_normal((2, rows, width)).astype(np.float32)
    logits = rng.standard_normal((rows, experts)).astype(np.float32)

    def run():
        ids, weights = _core.route(tensor(logits), k, normalize=True)
        groups = _core.group_rows(ids, experts)
        y = down(up(_core.gather_rows(tensor(x), groups), groups), groups)
        return _core.combine(y, weights, groups, tensor(residual))

    got = run().numpy()
    ids, weights = route_by_definition(logits, k, "softmax", None, 1, 1, True, 1.0)
    want, size = residual.astype(np.float64), np.zeros(rows)
    dense = lambda w: (w.numpy() if w.dtype == "f32" else _core.convert(w, "f32").numpy()) if not isinstance(w, _core.PackedWeight) \
        else _core.unpack(ints(np.arange(w.shape[0])), w).numpy()
    for r in range(rows):
        for e, share in zip(ids[r], weights[r]):
            h = dense(up.one[e]).astype(np.float64) @ x[r] + up.bias.numpy()[e]
            h = h[:inner] / (1 + np.exp(-h[:inner])) * h[inner:]
            y = dense(down.one[e]).astype(np.float64) @ h + down.bias.numpy()[e]
            want[r] += share * y
            size[r] += share * np.abs(y).max()
    allowed = {"f32": 1e-5, "bf16": 2e-2}.get(dtype, 4e-2) * size
    assert_within(got, want, allowed[:, None])
    # From a plan, whose weights for another step come of other logits in the same place.
    changing = tensor(np.zeros_like(logits))

    def recorded():
        ids, weights = _core.route(changing, k, normalize=True)
        groups = _core.group_rows(ids, experts)
        return _core.combine(down(up(_core.gather_rows(tensor(x), groups), groups), groups), weights, groups, tensor(residual))

    plan, out = _core.Plan.record(recorded)
    plan.replay()
    assert not same_bits(out.numpy(), got)
    changing.numpy()[...] = logits
    for threads in (1, 2, 5):
        _core.set_threads(threads)
        plan.replay()
        assert same_bits(out.numpy(), got) and same_bits(run().numpy(), got)
    _core.set_threads(1)
    # A row alone, and part of the rows, get the same.
    x, logits, residual, whole = x[4:5], logits[4:5], residual[4:5], got
    assert same_bits(run().numpy(), whole[4:5])


def test_combine_without_groups_scales_a_row(tier):
    rng = np.random.default_rng(1)
    y, residual = rng.standard_normal((2, 5, 37)).astype(np.float32)
    w = rng.standard_normal((5, 1)).astype(np.float32)
    assert_within(_core.combine(tensor(y), tensor(w), None, tensor(residual)).numpy(), residual + w.astype(np.float64) * y,
                  EPS * (np.abs(residual) + np.abs(w * y)))
    assert_within(_core.combine(tensor(y), tensor(w)).numpy(), w.astype(np.float64) * y, EPS * np.abs(w * y))


def test_what_does_not_fit_is_refused():
    f32 = tensor(np.zeros((4, 8)))
    for arguments, words in [((f32, 9), "k is 9"), ((f32, 2, "relu"), "unknown scoring"), ((f32, 2, "softmax", None, 3), "groups"),
                             ((f32, 3, "sigmoid", None, 4, 1), "expected 1 to 2"),
                             ((f32, 2, "softmax", tensor(np.zeros(8))), "sigmoid scoring only")]:
        with pytest.raises(ValueError, match=words):
            _core.route(*arguments)
    with pytest.raises(ValueError, match="is 8; expected 0 to 7"):
        _core.group_rows(ints([[8]]), 8)
    weights = _core.ExpertWeights(2)
    weights.set(0, tensor(np.zeros((6, 8))))
    groups = _core.group_rows(ints([[0], [1], [0], [1]]), 2)
    with pytest.raises(ValueError, match="not every expert"):
        _core.expert_linear(_core.gather_rows(f32, groups), groups, weights)
    for other in (tensor(np.zeros((6, 9))), tensor(np.zeros((6, 8)), "f16"),
                  _core.quantize_weight(tensor(np.zeros((6, 8))), _core.WeightFormat("int8", 32))):
        with pytest.raises(ValueError, match="unlike those before"):
            weights.set(1, other)
    weights.set(1, tensor(np.zeros((6, 8))))
    with pytest.raises(ValueError, match="x is"):
        _core.expert_linear(f32, groups, weights)
    with pytest.raises(ValueError, match="unknown activation"):
        _core.expert_linear(_core.gather_rows(f32, groups), groups, weights, None, "tanh")
