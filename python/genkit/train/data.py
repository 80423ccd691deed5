"""The text that models are trained on: Python sources, chosen and split the same way on every run.

The default is the standard library of the interpreter that runs the command. Files are read in the order of their
paths, and each goes wholly to the train split or wholly to the held-out split by a seeded hash of its path.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from genkit.errors import BadFileError, UsageError

HELD_OUT_SHARE = 1 / 20
# A held-out file with more than this share of its bytes in lines that one train file also holds is a near-duplicate.
NEAR_DUPLICATE_SHARE = 0.5
_MIN_LINE = 25  # shorter lines ("return self.value") are common property and prove nothing

_GENERATED = re.compile(r"(auto-?generated|generated (from|by|automatically)|do not edit)", re.IGNORECASE)
_HEX = re.compile(r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|0x[0-9a-fA-F]+")
_SKIPPED_FOLDERS = {"site-packages", "__pycache__"}


@dataclass(frozen=True)
class SourceFile:
    """One text file: its path relative to the root (with `/`) and its text."""

    path: str
    text: str

    @property
    def size(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text.encode("utf-8"))


@dataclass
class Corpus:
    """Files of both splits, in path order, and what was left out with the reason (path -> reason)."""

    root: str
    train: list[SourceFile]
    held_out: list[SourceFile]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the paths and texts of both splits: equal exactly when the data is equal."""
        digest = hashlib.sha256()
        for name, files in (("train", self.train), ("held-out", self.held_out)):
            for file in files:
                body = file.text.encode("utf-8")
                digest.update(f"{name}\0{file.path}\0{len(body)}\0".encode() + body)
        return digest.hexdigest()


def standard_library() -> Path:
    """Folder of the standard library of this interpreter."""
    return Path(sysconfig.get_path("stdlib"))


def load_corpus(root: Path | None = None, seed: int = 0) -> Corpus:
    """Read every usable `.py` file below `root` (default: the standard library) and split by file.

    Left out: files that are not UTF-8, empty files, exact copies, files marked as generated in their first two lines or
    made of hexadecimal tables, files of the build (`_sysconfigdata*`), and near-duplicates between the splits.
    Raises UsageError when `root` is no folder, BadFileError when nothing usable is in it.
    """
    root = Path(root) if root is not None else standard_library()
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder of training text; give a folder that holds .py files")
    skipped: dict[str, str] = {}
    train: list[SourceFile] = []
    candidates: list[SourceFile] = []
    seen: set[str] = set()
    for path in _python_files(root):
        name = path.relative_to(root).as_posix()
        try:
            text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            skipped[name] = "not UTF-8"
            continue
        except OSError as error:
            raise BadFileError(f"{path}: cannot be read: {error.strerror}") from error
        reason = _unfit(name, text)
        digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
        if reason is None and digest in seen:
            reason = "exact copy"
        if reason is not None:
            skipped[name] = reason
            continue
        seen.add(digest)
        (candidates if is_held_out(name, seed) else train).append(SourceFile(name, text))
    held_out = _without_near_duplicates(candidates, train, skipped)
    if not train or not held_out:
        raise BadFileError(
            f"{root}: {len(train)} train and {len(held_out)} held-out files; both splits need some, use more .py files"
        )
    return Corpus(str(root), train, held_out, skipped)


def is_held_out(path: str, seed: int) -> bool:
    """Whether the file at this relative path is held out. Depends on the path and the seed only."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def _python_files(root: Path) -> list[Path]:
    found = (p for p in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(p.relative_to(root).parts))
    return sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(root).as_posix())


def _unfit(name: str, text: str) -> str | None:
    """Why a file is left out, or None."""
    if not text.strip():
        return "empty"
    if name.startswith("_sysconfigdata"):
        return "build settings of one machine"
    # Generators sign in the first two lines; further on the word is ordinary prose.
    if _GENERATED.search("\n".join(text.split("\n", 2)[:2])):
        return "generated"
    if sum(len(m) for m in _HEX.findall(text)) > 0.08 * len(text):
        return "hexadecimal table"
    return None


def _lines(text: str) -> list[str]:
    return [line for line in (raw.strip() for raw in text.splitlines()) if len(line) >= _MIN_LINE]


def _without_near_duplicates(
    held_out: list[SourceFile], train: list[SourceFile], skipped: dict[str, str]
) -> list[SourceFile]:
    """Held-out files but those that share most of their long lines with one train file (dropped from both splits)."""
    wanted = {line for file in held_out for line in _lines(file.text)}
    owners: dict[str, set[int]] = {}
    for index, file in enumerate(train):
        for line in _lines(file.text):
            if line in wanted:
                owners.setdefault(line, set()).add(index)
    kept = []
    for file in held_out:
        lines = _lines(file.text)
        shared: dict[int, int] = {}
        for line in lines:
            for index in owners.get(line, ()):
                shared[index] = shared.get(index, 0) + len(line)
        total = sum(map(len, lines))
        if shared and max(shared.values()) > NEAR_DUPLICATE_SHARE * total:
            skipped[file.path] = f"near-duplicate of {train[max(shared, key=shared.get)].path}"
        else:
            kept.append(file)
    return kept
