"""A loaded model and what can be done with it: generate, stream, logits.

Prompts go through the model in chunks, called eagerly; new tokens come from a recorded plan (batch.py, plan.py), many to
a call where nothing has to be decided in Python between them. The maths is in the core.
"""

from __future__ import annotations

import functools
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Sequence as Sized

import numpy as np

from genkit import _core, checkpoints, machine, models, split
from genkit.batch import PREFILL_CHUNK, Batch, Job, prefill
from genkit.checkpoints.safetensors import check_memory
from genkit.checks import whole_number
from genkit.decoding import sampling
from genkit.decoding.beam import beam_search, check_options
from genkit.decoding.logprobs import RawLogprobs, check_count
from genkit.decoding.sampling import Sampler
from genkit.decoding.stop import StopChecker
from genkit.devices import choose_device, free_memory, stepping, using
from genkit.errors import Interrupted, ResourceError, UsageError
from genkit.generation import Generation, Request, Stream, Text
from genkit.kv_cache import KV_TYPES, KVCache, Sequence, page_bytes, pages_for
from genkit.nn import Weights
from genkit.opening import Opened, open_model
from genkit.plaintext import format_bytes
from genkit.plan import Decoder, padded_rows
from genkit.quant import formats
from genkit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields


def load(path: str | Path, device: str = "auto", threads: int | None = None, *, quantize: str | None = None,
         kv_type: str = "auto", context: int | None = None, gpu_layers: int | None = None, revision: str | None = None, offline: bool = False,
         progress: Callable[[int, int], None] | None = None) -> "LoadedModel":
    """Reads a model: a Hugging Face folder, a GGUF file, or a name on the hub.

    device: "auto", "cpu" or "cuda". threads: default all that this process may use. quantize: "int4" or "int8" rounds
    the weights while they are read, "none" keeps them; default what the model's config.json asks for, else "none".
    kv_type: how keys and values are kept, "f32", "f16", "bf16", "int8", or "auto": f32 where the weights are f32, else
    bf16. context: longest prompt plus text in tokens, default what the model was made for. gpu_layers: how many layers, the last ones, are
    on the GPU, the rest on the processor; default as many as fit. progress(done, total) is told
    bytes of weights read.

    Raises UsageError, BadFileError, ResourceError or DeviceError.
    """
    start = time.perf_counter()
    device = choose_device(device)
    threads = choose_threads(threads)
    if error := _core.isa_error():
        raise UsageError(error)
    folder = checkpoints.resolve(str(path), revision=revision, offline=offline, progress=progress is not None)
    with ExitStack() as stack:
        opened = open_model(folder, stack)
        return load_opened(opened, str(path), threads, device=device, quantize=quantize, kv_type=kv_type, context=context,
                           gpu_layers=gpu_layers, progress=progress, start=start)


def load_opened(opened: Opened, name: str, threads: int, *, device: str = "cpu", quantize: str | None = None, kv_type: str = "auto",
                context: int | None = None, gpu_layers: int | None = None, progress: Callable[[int, int], None] | None = None,
                start: float | None = None) -> "LoadedModel":
    """As load, of a model whose files are open, or that lies in memory. name: what messages call it. start: of load_s, on the
    clock of time.perf_counter."""
    start = time.perf_counter() if start is None else start
    fields, checkpoint = opened.fields, opened.checkpoint
    quantize = choose_quantize(quantize, fields)
    format = None if quantize == "none" else formats.BY_NAME[quantize]
    if checkpoint.quantized and format is not None:
        raise UsageError(f"{name}: its weights are codes already: --quantize {quantize} would round them a second time; "
                         "leave it away")
    _core.set_threads(threads)
    bits = None if format is None else format.bits
    if device == "cpu":
        check_memory(checkpoint, bits=bits)
    if progress is not None:
        done = 0

        def count(read: int) -> None:
            nonlocal done
            done += read
            progress(done, checkpoint.nbytes)

        checkpoint.progress = count
    kv_type = choose_kv_type(kv_type, checkpoint, quantize)
    core_format, placing = None if format is None else format.core(), None
    if device == "cpu":
        model = models.load_model(fields, checkpoint, core_format)
    else:
        model = models.open_model(fields, checkpoint, functools.partial(Weights, format=core_format))
    longest = model.config.max_positions
    if context is not None:
        whole_number("context", context, 1, longest)
    if device != "cpu":
        model, placing = split.load(model, checkpoint, device, gpu_layers, context, kv_type, bits)
    context = longest if context is None else context
    tokenizer = None
    if opened.has_tokenizer:  # without one the model still takes token ids
        tokenizer = opened.tokenizer()
        checkpoints.check_token_ids(tokenizer.vocab_size - 1, model.config.vocab_size, tokenizer.path)
    return LoadedModel(opened, model, tokenizer, context, threads, device, quantize, kv_type,
                       time.perf_counter() - start, placing)


def choose_quantize(quantize: str | None, fields: "Fields") -> str:
    """"none", "int4" or "int8": as asked, else as config.json has it under "genkit_quantize". Raises UsageError, and
    BadFileError for a form that file cannot ask for."""
    known = ["none", *formats.BY_NAME]
    if quantize is None:
        return fields.string("genkit_quantize", known, "none")
    if quantize not in known:
        raise UsageError(f"quantize is {quantize!r}; expected {', '.join(known)}")
    return quantize


def choose_threads(threads: int | None) -> int:
    """The thread count to use. Raises UsageError outside 1 to 1024."""
    if threads is None:
        return machine.available_threads()
    return whole_number("threads", threads, 1, 1024)


def choose_kv_type(kv_type: str, checkpoint: checkpoints.Checkpoint, quantize: str) -> str:
    """The type of keys and values: as asked, or by the matrices'. Raises UsageError for an unknown one."""
    if kv_type not in ("auto", *KV_TYPES):
        raise UsageError(f"kv_type is {kv_type!r}; expected auto, {', '.join(KV_TYPES)}")
    if kv_type != "auto":
        return kv_type
    f32 = any(info.dtype == "f32" for info in checkpoint.tensors.values() if len(info.shape) > 1)
    return "f32" if f32 and quantize == "none" else "bf16"


class LoadedModel:
    """A model in memory. One call at a time; use it from several threads only in turns."""

    def __init__(self, opened: Opened, model: Any, tokenizer: Tokenizer | None, context: int, threads: int, device: str,
                 quantize: str, kv_type: str, load_s: float, placing: "split.Placing | None" = None) -> None:
        self.folder = opened.path
        self.widened = opened.checkpoint.widened_words()  # matrices that run larger than they are in the file, in words
        self.config = model.config
        self.context = context
        self.threads = threads
        self.device = device  # "cpu" or "cuda"
        self.placing = placing  # what is on the device, None on the processor
        self.kv_type = kv_type  # of the cache: "f32", "f16", "bf16" or "int8"
        self.quantize = quantize  # what the weights were rounded to: "none", "int4", "int8"
        self.load_s = load_s
        self._model = model
        self._tokenizer = tokenizer
        self._open_tokenizer = opened.tokenizer
        self._defaults = defaults = opened.defaults
        # Where the model's files name no end of text, the tokenizer's own is taken.
        self._eos_ids = defaults.eos_token_ids
        if not self._eos_ids and tokenizer is not None and tokenizer.eos_id is not None:
            self._eos_ids = (tokenizer.eos_id,)

    @property
    def tier(self) -> str:
        """The best instruction-set tier in use, or "cuda"."""
        return _core.current_tier() if self.device == "cpu" else self.device

    @property
    def model(self) -> "models.Model":
        """The layers, for those who measure them."""
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises BadFileError when the folder has none."""
        if self._tokenizer is None:
            self._tokenizer = self._open_tokenizer()  # says what is missing
        return self._tokenizer

    def logits(self, token_ids: Sized[int]) -> np.ndarray:
        """float32 [n, vocab]: row i is about the token that follows token_ids[: i + 1]. Raises UsageError."""
        ids = self._checked_ids(token_ids)
        _core.set_threads(self.threads)
        with using(self.device):
            return self._logits(ids)

    def _logits(self, ids: list[int]) -> np.ndarray:
        cache = self._cache([len(ids)], len(ids) * self.config.vocab_size * 4, min(len(ids), PREFILL_CHUNK))
        sequence = Sequence()
        out, arena = np.empty((len(ids), self.config.vocab_size), np.float32), _core.Arena()
        for begin in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[begin : begin + PREFILL_CHUNK]
            step = cache.step([(sequence, chunk)], context_length=len(ids))
            out[begin : begin + len(chunk)] = arena.run(self._model, step, cache).numpy()
        return out

    def generate(self, prompt: str | Sized[int] | Sized[str] | Sized[Sized[int]], *,
                 on_text: Callable[[str], None] | None = None, batch_size: int = 8, **options: Any,
                 ) -> Generation | list[Generation]:
        """Goes on from a prompt (text or token ids); on_text is called with each piece of text as it is made. Several
        prompts run together, batch_size at a time, and give a list: each the same text as alone with the same seed.

        Options, all by name: max_tokens (None: until the context is full), temperature, top_k, top_p, min_p,
        repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty, logit_bias ({id: value}), seed, stop (a
        string or several), ignore_eos, beams, length_penalty, logprobs (K likeliest a token), chat (None: if the model
        has a chat template), system, parse_special (names of special tokens in the prompt are those tokens, not text),
        cancelled (a function asked about every 30 ms; true ends with "interrupted").
        A sampling option left None comes from the model's generation_config.json where that says do_sample, and is
        off otherwise (greedy). docs/decoding.md has the details.

        Raises UsageError for options and prompts that do not fit, BadFileError when the weights give NaN.
        """
        if isinstance(prompt, (list, tuple)) and prompt and not any(isinstance(part, (int, np.integer)) for part in prompt):
            if on_text is not None:
                raise UsageError("on_text: text of several prompts at once has no order; leave it away")
            return self._generate_all(prompt, whole_number("batch_size", batch_size, 1, 1024), options)
        stream = self.stream(prompt, **options)
        for piece in stream:
            if on_text is not None:
                on_text(piece)
        return stream.generation

    def _generate_all(self, prompts: Sized[str] | Sized[Sized[int]], batch_size: int,
                      options: dict[str, Any]) -> list[Generation]:
        if options.get("beams", 1) != 1:
            return [self.generate(prompt, **options) for prompt in prompts]
        prepared = [self._prepared(prompts[0], **options)]
        options = options | {"seed": prepared[0][2].seed}  # one for all, drawn if none was given
        prepared += [self._prepared(prompt, **options) for prompt in prompts[1:]]
        jobs = [Job(request, generation) for request, _, generation in prepared]
        for _ in self._batch(jobs, prepared[0][1], batch_size):
            pass
        return [job.generation for job in jobs]

    def stream(self, prompt: str | Sized[int], **options: Any) -> Stream:
        """As generate of one prompt, but iterates over the pieces of text. Arguments are checked before this returns."""
        request, sampler, generation = self._prepared(prompt, **options)
        run = self._beam if request.beams > 1 else self._sample
        return Stream(generation, run(request, sampler, generation))

    def _prepared(self, prompt: str | Sized[int], *, max_tokens: int | None = None, temperature: float | None = None,
                  top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
                  repeat_penalty: float | None = None, repeat_last_n: int | None = None,
                  presence_penalty: float | None = None, frequency_penalty: float | None = None,
                  logit_bias: Mapping[int, float] | None = None, seed: int | None = None, stop: str | Sized[str] = (),
                  ignore_eos: bool = False, beams: int = 1, length_penalty: float = 1.0, logprobs: int | None = None,
                  chat: bool | None = None, system: str | None = None, parse_special: bool = False,
                  cancelled: Callable[[], bool] = lambda: False) -> tuple[Request, Sampler, Generation]:
        check_options(beams, 1 if max_tokens is None else max_tokens, length_penalty)
        if logprobs is not None:
            check_count(logprobs, self.config.vocab_size)
        if beams > 1:
            if temperature:
                raise UsageError(f"temperature: {temperature} with {beams} beams; beam search draws nothing: leave one away")
            temperature = 0.0  # whatever generation_config.json says
        settings = sampling.resolve(
            self._defaults, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repeat_penalty=repeat_penalty, repeat_last_n=repeat_last_n, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, logit_bias=logit_bias, seed=seed)
        try:
            stop = (stop,) if isinstance(stop, str) else tuple(stop)
        except TypeError:
            raise UsageError(f"stop: {stop!r} is neither text nor several texts") from None
        StopChecker(stop)  # refuses what cannot stop anything now rather than at the first token
        ids = self._prompt_ids(prompt, chat, system, parse_special)
        room = self.context - len(ids)
        if room < 1:
            raise UsageError(f"the prompt has {len(ids)} tokens and the context {self.context}, which leaves no room to "
                             "write; shorten the prompt or raise --context")
        if stop and self._tokenizer is None:
            self.tokenizer  # stop strings need text; raises, naming what is missing
        sampler = Sampler(settings, self.config.vocab_size)
        request = Request(room if max_tokens is None else min(max_tokens, room), stop, ignore_eos, beams,
                           length_penalty, logprobs, cancelled)
        greedy = sampler.settings.temperature == 0
        generation = Generation(prompt_tokens=ids, seed=seed if greedy else sampler.seed,
                                logprobs=None if logprobs is None else [])
        generation.settings = sampler.settings.as_dict() | {
            "seed": generation.seed,
            "max_tokens": request.max_tokens, "stop": list(stop), "ignore_eos": ignore_eos, "beams": beams,
            "length_penalty": length_penalty, "chat": self._chats(prompt, chat)}
        generation.timings.load_s = self.load_s
        generation.timings.prompt_tokens = len(ids)
        return request, sampler, generation

    # The two decoders are generators: they yield text and fill `generation`.

    def _sample(self, request: Request, sampler: Sampler, generation: Generation) -> Iterator[str]:
        for _, piece in self._batch([Job(request, generation)], sampler, 1):
            yield piece

    def _batch(self, jobs: list[Job], sampler: Sampler, rows: int) -> Iterator[tuple[int, str]]:
        _core.set_threads(self.threads)
        return stepping(self.device, self._run(jobs, sampler, rows))

    def _run(self, jobs: list[Job], sampler: Sampler, rows: int) -> Iterator[tuple[int, str]]:
        longest = sorted((len(job.generation.prompt_tokens) + job.request.max_tokens for job in jobs), reverse=True)
        batch = Batch(self._model, self._cache(longest[:rows]), longest[0], sampler, self._tokenizer, self._eos_ids)
        yield from batch.run(jobs, rows)

    def _beam(self, request: Request, sampler: Sampler, generation: Generation) -> Iterator[str]:
        _core.set_threads(self.threads)
        return stepping(self.device, self._search(request, sampler, generation))

    def _search(self, request: Request, sampler: Sampler, generation: Generation) -> Iterator[str]:
        prompt, timings = generation.prompt_tokens, generation.timings
        cache = self._cache([len(prompt) + request.max_tokens] * request.beams)
        rows, texts = [Sequence()], [list(prompt)]
        decoder = Decoder(self._model, cache, len(prompt) + request.max_tokens)
        start = time.perf_counter()
        logits = prefill(self._model, cache, rows[0], prompt, request.cancelled)
        timings.prefill_s = time.perf_counter() - start
        start = time.perf_counter()

        def log_probabilities(logits: _core.Tensor) -> np.ndarray:
            sampling.check_finite(logits, [sequence.length for sequence in rows])
            return _core.log_softmax(logits).numpy()

        def reorder(parents: list[int]) -> None:
            forks = [cache.fork(rows[parent]) for parent in parents]
            for sequence in rows:
                cache.release(sequence)
            rows[:] = forks
            texts[:] = [list(texts[parent]) for parent in parents]

        def adjust(log_probs: np.ndarray, generated: list[list[int]]) -> np.ndarray:
            histories = [sampler.history(prompt) for _ in generated]
            for history, tokens in zip(histories, generated):
                for token in tokens if history is not None else ():
                    history.append(token)
            adjusted = _core.Tensor.from_numpy(log_probs)
            sampler.adjust_(adjusted, histories)
            return adjusted.numpy()

        def step(tokens: list[int]) -> np.ndarray:
            if request.cancelled():
                raise Interrupted("interrupted: beam search has no text before its end")
            for text, token in zip(texts, tokens):
                text.append(token)
            if rows[0].length == self.config.fresh_keys_beyond:
                return np.concatenate([fresh(row, text) for row, text in zip(rows, texts)])
            return log_probabilities(decoder.step(list(zip(rows, tokens)), context_length=len(prompt)))

        def fresh(row: Sequence, text: list[int]) -> np.ndarray:
            cache.release(row)
            return log_probabilities(prefill(self._model, cache, row, text, lambda: False))

        if logits is None:
            raise Interrupted("interrupted: beam search has no text before its end")
        best = beam_search(log_probabilities(logits)[0], step, reorder, beams=request.beams,
                           max_tokens=request.max_tokens, length_penalty=request.length_penalty,
                           eos_token_ids=() if request.ignore_eos else self._eos_ids,
                           adjust=adjust)[0]
        generation.tokens, generation.finish_reason = best.tokens, best.finish_reason
        timings.tokens = len(best.tokens)
        text = Text(self._tokenizer, request.stop, generation)
        ends_with_eos = best.finish_reason == "stop"
        pieces = [text.push(token) for token in (best.tokens[:-1] if ends_with_eos else best.tokens)] + [text.finish()]
        if text.stopped:
            generation.finish_reason = "stop"
        if request.logprobs is not None:
            # The search keeps totals only: one more pass over the best sequence gives what each token had.
            raw = self.logits(prompt + best.tokens)[len(prompt) - 1 : -1]
            raw = RawLogprobs(_core.Tensor.from_numpy(raw), request.logprobs)
            generation.logprobs = raw.entries(best.tokens, self._token_text)
        timings.decode_s = time.perf_counter() - start
        yield "".join(pieces)

    def _token_text(self, token: int) -> str:
        return "" if self._tokenizer is None else self._tokenizer.token(token)

    # What a prompt and a request must satisfy.

    def _chats(self, prompt: str | Sized[int], chat: bool | None) -> bool:
        if not isinstance(prompt, str):
            return False
        if chat is None:
            return self._tokenizer is not None and self._tokenizer.chat_template is not None
        return chat

    def _prompt_ids(self, prompt: str | Sized[int], chat: bool | None, system: str | None, parse_special: bool) -> list[int]:
        if not isinstance(prompt, str):
            if chat or system is not None:
                raise UsageError("a prompt of token ids goes in as it is: chat and system need text")
            return self._checked_ids(prompt)
        if self._chats(prompt, chat):
            messages = [] if system is None else [{"role": "system", "content": system}]
            messages.append({"role": "user", "content": prompt})
            return self._checked_ids(self.tokenizer.encode_chat(messages, parse_special=parse_special))
        if system is not None:
            raise UsageError("--system needs a chat template; this model has none, or --no-chat switched it off")
        return self._checked_ids(self.tokenizer.encode(prompt, parse_special=parse_special))

    def _checked_ids(self, ids: Sized[int]) -> list[int]:
        try:
            given = list(ids)
        except TypeError:
            raise UsageError(f"prompt: {ids!r} is neither text nor token ids") from None
        ids = [whole_number("token id", i, 0, self.config.vocab_size - 1) for i in given]
        if not ids:
            raise UsageError("the prompt is empty: it has no tokens to go on from")
        if len(ids) > self.context:
            raise UsageError(f"the prompt has {len(ids)} tokens, more than the context of {self.context}; shorten the "
                             "prompt or raise --context")
        return ids

    def _cache(self, lengths: list[int], more_bytes: int = 0, logit_rows: int = 1) -> KVCache:
        """A cache for sequences of so many tokens. more_bytes: what else there will be on the processor. logit_rows: of a step.
        Raises ResourceError when there is no room for it."""
        c, placing = self.config, self.placing
        pages = sum(pages_for(length) + 1 for length in lengths)  # a spare each for copies on write
        page = page_bytes(1, c.kv_heads, c.head_dim, self.kv_type)
        far = 0 if placing is None else placing.layers
        if placing is not None:
            decoded, held = padded_rows(len(lengths)), pages + (far == c.layers)  # with the page of padding rows
            rows = max(decoded, min(max(lengths), PREFILL_CHUNK))
            self._check_room(lengths, far * held * page + placing.step_bytes(rows, max(logit_rows, decoded)), self.device)
        if c.layers > far or more_bytes:
            self._check_room(lengths, (c.layers - far) * pages * page + more_bytes, "cpu")
        return KVCache(c.layers, c.kv_heads, c.head_dim, pages, self.kv_type, 0 if placing is None else c.layers - far)

    def _check_room(self, lengths: list[int], need: int, device: str) -> None:
        free = free_memory(device)
        if need > free:
            where, more = ("", "") if device == "cpu" else (f" on {device}", ", fewer sequences at once, --kv-type int8 or fewer --gpu-layers")
            raise ResourceError(f"{max(lengths)} tokens in {len(lengths)} sequence(s) need {format_bytes(need)}{where} beside the "
                                f"weights, and {format_bytes(free)} are free{where and ' there'}; use a smaller --context or -n{more}")
