"""What a loaded model has to do for a token at the least: bytes to read, operations to make. Found in the model's own
layers, so that it holds for every architecture and every form of weights.

Counted are matrices with their biases, the rows of tables, and keys and values; norms, activations and what is written are
a few thousandths of that. A multiplication and the addition that follows are two operations.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Iterable, Iterator

from genkit import _core
from genkit.batch import PREFILL_CHUNK
from genkit.kv_cache import PAGE_KEYS, page_bytes
from genkit.models.deepseek_v3 import LatentAttention
from genkit.moe import SparseMLP
from genkit.nn import Attention, Embedding, ExpertLinear, GatedLinear, Linear

if TYPE_CHECKING:
    from genkit.models import Model

# What arithmetic a dense weight is multiplied in: of 16 bits only bfloat16 has products of its own.
DENSE = {"bf16": "bf16", "f16": "f32", "f32": "f32"}
# And keys and values: int8 codes are made bfloat16.
ATTENTION = {"bf16": "bf16", "int8": "bf16", "f16": "f32", "f32": "f32"}


@dataclass(frozen=True)
class Product:
    """Of x with a matrix. Of `experts` matrices, where there are several, a row goes to `chosen`; nbytes and operations
    (of one row) are then one's."""

    nbytes: int
    operations: int
    kind: str  # of arithmetic: "int8", "bf16", "f32"
    experts: int = 1
    chosen: int = 1

    def read(self, rows: int) -> float:
        """Bytes of weights that so many rows read at the least: of experts those expected to be chosen by some row, were all
        equally likely: experts (1 - (1 - chosen / experts) ** rows)."""
        if not rows:
            return 0.0
        return self.nbytes * self.experts * (1 - (1 - self.chosen / self.experts) ** rows)


@dataclass(frozen=True)
class Attended:
    """Attention of a layer: bytes of a key and its value, operations with them for one query, the keys it sees (0: all)."""

    nbytes: float
    operations: int
    window: int

    def visible(self, keys: int) -> int:
        """Of so many keys up to a query's own, those it sees."""
        return min(keys, self.window) if self.window else keys

    def seen(self, begin: int, end: int) -> int:
        """Keys that the queries at positions begin to end - 1 see, added up."""
        return self._seen(end) - self._seen(begin)

    def _seen(self, end: int) -> int:
        full = self.visible(end)
        return full * (full + 1) // 2 + (end - full) * self.window


@dataclass
class Cost:
    """Bytes read and operations by kind of arithmetic."""

    nbytes: float = 0.0
    operations: "Counter[str]" = field(default_factory=Counter)

    def add(self, other: "Cost") -> None:
        self.nbytes += other.nbytes
        self.operations.update(other.operations)

    def times(self, count: int) -> "Cost":
        return Cost(self.nbytes * count, Counter({kind: number * count for kind, number in self.operations.items()}))

    def counted_as(self, kind: str, other: str) -> "Cost":
        """The operations of a kind counted as those of another."""
        operations = Counter(self.operations)
        operations[other] += operations.pop(kind, 0)
        return Cost(self.nbytes, operations)

    @property
    def kind(self) -> str:
        """The arithmetic most operations are of."""
        return self.operations.most_common(1)[0][0]

    def floor(self, read: float, peaks: "dict[str, float]") -> "tuple[float, str]":
        """(seconds it takes at the least, what bounds it: "read" or a kind) where `read` bytes and `peaks` operations a
        second are the machine's limits: the roofline (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785).
        Kinds without a peak are left out."""
        reading = self.nbytes / read
        computing = sum(self.operations[kind] / peak for kind, peak in peaks.items())
        return (reading, "read") if reading >= computing else (computing, self.kind)


@dataclass(frozen=True)
class Work:
    products: "tuple[Product, ...]"  # of the layers
    head: Product
    rows: int  # bytes of the rows of tables that one token looks up
    attention: "tuple[Attended, ...]"
    attention_kind: str
    weight_bytes: int  # of all weights in memory

    @property
    def kv_bytes(self) -> float:
        """Of one position in the cache, over all layers."""
        return sum(layer.nbytes for layer in self.attention)

    @property
    def bytes_per_token(self) -> float:
        """Of weights, for one token alone."""
        return sum(product.read(1) for product in (*self.products, self.head)) + self.rows

    @property
    def operations_per_token(self) -> int:
        """With weights, for one token: 2 for each weight it is multiplied by."""
        return sum(product.operations * product.chosen for product in (*self.products, self.head))

    def weights(self, rows: int, logits: int) -> Cost:
        """Of one pass of so many rows, `logits` of them wanted, without attention."""
        cost = Cost(rows * self.rows)
        for product, count in (*((product, rows) for product in self.products), (self.head, logits)):
            cost.nbytes += product.read(count)
            cost.operations[product.kind] += product.operations * product.chosen * count
        return cost

    def prompt(self, sequences: int, fed: int, tokens: int) -> Cost:
        """Of prompts of so many tokens after `fed` in the cache, that go through one after the other, in chunks, logits
        after the last token only (batch.prefill)."""
        cost = Cost()
        for begin in range(fed, fed + tokens, PREFILL_CHUNK):
            new = min(PREFILL_CHUNK, fed + tokens - begin)
            cost.add(self.weights(new, int(begin + new == fed + tokens)))
            for layer in self.attention:  # a key that several queries see is read once
                cost.nbytes += (layer.visible(begin + 1) + new - 1) * layer.nbytes
                cost.operations[self.attention_kind] += layer.seen(begin, begin + new) * layer.operations
        return cost.times(sequences)

    def decode(self, sequences: int, fed: int, tokens: int, together: bool = True) -> Cost:
        """Of so many tokens each, one a step, after `fed` in the cache; together: a step is of all sequences."""
        cost = self.weights(sequences, sequences) if together else self.weights(1, 1).times(sequences)
        cost = cost.times(tokens)
        for layer in self.attention:
            seen = sequences * layer.seen(fed, fed + tokens)
            cost.nbytes += seen * layer.nbytes
            cost.operations[self.attention_kind] += seen * layer.operations
        return cost


def work(model: "Model", kv_type: str) -> Work:
    """Of what models.load_model gives, with keys and values of a type of KV_TYPES."""
    products: "list[Product]" = []
    attention: "list[Attended]" = []
    head, rows, tables = None, 0, 0
    for part in parts(model):
        if isinstance(part, Embedding):
            rows += part.weight.nbytes // part.weight.shape[0]
            tables += part.weight.nbytes
        elif isinstance(part, (Attention, LatentAttention)):
            attention.append(_attended(part, kv_type))
        elif isinstance(part, SparseMLP):
            products += [_experts(linear, part.router.k) for linear in (part.gate_up, part.down)]
        elif part is model.head:
            head = _merged(list(_products(part)))
        elif isinstance(part, (Linear, GatedLinear)):
            products += _products(part)
    own = 0 if model.head.weight is model.embedding.weight else head.nbytes  # tied: the table's own
    total = sum(product.nbytes * product.experts for product in products) + own + tables
    return Work(tuple(products), head, rows, tuple(attention), ATTENTION[kv_type], total)


def parts(value: Any) -> "Iterator[Any]":
    """The layers of a model, each before those it is made of. Attributes whose names begin with _ are none of them."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from parts(one)
    elif type(value).__module__.startswith("genkit.") and hasattr(value, "__dict__"):
        yield value
        for name, inner in vars(value).items():
            if not name.startswith("_") and name != "config":
                yield from parts(inner)


def _products(linear: "Linear | GatedLinear") -> "Iterable[Product]":
    bias = 0 if linear.bias is None else linear.bias.nbytes
    for weight in linear.weight if isinstance(linear.weight, tuple) else (linear.weight,):
        kind = "int8" if isinstance(weight, _core.PackedWeight) else DENSE[weight.dtype]
        yield Product(weight.nbytes + bias, 2 * weight.shape[0] * weight.shape[1], kind)
        bias = 0


def _merged(products: "list[Product]") -> Product:
    return Product(sum(one.nbytes for one in products), sum(one.operations for one in products), products[0].kind)


def _experts(linear: ExpertLinear, chosen: int) -> Product:
    experts, outputs, inputs = linear.weights.shape
    bias = 0 if linear.bias is None else linear.bias.nbytes // experts
    kind = "int8" if linear.weights.packed else DENSE[linear.dtype]
    return Product(linear.nbytes + bias, 2 * outputs * inputs, kind, experts, chosen)


def _attended(layer: "Attention | LatentAttention", kv_type: str) -> Attended:
    if isinstance(layer, LatentAttention):  # every head has a key, and its value is as wide in the cache
        heads = kv_heads = layer.size.heads
        head_dim, window = layer.size.rotated + layer.size.others, 0
    else:
        head_dim, window = layer.head_dim, layer.window
        heads, kv_heads = layer.keys_at // head_dim, (layer.values_at - layer.keys_at) // head_dim
    return Attended(page_bytes(1, kv_heads, head_dim, kv_type) / PAGE_KEYS, 4 * heads * head_dim, window)
