"""What the folders that other libraries load have in common: their readers find layers by the names transformers gives
them, and take scales in the type of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping

from genkit.errors import UsageError
from genkit.quant.formats import Format
from genkit.quant.writers.base import FLOATS, Kind, SafetensorsWriter, Source

if TYPE_CHECKING:
    from genkit.quant.roles import Roles

# Architectures whose matrices are all nn.Linear or nn.Embedding; gpt2's are Conv1D.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
GROUPS = (32, 64, 128)


class LinearsWriter(SafetensorsWriter):
    label: str  # what --format calls it
    architectures: tuple[str, ...] = ARCHITECTURES
    in_codes: tuple[str, ...] = ("_proj.weight",)  # how names end that may be

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        model_type = source.fields.model_type
        if model_type not in self.architectures:
            raise UsageError(f"--format {self.label} holds {', '.join(self.architectures)}, not {model_type}; "
                             "use --format genkit")
        named = source.fields.optional("dtype") or source.fields.optional("torch_dtype")
        # A file without either key means float32; said again in the output, because loaders differ.
        self.dtype = DTYPES.get(str(named).removeprefix("torch."), "f32")
        self.scale_dtype = "bf16" if self.dtype == "bf16" else "f16"  # f16 lies widened in f32 models

    def format(self, kind: str, group_size: int | None = None, asymmetric: bool = False) -> Kind:
        if kind in FLOATS:
            return kind
        group = group_size or 32
        if kind not in ("int4", "int8"):
            raise UsageError(f"type {kind!r}: --format {self.label} holds int4, int8, {', '.join(FLOATS)}")
        if group not in GROUPS:
            raise UsageError(f"--group-size {group}: --format {self.label} has groups of {', '.join(map(str, GROUPS))}")
        return Format(kind, group, self.zero(kind, asymmetric), self.scale_dtype)

    def zero(self, kind: str, asymmetric: bool) -> str:
        """Format.zero of "int4" or "int8". Raises UsageError."""
        raise NotImplementedError

    def default(self, name: str, roles: "Roles", kind: str) -> str | None:
        return "float" if name in (roles.embedding, roles.head) else None

    def check(self, name: str, shape: tuple[int, int], kind: Kind) -> str | None:
        if isinstance(kind, str):
            return None
        if not name.endswith(self.in_codes):
            return f"--format {self.label} has no codes for it"
        if kind.group not in GROUPS:
            return f"--format {self.label} has groups of {', '.join(map(str, GROUPS))}, not {kind.group}"
        if shape[1] % kind.group:
            return f"its {shape[1]} inputs are no multiple of the group of {kind.group}"
        if kind.scale_dtype != self.scale_dtype:
            return f"scales in {kind.scale_dtype} would be rounded to {self.scale_dtype}"
        return None

    def more_config(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        raw = self.source.fields.raw
        return {} if raw.get("dtype") or raw.get("torch_dtype") else {"dtype": "float32"}


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def module(name: str) -> str:
    return name.removesuffix(".weight")


def bits(format: Format) -> int:
    return 8 if format.packing == "int8" else 4


def most_common(kinds: Mapping[str, Kind]) -> Format | None:
    """The format most matrices have; of as many the first in the model."""
    found = [kind for kind in kinds.values() if isinstance(kind, Format)]
    return max(dict.fromkeys(found), key=found.count) if found else None
