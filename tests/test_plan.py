"""Recorded steps: the same bits as eager ones, whatever stood in the arena, with any team; and what draws from them."""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import models_run
import numpy as np
import pytest
from kernel_helpers import ints, pytest_tier, same_bits

import genkit
from genkit import _core
from genkit.checkpoints import open_checkpoint
from genkit.decoding.sampling import Sampler, SamplingSettings
from genkit.errors import BadFileError
from genkit.kv_cache import KVCache, Sequence, pages_for
from genkit.plan import Decoder

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
PROMPT = [5, 17, 3, 99, 42]

tier = pytest_tier()


@pytest.fixture
def threads():
    before = _core.get_threads()
    yield _core.set_threads
    _core.set_threads(before)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A random model whose linears are split over the threads; the goldens' are one piece each."""
    from safetensors.numpy import save_file

    from genkit.checkpoints import Fields
    from genkit.models import llama

    folder = tmp_path_factory.mktemp("wide")
    values = dict(model_type="llama", vocab_size=4099, hidden_size=320, intermediate_size=901, num_hidden_layers=3,
                  num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=512)
    (folder / "config.json").write_text(json.dumps(values))
    config = llama.read_config(Fields(folder / "config.json", values), SimpleNamespace(nbytes=0))
    random = np.random.default_rng(1)
    save_file({name: (random.standard_normal(shape) / 320**0.5 + (len(shape) == 1)).astype(np.float16)
               for name, shape in llama.tensor_shapes(config).items()}, folder / "model.safetensors")
    return folder


def copy_of(folder, tmp_path, **changes):
    folder = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Both:
    """The same sequences through a model, eagerly and by plan, over two caches."""

    def __init__(self, model, prompts, longest=160):
        c = model.config
        self.model = model
        self.caches = [KVCache(c.layers, c.kv_heads, c.head_dim, len(prompts) * (pages_for(longest) + 1)) for _ in range(2)]
        self.sequences = [[Sequence() for _ in prompts] for _ in range(2)]
        for cache, sequences in zip(self.caches, self.sequences):
            model(cache.step(list(zip(sequences, prompts))), cache)
        self.decoder = Decoder(model, self.caches[1], longest)

    def step(self, tokens):
        """(eager, replayed) logits."""
        eager = self.caches[0].step([(s, [t]) for s, t in zip(self.sequences[0], tokens)])
        replayed = self.decoder.step(list(zip(self.sequences[1], tokens)))
        return self.model(eager, self.caches[0]).numpy(), replayed.numpy()

    def poison(self):
        for rows in self.decoder._recorded.values():
            for block in rows.plan.arena:
                block.bytes()[:] = b"\xff" * block.nbytes  # NaN, and ids out of range

    def assert_equal_keys(self):
        for sequences in zip(*self.sequences):
            for layers in zip(*(cache.layers for cache in self.caches)):
                for pages in zip(layers[0][:2], layers[1][:2]):
                    (a, b) = (array.numpy()[:, s.pages] for array, s in zip(pages, sequences))
                    assert np.array_equal(a, b)


@pytest.mark.parametrize("name", [*NAMES, "wide"])
def test_replays_are_eager_steps_to_the_bit(name, tier, threads, wide):
    model = models_run.load(wide if name == "wide" else FIXTURES / name)
    random = np.random.default_rng(4)
    vocab = model.config.vocab_size
    both = Both(model, [random.integers(0, vocab, n).tolist() for n in (50,)])
    for i, token in enumerate(random.integers(0, vocab, 32).tolist()):  # past the end of a page
        threads((1, 2, 3, 5)[i % 4])
        if i % 3 == 0:
            both.poison()
        eager, replayed = both.step([token])
        assert np.ptp(eager) > 1 and np.array_equal(eager, replayed), i
    both.assert_equal_keys()
    plan = both.decoder._recorded[1, False].plan
    assert plan.steps > 10 * model.config.layers and (name != "wide" or plan.phases > 2 * model.config.layers)
    blocks = sum(block.nbytes for block in plan.arena)
    assert blocks < 4 * vocab + 60 * 4 * (plan.steps if name != "wide" else 901), "layers use the same memory in turns"


@pytest.mark.parametrize("name", ["gpt2", "mistral", "qwen3"])
def test_several_sequences_of_unlike_lengths(name, threads):
    model = models_run.load(FIXTURES / name)
    random = np.random.default_rng(5)
    vocab = model.config.vocab_size
    both = Both(model, [random.integers(0, vocab, n).tolist() for n in (3, 61, 70, 128)])
    threads(2)
    for i in range(8):
        eager, replayed = both.step(random.integers(0, vocab, 4).tolist())
        assert np.array_equal(eager, replayed)
        if i == 4:  # fork one from another's past, as beam search does
            for cache, sequences in zip(both.caches, both.sequences):
                cache.release(sequences[0])
                sequences[0] = cache.fork(sequences[1])
        both.poison()
    both.assert_equal_keys()


# ---- drawing ---------------------------------------------------------------------------------------------------


def by_hand(model, prompt, sampler, count):
    """Tokens drawn one by one from eager logits."""
    run = models_run.Run(model, len(prompt) + count)
    logits = _core.Tensor.from_numpy(run.feed(prompt, logit_rows=[len(prompt) - 1]))
    tokens, history = [], sampler.history(prompt)
    while len(tokens) < count:
        tokens += sampler.next(logits, [history], [0], [len(prompt) + len(tokens)])
        logits = _core.Tensor.from_numpy(run.feed(tokens[-1:]))
    return tokens


def begun(sampler, prompt, token):
    """The history after the first drawn token."""
    history = sampler.history(prompt)
    if history is not None:
        history.append(token)
    return history


class Drawing:
    """A prompt in a cache, and a decoder to go on from it."""

    def __init__(self, model, prompt, sampler, longest=200):
        c = model.config
        self.cache = KVCache(c.layers, c.kv_heads, c.head_dim, pages_for(longest))
        self.sequence = Sequence()
        model(self.cache.step([(self.sequence, prompt)]), self.cache)
        self.decoder = Decoder(model, self.cache, longest, sampler)
        self.prompt, self.sampler, self.history = prompt, sampler, None

    def draw(self, token, count, seconds=60.0, stop_ids=()):
        before = self.sequence.length
        if before == len(self.prompt):
            self.history = begun(self.sampler, self.prompt, token)
        (drawn,) = self.decoder.draw([(self.sequence, token)], count, seconds, stop_ids, [self.history])
        assert self.sequence.length == before + len(drawn)
        assert len(self.sequence.pages) == pages_for(self.sequence.length)
        return drawn


PENALTIES = dict(repeat_penalty=1.2, frequency_penalty=0.2, logit_bias={7: 1.0})
SETTINGS = {
    "greedy": SamplingSettings(), "sampled": SamplingSettings(temperature=1.3, top_p=0.9, top_k=50, min_p=0.01, seed=7),
    "all": SamplingSettings(**PENALTIES), "none": SamplingSettings(**PENALTIES, repeat_last_n=0),
    "one": SamplingSettings(**PENALTIES, repeat_last_n=1), "three": SamplingSettings(**PENALTIES, repeat_last_n=3, temperature=1.1, seed=2),
    "many": SamplingSettings(presence_penalty=0.5, repeat_last_n=60, temperature=0.9, top_k=40, seed=5)}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "wide"])
def test_bursts_of_any_length_draw_the_same(name, settings, threads, wide, monkeypatch):
    monkeypatch.setattr("genkit.plan.LEAST_CAPACITY", 16)  # tables grow
    model = models_run.load(wide if name == "wide" else FIXTURES / name)
    sampler = Sampler(settings, model.config.vocab_size)
    expected = by_hand(model, PROMPT, sampler, 101)
    assert len(set(expected)) > 20
    for count, lengths in ((1, [100]), (2, [1] * 100), (3, [7] * 14 + [2]), (5, [50, 50])):
        threads(count)
        drawing = Drawing(model, PROMPT, sampler)
        tokens = expected[:1]
        for length in lengths:
            tokens += drawing.draw(tokens[-1], length)
        assert tokens == expected, (count, lengths)
    # No time ends every burst after a token; a stop id ends it after itself.
    drawing = Drawing(model, PROMPT, sampler)
    assert drawing.draw(expected[0], 50, seconds=0.0) == expected[1:2]
    stop = expected[40]
    assert drawing.draw(expected[1], 90, stop_ids=(stop, 3)) == \
        expected[2 : 1 + min(i for i, token in enumerate(expected) if i > 1 and token in (stop, 3))]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_sequences_draw_together_what_they_draw_alone(settings, wide):
    model = models_run.load(wide)
    sampler = Sampler(settings, model.config.vocab_size)
    prompts = [PROMPT, list(range(100, 160)), [7]]
    expected = [by_hand(model, prompt, sampler, 31) for prompt in prompts]
    cache = KVCache(3, 2, model.config.head_dim, 9)
    sequences = [Sequence() for _ in prompts]
    model(cache.step(list(zip(sequences, prompts))), cache)
    decoder = Decoder(model, cache, 100, sampler)
    tokens = [e[:1] for e in expected]
    histories = [begun(sampler, prompt, token) for prompt, (token,) in zip(prompts, tokens)]
    for count in (12, 1, 17):
        drawn = decoder.draw([(s, t[-1]) for s, t in zip(sequences, tokens)], count, 60.0, (), histories)
        tokens = [t + d for t, d in zip(tokens, drawn)]
    assert tokens == expected
    assert [s.length for s in sequences] == [len(p) + 30 for p in prompts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random llama with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model") / "llama"
    shutil.copytree(FIXTURES / "llama", folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def made(generation):
    return generation.tokens, generation.text, generation.finish_reason


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}], ids=["greedy", "sampled"])
def test_bursts_do_not_show(folder, monkeypatch, options):
    """Stop strings, ends of text and limits anywhere in a burst."""
    model = genkit.load(folder, threads=2)
    monkeypatch.setattr("genkit.batch.BURST_SECONDS", 60.0)

    def with_bursts_of(count, **more):
        monkeypatch.setattr("genkit.batch.BURST_TOKENS", count)
        pieces = []
        generation = model.generate(PROMPT, on_text=pieces.append, **({"max_tokens": 60} | options | more))
        assert "".join(pieces) == generation.text
        return made(generation), pieces

    free = with_bursts_of(1, ignore_eos=True)
    assert len(free[0][0]) == 60
    text = free[0][1]
    stops = sorted({text[i : i + 2] for i in range(0, len(text) - 1, 3)})
    assert len(stops) > 5
    for more in [{"ignore_eos": True}, {}, *({"stop": stop, "ignore_eos": True} for stop in stops),
                 *({"max_tokens": n, "ignore_eos": True} for n in (1, 2, 7, 8, 9, 10))]:
        assert with_bursts_of(1, **more) == with_bursts_of(7, **more) == with_bursts_of(256, **more), more
    eos = free[0][0][33]
    model._eos_ids = (1, eos)
    (tokens, _, reason), _ = with_bursts_of(256)
    assert reason == "stop" and tokens == free[0][0][: free[0][0].index(eos) + 1] == with_bursts_of(5)[0][0]


def test_a_text_that_ends_gives_its_pages_back(folder, monkeypatch):
    model = genkit.load(folder)
    monkeypatch.setattr("genkit.batch.BURST_SECONDS", 60.0)
    free = model.generate(PROMPT, max_tokens=90, ignore_eos=True)
    caches = []
    cache_of = model._cache
    monkeypatch.setattr(model, "_cache", lambda lengths: caches.append(cache_of(lengths)) or caches[-1])
    stopped = model.generate(PROMPT, max_tokens=90, ignore_eos=True, stop=free.text[8:11])
    assert len(stopped.tokens) < 50 and len(free.tokens) == 90
    assert caches[0].free_pages == len(caches[0]._references) and not any(caches[0]._references)


def test_cancelled_is_asked_between_bursts(folder, monkeypatch):
    model = genkit.load(folder)
    monkeypatch.setattr("genkit.batch.BURST_SECONDS", 60.0)
    monkeypatch.setattr("genkit.batch.BURST_TOKENS", 10)
    asked = []
    generation = model.generate(PROMPT, max_tokens=100, ignore_eos=True, cancelled=lambda: asked.append(1) or len(asked) > 4)
    # Before the prompt, after its token, and after each of three bursts; the last time it said yes.
    assert (generation.finish_reason, len(generation.tokens), len(asked)) == ("interrupted", 31, 5)
    assert generation.tokens == model.generate(PROMPT, max_tokens=31, ignore_eos=True).tokens


def test_penalties_need_histories(folder):
    drawing = Drawing(models_run.load(FIXTURES / "llama"), PROMPT, Sampler(SamplingSettings(repeat_penalty=1.2), 307))
    with pytest.raises(ValueError, match="1 rows of logits, 0 histories"):
        drawing.decoder.draw([(drawing.sequence, 5)], 3, 60.0, ())


@pytest.mark.parametrize("options", [{"repeat_penalty": 1.2}, {"logit_bias": {3: 1.0}}, {"logprobs": 2}])
def test_eager_steps_draw_the_same(folder, monkeypatch, options):
    model = genkit.load(folder)
    by_plan = model.generate(PROMPT, max_tokens=40, temperature=1.2, seed=1, ignore_eos=True, **options)
    monkeypatch.setattr(Decoder, "draw", lambda self, work, *more: [[] for _ in work])
    monkeypatch.setattr(Decoder, "step", lambda self, work, context_length=0: self._model(
        self._cache.step([(s, [t]) for s, t in work], context_length=context_length), self._cache))
    eager = model.generate(PROMPT, max_tokens=40, temperature=1.2, seed=1, ignore_eos=True, **options)
    assert made(by_plan) == made(eager) and by_plan.logprobs == eager.logprobs


def test_logits_that_are_not_finite_name_their_position(folder, tmp_path, monkeypatch):
    """A token whose embedding is NaN, reached in the middle of a burst."""
    free = genkit.load(folder).generate(PROMPT, max_tokens=60, ignore_eos=True).tokens
    at = next(i for i in range(20, 59) if free[i] not in free[:i] and free[i] not in PROMPT)
    copy = copy_of(folder, tmp_path)
    with open_checkpoint(copy) as checkpoint:
        info = checkpoint.tensors["model.embed_tokens.weight"]
    assert info.dtype == "bf16"
    with open(info.file, "r+b") as file:
        file.seek(info.offset + free[at] * info.shape[1] * 2)
        file.write(b"\xc0\x7f")
    model = genkit.load(copy)
    for count in (1, 8, 256):
        monkeypatch.setattr("genkit.batch.BURST_TOKENS", count)
        stream = model.stream(PROMPT, max_tokens=60, ignore_eos=True)
        with pytest.raises(BadFileError, match=rf"position {len(PROMPT) + at + 1} are not finite \(307 of 307"):
            list(stream)
        assert stream.generation.tokens == free[: at + 1]


def test_a_step_that_is_never_the_same_stays_eager(tmp_path):
    """Dynamic rope scaling changes the frequencies with every token past the trained length."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    copy = copy_of(FIXTURES / "llama", tmp_path, rope_parameters=rope, max_position_embeddings=40)
    model = models_run.load(copy)
    sampler = Sampler(SamplingSettings(), model.config.vocab_size)
    prompt = list(range(30, 60))
    assert Drawing(model, prompt, sampler).draw(7, 5) == []
    both = Both(model, [prompt])
    for token in range(100, 140):
        eager, replayed = both.step([token])
        assert np.array_equal(eager, replayed)
    run = models_run.Run(model, 100)
    tokens = [int(run.feed(prompt, logit_rows=[29])[0].argmax())]
    while len(tokens) < 50:
        tokens.append(int(run.feed(tokens[-1:], context_length=30)[0].argmax()))
    assert genkit.load(copy, kv_type="f32").generate(prompt, max_tokens=50, ignore_eos=True).tokens == tokens


# ---- the plan itself -------------------------------------------------------------------------------------------


def f32(random, *shape):
    return _core.Tensor.from_numpy(random.standard_normal(shape).astype(np.float32))


def test_a_recording_runs_nothing_and_a_replay_reads_what_is_there():
    random = np.random.default_rng(0)
    x, y = f32(random, 3, 8), f32(random, 3, 8)
    plan, out = _core.Plan.record(lambda: _core.add(_core.add(x, y), y))
    assert (plan.steps, plan.phases) == (2, 0)
    for _ in range(3):
        x.numpy()[:] = random.standard_normal((3, 8))
        out.numpy()[:] = np.nan
        plan.replay()
        assert np.array_equal(out.numpy(), x.numpy() + y.numpy() + y.numpy())


@pytest.mark.parametrize("kv_type", ("f32", "bf16", "i8"))
def test_attention_with_softcap_and_sinks_replayed_to_the_bit(kv_type, tier, threads):
    """In one piece with one thread, in splits of the keys with more."""
    random = np.random.default_rng(4)
    heads, kv_heads, dim, pages, rows = 6, 2, 32, 40, 2
    shape = (kv_heads, pages, _core.PAGE_KEYS, dim)
    cache = [_core.Tensor.zeros(shape, kv_type) for _ in range(2)]
    cache += [_core.Tensor.zeros(shape[:3]) if kv_type == "i8" else None for _ in range(2)]
    table, sequences, positions = ints(random.permutation(pages)[None]), ints([0] * rows), ints([0] * rows)
    count = pages * _core.PAGE_KEYS
    k, v = (f32(random, count, kv_heads * dim) for _ in range(2))
    _core.kv_write(k, v, *cache[:2], table, ints([0] * count), ints(range(count)), *cache[2:])
    q, sinks = f32(random, rows, heads * dim), f32(random, heads)

    def attend():
        return _core.attention(q, *cache[:2], table, sequences, positions, 0.3, 0, None, *cache[2:], softcap=5.0, sinks=sinks)

    for recorded, others in ((1, (1, 3)), (3, (1, 2, 5))):
        threads(recorded)
        plan, out = _core.Plan.record(attend)
        assert plan.steps == (1 if recorded == 1 else 2)  # with the merging of splits
        for position in (3, 1023, 1024, count - 1):
            q.numpy()[:] = random.standard_normal(q.shape)
            positions.numpy()[:] = position, position // 2
            for count_now in others:
                threads(count_now)
                plan.replay()
                assert np.isfinite(out.numpy()).all() and same_bits(out.numpy(), attend().numpy())


def test_a_plan_outlives_its_inputs_and_an_output_its_plan():
    random = np.random.default_rng(1)
    arrays = [random.standard_normal((4, 16)).astype(np.float32) for _ in range(2)]

    def record():
        x, y = (_core.Tensor.from_numpy(a) for a in arrays)
        return _core.Plan.record(lambda: _core.add(_core.add(x, y), _core.Tensor.from_numpy(arrays[1])))

    plan, out = record()
    gc.collect()
    others = [_core.Tensor.from_numpy(np.full((4, 16), 9, np.float32)) for _ in range(100)]
    plan.replay()
    expected = arrays[0] + arrays[1] + arrays[1]
    assert np.array_equal(out.numpy(), expected)
    view = out.numpy()
    del plan, out, others
    gc.collect()
    others = [_core.Tensor.from_numpy(np.full((4, 16), 9, np.float32)) for _ in range(100)]
    assert np.array_equal(view, expected)


def test_a_failed_recording_leaves_nothing():
    x = f32(np.random.default_rng(2), 2, 4)

    def wrong():
        _core.add(x, x)
        _core.add(x, f32(np.random.default_rng(2), 2, 5))

    for body, error in ((wrong, ValueError), (lambda: 1 / 0, ZeroDivisionError)):
        with pytest.raises(error):
            _core.Plan.record(body)
        assert np.array_equal(_core.add(x, x).numpy(), 2 * x.numpy())  # run, not noted
    with pytest.raises(ValueError, match="being recorded already"):
        _core.Plan.record(lambda: _core.Plan.record(lambda: None))
    assert np.array_equal(_core.add(x, x).numpy(), 2 * x.numpy())


def test_other_threads_run_eagerly_during_a_recording():
    import threading

    x = f32(np.random.default_rng(3), 2, 4)
    results = []

    def body():
        thread = threading.Thread(target=lambda: results.append(_core.add(x, x).numpy().copy()))
        thread.start()
        thread.join()
        return _core.add(x, x)

    plan, _ = _core.Plan.record(body)
    assert plan.steps == 1 and np.array_equal(results[0], 2 * x.numpy())


def test_a_replay_refuses_positions_beyond_what_there_is():
    model = models_run.load(FIXTURES / "gpt2")
    drawing = Drawing(model, [3] * 158, Sampler(SamplingSettings(), model.config.vocab_size), longest=192)
    with pytest.raises(ValueError, match=r"\[embedding\] ids\[0\] is 160; expected 0 to 159"):
        drawing.draw(4, 34)


def test_a_replay_refuses_tokens_out_of_range():
    model = models_run.load(FIXTURES / "llama")
    both = Both(model, [PROMPT])
    both.step([4])
    with pytest.raises(ValueError, match=r"ids\[0\] is 307; expected 0 to 306"):
        both.decoder.step([(both.sequences[1][0], 307)])


def test_models_in_turns(folder, monkeypatch):
    """Two texts that are read piece by piece, each with its own plan; the team is resized on the way."""
    monkeypatch.setattr("genkit.batch.BURST_TOKENS", 3)
    settings = [dict(temperature=0), dict(temperature=1.5, seed=2)]
    models = [genkit.load(folder, threads=2), genkit.load(folder, threads=3)]
    expected = [m.generate("abc", max_tokens=50, ignore_eos=True, **s).text for m, s in zip(models, settings)]
    streams = [iter(m.stream("abc", max_tokens=50, ignore_eos=True, **s)) for m, s in zip(models, settings)]
    texts = ["", ""]
    for turn in range(120):
        texts[turn % 2] += next(streams[turn % 2], "")
    assert texts == expected and all(next(stream, None) is None for stream in streams)


def test_a_forked_child_goes_on_from_the_same_plan(wide):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import models_run
from pathlib import Path
from genkit import _core
from genkit.decoding.sampling import Sampler, SamplingSettings
from test_plan import Drawing
_core.set_threads(3)
model = models_run.load(Path({str(wide)!r}))
drawing = Drawing(model, [5, 17, 3], Sampler(SamplingSettings(), model.config.vocab_size))
first = drawing.draw(9, 20)
child = os.fork()
rest = drawing.draw(first[-1], 20)
if child == 0:
    os._exit(0 if rest == Drawing(model, [5, 17, 3], drawing.decoder._sampler).draw(9, 40)[20:] else 1)
_, status = os.waitpid(child, 0)
sys.exit(0 if status == 0 and len(rest) == 20 else 1)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
