"""The weights in each engine's form, written once into the work folder and used while the model stays the same."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Callable

from genkit.errors import ResourceError, UsageError

LOCK = ".lock"
RECORD = "written.json"  # {"source": fingerprint, "files": {name: {"seconds", "bytes"}}}


def default_folder(model: Path) -> Path:
    """In the user's cache, one a model."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    path = model.resolve()
    return cache / "genkit-bench" / "against" / f"{path.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def fingerprint(model: Path) -> list[list[Any]]:
    """Names, sizes and times of what a model's weights are made of."""
    paths = sorted(path for path in model.iterdir() if path.suffix in (".json", ".safetensors"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


class WorkFolder:
    """One run at a time has it. Raises ResourceError when it cannot be made or written, UsageError where another run is in it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / LOCK, "w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(f"--work {folder}: another run is using it; wait for it or name another folder") from None
        except OSError as error:
            raise ResourceError(f"--work {folder}: {error.strerror}") from None
        self._source = fingerprint(model)
        self._files: dict[str, Any] = {}
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if record["source"] == self._source:
                self._files = dict(record["files"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or not ours to understand: all is written again

    def get(self, name: str, write: Callable[[Path], None]) -> Path:
        """The file or folder of this name, written by `write(path)` unless it is there from this very model. What was
        begun and not finished is never found under the name."""
        path = self.folder / name
        if name in self._files and path.exists():
            return path
        partial = self.folder / f".partial-{name}"
        for old in (*self.folder.glob(f"{partial.name}*"), path):  # writers keep journals and reports beside
            self._remove(old)
        start = time.perf_counter()
        try:
            write(partial)
            seconds = time.perf_counter() - start
            os.replace(partial, path)
            self._files[name] = {"seconds": round(seconds, 3), "bytes": size_of(path)}
            record = {"source": self._source, "files": self._files}
            (self.folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        except OSError as error:
            raise ResourceError(f"{path}: cannot be written: {error.strerror}") from None
        finally:
            for rest in self.folder.glob(f"{partial.name}*"):
                self._remove(rest)
        return path

    def close(self) -> None:
        self._lock.close()

    def facts(self, name: str) -> dict[str, Any]:
        """Seconds it took to write, and bytes."""
        return dict(self._files[name])

    @staticmethod
    def _remove(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
    return path.stat().st_size
