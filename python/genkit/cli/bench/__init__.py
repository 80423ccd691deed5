"""`genkit bench`: how fast, beside what the machine can do and what others do. One file a command."""

import typer

from genkit.cli.bench.against import against
from genkit.cli.bench.compare import compare
from genkit.cli.bench.history import history
from genkit.cli.bench.kernels import kernels
from genkit.cli.bench.latency import latency
from genkit.cli.bench.limits import limits
from genkit.cli.bench.models import bench
from genkit.cli.help import GroupedCommand, GroupedGroup

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.callback(cls=GroupedGroup, invoke_without_command=True)(bench)
app.command(cls=GroupedCommand)(against)
app.command(cls=GroupedCommand)(history)
app.command(cls=GroupedCommand)(kernels)
app.command(cls=GroupedCommand)(limits)
app.command(cls=GroupedCommand)(compare)
app.command(cls=GroupedCommand)(latency)
