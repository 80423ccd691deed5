"""`python -m genkit.bench.peers MODEL_FOLDER`: genkit and its peers, side by side in one run."""

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Callable, Iterator, Optional

import typer

from genkit.bench.peers import engines, files, workloads
from genkit.cli.failure import enable_traceback, report
from genkit.cli.help import GroupedCommand
from genkit.cli.terminal import console, stderr_is_terminal
from genkit.errors import ResourceError, UsageError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command(cls=GroupedCommand)
def compare(
    model: Annotated[Path, typer.Argument(metavar="MODEL_FOLDER", show_default=False, help="A Hugging Face folder.")],
    threads: Annotated[
        Optional[int], typer.Option("-t", "--threads", metavar="N", show_default=False,
                                    help="Of every engine. Default: the processors this process may use.")
    ] = None,
    engine_names: Annotated[
        str, typer.Option("--engines", metavar="LIST", help="Names or families with commas, or all.")
    ] = engines.DEFAULT,
    test_names: Annotated[
        str, typer.Option("--tests", metavar="LIST",
                          help="prefillN, decodeN, decodeN@DEPTH, batchB, batchBxN@DEPTH and load, with commas.")
    ] = workloads.DEFAULT,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", help="Rounds that count, after one that does not.")
    ] = 5,
    goal: Annotated[
        float, typer.Option("--goal", metavar="R", help="How many times as fast as the best peer genkit is to be.")
    ] = 1.0,
    isa: Annotated[
        Optional[str], typer.Option("--isa", metavar="avx2", show_default=False,
                                    help="Cap the instruction set of every engine. llama.cpp needs a build for it.")
    ] = None,
    python: Annotated[
        Optional[list[str]],
        typer.Option("--python", metavar="FAMILY=PATH", show_default=False,
                     help="The Python of the environment an engine is installed in; may be given again.")
    ] = None,
    work: Annotated[
        Optional[Path], typer.Option("--work", metavar="DIR", show_default=False,
                                     help="For the weights in every engine's form. Default: in the user's cache.")
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", metavar="SECONDS", help="How long to wait for a quiet machine before a turn.")
    ] = 10.0,
    retries: Annotated[
        int, typer.Option("--retries", metavar="N", help="How often a turn that others disturbed is tried again.")
    ] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every sample.")] = False,
    output: Annotated[
        Optional[Path], typer.Option("-o", "--output", metavar="FILE", show_default=False,
                                     help="Write to a file instead of standard output.")
    ] = None,
    traceback: Annotated[
        bool,
        typer.Option("--traceback", is_eager=True, callback=enable_traceback, help="Show where an error came from."),
    ] = False,
) -> None:
    """Measure genkit and other engines on one model, in turns, each in its own process.

    Writes the weights as each engine wants them (once), then takes turns round by round. An engine that is missing or
    fails is a row that says so. pip install 'genkit[peers]' brings the engines.

    \b
    python -m genkit.bench.peers Llama-3.2-1B -o table.md
    python -m genkit.bench.peers Llama-3.2-1B --engines genkit-int4,llama-cpp-q4_0-fa --tests prefill512,decode128
    """
    import datetime
    import json

    from genkit import checkpoints, machine
    from genkit.bench.peers import report as reports
    from genkit.bench.peers.measure import Comparison, Settings
    from genkit.checks import whole_number
    from genkit.engine import choose_threads
    from genkit.models import read_model_config

    chosen, tests = engines.choose(engine_names), workloads.parse_all(test_names)
    if isa is not None and isa not in engines.ISA:
        raise UsageError(f"--isa {isa}: expected {', '.join(engines.ISA)}")
    if not 0 <= patience < float("inf") or not 0 < goal < float("inf"):
        raise UsageError("--patience is 0 or more and --goal above 0")
    fields = checkpoints.read_config(model)
    with checkpoints.open_checkpoint(model) as checkpoint:
        vocabulary = read_model_config(fields, checkpoint).vocab_size
    settings = Settings(
        model.resolve(), vocabulary, choose_threads(threads), whole_number("rounds", rounds, 1, 1000), isa,
        dict(map(parse_python, python or [])), patience, whole_number("retries", retries, 0, 100))
    folder = files.WorkFolder((work or files.default_folder(model)).resolve(), model)
    facts = {"model": model.resolve().name, "date": datetime.date.today().isoformat(),
             "processor": machine.processor_name(), "threads": settings.threads, "rounds": settings.rounds, "isa": isa}
    comparison = Comparison(settings, chosen, tests, folder)
    try:
        with progress() as comparison.tell:
            comparison.run()
    finally:  # what an interrupted run has measured is worth having
        if any(row.values or row.failure for row in comparison.results.rows):
            if as_json:
                write(json.dumps(reports.as_json(comparison.results, facts, goal), indent=1) + "\n", output)
            else:
                write(reports.markdown(comparison.results, facts, goal), output)


def write(text: str, output: Optional[Path]) -> None:
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{output}: cannot be written: {error.strerror}") from None


def parse_python(text: str) -> tuple[str, str]:
    """"llama-cpp=/path/to/python" -> ("llama_cpp", "/path/to/python")"""
    name, _, path = text.partition("=")
    families = {engines.family_name(engine): engine.family for engine in engines.ENGINES.values()}
    if name not in families or not path:
        raise UsageError(f"--python {text!r}: expected FAMILY=PATH with one of {', '.join(sorted(families))}")
    return families[name], path


@contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """A line and a bar on standard error where that is a terminal, nothing elsewhere."""
    if not stderr_is_terminal():
        yield lambda text, share: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns: list[Any] = [BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False)]
    with Progress(*columns, console=console(), transient=True) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda text, share: bars.update(task, description=text, completed=share)


if __name__ == "__main__":
    try:
        code = app(standalone_mode=False, prog_name="python -m genkit.bench.peers")
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        code = report(error)
    sys.exit(code if isinstance(code, int) else 0)
