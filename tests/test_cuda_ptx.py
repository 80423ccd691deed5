"""What the kernels are in PTX of sm_90a: dependent launch is safe only where every kernel waits before it looks at or changes
what others do, and weights are read fast only by the instructions meant for it."""

import random
import re
import shutil

import cuda_resources
import pytest

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")

# Kernels that stream weights, which no kernel writes: alone in loading past the coherent cache and ahead of the wait. An
# entry is a kernel's name without its template arguments.
READ_WEIGHTS = re.compile(r"(linear|dense|packed|measure_read)_\w+|(rms_norm|norm_quantize)_kernel")
# Products by tensor cores.
PRODUCTS = re.compile(r"(packed|dense)_\w+")

WAIT = "griddepcontrol.wait"
# What touches memory that kernels share, or ends the kernel.
TOUCHES = re.compile(r"(ld|st|atom|red|ret|exit|cp|ldu|prefetch|membar|fence)\b")
# Its own, and what only fetches to the second-level cache, where all writes go.
OWN = re.compile(r"(ld|st)\.(volatile\.)?(param|shared|local|const)\b|cp\.async\.(commit|wait)_group|prefetch\.global\.L2|fence\.mbarrier_init\b")
BULK = r"cp\.async\.bulk\.shared::cluster\.global\b"
WEIGHT_LOADS = re.compile(rf"ld\.global\.nc\b|cp\.async\.cg\.shared\.global|prefetch\.global|{BULK}")
WIDE_LOADS = re.compile(rf"ld\.global\.nc[.:\w]*\.v4\.u32|cp\.async\.cg\.shared\.global \[[^\]]*\], \[[^\]]*\], 16|{BULK}")


def entries(text):
    """Kernel -> its instructions, in the order of the text."""
    found = {}
    for mangled, body in re.findall(r"\.entry (\w+)\(.*?\n\{\n(.*?)\n\}", text, re.S):
        lines = (re.sub(r"^@!?%p\d+\s+", "", line.strip()) for line in body.split("\n"))
        found[cuda_resources.name(mangled)] = [line for line in lines if re.match(r"[a-z]", line)]
    return found


def faults(kernel, lines):
    """What is wrong with a kernel, in words."""
    said = []
    streams = READ_WEIGHTS.match(kernel) is not None
    if not any(line.startswith("griddepcontrol.launch_dependents") for line in lines):
        said.append("never lets the next kernel start")
    wait = next((i for i, line in enumerate(lines) if line.startswith(WAIT)), None)
    if wait is None:
        return said + ["never waits for the kernel before"]
    for line in lines[:wait]:
        if TOUCHES.match(line) and not OWN.match(line) and not (streams and WEIGHT_LOADS.match(line)):
            said.append(f"ahead of the wait: {line}")
    if not streams:
        said += [f"loads past the coherent cache: {line}" for line in lines if line.startswith("ld.global.nc")]
    elif not any(WIDE_LOADS.match(line) for line in lines):
        said.append("loads no weights by 16 bytes")
    if PRODUCTS.match(kernel) and not any(line.startswith("mma.sync") for line in lines):
        said.append("has no product of tensor cores")
    return said


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return entries(cuda_resources.ptx("90a", tmp_path_factory.mktemp("ptx")))


def test_kernels_wait_and_load_as_they_may(kernels):
    assert kernels.keys() == cuda_resources.read()["90a"].keys()
    wrong = {kernel: said for kernel, lines in kernels.items() if (said := faults(kernel, lines))}
    assert not wrong
    for kind in (READ_WEIGHTS, PRODUCTS):
        assert any(kind.match(kernel) for kernel in kernels)


@pytest.mark.parametrize("change, words", [
    (lambda lines, wait: [line for line in lines if not line.startswith(WAIT)], "never waits"),
    (lambda lines, wait: lines[:wait] + ["st.global.f32 [%rd1], %f1;"] + lines[wait:], "ahead of the wait: st.global"),
    (lambda lines, wait: lines[:wait] + ["ld.global.f32 %f1, [%rd1];"] + lines[wait:], "ahead of the wait: ld.global"),
    (lambda lines, wait: lines[:wait] + ["st.v2.f32 [%rd1], {%f1, %f2};"] + lines[wait:], "ahead of the wait: st.v2"),
    (lambda lines, wait: lines[:wait] + ["ret;"] + lines[wait:], "ahead of the wait: ret"),
    (lambda lines, wait: lines[:wait] + ["atom.global.add.u32 %r1, [%rd1], 1;"] + lines[wait:], "ahead of the wait: atom"),
    (lambda lines, wait: [line for line in lines if "launch_dependents" not in line], "never lets"),
    (lambda lines, wait: lines + ["ld.global.nc.f32 %f1, [%rd1];"], "past the coherent cache"),
    (lambda lines, wait: [line for line in lines if not WIDE_LOADS.match(line)], "no weights by 16 bytes"),
    (lambda lines, wait: [line for line in lines if not line.startswith("mma")], "no product of tensor cores"),
])
def test_a_kernel_that_is_not_so_is_found(kernels, change, words):
    kind = PRODUCTS if "weights" in words or "product" in words else re.compile(rf"(?!{READ_WEIGHTS.pattern})")
    kernel = random.choice([name for name in kernels if kind.match(name)])
    lines = kernels[kernel]
    wait = next(i for i, line in enumerate(lines) if line.startswith(WAIT))
    assert any(words in said for said in faults(kernel, change(lines, wait))), kernel
