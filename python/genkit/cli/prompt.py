"""The prompt: from the argument, an option, a file or standard input, and never twice."""

import os
import stat
import sys
from typing import Optional

from genkit.errors import BadFileError, UsageError

STDIN = 0


def read_prompt(argument: Optional[str], option: Optional[str], file: Optional[str]) -> str:
    """The one prompt that was given. "-" reads standard input, and so does giving none when something is piped in.

    Raises UsageError when there is none, more than one or an empty file; BadFileError for what is not UTF-8.
    """
    given = {"the argument PROMPT": argument, "-p/--prompt": option, "-f/--file": file}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"the prompt was given twice, by {' and by '.join(named)}; leave one away")
    if file is not None:
        return read_stdin() if file == "-" else read_text_file(file, "prompt file")
    text = argument if argument is not None else option
    if text == "-" or (text is None and stdin_has_input()):
        return read_stdin()
    if text is None:
        raise UsageError('no prompt: genkit generate "Once upon a time", or -f FILE, or pipe one in')
    return checked(text, named[0])


def checked(text: str, source: str) -> str:
    """Command line bytes that are not UTF-8 reach Python as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{source}: not valid UTF-8 at character {error.start}; is the terminal set to UTF-8?") from None
    return text


def stdin_has_input() -> bool:
    """True where standard input is a pipe or a file; false for a terminal, a closed descriptor and the null device."""
    try:
        mode = os.fstat(STDIN).st_mode
    except OSError:
        return False
    return sys.stdin is not None and (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode))


def read_stdin() -> str:
    if sys.stdin is None:
        raise UsageError("standard input is closed: no prompt can be read from it")
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise BadFileError(f"standard input: cannot be read: {error.strerror or error}") from error
    return decode(data, "standard input")


def read_text_file(path: str, what: str) -> str:
    try:
        with open(path, "rb") as file:
            return decode(file.read(), path)
    except OSError as error:
        raise BadFileError(f"{what} {path}: {error.strerror or error}") from error


def decode(data: bytes, source: str) -> str:
    """UTF-8 less a byte order mark and, as in llama.cpp, less one newline at the end, which editors and echo add."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFileError(
            f"{source}: not valid UTF-8 at byte {error.start} (0x{data[error.start]:02x}); convert it first, for example with iconv"
        ) from None
    text = text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
    if not text:
        raise UsageError(f"{source}: is empty")
    return text
