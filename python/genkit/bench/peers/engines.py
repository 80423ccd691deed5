"""What is compared: an engine and a form of the weights a line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping

from genkit.errors import UsageError

# The weights in the checkpoint's own type, which llama.cpp's other files are written from.
GGUF = "model-bf16.gguf"


@dataclass(frozen=True)
class Engine:
    name: str
    family: str  # the file in drivers/, and what --python names
    bits: int  # 4, 8 or 16 a weight, roughly: rows of the same are compared with each other as well
    options: Mapping[str, Any] = field(default_factory=dict)  # of the driver
    file: str | None = None  # what is written for it into the work folder; None: it reads the model's own folder

    @property
    def is_genkit(self) -> bool:
        return self.family == "genkit"


def _llama_cpp(kind: str, bits: int, flash: bool) -> Engine:
    return Engine(f"llama-cpp-{kind}{'-fa' if flash else ''}", "llama_cpp", bits, {"type": kind, "flash": flash},
                  GGUF if kind == "bf16" else f"model-{kind}.gguf")


def _openvino(bits: int, backend: str) -> Engine:
    return Engine(f"openvino-int{bits}{'-pa' if backend == 'PA' else ''}", "openvino", bits,
                  {"bits": bits, "backend": backend}, f"openvino-int{bits}")


ENGINES = {engine.name: engine for engine in (
    Engine("genkit-int4", "genkit", 4, {"quantize": "int4"}),
    Engine("genkit-int8", "genkit", 8, {"quantize": "int8"}),
    Engine("genkit-bf16", "genkit", 16, {"quantize": "none"}),
    *(_llama_cpp(kind, bits, flash) for kind, bits in (("q4_0", 4), ("q4_k_m", 4), ("q8_0", 8), ("bf16", 16))
      for flash in (False, True)),
    *(_openvino(bits, backend) for bits in (4, 8) for backend in ("SDPA", "PA")),
    Engine("ctranslate2-int8", "ctranslate2", 8, file="ctranslate2-int8"),
    Engine("transformers-bf16", "transformers", 16),
)}

# Of engines with settings that matter the faster ones, as measured on AVX-512 and AMX machines.
DEFAULT = ("genkit,llama-cpp-q4_0,llama-cpp-q4_0-fa,llama-cpp-q4_k_m-fa,llama-cpp-q8_0-fa,llama-cpp-bf16-fa,"
           "openvino-int4,openvino-int8,ctranslate2,transformers")

# What caps the instruction set of each family for a whole run. llama.cpp has it fixed when it is built: its driver
# refuses a build that goes beyond.
ISA = {"avx2": {"GENKIT_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "CT2_FORCE_CPU_ISA": "AVX2",
                "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}}


def choose(names: str) -> list[Engine]:
    """Engines by a list of names or families with commas, in the order of the table. Raises UsageError."""
    asked = {name.strip() for name in names.split(",") if name.strip()}
    families = {family_name(engine) for engine in ENGINES.values()}
    if unknown := sorted(asked - {"all", *ENGINES, *families}):
        raise UsageError(f"--engines: {unknown[0]!r} is unknown; known: all, {', '.join(sorted(families))}, "
                         f"{', '.join(ENGINES)}")
    if not asked:
        raise UsageError("--engines names none")
    return [engine for engine in ENGINES.values() if asked & {"all", engine.name, family_name(engine)}]


def family_name(engine: Engine) -> str:
    """As people write it: the driver's file with "-"."""
    return engine.family.replace("_", "-")
