"""--help in plain text: options under the headings of their `rich_help_panel`, every alias shown in full.

Typer's own panels cut long lists of names short, put boxes into pipes, and cost the import of rich.
"""

from typing import Any

from typer.core import TyperCommand


class GroupedCommand(TyperCommand):
    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: "dict[str, list[tuple[str, str]]]" = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                heading = "Arguments" if param.param_type_name == "argument" else param.rich_help_panel or "Options"
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)
