"""`genkit bench against`: the same weights in other engines, in turns."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from genkit.cli.bench import options
from genkit.cli.bench.show import Report, measured
from genkit.cli.terminal import step_bar
from genkit.cli.values import percent, real, whole
from genkit.errors import LimitError, UsageError

WHAT, HOW = "What to measure", "How"


def against(
    peers: Annotated[
        list[str], typer.Argument(metavar="PEER", help="llama.cpp, openvino, ctranslate2, transformers, or one of their "
                                                          "configurations, like llama-cpp-q4_0-fa.")
    ],
    model: Annotated[
        Optional[str], typer.Option("-m", "--model", metavar="MODEL", show_default=False, rich_help_panel=WHAT,
                                    help="A folder of float weights, or a name on the hub. Default: the model in the package.")
    ] = None,
    shape: Annotated[
        Optional[str], typer.Option("--shape", metavar="NAME", show_default=False, rich_help_panel=WHAT,
                                    help="Instead: a known model's sizes with random weights, written into the user's cache.")
    ] = None,
    kinds: Annotated[
        Optional[list[str]], typer.Option("--type", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Of the weights: int4, int8, bf16 (or as stored), with commas. Default: all a peer has.")
    ] = None,
    prompt: Annotated[
        Optional[list[str]], typer.Option("-p", "--prompt", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Tokens of a prompt to process (pp); none for no such test. Default: 512.")
    ] = None,
    generate: Annotated[
        Optional[list[str]], typer.Option("-n", "--generate", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Tokens to generate (tg); none for no such test. Default: 128.")
    ] = None,
    depth: Annotated[
        Optional[list[str]], typer.Option("-d", "--depth", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Tokens in the cache beforehand. Default: 0.")
    ] = None,
    batch: Annotated[
        Optional[list[str]], typer.Option("--batch", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Sequences to generate side by side. Default: 1.")
    ] = None,
    load: Annotated[
        bool, typer.Option("--load", rich_help_panel=WHAT, help="Measure loading too: from files to a model that answers.")
    ] = False,
    threads: Annotated[
        Optional[int], typer.Option("-t", "--threads", metavar="N", parser=whole, show_default=False, rich_help_panel=HOW,
                                    help="Of every engine. Default: the processors this process may use.")
    ] = None,
    rounds: Annotated[
        int, typer.Option("-r", "--repetitions", metavar="N", parser=whole, show_default=False, rich_help_panel=HOW,
                          help="Rounds that count, after one that does not. Default: 5.")
    ] = 5,
    ci: Annotated[
        Optional[float], typer.Option("--ci", metavar="SHARE", parser=percent, show_default=False, rich_help_panel=HOW,
                            help="More rounds of tests in which a median has a wider 95 % interval. Default: 5%.")
    ] = None,
    seconds: Annotated[
        Optional[float], typer.Option("--time", metavar="SECONDS", parser=real, show_default=False, rich_help_panel=HOW,
                                      help="How long such rounds may go on. Default: 60; with -r 1, 0.")
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", metavar="SECONDS", parser=real, show_default=False, rich_help_panel=HOW,
                            help="How long to wait for a quiet machine before a turn. Default: 10.")
    ] = 10.0,
    python: Annotated[
        Optional[list[str]], typer.Option("--python", metavar="PEER=PATH", show_default=False, rich_help_panel=HOW,
                                          help="The Python of the environment a peer is installed in; may be given again.")
    ] = None,
    isa: Annotated[
        Optional[str], typer.Option("--isa", metavar="avx2", show_default=False, rich_help_panel=HOW,
                                    help="Cap the instruction set of every engine. llama.cpp needs a build for it.")
    ] = None,
    work: Annotated[
        Optional[Path], typer.Option("--work", metavar="DIR", show_default=False, rich_help_panel=HOW,
                                     help="For the weights in every engine's form. Default: in the user's cache.")
    ] = None,
    goal: Annotated[
        Optional[float], typer.Option("--goal", metavar="R", parser=real, show_default=False, rich_help_panel=HOW,
                                      help="Exit 1 where genkit is not so many times as fast as its best peer.")
    ] = None,
    output: options.Output = None,
    plot: options.Plot = None,
    history: options.History = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """genkit and other engines on the same weights, in turns, each in its own process.

    Writes the weights in each engine's form (once), compares each peer's answers with genkit's, then takes turns round by
    round. A peer that is missing or fails is a row that says so, one that computes something else has no ratio.
    pip install 'genkit[peers]' brings them.

    \b
    genkit bench against llama.cpp transformers --shape llama-3.2-1b
    genkit bench against llama-cpp-q4_0-fa -m Llama-3.2-1B --type int4 -n 128 --depth 0,4096
    """
    from genkit.bench import lists
    from genkit.bench.peers import faster, run
    from genkit.bench.peers.workloads import workloads
    from genkit.bench.results import Results, machine_facts

    def counts(option: str, texts: Optional[list[str]], default: int, least: int = 1) -> "list[int]":
        return lists.numbers(option, texts, least) if texts else [default]

    def tokens(option: str, texts: Optional[list[str]], default: int) -> "list[int]":
        return [] if texts == ["none"] else counts(option, texts, default)

    if model is not None and shape is not None:
        raise UsageError("--model and --shape: name one")
    # One sample has no interval that more rounds could narrow.
    seconds = seconds if seconds is not None else 0.0 if rounds == 1 else 60.0
    for option, value, least in (("--patience", patience, 0.0), ("--time", seconds, 0.0), ("--goal", goal, 1e-3)):
        if value is not None and not least <= value < 1e6:
            raise UsageError(f"{option} {value:g}: expected {least:g} to a million")
    tests = workloads(tokens("-p", prompt, 512), tokens("-n", generate, 128), counts("--depth", depth, 0, 0),
                      counts("--batch", batch, 1), load)
    plan = run.Plan(lists.names("PEER", peers), tests, model, shape, kinds and lists.names("--type", kinds), threads, rounds,
                    0.05 if ci is None else ci, seconds, isa, run.parse_pythons(python or []), work, patience)
    report = Report(output, plot, history, force, as_json)
    plan.check()
    results = Results("against", machine_facts(), plan.settings())
    with measured(results, report), step_bar(not quiet) as tell:
        run.measure(results, plan, tell)
    report.show(results)
    if goal is not None and (missed := list(faster.missed(results.rows, goal))):
        raise LimitError(f"--goal {goal:g} is missed: {'; '.join(missed)}")
