"""genkit bench compare: the intervals keep what they promise, like is compared with like, and the command says so."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import genkit
from genkit import machine
from genkit.bench import compare, installs, ratios
from genkit.bench.results import Limit, Results, Row, parse_results
from genkit.cli.app import app
from genkit.cli.failure import explain
from genkit.errors import LimitError, UsageError

GENKIT = [sys.executable, "-m", "genkit", "bench", "compare"]
MACHINE = {"processor": "P", "tier": "avx2", "usable_processors": 2}


def command(*arguments: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(GENKIT + [str(a) for a in arguments], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, **options)


def result(*rows: Row, kind: str = "models") -> Results:
    return Results(kind, dict(MACHINE), {}, list(rows))


def row(samples, limits=None, test: str = "tg128", unit: str = "tokens/s", better: str = "more", others=None) -> Row:
    made = Row({"model": "default", "test": test}, unit, better, [float(sample) for sample in samples])
    made.others = list(others) if others is not None else [0.0] * len(made.samples)
    if limits is not None:
        made.limit = Limit("read", "B/s", [float(limit) for limit in limits])
    return made


def verdict(a: Row, b: Row, tolerance: float = 0.05) -> str:
    return compare.compare(result(a), result(b), tolerance).rows[0].facts["verdict"]


# The statistics.


def test_distributions_are_those_of_counting():
    for a, b in ((1, 1), (3, 2), (5, 4), (4, 7)):
        counted = np.zeros(a * b + 1)
        for chosen in itertools.combinations(range(a + b), b):
            counted[sum(chosen) - b * (b - 1) // 2] += 1
        assert np.allclose(ratios._rank_sums(a, b), np.cumsum(counted) / counted.sum())
    for n in (1, 4, 9):
        counted = np.zeros(n * (n + 1) // 2 + 1)
        for signs in itertools.product((0, 1), repeat=n):
            counted[sum(sign * (i + 1) for i, sign in enumerate(signs))] += 1
        assert np.allclose(ratios._signed_ranks(n), np.cumsum(counted) / 2**n)


@pytest.mark.parametrize("a, b", [(5, 5), (8, 30), (70, 45)])
def test_interval_of_two_sets_holds_the_truth(a, b):
    random = np.random.default_rng(1)
    found = [ratios.two_sample(random.lognormal(0, 0.1, a), 0.9 * random.lognormal(0, 0.1, b)) for _ in range(200)]
    assert np.mean([one.low <= 0.9 <= one.high for one in found]) > 0.9
    assert np.median([one.value for one in found]) == pytest.approx(0.9, abs=0.01)
    assert all((one.p <= 0.05) == (not one.low <= 1 <= one.high) for one in found)


@pytest.mark.parametrize("count", [6, 15, 90])
def test_interval_of_pairs_holds_the_truth(count):
    random = np.random.default_rng(2)
    found = [ratios.paired(1.1 * np.exp(random.laplace(0, 0.05, count))) for _ in range(200)]
    assert np.mean([one.low <= 1.1 <= one.high for one in found]) > 0.9
    assert np.median([one.value for one in found]) == pytest.approx(1.1, abs=0.01)
    assert all((one.p <= 0.05) == (not one.low <= 1 <= one.high) for one in found)


def test_samples_that_follow_each_other_are_not_taken_for_independent():
    random = np.random.default_rng(3)

    def walk(count: int) -> np.ndarray:  # each within a step of the one before, correlated over some ten
        steps, made = random.normal(0, 0.03, count), np.zeros(count)
        for i in range(1, count):
            made[i] = 0.8 * made[i - 1] + steps[i]
        return np.exp(made)

    found = [ratios.two_sample(walk(400), walk(400)) for _ in range(100)]
    assert np.mean([one.low <= 1 <= one.high for one in found]) > 0.9


def test_slack_moves_the_ends_and_p_alike():
    random = np.random.default_rng(4)
    a, b = random.lognormal(0, 0.02, 12), 0.95 * random.lognormal(0, 0.02, 12)
    plain, slack = ratios.two_sample(a, b), ratios.two_sample(a, b, 0.04)
    assert slack.low == pytest.approx(plain.low * math.exp(-0.04)) and slack.high == pytest.approx(plain.high * math.exp(0.04))
    assert slack.value == plain.value and plain.p < 0.01 < slack.p
    assert (slack.p <= 0.05) == (slack.high < 1)


def test_too_few_say_nothing():
    assert ratios.two_sample([1, 1, 1], [9, 9, 9]) is None
    assert ratios.paired([0.5] * 5) is None and ratios.paired([0.5] * 6).p == pytest.approx(1 / 32)


# The machine's states.


def run(random, speed: float, quiet_share: float, count: int = 60) -> Row:
    """A machine that is quiet for that share of the time, in stretches, and half as fast otherwise."""
    quiet = np.repeat(random.random(-(-count // 5)) < quiet_share, 5)[:count]
    state = np.where(quiet, 1.0, 0.5)
    return row(speed * np.where(quiet, 1.0, 0.6) * random.lognormal(0, 0.015, count), 50e9 * state * random.lognormal(0, 0.01, count))


def test_runs_in_other_states_are_told_from_slower_ones():
    random = np.random.default_rng(5)
    shares = [(0.9, 0.3), (0.3, 0.9), (0.5, 0.5), (1.0, 0.4)]
    same = [verdict(run(random, 100, a), run(random, 100, b)) for a, b in shares * 10]
    assert same.count("no difference") >= 39
    slower = [verdict(run(random, 100, a), run(random, 90, b)) for a, b in shares * 10]
    assert slower.count("slower") >= 39
    faster = [verdict(run(random, 100, a), run(random, 115, b)) for a, b in shares * 10]
    assert faster.count("faster") >= 39


def test_states_that_never_meet_are_no_difference():
    random = np.random.default_rng(6)
    found = compare.compare(result(run(random, 100, 1.0)), result(run(random, 100, 0.0))).rows[0]
    assert found.facts["verdict"] == "no difference" and found.computed.low < 0.65 and found.computed.high > 1.1
    assert "too noisy" in found.noise[0]


def test_samples_during_which_others_worked_do_not_count():
    random = np.random.default_rng(7)
    samples = 100 * random.lognormal(0, 0.01, 18)
    disturbed = np.concatenate([samples[:4], 0.5 * samples[4:]])
    others = [0.0] * 4 + [0.5] * 14
    assert verdict(row(samples), row(disturbed, others=others)) == "no difference"
    assert verdict(row(samples), row(disturbed)) == "slower"
    found = compare.compare(result(row(samples)), result(row(disturbed, others=[0.4] * 18))).rows[0]
    assert found.facts["verdict"] == "no difference" and "others had 40% of the machine" in found.noise


def test_the_fast_end_of_many_samples_holds_the_truth():
    """Whatever share of the time each run was slowed down, as long as it was not all of it."""
    random = np.random.default_rng(12)

    def moody(speed: float) -> np.ndarray:
        slow = np.repeat(random.random(12) < random.uniform(0, 0.7), 5)
        slow[random.integers(0, 12) * 5:][:10] = False
        return speed * np.where(slow, random.uniform(0.85, 0.95), 1.0) * random.lognormal(0, 0.01, 60)

    found = [ratios.fast_ends(moody(100), moody(90), 0.015) for _ in range(100)]
    assert np.mean([one.low <= 0.9 <= one.high for one in found]) > 0.95
    assert np.median([one.high / one.low for one in found]) < 1.08
    assert all((one.p <= 0.05) == (not one.low <= 1 <= one.high) for one in found)
    assert ratios.fast_ends([5.0] * 30, [4.0] * 30).low == pytest.approx(0.8)


# Verdicts.


def test_beyond_the_tolerance_only():
    random = np.random.default_rng(8)
    a = row(100 * random.lognormal(0, 0.005, 40))
    b = row(93 * random.lognormal(0, 0.005, 40))
    assert verdict(a, b) == "slower" and verdict(b, a) == "faster"
    assert verdict(a, b, 0.1) == verdict(b, a, 0.1) == "no difference"


def test_less_is_better():
    random = np.random.default_rng(9)
    seconds = [row(scale * random.lognormal(0, 0.01, 20), test="load", unit="s", better="less") for scale in (1.0, 2.0)]
    found = compare.compare(result(seconds[0], kind="latency"), result(seconds[1], kind="latency")).rows[0]
    assert found.facts["verdict"] == "slower" and found.computed.median == pytest.approx(0.5, abs=0.01)
    assert found.facts["a"] == pytest.approx(1, abs=0.01) and found.facts["b"] == pytest.approx(2, abs=0.02)
    assert verdict(*seconds[::-1]) == "faster"


def test_many_rows_must_stand_out_more():
    """Of a hundred rows of noise alone five are beyond a 95 % interval; none may be called a difference."""
    random = np.random.default_rng(10)

    def many() -> Results:
        return result(*(row(100 * random.lognormal(0, 0.2, 8), test=f"tg{i}") for i in range(100)))

    found = compare.compare(many(), many(), 0.01)
    assert any(not one.computed.low <= 1 <= one.computed.high for one in found.rows)
    assert {one.facts["verdict"] for one in found.rows} == {"no difference"}


def test_too_few_samples_and_failures_are_said():
    a = result(row([100] * 3), row([100] * 20, test="pp512"), row([], test="tg7"))
    b = result(row([50] * 30), row([], test="pp512"), row([1] * 9, test="tg7"))
    b.rows[1].failure = "out of memory"
    few, failed, empty = compare.compare(a, b).rows
    assert few.facts["verdict"] == empty.facts["verdict"] == "too few samples" and few.facts["a"] == 100
    assert failed.failure == "B: out of memory" and "verdict" not in failed.facts


def test_rows_are_matched_by_id():
    a = result(row([100] * 9), row([100] * 9, test="pp512"), row([100] * 9, test="pp64"))
    b = result(row([100] * 9, test="pp512"), row([50] * 9), row([1] * 9, test="tg1"))
    b.machine["processor"], b.complete = "Q", False
    found = compare.compare(a, b, names=("old", "new"))
    assert [(one.id["test"], one.facts["verdict"]) for one in found.rows] == [("tg128", "slower"), ("pp512", "no difference")]
    assert found.notes == ["only in old: default pp64", "only in new: default tg1", "new was interrupted", "processor: P and Q"]
    with pytest.raises(LimitError, match=r"1 of 2 rows .* 5%: default tg128 by 50\.0%"):
        compare.check(found)
    again = parse_results(json.loads(json.dumps(found.as_dict())))
    assert again.rows[0].facts == found.rows[0].facts and again.settings["tolerance"] == 0.05
    assert again.rows[0].estimate == found.rows[0].estimate


@pytest.mark.parametrize("change, words", [
    (lambda r: setattr(r, "kind", "limits"), "genkit bench models and genkit bench limits"),
    (lambda r: setattr(r.rows[0], "unit", "B/s"), "default tg128 is in tokens/s in one, in B/s in the other"),
    (lambda r: r.rows[0].id.update(model="other"), "model is default in one, other in the other"),
    (lambda r: r.rows.clear(), "one of them has no rows"),
])
def test_what_measures_different_things(change, words):
    a, b = result(row([1] * 9)), result(row([1] * 9))
    change(b)
    with pytest.raises(UsageError, match="A and B measure different things: .*" + words):
        compare.compare(a, b)


# The command.


def write(path: Path, results: Results) -> Path:
    path.write_text(json.dumps(results.as_dict()))
    return path


def test_two_files(tmp_path):
    random = np.random.default_rng(11)
    a = write(tmp_path / "a.json", result(row(100 * random.lognormal(0, 0.01, 20))))
    b = write(tmp_path / "b.json", result(row(80 * random.lognormal(0, 0.01, 20))))
    done = command(a, b)
    assert done.returncode == 1 and "slower" in done.stdout and "tokens/s" in done.stdout
    assert done.stderr.count("\n") == 1 and "1 of 1 row slower by more than --tolerance 5%" in done.stderr
    assert command(a, b, "--tolerance", "30%").returncode == 0
    done = command(b, a, "--json", "-o", tmp_path / "found.md")
    (found,) = json.loads(done.stdout)["rows"]
    assert done.returncode == 0 and found["facts"]["verdict"] == "faster"
    assert found["low"] < found["median"] < found["high"] and found["median"] == pytest.approx(1.25, abs=0.02)
    assert "faster" in (tmp_path / "found.md").read_text()
    assert command(a, a).returncode == 0


def test_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a = write(tmp_path / "a.json", result(row([1] * 9)))
    other = write(tmp_path / "other.json", result(row([1] * 9), kind="limits"))
    broken = tmp_path / "broken.json"
    broken.write_text('{"rows": []}')
    for arguments, code, words in [
        ((a, other), 2, "measure different things"),
        ((a, broken), 3, "not a result of genkit bench"),
        ((a, tmp_path / "none.json"), 3, "no such file"),
        ((a, tmp_path), 2, "a folder without bin/python"),
        ((a, "no-such-thing"), 2, "no such file, virtual environment or commit"),
        ((a, sys.executable), 2, "give two of a kind"),
        ((a, a, "-n", "5"), 2, "-n: "),
        ((a, a, "--tolerance", "100%"), 2, "not below 100%"),
        ((a, a, "--tolerance", "-5%"), 2, "--tolerance"),
        ((sys.executable, sys.executable, "-p", "none", "-n", "none"), 2, "nothing is left to measure"),
        ((sys.executable, sys.executable, "--type", "int3"), 2, "--type int3"),
        ((sys.executable, sys.executable, "-m", a, "--shape", "llama-3.2-1b"), 2, "give one of them"),
        ((sys.executable, sys.executable, "--time", "0"), 2, "--time 0"),
        ((a, a, "-o", a), 2, "a.json"),
    ]:
        with pytest.raises(BaseException) as error:
            app(["bench", "compare", *map(str, arguments)], standalone_mode=False, prog_name="genkit")
        told = explain(error.value)
        assert told[0] == code and words in told[1], (arguments, told)
        assert not capsys.readouterr().out


def test_the_model_itself_is_found_out_when_it_waits():
    """Two runs of the default model as it is, one whose decode step takes ten times as long: far beyond any noise. Where another
    process began or ended between two runs, they are measured again."""
    from genkit.bench.throughput import Plan, measure
    from compare_tries import plant
    from genkit.plan import Decoder

    def measured() -> Results:
        results = Results("models", dict(MACHINE))
        measure(results, Plan(prompts=(), generates=(32,), rounds=8, seconds=0.0))
        return results

    for _ in range(4):
        first, second = measured(), measured()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Decoder, "draw", Decoder.draw)  # so that it is put back
            plant(9.0)
            slow = measured()
        same, found = compare.compare(first, second, 0.5), compare.compare(second, slow, 0.5)
        if same.rows[0].facts["verdict"] == "no difference" and found.rows[0].computed.median < 0.3:
            break
    assert same.rows[0].facts["verdict"] == "no difference"
    assert found.rows[0].facts["verdict"] == "slower" and found.rows[0].computed.median < 0.3
    assert found.rows[0].id == first.rows[0].id


# Installs and commits, the real thing. A repository whose build needs no compiler: it packs the genkit that runs this test.

BACKEND = '''
import os, shutil, zipfile

def build_wheel(folder, settings=None, metadata=None):
    name = "genkit-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for at, _, files in os.walk({source!r}):
            if "__pycache__" not in at:
                for file in files:
                    path = os.path.join(at, file)
                    wheel.write(path, "genkit/" + os.path.relpath(path, {source!r}))
        wheel.writestr("genkit/__init__.py", open(os.path.join({source!r}, "__init__.py")).read() + open("extra.py").read())
        info = "genkit-0.1.0.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: genkit\\nVersion: 0.1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
'''
SLOW = '''
def _slow():
    import time
    from genkit.plan import Decoder
    draw = Decoder.draw
    def slow(*arguments):
        start = time.perf_counter()
        drawn = draw(*arguments)
        end = 2 * time.perf_counter() - start
        while time.perf_counter() < end:
            pass
        return drawn
    Decoder.draw = slow
_slow()
'''


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    if shutil.which("git") is None or subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("needs git and pip")
    folder = tmp_path_factory.mktemp("repository")

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)

    git("init", "-q", "-b", "trunk")
    (folder / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n')
    (folder / "backend.py").write_text(BACKEND.format(source=str(Path(genkit.__file__).parent)))
    for name, extra in (("plain", ""), ("same", "\n"), ("slow", SLOW)):
        (folder / "extra.py").write_text(extra)
        git("add", "-A")
        git("commit", "-q", "-m", name)
        git("tag", name)
    (folder / "backend.py").write_text("def build_wheel(*a):\n    raise SystemExit('error: no compiler for tiles')\n")
    git("commit", "-q", "-a", "-m", "broken")
    return folder


def test_commits(repository, tmp_path):
    options = ["-p", "none", "-n", "48", "--time", "2", "--json"]
    where = {"cwd": repository, "env": os.environ | {"XDG_CACHE_HOME": str(tmp_path)}}
    done = command("plain", "slow", *options, **where)
    assert done.returncode == 1, done
    (found,) = json.loads(done.stdout)["rows"]
    assert found["facts"]["verdict"] == "slower" and found["high"] < 0.8 and found["id"]["test"] == "tg48"
    assert len(list((tmp_path / "genkit-bench" / "commits").iterdir())) == 2
    assert "building commit plain" in done.stderr and "1 of 1 row slower" in done.stderr
    done = command("plain", "slow", *options, "--tolerance", "90%", **where)
    assert done.returncode == 0 and "building" not in done.stderr
    if not machine.cuda_state()[0]:
        done = command("plain", "slow", *options, "--device", "cuda", **where)
        assert done.returncode == 5 and done.stderr.count("\n") == 1 and "--device cuda: " in done.stderr, done
    done = command("plain", "trunk", *options, **where)
    assert done.returncode == 1 and done.stderr.endswith("cannot be built: error: no compiler for tiles\n"), done


def test_an_interpreter_without_genkit(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    done = command(tmp_path / "empty", tmp_path / "empty", "-n", "8", "--time", "1")
    assert done.returncode == 2 and "no genkit that works: not installed" in done.stderr and done.stderr.count("\n") == 1, done


def test_interrupted_in_the_middle_shows_what_there_is(repository, tmp_path):
    import signal
    import time

    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    child = subprocess.Popen(GENKIT + ["plain", "same", "-p", "none", "-n", "8", "--time", "100", "--ci", "0.01%", "--json"],
                             cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        # The workers' logs appear when they have been started; a moment later rounds are under way.
        workers = []
        deadline = time.monotonic() + 60
        while len(workers) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            workers = [int(line) for line in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
        time.sleep(3)
        child.send_signal(signal.SIGINT)
        stdout, _ = child.communicate(timeout=30)
    finally:
        child.kill()
    shown = json.loads(stdout)
    assert child.returncode == 130 and shown["complete"] is False and shown["rows"][0]["facts"]["verdict"]
    assert len(shown["rows"][0]["samples"]) >= 6
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
