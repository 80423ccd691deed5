"""What nvcc gives every kernel of the plugin: registers, stack, static shared memory. `python tests/cuda_resources.py` writes
the table tests/cuda_resources.json anew."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests/cuda_resources.json"
TARGETS = ["80", "90a", "120"]  # of a release


def options():
    """Those of cuda/CMakeLists.txt."""
    text = (ROOT / "cuda/CMakeLists.txt").read_text()
    return re.search(r"PRIVATE (-fmad[^)]*)\)", text)[1].split()


def nvcc(*more):
    """What the compiler says of the plugin. Raises AssertionError with it where it fails."""
    command = ["nvcc", "-std=c++17", "-O3", *options(), '-DGENKIT_CUDA_TARGETS=""', f"-I{ROOT / 'cpp'}", *more, str(ROOT / "cuda/plugin.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def ptx(target, folder):
    """The plugin's PTX for a target."""
    to = Path(folder) / "plugin.ptx"
    nvcc(f"-arch=compute_{target}", "-ptx", "-o", str(to))
    return to.read_text()


def compile(target, folder):
    """Kernel -> {"registers", "stack", "shared"}."""
    said = nvcc("-Xcompiler=-fPIC", "-Xptxas=-v,-warn-spills,-warn-lmem-usage,-Werror", f"-gencode=arch=compute_{target},code=sm_{target}",
                "-c", "-o", str(Path(folder) / "plugin.o"))
    found = {}
    for mangled, rest in re.findall(r"Compiling entry function '(\w+)'(.*?Used \d+ registers[^\n]*)", said, re.S):
        used = {"registers": int(re.search(r"Used (\d+) registers", rest)[1]),
                "stack": int(re.search(r"(\d+) bytes stack frame", rest)[1]),
                "shared": int((re.search(r"(\d+) bytes smem", rest) or [0, 0])[1])}
        found[name(mangled)] = used
    return dict(sorted(found.items()))


def name(mangled):
    """The kernel's own name, of a template with its arguments: packed_few_kernel<0, false>."""
    found = re.search(r"\d+([a-z_]+(?:kernel|rows))(I.*?E(?=v))?", mangled)
    arguments = re.findall(r"(?:E|Li)(\d+)E|Lb(\d)E", found[2] or "")
    return found[1] + (f"<{', '.join(number or ('false', 'true')[int(flag)] for number, flag in arguments)}>" if arguments else "")


def read():
    return json.loads(TABLE.read_text())


def main():
    with tempfile.TemporaryDirectory() as folder:
        table = {target: compile(target, folder) for target in TARGETS}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
