"""`genkit quantize`: a smaller model, and what it cost."""

from enum import Enum
from typing import Annotated, Any, Optional

import typer

from genkit.cli.failure import enable_traceback
from genkit.cli.generate import option
from genkit.cli.interrupt import Interrupts
from genkit.cli.terminal import step_bar
from genkit.cli.values import byte_count, real, token_count, whole
from genkit.errors import LimitError, UsageError
from genkit.plaintext import format_bytes, table

WHAT, HOW, PRICE, RUN = "What it becomes", "How", "Price", "Run"


class Type(str, Enum):
    int4 = "int4"
    int8 = "int8"


class Method(str, Enum):
    auto = "auto"
    rtn = "rtn"
    search = "search"
    awq = "awq"
    gptq = "gptq"


class Form(str, Enum):
    genkit = "genkit"
    compressed_tensors = "compressed-tensors"
    gguf = "gguf"
    gptq = "gptq"
    mlx = "mlx"


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a GGUF file, or a name on the hub, of float weights.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="What to make: a folder; a file where it ends in .gguf.")],
    kind: Annotated[Type, option("--type", metavar="int4|int8", panel=WHAT, help="Bits of a weight. Default: int4.")] = Type.int4,
    group_size: Annotated[
        Optional[int],
        option("-g", "--group-size", metavar="32|64|128", panel=WHAT, parser=whole,
               help="Plain groups that share a scale. Default: two-level scales (genkit), 32 (others).")
    ] = None,
    asymmetric: Annotated[bool, option("--asym", panel=WHAT, help="int4 groups with a zero or a minimum of their own.")] = False,
    form: Annotated[
        Form, option("--format", metavar="genkit|compressed-tensors|gguf|gptq|mlx", panel=WHAT,
                     help="Who shall read it: genkit; transformers and vLLM; llama.cpp; GPTQ's readers; MLX. Default: genkit.")
    ] = Form.genkit,
    tensors: Annotated[
        Optional[list[str]],
        option("--tensor", metavar="REGEX=TYPE", panel=WHAT,
               help="Another type for tensors whose name matches: int4, int8, bf16, f16, f32. May be repeated; the last counts.")
    ] = None,
    head: Annotated[Optional[str], option("--head", metavar="TYPE", panel=WHAT, help="Type of the output layer.")] = None,
    embeddings: Annotated[
        Optional[str], option("--embeddings", metavar="TYPE", panel=WHAT, help="Type of the token embeddings. A tied head has it too.")
    ] = None,
    fit: Annotated[
        Optional[int],
        option("--fit", metavar="SIZE", panel=WHAT, parser=byte_count,
               help="Choose types tensor by tensor so that weights and KV cache take this much memory, like 8GiB.")
    ] = None,
    context: Annotated[
        Optional[int],
        option("-c", "--context", metavar="TOKENS", panel=WHAT, parser=token_count,
               help="With --fit: the context that must fit too. Default: what the model was made for.")
    ] = None,
    method: Annotated[
        Method, option("--method", metavar="auto|rtn|search|awq|gptq", panel=HOW,
                       help="auto: gptq with --calibration, else search. Default: auto.")
    ] = Method.auto,
    calibration: Annotated[
        Optional[str], option("--calibration", metavar="FILE", panel=HOW,
                              help="Text that the method looks at. Default for awq and gptq: a sample that comes with genkit.")
    ] = None,
    samples: Annotated[
        int, option("--samples", metavar="N", panel=HOW, parser=whole, help="Pieces of 512 tokens of it to take. Default: 64.")
    ] = 64,
    requantize: Annotated[
        bool, option("--requantize", panel=HOW, help="Let weights that are codes already be rounded a second time.")
    ] = False,
    evaluation: Annotated[
        Optional[str], option("--eval", metavar="FILE", panel=PRICE, help="Held-out text to measure the price on. Default: one that comes with genkit.")
    ] = None,
    price: Annotated[bool, option("--price/--no-price", panel=PRICE, help="Measure what was lost, or do not. Default: do.")] = True,
    max_kld: Annotated[
        Optional[float],
        option("--max-kld", metavar="X", panel=PRICE, parser=real, help="Exit 1 when the mean KL divergence is above; OUT stays.")
    ] = None,
    resume: Annotated[bool, option("--resume", panel=RUN, help="Go on from what a stopped run left in OUT.partial.")] = False,
    force: Annotated[bool, option("--force", panel=RUN, help="Replace an OUT that exists, once the new one is whole.")] = False,
    dry_run: Annotated[bool, option("--dry-run", panel=RUN, help="Print the plan with sizes, reading headers only.")] = False,
    threads: Annotated[
        Optional[int], option("-t", "--threads", metavar="N", panel=RUN, parser=whole, help="Default: the processors this process may use.")
    ] = None,
    as_json: Annotated[bool, option("--json", panel=RUN, help="Print one JSON object.")] = False,
    quiet: Annotated[bool, option("-q", "--quiet", panel=RUN, help="No bar on stderr.")] = False,
    traceback: Annotated[
        bool, option("--traceback", panel=RUN, is_eager=True, callback=enable_traceback, help="Show where an error came from.")
    ] = False,
) -> None:
    """Make a model smaller and say what that cost.

    OUT appears whole or not at all. Without options: 4-bit codes in genkit's own form, the best for its size and the
    fastest here; `genkit generate -m OUT` runs it.

    \b
    genkit quantize path/to/model small
    genkit quantize path/to/model small.gguf --format gguf
    genkit quantize path/to/model small --calibration my.txt --max-kld 0.05
    """
    from genkit.quant.quantize import Recipe

    if max_kld is not None and not price:
        raise UsageError("--max-kld needs the price: leave --no-price away")
    recipe = Recipe(type=kind.value, group_size=group_size, asymmetric=asymmetric, method=method.value, format=form.value,
                    tensors=tuple(rule(text) for text in tensors or ()), head=head, embeddings=embeddings, samples=samples,
                    requantize=requantize, fit=fit, context=context)
    recipe.check()
    with Interrupts():
        if dry_run:
            report = plan_only(model, recipe, calibration, threads)
        else:
            from genkit.quant import job

            with step_bar(not quiet) as progress:
                report = job.quantize(model, out, recipe, calibration=calibration, evaluation=evaluation, price=price,
                                      resume=resume, force=force, threads=threads, progress=progress)
    if as_json:
        from genkit.plaintext import json_text

        print(json_text(report))
    else:
        print(describe(report, None if dry_run else out))
    mean = report.get("price", {}).get("kl", {}).get("mean")
    if max_kld is not None and not dry_run and mean is None:
        raise LimitError(f"--max-kld {max_kld}: the price could not be measured: {report['price'].get('skipped')}")
    if max_kld is not None and mean is not None and not mean <= max_kld:
        raise LimitError(f"the mean KL divergence is {mean:.4g}, above --max-kld {max_kld:g}; {out} is written all the same")


def rule(text: str) -> "tuple[str, str]":
    """"mlp=int8" -> ("mlp", "int8")"""
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"--tensor {text}: expected REGEX=TYPE, like down_proj=int8")
    return pattern, kind


def plan_only(model: str, recipe: "Any", calibration: Optional[str], threads: Optional[int]) -> "dict[str, Any]":
    from contextlib import ExitStack

    from genkit import checkpoints
    from genkit.engine import choose_threads
    from genkit.quant import job
    from genkit.opening import open_model

    with ExitStack() as stack:
        source = open_model(checkpoints.resolve(model), stack)
        plan = job.plan_of(source, recipe, calibration=calibration)
        return job.describe_plan(plan) | {"seconds": round(job.seconds(plan, choose_threads(threads)), 1)}


def describe(report: "dict[str, Any]", out: Optional[str]) -> str:
    """The report as people read it."""
    rows = [
        ("size", f"{format_bytes(report['file_bytes'])}, was {format_bytes(report['source_bytes'])}"),
        ("bits a weight", f"{report['bits_in_file']:.2f} in the file, {report['bits_in_memory']:.2f} in memory "
                          f"({format_bytes(report['memory_bytes'])}); {report['parameters']:,} weights"),
        ("method", report["recipe"]["method"]),
    ]
    if "seconds" in report:
        rows.append(("time", f"about {max(1, round(report['seconds']))} s to write, and some to measure the price"))
    for name, entry in sorted(report["types"].items(), key=lambda item: -item[1]["bytes"]):
        rows.append((name, f"{entry['tensors']} tensors, {entry['parameters']:,} weights, {format_bytes(entry['bytes'])}"))
    rows += [("note", line) for line in report["notes"][:10]]
    if len(report["notes"]) > 10:
        rows.append(("note", f"and {len(report['notes']) - 10} more of the kind"))
    if out is not None:
        rows.insert(0, ("written", out))
    return "\n".join([*table(rows), *price_lines(report.get("price", {}))])


def price_lines(price: "dict[str, Any]") -> "list[str]":
    if not price:
        return []
    if "skipped" in price:
        return ["", f"price not measured: {price['skipped']}"]
    kl = price["kl"]
    lines = ["", f"price, on {price['positions']:,} tokens of {price.get('text', 'the text')}:"]
    lines += table([
        ("perplexity", f"{price['perplexity']:.4f}, was {price['base_perplexity']:.4f}: ratio {price['perplexity_ratio']:.4f}"
                       f" +- {price['perplexity_ratio_error']:.4f}"),
        ("KL divergence", f"mean {kl['mean']:.5f} +- {kl['error']:.5f}, median {kl['median']:.5f}, 99 % {kl['p99']:.4f}, "
                          f"99.9 % {kl['p999']:.4f}, max {kl['max']:.3f}"),
        ("same top token", f"{100 * price['same_top']:.2f} %"),
    ])
    worst = list(price.get("output_errors", {}).items())[:10]
    if worst:
        lines += ["", "worst outputs (squared error, share of the output's square):"]
        lines += table([(f"{100 * error:.3f} %", name) for name, error in worst])
    return lines
