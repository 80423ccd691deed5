"""Opening files nobody vouches for: regular files only, one line per failure, nothing from a file printed raw."""

import errno
import math
import os
import stat
from pathlib import Path
from typing import Callable

from genkit.errors import BadFileError, ResourceError

# The machine's shortage, not the file's fault.
_SHORTAGE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def shown(value: object, limit: int = 80) -> str:
    """A value from a file as printable text on one line: JSON's spelling, control characters escaped, cut at limit."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        # Written out only as far as it is shown: a list may be long and deep.
        head = ", ".join("a list" if isinstance(item, list) else shown(item, 20) for item in value[:8])
        return f"[{head}{', ...' if len(value) > 8 else ''}]"
    text = repr(value[: 4 * limit] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[:limit] + "..."


def shown_path(path: object) -> str:
    """A path on one line: as it is when printable, otherwise escaped."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    return text if text.isprintable() else repr(text)


def failure(path: object, error: OSError, doing: str = "read") -> BadFileError | ResourceError:
    """The error to raise for a failed system call on this path."""
    if error.errno in _SHORTAGE:
        return ResourceError(f"{shown_path(path)}: cannot be {doing}: {error.strerror}")
    if error.errno == errno.ENOENT:
        if os.path.islink(path):
            return BadFileError(f"{shown_path(path)}: a link to a file that is not there; download the model again")
        return BadFileError(f"{shown_path(path)}: not found")
    if error.errno == errno.ELOOP:
        return BadFileError(f"{shown_path(path)}: a link that leads back to itself")
    return BadFileError(f"{shown_path(path)}: cannot be {doing}: {error.strerror or error}")


def kind_of(mode: int) -> str:
    """What a path is, in words, when it is no regular file."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
             stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "not a regular file")


def open_regular(path: Path) -> tuple[int, int]:
    """A descriptor and the size in bytes; links are followed. Raises BadFileError for anything but a regular file.

    Looked at before it is opened, because opening a device or a pipe may block or act; and again once it is open.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode):
                    return descriptor, status.st_size
                mode = status.st_mode
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    except OSError as error:
        raise failure(path, error) from None
    except ValueError as error:  # a NUL in the name
        raise BadFileError(f"{shown_path(path)}: no such name: {error}") from None
    raise BadFileError(f"{shown_path(path)}: is {kind_of(mode)}; a regular file is needed")


PIECE = 64 << 20  # bytes a read call is given at most, so that progress moves and Ctrl-C is heard


def read_into(descriptor: int, target: memoryview, offset: int, progress: Callable[[int], None] | None = None) -> int:
    """Fills target from the file's byte offset on, telling progress the bytes of each piece.

    Returns bytes read: fewer than asked only where the file ends. Raises OSError.
    """
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:done + PIECE]], offset + done)
        if count == 0:
            break
        done += count
        if progress is not None:
            progress(count)
    return done


def read_small(path: Path, limit: int) -> bytes:
    """The whole of a regular file. Raises BadFileError above limit bytes, whatever size the file claims."""
    descriptor, size = open_regular(path)
    try:
        # Read past the claimed size: a file that grows, or whose file system reports none, is held to the limit too.
        pieces: list[bytes] = []
        total = 0
        while total <= limit:
            piece = os.read(descriptor, min(1 << 20, limit + 1 - total))
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            total += len(piece)
    except OSError as error:
        raise failure(path, error) from None
    finally:
        os.close(descriptor)
    raise BadFileError(f"{shown_path(path)}: {max(size, total)} bytes; at most {limit} are read for such a file")


def size_words(nbytes: int) -> str:
    """Bytes for people: "812 bytes", "3.2 MB", "2.47 GB" (powers of ten)."""
    for unit, words in ((10**9, "GB"), (10**6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {words}" if nbytes < 1000 * unit else f"{nbytes // unit} {words}"
    return f"{nbytes} bytes"
