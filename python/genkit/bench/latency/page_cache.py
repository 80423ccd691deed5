"""Whether files lie in the system's memory, and making it forget them."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Iterable

import numpy as np


def drop(paths: Iterable[Path]) -> bool:
    """Asks the system to read these files from their disk the next time. False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not on the disk yet stays
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


def share_held(paths: Iterable[Path]) -> float | None:
    """How much of these files is in memory, 0 to 1; None where the system does not say."""
    held = total = 0
    for path in paths:
        if not os.access(path, os.W_OK):  # of others' files Linux says that all is there
            return None
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                continue
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                view = np.frombuffer(mapped, np.uint8)
                pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
                try:
                    failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size),
                                                       ctypes.c_void_p(pages.ctypes.data))
                except AttributeError:
                    return None
                finally:
                    del view
        if failed:
            return None
        held, total = held + int((pages & 1).sum()), total + len(pages)
    return held / total if total else None
