"""Runs a model file on the core directly, without the engine: what test_models.py and test_parity.py share."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
from architectures import Case
from checkpoint_files import write_tensors

from genkit.checkpoints import Checkpoint, Fields, open_checkpoint, read_config
from genkit.kv_cache import KVCache, Sequence, pages_for
from genkit.models import ARCHITECTURES, Model, load_model, read_model_config


def load(folder: Path) -> Model:
    fields = read_config(folder)
    with open_checkpoint(folder, fields) as checkpoint:
        return load_model(fields, checkpoint)


def module_of(case: Case) -> ModuleType:
    return importlib.import_module(f"genkit.models.{ARCHITECTURES[case.model_type]}")


def random_checkpoint(case: Case, folder: Path, seed: int) -> None:
    """A model of float32 weights such that every one of them shows in the logits. Without transformers."""
    fields = Fields(folder / "config.json", {"model_type": case.model_type} | case.sizes)
    config = read_model_config(fields, Checkpoint(folder, {}, {}))
    rng = np.random.default_rng(seed)
    middle = 0 if getattr(config, "norm", "") == "rms_plus_one" else 1

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape, np.float32)
        if len(shape) > 1 and not name.endswith("_bias"):
            return noise * np.float32(1.5 / shape[1]**0.5)
        return noise * np.float32(0.3) if name.endswith("bias") else middle + noise * np.float32(0.25)

    shapes = module_of(case).tensor_shapes(config)
    write_tensors(folder / "model.safetensors", {name: values(name, shape) for name, shape in shapes.items()})
    (folder / "config.json").write_text(json.dumps(fields.raw))


class Run:
    """One sequence through a model."""

    def __init__(self, model: Model, capacity: int) -> None:
        c = model.config
        self.model = model
        self.cache = KVCache(c.layers, c.kv_heads, c.head_dim, pages_for(capacity))
        self.sequence = Sequence()

    def feed(self, tokens: list[int], logit_rows: list[int] | None = None, context_length: int = 0) -> np.ndarray:
        """The next tokens of the sequence -> logits [tokens or logit_rows, vocab], a copy."""
        step = self.cache.step([(self.sequence, tokens)], logit_rows=logit_rows, context_length=context_length)
        return self.model(step, self.cache).numpy().copy()


def logits(model: Model, tokens: list[int], chunk: int = 0) -> np.ndarray:
    """[tokens, vocab], the prompt in one piece or in pieces of `chunk`."""
    run = Run(model, len(tokens))
    chunk = chunk or len(tokens)
    return np.concatenate([run.feed(tokens[i:i + chunk], context_length=len(tokens))
                           for i in range(0, len(tokens), chunk)])


def greedy(model: Model, tokens: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """The next `count` tokens one by one, and the logits each was taken from, [count, vocab]."""
    run = Run(model, len(tokens) + count)
    rows = [run.feed(tokens, logit_rows=[len(tokens) - 1])[0]]
    while len(rows) < count:
        rows.append(run.feed([int(rows[-1].argmax())])[0])
    return [int(row.argmax()) for row in rows], np.stack(rows)
