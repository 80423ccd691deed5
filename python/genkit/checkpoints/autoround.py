"""AutoRound's own quant_method: the arrays are GPTQ's or AWQ's, as packing_format says; symmetric scales may be negative."""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping

from genkit.checkpoints import awq, gptq
from genkit.checkpoints.config import Fields
from genkit.checkpoints.parts import FLOAT, OTHERS
from genkit.checkpoints.quantized import Read, Stored

if TYPE_CHECKING:
    from genkit.checkpoints.safetensors import TensorInfo

# What follows "auto_round:" in packing_format -> what is missing from the zeros of GPTQ's arrays. Which of the kernels
# that read zeros as they are the file was made for does not matter.
GPTQ = {"auto_gptq": 1, "gptq": 1, "": 0, "gptqmodel": 0, "exllamav2": 0, "tritonv2": 0}
AWQ = ("auto_awq", "awq")


def find(fields: Fields, tensors: "Mapping[str, TensorInfo]", read: Read) -> dict[str, Stored]:
    """Raises BadFileError for other packings and data types, by name, and for arrays that are not as they should be."""
    quantization = fields.object("quantization_config")
    quantization.string("data_type", ("int", "int_sym", "int_asym"), "int")
    if quantization.integer("act_bits", 1, 32, 16) < 16:
        raise quantization.error("act_bits", f"16; {OTHERS}")
    if quantization.optional("rotation_config"):
        raise quantization.error("rotation_config", f"nothing: this is not supported. {FLOAT}")
    packing = quantization.string("packing_format", None, "auto_round:auto_gptq")
    start, _, kind = packing.partition(":")
    kind = kind.partition(":")[0]
    if start != "auto_round" or kind not in (*GPTQ, *AWQ):
        raise quantization.error("packing_format", f"auto_round with auto_gptq, auto_awq or nothing; {OTHERS}")
    # Layers with settings of their own: their bits and groups follow from the arrays, zeros are not known to be the middle.
    own = quantization.object("extra_config")
    uneven = own is not None and any(isinstance(entry, dict) and entry.get("sym") is False for entry in own.raw.values())
    symmetric = quantization.boolean("sym", True) and not uneven
    if kind in AWQ:
        return awq.linears(quantization, tensors, symmetric)
    return gptq.linears(quantization, tensors, read, symmetric, GPTQ[kind])
