"""The commands of `genkit`. Their modules import nothing heavy: what a command needs it imports when it runs."""

from typing import Annotated

import typer

from genkit.cli import bench, evaluate
from genkit.cli.convert import convert
from genkit.cli.doctor import doctor
from genkit.cli.generate import generate
from genkit.cli.help import GroupedCommand
from genkit.cli.inspect import inspect
from genkit.cli.quantize import quantize
from genkit.cli.train import train
from genkit.cli.verify import verify

app = typer.Typer(
    help="Run, shrink and make generative models on the machine you have.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # genkit.cli.failure says what went wrong, in one line
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"genkit {version('genkit')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def genkit(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


for command in (generate, quantize, convert, inspect, verify, doctor, train):
    app.command(cls=GroupedCommand)(command)
app.add_typer(evaluate.app, name="eval")
app.add_typer(bench.app, name="bench")
