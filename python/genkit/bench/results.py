"""What a benchmark found, in memory and as a file: `Results` of rows, whatever the command. docs/bench.md has the schema.

A measuring function fills a Results it was given, row by row and sample by sample, so that what an interrupted run has
measured is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genkit.bench.estimates import Estimate, estimate
from genkit.errors import BadFileError

SCHEMA = 1
KINDS = ("models", "limits", "kernels", "against", "compare", "latency")


@dataclass
class Limit:
    """What bounds a row, measured beside each of its samples: `of` is "read" or a kind of arithmetic ("int8", "bf16",
    "f32"), `unit` "B/s" or "op/s". An entry a sample, None where it could not be measured."""

    of: str
    unit: str
    samples: list[float | None] = field(default_factory=list)


@dataclass
class Row:
    """One thing measured. `id` says what, in the order people read it; two rows with the same id measure the same.

    samples are in `unit` ("tokens/s", "B/s", "op/s", "s", "B"); better: "more" or "less". shares: of the limit, an entry a
    sample; others: what other processes had of the machine meanwhile, 1 for all of it. facts: numbers and words beside it,
    the same in every run of one kind (bytes_per_token, peak_memory, tier, ...). noise: why not to trust it. failure: why
    there is nothing. computed: the estimate, where it is not the median of the samples (a ratio of two runs).
    """

    id: dict[str, Any]
    unit: str
    better: str = "more"
    samples: list[float] = field(default_factory=list)
    shares: list[float | None] = field(default_factory=list)
    others: list[float | None] = field(default_factory=list)
    limit: Limit | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    noise: list[str] = field(default_factory=list)
    failure: str = ""
    computed: Estimate | None = None

    @property
    def estimate(self) -> Estimate | None:
        return self.computed or estimate(self.samples)

    @property
    def share(self) -> Estimate | None:
        return estimate(self.shares)

    @property
    def key(self) -> tuple[tuple[str, Any], ...]:
        return tuple(self.id.items())

    def as_dict(self) -> dict[str, Any]:
        found, share = self.estimate, self.share
        made: dict[str, Any] = {"id": self.id, "unit": self.unit, "better": self.better,
                                **(found.as_dict() if found else {"median": None}), "samples": self.samples}
        if self.limit is not None:
            limit = estimate(self.limit.samples)
            made["limit"] = {"of": self.limit.of, "unit": self.limit.unit, "median": limit and limit.median,
                             "samples": self.limit.samples}
            made["share"] = share and share.as_dict() | {"samples": self.shares}
        if self.computed is not None:
            made["computed"] = {"count": self.computed.count}
        return made | {"others": self.others, "facts": self.facts, "noise": self.noise, "failure": self.failure or None}


@dataclass
class Results:
    """Of one run of one command. machine: machine.py's facts, from `machine_facts`. settings: what was asked for. notes: of
    the run as a whole. complete: false after Ctrl-C."""

    kind: str
    machine: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {"genkit_bench": SCHEMA, "kind": self.kind, "complete": self.complete, "machine": self.machine,
                "settings": self.settings, "notes": self.notes, "rows": [row.as_dict() for row in self.rows]}


def machine_facts() -> dict[str, Any]:
    """The head of every result: what the machine is, what may be used of it, and how busy it is now. Sizes in bytes."""
    import datetime
    import os
    import platform

    import numpy

    import genkit
    from genkit import _core, machine

    try:
        load: "list[float] | None" = [round(value, 2) for value in os.getloadavg()]
    except OSError:
        load = None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "processor": machine.processor_name(),
        "logical_processors": os.cpu_count(),
        "usable_processors": machine.available_threads(),
        "cgroup": machine.cgroup_limits(),
        "memory": {"total": machine.memory_total(), "available": machine.memory_available()},
        "tier": _core.current_tier(),
        "load_average": load,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {"genkit": genkit.__version__, "python": platform.python_version(), "numpy": numpy.__version__},
    }


def read_results(path: Path) -> Results:
    """A file written by -o FILE.json or --json. Raises BadFileError for anything else."""
    from genkit.checkpoints.files import shown, shown_path

    where = shown_path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFileError(f"{where}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise BadFileError(f"{where}: not a JSON file; expected what genkit bench -o FILE.json writes") from None
    try:
        return parse_results(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"no {error.args[0]!r} in it" if isinstance(error, KeyError) else str(error)
        raise BadFileError(f"{where}: not a result of genkit bench: {shown(why, 100)}") from None


def parse_results(data: Any) -> Results:
    """The same of parsed JSON. Raises ValueError, KeyError, TypeError or AttributeError where it is none."""
    if not isinstance(data, dict) or "genkit_bench" not in data:
        raise ValueError("no genkit_bench in it")
    if data["genkit_bench"] != SCHEMA:
        raise ValueError(f"its schema is {data['genkit_bench']!r}, this genkit reads {SCHEMA}")
    if data["kind"] not in KINDS:
        raise ValueError(f"its kind is {data['kind']!r}")
    rows = [_row(entry) for entry in data["rows"]]
    return Results(data["kind"], dict(data["machine"]), dict(data["settings"]), rows, [str(n) for n in data["notes"]],
                   bool(data["complete"]))


def _row(entry: dict[str, Any]) -> Row:
    if entry["better"] not in ("more", "less"):
        raise ValueError(f"better is {entry['better']!r}")
    limit, share = entry.get("limit"), entry.get("share")
    samples = [_number(value) for value in entry["samples"]]
    if None in samples:
        raise ValueError("a sample is null")
    row = Row(dict(entry["id"]), str(entry["unit"]), entry["better"], samples)
    hash(row.key)  # ids are plain values
    row.shares = [_number(value) for value in (share or {}).get("samples", [])]
    row.others = [_number(value) for value in entry["others"]]
    row.limit = limit and Limit(str(limit["of"]), str(limit["unit"]), [_number(value) for value in limit["samples"]])
    row.facts, row.noise = dict(entry["facts"]), [str(word) for word in entry["noise"]]
    row.failure = str(entry["failure"] or "")
    if entry.get("computed"):
        row.computed = Estimate(*(float(entry[name]) for name in ("median", "low", "high", "min", "max")),
                                int(entry["computed"]["count"]), float(entry["confidence"]))
    return row


def _number(value: Any) -> float | None:
    """Of JSON, which in Python may be infinite, or longer than any float."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return value
