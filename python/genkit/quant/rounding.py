"""Each weight by itself to codes: to nearest, or after a search for the scales that keep a weighted error least."""

from __future__ import annotations

from typing import Optional, Union

import numpy as np

from genkit import _core
from genkit.quant.codes import Codes
from genkit.quant.formats import Format


def round_matrix(weight: Union[np.ndarray, _core.Tensor], format: Format, search: bool,
                 importance: Optional[np.ndarray] = None) -> Codes:
    """weight float32 [n, k], or a tensor f32|f16|bf16; importance float32 [k]: what a squared error of that input counts,
    with search only. A row with a NaN or an infinity gets NaN scales. Raises ValueError for int8 with zeros."""
    if isinstance(weight, np.ndarray):
        weight = _core.Tensor.from_numpy(np.ascontiguousarray(weight, np.float32))
    wanted = None if importance is None else _core.Tensor.from_numpy(np.ascontiguousarray(importance, np.float32))
    made = _core.round_weight(weight, format.core(), search, wanted)
    codes, scales, subscales, minima, zeros = [None if part is None else part.numpy() for part in made]
    if format.zero == "real":
        zeros = zeros.view(np.uint16)
    return Codes(format, weight.shape[1], codes, scales.view(np.uint16), subscales, minima, zeros)
