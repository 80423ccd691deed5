"""MXFP4 (OCP Microscaling Formats 1.0, 2023) as gpt-oss' folders hold their experts: X_blocks U8 [experts, n, k / 32, 16], of
two neighbours along k the first in the low nibble; X_scales U8 [experts, n, k / 32]. w = VALUES[nibble] * 2^(scale - 127).
All else in such a folder is floats. quant_method is "mxfp4".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping

import numpy as np

from genkit.quant.codes import Codes, depth_of, groups_of
from genkit.quant.formats import Format

if TYPE_CHECKING:
    from genkit.checkpoints.config import Fields
    from genkit.checkpoints.quantized import Read, Stored
    from genkit.checkpoints.safetensors import TensorInfo

GROUP = 32
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
FORMAT = Format("int8", GROUP, "none", "bf16")


def find(fields: "Fields", tensors: "Mapping[str, TensorInfo]", read: "Read") -> "dict[str, Stored]":
    """No matrices: the model reads its experts itself, all of a layer from one tensor."""
    return {}


def codes(blocks: np.ndarray, scales: np.ndarray) -> Codes:
    """Of one expert, blocks u8 [n, k / 32, 16], scales u8 [n, k / 32]: twice VALUES as codes, half the scale. Raises ValueError
    for a scale that is NaN."""
    if (scales == 255).any():
        raise ValueError("a scale of 255, which is NaN")
    n, groups = scales.shape
    k = groups * GROUP
    found = Codes(FORMAT, k, np.zeros((n, depth_of(k)), np.int8), np.zeros((n, groups_of(k, GROUP)), np.uint16))
    doubled = (2 * VALUES).astype(np.int8)
    pairs = np.stack([doubled[blocks & 15], doubled[blocks >> 4]], -1)
    found.codes[:, :k] = pairs.reshape(n, k)
    # 2^(scale - 128) as bf16: exponent scale - 1, and below 1 what a denormal has.
    exponents = scales.astype(np.uint16)
    found.scales[:, :groups] = np.where(exponents > 1, (exponents - 1) << 7, 0x20 << exponents)
    return found
