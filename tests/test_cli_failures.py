"""Bad input: one line, the option or file in it, the right code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli_process import EXPECTED, GENKIT, PROMPT, TIMEOUT, environment, error_of, generate, text_of

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
