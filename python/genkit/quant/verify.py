"""Whether a model's files are whole: checksums, names and shapes, and every tensor read, decoded and looked at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import numpy as np

from genkit import _core
from genkit.checkpoints.config import read_json
from genkit.checkpoints.files import open_regular, shown, shown_path
from genkit.errors import BadFileError
from genkit.quant.codes import Codes, widen
from genkit.opening import Opened
from genkit.quant.output import MANIFEST, hash_of
from genkit.quant.roles import survey

ROWS = 8 << 20  # weights looked at at a time


def verify(model: Opened, progress: Optional[Callable[[str, int, int], None]] = None) -> dict[str, Any]:
    """-> {"files": checked against the manifest, "tensors", "problems": [one line each]}. Raises BadFileError for a model
    that cannot be opened at all."""
    problems: list[str] = []
    files = 0
    if (manifest := model.beside(MANIFEST)).exists():
        for line in _against_manifest(model, manifest, progress):
            files += 1
            if line:
                problems.append(line)
    survey(model.fields, model.checkpoint)  # names and shapes
    total, done = model.checkpoint.nbytes, 0
    for name, info in sorted(model.checkpoint.tensors.items()):
        try:
            for values in _pieces(model, name):
                if line := _problem(values):
                    problems.append(f"{shown_path(info.file)}: tensor {shown(name, 200)}: {line}")
                    break
        except (BadFileError, ValueError) as error:
            problems.append(str(error))
        done += info.nbytes
        if progress is not None:
            progress(name, done, total)
    return {"files": files, "tensors": len(model.checkpoint.tensors), "problems": problems}


def _against_manifest(model: Opened, manifest: Path, progress: Any) -> Iterator[str]:
    """A line for each file listed: empty where it is as it was written."""
    listed = read_json(manifest).get("files")
    if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
        raise BadFileError(f"{shown_path(manifest)}: files is {shown(listed)}; expected an object of objects")
    for done, (name, entry) in enumerate(sorted(listed.items())):
        if name != os.path.basename(name):
            raise BadFileError(f"{shown_path(manifest)}: names {shown(name)}, which is no plain file name")
        try:
            path = manifest.with_name(name)
            descriptor, size = open_regular(path)
        except BadFileError as error:
            yield str(error)
            continue
        try:
            if size != entry.get("bytes"):
                yield f"{shown_path(path)}: {size} bytes; {MANIFEST} says {shown(entry.get('bytes'))}"
            elif hash_of(descriptor, 0, size) != entry.get("sha256"):
                yield f"{shown_path(path)}: its SHA-256 is not what {MANIFEST} says; it was changed or damaged"
            else:
                yield ""
        finally:
            os.close(descriptor)
        if progress is not None:
            progress(name, done + 1, len(listed))


def _pieces(model: Opened, name: str) -> "Iterator[Codes | np.ndarray]":
    checkpoint, info = model.checkpoint, model.checkpoint.tensors[name]
    stored = checkpoint.quantized.get(name)
    if stored is None or stored.format is None:
        if stored is None and info.dtype not in ("f32", "f16", "bf16"):
            return  # a buffer of another kind, which no model reads
        step = max(1, ROWS // max(1, info.nbytes // max(1, info.shape[0]))) if info.shape else 1
        if not info.shape or 0 in info.shape:
            return
        for begin in range(0, info.shape[0], step):
            yield _core.convert(checkpoint.load_rows(name, info.shape, begin, min(begin + step, info.shape[0])), "f32").numpy()
        return
    n, k = stored.shape
    step = max(32, ROWS // k // 32 * 32)
    for begin in range(0, n, step):
        yield checkpoint.rows_to_run(name, stored.shape, begin, min(begin + step, n))


def _problem(values: "Codes | np.ndarray") -> str:
    """What is wrong, or nothing."""
    if isinstance(values, Codes):
        values.pack()  # its checks of every range; raises ValueError
        if not np.isfinite(widen(values.scales, values.format.scale_dtype)).all():
            return "a scale is NaN or infinite"
        if values.format.zero == "real" and not np.isfinite(widen(values.zeros, values.format.scale_dtype)).all():
            return "a minimum is NaN or infinite"
        return ""
    bad = int((~np.isfinite(values)).sum())
    return f"{bad} values are NaN or infinite" if bad else ""
