"""Codes in another format: the same codes, and a change of scales that is as large as is said."""

import numpy as np
import pytest
from format_files import FORMATS, K_FORMATS, bits_of, random_codes

from genkit.quant.codes import SUB, widen
from genkit.quant.convert import possible, regroup
from genkit.quant.formats import BY_NAME, Format

RANDOM = np.random.default_rng()


@pytest.mark.parametrize("source", FORMATS, ids=str)
def test_what_is_possible_of_any_codes(source):
    """`possible` and what regroup does agree, and no weight moves further than its scale and offset do."""
    n, k = 9, 332
    codes = random_codes(RANDOM, n, k, source)
    for target in FORMATS:
        if not possible(source, target):
            with pytest.raises(ValueError, match="anew|rounded"):
                regroup(codes, target)
            continue
        got, change = regroup(codes, target)
        assert got.format == target and got.shape == (n, k)
        if target.packing == source.packing or source.packing == "int4_two_level" and target.packing == "int4":
            assert got.codes is codes.codes
        with np.errstate(invalid="ignore"):
            before, after = codes.dequantize().astype(np.float64), got.dequantize().astype(np.float64)
        size = np.abs(before) + 2 * 15 * np.abs(np.repeat(scales_of(codes), SUB, 1)[:, :k])
        if source.zero == "real" or target.zero == "real":
            size += 2 * np.abs(np.repeat(offsets_of(codes), SUB, 1)[:, :k])
        assert (np.abs(after - before) <= (change + 2.0**-22) * size).all()
        if target.scale_dtype == source.scale_dtype and source.zero == target.zero and source.packing != "int4_two_level":
            assert change == 0 and np.array_equal(before, after)
        got.pack()
        none, change = regroup(codes.rows(0, 0), target)
        assert none.shape == (0, k) and change == 0


def scales_of(codes):
    """|s| of 32 codes each, [n, depth / 32]."""
    f, count = codes.format, codes.codes.shape[1] // SUB
    s = np.abs(np.repeat(widen(codes.scales, f.scale_dtype), f.group // SUB, 1)[:, :count])
    return s * codes.subscales if f.packing == "int4_two_level" else s


def offsets_of(codes):
    """|b| likewise."""
    f, count = codes.format, codes.codes.shape[1] // SUB
    if f.packing == "int4_two_level":
        return np.abs(np.repeat(widen(codes.scales, "f16"), 8, 1)[:, :count]) * codes.minima
    if f.zero == "none":
        return 8 * scales_of(codes)
    zeros = np.repeat(widen(codes.zeros, f.scale_dtype) if f.zero == "real" else codes.zeros, f.group // SUB, 1)[:, :count]
    return np.abs(zeros) if f.zero == "real" else scales_of(codes) * np.abs(zeros.astype(np.float32))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_two_levels_to_groups_of_32(dtype):
    """Scales and offsets are the exact products, rounded once; the change is the largest of them."""
    codes = random_codes(RANDOM, 300, 256, BY_NAME["int4"])
    got, change = regroup(codes, Format("int4", 32, "real", dtype))
    s = np.repeat(widen(codes.scales, "f16").astype(np.float64), 8, 1)
    worst = 0.0
    for bits, exact in ((got.scales, s * codes.subscales), (got.zeros, -s * codes.minima)):
        assert np.array_equal(widen(bits, dtype), widen(bits_of(exact.astype(np.float32), dtype), dtype))
        error = np.abs(widen(bits, dtype) - exact)
        worst = max(worst, (error[exact != 0] / np.abs(exact[exact != 0])).max())
    assert change == worst and 0 < change


def test_two_levels_to_symmetric_groups_where_minima_are_eight_scales():
    codes = random_codes(RANDOM, 5, 256, BY_NAME["int4"])
    codes.subscales[:] = 1 << RANDOM.integers(0, 4, codes.subscales.shape)
    codes.minima[:] = 8 * codes.subscales
    got, change = regroup(codes, Format("int4", 32))
    assert change == 0 and np.array_equal(got.dequantize(), codes.dequantize()) and got.codes is codes.codes
    codes.minima[:] = 5 * codes.subscales
    got, change = regroup(codes, Format("int4", 32, "integer"))
    assert change == 0 and np.array_equal(got.dequantize(), codes.dequantize()) and (got.zeros == 5).all()
    with pytest.raises(ValueError, match="symmetric"):
        regroup(codes, Format("int4", 32))
    codes.minima[3, 1], codes.subscales[3, 1] = 7, 2
    with pytest.raises(ValueError, match="a zero of 3.5"):
        regroup(codes, Format("int4", 32, "integer"))


def test_two_levels_to_int8_are_exact():
    codes = random_codes(RANDOM, 5, 300, BY_NAME["int4"])
    for group in (32, 256):
        got, change = regroup(codes, Format("int8", group))
        assert change == 0 and np.array_equal(got.dequantize(), codes.dequantize())


def test_groups_that_agree_become_one():
    codes = random_codes(RANDOM, 3, 160, Format("int4", 32, "real"))
    with pytest.raises(ValueError, match="groups of 64"):
        regroup(codes, Format("int4", 64, "real"))
    for array in (codes.scales, codes.zeros):
        array[:, 1], array[:, 3] = array[:, 0], array[:, 2]  # past k, the sixth is whatever it is
    got, change = regroup(codes, Format("int4", 64, "real"))
    assert change == 0 and np.array_equal(got.dequantize(), codes.dequantize())
    with pytest.raises(ValueError, match="groups of 128"):
        regroup(codes, Format("int4", 128, "real"))


def test_zeros_that_happen_to_fit():
    codes = random_codes(RANDOM, 3, 64, Format("int4", 32))
    real, change = regroup(codes, Format("int4", 32, "real"))
    assert change == 0  # -8 s is exact
    for zero in ("none", "integer"):
        back, change = regroup(real, Format("int4", 32, zero))
        assert change == 0 and np.array_equal(back.dequantize(), codes.dequantize())
    offset = random_codes(RANDOM, 3, 64, Format("int8", 32, "real"))
    offset.zeros[:] = 0
    assert regroup(offset, Format("int8", 32))[1] == 0


def test_scales_beyond_the_type():
    codes = random_codes(RANDOM, 3, 64, Format("int8", 32, "none", "bf16"))
    codes.scales[1, 1] = bits_of(np.float32([70000]), "bf16")[0]
    with pytest.raises(ValueError, match="beyond f16"):
        regroup(codes, Format("int8", 32))
    codes.scales[1, 1] = bits_of(np.float32([1e-20]), "bf16")[0]
    assert regroup(codes, Format("int8", 32))[1] == 1.0  # gone
    codes.scales[1, 1] = 0x7FC0
    got, change = regroup(codes, Format("int8", 32))
    assert np.isnan(got.dequantize()[1, 32:]).all() and change < 2.0**-11


def test_scales_of_k_quants_stay_as_they_are():
    for k_format in K_FORMATS:
        codes = random_codes(RANDOM, 3, 64, k_format)
        assert possible(k_format, k_format) and regroup(codes, k_format) == (codes, 0.0)
        for other in (Format("int8", 32, "real"), Format("int4_two_level")):
            assert not possible(k_format, other) and not possible(other, k_format)
            with pytest.raises(ValueError, match="rounded anew"):
                regroup(codes, other)
