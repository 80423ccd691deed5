"""`genkit bench`: how fast, beside what the machine can do and what others do. One file a command."""

import typer

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
