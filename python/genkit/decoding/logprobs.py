"""Log-probabilities of generated tokens, for --logprobs K."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from genkit._core import Tensor
    from genkit.text.tokenizer import Tokenizer


class Logprob(TypedDict):
    id: int
    token: str | None  # its text alone, U+FFFD for a part of a character; None without a tokenizer
    logprob: float


class TokenLogprob(Logprob):
    top: list[Logprob]


def token_logprobs(logprobs: Tensor, token: int, count: int, tokenizer: Tokenizer | None) -> TokenLogprob:
    """What --logprobs says of one generated token: its log-probability and the `count` likeliest tokens at its place,
    the likeliest first, equals by ascending id (the chosen token is there only if it is one of them).

    logprobs: f32 [1, vocab], log-softmax of the model's own logits, which no temperature, filter, bias or penalty has
    touched: what transformers' `output_logits` and OpenAI's API report. Take it before the sampler changes the logits.
    count: from 0 to vocab.
    """
    from genkit import _core

    def entry(token_id: int, logprob: float) -> Logprob:
        return {"id": token_id, "token": None if tokenizer is None else tokenizer.token(token_id), "logprob": logprob}

    top: list[Logprob] = []
    if count:
        values, ids = _core.top_k(logprobs, count)
        top = [entry(*pair) for pair in zip(ids.numpy()[0].tolist(), values.numpy()[0].tolist())]
    return {**entry(token, float(logprobs.numpy()[0, token])), "top": top}
