"""Log-probabilities of generated tokens, for --logprobs K."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from genkit.checks import whole_number

if TYPE_CHECKING:
    from genkit._core import Tensor


def check_count(count: int, vocab_size: int) -> int:
    """K of --logprobs: from 0 (the chosen token only) to the vocabulary. Raises UsageError."""
    return whole_number("logprobs", count, 0, vocab_size)


class RawLogprobs:
    """The model's own distribution: log-softmax of logits that no temperature, filter, bias or penalty has touched, as
    transformers (output_logits) and OpenAI's API report it. Take it before `Sampler.next`, which changes the logits."""

    def __init__(self, logits: Tensor, count: int) -> None:
        """logits: f32 [rows, vocab]. count: how many of the likeliest tokens to report, up to vocab."""
        from genkit import _core

        self._logprobs = _core.log_softmax(logits)
        self._top = None
        if count:
            values, ids = _core.top_k(self._logprobs, count)
            self._top = (values.numpy(), ids.numpy())

    def entries(self, tokens: Sequence[int], text_of: Callable[[int], str | None]) -> list[dict[str, Any]]:
        """For each row's chosen token {"id", "token", "logprob", "top": [{"id", "token", "logprob"}, ...]}: the
        likeliest first, equals by ascending id; the chosen token is in "top" only if it is among them."""
        rows = self._logprobs.numpy()
        result = []
        for row, token in enumerate(tokens):
            top = []
            if self._top is not None:
                pairs = zip(self._top[1][row].tolist(), self._top[0][row].tolist())
                top = [_entry(token_id, logprob, text_of) for token_id, logprob in pairs]
            result.append({**_entry(token, float(rows[row, token]), text_of), "top": top})
        return result


def _entry(token_id: int, logprob: float, text_of: Callable[[int], str | None]) -> dict[str, Any]:
    return {"id": token_id, "token": text_of(token_id), "logprob": logprob}
