"""What a terminal shows: a pseudo-terminal stands in for it."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

from cli_player import rest_of_script

GENKIT = [sys.executable, "-m", "genkit"]
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


def in_terminal(arguments, *, seconds: float = 60, interrupt_after: "float | None" = None,
                terminate_at: "bytes | None" = None) -> "tuple[bytes, int]":
    """Everything the terminal received, and the exit code. Ctrl-C is typed, not signalled."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(arguments, stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True,
                               preexec_fn=take_terminal, env=os.environ | {"TERM": "xterm"})
    os.close(secondary)
    received, start, typed = b"", time.monotonic(), False
    while time.monotonic() - start < seconds:
        if interrupt_after is not None and not typed and time.monotonic() - start > interrupt_after:
            os.write(primary, b"\x03")
            typed = True
        if select.select([primary], [], [], 0.05)[0]:
            try:
                data = os.read(primary, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            received += data
            if terminate_at is not None and terminate_at in received:
                process.terminate()
                terminate_at = None
    os.close(primary)
    return received, process.wait(10)


def take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_text_ends_with_a_newline_on_a_terminal(player):
    arguments = GENKIT + ["generate", "-m", str(player), "--stop", "Fuchs", "Gr"]
    received, code = in_terminal(arguments + ["-q"])
    assert code == 0 and received.decode() == rest_of_script("Gr").split("Fuchs")[0] + "\r\n"
    received, code = in_terminal(arguments)  # a bar may come first on a slow machine
    assert code == 0 and rest_of_script("Gr").split("Fuchs")[0] + "\r\ngenkit: prompt 2 tokens" in received.decode()
    assert received.endswith(b" | ended | greedy\r\n")


def test_no_prompt_on_a_terminal_is_an_error_and_no_question():
    received, code = in_terminal(GENKIT + ["generate"], seconds=20)
    assert code == 2 and received.startswith(b"genkit: error: no prompt") and received.count(b"\n") == 1


SLOW_LOAD = """
import time
from genkit.cli.terminal import bar
with bar("loading [red]model", True, of_bytes=True) as progress:
    for i in range(16):
        time.sleep(0.1)
        progress(i * 10**8, 15 * 10**8)
print("text")
"""


def test_bar_is_drawn_and_wiped():
    received, code = in_terminal([sys.executable, "-c", SLOW_LOAD])
    assert code == 0
    assert b"loading [red]model" in received and "━".encode() in received and b"GiB" in received
    assert received.count(HIDE_CURSOR) == received.count(SHOW_CURSOR) == 1
    end = received[received.rindex(SHOW_CURSOR):]
    assert b"\x1b[2K" in end and end.endswith(b"text\r\n")


def test_a_long_wait_shows_a_bar_that_is_gone_before_the_text(endless, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("x" * 40_000)  # well over the 0.3 s a bar waits, on a fast machine too
    received, code = in_terminal(GENKIT + ["generate", "-m", str(endless), "-n", "8", "-f", str(prompt)], seconds=120)
    assert code == 0 and b"reading the prompt" in received and b"%" in received
    assert received.count(HIDE_CURSOR) == received.count(SHOW_CURSOR)
    assert b"\x1b" not in received[received.rindex(SHOW_CURSOR) + len(SHOW_CURSOR):].replace(b"\x1b[1A", b"").replace(b"\x1b[2K", b"")
    received, code = in_terminal(GENKIT + ["generate", "-m", str(endless), "-n", "30000", "--json", "Gr"], seconds=120)
    assert code == 0 and "writing" in received.decode() and b'"finish_reason": "length"' in received


def test_ctrl_c_during_the_bar_leaves_the_terminal_clean():
    script = SLOW_LOAD.replace("range(16)", "range(1000)")
    received, code = in_terminal([sys.executable, "-c", script], interrupt_after=2.0)
    assert code != 0 and received.count(HIDE_CURSOR) == received.count(SHOW_CURSOR) == 1


def test_sigterm_during_the_bar_leaves_the_cursor_visible(endless):
    arguments = GENKIT + ["generate", "-m", str(endless), "-n", "-1", "--json", "Gr"]
    received, code = in_terminal(arguments, terminate_at=b"writing")
    assert code == -signal.SIGTERM and received.count(SHOW_CURSOR) >= received.count(HIDE_CURSOR) > 0


def test_bar_needs_a_terminal():
    script = "from genkit.cli.terminal import bar\nwith bar('x', True, of_bytes=True) as p: assert p is None"
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.DEVNULL, timeout=60)


def test_model_card_is_laid_out_on_a_terminal_and_raw_in_a_pipe():
    received, code = in_terminal(GENKIT + ["inspect"])
    assert code == 0 and b"architecture" in received and b"\x1b[" in received
    raw = subprocess.run(GENKIT + ["inspect"], capture_output=True, timeout=60, check=True).stdout
    assert b"\x1b[" not in raw and b"\n# " in raw
