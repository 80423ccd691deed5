"""Beam search, with the sequences and scores of transformers' `generate(num_beams=N, do_sample=False)` (5.x)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genkit.checks import real_number, whole_number
from genkit.errors import BadFileError, UsageError

if TYPE_CHECKING:
    import numpy

MAX_BEAMS = 64


@dataclass(frozen=True)
class Beam:
    """A finished sequence: generated tokens (the eos that ended it included) and score = sum of log-probabilities /
    len(tokens) ** length_penalty."""

    tokens: list[int]
    score: float
    finish_reason: str  # "stop" when an eos ended it, "length" otherwise


def beam_search(
    log_probs: numpy.ndarray,
    step: Callable[[list[int]], numpy.ndarray],
    reorder: Callable[[list[int]], None],
    *,
    beams: int,
    max_tokens: int,
    eos_token_ids: Collection[int] = (),
    length_penalty: float = 1.0,
    adjust: Callable[[numpy.ndarray, list[list[int]]], numpy.ndarray] | None = None,
) -> list[Beam]:
    """The `beams` best sequences, best first.

    log_probs: float32 [vocab], log-softmax of the prompt's last logits.
    reorder(parents): called before every `step`; row i of the state becomes a copy of row parents[i] (a page table
        fork). The first call makes `beams` rows out of the one row of the prompt: all parents are 0.
    step(tokens): appends tokens[i] to row i and returns float32 log-probabilities [len(tokens), vocab].
    adjust(log_probs [rows, vocab], generated tokens of each row): processed log-probabilities (penalties, bias), not
        normalized again.

    At each step the (1 + number of eos ids) * beams best continuations are looked at. Those of the best `beams` that
    end are finished sequences, the best `beams` that do not end go on. It is over when `beams` sequences are finished
    and the best running one, at its present length, scores no better than the worst of them (early_stopping=False),
    or at max_tokens. Equal scores: the lower beam first, then the lower token id.

    Raises UsageError for beams, max_tokens or length_penalty out of range; BadFileError for NaN log-probabilities.
    """
    import numpy as np

    vocab = log_probs.shape[-1]
    eos = {int(token) for token in eos_token_ids}
    check_options(beams, max_tokens, length_penalty)

    running: list[list[int]] = [[]]
    scores = np.zeros(1, np.float32)
    rows = np.asarray(log_probs, np.float32).reshape(1, vocab)
    finished: list[Beam] = []
    for length in range(1, max_tokens + 1):
        if adjust is not None:
            rows = adjust(rows, running)
        _check_nan(rows, length)
        looked_at = max(2, 1 + len(eos)) * beams
        totals, flat = _best(rows + scores[:, None], looked_at)
        divisor = np.float32(float(length) ** length_penalty)

        going_on: list[tuple[int, int, np.float32]] = []
        ended: list[Beam] = []
        for rank, (total, index) in enumerate(zip(totals, flat.tolist())):
            parent, token = divmod(index, vocab)
            if token in eos or length == max_tokens:
                if rank < beams:
                    reason = "stop" if token in eos else "length"
                    ended.append(Beam([*running[parent], token], float(total / divisor), reason))
            elif len(going_on) < beams:
                going_on.append((parent, token, total))
        # Stable: of equal scores the one found first stays first.
        finished = sorted(finished + ended, key=lambda beam: -beam.score)[:beams]

        if not going_on:
            break
        if len(finished) == beams and not float(going_on[0][2] / divisor) > finished[-1].score:
            break
        parents = [parent for parent, _, _ in going_on]
        tokens = [token for _, token, _ in going_on]
        running = [[*running[parent], token] for parent, token in zip(parents, tokens)]
        scores = np.array([total for _, _, total in going_on], np.float32)
        reorder(parents)
        rows = np.asarray(step(tokens), np.float32)
    if not finished:
        raise UsageError("logit_bias: every continuation of every beam is banned")
    return finished


def _best(totals: numpy.ndarray, count: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The `count` largest of [rows, vocab] that are not -infinity: values and flat indices, descending, equals by
    ascending index."""
    import numpy as np

    flat = totals.reshape(-1)
    count = min(count, flat.size)
    threshold = np.partition(flat, flat.size - count)[flat.size - count]
    candidates = np.flatnonzero((flat >= threshold) & (flat > -np.inf))
    order = np.argsort(-flat[candidates], kind="stable")[:count]
    return flat[candidates[order]], candidates[order]


def _check_nan(rows: numpy.ndarray, length: int) -> None:
    import numpy as np

    bad = int(np.isnan(rows).sum() + np.isposinf(rows).sum())
    if bad:
        raise BadFileError(
            f"log-probabilities of generated token {length} are not finite ({bad} of {rows.size} values): "
            "the model's weights are damaged or overflow"
        )


def check_options(beams: int, max_tokens: int, length_penalty: float) -> None:
    """Raises UsageError for an option out of range."""
    whole_number("beams", beams, 1, MAX_BEAMS)
    whole_number("max_tokens", max_tokens, 1, 2**31 - 1)
    real_number("length_penalty", length_penalty, -10, 10)
