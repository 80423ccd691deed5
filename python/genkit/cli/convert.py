"""`genkit convert`: a model in another form, and what of it that form could not hold."""

from enum import Enum
from typing import Annotated, Any, Optional

import typer

from genkit.cli.failure import enable_traceback
from genkit.cli.interrupt import Interrupts
from genkit.cli.terminal import step_bar
from genkit.cli.values import whole
from genkit.plaintext import columns, format_bytes, table


class Form(str, Enum):
    genkit = "genkit"
    compressed_tensors = "compressed-tensors"
    gguf = "gguf"
    gptq = "gptq"
    mlx = "mlx"
    safetensors = "safetensors"


class Type(str, Enum):
    keep = "keep"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"


def convert(
    model: Annotated[str, typer.Argument(metavar="IN", help="A model folder, a GGUF file, or a name on the hub.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="What to make: a folder; a file where it ends in .gguf.")],
    form: Annotated[
        Optional[Form],
        typer.Option("--format", metavar="genkit|compressed-tensors|gguf|gptq|mlx|safetensors", show_default=False,
                     help="safetensors: floats only. Default: gguf where OUT ends in .gguf, else it must be said."),
    ] = None,
    kind: Annotated[
        Type, typer.Option("--type", metavar="keep|f32|f16|bf16", show_default=False,
                           help="keep: codes stay codes, floats what they are; or a float type for all. Default: keep."),
    ] = Type.keep,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Round a second time what the form cannot hold as it is, and say what was lost.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from what a stopped run left in OUT.partial.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an OUT that exists, once the new one is whole.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would become what; weights are read only where their types do not tell.")
    ] = False,
    threads: Annotated[
        Optional[int], typer.Option("-t", "--threads", metavar="N", parser=whole, show_default=False,
                                    help="Default: the processors this process may use."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No bar on stderr.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", is_eager=True, callback=enable_traceback, help="Show where an error came from.")
    ] = False,
) -> None:
    """Write a model in another form, with the same numbers in it.

    Codes go over as they are where the form has a type for them. Where it has none nothing is written: --allow-loss
    rounds them a second time, --type makes floats of them. Everything is compared with IN before OUT is put in place.

    \b
    genkit convert model.gguf folder --format safetensors --type bf16
    genkit convert path/to/gptq-model model.gguf
    """
    from genkit.quant import rewrite

    name = rewrite.choose_format(out, None if form is None else form.value)
    with Interrupts():
        if dry_run:
            report = plan_only(model, name, kind.value, allow_loss)
        else:
            with step_bar(not quiet) as progress:
                report = rewrite.convert(model, out, name, kind.value, allow_loss=allow_loss, resume=resume, force=force,
                                         threads=threads, progress=progress)
    if as_json:
        from genkit.plaintext import json_text

        print(json_text(report))
    else:
        print(describe(report, None if dry_run else out))


def plan_only(model: str, form: str, kind: str, allow_loss: bool) -> "dict[str, Any]":
    from contextlib import ExitStack

    from genkit import checkpoints
    from genkit.opening import open_model
    from genkit.quant.rewrite import describe_conversion, plan_conversion

    with ExitStack() as stack:
        source = open_model(checkpoints.resolve(model), stack)
        return describe_conversion(plan_conversion(source, form, kind, allow_loss), source, kind)


def describe(report: "dict[str, Any]", out: Optional[str]) -> str:
    """The report as people read it."""
    rows = [("written", out)] if out is not None else []
    rows.append(("size", f"{format_bytes(report['file_bytes'])}, was {format_bytes(report['source_bytes'])}; "
                         f"{report['bits_in_file']:.2f} bits a weight"))
    rows += [("note", line) for line in report["notes"][:10]]
    lines = [("from", "to", "what happens", "tensors", "weights", "relative error")]
    for entry in report["classes"]:
        error = "known once written" if entry["error"] is None else f"{entry['error']:.1e}" if entry["error"] else "none"
        lines.append((entry["from"], entry["to"], entry["how"], f"{entry['tensors']:,}", f"{entry['parameters']:,}", error))
    return "\n".join([*table(rows), "", *columns(lines, right=(3, 4))])
