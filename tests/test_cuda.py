"""CUDA without a GPU: the kernels' logic on the processor (cuda_shim.h), as a tier for kernel_check.cpp and as a plugin that
the engine opens; what nvcc makes of them, for every target."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import compilers
import cuda_resources
import pytest
from cuda_engine import wrong_with
from cuda_stand_in import driver, needs_compiler

TESTS = Path(__file__).parent
WITHOUT_KERNEL = []  # of the slots that a device is asked for (fill_missing in cpp/cpu/table.cpp)


@needs_compiler
def test_the_shim_does_what_it_stands_for(tmp_path):
    program = compilers.compile_source(compilers.native(), TESTS / "cuda_shim_check.cpp", tmp_path / "check", "-O2",
                                       "-Wno-unused-function", f"-I{TESTS}")
    seed = str(random.SystemRandom().randrange(2**32))
    done = subprocess.run([program, seed], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"seed {seed}: {done.stdout[:2000]}"


@needs_compiler
def test_kernels_agree_with_the_reference(tmp_path):
    tier = tmp_path / "tier.o"
    compilers.compile_source(compilers.native(), TESTS / "cuda_tier.cpp", tier, "-O2", "-Wno-unused-function", f"-I{TESTS}", "-c")
    program = compilers.compile_source(compilers.native(), TESTS / "kernel_check.cpp", tmp_path / "check", "-O1",
                                       "-DINSTALL_TIER=install_cuda", str(tier))
    wide = os.environ | {"BLOCK_SHARED": str(227 << 10)}  # of 9.0, where wide heads go another way
    for parts, environment in (([], None), (["few"], wide)):
        done = subprocess.run([program, *parts], capture_output=True, text=True, timeout=900, env=environment)
        assert done.returncode == 0, (parts, done.stdout + done.stderr)


# ---- a plugin whose device is a stand-in -----------------------------------------------------------------------------


def compare(stand_in, part):
    folder, plugin = stand_in
    done = subprocess.run([sys.executable, TESTS / "cuda_engine.py", plugin, part], capture_output=True, text=True, timeout=900,
                          env=os.environ | {"LD_LIBRARY_PATH": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line.pop("what"): line for line in map(json.loads, done.stdout.splitlines())}
    usable, words = found["device"]["state"]
    assert usable and "stands in for a GPU" in words and "driver for CUDA 13.0" in words
    assert found.pop("device")["missing"] == WITHOUT_KERNEL
    return found


@needs_compiler
def test_the_engine_writes_the_same_text(stand_in):
    found = compare(stand_in, "default")
    assert len(found) == 14
    assert not {what: wrong for what, line in found.items() if (wrong := wrong_with({"what": what} | line))}


@needs_compiler
def test_every_architecture(stand_in):
    found = compare(stand_in, "architectures")
    refused = {what for what, line in found.items() if "refused" in line}
    assert len(found) - len(refused) >= 28
    assert not {what: wrong for what, line in found.items() if (wrong := wrong_with({"what": what} | line))}


# ---- drivers and plugins that are not what they should be --------------------------------------------------------------


STATE = """
import sys
from genkit import machine
from genkit.devices import choose_device
machine.CUDA_PLUGIN = sys.argv[1]
print(*machine.cuda_state())
print(choose_device("cuda") if machine.cuda_state()[0] else choose_device("auto"))
"""


@needs_compiler
@pytest.mark.parametrize("answers, reason", [
    ({}, "True a processor that stands in for a GPU"),
    ({"cuInit": "return 100;"}, "the NVIDIA driver gives error 100 (is a device present and allowed?)"),
    ({"cuDriverGetVersion": "return 3;"}, "the NVIDIA driver gives error 3 when asked for its version"),
    ({"cuDriverGetVersion": "*n = 12080; return 0;"}, "the NVIDIA driver is for CUDA 12.8; 13.0 is needed (driver 580 or newer)"),
    ({"cuDeviceGetCount": "return 999;"}, "the NVIDIA driver gives error 999 when asked for devices"),
    ({"cuDeviceGetCount": "*n = 0; return 0;"}, "the NVIDIA driver sees no device"),
    ({"cuInit": ""}, "libcuda.so.1 lacks functions of a CUDA driver"),
])
def test_a_driver_that_fails_is_refused_in_words(stand_in, tmp_path, answers, reason):
    said = state(driver(tmp_path, **answers), stand_in[1])
    assert reason in said and said.split("\n")[1] == ("cuda" if not answers else "cpu")


def state(folder, plugin):
    done = subprocess.run([sys.executable, "-c", STATE, plugin], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"LD_LIBRARY_PATH": str(folder)})
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_compiler
@pytest.mark.parametrize("source, reason", [
    ("const int abi[4] = {12345}; const void* genkit_device_plugin(void) { return abi; }",
     "is of another build (interface 12345, expected "),
    ("int x;", "is of another build (interface 0, expected "), (None, "the plugin cannot be opened: "),
])
def test_a_plugin_that_is_another_is_refused_in_words(tmp_path, source, reason):
    plugin = tmp_path / "plugin.so"
    if source is None:
        plugin.write_bytes(b"\x7fELF" + bytes(60))
    else:
        (tmp_path / "plugin.c").write_text(source)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", plugin, tmp_path / "plugin.c"], check=True)
    assert reason in state(driver(tmp_path), plugin)


@needs_compiler
@pytest.mark.parametrize("kept", [0, 20, 64, 0.1, 0.5, 0.9, 0.999])
def test_a_plugin_that_is_cut_short_is_refused_in_words(stand_in, tmp_path, kept):
    whole = Path(stand_in[1]).read_bytes()
    plugin = tmp_path / "plugin.so"
    plugin.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    reason = "the plugin is cut short (" if kept == 64 or isinstance(kept, float) else "the plugin cannot be opened: "
    assert reason in state(stand_in[0], plugin)


@needs_compiler
def test_a_plugin_that_is_no_library_is_refused_in_words(stand_in, tmp_path):
    (tmp_path / "plugin.so").write_text("not a library\n" * 20)
    assert "the plugin cannot be opened: " in state(stand_in[0], tmp_path / "plugin.so")
    assert "not built into this package" in state(stand_in[0], tmp_path / "absent.so")


@needs_compiler
def test_a_device_that_cannot_be_opened_is_refused_in_words(stand_in, tmp_path):
    """As where another process has taken all its memory; the facts are those the plugin would give."""
    (tmp_path / "plugin.cpp").write_text("""#include "plugin.h"
using namespace genkit;
static DevicePlugin plugin{};
extern "C" __attribute__((visibility("default"))) const DevicePlugin* genkit_device_plugin() {
    plugin.abi = GENKIT_PLUGIN_ABI;
    plugin.open = [](DeviceFacts*) -> const char* { return "out of memory"; };
    return &plugin;
}
""")
    plugin = compilers.compile_source(compilers.native(), tmp_path / "plugin.cpp", tmp_path / "plugin.so", "-shared", "-fPIC")
    assert state(stand_in[0], plugin) == "False the device cannot be used: out of memory\ncpu\n"


@needs_compiler
def test_processes_side_by_side_and_forked(stand_in):
    """Each process has a device of its own; what was forked after it was opened has none, and says so."""
    forked = STATE + """
import os
with_it = os.fork()
if with_it == 0:
    print(*machine.cuda_state(), flush=True)
    try:
        choose_device("cuda")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
assert os.waitpid(with_it, 0)[1] == 0 and machine.cuda_state()[0]
"""
    several = [subprocess.Popen([sys.executable, "-u", "-c", forked, stand_in[1]], stdout=subprocess.PIPE, text=True,
                                env=os.environ | {"LD_LIBRARY_PATH": str(stand_in[0])}) for _ in range(2)]
    for process in several:
        said = process.communicate(timeout=60)[0].splitlines()
        assert process.returncode == 0 and said[0].startswith("True a processor") and said[1] == "cuda"
        words = "this process was forked from one that had opened the device; start it afresh (spawn)"
        assert said[2:] == [f"False {words}", f"DeviceError --device cuda: {words}; use --device cpu or auto"]


def test_cuda_asked_for_and_not_there_is_exit_5(tmp_path):
    done = subprocess.run([sys.executable, "-c", STATE.replace('"auto"', '"cuda"'), "absent.so"], capture_output=True, text=True, timeout=60)
    assert "DeviceError: --device cuda: CUDA is not built into this package; use --device cpu or auto" in done.stderr


# ---- what the compiler makes of the kernels --------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("target", cuda_resources.TARGETS)
def test_every_target_compiles_to_no_more_than_before(target, tmp_path):
    """Registers, stack and shared memory of each kernel, beside the committed table; spills and local memory are errors."""
    found, committed = cuda_resources.compile(target, tmp_path), cuda_resources.read()[target]
    assert found.keys() == committed.keys(), "run: python tests/cuda_resources.py"
    grown = {kernel: (committed[kernel], now) for kernel, now in found.items()
             if now["registers"] > committed[kernel]["registers"] + 8 or now["stack"] > 0 or now["shared"] > committed[kernel]["shared"]}
    assert not grown, "registers, stack or shared memory have grown; if they must, run: python tests/cuda_resources.py"
