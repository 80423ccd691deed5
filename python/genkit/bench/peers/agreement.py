"""Whether a peer computes what genkit computes, from the same prompts, before anything is said about speed.

A peer that gives logits is judged by them: error = |peer - ours| / |ours| over all prompts, logits counted from their mean,
which softmax does not see. One that gives tokens only is judged by where its token stands among our logits: regret = our
largest logit less that of its token, in standard deviations of the logits, a mean over prompts. A token that ties with ours
costs next to nothing, one drawn blindly about four. Ours are of the very file it reads where genkit reads it, else of the
model as it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np

from genkit.bench.peers.engines import Engine
from genkit.bench.peers.workloads import random_ids

PROMPTS, LENGTH = 16, 32  # tokens each


def prompts(vocabulary: int, longest: int) -> list[list[int]]:
    """longest: that the model was made for."""
    return [random_ids(max(1, min(LENGTH, longest - 1)), vocabulary, 1000 + i) for i in range(PROMPTS)]


@dataclass(frozen=True)
class Bound:
    error: float  # of logits
    regret: float  # of tokens, standard deviations
    what: str


# Measured, on the default model and on random weights of llama-3.2-1b's shape: floats 0.003 to 0.03 and codes 0.016 to 0.08 (each
# engine rounds activations in its own way), other eight bits 0.02 to 0.12, other four 0.1 to 0.67.
FLOATS, CODES = Bound(0.05, 0.05, "the same floats"), Bound(0.12, 0.12, "the same codes")
OTHERS = {"int8": Bound(0.2, 0.2, "8 bits rounded in another way"), "int4": Bound(0.9, 1.5, "4 bits rounded in another way")}


def bound_of(engine: Engine) -> Bound:
    if not engine.same:
        return OTHERS[engine.type]
    return CODES if engine.type in OTHERS else FLOATS


def compare(ours: np.ndarray, theirs: np.ndarray | Sequence[int], bound: Bound) -> dict[str, Any]:
    """What was found, of ours [prompts, vocabulary] and their logits or tokens: prompts, same_tokens (of the likeliest), bound,
    agrees, and error or regret."""
    ours = ours.astype(np.float64) - ours.mean(-1, keepdims=True, dtype=np.float64)
    if isinstance(theirs, np.ndarray):
        if theirs.shape != ours.shape:
            raise ValueError(f"logits of shape {theirs.shape}, and {ours.shape} were asked for")
        theirs = theirs.astype(np.float64) - theirs.mean(-1, keepdims=True, dtype=np.float64)
        tokens = theirs.argmax(-1)
        measure, found, most = "error", float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours)), bound.error
    else:
        tokens = np.array(theirs)
        if tokens.shape != ours.shape[:1] or tokens.min() < 0 or tokens.max() >= ours.shape[1]:
            raise ValueError(f"tokens {theirs!r}, and one for each of {len(ours)} prompts was asked for")
        regrets = (ours.max(-1) - ours[np.arange(len(ours)), tokens]) / ours.std(-1)
        measure, found, most = "regret", float(regrets.mean()), bound.regret
    return {"prompts": len(ours), "same_tokens": int((tokens == ours.argmax(-1)).sum()), measure: found, "bound": most,
            "expected": bound.what, "agrees": bool(found <= most)}  # NaN does not


def words(found: dict[str, Any]) -> str:
    """For people, one line."""
    if "error" in found:
        text = f"logits differ by {found['error']:.2g} of ours"
    else:
        text = f"tokens lie {found['regret']:.2g} deviations below our best"
    return (f"{text} (bound {found['bound']:g}, {found['expected']}), "
            f"{found['same_tokens']} of {found['prompts']} first tokens are the same")
