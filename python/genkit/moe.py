"""Mixture of experts (Shazeer et al. 2017, arXiv:1701.06538): of many MLPs a router picks a few for every row.

Which rows an expert gets is found out inside the kernels (cpp/experts.h), so that a recorded step can be replayed.
"""

from typing import Optional

from genkit import _core
from genkit.nn import ExpertLinear, GatedMLP, Linear, Tensor


class Router:
    """x [n, in] -> where the rows of each expert lie, and weights [n, k] of each row's, by a linear over experts in float32:
    what is rounded here sends rows elsewhere. scoring, correction and groups: RouteArgs in cpp/experts.h."""

    def __init__(self, linear: Linear, k: int, *, scoring: str = "softmax", correction: Optional[Tensor] = None,
                 groups: int = 1, groups_kept: int = 1, normalize: bool = False, scale: float = 1.0) -> None:
        self.linear = linear
        self.k = k
        self.options = dict(scoring=scoring, correction=correction, groups=groups, groups_kept=groups_kept,
                            normalize=normalize, scale=scale)

    def __call__(self, x: Tensor) -> tuple[_core.Groups, Tensor]:
        logits = self.linear(x)
        ids, weights = _core.route(logits, self.k, **self.options)
        return _core.group_rows(ids, logits.shape[1]), weights


class SparseMLP:
    """sum_j weight_j * down_j(f(gate_j(x)) * up_j(x)) over the experts j the router picks, + residual; and a shared expert
    that every row goes to, times sigmoid(shared_gate(x)) where there is one (Qwen2-MoE)."""

    def __init__(self, router: Router, gate_up: ExpertLinear, down: ExpertLinear, shared: Optional[GatedMLP] = None,
                 shared_gate: Optional[Linear] = None) -> None:
        self.router = router
        self.gate_up = gate_up
        self.down = down
        self.shared = shared
        self.shared_gate = shared_gate

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        groups, weights = self.router(x)
        mixed = self.down(self.gate_up(_core.gather_rows(x, groups), groups), groups)
        out = _core.combine(mixed, weights, groups, residual)
        if self.shared is None:
            return out
        if self.shared_gate is None:
            return self.shared(x, out)
        _, share = _core.route(self.shared_gate(x), 1, "sigmoid")
        return _core.combine(self.shared(x, None), share, None, out)
