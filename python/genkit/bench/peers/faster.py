"""How many times as fast as its peers genkit is, round by round: a machine that drifts drifts for both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Iterator

from genkit.bench.estimates import estimate

if TYPE_CHECKING:
    from genkit.bench.peers.measure import Contender
    from genkit.bench.peers.workloads import Workload


def agrees(contender: "Contender") -> bool:
    """Whether its answers were found to be genkit's; those of genkit's stored weights are what others are compared with."""
    if contender.failure and not any(row.samples for row in contender.rows.values()):
        return False
    engine = contender.engine
    return contender.agreement["agrees"] if contender.agreement else engine.is_genkit and engine.same


def ours(contender: "Contender", contenders: "Iterable[Contender]") -> "Contender | None":
    """Whom of genkit's it is compared with: the one that runs the very same file, else the usual one of its type."""
    found = [c for c in contenders if c.engine.is_genkit and c.engine.type == contender.engine.type and c is not contender]
    if contender.engine.is_genkit:
        found = [c for c in found if c.engine.usual and not contender.engine.usual]
    same = [c for c in found if c.engine.file is not None and c.engine.file == contender.engine.file]
    return next(iter(same + [c for c in found if c.engine.usual]), None)


def samples(mine: "Contender", theirs: "Contender", test: "Workload") -> list[float]:
    """Of each round that has both."""
    pairs = [(a, b) for a, b in zip(mine.values[test], theirs.values[test]) if a and b]
    return [b / a if test.kind == "load" else a / b for a, b in pairs]


def fill(contenders: "list[Contender]", tests: "list[Workload]") -> None:
    """Row.facts["ratio"] of each peer that agrees: genkit's speed over its own."""
    for theirs in contenders:
        mine = ours(theirs, contenders)
        if mine is None or not (agrees(mine) and agrees(theirs)):
            continue
        for test in tests:
            found = samples(mine, theirs, test)
            if found:
                theirs.rows[test].facts["ratio"] = {"of": mine.engine.name, **estimate(found).as_dict(), "samples": found}


def missed(rows: "Iterable[Any]", goal: float) -> "Iterator[str]":
    """Of each of genkit's rows whose best peer leaves it below `goal`, in words."""
    least: "dict[tuple[Any, ...], tuple[float, Any]]" = {}
    for row in rows:
        ratio = row.facts.get("ratio")
        if ratio:
            key = (ratio["of"], row.id["test"], row.id["batch"])
            least[key] = min(least.get(key, (float("inf"), row)), (ratio["median"], row), key=lambda pair: pair[0])
    for (name, test, batch), (ratio, row) in least.items():
        if not ratio >= goal:
            yield f"{name} is {ratio:.3g} times as fast as {row.id['engine']} at {test}" + (f" of {batch}" if batch > 1 else "")
