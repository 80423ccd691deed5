"""Tensors, argument checks and the thread team: what stands between Python and the kernels."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from genkit import _core

DTYPES = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u8": np.uint8, "i16": np.int16, "u16": np.uint16,
          "i32": np.int32, "i64": np.int64}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_round_trip(rng, dtype):
    array = rng.integers(0, 100, (3, 5, 7)).astype(DTYPES[dtype])
    tensor = _core.Tensor.from_numpy(array)
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (dtype, (3, 5, 7), array.nbytes)
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_from_numpy_copies_and_numpy_shares(rng):
    array = rng.standard_normal((4, 6)).astype(np.float32)
    tensor = _core.Tensor.from_numpy(array)
    before = array.copy()
    array += 1
    view = tensor.numpy()
    np.testing.assert_array_equal(view, before)
    view[2, 3] = 42.0
    assert tensor.numpy()[2, 3] == 42.0
    del tensor  # the view keeps the storage
    assert view[2, 3] == 42.0


def test_write(rng):
    values = rng.integers(0, 99, (3, 4)).astype(np.int32)
    into = _core.Tensor([3, 4], "i32")
    into.write(values)
    np.testing.assert_array_equal(into.numpy(), values)
    for wrong in (values[:2], values.astype(np.int64), values.reshape(12)):
        with pytest.raises(ValueError, match="write: the array has another shape or type than"):
            into.write(wrong)
    with pytest.raises(ValueError, match="a strided view"):
        into.columns(0, 2).write(values[:, :2])


def test_from_numpy_takes_any_layout(rng):
    array = rng.standard_normal((6, 8)).astype(np.float32)
    for odd in (array.T, array[::2, 1::3], array[::-1], np.asfortranarray(array)):
        np.testing.assert_array_equal(_core.Tensor.from_numpy(odd).numpy(), odd)


def test_bits_of_bf16(rng):
    bits = rng.integers(0, 2**16, 50).astype(np.uint16)
    tensor = _core.Tensor.from_numpy(bits, dtype="bf16")
    assert tensor.dtype == "bf16"
    np.testing.assert_array_equal(tensor.numpy(), bits)
    with pytest.raises(ValueError, match="float32 is not bf16"):
        _core.Tensor.from_numpy(np.ones(3, np.float32), dtype="bf16")
    with pytest.raises(ValueError, match="no tensor type.*complex"):
        _core.Tensor.from_numpy(np.ones(3, np.complex64))
    with pytest.raises(ValueError, match="unknown dtype 'f8'.*bf16"):
        _core.Tensor((2,), "f8")


def test_views(rng):
    array = rng.standard_normal((6, 10)).astype(np.float32)
    tensor = _core.Tensor.from_numpy(array)
    np.testing.assert_array_equal(tensor.rows(2, 5).columns(3, 9).numpy(), array[2:5, 3:9])
    np.testing.assert_array_equal(tensor.columns(3, 9).rows(1, 2).reshape((2, 3)).numpy(), array[1, 3:9].reshape(2, 3))
    np.testing.assert_array_equal(tensor.reshape((3, 20)).numpy(), array.reshape(3, 20))
    with pytest.raises(ValueError, match="cannot view"):
        tensor.columns(0, 5).reshape((30,))
    with pytest.raises(ValueError, match="rows 4:7"):
        tensor.rows(4, 7)
    with pytest.raises(ValueError, match="columns 5:3"):
        tensor.columns(5, 3)
    with pytest.raises(ValueError, match="strided"):
        tensor.columns(0, 5).bytes()


def test_bytes_are_the_storage(rng):
    tensor = _core.Tensor((3, 4))
    payload = rng.standard_normal((3, 4)).astype(np.float32)
    tensor.bytes()[:] = payload.tobytes()
    np.testing.assert_array_equal(tensor.numpy(), payload)


def test_alignment_and_lazy_zeros():
    assert _core.Tensor((3,)).numpy().ctypes.data % 64 == 0
    large = _core.Tensor.zeros((1 << 20, 1 << 14))  # 64 GiB that nobody touches
    assert large.numpy().ctypes.data % (2 << 20) == 0
    assert large.numpy()[12345, 678] == 0


def test_impossible_sizes():
    with pytest.raises(ValueError, match="negative size -1"):
        _core.Tensor((-1, 3))
    with pytest.raises(ValueError, match="too large"):
        _core.Tensor((2**40, 2**40))
    with pytest.raises(MemoryError):
        _core.Tensor((2**48,))


def f32(rng, *shape):
    return _core.Tensor.from_numpy(rng.standard_normal(shape).astype(np.float32))


def i32(values):
    return _core.Tensor.from_numpy(np.array(values, np.int32))


def test_ops_refuse_what_does_not_fit(rng):
    """Every argument is checked once, and the message states the failing values."""
    x = f32(rng, 2, 8)
    pages = f32(rng, 2, 3, _core.PAGE_KEYS, 4)
    table, sequences, positions = i32([[0, 1]]), i32([0, 0]), i32([0, 64])
    bad = [
        (lambda: _core.linear(x, f32(rng, 3, 7)), r"weight is \[3, 7\] f32; expected \[any, 8\]"),
        (lambda: _core.linear(x, f32(rng, 3, 8), bias=f32(rng, 4)), r"bias is \[4\] f32; expected \[3\]"),
        (lambda: _core.linear(x, f32(rng, 3, 8), residual=f32(rng, 2, 4)), r"residual is \[2, 4\]"),
        (lambda: _core.linear(x, i32([[1] * 8])), r"weight is \[1, 8\] i32; expected f32 or f16 or bf16"),
        (lambda: _core.embedding(i32([0, 9]), f32(rng, 9, 4)), r"ids\[1\] is 9; expected 0 to 8"),
        (lambda: _core.embedding(i32([-1]), f32(rng, 9, 4)), r"ids\[0\] is -1"),
        (lambda: _core.rms_norm(x, f32(rng, 7), 1e-5), r"weight is \[7\]"),
        (lambda: _core.rms_norm(x, f32(rng, 8), float("nan")), "eps is nan"),
        (lambda: _core.rms_norm_heads_(x, f32(rng, 3), 1e-5), "not whole heads"),
        (lambda: _core.gated(f32(rng, 2, 7), "silu"), "even number of columns"),
        (lambda: _core.activation(x, "swiglu_oai"), "unknown activation 'swiglu_oai'; known: silu, gelu, gelu_tanh, relu$"),
        (lambda: _core.gated(x, "mish"), "unknown activation 'mish'; known: silu, gelu, gelu_tanh, relu, swiglu_oai"),
        (lambda: _core.scale(x, float("inf")), "factor is inf"),
        (lambda: _core.scale(x, 1.0, -2.0), "softcap is -2"),
        (lambda: _core.add(x, x, float("nan")), "scale is nan"),
        (lambda: _core.gather_columns(x, i32([0, 8])), r"index\[1\] is 8; expected -1 to 7"),
        (lambda: _core.gather_columns(x, i32([11, -2]), f32(rng, 2, 4)), r"index\[1\] is -2; expected -1 to 11"),
        (lambda: _core.gather_columns(x, i32([0]), f32(rng, 3, 4)), r"y is \[3, 4\]"),
        (lambda: _core.layer_norm_heads_(x, f32(rng, 3, 4), None, 1e-5), "not whole heads"),
        (lambda: _core.layer_norm_heads_(x, f32(rng, 4), f32(rng, 2, 4), 1e-5), r"bias is \[2, 4\]"),
        (lambda: _core.rope_(x, f32(rng, 2, 6), 4), "do not fit head_dim 4"),
        (lambda: _core.top_k(x, 9), "k is 9"),
        (lambda: _core.add(x, f32(rng, 2, 7)), r"\[2, 8\] f32 and b is \[2, 7\]"),
        (lambda: _core.kv_write(x, x, pages, pages, table, sequences, i32([0, 128])), r"positions\[1\] is 128"),
        (lambda: _core.kv_write(x, x, pages, pages, i32([[0, 3]]), sequences, positions), r"page_table\[0, 1\] is 3"),
        (lambda: _core.attention(x, pages, pages, table, i32([0, 1]), positions, 1.0), r"sequences\[1\] is 1"),
        (lambda: _core.attention(f32(rng, 2, 12), pages, pages, table, sequences, positions, 1.0), "multiple of kv_heads"),
        (lambda: _core.attention(x, pages, pages, table, sequences, positions, 1.0, -2), "window is -2"),
        (lambda: _core.attention(x, pages, pages, table, sequences, positions, 1.0, softcap=-1.0), "softcap is -1"),
        (lambda: _core.attention(x, pages, pages, table, sequences, positions, 1.0, sinks=f32(rng, 3)), r"sinks is \[3\]"),
        (lambda: _core.sample(x, _core.Tensor.from_numpy(np.zeros(2, np.int64)),
                              _core.Tensor.from_numpy(np.zeros(2, np.int64)), 1.0, 0, 0.0, 0.0, 1), "out of range"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()


def test_results_do_not_depend_on_threads(rng):
    x, weight = f32(rng, 5, 333), f32(rng, 1111, 333)
    results = []
    for count in (1, 2, 3, 5):
        _core.set_threads(count)
        assert _core.get_threads() == count
        results.append(_core.linear(x, weight).numpy())
    _core.set_threads(1)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_thread_counts_out_of_range():
    for count in (0, -1, 1025):
        with pytest.raises(ValueError, match=f"not {count}"):
            _core.set_threads(count)


def test_team_survives_callers_on_many_threads(rng):
    """Callers take turns; resizing in between loses no work."""
    _core.set_threads(3)
    x, weight = f32(rng, 3, 64), f32(rng, 2048, 64)
    expected = _core.linear(x, weight).numpy()
    wrong = []

    def call():
        for i in range(50):
            if not np.array_equal(_core.linear(x, weight).numpy(), expected):
                wrong.append(i)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for count in (2, 4, 1, 3):
        _core.set_threads(count)
    for caller in callers:
        caller.join()
    _core.set_threads(1)
    assert not wrong


def test_a_forked_child_gets_its_own_team():
    code = """
import os, sys, numpy as np
from genkit import _core
_core.set_threads(3)
x = _core.Tensor.from_numpy(np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32))
w = _core.Tensor.from_numpy(np.random.default_rng(1).standard_normal((4096, 64)).astype(np.float32))
expected = _core.linear(x, w).numpy()
child = os.fork()
same = np.array_equal(_core.linear(x, w).numpy(), expected)
if child == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
sys.exit(0 if same and status == 0 else 1)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_genkit_isa_caps_and_refuses():
    code = "from genkit import _core; print(_core.current_tier(), '|', _core.isa_error())"

    def run(isa):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"GENKIT_ISA": isa}, check=True,
                              capture_output=True, text=True)
        return done.stdout.strip()

    for tier in _core.tiers():
        assert run(tier) == f"{tier} |"
    assert run("") == f"{_core.tiers()[-1]} |"
    assert run("pentium").startswith("reference | GENKIT_ISA=pentium is not a tier this machine can run; it can run: ref")


def test_use_tier_refuses_by_name():
    with pytest.raises(ValueError, match="tier 'sse9'.*can run: reference"):
        _core.use_tier("sse9")


def test_amx_is_a_tier_where_it_can_be_used_and_says_why_not():
    usable, reason = _core.amx_state()
    assert reason and usable == ("amx" in _core.tiers())
    if "amx_int8" not in _core.cpu_features():
        assert not usable and ("no tiles" in reason or "save tiles" in reason)


def test_slots_name_the_tier_that_serves_them():
    tier = _core.current_tier()
    try:
        for name in _core.tiers():
            _core.use_tier(name)
            served = _core.slots()
            assert set(served.values()) <= set(_core.tiers()[: _core.tiers().index(name) + 1])
            assert name in served.values()  # a tier that improves nothing has no place
            if name in ("avx2", "avx512", "neon"):
                assert served["linear"] == served["attention"] == name
            if name == "avx512bf16":
                assert served["attention"] == name and served["rms_norm"] == "avx512"
    finally:
        _core.use_tier(tier)


def test_an_arena_does_not_hold_what_it_was_given():
    """What a run reads belongs to the caller; only a plan, which reads it again, keeps it."""
    arena, size = _core.Arena(), 8 << 20

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = resident()
    for i in range(40):
        x = _core.Tensor.from_numpy(np.full((1024, size // 4096), i, np.float32))
        assert arena.run(_core.add, x, x).numpy()[5, 5] == 2 * i
    assert resident() - before < 12 * size
