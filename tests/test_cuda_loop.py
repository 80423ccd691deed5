"""Tokens made on a device without returning to the host: through the stand-in, whose graphs run later than they are asked for."""

import json
import os
import subprocess
import sys

from cuda_stand_in import needs_compiler

# A chain: token t is followed by the largest of row t of a table. Row 90 is NaN, of row 91 nothing can be drawn.
HEAD = """
import ctypes, json, random, sys
import numpy as np
from genkit import _core, machine
machine.CUDA_PLUGIN = sys.argv[1]
assert machine.cuda_state()[0]
seed = random.SystemRandom().randrange(2**32)
rng = np.random.default_rng(seed)
VOCAB, LIMIT = 96, 40
follow = rng.permutation(90)
weight = rng.standard_normal((VOCAB, VOCAB)).astype(np.float32)
weight[np.arange(90), follow] = 9
weight[90] = np.nan
weight[91] = -np.inf
places = np.zeros((LIMIT, VOCAB), np.float32)  # read by position, so that positions have a limit

class Chain:
    def __init__(self, device, rows, sampler=None, tables=()):
        self.device = device
        _core.use_device(device)
        self.table = _core.Tensor.from_numpy(weight).to(device)
        self.places = _core.Tensor.from_numpy(places).to(device)
        zeros = lambda dtype: _core.Tensor.from_numpy(np.zeros(rows, dtype))
        self.ids, self.positions, self.draw_positions = zeros(np.int32), zeros(np.int32), zeros(np.int64)
        self.views = [t.numpy() for t in (self.ids, self.positions, self.draw_positions)]
        sequences = _core.Tensor.from_numpy(np.zeros(rows, np.int64))
        def record():
            logits = _core.add(_core.embedding(self.ids, self.table), _core.embedding(self.positions, self.places))
            if sampler:
                self.tokens, self.nonfinite = sampler.draw_step(logits, sequences, self.draw_positions, self.tables)
                return
            self.tokens, self.nonfinite = _core.sample_counted(logits, sequences, self.draw_positions, TEMPERATURE, 0, 1.0, 0.0, 7, finite_only=True)
        self.tables = sampler.tables(rows, *tables) if sampler else None
        self.plan, _ = _core.Plan.record(record)

    def decode(self, ids, positions, stop_ids=(), count=16, seconds=1e9, live=None):
        _core.use_device(self.device)
        self.views[0][:], self.views[1][:], self.views[2][:] = ids, positions, np.add(positions, 1)
        try:
            taken = self.plan.decode(self.ids, self.positions, self.draw_positions, self.tokens, self.nonfinite,
                                     len(ids) if live is None else live, list(stop_ids), count, seconds)
        except (ValueError, RuntimeError) as error:
            taken = str(error)
        return taken, [view.tolist() for view in self.views]
"""


def run(stand_in, body, temperature=0.0, **more):
    folder, plugin = stand_in
    done = subprocess.run([sys.executable, "-c", HEAD.replace("TEMPERATURE", str(temperature)) + body, plugin], capture_output=True,
                          text=True, timeout=300, env=os.environ | {"LD_LIBRARY_PATH": str(folder)} | more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LIKE_THE_PROCESSOR = """
cases, wrong = 0, []
for rows in (1, 3, 40, 300):
    alone = [Chain("cpu", live) for live in {3: (1, 2), 40: (7, 39)}.get(rows, ())]
    cpu, cuda = Chain("cpu", rows), Chain("cuda", rows)
    for trial in range(12):
        ids, positions = rng.integers(0, 90, rows), rng.integers(0, 12, rows)
        if trial % 4 == 2:
            ids[rng.integers(rows)] = rng.integers(90, 92)
        if trial % 4 == 3:  # comes to lie outside what it indexes
            positions[rng.integers(rows)] = LIMIT - int(rng.integers(1, 9))
        stops = rng.integers(0, 90, int(rng.integers(0, 4 if rows < 40 else 2))).tolist() if trial % 2 else []
        if trial == 4:
            stops += range(100, int(rng.choice([200, 9000])))  # more of them, or more than a device holds
        count = int(rng.integers(1, 17))
        want, got = (chain.decode(ids, positions, stops, count) for chain in (cpu, cuda))
        cases += 1
        if want != got:
            wrong.append([rows, trial, str(want)[:300], str(got)[:300]])
        for chain in alone if trial < 4 else ():  # the others are padding: some draw what stops, or nothing, and their positions stay
            live = len(chain.views[0])
            stops = stops[:3] + [int(follow[i]) for i in ids[live:] if i < 90]
            want, state = chain.decode(ids[:live], positions[:live], stops, count)
            got = cuda.decode(ids, positions, stops, count, live=live)
            state = [have + first[live:].tolist() for have, first in zip(state, (ids, positions, positions + 1))]
            cases += 1
            if got != (want, state):
                wrong.append([rows, trial, live, str(want)[:300], str(got)[:300]])
most = ctypes.CDLL(sys.argv[1]).genkit_most_ahead
most.restype = ctypes.c_int64
print(json.dumps([cases, wrong, most(), seed]))
"""


@needs_compiler
def test_loops_are_the_processors(stand_in):
    """Tokens, and what ids and positions are afterwards, whatever ends them; some steps ahead of what the host has read."""
    for temperature in (0.0, 3.0):
        cases, wrong, most, seed = run(stand_in, LIKE_THE_PROCESSOR, temperature)
        assert cases == 48 + 4 * 4 and not wrong, f"seed {seed}: {wrong[:2]}"
        assert most == 4


PENALTIES = """
from genkit.decoding.sampling import Sampler, SamplingSettings
cases, wrong = 0, []
for window in (0, 1, 3, 20, 10**9, -1):
    for rows in (1, 3, 40):
        settings = SamplingSettings(temperature=TEMPERATURE, repeat_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.6, repeat_last_n=window,
                                    logit_bias={3: 2.0} | {bad: -np.inf for bad in range(90, VOCAB)}, seed=9)
        sampler = Sampler(settings, VOCAB)
        prompts = [rng.integers(0, 90, n).tolist() for n in rng.integers(1, 30, rows)]
        stop = int(rng.integers(90))
        said = {}
        for device in ("hand", "cpu", "cuda"):
            chain = None if device == "hand" else Chain(device, rows, sampler, (128, LIMIT))
            texts, histories = [prompt[-1:] for prompt in prompts], [sampler.history(prompt) for prompt in prompts]
            for count in (7, 1, 16):
                position = len(texts[0]) - 1
                if chain is None:
                    for step in range(count):
                        _core.use_device("cpu")
                        logits = _core.Tensor.from_numpy(weight[[text[-1] for text in texts]] + places[position + step])
                        drawn = sampler.next(logits, histories, [0] * rows, [position + step + 1] * rows)
                        for text, token in zip(texts, drawn):
                            text.append(token)
                        if stop in drawn:
                            break
                    continue
                if chain.tables:
                    _core.use_device(device)
                    chain.tables.write(histories, rows)
                taken, _ = chain.decode([text[-1] for text in texts], [position] * rows, [stop], count)
                for row, (text, history) in enumerate(zip(texts, histories)):
                    text += taken[row::rows]
                    for token in taken[row::rows] if history else ():
                        history.append(token)
            said[device] = texts
        cases += 1
        if not said["hand"] == said["cpu"] == said["cuda"]:
            wrong.append([window, rows, str(said)[:600]])
print(json.dumps([cases, wrong, seed]))
"""


@needs_compiler
def test_penalties_in_a_loop_are_those_of_single_steps(stand_in):
    for temperature in (0.0, 1.2):
        cases, wrong, seed = run(stand_in, PENALTIES.replace("TEMPERATURE", str(temperature)), temperature)
        assert cases == 18 and not wrong, f"seed {seed}: {wrong[:1]}"


@needs_compiler
def test_a_bad_step_on_the_way_is_not_taken(stand_in):
    wrong = run(stand_in, """
wrong = []
first, second = (part.tolist() for part in np.split(rng.permutation(90)[:8], 2))  # chains that do not meet
for bad in (90, 91):
    first[3:] = [bad]  # the third token drawn is bad; the fourth step cannot be taken
    for chain in (first, second):
        for token, after in zip(chain, chain[1:]):
            weight[token], weight[token, after] = -1, 9
    for chain in (Chain("cpu", 2), Chain("cuda", 2)):
        taken, state = chain.decode([first[0], second[0]], [0, 3])
        if len(taken) != 6 or taken[4] != bad or state[0][0] != bad or state[1] != [3, 6] or chain.decode(*state[:2])[0] != []:
            wrong.append([bad, chain.device, taken, state])
print(json.dumps(wrong))
""")
    assert not wrong


@needs_compiler
def test_steps_on_their_way_past_the_time_are_taken(stand_in):
    counts = run(stand_in, """
cpu, cuda = Chain("cpu", 2), Chain("cuda", 2)
want, (late, state) = cpu.decode([1, 2], [0, 0], count=16)[0], cuda.decode([1, 2], [0, 0], count=16, seconds=0)
rest = cuda.decode(state[0], state[1], count=16 - len(late) // 2)[0]
print(json.dumps([len(late) // 2, want == late + rest]))
""")
    assert counts == [4, True]


@needs_compiler
def test_a_device_that_fails_or_says_nothing_ends_the_loop(stand_in):
    for fault, said in (("fails", "cuda: running a plan: an illegal memory access was encountered"),
                        ("silent", "cuda: running a plan: it has ended without its tokens")):
        taken, state = run(stand_in, "print(json.dumps(Chain('cuda', 2).decode([1, 2], [0, 0])))", GENKIT_STAND_IN_FAULT=fault)
        assert taken == said and state[1] == [3, 3]
