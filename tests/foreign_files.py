"""Quantized folders as others write them, by the definition of each layout and independent of genkit's readers: arrays of one
linear, what they stand for, and whole little models of them."""

import json
from dataclasses import dataclass, field

import numpy as np
from format_files import Raw, bits_of
from kernel_helpers import bf16_values

NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
                0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)
FP4 = np.array([0, 0.0052083333, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25], np.float32)
FP4 = np.concatenate([FP4, -FP4])
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # of eight outputs in a word


def run_of_bits(codes, bits, words=True):
    """Unsigned codes [m, count] as one run of bits a row, least significant first: i32 [m, count bits / 32 up]."""
    ones = (np.asarray(codes, np.int64)[:, :, None] >> np.arange(bits) & 1).reshape(len(codes), -1).astype(np.uint8)
    ones = np.pad(ones, ((0, 0), (0, -ones.shape[1] % 32)))
    return np.packbits(ones, axis=1, bitorder="little").view("<i4")


def wide(values, dtype):
    """Float32 rounded to a type of a file, as (its bits, the same as float32)."""
    if dtype == "F32":
        return np.float32(values), np.float32(values)
    bits = bits_of(np.float32(values), dtype.lower())
    return bits, np.float32(bits.view(np.float16)) if dtype == "F16" else np.float32(bf16_values(bits))


@dataclass
class Grid:
    """w rounded to unsigned codes q of `bits`, w = s (q - z), with a scale for the inputs of each group of g_idx."""

    w: np.ndarray
    bits: int
    group: int  # -1: one a row
    symmetric: bool = True
    dtype: str = "F16"
    order: bool = False
    sign: int = 1
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def __post_init__(self):
        n, k = self.w.shape
        group = k if self.group == -1 else self.group
        self.g_idx = np.arange(k, dtype=np.int32) // group
        if self.order:
            self.g_idx = self.rng.permutation(self.g_idx)
        self.groups, top = int(self.g_idx.max()) + 1, 2**self.bits - 1
        low = np.stack([self.w[:, self.g_idx == g].min(1) for g in range(self.groups)], 1)
        high = np.stack([self.w[:, self.g_idx == g].max(1) for g in range(self.groups)], 1)
        span = 2 * np.maximum(-low, high) if self.symmetric else high - low
        signs = np.where(np.arange(n * self.groups).reshape(n, -1) % 2, 1, self.sign)
        self.scale_bits, self.s = wide(span / top * signs, self.dtype)
        middle = (top + 1) // 2
        self.z = np.full(low.shape, middle) if self.symmetric else np.clip(np.rint(-low / self.s), 1, top).astype(int)
        s, z = self.s[:, self.g_idx], self.z[:, self.g_idx]
        self.q = np.clip(np.rint(self.w / s + z), 0, top).astype(int)
        self.value = np.float32(self.q - z) * s


def gptq(x, w, bits=4, group=32, symmetric=True, order=False, above=1, g_idx=True, dtype="F16", sign=1):
    grid = Grid(w, bits, group, symmetric, dtype, order, sign)
    arrays = {x + ".qweight": ("I32", run_of_bits(grid.q.T.reshape(w.shape[1], -1).T, bits).T),
              x + ".qzeros": ("I32", run_of_bits(grid.z.T - above, bits)), x + ".scales": (dtype, grid.scale_bits.T)}
    return arrays | ({x + ".g_idx": ("I32", grid.g_idx)} if g_idx else {}), grid.value


def awq(x, w, group=32, symmetric=False, dtype="F16"):
    grid = Grid(w, 4, group, symmetric, dtype)

    def words(codes):
        return run_of_bits(codes.reshape(len(codes), -1, 8)[:, :, AWQ_ORDER].reshape(len(codes), -1), 4)

    return {x + ".qweight": ("I32", words(grid.q.T)), x + ".qzeros": ("I32", words(grid.z.T)),
            x + ".scales": (dtype, grid.scale_bits.T)}, grid.value


def packed(x, w, bits=4, group=32, symmetric=True, order=False, dtype="BF16"):
    grid = Grid(w, bits, group, symmetric, dtype, order)
    arrays = {x + ".weight_packed": ("I32", run_of_bits(grid.q, bits)), x + ".weight_scale": (dtype, grid.scale_bits),
              x + ".weight_shape": ("I64", np.array(w.shape))}
    if not symmetric:
        arrays[x + ".weight_zero_point"] = ("I32", run_of_bits(grid.z.T, bits).T)
    return arrays | ({x + ".weight_g_idx": ("I32", grid.g_idx)} if order else {}), grid.value


def plain(x, w, strategy="channel", symmetric=True, dtype="BF16"):
    """compressed-tensors' int-quantized."""
    grid = Grid(w, 8, -1, symmetric, dtype)
    if strategy == "tensor":
        bits, s = wide(np.abs(w).max() / 127, dtype)
        q = np.rint(w / s).astype(np.int8)
        return {x + ".weight": ("I8", q), x + ".weight_scale": (dtype, bits.reshape(1))}, q * s
    arrays = {x + ".weight": ("I8", (grid.q - 128).astype(np.int8)), x + ".weight_scale": (dtype, grid.scale_bits)}
    if not symmetric:
        arrays[x + ".weight_zero_point"] = ("I8", (grid.z - 128).astype(np.int8))
    return arrays, grid.value


def e4m3(code):
    """By the definition: sign, 4 bits of exponent with a bias of 7, 3 bits of fraction."""
    sign, exponent, fraction = -1 if code & 128 else 1, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return np.nan
    return sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


E4M3 = np.array([e4m3(code) for code in range(256)], np.float32)


def floats8(x, w, scales="block", block=(32, 48), name="weight_scale_inv", dtype="F32"):
    n, k = w.shape
    rows, columns = block if scales == "block" else (1, k) if scales in ("row", "vector") else (n, k)
    shape = -(-n // rows), -(-k // columns)
    largest = np.array([[np.abs(w[i * rows:(i + 1) * rows, j * columns:(j + 1) * columns]).max() for j in range(shape[1])]
                        for i in range(shape[0])])
    bits, s = wide(largest / 448, dtype)
    spread = np.repeat(np.repeat(s, rows, 0)[:n], columns, 1)[:, :k]
    known = np.where(np.isnan(E4M3), np.inf, E4M3)
    q = np.abs(known - (w / spread)[:, :, None]).argmin(2).astype(np.uint8)
    shape = {"tensor": (), "one": (1,), "vector": (n,)}.get(scales, shape)
    return {x + ".weight": ("F8_E4M3", q), f"{x}.{name}": (dtype, bits.reshape(shape))}, E4M3[q] * spread


def bnb8(x, w):
    largest = np.float32(np.abs(w).max(1))
    q = np.rint(w / largest[:, None] * 127).astype(np.int8)
    arrays = {x + ".weight": ("I8", q), x + ".SCB": ("F32", largest), x + ".weight_format": ("U8", np.zeros((), np.uint8))}
    return arrays, np.float32(q) * largest[:, None] * np.float32(1 / 127)


def bnb4(x, w, kind="nf4", blocksize=64, nested=False):
    book, count = {"nf4": NF4, "fp4": FP4}[kind], w.size
    blocks = np.pad(w.reshape(-1), (0, -count % blocksize)).reshape(-1, blocksize)
    absmax = np.float32(np.abs(blocks).max(1))
    state = {"quant_type": kind, "blocksize": blocksize, "dtype": "float32", "shape": list(w.shape)}
    arrays = {x + ".weight.quant_map": ("F32", book)}
    if nested:
        offset, size = float(np.float32(absmax.mean())), 256
        codes = np.linspace(-1, 1, 256, dtype=np.float32)
        parts = np.pad(absmax - np.float32(offset), (0, -len(absmax) % size)).reshape(-1, size)
        most = np.float32(np.abs(parts).max(1))
        a = np.abs(codes - (parts / most[:, None])[:, :, None]).argmin(2).astype(np.uint8).reshape(-1)[: len(absmax)]
        absmax = codes[a] * np.repeat(most, size)[: len(a)] + np.float32(offset)
        arrays |= {x + ".weight.absmax": ("U8", a), x + ".weight.nested_absmax": ("F32", most),
                   x + ".weight.nested_quant_map": ("F32", codes)}
        state |= {"nested_blocksize": size, "nested_offset": offset, "nested_dtype": "float32"}
    else:
        arrays[x + ".weight.absmax"] = ("F32", absmax)
    q = np.abs(book - (blocks / absmax[:, None])[:, :, None]).argmin(2).astype(np.uint8).reshape(-1)[:count]
    pairs = np.pad(q, (0, count % 2)).reshape(-1, 2)
    arrays[x + ".weight"] = ("U8", (pairs[:, 0] << 4 | pairs[:, 1])[:, None])
    arrays[f"{x}.weight.quant_state.bitsandbytes__{kind}"] = ("U8", np.frombuffer(json.dumps(state).encode(), np.uint8))
    return arrays, (book[q] * np.repeat(absmax, blocksize)[:count]).reshape(w.shape)


def mlx(x, w, bits=4, group=32, dtype="F16"):
    """w = s u + b; b a multiple of s, so that 8 bits are exact as well."""
    n, k = w.shape
    parts = w.reshape(n, -1, group)
    low, high = parts.min(2), parts.max(2)
    scale_bits, s = wide(np.exp2(np.ceil(np.log2((high - low) / (2**bits - 1)))), dtype)
    bias_bits, b = wide(np.rint(low / s) * s, dtype)
    q = np.clip(np.rint((parts - b[:, :, None]) / s[:, :, None]), 0, 2**bits - 1)
    value = np.float32(q) * s[:, :, None] + b[:, :, None]
    return {x + ".weight": ("U32", run_of_bits(q.reshape(n, k), bits).view(np.uint32)), x + ".scales": (dtype, scale_bits),
            x + ".biases": (dtype, bias_bits)}, value.reshape(n, k)


def compressed(format, **weights):
    """config.json's entry, with a group for each of a list of weights."""
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False} | weights,
             "input_activations": None, "output_activations": None, "format": format}
    return {"quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": group}}


def of_gptq(**more):
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False} | more


def of_autoround(**more):
    return {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "data_type": "int"} | more


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
       "modules_to_not_convert": ["lm_head"]}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}

# name -> (maker, its arguments, quantization_config, what it is held as: packing and group, or the word for it)
FOREIGN = {
    "ct-group-asym": (packed, dict(group=64, symmetric=False), compressed("pack-quantized", num_bits=4, strategy="group",
                      group_size=64, symmetric=False), "int4 per 64 with zero"),
    "ct-channel": (packed, dict(group=-1), compressed("pack-quantized", num_bits=4, strategy="channel"), "int4 per 256"),
    "ct-channel-asym": (packed, dict(group=-1, symmetric=False), compressed("pack-quantized", num_bits=4, strategy="channel",
                        symmetric=False), "int4 per 256 with zero"),
    "ct-8-asym": (packed, dict(bits=8, symmetric=False), compressed("pack-quantized", strategy="group", group_size=32,
                  symmetric=False), "int8 per 32 with zero"),
    "ct-8-channel": (packed, dict(bits=8, group=-1), compressed("pack-quantized", strategy="channel"), "int8 per 256"),
    "ct-actorder": (packed, dict(order=True, symmetric=False), compressed("pack-quantized", num_bits=4, strategy="group",
                    group_size=32, symmetric=False, actorder="group"), "int4 per 32 with zero"),
    "ct-8-actorder": (packed, dict(bits=8, order=True), compressed("pack-quantized", strategy="group", group_size=32,
                      actorder="group"), "int8 per 32"),
    "ct-group-16": (packed, dict(group=16), compressed("pack-quantized", num_bits=4, strategy="group", group_size=16),
                    "groups of 16"),
    "ct-f32-scales": (packed, dict(dtype="F32"), compressed("pack-quantized", num_bits=4, strategy="group", group_size=32),
                      "scales that float16 has not"),
    "ct-w8a8": (plain, {}, compressed("int-quantized", strategy="channel"), "int8 per 256"),
    "ct-w8a8-asym": (plain, dict(symmetric=False), compressed("int-quantized", strategy="channel", symmetric=False),
                     "int8 per 256 with zero"),
    "ct-w8a8-tensor": (plain, dict(strategy="tensor"), compressed("int-quantized", strategy="tensor"), "int8 per 256"),
    "ct-fp8-channel": (floats8, dict(scales="row", name="weight_scale", dtype="BF16"),
                       compressed("float-quantized", type="float", strategy="channel"), "FP8"),
    "ct-fp8-tensor": (floats8, dict(scales="one", name="weight_scale"),
                      compressed("float-quantized", type="float", strategy="tensor"), "FP8"),
    "ct-fp8-block": (floats8, dict(name="weight_scale"), compressed("float-quantized", type="float", strategy="block",
                     block_structure=[32, 48]), "FP8"),
    "gptq-no-g_idx": (gptq, dict(symmetric=False, g_idx=False), of_gptq(), "int4 per 32 with zero"),
    "gptq-order": (gptq, dict(symmetric=False, order=True), of_gptq(desc_act=True), "int4 per 32 with zero"),
    "gptq-8-v2-order": (gptq, dict(bits=8, order=True, above=0), of_gptq(bits=8, sym=True, checkpoint_format="gptq_v2"),
                        "int8 per 32"),
    "gptq-channel": (gptq, dict(group=-1), of_gptq(group_size=-1, sym=True), "int4 per 256"),
    "gptq-96": (gptq, dict(group=96), of_gptq(group_size=96, sym=True), "int4 per 32"),
    "autoround": (gptq, dict(sign=-1, g_idx=False), of_autoround(packing_format="auto_round:auto_gptq"), "int4 per 32"),
    "autoround-raw": (gptq, dict(symmetric=False, g_idx=False, above=0), of_autoround(quant_method="intel/auto-round",
                      packing_format="auto_round:gptqmodel", sym=False), "int4 per 32 with zero"),
    "autoround-awq": (awq, dict(symmetric=True), of_autoround(packing_format="auto_round:auto_awq"), "int4 per 32"),
    "autoround-own": (gptq, dict(bits=8, group=64, g_idx=False), of_autoround(extra_config={"model.layers.0": {"bits": 8,
                      "group_size": 64}}), "int8 per 64"),
    "awq": (awq, {}, AWQ, "int4 per 32 with zero"),
    "awq-channel": (awq, dict(group=-1), AWQ | {"group_size": -1}, "int4 per 256 with zero"),
    "bnb-int8": (bnb8, {}, BNB | {"load_in_4bit": False, "load_in_8bit": True}, "bitsandbytes int8"),
    "bnb-nf4": (bnb4, {}, BNB, "bitsandbytes nf4"),
    "bnb-nf4-nested": (bnb4, dict(nested=True), BNB, "bitsandbytes nf4"),
    "bnb-fp4": (bnb4, dict(kind="fp4", blocksize=128), BNB, "bitsandbytes fp4"),
    "mlx-2": (mlx, dict(bits=2), {"bits": 2, "group_size": 32}, "int4 per 32 with minimum"),
    "mlx-3": (mlx, dict(bits=3), {"bits": 3, "group_size": 32}, "int4 per 32 with minimum"),
    "mlx-5": (mlx, dict(bits=5, dtype="BF16"), {"bits": 5, "group_size": 32}, "int8 per 32 with minimum"),
    "mlx-6": (mlx, dict(bits=6), {"bits": 6, "group_size": 32}, "int8 per 32 with minimum"),
    "mlx-8": (mlx, dict(bits=8), {"bits": 8, "group_size": 32}, "int8 per 32 with minimum"),
    "fp8-block": (floats8, {}, FP8 | {"weight_block_size": [32, 48]}, "FP8"),
    "fp8-tensor": (floats8, dict(scales="tensor", name="weight_scale"), FP8, "FP8"),
    "fbgemm": (floats8, dict(scales="row", name="weight_scale"), {"quant_method": "fbgemm_fp8"}, "FP8"),
    "fp8-rows": (floats8, dict(scales="vector", name="weight_scale"), FP8, "FP8"),
}


def with_quantization(config, name):
    key = "quantization" if name.startswith("mlx") else "quantization_config"
    return config | {key: FOREIGN[name][2]}


def write_foreign(folder, config, name, weights):
    """A folder whose linears are in codes, all others as in `weights` (float32 by name). Returns what each stands for."""
    maker, arguments = FOREIGN[name][:2]
    arrays, values = {}, {}
    for tensor, w in weights.items():
        if tensor.endswith("_proj.weight") or (name.startswith("mlx") and w.ndim == 2):  # MLX's embeddings and head too
            made, values[tensor] = maker(tensor.removesuffix(".weight"), w, **arguments)
            arrays |= made
        else:
            arrays[tensor], values[tensor] = ("F32", w), w
    folder.mkdir(exist_ok=True)
    Raw(folder, with_quantization(config, name), {x: np.array(a, order="C") for x, (_, a) in arrays.items()},
        {x: dtype for x, (dtype, _) in arrays.items()}).save()
    return values
