"""The command line: parse, call one library function, render. One file a command; errors become exit codes here.

Nothing but this function is imported to start, so that Ctrl-C during start-up ends as cleanly as any other.
"""


def main() -> None:
    """The installed command `genkit`: runs it and exits."""
    import sys

    try:
        from genkit.cli.output import occupy_standard_descriptors

        occupy_standard_descriptors()
        from genkit.cli.app import app

        # Typer returns a command's value, or the code of an Exit; commands return nothing.
        code = app(standalone_mode=False, prog_name="genkit")
    except SystemExit:
        raise
    except BaseException as error:
        from genkit.cli.failure import report

        code = report(error)
    from genkit.cli.output import flush_or_discard

    sys.exit(flush_or_discard(code if isinstance(code, int) else 0))
