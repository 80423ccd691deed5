"""What every model tells the engine about itself, and the readers of config.json that the model files share."""

from dataclasses import dataclass

from genkit.checkpoints.config import Fields
from genkit.nn import ACTIVATIONS

# Bounds no published model comes near: what is beyond them is a damaged file, found before anything is allocated.
MAX_VOCAB = 2**24
MAX_WIDTH = 2**20
MAX_LAYERS = 2**12
MAX_HEADS = 2**12
MAX_EXPERTS = 2**10  # what the core routes to
MAX_ALL_EXPERTS = 2**16  # of all layers: their names are made before the file is looked at
MAX_HEAD_DIM = 512  # the attention kernels' limit
MAX_POSITIONS = 2**30


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a decoder-only transformer: what the engine needs to make a cache and to check its input."""

    model_type: str
    vocab_size: int  # rows of the embedding, so also the width of the logits
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int  # longest sequence the model is made for, in tokens
    weight_bytes: int  # of the checkpoint as stored

    @property
    def fresh_keys_beyond(self) -> int:
        """The length at which a growing context outgrows its keys: one longer needs all of them anew. 0: never."""
        return 0

    def varies(self, longest: int) -> bool:
        """Whether the same token at the same place is another in contexts of other lengths, up to `longest` tokens."""
        return False


@dataclass(frozen=True)
class Fold:
    """Where the inputs of a product can be scaled without a cost: by the norm that makes them (its weight, and a bias), or by
    the rows of the matrix that does. What AWQ does is told so by each model (quant/awq.py)."""

    consumers: tuple[str, ...]  # the product's matrices
    norm: str = ""
    norm_bias: str = ""
    rows: str = ""
    offset: float = 0.0  # what the norm adds to its weight


def read_experts(fields: Fields, key: str, layers: int) -> int:
    """How many experts a layer has."""
    return fields.integer(key, 1, min(MAX_EXPERTS, MAX_ALL_EXPERTS // layers))


def activation(fields: Fields, key: str, default: str) -> str:
    """The core's name of the activation config.json names."""
    return ACTIVATIONS[fields.string(key, sorted(ACTIVATIONS), default)]


def check_multiple(fields: Fields, key: str, value: int, of_key: str, of: int) -> None:
    """Raises BadFileError unless value is a multiple of `of`."""
    if value % of:
        raise fields.error(key, f"a multiple of {of_key}, {of}")
