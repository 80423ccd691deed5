"""`genkit eval`: how well a model knows a text, and how far it is from another."""

from contextlib import ExitStack
from typing import Annotated, Any, Optional

import typer

from genkit.plaintext import table
from genkit.cli.failure import enable_traceback
from genkit.cli.help import GroupedCommand
from genkit.cli.interrupt import Interrupts
from genkit.cli.terminal import step_bar
from genkit.cli.values import token_count, whole
from genkit.errors import LimitError, UsageError

app = typer.Typer(help="Measure a model on a text.", rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def group() -> None:
    """Measure a model on a text."""


@app.command(cls=GroupedCommand)
def perplexity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a GGUF file, or a name on the hub.")],
    text: Annotated[
        Optional[str], typer.Option("--text", metavar="FILE", show_default=False, help="UTF-8 text. Default: one that comes with genkit.")
    ] = None,
    against: Annotated[
        Optional[str], typer.Option("--against", metavar="BASE", show_default=False,
                                    help="A model to compare with: KL divergence and agreement.")
    ] = None,
    tokens: Annotated[
        Optional[int], typer.Option("--tokens", metavar="N", parser=token_count, show_default=False, help="Tokens of the text to take. Default: all.")
    ] = None,
    context: Annotated[
        Optional[int], typer.Option("-c", "--context", metavar="TOKENS", parser=token_count, show_default=False, help="Tokens of a piece. Default: 512.")
    ] = None,
    threads: Annotated[
        Optional[int], typer.Option("-t", "--threads", metavar="N", parser=whole, show_default=False,
                                    help="Default: the processors this process may use.")
    ] = None,
    max_kld: Annotated[
        Optional[float], typer.Option("--max-kld", metavar="X", show_default=False, help="Exit 1 when the mean KL divergence is above.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No bar on stderr.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", is_eager=True, callback=enable_traceback, help="Show where an error came from.")
    ] = False,
) -> None:
    """Perplexity of a model on a text; with --against, its distance from a base too.

    The text is cut into pieces of 512 tokens; every token but the first of a piece counts. Compare ratios only: other
    tools cut otherwise.
    """
    from genkit import _core
    from genkit.checkpoints import resolve
    from genkit.cli.quantize import price_lines
    from genkit.engine import choose_threads
    from genkit.quant import evaluate, job
    from genkit.opening import open_model

    if max_kld is not None and against is None:
        raise UsageError("--max-kld needs a model to compare with: add --against")
    context = evaluate.CONTEXT if context is None else context
    if context < 2:
        raise UsageError(f"--context {context}: at least 2 tokens are needed to predict one")
    _core.set_threads(choose_threads(threads))
    with Interrupts(), ExitStack() as stack, step_bar(not quiet) as progress:
        tell = progress and (lambda done, total: progress("measuring", done, total))
        base = None if against is None else open_model(resolve(against), stack)
        opened = open_model(resolve(model), stack)
        positions = min([job.positions(o) for o in (opened, base) if o is not None])
        if context > positions:
            raise UsageError(f"--context {context}: the model was made for {positions}")
        words = job.bundled_text("evaluation") if text is None else job.read_text(text)
        where = f"--text {text or '(bundled)'}"
        known = opened if opened.has_tokenizer or base is None else base
        sequences = evaluate.cut(known.tokenizer(), words, tokens or len(words.encode()), context, where)
        if base is None:
            price = evaluate.perplexity(opened.fields, opened.checkpoint, sequences, tell)
        else:
            if known is opened and base.has_tokenizer and base.tokenizer().encode(words[:10000]) != known.tokenizer().encode(words[:10000]):
                raise UsageError(f"{against} and {model} have different tokenizers: their predictions cannot be compared")
            price = evaluate.compare((base.fields, base.checkpoint), (opened.fields, opened.checkpoint), sequences, tell, errors=False)
    result: "dict[str, Any]" = {"model": model, "against": against, "text": text or "bundled"} | price.as_dict()
    if as_json:
        from genkit.plaintext import json_text

        print(json_text(result))
    elif base is None:
        print("\n".join(table([("perplexity", f"{result['perplexity']:.4f} +- {result['perplexity_error']:.4f}"),
                               ("tokens", f"{result['positions']:,} predicted, in pieces of {context}")])))
    else:
        print("\n".join(price_lines(result)[1:]))
    if max_kld is not None and not result["kl"]["mean"] <= max_kld:
        raise LimitError(f"the mean KL divergence is {result['kl']['mean']:.4g}, above --max-kld {max_kld:g}")
