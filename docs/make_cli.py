"""Writes the option tables of docs/cli.md from the command itself: python docs/make_cli.py (tests/test_cli_docs.py checks)."""

import inspect
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("cli.md")
MARK = "<!-- From here on written by docs/make_cli.py. -->\n"


def tables() -> str:
    from typer.main import get_command

    from genkit.cli.app import app

    return "\n".join(section(name, command) for name, command in commands(get_command(app).commands))


def commands(group: "dict[str, Any]", before: str = "") -> "list[tuple[str, Any]]":
    """Those of groups under both names: "eval perplexity"."""
    found = []
    for name, command in group.items():
        inner = getattr(command, "commands", None)
        if inner is None or command.invoke_without_command:  # a group that does something by itself as well
            found.append((before + name, command))
        found += commands(inner or {}, f"{name} ")
    return found


def section(name: str, command: Any) -> str:
    groups: "dict[str, list[Any]]" = {}
    for param in command.params:
        if not getattr(param, "hidden", False):
            groups.setdefault(getattr(param, "rich_help_panel", None) or "Other", []).append(param)
    lines = [f"## genkit {name}", "", inspect.cleandoc(command.help).replace("\b\n", ""), ""]
    for heading, params in groups.items():
        lines += [f"| {heading} | |", "|---|---|", *map(row, params), ""]
    return "\n".join(lines)


def row(param: Any) -> str:
    if param.param_type_name == "argument":
        names = f"`{param.metavar or param.name.upper()}`"
    else:
        value = f" {param.metavar}" if param.metavar else ""
        names = ", ".join(f"`{name}{value}`" for name in by_length(param.opts))
        if param.secondary_opts:
            names += "; off: " + ", ".join(f"`{name}`" for name in by_length(param.secondary_opts))
    cells = (names, " ".join((param.help or "").split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def by_length(names: "list[str]") -> "list[str]":
    """Short spellings first, else as they were declared."""
    return sorted(names, key=lambda name: name.startswith("--"))


def page() -> str:
    written, _, _ = PAGE.read_text("utf-8").partition(MARK)
    return written + MARK + "\n" + tables()


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
