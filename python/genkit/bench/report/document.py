"""What is shown of a result, whatever the form: a table with what is said around it, charts, and the numbers in full."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from genkit.bench.report.charts import Chart, charts
from genkit.bench.report.tables import Table, head, notes, table_of
from genkit.bench.results import Results, Row


@dataclass
class Document:
    """head: names and values above the table; notes: below it. whole: its JSON; lines: its JSON lines; records: its CSV,
    a dict of groups of names and values a line."""

    title: str
    head: list[tuple[str, str]]
    table: Table
    notes: list[str]
    charts: list[Chart]
    whole: dict[str, Any]
    lines: list[dict[str, Any]]
    records: list[dict[str, dict[str, Any]]] = field(default_factory=list)


def document(results: Results) -> Document:
    whole = results.as_dict()
    run = {name: value for name, value in whole.items() if name != "rows"}
    return Document(f"genkit bench {results.kind}", head(results), table_of(results), notes(results), charts(results), whole,
                    [run | {"row": row} for row in whole["rows"]], [_record(results, row) for row in results.rows])


def _record(results: Results, row: Row) -> dict[str, dict[str, Any]]:
    machine = results.machine
    facts = {name: value for name, value in row.facts.items() if not isinstance(value, (dict, list))}
    run = {"noise": "; ".join(row.noise), "failure": row.failure, "kind": results.kind, "complete": results.complete,
           "date": machine.get("date"), "processor": machine.get("processor"),
           "genkit": (machine.get("versions") or {}).get("genkit")}
    return {"id": row.id, "row": measured_numbers(row), "facts": facts, "run": run}


def measured_numbers(row: Row) -> dict[str, Any]:
    found, share = row.estimate, row.share
    limit = [value for value in row.limit.samples if value is not None] if row.limit else []
    others = [value for value in row.others if value is not None]
    return {
        "unit": row.unit, "better": row.better, "median": found and found.median, "low": found and found.low,
        "high": found and found.high, "min": found and found.minimum, "max": found and found.maximum,
        "confidence": found and found.confidence, "samples": found.count if found else 0,
        "share": share and share.median, "share_low": share and share.low, "share_high": share and share.high,
        "limit_of": row.limit and row.limit.of, "limit_unit": row.limit and row.limit.unit,
        "limit": median(limit) if limit else None, "others": median(others) if others else None,
    }
