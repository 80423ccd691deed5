"""What a generation is: its result as it grows, what was asked, and tokens turned into text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Iterator

from genkit.decoding.stop import StopChecker

if TYPE_CHECKING:
    from genkit.text.tokenizer import Tokenizer


@dataclass
class Timings:
    """Seconds on the wall clock, and the tokens they bought."""

    load_s: float = 0.0
    prefill_s: float = 0.0  # from the prompt's ids to the logits of the first new token
    decode_s: float = 0.0  # everything after that
    prompt_tokens: int = 0
    tokens: int = 0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_rate(self) -> float:
        """New tokens a second; the first one comes out of the prefill and is not counted."""
        return (self.tokens - 1) / self.decode_s if self.decode_s and self.tokens > 1 else 0.0


@dataclass
class Generation:
    """What came of one prompt. `tokens` holds all new ids, an end-of-text id included; `text` shows no special tokens
    and ends before a stop string."""

    prompt_tokens: list[int]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""  # "stop": end-of-text or stop string; "length": max_tokens or context; "interrupted"
    logprobs: list[dict[str, Any]] | None = None  # a token each: id, token, logprob, top
    seed: int | None = None  # None when greedy and none was given: nothing was drawn
    settings: dict[str, Any] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)


class Stream:
    """Iterates over pieces of text as they are made. `generation` grows meanwhile and is complete at the end."""

    def __init__(self, generation: Generation, pieces: Iterator[str]) -> None:
        self.generation = generation
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        return self._pieces


@dataclass(frozen=True)
class Request:
    """What was asked of one generation beside how tokens are drawn."""

    max_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool
    beams: int
    length_penalty: float
    logprobs: int | None
    cancelled: Callable[[], bool]


class Text:
    """Tokens in, text out: whole characters only, nothing past a stop string. Without a tokenizer there is no text."""

    def __init__(self, tokenizer: Tokenizer | None, stop: tuple[str, ...], generation: Generation) -> None:
        self._stream = None if tokenizer is None else tokenizer.stream()
        self._checker = StopChecker(stop)
        self._generation = generation
        self.stopped = False  # by a stop string

    def push(self, token: int) -> str:
        return "" if self._stream is None or self.stopped else self._emit(self._stream.push(token))

    def finish(self) -> str:
        if self._stream is None or self.stopped:
            return ""
        return self._emit(self._stream.flush(), last=True)

    def _emit(self, text: str, last: bool = False) -> str:
        text, self.stopped = self._checker.push(text)
        if last and not self.stopped:
            text += self._checker.flush()
        self._generation.text += text
        return text
