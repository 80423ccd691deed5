"""The command as a process of its own: what the tests of the command line start it with, and ask of what it leaves."""

import json
import os
import subprocess
import sys

from cli_player import rest_of_script

PROMPT = "Gr"
EXPECTED = rest_of_script(PROMPT)
GENKIT = [sys.executable, "-m", "genkit"]
TIMEOUT = 120


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
