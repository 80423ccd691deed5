"""The model card: MODEL_CARD.md for people and card.json for programs, filled from the run and its evaluation."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.errors import ResourceError

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
            "steps": result.recipe.steps,
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
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(data["left_out"].items()))
    return f"""# Model card: {facts["name"]}

A small llama-shaped language model of Python source code, trained from nothing by `genkit train`. It goes on where a
piece of Python stops. It knows no instructions, no chat and no language but what stands in Python files.

## Figures

| | |
| --- | --- |
| held-out bits per byte | **{seen["bits_per_byte"]:.3f}** |
| `xz -9` of the same files together | {seen["xz_bits_per_byte"]:.3f} ({100 * seen["saved_against_xz"]:.1f} % more than the model needs are saved by it) |
| greedy completions of held-out `def name(args):` lines with two or more statements that parse | {seen["completions_good"]} of {seen["completions"]} (of the first ten: {seen["first_10_completions_good"]}) |
| weights | {facts["parameters"]:,} in bf16, head tied to the embedding |
| shape | {sizes["layers"]} layers, width {sizes["hidden"]}, feed-forward {sizes["ffn"]}, {sizes["heads"]} query heads and {sizes["kv_heads"]} KV head(s) of {sizes["hidden"] // sizes["heads"]} |
| context | {sizes["context"]} tokens |
| tokenizer | byte-level BPE, {sizes["vocab"]} entries, trained on the train split |

Bits per byte: each held-out file from its start, windows of the whole context that slide by half of it. A completion
is 160 tokens at most, cut at its last complete statement; {100 * seen["completion_lines_kept"]:.0f} % of the lines stay after the cut.

## Data

{data["source"]}: every `.py` file, {data["train_files"]} files ({data["train_bytes"]:,} bytes, {data["train_tokens"]:,} tokens) to learn from and
{data["held_out_files"]} files ({data["held_out_bytes"]:,} bytes) held out. The split is by file, by a hash of the seed and the path. Left out: {left_out or "nothing"}.
SHA-256 of both splits: `{data["sha256"]}`.

## Licence

Data: {data["license"]}. Weights and recipe: {facts["license"]}. The model can repeat passages of its training text.

## Training

{run["steps"]} steps of {recipe["batch_tokens"]} tokens ({run["tokens_seen"]:,} tokens, {run["tokens_seen"] / data["train_tokens"]:.1f} times the text) in {run["seconds"] / 3600:.2f} hours on
{run["hardware"]} ({run["device"]}, {run["processes"]} process(es), {run["precision"]}{", torch.compile" if run["compiled"] else ""}).
AdamW (0.9, 0.98), weight decay {recipe["weight_decay"]}, rate {recipe["learning_rate"]} after {recipe["warmup_steps"]} steps of warm-up, half a cosine down to 1 % over the last {100 * recipe["decay_share"]:.0f} % of the steps;
windows of {recipe["short_context"]} tokens before that, of {sizes["context"]} from there on. Seed {recipe["seed"]}.
Python {run["python"]}, torch {run["torch"]}, transformers {run["transformers"]}. `card.json` beside this file holds every setting.

## Known limits

- It is tiny: the code looks right more often than it is right. Never run what it writes unread.
- It knows Python as the standard library and its tests are written; newer syntax and other libraries hardly occur.
- A line's end and the next line's indent are one token. A prompt should end with the text of a line (`def f(n):`), not
  with a newline or spaces: after those it goes on badly.
- It never saw more than {sizes["context"]} tokens at once.
- Text in other languages than English, and prose, come out as nonsense.

Weights SHA-256: `{facts["weights_sha256"]}`.
"""
