"""genkit bench limits beside limits_check.c, which shares nothing with it: python tests/check_limits.py, by hand and on a quiet
machine, where it takes a few minutes. Both are asked in turns, so that they find the machine in the same state; what counts
is the median of the ratios of each round. Exits 1 where one is beyond TOLERANCE. docs/performance.md has what it said."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from genkit import _core, machine
from genkit.bench import limits
from genkit.bench.estimates import estimate
from genkit.bench.report.numbers import format_size

TOLERANCE = 0.10
SIZES = (32 << 10, 512 << 10, 1 << 20, 16 << 20, 128 << 20, 1 << 30, 2 << 30)
# Ours: tier and kind; what limits_check.c calls the same.
LOOPS = {("avx2", "f32"): "fma256", ("avx2", "int8"): "bytes256", ("avx512", "f32"): "fma512", ("avx512vnni", "int8"): "vnni512",
         ("avx512bf16", "bf16"): "bf16_512", ("amx", "int8"): "amx_int8", ("amx", "bf16"): "amx_bf16"}


class Other:
    """The C program, compiled with this machine's compiler."""

    def __init__(self, folder, compiler):
        program = Path(folder) / "limits_check"
        source = Path(__file__).with_name("limits_check.c")
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", str(source), "-o", str(program), "-lpthread"], check=True)
        self._process = subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, name, threads, size=0):
        print(name, threads, size, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def end(self):
        self._process.stdin.close()
        self._process.wait()


def peak(tier, kind, threads):
    before = _core.current_tier()
    _core.use_tier(tier)
    try:
        return limits.arithmetic_peak(kind, threads)
    finally:
        _core.use_tier(before)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cc", default=shutil.which("cc") or "gcc")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, machine.available_threads()}))
    options = parser.parse_args()
    sizes = [size for size in SIZES if size <= machine.memory_available() // 4]
    memory = limits.readable_memory(sizes[-1], max(options.threads))
    with tempfile.TemporaryDirectory() as folder:
        other = Other(folder, options.cc)
        lines = [(f"read {format_size(size)}, {n} thread(s)", 1e9, "GB/s", lambda size=size, n=n: limits.read_bandwidth(size, n, memory),
                  lambda size=size, n=n: other.ask("read", n, size)) for size in sizes for n in options.threads]
        lines += [(f"{kind} {tier}, {n} thread(s)", 1e9, "GOP/s", lambda tier=tier, kind=kind, n=n: peak(tier, kind, n),
                   lambda name=name, n=n: other.ask(name, n)) for (tier, kind), name in LOOPS.items() if tier in _core.tiers()
                  for n in options.threads]
        found = [([], []) for _ in lines]
        for number in range(options.rounds):
            for (_, _, _, ours, theirs), (mine, its) in zip(lines, found):
                for call, values in ((ours, mine), (theirs, its))[:: 1 if number % 2 else -1]:
                    values.append(call())
        other.end()
    print("| | genkit | C | ratio |\n|---|---|---|---|")
    beyond = 0
    for (name, factor, unit, _, _), (mine, its) in zip(lines, found):
        ratio = estimate(a / b for a, b in zip(mine, its) if b)
        if ratio is None:
            print(f"| {name} | {estimate(mine).median / factor:.1f} {unit} | not here | |")
            continue
        off = abs(ratio.median - 1) > TOLERANCE
        beyond += off
        print(f"| {name} | {estimate(mine).median / factor:.1f} {unit} | {estimate(its).median / factor:.1f} | {ratio.median:.2f} "
              f"({ratio.low:.2f}-{ratio.high:.2f}){' beyond' if off else ''} |")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
