"""genkit bench kernels: no kernel forgotten, counts that are right, real inputs, rows that say what was measured."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from genkit import _core, machine
from genkit.bench.kernels import gauge, products, weights
from genkit.bench.kernels import measure as measuring
from genkit.bench.kernels.case import Scope, Sizes, Store
from genkit.bench.kernels.measure import FAMILIES, Request
from genkit.bench.noise import cpu_seconds
from genkit.bench.results import Results, parse_results
from genkit.bench.shapes import SHAPES
from genkit.errors import ResourceError, UsageError
from genkit.kv_cache import page_bytes

GENKIT = [sys.executable, "-m", "genkit", "bench", "kernels"]
TINY = Sizes(hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=192, vocab=301, experts=8, experts_per_token=2,
             expert_width=32)
LLAMA = Sizes.read("llama-3.2-1b", SHAPES["llama-3.2-1b"])


def scope(**more):
    return Scope(TINY, **(dict(rows=(1, 20), contexts=(70, 1100), rotation=1 << 16) | more))


def all_cases(of):
    return [case for family in FAMILIES for case in family.cases(of)]


def one(kernel, of, **wanted):
    wanted["kernel"] = kernel
    found = [case for case in all_cases(of) if all(getattr(case, name) == value for name, value in wanted.items())]
    assert len(found) == 1, [case.id for case in found]
    return found[0]


@pytest.fixture(autouse=True)
def core():
    tier, threads = _core.current_tier(), _core.get_threads()
    _core.set_threads(2)
    yield
    _core.use_tier(tier)
    _core.set_threads(threads)


def run(request):
    results = Results("kernels", {})
    measuring.measure(results, request)
    return results


# ---- What there is ---------------------------------------------------------------------------------------------------

def test_every_kernel_has_a_case():
    covered = {slot for tier, slot in products.ROUNDS_ROWS.items() if tier not in _core.tiers()}
    for tier in _core.tiers():
        _core.use_tier(tier)
        covered |= {slot for case in all_cases(scope()) for slot in case.slots}
    assert covered == {slot for slot in _core.slots() if not slot.startswith("measure_")}
    assert covered <= {*measuring.kernel_names()}


def test_every_form_of_weights_has_a_name():
    from genkit.quant.formats import BY_NAME

    assert len(set(weights.FORMATS.values())) == len(weights.FORMATS)
    assert set(BY_NAME.items()) <= set(weights.FORMATS.items())
    sizes = {"int4": (32, 64, 128, 256), "int8": (32, 64, 128, 256), "int4_k": (16, 32), "int8_k": (16, 32)}
    for packing, groups in sizes.items():
        for group in groups:
            for zero in ("none", "real") if packing.endswith("_k") else ("none", "integer", "real"):
                assert any((f.packing, f.group, f.zero) == (packing, group, zero) for f in weights.FORMATS.values())
    assert {*weights.MAIN, *weights.OTHERS} <= {*weights.TYPES}
    of = scope(types=weights.TYPES)
    measured = {case.case.split()[0] for case in all_cases(of) if case.kernel in ("linear", "packed_linear")}
    assert measured == set(weights.TYPES)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_has_cases_that_fit_together(name):
    ids = [tuple(case.id.values()) for case in all_cases(Scope(Sizes.read(name, SHAPES[name])))]
    assert len(ids) == len(set(ids)) > 80


def test_sizes_come_from_the_shape():
    assert LLAMA == Sizes(2048, 32, 8, 64, 8192, 128256, 32, 4, 1024)
    sparse = Sizes.read("qwen3-30b-a3b", SHAPES["qwen3-30b-a3b"])
    assert (sparse.experts, sparse.experts_per_token, sparse.expert_width, sparse.head_dim) == (128, 8, 768, 128)
    assert Sizes.read("gpt2", SHAPES["gpt2"]).intermediate == 3072
    with pytest.raises(UsageError, match="--shape x: .* no vocab_size"):
        Sizes.read("x", {"hidden_size": 8, "num_attention_heads": 2})


# ---- What is counted -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", weights.TYPES)
def test_bytes_of_weights_are_those_they_take(kind):
    store = Store(np.random.default_rng(5))
    for n, k, gated in ((64, 256, False), (70, 512, False), (128, 768, True)):
        made = weights.make_weight(store, kind, n, k, gated and kind in weights.FORMATS)
        assert made.nbytes == weights.weight_bytes(kind, n, k)
        ids = _core.Tensor.from_numpy(np.arange(n, dtype=np.int32))
        values = (made if kind in weights.DENSE else _core.unpack(ids, made)).numpy()
        values = (values.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else values.astype(np.float64)
        assert np.isfinite(values).all() and values.std() > 0


def test_bytes_and_operations_of_products():
    of = Scope(LLAMA)
    case = one("packed_linear", of, case="int4 16384x2048 gated", rows=512)
    # 4 bits and in 256 a scale of 16, 8 factors of 4 bits and 8 minima of 8; floats in, half as many outputs.
    assert case.nbytes == 16384 * 2048 / 2 + 16384 * 8 * (2 + 4 + 8) + 512 * 2048 * 4 + 512 * 8192 * 4
    assert (case.operations, case.kind) == (2 * 512 * 16384 * 2048, "int8")
    case = one("linear", of, case="bf16 2048x8192", rows=1)
    assert case.nbytes == 2048 * 8192 * 2 + 8192 * 4 + 2 * 2048 * 4  # a residual is read
    assert (case.operations, case.kind) == (2 * 2048 * 8192, "bf16")
    assert case.copies * 2048 * 8192 * 2 >= of.rotation > (case.copies - 1) * 2048 * 8192 * 2
    case = one("expert_linear", of, case="int8 4 of 32 2048x2048", rows=1)
    assert case.nbytes == 4 * 2048 * (2048 + 8 * 2) + 4 * 4 * (2048 + 1024) and case.operations == 4 * 2 * 2048 * 2048


def test_bytes_and_operations_of_attention():
    for kind in ("f32", "f16", "bf16", "int8"):
        case = one("attention", scope(), case=f"{kind} 1100 keys 4/2x16", rows=20)
        seen = sum(min(1100, position + 1) for position in range(1080, 1100))
        assert case.operations == seen * 4 * (2 * 16 + 2 * 16)  # each head: q k and p v
        layer = page_bytes(1, 2, 16, kind) * 1100 / 64
        assert case.nbytes == layer + 2 * 20 * 4 * 16 * 4
        assert case.kind == ("bf16" if kind in ("bf16", "int8") else "f32")
    case = one("attention", Scope(LLAMA), case="bf16 4096 keys 32/8x64", rows=1)
    assert case.nbytes == 4096 * 8 * 64 * 2 * 2 + 2 * 2048 * 4


def test_bytes_of_what_lies_between():
    of = Scope(LLAMA)
    assert one("rms_norm", of, case="2048", rows=512).nbytes == 4 * (512 * 2048 * 2 + 2048)
    assert one("gated", of, case="silu 8192", rows=1).nbytes == 4 * (2 * 8192 + 8192)
    assert one("argmax", of, rows=1).nbytes == 4 * 128256 + 4
    assert one("kv_write", of, case="int8 8x64", rows=512).nbytes == 512 * 8 * 2 * (64 * 4 + 64 + 4)
    assert one("rope_kv_write", of, case="bf16 8x64", rows=1).nbytes == 2 * 40 * 64 * 4 + 64 * 4 + 512 * 4 + 2 * 512 * 2
    assert one("add", of, rows=1).nbytes == 3 * 2048 * 4
    assert one("quantize", of, case="f32 to int8 2048", rows=1).nbytes == 2048 * 4 + 2048 + 8 * 4 + 64 * 2
    assert one("copy_pages", of, rows=1).nbytes == 2 * 8 * 64 * 64 * 2
    # What is changed in place is read and written, and there once.
    case = one("rms_norm", of, case="heads 32x64", rows=512)
    assert (case.nbytes, case.touched) == (4 * (2 * 512 * 2048 + 64), 4 * (512 * 2048 + 64))
    case = one("rope", of, rows=1)
    assert (case.nbytes, case.touched) == (4 * (2 * 40 * 64 + 64), 4 * (40 * 64 + 64))


# ---- What is called --------------------------------------------------------------------------------------------------

def test_every_case_computes_something():
    """On fresh inputs, all of its copies: what comes out is finite, and no two random inputs give the same."""
    store, told = Store(np.random.default_rng(7)), 0
    for case in all_cases(scope(types=("f32", "f16", "bf16", "int8", "int4", "int4-g32-zero", "int8_k-g16-min"))):
        call = case.make(store)
        for i in range(min(case.copies, 3)):
            out = call(i)
            for part in out if isinstance(out, tuple) else (out,):
                if isinstance(part, _core.Tensor) and part.dtype in ("f32", "f16") and part.numpy().size:
                    values = part.numpy()
                    if case.kernel in ("expert_linear", "gather_rows"):  # places where nothing lies hold anything
                        values = values[:1]
                    assert np.isfinite(values).all() and np.abs(values).max() > 0, case.id
                    assert values.size == 1 or len(np.unique(values)) > 1, case.id
                    told += 1
    assert told > 100


def test_inputs_in_place_stay_numbers():
    """Calls that change what they read are made tens of thousands of times."""
    store = Store(np.random.default_rng(3))
    seen = []
    floats = Store.floats
    store.floats = lambda *shape, **more: seen.append(floats(store, *shape, **more)) or seen[-1]
    for case in all_cases(scope(rows=(3,))):
        if case.kernel in ("rope", "bias", "penalty") or "heads" in case.case:
            del seen[:]
            call = case.make(store)
            for i in range(4000):
                call(i % case.copies)
            values = np.abs(seen[0].numpy())
            assert np.isfinite(values).all() and 1e-6 < np.median(values) < 1e3, case.id


def test_copies_lie_apart_and_fill_the_rotation():
    store = Store(np.random.default_rng(1))
    case = one("packed_linear", scope(), case="int4 64x192", rows=1)
    case.make(store)
    kept = next(made for key, made in store.kept.items() if key == ("weights", "int4", 64, 192, False))
    assert len({weight.panels.numpy().ctypes.data for weight in kept}) == len(kept) == case.copies
    assert sum(weight.nbytes for weight in kept) >= 1 << 16


# ---- What comes out --------------------------------------------------------------------------------------------------

def test_rows_of_every_kernel_on_every_tier(monkeypatch):
    monkeypatch.setattr(measuring, "SAMPLE", 1e-4)  # as short as can be: no speed is looked at
    monkeypatch.setattr(measuring, "REPLAY", 0)
    monkeypatch.setattr(gauge, "FRESH", 1e9)
    monkeypatch.setattr(gauge.limits, "read_bandwidth", lambda *_: 1e10)
    tiers = _core.tiers()
    _core.use_tier(tiers[0])
    small = scope(rows=(3,), contexts=(1100,), rotation=1 << 13)
    results = run(Request(small, tiers=["all"], threads=(2,), repetitions=1, seconds=0))
    assert (_core.current_tier(), _core.get_threads()) == (tiers[0], 2)  # as before
    assert len({row.key for row in results.rows}) == len(results.rows)
    served = set()
    for row in results.rows:
        assert list(row.id) == ["kernel", "case", "rows", "threads", "tier"] and not row.failure
        assert len(row.samples) == len(row.shares) == len(row.others) == len(row.limit.samples) == 1
        amounts = {"B/s": row.facts["bytes"], "op/s": row.facts["operations"]}
        assert row.limit.unit == ("B/s" if row.limit.of == "read" else "op/s")
        assert row.samples[0] > 0 and row.samples[0] == pytest.approx(amounts[row.unit] / row.facts["seconds"])
        assert row.shares[0] == pytest.approx(amounts[row.limit.unit] / row.facts["seconds"] / row.limit.samples[0])
        served |= set(zip(row.facts["kernels"], row.facts["served_by"]))
    for tier in tiers:
        _core.use_tier(tier)
        rows_of_bf16 = {products.ROUNDS_ROWS.get(_core.slots()["linear"])} & {"round_rows", "tile_rows"}
        mine = {slot for slot in _core.slots() if not slot.startswith("measure_") and slot not in ("round_rows", "tile_rows")}
        mine |= rows_of_bf16
        assert {(slot, _core.slots()[slot]) for slot in mine} <= served
    assert parse_results(json.loads(json.dumps(results.as_dict()))).as_dict() == results.as_dict()


def test_limits_are_measured_with_the_threads_that_run():
    results = run(Request(scope(rows=(1, 512)), ("gated",), threads=(2,), repetitions=1, seconds=0))
    rows = {row.id["rows"]: row for row in results.rows if row.id["case"].startswith("silu")}
    assert rows[1].facts["running_threads"] == 1 and rows[512].facts["running_threads"] == 2
    for row in results.rows:  # of this very machine
        assert row.limit.samples[0] > 0 and row.shares[0] > 0


def test_shares_are_of_the_limit_beside(monkeypatch):
    """A case bound by reading and one bound by multiplying, on a machine of our making."""
    monkeypatch.setattr(measuring.Gauge, "value", lambda self, of, entry: 1e9 if of == "read" else 1e12)
    monkeypatch.setattr(measuring.Entry, "seconds", lambda self: 1e-3)
    results = run(Request(scope(types=("int8",)), ("packed",), repetitions=2))
    for row in results.rows:
        assert row.limit.of == "read" and row.limit.samples == [1e9, 1e9]  # 1,000 operations a byte are too few
        assert row.samples == [row.facts["bytes"] / 1e-3] * 2
        assert row.shares == pytest.approx([row.facts["bytes"] / 1e-3 / 1e9] * 2)
        assert row.noise == []
    monkeypatch.setattr(measuring.Gauge, "value", lambda self, of, entry: 1e12 if of == "read" else 1e9)
    results = run(Request(scope(rows=(1, 512), types=("int8",)), ("packed",), repetitions=1, seconds=0))
    few, many = (row for row in results.rows if row.id["case"] == "int8 384x64 gated")
    for row in few, many:
        assert (row.limit.of, row.facts["bound"]) == ("int8", "int8")
        assert row.shares == pytest.approx([row.facts["operations"] / 1e-3 / 1e9])
    # Units are the same on all machines: bytes where few are used often, operations where each is used by many rows.
    assert few.unit == "B/s" and few.samples == [few.facts["bytes"] / 1e-3]
    assert many.unit == "op/s" and many.samples == [many.facts["operations"] / 1e-3]


def test_rows_are_measured_again_until_they_are_known(monkeypatch):
    """Samples of one row are all the same, of the other never."""
    times = iter(range(10**6))
    monkeypatch.setattr(measuring.Entry, "seconds",
                        lambda self: 1e-3 if self.case.kernel == "add" else 1e-3 * (1 + 99 * (next(times) % 2)))
    results = run(Request(scope(rows=(1,)), ("add", "argmax"), repetitions=3, ci=0.1, seconds=0.3))
    rows = {row.id["kernel"]: row for row in results.rows}
    assert len(rows["add"].samples) == 3 and not rows["add"].noise
    assert len(rows["argmax"].samples) > 3 and "samples differ by" in " ".join(rows["argmax"].noise)


def test_calls_that_take_too_long_are_not_made(monkeypatch):
    monkeypatch.setattr(measuring, "SLOW", 0.0)
    row, = run(Request(scope(rows=(1,)), ("add",))).rows
    assert not row.samples and "a call takes 0.0 s" in row.failure and "take fewer --rows" in row.failure


def test_names():
    known = measuring.kernel_names()
    assert measuring.choose((), known) == set(known)
    assert measuring.choose(("rope", "att"), known) == {"rope", "attention", "attention_merge"}
    with pytest.raises(UsageError, match="kernel 'ropes' is unknown; known: activation, add, "):
        measuring.choose(("ropes",), known)
    with pytest.raises(UsageError, match="attention_merge needs two threads"):
        run(Request(scope(), ("attention_merge",), threads=(1,)))


def test_memory_is_looked_at_first(monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 10**6)
    monkeypatch.setattr(Store, "floats", None)  # nothing is made
    with pytest.raises(ResourceError, match=r"linear bf16 3072x2048: needs 0\.6 GiB, 0\.0 GiB are free"):
        run(Request(Scope(LLAMA)))


def test_batches_keep_to_the_memory():
    found = measuring.entries(Request(Scope(LLAMA)))
    made = measuring.batches(found, 8 << 30)
    assert [entry for batch in made for entry in batch] == found and len(made) > 2
    for batch in made:
        shared = {entry.group: entry.case.shared[1] for entry in batch if entry.case.shared}
        held = sum(shared.values()) + sum(entry.case.memory for entry in batch)
        assert held <= measuring.BATCH_BYTES or len({entry.group for entry in batch}) == 1


# ---- The command -----------------------------------------------------------------------------------------------------

def genkit(*arguments):
    return subprocess.run(GENKIT + [str(a) for a in arguments], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL)


def test_command_prints_a_table_and_writes_files(tmp_path):
    done = genkit("add", "rms_norm", "--rows", "1,4", "-t", "1", "-r", "2", "--time", "0", "-o", tmp_path / "k.json", "--plot",
                  tmp_path / "k.svg")
    assert done.returncode == 0, done.stderr
    assert "rms_norm" in done.stdout and "heads 32x64" in done.stdout and "GB/s" in done.stdout
    data = json.loads((tmp_path / "k.json").read_text())
    assert data["kind"] == "kernels" and data["complete"] and data["settings"]["shape"] == "llama-3.2-1b"
    assert [(row["id"]["kernel"], row["id"]["case"], row["id"]["rows"]) for row in data["rows"]] == [
        ("rms_norm", "2048", 1), ("rms_norm", "2048", 4), ("rms_norm", "heads 32x64", 1), ("rms_norm", "heads 32x64", 4),
        ("add", "2048", 1), ("add", "2048", 4)]
    for row in data["rows"]:
        assert row["median"] > 0 and len(row["samples"]) == 2 and row["share"]["median"] > 0
    assert (tmp_path / "k.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("arguments, code, words", [
    (("ropes",), 2, "kernel 'ropes' is unknown; known: "),
    (("add", "--shape", "llama-9"), 2, "--shape llama-9: not known; known: "),
    (("add", "--tier", "sse2"), 2, "--tier sse2: this processor has reference"),
    (("linear", "--type", "int3"), 2, "--type int3: unknown; known: all, f32"),
    (("add", "--rows", "0"), 2, "--rows 0: 0 is below 1"),
    (("add", "-r", "0"), 2, "-r 0: expected 1"),
    (("add", "--rows", "99999999999"), 4, "GiB are free"),
    (("add", "-o", "out.txt"), 2, "out.txt"),
])
def test_command_refuses(arguments, code, words):
    done = genkit(*arguments)
    assert done.returncode == code and words in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_interrupted_command_shows_what_it_has(tmp_path):
    out = tmp_path / "k.json"
    running = subprocess.Popen([*GENKIT, "add", "argmax", "--rows", "1", "-t", "1", "-r", "100000", "-o", str(out)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None and cpu_seconds(running.pid) < 1.5:
        time.sleep(0.05)  # importing takes a third of it
    running.send_signal(signal.SIGINT)
    shown, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    data = json.loads(out.read_text())
    assert not data["complete"] and "argmax" in shown
    assert data["rows"][0]["samples"] and data["rows"][0]["facts"]["seconds"] > 0
