"""What a smaller model cost: it and the model it was made of side by side over the same text, layer by layer.

Perplexity is exp of the mean negative log-likelihood of each next token. KL divergence is of the smaller model's next-token
distribution from the base's, in nats, a mean over positions (Kullback and Leibler 1951); the same model against itself
gives exactly 0. Sums are of float64 over float32 log-probabilities; results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Optional, Sequence

import numpy as np

from genkit import _core
from genkit.errors import BadFileError, UsageError
from genkit.nn import Tensor
from genkit.quant.streaming import Streamed, Tapped

if TYPE_CHECKING:
    from genkit.checkpoints import Checkpoint, Fields
    from genkit.text.tokenizer import Tokenizer

CONTEXT = 512  # tokens of a sequence
LOGIT_BYTES = 48 << 20  # of one model's logits in memory
Progress = Callable[[int, int], None]
Inputs = dict[tuple[str, ...], np.ndarray]  # what a product was given, by its matrices' names


def evaluation_tokens(weights: int) -> int:
    """Tokens the price is measured on where nobody says: fewer for larger models, by their size alone, so that the same
    command gives the same report."""
    return int(min(32768, max(1024, 1.5e12 / max(1, weights))))


def cut(tokenizer: "Tokenizer", text: str, count: int, context: int, what: str) -> list[list[int]]:
    """At most `count` tokens of a text as sequences of `context`; a last one shorter than 2 is dropped. Raises UsageError
    for a text of less than 2 tokens."""
    # A token has a byte at least: so many characters are enough, whatever the length of the text.
    ids = tokenizer.encode(text[: 64 * count])[:count]
    context = min(context, CONTEXT)
    found = [ids[i:i + context] for i in range(0, len(ids), context)]
    found = [part for part in found if len(part) > 1]
    if not found:
        raise UsageError(f"{what}: {len(ids)} tokens of text; at least 2 are needed to measure anything")
    return found


@dataclass
class Price:
    """rows: one entry a position, in order."""

    tokens: int = 0
    nll: np.ndarray = field(default_factory=lambda: np.empty(0))  # of the model
    base_nll: Optional[np.ndarray] = None
    kl: Optional[np.ndarray] = None
    same_top: float = 1.0
    errors: dict[str, float] = field(default_factory=dict)  # product's first matrix -> squared error / squared output

    def as_dict(self) -> dict[str, Any]:
        """For JSON and tables. Standard errors are over positions."""
        n = len(self.nll)
        result: dict[str, Any] = {"tokens": self.tokens, "positions": n, "perplexity": math.exp(self.nll.mean())}
        if self.kl is None:
            result["perplexity_error"] = result["perplexity"] * _error(self.nll)
            return result
        ratio = self.nll - self.base_nll
        result |= {
            "base_perplexity": math.exp(self.base_nll.mean()),
            "perplexity_ratio": math.exp(ratio.mean()),
            "perplexity_ratio_error": math.exp(ratio.mean()) * _error(ratio),
            "kl": {"mean": float(self.kl.mean()), "error": _error(self.kl), "median": float(np.quantile(self.kl, 0.5)),
                   "p99": float(np.quantile(self.kl, 0.99)), "p999": float(np.quantile(self.kl, 0.999)),
                   "max": float(self.kl.max())},
            "same_top": self.same_top,
        }
        if self.errors:
            worst = sorted(self.errors.items(), key=lambda item: (-item[1], item[0]))
            result["output_errors"] = dict(worst)
        return result


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def perplexity(fields: "Fields", checkpoint: "Checkpoint", sequences: Sequence[Sequence[int]],
               progress: Optional[Progress] = None) -> Price:
    """Of one model. Raises BadFileError for NaN logits."""
    return _run([Streamed(fields, checkpoint, sequences)], progress)


def compare(base: "tuple[Fields, Checkpoint]", model: "tuple[Fields, Checkpoint]", sequences: Sequence[Sequence[int]],
            progress: Optional[Progress] = None, errors: bool = True, scaled: bool = False) -> Price:
    """The model against its base. With `errors` also what each product makes of the first sequence: of the base's own
    inputs, or where they are `scaled` (AWQ), of the inputs that its layer makes of what the base's layer gets. Raises
    BadFileError for NaN logits, UsageError for models that are not of one shape."""
    inputs: list[Inputs] = [{}, {}]
    streams = [Streamed(*opened, sequences, tap=lambda names, x, seen=seen: seen.__setitem__(names, x.numpy().copy()))
               for opened, seen in zip((base, model), inputs)]
    shapes = [(s.config.vocab_size, s.config.layers) for s in streams]
    if shapes[0] != shapes[1]:
        raise UsageError(f"the model has {shapes[1][0]} tokens and {shapes[1][1]} layers, its base {shapes[0][0]} and "
                         f"{shapes[0][1]}; compare models of one shape")
    return _run(streams, progress, inputs if errors else None, scaled)


def _run(streams: list[Streamed], progress: Optional[Progress], inputs: Optional[list[Inputs]] = None, scaled: bool = False) -> Price:
    price = Price(tokens=sum(map(len, streams[0].tokens)))
    layers, count = streams[0].config.layers, len(streams[0].tokens)
    total, done = layers + count, 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for i in range(layers):
        blocks = [stream.block(i) for stream in streams]
        if inputs is not None:
            price.errors |= _errors(streams, blocks, inputs, scaled)
        while blocks:  # none stays while the next layer is read
            streams[len(blocks) - 1].apply(blocks.pop())
        tell()
    parts: list[tuple[np.ndarray, ...]] = []
    rows = max(1, LOGIT_BYTES // (4 * streams[0].config.vocab_size))
    for s, tokens in enumerate(streams[0].tokens):
        for begin in range(0, len(tokens) - 1, rows):
            end = min(begin + rows, len(tokens) - 1)
            parts.append(_positions([_log_probabilities(stream, s, begin, end) for stream in streams], tokens[begin + 1:end + 1]))
        tell()
    joined = [np.concatenate(column) for column in zip(*parts)]
    price.nll = joined[0]
    if len(streams) > 1:
        price.base_nll, price.kl, price.same_top = joined[1], joined[2], float(joined[3].mean())
    return price


def _errors(streams: list[Streamed], blocks: list[Any], inputs: list[Inputs], scaled: bool) -> dict[str, float]:
    streams[0].apply(blocks[0], [0], keep=False)
    if scaled:
        kept, streams[1].states = streams[1].states, streams[0].states
        streams[1].apply(blocks[1], [0], keep=False)
        streams[1].states = kept
    found = {}
    for names, (mine, theirs) in _products(blocks).items():
        wanted = mine.linear(Tensor.from_numpy(inputs[0][names])).numpy()
        got = theirs.linear(Tensor.from_numpy(inputs[scaled][names])).numpy()
        size = float(np.square(wanted, dtype=np.float64).sum())
        found[names[0]] = float(np.square(got - wanted, dtype=np.float64).sum()) / size if size else 0.0
    for seen in inputs:
        seen.clear()
    return found


def _products(blocks: Sequence[Any]) -> dict[tuple[str, ...], tuple[Tapped, Tapped]]:
    """The tapped linears of two blocks of one kind, by the names of their matrices."""
    found: list[dict[tuple[str, ...], Tapped]] = []

    def walk(value: Any, into: dict[tuple[str, ...], Tapped]) -> None:
        if isinstance(value, Tapped):
            into[value.names] = value
        elif type(value).__module__.startswith("genkit.") and hasattr(value, "__dict__"):
            for inner in vars(value).values():
                walk(inner, into)

    for block in blocks:
        found.append({})
        walk(block, found[-1])
    return {names: (linear, found[1][names]) for names, linear in found[0].items() if names in found[1]}


def _log_probabilities(stream: Streamed, i: int, begin: int, end: int) -> np.ndarray:
    logits = stream.logits(i, begin, end)
    if _core.nonfinite(logits).numpy().any():
        raise BadFileError(f"{stream.where}: the model's logits are not numbers; its weights are damaged")
    return _core.log_softmax(logits).numpy()


def _positions(models: list[np.ndarray], targets: Sequence[int]) -> tuple[np.ndarray, ...]:
    """nll, and of two models [base, model]: base nll, KL divergence, and whether both have the same likeliest token."""
    rows = np.arange(len(targets))
    nll = -models[-1][rows, targets].astype(np.float64)
    if len(models) == 1:
        return (nll,)
    base, model = models
    kl = np.empty(len(rows))
    for row in rows:  # one at a time: a few numbers of the vocabulary's size
        kl[row] = np.sum(np.exp(base[row]) * (base[row] - model[row]), dtype=np.float64)
    return nll, -base[rows, targets].astype(np.float64), np.maximum(kl, 0.0), base.argmax(1) == model.argmax(1)
