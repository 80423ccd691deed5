"""`genkit bench` itself: models, measured beside what the machine can do."""

from typing import Annotated, Any, Optional

import typer

from genkit.cli.bench import options
from genkit.cli.bench.show import Report, measured
from genkit.cli.terminal import step_bar
from genkit.cli.values import KVType, percent, real, whole
from genkit.errors import UsageError


def option(*names: str, help: str, metavar: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, show_default=False, **more)


def bench(
    context: typer.Context,
    model: options.Models = None,
    shape: options.Shapes = None,
    kinds: options.Types = None,
    kv_type: Annotated[
        KVType, option("--kv-type", metavar="f32|f16|bf16|int8|auto", help="How keys and values are kept. Default: auto.")
    ] = KVType.auto,
    seed: Annotated[
        Optional[int], option("--seed", metavar="N", parser=whole, help="Of the weights of shapes. Default: 0.")
    ] = None,
    prompt: Annotated[
        Optional[list[str]],
        option("-p", "--prompt", metavar="LIST",
               help="Tokens of a prompt to process (pp): 512 or 128,512 or 128-1024*2; none for no such test. Default: 512.")
    ] = None,
    generate: Annotated[
        Optional[list[str]],
        option("-n", "--generate", metavar="LIST", help="Tokens to generate (tg); none for no such test. Default: 128.")
    ] = None,
    depth: Annotated[
        Optional[list[str]],
        option("-d", "--depth", metavar="LIST", help="Tokens in the cache beforehand. Default: 0.")
    ] = None,
    batch: Annotated[
        Optional[list[str]], option("--batch", metavar="LIST", help="Sequences side by side. Default: 1.")
    ] = None,
    threads: options.Threads = None,
    device: Annotated[
        Optional[list[str]], option("--device", metavar="LIST", help="cpu, cuda, auto, with commas. Default: auto.")
    ] = None,
    rounds: Annotated[
        Optional[int],
        option("-r", "--repetitions", metavar="N", parser=whole, help="Samples of each row at least, one a round. Default: 5.")
    ] = None,
    warmup: Annotated[
        Optional[int], option("--warmup", metavar="N", parser=whole, help="Rounds before them that do not count. Default: 1.")
    ] = None,
    ci: Annotated[
        Optional[float],
        option("--ci", metavar="SHARE", parser=percent,
               help="More rounds for rows whose median has a wider 95 % interval. Default: 5%.")
    ] = None,
    seconds: Annotated[
        Optional[float],
        option("--time", metavar="SECONDS", parser=real,
               help="How long such rounds may go on. Default: 60; with -r 1, 0.")
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

    Each row is measured in turns with all others, beside the machine's own limit: what it can read in a second, or
    multiply. Lists are as llama-bench takes them: 1,2,4 or 1-4 or 1-9+2 or 1-8*2, an option once or again.

    \b
    genkit bench                                     the model in the package
    genkit bench -m MODEL --type stored,int8,int4    as it is, and rounded
    genkit bench --shape llama-3.2-1b -t 1,2         a model nobody downloaded
    genkit bench -p none -n 128 --depth 0-4096+1024  decoding as the context grows
    genkit bench --batch 1-16*2 -o bench.html        sequences side by side, as a page
    """
    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE" and name != "traceback"]
    if context.invoked_subcommand is not None:
        if given:
            raise UsageError(f"genkit bench {context.invoked_subcommand}: its options go after its name")
        return
    report = Report(output, plot, history, force, as_json)
    if shape and "help" in shape:
        return print_shapes()
    from genkit.bench import lists

    def numbers(name: str, texts: Optional[list[str]], default: int, least: int = 1, none: bool = False) -> "tuple[int, ...]":
        if none and texts == ["none"]:
            return ()
        if texts and none and any(text.strip() == "0" for text in lists.names(name, texts)):
            raise UsageError(f"{name} 0: at least 1; {name} none leaves the test out")
        return tuple(lists.numbers(name, texts, least)) if texts else (default,)

    def names(name: str, texts: Optional[list[str]]) -> "tuple[str, ...]":
        return tuple(lists.names(name, texts)) if texts else ()

    def at_least(name: str, value: Optional[float], least: int, default: float) -> float:
        if value is not None and not least <= value < 1e6:
            raise UsageError(f"{name} {value:g}: expected {least} to a million")
        return default if value is None else value

    rounds = at_least("-r", rounds, 1, 5)
    settings = dict(
        models=tuple(dict.fromkeys(model or ())), shapes=names("--shape", shape), types=names("--type", kinds),
        prompts=numbers("-p", prompt, 512, none=True), generates=numbers("-n", generate, 128, none=True),
        depths=numbers("--depth", depth, 0, least=0), batches=numbers("--batch", batch, 1),
        threads=numbers("-t", threads, 0) if threads else (), devices=names("--device", device) or ("auto",),
        kv_type=kv_type.value, rounds=rounds, warmup=at_least("--warmup", warmup, 0, 1), ci=0.05 if ci is None else ci,
        # One sample has no interval that more rounds could narrow, unless they are asked for.
        seconds=at_least("--time", seconds, 0, 0 if rounds == 1 and ci is None else 60), seed=at_least("--seed", seed, 0, 0))
    from genkit.bench.results import Results, machine_facts
    from genkit.bench.throughput import Plan, measure

    results = Results("models", machine_facts())
    with measured(results, report), step_bar(not quiet) as progress:
        measure(results, Plan(**settings), progress)
    report.show(results)


def print_shapes() -> None:
    """All that are known, with their sizes."""
    from genkit.bench.shapes import SHAPES, open_shape
    from genkit.plaintext import table

    rows = []
    for name in SHAPES:
        fields, checkpoint = open_shape(name)
        rows.append((name, f"{checkpoint.parameters / 1e9:.2f} B weights, {fields.model_type}"))
    print("\n".join(table(rows)))
