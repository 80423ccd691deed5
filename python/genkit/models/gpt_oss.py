"""gpt-oss (OpenAI 2025, arXiv:2508.10925): attention with a sink in every head's softmax, a window on every other layer, and
experts with biases on all layers. A layer's experts lie in one tensor, gates and ups in turn: as floats [experts, in, out], or
in MXFP4 (checkpoints/mxfp4.py), which runs as int8 groups of 32, to the same numbers. In GGUF each lies for itself.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.checkpoints import mxfp4
from genkit.models import decoder
from genkit.models.config import read_experts
from genkit.models.decoder import (DecoderConfig, Layer, Shapes, folds, layers_prefix,  # noqa: F401 some offered here too
                                   output, read_inner, read_sizes, read_window, separate_qkv)
from genkit.models.sparse import mlp_shapes
from genkit.moe import Router, SparseMLP
from genkit.nn import Weights
from genkit.rope import read_rope

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.safetensors import Checkpoint

PARTS = ("gate_proj", "up_proj", "down_proj")
SINKS = "self_attn.sinks"
YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096}  # of files without rope settings


@dataclass(frozen=True)
class Experts:
    """A layer's router and experts."""

    width: int
    inner: int
    experts: int
    chosen: int
    form: str  # "fused", "mxfp4" or "apart"

    def shapes(self, layer: str) -> Shapes:
        found: Shapes = {f"{layer}mlp.router.weight": (self.experts, self.width), f"{layer}mlp.router.bias": (self.experts,)}
        if self.form == "apart":
            for e in range(self.experts):
                found |= mlp_shapes(f"{layer}mlp.experts.{e}.", PARTS, self.width, self.inner)
                for part, outputs in zip(PARTS, (self.inner, self.inner, self.width)):
                    found[f"{layer}mlp.experts.{e}.{part}.bias"] = (outputs,)
            return found
        for name, inputs, outputs in ((f"{layer}mlp.experts.gate_up_proj", self.width, 2 * self.inner),
                                      (f"{layer}mlp.experts.down_proj", self.inner, self.width)):
            found[name + "_bias"] = (self.experts, outputs)
            if self.form == "mxfp4":
                found[name + "_blocks"] = (self.experts, outputs, inputs // mxfp4.GROUP, mxfp4.GROUP // 2)
                found[name + "_scales"] = (self.experts, outputs, inputs // mxfp4.GROUP)
            else:
                found[name] = (self.experts, inputs, outputs)
        return found

    def build(self, weights: Weights, layer: str) -> Any:
        router = Router(weights.router(layer + "mlp.router"), self.chosen, scoring="softmax_chosen")
        if self.form == "apart":
            gate, up, down = ([f"{layer}mlp.experts.{e}.{part}" for e in range(self.experts)] for part in PARTS)
            return SparseMLP(router, weights.expert_linear(list(zip(gate, up)), "swiglu_oai"),
                             weights.expert_linear([(name,) for name in down]))
        gates_then_ups = np.concatenate([np.arange(0, 2 * self.inner, 2), np.arange(1, 2 * self.inner, 2)])
        return SparseMLP(router, weights.fused_experts(layer + "mlp.experts.gate_up_proj", gates_then_ups, "swiglu_oai"),
                         weights.fused_experts(layer + "mlp.experts.down_proj"))


def tensor_shapes(c: DecoderConfig) -> Shapes:
    return decoder.tensor_shapes(c) | {f"{c.layers_name}{i}.{SINKS}": (c.heads,) for i in range(c.layers)}


class Block(decoder.Block):
    def __init__(self, c: DecoderConfig, weights: Weights, i: int) -> None:
        super().__init__(c, weights, i)
        self.attention.options["sinks"] = weights.vector(f"{c.layers_name}{i}.{SINKS}")


class Model(decoder.Decoder):
    def block(self, i: int) -> Block:
        return Block(self.config, self._weights, i)


def read_config(fields: "Fields", checkpoint: "Checkpoint") -> DecoderConfig:
    for key, value in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if fields.number(key, 0.0, 1e6, default=value) != value:
            raise fields.error(key, f"{value}, the one the kernels are made for")
    fields.string("hidden_act", ["silu"], "silu")
    sizes = read_sizes(fields.filled(head_dim=64), checkpoint)
    if fields.optional("rope_parameters") is None and fields.optional("rope_scaling") is None:
        fields = fields.filled(rope_parameters=YARN)
    rope = read_rope(fields, sizes["head_dim"], sizes["max_positions"])
    bias, window = fields.boolean("attention_bias", default=True), read_window(fields, default=128)
    experts = read_experts(fields, "num_local_experts", sizes["layers"])
    inner, first = read_inner(fields), "model.layers.0.mlp.experts."
    form = "mxfp4" if first + "gate_up_proj_blocks" in checkpoint else "apart" if first + "0.gate_proj.weight" in checkpoint else "fused"
    if form == "mxfp4" and (inner % mxfp4.GROUP or sizes["hidden_size"] % mxfp4.GROUP):
        raise fields.error("intermediate_size", f"a multiple of {mxfp4.GROUP}, as hidden_size: MXFP4 has groups of so many")
    mlp = Experts(sizes["hidden_size"], inner, experts, fields.integer("num_experts_per_tok", 1, experts, default=4), form)
    layer = [Layer(separate_qkv(sizes, bias), output(sizes, bias), mlp, window=window if sliding else 0)
             for sliding in decoder.read_sliding(fields, sizes["layers"], pattern=2)]
    return DecoderConfig(**sizes | {"max_positions": rope.max_positions}, layer=tuple(layer), ropes=(rope,), norm="rms",
                         norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-5),
                         tied=fields.boolean("tie_word_embeddings", default=False))
