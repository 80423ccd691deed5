"""compressed-tensors: a linear X of [n, k] in one of three forms.

Packed: X.weight_packed I32 [n, k bits / 32 up], code i of a row at bit i bits, less 2^(bits - 1); X.weight_shape; of
asymmetric codes X.weight_zero_point I32, packed in the same way down the columns. Plain: X.weight I8 and, asymmetric,
X.weight_zero_point I8. Floats: X.weight F8_E4M3. Always X.weight_scale: [n, groups], [n, 1] for a row (channel), [1] for
all (tensor), or one for each block of floats.

Which modules are in codes and in which way is seen from their arrays, so neither targets nor ignore, patterns both, are
needed; but a matrix must be of one of the kinds config_groups has. How activations would be rounded does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Mapping, Optional

import numpy as np

from genkit.checkpoints import fp8
from genkit.checkpoints.config import Fields
from genkit.checkpoints.files import shown, shown_path
from genkit.checkpoints.grid import Decoded, Grid, byte_rows, nibble_rows, ordered
from genkit.checkpoints.parts import FLOAT, FLOATS, OTHERS, check_single, matrix, named, refused
from genkit.checkpoints.quantized import Read, Stored, part
from genkit.errors import BadFileError
from genkit.quant.codes import from_nibbles

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo

PACKED, WEIGHT, SCALE, ZERO = ".weight_packed", ".weight", ".weight_scale", ".weight_zero_point"
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
STRATEGIES = ("group", "channel", "tensor", "block")


@dataclass(frozen=True)
class Scheme:
    """What a group of config_groups says of its weights; group: inputs to a scale of strategy "group"."""

    type: str
    bits: int
    strategy: str
    group: int
    symmetric: bool
    block: Optional[tuple[int, int]]

    def scale_shapes(self, n: int, k: int) -> tuple[tuple[int, ...], ...]:
        if self.strategy == "group":
            return ((n, k // self.group),) if k % self.group == 0 else ()
        if self.strategy == "block":
            return ((-(-n // self.block[0]), -(-k // self.block[1])),) if self.block else ()
        return ((n, 1), (n,)) if self.strategy == "channel" else ((1,), (), (1, 1))


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]", read: Read) -> dict[str, Stored]:
    """Raises BadFileError for another format, strategy or type, by name, and for arrays that are not as they should be."""
    quantization = fields.object("quantization_config")
    _supported(quantization, "format", FORMATS)
    _supported(quantization, "quantization_status", ("compressed",))
    if quantization.optional("transform_config") not in (None, {}):
        raise quantization.error("transform_config", f"nothing: this is not supported. {FLOAT}")
    sparsity = quantization.object("sparsity_config")
    if sparsity is not None and sparsity.raw:
        _supported(sparsity, "format", (None, "dense"))
    listed = quantization.object("config_groups")
    if listed is None or not listed.raw:
        raise quantization.error("config_groups", "an object of groups")
    schemes = [_scheme(listed, name) for name in listed.raw]
    found = {}
    for name, info in tensors.items():
        if name.endswith(PACKED):
            x = name.removesuffix(PACKED)
            found[x + WEIGHT] = _packed(x, schemes, fields, tensors, read)
        elif name.endswith(WEIGHT) and name.removesuffix(WEIGHT) + SCALE in tensors:
            x = name.removesuffix(WEIGHT)
            if info.dtype == "i8":
                found[name] = _plain(x, schemes, fields, tensors)
            elif info.dtype in fp8.DTYPES:
                found[name] = _floats(x, schemes, fields, tensors)
            else:
                raise refused(info, name, f"is {info.dtype.upper()} with scales; expected I8 or F8_E4M3; {OTHERS}")
    return found


def _supported(fields: Fields, key: str, values: tuple[Any, ...], missing: Any = None) -> Any:
    value = fields.optional(key)
    if value is None and missing is not None:
        return missing
    if not any(value is known or value == known and type(value) is type(known) for known in values):
        raise fields.error(key, f"{' or '.join(map(shown, values))}; {OTHERS}")
    return value


def _scheme(groups: Fields, name: str) -> Scheme:
    group = named(groups, "quantization_config.config_groups", name)
    _supported(group, "format", (None, *FORMATS))
    weights = group.object("weights")
    if weights is None:
        raise group.error("weights", "an object")
    type = _supported(weights, "type", ("int", "float"), "int")
    size = weights.integer("group_size", -1, 2**31 - 1, None)
    usual = "tensor" if size is None else "channel" if size == -1 else "group"  # the library's defaults
    strategy = _supported(weights, "strategy", STRATEGIES, usual)
    _supported(weights, "dynamic", (None, False))
    _supported(weights, "actorder", (None, False, True, "weight", "static", "group", "dynamic"))
    bits = _supported(weights, "num_bits", (4, 8) if type == "int" else (8,), 8)
    if strategy == "group" and (size or 0) < 1:
        raise weights.error("group_size", "a number of inputs")
    return Scheme(type, bits, strategy, size or 0, weights.boolean("symmetric", True),
                  fp8.block_size(weights, "block_structure"))


def _of(schemes: list[Scheme], fields: Fields, name: str, n: int, k: int, scale: "Optional[TensorInfo]",
        **like: Any) -> Scheme:
    """The scheme whose scales are of this shape, of this type, bits and symmetry. Raises BadFileError for none."""
    if scale is None:
        missing = name.removesuffix(PACKED).removesuffix(WEIGHT) + SCALE
        raise BadFileError(f"tensor {shown(missing, 200)} is missing from the weights")
    for scheme in schemes:
        if all(getattr(scheme, key) in values for key, values in like.items()) and scale.shape in scheme.scale_shapes(n, k):
            return scheme
    zeros = {(True,): " without zeros", (False,): " with zeros"}.get(like.get("symmetric"), "")
    what = f"{scale.dtype.upper()} scales {list(scale.shape)}{zeros}"
    raise BadFileError(f"{shown_path(fields.path)}: quantization_config: no group of config_groups describes tensor "
                       f"{shown(name, 200)} of [{n}, {k}] in {like['bits'][0]} bits, {what}. {FLOAT}")


def _packed(x: str, schemes: list[Scheme], fields: Fields, tensors: "Mapping[str, TensorInfo]", read: Read) -> Stored:
    packed = matrix(tensors, x + PACKED, ("i32",))
    check_single(tensors, x + WEIGHT, x + PACKED)
    parts = {"packed": packed, "shape": part(tensors, x + ".weight_shape", ("i64", "i32"), (2,))}
    n, k = map(int, read(parts["shape"], x + ".weight_shape"))
    bits = next((bits for bits in (4, 8) if k > 0 and (n, -(-k * bits // 32)) == packed.shape), 0)
    if not bits:
        raise refused(packed, x + PACKED, f"holds {list(packed.shape)} words; weight_shape says {[n, k]}, "
                                          f"which is not that in 4 or 8 bits; {OTHERS}")
    symmetric = x + ZERO not in tensors
    scheme = _of(schemes, fields, x + PACKED, n, k, tensors.get(x + SCALE), type=("int",), bits=(bits,),
                 symmetric=(symmetric,))
    scale = parts["scale"] = part(tensors, x + SCALE, FLOATS, tensors[x + SCALE].shape)
    groups = k // scheme.group if scheme.strategy == "group" else 1
    if not symmetric:
        if scheme.strategy == "tensor":  # not packed
            raise refused(tensors[x + ZERO], x + ZERO, f"is there with one scale for all; {OTHERS}")
        parts["zero"] = part(tensors, x + ZERO, ("i32",), (-(-n * bits // 32), groups))
    grid = Grid("int8" if bits == 8 else "int4", k, scheme.group if scheme.strategy == "group" else k,
                "none" if symmetric else "integer", scale.dtype)
    g_idx = tensors.get(x + ".weight_g_idx")
    if g_idx is not None:
        parts["g_idx"] = part(tensors, x + ".weight_g_idx", ("i32", "i64"), (k,))
        order = read(g_idx, x + ".weight_g_idx")
        if (order != -1).any():  # which it is where there is no order
            try:
                grid = ordered(grid, order)
            except ValueError as error:
                raise refused(g_idx, x + ".weight_g_idx", str(error)) from None
            if grid is None:
                raise refused(g_idx, x + ".weight_g_idx", f"has groups that are not of {scheme.group} inputs each; {OTHERS}")
    return Stored((n, k), grid.format, parts, partial(_decode_packed, grid, n), label=grid.label, widened=grid.widened,
                  order=grid.order)


def _decode_packed(grid: Grid, n: int, parts: dict[str, np.ndarray]) -> Decoded:
    zeros, eight = None, grid.packing == "int8"
    if grid.zero == "integer":
        # Along n: transposed they are words of rows; a tail of a word is cut off.
        down = np.ascontiguousarray(parts["zero"].T).view(np.uint8)
        down = (down ^ 0x80).view(np.int8) if eight else from_nibbles(down)
        zeros = np.ascontiguousarray(down[:, :n].T)
    packed = parts["packed"].view(np.uint8)
    codes = byte_rows((packed[:, : grid.k] ^ 0x80).view(np.int8), grid.k) if eight else nibble_rows(packed, grid.k)
    if grid.order is not None:
        bytes_ = codes if eight else from_nibbles(codes)
        codes = byte_rows(np.take(bytes_, grid.order, 1), grid.k)
    return grid.codes(codes, _by_rows(parts["scale"], len(codes)), zeros)


def _by_rows(scales: np.ndarray, n: int) -> np.ndarray:
    """[n, groups], of scales of any of the shapes."""
    return np.broadcast_to(scales.reshape(-1, 1), (n, 1)) if scales.ndim < 2 or scales.shape == (1, 1) else scales


def _plain(x: str, schemes: list[Scheme], fields: Fields, tensors: "Mapping[str, TensorInfo]") -> Stored:
    weight = matrix(tensors, x + WEIGHT, ("i8",))
    (n, k), symmetric = weight.shape, x + ZERO not in tensors
    scheme = _of(schemes, fields, x + WEIGHT, n, k, tensors.get(x + SCALE), type=("int",), bits=(8, 4), symmetric=(symmetric,),
                 strategy=("group", "channel", "tensor"))
    scale = part(tensors, x + SCALE, FLOATS, tensors[x + SCALE].shape)
    parts = {"weight": weight, "scale": scale}
    if not symmetric:
        parts["zero"] = part(tensors, x + ZERO, ("i8",), scale.shape)
    grid = Grid("int8", k, scheme.group if scheme.strategy == "group" else k, "none" if symmetric else "integer", scale.dtype)
    per_row = ("scale", "zero") if scheme.strategy == "channel" else ()
    return Stored((n, k), grid.format, parts, partial(_decode_plain, grid), label=grid.label, widened=grid.widened,
                  per_row=per_row)


def _decode_plain(grid: Grid, parts: dict[str, np.ndarray]) -> Decoded:
    n = len(parts["weight"])
    zeros = _by_rows(parts["zero"], n) if "zero" in parts else None
    return grid.codes(byte_rows(parts["weight"], grid.k), _by_rows(parts["scale"], n), zeros)


def _floats(x: str, schemes: list[Scheme], fields: Fields, tensors: "Mapping[str, TensorInfo]") -> Stored:
    n, k = matrix(tensors, x + WEIGHT, fp8.DTYPES).shape
    if x + ZERO in tensors:
        raise refused(tensors[x + ZERO], x + ZERO, f"is there with eight-bit floats; {OTHERS}")
    scheme = _of(schemes, fields, x + WEIGHT, n, k, tensors.get(x + SCALE), type=("float",), bits=(8,))
    return fp8.scaled(tensors, x, x + SCALE, scheme.block if scheme.strategy == "block" else None)
