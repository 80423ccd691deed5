"""--help in plain text: options under the headings of their `rich_help_panel`, every alias shown in full.

Typer's own panels cut long lists of names short, put boxes into pipes, and cost the import of rich.
"""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class GroupedCommand(TyperCommand):
    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_options(self, ctx, formatter)


class GroupedGroup(TyperGroup):
    """A group that does something by itself as well."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def write_options(command: Any, ctx: Any, formatter: Any) -> None:
    groups: "dict[str, list[tuple[str, str]]]" = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            heading = "Arguments" if param.param_type_name == "argument" else param.rich_help_panel or "Options"
            groups.setdefault(heading, []).append(record)
    for heading, records in groups.items():
        with formatter.section(heading):
            formatter.write_dl(records)
