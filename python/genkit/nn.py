"""Layers over the core's fused ops, and the reading of a checkpoint into them.

Nothing here or in models/ knows a dtype or a file format: a Linear multiplies by whatever weight it was given, dense as
the checkpoint has it or packed in few bits.
Activations are float32 [n, width], one row a token, rows of any sequences mixed; a Step (kv_cache.py) says which.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Optional, Union

import numpy as np

from genkit import _core
from genkit.checkpoints import mxfp4
from genkit.checkpoints.files import shown, shown_path
from genkit.errors import BadFileError, ResourceError
from genkit.quant.codes import Codes, same_order
from genkit.rope import Rope

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint
    from genkit.kv_cache import LayerPages, Step

Tensor = _core.Tensor
Weight = Union[_core.Tensor, _core.PackedWeight]

# hidden_act / activation_function of config.json -> the core's name. Both tanh spellings are one formula
# (Hendrycks and Gimpel 2016).
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Ordered(NamedTuple):
    """A packed weight whose column i belongs to input order[i], i32 [in] (GPTQ's activation order)."""

    weight: _core.PackedWeight
    order: Tensor


class Linear:
    """x [n, in] -> x @ weight.T + bias + residual, [n, out]. weight [out, in], or several, one under another, of forms that
    differ; bias f32 [out] or None."""

    def __init__(self, weight: Union[Weight, Ordered, Sequence[Weight]], bias: Optional[Tensor] = None) -> None:
        self.weight, self.order = weight if isinstance(weight, Ordered) else (weight, None)
        self.bias = bias
        self._op = _core.packed_linear if isinstance(self.weight, _core.PackedWeight) else \
            _core.linears if isinstance(self.weight, tuple) else _core.linear

    def __call__(self, x: Tensor, residual: Optional[Tensor] = None) -> Tensor:
        if self.order is not None:
            x = _core.gather_columns(x, self.order)
        return self._op(x, self.weight, self.bias, residual)


class GatedLinear:
    """x [n, in] -> f(gate(x)) * up(x), [n, out] (Shazeer 2020, arXiv:2002.05202). One weight [2 * out, in]: gates, ups; or
    two of different forms."""

    def __init__(self, weight: Union[Weight, Ordered, Sequence[Weight]], bias: Optional[Tensor], activation: str) -> None:
        self.weight, self.order = weight if isinstance(weight, Ordered) else (weight, None)
        self.bias = bias
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        if self.order is not None:
            x = _core.gather_columns(x, self.order)
        if isinstance(self.weight, _core.PackedWeight):
            return _core.packed_linear(x, self.weight, self.bias, None, self.activation)
        op = _core.linears if isinstance(self.weight, tuple) else _core.linear
        return _core.gated(op(x, self.weight, self.bias), self.activation)


class ExpertLinear:
    """Rows of each expert (groups of moe.py) times its own weight: x [places, in] -> [places, out]. weights: [experts, out,
    in]; bias f32 [experts, out] or None. With an activation the weights are gates, then ups: f(gate(x)) * up(x). one: the
    last expert's weight, of which `dtype` ("" where it is packed) and `nbytes` are told; all have the same."""

    def __init__(self, weights: _core.ExpertWeights, bias: Optional[Tensor] = None, activation: str = "",
                 one: Optional[Weight] = None) -> None:
        self.weights = weights
        self.bias = bias
        self.activation = activation
        self.dtype, self.nbytes = getattr(one, "dtype", ""), 0 if one is None else one.nbytes

    def __call__(self, x: Tensor, groups: _core.Groups) -> Tensor:
        return _core.expert_linear(x, groups, self.weights, self.bias, self.activation)


class Embedding:
    """ids i32 [n] -> rows of weight, f32 [n, width]."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight

    def __call__(self, ids: Tensor) -> Tensor:
        if isinstance(self.weight, _core.PackedWeight):
            return _core.unpack(ids, self.weight)
        return _core.embedding(ids, self.weight)


class RMSNorm:
    """Zhang and Sennrich 2019 (arXiv:1910.07467). weight f32 [width]."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return _core.rms_norm(x, self.weight, self.eps)

    def heads_(self, x: Tensor) -> None:
        """Normalizes each head of x [n, heads * width] in place."""
        _core.rms_norm_heads_(x, self.weight, self.eps)


class LayerNorm:
    """Ba et al. 2016 (arXiv:1607.06450). weight and bias f32 [width], bias or None; for heads_ also [heads, width]."""

    def __init__(self, weight: Tensor, bias: Optional[Tensor], eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return _core.layer_norm(x, self.weight, self.bias, self.eps)

    def heads_(self, x: Tensor) -> None:
        """Normalizes each head of x [n, heads * width] in place."""
        _core.layer_norm_heads_(x, self.weight, self.bias, self.eps)


Norm = Union[RMSNorm, LayerNorm]


class RoPE:
    """Rotary table of a step, shared by all layers (rope.py for the frequencies)."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope
        self._inv_freq = _core.Tensor.from_numpy(rope.inv_freq())

    def __call__(self, step: "Step") -> Tensor:
        """-> [n, 2 * half], cosines then sines."""
        inv_freq = self._inv_freq
        if self.rope.varies(step.longest):
            inv_freq = _core.Tensor.from_numpy(self.rope.inv_freq(step.context_length))
        return _core.rope_table(step.positions, inv_freq, self.rope.attention_factor)


class Attention:
    """Causal self-attention with grouped queries (Ainslie et al. 2023, arXiv:2305.13245) over the paged KV cache.

    qkv is one linear: all query heads, then key heads, then value heads. window > 0 sees that many last keys.
    softcap > 0 bends scores to softcap * tanh(score / softcap) (Gemma 2). alibi_slopes f32 [heads]: of a penalty on
    distance instead of a rotation (Press et al. 2022, arXiv:2108.12409). q_norm and k_norm are applied before RoPE, to
    each head or, where their weight is as wide, to all of them as one. interleaved: pairs of neighbours are rotated.
    """

    def __init__(self, qkv: Linear, out: Linear, *, heads: int, kv_heads: int, head_dim: int,
                 scale: Optional[float] = None, window: int = 0, softcap: float = 0.0,
                 alibi_slopes: Optional[Tensor] = None, interleaved: bool = False,
                 q_norm: Optional[Norm] = None, k_norm: Optional[Norm] = None) -> None:
        self.qkv = qkv
        self.out = out
        self.head_dim = head_dim
        self.keys_at = heads * head_dim
        self.values_at = self.keys_at + kv_heads * head_dim
        self.end = self.values_at + kv_heads * head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.window = window
        self.interleaved = interleaved
        self.options = {"alibi_slopes": alibi_slopes} | ({"softcap": softcap} if softcap else {})
        self.q_norm = q_norm
        self.k_norm = k_norm

    def __call__(self, x: Tensor, residual: Optional[Tensor], step: "Step", pages: "LayerPages",
                 rope_table: Optional[Tensor] = None) -> Tensor:
        """Writes this step's keys and values into a layer's pages and attends to all up to each row's own."""
        qkv = self.qkv(x)
        q = qkv.columns(0, self.keys_at)
        k = qkv.columns(self.keys_at, self.values_at)
        v = qkv.columns(self.values_at, self.end)
        if self.q_norm is not None:
            self.q_norm.heads_(q)
        if self.k_norm is not None:
            self.k_norm.heads_(k)
        where = pages.k, pages.v, step.page_table, step.sequences, step.positions
        scales = {"k_scales": pages.k_scales, "v_scales": pages.v_scales}
        if rope_table is None:
            _core.kv_write(k, v, *where, **scales)
        else:  # q and k lie side by side
            _core.rope_kv_write(qkv.columns(0, self.values_at), rope_table, k, v, *where,
                                interleaved=self.interleaved, **scales)
        mixed = _core.attention(q, *where, self.scale, self.window, **self.options, **scales)
        return self.out(mixed, residual)


class GatedMLP:
    """down(f(gate(x)) * up(x)) + residual."""

    def __init__(self, gate_up: GatedLinear, down: Linear) -> None:
        self.gate_up = gate_up
        self.down = down

    def __call__(self, x: Tensor, residual: Optional[Tensor]) -> Tensor:
        return self.down(self.gate_up(x), residual)


class MLP:
    """down(f(up(x))) + residual."""

    def __init__(self, up: Linear, down: Linear, activation: str) -> None:
        self.up = up
        self.down = down
        self.activation = activation

    def __call__(self, x: Tensor, residual: Optional[Tensor]) -> Tensor:
        return self.down(_core.activation(self.up(x), self.activation), residual)


def select_rows(x: Tensor, rows: Optional[Sequence[int]]) -> Tensor:
    """Rows of x [n, width] by index, None for all: a view when they follow one another, else a copy."""
    if rows is None or not len(rows):
        return x if rows is None else x.rows(0, 0)
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return x.rows(rows[0], rows[0] + len(rows))
    return _core.embedding(_core.Tensor.from_numpy(np.array(rows, dtype=np.int32)), x)


class Weights:
    """A checkpoint read into layers.

    Made with the name and shape of every tensor the model needs, (out, in) for linears as the file holds them. All are
    compared with the checkpoint's header before anything is allocated, so a configuration that lies about a size ends
    in a BadFileError however large the size. So does a tensor below `layers_prefix` that the table has no place for,
    buffers aside: a layer, a bias or a norm that is silently left out gives wrong text.

    With a `format` matrices are rounded to it as they are read; norms, biases and position tables stay.
    """

    # Constants that old versions of transformers stored beside the weights: causal masks and rotary frequencies.
    BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")

    # Of quantized models: how others round activations and the cache.
    ACTIVATION_SCALES = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".input_zero_point")

    def __init__(self, fields: "Fields", checkpoint: "Checkpoint", shapes: Mapping[str, tuple[int, ...]],
                 layers_prefix: str, format: Optional[_core.WeightFormat] = None) -> None:
        self.checkpoint = checkpoint
        self.shapes = shapes
        self._format = format
        for name, shape in shapes.items():
            if name not in checkpoint:
                raise BadFileError(f"{shown_path(checkpoint.folder)}: tensor '{name}' of shape {list(shape)}, which "
                                   f"{fields.path.name} asks for, is in none of its safetensors files")
            info = checkpoint.tensors[name]
            # Codes lie [out, in] always.
            turned = (name in checkpoint.quantized or name in checkpoint.turned) and tuple(info.shape) == tuple(shape)[::-1]
            if tuple(info.shape) != tuple(shape) and not turned:
                wrong = [size for size in shape if size not in info.shape]
                keys = [key for key, value in fields.raw.items() if type(value) is int and value in wrong]
                raise BadFileError(f"{shown_path(fields.path)}: {', '.join(keys) or 'the sizes'} cannot be right: "
                                   f"tensor '{name}' would be {list(shape)}, but is {list(info.shape)} in "
                                   f"{shown_path(info.file.name)}")
        for name in checkpoint.tensors:
            if name.startswith(layers_prefix) and name not in shapes and not name.endswith(self.BUFFERS) \
                    and not self._idle(name):
                raise BadFileError(f"{shown_path(fields.path)}: has no place for tensor {shown(name, 200)} of the "
                                   "weights; the number of layers, or a switch for biases or norms, is wrong")

    def linear(self, *names: str, rows: Optional[np.ndarray] = None) -> Linear:
        """One linear of the outputs of each `name`, in order; rows i64 [outputs]: in this order instead. Biases are taken
        when the model's table lists them."""
        return Linear(self._parts(names, rows=rows), self._biases(names, rows))

    def gated_linear(self, *names: str, activation: str) -> GatedLinear:
        """names: of the gates and of the ups, or of one matrix that holds both, gates first."""
        return GatedLinear(self._parts(names, gated=True), self._biases(names), activation)

    def router(self, name: str) -> Linear:
        """A linear that stays float32: which experts a row goes to hangs on it."""
        return Linear(self.vector(name + ".weight"), self._biases([name]))

    def expert_linear(self, names: Sequence[Sequence[str]], activation: str = "") -> ExpertLinear:
        """A linear for each expert. names: of each one's matrices, one under another; with an activation gates and ups."""
        experts = _core.ExpertWeights(len(names))
        for i, parts in enumerate(names):
            one = self._weight(parts, gated=bool(activation))
            self._set_expert(experts, i, one, parts[0] + ".weight")
        biases = [self._biases(parts) for parts in names]
        bias = None if biases[0] is None else _core.Tensor.from_numpy(np.stack([one.numpy() for one in biases]))
        return ExpertLinear(experts, bias, activation, one)

    def fused_experts(self, name: str, rows: Optional[np.ndarray] = None, activation: str = "") -> ExpertLinear:
        """The same from one tensor of all experts, floats [experts, in, out] or MXFP4 (checkpoints/mxfp4.py), with the biases
        name_bias. rows i64 [out]: the outputs in this order."""
        bias = self.vector(name + "_bias").numpy()
        order = np.arange(bias.shape[1]) if rows is None else rows
        experts = _core.ExpertWeights(len(bias))
        for i in range(len(bias)):
            one = self._fused_expert(name, i, order, bool(activation))
            self._set_expert(experts, i, one, name)
        return ExpertLinear(experts, _core.Tensor.from_numpy(bias[:, order]), activation, one)

    def _fused_expert(self, name: str, i: int, order: np.ndarray, gated: bool) -> Weight:
        if name in self.shapes:
            one = self.checkpoint.load_rows(name, self.shapes[name], i, i + 1)
            return self._rounded(_core.Tensor.from_numpy(one.numpy()[0].T[order], one.dtype), name, gated)
        blocks, scales = (self.checkpoint.raw_rows(name + part, i, i + 1)[0] for part in ("_blocks", "_scales"))
        try:
            codes = mxfp4.codes(blocks[order], scales[order])
        except ValueError as error:
            raise BadFileError(f"{shown_path(self.checkpoint.folder)}: tensor {shown(name, 200)}: expert {i}: {error}") from None
        if self._format is not None:
            return self._rounded(_core.Tensor.from_numpy(codes.dequantize()), name, gated)
        try:
            return codes.pack(gated)
        except MemoryError:
            raise self._no_memory(name) from None

    def vector(self, name: str) -> Tensor:
        """A tensor of few numbers as f32."""
        return self.checkpoint.load_f32(name, self.shapes[name])

    def _set_expert(self, experts: _core.ExpertWeights, i: int, weight: Weight, name: str) -> None:
        if isinstance(weight, Ordered):
            raise BadFileError(f"{shown_path(self.checkpoint.folder)}: tensor {shown(name, 200)} is in GPTQ's activation order, which "
                               "experts cannot be in; take a model quantized without desc_act")
        try:
            experts.set(i, weight)
        except ValueError:
            raise BadFileError(f"{shown_path(self.checkpoint.folder)}: tensor {shown(name, 200)} has another type than those of "
                               "the experts before it; all experts of a layer must have one") from None
        except MemoryError:
            raise self._no_memory(name) from None

    def linear_transposed(self, name: str) -> Linear:
        """A linear whose file holds [in, out] (GPT-2's Conv1D)."""
        weight = name + ".weight"
        codes = self._codes([weight], transposed=True)
        if codes is None:
            codes = self._rounded(self.checkpoint.load_transposed(weight, self.shapes[weight]), weight)
        return Linear(codes, self._biases([name]))

    def embedding(self, name: str) -> Embedding:
        """The table of token embeddings, which may be the head as well."""
        weight = self._weight([name])
        if isinstance(weight, Ordered):  # rows are looked up
            weight = self.checkpoint.load(name + ".weight", self.shapes[name + ".weight"])
        return Embedding(weight)

    def position_embedding(self, name: str) -> Embedding:
        return Embedding(self.checkpoint.load(name + ".weight", self.shapes[name + ".weight"]))

    def rms_norm(self, name: str, eps: float, plus_one: bool = False) -> RMSNorm:
        """plus_one: the file holds the weight less one (Gemma)."""
        weight = self.vector(name + ".weight")
        return RMSNorm(_core.Tensor.from_numpy(weight.numpy() + np.float32(1)) if plus_one else weight, eps)

    def layer_norm(self, name: str, eps: float) -> LayerNorm:
        """With the bias if the model's table lists one."""
        bias = name + ".bias"
        return LayerNorm(self.vector(name + ".weight"), self.vector(bias) if bias in self.shapes else None, eps)

    def layer_norm_heads(self, names: Sequence[str], eps: float) -> LayerNorm:
        """A weight for each head, [heads, width]: a tensor for each name."""
        weights = [self.vector(name + ".weight").numpy() for name in names]
        return LayerNorm(_core.Tensor.from_numpy(np.stack(weights)), None, eps)

    def head(self, name: str, embedding: Embedding) -> Linear:
        """The output layer: `name` where the table lists it, else the embedding's own weight (tied, Press and Wolf
        2017, arXiv:1608.05859). A tied model whose file holds a head all the same, and a different one, keeps it, as
        transformers does."""
        weight = name + ".weight"
        if weight not in self.shapes and weight not in self.checkpoint:
            return Linear(embedding.weight)
        self.shapes = dict(self.shapes) | {weight: embedding.weight.shape}
        head = self._weight([name])
        return Linear(embedding.weight if _same(head, embedding.weight) else head, self._biases([name]))

    def _parts(self, names: Sequence[str], gated: bool = False, rows: Optional[np.ndarray] = None
               ) -> Union[Weight, tuple[Weight, ...]]:
        """The matrices one under another; where the checkpoint has them in forms that differ, one weight for each form and
        run of names, each multiplied as it is."""
        stored = [self.checkpoint.quantized.get(name + ".weight") for name in names]
        runs = [[name for name, _ in run] for _, run in groupby(zip(names, stored), lambda pair: pair[1] and pair[1].format)]
        ordered = any(s is not None and s.order is not None for s in stored)
        if len(runs) == 1 or self._format is not None or rows is not None or ordered:
            return self._weight(names, gated, rows)
        return tuple(self._weight(run) for run in runs)

    def _weight(self, names: Sequence[str], gated: bool = False, rows: Optional[np.ndarray] = None) -> Weight:
        """The matrices one under another."""
        weights = [name + ".weight" for name in names]
        codes = self._codes(weights, gated, rows=rows)
        if codes is not None:
            return codes
        if len(names) == 1:
            weight = self.checkpoint.load(weights[0], self.shapes[weights[0]])
        else:
            weight = self.checkpoint.load_concat(weights, [self.shapes[w] for w in weights])
        if rows is not None:
            weight = _core.Tensor.from_numpy(weight.numpy()[rows], weight.dtype)
        return self._rounded(weight, weights[0], gated)

    def _idle(self, name: str) -> bool:
        """Whether a tensor beside codes changes nothing: a bias of zeros, which GPTQ's writers put at every matrix, or a
        scale for activations that are rounded otherwise here."""
        if name.endswith(self.ACTIVATION_SCALES):
            return bool(self.checkpoint.quantized)
        matrix = name.removesuffix(".bias") + ".weight"
        return name.endswith(".bias") and matrix in self.checkpoint.quantized \
            and not self.checkpoint.load_f32(name, self.checkpoint.tensors[name].shape).numpy().any()

    def _widen(self, names: Sequence[str], reason: str) -> None:
        for name in names:
            self.checkpoint.widened[name] = reason

    def _codes(self, names: Sequence[str], gated: bool = False, transposed: bool = False,
               rows: Optional[np.ndarray] = None) -> Optional[Weight]:
        """Matrices that the checkpoint has in codes of one format, packed as they are; None for any others."""
        stored = [self.checkpoint.quantized.get(name) for name in names]
        if self._format is not None or not all(s and s.format for s in stored):
            return None
        if len({(s.format, s.shape[1]) for s in stored}) > 1:
            return self._widen(names, "formats that differ within a product")
        if not all(same_order(s.order, stored[0].order) for s in stored):
            return self._widen(names, "activation orders that differ within a product")
        shapes = [self.shapes[name][:: -1 if transposed else 1] for name in names]
        try:
            if rows is None and stored[0].pack and len({(s.format, s.label) for s in stored}) == 1:
                return stored[0].pack(self.checkpoint.packed_parts(names, shapes), gated)
            found = [self.checkpoint.rows_to_run(name, shape, 0, shape[0]) for name, shape in zip(names, shapes)]
            if any(isinstance(codes, np.ndarray) for codes in found):
                return self._widen(names, "scales that float16 has not")
            codes = Codes.stack(found)
            packed = (codes if rows is None else codes.take(rows)).pack(gated)
            return packed if codes.order is None else Ordered(packed, _core.Tensor.from_numpy(codes.order))
        except ValueError as error:
            raise BadFileError(f"{shown_path(self.checkpoint.folder)}: tensor {shown(names[0], 200)}: {error}") from None
        except MemoryError:
            raise self._no_memory(names[0]) from None

    def _no_memory(self, name: str) -> ResourceError:
        return ResourceError(f"{shown_path(self.checkpoint.folder)}: no memory to pack tensor {shown(name, 200)}; "
                             "take a smaller model or free memory")

    def _rounded(self, weight: Tensor, name: str, gated: bool = False) -> Weight:
        if self._format is None:
            return weight
        try:
            return _core.quantize_weight(weight, self._format, gated)
        except MemoryError:
            raise self._no_memory(name) from None

    def _biases(self, names: Sequence[str], rows: Optional[np.ndarray] = None) -> Optional[Tensor]:
        biases = [name + ".bias" for name in names]
        if not any(bias in self.shapes for bias in biases):
            return None
        bias = self.checkpoint.load_concat(biases, [self.shapes[bias] for bias in biases], f32=True)
        return bias if rows is None else _core.Tensor.from_numpy(bias.numpy()[rows])


def _same(a: Weight, b: Weight) -> bool:
    """Whether two weights hold the same bytes in the same form."""
    if type(a) is not type(b):
        return False
    if isinstance(a, _core.PackedWeight):
        a, b = a.panels, b.panels
    return a.dtype == b.dtype and np.array_equal(np.frombuffer(a.bytes(), np.uint8), np.frombuffer(b.bytes(), np.uint8))
