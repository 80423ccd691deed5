"""`genkit bench limits`: what this machine can do at most."""

from typing import Annotated, Optional

import typer

from genkit.cli.bench import options
from genkit.cli.bench.show import Report, measured
from genkit.cli.terminal import step_bar
from genkit.cli.values import Device, byte_count, percent, real, whole
from genkit.errors import UsageError

WHAT = "What to measure"


def limits(
    sizes: Annotated[
        Optional[list[str]], typer.Option("--bytes", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Working sets to read, like 32KiB,4MiB,1GiB. Default: 14 from 32 KiB to 4 GiB, as "
                                               "far as they are a quarter of free memory.")
    ] = None,
    tier: Annotated[
        Optional[list[str]], typer.Option("--tier", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Like avx2,amx: all arithmetic as these tiers do it. Default: of every tier what "
                                               "it has instructions of its own for.")
    ] = None,
    threads: Annotated[
        Optional[list[str]], typer.Option("-t", "--threads", metavar="LIST", show_default=False,
                                          help="Like 1,2 or 1-8*2. Default: 1, and the processors this process may use.")
    ] = None,
    device: options.DeviceOption = Device.auto,
    repetitions: Annotated[
        int, typer.Option("-r", "--repetitions", metavar="N", parser=whole, show_default=False,
                          help="Samples of each row at least, one a round. Default: 5.")
    ] = "5",
    ci: Annotated[
        Optional[float], typer.Option("--ci", metavar="SHARE", parser=percent, show_default=False,
                                      help="More rounds for rows whose median has a wider 95 % interval. Default: 5%.")
    ] = None,
    seconds: Annotated[
        Optional[float], typer.Option("--time", metavar="SECONDS", parser=real, show_default=False,
                                      help="How long such rounds may go on. Default: 20; with -r 1, 0.")
    ] = None,
    output: options.Output = None,
    plot: options.Plot = None,
    history: options.History = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """What this machine can do at most: bytes it reads in a second by working set, operations by kind and tier, and what it
    costs its threads to meet. Shares of the limit elsewhere are of these figures.

    \b
    genkit bench limits
    genkit bench limits -t 1-8*2 --plot limits.svg
    genkit bench limits --bytes 1GiB --tier avx2,avx512vnni
    """
    report = Report(output, plot, history, force, as_json)
    from genkit.bench import lists
    from genkit.bench.limits import Plan, measure
    from genkit.bench.results import Results, machine_facts

    for option, value, least in (("-r", repetitions, 1), ("--time", seconds, 0)):
        if value is not None and not least <= value < 1e6:
            raise UsageError(f"{option} {value:g}: expected {least} to a million")
    if seconds is None:
        seconds = 0 if repetitions == 1 and ci is None else 20  # one sample has no interval to be narrowed
    plan = Plan(tuple(lists.numbers("-t", threads)) if threads else (), tuple(lists.names("--tier", tier)) if tier else (),
                tuple(byte_count(size) for size in lists.names("--bytes", sizes)) if sizes else (), device.value, repetitions,
                0.05 if ci is None else ci, seconds)
    results = Results("limits", machine_facts())
    with measured(results, report), step_bar(not quiet) as progress:
        measure(results, plan, progress)
    report.show(results)
