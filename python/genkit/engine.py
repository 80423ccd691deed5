"""A loaded model and what can be done with it: generate, stream, logits.

One sequence at a time, one forward pass a token, called eagerly from Python; the maths is in the core.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Sequence as Sized

import numpy as np

from genkit import _core, checkpoints, machine, models
from genkit.decoding.beam import beam_search
from genkit.decoding.logprobs import TokenLogprob, token_logprobs
from genkit.decoding.sampling import Sampler, SamplingSettings, check_logits
from genkit.decoding.stop import StopChecker
from genkit.errors import DeviceError, ResourceError, UsageError
from genkit.kv_cache import KVCache, Sequence, page_bytes, pages_for
from genkit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from genkit.checkpoints.config import GenerationDefaults

# Tokens of a prompt that go through the model at once: enough to keep the processor busy, few enough that the
# activations of a large model stay small.
PREFILL_CHUNK = 512


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
    logprobs: list[TokenLogprob] | None = None
    seed: int | None = None  # None when greedy: nothing was drawn
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
class _Request:
    max_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool
    beams: int
    length_penalty: float
    logprobs: int | None
    cancelled: Callable[[], bool]


def load(path: str | Path, device: str = "auto", threads: int | None = None, *, context: int | None = None,
         revision: str | None = None, offline: bool = False,
         progress: Callable[[int, int], None] | None = None) -> "LoadedModel":
    """Reads a model: a Hugging Face folder, or a name on the hub.

    device: "auto", "cpu" or "cuda". threads: default all that this process may use. context: longest prompt plus text
    in tokens, default what the model was made for. progress(done, total) is told bytes of weights read.

    Raises UsageError, BadFileError, ResourceError or DeviceError.
    """
    start = time.perf_counter()
    choose_device(device)
    threads = choose_threads(threads)
    if error := _core.isa_error():
        raise UsageError(error)
    folder = checkpoints.resolve(str(path), revision=revision, offline=offline)
    fields = checkpoints.read_config(folder)
    defaults = checkpoints.generation_defaults(folder, fields)
    checkpoint = checkpoints.open_checkpoint(folder)
    checkpoints.check_memory(checkpoint)
    if progress is not None:
        done = 0

        def count(read: int) -> None:
            nonlocal done
            done += read
            progress(done, checkpoint.nbytes)

        checkpoint.progress = count
    _core.set_threads(threads)
    model = models.load_model(fields, checkpoint)
    if context is None:
        context = model.config.max_positions
    if not 1 <= context <= model.config.max_positions:
        raise UsageError(f"context is {context} tokens; this model takes 1 to {model.config.max_positions}")
    tokenizer = None
    if Tokenizer.present(folder):
        tokenizer = Tokenizer(folder)
        checkpoints.check_token_ids(tokenizer.largest_id, model.config.vocab_size, folder / "tokenizer.json")
    return LoadedModel(folder, model, tokenizer, defaults, context, threads, time.perf_counter() - start)


def choose_device(device: str) -> str:
    """The device to use: "cpu" for now. Raises DeviceError when a GPU is asked for and cannot be used."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device is '{device}'; expected auto, cpu or cuda")
    if device == "cuda":
        raise DeviceError(f"--device cuda: {machine.cuda_state()[1]}; use --device cpu or auto")
    return "cpu"


def choose_threads(threads: int | None) -> int:
    """The thread count to use. Raises UsageError outside 1 to 1024."""
    if threads is None:
        return machine.available_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise UsageError(f"threads is {threads}; expected 1 to 1024")
    return threads


class LoadedModel:
    """A model in memory. One call at a time; use it from several threads only in turns."""

    def __init__(self, folder: Path, model: Any, tokenizer: Tokenizer | None, defaults: "GenerationDefaults",
                 context: int, threads: int, load_s: float) -> None:
        self.folder = folder
        self.config = model.config
        self.context = context
        self.threads = threads
        self.device = "cpu"
        self.load_s = load_s
        self._model = model
        self._tokenizer = tokenizer
        self._defaults = defaults

    @property
    def tier(self) -> str:
        """The best instruction-set tier in use."""
        return _core.current_tier()

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises BadFileError when the folder has none."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.folder)  # says what is missing
        return self._tokenizer

    def logits(self, token_ids: Sized[int]) -> np.ndarray:
        """float32 [n, vocab]: row i is about the token that follows token_ids[: i + 1]. Raises UsageError."""
        ids = self._checked_ids(token_ids)
        _core.set_threads(self.threads)
        cache = self._cache(len(ids), 1, len(ids) * self.config.vocab_size * 4)
        sequence = Sequence()
        out = np.empty((len(ids), self.config.vocab_size), np.float32)
        for begin in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[begin : begin + PREFILL_CHUNK]
            step = cache.step([(sequence, chunk)], context_length=len(ids))
            out[begin : begin + len(chunk)] = self._model(step, cache).numpy()
        return out

    def generate(self, prompt: str | Sized[int], *, on_text: Callable[[str], None] | None = None,
                 **options: Any) -> Generation:
        """Goes on from a prompt (text or token ids); on_text is called with each piece of text as it is made.

        Options, all by name: max_tokens (None: until the context is full), temperature, top_k, top_p, min_p,
        repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty, logit_bias ({id: value}), seed, stop (a
        string or several), ignore_eos, beams, length_penalty, logprobs (K likeliest a token), chat (None: if the model
        has a chat template), system, cancelled (a function asked before every step; true ends with "interrupted").
        A sampling option left None comes from the model's generation_config.json where that says do_sample, and is
        off otherwise (greedy). docs/decoding.md has the details.

        Raises UsageError for options and prompts that do not fit, BadFileError when the weights give NaN.
        """
        stream = self.stream(prompt, **options)
        for piece in stream:
            if on_text is not None:
                on_text(piece)
        return stream.generation

    def stream(self, prompt: str | Sized[int], *, max_tokens: int | None = None, temperature: float | None = None,
               top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
               repeat_penalty: float | None = None, repeat_last_n: int | None = None,
               presence_penalty: float | None = None, frequency_penalty: float | None = None,
               logit_bias: Mapping[int, float] | None = None, seed: int | None = None, stop: str | Sized[str] = (),
               ignore_eos: bool = False, beams: int = 1, length_penalty: float = 1.0, logprobs: int | None = None,
               chat: bool | None = None, system: str | None = None,
               cancelled: Callable[[], bool] = lambda: False) -> Stream:
        """As generate, but iterates over the pieces of text. Arguments are checked before this returns."""
        settings = SamplingSettings.resolve(
            self._defaults, self.config.vocab_size, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repeat_penalty=repeat_penalty, repeat_last_n=repeat_last_n, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, logit_bias=logit_bias, seed=seed)
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        StopChecker(stop)  # refuses an empty stop string now rather than at the first token
        if beams > 1:
            settings = settings.for_beams()
        ids = self._prompt_ids(prompt, chat, system)
        _check_counts(max_tokens, beams, length_penalty, logprobs, self.config.vocab_size)
        room = self.context - len(ids)
        if room < 1:
            raise UsageError(f"the prompt has {len(ids)} tokens and the context {self.context}, which leaves no room to "
                             "write; shorten the prompt or raise --context")
        if stop and self._tokenizer is None:
            self.tokenizer  # stop strings need text; raises, naming what is missing
        request = _Request(room if max_tokens is None else min(max_tokens, room), stop, ignore_eos, beams,
                           length_penalty, logprobs, cancelled)
        generation = Generation(prompt_tokens=ids, seed=settings.seed if settings.samples else None,
                                logprobs=None if logprobs is None else [])
        generation.settings = asdict(settings) | {
            "max_tokens": request.max_tokens, "stop": list(stop), "ignore_eos": ignore_eos, "beams": beams,
            "length_penalty": length_penalty, "chat": self._chats(prompt, chat)}
        generation.timings.load_s = self.load_s
        generation.timings.prompt_tokens = len(ids)
        run = self._beam if beams > 1 else self._sample
        return Stream(generation, run(request, settings, generation))

    # The two decoders are generators: they yield text and fill `generation`.

    def _sample(self, request: _Request, settings: SamplingSettings, generation: Generation) -> Iterator[str]:
        prompt, timings = generation.prompt_tokens, generation.timings
        _core.set_threads(self.threads)
        cache = self._cache(len(prompt) + request.max_tokens, 1)
        sequence = Sequence()
        sampler = Sampler(settings, prompt, self.config.vocab_size)
        text = _Text(self._tokenizer, request.stop, generation)
        start = time.perf_counter()
        logits = self._prefill(cache, sequence, prompt, request.cancelled)
        timings.prefill_s = time.perf_counter() - start
        start = time.perf_counter()
        while logits is not None:
            check_logits(logits, [sequence.length])
            if request.logprobs is not None:
                raw = _core.log_softmax(logits)
            token = sampler.next(logits, position=sequence.length)
            generation.tokens.append(token)
            timings.tokens += 1
            if request.logprobs is not None:
                generation.logprobs.append(token_logprobs(raw, token, request.logprobs, self._tokenizer))
            ends = not request.ignore_eos and token in self._defaults.eos_token_ids
            piece = "" if ends else text.push(token)
            timings.decode_s = time.perf_counter() - start
            if piece:
                yield piece
            if ends or text.stopped:
                generation.finish_reason = "stop"
                break
            if timings.tokens >= request.max_tokens:
                generation.finish_reason = "length"
                break
            logits = None
            if not request.cancelled():
                step = cache.step([(sequence, [token])], logit_rows=[0], context_length=len(prompt))
                logits = self._model(step, cache)
        else:
            generation.finish_reason = "interrupted"
        if rest := text.finish():
            yield rest
        timings.decode_s = time.perf_counter() - start

    def _prefill(self, cache: KVCache, sequence: Sequence, ids: list[int],
                 cancelled: Callable[[], bool]) -> _core.Tensor | None:
        """Logits [1, vocab] after the last id, or None when cancelled on the way."""
        logits = None
        for begin in range(0, len(ids), PREFILL_CHUNK):
            if cancelled():
                return None
            chunk = ids[begin : begin + PREFILL_CHUNK]
            last = begin + len(chunk) == len(ids)
            step = cache.step([(sequence, chunk)], logit_rows=[len(chunk) - 1] if last else [], context_length=len(ids))
            logits = self._model(step, cache)
        return logits

    # What a prompt and a request must satisfy.

    def _chats(self, prompt: str | Sized[int], chat: bool | None) -> bool:
        if not isinstance(prompt, str):
            return False
        if chat is None:
            return self._tokenizer is not None and self._tokenizer.chat_template is not None
        return chat

    def _prompt_ids(self, prompt: str | Sized[int], chat: bool | None, system: str | None) -> list[int]:
        if not isinstance(prompt, str):
            if chat or system is not None:
                raise UsageError("a prompt of token ids goes in as it is: chat and system need text")
            return self._checked_ids(prompt)
        if self._chats(prompt, chat):
            return self._checked_ids(self.tokenizer.encode_chat(prompt, system))
        if system is not None:
            raise UsageError("--system needs a chat template; this model has none, or --no-chat switched it off")
        return self._checked_ids(self.tokenizer.encode(prompt))

    def _checked_ids(self, ids: Sized[int]) -> list[int]:
        ids = [int(i) for i in ids]
        if not ids:
            raise UsageError("the prompt is empty: it has no tokens to go on from")
        bad = next((i for i in ids if not 0 <= i < self.config.vocab_size), None)
        if bad is not None:
            raise UsageError(f"token id {bad} is not in the vocabulary of {self.config.vocab_size}")
        if len(ids) > self.context:
            raise UsageError(f"the prompt has {len(ids)} tokens, more than the context of {self.context}; shorten the "
                             "prompt or raise --context")
        return ids

    def _cache(self, tokens: int, sequences: int, more_bytes: int = 0) -> KVCache:
        """A cache for that many tokens in each sequence. Raises ResourceError when the machine has no room for it."""
        c = self.config
        pages = pages_for(tokens) * sequences + sequences  # one spare each for copies on write
        need = pages * page_bytes(c.layers, c.kv_heads, c.head_dim) + more_bytes
        free = machine.memory_available()
        if need > free:
            raise ResourceError(f"{tokens} tokens in {sequences} sequence(s) need {need / 2**30:.1f} GiB beside the "
                                f"weights, and {free / 2**30:.1f} GiB are free; use a smaller --context or -n")
        return KVCache(c.layers, c.kv_heads, c.head_dim, pages)


class _Text:
    """Tokens in, text out: whole characters only, nothing past a stop string. Without a tokenizer there is no text."""

    def __init__(self, tokenizer: Tokenizer | None, stop: tuple[str, ...], generation: Generation) -> None:
        self._stream = None if tokenizer is None else tokenizer.stream()
        self._checker = StopChecker(stop)
        self._generation = generation

    @property
    def stopped(self) -> bool:
        return self._checker.stopped

    def push(self, token: int) -> str:
        return "" if self._stream is None else self._emit(self._checker.push(self._stream.push(token)))

    def finish(self) -> str:
        if self._stream is None or self.stopped:
            return ""
        rest = self._checker.push(self._stream.flush())
        return self._emit(rest if self.stopped else rest + self._checker.flush())

    def _emit(self, text: str) -> str:
        self._generation.text += text
        return text


def _check_counts(max_tokens: int | None, beams: int, length_penalty: float, logprobs: int | None, vocab: int) -> None:
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; expected 1 or more")
    if not 1 <= beams <= 64:
        raise UsageError(f"beams is {beams}; expected 1 to 64")
    if not np.isfinite(length_penalty):
        raise UsageError(f"length_penalty is {length_penalty}; expected a finite number")
    if logprobs is not None and not 0 <= logprobs <= min(vocab, 1000):
        raise UsageError(f"logprobs is {logprobs}; expected 0 to {min(vocab, 1000)}")
