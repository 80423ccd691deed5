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
REPORT = "quantization.json"


def inspect(
    model: Annotated[
        Optional[str],
        typer.Argument(metavar="MODEL", show_default=False,
                       help="A model folder, a GGUF file, or a name on the hub. Default: the model that ships with genkit."),
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
    from contextlib import ExitStack

    from genkit import kv_cache
    from genkit.cli.result import model_name
    from genkit.engine import choose_kv_type, choose_quantize
    from genkit.errors import UsageError
    from genkit.models import read_model_config
    from genkit.opening import open_model
    from genkit.quant.formats import BY_NAME

    with ExitStack() as stack:
        opened = open_model(folder, stack)
        fields, checkpoint = opened.fields, opened.checkpoint
        config = read_model_config(fields, checkpoint)
        rounded = BY_NAME.get(choose_quantize(None, fields))
        kv_type = choose_kv_type("auto", checkpoint, "int4" if rounded else "none")
        dtypes: "dict[str, dict[str, int]]" = {}
        weights = 0.0
        for name, tensor in checkpoint.tensors.items():
            stored = checkpoint.quantized.get(name)
            words = stored.format.words if stored and stored.format else tensor.dtype
            entry = dtypes.setdefault(words, {"tensors": 0, "parameters": 0, "bytes": 0})
            count = math.prod(tensor.shape)
            entry["tensors"] += 1
            entry["parameters"] += count
            entry["bytes"] += tensor.nbytes
            if stored is not None:
                weights += tensor.nbytes if stored.format else 2 * count  # what no kernel takes is widened to f16
            else:
                weights += count * rounded.bits / 8 if rounded and len(tensor.shape) == 2 else tensor.nbytes
        tokenizer_size = opened.tokenizer().vocab_size if opened.has_tokenizer else None
    context = config.max_positions if context is None else context
    if not 1 <= context <= config.max_positions:
        raise UsageError(f"context {context} is outside 1 to {config.max_positions}, what the model was made for")
    cache = kv_cache.pages_for(context) * kv_cache.page_bytes(
        config.layers, config.kv_heads, config.head_dim, kv_type)
    parameters = sum(entry["parameters"] for entry in dtypes.values())
    card, made = folder / CARD, opened.beside(REPORT)
    return {
        "model": model_name(folder),
        "path": str(folder),
        "architecture": config.model_type,
        "parameters": parameters,
        "tensors": dtypes,
        "bits_per_weight": round(8 * checkpoint.nbytes / parameters, 4),
        "rounded_on_loading_to": rounded.words if rounded else None,
        "weight_bytes": config.weight_bytes,
        "disk_bytes": sum(file.stat().st_size for file in (folder.iterdir() if folder.is_dir() else [folder]) if file.is_file()),
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "tokenizer_size": tokenizer_size,
        "max_context": config.max_positions,
        "memory": {"context": context, "weights": int(weights), "kv_cache": cache, "total": int(weights) + cache},
        "provenance": provenance(made) if made.is_file() else None,
        "card": card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
    }


def provenance(report: Path) -> "dict[str, Any]":
    """What `genkit quantize` wrote beside the weights. Raises BadFileError."""
    from genkit.checkpoints import read_json

    found = read_json(report)
    price = found.get("price")
    kl = price.get("kl") if isinstance(price, dict) else None
    return {"genkit": found.get("genkit"), "recipe": found.get("recipe"), "source_bytes": found.get("source_bytes"),
            "kl_mean": kl.get("mean") if isinstance(kl, dict) else None}


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
        ("on disk", f"{format_bytes(facts['disk_bytes'])}, {facts['bits_per_weight']:.2f} bits a weight"),
    ]
    for dtype, entry in sorted(facts["tensors"].items()):
        rows.append((f"{dtype} tensors", f"{entry['tensors']} with {entry['parameters']:,} parameters, {format_bytes(entry['bytes'])}"))
    if facts["rounded_on_loading_to"]:
        rows.append(("when loaded", f"rounded to {facts['rounded_on_loading_to']}, as config.json asks"))
    if made := facts["provenance"]:
        recipe = made["recipe"] if isinstance(made["recipe"], dict) else {}
        lost = f", KL divergence {made['kl_mean']:.4f}" if isinstance(made["kl_mean"], float) else ""
        rows.append(("made by", f"genkit {made['genkit']}: quantize --type {recipe.get('type')} --method {recipe.get('method')}{lost}"))
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
