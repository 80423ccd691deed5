"""`genkit bench latency`: how long one waits for text."""

from typing import Annotated

import typer

from genkit.cli.bench import options
from genkit.cli.values import Device, whole


def latency(
    model: options.Models = None,
    shape: options.Shapes = None,
    kinds: options.Types = None,
    prompt: Annotated[
        int, typer.Option("-p", "--prompt", metavar="N", parser=whole, show_default=False, help="Tokens of the prompt. Default: 16.")
    ] = 16,
    generate: Annotated[
        int, typer.Option("-n", "--generate", metavar="N", parser=whole, show_default=False,
                          help="Tokens to write. Default: 64; more make the rare long waits visible.")
    ] = 64,
    threads: options.Threads = None,
    device: options.DeviceOption = Device.auto,
    repetitions: Annotated[
        int, typer.Option("-r", "--repetitions", metavar="N", parser=whole, show_default=False,
                          help="Samples of each row: starts of the command, and texts. Default: 5.")
    ] = 5,
    output: options.Output = None,
    plot: options.Plot = None,
    history: options.History = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """How long one waits: for the first text of the command `genkit generate`, and from token to token.

    \b
    cold start   a new process, the model's files read from the disk
    warm start   a new process, the model's files in the system's memory
    first token, loaded   from the call to the first text, the model in memory
    token        one step of a loaded model, and nothing else
    token of a burst   on a GPU: of many steps, each asked for before the last one's token is there
    text gap     between two moments at which the reader of a stream gets text
    peak memory  of the new process

    Shapes are written as model folders into the user's cache.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from genkit.bench import lists
    from genkit.bench.latency.measure import Settings, check, measure
    from genkit.bench.results import Results, machine_facts
    from genkit.bench.subjects import open_subjects
    from genkit.cli.bench.models import print_shapes
    from genkit.cli.bench.show import Report, measured
    from genkit.cli.terminal import step_bar
    from genkit.devices import choose_device
    from genkit.engine import choose_threads

    if shape and "help" in shape:
        return print_shapes()
    settings = Settings(prompt, generate, repetitions)
    counts = [choose_threads(None)] if threads is None else [choose_threads(count) for count in lists.numbers("-t", threads)]
    types = lists.names("--type", kinds) if kinds else []
    report = Report(output, plot, history, force, as_json)
    chosen = choose_device(device.value)
    with ExitStack() as stack:
        names = lists.names("--shape", shape) if shape else []
        subjects = [replace(subject, device=chosen) for subject in open_subjects(model or [], names, types, "auto", 0, stack)]
        check(subjects, settings)
        results = Results("latency", machine_facts(), {"prompt": prompt, "generate": generate, "repetitions": repetitions,
                                                       "threads": counts, "device": chosen})
        with measured(results, report), step_bar(not quiet) as tell:
            measure(results, subjects, counts, chosen, settings, tell)
    report.show(results)
