"""Products with integer weights on a device (cuda/packed*.inl), proven on the processor: where things lie, how work is split, and the
reference's bits on fresh numbers (cuda_packed_check.cpp)."""

import random
import subprocess
from pathlib import Path

import compilers
import pytest

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(compilers.native() is None or not compilers.X86, reason="the shim is for x86-64 with a C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compilers.compile_source(compilers.native(), TESTS / "cuda_packed_check.cpp", tmp_path_factory.mktemp("packed") / "check", "-O2",
                                    "-Wno-unused-function", f"-I{TESTS}", str(compilers.tier_object("reference")))


@pytest.mark.parametrize("part", ["places", "few", "many"])
def test_the_bits_of_the_reference(program, part):
    seed = str(random.SystemRandom().randrange(2**32))
    done = subprocess.run([program, seed, part], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"seed {seed}: {done.stdout[:3000]}{done.stderr[:1000]}"
