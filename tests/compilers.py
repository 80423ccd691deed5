"""The compilers of this machine and the flags the build gives each kernel tier, read from CMakeLists.txt."""

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", f"-I{ROOT / 'cpp'}"]
OBJECTS = tempfile.TemporaryDirectory(prefix="genkit-objects-")  # for this run of the tests
X86 = platform.machine() in ("x86_64", "AMD64")


def shared_flags():
    found = re.search(r"target_compile_options\(genkit_flags INTERFACE ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    return found[1].split()


def tiers():
    """Tier -> its own flags, for every tier the build knows."""
    text = (ROOT / "CMakeLists.txt").read_text()
    for name, value in re.findall(r"^\s+set\((\w+) ([^)]*)\)", text, re.M):
        text = text.replace("${%s}" % name, value)
    return {name: flags.split() for name, flags in re.findall(r"^\s+genkit_tier\((\w+)([^)]*)\)", text, re.M)}


def native():
    """The C++ compiler as a command, or None."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return shlex.split(name)
    return None


def for_arm(tier):
    return tier.startswith("neon")


def for_tier(tier):
    """(compiler or None, why there is none)."""
    if tier == "reference" or for_arm(tier) != X86:
        return native(), "no C++ compiler on this machine"
    other = "aarch64-linux-gnu-g++" if for_arm(tier) else "x86_64-linux-gnu-g++"
    return ([other] if shutil.which(other) else None), f"no cross compiler {other} on this machine"


def compile_source(compiler, source, target, *flags):
    command = [*compiler, *COMMON, *shared_flags(), *flags, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return target


@functools.cache
def tier_object(tier, *more):
    """The object file of a tier, or of the reference, as the build makes it, or with more flags."""
    source = "reference.cpp" if tier == "reference" else f"tier_{tier}.cpp"
    target = Path(OBJECTS.name) / f"{tier}{len(more)}.o"
    return compile_source(for_tier(tier)[0], ROOT / "cpp/cpu" / source, target, "-c", "-O3", *tiers().get(tier, []), *more)


def runs(command):
    """(whether this command makes programs that run, why not): a sanitizer may lack its library or dislike the system."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "empty.cpp", Path(folder) / "empty"
        source.write_text("int main() { return 0; }\n")
        for step in ([*command, str(source), "-o", str(program)], [str(program)]):
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                return False, (done.stderr or f"exit {done.returncode}").strip().splitlines()[-1]
    return True, ""
