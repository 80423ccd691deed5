"""Writes docs/models.md from the tables that the tests go through: python docs/make_models.py (tests/test_models_docs.py
checks that it was done). Needs neither torch nor transformers.
"""

import ast
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("models.md")
TESTS = Path(__file__).parents[1] / "tests"
HEAD = """# What runs

Written by docs/make_models.py from the tables that the tests are parametrized by; nothing is listed that no test runs.

## Architectures

Each is compared with transformers in float32 on random checkpoints of awkward shapes: logits within 1e-3, 64 greedy tokens the
same, one token at a time as the whole prompt (tests/test_parity.py; cases in tests/architectures.py). Sizes: names and shapes
asked of a checkpoint are those of transformers' model of that size, nothing missing, nothing left over. GGUF: a checkpoint
written as llama.cpp's converter would gives the folder's logits (tests/test_gguf_architectures.py).
[adding-a-model.md](adding-a-model.md) adds another.

| model_type | what it is | folder: cases | GGUF | published sizes |
|---|---|---|---|---|
"""
FORMATS = """
## Formats

Packed: the kernels take the codes as they are in the file, at its size; the column says as what. Widened: the weights become
float16 when they are loaded, and `genkit inspect` says so. What a file stands for is compared with a transcription of its
layout in numpy, to the bit, and where it is named with a library's own numbers. One is not exact when it runs: MLX's 8 bits,
whose offset, seen from signed codes, is b + 128 s and is rounded to the type of the scales.

| form | what was tested | runs | compared with |
|---|---|---|---|
"""
FORMS = {"ct": "compressed-tensors", "gptq": "GPTQ", "autoround": "AutoRound", "awq": "AWQ", "bnb": "bitsandbytes", "mlx": "MLX",
         "fp8": "FP8", "fbgemm": "FP8 (fbgemm)"}
LIBRARIES = {"ct": "compressed-tensors", "bnb": "bitsandbytes"}  # as in tests/test_formats_foreign.py


def page() -> str:
    sys.path.insert(0, str(TESTS))
    try:
        return HEAD + "\n".join(architectures()) + "\n" + FORMATS + "\n".join(formats()) + "\n"
    finally:
        sys.path.remove(str(TESTS))


def architectures() -> "list[str]":
    from architectures import CASES, PUBLISHED
    from genkit.models import ARCHITECTURES

    found = []
    gguf = in_gguf()
    for model_type, module in sorted(ARCHITECTURES.items()):
        cases = [name for name, case in CASES.items() if case.model_type == model_type]
        if not cases:  # another name of one that has
            continue
        sizes = [name for name, (kind, _) in PUBLISHED.items() if kind == model_type]
        found.append(row(f"`{model_type}`", described(module), ", ".join(cases), gguf.get(model_type, ""), ", ".join(sizes)))
    return found


def described(module: str) -> str:
    """The first sentence of a model file."""
    text = ast.get_docstring(ast.parse((TESTS.parent / "python" / "genkit" / "models" / f"{module}.py").read_text("utf-8")))
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.replace("et al. ", "et al\0 ").split(". ")[0].replace("\0", ".").rstrip(".")


def table_of(file: str, name: str) -> ast.expr:
    """What a module of tests/ that needs torch or others calls by this name."""
    for node in ast.parse((TESTS / file).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == [name]:
            return node.value
    raise ValueError(f"tests/{file} has no {name}")


def in_gguf() -> "dict[str, str]":
    """model_type -> GGUF's name of the architecture, for those of a test."""
    found = {}
    for value in table_of("test_gguf_architectures.py", "CASES").values:
        theirs, ours = (part.value for part in value.elts[:2])
        found[ours] = theirs
    return found


def formats() -> "list[str]":
    from foreign_files import FOREIGN

    from genkit.checkpoints.gguf_blocks import TYPES

    names = {"gguf": "GGUF", "gptq": "GPTQ", "mlx": "MLX"}
    found = [row(names.get(form, form), kind, "packed", "what `genkit quantize` rounded: written, verified, run")
             for form, kind in ast.literal_eval(table_of("test_quantize_command.py", "FORMATS"))]
    for name, entry in FOREIGN.items():
        prefix, held = name.split("-")[0], entry[3]
        library = LIBRARIES.get(prefix) if "order" not in name else None
        what = name.removeprefix(prefix).removeprefix("-").replace("-", " ") or "plain"
        found.append(row(FORMS[prefix], what, f"packed as {held}" if held.startswith("int") else f"widened: {held}",
                         "its layout" + (f", {library}" if library else "")))
    made = " ".join(ast.literal_eval(table_of("test_formats_gguf_quantized.py", "FILES")))
    for name, block in TYPES.items():
        bits = f"{8 * block.nbytes / block.weights:.4g} bits"
        if block.format is None:
            found.append(row("GGUF", f"{name}, {bits}", "as it is", "its layout"))
        else:
            llama = ", files of llama.cpp's quantizer" if name in made else ""
            found.append(row("GGUF", f"{name}, {bits}", f"packed as {block.format.words}", f"the gguf package{llama}"))
    return found


def row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
