"""genkit doctor and genkit inspect: what they say must be what is."""

import json
import os
import platform
import re
import subprocess
import sys

import pytest

from cli_player import make_player

GENKIT = [sys.executable, "-m", "genkit"]


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    folder = make_player(tmp_path_factory.mktemp("models") / "player", context=448)
    (folder / "MODEL_CARD.md").write_text("# The player\n\nPlays *one* script.\n", "utf-8")
    return folder


def genkit(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(GENKIT + [str(a) for a in arguments], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, env=os.environ | environment)


def test_doctor_tells_the_facts():
    from genkit import _core, machine

    facts = json.loads(genkit("doctor", "--json").stdout)
    assert facts["python"] == platform.python_version()
    assert facts["tiers"]["available"] == _core.tiers()
    assert facts["tiers"]["slots"] == _core.slots()  # this process has the same GENKIT_ISA
    assert facts["tiers"]["error"] is None
    assert facts["threads"]["default"] == machine.available_threads()
    assert facts["memory"]["total"] == machine.memory_total() and facts["memory"]["available"] > 0
    assert facts["default_model"]["present"] is True
    text = genkit("doctor").stdout
    for part in (facts["version"], facts["processor"]["name"], facts["cuda"]["reason"], *_core.slots()):
        assert part in text


def test_doctor_shows_the_tier_of_each_kernel_and_the_cap():
    from genkit import _core

    text = genkit("doctor", GENKIT_ISA="reference").stdout
    assert "in use: reference (GENKIT_ISA=reference)" in text
    table = dict(line.split() for line in re.split(r"^kernel +tier\n", text, flags=re.M)[1].splitlines())
    assert table == {slot: "reference" for slot in _core.slots()}


def test_doctor_survives_a_tier_that_is_not_there():
    done = genkit("doctor", GENKIT_ISA="sse9")
    assert done.returncode == 0 and "warning: " in done.stdout and "sse9" in done.stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_doctor_respects_affinity():
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(GENKIT + ["doctor", "--json"], capture_output=True, timeout=120,
                          preexec_fn=lambda: os.sched_setaffinity(0, [one]))
    assert json.loads(done.stdout)["threads"]["default"] == 1


def test_inspect_counts_what_is_in_the_files(player):
    from safetensors.numpy import load_file

    tensors = load_file(player / "model.safetensors")
    facts = json.loads(genkit("inspect", player, "--json", "-c", "100").stdout)
    assert facts["parameters"] == sum(t.size for t in tensors.values())
    assert facts["tensors"] == {"f32": {"tensors": len(tensors), "parameters": facts["parameters"],
                                        "bytes": 4 * facts["parameters"], "bits": 32.0,
                                        "runs": {"as it is": len(tensors)}}}
    assert facts["architecture"] == "gpt2" and facts["max_context"] == 448
    assert facts["vocab_size"] == 271 and facts["tokenizer_size"] == 257
    assert facts["disk_bytes"] == sum(f.stat().st_size for f in player.iterdir())
    memory = facts["memory"]
    assert memory["weights"] == 4 * facts["parameters"] and memory["context"] == 100
    # f32 keys and values of one layer of width 448, 100 tokens rounded up to whole pages
    assert memory["kv_cache"] % (2 * 448 * 4) == 0 and 100 <= memory["kv_cache"] // (2 * 448 * 4) < 100 + 64
    assert facts["card"].startswith("# The player")


def test_inspect_prints_the_card_raw_in_a_pipe(player):
    done = genkit("inspect", player)
    assert done.returncode == 0 and done.stdout.endswith("\n\n# The player\n\nPlays *one* script.\n")
    assert "271 rows, 257 in the tokenizer" in done.stdout and "context" in done.stdout


def test_inspect_of_the_default_model_shows_its_card():
    done = genkit("inspect")
    assert done.returncode == 0 and "default (" in done.stdout and "llama" in done.stdout
    card = done.stdout[done.stdout.index("\n# "):].lower()
    for word in ("licen", "seed", "held-out", "bits", "hour", "limit"):
        assert word in card, word


@pytest.mark.parametrize("arguments, code, said", [
    (["missing/model", "--offline"], 3, "missing/model"), (["-c", "0"], 2, "context"), (["-c", "many"], 2, "many"),
])
def test_inspect_bad_input_is_one_line(arguments, code, said):
    done = genkit("inspect", *arguments)
    assert done.returncode == code and said in done.stderr
    assert done.stderr.startswith("genkit: error: ") and done.stderr.count("\n") == 1 and done.stdout == ""
