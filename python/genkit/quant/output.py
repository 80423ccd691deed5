"""An output that appears whole or not at all.

Everything is written into OUT.partial, beside OUT: the files at their full size from the start, tensors at their places in
any order. OUT.partial.jsonl is the journal, one line for each tensor that is finished with the SHA-256 of its arrays.
Whoever is killed leaves these two behind; the next run with the same source and recipe goes on after checking what is
there. At the end everything is flushed to disk, read back and compared, OUT.partial takes the place of OUT in one step,
and the journal goes.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

import numpy as np

from genkit.checkpoints.files import shown, shown_path, size_words
from genkit.errors import BadFileError, ResourceError, UsageError

if TYPE_CHECKING:
    from genkit.quant.writers.base import Array, File

MANIFEST = "manifest.json"
SPARE = 64 << 20  # bytes of disk beyond the output's own


class Output:
    """Raises UsageError for an OUT or an OUT.partial that is there and not to be touched, ResourceError for a disk that
    cannot be written or is full."""

    def __init__(self, out: Path, source: Path, fingerprint: Mapping[str, Any], *, resume: bool = False, force: bool = False) -> None:
        self.out = Path(os.path.abspath(out))
        self.folder = self.out.with_name(self.out.name + ".partial")
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._finished: dict[str, dict[str, str]] = {}  # tensor -> array -> SHA-256
        self.methods: dict[str, str] = {}  # tensor -> what was done to it
        self._descriptors: dict[str, int] = {}
        self._journal: int | None = None
        self.journal = self.out.with_name(self.out.name + ".partial.jsonl")
        check_paths(self.out, source, force)
        with _disk(self.folder):
            self._lock()
            if not resume and (self.folder.exists() or os.fstat(self._journal).st_size):
                if not force:
                    self.close()
                    raise UsageError(f"{shown_path(self.folder)}: left by a run that was stopped; --resume goes on with it, --force starts anew")
                if self.folder.exists():
                    shutil.rmtree(self.folder)
                os.ftruncate(self._journal, 0)
            self._read_journal()
            self.folder.mkdir(exist_ok=True)

    def _lock(self) -> None:
        self._journal = os.open(self.journal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise UsageError(f"{shown_path(self.folder)}: another genkit is writing it") from None

    def _read_journal(self) -> None:
        size = os.fstat(self._journal).st_size
        lines = os.pread(self._journal, size, 0).split(b"\n")[:-1]  # what follows the last newline was being written
        entries = []
        for line in lines:
            try:
                entries.append(json.loads(line))
            except ValueError:
                self.close()
                raise BadFileError(f"{shown_path(self.journal)}: broken line {shown(line[:60].decode(errors='replace'))}; "
                                   "start anew with --force and without --resume") from None
        os.ftruncate(self._journal, sum(len(line) + 1 for line in lines))
        os.lseek(self._journal, 0, os.SEEK_END)
        if not entries:
            if self.folder.exists():
                self.close()
                raise UsageError(f"{shown_path(self.folder)}: there, but without a journal to go on from; remove it, or --force")
            self._note(self._fingerprint)
            return
        if entries[0] != self._fingerprint:
            keys = [key for key in self._fingerprint if entries[0].get(key) != self._fingerprint[key]]
            self.close()
            raise UsageError(f"{shown_path(self.folder)}: made from another {', '.join(keys) or 'recipe'}; run with what it was "
                             "made from, or start anew with --force and without --resume")
        for entry in entries[1:]:
            self._finished[entry["tensor"]] = entry["arrays"]
            self.methods[entry["tensor"]] = entry["method"]

    def _note(self, entry: Mapping[str, Any]) -> None:
        line = memoryview(json.dumps(entry, sort_keys=True).encode() + b"\n")
        while line:
            line = line[os.write(self._journal, line):]

    def begin(self, files: Sequence["File"], tensors: Mapping[str, Sequence["Array"]]) -> list[str]:
        """Makes the files at their full size; tensors: the arrays of each. Returns the tensors that are finished already,
        each read and compared: one that is not what the journal says is done again."""
        self._files = {file.name: file for file in files}
        self._places = {name: (file, offset) for file in files for name, offset in file.offsets.items()}
        self._sizes = {array.name: array.nbytes for arrays in tensors.values() for array in arrays}
        self._tensors = tensors
        with _disk(self.folder):
            there = sum(path.stat().st_blocks * 512 for path in self.folder.iterdir())
            need, free = sum(file.nbytes for file in files) + SPARE - there, shutil.disk_usage(self.folder).free
            if need > free:
                raise ResourceError(f"{shown_path(self.out)}: needs {size_words(need)} of disk, {size_words(free)} are free")
            for path in self.folder.iterdir():
                if path.name not in self._files:
                    path.unlink()  # small files of the stopped run: they are written anew
            for file in files:
                descriptor = os.open(self.folder / file.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                self._descriptors[file.name] = descriptor
                os.ftruncate(descriptor, file.nbytes)
                _write(descriptor, file.head, 0)
        for name in list(self._finished):
            if name not in tensors or self._hashes(tensors[name]) != self._finished[name]:
                del self._finished[name]
        return list(self._finished)

    def _hashes(self, arrays: Sequence["Array"]) -> dict[str, str]:
        return {array.name: self._hash(array) for array in arrays}

    def _hash(self, array: "Array") -> str:
        file, offset = self._places[array.name]
        return hash_of(self._descriptors[file.name], offset, array.nbytes)

    def write(self, tensor: str, pieces: "Sequence[tuple[str, int, np.ndarray]]", hashes: dict[str, Any]) -> None:
        """Some bytes of a tensor's arrays: (array, offset in it, contents). hashes: kept by the caller from piece to piece;
        pieces of an array come in order."""
        with _disk(self.folder):
            for name, at, values in pieces:
                file, offset = self._places[name]
                data = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
                if at + len(data) > self._sizes[name]:
                    raise ValueError(f"array {name} is longer than was planned")
                hashes.setdefault(name, hashlib.sha256()).update(data)
                _write(self._descriptors[file.name], data, offset + at)

    def finish_tensor(self, tensor: str, hashes: Mapping[str, Any], method: str) -> None:
        entry = {name: digest.hexdigest() for name, digest in hashes.items()}
        with _disk(self.folder):
            self._note({"tensor": tensor, "arrays": entry, "method": method})
        self._finished[tensor] = entry
        self.methods[tensor] = method

    def add(self, name: str, contents: bytes) -> None:
        """A whole small file."""
        with _disk(self.folder):
            descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                _write(descriptor, contents, 0)
            finally:
                os.close(descriptor)

    def complete(self, *, single: str | None = None, progress: Callable[[int, int], None] | None = None) -> None:
        """Flushes, reads back, compares, and puts the output in its place. single: the name of the one file that OUT is,
        when OUT is a file; others then lie beside it, under OUT's name and their own."""
        with _disk(self.folder):
            self._verify(progress)
            names = sorted(path.name for path in self.folder.iterdir())
            final = {name: name if single is None else self._beside(name, single) for name in names}
            manifest = {"version": 1, "files": {final[name]: _facts(self.folder / name) for name in names}}
            self.add(MANIFEST, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
            for name in [*names, MANIFEST]:
                _sync(self.folder / name)
            _sync(self.folder)
            if single is not None:
                for name in [n for n in [*names, MANIFEST] if n != single]:
                    os.replace(self.folder / name, self.out.with_name(self._beside(name, single)))
                os.replace(self.folder / single, self.out)
                self.folder.rmdir()
            else:
                _put_in_place(self.folder, self.out)
            _sync(self.out.parent)
            self.journal.unlink()
        self.close()

    def _beside(self, name: str, single: str) -> str:
        return self.out.name if name == single else f"{self.out.name}.{name}"

    def _verify(self, progress: Callable[[int, int], None] | None) -> None:
        total, done = sum(self._sizes.values()), 0
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # what is compared comes from the disk
        for tensor, arrays in self._tensors.items():
            if tensor not in self._finished:
                raise ValueError(f"tensor {tensor} was not written")
            for array in arrays:
                if self._hash(array) != self._finished[tensor][array.name]:
                    raise ResourceError(f"{shown_path(self.folder)}: tensor '{array.name}' reads back other than it was written; "
                                        "the disk or the memory is faulty")
                done += array.nbytes
                if progress is not None:
                    progress(done, total)

    def close(self) -> None:
        """Leaves what is there, for --resume."""
        for descriptor in [*self._descriptors.values(), *([] if self._journal is None else [self._journal])]:
            os.close(descriptor)
        self._descriptors.clear()
        self._journal = None

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def clean_up(out: Path) -> None:
    """Removes what a run left that was stopped when OUT was in its place already."""
    folder = out.with_name(out.name + ".partial")
    with _disk(folder):
        if folder.exists():
            shutil.rmtree(folder)
        out.with_name(folder.name + ".jsonl").unlink(missing_ok=True)


def check_paths(out: Path, source: Path, force: bool) -> None:
    """Raises UsageError where OUT is the source, or in it, or around it, whatever --force says, and where it is there."""
    if not out.parent.is_dir():
        raise UsageError(f"{shown_path(out.parent)}: no such folder to write {shown_path(out.name)} into; make it first")
    if out.name in ("", ".", ".."):
        raise UsageError(f"{shown_path(out)}: is no name for an output")
    source_real, out_real = source.resolve(), out.resolve()
    same = out.exists() and source.exists() and os.path.samefile(out, source)
    if same or out_real == source_real or out_real in source_real.parents or source_real in out_real.parents:
        raise UsageError(f"{shown_path(out)}: the output would be, hold or lie in the model that is read; name another")
    if os.path.lexists(out) and not force:
        raise UsageError(f"{shown_path(out)} exists already; --force replaces it, or name another")


def hash_of(descriptor: int, offset: int, nbytes: int) -> str:
    digest, buffer = hashlib.sha256(), bytearray(min(nbytes, 8 << 20))
    while nbytes:
        view = memoryview(buffer)[: min(nbytes, len(buffer))]
        count = os.preadv(descriptor, [view], offset)
        if not count:
            break
        digest.update(view[:count])
        offset, nbytes = offset + count, nbytes - count
    return digest.hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        return {"bytes": size, "sha256": hash_of(descriptor, 0, size)}
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: "bytes | memoryview", offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view[: 64 << 20], offset)
        view, offset = view[count:], offset + count


RENAME_EXCHANGE = 2


def _put_in_place(partial: Path, out: Path) -> None:
    """partial becomes out. Where out is there the two change names in one step, so that there is always one of them."""
    if not os.path.lexists(out):
        os.rename(partial, out)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    here = -100  # AT_FDCWD
    try:
        failed = libc.renameat2(here, os.fsencode(partial), here, os.fsencode(out), RENAME_EXCHANGE)
    except AttributeError:  # a C library without it
        failed = -1
    if failed:  # a file system that cannot: the old one steps aside first
        aside = out.with_name(out.name + ".old")
        os.rename(out, aside)
        os.rename(partial, out)
        partial = aside
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial)
    else:
        partial.unlink()


class _disk:
    """Turns failures of the system into one line about the output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise ResourceError(f"{shown_path(self.folder)}: cannot be written: {error.strerror or error}; what is finished "
                                "stays there for --resume") from None
