"""A model as GGUF for llama.cpp, as `genkit quantize` and `genkit convert` write it: floats as they are stored, or rounded to
Q4_0 or Q8_0, embeddings and head to Q8_0."""

from __future__ import annotations

from pathlib import Path

# Of our own rounding; any other kind is the floats as they are stored.
TYPES = {"q4_0": "int4", "q8_0": "int8"}


def write_gguf(folder: Path, out: Path, kind: str, threads: int) -> None:
    """Raises BadFileError for a model that cannot be read, UsageError for one that GGUF has no place for, ResourceError."""
    from genkit.quant import job, rewrite
    from genkit.quant.quantize import Recipe

    if kind in TYPES:
        job.quantize(folder, out, Recipe(type=TYPES[kind], format="gguf"), price=False, force=True, threads=threads)
    else:
        rewrite.convert(folder, out, "gguf", force=True, threads=threads)
