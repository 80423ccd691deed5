"""`genkit inspect`: what a model is, from its files alone; no weights are read."""

import math
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from genkit.cli.doctor import table
from genkit.cli.failure import enable_traceback
from genkit.cli.terminal import format_bytes
from genkit.cli.values import token_count

CARD = "MODEL_CARD.md"


def inspect(
    model: Annotated[
        Optional[str],
        typer.Argument(metavar="MODEL", show_default=False,
                       help="A model folder or a name on the hub. Default: the model that ships with genkit."),
    ] = None,
    context: Annotated[
        Optional[int],
        typer.Option("-c", "--context", "--ctx-size", metavar="TOKENS", parser=token_count, show_default=False,
                     help="Context to work out the memory for. Default: what the model was made for."),
    ] = None,
    revision: Annotated[
        Optional[str], typer.Option("--revision", metavar="REV", show_default=False, help="Branch, tag or commit on the hub.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", is_eager=True, callback=enable_traceback, help="Show where an error came from.")
    ] = False,
) -> None:
    """Show what a model is, and the memory it needs.

    Reads the model's files but no weights, and prints its card (MODEL_CARD.md) where one lies beside them.
    """
    import genkit
    from genkit.checkpoints import resolve

    folder = resolve(str(genkit.DEFAULT_MODEL) if model is None else model, revision=revision, offline=offline)
    facts = examine(folder, context)
    if as_json:
        from genkit.cli.result import json_text

        print(json_text(facts))
        return
    print(report(facts))
    if facts["card"]:
        print()
        print_card(facts["card"])


def examine(folder: Path, context: Optional[int]) -> "dict[str, Any]":
    """The facts, as --json prints them: sizes in bytes. Raises BadFileError."""
    from genkit import kv_cache
    from genkit.checkpoints import open_checkpoint, read_config
    from genkit.cli.result import model_name
    from genkit.engine import choose_kv_type
    from genkit.errors import UsageError
    from genkit.models import read_model_config
    from genkit.text.tokenizer import Tokenizer

    fields = read_config(folder)
    with open_checkpoint(folder, fields) as checkpoint:
        config = read_model_config(fields, checkpoint)
        kv_type = choose_kv_type("auto", checkpoint, "none")
        tensors = checkpoint.tensors.values()
        dtypes: "dict[str, dict[str, int]]" = {}
        for tensor in tensors:
            entry = dtypes.setdefault(tensor.dtype, {"tensors": 0, "parameters": 0, "bytes": 0})
            entry["tensors"] += 1
            entry["parameters"] += math.prod(tensor.shape)
            entry["bytes"] += tensor.nbytes
    context = config.max_positions if context is None else context
    if not 1 <= context <= config.max_positions:
        raise UsageError(f"context {context} is outside 1 to {config.max_positions}, what the model was made for")
    cache = kv_cache.pages_for(context) * kv_cache.page_bytes(
        config.layers, config.kv_heads, config.head_dim, kv_type)
    card = folder / CARD
    return {
        "model": model_name(folder),
        "path": str(folder),
        "architecture": config.model_type,
        "parameters": sum(entry["parameters"] for entry in dtypes.values()),
        "tensors": dtypes,
        "weight_bytes": config.weight_bytes,
        "disk_bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "tokenizer_size": Tokenizer(folder).vocab_size if (folder / "tokenizer.json").exists() else None,
        "max_context": config.max_positions,
        "memory": {"context": context, "weights": config.weight_bytes, "kv_cache": cache, "total": config.weight_bytes + cache},
        "card": card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
    }


def report(facts: "dict[str, Any]") -> str:
    memory = facts["memory"]
    rows = [
        ("model", f"{facts['model']} ({facts['path']})" if facts["model"] != facts["path"] else facts["path"]),
        ("architecture", facts["architecture"]),
        ("parameters", f"{facts['parameters']:,}"),
        ("layers", f"{facts['layers']} of width {facts['hidden_size']}"),
        ("attention", f"{facts['heads']} heads over {facts['kv_heads']} KV heads of {facts['head_dim']}"),
        ("context", f"{facts['max_context']:,} tokens"),
        ("vocabulary", f"{facts['vocab_size']:,} rows, " + (
            f"{facts['tokenizer_size']:,} in the tokenizer" if facts["tokenizer_size"] else "no tokenizer.json")),
        ("on disk", format_bytes(facts["disk_bytes"])),
    ]
    for dtype, entry in sorted(facts["tensors"].items()):
        rows.append((f"{dtype} tensors", f"{entry['tensors']} with {entry['parameters']:,} parameters, {format_bytes(entry['bytes'])}"))
    rows.append(
        ("memory", f"{format_bytes(memory['total'])} at a context of {memory['context']:,}: weights"
                   f" {format_bytes(memory['weights'])}, KV cache {format_bytes(memory['kv_cache'])} when full")
    )
    return "\n".join(table(rows))


def print_card(text: str) -> None:
    """Markdown laid out on a terminal, as it is elsewhere."""
    import sys

    if not sys.stdout.isatty():
        print(text, end="" if text.endswith("\n") else "\n")
        return
    from rich.markdown import Markdown

    from genkit.cli.terminal import console

    console(stderr=False).print(Markdown(text))
