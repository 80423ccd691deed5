"""`genkit bench compare`: two results, or two installs measured side by side."""

from typing import Annotated, Any, Optional

import typer

from genkit.cli.bench import options
from genkit.cli.terminal import note, step_bar
from genkit.cli.values import Device, percent, real, shorten, whole
from genkit.errors import UsageError

INSTALLS, VERDICT = "Of two installs", "Verdict"


def tolerance_value(text: str) -> float:
    """As percent; 0% allows nothing, and nothing is slower by 100%."""
    value = 0.0 if text in ("0", "0%") else percent(text)
    if value >= 1:
        raise typer.BadParameter(f"{shorten(text)} is not below 100%")
    return value


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A result of -o FILE.json, a Python or virtual environment with genkit, or a commit.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same, to be judged against A.")],
    tolerance: Annotated[
        float, typer.Option("--tolerance", metavar="SHARE", parser=tolerance_value, show_default=False, rich_help_panel=VERDICT,
                            help="Exit 1 when a row of B is slower by more, beyond chance. Default: 5%.")
    ] = "5%",
    model: Annotated[
        Optional[str], typer.Option("-m", "--model", metavar="MODEL", show_default=False, rich_help_panel=INSTALLS,
                                    help="A model folder, a GGUF file, or a name on the hub. Default: the model in the package.")
    ] = None,
    shape: Annotated[
        Optional[str], typer.Option("--shape", metavar="NAME", show_default=False, rich_help_panel=INSTALLS,
                                    help="Instead: a known model's sizes with random weights (genkit bench --shape help lists them).")
    ] = None,
    kinds: Annotated[
        Optional[list[str]], typer.Option("--type", metavar="LIST", show_default=False, rich_help_panel=INSTALLS,
                                          help="Of the weights: stored, int8, int4, with commas. Default: as the model runs by itself.")
    ] = None,
    prompt: Annotated[
        Optional[list[str]], typer.Option("-p", "--prompt", metavar="LIST", show_default=False, rich_help_panel=INSTALLS,
                                          help="Tokens of a prompt to process (pp); none for no such test. Default: 512.")
    ] = None,
    generate: Annotated[
        Optional[list[str]], typer.Option("-n", "--generate", metavar="LIST", show_default=False, rich_help_panel=INSTALLS,
                                          help="Tokens to generate (tg); none for no such test. Default: 128.")
    ] = None,
    threads: Annotated[
        Optional[list[str]], typer.Option("-t", "--threads", metavar="LIST", show_default=False, rich_help_panel=INSTALLS,
                                          help="Like 1,2 or 1-8*2. Default: the processors this process may use.")
    ] = None,
    device: Annotated[
        Optional[Device], typer.Option("--device", metavar="cpu|cuda|auto", show_default=False, rich_help_panel=INSTALLS,
                                       help="Default: what each takes by itself, which has to be the same.")
    ] = None,
    rounds: Annotated[
        Optional[int], typer.Option("-r", "--rounds", metavar="N", parser=whole, show_default=False, rich_help_panel=INSTALLS,
                                    help="Rounds of A B B A at least. Default: 10.")
    ] = None,
    ci: Annotated[
        Optional[float], typer.Option("--ci", metavar="SHARE", parser=percent, show_default=False, rich_help_panel=INSTALLS,
                                      help="Stop when the interval of the ratio is narrower. Default: 5%.")
    ] = None,
    seconds: Annotated[
        Optional[float], typer.Option("--time", metavar="SECONDS", parser=real, show_default=False, rich_help_panel=INSTALLS,
                                      help="Begin no round after so long. Default: 60.")
    ] = None,
    output: options.Output = None,
    plot: options.Plot = None,
    history: options.History = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Whether B is slower than A beyond chance; then the exit code is 1.

    \b
    genkit bench compare before.json after.json     two results of one machine
    genkit bench compare v0.1.0 HEAD                two commits of the repository in this folder, built once each
    genkit bench compare old/venv new/venv -n 64    two installs; they take turns

    Ratios are of speed, B against A: above 1 B is faster.
    """
    from pathlib import Path

    from genkit.bench import compare as comparing, installs
    from genkit.bench.results import machine_facts, Results, read_results
    from genkit.cli.bench.show import Report, measured

    sides = installs.find(a), installs.find(b)
    files = [isinstance(side, Path) for side in sides]
    given = {"-m": model, "--shape": shape, "--type": kinds, "-p": prompt, "-n": generate, "-t": threads, "--device": device,
             "-r": rounds, "--ci": ci, "--time": seconds}
    if any(files) and not all(files):
        raise UsageError(f"{a} and {b}: one is a result, the other an install; give two of a kind")
    if all(files) and any(value is not None for value in given.values()):
        option = next(name for name, value in given.items() if value is not None)
        raise UsageError(f"{option}: {a} and {b} have been measured already; it is for two installs")
    report = Report(output, plot, history, force, as_json)
    if all(files):
        results = comparing.compare(read_results(sides[0]), read_results(sides[1]), tolerance, (a, b))
        report.show(results)
    else:
        if shape == "help":
            from genkit.cli.bench.models import print_shapes

            return print_shapes()
        results = Results("compare", machine_facts(), {"a": a, "b": b, "tolerance": tolerance, "of": "models"})
        with measured(results, report), step_bar(not quiet) as tell:
            plan = make_plan(model, shape, kinds, prompt, generate, threads, device and device.value, rounds, ci, seconds, tell)
            for side in sides:
                if side.commit and not quiet and not Path(side.folder).is_dir():
                    note(f"genkit: building commit {side.name} into {side.folder}, once")
                installs.build(side, tell)
            installs.measure(results, sides, plan, tolerance, tell)
        report.show(results)
    comparing.check(results)


def make_plan(model: Optional[str], shape: Optional[str], kinds: "Optional[list[str]]", prompt: "Optional[list[str]]",
              generate: "Optional[list[str]]", threads: "Optional[list[str]]", device: Optional[str], rounds: Optional[int],
              ci: Optional[float], seconds: Optional[float], tell: Any = None) -> Any:
    """bench.installs.Plan of the options. Raises UsageError."""
    import genkit
    from genkit.bench import installs, lists
    from genkit.checkpoints import resolve
    from genkit.cli.result import model_name

    def counts(option: str, texts: "Optional[list[str]]", default: int) -> "list[int]":
        return [] if texts == ["none"] else lists.numbers(option, texts or [str(default)])

    if model is not None and shape is not None:
        raise UsageError("-m and --shape: give one of them")
    types = {"stored": ("bf16", "none"), "int8": ("bf16", "int8"), "int4": ("bf16", "int4")}
    if shape is not None:
        types |= {dtype: (dtype, "none") for dtype in ("f32", "f16", "bf16")}
    named = lists.names("--type", kinds) if kinds else []
    unknown = [name for name in named if name not in types]
    if unknown:
        raise UsageError(f"--type {unknown[0]}: of two installs it is {', '.join(types)}")
    for option, value in (("-r", rounds), ("--time", seconds)):
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"{option} {value}: expected a number above 0")
    prompts, generates = counts("-p", prompt, 512), counts("-n", generate, 128)
    if not prompts and not generates:
        raise UsageError("-p none -n none: nothing is left to measure")
    if shape is None:
        path, name = str(resolve(str(model or genkit.DEFAULT_MODEL))), model_name(model or genkit.DEFAULT_MODEL)
        subjects = [installs.Subject(name, path, kind, types[kind][1]) for kind in named] or [installs.Subject(name, path)]
    else:
        from genkit.bench.shapes import folder_for

        told = tell and (lambda done, total: tell(f"writing {shape}", done, total))
        subjects = [installs.Subject(shape, str(folder_for(shape, types[kind][0], progress=told)), kind, types[kind][1])
                    for kind in named or ["bf16"]]
    return installs.Plan(subjects, lists.numbers("-t", threads) if threads else [None], prompts, generates, int(rounds or 10),
                         ci or 0.05, seconds or 60.0, device)
