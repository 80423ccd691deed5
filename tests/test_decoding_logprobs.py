"""--logprobs: the model's own distribution, whatever the sampler makes of it."""

import math

import numpy as np
import pytest

from genkit import _core
from genkit.decoding.logprobs import RawLogprobs, check_count
from genkit.decoding.sampling import Sampler, SamplingSettings
from genkit.errors import UsageError


@pytest.mark.parametrize("count", [0, 1, 5, 113])
def test_against_float64(count):
    logits = np.random.default_rng(count).normal(0, 4, (7, 113)).astype(np.float32)
    logits[3] = np.round(logits[3])  # ties
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1, keepdims=True)) + exact.max(1, keepdims=True)
    tensor = _core.Tensor.from_numpy(logits)
    raw = RawLogprobs(tensor, count)
    # The sampler changes the logits afterwards: what was taken before must not move.
    settings = SamplingSettings(temperature=0.5, top_k=3, logit_bias={5: 9.0, 6: -math.inf}, repeat_penalty=1.5, seed=3)
    sampler = Sampler(settings, 113)
    tokens = sampler.next(tensor, [sampler.history([1, 2, 3]) for _ in range(7)], range(7), range(7))
    entries = raw.entries(tokens, lambda token: f"<{token}>")
    for row, (token, entry) in enumerate(zip(tokens, entries, strict=True)):
        assert entry["id"] == token and entry["token"] == f"<{token}>"
        assert entry["logprob"] == pytest.approx(exact[row, token], abs=1e-5)
        order = sorted(range(113), key=lambda i: (-logits[row, i], i))[:count]
        assert [top["id"] for top in entry["top"]] == order
        for top in entry["top"]:
            assert top["logprob"] == pytest.approx(exact[row, top["id"]], abs=1e-5) and top["token"] == f"<{top['id']}>"
        assert entry["logprob"] <= 0 and set(entry) == {"id", "token", "logprob", "top"}
        if count == 113:
            assert sum(math.exp(top["logprob"]) for top in entry["top"]) == pytest.approx(1, abs=1e-5)


def test_counts():
    assert check_count(0, 50) == 0 and check_count(50, 50) == 50
    for bad in (-1, 51, 1.0, "2", True, None):
        with pytest.raises(UsageError, match="logprobs: .* is not a whole number from 0 to 50"):
            check_count(bad, 50)
