"""Chat templates: messages to the prompt text a model was trained on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genkit.checkpoints.files import shown
from genkit.errors import BadFileError, ResourceError, UsageError

TIME_LIMIT = 2  # seconds for rendering, once the worker is up
START_LIMIT = 60  # seconds for the worker to come up, on a busy machine
TEXT_LIMIT = 16 * 2**20  # characters
MEMORY_LIMIT = 2**29  # bytes of address space, interpreter and jinja2 (about 50 MB) included


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    source: str = "chat template",
    time_limit: int = TIME_LIMIT,
    **variables: Any,
) -> str:
    """The text of `messages` ({"role", "content"} and whatever else the template reads) under a jinja2 template.

    As transformers 5 renders it: same dialect (trim_blocks, lstrip_blocks, loop controls, tojson, strftime_now,
    raise_exception, the generation tag), same variables (messages, tools, documents, add_generation_prompt and
    `variables`: bos_token and the like), message fields that are None left out. `source` names the template in errors.

    The template is a stranger's program: it runs in jinja2's immutable sandbox, in a process of its own that is given
    plain data, `time_limit` seconds, 512 MiB and no files.

    Raises BadFileError (broken template, forbidden access, over a limit) with the template's line, UsageError (no
    messages, or the template refuses them), ResourceError when the process cannot be started.
    """
    if not messages:
        raise UsageError("messages: a chat needs at least one message")
    chat = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise UsageError(f"messages: {message!r} is not an object with a role and content")
        chat.append({key: value for key, value in message.items() if value is not None})
    request = {
        "template": template,
        "variables": {
            "tools": None,
            "documents": None,
            **variables,
            "messages": [_with_reasoning(message) for message in chat],
            "add_generation_prompt": bool(add_generation_prompt),
        },
        "path": sys.path,
        "memory": MEMORY_LIMIT,
        "seconds": time_limit,
        "characters": TEXT_LIMIT,
    }
    # Anything that is not plain data arrives as its type's name.
    reply = _run(json.dumps(request, default=lambda value: f"<{type(value).__name__}>"), source, time_limit)
    if "text" in reply:
        return reply["text"]
    what = shown(reply["error"], 300)
    where = source if reply["line"] is None else f"{source}, line {reply['line']}"
    if reply["kind"] == "refusal":
        raise UsageError(f"{where}: the chat template does not take these messages: {what}")
    if reply["kind"] == "limit":
        raise BadFileError(f"{where}: the chat template was stopped: {what}")
    raise BadFileError(f"{where}: the chat template is broken: {what}")


def _run(request: str, source: str, time_limit: int) -> dict[str, Any]:
    """The worker's reply. The worker ends itself by SIGALRM after `time_limit`; the timeout here is a second fence."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("template_worker.py"))]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, encoding="utf-8", timeout=START_LIMIT + time_limit
        )
    except OSError as error:
        raise ResourceError(f"{source}: cannot start {command[0]!r} to render the chat template: {error}") from error
    except subprocess.TimeoutExpired:
        raise BadFileError(f"{source}: the chat template was stopped: still running after its time") from None
    if -done.returncode in (signal.SIGALRM, signal.SIGXCPU):
        raise BadFileError(f"{source}: the chat template was stopped: it took more than {time_limit} s")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ResourceError(f"{source}: the process that renders chat templates failed: {last}")
    return json.loads(done.stdout)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message's reasoning under each name that templates read it by."""
    for name in ("reasoning_content", "thinking", "reasoning"):
        if name in message:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message
