"""What the schemes ask of a file's arrays before anything is read from them. All raise BadFileError."""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping

from genkit.checkpoints.files import shown, shown_path
from genkit.errors import BadFileError

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import TensorInfo

GROUPS = (32, 64, 128, 256)  # that the core's kernels take
FLOATS = ("bf16", "f16", "f32")
FLOAT = "Use the model's f32, f16 or bf16 checkpoint"
OTHERS = f"others are not supported. {FLOAT}"


def named(fields: "Fields", where: str, name: str) -> "Fields":
    """The object of this name in the object at `where`. Names come from the file, so they are shown escaped."""
    value, at = fields.raw.get(name), f"{where}.{shown(name, 200)}"
    if not isinstance(value, dict):
        raise BadFileError(f"{shown_path(fields.path)}: {at} is {shown(value)}; expected an object")
    return type(fields)(fields.path, value, at + ".")


def matrix(tensors: "Mapping[str, TensorInfo]", name: str, dtypes: tuple[str, ...]) -> "TensorInfo":
    """An array that must be there, of one of these types and [n, m], neither 0."""
    info = tensors.get(name)
    if info is None:
        raise BadFileError(f"tensor {shown(name, 200)} is missing from the weights")
    if info.dtype not in dtypes or len(info.shape) != 2 or 0 in info.shape:
        raise refused(info, name, f"is {info.dtype.upper()} {list(info.shape)}; "
                                  f"expected {' or '.join(d.upper() for d in dtypes)} [n, m]")
    return info


def refused(info: "TensorInfo", name: str, what: str) -> BadFileError:
    return BadFileError(f"{shown_path(info.file)}: tensor {shown(name, 200)} {what}")


def check_single(tensors: "Mapping[str, TensorInfo]", name: str, codes: str) -> None:
    """A matrix must not be there twice, as floats and as the array `codes`."""
    if name in tensors:
        raise refused(tensors[name], name, f"is there as floats and as codes ({shown(codes, 200)})")


def check_group(fields: "Fields", key: str) -> int:
    """A group size in `fields` that the core takes."""
    group = fields.integer(key, -1, 2**31 - 1)
    if group not in GROUPS:
        raise fields.error(key, f"{', '.join(map(str, GROUPS))}; {OTHERS}")
    return group


def check_k(info: "TensorInfo", name: str, k: int, group: int) -> None:
    """Rows must be whole groups."""
    if k % group:
        raise refused(info, name, f"holds {list(info.shape)} words, rows of {k} codes; "
                                  f"expected a multiple of the group of {group}")
