"""The mutation loop for files nobody should trust: small seeds, changed at random; each mutant is opened and run a token.

    hunt({"q4_0": Seed({"model.gguf": data}, attempt)}, 1000, tmp_path)

A mutant must end in one of genkit's errors (one printable line) or work, within a second of processor time, its memory
below twice its files + 64 MiB. Mutants run in forked workers, which are watched from outside: what a signal ends, or what
hangs, is a finding like any other. A finding is written out, and named by its seed and number: `mutant` makes it again.
GENKIT_MUTANTS multiplies the count, GENKIT_MUTANTS_SEED gives other mutants.
"""

import mmap
import os
import re
import resource
import signal
import struct
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from genkit import _core, errors, models
from genkit.kv_cache import KVCache, Sequence, pages_for
from genkit.machine import available_threads

SEED = int(os.environ.get("GENKIT_MUTANTS_SEED", 20261127))
TIMES = float(os.environ.get("GENKIT_MUTANTS", 1))
SECONDS, HANGS, MESSAGE = 1.0, 120, 900  # of processor time; of a clock; characters
BATCH = 250  # mutants a worker runs: what it leaks adds up
BOUNDARY = [0, 1, 2, 7, 31, 32, 63, 64, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
            2**62, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = ["null", "true", "false", "[]", "{}", '""', '"x"', "-1", "0", "1", "1.5", "1e308", "-0.0", "NaN", "4294967296", "[[]]",
         "9223372036854775807", "9" * 40, '"\\ud800"', '"\\u0000"', "[1,2]", '{"a":1}', "4", "8", "32", "64", "128"]
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')


def run_a_token(opened):
    """Loads what opening.open_model gave (or anything with fields and checkpoint) and runs one token."""
    model = models.load_model(opened.fields, opened.checkpoint)
    c = model.config
    cache = KVCache(c.layers, c.kv_heads, c.head_dim, pages_for(1))
    return _core.Arena().run(model, cache.step([(Sequence(), [0])]), cache).numpy()


def open_and_run(path):
    """The attempt for a model: a folder, or a file."""
    from contextlib import ExitStack

    from genkit.opening import open_model

    with ExitStack() as stack:
        run_a_token(open_model(path, stack))


@dataclass(frozen=True)
class Seed:
    """files by name; attempt(path) is called with their folder, or with `open`, one of them. Of most mutants the change lies
    in `dense`, parts [begin, end) of the file of that name."""

    files: dict[str, bytes]
    attempt: object = open_and_run
    open: str = ""
    dense: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @staticmethod
    def folder(path, attempt=open_and_run, leave=()):
        """Of a model folder; files named in `leave` are there and stay as they are."""
        files = {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}
        heads = {name: [(0, 8 + int.from_bytes(data[:8], "little"))] for name, data in files.items()
                 if name.endswith(".safetensors")}
        return Seed(files, attempt, dense=heads | {name: [] for name in leave})


def mutant(seed, number):
    """(name of the changed file, its new bytes): the same for the same seed and number."""
    rng = np.random.default_rng([SEED, number])
    names = [name for name in seed.files if seed.dense.get(name) != []]
    name = names[rng.integers(len(names))]
    data = seed.files[name]
    if name.endswith(".json") and rng.random() < 0.9:
        return name, _text(data, rng)
    if name.endswith(".safetensors") and rng.random() < 0.5:  # its header is JSON; most of the time the length stays true
        end = 8 + int.from_bytes(data[:8], "little")
        head = _text(data[8:end], rng)
        return name, (len(head).to_bytes(8, "little") if rng.random() < 0.9 else data[:8]) + head + data[end:]
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        _bytes(changed, _place(changed, seed.dense.get(name), rng), data, rng)
    return name, bytes(changed)


def _place(data, dense, rng):
    if dense and rng.random() < 0.8:
        begin, end = dense[rng.integers(len(dense))]
        return int(rng.integers(begin, min(end, len(data)) or 1)) if begin < min(end, len(data)) else 0
    return int(rng.integers(max(1, len(data))))


def _bytes(data, at, original, rng):
    """One change of bytes in place: a flipped bit, a boundary number, a cut, a piece from elsewhere."""
    kind = rng.integers(8)
    if kind < 3 and data:
        data[min(at, len(data) - 1)] ^= 1 << int(rng.integers(8))
    elif kind < 5:
        size = int(rng.choice([1, 2, 4, 8]))
        value = (BOUNDARY[rng.integers(len(BOUNDARY))] + int(rng.integers(-1, 2))) % 2 ** (8 * size)
        data[at:at + size] = value.to_bytes(size, "little")[:max(0, len(data) - at)]
    elif kind == 5:
        data[at:at + 4] = struct.pack("<f", float(rng.choice([0, -1, 1e38, 1e-45, np.inf, np.nan])))[:max(0, len(data) - at)]
    elif kind == 6 and rng.random() < 0.3:
        del data[at:]
    else:
        source, size = int(rng.integers(len(original))), int(2 ** rng.uniform(0, 10))
        piece = original[source:source + size]
        data[at:at + (len(piece) if rng.random() < 0.6 else 0 if rng.random() < 0.5 else size)] = piece


def _text(data, rng):
    """One to three values or keys of a JSON text changed, left out or given twice."""
    for _ in range(rng.integers(1, 4)):
        tokens = list(TOKEN.finditer(data))
        if not tokens:
            return data
        token, other = tokens[rng.integers(len(tokens))], tokens[rng.integers(len(tokens))]
        begin, end = token.span()
        kind = rng.integers(6)
        if kind < 3:
            new = WORDS[rng.integers(len(WORDS))].encode()
        elif kind == 3:
            new = other[0]
        elif kind == 4 and token[0][:1].isdigit() and len(token[0]) < 19:
            new = str(max(0, int(float(token[0])) + int(rng.choice([-1, 1, 32, -32, 2**31])))).encode()
        else:  # a member of an object or a list, with what follows it
            comma = data.find(b",", end) + 1 or len(data)
            piece = data[begin:comma]
            data = data[:begin] + (piece * 2 if rng.random() < 0.5 else b"") + data[comma:]
            continue
        data = data[:begin] + new + data[end:]
    return data


def hunt(seeds, count, folder, batch=BATCH):
    """count mutants of every seed (of `seeds`, by name). Returns how many were refused, by seed. Fails with all findings."""
    count = max(1, int(count * TIMES))
    jobs = [(name, begin, min(begin + batch, count)) for name in seeds for begin in range(0, count, batch)]
    refusals, findings, running = dict.fromkeys(seeds, 0), [], {}
    for name, seed in seeds.items():  # what works must work, and what is imported lazily is there before the fork
        where = folder / f"seed-{name}"
        _write(where, seed.files)
        try:
            seed.attempt(where / seed.open)
        except errors.Error as error:
            raise AssertionError(f"seed {name}: {error}") from None
    while jobs or running:
        while jobs and len(running) < max(1, available_threads()):
            job = jobs.pop(0)
            state = mmap.mmap(-1, 1 << 14)  # of the worker: number, refusals, length of what was found, that
            place = folder / f"worker-{job[0]}-{job[1]}"
            pid = os.fork()
            if pid == 0:
                _worker(seeds[job[0]], job, place, state)
            running[pid] = job, state
        pid, status = os.wait()
        (name, begin, end), state = running.pop(pid)
        number, refused, length = struct.unpack_from("<qqq", state)
        refusals[name] += refused
        if status:
            found = state[24:24 + length].decode() or f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
            changed, data = mutant(seeds[name], number)
            out = folder / f"mutant-{name}-{number}"
            _write(out, seeds[name].files | {changed: data})
            findings.append(f"seed {name}, mutant {number} ({changed}; written to {out}): {found}")
            if number + 1 < end and len(findings) < 20:
                jobs.append((name, number + 1, end))
    assert not findings, "\n".join(findings)
    return refusals


def _write(where, files):
    where.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (where / name).write_bytes(data)


def _worker(seed, job, where, state):
    """Runs in a forked child and never returns: exits with 1 when a mutant fails."""
    try:
        warnings.simplefilter("ignore")  # of float16 scales that became infinite
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends what hangs
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _core.set_threads(1)
        _write(where, seed.files)
        seed.attempt(where / seed.open)
        _reset_peak()
        refused, before = 0, _peak()
        for number in range(job[1], job[2]):
            name, data = mutant(seed, number)
            (where / name).write_bytes(data)
            struct.pack_into("<qqq", state, 0, number, refused, 0)
            signal.alarm(HANGS)
            _reset_peak()
            start = time.process_time()
            try:
                seed.attempt(where / seed.open)
            except errors.Error as error:
                refused += 1
                text = str(error)
                assert text.isprintable() and 10 < len(text) < MESSAGE, f"message {text!r}"
            took, grown = time.process_time() - start, _peak() - before
            signal.alarm(0)
            size = sum(map(len, seed.files.values())) - len(seed.files[name]) + len(data)
            assert took < SECONDS, f"took {took:.2f} s"
            assert grown < 2 * size + (64 << 20), f"memory grew by {grown >> 20} MiB, the files have {size} bytes"
            (where / name).write_bytes(seed.files[name])
        struct.pack_into("<qqq", state, 0, number, refused, 0)
        os._exit(0)
    except BaseException as error:  # what a child raises must not reach the tests' own process
        lines = traceback.format_exc() if not isinstance(error, AssertionError) else str(error)
        found = lines.encode("utf-8", "replace")[-(1 << 13):]
        state[24:24 + len(found)] = found
        struct.pack_into("<q", state, 16, len(found))
    finally:
        os._exit(1)


def _reset_peak():
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is there now


def _peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
