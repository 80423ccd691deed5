"""`genkit bench` itself: models, measured beside what the machine can do."""

from typing import Annotated, Optional

import typer

from genkit.cli.bench import options
from genkit.cli.values import Device, KVType
from genkit.errors import UsageError

WHAT, HOW, OUTPUT = "What to measure", "How", "Output"


def bench(
    context: typer.Context,
    model: options.Models = None,
    shape: options.Shapes = None,
    kinds: options.Types = None,
    prompt: Annotated[
        Optional[list[str]], typer.Option("-p", "--prompt", metavar="LIST", show_default=False,
                                          help="Tokens of a prompt to process (pp), like 512 or 128-1024*2; none for no such test. Default: 512.")
    ] = None,
    generate: Annotated[
        Optional[list[str]], typer.Option("-n", "--generate", metavar="LIST", show_default=False,
                                          help="Tokens to generate (tg); none for no such test. Default: 128.")
    ] = None,
    depth: Annotated[
        Optional[list[str]], typer.Option("-d", "--depth", metavar="LIST", show_default=False,
                                          help="Tokens in the cache beforehand. Default: 0.")
    ] = None,
    batch: Annotated[
        Optional[list[str]], typer.Option("--batch", metavar="LIST", show_default=False,
                                          help="Sequences side by side. Default: 1.")
    ] = None,
    threads: options.Threads = None,
    device: Annotated[
        Optional[list[str]], typer.Option("--device", metavar="LIST", show_default=False, help="cpu, cuda, auto, with commas. Default: auto.")
    ] = None,
    output: options.Output = None,
    plot: options.Plot = None,
    history: options.History = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """How fast models run here, and what share that is of what this machine can do.

    \b
    genkit bench                                    the model in the package
    genkit bench -m MODEL --type stored,int8,int4   as it is, and rounded
    genkit bench --shape llama-3.2-1b -p 512 -n 128 a model nobody downloaded
    genkit bench -n 128 -p none --depth 0-4096+1024 decode over a growing context
    genkit bench --batch 1-16*2 -t 1,2 -o bench.html batches, on one thread and on two
    """
    if context.invoked_subcommand is None:
        raise UsageError("genkit bench alone is not there yet; genkit bench --help lists what is")
