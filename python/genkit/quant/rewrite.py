"""`genkit convert`: a model in another form, codes as they are wherever that form has a type for them.

What each tensor becomes is settled first: codes of a matrix keep their type where the form has it, else take the smallest
that stands for exactly the same numbers. That follows from the formats, or else from the codes themselves, which are then
read for it.
Writing is quantize.py's; what was written is read back and compared with the source, weight by weight, before it is put
in place.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Optional, Sequence

import numpy as np

from genkit import _core, checkpoints
from genkit.checkpoints.files import shown, shown_path
from genkit.engine import choose_threads
from genkit.errors import UsageError
from genkit.models import read_model_config
from genkit.opening import Opened, open_model
from genkit.quant import roles
from genkit.quant.codes import SUB, Codes
from genkit.quant.convert import possible, regroup
from genkit.quant.formats import Format
from genkit.quant.job import open_output, single_file
from genkit.quant.output import Output, check_paths
from genkit.quant.quantize import PIECE, Plan, Recipe, Run, describe, fingerprint, lay_out
from genkit.quant.writers import FORMATS, writer
from genkit.quant.writers.base import FLOATS, Source, json_bytes

if TYPE_CHECKING:
    from genkit.checkpoints import Checkpoint
    from genkit.checkpoints.quantized import Stored

REPORT = "conversion.json"
SAMPLE = 256  # rows that tell most types that do not fit from those that may
SAME, WIDENED, NARROWED, SCALES, AGAIN = "same", "widened", "narrowed", "scales rounded", "rounded again"
EVERY = [Format(packing, group, zero, scale) for packing in ("int4", "int8") for group in (32, 64, 128, 256)
         for zero in ("none", "integer", "real") for scale in ("f16", "bf16")]
Progress = Callable[[str, int, int], None]


@dataclass
class Conversion:
    """how: what happens to each tensor. same, widened, narrowed (a float type with fewer bits, or another exponent), scales
    rounded (codes stay), rounded again. exact: those that must come back as the same numbers."""

    plan: Plan
    how: dict[str, str] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)

    def lossy(self) -> list[str]:
        return [name for name, how in self.how.items() if how in (SCALES, AGAIN)]


def choose_format(out: str | Path, format: Optional[str]) -> str:
    """Raises UsageError for one that is not known, or does not go with the name of the output."""
    file = Path(out).suffix == ".gguf"
    if format is None and not file:
        raise UsageError(f"--format: which form shall {out} have? One of {', '.join(FORMATS)}; a name that ends in .gguf says it")
    if file and format not in (None, "gguf"):
        raise UsageError(f"{out}: a file, and --format {format} is a folder; name one")
    if format is not None and format not in FORMATS:
        raise UsageError(f"--format {format}: expected {', '.join(FORMATS)}")
    return format or "gguf"


def plan_conversion(model: Opened, format: str, type: str = "keep", allow_loss: bool = False) -> Conversion:
    """What is to be done. type: "keep", or the float type of everything. Raises UsageError where weights in codes would be
    rounded a second time and allow_loss is not given, and for a model that the form has no place for."""
    if type not in ("keep", *FLOATS):
        raise UsageError(f"--type {type}: expected keep, {', '.join(FLOATS)}")
    source = Source(model.path, model.fields, read_model_config(model.fields, model.checkpoint), model.files)
    found, made = roles.survey(model.fields, model.checkpoint), writer(format, source)
    plan = Plan(source, model.checkpoint, Recipe(format=format, requantize=True), "search", found, made, {}, {}, [])
    made_of = Conversion(plan)
    for names in found.together:
        for some in _alike(model.checkpoint, names):
            _matrices(made_of, some, type)
    if any(name + "_blocks" in model.checkpoint for name in found.fused):
        raise UsageError(f"{shown_path(source.folder)}: experts in MXFP4 have no place in the forms that are written")
    for name, shape in found.others.items():
        dtype = _dtype(model.checkpoint, name)
        plan.kinds[name] = made.plain(name, shape, dtype if type == "keep" else type)
        _float(made_of, name, dtype)
    if made_of.lossy() and not allow_loss:
        raise _refusal(made_of)
    unused = [name for name in model.checkpoint.tensors if name not in plan.kinds]
    if unused:
        plan.notes.append(f"{len(unused)} tensors that the model does not use are left out, {shown(unused[0], 200)} the first")
    lay_out(plan)
    return made_of


def _alike(checkpoint: "Checkpoint", names: Sequence[str]) -> list[list[str]]:
    """Matrices that one product reads, which should stay of one type, by what they are now."""
    groups: dict[Any, list[str]] = {}
    for name in names:
        stored = checkpoint.quantized.get(name)
        groups.setdefault(stored and (stored.format, stored.label), []).append(name)
    return list(groups.values())


def _dtype(checkpoint: "Checkpoint", name: str) -> str:
    """The float type that holds a tensor."""
    return "f32" if name in checkpoint.quantized else checkpoint.tensors[name].dtype


def _matrices(conversion: Conversion, names: list[str], type: str) -> None:
    plan = conversion.plan
    stored = plan.checkpoint.quantized.get(names[0])
    if type != "keep" or stored is None:
        for name in names:
            dtype = _dtype(plan.checkpoint, name)
            plan.kinds[name] = plan.writer.format(dtype if type == "keep" else type)
            _float(conversion, name, dtype)
        return
    kind, how = _home(plan, names, stored)
    if kind is None:
        kind, how = _nearest(plan, names, stored), AGAIN
    for name in names:
        if kind is None:
            plan.kinds[name] = plan.writer.format("f32")
            _float(conversion, name, "f32")
            continue
        plan.kinds[name], conversion.how[name] = kind, how
        if how != AGAIN:
            plan.same.add(name)
        if how == SAME:
            conversion.exact.add(name)


def _float(conversion: Conversion, name: str, dtype: str) -> None:
    """What happens to a tensor that is written as floats; dtype holds what it is now."""
    kind, codes = conversion.plan.kinds[name], name in conversion.plan.checkpoint.quantized
    if kind == dtype or kind == "f32":
        conversion.how[name] = SAME if kind == dtype and not codes else WIDENED
        conversion.exact.add(name)
    else:
        conversion.how[name] = WIDENED if codes else NARROWED


def candidates(source: Format) -> list[Format]:
    """Types that may hold the same codes, itself first, then small ones before large."""
    if source.packing not in ("int4_two_level", "int4", "int8"):
        return [source]
    order = ("int4_two_level", "int4", "int8")
    largest = {packing: SUB if (source.packing, packing) == ("int4_two_level", "int4") else source.group for packing in order}
    found = [f for f in EVERY if order.index(f.packing) >= order.index(source.packing) and f.group <= largest[f.packing]]
    return [source, *sorted((f for f in found if f != source), key=lambda f: (f.bits, f.scale_dtype != source.scale_dtype))]


def _home(plan: Plan, names: list[str], stored: "Stored") -> tuple[Optional[Format], str]:
    """The first of `candidates` that the output has for the codes as they are: exactly, else with scales rounded."""
    if not stored.writable or _beyond_f16(plan, names):
        return None, AGAIN
    shapes = [plan.roles.shape(name) for name in names]
    sample: Optional[Codes] = None
    rounding: list[Format] = []
    for target in candidates(stored.format):
        if any(plan.writer.check(name, shape, target) for name, shape in zip(names, shapes)):
            continue
        if _always_exact(stored.format, target):
            return target, SAME
        if sample is None:
            sample = plan.checkpoint.codes_of_rows(names[0], shapes[0], 0, min(SAMPLE, shapes[0][0]))
        change = _change([sample], target)
        if change == 0:
            change = _change(_codes(plan, names), target)
        if change == 0:
            return target, SAME
        if change is not None:
            rounding.append(target)
    for target in rounding:
        if possible(stored.format, target) or _change(_codes(plan, names), target) is not None:
            return target, SCALES
    return None, AGAIN


def _beyond_f16(plan: Plan, names: Sequence[str]) -> bool:
    """Whether scales that a file has in float32 are none of float16, so that there are no codes to keep."""
    for name in names:
        parts = plan.checkpoint.quantized[name].parts.values()
        n, k = plan.roles.shape(name)
        if any(part.dtype == "f32" for part in parts):
            pieces = (plan.checkpoint.rows_to_run(name, (n, k), begin, end) for begin, end in _pieces(plan, name))
            if any(isinstance(piece, np.ndarray) for piece in pieces):
                return True
    return False


def _always_exact(source: Format, target: Format) -> bool:
    """Whether it follows from the formats alone that all numbers stay what they are."""
    if source == target:
        return True
    alike = source.scale_dtype == target.scale_dtype and possible(source, target)
    if source.packing == target.packing:
        return alike and source.zero == target.zero
    return alike and target.packing == "int8" and target.zero == "none"


def _codes(plan: Plan, names: Sequence[str]) -> Iterator[Codes]:
    for name in names:
        for begin, end in _pieces(plan, name):
            yield plan.checkpoint.codes_of_rows(name, plan.roles.shape(name), begin, end)


def _pieces(plan: Plan, name: str) -> Iterator[tuple[int, int]]:
    """Rows of a matrix in codes to read at a time."""
    n, k = plan.roles.shape(name)
    block = plan.checkpoint.quantized[name].block
    step = max(block, PIECE // k // block * block) if plan.checkpoint.by_rows(name) else n
    return ((begin, min(begin + step, n)) for begin in range(0, n, step))


def _change(pieces: "Sequence[Codes] | Iterator[Codes]", target: Format) -> Optional[float]:
    """The largest relative change of a scale, None where codes would be rounded."""
    largest = 0.0
    for codes in pieces:
        try:
            largest = max(largest, regroup(codes, target)[1])
        except ValueError:
            return None
    return largest


def _nearest(plan: Plan, names: list[str], stored: "Stored") -> Optional[Format]:
    """What the output has for matrices whose codes it cannot hold: of about as many bits; None where it has no codes."""
    bits = stored.format.bits if stored.format else 8 * stored.info().nbytes / (stored.shape[0] * stored.shape[1])
    for kind in ("int4", "int8") if bits < 6 else ("int8", "int4"):
        for asymmetric in (stored.format is not None and stored.format.zero != "none", False):
            try:
                target = plan.writer.format(kind, None, asymmetric)
            except UsageError:
                continue
            if isinstance(target, Format) and not any(plan.writer.check(n, plan.roles.shape(n), target) for n in names):
                return target
    return None


def _refusal(conversion: Conversion) -> UsageError:
    plan, lossy = conversion.plan, conversion.lossy()
    name = lossy[0]
    now, then = source_type(plan.checkpoint, name), describe(plan.kinds[name])
    what = "its scales would be rounded" if conversion.how[name] == SCALES else "it would be rounded a second time"
    keeps = "" if plan.recipe.format == "genkit" else "--format genkit keeps codes, "
    more = f", and {len(lossy) - 1} more like it" if len(lossy) > 1 else ""
    return UsageError(f"{shown_path(plan.source.folder)}: {shown(name, 200)} is {now} and --format {plan.recipe.format} has no "
                      f"type that holds this exactly: {what}, to {then}{more}; --allow-loss does it and says what was lost, "
                      f"{keeps}--type f32 (bf16, f16) makes floats of them")


def source_type(checkpoint: "Checkpoint", name: str) -> str:
    """For people: what a tensor is in the files."""
    stored = checkpoint.quantized.get(name)
    if stored is None:
        return checkpoint.tensors[name].dtype
    return stored.label or describe(stored.format)


def convert(model: str | Path, out: str | Path, format: Optional[str] = None, type: str = "keep", *, allow_loss: bool = False,
            resume: bool = False, force: bool = False, threads: Optional[int] = None,
            progress: Optional[Progress] = None) -> dict[str, Any]:
    """Writes OUT and returns the report that lies in it as conversion.json. type: "keep", "f32", "f16" or "bf16". Raises
    UsageError, BadFileError, ResourceError; what is finished by then stays for `resume`."""
    _core.set_threads(choose_threads(threads))
    format = choose_format(out, format)
    path, out = checkpoints.resolve(str(model)), Path(out)
    tell = progress or (lambda what, done, total: None)
    check_paths(out.absolute(), path, force or resume)
    with ExitStack() as stack:
        source = open_model(path, stack)
        conversion = plan_conversion(source, format, type, allow_loss)
        plan = conversion.plan
        output = stack.enter_context(Output(out, path, fingerprint(plan, None), resume=resume, force=force))
        with Run(plan, output, progress) as run:
            arrays = [array for found in plan.arrays.values() for array in found]
            for name, contents in (plan.writer.extras(plan.kinds) | plan.writer.index(plan.files, arrays)).items():
                output.add(name, contents)
            run.simple(list(plan.kinds))
        errors = compare(conversion, open_output(output.folder, stack).checkpoint, tell)
        report = describe_conversion(conversion, source, type, errors)
        output.add(REPORT, json_bytes(report))
        output.complete(single=single_file(out), progress=lambda done, total: tell("reading it back", done, total))
    return report


def compare(conversion: Conversion, made: "Checkpoint", tell: Progress) -> dict[str, float]:
    """By tensor the norm of what changed over the norm of what was. Raises ValueError where a tensor that must be the same
    is not."""
    plan, errors = conversion.plan, {}
    names = [name for name, how in conversion.how.items() if how != SAME or name in plan.same]
    total, done = sum(int(np.prod(plan.roles.shape(name))) for name in names), 0
    for name in names:
        lost = size = 0.0
        for before, after in zip(_floats(plan, plan.checkpoint, name), _floats(plan, made, name), strict=True):
            if not np.array_equal(before, after, equal_nan=True):
                lost += float(np.square(np.subtract(after, before, dtype=np.float64)).sum())
            size += float(np.square(before, dtype=np.float64).sum())
            done += before.size
            tell("comparing", done, total)
        errors[name] = (lost / size) ** 0.5 if lost else 0.0
        if lost and name in conversion.exact:
            raise ValueError(f"tensor {name} is not what it was: {lost:g} of {size:g}")
    return errors


def _floats(plan: Plan, checkpoint: "Checkpoint", name: str) -> Iterator[np.ndarray]:
    """f32, some rows at a time; of a matrix [n, k] however it lies."""
    shape = plan.roles.shape(name)
    if name in plan.roles.transposed and name not in checkpoint.quantized:
        whole = _core.convert(checkpoint.load_transposed(name, (shape[1], shape[0])), "f32").numpy()
    elif name in plan.roles.transposed or not shape or (name in checkpoint.quantized and not checkpoint.by_rows(name)):
        whole = _wide(checkpoint.load_rows(name, shape, 0, shape[0], exact=True) if shape else checkpoint.load(name, shape))
    else:
        whole = None
    step = max(1, PIECE // max(1, int(np.prod(shape[1:])))) if shape else 1
    for begin in range(0, shape[0] if shape else 1, step):
        end = min(begin + step, shape[0] if shape else 1)
        if whole is None:
            yield _wide(checkpoint.load_rows(name, shape, begin, end, exact=True))
        else:
            yield whole[begin:end] if shape else whole.reshape(1)


def _wide(tensor: "_core.Tensor") -> np.ndarray:
    return (tensor if tensor.dtype == "f32" else _core.convert(tensor, "f32")).numpy()


def describe_conversion(conversion: Conversion, source: Opened, type: str,
                        errors: Optional[Mapping[str, float]] = None) -> dict[str, Any]:
    """For --json. error: of a tensor as `compare` measures it, of a class the largest; null where nothing was written yet."""
    from importlib.metadata import version

    plan = conversion.plan
    classes: dict[tuple[str, str, str], dict[str, Any]] = {}
    tensors = {}
    for name, kind in plan.kinds.items():
        now, then, how = source_type(plan.checkpoint, name), describe(kind), conversion.how[name]
        error = 0.0 if name in conversion.exact else None if errors is None else errors[name]
        tensors[name] = {"from": now, "to": then, "how": how, "error": error}
        entry = classes.setdefault((now, then, how), {"from": now, "to": then, "how": how, "tensors": 0, "parameters": 0,
                                                      "source_bytes": 0, "bytes": 0, "error": error})
        entry["tensors"] += 1
        entry["parameters"] += int(np.prod(plan.roles.shape(name)))
        entry["source_bytes"] += plan.checkpoint.tensors[name].nbytes
        entry["bytes"] += sum(array.nbytes for array in plan.arrays[name])
        if entry["error"] is not None:
            entry["error"] = None if error is None else max(entry["error"], error)
    return {"version": 1, "genkit": version("genkit"), "source": source.path.name, "format": plan.recipe.format, "type": type,
            "source_bytes": plan.checkpoint.nbytes, "file_bytes": plan.file_bytes, "parameters": plan.parameters,
            "bits_in_file": round(plan.file_bytes * 8 / plan.parameters, 4),
            "classes": sorted(classes.values(), key=lambda entry: -entry["parameters"]), "notes": plan.notes, "tensors": tensors}
