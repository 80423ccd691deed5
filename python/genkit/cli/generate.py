"""`genkit generate`: text from a model, streamed to standard output; everything else goes to stderr."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Callable, Optional

import typer

from genkit.cli import result
from genkit.cli.failure import enable_traceback
from genkit.cli.interrupt import Interrupts
from genkit.cli.output import TextOutput
from genkit.cli.prompt import checked, read_prompt, read_text_file
from genkit.cli.terminal import bar, note
from genkit.cli.values import Device, KVType, Quantize, layer_count, logit_bias, real, token_count, whole
from genkit.errors import Interrupted, UsageError
from genkit.plaintext import json_text

# Enough for a page of text, and an end for base models that never say stop. -n -1 writes to the end of the context.
DEFAULT_MAX_TOKENS = 512

MODEL, PROMPT, LENGTH, SAMPLING, OUTPUT, MACHINE = "Model", "Prompt", "Length", "Sampling", "Output", "Machine"


def option(*names: str, help: str, panel: str, metavar: Optional[str] = None, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False, **more)


def generate(
    prompt_argument: Annotated[
        Optional[str],
        typer.Argument(metavar="PROMPT", show_default=False, help="The text to go on from; - reads standard input."),
    ] = None,
    # model
    model: Annotated[
        Optional[str],
        option("-m", "--model", "-hf", "--hf-repo", metavar="MODEL", panel=MODEL,
               help="A Hugging Face model folder, a GGUF file, or a name on the hub (org/name). Default: the model that ships with genkit."),
    ] = None,
    revision: Annotated[
        Optional[str],
        option("--revision", metavar="REV", panel=MODEL, help="Branch, tag or commit of a model on the hub."),
    ] = None,
    offline: Annotated[
        bool, option("--offline", panel=MODEL, help="Use only what is on this machine; never the network.")
    ] = False,
    # prompt
    prompt_option: Annotated[
        Optional[str], option("-p", "--prompt", metavar="TEXT", panel=PROMPT, help="The prompt, as an option.")
    ] = None,
    file: Annotated[
        Optional[str],
        option("-f", "--file", metavar="FILE", panel=PROMPT,
               help="Read the prompt from a file, or from standard input with -. One newline at its end is dropped."),
    ] = None,
    system: Annotated[
        Optional[str],
        option("--system", "-sys", "--system-prompt", metavar="TEXT", panel=PROMPT, help="System message for a chat model."),
    ] = None,
    system_file: Annotated[
        Optional[str],
        option("--system-file", "-sysf", "--system-prompt-file", metavar="FILE", panel=PROMPT, help="The same from a file."),
    ] = None,
    chat: Annotated[
        Optional[bool],
        option("--chat/--no-chat", "-cnv/-no-cnv", "--conversation/--no-conversation", " /--ignore-chat-template", panel=PROMPT,
               help="Put the prompt into the model's chat template, or do not. Default: if the model has one."),
    ] = None,
    parse_special: Annotated[
        bool,
        option("--parse-special", panel=PROMPT,
               help="Let names of special tokens in the prompt, like <|im_start|>, be those tokens. Default: they are text."),
    ] = False,
    # length
    max_tokens: Annotated[
        Optional[int],
        option("-n", "--max-tokens", "--predict", "--n-predict", metavar="N", panel=LENGTH, parser=whole,
               help=f"Stop after N tokens. Default: {DEFAULT_MAX_TOKENS}; -1: when the context is full."),
    ] = None,
    stop: Annotated[
        Optional[list[str]],
        option("--stop", "-r", "--reverse-prompt", metavar="TEXT", panel=LENGTH,
               help="Stop before this text is written. May be repeated."),
    ] = None,
    ignore_eos: Annotated[
        bool, option("--ignore-eos", panel=LENGTH, help="Go on after the model's end-of-text token.")
    ] = False,
    context: Annotated[
        Optional[int],
        option("-c", "--context", "--ctx-size", "--max-model-len", metavar="TOKENS", panel=LENGTH, parser=token_count,
               help="Room for prompt and text, like 4096, 32k (32,000) or 32K (32,768). Default: what the model was made for."),
    ] = None,
    # sampling
    seed: Annotated[
        Optional[int],
        option("-s", "--seed", metavar="SEED", panel=SAMPLING, parser=whole,
               help="Repeat a text exactly, with any number of threads. Default: a new seed, which is reported."),
    ] = None,
    temperature: Annotated[
        Optional[float],
        option("--temperature", "--temp", metavar="T", panel=SAMPLING, parser=real,
               help="0 takes the likeliest token (greedy). Default: the model's generation_config.json, else 0."),
    ] = None,
    top_k: Annotated[
        Optional[int],
        option("--top-k", metavar="K", panel=SAMPLING, parser=whole, help="Draw from the K likeliest tokens; 0 is off."),
    ] = None,
    top_p: Annotated[
        Optional[float],
        option("--top-p", metavar="P", panel=SAMPLING, parser=real, help="Draw from the likeliest tokens that together reach P; 1 is off."),
    ] = None,
    min_p: Annotated[
        Optional[float],
        option("--min-p", metavar="P", panel=SAMPLING, parser=real,
               help="Drop tokens less likely than P times the likeliest; 0 is off."),
    ] = None,
    repeat_penalty: Annotated[
        Optional[float],
        option("--repeat-penalty", "--repetition-penalty", metavar="R", panel=SAMPLING, parser=real,
               help="Make tokens that occurred less likely; 1 is off."),
    ] = None,
    repeat_last_n: Annotated[
        Optional[int],
        option("--repeat-last-n", "--repetition-context-size", metavar="N", panel=SAMPLING, parser=whole,
               help="How many tokens back the penalties look."),
    ] = None,
    presence_penalty: Annotated[
        Optional[float],
        option("--presence-penalty", metavar="X", panel=SAMPLING, parser=real, help="Taken from a token's logit once it was written; 0 is off."),
    ] = None,
    frequency_penalty: Annotated[
        Optional[float],
        option("--frequency-penalty", metavar="X", panel=SAMPLING, parser=real, help="The same for each time it was written; 0 is off."),
    ] = None,
    bias: Annotated[
        Optional[list[str]],
        option("-l", "--logit-bias", metavar="ID=VALUE", panel=SAMPLING,
               help="Added to a token's logit; llama.cpp's ID+VALUE and ID-VALUE work too. May be repeated."),
    ] = None,
    beams: Annotated[
        int, option("--beams", "--num-beams", metavar="N", panel=SAMPLING, parser=whole, help="Beam search over N beams; 1 is off.")
    ] = 1,
    length_penalty: Annotated[
        float,
        option("--length-penalty", metavar="X", panel=SAMPLING, parser=real,
               help="With --beams: above 0 favours long texts, below 0 short ones. Default: 1."),
    ] = 1.0,
    # output
    output: Annotated[
        Optional[str],
        option("-o", "--output", metavar="FILE", panel=OUTPUT, help="Write to a file instead of standard output."),
    ] = None,
    force: Annotated[bool, option("--force", panel=OUTPUT, help="Let -o replace a file that exists.")] = False,
    as_json: Annotated[
        bool, option("--json", panel=OUTPUT, help="Print one JSON object at the end: text, token ids, settings, timings.")
    ] = False,
    logprobs: Annotated[
        Optional[int],
        option("--logprobs", metavar="K", panel=OUTPUT, parser=whole,
               help="With --json: each token's log-probability and those of the K likeliest."),
    ] = None,
    quiet: Annotated[bool, option("-q", "--quiet", panel=OUTPUT, help="No bar and no summary on stderr.")] = False,
    verbose: Annotated[
        bool, option("-v", "--verbose", panel=OUTPUT, help="Say on stderr what was chosen: device, threads, chat, sampling.")
    ] = False,
    traceback: Annotated[
        bool, option("--traceback", panel=OUTPUT, is_eager=True, callback=enable_traceback, help="Show where an error came from.")
    ] = False,
    # machine
    device: Annotated[
        Device, option("--device", "-dev", metavar="auto|cpu|cuda", panel=MACHINE, help="cuda: the GPU. Default: auto, the processor until this version's kernels have been proven on a GPU.")
    ] = Device.auto,
    gpu_layers: Annotated[
        Optional[int],
        option("--gpu-layers", "-ngl", "--n-gpu-layers", metavar="N|auto|all", panel=MACHINE, parser=layer_count,
               help="How many of the model's layers, the last ones, run on the GPU with their keys and values; the rest runs on the "
                    "processor. Default: auto, as many as fit.")
    ] = None,
    threads: Annotated[
        Optional[int],
        option("-t", "--threads", metavar="N", panel=MACHINE, parser=whole, help="Default: the processors this process may use."),
    ] = None,
    quantize: Annotated[
        Optional[Quantize],
        option("--quantize", metavar="none|int4|int8", panel=MACHINE,
               help="Round the weights while they are loaded: less memory, more speed, a little of the quality. "
                    "Default: what the model's config.json asks for, else none."),
    ] = None,
    kv_type: Annotated[
        KVType,
        option("--kv-type", metavar="auto|f32|f16|bf16|int8", panel=MACHINE,
               help="How keys and values are kept. Default: auto, f32 for f32 weights and bf16 for others."),
    ] = KVType.auto,
    # What llama.cpp users type out of habit, and what happens here anyway.
    no_display_prompt: Annotated[bool, typer.Option("--no-display-prompt", hidden=True)] = False,
    single_turn: Annotated[bool, typer.Option("--single-turn", "-st", hidden=True)] = False,
) -> None:
    """Write text with a model.

    The text that follows the prompt goes to standard output as it is made, exactly and nothing else (on a terminal a
    newline ends it); the prompt is not repeated. Progress and a summary go to stderr. Never asks for input.
    """
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs prints into the JSON object: add --json")
    if system is not None and system_file is not None:
        raise UsageError("the system message was given twice, by --system and by --system-file; leave one away")
    settings: "dict[str, Any]" = dict(
        max_tokens={None: DEFAULT_MAX_TOKENS, -1: None}.get(max_tokens, max_tokens),
        seed=None if seed == -1 else seed,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        repeat_last_n=repeat_last_n,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias(bias or []) or None,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        beams=beams,
        length_penalty=length_penalty,
        logprobs=logprobs,
        chat=chat,
        parse_special=parse_special,
    )
    prompt = read_prompt(prompt_argument, prompt_option, file)
    if system_file is not None:
        system = read_text_file(system_file, "system message")
    settings["system"] = None if system is None else checked(system, "--system")
    if gpu_layers and gpu_layers > 0 and device is Device.cpu:
        raise UsageError(f"--gpu-layers {gpu_layers} with --device cpu: no layer runs on a GPU; leave one away")
    loading = dict(device=device.value, gpu_layers=None if gpu_layers == -1 else gpu_layers, threads=threads, quantize=quantize and quantize.value, kv_type=kv_type.value,
                   context=context, revision=revision, offline=offline)
    with Interrupts() as interrupts, TextOutput(output, force) as target:
        run(prompt, settings, loading, target, interrupts, model=model, as_json=as_json, quiet=quiet, verbose=verbose)


def run(prompt: str, settings: "dict[str, Any]", loading: "dict[str, Any]", target: TextOutput, interrupts: Interrupts,
        *, model: Optional[str], as_json: bool, quiet: bool, verbose: bool) -> None:
    """Loads, generates, writes. Raises Interrupted after writing what there is when the user pressed Ctrl-C."""
    import genkit
    from genkit import devices, machine

    folder = genkit.DEFAULT_MODEL if model is None else model
    with bar(f"loading {Path(folder).name[:30]}", not quiet, of_bytes=True) as progress:
        loaded = genkit.load(folder, progress=progress, **loading)
    if loading["device"] == "auto" and loaded.device == "cpu" and not quiet:
        asked = bool(loading["gpu_layers"])
        if reason := devices.why_processor() or (asked and machine.cuda_state()[1]):
            note(f"genkit: running on the processor{', without --gpu-layers' if asked else ''}: {reason}")
    if threads_note := result.too_many_threads(loaded):
        note(threads_note)
    if words := not quiet and result.split_words(loaded):
        note(f"genkit: {words}")
    if loaded.widened and not quiet:
        note(f"genkit: {loaded.widened}")
    steps = Steps(interrupts)
    stream = loaded.stream(prompt, cancelled=steps, **settings)
    generation = stream.generation
    if verbose:
        for line in result.describe(loaded, folder, generation):
            note(line)
    interrupts.defer()
    on_screen = target.path is None and not as_json
    with steps.shown(generation, not quiet, to_the_end=not on_screen or settings["beams"] > 1):
        for piece in stream:
            if on_screen:
                steps.hide()
            if not as_json:
                target.write(piece)
    if as_json:
        target.write(json_text(result.json_object(generation, loaded, folder, prompt)) + "\n")
    target.finish()
    if not quiet:
        note(result.summary(generation, loaded))
    if generation.finish_reason == "interrupted":
        raise Interrupted


class Steps:
    """What the decoder asks before each of its steps: whether to stop. Counting them feeds a bar while no text comes to
    the terminal: a long prompt, beams, --json, -o."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._stack = ExitStack()
        self._update: "Optional[Callable[[int, int], None]]" = None
        self._done = self._total = 0

    def __call__(self) -> bool:
        if self._update is not None:
            self._update(self._done, self._total)
            self._done += 1
        return self._interrupts.requested

    def shown(self, generation: Any, enabled: bool, *, to_the_end: bool) -> ExitStack:
        """A context with the bar: of the prompt's chunks, and `to_the_end` of the tokens to write too."""
        from genkit.batch import PREFILL_CHUNK

        self._total = -(-len(generation.prompt_tokens) // PREFILL_CHUNK)
        if to_the_end:
            self._total += generation.settings["max_tokens"]
        self._update = self._stack.enter_context(bar("writing" if to_the_end else "reading the prompt", enabled))
        return self._stack

    def hide(self) -> None:
        """The text begins: the line is its own."""
        self._update = None
        self._stack.close()
