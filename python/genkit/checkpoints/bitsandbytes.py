"""bitsandbytes' eight bits and its four-bit code books, which no kernel takes: widened.

Eight bits: X.weight I8 [n, k] and X.SCB F32 [n], the largest of each row: weight = code SCB / 127. Four bits: X.weight holds
two codes a byte, the first in the high nibble, of the rows one after the other; X.weight.quant_map F32 [16] what a code
stands for, X.weight.absmax the factor of every blocksize codes, either F32 or itself U8 codes of nested_quant_map times
nested_absmax for every nested_blocksize plus nested_offset; X.weight.quant_state.bitsandbytes__nf4 (fp4) is JSON.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Mapping

import numpy as np

from genkit.checkpoints.config import Fields, parse_json
from genkit.checkpoints.files import shown, shown_path
from genkit.checkpoints.parts import OTHERS, matrix, refused
from genkit.checkpoints.quantized import Read, Stored, part

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo

STATE = ".weight.quant_state.bitsandbytes__"
MAX_STATE = 1 << 16  # bytes
MAX_SIZE = 2**31 - 1
A_BYTE = np.float32(1 / 127)


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]", read: Read) -> dict[str, Stored]:
    """What llm_int8_skip_modules leaves out is there as floats. Raises BadFileError for arrays that are not as they should
    be."""
    found = {}
    for name in tensors:
        x, state, kind = name.partition(STATE)
        if name.endswith(".SCB"):
            x = name.removesuffix(".SCB")
            found[x + ".weight"] = _eight(x, tensors)
        elif state:
            if kind not in ("nf4", "fp4"):
                raise refused(tensors[name], name, f"is of kind {shown(kind)}; expected nf4 or fp4; {OTHERS}")
            found[x + ".weight"] = _four(x, kind, tensors, read)
    return found


def _eight(x: str, tensors: "Mapping[str, TensorInfo]") -> Stored:
    weight = matrix(tensors, x + ".weight", ("i8",))
    n, k = weight.shape
    parts = {"weight": weight, "SCB": part(tensors, x + ".SCB", ("f32",), (n,))}
    if x + ".weight_format" in tensors:  # 0, row after row: all that is written
        parts["weight_format"] = part(tensors, x + ".weight_format", ("u8",), tensors[x + ".weight_format"].shape[:1])
    return Stored((n, k), None, parts, _decode_eight, label="int8", widened="bitsandbytes int8", per_row=("SCB",))


def _decode_eight(parts: dict[str, np.ndarray]) -> np.ndarray:
    if parts.get("weight_format", np.zeros(1)).any():
        raise ValueError(f"weight_format is {int(parts['weight_format'].max())}; expected 0, row after row")
    values = parts["weight"].astype(np.float32)
    values *= parts["SCB"][:, None]
    values *= A_BYTE
    return values


def _four(x: str, kind: str, tensors: "Mapping[str, TensorInfo]", read: Read) -> Stored:
    name = x + STATE + kind
    info = tensors[name]
    if info.dtype != "u8" or len(info.shape) != 1 or info.nbytes > MAX_STATE:
        raise refused(info, name, f"is {info.dtype.upper()} {list(info.shape)}; expected U8, "
                                  f"at most {MAX_STATE} bytes of JSON")
    where = f"{shown_path(info.file)}: tensor {shown(name, 200)}"
    state = Fields(info.file, parse_json(read(info, name).tobytes(), where), f"tensor {shown(name, 200)}: ")
    shape = state.integers("shape", 1, MAX_SIZE)
    if len(shape) != 2:
        raise state.error("shape", "two sizes")
    n, k = shape
    sizes: dict[str, Any] = {"blocksize": state.integer("blocksize", 1, MAX_SIZE)}
    state.string("quant_type", (kind,), kind)
    weight = tensors.get(x + ".weight")
    if weight is None or weight.nbytes != -(-n * k // 2):
        raise refused(info, name, f"says {shape}; its codes are {weight.nbytes if weight else 0} bytes, "
                                  f"expected {-(-n * k // 2)}")
    blocks = -(-n * k // sizes["blocksize"])
    nested = x + ".weight.nested_absmax" in tensors
    parts = {"weight": weight, "quant_map": part(tensors, x + ".weight.quant_map", ("f32",), (16,)),
             "absmax": part(tensors, x + ".weight.absmax", ("u8" if nested else "f32",), (blocks,)), "state": info}
    if nested:
        sizes |= {"nested": state.integer("nested_blocksize", 1, MAX_SIZE),
                  "offset": state.number("nested_offset", -1e30, 1e30)}
        parts["nested_absmax"] = part(tensors, x + ".weight.nested_absmax", ("f32",), (-(-blocks // sizes["nested"]),))
        parts["nested_quant_map"] = part(tensors, x + ".weight.nested_quant_map", ("f32",), (256,))
    return Stored((n, k), None, parts, partial(_decode_four, (n, k), sizes), label=kind, widened=f"bitsandbytes {kind}")


def _decode_four(shape: tuple[int, int], sizes: dict[str, Any], parts: dict[str, np.ndarray]) -> np.ndarray:
    absmax, count = parts["absmax"], shape[0] * shape[1]
    if "nested_absmax" in parts:
        factors = np.repeat(parts["nested_absmax"], min(sizes["nested"], len(absmax)))[: len(absmax)]
        absmax = parts["nested_quant_map"][absmax] * factors + np.float32(sizes["offset"])
    packed = np.frombuffer(parts["weight"].tobytes(), np.uint8)
    # Two values a byte, looked up at once.
    pairs = np.stack([np.repeat(parts["quant_map"], 16), np.tile(parts["quant_map"], 16)], 1)
    values = pairs[packed].reshape(-1)[:count]
    for begin in range(0, count, sizes["blocksize"] << 12):
        piece = values[begin:begin + (sizes["blocksize"] << 12)]
        at = begin // sizes["blocksize"]
        piece *= np.repeat(absmax[at:at + (1 << 12)], min(sizes["blocksize"], count))[: len(piece)]
    return values.reshape(shape)
