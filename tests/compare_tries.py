"""How often genkit bench compare is right, with the real commands: run by hand, it takes an hour and a half.

    python tests/compare_tries.py [--tries 20] [--slower 10%] [--keep FOLDER] [-- OPTIONS OF genkit bench]

Each try is three runs of `genkit bench`: two plain ones, of which `compare` must say "no difference" and exit 0, and one
whose decode step waits by --slower of its time, which it must find and exit 1. The third run lies between the two.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def plant(share: float) -> None:
    """Makes every burst of decoding take longer by that share of its own time."""
    from genkit.plan import Decoder

    draw = Decoder.draw

    def slower(*arguments):
        start = time.perf_counter()
        drawn = draw(*arguments)
        end = time.perf_counter()
        while time.perf_counter() < end + share * (end - start):  # a sleep is not precise enough
            pass
        return drawn

    Decoder.draw = slower


def run(options: "list[str]", output: Path, slower: float) -> None:
    arguments = ["bench", *options, "-q", "-o", str(output)]
    subprocess.run([sys.executable, __file__, "--planted", str(slower), *arguments], check=True, stdout=subprocess.DEVNULL)


def verdict(a: Path, b: Path, test: str) -> "tuple[str, int]":
    """(What is said of the rows of that kind of test, exit code)."""
    done = subprocess.run([sys.executable, "-m", "genkit", "bench", "compare", str(a), str(b), "--json"], capture_output=True, text=True)
    rows = [row for row in json.loads(done.stdout)["rows"] if row["id"]["test"].startswith(test)]
    print(f"  {a.stem} {b.stem}: " + "; ".join(f"{row['id']['test']} {row['median']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
                                               f" {row['facts']['verdict']}" + "".join(f", {note}" for note in row["noise"]) for row in rows)
          + f"; exit {done.returncode}", flush=True)
    return " ".join(sorted({row["facts"]["verdict"] for row in rows})), done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--slower", default="10%")
    parser.add_argument("--keep", type=Path, help="a folder for the results; those that are there are used")
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    slower = float(given.slower.rstrip("%")) / 100
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)

        def result(name: str, share: float) -> Path:
            path = folder / f"{name}.json"
            if not path.exists():
                run(given.options, path, share)
            return path

        same = found = 0
        before = result("plain0", 0.0)
        for number in range(1, given.tries + 1):
            planted, after = result(f"planted{number}", slower), result(f"plain{number}", 0.0)
            same += verdict(before, after, "") == ("no difference", 0)
            found += verdict(before, planted, "tg") == ("slower", 1)
            print(f"after {number}: no difference {same} of {number}, slow-down found {found} of {number}", flush=True)
            before = after


if __name__ == "__main__":
    if sys.argv[1:2] == ["--planted"]:
        share, sys.argv[1:] = float(sys.argv[2]), sys.argv[3:]
        if share:
            plant(share)
        from genkit.cli import main as genkit

        sys.exit(genkit())
    main()
