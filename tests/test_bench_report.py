"""How results are shown: tables that hold whatever names hold, files that are whole or not there, charts, histories."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from genkit.bench.estimates import estimate
from genkit.bench.report import charts as charting
from genkit.bench.report.charts import charts
from genkit.bench.report.document import document
from genkit.bench.report.drawing import Box, Line, Mark, Words, drawing
from genkit.bench.report.files import OUTPUTS, check_file, check_plot, replace
from genkit.bench.report.history import append, changed, check_history, history_document, read_history, tracks
from genkit.bench.report.numbers import clean, measured, percent, scale
from genkit.bench.report.scales import marks, span
from genkit.bench.report.svg import svg
from genkit.bench.report.tables import Footnotes
from genkit.bench.report.text import plain, rich_lines
from genkit.bench.results import Limit, Results, Row, parse_results
from genkit.cli.bench.show import Report
from genkit.errors import BadFileError, ResourceError, UsageError

HOSTILE = "=<b>\"x'|y&z\x1b[31m\n,$\\_\u202e\udc80"
MACHINE = {"date": "2026-11-27T10:16:17+00:00", "processor": "Example <1> CPU", "logical_processors": 4, "usable_processors": 2,
           "cgroup": {"processors": 1.5, "memory": 2**31}, "memory": {"total": 2**34, "available": 2**33}, "tier": "avx2",
           "load_average": [0.5, 0.25, 0.1], "system": "Linux", "versions": {"genkit": "0.1.0", "numpy": "2.0"}}


def row(middle: float, test: str = "tg128", **fields) -> Row:
    """Of a model: five samples, 2 % apart, at 80 % of a limit."""
    samples = [middle * factor for factor in (0.98, 1.02, 1.0, 0.99, 1.01)]
    made = {"model": "m", "type": "int8", "device": "cpu", "threads": 2, "batch": 1} | fields
    facts = {"bytes_per_token": 1e9, "operations_per_token": 2e9, "peak_memory": 3 << 29, "tier": "avx2", "load_s": 1.5}
    limit = Limit("read", "B/s", [1.25e9 * middle] * 5)
    return Row(made | {"test": test}, "tokens/s", "more", samples, [0.8] * 5, [0.0] * 5, limit, facts)


def results(*rows: Row, kind: str = "models", **fields) -> Results:
    return Results(kind, dict(MACHINE), {"repeat": 5}, list(rows), **fields)


def hostile() -> Results:
    bad = row(30.0, model="other")
    bad.samples, bad.shares, bad.failure = [], [], f"needs memory {HOSTILE}"
    noisy = row(12.5, model=HOSTILE)
    noisy.noise = [f"a spread of 12 % {HOSTILE}", "others had 30 %"]
    return results(row(41.9), noisy, bad, notes=[HOSTILE])


# ---- Numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit, values, factor, name", [
    ("B/s", [41.9e9, 900e9], 1e9, "GB/s"), ("op/s", [3e12, 1e12], 1e12, "TOP/s"), ("op/s", [3e12, 5e9], 1e9, "GOP/s"),
    ("s", [0.0123, 0.5], 1e-3, "ms"), ("s", [2e-6], 1e-6, "µs"), ("s", [3.0], 1.0, "s"), ("B", [3e6], 1e6, "MB"),
    ("tokens/s", [1e6], 1.0, "tokens/s"), ("B/s", [], 1.0, "B/s"), ("B/s", [0.0], 1.0, "B/s"), ("ratio", [5000.0], 1.0, "ratio")])
def test_a_unit_gets_the_prefix_that_fits_the_smallest(unit, values, factor, name):
    assert scale(unit, values) == (factor, name)


def test_a_value_is_shown_with_the_farther_end_of_its_interval():
    assert measured(estimate([10, 10.1, 9.9, 9.5, 10.2]), "tokens/s") == "10.0 ±5.0 %"
    assert measured(estimate([10.0]), "tokens/s") == "10.0"
    assert measured(estimate([1.0, 1.1, 0.9, 1.0, 1.0]), "ratio") == "1.00 (0.900-1.10)"
    assert [percent(0.623), percent(0.0123), percent(0.0996), percent(0)] == ["62 %", "1.2 %", "10 %", "0.0 %"]


def test_names_are_shown_on_one_line_that_commands_nothing():
    assert clean("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e" and clean("ü 漢") == "ü 漢"
    assert (clean(None), clean(True), clean(512), clean(0.5)) == ("", "yes", "512", "0.500")


# ---- Tables --------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_every_column_every_reason_and_no_escape_code():
    text = plain(document(hostile()))
    assert "\x1b" not in text and "\u202e" not in text
    for part in ("Example <1> CPU", "2 usable of 4, cgroup allows 1.5", "8.0 GiB available of 16.0 GiB, cgroup allows 2.0 GiB", "avx2",
                 "genkit 0.1.0, numpy 2.0", "0.5 0.25 0.1", "2026-11-27 10:16:17 UTC", "in all rows: device cpu, batch 1"):
        assert part in text
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("model "))
    title, first, second, third = lines[start:start + 4]
    for name in ("type", "threads", "test", "tokens/s", "share of limit", "MB/token", "peak memory", "tier", "notes"):
        assert name in title
    assert re.search(r"m +int8 +2 +tg128 +41\.9 ±2\.0 % +80 % read +52\.4 GB/s +1000 +1\.5 GiB +avx2$", first)
    assert clean(HOSTILE) in second and second.endswith(f"a spread of 12 % {clean(HOSTILE)}; others had 30 %")
    assert " failed " in third and third.endswith(f"failed: needs memory {clean(HOSTILE)}")
    assert lines[-1] == clean(HOSTILE)
    ends = {line.index("tg128") for line in (first, second, third)}
    assert len(ends) == 1  # under one another


def rendered(made, width: int, unicode: bool = True) -> str:
    from rich.console import Console

    screen = Console(width=width, file=io.StringIO(), markup=False, emoji=False, highlight=False)
    for line in rich_lines(made, width, unicode):
        screen.print(line)
    return screen.file.getvalue()


def test_a_narrow_terminal_loses_the_least_important_columns_and_says_so():
    made = document(results(row(41.9), row(80.0, type="int4"), row(900.0, "pp512")))
    made.table.columns[-1].cells = ["avx2", "amx", "amx"]
    wide, middle, narrow = (rendered(made, width) for width in (140, 78, 40))
    assert all(len(line) <= width for text, width in ((wide, 140), (middle, 78), (narrow, 40)) for line in text.splitlines())
    for name in ("MB/token", "peak memory", "tier", "limit"):
        assert name in wide
    assert "no room for" not in wide and "████████░░ 80 % read" in wide
    assert "████████░░ 80 % read" in middle and "no room for" in middle and "tier" in middle.partition("no room for")[2]
    assert "█" not in narrow
    for text in (wide, middle, narrow):
        for cell in ("int4", "pp512", "41.9 ±2.0 %"):
            assert cell in text
    assert "####" in rendered(made, 140, unicode=False) and "█" not in rendered(made, 140, unicode=False)


def test_long_names_take_several_lines_and_numbers_stay_whole():
    made = document(results(row(41.9, model="/models/" + 70 * "x"), row(80.0, model="漢字" * 30)))
    made.table.columns[5].cells[1] = "50 % read"
    for width in (100, 60, 34):
        text = rendered(made, width)
        assert all(len(line) + sum(ord(letter) > 0x3000 for letter in line) <= width for line in text.splitlines())
        assert "41.9 ±2.0 %" in text and text.count("x") >= 70 and text.count("漢") == 30
    assert "80 % read" in rendered(made, 60) and "no room for share of limit" in rendered(made, 34).replace("\n", " ")


def test_a_terminal_gets_no_escape_codes_of_others_and_footnotes():
    text = rendered(document(hostile()), 140)
    assert "\x1b" not in text and "\u202e" not in text
    assert re.search(r"1: a spread of 12 %", text) and re.search(r"2: others had 30 %", text) and re.search(r"3: failed: needs", text)


def test_footnotes_that_differ_in_percentages_are_one():
    notes = Footnotes()
    assert [notes.of(texts) for texts in (["others had 82% of it", "odd"], ["odd"], [], ["others had 7.5% of it", "others had 90% of it"],
                                          ["needs 4 GiB"], ["needs 5 GiB"])] == ["1,2", "2", "", "1", "3", "4"]
    assert notes.lines == ["1: others had 7.5-90% of it", "2: odd", "3: needs 4 GiB", "4: needs 5 GiB"]


def test_an_interrupted_run_and_an_empty_one_say_so():
    assert "interrupted" in plain(document(results(row(1.0), complete=False)))
    assert "nothing was measured" in plain(document(results()))
    assert rendered(document(results()), 80)


def test_units_that_differ_stand_at_each_value():
    made = results(Row({"what": "read", "bytes": 4096}, "B/s", samples=[12e9]), Row({"what": "barrier"}, "s", "less", [1.5e-6, 1.5e-6]),
                   Row({"what": "tg128"}, "ratio", samples=[1.5, 1.5]), kind="limits")
    text = plain(document(made))
    for part in ("12.0 GB/s", "1.50 µs ±0.0 %", "1.50 (1.50-1.50)", "4 KiB"):
        assert part in text


# ---- Files ---------------------------------------------------------------------------------------------------------


def test_markdown_is_a_table_whatever_the_names_hold():
    text = OUTPUTS[".md"](document(hostile()))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 5 and len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "\x1b" not in text and not re.search(r"(?<!\\)<b", text)


def test_csv_has_the_numbers_in_full_and_no_formula():
    made = hostile()
    records = list(csv.DictReader(io.StringIO(OUTPUTS[".csv"](document(made)))))
    assert len(records) == 3 and all(None not in record for record in records)
    found = made.rows[0].estimate
    assert [float(records[0][name]) for name in ("median", "low", "high", "share")] == [found.median, found.low, found.high, 0.8]
    assert records[1]["model"] == "'" + clean(HOSTILE) and records[0]["threads"] == "2" and records[2]["median"] == ""
    assert records[2]["failure"] == clean(made.rows[2].failure) and records[0]["peak_memory"] == str(3 << 29)
    assert not any(value[:1] in "=+@" and value for record in records for value in record.values())


def test_csv_tells_names_of_two_groups_apart():
    made = Row({"what": "gemm", "kind": "int8", "unit": "x"}, "op/s", samples=[1.0], facts={"kind": "amx"})
    record = next(csv.DictReader(io.StringIO(OUTPUTS[".csv"](document(results(made, kind="limits"))))))
    assert (record["kind"], record["unit"], record["row.unit"], record["facts.kind"], record["run.kind"]) == (
        "int8", "x", "op/s", "amx", "limits")


def test_json_reads_back_and_every_json_line_stands_alone():
    made = hostile()
    assert parse_results(json.loads(OUTPUTS[".json"](document(made)))).as_dict() == made.as_dict()
    lines = [json.loads(line) for line in OUTPUTS[".jsonl"](document(made)).splitlines()]
    assert [line["row"]["id"] for line in lines] == [row.id for row in made.rows]
    assert all(line["machine"] == MACHINE and line["genkit_bench"] == 1 and line["kind"] == "models" for line in lines)
    made.rows[0].facts["odd"] = math.inf
    assert json.loads(OUTPUTS[".json"](document(made)), parse_constant=pytest.fail)["rows"][0]["facts"]["odd"] is None


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.seen, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "rect", "circle", "polyline", "polygon"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in ("circle", "polygon", "rect", "polyline"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_html_is_whole_and_self_contained():
    text = OUTPUTS[".html"](document(hostile()))
    page = Tags(text)
    assert page.open == [] and not any(name in ("script", "link", "img", "iframe") for name, _ in page.seen)
    assert not any(key in ("src", "href") or key.startswith("on") for _, attributes in page.seen for key in attributes)
    assert "url(" not in text and set(re.findall(r"https?://[^\"\s]+", text)) == {"http://www.w3.org/2000/svg"}
    assert sum(name == "b" for name, _ in page.seen) == 2  # the bars, and nothing a name has brought
    assert clean(HOSTILE) in page.texts and "prefers-color-scheme: dark" in text and "\x1b" not in text
    assert any(name == "svg" for name, _ in page.seen)


@pytest.mark.parametrize("name, said", [
    ("x.txt", "expected a name that ends in .md, .csv, .json, .jsonl, .html"), ("x", "expected"), ("-", "expected"),
    ("there.md", "exists already; --force"), ("folder.md", "no regular file"), ("missing/x.md", "cannot be written")])
def test_files_that_cannot_be_written_are_refused_before(tmp_path, name, said):
    (tmp_path / "there.md").write_text("mine")
    (tmp_path / "folder.md").mkdir()
    with pytest.raises((UsageError, ResourceError), match=re.escape(said)):
        check_file("-o", str(tmp_path / name), OUTPUTS, force=False)
    assert (tmp_path / "there.md").read_text() == "mine"
    assert check_file("-o", str(tmp_path / "there.md"), OUTPUTS, force=True).name == "there.md"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.md", "there.md"]


def test_a_link_stays_one_and_its_target_gets_the_file(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    path = check_file("-o", str(tmp_path / "link.csv"), OUTPUTS, force=True)
    replace(path, b"new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text() == "new"


SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_bench_report import *
from genkit.cli.bench.show import measured as measuring
from genkit.cli.failure import report as reported
from genkit.cli.output import flush_or_discard
try:
    {body}
except BaseException as error:
    code = reported(error)
else:
    code = 0
sys.exit(flush_or_discard(code))
"""


def run(body: str, **options) -> subprocess.CompletedProcess:
    script = SCRIPT.format(tests=os.path.dirname(__file__), body=body)
    return subprocess.run([sys.executable, "-c", script], text=True, timeout=120, stderr=subprocess.PIPE,
                          **{"stdout": subprocess.PIPE} | options)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "x.html").write_text("old")
    done = run(f"report = Report({str(tmp_path / 'x.html')!r}, None, None, True, False);"
               " resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); report.show(results(row(41.9)))")
    assert done.returncode == 4 and "x.html" in done.stderr and done.stderr.count("\n") == 1
    assert "41.9" in done.stdout  # shown all the same
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"] and (tmp_path / "x.html").read_text() == "old"


def test_a_reader_that_has_gone_does_not_cost_the_file(tmp_path):
    end, other = os.pipe()
    os.close(end)
    done = run(f"Report({str(tmp_path / 'x.json')!r}, None, None, False, False).show(results(row(41.9)))", stdout=other)
    os.close(other)
    assert done.returncode == 141 and done.stderr == ""
    assert json.loads((tmp_path / "x.json").read_text())["rows"][0]["unit"] == "tokens/s"


def test_ctrl_c_shows_what_there_is(tmp_path):
    body = """found = results()
    with measuring(found, Report({!r}, None, None, False, False)):
        found.rows.append(row(41.9))
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()""".format(str(tmp_path / "x.json"))
    done = run(body)
    assert done.returncode == 130 and done.stderr == "" and "41.9 ±2.0 %" in done.stdout and "interrupted" in done.stdout
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["complete"] is False and len(written["rows"]) == 1


def test_ctrl_c_before_anything_was_measured_replaces_no_file(tmp_path):
    (tmp_path / "x.json").write_text("old")
    done = run("with measuring(found := results(), Report({!r}, None, None, True, False)): os.kill(os.getpid(), signal.SIGINT)".format(
        str(tmp_path / "x.json")))
    assert done.returncode == 130 and "nothing was measured" in done.stdout and (tmp_path / "x.json").read_text() == "old"


def test_output_of_an_ascii_terminal_is_ascii():
    done = run("Report(None, None, None, False, False).show(hostile())", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.isascii() and "41.9 +-2.0 %" in done.stdout


# ---- Charts --------------------------------------------------------------------------------------------------------


def test_throughput_is_drawn_against_what_varies():
    rows = [row(100 / (1 + d / 1000) * b, f"tg128 @ d{d}" if d else "tg128", batch=b) for d in (0, 512, 4096) for b in (1, 4)]
    depth, batch, roof = charts(results(*rows))
    assert (depth.title, batch.title, roof.title) == ("tg128: throughput against depth", "tg128: throughput against batch", "Roofline")
    assert [(series.name, [point.x for point in series.points]) for series in depth.series] == [
        ("batch 1", [0, 512, 4096]), ("batch 4", [0, 512, 4096])]
    assert [series.name for series in batch.series] == ["depth 0", "depth 512", "depth 4096"]
    first = depth.series[0].points[0]
    assert (first.y, first.low, first.high) == pytest.approx((100, 98, 102))


def test_the_roofline_places_a_row_by_its_work_and_the_roof_by_what_was_measured():
    prompt = row(900.0, "pp512")
    prompt.facts |= {"bytes_per_token": 1e6}
    prompt.limit = Limit("int8", "op/s", [4e12] * 3)
    chart = charts(results(row(10.0), prompt))[-1]
    roofs = {series.name: series.points for series in chart.series if not series.marked}
    assert list(roofs) == ["read 12.5 GB/s", "int8 4000 GOP/s"]
    slope, flat = roofs.values()
    assert all(point.y == pytest.approx(12.5 * point.x) for point in slope)
    assert slope[-1].x == pytest.approx(4000 / 12.5) == flat[0].x
    [measured] = [series for series in chart.series if series.marked]
    assert [(point.x, point.y) for point in measured.points] == [pytest.approx((2, 20)), pytest.approx((2000, 1800))]


def test_a_cache_has_a_roof_of_its_own():
    small = row(10.0, model="small")
    small.limit = Limit("read", "B/s", [200e9] * 3)
    near = row(10.3, model="near")
    chart = charts(results(row(10.0), small, near))[-1]
    assert [series.name for series in chart.series if not series.marked] == ["read 12.7 GB/s", "read 200 GB/s"]
    assert [series.name for series in chart.series if series.marked] == ["m", "small", "near"]


def test_kernels_are_placed_by_what_a_call_does():
    facts = {"bytes": 1000, "operations": 4000}
    rows = [Row({"kernel": "gemv", "case": case, "tier": "amx", "threads": 1}, unit, samples=[8e9], facts=facts) for case, unit in (
        ("a", "B/s"), ("b", "op/s"))]
    roof, *others = charts(results(*rows, kind="kernels"))
    assert [(point.x, point.y, point.name) for point in roof.series[-1].points] == [(4, 32, "a"), (4, 8, "b")]
    assert [chart.title for chart in others] == ["gemv, a, amx, 1 thread: GB/s", "gemv, b, amx, 1 thread: GOP/s"]


def test_limits_are_drawn_against_their_working_sets_and_the_rest_as_bars():
    reads = [Row({"what": "read", "bytes": 2**e, "threads": t}, "B/s", samples=[t * 1e10]) for e in (14, 20, 30) for t in (1, 2)]
    other = Row({"what": "barrier", "threads": 2}, "s", "less", [1e-6])
    curve, bar = charts(results(*reads, other, kind="limits"))
    assert {series.name: [point.x for point in series.points] for series in curve.series} == {
        "1 thread": [2**14, 2**20, 2**30], "2 threads": [2**14, 2**20, 2**30]}
    assert curve.x.log and bar.bars and bar.title == "barrier, 2 threads: µs"


def test_ratios_have_a_line_at_one():
    rows = [Row({"peer": peer, "test": "tg128"}, "ratio", samples=[value, value]) for peer, value in (("a", 1.2), ("b", 0.9))]
    [chart] = charts(results(*rows, kind="against"))
    assert chart.reference == 1.0 and chart.y.names == ["a", "b"] and [point.x for point in chart.series[0].points] == [1.2, 0.9]
    peer = row(20.0, engine="other")
    peer.facts["ratio"] = {"of": "ours", "samples": [2.0, 2.1, 1.9]}
    ratio, speeds = charts(results(row(40.0, engine="ours"), peer, kind="against"))
    assert ratio.reference == 1.0 and ratio.series[0].points[0].x == 2.0 and len(speeds.series[0].points) == 2


def test_times_stand_together_and_throughputs_by_test():
    rows = [Row({"model": "m", "test": test}, unit, samples=[value, value]) for test, unit, value in (
        ("cold", "s", 2.0), ("p95", "s", 0.01), ("pp512", "tokens/s", 900.0), ("tg128", "tokens/s", 40.0))]
    times, prompt, text = charts(results(*rows, kind="latency"))
    assert times.y.names == ["cold", "p95"] and times.x.log and prompt.title == "m, pp512: tokens/s" and text.title == "m, tg128: tokens/s"


@pytest.mark.parametrize("low, high, log", [(0, 18762, False), (0, 0.0031, False), (0, 97.3, False), (3, 5, False), (0.2, 3e4, True),
                                            (1, 16, True), (5, 6, True), (1e-7, 1e9, True)])
def test_axes_have_a_few_round_marks_and_hold_their_values(low, high, log):
    ends = span([low, high], log, from_zero=False)
    places = marks(*ends, log)
    assert ends[0] <= low and ends[1] >= high and 1 <= len(places) <= 11
    assert all(f"{place:.3g}" == f"{float(f'{place:.3g}'):.3g}" and ends[0] * 0.999 <= place <= ends[1] * 1.001 for place in places)
    assert all(float(f"{place:.2g}") == pytest.approx(place) for place in places)


def test_values_that_are_all_alike_or_zero_still_have_an_axis():
    for values in ([0.0], [5.0, 5.0], [-1.0]):
        for from_zero in (True, False):
            low, high = span(values, False, from_zero)
            assert low < high and low <= min(values) and high >= max(values)


def everything() -> "list[charting.Chart]":
    rows = [row(10.0 ** (d % 4) * b, f"tg128 @ d{d}", batch=b, model=HOSTILE, threads=t) for d in range(9) for b in (1, 16) for t in (1, 2)]
    return charts(results(*rows)) + charts(results(row(0.0), kind="kernels")) + charts(hostile())


def test_drawings_stay_on_their_paper_and_legends_off_the_data():
    drawn = drawing(everything())
    for item in drawn.items:
        places = item.points if isinstance(item, Line) else [(item.x, item.y)]
        places = places + [(item.x + item.width, item.y + item.height)] if isinstance(item, Box) else places
        assert all(0 <= x <= drawn.width and 0 <= y <= drawn.height for x, y in places), item
    for chart in everything():
        if not chart.bars:
            one = drawing([chart])
            grid = min(y for item in one.items if isinstance(item, Line) and item.colour == "grid" for _, y in item.points)
            legend = [item.y for item in one.items if isinstance(item, Words) and item.x > 40 and item.y < grid - 2 and item.size == 11]
            data = [item.y for item in one.items if isinstance(item, Mark) and item.told]
            assert not legend or max(legend) < min(data)


def test_svg_is_well_formed_whatever_the_names_hold():
    root = ElementTree.fromstring(svg(drawing(everything())))
    assert root.tag.endswith("svg") and "\x1b" not in "".join(root.itertext())
    assert {child.tag.rpartition("}")[2] for child in root} <= {"rect", "polyline", "circle", "polygon", "text"}


def test_nothing_measured_draws_nothing():
    assert charts(results()) == [] and "Nothing was measured" in svg(drawing([])) and drawing([]).height > 0


def test_a_png_without_matplotlib_is_refused_before_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'genkit\[plot\]'"):
        check_plot(str(tmp_path / "x.png"), force=False)
    assert check_plot(str(tmp_path / "x.svg"), force=False)


def test_a_png_is_drawn(monkeypatch):
    pytest.importorskip("matplotlib")
    from genkit.bench.report.png import png

    drawn = drawing(everything())
    data = png(drawn)
    monkeypatch.setattr("genkit.bench.report.png.TALLEST", 500)
    assert int.from_bytes(png(drawn)[20:24], "big") == pytest.approx(500, abs=1)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == pytest.approx((2 * drawn.width, 2 * drawn.height), abs=1)


# ---- Histories -----------------------------------------------------------------------------------------------------


def test_a_change_is_one_where_the_intervals_do_not_overlap():
    at = [estimate([middle * factor for factor in (0.98, 0.99, 1.0, 1.01, 1.02)]) for middle in (100, 103, 110)]
    assert changed(at[0], at[1], "more").significant is False
    faster, slower = changed(at[0], at[2], "more"), changed(at[0], at[2], "less")
    assert (faster.significant, faster.better, round(faster.share, 6)) == (True, True, 0.1) and slower.better is False
    assert changed(estimate([100.0]), estimate([200.0]), "more").significant is False  # nobody knows the noise of one


def test_a_history_tells_what_changed_from_run_to_run(tmp_path):
    path = tmp_path / "h.jsonl"
    for day, speed in ((1, 100.0), (2, 101.0), (3, 120.0)):
        made = results(row(speed), row(5.0, type="f32"))
        made.machine["date"] = f"2026-11-0{day}T00:00:00+00:00"
        append(path, made)
    elsewhere = results(row(500.0))
    elsewhere.machine["processor"] = "another"
    append(path, elsewhere)
    runs, warnings = read_history(path)
    assert len(runs) == 4 and warnings == []
    assert [len(track.runs) for track in tracks(runs)] == [3, 3, 1]
    made = history_document(runs, warnings)
    changes = next(column for column in made.table.columns if column.title == "change").cells
    assert changes == ["", "+1.0 % within the noise", "+19 % better", "", "+0.0 % within the noise", "+0.0 % within the noise", ""]
    assert [point.y for point in made.charts[0].series[0].points] == [100, 101, 120] and len(made.charts[0].series) == 3
    for suffix, write in OUTPUTS.items():
        assert "tg128" in write(made), suffix
    assert "+19 % better" in rendered(made, 160)


def test_a_damaged_line_is_told_and_left_out_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "h.jsonl"
    append(path, results(row(1.0)))
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"genkit_bench": 1, "kind": "mod')  # a run that was killed
    append(path, results(row(2.0)))
    runs, [warning] = read_history(path)
    assert [run.rows[0].estimate.median for run in runs] == [1.0, 2.0] and "line 2" in warning
    done = genkit("history", path)
    assert done.returncode == 0 and "line 2" in done.stderr and "2.00 tokens/s" in done.stdout


def test_a_history_holds_names_that_are_no_text(tmp_path):
    append(tmp_path / "h", hostile())
    [run], _ = read_history(tmp_path / "h")
    assert run.rows[1].id["model"] == HOSTILE
    done = run_in_ascii(tmp_path / "h")
    assert done.returncode == 0 and json.loads(done.stdout)["rows"][1]["id"]["model"] == HOSTILE


def run_in_ascii(path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "genkit", "bench", "history", str(path), "--json"], capture_output=True, text=True,
                          timeout=120, env=os.environ | {"PYTHONIOENCODING": "ascii"})


def test_runs_that_end_together_do_not_mix(tmp_path):
    path = tmp_path / "h.jsonl"
    body = f"[append(Path({str(path)!r}), results(*(row(float(n)) for n in range(1, 200)))) for _ in range(10)]"
    script = SCRIPT.format(tests=os.path.dirname(__file__), body=body)
    started = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    runs, warnings = read_history(path)
    assert len(runs) == 30 and warnings == []


def test_a_full_disk_leaves_a_history_as_it_was(tmp_path):
    path = tmp_path / "h.jsonl"
    append(path, results(row(1.0)))
    before = path.read_bytes()
    done = run(f"report = Report(None, None, {str(path)!r}, False, False);"
               f" resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 10},) * 2); report.show(results(row(2.0)))")
    assert done.returncode == 4 and "h.jsonl" in done.stderr and path.read_bytes() == before


def test_other_files_are_no_histories(tmp_path):
    (tmp_path / "notes.md").write_text("# Mine\n")
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="no history"):
        check_history(str(tmp_path / "notes.md"))
    with pytest.raises(ResourceError, match="folder"):
        check_history(str(tmp_path / "missing" / "h"))
    with pytest.raises(UsageError, match="no regular file"):
        check_history(str(tmp_path))
    assert check_history(str(tmp_path / "empty")) and check_history(str(tmp_path / "new")) and not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="would replace"):
        Report(str(tmp_path / "x.json"), None, str(tmp_path / "x.json"), False, False)
    with pytest.raises(BadFileError, match="no run in it"):
        read_history(tmp_path / "notes.md")


def genkit(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "genkit", "bench", *map(str, arguments)], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL)


def test_the_command_shows_writes_and_draws_a_history(tmp_path):
    path = tmp_path / "h.jsonl"
    for speed in (1.0, 2.0):
        append(path, results(row(speed)))
    done = genkit("history", path, "-o", tmp_path / "h.html", "--plot", tmp_path / "h.svg", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["rows"][0]["runs"][1]["change"] == 1.0 and made["rows"][0]["runs"][1]["significant"] is True
    assert "+100 % better" in (tmp_path / "h.html").read_text() and ElementTree.parse(tmp_path / "h.svg")
    for arguments, code, said in (((path, "-o", tmp_path / "h.html"), 2, "--force"), ((tmp_path / "none",), 3, "none"),
                                  ((path, "-o", tmp_path / "no" / "h.md"), 4, "h.md"), ((path, "--plot", "x.pdf"), 2, ".svg, .png")):
        done = genkit("history", *arguments)
        assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""
