"""`genkit inspect`: what it says of files of every kind is what is in them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import file_of
from gguf_files import CONFIGS, YARN, make_model
from text_folders import make_folder

from genkit.checkpoints import open_checkpoint, read_config
from genkit.inspection import examine
from genkit.models import load_model
from genkit.quant.job import quantize
from genkit.quant.quantize import Recipe
from genkit.quant.rewrite import convert
from genkit.quant.writers import gguf as gguf_writer


def inspect(*arguments):
    return subprocess.run([sys.executable, "-m", "genkit", "inspect", *map(str, arguments)], capture_output=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL)


def rows(text):
    """The first table: what stands before two spaces -> the rest."""
    return dict(line.split("  ", 1) for line in text.split("\n\n")[0].splitlines() if "  " in line)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """A qwen2 whose second of two layers has a window, with YaRN and a tokenizer that has two templates."""
    folder = tmp_path_factory.mktemp("inspect") / "model"
    config = CONFIGS["qwen2"] | dict(vocab_size=700, use_sliding_window=True, sliding_window=20, max_window_layers=1)
    make_model(folder, config, np.random.default_rng(1))
    make_folder("qwen", folder.parent / "tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((folder.parent / "tokenizer" / name).read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"},
                                 {"name": "tool_use", "template": "{{ tools }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_an_architecture_s_facts(windowed):
    facts = examine(windowed, 100)
    assert (facts["container"], facts["architecture"], facts["layers"], facts["heads"]) == ("folder", "qwen2", 2, 4)
    assert facts["windows"] == [{"keys": 0, "layers": 1}, {"keys": 20, "layers": 1}]
    assert facts["ropes"] == [{"type": "yarn", "theta": 50000.0, "channels": 24, "factor": YARN["factor"]}]
    assert facts["tokenizer"] == "BPE, byte-level" and facts["chat_template_family"] == "ChatML"
    assert list(facts["chat_templates"]) == ["default", "tool_use"] and facts["problem"] is None
    assert facts["experts"] is facts["provenance"] is facts["conversion"] is None
    said = rows(inspect(windowed).stdout)
    assert said["windows"].strip() == "1 layers see all, 1 layers see 20 keys"
    assert said["rotary"].strip() == "yarn, 24 channels, base 50,000, stretched 4 times"
    assert said["chat template"].strip() == "ChatML; default, tool_use"


def test_layers_that_are_not_there_are_a_problem_and_take_nothing(windowed, tmp_path):
    small = shutil.copytree(windowed, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (small / "config.json").write_text(json.dumps(config))
    facts = examine(small, 64)
    kept = facts["memory"]["kv_cache"] // 3
    assert "model.layers.2." in facts["problem"] and [layer > kept for layer in facts["memory"]["layers"]] == [True, True, False]


def test_types_and_how_they_run(windowed, tmp_path):
    """Types of all tensors; a product of two types runs each as it is."""
    small = tmp_path / "small"
    quantize(windowed, small, Recipe(method="rtn", type="int8", group_size=32), price=False)
    path = small / "config.json"
    config = json.loads(path.read_text())
    facts = examine(small)
    tensors = facts["tensor_list"]
    assert {entry["runs"] for entry in tensors.values()} == {"packed", "as it is"}
    assert sum(entry["bytes"] for entry in facts["tensors"].values()) == sum(entry["bytes"] for entry in tensors.values())
    assert facts["tensors"]["int8 per 32"]["bits"] > 8.5 and facts["tensors"]["int8 per 32"]["runs"] == {"packed": 15}
    assert facts["memory"]["weights"] == sum(entry["bytes"] for entry in tensors.values())
    of_layers = sum(entry["bytes"] for name, entry in tensors.items() if ".layers." in name)
    assert len(facts["memory"]["layers"]) == facts["layers"]
    assert sum(facts["memory"]["layers"]) == pytest.approx(of_layers + facts["memory"]["kv_cache"], rel=0.05)
    kept = facts["memory"]["weights"]
    name = "model.layers.0.self_attn.k_proj.weight"  # its codes called groups of 64: every second scale is another's
    from format_files import Raw

    raw = Raw.read(small)
    raw.arrays[name + ".scales"] = np.ascontiguousarray(raw.arrays[name + ".scales"][:, ::2])
    config["quantization_config"]["formats"][name]["group"] = 64
    raw.config = config
    raw.save()
    facts = examine(small)
    assert {entry["runs"] for entry in facts["tensor_list"].values()} == {"packed", "as it is"}
    assert facts["memory"]["weights"] == kept - 48 * 4  # two scales of two bytes less in each of 48 rows
    fields = read_config(small)
    with open_checkpoint(small, fields) as checkpoint:
        load_model(fields, checkpoint)
        assert not checkpoint.widened  # the loader says the same
    done = inspect(small, "--tensors")
    assert done.returncode == 0 and "widened" not in done.stdout and "14 packed" not in done.stdout
    [line] = [line for line in done.stdout.splitlines() if f" {name} " in line]
    assert line.split() == ["int8", "per", "64", "48", "x", "96", name, "packed"]
    assert "tensor_list" not in json.loads(inspect(small, "--json").stdout)
    assert json.loads(inspect(small, "--json", "--tensors").stdout)["tensor_list"] == facts["tensor_list"]


def test_what_files_say_of_themselves(tmp_path, monkeypatch):
    floats = make_model(tmp_path / "floats", CONFIGS["llama"], np.random.default_rng(1))
    keys = gguf_writer.Model._keys
    said = {"general.name": "Tiny", "general.author": "Some\nbody", "general.license": "apache-2.0", "general.quantized_by": "me",
            "general.source.url": "https://example.org/tiny"}
    more = [(key, 8, value) for key, value in said.items()]
    monkeypatch.setattr(gguf_writer.Model, "_keys", lambda self, arrays: keys(self, arrays) + more)
    convert(floats, tmp_path / "tiny.gguf", "gguf", "bf16")
    facts = examine(tmp_path / "tiny.gguf")
    assert facts["container"] == "gguf" and said.items() <= facts["metadata"].items()
    assert facts["conversion"]["source"] == "floats" and facts["conversion"]["type"] == "bf16"
    assert facts["tensors"]["bf16"]["bits"] == 16 and facts["tokenizer"] is None
    found = rows(inspect(tmp_path / "tiny.gguf").stdout)
    assert found["author"].strip() == r"'Some\nbody'" and found["license"].strip() == "apache-2.0"
    assert found["source url"].strip() == "https://example.org/tiny" and found["made by"].strip().startswith("genkit ")
    file = floats / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length]) | {"__metadata__": {"format": "pt", "author": "me\x1b[2J"}}
    file.write_bytes(file_of(header, data[8 + length:]))
    assert examine(floats)["metadata"] == {"format": "pt", "author": "me\x1b[2J"}
    assert "\x1b" not in inspect(floats).stdout


def test_what_cannot_run_is_shown_and_said(tmp_path):
    floats = make_model(tmp_path / "floats", CONFIGS["llama"], np.random.default_rng(1))
    config = json.loads((floats / "config.json").read_text())
    (floats / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    done = inspect(floats)
    assert done.returncode == 0 and "intermediate_size" in rows(done.stdout)["does not run"]
    (floats / "tokenizer.json").write_text("{")
    (floats / "config.json").write_text(json.dumps(config))
    facts = examine(floats)
    assert facts["tokenizer"] is None and "tokenizer.json" in facts["problem"]
