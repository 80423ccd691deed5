"""From an exception to one line on stderr and an exit code: the only place where that is decided."""

from genkit.errors import Error, ResourceError

# 128 + SIGPIPE: what a shell reports for a program whose reader went away.
PIPE_CLOSED = 141
INTERRUPTED = 130

show_traceback = False


class PipeClosed(Exception):
    """The reader of standard output has gone. Not an OSError, which Typer would answer in its own way."""


def enable_traceback(value: bool) -> bool:
    """Callback of every command's --traceback."""
    global show_traceback
    show_traceback = show_traceback or value
    return value


def report(error: BaseException) -> int:
    """Prints at most one line, and the traceback if asked for; returns the exit code."""
    if show_traceback:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    code, message = explain(error)
    if message:
        say_error(message)
    return code


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message (empty: nothing to say)."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, ""
    if isinstance(error, Error):
        return error.exit_code, str(error)
    if isinstance(error, (PipeClosed, BrokenPipeError)):
        return PIPE_CLOSED, ""
    if isinstance(error, MemoryError):
        return ResourceError.exit_code, f"out of memory: {str(error) or 'an allocation failed'}; try a smaller context (-c) or model"
    if isinstance(error, OSError) and error.filename is None and error.errno is not None:
        # The library names its files; what names none is a write to standard output (a full disk).
        return ResourceError.exit_code, f"cannot write the output: {error.strerror}"
    if is_usage_error(error):
        message = error.format_message().rstrip(".")
        if "extra argument" in message:  # genkit generate Once upon a time
            message += "; put text with spaces in quotes"
        return 2, f"{message} ({help_command(error)} lists what there is)"
    described = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return 1, f"unexpected {described}; please report it with the output of --traceback"


def is_usage_error(error: BaseException) -> bool:
    # Typer's and Click's exceptions moved between their versions; what a bad option raises is BadParameter's family.
    import typer

    family = typer.BadParameter.__mro__
    return isinstance(error, family[family.index(Exception) - 1]) and hasattr(error, "format_message")


def help_command(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'genkit'} --help"


def say_error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    from genkit.cli.terminal import note

    note("genkit: error: " + " ".join(message.split()))
