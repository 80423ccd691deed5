"""What a trained folder is worth: bits per byte on held-out files against xz, and whether its code parses.

    genkit train --evaluate FOLDER

The weights are read as saved (bf16) and run in float32 with transformers, independent of genkit's own core.
"""

from __future__ import annotations

import ast
import hashlib
import lzma
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genkit.errors import BadFileError
from genkit.train.data import SourceFile, load_corpus
from genkit.train.tokenizer import END_OF_TEXT_ID, load_tokenizer

_DEF = re.compile(r"^[ \t]*(def [a-z_]\w*\(.*\):)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Completion:
    """One greedy completion: the prompt, the text that follows, statements in the body kept, share of lines kept."""

    prompt: str
    text: str
    statements: int
    kept: float

    @property
    def good(self) -> bool:
        """Two or more statements in the body after the cut."""
        return self.statements >= 2


@dataclass(frozen=True)
class Evaluation:
    """Bits per byte of the model and of `xz -9` over the same held-out bytes, and the completions."""

    bytes: int
    files: int
    tokens: int
    bits_per_byte: float
    xz_bits_per_byte: float
    fingerprint: str
    completions: list[Completion]

    @property
    def saved(self) -> float:
        """Share of bits saved against xz."""
        return 1 - self.bits_per_byte / self.xz_bits_per_byte


def evaluate(
    folder: Path,
    data: Path | None = None,
    seed: int = 0,
    prompts: int = 100,
    new_tokens: int = 160,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Measure a saved folder on the held-out split of `data` (default: the standard library).

    `progress(what, done, total)` is called along the way. Raises BadFileError for a folder that does not load.
    """
    tell = progress or (lambda what, done, total: None)
    model, tokenizer = load_folder(folder)
    corpus = load_corpus(data, seed)
    nats, tokens = held_out_nats(model, tokenizer, corpus.held_out, tell)
    size = sum(f.size for f in corpus.held_out)
    completions = []
    for index, prompt in enumerate(prompt_lines(corpus.held_out, prompts, seed)):
        completions.append(judge(prompt, greedy(model, tokenizer, prompt, new_tokens)))
        tell("completions", index + 1, prompts)
    return Evaluation(
        bytes=size,
        files=len(corpus.held_out),
        tokens=tokens,
        bits_per_byte=nats / math.log(2) / size,
        xz_bits_per_byte=xz_bits_per_byte(corpus.held_out),
        fingerprint=corpus.fingerprint,
        completions=completions,
    )


def load_folder(folder: Path):
    """(float32 model in evaluation mode, tokenizer) of a saved folder."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise BadFileError(f"{folder}: no config.json there; give the folder of a trained model")
    tokenizer = load_tokenizer(folder)
    try:
        model = LlamaForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadFileError(f"{folder}: does not load: {error}") from error
    return model.eval(), tokenizer


def held_out_nats(model, tokenizer, files: list[SourceFile], tell=lambda what, done, total: None) -> tuple[float, int]:
    """(nats, tokens) to write down all files, each from its start after `<|endoftext|>` and with its own end mark.

    Windows of the full context slide by half of it, so every token past the first window is predicted from at least
    half a context.
    """
    import torch

    context = model.config.max_position_embeddings
    nats, tokens = 0.0, 0
    for done, file in enumerate(files):
        ids = [END_OF_TEXT_ID, *tokenizer.encode(file.text).ids, END_OF_TEXT_ID]
        counted = 1  # ids[:counted] are settled
        while counted < len(ids):
            start = 0 if counted == 1 else counted - context // 2
            part = torch.tensor([ids[start : start + context + 1]])
            with torch.inference_mode():
                logits = model(part[:, :-1], use_cache=False).logits[0].float()
            fresh = counted - start - 1  # first row of logits that predicts a token not yet counted
            nats += torch.nn.functional.cross_entropy(logits[fresh:], part[0, fresh + 1 :], reduction="sum").item()
            counted = start + part.shape[1]
        tokens += len(ids) - 1
        tell("held-out files", done + 1, len(files))
    return nats, tokens


def xz_bits_per_byte(files: list[SourceFile]) -> float:
    """Bits per byte of `xz -9` over all files one after another, in path order."""
    text = b"".join(f.text.encode("utf-8") for f in files)
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


def prompt_lines(files: list[SourceFile], count: int, seed: int) -> list[str]:
    """`count` different `def name(args):` lines of the files without their indent, in a seeded random order."""
    lines = sorted({match for file in files for match in _DEF.findall(file.text)})
    random.Random(f"{seed} prompts").shuffle(lines)
    return lines[:count]


def greedy(model, tokenizer, prompt: str, new_tokens: int) -> str:
    """The text that follows the prompt, most likely token by token, to the end mark or `new_tokens`."""
    import torch

    ids = torch.tensor([tokenizer.encode(prompt).ids])
    out: list[int] = []
    cache = None
    with torch.inference_mode():
        while len(out) < new_tokens:
            result = model(ids, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            token = int(result.logits[0, -1].argmax())
            if token == END_OF_TEXT_ID:
                break
            out.append(token)
            ids = torch.tensor([[token]])
    return tokenizer.decode(out)


def judge(prompt: str, text: str) -> Completion:
    """Cut the completion at its last complete statement and count the statements in the first function's body.

    Lines are dropped from the end until the rest parses; `kept` is the share of the completion's lines that stay.
    """
    lines = (prompt + text).split("\n")
    for end in range(len(lines), 1, -1):
        try:
            tree = ast.parse("\n".join(lines[:end]))
        except (SyntaxError, ValueError):
            continue
        function = tree.body[0]
        statements = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
        return Completion(prompt, text, statements, (end - 1) / (len(lines) - 1))
    return Completion(prompt, text, 0, 0.0)


def weights_digest(folder: Path) -> str:
    """SHA-256 of model.safetensors."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def describe(result: Evaluation) -> str:
    """The figures as a few lines of text."""
    good = [c for c in result.completions if c.good]
    first = result.completions[:10]
    kept = sum(c.kept for c in result.completions) / max(1, len(result.completions))
    return "\n".join(
        [
            f"held-out: {result.files} files, {result.bytes} bytes, {result.tokens} tokens",
            f"model:    {result.bits_per_byte:.4f} bits per byte",
            f"xz -9:    {result.xz_bits_per_byte:.4f} bits per byte ({100 * result.saved:.1f} % saved)",
            f"completions with two or more statements that parse: {len(good)} of {len(result.completions)}"
            f" (first 10: {sum(c.good for c in first)}); lines kept: {100 * kept:.0f} %",
        ]
    )
