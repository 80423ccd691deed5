"""Ctrl-C: what was made is kept, exit 130."""

import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from cli_player import SCRIPT
from cli_process import EXPECTED, PROMPT, TIMEOUT, start, strict_json

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
