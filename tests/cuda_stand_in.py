"""What tests of CUDA without a GPU share: a driver library that says what it is told to; the plugin whose device is a stand-in is
the fixture `stand_in` (conftest.py)."""

import subprocess

import compilers
import pytest

needs_compiler = pytest.mark.skipif(compilers.native() is None or not compilers.X86, reason="the shim is for x86-64 with a C++ compiler")


def driver(folder, **answers):
    """A driver library in the folder: what each function does, 0 and good news if not said otherwise."""
    body = {"cuInit": "return 0;", "cuDriverGetVersion": "*n = 13000; return 0;", "cuDeviceGetCount": "*n = 1; return 0;"} | answers
    argument = {"cuInit": "unsigned n"}
    text = "".join(f"int {name}({argument.get(name, 'int* n')}) {{ {code} }}\n" for name, code in body.items() if code)
    (folder / "driver.c").write_text(text)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", folder / "libcuda.so.1", folder / "driver.c"], check=True)
    return folder


def compile_plugin(folder):
    return compilers.compile_source(compilers.native(), compilers.ROOT / "tests/cuda_plugin.cpp", folder / "plugin.so", "-O2", "-shared", "-fPIC",
                                    "-Wno-unused-function", f"-I{compilers.ROOT / 'tests'}")
