"""Pages: shared by reference count, copied on write, given back."""

import numpy as np
import pytest

from genkit import _core
from genkit.errors import ResourceError
from genkit.kv_cache import PAGE_KEYS, KVCache, Sequence

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
    for k_pages, v_pages in cache.layers:
        k, v = rng.standard_normal((2, count, KV_HEADS * HEAD_DIM)).astype(np.float32)
        tensors = [_core.Tensor.from_numpy(a) for a in (k, v)]
        _core.kv_write(*tensors, k_pages, v_pages, step.page_table, step.sequences, step.positions)
        written.append((k, v))
    return written


def values(cache, sequence, layer=0):
    """The sequence's V rows as [length, kv_heads * head_dim]."""
    pages = cache.layers[layer][1].numpy()[sequence.pages]  # [pages, kv_heads, PAGE_KEYS, head_dim]
    return pages.transpose(0, 2, 1, 3).reshape(-1, KV_HEADS * HEAD_DIM)[: sequence.length]


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
