"""Hugging Face safetensors folders: one file, or shards under an index, to named tensors in memory.

A header is checked twice: by the reader below, which is stricter and says what is wrong, and by the safetensors
library, so that nothing is accepted that the library would not accept. Layout of a file: 8 bytes little-endian header
length, the header (JSON: name -> dtype, shape, data_offsets), then the tensors without a gap. Data is read, never
mapped: a file that is cut while it is being read is an error and not a SIGBUS.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Collection, Iterable, Mapping, Sequence

from genkit.checkpoints import quantized as schemes
from genkit.checkpoints.config import LARGE_FILE, parse_json, read_json
from genkit.checkpoints.files import failure, open_regular, read_into, shown, shown_path, size_words
from genkit.errors import BadFileError, ResourceError
from genkit.machine import memory_available

if TYPE_CHECKING:
    import numpy as np

    from genkit._core import Tensor
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.quantized import Stored
    from genkit.quant.codes import Codes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

MAX_HEADER = 100_000_000  # bytes, the format's own limit
MAX_TENSORS = 1_000_000  # in one file; bounds what parsing a hostile header may cost
MAX_DIMENSIONS = 32
MAX_BYTES = 2**63 - 1  # of a tensor or an offset

# Bits an element takes, for every type of the format; only LOADABLE ones can be computed with.
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16,
        "I8": 8, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
LOADABLE = ("f32", "f16", "bf16")
NUMPY = {"f64": "f8", "f32": "f4", "f16": "u2", "bf16": "u2", "i64": "i8", "u64": "u8", "i32": "i4", "u32": "u4", "i16": "i2",
         "u16": "u2", "i8": "i1", "u8": "u1", "bool": "u1", "f8_e4m3": "u1", "f8_e5m2": "u1"}
F16_MAX = 65504.0


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. dtype in the core's spelling ("bf16"), offset from the start of the file, sizes in bytes."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def read_header(path: Path, descriptor: int, size: int) -> dict[str, TensorInfo]:
    """The tensors of one open file of `size` bytes, each checked to lie in it and nothing between or after them.

    Raises BadFileError.
    """
    where = shown_path(path)

    def read(offset: int, count: int, what: str) -> bytearray:
        data = bytearray(count)
        try:
            done = read_into(descriptor, memoryview(data), offset)
        except OSError as error:
            raise failure(path, error) from None
        if done < count:
            raise BadFileError(f"{where}: file ended at byte {done} of the {what}; it was cut while being read")
        return data

    if size < 8:
        raise BadFileError(f"{where}: only {size} bytes; a safetensors file has at least 8")
    length = int.from_bytes(read(0, 8, "header's length"), "little")
    if length > MAX_HEADER:
        raise BadFileError(f"{where}: claims a header of {length} bytes, the format allows {MAX_HEADER}; "
                           f"not a safetensors file, or a damaged one")
    if length > size - 8:
        raise BadFileError(f"{where}: truncated: the header should be {length} bytes, {size - 8} are there")
    header = bytes(read(8, length, "header"))
    if not header.startswith(b"{"):
        raise BadFileError(f"{where}: the header does not begin with '{{'; not a safetensors file, or a damaged one")
    if (header.count(b"{") > MAX_TENSORS or header.count(b"[") > 2 * MAX_TENSORS
            or header.count(b",") > 10 * MAX_TENSORS):
        raise BadFileError(f"{where}: the header has more than {MAX_TENSORS} tensors or values of that number")
    entries = parse_json(header, f"{where}: header")

    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFileError(f"{where}: header: __metadata__ is not an object of strings")
    start = 8 + length
    tensors = {name: _tensor_info(path, name, entry, start) for name, entry in entries.items()}

    reached, before = start, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        end = info.offset + info.nbytes
        # Past the end first: of a truncated download that is the thing to say.
        if end > size:
            raise BadFileError(f"{where}: truncated: tensor {shown(name)} should end at byte {end}, "
                               f"the file ends at {size}; download it again")
        if info.offset != reached:
            what = f"overlaps {before}" if info.offset < reached else f"leaves a hole after {before}"
            raise BadFileError(f"{where}: tensor {shown(name)} {what}: begins at byte {info.offset}, not {reached}")
        reached, before = end, f"tensor {shown(name)}"
    if reached != size:
        raise BadFileError(f"{where}: {size - reached} bytes after the last tensor, which the header does not name")
    return tensors


def _tensor_info(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    where = f"{shown_path(path)}: tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise BadFileError(f"{where}: header holds {shown(entry, 40)}; expected dtype, shape and data_offsets")
    missing = [key for key in ("dtype", "shape", "data_offsets") if key not in entry]
    if missing:
        raise BadFileError(f"{where}: header has no {missing[0]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise BadFileError(f"{where}: dtype {shown(dtype)} is unknown")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise BadFileError(f"{where}: shape {shown(shape)} is not a list of at most {MAX_DIMENSIONS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise BadFileError(f"{where}: data_offsets {shown(offsets)} are not two byte positions")
    begin, end = offsets
    if end < begin:
        raise BadFileError(f"{where}: data_offsets {shown(offsets)} end before they begin")
    bits = BITS[dtype]
    for size in shape:
        bits *= size
        if bits > 8 * MAX_BYTES:
            raise BadFileError(f"{where}: shape {shown(shape)} is beyond any memory")
    if bits != 8 * (end - begin):
        needs = f"{bits // 8} bytes" if bits % 8 == 0 else f"{bits} bits"
        raise BadFileError(f"{where}: {dtype} of shape {shown(shape)} takes {needs}, "
                           f"data_offsets {shown(offsets)} hold {end - begin}")
    return TensorInfo(dtype.lower(), tuple(shape), path, start + begin, end - begin)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BYTES


def _second_opinion(path: Path, size: int) -> None:
    """Raises BadFileError where the safetensors library refuses the file.

    The library maps the file while it looks at the header, already read and checked here; the data is not touched.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise BadFileError(f"{shown_path(path)}: {shown(str(error), 300)}") from None
    except MemoryError:
        raise ResourceError(f"{shown_path(path)}: no memory for its {size_words(size)}, "
                            f"{size_words(memory_available())} is available; take a smaller model") from None
    except OSError as error:
        # The library calls every failure to open a missing file: ask the system for the reason.
        os.close(open_regular(path)[0])
        raise failure(path, error) from None


class Checkpoint:
    """Named tensors of a folder. Files stay open until close(), so a replaced file cannot be mixed in.

    A matrix that lies there in codes (`quantized`) is one tensor under the name its floats would have: `codes` gives it as
    it is, the others widened. `widened` has the reason for those that no kernel takes as they are, by name; more may come
    to it while weights are read.
    `progress` is called with the bytes of every piece read. Loading functions raise BadFileError (missing tensor, other
    shape or type than the model needs, file cut short) and ResourceError (not enough memory).
    """

    def __init__(self, folder: Path, tensors: dict[str, TensorInfo], descriptors: dict[Path, int],
                 quantized: "Mapping[str, Stored] | None" = None) -> None:
        self.folder = folder
        self.nbytes = sum(info.nbytes for info in tensors.values())
        self.tensors = tensors
        self.quantized: dict[str, Stored] = {}
        self.widened: dict[str, str] = {}
        self.progress: Callable[[int], None] | None = None
        self.turned: Collection[str] = ()  # matrices that lie as [out, in] where the model's safetensors have [in, out]
        self._descriptors = descriptors
        self._take(quantized or {})

    def _take(self, quantized: "Mapping[str, Stored]") -> None:
        """Puts matrices in codes in the place of their arrays."""
        self.quantized = dict(quantized)
        self.widened = {name: stored.widened or stored.label for name, stored in quantized.items() if stored.format is None}
        parts = {id(info) for stored in self.quantized.values() for info in stored.parts.values()}
        self.tensors = {name: info for name, info in self.tensors.items() if id(info) not in parts}
        self.tensors |= {name: stored.info() for name, stored in self.quantized.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; loaded tensors stay."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def widened_words(self) -> str:
        """For people, one line, or nothing: "14 of 112 matrices in codes are widened to f16: FP8"."""
        if not self.widened:
            return ""
        reasons = ", ".join(sorted(set(self.widened.values())))
        return f"{len(self.widened)} of {len(self.quantized)} matrices in codes are widened to f16: {reasons}"

    def codes(self, name: str, shape: tuple[int, int]) -> "Codes":
        """A matrix of `quantized`, unless its format is None. Raises BadFileError where its scales turn out to be none of the
        format."""
        return self.codes_of_rows(name, shape, 0, shape[0])

    def _decoded(self, name: str, shape: tuple[int, ...]) -> "Codes | np.ndarray":
        return self._decoded_rows(name, shape, 0, shape[0])

    def packed_parts(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> "dict[str, Tensor]":
        """The arrays of matrices that are stored alike, by role, one matrix under another."""
        for name, shape in zip(names, shapes, strict=True):
            self._info(name, shape)
        found = {}
        for role, first in self.quantized[names[0]].parts.items():
            infos = [self.quantized[name].parts[role] for name in names]
            found[role] = self._allocate((sum(info.shape[0] for info in infos), *first.shape[1:]), first.dtype, names[0])
            row = 0
            for name, info in zip(names, infos):
                self._read(name, info, found[role].rows(row, row + info.shape[0]))
                row += info.shape[0]
        return found

    def codes_of_rows(self, name: str, shape: tuple[int, int], begin: int, end: int) -> "Codes":
        """Rows [begin, end) of the same; only they are read where the file has row after row."""
        found = self.rows_to_run(name, shape, begin, end)
        if not hasattr(found, "unpacked"):
            raise BadFileError(f"{shown_path(self.tensors[name].file)}: tensor {shown(name, 200)}: has float32 scales that "
                               "float16 has not; its codes cannot be kept as they are")
        return found.unpacked()

    def rows_to_run(self, name: str, shape: tuple[int, int], begin: int, end: int) -> "Codes | np.ndarray":
        """The same as the core packs them, 4 bits as nibbles where they may be; floats f32 for scales of no format."""
        if self.quantized[name].format is None:
            raise ValueError(f"tensor {name} has no codes that a kernel takes")
        return self._decoded_rows(name, shape, begin, end)

    def by_rows(self, name: str) -> bool:
        """Whether rows of a matrix in codes lie one after the other, so that some can be read without the others."""
        stored = self.quantized[name]
        rows = (stored.shape[0], -(-stored.shape[0] // stored.block))
        return all(len(part.shape) < 2 or part.shape[0] in rows for part in stored.parts.values())

    def _decoded_rows(self, name: str, shape: tuple[int, int], begin: int, end: int) -> "Codes | np.ndarray":
        import numpy as np

        info, stored = self._info(name, shape), self.quantized[name]
        whole = (begin, end) == (0, shape[0]) or begin % stored.block != 0 or not self.by_rows(name)
        parts = {}
        for role, part in stored.parts.items():
            if not whole and (len(part.shape) > 1 or role in stored.per_row):
                per = 1 if part.shape[0] == shape[0] else stored.block
                part = _rows_of(part, begin // per, -(-end // per))
            parts[role] = self.array(part, name)
        try:
            decoded = stored.decode(parts)
        except ValueError as error:
            raise BadFileError(f"{shown_path(info.file)}: tensor {shown(name, 200)}: {error}") from None
        except MemoryError:
            raise self._no_memory(stored.shape, "i8", name) from None
        if not whole or (begin, end) == (0, shape[0]):
            return decoded
        return decoded[begin:end] if isinstance(decoded, np.ndarray) else decoded.rows(begin, end)

    def load_rows(self, name: str, shape: tuple[int, ...], begin: int, end: int, *, exact: bool = False) -> "Tensor":
        """Rows [begin, end) of a tensor, as `load` gives it. exact: codes become f32, which holds what they stand for."""
        info = self._info(name, shape)
        if name in self.quantized:
            return self._widened(self._decoded_rows(name, shape, begin, end), exact)
        result = self._allocate((end - begin, *shape[1:]), info.dtype, name)
        self._read(name, _rows_of(info, begin, end), result)
        return result

    def array(self, info: TensorInfo, name: str) -> "np.ndarray":
        """Bytes of the files as they are, f16 and bf16 as uint16 bits. `name` is for what may go wrong."""
        import numpy as np

        if info.dtype == "i32":  # words, which the core may take as they lie
            result = self._allocate(info.shape, "i32", name).numpy()
        else:
            try:
                result = np.empty(info.shape, NUMPY[info.dtype])
            except MemoryError:
                raise self._no_memory(info.shape, info.dtype, name) from None
        self._fill(name, info, memoryview(result.reshape(-1).view(np.uint8)), 0)
        return result

    def raw_rows(self, name: str, begin: int, end: int) -> "np.ndarray":
        """Along the first axis [begin, end) of a tensor of any type, as `array` gives it."""
        return self.array(_rows_of(self.tensors[name], begin, end), name)

    def load(self, name: str, shape: tuple[int, ...]) -> "Tensor":
        """The tensor in the type it has on disk: f32, f16 or bf16. Codes become f16, or f32 where that is too small."""
        info = self._info(name, shape)
        if name in self.quantized:
            return self._load_widened(name, shape)
        tensor = self._allocate(info.shape, info.dtype, name)
        self._read(name, info, tensor)
        return tensor

    def load_f32(self, name: str, shape: tuple[int, ...]) -> "Tensor":
        """The tensor converted to f32 (norm weights, biases)."""
        return self._as_f32(self.load(name, shape), name)

    def load_concat(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]], *, f32: bool = False) -> "Tensor":
        """Tensors one under another along the first axis, read into one buffer: fused qkv, gate and up.

        Shapes may differ in the first axis only. All of one type keep it; mixed types, or `f32`, become f32.
        """
        infos = [self._info(name, shape) for name, shape in zip(names, shapes, strict=True)]
        if any(name in self.quantized for name in names):
            return self._concat_widened(names, shapes, f32)
        rest = infos[0].shape[1:]
        if any(not info.shape or info.shape[1:] != rest for info in infos):
            raise ValueError(f"cannot put {list(map(tuple, shapes))} one under another")
        dtypes = {info.dtype for info in infos}
        dtype = infos[0].dtype if len(dtypes) == 1 and dtypes <= set(LOADABLE) and not f32 else "f32"
        result = self._allocate((sum(info.shape[0] for info in infos), *rest), dtype, names[0])
        row = 0
        for name, info in zip(names, infos):
            part = result.rows(row, row + info.shape[0])
            row += info.shape[0]
            if info.dtype == dtype:
                self._read(name, info, part)
            elif info.nbytes:
                part.numpy()[...] = self.load_f32(name, info.shape).numpy()
        return result

    def load_transposed(self, name: str, shape: tuple[int, int]) -> "Tensor":
        """A matrix the file holds as `shape` = [k, n], given as [n, k] (gpt2's Conv1D), a block of rows at a time."""
        if name in self.quantized:  # codes lie as [n, k] always
            return self._widened(self._decoded(name, shape[::-1]))
        info = self._info(name, shape)
        k, n = info.shape
        result = self._allocate((n, k), info.dtype, name)
        if not info.nbytes:
            return result
        row_bytes = info.nbytes // k
        block = max(1, min(k, TRANSPOSE_PIECE // row_bytes))
        buffer = self._allocate((block, n), info.dtype, name)
        target = result.numpy()
        for begin in range(0, k, block):
            rows = min(block, k - begin)
            self._read(name, info, buffer.rows(0, rows), begin * row_bytes)
            target[:, begin:begin + rows] = buffer.numpy()[:rows].T
        return result

    def _load_widened(self, name: str, shape: tuple[int, int], target: "Tensor | None" = None) -> "Tensor":
        """Some rows at a time, where the file has row after row, into target or a new tensor: f16, or f32 where it must."""
        n, k = shape
        stored = self.quantized[name]
        step = -(-WIDENED_PIECE // k // stored.block) * stored.block if self.by_rows(name) else n
        result = self._allocate(shape, "f16", name) if target is None else target
        for begin in range(0, n, step):
            end = min(begin + step, n)
            piece = self._widened(self._decoded_rows(name, shape, begin, end))
            if piece.dtype != result.dtype:
                if result.dtype == "f32":
                    piece = self._as_f32(piece, name)
                else:
                    return self._load_widened(name, shape, self._allocate(shape, "f32", name))
            result.rows(begin, end).numpy()[...] = piece.numpy()
        return result

    def _concat_widened(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]], f32: bool) -> "Tensor":
        parts = [self.load(name, shape) for name, shape in zip(names, shapes)]
        dtypes = {part.dtype for part in parts}
        dtype = dtypes.pop() if len(dtypes) == 1 and not f32 else "f32"
        result = self._allocate((sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype, names[0])
        row = 0
        for name, part in zip(names, parts):
            if part.dtype != dtype:
                part = self._as_f32(part, name)
            result.rows(row, row + part.shape[0]).numpy()[...] = part.numpy()
            row += part.shape[0]
        return result

    @staticmethod
    def _widened(decoded: "Codes | np.ndarray", exact: bool = False) -> "Tensor":
        import numpy as np

        from genkit._core import Tensor, convert

        array = np.ascontiguousarray(decoded if isinstance(decoded, np.ndarray) else decoded.dequantize())
        values = Tensor.from_numpy(array)
        largest = max(array.max(initial=0), -array.min(initial=0))  # NaN passes, as it is a float16 too
        return values if exact or largest > F16_MAX else convert(values, "f16")

    def _info(self, name: str, shape: Iterable[int]) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise BadFileError(f"{shown_path(self.folder)}: tensor {shown(name, 200)} is missing from the weights")
        where = f"{shown_path(info.file)}: tensor {shown(name, 200)}"
        if info.shape != tuple(shape):
            raise BadFileError(f"{where} has shape {list(info.shape)}; config.json asks for {list(shape)}")
        if info.dtype not in LOADABLE and name not in self.quantized:
            raise BadFileError(f"{where} has dtype {info.dtype.upper()}; only F32, F16 and BF16 weights can be loaded")
        return info

    def _allocate(self, shape: tuple[int, ...], dtype: str, name: str) -> "Tensor":
        from genkit._core import Tensor

        try:
            return Tensor(shape, dtype)
        except MemoryError:
            raise self._no_memory(shape, dtype, name) from None

    def _as_f32(self, tensor: "Tensor", name: str) -> "Tensor":
        from genkit._core import convert

        if tensor.dtype == "f32":
            return tensor
        try:
            return convert(tensor, "f32")
        except MemoryError:
            raise self._no_memory(tensor.shape, "f32", name) from None

    def _no_memory(self, shape: tuple[int, ...], dtype: str, name: str) -> ResourceError:
        nbytes = BITS.get(dtype.upper(), 8) // 8
        for size in shape:
            nbytes *= size
        return ResourceError(f"{shown_path(self.folder)}: no memory for tensor {shown(name, 200)}: needs "
                             f"{size_words(nbytes)} of {size_words(self.nbytes)} in all, "
                             f"{size_words(memory_available())} is available; take a smaller model or free memory")

    def _read(self, name: str, info: TensorInfo, target: "Tensor", skip: int = 0) -> None:
        """Fills target with the tensor's bytes from `skip` on."""
        if target.nbytes:
            self._fill(name, info, target.bytes(), skip)

    def _fill(self, name: str, info: TensorInfo, target: memoryview, skip: int) -> None:
        if info.file not in self._descriptors:
            raise ValueError("the checkpoint is closed")
        try:
            done = read_into(self._descriptors[info.file], target, info.offset + skip, self.progress)
        except OSError as error:
            raise failure(info.file, error) from None
        if done < len(target):
            raise BadFileError(f"{shown_path(info.file)}: file ended at byte {skip + done} of tensor "
                               f"{shown(name, 200)} ({info.nbytes} bytes); it was cut after it was opened")


def _rows_of(info: TensorInfo, begin: int, end: int) -> TensorInfo:
    row = info.nbytes // info.shape[0]
    return replace(info, shape=(end - begin, *info.shape[1:]), offset=info.offset + begin * row, nbytes=(end - begin) * row)


TRANSPOSE_PIECE = 16 << 20  # bytes of a matrix in flight while it is turned
WIDENED_PIECE = 4 << 20  # weights widened at a time


def memory_needed(checkpoint: Checkpoint, bits: float | None = None, reading: bool = True) -> int:
    """Bytes that the weights take in memory. With `bits`, matrices are rounded to so many bits a weight as they are read: two of
    the largest are there meanwhile, unless that is on another device (`reading` false)."""
    need = checkpoint.nbytes
    for name, stored in checkpoint.quantized.items():  # GGUF's five and six bits take eight, for one
        width = 16 if name in checkpoint.widened else stored.format.bits
        need += int(stored.shape[0] * stored.shape[1] * width / 8) - checkpoint.tensors[name].nbytes
    experts = [info for info in checkpoint.tensors.values() if len(info.shape) > 2]  # of a layer in one tensor, read one by one
    if bits is None:
        return need + sum(info.nbytes for info in experts if info.dtype == "u8")  # MXFP4 takes eight bits
    matrices = [info for info in checkpoint.tensors.values() if len(info.shape) == 2]
    weights = sum(info.shape[0] * info.shape[1] for info in matrices)
    weights += sum(info.nbytes * 2 if info.dtype == "u8" else math.prod(info.shape) for info in experts)
    largest = max((info.nbytes // (info.shape[0] if len(info.shape) > 2 else 1) for info in matrices + experts), default=0)
    return need + int(weights * bits / 8) - sum(info.nbytes for info in matrices + experts) + 2 * largest * reading


def check_memory(checkpoint: Checkpoint, extra: int = 0, bits: float | None = None) -> None:
    """Raises ResourceError when the weights and `extra` bytes (KV cache, buffers) exceed the memory available now."""
    need, available = memory_needed(checkpoint, bits), memory_available()
    if need + extra > available:
        more = f" and {size_words(extra)} more" if extra else ""
        raise ResourceError(f"{shown_path(checkpoint.folder)}: the weights need {size_words(need)}{more}, "
                            f"{size_words(available)} of memory is available; take a smaller model or free memory")


def open_checkpoint(folder: Path, fields: "Fields | None" = None) -> Checkpoint:
    """The weights of a model folder: model.safetensors, or the shards model.safetensors.index.json names.

    With `fields`, config.json, matrices in codes are found. Headers are read and checked, no data. Raises BadFileError.
    """
    folder = Path(folder)
    descriptors: dict[Path, int] = {}
    try:
        if os.path.lexists(folder / SINGLE):
            tensors = _open_file(folder / SINGLE, descriptors)
        elif os.path.lexists(folder / INDEX):
            tensors = _open_shards(folder, descriptors)
        else:
            raise _no_weights(folder)
        if not tensors:
            raise BadFileError(f"{shown_path(folder)}: the weights hold no tensors")
        checkpoint = Checkpoint(folder, tensors, descriptors)
        if fields is not None:
            checkpoint._take(schemes.find(fields, tensors, checkpoint.array))
        return checkpoint
    except BaseException:
        while descriptors:
            os.close(descriptors.popitem()[1])
        raise


def _open_file(path: Path, descriptors: dict[Path, int]) -> dict[str, TensorInfo]:
    descriptor, size = open_regular(path)
    descriptors[path] = descriptor
    tensors = read_header(path, descriptor, size)
    _second_opinion(path, size)
    return tensors


def _open_shards(folder: Path, descriptors: dict[Path, int]) -> dict[str, TensorInfo]:
    path = folder / INDEX
    weight_map = read_json(path, LARGE_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFileError(f"{shown_path(path)}: weight_map is {shown(weight_map)}; expected tensor names and files")
    files: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or file != os.path.basename(file) \
                or "\\" in file or not file.isprintable():
            raise BadFileError(f"{shown_path(path)}: names {shown(file)} for tensor {shown(name)}; "
                               f"expected the plain name of a .safetensors file in the same folder")
        files.setdefault(file, []).append(name)
    missing = [file for file in sorted(files) if not os.path.lexists(folder / file)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadFileError(f"{shown_path(path)}: names {missing[0]}{more}, not found in the folder; "
                           f"download the model again")
    tensors: dict[str, TensorInfo] = {}
    for file, names in sorted(files.items()):
        held = _open_file(folder / file, descriptors)
        for name in names:
            if name not in held:
                raise BadFileError(f"{shown_path(folder / file)}: has no tensor {shown(name)}, "
                                   f"which {INDEX} says it holds")
            tensors[name] = held[name]
    return tensors


def _no_weights(folder: Path) -> BadFileError:
    """Why a folder without model.safetensors cannot be loaded, by what lies there instead."""
    where = shown_path(folder)
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        return failure(folder, error)
    wanted = f"looked for {SINGLE} and {INDEX}"

    def listed(found: list[str]) -> str:
        return ", ".join(map(shown_path, found[:3])) + (", ..." if len(found) > 3 else "")

    def ending(*suffixes: str) -> list[str]:
        return [name for name in names if name.lower().endswith(suffixes)]

    if found := ending(".safetensors"):
        return BadFileError(f"{where}: has {listed(found)}, but no {INDEX} and no {SINGLE}; "
                            f"the download is incomplete or this is no whole model")
    if found := ending(".gguf"):
        return BadFileError(f"{where}: {listed(found)}: no safetensors beside GGUF; give the GGUF file itself")
    if found := ending(*PICKLE_SUFFIXES):
        return BadFileError(f"{where}: {listed(found)}: pickle weights can run code when they are loaded, so they are "
                            f"refused; convert them to safetensors (transformers' save_pretrained writes it)")
    return BadFileError(f"{where}: no weights; {wanted}")
