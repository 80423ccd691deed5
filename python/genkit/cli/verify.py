"""`genkit verify`: whether a model's files are whole."""

from contextlib import ExitStack
from typing import Annotated

import typer

from genkit.cli.failure import enable_traceback
from genkit.cli.interrupt import Interrupts
from genkit.cli.terminal import step_bar
from genkit.errors import BadFileError

SHOWN = 20


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a GGUF file, or a name on the hub.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No bar on stderr.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", is_eager=True, callback=enable_traceback, help="Show where an error came from.")
    ] = False,
) -> None:
    """Check a model's files: checksums, names, shapes, and every tensor read and decoded.

    Checksums are those of the manifest.json that `genkit quantize` writes, where there is one. Exits 3 when something is
    wrong.
    """
    from genkit.checkpoints import resolve
    from genkit.opening import open_model
    from genkit.quant.verify import verify as check

    with Interrupts(), ExitStack() as stack, step_bar(not quiet) as progress:
        result = check(open_model(resolve(model), stack), progress)
    problems = result["problems"]
    if as_json:
        from genkit.plaintext import json_text

        print(json_text({"model": model} | result))
    else:
        for line in problems[:SHOWN]:
            print(line)
        if len(problems) > SHOWN:
            print(f"and {len(problems) - SHOWN} more")
        sums = f"{result['files']} files as their checksums say" if result["files"] else "no manifest.json with checksums"
        if not problems:
            print(f"{model}: {result['tensors']} tensors read and decoded, {sums}: nothing is wrong")
    if problems:
        raise BadFileError(f"{model}: {len(problems)} thing(s) wrong with its files; download it or make it again")
