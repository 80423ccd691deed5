"""Races between a block's threads, their copies, and blocks (cuda_races.h), of which the shim's order of threads shows nothing: none in the
kernels of cuda_races_check.cpp, and those planted here are found."""

import random
import shutil
import subprocess
from pathlib import Path

import compilers
import pytest
from cuda_stand_in import needs_compiler

TESTS = Path(__file__).parent
SOURCES = ["cuda_shim.h", "cuda_races.h", "cuda_races_check.cpp"]
# In two rounds, so that none hides behind another one in its kernel. File of cuda/: what is changed into what; the kernel that must be told
# of, and how.
SHARED, EARLIER, BLOCKS = "shared memory, a ", "memory, ahead of wait_for_previous", "memory of two blocks, a read after a write"
PLANTED = [[
    ("packed_many.inl", "loose ? many_stages_most - 2 :", "loose ? many_stages_most - 1 :", "packed_many_kernel", SHARED + "write after a read"),
    ("packed_few.inl", "gk::sync_warp();\n                copy_next(stage);", "copy_next(stage);", "packed_few_kernel",
     SHARED + "write after a read"),
    ("attention_rows.inl", "if constexpr (coded) gk::sync_warp();\n                if (fresh", "if (fresh", "attention_rows_kernel",
     SHARED + "read after a write"),
    ("sample_split.inl", "gk::sync();\n            else gk::sync_warp();", "gk::sync_warp();\n            else gk::sync_warp();",
     "sample_choose_kernel", SHARED + "read after a write"),
    ("sample_split.inl", "    gk::wait_for_previous();\n    SplitRow&", "    SplitRow&", "sample_bins_kernel", EARLIER),  # it comes by the next line
    ("sample_split.inl", "found_in_row(space, place.sums);  // has barriers\n", "found_in_row(space, place.sums);\n    gk::wait_for_previous();\n",
     "sample_bins_kernel", EARLIER),
    ("penalty.inl", "*known = 0;\n    gk::sync();", "*known = 0;", "remember_kernel", SHARED + "write after a write"),
    ("loop.inl", "    gk::sync();\n    if (stopped) return;", "    if (stopped) return;", "advance_kernel", SHARED + "read after a write"),
], [
    ("packed_many.inl", "gk::sync_some(1 + warp / cuts, 32 * cuts);", "", "packed_many_kernel", SHARED + "read after a write"),
    ("packed_few_rows.inl", "    gk::copy_wait<0>();\n", "", "packed_few_kernel", SHARED + "read after a write"),
    ("sample_split.inl", "gk::load_fresh(&space.listed)", "space.listed", "sample_choose_kernel", BLOCKS),
    ("penalty.inl", "    gk::sync();\n    if (gk::thread() != 0) return;", "    if (gk::thread() != 0) return;", "remember_kernel",
     SHARED),
]]

def races(folder, seed):
    """The program made of a folder's kernels, and what it finds: [kernel, what, two places in the program] each."""
    compiler = compilers.native()
    if "clang" in subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("the calls that g++ makes for -fsanitize=thread are those looked at")
    told, check, program = folder / "races.o", folder / "check.o", folder / "check"
    compilers.compile_source(compiler, TESTS / "cuda_races.cpp", told, "-c", "-O2")
    compilers.compile_source(compiler, folder / "tests/cuda_races_check.cpp", check, "-c", "-O1", "-g1", "-fno-pie", "-fsanitize=thread",
                             "-DGK_RACES", "-ffp-contract=off", "-Wno-unused-function", f"-I{folder / 'tests'}")
    subprocess.run([*compiler, "-no-pie", check, told, "-o", program], check=True)
    done = subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1) and not done.stderr, f"seed {seed}: {done.stdout[-2000:]}{done.stderr}"
    found = [line.split(" | ") for line in done.stdout.splitlines()]
    assert done.returncode == bool(found)
    return program, found


def in_words(program, found):
    """The first ones, with files and lines where there is addr2line."""
    words = []
    for kernel, what, places in found[:8]:
        if shutil.which("addr2line"):
            command = ["addr2line", "-s", "-e", program, *(hex(int(at, 16) - 1) for at in places.split())]
            places = subprocess.run(command, capture_output=True, text=True).stdout
        words.append(f"{kernel}: {what}: {places.split()}")
    return "\n".join(words)


@pytest.fixture
def folder(tmp_path):
    for name in ("cuda", "cpp"):
        shutil.copytree(compilers.ROOT / name, tmp_path / name)
    (tmp_path / "tests").mkdir()
    for name in SOURCES:
        shutil.copy(TESTS / name, tmp_path / "tests")
    return tmp_path


@needs_compiler
def test_kernels_have_no_races(folder):
    seed = random.SystemRandom().randrange(2**32)
    program, found = races(folder, seed)
    assert not found, f"seed {seed}:\n{in_words(program, found)}"


@needs_compiler
@pytest.mark.parametrize("planted", PLANTED, ids=["first", "second"])
def test_planted_races_are_found(folder, planted):
    for name, before, after, *_ in planted:
        path = folder / "cuda" / name
        text = path.read_text()
        assert text.count(before) == 1, f"{name} is no longer as it was planted in: {before}"
        path.write_text(text.replace(before, after))
    seed = random.SystemRandom().randrange(2**32)
    _, found = races(folder, seed)
    for *_, kernel, what in planted:
        assert any(kernel in at and how.startswith(what) for at, how, _ in found), f"seed {seed}: not found in {kernel}: {what}"
