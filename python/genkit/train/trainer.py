"""The training run: schedule, steps, checkpoints, and the folder it leaves behind."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.errors import BadFileError, ResourceError, UsageError
from genkit.train.batches import Batches, encode_files
from genkit.train.data import load_corpus
from genkit.train.model import (
    Sizes,
    build_model,
    choose_device,
    choose_precision,
    loss_function,
    save_model,
)
from genkit.train.snippets import SnippetBatches, cut_snippets, encode_snippets
from genkit.train.tokenizer import save_tokenizer, train_tokenizer
from genkit.train.workers import ALONE, Workers

if TYPE_CHECKING:
    import numpy as np

STATE = Path("checkpoint") / "state.pt"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights. The defaults of `genkit train` are the recipe of the default model."""

    sizes: Sizes
    data: str | None = None  # folder of .py files; None: the standard library
    seed: int = 0
    steps: int = 2500
    batch_tokens: int = 8192  # tokens of one step
    micro_batch_tokens: int = 4096  # tokens of one forward and backward pass; sums to a step
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    decay_share: float = 0.4  # last share of the steps, with falling rate and full context
    short_context: int = 512  # windows are cut to this length before the decay
    snippet_steps: int = 160  # then so many more, half of each on single functions and classes
    snippet_rate: float = 6e-4
    precision: str = "auto"
    compiled: bool = True

    def check(self) -> None:
        """Raise UsageError for settings that cannot train."""
        self.sizes.check()
        if self.snippet_steps < 0:
            raise UsageError(f"--snippet-steps {self.snippet_steps}: must be 0 or more")
        for name in ("steps", "batch_tokens", "micro_batch_tokens", "short_context"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if not (0 < self.learning_rate < math.inf):
            raise UsageError(f"--learning-rate {self.learning_rate}: must be above 0")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: must be 0 or more")
        context = self.sizes.context
        if context % self.short_context:
            raise UsageError(f"--short-context {self.short_context}: must divide --context ({context})")
        if self.batch_tokens % self.micro_batch_tokens or self.micro_batch_tokens % context:
            raise UsageError(
                f"--batch-tokens {self.batch_tokens} must be a multiple of --micro-batch-tokens "
                f"{self.micro_batch_tokens}, and that of --context {context}"
            )

    @property
    def total_steps(self) -> int:
        """Steps of both stages."""
        return self.steps + self.snippet_steps

    @property
    def decay_start(self) -> int:
        """First step of the decay."""
        return self.steps - round(self.decay_share * self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of the step: linear warm-up, plateau, then half a cosine down to 1 % of the peak; for the
        snippets half a cosine again."""
        if step >= self.steps:
            return self.snippet_rate * 0.5 * (1 + math.cos(math.pi * (step - self.steps) / self.snippet_steps))
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return self.learning_rate
        done = (step - self.decay_start) / max(1, self.steps - self.decay_start)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

    def context_at(self, step: int) -> int:
        """Tokens of a window at the step."""
        return self.short_context if step < self.decay_start else self.sizes.context


@dataclass
class Result:
    """What a finished run reports; the card is made of it."""

    recipe: Recipe
    parameters: int
    device: str
    workers: int
    precision: str
    compiled: bool
    seconds: float
    tokens_seen: int
    train_tokens: int
    train_files: int
    train_bytes: int
    held_out_files: int
    held_out_bytes: int
    skipped: dict[str, int]
    data_fingerprint: str
    final_loss: float


class Trainer:
    """One run in one folder. `save()` at any step, and a run with `resume=True` goes on as if it had not stopped:
    batches are a function of the step, and weights, optimizer and random state are in the checkpoint."""

    def __init__(self, out: Path, recipe: Recipe, device: str = "auto", resume: bool = False, workers: Workers = ALONE):
        import torch

        recipe.check()
        self.workers = workers
        if (recipe.batch_tokens // recipe.micro_batch_tokens) % workers.count:
            raise UsageError(
                f"--workers {workers.count}: must divide the {recipe.batch_tokens // recipe.micro_batch_tokens} "
                "micro-batches of a step (--batch-tokens / --micro-batch-tokens)"
            )
        self.out, self.recipe = Path(out), recipe
        self.device = choose_device(device)
        self.precision = choose_precision(recipe.precision, self.device)
        if workers.rank == 0:
            check_folder(self.out, resume)
        state = _load_state(self.out / STATE) if resume else None

        self.corpus = load_corpus(Path(recipe.data) if recipe.data else None, recipe.seed)
        self.tokenizer = train_tokenizer((f.text for f in self.corpus.train), recipe.sizes.vocab)
        if self.tokenizer.get_vocab_size() != recipe.sizes.vocab:
            raise UsageError(
                f"--vocab {recipe.sizes.vocab}: the text has only {self.tokenizer.get_vocab_size()} entries to give; "
                "use more text or a smaller vocabulary"
            )
        train = encode_files(self.tokenizer, self.corpus.train)
        self.batches = Batches(train, recipe.sizes.context, recipe.batch_tokens // recipe.sizes.context, recipe.seed)
        self.snippets = None
        if recipe.snippet_steps:
            half = max(1, self.batches.windows // 2)
            snippets = encode_snippets(self.tokenizer, cut_snippets(self.corpus.train))
            self.snippets = SnippetBatches(snippets, recipe.sizes.context, half, recipe.seed)
        held_out = encode_files(self.tokenizer, self.corpus.held_out)
        self._sample = self._held_out_sample(held_out)

        self.model = build_model(recipe.sizes, recipe.seed, self.device)
        self.loss = loss_function(self.model, self.device, self.precision, recipe.compiled)
        # Norm weights are vectors near 1 and are not decayed.
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
        self.step = 0
        self.seconds = 0.0
        self.last_loss = math.nan
        if state is not None:
            self._restore(state)

    @property
    def parameters(self) -> int:
        """Number of weights (the tied head counted once)."""
        return sum(p.numel() for p in self.model.parameters())

    def run(
        self,
        report: Callable[[Trainer], None] | None = None,
        save_every: float = 600.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step; `report(self)` after every step; checkpoint and model written every `save_every` s
        and at the end. When `stop()` is true before a step, save after it and return False, else True at the end.

        Raises UsageError when the loss stops being a number.
        """
        last_save = time.monotonic()
        while self.step < self.recipe.total_steps:
            start = time.monotonic()
            stopping = self._train_step(stop())
            self.seconds += time.monotonic() - start
            if not math.isfinite(self.last_loss):
                raise UsageError(
                    f"--learning-rate {self.recipe.learning_rate}: the loss became {self.last_loss} at step "
                    f"{self.step}; use a smaller one"
                )
            if report is not None:
                report(self)
            if stopping:
                break
            if time.monotonic() - last_save > save_every:
                self.save()
                last_save = time.monotonic()
        self.save()
        return self.step >= self.recipe.total_steps

    def _train_step(self, stop: bool) -> bool:
        """One step; returns whether to stop after it, which all processes are told with the gradients."""
        import torch

        rate = self.recipe.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        windows = torch.from_numpy(self._windows()).to(self.device)
        context = self.recipe.context_at(self.step)
        # A long window becomes several short ones; the tokens of a step stay the same.
        inputs = windows[:, :-1].reshape(-1, context)
        targets = windows[:, 1:].reshape(-1, context)
        rows = self.recipe.micro_batch_tokens // context
        passes = len(inputs) // rows
        total = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for i in range(self.workers.rank, passes, self.workers.count):
            part = slice(i * rows, (i + 1) * rows)
            loss = self.loss(inputs[part], targets[part]) / passes
            loss.backward()
            total += loss.item()
        gradients = [p.grad for p in self.model.parameters()]
        total, stop = self.workers.add_up(gradients, total, stop)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.last_loss = total
        return stop

    def _windows(self) -> np.ndarray:
        import numpy as np

        windows = self.batches(self.step)
        if self.step >= self.recipe.steps:
            snippets = self.snippets(self.step - self.recipe.steps)
            windows = np.concatenate([windows[: len(windows) - len(snippets)], snippets])
        return windows

    def _held_out_sample(self, files: list[np.ndarray]) -> list[tuple[np.ndarray, int]]:
        """Micro-batches of the first `short_context` tokens of held-out files, 64 files at most, each with the bytes of
        text it stands for."""
        import numpy as np

        length = self.recipe.short_context
        starts = [ids[: length + 1].astype(np.int64) for ids in files if len(ids) > length][:64]
        if not starts:
            return []
        # Full micro-batches where there are enough, so that torch.compile meets no new shape.
        rows = min(self.recipe.micro_batch_tokens // length, len(starts))
        count = len(starts) // rows * rows
        sample = []
        for i in range(0, count, rows):
            part = np.stack(starts[i : i + rows])
            size = sum(len(self.tokenizer.decode(row[1:].tolist()).encode("utf-8")) for row in part)
            sample.append((part, size))
        return sample

    def held_out_bits_per_byte(self) -> float:
        """Bits per byte on the starts of some held-out files: quick, for the progress line (evaluate.py measures whole
        files). NaN when no held-out file is long enough."""
        import torch

        nats, size = 0.0, 0
        with torch.no_grad():
            for part, part_size in self._sample:
                windows = torch.from_numpy(part).to(self.device)
                nats += self.loss(windows[:, :-1], windows[:, 1:]).item() * (part.size - len(part))
                size += part_size
        return nats / math.log(2) / size if size else math.nan

    def result(self) -> Result:
        """Figures of the run so far."""
        reasons: dict[str, int] = {}
        for reason in self.corpus.skipped.values():
            reason = reason.split(" of ")[0]
            reasons[reason] = reasons.get(reason, 0) + 1
        return Result(
            recipe=self.recipe,
            parameters=self.parameters,
            device=self.device,
            workers=self.workers.count,
            precision=self.precision,
            compiled=self.recipe.compiled,
            seconds=self.seconds,
            tokens_seen=self.step * self.recipe.batch_tokens,
            train_tokens=self.batches.tokens,
            train_files=len(self.corpus.train),
            train_bytes=sum(f.size for f in self.corpus.train),
            held_out_files=len(self.corpus.held_out),
            held_out_bytes=sum(f.size for f in self.corpus.held_out),
            skipped=reasons,
            data_fingerprint=self.corpus.fingerprint,
            final_loss=self.last_loss,
        )

    # Checkpoints

    def save(self) -> None:
        """Write the checkpoint (whole or not at all) and the model folder as it is now. Only rank 0 writes."""
        import torch
        from safetensors import SafetensorError

        if self.workers.rank:
            return
        state = {
            "recipe": asdict(self.recipe),
            "fingerprint": self.corpus.fingerprint,
            "precision": self.precision,
            "step": self.step,
            "seconds": self.seconds,
            "last_loss": self.last_loss,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        path = self.out / STATE
        part = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, part)
            os.replace(part, path)
            save_model(self.model, self.out)
            save_tokenizer(self.tokenizer, self.out, self.recipe.sizes.context)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
            part.unlink(missing_ok=True)
            raise ResourceError(f"{self.out}: cannot be written: {error}") from error

    def _restore(self, state: dict) -> None:
        import torch

        path = self.out / STATE
        saved = Recipe(**{**state["recipe"], "sizes": Sizes(**state["recipe"]["sizes"])})
        if replace(saved, steps=self.recipe.steps) != self.recipe:
            names = [k for k, v in vars(saved).items() if k != "steps" and v != getattr(self.recipe, k)]
            raise UsageError(f"{path}: the run began with other settings ({', '.join(names)}); use the same to resume")
        # Up to the decay no step depends on the number of steps, so a new number gives the run it would have given
        # from the start.
        first = min(saved.decay_start, self.recipe.decay_start)
        if saved.steps != self.recipe.steps and state["step"] > first:
            raise UsageError(
                f"--steps {self.recipe.steps}: the run is at step {state['step']}, and with {saved.steps} or "
                f"{self.recipe.steps} steps the rate falls from step {first}; use --steps {saved.steps}"
            )
        if state["fingerprint"] != self.corpus.fingerprint:
            raise UsageError(f"{path}: the training text has changed since the run began; start again")
        if state["precision"] != self.precision:
            raise UsageError(f"{path}: the run began in {state['precision']}; add --precision {state['precision']}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        self.step, self.seconds, self.last_loss = state["step"], state["seconds"], state["last_loss"]

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint of a finished run."""
        path = self.out / STATE
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def check_folder(out: Path, resume: bool) -> None:
    """Make the folder of a new run, or see that one to resume is there. Raises UsageError and ResourceError."""
    path = out / STATE
    if resume:
        if not path.exists():
            raise UsageError(f"{path}: no checkpoint to resume from; run without --resume")
        return
    if path.exists():
        raise UsageError(f"{out} holds an unfinished run; add --resume, or choose another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder; choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be made: {error.strerror}") from error


def _load_state(path: Path) -> dict:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive shows up as any of half a dozen types
        raise BadFileError(f"{path}: damaged checkpoint: {error}") from error


class Pace:
    """Smoothed loss and speed of a run, for its progress line. `update()` after every step."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.loss = trainer.last_loss
        self.tokens_per_second = 0.0
        self._seconds = trainer.seconds
        self._steps = 0

    def update(self) -> None:
        """Take in the step just made. The first one is left out of the speed: it waits for the compiler."""
        loss, seconds = self.trainer.last_loss, self.trainer.seconds
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss
        self._steps += 1
        now = self.trainer.recipe.batch_tokens / max(seconds - self._seconds, 1e-9)
        self._seconds = seconds
        if self._steps == 2:
            self.tokens_per_second = now
        elif self._steps > 2:
            self.tokens_per_second = 0.95 * self.tokens_per_second + 0.05 * now

    def time_left(self) -> str:
        """Hours, minutes and seconds to the last step at the present speed."""
        if not self.tokens_per_second:
            return "?"
        recipe = self.trainer.recipe
        left = int((recipe.total_steps - self.trainer.step) * recipe.batch_tokens / self.tokens_per_second)
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
