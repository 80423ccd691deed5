"""What is compared: an engine and a form of the weights a line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable, Mapping

from genkit.errors import UsageError

FAMILIES = ("llama.cpp", "openvino", "ctranslate2", "transformers")
BITS = {"int4": 4.5, "int8": 8.1, "f16": 16, "bf16": 16, "f32": 32}  # of a weight, with its share of the scales


@dataclass(frozen=True)
class Engine:
    """A configuration. type: "int4", "int8" or the checkpoint's own float type; rows of one type are compared. file: what is
    written for it into the work folder, None where it reads the model's own folder. weights: what they are there, in words.
    writer: who made them so. same: whether genkit can read the very same file."""

    name: str
    family: str  # one of FAMILIES, or "genkit"
    type: str
    weights: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of the driver
    file: str | None = None
    writer: str = "as stored"
    same: bool = True
    usual: bool = True  # whether it runs where only its family is named

    @property
    def is_genkit(self) -> bool:
        return self.family == "genkit"


def gguf_file(kind: str) -> str:
    return f"model-{kind}.gguf"


def _llama_cpp(kind: str, type: str, flash: bool, usual: bool = True) -> Engine:
    ours = kind != "q4_k_m"
    return Engine(f"llama-cpp-{kind}{'-fa' if flash else ''}", "llama.cpp", type, kind.upper() if type != kind else kind,
                  {"type": kind, "flash": flash}, gguf_file(kind), "genkit" if ours else "llama.cpp", usual=usual)


def _openvino(bits: int, backend: str) -> Engine:
    return Engine(f"openvino-int{bits}{'-pa' if backend == 'PA' else ''}", "openvino", f"int{bits}",
                  "int4 symmetric, groups of 128" if bits == 4 else "int8 per channel", {"bits": bits, "backend": backend},
                  f"openvino-int{bits}", "OpenVINO", same=False, usual=backend == "SDPA")


def known(dtype: str = "bf16") -> dict[str, Engine]:
    """Every configuration by name, for a checkpoint whose matrices are stored in `dtype`. Of settings that matter the faster
    ones are the usual, as measured on AVX-512 and AMX machines."""
    kinds = (("q4_0", "int4"), ("q4_k_m", "int4"), ("q8_0", "int8"), (dtype, dtype))
    found = [
        Engine("genkit-int4", "genkit", "int4", "int4", {"quantize": "int4"}, writer="genkit, while loading", same=False),
        Engine("genkit-int8", "genkit", "int8", "int8", {"quantize": "int8"}, writer="genkit, while loading", same=False),
        Engine(f"genkit-{dtype}", "genkit", dtype, dtype, {"quantize": "none"}),
        *(Engine(f"genkit-{kind}", "genkit", type, kind.upper(), {"quantize": "none"}, gguf_file(kind), "genkit", usual=False)
          for kind, type in kinds if kind in ("q4_0", "q8_0")),
        *(_llama_cpp(kind, type, flash, flash and kind != "q4_k_m" or kind == "q4_0") for kind, type in kinds
          for flash in (False, True)),
        *(_openvino(bits, backend) for bits in (4, 8) for backend in ("SDPA", "PA")),
        Engine("ctranslate2-int8", "ctranslate2", "int8", "int8 per channel", file="ctranslate2-int8", writer="CTranslate2",
               same=False),
        Engine(f"transformers-{dtype}", "transformers", dtype, dtype),
    ]
    return {engine.name: engine for engine in found}


# What caps the instruction set of each family for a whole run. llama.cpp has it fixed when it is built: its driver
# refuses a build that goes beyond.
ISA = {"avx2": {"GENKIT_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "CT2_FORCE_CPU_ISA": "AVX2",
                "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}}

# What to do about an end that is known, by family and by a word of what was said of it.
HINTS = {("llama.cpp", "SIGILL"): "gcc 12 builds its AMX path wrongly: install llama-cpp-python anew with CC=clang "
                                  "CXX=clang++, or with CMAKE_ARGS=-DGGML_NATIVE=OFF and the GGML_AVX options of this processor"}


def driver_name(family: str) -> str:
    """Of the file in drivers/."""
    return family.replace(".", "_")


def check_peers(peers: Iterable[str]) -> None:
    """Raises UsageError for a peer that is neither a family nor a configuration, whatever the checkpoint's type."""
    everything = [*FAMILIES, *dict.fromkeys(name for dtype in ("bf16", "f16", "f32") for name in known(dtype))]
    for name in peers:
        if name not in everything:
            raise UsageError(f"{name!r} is no peer that is known; known: {', '.join(FAMILIES)}, or one of their configurations: "
                             f"{', '.join(known())}")


def choose(peers: Iterable[str], types: Iterable[str] | None, dtype: str) -> list[Engine]:
    """genkit's own configurations and the peers', in the order of `known`. A family stands for its usual ones; types: of
    families and genkit, None for all. A configuration that is named runs whatever the types. Raises UsageError."""
    engines, asked = known(dtype), list(dict.fromkeys(peers))
    check_peers(asked)
    for name in asked:
        if name not in (*FAMILIES, *engines):
            raise UsageError(f"{name}: this model's weights are {dtype}")
    for type in types or ():
        if type not in ("int4", "int8", dtype):
            raise UsageError(f"--type {type}: expected int4, int8 or {dtype}, as this model's weights are stored")
    wanted = set(types or ("int4", "int8", dtype))
    chosen = [engine for engine in engines.values() if engine.name in asked
              or (engine.usual and engine.type in wanted and engine.family in asked)]
    # genkit beside each type of theirs; where types are named, in each of those.
    wanted = set(types) if types else {engine.type for engine in chosen}
    ours = [engine for engine in engines.values() if engine.is_genkit and engine.usual and engine.type in wanted]
    return [engine for engine in engines.values() if engine in ours or engine in chosen]
