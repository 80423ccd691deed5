"""From samples to medians, ratios and shares of the machine's limits, as one table a question."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any, Iterable, Mapping

from genkit.bench.noise import DISTURBED
from genkit.bench.peers.measure import Results, Row
from genkit.bench.peers.workloads import Workload
from genkit.bench.report.numbers import number
from genkit.bench.report.tables import markdown_table


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "min": self.low, "max": self.high}


def spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(median(known), min(known), max(known)) if known else None


def paired(above: Iterable[float | None], below: Iterable[float | None]) -> Spread | None:
    """Of the quotients of the same round: a machine that drifts drifts for both."""
    return spread(a / b if a is not None and b else None for a, b in zip(above, below))


# ---- genkit beside the best peer -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the best peer a row of genkit's is; `among`: "4 bits", "all"."""

    row: str
    test: str
    among: str
    peer: str
    ratio: Spread


def best_peer(rows: Iterable[Row], test: Workload) -> Row | None:
    measured = [(spread(row.values.get(test.name, ())), row) for row in rows if not row.engine.is_genkit]
    measured = [(found, row) for found, row in measured if found]
    if not measured:
        return None
    choose = min if test.kind == "load" else max
    return choose(measured, key=lambda pair: pair[0].median)[1]


def ratios(results: Results) -> list[Ratio]:
    found = []
    for test in results.tests:
        for row in results.rows:
            if not row.engine.is_genkit or spread(row.values.get(test.name, ())) is None:
                continue
            bits = row.engine.bits
            for among, rows in ((f"{bits} bits", [r for r in results.rows if r.engine.bits == bits]),
                                ("all", results.rows)):
                peer = best_peer(rows, test)
                if peer is None:
                    continue
                ours, theirs = row.values[test.name], peer.values[test.name]
                ratio = paired(theirs, ours) if test.kind == "load" else paired(ours, theirs)
                if ratio:
                    found.append(Ratio(row.engine.name, test.name, among, peer.engine.name, ratio))
    return found


# ---- genkit beside the machine's limits ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """`reached` in `unit`, its `share` of what a loop that does nothing else reached in the same round, `limit`."""

    row: str
    test: str
    unit: str
    reached: Spread
    limit: Spread
    share: Spread


def bytes_a_second(test: Workload, work: Mapping[str, Any], rate: float) -> float:
    """Of weights, all of them once a step, and of keys and values at the depth of the middle of the test."""
    keys = test.sequences * (test.depth + test.tokens / 2)
    return rate / test.sequences * (work["weight_bytes"] + keys * work["kv_bytes"])


def operations_a_second(test: Workload, work: Mapping[str, Any], rate: float) -> float:
    """Of a prompt: every weight of the layers for every token, each key for every later query, the head once."""
    n = test.tokens
    seen = n * (n + 1) / 2
    return (2 * work["layer_weights"] * n + 2 * work["head_weights"] + 4 * work["attention_width"] * seen) * rate / n


def shares(results: Results) -> list[Share]:
    found = []
    for test in results.tests:
        for row in results.rows:
            if not row.work or test.kind == "load":
                continue
            prefill = test.kind == "prefill"
            limit = results.limits.get(f"{test.name} {row.work['kind'] if prefill else 'read'}", [])
            needed = operations_a_second if prefill else bytes_a_second
            reached = [None if rate is None else needed(test, row.work, rate) for rate in row.values.get(test.name, ())]
            share = paired(reached, limit)
            if share:
                unit = f"{row.work['kind']} TOP/s" if prefill else "GB/s"
                found.append(Share(row.engine.name, test.name, unit, spread(reached), spread(limit), share))
    return found


# ---- Markdown and JSON ---------------------------------------------------------------------------------------------


def shown(found: Spread | None, scale: float = 1.0) -> str:
    if found is None:
        return "-"
    return f"{number(found.median / scale)} ({number(found.low / scale)}-{number(found.high / scale)})"


def table(header: list[str], rows: list[list[str]]) -> str:
    return markdown_table(header, [[cell.replace("|", "/") for cell in row] for row in rows])


def disturbed_share(results: Results) -> float | None:
    """Of the turns counted, how many others disturbed."""
    known = [value for row in results.rows for values in row.disturbed.values() for value in values
             if value is not None]
    return sum(value > DISTURBED for value in known) / len(known) if known else None


def markdown(results: Results, facts: Mapping[str, Any], goal: float) -> str:
    parts = [f"# {facts['model']}: genkit and its peers", _about(results, facts), _measured(results),
             _ratio_table(results, goal), _share_table(results), _engine_table(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(results: Results, facts: Mapping[str, Any]) -> str:
    text = (f"{facts['date']}, {facts['processor']}, {facts['threads']} threads, {facts['rounds']} rounds in turn"
            + (f", instruction sets up to {facts['isa']}" if facts["isa"] else "")
            + ". Medians, least and most in brackets; tokens a second, for load seconds.")
    disturbed = disturbed_share(results)
    if disturbed is not None:
        text += f" Other processes had more than {DISTURBED:.0%} of the machine in {disturbed:.0%} of the turns."
    return text


def _measured(results: Results) -> str:
    rows = []
    for row in results.rows:
        cells = [shown(spread(row.values.get(test.name, ()))) for test in results.tests]
        notes = [row.failure] if row.failure else [f"{test}: {text}" for test, text in row.failures.items()]
        rows.append([row.engine.name, *cells, "; ".join(notes)])
    return table(["engine", *(test.name for test in results.tests), "what went wrong"], rows)


def _ratio_table(results: Results, goal: float) -> str:
    found = ratios(results)
    if not found:
        return ""
    rows = [[r.test, r.row, r.among, r.peer, shown(r.ratio), "met" if r.ratio.median >= goal else "missed"]
            for r in found]
    return ("Times as fast as the best peer, of the same round:\n\n"
            + table(["test", "engine", "among", "best peer", "ratio", f"goal {goal:g}"], rows))


def _share_table(results: Results) -> str:
    rows = []
    for s in shares(results):
        scale = 1e9 if s.unit == "GB/s" else 1e12
        rows.append([s.test, s.row, shown(s.reached, scale), shown(s.limit, scale), s.unit,
                     f"{s.share.median:.0%} ({s.share.low:.0%}-{s.share.high:.0%})"])
    parts = []
    if rows:
        parts += ["Beside the limits of the machine, measured in the same round by loops that do nothing else (bytes "
                  "of weights, keys and values read; multiplications and additions):",
                  table(["test", "engine", "reached", "limit", "unit", "share"], rows)]
    if results.limits_failure:
        parts.append(f"The limits of the machine could not be measured: {results.limits_failure}")
    return "\n\n".join(parts)


def _engine_table(results: Results) -> str:
    rows = []
    for row in results.rows:
        size, seconds = (f"{row.file['bytes'] / 1e6:.0f} MB", f"{row.file['seconds']:.1f} s") if row.file else ("", "")
        rows.append([row.engine.name, row.version, row.notes, size, seconds,
                     f"{row.memory / 1e6:.0f} MB" if row.memory else ""])
    return table(["engine", "version", "settings", "file", "written in", "peak memory"], rows)


def as_json(results: Results, facts: Mapping[str, Any], goal: float) -> dict[str, Any]:
    engines = [{
        "name": row.engine.name, "bits": row.engine.bits, "version": row.version, "notes": row.notes, "file": row.file,
        "peak_memory": row.memory, "work": row.work, "failure": row.failure or None, "failures": row.failures,
        "tests": {name: {"values": values, "disturbed": row.disturbed.get(name),
                         **(found.as_dict() if (found := spread(values)) else {})}
                  for name, values in row.values.items()},
    } for row in results.rows]
    return {
        **facts, "goal": goal, "disturbed": disturbed_share(results),
        "tests": {test.name: test.unit for test in results.tests}, "engines": engines, "limits": results.limits,
        "limits_failure": results.limits_failure or None,
        "ratios": [{"test": r.test, "engine": r.row, "among": r.among, "peer": r.peer, **r.ratio.as_dict(),
                    "met": r.ratio.median >= goal} for r in ratios(results)],
        "shares": [{"test": s.test, "engine": s.row, "unit": s.unit, "reached": s.reached.as_dict(),
                    "limit": s.limit.as_dict(), "share": s.share.as_dict()} for s in shares(results)],
    }
