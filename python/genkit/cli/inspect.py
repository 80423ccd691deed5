"""`genkit inspect`: what a model is, from its files alone; no weights are read."""

from typing import Annotated, Any, Optional

import typer

from genkit.cli.failure import enable_traceback
from genkit.cli.values import token_count
from genkit.plaintext import columns, format_bytes, table

# Of what GGUF and safetensors files say of themselves, for people.
SAID = ("name", "basename", "size_label", "author", "organization", "version", "license", "quantized_by", "url", "source.url",
        "source.huggingface.repository", "repo_url", "description")


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
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor: type, shape, how it runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", is_eager=True, callback=enable_traceback, help="Show where an error came from.")
    ] = False,
) -> None:
    """Show what a model is: types, memory, what runs packed and what widened, tokenizer, chat template, origin.

    Reads the model's files but no weights, and prints its card (MODEL_CARD.md) where one lies beside them.
    """
    import genkit
    from genkit.checkpoints import resolve
    from genkit.cli.result import model_name
    from genkit.inspection import examine

    path = resolve(str(genkit.DEFAULT_MODEL) if model is None else model, revision=revision, offline=offline)
    facts = {"model": model_name(path)} | examine(path, context)
    listed = facts.pop("tensor_list")
    if tensors and as_json:
        facts["tensor_list"] = listed
    if as_json:
        from genkit.plaintext import json_text

        print(json_text(facts))
        return
    print(report(facts))
    if tensors:
        lines = [(entry["type"], " x ".join(map(str, entry["shape"])), name, entry["runs"]) for name, entry in listed.items()]
        print("\n" + "\n".join(columns([("type", "shape", "tensor", "runs"), *lines], right=(1,))))
    elif facts["card"]:
        print()
        print_card(facts["card"])


def report(facts: "dict[str, Any]") -> str:
    from genkit.checkpoints.files import shown

    memory = facts["memory"]
    rows = [
        ("model", f"{facts['model']} ({facts['path']})" if facts["model"] != facts["path"] else facts["path"]),
        ("architecture", facts["architecture"]),
        ("parameters", f"{facts['parameters']:,}"),
        ("layers", f"{facts['layers']} of width {facts['hidden_size']}"),
        ("attention", f"{facts['heads']} heads over {facts['kv_heads']} KV heads of {facts['head_dim']}"),
    ]
    if any(entry["keys"] for entry in facts["windows"]):
        seen = [(entry["layers"], f"{entry['keys']:,} keys" if entry["keys"] else "all") for entry in facts["windows"]]
        rows.append(("windows", ", ".join(f"{layers} layers see {keys}" for layers, keys in seen)))
    if experts := facts["experts"]:
        rows.append(("experts", f"{experts['count']}, {experts['active']} at a time"))
    rows += [("rotary", rope_words(rope)) for rope in facts["ropes"]]
    size = facts["tokenizer_size"]
    rows += [
        ("context", f"{facts['max_context']:,} tokens"),
        ("vocabulary", f"{facts['vocab_size']:,} rows, "
                       + (f"{size:,} in the tokenizer ({facts['tokenizer']})" if size else "no tokenizer")),
        ("chat template", template_words(facts)),
        ("on disk", f"{format_bytes(facts['disk_bytes'])}, {facts['bits_per_weight']:.2f} bits a weight"),
        ("memory", f"{format_bytes(memory['total'])} at {memory['context']:,} tokens: weights {format_bytes(memory['weights'])},"
                   f" full KV cache {format_bytes(memory['kv_cache'])}"),
        ("a layer's", layer_words(memory["layers"])),
        *origin(facts),
    ]
    if facts["left_alone"]:
        rows.append(("left alone", f"{', '.join(map(shown, facts['left_alone']))}: only text is read and written here"))
    if facts["problem"]:
        rows.append(("does not run", facts["problem"]))
    return "\n".join([*table(rows), "", *columns(type_lines(facts["tensors"]), right=(1, 2, 3, 4))])


def type_lines(types: "dict[str, Any]") -> "list[tuple[str, ...]]":
    lines = [("type", "tensors", "weights", "bits", "size", "runs")]
    for name, entry in sorted(types.items(), key=lambda item: -item[1]["bytes"]):
        for i, (runs, count) in enumerate(sorted(entry["runs"].items(), key=lambda item: -item[1])):
            words = runs if len(entry["runs"]) == 1 else f"{count} {runs}"
            lines.append((name, f"{entry['tensors']:,}", f"{entry['parameters']:,}", f"{entry['bits']:.2f}",
                          format_bytes(entry["bytes"]), words) if i == 0 else ("", "", "", "", "", words))
    return lines


def layer_words(layers: "list[int]") -> str:
    """What --gpu-layers puts on a GPU for each."""
    least, most = format_bytes(min(layers)), format_bytes(max(layers))
    return f"{least if least == most else f'{least} to {most}'}, keys and values of its own included"


def rope_words(rope: "dict[str, Any]") -> str:
    factor = f", stretched {rope['factor']:g} times" if rope["factor"] != 1 else ""
    return f"{rope['type']}, {rope['channels']} channels, base {rope['theta']:,.10g}{factor}"


def template_words(facts: "dict[str, Any]") -> str:
    """The family, else how the template begins; names where there are several."""
    templates = facts["chat_templates"]
    if not templates:
        return "none"
    first = next(iter(templates.values()))
    words = facts["chat_template_family"] or cut(" ".join(first.split()), 50)
    return words if list(templates) == ["default"] else f"{words}; {', '.join(cut(name, 40) for name in templates)}"


def origin(facts: "dict[str, Any]") -> "list[tuple[str, str]]":
    """Who made it, as far as the files say."""
    rows = []
    if made := facts["provenance"]:
        recipe = made["recipe"] if isinstance(made["recipe"], dict) else {}
        lost = f", KL divergence {made['kl_mean']:.4f}" if isinstance(made["kl_mean"], float) else ""
        how = f"--type {recipe.get('type')} --method {recipe.get('method')}"
        rows.append(("made by", f"genkit {made['genkit']}: quantize {how}{lost}"))
    if made := facts["conversion"]:
        how = f"{cut(made['source'])} --format {made['format']} --type {made['type']}"
        rows.append(("made by", f"genkit {made['genkit']}: convert {how}"))
    said = {key.removeprefix("general."): value for key, value in facts["metadata"].items()}
    rows += [(key.replace("_", " ").replace(".", " "), cut(said[key])) for key in SAID if said.get(key) not in (None, "")]
    return rows


def cut(value: "Any", limit: int = 100) -> str:
    """What a file says, on one line."""
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= limit else text[:limit] + "..."


def print_card(text: str) -> None:
    """Markdown laid out on a terminal, as it is elsewhere."""
    import sys

    if not sys.stdout.isatty():
        print(text, end="" if text.endswith("\n") else "\n")
        return
    from rich.markdown import Markdown

    from genkit.cli.terminal import console

    console(stderr=False).print(Markdown(text))
