"""Two results of one kind, row by row: is the second faster, slower, or the same as far as anybody can tell?

docs/bench.md says how often this is right, and how that was measured.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any, Iterable, Sequence

from genkit.bench import noise
from genkit.bench.estimates import CONFIDENCE, Estimate, quantile
from genkit.bench.ratios import Ratio, fast_ends, two_sample
from genkit.bench.results import Results, Row
from genkit.errors import LimitError, UsageError

TOLERANCE = 0.05
FASTER, SLOWER, SAME, TOO_FEW = "faster", "slower", "no difference", "too few samples"

# Two processes of the same install run a model at speeds up to so far apart, as a logarithm, whatever the number of
# samples: their weights lie elsewhere in the caches.
BETWEEN_PROCESSES = 0.015

# Where others were at work all the time, so much of what they had of the machine, as a logarithm, is no difference: a thread
# that has to wait for its processor keeps all others waiting.
OTHERS = 2.0

# Limits no further apart than this, as a logarithm, were measured on a machine in the same state.
LIKE = 0.06

# With fewer samples a side nothing is said; from so many on, what is compared is how fast each was at its best.
FEWEST, MANY = 4, 20


def compare(a: Results, b: Results, tolerance: float = TOLERANCE, names: Sequence[str] = ("A", "B")) -> Results:
    """A row each that both have, as speed of b against a: above 1 b is faster, whatever the unit. Raises UsageError where
    they measure different things."""
    pairs, notes = matched(a, b, names)
    for name, result in zip(names, (a, b)):
        if not result.complete:
            notes.append(f"{name} was interrupted")
    for what in ("processor", "tier", "usable_processors"):
        if a.machine.get(what) != b.machine.get(what):
            notes.append(f"{what.replace('_', ' ')}: {a.machine.get(what)} and {b.machine.get(what)}")
    rows = [compared(of_a, of_b) for of_a, of_b in pairs]
    judge(rows, tolerance)
    settings = {"a": names[0], "b": names[1], "tolerance": tolerance, "of": a.kind}
    return Results("compare", b.machine, settings, rows, notes, a.complete and b.complete)


def matched(a: Results, b: Results, names: Sequence[str]) -> tuple[list[tuple[Row, Row]], list[str]]:
    """Rows with the same id, and a note of those that one of them has alone."""
    first, second = names
    if a.kind != b.kind:
        raise UsageError(f"{first} and {second} measure different things: genkit bench {a.kind} and genkit bench {b.kind}")
    if a.kind == "compare":
        raise UsageError(f"{first} and {second} are comparisons themselves; compare what they compared")
    rows = {row.key: row for row in b.rows}
    pairs = [(row, rows[row.key]) for row in a.rows if row.key in rows]
    if not pairs:
        raise UsageError(f"{first} and {second} measure different things: {_difference(a.rows, b.rows)}")
    for of_a, of_b in pairs:
        if (of_a.unit, of_a.better) != (of_b.unit, of_b.better):
            raise UsageError(f"{first} and {second} measure different things: {words(of_a.id)} is in {of_a.unit} in one,"
                             f" in {of_b.unit} in the other")
    notes = []
    for name, mine, others in ((first, a.rows, rows), (second, b.rows, {row.key: row for row in a.rows})):
        alone = [words(row.id) for row in mine if row.key not in others]
        if alone:
            notes.append(f"only in {name}: {'; '.join(alone[:5])}" + (f" and {len(alone) - 5} more" if len(alone) > 5 else ""))
    return pairs, notes


def _difference(a: list[Row], b: list[Row]) -> str:
    if not a or not b:
        return "one of them has no rows"
    for name in dict.fromkeys([*a[0].id, *b[0].id]):
        mine, theirs = ({str(row.id.get(name)) for row in rows} for rows in (a, b))
        if not mine & theirs:
            return f"{name} is {', '.join(sorted(mine)[:5])} in one, {', '.join(sorted(theirs)[:5])} in the other"
    return f"no row of one is in the other, such as {words(a[0].id)}"


def words(id: dict[str, Any]) -> str:
    return " ".join(str(value) for value in id.values())


def compared(a: Row, b: Row) -> Row:
    """The row of b against a, without a verdict yet."""
    row = Row(dict(a.id), "ratio", facts={"of": a.unit, "a": a.estimate and a.estimate.median, "b": b.estimate and b.estimate.median})
    failures = [f"{name}: {row_of.failure}" for name, row_of in (("A", a), ("B", b)) if row_of.failure]
    if failures:
        row.failure = "; ".join(failures)
        return row
    disturbed = max(_disturbed(a), _disturbed(b))
    if disturbed:
        row.noise.append(f"others had {disturbed:.0%} of the machine")
    found = _hull([ratio_of(*view, BETWEEN_PROCESSES + OTHERS * disturbed) for view in like(a, b)])
    if found:
        set_ratio(row, found, min(len(a.samples), len(b.samples)))
    return row


def set_ratio(row: Row, found: Ratio, count: int, samples: Iterable[float] = ()) -> None:
    row.samples = list(samples) or [found.value]
    row.computed = Estimate(found.value, found.low, found.high, min(row.samples), max(row.samples), count, found.confidence)
    row.facts["p"] = found.p


def ratio_of(a: Sequence[float], b: Sequence[float], slack: float) -> Ratio | None:
    """Of many samples the fast end, of few the middle."""
    return (fast_ends if min(len(a), len(b)) >= MANY else two_sample)(a, b, slack)


def like(a: Row, b: Row) -> list[tuple[list[float], list[float]]]:
    """Speeds of a and of b to compare, from the machine in like states: those beside which the limit was what both have
    seen at its best. Where they never saw it alike, all of them, once as they are and once as shares of the limit, for the
    truth lies between. None where there are too few."""
    ours, theirs = _speeds(a), _speeds(b)
    if min(len(ours), len(theirs)) < FEWEST:
        return []
    whole = [([speed for speed, _ in ours], [speed for speed, _ in theirs])]
    limits = [[limit for _, limit in side if limit] for side in (ours, theirs)]
    if min(map(len, limits)) < FEWEST:
        return whole
    best = min(quantile(side, 0.9) for side in limits)
    picked = [[speed for speed, limit in side if limit and abs(math.log(limit / best)) <= LIKE] for side in (ours, theirs)]
    if min(map(len, picked)) >= FEWEST:
        return [(picked[0], picked[1])]
    shares = [[speed / limit for speed, limit in side if limit] for side in (ours, theirs)]
    return whole + [(shares[0], shares[1])]


def _speeds(row: Row) -> list[tuple[float, float | None]]:
    """(speed, the limit beside it) of each sample during which nobody else was at work, if such are enough."""
    limits = row.limit.samples if row.limit else []
    every = [(sample if row.better == "more" or sample <= 0 else 1 / sample, limits[i] if i < len(limits) else None)
             for i, sample in enumerate(row.samples)]
    calm = _calm(row)
    picked = [entry for entry, is_calm in zip(every, calm) if is_calm] if sum(calm) >= FEWEST else every
    return [entry for entry in picked if entry[0] > 0]


def _calm(row: Row) -> list[bool]:
    others = row.others + [None] * len(row.samples)
    return [(others[i] or 0) <= noise.DISTURBED for i in range(len(row.samples))]


def _disturbed(row: Row) -> float:
    """What others had of the machine, where that cannot be left out."""
    return 0.0 if sum(_calm(row)) >= FEWEST else median([value or 0 for value in row.others] or [0])


def _hull(found: Sequence[Ratio | None]) -> Ratio | None:
    """One that says no more than all of them do."""
    known = [ratio for ratio in found if ratio is not None]
    if not known:
        return None
    value = math.exp(sum(math.log(ratio.value) for ratio in known) / len(known))
    low, high = min(ratio.low for ratio in known), max(ratio.high for ratio in known)
    agree = not low <= 1 <= high
    return Ratio(value, low, high, max(ratio.p for ratio in known) if agree or len(known) == 1 else 1.0,
                 min(ratio.confidence for ratio in known))


def judge(rows: Sequence[Row], tolerance: float) -> None:
    """Gives each row its verdict, by Holm's (1979) step-down: where many are compared, one has to stand out more."""
    known = sorted((row for row in rows if row.computed), key=lambda row: row.facts["p"])
    certain = True
    for place, row in enumerate(known):
        ratio = row.computed
        certain = certain and row.facts["p"] <= (1 - CONFIDENCE) / (len(known) - place)
        outside = not ratio.low <= 1 <= ratio.high
        if certain and outside and ratio.median < 1 - tolerance:
            row.facts["verdict"] = SLOWER
        elif certain and outside and ratio.median > 1 / (1 - tolerance):
            row.facts["verdict"] = FASTER
        else:
            row.facts["verdict"] = SAME
            unseen = max(1 - ratio.low, 1 - 1 / ratio.high)
            if unseen > max(2 * tolerance, 0.1):
                row.noise.append(f"too noisy to see a difference below {100 * unseen:.0f} %")
    for row in rows:
        if not row.computed and not row.failure:
            row.facts["verdict"] = TOO_FEW


def check(results: Results) -> None:
    """Raises LimitError where a row is slower than the tolerance allows."""
    slower = [row for row in results.rows if row.facts.get("verdict") == SLOWER]
    if slower:
        worst = min(slower, key=lambda row: row.computed.median)
        raise LimitError(f"{len(slower)} of {len(results.rows)} row{'s' * (len(results.rows) > 1)} slower by more than --tolerance"
                         f" {100 * results.settings['tolerance']:g}%: {words(worst.id)} by"
                         f" {100 * (1 - worst.computed.median):.1f}%")
