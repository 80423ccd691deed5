"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): Llama with an RMSNorm over all of the queries, and of the keys, and
64 experts on every layer."""

from typing import TYPE_CHECKING

from genkit.models import sparse
from genkit.models.llama import llama_config
from genkit.models.sparse import Model, SparseConfig, folds, layers_prefix, sparse_config  # noqa: F401 offered here too

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint


def tensor_shapes(c: SparseConfig) -> dict[str, tuple[int, ...]]:
    shapes = sparse.tensor_shapes(c)
    for i in range(c.layers):
        shapes[f"model.layers.{i}.self_attn.q_norm.weight"] = (c.heads * c.head_dim,)
        shapes[f"model.layers.{i}.self_attn.k_norm.weight"] = (c.kv_heads * c.head_dim,)
    return shapes


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> SparseConfig:
    if fields.optional("clip_qkv") is not None:
        raise fields.error("clip_qkv", "null: values of queries, keys and values are not cut off here")
    base = llama_config(fields, checkpoint, mlp_bias=False, qk_norm=True)
    return sparse_config(base, fields, "num_experts", expert_size=base.intermediate_size,
                         normalize=fields.boolean("norm_topk_prob", default=False))
