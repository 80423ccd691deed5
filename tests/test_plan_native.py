"""plan_check.cpp: thread team, plans and token loop without Python, under the sanitizers of the compiler."""

import subprocess

import compilers
import pytest
from compilers import ROOT

SOURCES = [ROOT / "cpp" / name for name in ("plan.cpp", "threads.cpp", "tensor.cpp", "device.cpp", "cpu/table.cpp", "cpu/detect.cpp",
                                            "cpu/reference.cpp")]


@pytest.mark.parametrize("sanitizer", ["none", "thread", "address,undefined"])
def test_plans_and_threads(sanitizer, tmp_path):
    compiler = compilers.native()
    if not compiler:
        pytest.skip("no C++ compiler on this machine")
    flags = ["-O1", "-pthread", f"-I{ROOT / 'cpp'}"]
    if sanitizer != "none":
        flags += ["-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
        works, reason = compilers.runs([*compiler, *flags])
        if not works:
            pytest.skip(f"the compiler's -fsanitize={sanitizer} does not work here: {reason}")
    program = compilers.compile_source(compiler, ROOT / "tests/plan_check.cpp", tmp_path / "check", *flags,
                                       *map(str, SOURCES), "-ldl")
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
