"""genkit bench limits and the loops under it. Speeds are not asserted: tests/check_limits.py compares them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from genkit import _core, machine
from genkit.bench import limits
from genkit.bench.limits import Plan, cache_levels, level_of, measure
from genkit.bench.noise import cpu_seconds
from genkit.bench.results import Results, parse_results
from genkit.errors import DeviceError, ResourceError, UsageError

GENKIT = [sys.executable, "-m", "genkit", "bench", "limits"]


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
    memory = limits.readable_memory(1 << 16, 1)
    for wrong in (memory.rows(0, 1 << 15), _core.Tensor([1 << 16], "f32")):
        with pytest.raises(ValueError, match="memory is .*; expected u8 and at least"):
            _core.read_bandwidth(1 << 16, 1, wrong)
    with pytest.raises(ValueError, match="memory is .* f32; expected contiguous u8"):
        _core.make_readable(_core.Tensor([1 << 16], "f32"), 1)


# ---- the command's library function --------------------------------------------------------------------------------


def run(**plan):
    results = Results("limits", {})
    measure(results, Plan(**dict(rounds=1, seconds=0.0, working_sets=(1 << 16,), threads=(2,)) | plan))
    return results


def rows_of(results, what):
    return [row for row in results.rows if row.id["what"] == what]


def test_a_row_for_all_there_is(team):
    results = run(threads=(1, 2))
    assert all(len(row.samples) == 1 == len(row.others) and row.samples[0] >= 0 for row in results.rows)
    read, arithmetic, barrier = (rows_of(results, what) for what in ("read", "arithmetic", "barrier"))
    assert {row.id["threads"] for row in results.rows} == {1, 2} and {row.unit for row in read} == {"B/s"}
    assert {row.id["tier"] for row in arithmetic} == set(_core.tiers()), "each brings something of its own"
    assert all(row.facts["loop"] == row.id["tier"] and row.unit == "op/s" for row in arithmetic)
    assert {(row.id["of"], row.unit, row.better) for row in barrier} == {("fork-join", "s", "less"), ("phase", "s", "less")}
    assert len({row.key for row in results.rows}) == len(results.rows)


def test_working_sets_fit_the_machine(monkeypatch):
    for free, largest in ((2**40, 4 << 30), (3 << 30, 512 << 20), (1 << 20, 128 << 10), (1000, 32 << 10)):
        monkeypatch.setattr(machine, "memory_available", lambda: free)
        sizes = limits.working_sets((), 2)
        assert sizes == tuple(sorted(sizes)) and sizes[0] == 32 << 10 and sizes[-1] == largest
    assert limits.working_sets((5000, 200), 2) == (5000, 200)
    assert limits.working_sets((), 1024) == (64 << 10,), "a line for each thread"


def test_named_tiers_run_all_they_can(team):
    results = run(tiers=("reference", _core.tiers()[-1]))
    kinds = [(row.id["tier"], row.id["kind"]) for row in rows_of(results, "arithmetic")]
    assert kinds[:2] == [("reference", "f32"), ("reference", "int8")] and ("reference", "bf16") not in kinds
    assert {(_core.tiers()[-1], "f32"), (_core.tiers()[-1], "int8")} <= set(kinds)
    assert "tier reference has no instructions for bf16: it multiplies bf16 in f32" in results.notes


def test_rounds_take_turns_and_go_on_until_the_time_is_out(team, monkeypatch):
    order, values = [], {"f32": iter(range(1, 10**9)), "int8": iter([7.0] * 10**6)}

    def read(size, threads, memory):
        order.append(("read", _core.current_tier()))
        return 5.0

    def peak(kind, threads):
        order.append((kind, _core.current_tier()))
        return float(next(values[kind]))

    monkeypatch.setattr(limits, "read_bandwidth", read)
    monkeypatch.setattr(limits, "arithmetic_peak", peak)
    monkeypatch.setattr(limits, "barrier_cost", lambda threads: (1e-6, 2e-6))
    tier = _core.current_tier()
    results = run(tiers=("reference",), rounds=3, seconds=0.0)
    assert order == 3 * [("read", tier), ("f32", "reference"), ("int8", "reference")], "memory is read by the tier in use"
    assert [row.samples for row in results.rows[:2]] == [[5.0] * 3, [1.0, 2.0, 3.0]]
    assert "differ by 100% of their median" in results.rows[1].noise[0] and results.rows[1].noise and not results.rows[0].noise
    del order[:]
    results = run(tiers=("reference",), rounds=2, seconds=0.05)
    assert len(order) > 20 and {what for what, _ in order[6:]} == {"f32"}, "only what is not known well enough"


def test_nothing_is_kept_of_a_tier_or_a_team_when_it_fails(team, monkeypatch):
    def fail(kind, threads):
        raise ResourceError("no threads")

    monkeypatch.setattr(limits, "arithmetic_peak", fail)
    with pytest.raises(ResourceError, match="no threads"):
        run(tiers=("reference",))  # the fixture looks at what is in use afterwards


@pytest.mark.parametrize("wrong, error, words", [
    (dict(tiers=("sse9",)), UsageError, "--tier sse9: not one this machine can run; it can run: reference"),
    (dict(threads=(2000,)), UsageError, "threads"),
    (dict(working_sets=(100,)), UsageError, "a working set of 100 bytes is too small for 2 threads: 128 or more"),
    (dict(working_sets=(1 << 50,)), ResourceError, "does not fit: .* GiB are free"),
    (dict(device="tpu"), UsageError, "device is 'tpu'"),
])
def test_what_is_refused(team, wrong, error, words):
    with pytest.raises(error, match=words):
        run(**wrong)


def test_cache_levels(tmp_path):
    for index, (level, kind, size, shared) in enumerate(
            ((1, "Data", "48K", "0,64"), (1, "Instruction", "32K", "0,64"), (2, "Unified", "2048K", "0,64"), (3, "Unified", "30M", "0-31,64-95"))):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "index9").mkdir()
    levels = cache_levels(tmp_path)
    assert levels == [("L1", 48 << 10, 2), ("L2", 2 << 20, 2), ("L3", 30 << 20, 64)]
    assert [level_of(size << 10, 1, levels) for size in (16, 48, 49, 2048, 2049, 30720, 30721)] == [
        "L1", "L1", "L2", "L2", "L3", "L3", "memory"]
    assert level_of(96 << 10, 2, levels) == "L2", "two threads of one core share its caches"
    assert level_of(96 << 10, 4, levels) == "L1"
    assert level_of(1 << 20, 1, cache_levels(tmp_path / "elsewhere")) == ""


# ---- the command ---------------------------------------------------------------------------------------------------


def limits_command(*arguments, **environment):
    return subprocess.run(GENKIT + list(arguments), capture_output=True, text=True, timeout=120, env=os.environ | environment)


QUICK = ("--bytes", "64KiB,2MiB", "--tier", "reference", "-t", "1", "-r", "1")


def test_the_command_prints_a_table_and_writes_files(tmp_path):
    done = limits_command(*QUICK, "-o", str(tmp_path / "limits.md"), "--plot", str(tmp_path / "limits.svg"))
    assert done.returncode == 0, done.stderr
    for words in ("genkit bench limits", "64 KiB", "2 MiB", "B/s", "OP/s", "fork-join", "reference"):
        assert words in done.stdout and (words in (tmp_path / "limits.md").read_text()), words
    assert "working set" in (tmp_path / "limits.svg").read_text()


def test_the_command_prints_json():
    done = limits_command(*QUICK, "--json", GENKIT_ISA="reference")
    results = parse_results(json.loads(done.stdout))
    assert done.returncode == 0 and results.kind == "limits" and results.complete and results.machine["tier"] == "reference"
    assert [row.id for row in results.rows] == [
        {"what": "read", "bytes": 64 << 10, "threads": 1}, {"what": "read", "bytes": 2 << 20, "threads": 1},
        {"what": "arithmetic", "kind": "f32", "tier": "reference", "threads": 1},
        {"what": "arithmetic", "kind": "int8", "tier": "reference", "threads": 1},
        {"what": "barrier", "of": "fork-join", "threads": 1}, {"what": "barrier", "of": "phase", "threads": 1}]
    assert results.settings["working_sets"] == [64 << 10, 2 << 20] and results.settings["tiers"] == ["reference"]


@pytest.mark.parametrize("code, arguments, words", [
    (2, ("-t", "0"), "-t 0: 0 is below 1"),
    (2, ("-r", "0"), "-r 0: expected 1 to a million"),
    (2, ("--time", "-1"), "--time -1: expected 0 to a million"),
    (2, ("--tier", "sse9"), "sse9"),
    (2, ("--bytes", "many"), "'many' is not a size"),
    (2, ("--bytes", "63"), "too small"),
    (2, ("--ci", "7"), "not between 0 and 1"),
    (2, ("-o", "limits.exe"), "limits.exe"),
    (4, ("--bytes", "1000TiB"), "does not fit"),
    *([] if machine.cuda_state()[0] else [(5, ("--device", "cuda"), machine.cuda_state()[1])]),
])
def test_the_command_refuses(code, arguments, words):
    done = limits_command(*arguments)
    assert done.returncode == code and done.stdout == "" and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupted_run_shows_what_it_has():
    running = subprocess.Popen(GENKIT + ["--bytes", "64KiB", "-r", "1000", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while cpu_seconds(running.pid) < 1.5:  # a row takes a tenth
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    results = parse_results(json.loads(output))
    assert running.returncode == 130 and not results.complete and "Traceback" not in errors
    assert any(row.samples for row in results.rows)
