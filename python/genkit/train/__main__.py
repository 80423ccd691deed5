"""`python -m genkit.train`: the command `genkit train` alone."""

import sys

import typer

from genkit.cli.failure import report
from genkit.cli.help import GroupedCommand
from genkit.cli.train import train

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command(cls=GroupedCommand)(train)

if __name__ == "__main__":
    try:
        code = app(standalone_mode=False, prog_name="python -m genkit.train")
    except Exception as error:
        code = report(error)
    sys.exit(code if isinstance(code, int) else 0)
