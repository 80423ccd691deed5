"""genkit bench limits and the loops under it. Speeds are not asserted: tests/check_limits.py compares them."""

import pytest

from genkit import _core, machine
from genkit.bench import limits
from genkit.errors import ResourceError


@pytest.fixture
def team():
    """Another team and tier than measuring wants."""
    before, tier = _core.get_threads(), _core.current_tier()
    _core.set_threads(3)
    yield 3
    assert _core.get_threads() == 3 and _core.current_tier() == tier
    _core.set_threads(before)


@pytest.mark.parametrize("size", [16 << 10, (1 << 20) + 1, 40 << 20])
def test_reading(size, team):
    assert 1e7 < limits.read_bandwidth(size, 1) < 1e13
    memory = limits.readable_memory(size, 2)
    words = memory.numpy()[: size // 8 * 8].view("uint64")
    assert words.all() and len(set(words[:5000].tolist())) == min(5000, len(words)), "numbers all different, none zero"
    assert 1e7 < limits.read_bandwidth(size, 2, memory) < 1e13
    assert 1e7 < limits.read_bandwidth(64 * 4, 4, memory) < 1e13


def test_arithmetic_of_every_tier(team):
    before = _core.current_tier()
    try:
        for tier in _core.tiers():
            _core.use_tier(tier)
            for kind in limits.KINDS:
                assert 1e7 < limits.arithmetic_peak(kind, 2) < 1e15, (tier, kind)
            assert _core.has_arithmetic("f32") and _core.has_arithmetic("int8") and not _core.has_arithmetic("f64")
            assert _core.has_arithmetic("bf16") == (_core.slots()["measure_bf16"] in ("avx512bf16", "amx")), tier
    finally:
        _core.use_tier(before)


def test_barriers(team):
    for threads in (1, 2, 5):
        for seconds in limits.barrier_cost(threads):
            assert 0 <= seconds < 1, threads


def test_more_threads_than_processors(team):
    """They wait for each other asleep, and what is measured is what they do together."""
    one = limits.read_bandwidth(1 << 20, 1)
    assert limits.read_bandwidth(1 << 20, 64) < 40 * one * machine.available_threads()


def test_what_cannot_be_measured(team):
    for size, threads in ((0, 1), (-1, 1), (63, 1), (127, 2)):
        with pytest.raises(ValueError, match=f"bytes is {size}; expected"):
            _core.read_bandwidth(size, threads)
    for threads in (0, -1, 1025):
        for measure in (lambda n: _core.read_bandwidth(1 << 20, n), lambda n: limits.arithmetic_peak("f32", n), limits.barrier_cost):
            with pytest.raises(ValueError, match=f"threads must be from 1 to 1024, not {threads}"):
                measure(threads)
    with pytest.raises(ValueError, match="kind is 'f64'; known: f32, bf16, int8"):
        limits.arithmetic_peak("f64", 1)
    with pytest.raises(MemoryError, match=f"{1 << 60} bytes are more than the machine's memory"):
        _core.read_bandwidth(1 << 60, 1)
    with pytest.raises(ResourceError, match="a working set of .* GiB does not fit: .* GiB are free"):
        limits.read_bandwidth(1 << 60, 1)
    memory = _core.readable_memory(1 << 16, 1)
    for wrong in (memory.rows(0, 1 << 15), _core.Tensor([1 << 16], "f32")):
        with pytest.raises(ValueError, match="memory is .*; expected u8 and at least"):
            _core.read_bandwidth(1 << 16, 1, wrong)
