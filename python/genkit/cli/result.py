"""How a generation is told: the line on stderr, the lines of -v, and the object of --json."""

from pathlib import Path
from typing import Any, Iterator, Union

from genkit.plaintext import format_bytes


def model_name(model: Union[str, Path]) -> str:
    """What the user typed, or "default" for the model in the package."""
    import genkit

    return "default" if str(model) == str(genkit.DEFAULT_MODEL) else str(model)


def summary(generation: Any, loaded: Any) -> str:
    """One line: tokens, seconds and tokens/s of prefill and decode, why it ended, the seed."""
    timings, beams = generation.timings, generation.settings["beams"]
    ending = {"stop": "ended", "length": "cut by -n"}.get(generation.finish_reason, generation.finish_reason)
    if ending == "cut by -n" and timings.prompt_tokens + timings.tokens >= loaded.context:
        ending = "context full"
    parts = [
        f"prompt {spent(timings.prompt_tokens, timings.prefill_s, timings.prefill_rate)}",
        f"text {spent(timings.tokens, timings.decode_s, timings.decode_rate)}",
        ending,
        f"{beams} beams" if beams > 1 else "greedy" if generation.seed is None else f"seed {generation.seed}",
    ]
    return "genkit: " + " | ".join(parts)


def spent(tokens: int, seconds: float, rate: float) -> str:
    speed = f" ({rate:.1f} tokens/s)" if rate else ""
    return f"{tokens} token{'' if tokens == 1 else 's'} in {seconds:.2f} s{speed}"


def too_many_threads(loaded: Any) -> str:
    """What to say once when there are more threads than processors to run them, else nothing."""
    from genkit.machine import available_threads

    usable = available_threads()
    if loaded.threads <= usable:
        return ""
    return f"genkit: {loaded.threads} threads on {usable} processor{'s' * (usable > 1)}: allowed, but slower than {usable}"


def split_words(loaded: Any) -> str:
    """Where the layers are when not all of the model is on the GPU, else nothing."""
    p = loaded.placing
    if p is None or p.whole:
        return ""
    return (f"{p.layers} of {loaded.config.layers} layers on the GPU ({format_bytes(p.weight_bytes)} of weights, "
            f"{format_bytes(p.free)} were free), the rest on the processor")


def describe(loaded: Any, model: Union[str, Path], generation: Any) -> Iterator[str]:
    """What -v says before the text."""
    config, settings = loaded.config, generation.settings
    yield (f"genkit: model {model_name(model)}: {config.model_type}, {format_bytes(config.weight_bytes)} of weights,"
           f" loaded in {loaded.load_s:.2f} s")
    yield (f"genkit: device {loaded.device}, tier {loaded.tier}, {loaded.threads} threads, context {loaded.context},"
           f" weights {'as stored' if loaded.quantize == 'none' else 'rounded to ' + loaded.quantize},"
           f" keys and values {loaded.kv_type}")
    yield (f"genkit: prompt of {len(generation.prompt_tokens)} tokens,"
           f" {'in the chat template' if settings['chat'] else 'as it is, without a chat template'}")
    yield "genkit: " + ", ".join(f"{name} {value}" for name, value in settings.items() if name != "chat")


def json_object(generation: Any, loaded: Any, model: Union[str, Path], prompt: str) -> "dict[str, Any]":
    """The object of --json; docs/cli.md lists its fields."""
    timings = generation.timings
    prompt_tokens, tokens = list(generation.prompt_tokens), list(generation.tokens)
    made = {
        "model": model_name(model),
        "prompt": prompt,
        "text": generation.text,
        "prompt_token_ids": prompt_tokens,
        "token_ids": tokens,
        "finish_reason": generation.finish_reason,
        "seed": generation.seed,
        "settings": dict(generation.settings),
        "usage": {
            "prompt_tokens": len(prompt_tokens),
            "completion_tokens": len(tokens),
            "total_tokens": len(prompt_tokens) + len(tokens),
        },
        "timings": {"load_s": timings.load_s, "prefill_s": timings.prefill_s, "decode_s": timings.decode_s},
        "device": loaded.device,
        "tier": loaded.tier,
        "threads": loaded.threads,
        "layers": loaded.config.layers,
        "gpu_layers": 0 if loaded.placing is None else loaded.placing.layers,
        "gpu_weight_bytes": 0 if loaded.placing is None else loaded.placing.weight_bytes,
        "quantize": loaded.quantize,
        "kv_type": loaded.kv_type,
    }
    if generation.logprobs is not None:
        made["logprobs"] = generation.logprobs
    return made
