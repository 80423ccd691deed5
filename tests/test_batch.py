"""Several prompts at once: each says what it says alone, whoever comes, stays and goes beside it."""

from pathlib import Path

import numpy as np
import pytest
from test_engine import folder  # noqa: F401 a fixture

import genkit
from genkit import _core
from genkit.errors import UsageError
from genkit.plan import Decoder

PROMPTS = [[5, 17, 3, 99, 42], [7], list(range(3, 90)), [8, 8, 8], [200, 100, 50, 25, 12, 6], [1, 2], [60] * 70]


@pytest.fixture(scope="module")
def model(folder):  # noqa: F811
    return genkit.load(folder)


def made(generation):
    return generation.tokens, generation.text, generation.finish_reason, generation.seed, generation.logprobs


@pytest.mark.parametrize("options", [
    {}, {"temperature": 1.1, "top_p": 0.9}, {"temperature": 0.9, "repeat_penalty": 1.3, "repeat_last_n": 20},
    {"logprobs": 2}, {"logit_bias": {3: 2.0}, "temperature": 1.0}, {"temperature": 1.5, "max_tokens": 1},
    {"temperature": 1.3, "max_tokens": None}], ids=str)
def test_together_as_alone(model, options):
    options = {"max_tokens": 33, "seed": 3, **options}
    alone = [made(model.generate(prompt, **options)) for prompt in PROMPTS]
    assert len({str(tokens) for tokens, *_ in alone}) > 4
    for batch_size in (1, 2, 3, 8):
        together = model.generate(PROMPTS, batch_size=batch_size, **options)
        assert [made(generation) for generation in together] == alone, batch_size
        assert [generation.prompt_tokens for generation in together] == PROMPTS


def test_rows_leave_and_others_come(model, monkeypatch):
    """Texts of unlike lengths, by stop strings, end of text and room: rows are refilled in order."""
    free = [model.generate(prompt, max_tokens=40, ignore_eos=True) for prompt in PROMPTS]
    stops = [generation.text[at : at + 3] for generation, at in zip(free, (2, 9, 30, 5, 17, 1, 12))]
    eos = (free[1].tokens[10], free[4].tokens[3])
    monkeypatch.setattr(model, "_eos_ids", eos)
    alone = [made(model.generate(prompt, max_tokens=40, stop=stops)) for prompt in PROMPTS]
    assert len({len(tokens) for tokens, *_ in alone}) > 3
    for burst in (1, 5, 256):
        monkeypatch.setattr("genkit.batch.BURST_TOKENS", burst)
        for batch_size in (2, 3):
            together = model.generate(PROMPTS, batch_size=batch_size, max_tokens=40, stop=stops)
            assert [made(generation) for generation in together] == alone


@pytest.mark.parametrize("temperature", [0.0, 1.1])
@pytest.mark.parametrize("window", [0, 1, 3, 10**9, -1])
def test_penalties_in_bursts_are_those_of_single_steps(model, monkeypatch, window, temperature):
    """Of rows whose tables and ends are unlike; plans are recorded anew for larger tables."""
    options = dict(repeat_penalty=1.3, frequency_penalty=0.3, repeat_last_n=window, temperature=temperature, seed=4, max_tokens=40)
    with monkeypatch.context() as stepping:
        stepping.setattr(Decoder, "draw", lambda self, work, *more: [[] for _ in work])
        free = [model.generate(prompt, **options, ignore_eos=True).tokens for prompt in PROMPTS]
        stepping.setattr(model, "_eos_ids", eos := (free[1][10], free[4][3], free[6][20]))
        alone = [made(model.generate(prompt, **options)) for prompt in PROMPTS]
    assert len({len(tokens) for tokens, *_ in alone}) > 2
    monkeypatch.setattr(model, "_eos_ids", eos)
    monkeypatch.setattr("genkit.plan.LEAST_CAPACITY", 32)
    monkeypatch.setattr("genkit.batch.BURST_SECONDS", 60.0)
    for burst in (1, 5, 256):
        monkeypatch.setattr("genkit.batch.BURST_TOKENS", burst)
        for batch_size in (1, 3, 8):
            together = model.generate(PROMPTS, batch_size=batch_size, **options)
            assert [made(generation) for generation in together] == alone, (burst, batch_size)


def test_texts_and_timings(model):
    generations = model.generate(["hello", "a longer prompt than that"], max_tokens=12, ignore_eos=True)
    for generation, prompt in zip(generations, ("hello", "a longer prompt than that")):
        assert generation.text == model.generate(prompt, max_tokens=12, ignore_eos=True).text
        timings = generation.timings
        assert timings.tokens == 12 and timings.prefill_s > 0 and timings.decode_s > 0
    drawn = model.generate(["x", "x"], max_tokens=20, temperature=1.0, ignore_eos=True)
    assert drawn[0].seed == drawn[1].seed and drawn[0].tokens == drawn[1].tokens


def test_beams_go_one_by_one(model):
    together = model.generate(PROMPTS[:3], max_tokens=6, beams=2)
    assert [g.tokens for g in together] == [model.generate(p, max_tokens=6, beams=2).tokens for p in PROMPTS[:3]]


def test_cancelling_ends_all(model, monkeypatch):
    monkeypatch.setattr("genkit.batch.BURST_TOKENS", 4)
    asked = []
    generations = model.generate(PROMPTS, batch_size=2, max_tokens=30, ignore_eos=True,
                                 cancelled=lambda: asked.append(1) or len(asked) > 6)
    assert {generation.finish_reason for generation in generations} == {"interrupted"}
    counts = [len(generation.tokens) for generation in generations]
    assert counts[0] == counts[1] > 4 and counts[2:] == [0] * 5


def test_dynamic_rope_looks_at_each_length(tmp_path, folder):  # noqa: F811
    import json
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config.pop("rope_parameters", None)
    config |= {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 24}
    (copy / "config.json").write_text(json.dumps(config))
    model = genkit.load(copy)
    prompts, options = [p for p in PROMPTS if len(p) < 80], {"max_tokens": 20, "ignore_eos": True}
    alone = [model.generate(prompt, **options).tokens for prompt in prompts]
    assert [generation.tokens for generation in model.generate(prompts, batch_size=4, **options)] == alone


def test_bad_arguments(model):
    with pytest.raises(UsageError, match="batch_size"):
        model.generate(PROMPTS, batch_size=0)
    with pytest.raises(UsageError, match="on_text"):
        model.generate(PROMPTS, on_text=print)
    with pytest.raises(UsageError, match="token id: 1000000"):
        model.generate([[5], [10**6]])
    with pytest.raises(UsageError, match="prompt is empty"):
        model.generate([[5], []])


def test_a_cache_is_shared_out_by_need(model):
    """Room for the longest of those that run together, no more."""
    caches, original = [], model._cache
    model._cache = lambda lengths: caches.append(lengths) or original(lengths)
    try:
        model.generate(PROMPTS, batch_size=2, max_tokens=10)
    finally:
        del model._cache
    assert caches == [[97, 80]] and _core.get_threads() == model.threads
    assert np.size(caches) == 2
