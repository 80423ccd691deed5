"""Sampling: settings' ranges, kept sets beside transformers', distributions by chi-squared, the keyed draw."""

import math
import random

import numpy as np
import pytest

from genkit import _core
from genkit.checkpoints.config import GenerationDefaults
from genkit.decoding.sampling import History, Sampler, SamplingSettings, check_finite, draw_seed, resolve
from genkit.errors import BadFileError, Error, UsageError

DRAWS = 50_000


def sampling_tiers():
    """One tier for each implementation of the draw."""
    best, tiers = _core.current_tier(), {}
    for tier in _core.tiers():
        _core.use_tier(tier)
        tiers.setdefault(_core.slots()["sample"], tier)
    _core.use_tier(best)
    return list(tiers.values())


@pytest.fixture(params=sampling_tiers())
def tier(request):
    best = _core.current_tier()
    _core.use_tier(request.param)
    yield request.param
    _core.use_tier(best)


# ---- a plain model of the whole chain, in float64 ----------------------------------------------------------------


def model_probabilities(logits, settings, prompt=(), generated=()):
    """Probability of each token, written from docs/decoding.md: bias, penalties, temperature, top-k, top-p, min-p."""
    logits = np.array(logits, np.float64)
    for token, bias in settings.logit_bias.items():
        logits[token] += bias
    window = [(token, False) for token in prompt] + [(token, True) for token in generated]
    if settings.repeat_last_n >= 0:
        window = window[len(window) - min(len(window), settings.repeat_last_n) :]
    for token in {token for token, _ in window}:
        positive = logits[token] > 0
        logits[token] = logits[token] / settings.repeat_penalty if positive else logits[token] * settings.repeat_penalty
        count = sum(made and token == other for other, made in window)
        if count:
            logits[token] -= settings.presence_penalty + settings.frequency_penalty * count
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if settings.temperature == 0:
        return np.eye(len(logits))[order[0]]
    weights = np.exp((logits - logits.max()) / settings.temperature)
    kept = order[: settings.top_k] if settings.top_k else order
    if settings.top_p < 1:
        total, sum_, n = sum(weights[i] for i in kept), 0.0, 0
        while sum_ < settings.top_p * total:
            sum_ += weights[kept[n]]
            n += 1
        kept = kept[:n]
    kept = [i for i in kept if weights[i] >= settings.min_p * weights[order[0]]]
    probabilities = np.zeros(len(logits))
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


def draw(logits, settings, rows, prompt=(), generated=(), sequence=0):
    """`rows` draws from one row of logits, at positions 0 and up."""
    sampler = Sampler(settings, len(logits))
    row = _core.Tensor.from_numpy(np.asarray(logits, np.float32)[None])
    history = sampler.history(prompt)
    for token in generated if history is not None else ():
        history.append(token)
    if rows == 1:
        return np.array(sampler.next(row, [history], [sequence], [0]))
    sampler.adjust_(row, [history])
    batch = _core.Tensor.from_numpy(np.tile(row.numpy(), (rows, 1)))
    sequences, positions = np.full(rows, sequence, np.int64), np.arange(rows, dtype=np.int64)
    s = sampler.settings
    return _core.sample(
        batch, _core.Tensor.from_numpy(sequences), _core.Tensor.from_numpy(positions), s.temperature, s.top_k, s.top_p,
        s.min_p, sampler.seed,
    ).numpy()


def chi_squared_far_out(tokens, probabilities):
    """How many standard deviations the counts are from the model, by Wilson and Hilferty's normal approximation of
    chi-squared (1931). Tokens expected fewer than ten times are taken together."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert not counts[probabilities == 0].any(), "a token was drawn that the model never draws"
    expected = probabilities * len(tokens)
    rare = expected < 10
    cells = [(counts[i], expected[i]) for i in np.flatnonzero(~rare)]
    if expected[rare].sum() > 1:
        cells.append((counts[rare].sum(), expected[rare].sum()))
    freedom = len(cells) - 1
    if freedom == 0:
        return 0.0
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


SAMPLERS = {
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 2.5},
    "cold": {"temperature": 0.3},
    "top_k": {"temperature": 1.0, "top_k": 7},
    "top_k of one": {"temperature": 1.0, "top_k": 1},
    "top_k beyond the vocabulary": {"temperature": 1.0, "top_k": 10_000},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "tiny top_p": {"temperature": 1.0, "top_p": 1e-6},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "min_p of one": {"temperature": 1.0, "min_p": 1.0},
    "all filters": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    "bias": {"temperature": 1.0, "logit_bias": {3: 2.0, 5: -1.5, 0: -math.inf}},
    "repetition": {"temperature": 1.0, "repeat_penalty": 1.8},
    "repetition below one": {"temperature": 1.0, "repeat_penalty": 0.6},
    "presence": {"temperature": 1.0, "presence_penalty": 1.3},
    "frequency": {"temperature": 1.0, "frequency_penalty": 0.7},
    "negative frequency": {"temperature": 1.0, "frequency_penalty": -0.4},
    "short window": {"temperature": 1.0, "repeat_penalty": 2.0, "presence_penalty": 0.5, "repeat_last_n": 4},
    "window of none": {"temperature": 1.0, "repeat_penalty": 2.0, "presence_penalty": 0.5, "repeat_last_n": 0},
    "everything": {
        "temperature": 1.4, "top_k": 25, "top_p": 0.93, "min_p": 0.02, "repeat_penalty": 1.3, "presence_penalty": 0.4,
        "frequency_penalty": 0.2, "logit_bias": {1: 3.0, 2: -math.inf},
    },
}
PROMPT, GENERATED = [1, 4, 4, 9, 30], [4, 6, 6, 6, 12]


@pytest.mark.parametrize("name", SAMPLERS)
def test_distribution(name, tier):
    """Fifty thousand draws of each sampler against the plain model. Seeds are fixed, so this cannot fail by chance: at
    four and a half deviations a right sampler would do so once in 300,000 runs."""
    for seed, vocab in ((1, 41), (2**63 + 12345, 60)):
        logits = np.random.default_rng(seed).normal(0, 2, vocab).astype(np.float32)
        settings = SamplingSettings(**SAMPLERS[name], seed=seed)
        tokens = draw(logits, settings, DRAWS, PROMPT, GENERATED, sequence=3)
        probabilities = model_probabilities(logits, settings, PROMPT, GENERATED)
        assert chi_squared_far_out(tokens, probabilities) < 4.5


def test_the_chi_squared_test_sees_small_errors():
    """What the test above is good for: it must refuse a sampler that is a little off."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 41).astype(np.float32)
    wanted = model_probabilities(logits, SamplingSettings(temperature=1.0))
    for wrong in ({"temperature": 1.08}, {"temperature": 1.0, "top_p": 0.97}, {"temperature": 1.0, "logit_bias": {20: 0.5}}):
        tokens = draw(logits, SamplingSettings(**wrong, seed=9), DRAWS)
        assert chi_squared_far_out(tokens, wanted) > 4.5


@pytest.mark.parametrize("key", ["positions", "sequences", "seeds"])
def test_draws_are_independent_along_each_key(key):
    """Uniform over four tokens; pairs of neighbouring draws must be uniform over sixteen."""
    logits, n = np.zeros(4, np.float32), 20_000
    batch = _core.Tensor.from_numpy(np.tile(logits, (n, 1)))
    keys = np.arange(n, dtype=np.int64)
    still = np.full(n, 5, np.int64)
    tensor = _core.Tensor.from_numpy
    if key == "seeds":
        one = _core.Tensor.from_numpy(logits[None])
        tokens = [_core.sample(one, tensor(still[:1]), tensor(still[:1]), 1.0, 0, 1.0, 0.0, s).numpy()[0] for s in range(n)]
        tokens = np.array(tokens)
    else:
        sequences, positions = (still, keys) if key == "positions" else (keys, still)
        tokens = _core.sample(batch, tensor(sequences), tensor(positions), 1.0, 0, 1.0, 0.0, 77).numpy()
    assert chi_squared_far_out(tokens, np.full(4, 0.25)) < 4.5
    assert chi_squared_far_out(tokens[::2] * 4 + tokens[1::2], np.full(16, 1 / 16)) < 4.5


# ---- kept sets beside transformers -------------------------------------------------------------------------------


def drawn_set(logits, settings, prompt=(), generated=()):
    """Tokens that can come up. Each likely one is drawn; of the unlikely ones the plain model must be believed."""
    probabilities = model_probabilities(logits, settings, prompt, generated)
    tokens = set(draw(logits, settings, 1000, prompt, generated).tolist())
    assert set(np.flatnonzero(probabilities > 0.02).tolist()) <= tokens <= set(np.flatnonzero(probabilities).tolist())
    return set(np.flatnonzero(probabilities).tolist())


@pytest.mark.parametrize("settings", [
    {"top_k": 5}, {"top_k": 1}, {"top_p": 0.9}, {"top_p": 0.3}, {"top_p": 0.001}, {"min_p": 0.05}, {"min_p": 0.9},
    {"temperature": 0.6, "top_p": 0.9}, {"temperature": 1.7, "top_k": 12, "top_p": 0.7, "min_p": 0.1},
    {"repeat_penalty": 1.5, "top_p": 0.8}, {"temperature": 0.7, "repeat_penalty": 1.2, "top_k": 20, "min_p": 0.02},
])
def test_kept_sets_and_probabilities_are_those_of_transformers(settings):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    torch.set_num_threads(1)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 3, 211).astype(np.float32)
        prompt, generated = rng.integers(0, 211, 20).tolist(), rng.integers(0, 211, 6).tolist()
        ours = SamplingSettings(**{"temperature": 1.0, **settings}, seed=seed)
        chain = []  # in generate's order
        if ours.repeat_penalty != 1:
            chain.append(processors.RepetitionPenaltyLogitsProcessor(ours.repeat_penalty))
        if ours.temperature != 1:
            chain.append(processors.TemperatureLogitsWarper(ours.temperature))
        if ours.top_k:
            chain.append(processors.TopKLogitsWarper(ours.top_k))
        if ours.top_p < 1:
            chain.append(processors.TopPLogitsWarper(ours.top_p))
        if ours.min_p:
            chain.append(processors.MinPLogitsWarper(ours.min_p))
        scores = torch.tensor(logits)[None].double()
        for processor in chain:
            scores = processor(torch.tensor([prompt + generated]), scores)
        theirs = torch.softmax(scores, -1)[0].numpy()
        assert drawn_set(logits, ours, prompt, generated) == set(np.flatnonzero(theirs).tolist())
        np.testing.assert_allclose(model_probabilities(logits, ours, prompt, generated), theirs, rtol=1e-6, atol=1e-12)


def test_penalties_are_those_of_the_core_to_the_bit():
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, 97).astype(np.float32)
    logits[4] = 0.0
    prompt, generated = [1, 4, 4, 50], [4, 7, 7, 96]
    settings = SamplingSettings(repeat_penalty=1.3, presence_penalty=0.25, frequency_penalty=-0.5, logit_bias={7: 1.5})
    sampler = Sampler(settings, 97)
    history = sampler.history(prompt)
    for token in generated:
        history.append(token)
    adjusted = _core.Tensor.from_numpy(logits[None])
    sampler.adjust_(adjusted, [history])
    wanted = logits.copy()
    wanted[7] += np.float32(1.5)
    for token in {*prompt, *generated}:
        r = np.float32(1.3)
        wanted[token] = wanted[token] / r if wanted[token] > 0 else wanted[token] * r
    for token in set(generated):
        wanted[token] -= np.float32(0.25) + np.float32(-0.5) * np.float32(generated.count(token))
    np.testing.assert_array_equal(adjusted.numpy()[0], wanted)


# ---- greedy, ties, determinism -----------------------------------------------------------------------------------


def test_greedy_is_argmax_and_the_lowest_of_equals():
    rng = np.random.default_rng(1)
    logits = np.round(rng.normal(0, 1.5, (200, 37)), 0).astype(np.float32)  # many ties
    sampler = Sampler(SamplingSettings(top_k=3, top_p=0.5, seed=4), 37)
    tokens = sampler.next(_core.Tensor.from_numpy(logits), [None] * 200, range(200), range(200))
    assert tokens == [int(row.argmax()) for row in logits]


def test_top_k_of_equals_keeps_the_lowest_ids():
    tokens = draw(np.zeros(50), SamplingSettings(temperature=1.0, top_k=4, seed=2), 2000)
    assert set(tokens.tolist()) == {0, 1, 2, 3}


def test_a_token_does_not_depend_on_its_batch():
    """Alone, in a batch, in another order, with any number of threads."""
    rng = np.random.default_rng(3)
    rows, vocab = 33, 501
    logits = rng.normal(0, 2, (rows, vocab)).astype(np.float32)
    prompts = [rng.integers(0, vocab, rng.integers(0, 9)).tolist() for _ in range(rows)]
    sampler = Sampler(
        SamplingSettings(temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, repeat_penalty=1.1, presence_penalty=0.1,
                         logit_bias={9: 1.0}, seed=123), vocab)

    def tokens_of(order):
        batch = _core.Tensor.from_numpy(np.ascontiguousarray(logits[order]))
        return sampler.next(batch, [sampler.history(prompts[i]) for i in order], order, [1000 + i for i in order])

    threads = _core.get_threads()
    try:
        _core.set_threads(1)
        wanted = tokens_of(list(range(rows)))
        assert [tokens_of([i])[0] for i in range(rows)] == wanted
        for count in (2, 3, 5):
            _core.set_threads(count)
            order = rng.permutation(rows).tolist()
            assert tokens_of(order) == [wanted[i] for i in order]
    finally:
        _core.set_threads(threads)


def test_seeds():
    logits = np.random.default_rng(0).normal(0, 1, 1000)
    with_seed = [draw(logits, SamplingSettings(temperature=1.0, seed=s), 50).tolist() for s in (7, 7, 8, 7 + 2**32, 2**64 - 1)]
    assert with_seed[0] == with_seed[1]
    assert len({tuple(tokens) for tokens in with_seed}) == 4
    other_sequence = draw(logits, SamplingSettings(temperature=1.0, seed=7), 50, sequence=1).tolist()
    assert other_sequence != with_seed[0]
    drawn = Sampler(SamplingSettings(temperature=1.0), 1000).seed
    assert 0 <= drawn < 2**32 and len({draw_seed() for _ in range(20)}) > 15


# ---- what must not become a token --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(value, temperature):
    for where in (0, 17, 36):
        logits = np.random.default_rng(0).normal(0, 1, (3, 37)).astype(np.float32)
        logits[1, where] = value
        sampler = Sampler(SamplingSettings(temperature=temperature, seed=1), 37)
        with pytest.raises(BadFileError, match=r"position 21 are not finite \(1 of 37 are NaN or infinity\)") as caught:
            sampler.next(_core.Tensor.from_numpy(logits), [None] * 3, [0, 1, 2], [20, 21, 22])
        assert caught.value.exit_code == 3
        with pytest.raises(Error):
            check_finite(_core.Tensor.from_numpy(logits), [20, 21, 22])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_tokens_banned(temperature):
    logits = np.random.default_rng(0).normal(0, 1, 9)
    settings = SamplingSettings(temperature=temperature, logit_bias=dict.fromkeys(range(9), -math.inf), seed=1)
    with pytest.raises(UsageError, match="logit_bias: no token is left at position 0"):
        draw(logits, settings, 1)
    settings = SamplingSettings(temperature=temperature, logit_bias=dict.fromkeys(range(8), -math.inf), seed=1)
    assert draw(logits, settings, 5).tolist() == [8] * 5


def test_extreme_logits_and_temperatures():
    logits = np.array([3e38, -3e38, 1e-38, 2.9e38], np.float32)
    assert set(draw(logits, SamplingSettings(temperature=1e-6, seed=1), 50).tolist()) == {0}
    assert set(draw(logits, SamplingSettings(temperature=100.0, seed=1), 50).tolist()) == {0}
    close = np.array([1.0, 1.0 + 1e-7, 1.0], np.float32)
    assert set(draw(close, SamplingSettings(temperature=1e-6, seed=1), 500).tolist()) == {0, 1, 2}


# ---- history -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [-1, 0, 1, 2, 7, 64])
def test_history_against_counting(window):
    rng = random.Random(window)
    for _ in range(10):
        prompt = [rng.randrange(150) for _ in range(rng.randrange(200))]
        history, generated = History(prompt, window), []
        for _ in range(150):
            everything = [(token, 0) for token in prompt] + [(token, 1) for token in generated]
            if window >= 0:
                everything = everything[len(everything) - min(window, len(everything)) :]
            wanted = {}
            for token, made in everything:
                seen, times = wanted.get(token, (0, 0))
                wanted[token] = (seen + 1, times + made)
            rows = history.entries().T.tolist()
            assert {row[0]: (row[1], row[2]) for row in rows} == wanted and len(rows) == len(wanted)
            generated.append(rng.randrange(150))
            history.append(generated[-1])


# ---- settings ----------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
BIG = 10**400  # no float
RANGES = {  # option: (values that are right, values that are not)
    "temperature": ([0, 0.0, -0.0, 1e-6, 0.7, 1, 100], [-1, -1e-9, 1e-7, 5e-324, 100.1, NAN, INF, -INF, BIG, "1", None, True, [1]]),
    "top_k": ([0, 1, 40, 2**31 - 1, np.int32(5)], [-1, 2**31, 1.0, 0.5, NAN, "5", None, True, False]),
    "top_p": ([5e-324, 1e-9, 0.5, 1, 1.0, np.float32(0.5)], [0, -0.1, 1.0000001, NAN, INF, BIG, "0.5", None, True]),
    "min_p": ([0, 1e-9, 0.5, 1], [-1e-9, 1.01, NAN, INF, "0", None, True]),
    "repeat_penalty": ([1e-6, 0.5, 1, 1.1, 100], [0, 1e-7, -1, 101, NAN, INF, "1", None, True]),
    "repeat_last_n": ([-1, 0, 1, 64, 2**31 - 1], [-2, 2**31, 1.5, NAN, "64", None, True]),
    "presence_penalty": ([-2, -0.5, 0, 2], [-2.01, 2.01, NAN, INF, "0", None, True]),
    "frequency_penalty": ([-2, -0.5, 0, 2], [-2.01, 2.01, NAN, INF, "0", None, True]),
    "seed": ([None, 0, 7, 2**63, 2**64 - 1], [-1, 2**64, 1.0, NAN, "7", True]),
    "logit_bias": (
        [{}, {0: 0}, {36: -INF, 0: 1e9}, {np.int64(3): np.float32(1.5)}],
        [{-1: 0}, {37: 0}, {"1": 0}, {1.0: 0}, {0: NAN}, {0: INF}, {0: 2e9}, {0: BIG}, {0: "1"}, {0: None}, [(0, 1)], None, 5],
    ),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges(name):
    right, wrong = RANGES[name]
    logits = np.random.default_rng(0).normal(0, 1, 37)
    for value in right:
        for temperature in (0.0, 1.0):
            settings = SamplingSettings(**{"temperature": temperature, "seed": 3, name: value})
            token = draw(logits, settings, 1, [1], [2])[0]
            assert 0 <= token < 37
    for value in wrong:
        with pytest.raises(UsageError) as caught:
            SamplingSettings(**{name: value}).validated(37)
        message = str(caught.value)
        assert message.startswith(name) and "\n" not in message and caught.value.exit_code == 2
        with pytest.raises(ValueError):  # the library's users may catch it as such
            Sampler(SamplingSettings(**{name: value}), 37)


def test_messages_name_option_value_and_range():
    for settings, message in [
        ({"temperature": -1}, "temperature: -1 is not 0 (greedy) or a number from 1e-06 to 100"),
        ({"top_p": 1.5}, "top_p: 1.5 is not a number above 0 and at most 1"),
        ({"top_k": -4}, "top_k: -4 is not a whole number from 0 to 2147483647"),
        ({"logit_bias": {50: 1}}, "logit_bias: token id: 50 is not a whole number from 0 to 36"),
        ({"logit_bias": {5: NAN}}, "logit_bias of token 5: nan is not -inf (never) or a number from -1e+09 to 1e+09"),
    ]:
        with pytest.raises(UsageError) as caught:
            SamplingSettings(**settings).validated(37)
        assert str(caught.value) == message


def test_grid_of_boundaries():
    """Every combination of settings at the ends of their ranges draws what the plain model can draw."""
    logits = np.random.default_rng(2).normal(0, 2, 37).astype(np.float32)
    for temperature in (0, 1e-6, 1, 100):
        for top_k in (0, 1, 37, 2**31 - 1):
            for top_p in (1e-9, 0.5, 1):
                for min_p in (0, 0.5, 1):
                    for repeat, presence in ((1e-6, -2), (1, 0), (100, 2)):
                        settings = SamplingSettings(
                            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=repeat,
                            presence_penalty=presence, frequency_penalty=presence, seed=0,
                        )
                        tokens = draw(logits, settings, 3, [1, 2], [2, 3])
                        probabilities = model_probabilities(logits, settings, [1, 2], [2, 3])
                        assert (probabilities[tokens] > 0).all(), settings


def test_defaults_of_the_model():
    assert resolve() == SamplingSettings() and resolve(GenerationDefaults()).temperature == 0
    file = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.05}
    sampling = GenerationDefaults(do_sample=True, **file)
    assert resolve(sampling) == SamplingSettings(temperature=0.6, top_k=20, top_p=0.95, min_p=0.1, repeat_penalty=1.05)
    assert resolve(GenerationDefaults(do_sample=True)).temperature == 1.0
    greedy = resolve(GenerationDefaults(do_sample=False, **file))
    assert greedy == SamplingSettings(repeat_penalty=1.05)  # as transformers: a penalty counts for greedy too
    given = resolve(sampling, temperature=0.0, top_k=0, top_p=None, min_p=0.5, repeat_penalty=1.0, seed=5)
    assert given == SamplingSettings(top_p=0.95, min_p=0.5, seed=5)


def test_report_of_settings():
    report = Sampler(SamplingSettings(temperature=1, logit_bias={np.int64(3): 1}, seed=9), 37).settings.as_dict()
    assert report["logit_bias"] == {3: 1.0} and type(next(iter(report["logit_bias"]))) is int
    assert report["temperature"] == 1.0 and report["top_k"] == 0 and set(report) == set(SamplingSettings.__dataclass_fields__)


def test_every_tier_draws_the_same_token():
    best = _core.current_tier()
    logits = np.random.default_rng(8).normal(0, 2, 4001)
    settings = SamplingSettings(temperature=0.9, top_p=0.95, min_p=0.01, seed=5)
    try:
        drawn = []
        for tier in _core.tiers():
            _core.use_tier(tier)
            drawn.append(draw(logits, settings, 200).tolist())
        assert all(tokens == drawn[0] for tokens in drawn)
    finally:
        _core.use_tier(best)
