"""`genkit train`: make a small model from Python sources; with no options, the one that ships with genkit."""

from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Callable, Iterator, Optional

import typer

from genkit.cli.failure import enable_traceback
from genkit.cli.interrupt import Interrupts
from genkit.cli.terminal import console, note, stderr_is_terminal
from genkit.cli.values import Device
from genkit.errors import Interrupted, UsageError

RUN, SHAPE, TRAINING, MACHINE = "Run", "Network (replaces a value of the preset)", "Training", "Machine"

LOG_EVERY = 30.0  # seconds between plain log lines
HELD_OUT_EVERY = 100  # steps


class Preset(str, Enum):
    small = "small"
    large = "large"


class Precision(str, Enum):
    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


def option(*names: str, help: str, panel: str, metavar: Optional[str] = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)


def size(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=SHAPE, metavar="N", show_default=False)


def train(
    out: Annotated[
        Optional[Path],
        typer.Argument(metavar="OUT", show_default=False, help="The folder to make: a Hugging Face llama folder."),
    ] = None,
    resume: Annotated[bool, option("--resume", panel=RUN, help="Go on from the checkpoint in OUT.")] = False,
    evaluate: Annotated[
        Optional[Path],
        option("--evaluate", metavar="FOLDER", panel=RUN, help="Train nothing; measure this trained folder."),
    ] = None,
    completions: Annotated[
        int, option("--completions", metavar="N", panel=RUN, help="Greedy completions to judge when measuring.")
    ] = 100,
    save_every: Annotated[
        float, option("--save-every", metavar="SECONDS", panel=RUN, help="Time between checkpoints.")
    ] = 600.0,
    data: Annotated[
        Optional[Path],
        option("--data", metavar="FOLDER", panel=TRAINING,
               help="Learn from the .py files of this folder. Default: the standard library of this Python."),
    ] = None,
    preset: Annotated[
        Preset, option("--preset", panel=SHAPE, help="small is the default model; large wants a GPU.")
    ] = Preset.small,
    vocab: Annotated[Optional[int], size("--vocab", help="Entries of the tokenizer.")] = None,
    hidden: Annotated[Optional[int], size("--hidden", help="Width of the residual.")] = None,
    ffn: Annotated[Optional[int], size("--ffn", help="Width inside the feed-forward part.")] = None,
    layers: Annotated[Optional[int], size("--layers", help="Layers.")] = None,
    heads: Annotated[Optional[int], size("--heads", help="Query heads; the head size is hidden / heads.")] = None,
    kv_heads: Annotated[Optional[int], size("--kv-heads", help="Key and value heads; must divide --heads.")] = None,
    context: Annotated[Optional[int], size("--context", help="Tokens the model can look back on.")] = None,
    steps: Annotated[
        Optional[int], option("--steps", metavar="N", panel=TRAINING, help="Optimizer steps. Default: the recipe's.")
    ] = None,
    seed: Annotated[
        Optional[int],
        option("-s", "--seed", metavar="N", panel=TRAINING,
               help="Of weights, order of the data, and split. Default: 0; with --evaluate, that of the card."),
    ] = None,
    learning_rate: Annotated[
        Optional[float],
        option("--learning-rate", "--lr", metavar="R", panel=TRAINING, help="At the plateau. Default: the recipe's."),
    ] = None,
    batch_tokens: Annotated[
        Optional[int],
        option("--batch-tokens", metavar="N", panel=TRAINING, help="Tokens of a step. Default: the recipe's."),
    ] = None,
    snippet_steps: Annotated[
        Optional[int],
        option("--snippet-steps", metavar="N", panel=TRAINING,
               help="More steps after --steps, half on single functions and classes. Default: the recipe's."),
    ] = None,
    short_context: Annotated[
        Optional[int],
        option("--short-context", metavar="N", panel=TRAINING,
               help="Length of the windows before the rate falls. Default: half the context."),
    ] = None,
    micro_batch_tokens: Annotated[
        Optional[int],
        option("--micro-batch-tokens", metavar="N", panel=MACHINE,
               help="Tokens of one forward and backward pass; less takes less memory."),
    ] = None,
    device: Annotated[
        Device, option("--device", panel=MACHINE, help="auto takes a GPU when torch sees one.")
    ] = Device.auto,
    workers: Annotated[
        Optional[int],
        option("--workers", metavar="N", panel=MACHINE,
               help="Processes that share a step on CPU. Default: one a core."),
    ] = None,
    threads: Annotated[
        Optional[int],
        option("-t", "--threads", metavar="N", panel=MACHINE, help="Threads in all. Default: torch's own choice."),
    ] = None,
    precision: Annotated[
        Precision, option("--precision", panel=MACHINE, help="auto is bf16 where the processor multiplies it natively.")
    ] = Precision.auto,
    compiled: Annotated[
        bool,
        typer.Option("--compile/--no-compile", rich_help_panel=MACHINE,
                     help="Fuse kernels with torch.compile: faster after a minute's wait; needs a C++ compiler."),
    ] = True,
    traceback: Annotated[
        bool,
        typer.Option("--traceback", is_eager=True, callback=enable_traceback, help="Show where an error came from."),
    ] = False,
) -> None:
    """Train a small llama model on Python sources (needs pip install genkit[train]).

    With no options but OUT this repeats the recipe of the model that ships with genkit. The folder holds the model as
    Hugging Face tools read it, its tokenizer and its card with figures measured on files that were held out; while the
    run lasts also a checkpoint, from which --resume goes on with the very same batches.

    \b
    genkit train my-model                             the default model's recipe
    genkit train my-model --resume                    go on after a stop
    genkit train tiny --steps 200 --snippet-steps 50 --layers 2 --hidden 128 --heads 2 --kv-heads 1 --ffn 384
    genkit train mine --data ~/src/project            learn from your own .py files
    genkit train --evaluate my-model                  measure again what the card says
    """
    if (out is None) == (evaluate is None):
        raise UsageError("give either a folder to make (genkit train OUT) or one to measure (--evaluate FOLDER)")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: must be at least 1")
    if completions < 1:
        raise UsageError(f"--completions {completions}: must be at least 1")
    if not save_every > 0:
        raise UsageError(f"--save-every {save_every}: must be above 0 seconds")
    require_torch()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if evaluate is not None:
        from genkit.train.card import read_figures

        card = read_figures(evaluate)
        if seed is None:
            # Another seed is another split: the model would be asked for files that it has learned from.
            seed = card["recipe"]["seed"] if card else 0
        result, text = measure(evaluate, data, seed, completions)
        print(text)
        if card and result.fingerprint != card["data"]["sha256"]:
            note("note: the text is not quite that of the card (another Python version, folder or seed)")
        return

    from dataclasses import replace

    from genkit.train.model import PRESETS
    from genkit.train.trainer import Recipe

    def given(**options: Any) -> "dict[str, Any]":
        return {name: value for name, value in options.items() if value is not None}

    sizes = replace(PRESETS[preset.value], **given(
        vocab=vocab, hidden=hidden, ffn=ffn, layers=layers, heads=heads, kv_heads=kv_heads, context=context))
    recipe = Recipe(
        sizes, data=str(data) if data is not None else None, seed=seed or 0,
        precision=precision.value, compiled=compiled,
        **given(steps=steps, snippet_steps=snippet_steps, learning_rate=learning_rate, batch_tokens=batch_tokens,
                micro_batch_tokens=micro_batch_tokens,
                short_context=short_context if short_context is not None else max(1, sizes.context // 2)))
    run(out, recipe, device.value, workers, resume, save_every, completions)


def require_torch() -> None:
    """Raise UsageError, one line, when the extra is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(f"genkit train needs {' and '.join(missing)}: pip install genkit[train]")


def run(
    out: Path, recipe: Any, device: str, workers: Optional[int], resume: bool, save_every: float, completions: int
) -> None:
    """Train, measure, write the card, drop the checkpoint."""
    from genkit.train.card import write_card
    from genkit.train.model import choose_device
    from genkit.train.trainer import Trainer, check_folder
    from genkit.train.workers import choose_workers, team

    recipe.check()
    device = choose_device(device)
    count = choose_workers(workers, device, recipe)
    check_folder(out, resume)
    note("reading the text and training the tokenizer")
    with Interrupts() as interrupts, team(count, out, recipe, resume) as members:
        trainer = Trainer(out, recipe, device, resume, members)
        note(describe_run(trainer))
        interrupts.defer()
        with training_report(trainer) as report:
            finished = trainer.run(report, save_every, lambda: interrupts.requested)
    if not finished:
        raise Interrupted(
            f"stopped at step {trainer.step} of {recipe.total_steps}; genkit train {out} --resume goes on"
        )
    evaluation, text = measure(out, Path(recipe.data) if recipe.data else None, recipe.seed, completions)
    write_card(out, trainer.result(), evaluation)
    trainer.drop_checkpoint()
    print(text)
    note(f"wrote {out}")


def describe_run(trainer: Any) -> str:
    """What is about to happen, in one line."""
    recipe, corpus = trainer.recipe, trainer.corpus
    return (
        f"{len(corpus.train)} files to learn from ({trainer.batches.tokens} tokens), {len(corpus.held_out)} held out; "
        f"{trainer.parameters} weights, {recipe.total_steps} steps of {recipe.batch_tokens} tokens, "
        f"{trainer.device}, {trainer.workers.count} process(es), {trainer.precision}"
        + (f", from step {trainer.step}" if trainer.step else "")
        + ("; the first step waits for torch.compile" if recipe.compiled and trainer.step < recipe.total_steps else "")
    )


def measure(folder: Path, data: Optional[Path], seed: int, completions: int) -> "tuple[Any, str]":
    """The evaluation of a folder and its figures as text."""
    from genkit.train.evaluate import describe, evaluate

    with count_bar() as tell:
        result = evaluate(folder, data, seed, completions, progress=tell)
    return result, describe(result)


@contextmanager
def count_bar() -> "Iterator[Optional[Callable[[str, int, int], None]]]":
    """Yields a function (what, done, total) that draws a bar for each `what`; None when stderr is no terminal."""
    if not stderr_is_terminal():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        tasks: "dict[str, Any]" = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield tell


@contextmanager
def training_report(trainer: Any) -> "Iterator[Callable[[Any], None]]":
    """Yields what to call after each step: a bar on a terminal, else a line every LOG_EVERY seconds."""
    import time

    from genkit.train.trainer import Pace

    pace = Pace(trainer)
    held_out = ""

    def figures() -> str:
        return f"loss {pace.loss:.3f}{held_out}, {pace.tokens_per_second:.0f} tokens/s"

    def look_at_held_out() -> None:
        nonlocal held_out
        if trainer.step % HELD_OUT_EVERY == 0 or trainer.step == trainer.recipe.total_steps:
            held_out = f", held-out {trainer.held_out_bits_per_byte():.3f} bits/byte"

    if stderr_is_terminal():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=console()) as progress:
            task = progress.add_task("compiling" if trainer.recipe.compiled else "", total=trainer.recipe.total_steps,
                                     completed=trainer.step)

            def draw(_: Any) -> None:
                pace.update()
                look_at_held_out()
                progress.update(task, completed=trainer.step, description=f"{figures()}, {pace.time_left()} left")

            yield draw
        return
    last = time.monotonic()

    def log(_: Any) -> None:
        nonlocal last
        pace.update()
        look_at_held_out()
        if time.monotonic() - last >= LOG_EVERY or trainer.step == trainer.recipe.total_steps:
            last = time.monotonic()
            note(f"step {trainer.step}/{trainer.recipe.total_steps}: {figures()}, {pace.time_left()} left")

    yield log
