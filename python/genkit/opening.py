"""A model's files, open for reading: a folder, or one GGUF file."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Mapping

from genkit import checkpoints
from genkit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from genkit.checkpoints import Checkpoint, Fields, GenerationDefaults


@dataclass
class Opened:
    """defaults: of generation_config.json. tokenizer makes one anew at each call; it raises BadFileError where the model
    has none."""

    path: Path
    fields: "Fields"
    checkpoint: "Checkpoint"
    defaults: "GenerationDefaults"
    tokenizer: Callable[[], Tokenizer]
    has_tokenizer: bool
    files: "Mapping[str, bytes]" = field(default_factory=dict)  # of one file: what else would lie in its folder

    def beside(self, name: str) -> Path:
        """A file that goes with the model: in its folder, or, for one file, beside it under its name and the other."""
        return self.path / name if self.path.is_dir() else self.path.with_name(f"{self.path.name}.{name}")


def open_model(path: Path, stack: ExitStack) -> Opened:
    """Headers and configuration; the files stay open until the stack is left. Raises BadFileError."""
    if not path.is_dir():
        from genkit.checkpoints import gguf

        model = gguf.open_model(path)
        stack.enter_context(model.checkpoint)
        defaults = checkpoints.generation_defaults(path, model.fields, model.generation)
        return Opened(path, model.fields, model.checkpoint, defaults,
                      lambda: Tokenizer(path, model.tokenizer_json, model.tokenizer_config), model.tokenizer_json is not None,
                      model.files())
    fields = checkpoints.read_config(path)
    defaults = checkpoints.generation_defaults(path, fields)
    checkpoint = stack.enter_context(checkpoints.open_checkpoint(path, fields))
    return Opened(path, fields, checkpoint, defaults, lambda: Tokenizer(path),
                  any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model")))
