"""Draws on the processor and through the plugin of tests/cuda_plugin.cpp from the same logits and seeds: python
cuda_sampling.py PLUGIN SEED PART. Prints a line for each draw that is another; a process of its own, as cuda_engine.py."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from test_kernels_sample import plain_kept, shapes

from genkit import _core, machine
from genkit.devices import using

# (rows, logits of a row): one row and many, more than a wave of blocks, pieces and bins that end anywhere.
SIZES = [(1, 1), (70, 1), (3, 2), (70, 7), (12, 33), (16, 255), (17, 257), (33, 1023), (12, 1024), (12, 1025), (70, 1500), (2, 4097),
         (16, 9001), (3, 50_257), (1, 300_001), (2, 131_072)]
TEMPERATURES = [0.0, 1e-45, 1e-38, 1e-6, 0.3, 0.8, 1.0, 1.7, 30.0, 100.0, 1e30, 3.4e38]
TOP_K = [0, 1, 2, 40, 1023, 1024, 1025, 5000, 10**6]
TOP_P = [1.0, 1e-30, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 0.9999999]
MIN_P = [0.0, 1e-38, 1e-20, 0.05, 0.5, 1.0]
PLAIN = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def settings(rng: np.random.Generator) -> "Iterator[dict[str, Any]]":
    """Each alone, then combined at random."""
    for name, values in (("temperature", TEMPERATURES), ("top_k", TOP_K), ("top_p", TOP_P), ("min_p", MIN_P)):
        yield PLAIN | {name: values[rng.integers(len(values))]}
    yield PLAIN | {"temperature": 0.0}
    for _ in range(7):
        yield dict(temperature=float(rng.choice(TEMPERATURES)), top_k=int(rng.choice(TOP_K)), top_p=float(rng.choice(TOP_P)),
                   min_p=float(rng.choice(MIN_P)))


def logits_of(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Rows that are easy, hard, of equals, of no use."""
    x = shapes(rng, max(rows, 12), dim)[rng.permutation(max(rows, 12))[:rows]]
    for row in range(rows):
        at = rng.integers(dim, size=max(1, dim // 50))
        kind = rng.integers(14)
        if kind < 5:
            x[row, at[: 1 + kind]] = (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38)[kind]
        elif kind == 5:
            x[row] = -np.inf
        elif kind == 6:  # many equals at the top: more than are listed
            x[row, at] = x[row].max()
        elif kind == 7:
            x[row] = np.float32(1e-42) * rng.integers(-3, 4, dim)
        elif kind == 8:  # many in one bin of a sixty-fourth
            x[row] = rng.uniform(0, 1 / 64, dim)
    return np.ascontiguousarray(x, np.float32)


def changes(rng: np.random.Generator, rows: int, dim: int) -> "dict[str, Any]":
    """A bias with bans, and what the penalties look at."""
    biased = rng.permutation(dim)[: rng.integers(1, dim + 1)].astype(np.int32)
    added = (rng.standard_normal(len(biased)) * 3).astype(np.float32)
    added[rng.random(len(biased)) < 0.2] = -np.inf
    lengths = rng.integers(0, min(dim, 300) + 1, rows).astype(np.int32)
    entries = rng.integers(0, 5, (rows, 3, lengths.max() + 1)).astype(np.int32)
    for row, length in zip(entries, lengths):
        row[0, :length] = rng.permutation(dim)[:length]
    return {"bias": (biased, added), "penalties": (entries, lengths),
            "strengths": (float(rng.uniform(0.5, 2)), float(rng.uniform(-2, 2)), float(rng.uniform(-2, 2)))}


def drawn(device: str, x: np.ndarray, changed: "dict[str, Any] | None", given: "dict[str, Any]", seed: int, sequences: np.ndarray,
          finite_only: bool = False, only: bool = False) -> "dict[str, np.ndarray]":
    with using(device):
        tensor = _core.Tensor.from_numpy
        logits = tensor(x.copy())
        if changed:
            _core.bias_(logits, *map(tensor, changed["bias"]))
            _core.penalize_(logits, *map(tensor, changed["penalties"]), *changed["strengths"])
        arguments = (logits, tensor(sequences), tensor(sequences * 3 + 1), given["temperature"], given["top_k"], given["top_p"],
                     given["min_p"], seed, finite_only)
        tokens = _core.sample(*arguments).numpy()
        if only:
            return {"tokens": tokens}
        counted, nonfinite = (one.numpy() for one in _core.sample_counted(*arguments))
        return {"tokens": tokens, "counted": counted, "nonfinite": nonfinite, "alone": _core.nonfinite(logits).numpy(),
                "largest": _core.argmax(logits).numpy(), "logits": logits.numpy().view(np.uint32)}


def same(rng: np.random.Generator) -> int:
    """Token for token, for every size and setting."""
    compared = 0
    for rows, dim in SIZES:
        for given in settings(rng):
            x, changed = logits_of(rng, rows, dim), changes(rng, rows, dim) if rng.random() < 0.5 else None
            seed, sequences = int(rng.integers(2**63)), rng.integers(0, 2**40, rows)
            finite_only = bool(rng.random() < 0.3)
            want, got = (drawn(device, x, changed, given, seed, sequences, finite_only) for device in ("cpu", "cuda"))
            nan = np.isnan(want["logits"].view(np.float32)) & np.isnan(got["logits"].view(np.float32))  # whose bits are free
            got["logits"] = np.where(nan, want["logits"], got["logits"])
            for what in want:
                if not np.array_equal(want[what], got[what]):
                    row = int(np.argwhere(want[what] != got[what])[0][0])
                    print(f"{rows} x {dim} {given} changed {changed is not None} finite_only {finite_only}: {what} of row {row} is "
                          f"{got[what][row]}, not {want[what][row]}")
            if not (np.array_equal(got["tokens"], got["counted"]) and np.array_equal(got["nonfinite"], got["alone"])
                    and np.array_equal(got["nonfinite"], (~np.isfinite(got["logits"].view(np.float32))).sum(1))):
                print(f"{rows} x {dim} {given}: a draw that counts is another, or counts otherwise")
            compared += rows
    return compared


def alone(rng: np.random.Generator) -> int:
    """A row's token does not depend on the rows beside it."""
    x, sequences = logits_of(rng, 600, 130), rng.integers(0, 1000, 600)  # more rows than the workspace has places for
    for given in list(settings(rng))[::2]:
        together = drawn("cuda", x, None, given, 5, sequences, only=True)["tokens"]
        for row in rng.integers(0, 600, 6).tolist() + [511, 512]:
            by_itself = drawn("cuda", x[row : row + 1], None, given, 5, sequences[row : row + 1], only=True)["tokens"][0]
            if by_itself != together[row]:
                print(f"{given}: row {row} is {together[row]} among others, {by_itself} alone")
    return 600


def often(rng: np.random.Generator) -> int:
    """Chi-squared of many draws against float64."""
    dim, draws = 24, 2000
    for given in (PLAIN, PLAIN | {"temperature": 1.9}, PLAIN | {"top_k": 9}, PLAIN | {"top_p": 0.8}, PLAIN | {"min_p": 0.1},
                  dict(temperature=1.4, top_k=15, top_p=0.9, min_p=0.02)):
        x = rng.standard_normal(dim).astype(np.float32)
        ids, sums = plain_kept(x, **given)
        share = np.diff(np.concatenate([[0.0], sums])) / sums[-1]
        tokens = drawn("cuda", np.tile(x, (draws, 1)), None, given, int(rng.integers(2**63)), np.arange(draws), only=True)["tokens"]
        found = np.bincount(tokens, minlength=dim)
        if found.sum() != found[ids].sum():
            print(f"{given}: tokens that the filters drop: {np.setdiff1d(np.flatnonzero(found), ids)}")
        expected = share * draws
        small = expected < 5  # counted together
        expected, counts = (np.append(one[~small], one[small].sum()) for one in (expected, found[ids]))
        expected, counts = expected[expected > 0], counts[expected > 0]
        freedom = len(expected) - 1
        chi = float(((counts - expected) ** 2 / expected).sum())
        limit = freedom * (1 - 2 / (9 * freedom) + 6 * (2 / (9 * freedom)) ** 0.5) ** 3  # six sigma (Wilson and Hilferty 1931)
        if not chi < limit:
            print(f"{given}: chi-squared {chi:.1f} of {freedom} degrees of freedom, at most {limit:.1f}")
    return draws


if __name__ == "__main__":
    machine.CUDA_PLUGIN = sys.argv[1]
    usable, words = machine.cuda_state()
    assert usable, words
    print("compared", {"same": same, "alone": alone, "often": often}[sys.argv[3]](np.random.default_rng(int(sys.argv[2]))))
