"""One exception type per exit code; the command line prints one line of it, the library raises it.

Exit codes: 2 usage, 3 bad file, 4 memory or disk, 5 device, 130 interrupt, 1 a limit of the user's
that was not kept, and failures nobody foresaw.
Messages name what failed, where, the value, and what to do.
"""


class Error(Exception):
    """Base of everything genkit raises on purpose; `exit_code` is what the command line exits with."""

    exit_code = 1


class LimitError(Error):
    """A measured value is beyond what the user allowed (--max-kld)."""


class UsageError(Error, ValueError):
    """An option or argument is wrong, or input does not fit (prompt longer than the context)."""

    exit_code = 2


class BadFileError(Error):
    """A file is missing, unreadable, truncated, or says something that cannot be true."""

    exit_code = 3


class ResourceError(Error):
    """Not enough memory or disk, or the output cannot be written."""

    exit_code = 4


class DeviceError(Error):
    """The device asked for is not there, or failed."""

    exit_code = 5


class Interrupted(Error):
    """The user pressed Ctrl-C."""

    exit_code = 130
