"""`genkit quantize` as one call: plan, write, price, put in place."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Callable, Optional

from genkit import _core, checkpoints
from genkit.checkpoints.config import LARGE_FILE, read_json
from genkit.checkpoints.files import read_small, size_words
from genkit.engine import choose_threads
from genkit.errors import BadFileError, ResourceError, UsageError
from genkit.machine import memory_available
from genkit.models import read_model_config
from genkit.quant import evaluate
from genkit.quant.fit import choose
from genkit.opening import Opened, open_model
from genkit.quant.output import Output, check_paths, clean_up
from genkit.quant.quantize import Plan, Recipe, Run, describe, fingerprint, make_plan
from genkit.quant.writers.base import json_bytes

REPORT = "quantization.json"
Progress = Callable[[str, int, int], None]
LARGEST_PIECES = 256 << 20  # bytes of what is read, rounded and written at a time, whatever the model


def bundled_text(name: str) -> str:
    """"calibration" or "evaluation": assets/text."""
    return (files("genkit") / "assets" / "text" / f"{name}.txt").read_text(encoding="utf-8")


def read_text(path: str | Path) -> str:
    """A file of UTF-8 text. Raises BadFileError."""
    try:
        return read_small(Path(path), LARGE_FILE).decode()
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path}: not UTF-8 text (byte {error.start})") from None


def positions(model: Opened) -> int:
    """The longest context it was made for."""
    return read_model_config(model.fields, model.checkpoint).max_positions


def plan_of(model: Opened, recipe: Recipe, *, calibration: Optional[str], progress: Optional[Progress] = None) -> Plan:
    """What is to be done. With --fit this reads weights, else headers only."""
    calibrated = calibration is not None
    plan = make_plan(model.path, model.fields, model.checkpoint, recipe, calibrated=calibrated, files=model.files)
    if recipe.fit is None:
        return plan
    text = bundled_text("calibration") if calibration is None else read_text(calibration)
    (sequence,) = evaluate.cut(model.tokenizer(), text, evaluate.CONTEXT, plan.source.config.max_positions, "--calibration")[:1]
    kinds = choose(plan, sequence, progress)
    return make_plan(model.path, model.fields, model.checkpoint, recipe, kinds, calibrated, model.files)


def quantize(model: str | Path, out: str | Path, recipe: Recipe, *, calibration: Optional[str] = None,
             evaluation: Optional[str] = None, price: bool = True, resume: bool = False, force: bool = False,
             threads: Optional[int] = None, progress: Optional[Progress] = None) -> dict[str, Any]:
    """Writes OUT and returns the report that lies in it. calibration, evaluation: files of text; default what comes with
    genkit. Raises UsageError, BadFileError, ResourceError; what is finished by then stays for `resume`."""
    _core.set_threads(choose_threads(threads))
    path, out = checkpoints.resolve(str(model)), Path(out)
    tell = progress or (lambda what, done, total: None)
    check_paths(Path(out).absolute(), path, force or resume)
    if calibration is not None and evaluation is not None and read_text(calibration) == read_text(evaluation):
        raise UsageError(f"--calibration {calibration} and --eval {evaluation} are one text: its price would look too small; name another")
    with ExitStack() as stack:
        source = open_model(path, stack)
        plan = plan_of(source, recipe, calibration=calibration, progress=progress)
        sequences = _calibration(plan, source, calibration) if plan.method in ("gptq", "awq") else []
        text = bundled_text("evaluation") if evaluation is None else read_text(evaluation)
        check_memory(plan, sum(map(len, sequences)))
        made_of = fingerprint(plan, _digest(sequences) if sequences else None)
        same = _digest({key: value for key, value in made_of.items() if key != "written"} | {"text": _digest(text) if price else None})
        if resume and (done := finished(out, same)):
            clean_up(out)
            return done
        output = stack.enter_context(Output(out, path, made_of, resume=resume, force=force))
        with Run(plan, output, progress) as run:
            arrays = [array for found in plan.arrays.values() for array in found]
            for name, contents in (plan.writer.extras(plan.kinds) | plan.writer.index(plan.files, arrays)).items():
                output.add(name, contents)

            def reopen() -> Opened:
                return open_output(output.folder, stack)

            if sequences:
                from genkit.quant.calibrate import calibrated

                calibrated(run, sequences, reopen)
            else:
                run.simple(list(plan.kinds))
        report = describe_plan(plan, output.methods) | {"fingerprint": same}
        if price:
            report["price"] = _price(plan, source, reopen(), text, evaluation, tell)
        output.add(REPORT, json_bytes(report))
        output.complete(single=single_file(out), progress=lambda done, total: tell("reading it back", done, total))
    return report


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def finished(out: Path, same: str) -> Optional[dict[str, Any]]:
    """The report of an OUT that is what this run would make, if it is."""
    single = single_file(out) is not None
    path = out.with_name(f"{out.name}.{REPORT}") if single else out / REPORT
    if not out.exists() or not path.is_file() or (single and out.with_name(out.name + ".partial").exists()):
        return None
    report = read_json(path)
    return report if report.get("fingerprint") == same else None


def check_memory(plan: Plan, tokens: int) -> None:
    """Raises ResourceError where the largest step of a method does not fit. tokens: of calibration."""
    config, sizes = plan.source.config, [plan.roles.matrices[name] for name in plan.roles.layers] or [(0, 0)]
    need = LARGEST_PIECES
    if plan.method in ("gptq", "awq"):
        layer = sum(n * k for n, k in sizes) // max(1, config.layers)
        deepest = max(k for _, k in sizes)
        need += 4 * (4 * deepest**2 + 4 * max(n * k for n, k in sizes) + layer + tokens * config.hidden_size)
    available = memory_available()
    if need > available:
        raise ResourceError(f"--method {plan.method} needs about {size_words(need)} for this model, {size_words(available)} of memory "
                            "is available; --method search needs little")


def single_file(out: Path) -> Optional[str]:
    """The file that OUT is to be, where its name says so."""
    return "model.gguf" if out.suffix == ".gguf" else None


def open_output(folder: Path, stack: ExitStack) -> Opened:
    """What was written so far, through the reader that everybody uses."""
    return open_model(folder / "model.gguf" if (folder / "model.gguf").exists() else folder, stack)


def _calibration(plan: Plan, source: Opened, calibration: Optional[str]) -> list[list[int]]:
    text = bundled_text("calibration") if calibration is None else read_text(calibration)
    count = plan.recipe.samples * evaluate.CONTEXT
    return evaluate.cut(source.tokenizer(), text, count, plan.source.config.max_positions, f"--calibration {calibration or '(bundled)'}")


def _price(plan: Plan, source: Opened, made: Opened, text: str, evaluation: Optional[str], tell: Progress) -> dict[str, Any]:
    if not source.has_tokenizer:
        return {"skipped": "the model has no tokenizer to read text with"}
    count = evaluate.evaluation_tokens(plan.parameters)
    sequences = evaluate.cut(source.tokenizer(), text, count, plan.source.config.max_positions, f"--eval {evaluation or '(bundled)'}")
    price = evaluate.compare((source.fields, source.checkpoint), (made.fields, made.checkpoint), sequences,
                             lambda done, total: tell("measuring the price", done, total), scaled=plan.method == "awq")
    return {"text": "bundled" if evaluation is None else Path(evaluation).name} | price.as_dict()


# What one thread does, for --dry-run: measured on the machine of docs/quantization.md. Weights a second of rounding, with
# reading and writing; weights x columns a second of GPTQ; products a second of sending text through a layer.
RATES = {"rtn": 150e6, "search": 110e6}
GPTQ_STEPS, PRODUCTS = 5e9, 0.15e12


def seconds(plan: Plan, threads: int) -> float:
    """About how long writing will take, the price left out."""
    sizes = [plan.roles.matrices[name] for name, kind in plan.kinds.items()
             if name in plan.roles.matrices and not isinstance(kind, str)]
    total = sum(n * k for n, k in sizes) / RATES["rtn" if plan.method == "rtn" else "search"]
    if plan.method in ("gptq", "awq"):
        total += 2 * plan.recipe.samples * evaluate.CONTEXT * sum(n * k for n, k in sizes) / PRODUCTS
    if plan.method == "gptq":
        total += sum(n * k * k for n, k in sizes) / GPTQ_STEPS
    return total / threads


def describe_plan(plan: Plan, methods: Optional[dict[str, str]] = None) -> dict[str, Any]:
    """Sizes in bytes; bits are of a weight of the whole model."""
    from importlib.metadata import version

    parameters, notes = plan.parameters, list(plan.notes)
    if plan.regrouped:
        notes.append(f"codes are the source's; their scales were rounded by at most {plan.regrouped:.2g} of themselves")
    tensors = {name: {"type": describe(kind)} | ({"method": methods[name]} if methods else {}) for name, kind in plan.kinds.items()}
    types: dict[str, dict[str, int]] = {}
    for name, kind in plan.kinds.items():
        entry = types.setdefault(describe(kind), {"tensors": 0, "parameters": 0, "bytes": 0})
        entry["tensors"] += 1
        size = 1
        for length in plan.roles.shape(name):
            size *= length
        entry["parameters"] += size
        entry["bytes"] += sum(array.nbytes for array in plan.arrays[name])
    return {
        "version": 1, "genkit": version("genkit"), "recipe": asdict(plan.recipe) | {"method": plan.method},
        "source_bytes": plan.checkpoint.nbytes, "parameters": parameters, "file_bytes": plan.file_bytes,
        "bits_in_file": round(plan.file_bytes * 8 / parameters, 4), "memory_bytes": plan.memory_bytes,
        "bits_in_memory": round(plan.memory_bytes * 8 / parameters, 4), "types": types,
        "notes": notes, "tensors": tensors,
    }
