"""What keeps one build safe on every processor, and each layer knowing only the one below: objects, includes, imports."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import compilers
import pytest
from compilers import ROOT

import genkit._core

CPU = ROOT / "cpp" / "cpu"
PACKAGE = ROOT / "python" / "genkit"
# The C library's own, chosen for the processor by the C library.
C_LIBRARY = {"memcpy", "memset", "memmove", "memcmp", "expf", "exp", "logf", "log", "sqrtf", "ceilf", "fmaf", "sin", "cos", "sincos",
             "erfcf", "tanhf", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}


def tool(name, tier):
    """The binutils program for a tier's architecture."""
    program = f"aarch64-linux-gnu-{name}" if compilers.for_arm(tier) and compilers.X86 else name
    if not shutil.which(program):
        pytest.skip(f"no {program} on this machine")
    return program


@pytest.fixture(scope="module", params=["reference", *compilers.tiers()])
def tier_object(request):
    tier = request.param
    compiler, reason = compilers.for_tier(tier)
    if not compiler:
        pytest.skip(reason)
    return tier, compilers.tier_object(tier)


def run(*command):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def test_a_tier_exports_its_install_function_and_nothing_else(tier_object):
    tier, path = tier_object
    symbols = [line.split() for line in run(tool("nm", tier), "-g", "-P", path).splitlines()]
    defined = [name for name, kind, *_ in symbols if kind != "U"]
    assert len(defined) == 1 and f"install_{tier}" in defined[0], f"global symbols: {defined}"
    assert {name for name, kind, *_ in symbols if kind == "U"} <= C_LIBRARY
    kinds = {line.split()[1] for line in run(tool("nm", tier), "-P", path).splitlines()}
    assert not kinds & set("wWvVuC"), "weak, unique or common symbols: the linker may keep them for other processors"


def test_a_tier_has_no_static_initializers(tier_object):
    tier, path = tier_object
    sections = run(tool("objdump", tier), "-h", path)
    assert ".text" in sections and "init_array" not in sections and ".ctors" not in sections


def test_instructions_stay_in_their_tier(tier_object):
    tier, path = tier_object
    code = run(tool("objdump", tier), "-d", "--no-show-raw-insn", path)
    if compilers.for_arm(tier) or not compilers.X86:
        assert bool(re.search(r"\tsdot", code)) == (tier == "neon_dotprod")
        return
    patterns = {"zmm": r"%zmm", "ymm": r"%ymm", "vex": r"\tv[a-z]", "fma": r"\tvfn?madd", "vnni": r"\tvpdp(bus|wss)d",
                "bf16": r"\tv(dpbf16|cvtne2?ps)", "tiles": r"%tmm"}
    uses = {name for name, pattern in patterns.items() if re.search(pattern, code)}
    avx512 = {"zmm", "ymm", "vex", "fma"}
    assert uses == {"reference": set(), "avx2": {"ymm", "vex", "fma"}, "avx512": avx512,
                    "avx512vnni": avx512 | {"vnni"}, "avx512bf16": avx512 | {"bf16"}, "amx": avx512 | {"vnni", "bf16", "tiles"}}[tier]
    if tier == "avx2":
        assert not re.search(r"%k[1-7]|%[xy]mm(1[6-9]|2\d|3[01])", code), "AVX-512 registers"


def test_the_extension_exports_its_entry_point_only():
    if not shutil.which("nm"):
        pytest.skip("no nm on this machine")
    symbols = [line.split() for line in run("nm", "-D", "-P", "--defined-only", genkit._core.__file__).splitlines()]
    ours = [name for name, kind, *_ in symbols if "genkit" in name or "install_" in name]
    assert not ours, f"kernels are visible to other libraries: {ours}"
    assert any(name == "PyInit__core" for name, *_ in symbols)


# ---- includes --------------------------------------------------------------------------------------------------


def code_of(path):
    """A C++ file without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.S)


def includes(path):
    return set(re.findall(r'#\s*include\s+([<"][^>"]+[>"])', code_of(path)))


KERNEL_FILES = [p for p in sorted(CPU.iterdir()) if p.stem.split("_")[0] in ("tier", "vec", "reference") or p.suffix == ".inl"]


def test_kernel_files_include_only_the_boundary():
    assert len(KERNEL_FILES) >= 10
    ours = {f'"{p.name}"' for p in KERNEL_FILES if p.suffix in (".inl", ".h")}
    allowed = ours | {'"../kernels.h"', "<cstdint>", "<cstddef>", "<immintrin.h>", "<arm_neon.h>"}
    for path in KERNEL_FILES:
        c_library = {"<math.h>", "<string.h>"} if path.name == "reference.cpp" else set()
        assert includes(path) <= allowed | c_library, path.name
        assert "std::" not in code_of(path), f"{path.name} uses the standard library: its templates may be shared"
    parts = ("packed.h", "experts.h", "sampling.h", "measure.h")
    assert includes(ROOT / "cpp/kernels.h") <= {"<cstdint>", "<cstddef>"} | {f'"{part}"' for part in parts}
    for part in parts:
        assert includes(ROOT / "cpp" / part) <= {"<cstdint>"}, part
    assert len((ROOT / "cpp/kernels.h").read_text().splitlines()) < 345


def test_fast_kernels_lie_in_an_anonymous_namespace():
    for path in CPU.glob("tier_*.cpp"):
        body = re.search(r"namespace genkit \{\s*namespace \{(.*)\}\s*void install_\w+\(Kernels& k\)", code_of(path), re.S)
        assert body, path.name
        assert body[1].count("#include") == code_of(path).count(".inl") + 1, path.name


def test_cpu_and_cuda_do_not_see_each_other():
    for path in CPU.iterdir():
        assert not [i for i in includes(path) if "cuda" in i], path.name
    # Arithmetic that both share is written once; it includes nothing.
    shared = {f'"../cpp/cpu/{name}.inl"' for name in ("storage", "functions", "draw", "choose")}
    for path in [*(ROOT / "cuda").rglob("*.cu"), *(ROOT / "cuda").rglob("*.inl"), *(ROOT / "cuda").rglob("*.h")]:
        assert not [i for i in includes(path) - shared if "cpu/" in i or "ops" in i or "tensor" in i], path.name
    assert not any(includes(CPU / Path(i.strip('"')).name) for i in shared)


def test_each_layer_of_the_core_knows_only_the_one_below():
    cpp = ROOT / "cpp"
    below = {
        "bindings.cpp": None,
        **{path.name: {'"ops_check.h"', '"plan.h"'} for path in cpp.glob("ops*.cpp")},
        "ops_check.h": {'"ops.h"', '"cpu/table.h"', '"threads.h"', '"plan.h"'},
        "ops.h": {'"tensor.h"', '"kernels.h"'},
        "plan.cpp": {'"plan.h"', '"loop.h"'},
        "loop.h": set(),
        "plan.h": {'"tensor.h"', '"threads.h"'},
        "tensor.cpp": {'"tensor.h"'},
        "tensor.h": {'"kernels.h"', '"device.h"'},
        "device.cpp": {'"device.h"', '"kernels.h"', '"cpu/table.h"'},
        "device.h": {'"plugin.h"'},
        "plugin.h": set(),
        "threads.cpp": {'"threads.h"'},
        "threads.h": set(),
    }
    for name, allowed in below.items():
        found = {i for i in includes(cpp / name) if i.startswith('"')}
        assert allowed is None or found <= allowed, f"{name} includes {found - allowed}"
    for path in [*cpp.rglob("*.h"), *cpp.rglob("*.inl"), *cpp.rglob("*.cpp")]:
        if path.name != "bindings.cpp":
            assert not [i for i in includes(path) if "pybind11" in i or "Python.h" in i], path.name


# ---- imports ---------------------------------------------------------------------------------------------------


def imports(path, top_level=False):
    """Modules a Python file names: all of them, or those imported when it is imported."""
    tree = ast.parse(path.read_text())
    found = set()

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0:
                found.add(child.module)
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.add("a relative import")
            skip = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            if not (top_level and skip):
                visit(child)

    visit(tree)
    return found


def below(module):
    """What a part of the package must not import. Checkpoints, which know no model, stand below models and layers."""
    parts = module.split("/")
    library = {"engine", "decoding", "text", "train", "bench", "quant"}
    return {
        "models": library | {"cli", "machine"},
        "nn.py": library | {"cli", "models", "machine"},
        "rope.py": library | {"cli", "models", "machine"},
        "checkpoints": library | {"cli", "models", "nn", "rope"},
        "text": {"cli", "engine", "models", "nn", "decoding", "train", "_core"},
        "decoding": {"cli", "engine", "models", "nn", "text", "train"},
        "errors.py": library | {"cli", "models", "nn", "checkpoints", "_core", "machine"},
        "machine.py": library | {"cli", "models", "nn", "checkpoints"},
        "kv_cache.py": library | {"cli", "models", "nn", "checkpoints"},
        "plan.py": library - {"decoding"} | {"cli", "nn", "checkpoints"},
    }.get(parts[0], {"cli"})


# What codes are, without any method: layers and checkpoints speak of them too.
PLAIN = ("genkit.quant.formats", "genkit.quant.codes", "genkit.quant.words")


# A GGUF file is a whole model, its configuration and tokenizer included. SentencePiece's encoders are compiled.
WHOLE = {"checkpoints/gguf.py": "genkit.text.gguf_vocab", "text/sentencepiece.py": "genkit._core",
         "checkpoints/gguf_model.py": ("genkit.rope", "genkit.models.llama"),
         "checkpoints/gguf_config.py": ("genkit.rope", "genkit.text.gguf_vocab")}


def is_command(name):
    return name.startswith("cli/") or name.endswith("__main__.py")


PYTHON_FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("name", PYTHON_FILES)
def test_python_layers_import_downwards(name):
    found = imports(PACKAGE / name)
    assert "a relative import" not in found, "imports name the whole path"
    if is_command(name):
        return
    wrong = {m for m in found if m.startswith("genkit.") and m.split(".")[1] in below(name) and not m.startswith(PLAIN)
             and not m.startswith(WHOLE.get(name, "-"))}
    assert not wrong, f"{name} imports {sorted(wrong)}"


HEAVY = {"torch", "transformers", "tokenizers", "jinja2", "huggingface_hub", "rich", "safetensors", "numpy"}


@pytest.mark.parametrize("name", PYTHON_FILES)
def test_heavy_modules_are_imported_lazily(name):
    allowed = set() if is_command(name) else {"numpy"}
    found = {m.split(".")[0] for m in imports(PACKAGE / name, top_level=True)}
    assert not found & (HEAVY - allowed), f"{name} imports {sorted(found & HEAVY)} at module level"
    if not is_command(name):
        assert "typer" not in found, f"{name} imports typer: only the command line may"
