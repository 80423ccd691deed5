"""Products by cuBLASLt (cuda/blas.h), through the stand-in plugin and a library of our own with its interface (cuda_blas.cpp)."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import compilers
import pytest
from cuda_stand_in import needs_compiler

TESTS = Path(__file__).parent
SHAPES, CALLS = 3, 4  # of cuda_blas.py: each shape twice at once and a plan run twice


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compilers.compile_source(compilers.native(), TESTS / "cuda_blas.cpp", tmp_path_factory.mktemp("blas") / "blas.so", "-O2", "-shared", "-fPIC")


@pytest.fixture(scope="module")
def said(stand_in, library):
    folder, plugin = stand_in
    seed = str(random.SystemRandom().randrange(2**32))

    def run(**environment):
        done = subprocess.run([sys.executable, TESTS / "cuda_blas.py", plugin, library, seed], capture_output=True, text=True, timeout=300,
                              env=os.environ | {"LD_LIBRARY_PATH": str(folder), "GENKIT_CUBLASLT": str(library)} | environment)
        assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    return run


@needs_compiler
def test_products_of_many_rows_are_the_library_s(said):
    found, alone = said(), said(GENKIT_CUDA_BLAS="0")
    assert found["made"] == SHAPES * CALLS and found["looked"] == SHAPES and found["said"]["reason"] is None
    assert alone["made"] == alone["looked"] == 0 and alone["said"] == {"path": None, "reason": "GENKIT_CUDA_BLAS=0"}
    assert found["worst"] < 1e-6 and alone["worst"] < 1e-6
    assert found["bits"] != alone["bits"] and found["bits"] == said()["bits"]
    # Two kernels: rounding and bias, beside the library's product; of our own rounding and product.
    assert found["kernels"] == alone["kernels"] == [2] * SHAPES


@needs_compiler
@pytest.mark.parametrize("how, words", [("none", "cublasLtMatmulAlgoGetHeuristic failed with status 15"), ("fails", "cublasLtMatmul failed with status 15")])
def test_a_library_that_fails_is_done_without_and_said(said, how, words):
    found, alone = said(FAKE_BLAS=how), said(FAKE_BLAS=how, GENKIT_CUDA_BLAS="0")
    assert found["made"] == 0 and found["bits"] == alone["bits"]
    assert found["said"]["reason"] == f"{words}; the plugin's own kernels are used"


@needs_compiler
def test_a_library_that_cannot_be_opened(said, tmp_path):
    absent = str(tmp_path / "absent.so")
    found = said(GENKIT_CUBLASLT=absent)
    assert found["made"] == 0 and found["worst"] < 1e-6 and found["said"] == {"path": None, "reason": f"GENKIT_CUBLASLT={absent} cannot be opened"}
