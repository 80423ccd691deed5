"""A model into a smaller one: what becomes what, tensor after tensor, whole or not at all.

Without calibration a matrix is read, rounded and written some rows at a time, so memory does not depend on the model's
size. With it the layers go one by one over the compiled core's own forward pass (calibrate.py), and what a layer gets is
what the layers before it give once they are small.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Optional

import numpy as np

from genkit import _core
from genkit.checkpoints.files import shown, shown_path
from genkit.errors import BadFileError, UsageError
from genkit.quant import roles
from genkit.quant.codes import Codes
from genkit.quant.convert import possible, regroup
from genkit.quant.formats import Format
from genkit.quant.output import Output
from genkit.quant.rounding import round_matrix
from genkit.quant.writers import FORMATS, writer
from genkit.quant.writers.base import FLOATS, Array, File, Kind, Source, Writer

if TYPE_CHECKING:
    from genkit.checkpoints import Checkpoint, Fields

METHODS = ("auto", "rtn", "search", "awq", "gptq")
TYPES = ("int4", "int8", *FLOATS)
PIECE = 8 << 20  # weights of a matrix in flight at a time
Progress = Callable[[str, int, int], None]  # what is done now, weights done, weights in all


@dataclass(frozen=True)
class Recipe:
    """What the user asked for. head and embeddings: a type, or None for the format's own choice; tensors: (regular
    expression, type), the last that matches counts."""

    type: str = "int4"
    group_size: Optional[int] = None
    asymmetric: bool = False
    method: str = "auto"
    format: str = "genkit"
    tensors: tuple[tuple[str, str], ...] = ()
    head: Optional[str] = None
    embeddings: Optional[str] = None
    samples: int = 64
    requantize: bool = False
    fit: Optional[int] = None  # bytes of memory that weights and KV cache of `context` tokens may take
    context: Optional[int] = None

    def check(self) -> None:
        """Raises UsageError for values that are none."""
        for what, value, known in (("--type", self.type, ("int4", "int8")), ("--method", self.method, METHODS),
                                   ("--format", self.format, FORMATS), ("--head", self.head, (None, *TYPES, "q6_k")),
                                   ("--embeddings", self.embeddings, (None, *TYPES, "q6_k"))):
            if value not in known:
                raise UsageError(f"{what} {value}: expected {', '.join(k for k in known if k)}")
        if self.group_size not in (None, 32, 64, 128):
            raise UsageError(f"--group-size {self.group_size}: expected 32, 64 or 128")
        if not 1 <= self.samples <= 100_000:
            raise UsageError(f"--samples {self.samples}: expected 1 to 100000")
        if self.context is not None and self.fit is None:
            raise UsageError("--context belongs to --fit SIZE: without it nothing depends on the context")
        for pattern, kind in self.tensors:
            if kind not in (*TYPES, "q6_k"):
                raise UsageError(f"--tensor {pattern}={kind}: {kind!r} is no type; expected {', '.join(TYPES)}")
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"--tensor {pattern}={kind}: not a regular expression: {error}") from None


@dataclass
class Plan:
    """What a run will do; made from headers alone."""

    source: Source
    checkpoint: "Checkpoint"
    recipe: Recipe
    method: str
    roles: roles.Roles
    writer: Writer
    kinds: dict[str, Kind]
    arrays: dict[str, list[Array]]
    files: list[File]
    notes: list[str] = field(default_factory=list)
    same: set[str] = field(default_factory=set)  # matrices whose codes go over as they are
    regrouped: float = 0.0  # largest relative change of a scale where codes were kept

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(info.shape)) for name, info in self.checkpoint.tensors.items() if name in self.kinds)

    @property
    def file_bytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def memory_bytes(self) -> int:
        """Of the weights once they are loaded."""
        total = 0.0
        for name, kind in self.kinds.items():
            count = int(np.prod(self.roles.shape(name)))
            total += count * (kind.bits if isinstance(kind, Format) else {"f32": 32}.get(kind, 16)) / 8
        return int(total)


def make_plan(path: Path, fields: "Fields", checkpoint: "Checkpoint", recipe: Recipe, kinds: Optional[Mapping[str, str]] = None,
              calibrated: bool = False, files: Optional[Mapping[str, bytes]] = None) -> Plan:
    """kinds: a type for each of some matrices, from --fit. Raises UsageError, and BadFileError for a checkpoint that lacks
    what its config.json speaks of."""
    from genkit.models import read_model_config, unread

    recipe.check()
    source = Source(path, fields, read_model_config(fields, checkpoint), files or {})
    found = roles.survey(fields, checkpoint)
    if found.fused:
        raise UsageError(f"{shown_path(source.folder)}: experts that lie in one tensor, {found.fused[0]}, cannot be written in "
                         "codes; load the model with --quantize instead, which rounds them as they are read")
    made = writer(recipe.format, source)
    plan = Plan(source, checkpoint, recipe, choose_method(recipe, calibrated), found, made, {}, {}, [])
    for name, shape in found.matrices.items():
        plan.kinds[name] = _kind(plan, name, shape, (kinds or {}).get(name))
    for names in found.together:
        if len({_key(plan.kinds[name]) for name in names}) > 1:
            listed = ", ".join(f"{name} {describe(plan.kinds[name])}" for name in names)
            raise UsageError(f"--tensor: {listed}: these are multiplied as one; give them one type")
    _head_note(plan)
    if found.experts and plan.method in ("gptq", "awq"):
        plan.notes.append(f"experts are rounded by search, not by {plan.method}: calibration text sends too few rows to some of them")
    if left := unread(fields, checkpoint):
        plan.notes.append(f"left out, as text does not need it: {', '.join(shown(part) for part in left)}")
    plan.same = {name for name, stored in checkpoint.quantized.items()
                 if isinstance(kind := plan.kinds.get(name), Format) and stored.writable and possible(stored.format, kind)}
    lay_out(plan)
    if checkpoint.quantized and not recipe.requantize:
        _check_rewrite(plan)
    return plan


def lay_out(plan: Plan) -> None:
    """Where everything goes, once it is known what the matrices become. Other tensors stay what they are, where nobody has
    said otherwise."""
    found, made = plan.roles, plan.writer
    for name, shape in found.others.items():
        dtype = plan.checkpoint.tensors[name].dtype
        plan.kinds.setdefault(name, made.plain(name, shape, dtype if dtype in FLOATS else "f32"))
    order = sorted(plan.kinds, key=lambda name: (found.layers.get(name, -1), name not in found.matrices))
    for name in order:
        turned = name in found.transposed and isinstance(plan.kinds[name], str)  # floats lie as the source has them
        plan.arrays[name] = made.arrays(name, found.shape(name)[:: -1 if turned else 1], plan.kinds[name])
    plan.files = made.files([array for arrays in plan.arrays.values() for array in arrays], plan.kinds)
    plan.notes += made.notes


def choose_method(recipe: Recipe, calibrated: bool) -> str:
    """"rtn", "search", "awq" or "gptq"."""
    if recipe.method != "auto":
        return recipe.method
    return "gptq" if calibrated else "search"


def _kind(plan: Plan, name: str, shape: tuple[int, int], chosen: Optional[str]) -> Kind:
    recipe, made, found = plan.recipe, plan.writer, plan.roles
    dtype = plan.checkpoint.tensors[name].dtype
    plain = made.plain(name, shape, dtype if dtype in FLOATS else "bf16")
    asked = chosen
    if name == (found.head or found.embedding):
        asked = recipe.head or asked
    if name == found.embedding and recipe.embeddings:
        asked = recipe.embeddings
    for pattern, kind in recipe.tensors:
        if re.search(pattern, name):
            asked = kind
    if asked is None:
        default = made.default(name, found, recipe.type)
        if default is not None:
            return plain if default == "float" else made.format(default)
        asked = recipe.type
    if asked in FLOATS:
        return made.format(asked)
    same = asked == recipe.type
    kind = made.format(asked, recipe.group_size if same else None, recipe.asymmetric and same)
    reason = made.check(name, shape, kind)
    if reason is None:
        return kind
    plan.notes.append(f"{name} stays {plain}: {reason}")
    return plain


def _head_note(plan: Plan) -> None:
    """Where the head is much of the model, what its four bits cost is worth saying (docs/quantization.md)."""
    name = plan.roles.head or plan.roles.embedding
    sizes = {matrix: n * k for matrix, (n, k) in plan.roles.matrices.items()}
    share, kind = sizes[name] / sum(sizes.values()), plan.kinds[name]
    if isinstance(kind, Format) and kind.packing != "int8" and share > 0.1:
        plan.notes.append(f"the head is {100 * share:.0f} % of the weights and most easily hurt: --head int8 makes it "
                          f"{(8.06 - kind.bits) * share:.1f} bits a weight larger in all and loses much less")


def _key(kind: Kind) -> Any:
    return kind if isinstance(kind, str) else tuple(kind.as_dict().items())


def describe(kind: Kind) -> str:
    """For people: "int4 two-level", "bf16"."""
    return kind if isinstance(kind, str) else kind.words


def _check_rewrite(plan: Plan) -> None:
    """Whether a source in codes can be written without rounding anything anew. Raises UsageError."""
    for name, stored in plan.checkpoint.quantized.items():
        kind = plan.kinds[name]
        if isinstance(kind, str) or name in plan.same:
            continue
        have = describe(stored.format) if stored.format else stored.label
        raise UsageError(f"{shown_path(plan.source.folder)}: {shown(name, 200)} is {have} already and "
                         f"would be rounded a second time to {describe(kind)}; start from the float model, or say --requantize; "
                         "genkit convert finds types that hold the same codes")


def fingerprint(plan: Plan, calibration: Optional[str]) -> dict[str, Any]:
    """What a run that goes on must have in common with the one that was stopped."""
    from importlib.metadata import version

    files = sorted({info.file for info in plan.checkpoint.tensors.values()} | {plan.source.fields.path})
    return {"version": version("genkit"), "source": [[path.name, path.stat().st_size, digest(path)] for path in files],
            "written": [path.stat().st_mtime_ns for path in files],
            "recipe": asdict(plan.recipe) | {"method": plan.method}, "calibration": calibration,
            "kinds": {name: _key(kind) for name, kind in sorted(plan.kinds.items())}}


def digest(path: Path) -> str:
    """SHA-256 of a file's first and last megabyte: what tells checkpoints of one shape apart without reading them."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        found.update(file.read(1 << 20))
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        found.update(file.read(1 << 20))
    return found.hexdigest()


class Run:
    """Tensors of a plan into an Output."""

    def __init__(self, plan: Plan, output: Output, progress: Optional[Progress]) -> None:
        self.plan, self.output = plan, output
        self._progress = progress
        self._total = sum(int(np.prod(plan.roles.shape(name))) for name in plan.kinds)
        self._done = 0
        self._thread = ThreadPoolExecutor(1)  # hashes and writes while the next piece is rounded
        self._reader = ThreadPoolExecutor(1)
        self._pending: Optional[Future[None]] = None
        self.finished = set(output.begin(plan.files, plan.arrays))
        for name in self.finished:
            self._tell(name, int(np.prod(plan.roles.shape(name))))

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._reader.shutdown()

    def _tell(self, name: str, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(name.removesuffix(".weight"), self._done, self._total)

    def simple(self, names: "list[str]") -> None:
        """Floats as they are, matrices rounded without calibration. The next piece is read while one is rounded."""
        jobs = [job for name in names if name not in self.finished for job in self._jobs(name)]
        for name, pieces in itertools.groupby(self._read_ahead(jobs), key=lambda piece: piece[0]):
            kind = self.plan.kinds[name]
            contents = ((begin, rows, read if isinstance(read, Codes) else self.converted(read, kind, name))
                        for _, begin, rows, read in pieces)
            self.put(name, contents, self._method(name))

    def _jobs(self, name: str) -> "list[tuple[str, int, int, int]]":
        """The pieces of a tensor: (name, first row, last row + 1, rows in all)."""
        plan, kind = self.plan, self.plan.kinds[name]
        shape = plan.roles.shape(name)
        n = shape[0]
        if name in plan.roles.transposed and isinstance(kind, str):
            return [(name, 0, shape[1], shape[1])]  # as the file holds it
        step = n
        apart = name not in plan.checkpoint.quantized or plan.checkpoint.by_rows(name)
        if len(shape) == 2 and name not in plan.roles.transposed and apart and (plan.writer.by_rows or isinstance(kind, str)):
            multiple = plan.writer.row_multiple
            step = max(multiple, PIECE // shape[1] // multiple * multiple)
        return [(name, begin, min(begin + step, n), n) for begin in range(0, n, step)]

    def _read_ahead(self, jobs: "list[tuple[str, int, int, int]]") -> "Iterator[tuple[str, int, int, Codes | _core.Tensor]]":
        pending: "Optional[Future[Codes | _core.Tensor]]" = None
        for i, (name, begin, _, rows) in enumerate(jobs):
            pending = pending or self._reader.submit(self._read, *jobs[i][:3])
            read = pending.result()
            pending = self._reader.submit(self._read, *jobs[i + 1][:3]) if i + 1 < len(jobs) else None
            yield name, begin, rows, read

    def _read(self, name: str, begin: int, end: int) -> "Codes | _core.Tensor":
        plan, kind, checkpoint = self.plan, self.plan.kinds[name], self.plan.checkpoint
        shape, stored = plan.roles.shape(name), plan.checkpoint.quantized.get(name)
        if name in plan.same:
            codes, change = regroup(checkpoint.codes_of_rows(name, shape, begin, end), kind)
            plan.regrouped = max(plan.regrouped, change)
            return codes
        if name in plan.roles.transposed and stored is None:
            turned = (shape[1], shape[0])
            return checkpoint.load(name, turned) if isinstance(kind, str) else checkpoint.load_transposed(name, turned)
        if name in plan.roles.transposed and isinstance(kind, str):  # codes lie [n, k] always
            whole = checkpoint.load_rows(name, shape, 0, shape[0], exact=True).numpy()
            return _core.Tensor.from_numpy(np.ascontiguousarray(whole.T))
        by_rows = len(shape) == 2 or stored is not None
        return checkpoint.load_rows(name, shape, begin, end, exact=True) if by_rows else checkpoint.load(name, shape)

    def _method(self, name: str) -> str:
        kind = self.plan.kinds[name]
        if isinstance(kind, str):
            return "kept" if kind == self.plan.checkpoint.tensors[name].dtype else "converted"
        if name in self.plan.same:
            return "same codes"
        return "rtn" if self.plan.method == "rtn" else "search"

    def put(self, name: str, pieces: "Iterator[tuple[int, int, Codes | np.ndarray]]", method: str) -> None:
        """Writes a tensor of which (first row, rows in all, contents) come one after the other. method: for the report."""
        hashes: dict[str, Any] = {}
        arrays = self.plan.arrays[name]
        for begin, rows, value in pieces:
            if isinstance(value, Codes):
                _check_finite(self.plan, name, value, begin)
            encoded = self.plan.writer.encode(name, value)
            written = [(array.name, array.nbytes * begin // max(rows, 1), contents)
                       for array, contents in zip(arrays, encoded, strict=True)]
            self._wait()
            self._pending = self._thread.submit(self.output.write, name, written, hashes)
            count = value.shape[0] * value.shape[1] if len(value.shape) == 2 else value.size
            self._tell(name, count)
        self._wait()
        self.output.finish_tensor(name, hashes, method)
        self.finished.add(name)

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def converted(self, weight: "_core.Tensor", kind: Kind, name: str) -> "Codes | np.ndarray":
        """A weight as it is to be written: rounded without calibration, or as another float type. Raises UsageError for one
        that is too large for float16."""
        if isinstance(kind, Format):
            return round_matrix(weight, kind, search=self.plan.method != "rtn")
        kind = kind if kind in FLOATS else "f32"  # q6_k: the writer rounds
        if weight.dtype == kind:
            return weight.numpy()
        found = _core.convert(weight, kind).numpy()
        if kind == "f16" and (infinite := np.isinf(found)).any():
            value = _core.convert(weight, "f32").numpy()[infinite][0]
            if np.isfinite(value):
                raise UsageError(f"{shown(name, 200)} holds {value:g}, which is beyond f16; take bf16 or f32")
        return found


def _check_finite(plan: Plan, name: str, codes: Codes, first: int) -> None:
    """Raises BadFileError where rounding met NaN or infinity, which it answers with a scale that is NaN."""
    infinity = 0x7C00 if codes.format.scale_dtype == "f16" else 0x7F80
    bad = ((codes.scales & 0x7FFF) > infinity).any(1)
    if bad.any():
        info = plan.checkpoint.tensors[name]
        raise BadFileError(f"{shown_path(info.file)}: tensor {shown(name, 200)}, row {first + int(bad.argmax())}: holds NaN, infinity "
                           "or numbers beyond float16; the model is damaged")
