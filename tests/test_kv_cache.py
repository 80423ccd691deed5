"""Pages: shared by reference count, copied on write, given back."""

import numpy as np
import pytest

from genkit import _core
from genkit.errors import ResourceError
from genkit.kv_cache import KV_TYPES, PAGE_KEYS, KVCache, Sequence, page_bytes

LAYERS, KV_HEADS, HEAD_DIM = 2, 3, 8


@pytest.fixture
def cache():
    return KVCache(LAYERS, KV_HEADS, HEAD_DIM, pages=8)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def write(cache, rng, sequence, count):
    """Random keys and values for `count` more tokens of a sequence, into every layer; returns what was written."""
    step = cache.step([(sequence, [0] * count)])
    written = []
    for pages in cache.layers:
        k, v = rng.standard_normal((2, count, KV_HEADS * HEAD_DIM)).astype(np.float32)
        tensors = [_core.Tensor.from_numpy(a) for a in (k, v)]
        _core.kv_write(*tensors, pages.k, pages.v, step.page_table, step.sequences, step.positions,
                       pages.k_scales, pages.v_scales)
        written.append((k, v))
    return written


def values(cache, sequence, layer=0):
    """The sequence's V rows as [length, kv_heads * head_dim]."""
    pages = cache.layers[layer].v.numpy()[:, sequence.pages]  # [kv_heads, pages, PAGE_KEYS, head_dim]
    return pages.transpose(1, 2, 0, 3).reshape(-1, KV_HEADS * HEAD_DIM)[: sequence.length]


def test_positions_and_pages_grow(cache):
    sequence = Sequence()
    step = cache.step([(sequence, [7] * (PAGE_KEYS - 1))])
    assert (len(sequence.pages), step.page_table.shape) == (1, (1, 1))
    step = cache.step([(sequence, [1, 2, 3])])
    assert step.positions.numpy().tolist() == [PAGE_KEYS - 1, PAGE_KEYS, PAGE_KEYS + 1]
    assert step.token_ids.numpy().tolist() == [1, 2, 3]
    assert (len(sequence.pages), cache.free_pages) == (2, 6)


def test_a_step_over_several_sequences(cache):
    a, b = Sequence(), Sequence()
    cache.step([(a, [1] * 70)])
    step = cache.step([(b, [5, 6]), (a, [7])])
    assert step.sequences.numpy().tolist() == [0, 0, 1]
    assert step.positions.numpy().tolist() == [0, 1, 70]
    assert step.page_table.numpy().tolist() == [[b.pages[0], 0], a.pages]
    assert step.context_length == 71


def test_a_fork_shares_until_someone_writes(cache, rng):
    parent = Sequence()
    first = write(cache, rng, parent, PAGE_KEYS + 10)
    child = cache.fork(parent)
    assert child.pages == parent.pages and cache.free_pages == 6
    of_child = write(cache, rng, child, 2)
    assert child.pages[0] == parent.pages[0] and child.pages[1] != parent.pages[1]
    of_parent = write(cache, rng, parent, 1)
    for layer in range(LAYERS):
        np.testing.assert_array_equal(values(cache, parent, layer), np.vstack([first[layer][1], of_parent[layer][1]]))
        np.testing.assert_array_equal(values(cache, child, layer), np.vstack([first[layer][1], of_child[layer][1]]))


def test_a_fork_at_a_page_boundary_copies_nothing(cache, rng):
    parent = Sequence()
    write(cache, rng, parent, PAGE_KEYS)
    child = cache.fork(parent)
    write(cache, rng, child, 1)
    assert cache.free_pages == 6 and child.pages[0] == parent.pages[0]


def test_release_gives_back_what_nobody_else_holds(cache, rng):
    parent = Sequence()
    write(cache, rng, parent, 3 * PAGE_KEYS)
    child = cache.fork(parent)
    write(cache, rng, child, 1)
    cache.release(parent)
    assert (cache.free_pages, parent.length, parent.pages) == (4, 0, [])
    cache.release(child)
    assert cache.free_pages == 8


def test_a_full_cache_says_so(cache):
    with pytest.raises(ResourceError, match="all 8 pages of 64 tokens"):
        cache.step([(Sequence(), [0] * (8 * PAGE_KEYS + 1))])


@pytest.mark.parametrize("dtype", KV_TYPES)
def test_page_bytes_are_what_the_cache_holds(dtype):
    cache = KVCache(LAYERS, KV_HEADS, HEAD_DIM, 8, dtype)
    held = sum(t.nbytes for layer in cache.layers for t in layer if t is not None)
    assert held == 8 * page_bytes(LAYERS, KV_HEADS, HEAD_DIM, dtype)
    assert cache.layers[0].k.dtype == ("i8" if dtype == "int8" else dtype)
    assert page_bytes(1, 1, 64, dtype) == 2 * PAGE_KEYS * {"f32": 256, "f16": 128, "bf16": 128, "int8": 68}[dtype]


@pytest.mark.parametrize("dtype", KV_TYPES)
def test_copy_on_write_keeps_every_bit_of_what_was_shared(rng, dtype):
    cache = KVCache(LAYERS, KV_HEADS, HEAD_DIM, 8, dtype)
    parent = Sequence()
    write(cache, rng, parent, PAGE_KEYS + 10)
    child = cache.fork(parent)
    before = [[t.numpy()[:, parent.pages[1]].copy() for t in layer if t is not None] for layer in cache.layers]
    assert all(tensor.any() for layer in before for tensor in layer)
    cache.step([(child, [0])])  # makes the page its own
    for layer, was in zip(cache.layers, before):
        for tensor, old in zip((t for t in layer if t is not None), was):
            np.testing.assert_array_equal(tensor.numpy()[:, child.pages[1]], old)


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="'fp8'; known: f32, f16, bf16, int8"):
        KVCache(LAYERS, KV_HEADS, HEAD_DIM, 8, "fp8")
