"""Beam search: sequences and scores of transformers' generate, with models whose every answer is known."""

import math

import numpy as np
import pytest

from genkit.decoding.beam import beam_search
from genkit.errors import BadFileError, UsageError


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return (x - np.log(np.exp(x).sum(-1, keepdims=True))).astype(np.float32)


class Chain:
    """A model in a table: the log-probabilities of a token depend on the two before it. Keeps rows as a cache does."""

    def __init__(self, vocab, seed, spread=1.0, eos=(), eos_bias=0.0):
        rng = np.random.default_rng(seed)
        logits = spread * rng.normal(size=(vocab, vocab, vocab))
        logits[:, :, list(eos)] += eos_bias
        self.table = log_softmax(logits)
        self.rows = [[0, 1]]
        self.first = self.table[0, 1]

    def reorder(self, parents):
        self.rows = [list(self.rows[parent]) for parent in parents]

    def step(self, tokens):
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)
        return np.stack([self.table[row[-2], row[-1]] for row in self.rows])

    def search(self, **options):
        return beam_search(self.first, self.step, self.reorder, **options)

    def total(self, tokens):
        sequence, total = [0, 1], np.float32(0)
        for token in tokens:
            total += self.table[sequence[-2], sequence[-1], token]
            sequence.append(token)
        return float(total)


def plain_search(first, table, beams, max_tokens, eos, length_penalty):
    """The same search, written from its description with Python's sort and no arrays."""
    running, finished = [((), np.float32(0))], []
    for length in range(1, max_tokens + 1):
        candidates = []
        for row, (tokens, total) in enumerate(running):
            history = (0, 1, *tokens)
            for token, value in enumerate(table[history[-2], history[-1]]):
                candidates.append((-(value + total), row, token))
        candidates = sorted(candidates)[: max(2, 1 + len(eos)) * beams]
        going_on = []
        for rank, (minus, row, token) in enumerate(candidates):
            tokens = (*running[row][0], token)
            if token in eos or length == max_tokens:
                if rank < beams:
                    finished.append((float(-minus / np.float32(float(length) ** length_penalty)), tokens))
            else:
                going_on.append((tokens, -minus))
        finished = sorted(finished, key=lambda item: -item[0])[:beams]
        running = going_on[:beams]
        best = float(running[0][1] / np.float32(float(length) ** length_penalty)) if running else -math.inf
        if len(finished) == beams and best <= finished[-1][0]:
            break
    return finished


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 0.5, 2.0, -1.0])
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_against_a_plain_search(beams, length_penalty):
    for seed in range(12):
        eos = [(), (3,), (3, 7), (3, 7, 8)][seed % 4]
        model = Chain(23, seed, spread=[0.3, 1.0, 3.0][seed % 3], eos=eos, eos_bias=[0.0, 1.5][seed % 2])
        wanted = plain_search(model.first, model.table, beams, 12, eos, length_penalty)
        found = model.search(beams=beams, max_tokens=12, eos_token_ids=eos, length_penalty=length_penalty)
        assert [tuple(beam.tokens) for beam in found] == [tokens for _, tokens in wanted]
        assert [beam.score for beam in found] == [score for score, _ in wanted]
        for beam in found:
            assert beam.finish_reason == ("stop" if beam.tokens[-1] in eos else "length")
            assert beam.score == pytest.approx(model.total(beam.tokens) / len(beam.tokens) ** length_penalty, rel=1e-5)


def test_more_beams_than_paths_is_exhaustive():
    """With room for every sequence the best one of all is found."""
    model = Chain(5, seed=3)
    best = max(((a, b, c) for a in range(5) for b in range(5) for c in range(5)), key=model.total)
    assert model.search(beams=30, max_tokens=3)[0].tokens == list(best)


def test_one_beam_is_greedy():
    model = Chain(40, seed=4)
    sequence = [0, 1]
    for _ in range(10):
        sequence.append(int(model.table[sequence[-2], sequence[-1]].argmax()))
    assert model.search(beams=1, max_tokens=10)[0].tokens == sequence[2:]


def test_equal_scores_go_to_the_lower_beam_then_the_lower_id():
    flat = np.full((6, 6, 6), -math.log(6), np.float32)
    model = Chain(6, seed=0)
    model.table, model.first = flat, flat[0, 1]
    assert [beam.tokens for beam in model.search(beams=3, max_tokens=2)] == [[0, 0], [0, 1], [0, 2]]


def test_the_cache_is_forked_before_each_step():
    model, calls = Chain(30, seed=6), []

    def reorder(parents):
        calls.append(list(parents))
        model.reorder(parents)

    found = beam_search(model.first, model.step, reorder, beams=4, max_tokens=8)
    assert calls[0] == [0] * 4 and len(calls) == 7
    assert any(len(set(parents)) < 4 for parents in calls[1:])  # a parent with several children, one with none
    assert all(0 <= parent < 4 for parents in calls for parent in parents)
    assert max(beam.score * 8 for beam in found) == pytest.approx(max(model.total(beam.tokens) for beam in found), rel=1e-5)


def test_banned_tokens():
    def ban(log_probs, generated):
        log_probs = log_probs.copy()
        log_probs[:, 2:] = -np.inf
        return log_probs

    model = Chain(9, seed=7)
    found = model.search(beams=5, max_tokens=3, adjust=ban)  # fewer sequences than beams at first
    assert found and all(set(beam.tokens) <= {0, 1} for beam in found)
    with pytest.raises(UsageError, match="every continuation"):
        Chain(9, seed=7).search(beams=2, max_tokens=3, adjust=lambda log_probs, _: log_probs - np.inf)


def test_adjust_sees_each_beams_own_tokens():
    model, seen = Chain(12, seed=8), []

    def no_repeats(log_probs, generated):
        seen.append([list(tokens) for tokens in generated])
        log_probs = log_probs.copy()
        for row, tokens in zip(log_probs, generated, strict=True):
            row[tokens] = -np.inf
        return log_probs

    for beam in model.search(beams=3, max_tokens=6, adjust=no_repeats):
        assert len(set(beam.tokens)) == 6
    assert seen[0] == [[]] and all(len(rows) == 3 for rows in seen[1:])


@pytest.mark.parametrize("options, words", [
    ({"beams": 0}, "beams: 0"), ({"beams": 65}, "beams: 65"), ({"beams": 2.0}, "beams: 2.0"), ({"max_tokens": 0}, "max_tokens: 0"),
    ({"length_penalty": math.nan}, "length_penalty: nan"), ({"length_penalty": math.inf}, "length_penalty: inf"),
    ({"length_penalty": 11}, "length_penalty: 11"), ({"length_penalty": "1"}, "length_penalty: '1'"),
])
def test_bad_options(options, words):
    with pytest.raises(UsageError, match=words):
        Chain(9, seed=0).search(**{"beams": 2, "max_tokens": 2, **options})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(value):
    model = Chain(9, seed=0)
    model.table[:, 4, 2] = value
    model.table[0, 1, 4] = 0  # token 4 is in every beam's past
    with pytest.raises(BadFileError, match="generated token 2 are not finite"):
        model.search(beams=2, max_tokens=5)


def tiny_llama(seed):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=bool(seed % 2),
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


class TorchRows:
    """A torch model as step function, the whole sequence each time: no cache to be wrong."""

    def __init__(self, model, prompt):
        self.model, self.rows = model, [list(prompt)]

    def log_probs(self):
        import torch

        with torch.no_grad():
            logits = self.model(torch.tensor(self.rows)).logits[:, -1, :].float()
        return torch.log_softmax(logits, -1).numpy()

    def reorder(self, parents):
        self.rows = [list(self.rows[parent]) for parent in parents]

    def step(self, tokens):
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)
        return self.log_probs()


def their_search(model, prompt, **options):
    import torch

    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        num_return_sequences=options["num_beams"], early_stopping=False, return_dict_in_generate=True, output_scores=True,
        use_cache=False, **options,
    )
    return out.sequences[:, len(prompt) :].tolist(), out.sequences_scores.tolist()


@pytest.mark.parametrize("beams", [2, 3, 4, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_against_transformers_generate(beams, length_penalty):
    pytest.importorskip("torch")
    rng = np.random.default_rng(beams)
    ended_early = 0
    for seed in range(6):
        model = tiny_llama(seed)
        prompt = rng.integers(0, 97, rng.integers(1, 9)).tolist()
        # Ends that come up: tokens the model likes after this prompt, and rare ones.
        likely = TorchRows(model, prompt).log_probs()[0].argsort()[::-1]
        eos = [[int(likely[0])], likely[[1, 5]].tolist(), likely[[2, 8, 20]].tolist(), [int(likely[40])],
               rng.choice(97, 12, replace=False).tolist(), []][seed]
        options = {"max_new_tokens": 12, "length_penalty": length_penalty, "num_beams": beams}
        # Padding after a short sequence is stripped: an id that cannot be generated.
        theirs, scores = their_search(model, prompt, eos_token_id=eos or None, pad_token_id=96 if eos else None, **options)
        rows = TorchRows(model, prompt)
        found = beam_search(
            rows.log_probs()[0], rows.step, rows.reorder, beams=beams, max_tokens=12, eos_token_ids=eos,
            length_penalty=length_penalty,
        )
        assert len(found) == beams
        for beam, tokens, score in zip(found, theirs, scores, strict=True):
            assert beam.tokens == tokens[: len(beam.tokens)] and set(tokens[len(beam.tokens) :]) <= {96}
            assert beam.score == pytest.approx(score, rel=1e-5, abs=1e-6)
        ended_early += sum(len(beam.tokens) < 12 for beam in found)
    assert ended_early >= 2 or length_penalty == 2.0  # which likes long sequences


def test_penalties_as_in_transformers():
    """transformers applies the repetition penalty to log-probabilities; so do we."""
    pytest.importorskip("torch")
    from genkit import _core
    from genkit.decoding.sampling import Sampler, SamplingSettings

    for seed in range(4):
        model, prompt = tiny_llama(seed), [5, 17, 17, 60]
        theirs, scores = their_search(
            model, prompt, num_beams=3, max_new_tokens=10, repetition_penalty=1.7, eos_token_id=None, length_penalty=1.0
        )
        sampler, rows = Sampler(SamplingSettings(repeat_penalty=1.7), 97), TorchRows(model, prompt)

        def adjust(log_probs, generated):
            histories = [sampler.history([*prompt, *tokens]) for tokens in generated]
            adjusted = _core.Tensor.from_numpy(np.ascontiguousarray(log_probs))
            sampler.adjust_(adjusted, histories)
            return adjusted.numpy()

        found = beam_search(rows.log_probs()[0], rows.step, rows.reorder, beams=3, max_tokens=10, adjust=adjust)
        assert [beam.tokens for beam in found] == theirs
        assert [beam.score for beam in found] == pytest.approx(scores, rel=1e-5)
