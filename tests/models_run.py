"""Runs a model file on the core directly, without the engine: what test_models.py and test_parity.py share."""

from pathlib import Path

import numpy as np

from genkit.checkpoints import open_checkpoint, read_config
from genkit.kv_cache import KVCache, Sequence, pages_for
from genkit.models import Model, load_model


def load(folder: Path) -> Model:
    fields = read_config(folder)
    with open_checkpoint(folder, fields) as checkpoint:
        return load_model(fields, checkpoint)


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
