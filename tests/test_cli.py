"""The command as a user runs it: real processes, real pipes, real files."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_player import SCRIPT, rest_of_script
from cli_process import EXPECTED, GENKIT, PROMPT, TIMEOUT, environment, error_of, generate, genkit, start, strict_json, text_of

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
                         "kv_type", "layers", "gpu_layers", "gpu_weight_bytes"}
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
