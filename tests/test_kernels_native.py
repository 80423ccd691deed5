"""kernel_check.cpp: every tier against the reference without Python between, and tiers of another architecture under an
emulator; AMX by an emulator of its own (tile_emulator.h)."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import compilers
import pytest

from genkit import _core

TILES = "-DEMULATED_TILES"  # where the processor has tiles, only the permission to use them


@pytest.mark.parametrize("tier", compilers.tiers())
def test_tier_agrees_with_the_reference(tier, tmp_path):
    compiler, reason = compilers.for_tier(tier)
    if not compiler:
        pytest.skip(reason)
    run, link = [], []
    arm = compilers.for_arm(tier)
    if arm == compilers.X86:
        run, link = [shutil.which("qemu-aarch64" if arm else "qemu-x86_64"), "-cpu", "max"], ["-static"]
        if not run[0]:
            pytest.skip(f"no qemu user emulator for tier {tier} on this machine")
    elif tier == "amx" and "avx512bf16" in _core.tiers():
        link = [TILES]
    elif tier not in _core.tiers():
        pytest.skip(f"this processor cannot run tier {tier}")
    program = compilers.compile_source(compiler, compilers.ROOT / "tests/kernel_check.cpp", tmp_path / "check", "-O1",
                                       f"-DINSTALL_TIER=install_{tier}", str(compilers.tier_object(tier)), *link)
    done = subprocess.run([*run, str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


SANITIZED = [tier for tier in compilers.tiers() if tier in _core.tiers()]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """Tier -> the program being compiled: they take a minute each, so as many at a time as there are processors."""
    def build(tier):
        compiler, _ = compilers.for_tier(tier)
        target = tmp_path_factory.mktemp("sanitized") / "check"
        return compiler and compilers.compile_source(
            compiler, compilers.ROOT / "tests/kernel_check.cpp", target, *SANITIZERS, f"-DINSTALL_TIER=install_{tier}",
            str(compilers.tier_object(tier, *SANITIZERS)), *([TILES] if tier == "amx" else []))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {tier: pool.submit(build, tier) for tier in SANITIZED}


@pytest.mark.skipif(not os.environ.get("GENKIT_SANITIZE"), reason="takes minutes to compile: set GENKIT_SANITIZE=1")
@pytest.mark.parametrize("tier", SANITIZED)
def test_tier_under_sanitizers(tier, sanitized):
    """The same program: nothing outside its arrays, nothing undefined."""
    program = sanitized[tier].result()
    if not program:
        pytest.skip(compilers.for_tier(tier)[1])
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
