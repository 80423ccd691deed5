"""Where things lie and how work is split in cuda/ (cuda_index_check.cpp), on fresh numbers."""

import random
import subprocess
from pathlib import Path

import compilers
import pytest

TESTS = Path(__file__).parent


@pytest.mark.skipif(compilers.native() is None or not compilers.X86, reason="the shim is for x86-64 with a C++ compiler")
def test_each_element_has_one_place(tmp_path):
    program = compilers.compile_source(compilers.native(), TESTS / "cuda_index_check.cpp", tmp_path / "check", "-O1", "-Wno-unused-function",
                                       f"-I{TESTS}")
    seed = str(random.SystemRandom().randrange(2**32))
    done = subprocess.run([program, seed], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"seed {seed}: {done.stdout[:3000]}{done.stderr[:1000]}"
