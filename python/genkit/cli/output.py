"""Where the generated text goes, byte for byte: standard output, or a file made sure of before any work is done."""

import os
import select
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Optional

from genkit.cli.failure import PIPE_CLOSED, PipeClosed
from genkit.errors import ResourceError, UsageError

STDOUT = 1


class TextOutput:
    """UTF-8 text to standard output or a file, unbuffered, so that what was written stays written.

    `path` None or "-" is standard output. A file that exists is refused unless `force`; even then its contents are
    kept until the first byte is written. Raises UsageError for a file that exists, ResourceError for one that cannot
    be written, PipeClosed when the reader has gone.
    """

    def __init__(self, path: Optional[str], force: bool) -> None:
        self.path = None if path in (None, "-") else Path(path)
        self.name = "standard output" if self.path is None else str(self.path)
        self.created = False
        self.must_truncate = False
        self.keep = False
        self.descriptor = STDOUT if self.path is None else self._open(self.path, force)
        self.ends_line = True

    def _open(self, path: Path, force: bool) -> int:
        try:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                self.created = True
                return descriptor
            except FileExistsError:
                regular = stat.S_ISREG(os.stat(path).st_mode) if path.exists() else True
                if regular and not force:
                    raise UsageError(f"{path} exists already; --force replaces it, or name another file with -o") from None
                self.must_truncate = regular
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror or error}; choose another file with -o") from error

    def __enter__(self) -> "TextOutput":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None and not self.ends_line and self.is_terminal:
            with suppress(OSError):
                os.write(self.descriptor, b"\n")  # what went wrong is told on a line of its own
        self.close()

    @property
    def is_terminal(self) -> bool:
        try:
            return os.isatty(self.descriptor)
        except OSError:
            return False

    def write(self, text: str) -> None:
        """All of `text`, at once."""
        if not text:
            return
        try:
            self._truncate()
            self._write(memoryview(text.encode("utf-8", "replace")))
        except BrokenPipeError:
            raise PipeClosed from None
        except OSError as error:
            raise ResourceError(f"cannot write {self.name}: {error.strerror or error}") from error
        self.ends_line = text.endswith("\n")

    def _truncate(self) -> None:
        if self.must_truncate:
            os.ftruncate(self.descriptor, 0)
            self.must_truncate = False

    def _write(self, data: memoryview) -> None:
        while data:
            try:
                count = os.write(self.descriptor, data)
            except BlockingIOError:  # a descriptor that somebody else made non-blocking
                select.select([], [self.descriptor], [])
                continue
            self.keep = True
            data = data[count:]

    def finish(self) -> None:
        """The text is complete, even if it is empty. On a terminal the line is ended; elsewhere the text stays exact."""
        self.keep = True
        self._truncate()
        if not self.ends_line and self.is_terminal:
            self.write("\n")

    def close(self) -> None:
        """Closes a file; one that we made and then had nothing to put into is removed again."""
        if self.path is None:
            return
        try:
            os.close(self.descriptor)
        except OSError as error:  # a network file system may say only now that the disk is full
            raise ResourceError(f"cannot write {self.name}: {error.strerror or error}") from error
        if self.created and not self.keep:
            self.path.unlink(missing_ok=True)


def occupy_standard_descriptors() -> None:
    """Keeps files from landing on descriptors 0 to 2 where the caller closed them, and text from landing in files.

    Reading a closed standard input and writing a closed standard output fail as before; what goes to a closed standard
    error is dropped.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free descriptor, which is this one


def flush_or_discard(code: int) -> int:
    """Flushes Python's own streams; a failure to do so becomes the exit code instead of noise at interpreter exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            code = _discard(stream, code or PIPE_CLOSED)
        except OSError as error:
            if stream is sys.stdout and not code:
                from genkit.cli.failure import say_error

                say_error(f"cannot write standard output: {error.strerror or error}")
            code = _discard(stream, code or ResourceError.exit_code)
    return code


def _discard(stream, code: int) -> int:
    # What is buffered can go nowhere: point the descriptor at the null device so that the exit-time flush is quiet.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code
