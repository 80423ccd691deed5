"""The promise: the same seed, the same tokens. Logits have the same bits with any number of threads, any batch mates, any
chunks of the prompt, a reused prefix or none, eager or replayed; on every tier, for every form of weights and keys."""

import json
from types import SimpleNamespace

import models_run
import numpy as np
import pytest
from architectures import CASES
from checkpoint_files import write_tensors
from kernel_helpers import bf16_bits

from genkit import _core
from genkit.checkpoints import Fields, open_checkpoint, read_config
from genkit.kv_cache import KVCache, Sequence, pages_for
from genkit.models import load_model
from genkit.plan import Decoder
from genkit.quant.formats import BY_NAME

VOCAB = 307
LENGTHS = (3, 66, 17, 30, 9, 12, 20)  # of the prompts; the second ends past a page
DECODED = 4  # tokens after each
# (weights as stored, rounded to, keys and values)
FORMS = [("f32", None, "f32"), ("bf16", None, "bf16"), ("bf16", "int8", "bf16"), ("bf16", "int4", "bf16"),
         ("f16", "int4", "int8")]


def write_checkpoint(folder, dtype):
    """A random llama of sizes that no kernel divides evenly."""
    from genkit.models import llama

    values = dict(model_type="llama", vocab_size=VOCAB, hidden_size=200, intermediate_size=330, num_hidden_layers=2,
                  num_attention_heads=6, num_key_value_heads=2, head_dim=40, tie_word_embeddings=True,
                  max_position_embeddings=2048)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    config = llama.read_config(Fields(folder / "config.json", values), SimpleNamespace(nbytes=0))
    random = np.random.default_rng(1)
    tensors = {}
    for name, shape in llama.tensor_shapes(config).items():
        array = (random.standard_normal(shape) / 14 + (len(shape) == 1)).astype(np.float32)
        tensors[name] = {"f32": array, "f16": array.astype(np.float16), "bf16": bf16_bits(array)}[dtype]
    write_tensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {dtype: write_checkpoint(root / dtype, dtype) for dtype in ("f32", "f16", "bf16")}


@pytest.fixture
def restored():
    threads, tier = _core.get_threads(), _core.current_tier()
    yield
    _core.use_tier(tier)
    _core.set_threads(threads)


def load(folder, form):
    with open_checkpoint(folder) as checkpoint:
        return load_model(read_config(folder), checkpoint, None if form is None else BY_NAME[form].core())


def cache_for(model, tokens, kv_type):
    c = model.config
    return KVCache(c.layers, c.kv_heads, c.head_dim, sum(pages_for(len(t)) + 1 for t in tokens), kv_type)


def logits_of(model, kv_type, tokens, batch, chunk, replay):
    """[tokens, vocab] of each sequence, `batch` of them at a time, prompts in chunks, the last tokens one by one."""
    results = []
    for first in range(0, len(tokens), batch):
        mates = tokens[first : first + batch]
        cache, sequences, rows = cache_for(model, mates, kv_type), [Sequence() for _ in mates], [[] for _ in mates]
        decoder = Decoder(model, cache, max(map(len, mates)))
        for begin in range(0, max(map(len, mates)) - DECODED, chunk):
            work = [(i, ids[begin : min(begin + chunk, len(ids) - DECODED)]) for i, ids in enumerate(mates)]
            work = [(i, ids) for i, ids in work if ids]
            out = model(cache.step([(sequences[i], ids) for i, ids in work]), cache).numpy()
            for i, ids in work:
                rows[i].append(out[: len(ids)].copy())
                out = out[len(ids) :]
        for step in range(DECODED):
            work = [(sequence, ids[len(ids) - DECODED + step]) for sequence, ids in zip(sequences, mates)]
            if replay:
                out = decoder.step(work).numpy()
            else:
                out = model(cache.step([(sequence, [token]) for sequence, token in work]), cache).numpy()
            for i in range(len(mates)):
                rows[i].append(out[i : i + 1].copy())
        results += [np.concatenate(parts) for parts in rows]
    return results


def differing_bits(a, b):
    return sum(int(np.unpackbits((x.view(np.uint32) ^ y.view(np.uint32)).view(np.uint8)).sum()) for x, y in zip(a, b))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tier", _core.tiers())
def test_no_bit_differs(tier, form, folders, restored):
    stored, rounded, kv_type = form
    _core.use_tier(tier)
    model = load(folders[stored], rounded)
    random = np.random.default_rng(2)
    tokens = [random.integers(0, VOCAB, length + DECODED).tolist() for length in LENGTHS]
    _core.set_threads(1)
    want = logits_of(model, kv_type, tokens, 1, 512, replay=False)
    assert all(np.isfinite(x).all() and np.ptp(x) > 1 for x in want)
    for threads in (1, 2, 3, 5):
        _core.set_threads(threads)
        for batch in (1, 2, 7):
            for chunk in (1, 7, 64, 512):
                for replay in (False, True):
                    got = logits_of(model, kv_type, tokens, batch, chunk, replay)
                    assert differing_bits(got, want) == 0, (threads, batch, chunk, replay)


# What llama has not: capped scores, sinks, experts, keys from a latent, ALiBi, layers side by side that do not all rotate.
OTHERS = ("gemma2", "gpt_oss", "qwen2_moe", "deepseek_v3", "bloom", "cohere2")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    root = tmp_path_factory.mktemp("others")
    for i, name in enumerate(OTHERS):
        (root / name).mkdir()
        models_run.random_checkpoint(CASES[name], root / name, i)
    return root


@pytest.mark.parametrize("rounded, kv_type", [(None, "f32"), ("int4", "int8")])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("tier", _core.tiers())
def test_no_bit_differs_in_other_blocks(tier, name, rounded, kv_type, others, restored):
    _core.use_tier(tier)
    model = load(others / name, rounded)
    random = np.random.default_rng(3)
    tokens = [random.integers(0, model.config.vocab_size, length + DECODED).tolist() for length in LENGTHS]
    _core.set_threads(1)
    want = logits_of(model, kv_type, tokens, 1, 512, replay=False)
    assert all(np.isfinite(x).all() and np.ptp(x) > 1 for x in want)
    for threads, batch, chunk, replay in ((1, 7, 7, True), (3, 1, 512, True), (2, 2, 1, False), (3, 7, 64, False)):
        _core.set_threads(threads)
        got = logits_of(model, kv_type, tokens, batch, chunk, replay)
        assert differing_bits(got, want) == 0, (threads, batch, chunk, replay)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_reused_prefix_changes_no_bit(form, folders):
    stored, rounded, kv_type = form
    model = load(folders[stored], rounded)
    random = np.random.default_rng(3)
    prefix = random.integers(0, VOCAB, 77).tolist()
    tails = [random.integers(0, VOCAB, count).tolist() for count in (5, 70)]
    cache = cache_for(model, [prefix + tail for tail in tails] + [prefix], kv_type)
    shared = Sequence()
    model(cache.step([(shared, prefix)]), cache)
    for tail in tails:
        fork = cache.fork(shared)
        got = model(cache.step([(fork, tail)]), cache).numpy()
        run = models_run.Run(model, 1)
        run.cache = cache_for(model, [prefix + tail], kv_type)
        assert differing_bits([got], [run.feed(prefix + tail)[len(prefix) :]]) == 0


@pytest.mark.parametrize("form", [FORMS[0], FORMS[3]], ids=str)
def test_long_contexts(form, folders, restored):
    """Past the keys at which attention splits its work."""
    stored, rounded, kv_type = form
    model = load(folders[stored], rounded)
    tokens = [np.random.default_rng(4).integers(0, VOCAB, 1100).tolist()]
    _core.set_threads(1)
    want = logits_of(model, kv_type, tokens, 1, 2048, replay=False)
    for threads in (2, 5):
        _core.set_threads(threads)
        for chunk in (100, 512):
            for replay in (False, True):
                assert differing_bits(logits_of(model, kv_type, tokens, 1, chunk, replay), want) == 0


def test_integer_products_are_the_same_on_every_tier(folders, restored):
    """Beyond the promise: what integer weights give has the same bits on every tier (docs/numerics.md)."""
    random = np.random.default_rng(5)
    weight = _core.Tensor.from_numpy(bf16_bits(random.standard_normal((100, 700)) * 0.02), dtype="bf16")
    x = random.standard_normal((9, 700)).astype(np.float32)
    for name in BY_NAME:
        seen = set()
        for tier in _core.tiers():
            _core.use_tier(tier)
            packed = _core.quantize_weight(weight, BY_NAME[name].core())
            seen.add(_core.packed_linear(_core.Tensor.from_numpy(x), packed).numpy().tobytes())
        assert len(seen) == 1
