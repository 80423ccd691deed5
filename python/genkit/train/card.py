"""The model card: MODEL_CARD.md for people and card.json for programs, filled from the run and its evaluation."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import BadFileError, ResourceError

if TYPE_CHECKING:
    from genkit.train.evaluate import Evaluation
    from genkit.train.trainer import Result

CARD, FIGURES = "MODEL_CARD.md", "card.json"


def write_card(folder: Path, result: Result, evaluation: Evaluation) -> None:
    """Write both files of the card into `folder`. Raises ResourceError when they cannot be written."""
    facts = card_facts(folder, result, evaluation)
    try:
        (folder / FIGURES).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_text(card_text(facts), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{folder}: the card cannot be written: {error.strerror}") from error


def read_figures(folder: Path) -> dict[str, Any] | None:
    """card.json of a folder, or None where there is none. Raises BadFileError when it is damaged."""
    path = Path(folder) / FIGURES
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(facts["recipe"]["seed"], int) and isinstance(facts["data"]["sha256"], str):
            return facts
        raise TypeError("seed or sha256 has the wrong type")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{path}: not a card of genkit train: {type(error).__name__}: {error}") from error


def card_facts(folder: Path, result: Result, evaluation: Evaluation) -> dict[str, Any]:
    """Everything the card says, as plain data (bytes, seconds, shares of 1)."""
    import torch
    import transformers

    from genkit.train.evaluate import weights_digest

    recipe = asdict(result.recipe)
    data = recipe.pop("data")
    completions = evaluation.completions
    return {
        "name": folder.resolve().name,
        "license": "Apache-2.0",
        "parameters": result.parameters,
        "weights_sha256": weights_digest(folder),
        "data": {
            "source": data or f"standard library of CPython {platform.python_version()}",
            "license": "PSF-2.0" if data is None else "that of the files",
            "sha256": result.data_fingerprint,
            "train_files": result.train_files,
            "train_bytes": result.train_bytes,
            "train_tokens": result.train_tokens,
            "held_out_files": result.held_out_files,
            "held_out_bytes": result.held_out_bytes,
            "left_out": result.skipped,
        },
        "recipe": recipe,
        "training": {
            "device": result.device,
            "hardware": hardware(result.device),
            "processes": result.workers,
            "precision": result.precision,
            "compiled": result.compiled,
            "seconds": round(result.seconds),
            "steps": result.recipe.total_steps,
            "tokens_seen": result.tokens_seen,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "evaluation": {
            "bits_per_byte": round(evaluation.bits_per_byte, 4),
            "xz_bits_per_byte": round(evaluation.xz_bits_per_byte, 4),
            "saved_against_xz": round(evaluation.saved, 4),
            "completions": len(completions),
            "completions_good": sum(c.good for c in completions),
            "first_10_completions_good": sum(c.good for c in completions[:10]),
            "completion_lines_kept": round(sum(c.kept for c in completions) / max(1, len(completions)), 3),
        },
    }


def hardware(device: str) -> str:
    """Name of the GPU, or of the processor and how many of its cores there are."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # no Linux: the plain name does
    return f"{name}, {os.cpu_count()} cores"


def card_text(facts: dict[str, Any]) -> str:
    """MODEL_CARD.md of the facts."""
    data, recipe, run, seen = facts["data"], facts["recipe"], facts["training"], facts["evaluation"]
    sizes = recipe["sizes"]
    saved = 100 * seen["saved_against_xz"]
    good = f"{seen['completions_good']} of {seen['completions']}"
    good += f" (of the first ten: {seen['first_10_completions_good']})"
    shape = (
        f"{sizes['layers']} layers, width {sizes['hidden']}, feed-forward {sizes['ffn']}, query heads {sizes['heads']} "
        f"of {sizes['hidden'] // sizes['heads']}, KV heads {sizes['kv_heads']}"
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(data["left_out"].items())) or "nothing"
    times = run["tokens_seen"] / data["train_tokens"]
    arithmetic = f"{run['device']}, processes: {run['processes']}, {run['precision']}"
    if run["compiled"]:
        arithmetic += ", torch.compile"
    kept = 100 * seen["completion_lines_kept"]
    decay = 100 * recipe["decay_share"]
    snippets = ""
    if recipe["snippet_steps"]:
        snippets = (
            f"\nThen {recipe['snippet_steps']} steps at {recipe['snippet_rate']} falling to 0 took half of their "
            "windows from single\nfunctions and classes without indent, each with its end mark."
        )
    return f"""# Model card: {facts["name"]}

A small llama-shaped language model of Python source code, trained from nothing by `genkit train`. It goes on where a
piece of Python stops. It knows no instructions and no chat.

## Figures

| | |
| --- | --- |
| held-out bits per byte | **{seen["bits_per_byte"]:.3f}** |
| `xz -9` of the same files together | {seen["xz_bits_per_byte"]:.3f}; the model needs {saved:.1f} % fewer |
| greedy completions of held-out `def name(args):` lines with two or more statements that parse | {good} |
| weights | {facts["parameters"]:,} in bf16, head tied to the embedding |
| shape | {shape} |
| context | {sizes["context"]} tokens |
| tokenizer | byte-level BPE, {sizes["vocab"]} entries, trained on the train split |

Bits per byte: each held-out file from its start, windows of the whole context that slide by half of it. A completion
has 160 tokens at most and is cut at its last complete statement; {kept:.0f} % of the lines stay.

## Data

{data["source"]}, every `.py` file: {data["train_files"]} files ({data["train_bytes"]:,} bytes,
{data["train_tokens"]:,} tokens) to learn from, {data["held_out_files"]} files ({data["held_out_bytes"]:,} bytes) held
out. The split is by file, by a hash of the seed and the path.
Files left out: {left_out}.
SHA-256 of both splits: `{data["sha256"]}`.

## Licence

Data: {data["license"]}. Weights and recipe: {facts["license"]}. The model can repeat passages of its training text.

## Training

{run["steps"]} steps of {recipe["batch_tokens"]} tokens ({run["tokens_seen"]:,} in all, {times:.1f} times the text) in
{run["seconds"] / 3600:.2f} hours on {run["hardware"]} ({arithmetic}).
AdamW (0.9, 0.98), weight decay {recipe["weight_decay"]}, rate {recipe["learning_rate"]} after {recipe["warmup_steps"]}
steps of warm-up, half a cosine down to 1 % of it over the last {decay:.0f} % of {recipe["steps"]} steps.
Windows of {recipe["short_context"]} tokens before that, of {sizes["context"]} from there on.{snippets}
Seed {recipe["seed"]}. Python {run["python"]}, torch {run["torch"]}, transformers {run["transformers"]}.
`card.json` beside this file holds every setting; `genkit train OUT` repeats the run.

## Known limits

- It is tiny: the code looks right more often than it is right. Never run what it writes unread.
- It knows Python as its training files write it; other libraries, newer syntax and other languages hardly occur.
- A line's end and the next line's indent are one token. A prompt should end with the text of a line (`def f(n):`), not
  with a newline or spaces: after those it goes on badly.
- Greedy decoding soon repeats a line: what parses is seldom useful. The sampling settings that come with the model,
  or a repetition penalty, keep it moving.
- It never saw more than {sizes["context"]} tokens at once.
- Prose, chat and facts come out as nonsense. Of natural languages it has seen the English of comments and docstrings.

SHA-256 of model.safetensors: `{facts["weights_sha256"]}`.
"""
