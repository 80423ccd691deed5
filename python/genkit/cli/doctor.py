"""`genkit doctor`: what this installation and this machine are, and which kernels will run."""

import os
import platform
import sys
from typing import Annotated, Any

import typer

from genkit.cli.failure import enable_traceback
from genkit.plaintext import format_bytes, table


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", is_eager=True, callback=enable_traceback, help="Show where an error came from.")
    ] = False,
) -> None:
    """Say what this machine can do and what genkit uses of it."""
    facts = examine()
    if as_json:
        from genkit.plaintext import json_text

        print(json_text(facts))
    else:
        print(report(facts))


def examine() -> "dict[str, Any]":
    """The facts, as --json prints them: sizes in bytes."""
    from importlib.metadata import version

    import genkit
    from genkit import _core, machine

    present, reason = machine.cuda_state()
    amx, amx_reason = _core.amx_state()
    return {
        "version": version("genkit"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": {"name": machine.processor_name(), "features": _core.cpu_features(), "logical_processors": os.cpu_count()},
        "tiers": {
            "available": _core.tiers(),
            "in_use": _core.current_tier(),
            "GENKIT_ISA": os.environ.get("GENKIT_ISA"),
            "error": _core.isa_error() or None,
            "slots": _core.slots(),
        },
        "threads": {"default": machine.available_threads()},
        "memory": {"total": machine.memory_total(), "available": machine.memory_available()},
        "amx": {"usable": amx, "reason": amx_reason},
        "cuda": {"present": present, "reason": reason},
        "default_model": {
            "path": str(genkit.DEFAULT_MODEL),
            "present": os.path.exists(os.path.join(genkit.DEFAULT_MODEL, "config.json")),
        },
    }


def report(facts: "dict[str, Any]") -> str:
    tiers, memory, cuda, model = facts["tiers"], facts["memory"], facts["cuda"], facts["default_model"]
    cap = f"GENKIT_ISA={tiers['GENKIT_ISA']}" if tiers["GENKIT_ISA"] else "GENKIT_ISA is not set"
    lines = table(
        [
            ("genkit", facts["version"]),
            ("python", f"{facts['python']} ({sys.executable})"),
            ("system", facts["system"]),
            ("processor", facts["processor"]["name"]),
            ("features", " ".join(facts["processor"]["features"]) or "none that genkit uses"),
            ("threads", f"{facts['threads']['default']} of {facts['processor']['logical_processors']} processors"
                        " (what affinity and the container's quota allow)"),
            ("memory", f"{format_bytes(memory['available'])} available of {format_bytes(memory['total'])}"),
            ("amx", f"{'yes' if facts['amx']['usable'] else 'no'}: {facts['amx']['reason']}"),
            ("cuda", f"{'yes' if cuda['present'] else 'no'}: {cuda['reason']}"),
            ("default model", model["path"] if model["present"] else f"missing: {model['path']}"),
            ("tiers", f"{', '.join(tiers['available'])}; in use: {tiers['in_use']} ({cap})"),
        ]
    )
    if tiers["error"]:
        lines.append(f"warning: {tiers['error']}")
    lines += ["", *table([("kernel", "tier"), *tiers["slots"].items()])]
    return "\n".join(lines)
