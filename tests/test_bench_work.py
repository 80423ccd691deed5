"""What a model has to do for a token (bench/work.py), beside counts from the names and shapes of its tensors."""

import json
import math
import re

import pytest
from architectures import CASES
from models_run import load, random_checkpoint

from genkit.bench.work import Attended, Product, work
from genkit.checkpoints import open_checkpoint, read_config
from genkit.kv_cache import KV_TYPES
from genkit.models import load_model
from genkit.quant.formats import BY_NAME

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def counted(tensors, sizes, tied):
    """(numbers a token reads, weights it is multiplied by, numbers in all) of shapes by name: another way to the same."""
    key = next((key for key in EXPERTS if key in sizes), None)
    share = sizes["num_experts_per_tok"] / sizes[key] if key else 1
    tables = ("embed_tokens.weight", "wte.weight", "wpe.weight", "word_embeddings.weight", "embed_in.weight")
    read = multiplied = total = 0
    for name, shape in tensors.items():
        count = math.prod(shape)
        expert = share if "experts" in name and "shared" not in name else 1
        if name.endswith(tables):
            read, total = read + shape[1], total + count
            head = tied and not name.endswith("wpe.weight")
            read, multiplied = read + head * count, multiplied + head * count
        elif len(shape) > 1 and not name.endswith("_bias"):
            read, multiplied, total = read + count * expert, multiplied + count * expert, total + count
        elif name.endswith(("bias", "_bias")) and len(tensors.get(re.sub(r"\.bias$", ".weight", name), (0,))) > 1:
            read, total = read + count * expert, total + count
        elif name.endswith("proj_bias"):  # of experts in one tensor
            read, total = read + count * expert, total + count
    return read, multiplied, total


@pytest.mark.parametrize("name", CASES)
def test_bytes_and_operations_are_those_of_the_tensors(name, tmp_path):
    case = CASES[name]
    random_checkpoint(case, tmp_path, seed=1)
    model = load(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    found = work(model, "f32")
    tied = not any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in shapes)
    read, multiplied, total = counted(shapes, json.loads((tmp_path / "config.json").read_text()) | case.sizes, tied)
    assert found.bytes_per_token == pytest.approx(4 * read)
    assert found.operations_per_token == pytest.approx(2 * multiplied)
    c = model.config
    assert found.kv_bytes == c.layers * 2 * c.kv_heads * c.head_dim * 4 and len(found.attention) == c.layers
    assert {product.kind for product in (*found.products, found.head)} == {"f32"}
    assert found.weight_bytes == 4 * total


@pytest.mark.parametrize("name", ["llama-head80-7-a-kv-head", "qwen2_moe", "deepseek_v3", "gpt2"])
@pytest.mark.parametrize("type", ["int4", "int8"])
def test_rounded_weights_are_counted_as_they_lie(name, type, tmp_path):
    random_checkpoint(CASES[name], tmp_path, seed=1)
    fields = read_config(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        dense = work(load_model(fields, checkpoint), "bf16")
        packed = work(load_model(fields, checkpoint, BY_NAME[type].core()), "bf16")
    assert packed.operations_per_token == dense.operations_per_token
    kinds = [product.kind for product in packed.products]
    assert kinds.count("int8") >= len(kinds) * 3 / 4 and packed.head.kind == "int8"  # routers stay f32
    assert packed.bytes_per_token < dense.bytes_per_token * {"int4": 0.35, "int8": 0.5}[type]  # rows of awkward sizes are filled up


def test_an_int4_llama_reads_its_bits(tmp_path):
    from architectures import llama

    random_checkpoint(llama(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=4, head_dim=64,
                            vocab_size=512), tmp_path, seed=1)
    fields = read_config(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        found = work(load_model(fields, checkpoint, BY_NAME["int4"].core()), "bf16")
    weights = 2 * (4 * 256 * 256 + 3 * 256 * 512) + 512 * 256
    assert found.operations_per_token == 2 * weights
    assert found.bytes_per_token == pytest.approx((weights + 256) * BY_NAME["int4"].bits / 8)
    assert found.weight_bytes == pytest.approx((weights + 512 * 256) * BY_NAME["int4"].bits / 8)


@pytest.mark.parametrize("window", [0, 1, 5, 600, 10000])
@pytest.mark.parametrize("fed, tokens", [(0, 1), (0, 700), (3, 4), (598, 5), (1000, 1100)])
def test_keys_are_counted_one_by_one(window, fed, tokens, tmp_path):
    from genkit.bench.work import Work

    layer = Attended(nbytes=10, operations=3, window=window)
    found = Work((), Product(0, 0, "f32"), 0, (layer, layer), "bf16", 0)

    def sees(query):
        return set(range(0 if not window else max(0, query + 1 - window), query + 1))

    alone = sum(len(sees(query)) for query in range(fed, fed + tokens))
    cost = found.decode(3, fed, tokens)
    assert cost.nbytes == 3 * 2 * 10 * alone and cost.operations["bf16"] == 3 * 2 * 3 * alone
    cost = found.prompt(3, fed, tokens)
    assert cost.operations["bf16"] == 3 * 2 * 3 * alone
    chunks = [range(begin, min(begin + 512, fed + tokens)) for begin in range(fed, fed + tokens, 512)]
    assert cost.nbytes == 3 * 2 * 10 * sum(len(set().union(*map(sees, chunk))) for chunk in chunks)


def test_of_experts_those_are_read_that_some_row_chooses():
    import random

    product, rng = Product(100, 7, "int8", experts=12, chosen=3), random.Random(5)
    assert product.read(0) == 0 and product.read(1) == pytest.approx(300)
    for rows in (2, 5, 40):
        drawn = [len({e for _ in range(rows) for e in rng.sample(range(12), 3)}) for _ in range(4000)]
        assert product.read(rows) == pytest.approx(100 * sum(drawn) / len(drawn), rel=0.02)
    assert Product(100, 7, "int8").read(40) == 100


def test_the_floor_is_the_slower_of_reading_and_computing():
    from collections import Counter

    from genkit.bench.work import Cost

    cost = Cost(1000, Counter(int8=500, bf16=100))
    assert cost.floor(10, {"int8": 100, "bf16": 100}) == (100, "read")
    assert cost.floor(1000, {"int8": 100, "bf16": 50}) == (7, "int8")
    assert cost.floor(1000, {"int8": 100}) == (5, "int8")
    assert cost.times(2).nbytes == 2000 and cost.times(2).operations["bf16"] == 200


def test_every_type_of_keys_is_known():
    from genkit.bench.work import ATTENTION

    assert set(ATTENTION) == set(KV_TYPES)
