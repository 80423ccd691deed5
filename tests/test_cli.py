"""The command as a user runs it: real processes, real pipes, real files."""

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from cli_player import SCRIPT, make_player, rest_of_script

PROMPT = "Gr"
EXPECTED = rest_of_script(PROMPT)
GENKIT = [sys.executable, "-m", "genkit"]
TIMEOUT = 120


@pytest.fixture(scope="session")
def player(tmp_path_factory) -> Path:
    return make_player(tmp_path_factory.mktemp("models") / "player")


@pytest.fixture(scope="session")
def chatty(tmp_path_factory) -> Path:
    return make_player(tmp_path_factory.mktemp("models") / "chatty", chat=True)


@pytest.fixture(scope="session")
def endless(tmp_path_factory) -> Path:
    """Writes for many seconds: what can be interrupted or watched."""
    return make_player(tmp_path_factory.mktemp("models") / "endless", context=60_000, loop=True)


@pytest.fixture(scope="session")
def vague(tmp_path_factory) -> Path:
    """Sampling from it gives different texts for different seeds."""
    return make_player(tmp_path_factory.mktemp("models") / "vague", sharpness=0.2)


def environment(**changes: str) -> "dict[str, str]":
    base = {key: value for key, value in os.environ.items() if not key.startswith(("GENKIT_", "HF_", "COLUMNS"))}
    if "GENKIT_ISA" in os.environ:  # the tier a whole test run is meant for
        base["GENKIT_ISA"] = os.environ["GENKIT_ISA"]
    return base | changes


def genkit(*arguments: object, stdin: "bytes | None" = None, env: "dict[str, str] | None" = None, **options):
    """The finished process; stdout and stderr are bytes."""
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(GENKIT + [str(a) for a in arguments], capture_output=True, timeout=TIMEOUT,
                          env=environment(**(env or {})), **(given | options))


def generate(*arguments: object, **options):
    return genkit("generate", *arguments, **options)


def start(*arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(GENKIT + ["generate", *map(str, arguments)], stdin=subprocess.DEVNULL, env=environment(),
                            **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options))


def text_of(done) -> str:
    """Standard output of a run that must have succeeded."""
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def error_of(done, code: int) -> str:
    """The one line a failure may print."""
    stderr = done.stderr.decode()
    assert done.returncode == code, f"exit {done.returncode}, {stderr}"
    assert done.stdout == b""
    assert stderr.startswith("genkit: error: ") and stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    return stderr


def strict_json(text: str) -> dict:
    def refuse(constant: str):
        raise ValueError(f"{constant} is not JSON")

    assert text.endswith("\n") and text.count("\n") == 1
    return json.loads(text, parse_constant=refuse)


# The text


def test_text_goes_to_stdout_exactly_and_a_summary_to_stderr(player):
    done = generate("-m", player, PROMPT)
    assert text_of(done) == EXPECTED
    assert re.fullmatch(
        r"genkit: prompt 2 tokens in \d+\.\d\d s \([\d.]+ tokens/s\) \| text \d+ tokens in \d+\.\d\d s \([\d.]+ tokens/s\)"
        r" \| ended \| greedy\n", done.stderr.decode())


def test_quiet_says_nothing_but_the_text(player):
    done = generate("-m", player, "-q", PROMPT)
    assert text_of(done) == EXPECTED and done.stderr == b""


def test_verbose_says_what_was_chosen(player):
    done = generate("-m", player, "-v", "-t", "1", "--temp", "0.5", "-s", "3", "-n", "4", PROMPT)
    stderr = done.stderr.decode()
    for part in (str(player), "gpt2", "1 threads", "context 512", "without a chat template", "temperature 0.5", "seed 3"):
        assert part in stderr, stderr


@pytest.mark.parametrize("count", [1, 2, 12, 13, 35, 38])
def test_stopping_inside_a_character_ends_in_one_replacement(player, count):
    text = text_of(generate("-m", player, "-n", count, PROMPT))
    cut = EXPECTED.encode()[:count]
    assert text == cut.decode("utf-8", "replace")


def test_text_arrives_as_it_is_made_and_never_in_torn_characters(endless):
    process = start("-m", endless, "-n", "3000", PROMPT, stderr=subprocess.DEVNULL)
    pieces = []
    still_running = False
    while data := os.read(process.stdout.fileno(), 1 << 16):
        if not pieces:
            still_running = process.poll() is None
        pieces.append(data.decode("utf-8"))  # raises for half a character
    assert process.wait(TIMEOUT) == 0
    assert still_running and len(pieces) > 10
    assert len("".join(pieces).encode()) >= 2990


def test_prompt_comes_by_any_way_and_loses_one_newline(player, tmp_path):
    file = tmp_path / "prompt.txt"
    for content in (b"Gr", b"Gr\n", b"Gr\r\n", b"\xef\xbb\xbfGr\n"):
        file.write_bytes(content)
        assert text_of(generate("-m", player, "-f", file)) == EXPECTED
        assert text_of(generate("-m", player, stdin=content)) == EXPECTED
    for arguments in (["-f", "-"], ["-"], ["-p", "-"]):
        assert text_of(generate("-m", player, *arguments, stdin=b"Gr\n")) == EXPECTED
    for arguments in (["-p", PROMPT], ["--prompt", PROMPT], ["--", PROMPT], ["--no-display-prompt", "-st", PROMPT]):
        assert text_of(generate("-m", player, *arguments)) == EXPECTED
    assert text_of(generate("-m", player, "--prompt", "-xy\n")) == rest_of_script("-xy\n")  # exactly as given
    assert text_of(generate("-m", player, PROMPT, stdin=b"not read")) == EXPECTED


def test_prompt_from_a_slow_pipe_is_read_to_its_end(player):
    process = subprocess.Popen(GENKIT + ["generate", "-q", "-m", str(player)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env=environment())
    for part in (b"G", b"r", b"\n"):
        process.stdin.write(part)
        process.stdin.flush()
        time.sleep(0.2)
    assert process.communicate(timeout=TIMEOUT)[0].decode() == EXPECTED


def test_stop_strings_eos_and_token_limits(player):
    assert text_of(generate("-m", player, "--stop", "世", PROMPT)) == EXPECTED.split("世")[0]
    assert text_of(generate("-m", player, "-r", "nowhere", "--stop", "🦊", "--stop", "Fluß", PROMPT)) == EXPECTED.split("🦊")[0]
    assert len(text_of(generate("-m", player, "--predict", "7", "--ignore-eos", PROMPT)).encode()) >= 7
    done = generate("-m", player, "--json", "--ignore-eos", "-n", "-1", PROMPT)
    long = json.loads(text_of(done))
    assert b"| context full |" in done.stderr and b"| cut by -n |" in generate("-m", player, "-n", "5", PROMPT).stderr
    assert long["finish_reason"] == "length" and long["usage"]["total_tokens"] == 512
    assert json.loads(text_of(generate("-m", player, "--json", PROMPT)))["finish_reason"] == "stop"


def test_chat_template_is_used_when_the_model_has_one(player, chatty):
    def made(model, *arguments):
        return json.loads(text_of(generate("-m", model, "--json", *arguments, "Gr")))

    def tokens(text: str) -> int:
        return len(text.encode())

    assert made(chatty)["usage"]["prompt_tokens"] == tokens("[user] Gr\n[assistant] ")
    assert made(chatty, "--chat")["settings"]["chat"] is True
    assert made(chatty, "-sys", "Be brief")["usage"]["prompt_tokens"] == tokens("[system] Be brief\n[user] Gr\n[assistant] ")
    for off in ("--no-chat", "-no-cnv", "--ignore-chat-template"):
        assert made(chatty, off)["usage"]["prompt_tokens"] == 2
        assert made(chatty, off)["settings"]["chat"] is False
    assert made(player)["settings"]["chat"] is False
    assert "chat template" in error_of(generate("-m", player, "--chat", "Gr"), 2)
    assert "chat template" in error_of(generate("-m", player, "--system", "x", "Gr"), 2)


# JSON


def test_json_is_one_strict_object_with_everything(player):
    done = generate("-m", player, "--json", "--logprobs", "2", "-n", "9", "--temp", "0.7", "-s", "11", "-t", "1",
                    "--logit-bias", "3=-1.5", "-l", "4+2", PROMPT)
    made = strict_json(text_of(done))
    assert set(made) == {"model", "prompt", "text", "prompt_token_ids", "token_ids", "finish_reason", "logprobs", "seed",
                         "settings", "usage", "timings", "device", "tier", "threads", "quantize",
                         "kv_type"}
    assert made["model"] == str(player) and made["prompt"] == PROMPT and made["seed"] == 11
    assert made["usage"] == {"prompt_tokens": 2, "completion_tokens": 9, "total_tokens": 11}
    assert len(made["token_ids"]) == 9 and len(made["prompt_token_ids"]) == 2 and made["finish_reason"] == "length"
    assert made["settings"]["temperature"] == 0.7 and made["settings"]["logit_bias"] == {"3": -1.5, "4": 2.0}
    assert set(made["timings"]) == {"load_s", "prefill_s", "decode_s"} and min(made["timings"].values()) >= 0
    assert made["device"] == "cpu" and made["threads"] == 1
    assert len(made["logprobs"]) == 9
    for entry, token in zip(made["logprobs"], made["token_ids"]):
        assert entry["id"] == token and entry["logprob"] <= 0 and len(entry["top"]) == 2
        assert entry["top"][0]["logprob"] >= entry["top"][1]["logprob"]
    assert set(made["logprobs"][0]) == {"id", "token", "logprob", "top"}


def test_json_text_is_the_streamed_text_and_stays_readable(player):
    done = generate("-m", player, "--json", PROMPT)
    assert strict_json(text_of(done))["text"] == EXPECTED
    assert "👩‍🚀" in done.stdout.decode() and b"\\u" not in done.stdout
    assert "logprobs" not in strict_json(done.stdout.decode())


def test_json_has_no_infinity_for_forbidden_tokens(player):
    made = strict_json(text_of(generate("-m", player, "--json", "--logprobs", "271", "-n", "2", "-l", "5-inf", PROMPT)))
    assert len(made["logprobs"][0]["top"]) == 271


# Seeds


@pytest.mark.parametrize("model", ["default", "vague"])
def test_seed_repeats_the_text_with_any_number_of_threads(model, request):
    where = [] if model == "default" else ["-m", request.getfixturevalue("vague")]
    arguments = [*where, "-n", "48", "--temp", "1", "--json", "def parse(text):"]

    def tokens(*more):
        made = json.loads(text_of(generate(*arguments, *more)))
        return made["token_ids"], made["seed"]

    first = tokens("-s", "7", "-t", "1")
    assert first[1] == 7
    assert first == tokens("--seed", "7", "-t", "2") == tokens("--seed=7", "--threads", "3")
    assert tokens("-s", "8")[0] != first[0]
    drawn = tokens()
    assert drawn[1] is not None and tokens("-s", drawn[1]) == drawn
    assert tokens("-s", "-1")[1] != drawn[1]


def test_summary_names_the_seed_that_was_drawn(vague):
    done = generate("-m", vague, "--temp", "1", "-n", "20", PROMPT)
    seed = re.search(r"seed (\d+)\n", done.stderr.decode()).group(1)
    assert text_of(generate("-m", vague, "--temp", "1", "-n", "20", "-s", seed, PROMPT)) == text_of(done)


# Tiers


def tiers() -> "list[str]":
    from genkit import _core

    return _core.tiers()


@pytest.mark.parametrize("tier", tiers())
def test_every_tier_gives_the_same_greedy_text(player, tier):
    made = json.loads(text_of(generate("-m", player, "--json", PROMPT, env={"GENKIT_ISA": tier})))
    assert made["text"] == EXPECTED and made["tier"] == tier


def test_unknown_tier_is_refused_by_name(player):
    error = error_of(generate("-m", player, PROMPT, env={"GENKIT_ISA": "sse9"}), 2)
    assert "sse9" in error and "reference" in error


# The default model


def test_default_model_needs_nothing(tmp_path):
    """No -m, no network, no home, a folder nobody may write to."""
    os.chmod(tmp_path, 0o555)
    nowhere = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "http_proxy": "127.0.0.1:9", "https_proxy": "127.0.0.1:9"}
    text = text_of(generate("def fibonacci(n):", "--temp", "0", env=nowhere, cwd=tmp_path))
    assert "\n" in text and "return" in text
    assert text == text_of(generate("def fibonacci(n):", "--temp", "0", "--offline"))
    assert text_of(generate("def fibonacci(n):", env=nowhere, cwd=tmp_path))


@pytest.mark.parametrize("tier", tiers())
def test_default_model_is_the_same_on_every_tier(tier):
    text = text_of(generate("-n", "64", "--temp", "0", "def fibonacci(n):", env={"GENKIT_ISA": tier}))
    assert text == text_of(generate("-n", "64", "--temp", "0", "def fibonacci(n):"))
    assert len(text) > 64


# Files


def test_output_file(player, tmp_path):
    file = tmp_path / "out.txt"
    done = generate("-m", player, "-o", file, PROMPT)
    assert text_of(done) == "" and file.read_bytes().decode() == EXPECTED
    as_json = tmp_path / "out.json"
    assert text_of(generate("-m", player, "--json", "-o", as_json, PROMPT)) == ""
    assert strict_json(as_json.read_text("utf-8"))["text"] == EXPECTED
    assert text_of(generate("-m", player, "-o", "-", PROMPT)) == EXPECTED
    assert text_of(generate("-m", player, "-o", "/dev/null", PROMPT)) == ""


def test_an_existing_file_is_kept_unless_forced(player, tmp_path):
    file = tmp_path / "out.txt"
    file.write_text("precious, and longer than what comes" * 20)
    before = file.read_bytes()
    assert str(file) in error_of(generate("-m", player, "-o", file, PROMPT), 2)
    assert "missing" in error_of(generate("-m", tmp_path / "missing", "-o", file, "--force", PROMPT), 3)
    assert file.read_bytes() == before  # --force replaces it when there is something to put in its place
    assert text_of(generate("-m", player, "-o", file, "--force", PROMPT)) == ""
    assert file.read_bytes().decode() == EXPECTED


def test_an_empty_text_is_a_text(player, tmp_path):
    whole = tmp_path / "whole.txt"
    whole.write_bytes(SCRIPT.encode() + b"\n")  # the likeliest token after the whole script is end-of-text
    made, old = tmp_path / "made.txt", tmp_path / "old.txt"
    old.write_text("old")
    assert text_of(generate("-m", player, "-f", whole)) == ""
    assert text_of(generate("-m", player, "-f", whole, "-o", made)) == "" and made.read_bytes() == b""
    assert text_of(generate("-m", player, "-f", whole, "-o", old, "--force")) == "" and old.read_bytes() == b""


def test_a_failure_leaves_no_empty_file(tmp_path):
    file = tmp_path / "out.txt"
    error_of(generate("-m", tmp_path / "missing", "-o", file, PROMPT), 3)
    assert not file.exists()


@pytest.mark.parametrize("where", ["missing/out.txt", ".", "/proc/nothing/x", "a-file/out.txt"])
def test_unwritable_output_is_found_before_any_work(tmp_path, where):
    (tmp_path / "a-file").write_text("")
    # The model is missing too: that it is not mentioned shows that the output was tried first.
    error = error_of(generate("-m", tmp_path / "no-model", "-o", tmp_path / where, PROMPT), 4)
    assert "out.txt" in error or "directory" in error


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_full_disk_is_one_line_and_exit_4(player, as_json):
    assert "No space left" in error_of(generate("-m", player, *as_json, "-o", "/dev/full", PROMPT), 4)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(GENKIT + ["generate", "-m", str(player), *as_json, PROMPT], stdin=subprocess.DEVNULL,
                              stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT, env=environment())
        assert done.returncode == 4 and done.stderr.count(b"\n") == 1 and b"standard output" in done.stderr
        for command in (["doctor"], ["--help"], ["doctor", "--json"]):
            done = subprocess.run(GENKIT + command, stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT)
            assert done.returncode == 4 and done.stderr.count(b"\n") == 1, (command, done.stderr)


def test_closed_descriptors(player):
    def shell(redirections: str, *arguments: object):
        line = " ".join([*(f'"{a}"' for a in (*GENKIT, "generate", "-m", player, *arguments)), redirections])
        return subprocess.run(["bash", "-c", line], capture_output=True, timeout=TIMEOUT, env=environment())

    assert text_of(shell("<&-", PROMPT)) == EXPECTED
    assert "no prompt" in error_of(shell("<&-"), 2)
    assert "closed" in error_of(shell("<&-", "-"), 2)
    assert text_of(shell("2>&-", PROMPT)) == EXPECTED
    assert error_of(shell(">&-", PROMPT), 4)


def test_a_reader_that_leaves_is_no_error(endless):
    line = f'"{sys.executable}" -m genkit generate -m "{endless}" -n 20000 Gr | head -c 10; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=TIMEOUT, env=environment())
    assert done.returncode == 141 and done.stderr == b"" and done.stdout == EXPECTED.encode()[:10]


# Bad input: one line, the option or file in it, the right code


@pytest.mark.parametrize("arguments, code, said", [
    ([], 2, "no prompt"),
    (["Once", "upon", "a", "time"], 2, "quotes"),
    (["--bogus", "x"], 2, "--bogus"),
    (["x", "-n"], 2, "-n"),
    (["x", "-n", "many"], 2, "'many'"),
    (["x", "-n", "0"], 2, "max_tokens"),
    (["x", "-n", "-5"], 2, "-5"),
    (["x", "-n", "9" * 30], 2, "out of range"),
    (["x", "-t", "0"], 2, "threads"),
    (["x", "-t", "-3"], 2, "threads: -3"),
    (["x", "-t", "two"], 2, "'two'"),
    (["x", "-c", "0"], 2, "context"),
    (["x", "-c", "-1"], 2, "context"),
    (["x", "-c", "1000000"], 2, "1000000"),
    (["x", "-c", "3.5"], 2, "'3.5'"),
    (["x", "-c", "nank"], 2, "'nank'"),
    (["x", "--temp", "-1"], 2, "temperature"),
    (["x", "--temp", "nan"], 2, "temperature"),
    (["x", "--temp", "inf"], 2, "temperature"),
    (["x", "--temp", "hot"], 2, "'hot'"),
    (["x", "--top-k", "-2"], 2, "top_k"),
    (["x", "--top-p", "1.5"], 2, "top_p"),
    (["x", "--top-p", "-0.1"], 2, "top_p"),
    (["x", "--min-p", "2"], 2, "min_p"),
    (["x", "--repeat-penalty", "0"], 2, "repeat_penalty"),
    (["x", "--repeat-penalty", "nan"], 2, "repeat_penalty"),
    (["x", "--repeat-last-n", "-7"], 2, "repeat_last_n"),
    (["x", "--presence-penalty", "nan"], 2, "presence_penalty"),
    (["x", "--frequency-penalty", "inf"], 2, "frequency_penalty"),
    (["x", "-l", "five=1"], 2, "five=1"),
    (["x", "-l", "5"], 2, "--logit-bias"),
    (["x", "-l", "5=nan"], 2, "logit_bias"),
    (["x", "-l", "100000=1"], 2, "100000"),
    (["x", "-s", "1.5"], 2, "'1.5'"),
    (["x", "-s", "-2"], 2, "seed"),
    (["x", "--beams", "0"], 2, "beams"),
    (["x", "--beams", "1000"], 2, "beams"),
    (["x", "--beams", "2", "--length-penalty", "nan"], 2, "length_penalty"),
    (["x", "--stop", ""], 2, "stop"),
    (["x", "--logprobs", "2"], 2, "--json"),
    (["x", "--json", "--logprobs", "-1"], 2, "logprobs"),
    (["x", "--json", "--logprobs", "9999"], 2, "logprobs"),
    (["x", "--device", "tpu"], 2, "tpu"),
    (["x", "-p", "y"], 2, "twice"),
    (["x", "-f", "y"], 2, "twice"),
    (["x", "--system", "y", "--system-file", "z"], 2, "twice"),
    (["-f", "missing.txt"], 3, "missing.txt"),
    (["-f", "."], 3, "prompt file ."),
    (["x", "--system-file", "missing.txt"], 3, "missing.txt"),
    (["x" * 600], 2, "600"),
])
def test_bad_options(player, tmp_path, arguments, code, said):
    assert said in error_of(generate("-m", player, *arguments, cwd=tmp_path), code)


def test_prompt_longer_than_the_context_names_both_counts(player):
    error = error_of(generate("-m", player, "-c", "40", "x" * 41), 2)
    assert "41" in error and "40" in error
    assert len(text_of(generate("-m", player, "-c", "40", "--ignore-eos", "x" * 39)).encode()) >= 1


@pytest.mark.parametrize("data, said", [
    (b"caf\xe9", "byte 3 (0xe9)"), (b"\xff\xfeG\x00r\x00", "byte 0 (0xff)"), (b"G\xf0\x9f\xa6", "byte 1 (0xf0)"),
    (b"", "empty"), (b"\n", "empty"),
])
def test_prompt_bytes_that_are_no_text(player, tmp_path, data, said):
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    code = 2 if said == "empty" else 3
    error = error_of(generate("-m", player, "-f", file), code)
    assert said in error and str(file) in error
    error = error_of(generate("-m", player, "-", stdin=data), code)
    assert said in error and "standard input" in error


def test_argument_that_is_no_text(player):
    done = subprocess.run([*(os.fsencode(a) for a in GENKIT), b"generate", b"-m", os.fsencode(player), b"caf\xe9"],
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, env=environment(LC_ALL="C.UTF-8"))
    assert "not valid UTF-8 at character 3" in error_of(done, 2)


def spoil(model: Path, tmp_path: Path, file: str, change) -> Path:
    """A copy of the model with one file changed."""
    copy = tmp_path / "spoilt"
    copy.mkdir()
    for source in model.iterdir():
        data = source.read_bytes()
        if source.name == file:
            data = change(data)
        if data is not None:
            (copy / source.name).write_bytes(data)
    return copy


def edit_config(**changes):
    return lambda data: json.dumps(json.loads(data) | changes).encode()


@pytest.mark.parametrize("file, change, said", [
    ("config.json", lambda data: None, "config.json"),
    ("config.json", lambda data: data[:-5], "config.json"),
    ("config.json", edit_config(model_type="mamba9"), "'mamba9' is not supported; known: bloom, cohere2, "),
    ("config.json", edit_config(n_head=0), "n_head"),
    ("config.json", edit_config(n_embd=-8), "n_embd"),
    ("config.json", edit_config(n_layer=2**40), "n_layer"),
    ("config.json", edit_config(layer_norm_epsilon=float("nan")), "layer_norm_epsilon"),
    ("config.json", edit_config(vocab_size=255), "255"),
    ("model.safetensors", lambda data: None, "model.safetensors"),
    ("model.safetensors", lambda data: data[:-100], "model.safetensors"),
    ("model.safetensors", lambda data: data + b"x", "model.safetensors"),
    ("model.safetensors", lambda data: b"\xff" * 8 + data[8:], "model.safetensors"),
    ("model.safetensors", lambda data: data.replace(b'"F32"', b'"F64"', 1), "model.safetensors"),
    ("model.safetensors", lambda data: data.replace(b"ln_f.bias", b"ln_f.bios", 1), "ln_f.bias"),
    ("tokenizer.json", lambda data: None, "tokenizer.json"),
    ("tokenizer.json", lambda data: data[: len(data) // 2], "tokenizer.json"),
    ("tokenizer_config.json", lambda data: b"[1]", "tokenizer_config.json"),
])
def test_bad_model_files(player, tmp_path, file, change, said):
    folder = spoil(player, tmp_path, file, change)
    error = error_of(generate("-m", folder, PROMPT), 3)
    assert said in error and "spoilt" in error


def test_missing_model_names_both_readings(tmp_path):
    error = error_of(generate("-m", "no/such-model", "--offline", PROMPT, cwd=tmp_path), 3)
    assert "no/such-model" in error


def test_weights_that_give_nan_are_an_error(player, tmp_path):
    import numpy as np
    from safetensors.numpy import load, save

    def poison(data: bytes) -> bytes:
        tensors = load(data)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].copy()
        tensors["lm_head.weight"][3, :] = np.nan
        return save(tensors)

    folder = spoil(player, tmp_path, "model.safetensors", poison)
    assert "NaN" in error_of(generate("-m", folder, PROMPT), 3)


def test_cuda_without_a_gpu_is_exit_5(player):
    from genkit.machine import cuda_state

    if cuda_state()[0]:
        pytest.skip("this machine can run CUDA")
    assert "cuda" in error_of(generate("-m", player, "--device", "cuda", PROMPT), 5)
    assert text_of(generate("-m", player, "--device", "auto", PROMPT)) == EXPECTED


def test_more_threads_than_processors_is_allowed_and_said_once(player):
    count = 2 * os.cpu_count() + 1
    done = generate("-m", player, "-t", count, PROMPT)
    assert text_of(done) == EXPECTED and done.stderr.decode().count(f"{count} threads on ") == 1
    assert b"threads" not in generate("-m", player, "-t", 1, PROMPT).stderr


def test_memory_that_is_not_there_is_exit_4(player):
    line = f'ulimit -v 2000000; exec "{sys.executable}" -m genkit generate -m "{player}" --beams 64 -n -1 -c 512 Gr'
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=TIMEOUT, env=environment())
    assert done.returncode in (0, 4)
    assert done.returncode == 0 or done.stderr.startswith(b"genkit: error: ") and done.stderr.count(b"\n") == 1


def test_traceback_is_shown_only_on_demand(player):
    done = generate("-m", player, "--temp", "-1", "--traceback", PROMPT)
    assert done.returncode == 2 and b"Traceback (most recent call last)" in done.stderr
    assert done.stderr.decode().splitlines()[-1].startswith("genkit: error: ")


# Ctrl-C


def test_ctrl_c_keeps_what_was_made(endless):
    process = start("-m", endless, "-n", "-1", PROMPT)
    begun = os.read(process.stdout.fileno(), 1 << 16)
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert re.fullmatch(rb"genkit: prompt .* \| interrupted \| greedy\n", stderr), stderr
    check_part((begun + rest).decode())


def check_part(text: str) -> None:
    """What was written of the endless script, whole up to the end; a character cut by Ctrl-C shows as U+FFFD."""
    assert 0 < len(text.encode()) < 59_000
    assert (SCRIPT * 1000).startswith(PROMPT + text.rstrip("\ufffd"))


def test_ctrl_c_keeps_the_json(endless):
    process = start("-m", endless, "-v", "--json", "-n", "-1", PROMPT)
    told = b""
    while b"max_tokens" not in told:  # the last line before the first token
        told += os.read(process.stderr.fileno(), 1 << 16)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130 and b"interrupted" in stderr and b"error" not in told + stderr
    made = strict_json(stdout.decode())
    assert made["finish_reason"] == "interrupted" and 0 < len(made["token_ids"]) < 59_000
    check_part(made["text"])


def test_ctrl_c_keeps_the_output_file(endless, tmp_path):
    file = tmp_path / "part.txt"
    process = start("-q", "-m", endless, "-n", "-1", "-o", file, PROMPT)
    deadline = time.monotonic() + TIMEOUT
    while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=TIMEOUT)[1] == b"" and process.returncode == 130
    assert file.read_bytes().decode().startswith(EXPECTED[:1])


def test_ctrl_c_at_any_moment_is_exit_130(endless):
    """From the first import to the middle of the text; before Python runs our first line it answers itself."""
    unheard = 0
    for delay in (0.15, 0.25, 0.4, 0.6, 0.9, 1.3):
        process = start("-m", endless, "-n", "-1", PROMPT)
        time.sleep(delay)
        while not catches(process.pid, signal.SIGINT):  # a busy machine: the interpreter itself has not started yet
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        stdout.decode()
        if process.returncode == -signal.SIGINT and not stderr:  # a busy machine again: not even site was imported
            unheard += 1
        elif b"runpy" not in stderr and b"<frozen" not in stderr:
            assert process.returncode == 130 and b"Traceback" not in stderr, (delay, stderr)
    assert unheard < 3


def catches(pid: int, number: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


def test_a_second_ctrl_c_ends_at_once(endless):
    """Nobody reads: the process is stuck writing, where the first signal alone has to wait for a reader."""
    process = start("-m", endless, "-n", "-1", PROMPT)
    size = fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, 4096)
    deadline = time.monotonic() + TIMEOUT
    while waiting_bytes(process.stdout) < size - 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 130
    process.stdout.close()
    process.stderr.close()


def waiting_bytes(pipe) -> int:
    return struct.unpack("i", fcntl.ioctl(pipe.fileno(), termios.FIONREAD, b"\0" * 4))[0]


# The rest of the command


def test_help_names_every_command_and_alias():
    text = text_of(genkit("--help"))
    for command in ("generate", "inspect", "doctor", "train"):
        assert command in text
    text = text_of(generate("--help"))
    for name in ("-m", "--model", "-hf", "-p", "-f", "-n", "--max-tokens", "--predict", "--n-predict", "-s", "--seed", "--temp",
                 "--temperature", "--top-k", "--top-p", "--min-p", "--repeat-penalty", "--repetition-penalty",
                 "--repeat-last-n", "--presence-penalty", "--frequency-penalty", "-l", "--logit-bias", "--beams", "--stop",
                 "--reverse-prompt", "--ignore-eos", "-sys", "--system-prompt", "--chat", "--no-chat", "-no-cnv", "-t",
                 "--threads", "-c", "--ctx-size", "--max-model-len", "--device", "-o", "--json", "--logprobs", "-v",
                 "--traceback", "--offline", "--revision"):
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), name


def test_version_and_no_command():
    assert re.fullmatch(r"genkit \d+\.\d+\.\d+\S*\n", text_of(genkit("--version")))
    done = genkit()
    assert done.returncode == 2 and b"Usage: genkit" in done.stdout and done.stderr == b""
    assert "generate" in error_of(genkit("genrate"), 2)


def test_importing_the_command_line_is_light():
    """--help must not pay for what it does not use."""
    code = "import genkit.cli.app, sys; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "tokenizers", "rich", "jinja2", "huggingface_hub", "safetensors", "transformers"} & set(loaded)


@pytest.mark.parametrize("shell, marks", [("bash", "complete -o default"), ("zsh", "compdef"), ("fish", "complete --command genkit")])
def test_shell_completion(shell, marks):
    assert marks in text_of(genkit(env={"_GENKIT_COMPLETE": f"source_{shell}"}))


def test_bash_completes_commands_and_options():
    def complete(*words: str) -> "list[str]":
        done = genkit(env={"_GENKIT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)})
        return text_of(done).split()

    assert complete("genkit", "gen") == ["generate"]
    assert complete("genkit", "generate", "--top-") == ["--top-k", "--top-p"]
    assert complete("genkit", "generate", "--device", "c") == ["cpu", "cuda"]


def test_installed_script_is_the_same_command(player):
    script = Path(sys.executable).with_name("genkit")
    assert script.exists(), "the tests need genkit installed: pip install ."
    done = subprocess.run([script, "generate", "-m", player, PROMPT], stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=TIMEOUT, env=environment())
    assert text_of(done) == EXPECTED
