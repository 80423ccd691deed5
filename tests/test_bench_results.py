"""What all of genkit bench stands on: estimates, result files (hostile ones too), lists of numbers, what others had."""

import json
import math
import os
import random
import subprocess
import sys
import time

import pytest

from genkit.bench import lists, noise
from genkit.bench.estimates import estimate, median_ranks, quantile
from genkit.bench.results import Limit, Results, Row, machine_facts, parse_results, read_results
from genkit.errors import BadFileError, UsageError


def binomial(count, below):
    return math.comb(count, below) / 2**count


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8, 9, 20, 101, 1000])
def test_the_interval_is_the_narrowest_that_holds_the_median(count):
    rank, confidence = median_ranks(count)
    assert confidence == pytest.approx(max(0, 1 - 2 * sum(binomial(count, below) for below in range(rank + 1))), abs=1e-9)
    narrower = 1 - 2 * sum(binomial(count, below) for below in range(rank + 2))
    assert confidence >= 0.95 and narrower < 0.95 or rank == 0 and narrower < 0.95
    assert 0 <= rank < -(-count // 2)


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng, hits = random.Random(1), 0
    for _ in range(2000):
        found = estimate(rng.expovariate(1) for _ in range(15))
        hits += found.low <= math.log(2) <= found.high
    assert hits / 2000 == pytest.approx(found.confidence, abs=0.02) and found.confidence == pytest.approx(0.9648, abs=1e-3)


def test_many_samples_are_no_matter():
    rank, confidence = median_ranks(100_000)
    assert confidence == pytest.approx(0.95, abs=0.01) and rank == pytest.approx(50_000 - 0.98 * 100_000**0.5, abs=3)


def test_an_estimate():
    assert estimate([]) is None and estimate([None, None]) is None
    found = estimate([3.0, None, 1.0, 2.0, 10.0])
    assert (found.median, found.low, found.high, found.minimum, found.maximum, found.count) == (2.5, 1, 10, 1, 10, 4)
    assert found.width == pytest.approx(9 / 2.5) and found.spread == pytest.approx(9 / 2.5)
    assert estimate([4.0]).width == math.inf and estimate([0.0, 0.0]).width == math.inf
    assert quantile([4, 1, 3, 2], 0.5) == 2.5 and quantile([1], 0.99) == 1 and quantile([1, 2, 3], 1) == 3


def results():
    row = Row({"model": "m", "threads": 2}, "tokens/s", samples=[1.0, 2.0, 3.0], shares=[0.1, None, 0.3], others=[None, 0.0, 0.1],
              limit=Limit("read", "B/s", [5.0, None, 6.0]), facts={"tier": "amx", "peak_memory": 7, "bound": None}, noise=["x"])
    failed = Row({"model": "n", "threads": 2}, "tokens/s", failure="crashed")
    return Results("models", machine_facts(), {"rounds": 3}, [row, failed], ["a note"], complete=False)


def test_results_come_back_from_their_file(tmp_path):
    file, written = tmp_path / "r.json", results()
    file.write_text(json.dumps(written.as_dict()))
    read = read_results(file)
    assert read == written and read.rows[0].estimate.median == 2 and read.rows[1].estimate is None
    assert read.rows[0].key == (("model", "m"), ("threads", 2)) and read.as_dict() == written.as_dict()
    assert {"date", "processor", "memory", "tier", "load_average", "versions", "cgroup"} <= set(read.machine)


def change(path, value):
    """The dictionary of a good result with another value at a path."""
    data = results().as_dict()
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize("path, value", [
    (["genkit_bench"], 99), (["genkit_bench"], None), (["genkit_bench"], KeyError), (["kind"], "cake"), (["kind"], ["models"]),
    (["rows"], KeyError), (["rows"], None), (["rows"], 5), (["rows"], {"a": 1}), (["rows"], "rows"), (["rows", 0], None), (["rows", 0], []),
    (["rows", 0, "id"], KeyError), (["rows", 0, "id"], 5), (["rows", 0, "id"], {"model": ["m"]}), (["rows", 0, "id"], {"model": {}}),
    (["rows", 0, "better"], "worse"), (["rows", 0, "samples"], None), (["rows", 0, "samples"], ["1"]), (["rows", 0, "samples"], [None]),
    (["rows", 0, "samples"], [True]), (["rows", 0, "samples"], [math.nan]), (["rows", 0, "samples"], [math.inf]),
    (["rows", 0, "samples"], [10**400]), (["rows", 0, "samples"], 3), (["rows", 0, "limit"], "read"), (["rows", 0, "limit"], {"of": 1}),
    (["rows", 0, "limit", "samples"], [[]]), (["rows", 0, "share", "samples"], ["a"]), (["rows", 0, "share"], 5),
    (["rows", 0, "others"], KeyError), (["rows", 0, "others"], [{}]), (["rows", 0, "facts"], 3), (["rows", 0, "facts"], KeyError),
    (["rows", 0, "noise"], 3), (["rows", 0, "failure"], KeyError), (["machine"], None), (["machine"], "x"), (["settings"], 3),
    (["notes"], None), (["complete"], KeyError)])
def test_what_is_no_result_is_said_in_a_line(path, value, tmp_path):
    file = tmp_path / "r.json"
    file.write_text(json.dumps(change(path, value)))
    with pytest.raises(BadFileError) as caught:
        read_results(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message and len(message) < 400


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000, b'{"genkit_bench": 1}', b"\0" * 10])
def test_files_of_anything_else(content, tmp_path):
    file = tmp_path / "r.json"
    file.write_bytes(content)
    with pytest.raises(BadFileError, match="r.json: not a "):
        read_results(file)


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(BadFileError, match=path.name):
            read_results(path)


def test_a_later_schema_is_named():
    with pytest.raises(ValueError, match="its schema is 2, this genkit reads 1"):
        parse_results(results().as_dict() | {"genkit_bench": 2})


@pytest.mark.parametrize("texts, found", [
    (["512"], [512]), (["1,2,4"], [1, 2, 4]), (["1", "2"], [1, 2]), (["1-4"], [1, 2, 3, 4]), (["1-9+4"], [1, 5, 9]), (["1-10+4"], [1, 5, 9]),
    (["1-8*2"], [1, 2, 4, 8]), (["3-20*3,1"], [3, 9, 1]), (["2,2,1-2"], [2, 1]), ([" 1 , 2"], [1, 2]), (["7-7"], [7])])
def test_lists_as_llama_bench_takes_them(texts, found):
    assert lists.numbers("-p", texts) == found


@pytest.mark.parametrize("text, why", [
    ("0", "0 is below 1"), ("-5", "-5 is below 1"), ("1,-2", "-2 is below 1"), ("0-4", "0 is below 1"), ("4-1", "ends before"), ("1-4+0", "never"),
    ("1-4*1", "never"), ("1-4*0", "never"), ("x", "whole numbers"), ("1.5", "whole numbers"), ("1e3", "whole numbers"), ("", "nothing"),
    ("1,,2", "nothing"), (",", "nothing"), ("1-", "whole numbers"), ("1-2-3", "whole numbers"), ("1-1001", "more than 1000"),
    ("1-999999999999", "more than 1000"), ("9" * 13, "whole numbers"), ("1-8/2", "whole numbers"), ("+5", "whole numbers")])
def test_lists_that_are_none(text, why):
    with pytest.raises(UsageError, match=r"^-p") as caught:
        lists.numbers("-p", [text])
    assert why in str(caught.value)


def test_a_range_from_zero():
    assert lists.numbers("--depth", ["0-20+10"], least=0) == [0, 10, 20]
    with pytest.raises(UsageError, match="never reaches"):
        lists.numbers("--depth", ["0-8*2"], least=0)
    with pytest.raises(UsageError, match="names nothing"):
        lists.numbers("--depth", [])


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="Linux only")
def test_what_others_had_of_the_machine():
    def watch():
        with noise.Watch() as found:
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                pass
        return found.others

    alone = min(watch() for _ in range(3))
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside = max(watch() for _ in range(3))
    finally:
        spinner.kill()
        spinner.wait()
    assert 0 <= alone < 1 and beside > 0.3 / os.cpu_count()


def test_a_moment_is_too_short_to_tell():
    with noise.Watch() as found:
        pass
    assert found.others is None


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux only")
def test_the_peak_of_memory_begins_anew():
    block = bytearray(80 << 20)
    block[::4096] = b"x" * len(block[::4096])
    before = noise.memory_words("self", "VmHWM")
    del block
    assert noise.forget_peak() and noise.memory_words("self", "VmHWM") < before - (60 << 20)
    assert noise.memory_words("self", "VmNone") is None and noise.memory_words(2**22 + 1, "VmRSS") is None


def judged(load=0.0, ci=0.05, **row):
    made = Results("models", {"load_average": [load, 0, 0]}, rows=[Row({"a": 1}, "tokens/s", **row)])
    noise.note_load(made)
    noise.judge(made, ci)
    return made.rows[0].noise, made.notes


def test_a_quiet_row_has_no_notes():
    limit = Limit("read", "B/s", [10.0, 10.5, 10.2, 10.1, 10.0])
    assert judged(samples=[100, 101, 102, 103, 104], others=[0.0, 0.3, 0.01, 0.02, None], limit=limit) == ([], [])


@pytest.mark.parametrize("row, why", [
    (dict(samples=[100, 101, 102, 103, 130]), "samples differ by 29% of their median"),
    (dict(samples=[100, 104, 108, 110, 112]), "the interval of the median is 11.1% wide (asked for: 5%)"),
    (dict(samples=[100, 101, 102], others=[0.2, 0.2, None]), "others had 20% of the machine"),
    (dict(samples=[100, 101, 102], limit=Limit("int8", "op/s", [10, 10, 13])), "the int8 limit itself changed by 30%")])
def test_a_noisy_row_says_why(row, why):
    noisy, notes = judged(**row)
    assert len(noisy) == 1 and why in noisy[0] and notes == ["noisy: 1 of 1 rows; their notes say why"]


def test_notes_of_a_run():
    assert "at the start" in judged(load=50.0, samples=[1.0, 1.0])[1][0]
    assert "one sample" in judged(samples=[1.0])[1][0] and judged(samples=[1.0])[0] == []
    assert judged(failure="crashed") == ([], [])
