"""docs/adding-a-model.md, done as it says: its blocks of code put in place give a model that is transformers'."""

import importlib
import re
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch to compare with")
pytest.importorskip("transformers", reason="needs transformers to compare with")

import architectures  # noqa: E402
import test_parity as parity  # noqa: E402
from test_parity import quiet_and_single_threaded  # noqa: E402, F401 a fixture

from genkit import models  # noqa: E402
from genkit.errors import BadFileError  # noqa: E402

PAGE = (Path(__file__).parents[1] / "docs" / "adding-a-model.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)


def entries(block):
    """Lines of a table, as the files it is for would read them."""
    return eval("{" + block + "}", dict(vars(architectures)))


@pytest.fixture
def added(monkeypatch):
    """The model in place."""
    code, name, cases, published = BLOCKS
    module = types.ModuleType("genkit.models.opt")
    exec(compile(code, "docs/adding-a-model.md", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for key, value in entries(name).items():
        monkeypatch.setitem(models.ARCHITECTURES, key, value)
    for table, block in ((architectures.CASES, cases), (architectures.PUBLISHED, published)):
        for key, value in entries(block).items():
            monkeypatch.setitem(table, key, value)


def test_the_page_is_whole():
    assert len(BLOCKS) == 4 and "opt" not in models.ARCHITECTURES, "choose another example: this one has been added"
    for path in re.findall(r"`((?:tests|python|docs)/[\w/.-]+)`", PAGE):
        assert path.endswith("models/opt.py") or (Path(__file__).parents[1] / path).exists(), path
    assert len(BLOCKS[0].splitlines()) <= 100 and max(map(len, BLOCKS[0].splitlines())) <= 130


@pytest.mark.parametrize("name", entries(BLOCKS[2]))
def test_the_parity_check_of_the_page(added, name, tmp_path_factory):
    case = parity.case.__wrapped__(types.SimpleNamespace(param=name), tmp_path_factory)
    parity.test_logits(case)
    parity.test_greedy_tokens(case)
    parity.test_one_token_at_a_time_is_the_whole_prompt(case)


def test_the_published_sizes_of_the_page(added, tmp_path):
    for name in entries(BLOCKS[3]):
        parity.test_tensors_of_published_sizes(name, tmp_path)


def test_what_the_page_refuses(added, tmp_path):
    from genkit.checkpoints import Checkpoint, Fields

    sizes = dict(model_type="opt", hidden_size=96, ffn_dim=80, num_hidden_layers=1, num_attention_heads=6, vocab_size=99)
    for key, value in (("do_layer_norm_before", False), ("word_embed_proj_dim", 48), ("activation_function", "relu6")):
        fields = Fields(tmp_path / "config.json", sizes | {key: value})
        with pytest.raises(BadFileError, match=key):
            models.read_model_config(fields, Checkpoint(tmp_path, {}, {}))
    assert importlib.import_module("genkit.models.opt").UNUSED == 2
