"""Products with weights of 16 bits on a device (cuda/dense*.inl), proven on the processor: how work is split, sums beside float64, and
a row's bits whatever is beside it (cuda_dense_check.cpp)."""

import random
import subprocess
from pathlib import Path

import compilers
import pytest

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(compilers.native() is None or not compilers.X86, reason="the shim is for x86-64 with a C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compilers.compile_source(compilers.native(), TESTS / "cuda_dense_check.cpp", tmp_path_factory.mktemp("dense") / "check", "-O2",
                                    "-Wno-unused-function", "-ffp-contract=off", f"-I{TESTS}")


@pytest.mark.parametrize("part", ["plans", "few", "many", "pieces"])
def test_products_of_sixteen_bits(program, part):
    seed = str(random.SystemRandom().randrange(2**32))
    done = subprocess.run([program, seed, part], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"seed {seed}: {done.stdout[:3000]}{done.stderr[:1000]}"
