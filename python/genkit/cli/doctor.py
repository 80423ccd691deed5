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
    from genkit.devices import why_processor

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
        "cuda": {"present": present, "reason": reason, "auto": why_processor() or None, **machine.cuda_facts()},
        "default_model": {
            "path": str(genkit.DEFAULT_MODEL),
            "present": os.path.exists(os.path.join(genkit.DEFAULT_MODEL, "config.json")),
        },
    }


def cuda_rows(cuda: "dict[str, Any]") -> "list[tuple[str, str]]":
    """The parts of it, each with what it is or why it is missing."""
    driver, plugin, device, library = cuda["driver"], cuda["plugin"], cuda["device"], cuda["cublaslt"]
    rows = [("cuda driver", f"for CUDA {driver['version']}" if driver["version"] else "", driver["reason"]),
            ("cuda plugin", plugin["path"], plugin["reason"])]
    if plugin["path"]:
        rows.append(("cuda targets", plugin["targets"], device["reason"]))
    rows += [("cuda device", device["name"], device["reason"]),
             ("compute capability", device["capability"], device["reason"])]
    memory = device["memory"] and f"{format_bytes(device['available'])} free of {format_bytes(device['memory'])}"
    rows += [("cuda memory", memory, device["reason"]), ("cublaslt", library["path"], library["reason"])]
    told = [(name, what if not reason else f"{what}; {reason}" if what else f"none: {reason}") for name, what, reason in rows]
    return [*told, ("auto", f"the processor: {cuda['auto']}")] if cuda["auto"] else told


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
            *cuda_rows(cuda),
            ("default model", model["path"] if model["present"] else f"missing: {model['path']}"),
            ("tiers", f"{', '.join(tiers['available'])}; in use: {tiers['in_use']} ({cap})"),
        ]
    )
    if tiers["error"]:
        lines.append(f"warning: {tiers['error']}")
    lines += ["", *table([("kernel", "tier"), *tiers["slots"].items()])]
    return "\n".join(lines)
