"""Random codes, and folders of them made by a writer without the driver: what the tests of file formats share."""

import json

import numpy as np
from checkpoint_files import refused
from kernel_helpers import bf16_bits

from genkit.checkpoints import open_checkpoint, read_config
from genkit.quant.codes import SUB, Codes, depth_of, groups_of, widen
from genkit.quant.formats import Format
from genkit.quant.writers import writer
from genkit.quant.writers.base import Source

K_FORMATS = [Format(packing, group, zero) for packing in ("int4_k", "int8_k") for group in (16, 32) for zero in ("none", "real")]
FORMATS = [Format("int4_two_level"), *(Format(packing, group, zero, scale) for packing in ("int4", "int8")
                                       for group in (32, 64, 128, 256) for zero in ("none", "integer", "real")
                                       for scale in ("f16", "bf16"))]
LAYER = "model.layers.0."
EMBEDDING, HEAD, Q, UP, NORM = "model.embed_tokens.weight", "lm_head.weight", LAYER + "self_attn.q_proj.weight", \
    LAYER + "mlp.up_proj.weight", "model.norm.weight"


def writer_for(name, folder, model_type="llama", **config):
    """A writer for a model of which there is only config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "dtype": "bfloat16"} | config))
    return writer(name, Source(folder, read_config(folder), None))


def writer_for_folder(name, folder):
    return writer(name, Source(folder, read_config(folder), None))


def bits_of(values, dtype):
    return values.astype(np.float16).view(np.uint16) if dtype == "f16" else bf16_bits(values)


def random_codes(random, n, k, format):
    """Any codes a format has, scales of both signs; what is past k is random as well."""
    depth, groups = depth_of(k), groups_of(k, format.scale_group)
    scales = bits_of(random.standard_normal((n, groups), dtype=np.float32) * 0.01, format.scale_dtype)
    if format.eight_bits:
        codes = random.integers(-128, 128, (n, depth), dtype=np.int8)
    else:
        codes = random.integers(0, 16, (n, depth), dtype=np.uint8)
    if format.of_k:
        sc = random.integers(-128, 128, (n, depth // format.group), dtype=np.int8)
        if format.zero == "none":
            return Codes(format, k, codes, scales, sc)
        dmin = bits_of(random.standard_normal((n, groups), dtype=np.float32) * 0.1, "f16")
        return Codes(format, k, codes, scales, sc, random.integers(0, 256, sc.shape, dtype=np.uint8), dmin)
    if format.packing == "int4_two_level":
        u = random.integers(0, 16, (n, depth // SUB), dtype=np.uint8)
        low = np.maximum(15 * u.astype(int) - 127, 0)
        return Codes(format, k, codes, scales, u, random.integers(low, 129).astype(np.uint8))
    zeros = None
    if format.zero == "integer":
        zeros = random.integers(-128, 128, (n, groups), dtype=np.int8) if format.packing == "int8" else \
            random.integers(0, 16, (n, groups), dtype=np.uint8)
    elif format.zero == "real":
        zeros = bits_of(random.standard_normal((n, groups), dtype=np.float32) * 0.1, format.scale_dtype)
    return Codes(format, k, codes, scales, zeros=zeros)


def rounded(weight, format):
    """Codes near float32 weights [n, k], k a multiple of the group: plain rounding, every other scale negative."""
    n, k = weight.shape
    groups = weight.reshape(n, -1, format.group)
    sign = np.where(np.arange(n * groups.shape[1]).reshape(n, -1) % 2, -1, 1)
    low, high = groups.min(2), groups.max(2)
    half = np.abs(groups).max(2) * sign
    scale = half / 127 if format.packing == "int8" else (high - low) / 15 if format.zero != "none" else half / 7
    bits = bits_of(scale.astype(np.float32), format.scale_dtype)
    s = widen(bits, format.scale_dtype)
    first, last = (-127, 127) if format.packing == "int8" else (0, 15)
    offset = {"int8": 0, "int4": 8}[format.packing] + np.zeros_like(s)
    zeros = None
    if format.zero == "integer":
        zeros = np.clip(np.rint(-low / s), 0, 15).astype(np.uint8)
        offset = zeros.astype(np.float32)
    elif format.zero == "real":
        zeros = bits_of(low, format.scale_dtype)
        offset = -widen(zeros, format.scale_dtype) / s
    codes = np.clip(np.rint(groups / s[:, :, None] + offset[:, :, None]), first, last).reshape(n, k)
    full = np.zeros((n, depth_of(k)), np.int8 if format.packing == "int8" else np.uint8)
    full[:, :k] = codes
    fill = (0, 0), (0, groups_of(k, format.group) - s.shape[1])
    return Codes(format, k, full, np.pad(bits, fill), zeros=None if zeros is None else np.pad(zeros, fill))


def write_model(made, values, out):
    """values: name -> Codes or an array of floats (bf16 as uint16). Returns what each is kept as."""
    out.mkdir(exist_ok=True)
    floats = {"float32": "f32", "float16": "f16", "uint16": "bf16"}
    kinds = {name: value.format if isinstance(value, Codes) else floats[value.dtype.name] for name, value in values.items()}
    planned = {name: made.arrays(name, value.shape, kinds[name]) for name, value in values.items()}
    every = [array for arrays in planned.values() for array in arrays]
    contents = {}
    for name, arrays in planned.items():
        contents |= {array.name: data for array, data in zip(arrays, made.encode(name, values[name]), strict=True)}
    files = made.files(every, kinds)
    for file in files:
        data = bytearray(file.nbytes)
        data[: len(file.head)] = file.head
        for array in every:
            if array.name in file.offsets:
                piece = contents[array.name]
                assert piece.shape == array.shape and piece.nbytes == array.nbytes, array
                at = file.offsets[array.name]
                data[at:at + array.nbytes] = piece.tobytes()
        (out / file.name).write_bytes(data)
    for name, data in (made.extras(kinds) | made.index(files, every)).items():
        (out / name).write_bytes(data)
    return kinds


def read_back(folder, names):
    """name -> Codes, or the tensor, as the checkpoint gives it."""
    with open_checkpoint(folder, read_config(folder)) as checkpoint:
        kept = {name for name, stored in checkpoint.quantized.items() if stored.format is not None}
        return {name: (checkpoint.codes if name in kept else checkpoint.load)(name, shape) for name, shape in names.items()}


def assert_same(got, want):
    """All that means something is equal to the bit."""
    assert (got.format, got.k, got.codes.shape) == (want.format, want.k, want.codes.shape)
    subs = -(-want.k // (want.format.group if want.format.of_k else SUB))
    groups = -(-want.k // want.format.scale_group)
    used = {"codes": want.k, "scales": groups, "zeros": groups, "subscales": subs, "minima": subs}
    assert got.parts().keys() == want.parts().keys()
    for name, array in want.parts().items():
        other = got.parts()[name]
        assert other.dtype == array.dtype and other.shape == array.shape
        assert np.array_equal(other[:, : used[name]], array[:, : used[name]]), name


def by_pieces(made, name, codes, rows=32):
    """What the driver writes: the arrays of some rows at a time, one after the other."""
    pieces = [made.encode(name, codes.rows(i, min(i + rows, codes.shape[0]))) for i in range(0, codes.shape[0], rows)]
    return [np.concatenate(parts) for parts in zip(*pieces)]


def bit_field(words, index, bits):
    """Code `index` of a run of 32-bit words, by the definition: at bit index * bits, least significant first."""
    at = index * bits
    return int(words[at // 32]) % 2**32 >> at % 32 & (1 << bits) - 1


class Raw:
    """A folder's arrays (f16 and bf16 as uint16 bits), their types where they are not I32, and its config.json."""

    def __init__(self, folder, config, arrays, dtypes):
        self.folder, self.config, self.arrays, self.dtypes = folder, config, arrays, dtypes

    @staticmethod
    def read(folder):
        with open_checkpoint(folder) as checkpoint:
            arrays = {name: checkpoint.array(info, name) for name, info in checkpoint.tensors.items()}
            dtypes = {name: info.dtype.upper() for name, info in checkpoint.tensors.items()}
        return Raw(folder, json.loads((folder / "config.json").read_text()), arrays, dtypes)

    def save(self):
        header, data, at = {}, [], 0
        for name, array in self.arrays.items():
            dtype = self.dtypes.get(name, "I32")
            header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
            data.append(array.tobytes())
            at += array.nbytes
        text = json.dumps(header).encode()
        (self.folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))
        (self.folder / "config.json").write_text(json.dumps(self.config))


def hostile(folder, change, names):
    """The one line that reading the folder ends in once `change` was done to its Raw. names: what is read, name -> shape."""
    raw = Raw.read(folder)
    change(raw)
    raw.save()
    return refused(read_back, folder, names)
