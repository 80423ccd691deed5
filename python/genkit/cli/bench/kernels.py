"""`genkit bench kernels`: each kernel beside what bounds it."""

from typing import Annotated, Optional

import typer

from genkit.cli.bench import options
from genkit.cli.bench.show import Report, measured
from genkit.cli.terminal import step_bar
from genkit.cli.values import Device, percent, real, whole
from genkit.errors import UsageError

WHAT = "What to measure"


def kernels(
    names: Annotated[
        Optional[list[str]], typer.Argument(metavar="[NAME]...", show_default=False,
                                            help="Kernels, or how their names begin; help lists them. Default: all.")
    ] = None,
    shape: Annotated[
        str, typer.Option("--shape", metavar="NAME", show_default=False, rich_help_panel=WHAT,
                          help="Whose sizes are taken (genkit bench --shape help lists models). Default: llama-3.2-1b.")
    ] = "llama-3.2-1b",
    rows: Annotated[
        Optional[list[str]], typer.Option("--rows", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Tokens at once, like 1,8 or 1-16*2. Default: 1,512.")
    ] = None,
    context: Annotated[
        Optional[list[str]], typer.Option("--context", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Keys that attention sees. Default: 128,4096.")
    ] = None,
    kinds: Annotated[
        Optional[list[str]], typer.Option("--type", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Of weights: f32, bf16, int8, int4, int4_k-g32-min ... or all, each in every "
                                               "product. Default: bf16, int8 and int4, and one product in others.")
    ] = None,
    tier: Annotated[
        Optional[list[str]], typer.Option("--tier", metavar="LIST", show_default=False, rich_help_panel=WHAT,
                                          help="Like avx2,avx512, or all that this processor has. Default: the one in use.")
    ] = None,
    threads: options.Threads = None,
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
    """Every kernel by itself, on random inputs of a model's sizes: bytes or operations a second, and the share of what this
    machine, or with --device cuda its GPU, reads or computes at that moment.

    \b
    genkit bench kernels
    genkit bench kernels attention --context 4096 -t 1,2
    genkit bench kernels packed_linear --type all --rows 1,4,512
    genkit bench kernels linear quantize --tier all --shape qwen3-0.6b
    genkit bench kernels attention linear --device cuda --shape llama-3.1-8b
    """
    report = Report(output, plot, history, force, as_json)
    from genkit.bench import lists
    from genkit.bench.kernels.case import Scope, Sizes
    from genkit.bench.kernels.measure import Request, kernel_names, measure
    from genkit.bench.kernels.weights import check_types
    from genkit.bench.results import Results, machine_facts
    from genkit.bench.shapes import shape_fields
    from genkit.devices import choose_measured

    if names == ["help"]:
        print("\n".join(kernel_names()))
        return
    for option, value, least in (("-r", repetitions, 1), ("--time", seconds, 0)):
        if value is not None and not least <= value < 1e6:
            raise UsageError(f"{option} {value:g}: expected {least} to a million")
    scope = Scope(Sizes.read(shape, shape_fields(shape).raw), lists.numbers("--rows", rows) if rows else (1, 512),
                  lists.numbers("--context", context) if context else (128, 4096),
                  check_types(lists.names("--type", kinds)) if kinds else None,
                  device=choose_measured(device.value, bool(tier or threads)))
    request = Request(scope, tuple(names or ()), tuple(lists.names("--tier", tier)) if tier else (),
                      tuple(lists.numbers("-t", threads)) if threads else (), repetitions, 0.05 if ci is None else ci,
                      (0 if repetitions == 1 and ci is None else 60) if seconds is None else seconds)
    results = Results("kernels", machine_facts(), {"shape": shape} | request.as_dict())
    with measured(results, report), step_bar(not quiet) as progress:
        measure(results, request, progress)
    report.show(results)
