"""genkit: run, shrink and measure generative models on the machine you have.

    import genkit
    m = genkit.load(genkit.DEFAULT_MODEL)
    print(m.generate("def fibonacci(n):", max_tokens=64).text)

Importing this loads neither numpy nor the compiled core; `load` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from genkit.errors import BadFileError, DeviceError, Error, Interrupted, ResourceError, UsageError

if TYPE_CHECKING:
    from genkit.engine import Generation, LoadedModel, load

__all__ = ["DEFAULT_MODEL", "BadFileError", "DeviceError", "Error", "Generation", "Interrupted", "LoadedModel",
           "ResourceError", "UsageError", "load"]

# A small model that ships with the package; its card is MODEL_CARD.md beside the weights.
DEFAULT_MODEL = Path(__file__).parent / "assets" / "default"


def __getattr__(name: str):
    if name in ("Generation", "LoadedModel", "load"):
        from genkit import engine

        return getattr(engine, name)
    if name == "__version__":
        from genkit._core import __version__

        return __version__
    raise AttributeError(f"module 'genkit' has no attribute {name!r}")
